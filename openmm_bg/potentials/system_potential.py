"""Potential energy of batches of configurations of a System, differentiable in torch."""

from __future__ import annotations

import copy
import threading
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from openmm import app, unit
from torch.autograd.function import once_differentiable

from openmm_bg.potentials.openmm_backend import OpenMMBackend
from openmm_bg.potentials.platforms import PlatformChoice
from openmm_bg.potentials.self_check import Precision
from openmm_bg.potentials.torch_backend import TorchBackend, faster_torch_backend

FloatArray = NDArray[np.float64]


class SystemPotential:
    """Energies of many configurations of one System, failures counted.

    Parameters
    ----------
    system : openmm.System
        One solute without periodic box.
    topology : openmm.app.Topology, optional
        Only checked for its number of atoms.
    backend : {"auto", "openmm", "torch"}
        What computes the energies. "torch" evaluates whole batches at once and refuses forces that it does not know or
        that disagree with OpenMM. "auto" takes it where it knows and reproduces every force and is measured to be
        faster than OpenMM, unless `platform` or `n_workers` asks for OpenMM.
    platform : str
        "auto" for the fastest by a short measurement, or the name of one of OpenMM's platforms.
    n_workers : int, optional
        Number of OpenMM Contexts that work side by side, each in a thread; by default one per core if that is faster
        than a single one, and one on a GPU.
    device : str or torch.device, optional
        Where the torch backend computes; by default a CUDA device if there is one, else the CPU.
    precision : {"double", "mixed"}
        Precision of the torch backend: "mixed" has pairs of atoms in single and sums in double precision.
    reference : ndarray, shape (n_atoms, 3), optional
        A structure in nm about which the torch backend is compared with OpenMM; by default atoms on a lattice.
    compile : bool
        Compile the torch backend, which takes seconds to a minute (less again in later processes) and makes it several
        times faster: for long runs. Without a C++ compiler the reason is logged and it works as without. Forces whose
        global parameters are changed later are evaluated uncompiled.

    Attributes
    ----------
    system : openmm.System
        A copy of the System.
    backend_choice : str
        Which backend computes, and why.
    n_evaluations : int
        Configurations that were handed to the backend so far.
    n_failures : int
        Configurations without a finite energy so far, those that held NaN included.

    Raises
    ------
    ValueError
        If the System is periodic or empty, the topology is not its own, or backend, platform, n_workers or device is
        unknown; with backend="torch", also if a force is unknown to it or disagrees with OpenMM: it is named.

    Notes
    -----
    A configuration that is not finite never reaches OpenMM. Where its energy (or, when asked for, a force) is not
    finite, or OpenMM raises an exception, the energy is +inf and the forces and the gradient are zero.
    An energy is that of the positions as given: they are not moved onto constraints; virtual sites are placed anew.
    """

    def __init__(
        self,
        system: openmm.System,
        topology: app.Topology | None = None,
        *,
        backend: Literal["auto", "openmm", "torch"] = "auto",
        platform: str = "auto",
        n_workers: int | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "double",
        reference: FloatArray | None = None,
        compile: bool = False,
    ) -> None:
        _check_arguments(system, topology, backend, n_workers)
        self.system = copy.deepcopy(system)
        self.n_atoms: int = system.getNumParticles()
        self.n_evaluations = 0
        self.n_failures = 0
        self._lock = threading.Lock()
        if backend == "torch" and (platform != "auto" or n_workers is not None):
            raise ValueError("platform and n_workers are OpenMM's; with backend='torch' give device instead.")
        self._backend: OpenMMBackend | TorchBackend | None
        if backend == "torch":
            self._backend = TorchBackend(
                system, device or _default_device(), precision=precision, reference=reference, compile=compile
            )
            self.backend_choice = f"torch, as asked for{self._backend.about_compilation}"
        else:
            self._backend = OpenMMBackend(system, platform=platform, n_workers=n_workers)
            self.backend_choice = "openmm, as asked for"
            if backend == "auto" and platform == "auto" and n_workers is None:
                torch_backend, self.backend_choice = faster_torch_backend(
                    system,
                    self._backend,
                    device or _default_device(),
                    precision=precision,
                    reference=reference,
                    compile=compile,
                )
                if torch_backend is not None:
                    self._backend.close()
                    self._backend = torch_backend
        self.platform: PlatformChoice = self._backend.choice
        self.n_workers: int = self._backend.n_workers

    @property
    def platform_name(self) -> str:
        """OpenMM's name of the platform in use, or "torch"; `platform` says why."""
        return self.platform.name

    @property
    def last_error(self) -> str | None:
        """Text of the last exception that OpenMM raised in an evaluation; None with the torch backend."""
        return self._open_backend().last_error

    def energy(self, positions: FloatArray | unit.Quantity) -> FloatArray:
        """Potential energies in kJ/mol, shape (n,), of positions in nm, shape (n, n_atoms, 3); +inf where it failed.

        Raises
        ------
        ValueError, TypeError
            If the positions have another shape, or are not real floating-point numbers.
        """
        return self._evaluate(positions, with_forces=False)[0]

    def energy_and_forces(self, positions: FloatArray | unit.Quantity) -> tuple[FloatArray, FloatArray]:
        """Energies as of `energy`, and forces in kJ/mol/nm, shape (n, n_atoms, 3), zero where the energy is +inf."""
        energies, forces = self._evaluate(positions, with_forces=True)
        assert forces is not None
        return energies, forces

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Energies in kJ/mol, shape (n,), of a float64 tensor in nm, shape (n, n_atoms, 3), differentiable once.

        The gradient is minus the forces; it is zero for configurations whose energy is +inf.
        """
        if positions.dtype != torch.float64:
            raise TypeError(
                f"Positions have dtype {positions.dtype}; expected torch.float64: energies and forces in float32 "
                "coordinates are too coarse for weights. Call positions.double()."
            )
        energies = _Energy.apply(positions, self)
        assert isinstance(energies, torch.Tensor)
        return energies

    def close(self) -> None:
        """Free the Contexts; the potential cannot be used afterwards."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A SystemPotential holds OpenMM Contexts and threads, and cannot be pickled or copied: make a new one from "
            "the System where it is needed."
        )

    def _open_backend(self) -> OpenMMBackend | TorchBackend:
        if self._backend is None:
            raise RuntimeError("This SystemPotential was closed; make a new one.")
        return self._backend

    def _evaluate(
        self, positions: FloatArray | unit.Quantity, *, with_forces: bool
    ) -> tuple[FloatArray, FloatArray | None]:
        backend = self._open_backend()
        batch = _as_batch(positions, self.n_atoms)
        finite = np.isfinite(batch).all(axis=(1, 2))
        with self._lock:
            if finite.all():
                energies, forces = backend.evaluate(batch, with_forces=with_forces)
            else:
                energies = np.full(len(batch), np.inf)
                forces = np.zeros_like(batch) if with_forces else None
                energies[finite], some_forces = backend.evaluate(batch[finite], with_forces=with_forces)
                if forces is not None:
                    forces[finite] = some_forces
            self.n_evaluations += int(finite.sum())
            self.n_failures += int(np.count_nonzero(np.isinf(energies)))
        return energies, forces

    def _evaluate_tensor(
        self, positions: torch.Tensor, *, with_gradients: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Energies (n,) and their gradients (n, n_atoms, 3) on the tensor's device, where torch also computes them."""
        backend = self._open_backend()
        if isinstance(backend, OpenMMBackend):
            energies, forces = self._evaluate(positions.cpu().numpy(), with_forces=with_gradients)
            gradients = None if forces is None else -torch.from_numpy(forces).to(positions.device)
            return torch.from_numpy(energies).to(positions.device), gradients
        _check_shape(tuple(positions.shape), self.n_atoms)
        with self._lock:
            energy, gradient = backend.energies_and_gradients(positions, with_gradients=with_gradients)
            self.n_evaluations += int(torch.isfinite(positions).all(2).all(1).sum())
            self.n_failures += int(torch.isinf(energy).sum())
        return energy, gradient


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class _Energy(torch.autograd.Function):
    """Energy with minus the forces as its gradient."""

    @staticmethod
    def forward(ctx: Any, positions: torch.Tensor, potential: SystemPotential) -> torch.Tensor:
        energies, gradients = potential._evaluate_tensor(positions.detach(), with_gradients=ctx.needs_input_grad[0])
        if gradients is not None:
            ctx.save_for_backward(gradients)
            ctx.failed = torch.isinf(energies)
        return energies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradients,) = ctx.saved_tensors
        weights = torch.where(ctx.failed, torch.zeros_like(grad), grad)  # inf or NaN times zero would be NaN
        return weights[:, None, None] * gradients, None


def _as_batch(positions: FloatArray | unit.Quantity, n_atoms: int) -> FloatArray:
    """Positions as a C-contiguous float64 array of shape (n, n_atoms, 3), checked."""
    if isinstance(positions, unit.Quantity):
        positions = positions.value_in_unit(unit.nanometer)
    batch = np.asarray(positions)
    if batch.dtype.kind != "f":
        raise TypeError(f"Positions have dtype {batch.dtype}; expected real floating-point numbers, in nm.")
    _check_shape(batch.shape, n_atoms)
    return np.ascontiguousarray(batch, dtype=np.float64)


def _check_shape(shape: tuple[int, ...], n_atoms: int) -> None:
    if len(shape) != 3 or shape[1:] != (n_atoms, 3):
        hint = " For one configuration pass positions[None]." if shape == (n_atoms, 3) else ""
        raise ValueError(f"Positions have shape {shape}; expected (n, {n_atoms}, 3), in nm.{hint}")


def _check_arguments(system: openmm.System, topology: app.Topology | None, backend: str, n_workers: int | None) -> None:
    if not isinstance(system, openmm.System):
        raise TypeError(f"Expected an openmm.System, found {type(system).__name__}.")
    if backend not in ("auto", "openmm", "torch"):
        raise ValueError(f"Unknown backend {backend!r}; expected 'auto', 'openmm' or 'torch'.")
    if n_workers is not None and n_workers < 1:
        raise ValueError(f"n_workers is {n_workers}; expected 1 or more, or None for one per core.")
    if system.getNumParticles() == 0:
        raise ValueError("The System has no particles.")
    if topology is not None and topology.getNumAtoms() != system.getNumParticles():
        raise ValueError(
            f"The topology has {topology.getNumAtoms()} atoms and the System {system.getNumParticles()} particles; "
            "give the topology that the System was made from."
        )
    if system.usesPeriodicBoundaryConditions():
        raise ValueError(
            "The System has periodic boundary conditions. A generator makes one whole molecule in free space, whose "
            "density knows no box: create the System with nonbondedMethod=NoCutoff (or CutoffNonPeriodic) and an "
            "implicit solvent."
        )
