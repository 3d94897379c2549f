"""Temperature replica exchange that makes training data: openmmtools' sampler, stored so that it survives a crash."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from openmmtools.cache import ContextCache
from openmmtools.mcmc import LangevinDynamicsMove
from openmmtools.multistate import ParallelTemperingSampler
from openmmtools.multistate.utils import SimulationNaNError
from openmmtools.states import SamplerState, ThermodynamicState

from openmm_bg.density import FloatArray
from openmm_bg.files import write_bytes
from openmm_bg.moves.durable_reporter import DurableReporter
from openmm_bg.potentials import PlatformChoice, choose_platform
from openmm_bg.systems import MolecularSystem
from openmm_bg.training.data import SimulationCost, TrajectoryData
from openmm_bg.training.simulate import SimulationError
from openmm_bg.training.simulation_folder import system_hash

_GAS_CONSTANT = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)


@dataclass(frozen=True)
class ReplicaSimulation:
    """What a replica exchange made.

    Attributes
    ----------
    data : TrajectoryData
        Frames at the lowest temperature, as one chain.
    temperatures : ndarray, shape (n,)
        K, ascending.
    fraction_accepted : ndarray, shape (n - 1,)
        Accepted part of the exchanges between each temperature and the next; NaN where none was tried.
    n_round_trips : int
        How often a replica went from the lowest temperature to the highest and back.
    """

    data: TrajectoryData
    temperatures: FloatArray
    fraction_accepted: FloatArray
    n_round_trips: int


def geometric_ladder(lowest: float, highest: float, n_temperatures: int) -> tuple[float, ...]:
    """Temperatures (K) with a constant ratio between neighbours.

    Raises
    ------
    ValueError
        If there are fewer than two, or they do not ascend from a positive one.
    """
    if n_temperatures < 2:
        raise ValueError(f"{n_temperatures} replicas cannot exchange; expected at least 2.")
    if not 0.0 < lowest < highest < math.inf:
        raise ValueError(
            f"The temperatures of the replicas go from {lowest:g} to {highest:g} K; the highest must be above the "
            "lowest, and that above zero."
        )
    return tuple(float(t) for t in np.geomspace(lowest, highest, n_temperatures))


def simulate_replicas(
    molecule: MolecularSystem,
    temperatures: Sequence[float],
    folder: str | PathLike[str],
    *,
    n_frames: int | None = None,
    max_seconds: float | None = None,
    stride: int = 500,
    timestep: float = 0.002,
    friction: float = 1.0,
    n_equilibration: int = 10,
    platform: str = "auto",
    progress: Callable[[int, float], None] | None = None,
) -> ReplicaSimulation:
    """Run Langevin dynamics of one molecule at several temperatures with exchanges, and keep the coldest frames.

    All replicas start from the molecule's positions and run in turn on one platform, which uses all its threads. In
    every iteration temperatures are exchanged, velocities are drawn anew, and each replica runs `stride` steps.

    Parameters
    ----------
    molecule : MolecularSystem
        Not periodic.
    temperatures : sequence of float
        K, ascending, at least two; see `geometric_ladder`.
    folder : path
        Where the run is kept, iteration by iteration, by a `DurableReporter`. What was interrupted (Ctrl-C, kill) goes
        on from there; what is finished is read, or extended if more is asked for. The random numbers are openmmtools'
        own and do not repeat.
    n_frames : int, optional
        Frames after equilibration to stop at.
    max_seconds : float, optional
        Wall time to stop at, earlier runs included. At least one of the two is needed; with both, the run ends when
        there are so many frames *and* the time is over, so that a slow machine still makes `n_frames`.
    stride : int
        Steps between exchanges; each is one frame.
    timestep, friction : float
        ps, 1/ps.
    n_equilibration : int
        First iterations, left out.
    platform : str
        "auto" for the fastest by a short measurement, or one of OpenMM's platforms.
    progress : callable, optional
        Called after each iteration with the number of frames and the seconds so far.

    Raises
    ------
    ValueError
        If an argument is out of range, or the folder holds a run with other settings.
    SimulationError
        If the dynamics blows up; what came before stays in the folder.
    OSError
        If the folder cannot be written to; what it held before is intact.
    """
    ladder = np.asarray(temperatures, dtype=np.float64)
    settings = {
        "temperatures": [float(t) for t in ladder], "stride": stride, "timestep": timestep, "friction": friction,
        "n_equilibration": n_equilibration, "system_hash": system_hash(molecule.system),
    }  # fmt: skip
    _check(ladder, settings, n_frames, max_seconds)
    store = _Store(Path(folder), settings)
    begin, before = time.perf_counter(), store.seconds
    choice = choose_platform(molecule.system, molecule.positions, platform, task="dynamics")
    sampler = _open(molecule, store, choice)

    def n_done() -> int:
        return int(sampler.iteration) - n_equilibration

    try:
        while (n_frames is not None and n_done() < n_frames) or (
            max_seconds is not None and store.seconds < max_seconds
        ):
            sampler.run(n_iterations=1)
            store.write(before + time.perf_counter() - begin, choice.name)
            if progress is not None:
                progress(max(0, n_done()), store.seconds)
        if n_done() < 1:
            raise ValueError(
                f"{sampler.iteration} iterations were run, and {n_equilibration} are left out for equilibration; ask "
                "for more seconds or frames."
            )
        return _read(sampler._reporter, ladder, settings, store)
    except SimulationNaNError as error:
        raise SimulationError(
            f"A replica failed in iteration {sampler.iteration}: {error}. Use a smaller timestep (it is "
            f"{1000 * timestep:g} fs) or a lower highest temperature (it is {ladder[-1]:g} K)."
        ) from error
    finally:
        sampler._reporter.close()


def _check(ladder: FloatArray, settings: dict[str, Any], n_frames: int | None, max_seconds: float | None) -> None:
    if ladder.ndim != 1 or len(ladder) < 2 or not (ladder > 0.0).all() or not (np.diff(ladder) > 0.0).all():
        raise ValueError(f"The temperatures are {ladder.tolist()}; expected at least two, positive and ascending.")
    for name in ("stride", "timestep", "friction"):
        if not (settings[name] > 0 and math.isfinite(settings[name])):
            raise ValueError(f"The {name} is {settings[name]}; expected a positive number.")
    if settings["n_equilibration"] < 1:  # openmmtools' iteration 0 is the start, before any dynamics
        raise ValueError(f"n_equilibration is {settings['n_equilibration']}; expected 1 or more.")
    if n_frames is None and max_seconds is None:
        raise ValueError("Neither n_frames nor max_seconds is given; say when to stop.")


class _Store:
    """The storage of a run, its settings and what it has cost so far."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.path = folder / "replicas.nc"
        self.settings = settings
        self.seconds = 0.0
        self.platform = ""
        self._file = folder / "replicas.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"Cannot keep the replicas in {folder}: {error}. Choose a folder you can write to."
            ) from error
        if not self._file.exists():
            return
        try:
            found = json.loads(self._file.read_text())
            stored = found["settings"]
            self.seconds, self.platform = float(found["seconds"]), str(found["platform"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._file} is damaged, or was not written by simulate_replicas ({error}).") from error
        differing = [name for name in settings if stored.get(name) != settings[name]]
        if differing:
            details = "; ".join(f"{name}: {stored.get(name)} there, {settings[name]} asked for" for name in differing)
            raise ValueError(
                f"{folder} holds a replica exchange with other settings ({details}). Nothing was overwritten: choose "
                "another folder, or ask for the same settings."
            )

    def write(self, seconds: float, platform: str) -> None:
        self.seconds, self.platform = seconds, platform
        content = {"settings": self.settings, "seconds": seconds, "platform": platform}
        write_bytes(self._file, (json.dumps(content, indent=2) + "\n").encode())


class _Sampler(ParallelTemperingSampler):
    _global_citation_silence = True


def _open(molecule: MolecularSystem, store: _Store, choice: PlatformChoice) -> _Sampler:
    """Return the sampler of the storage, or a new one."""
    reporter = DurableReporter(store.path, checkpoint_interval=1)
    if reporter.storage_exists():
        sampler = _Sampler.from_storage(reporter)
    else:
        sampler = _new(molecule, store, reporter)
    cache = ContextCache(
        platform=openmm.Platform.getPlatformByName(choice.name), platform_properties=choice.properties or None
    )
    sampler.energy_context_cache = sampler.sampler_context_cache = cache
    return sampler


def _new(molecule: MolecularSystem, store: _Store, reporter: DurableReporter) -> _Sampler:
    settings = store.settings
    ladder = [t * unit.kelvin for t in settings["temperatures"]]
    move = LangevinDynamicsMove(
        timestep=settings["timestep"] * unit.picosecond,
        collision_rate=settings["friction"] / unit.picosecond,
        n_steps=settings["stride"],
        reassign_velocities=True,  # those of a replica are of the temperature that it had before the exchange
        constraint_tolerance=1e-7,
    )
    sampler = _Sampler(mcmc_moves=move, number_of_iterations=np.inf, online_analysis_interval=None)
    store.write(0.0, "")
    sampler.create(
        ThermodynamicState(molecule.system, ladder[0]),
        [SamplerState(molecule.positions * unit.nanometer)],
        reporter,
        temperatures=ladder,
        n_temperatures=len(ladder),
    )
    return sampler


def _read(reporter: DurableReporter, ladder: FloatArray, settings: dict[str, Any], store: _Store) -> ReplicaSimulation:
    """Collect the frames and energies at the lowest temperature, and count exchanges."""
    states: NDArray[np.int64] = np.asarray(reporter.read_replica_thermodynamic_states())
    reduced = np.asarray(reporter.read_energies()[0])[:, :, 0]
    accepted, proposed = (np.asarray(counts) for counts in reporter.read_mixing_statistics())
    iterations = np.arange(settings["n_equilibration"] + 1, len(states))
    coldest = np.argmax(states == 0, axis=1)  # the replica that is there
    positions = np.stack(
        [reporter.read_sampler_states(int(i))[coldest[i]].positions.value_in_unit(unit.nanometer) for i in iterations]
    ).astype(np.float64)
    energies = reduced[iterations, coldest[iterations]] * _GAS_CONSTANT * ladder[0]
    n_steps = (len(states) - 1) * len(ladder) * (settings["stride"] + 1)
    cost = SimulationCost(store.seconds, n_steps, store.platform)
    below, above = np.arange(len(ladder) - 1), np.arange(1, len(ladder))
    tried = proposed.sum(axis=0)[below, above].astype(np.float64)
    with np.errstate(invalid="ignore"):
        fraction = accepted.sum(axis=0)[below, above] / tried
    return ReplicaSimulation(
        TrajectoryData(positions[None], energies[None], float(ladder[0]), cost), ladder, fraction, _round_trips(states)
    )


def _round_trips(states: NDArray[np.int64]) -> int:
    """Count how often a replica went from the lowest state to the highest and back; states (n_iterations, n)."""
    trips = 0
    for replica in states.T:
        ends = replica[(replica == 0) | (replica == states.shape[1] - 1)]
        turns = ends[np.flatnonzero(np.diff(ends, prepend=-1))]
        trips += max(0, (len(turns) - 1 - int(turns[0] != 0)) // 2) if len(turns) else 0
    return trips
