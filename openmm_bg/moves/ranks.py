"""Replica exchange in several MPI processes (ranks): are there as many as were started, and which GPU is whose.

openmmtools shares the replicas among the ranks by mpiplus, which finds out by itself whether a program was started by
`mpiexec` or `srun`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import mpiplus
import openmm
import torch
from openmmtools import cache

from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import available_platforms

# Those of the MPI launchers before Slurm's: an mpiexec inside a Slurm job inherits Slurm's.
_LOCAL_RANK = (
    "OMPI_COMM_WORLD_LOCAL_RANK",  # Open MPI
    "MPI_LOCALRANKID",  # MPICH, Intel MPI
    "MV2_COMM_WORLD_LOCAL_RANK",  # MVAPICH2
    "PALS_LOCAL_RANKID",  # HPE Cray
    "SLURM_LOCALID",
)
_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def check_ranks(n_replicas: int) -> int:
    """Check the number of MPI processes before anything is computed or written.

    Call it first in a script for several machines: from then on, an error in one process ends all of them. Start the
    script by `mpiexec -n N python -m mpi4py script.py`, and sys.exit() in one process does so as well.

    Parameters
    ----------
    n_replicas : int
        Replicas of the simulation: as many as there are states, and one more in a learned replica exchange.

    Returns
    -------
    int
        Number of processes that share the replicas; 1 without MPI.

    Raises
    ------
    ValueError
        If there are more processes than replicas, so that some would never have anything to do.
    RuntimeError
        If several processes were started that do not know of each other: mpi4py is not installed or uses another MPI
        library than the launcher. Each would run the whole simulation and write to the same files.
    """
    communicator = mpiplus.get_mpicomm()
    size = 1 if communicator is None else int(communicator.size)
    started = _started(os.environ)
    if started is not None and started[1] > 1 and size == 1:
        name, n_started = started
        reason = (
            "mpi4py is not installed (pip install 'openmm-bg[mpi]')"
            if communicator is None
            else "mpi4py uses another MPI library than the one whose launcher started them (use the mpiexec of its own,"
            " with Slurm perhaps `srun --mpi=...`, or install mpi4py for the other library)"
        )
        raise RuntimeError(
            f"{name} says that {n_started} processes were started, but this one knows of no other: {reason}."
        )
    if size > n_replicas:
        raise ValueError(
            f"There are {size} MPI processes for {n_replicas} replica(s): {size - n_replicas} would do nothing. "
            f"Start {n_replicas} or fewer, best a number that divides {n_replicas}."
        )
    return size


def local_rank(environment: Mapping[str, str] | None = None) -> int:
    """Number of this process among those on its own machine, from what the launcher set; 0 without a launcher.

    Parameters
    ----------
    environment : mapping, optional
        `os.environ` by default.
    """
    environment = os.environ if environment is None else environment
    return int(next((environment[name] for name in _LOCAL_RANK if name in environment), "0"))


def place_on_gpu(
    generator: BoltzmannGenerator | None = None,
    *,
    platform: Literal["CUDA", "HIP"] = "CUDA",
    precision: Literal["mixed", "single", "double"] = "mixed",
) -> int:
    """Let this process work on a GPU of its own: processes on one machine take its GPUs in turn.

    Call it before the first Context is made. From then on openmmtools' Contexts (those of
    `openmmtools.cache.global_context_cache`) are made on that GPU, the generator is there, and it is PyTorch's default.
    Where the launcher shows each process a single GPU (Slurm's `--gpus-per-task`), it is that one.

    Parameters
    ----------
    generator : BoltzmannGenerator, optional
    platform : {"CUDA", "HIP"}
        OpenMM's name of the platform.
    precision : {"mixed", "single", "double"}
        Of OpenMM.

    Returns
    -------
    int
        The index of the GPU.

    Raises
    ------
    RuntimeError
        If PyTorch finds no GPU, or openmmtools has made Contexts already.
    ValueError
        If OpenMM has no such platform.
    """
    n_devices = torch.cuda.device_count()
    if not n_devices:
        raise RuntimeError(
            "This process sees no GPU: install a PyTorch for it, look at CUDA_VISIBLE_DEVICES and at what was asked of "
            "the batch system; or leave place_on_gpu out to run on the CPU."
        )
    if platform not in available_platforms():
        raise ValueError(f"OpenMM has no platform {platform!r} here, only {', '.join(available_platforms())}.")
    device = local_rank() % n_devices
    properties = {"DeviceIndex": str(device), "Precision": precision}
    cache.global_context_cache.set_platform(openmm.Platform.getPlatformByName(platform), properties)
    torch.cuda.set_device(device)
    if generator is not None:
        generator.to(f"cuda:{device}")
    return device


def _started(environment: Mapping[str, str]) -> tuple[str, int] | None:
    """What the launcher says of the number of processes: its variable, and their number."""
    for name in _SIZE:
        if name in environment:
            return name, int(environment[name])
    return None
