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

FloatArray = NDArray[np.float64]


class SystemPotential:
    """Energies of many configurations of one System, failures counted.

    Parameters
    ----------
    system : openmm.System
        One solute without periodic box.
    topology : openmm.app.Topology, optional
        Only checked for its number of atoms.
    backend : {"auto", "openmm"}
        What computes the energies; "auto" is "openmm".
    platform : str
        "auto" for the fastest by a short measurement, or the name of one of OpenMM's platforms.
    n_workers : int, optional
        Number of OpenMM Contexts that work side by side, each in a thread; by default one per core if that is faster
        than a single one, and one on a GPU.

    Attributes
    ----------
    system : openmm.System
        A copy of the System.
    n_evaluations : int
        Configurations that were handed to OpenMM so far.
    n_failures : int
        Configurations without a finite energy so far, those that held NaN included.

    Raises
    ------
    ValueError
        If the System is periodic or empty, the topology is not its own, or backend, platform or n_workers is unknown.

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
        backend: Literal["auto", "openmm"] = "auto",
        platform: str = "auto",
        n_workers: int | None = None,
    ) -> None:
        _check_arguments(system, topology, backend, n_workers)
        self.system = copy.deepcopy(system)
        self.n_atoms: int = system.getNumParticles()
        self.n_evaluations = 0
        self.n_failures = 0
        self._lock = threading.Lock()
        self._backend: OpenMMBackend | None = OpenMMBackend(system, platform=platform, n_workers=n_workers)
        self.platform: PlatformChoice = self._backend.choice
        self.n_workers: int = self._backend.n_workers

    @property
    def platform_name(self) -> str:
        """OpenMM's name of the platform in use; `platform` says why."""
        return self.platform.name

    @property
    def last_error(self) -> str | None:
        """Text of the last exception that OpenMM raised in an evaluation."""
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

    def _open_backend(self) -> OpenMMBackend:
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


class _Energy(torch.autograd.Function):
    """Energy with minus the forces as its gradient."""

    @staticmethod
    def forward(ctx: Any, positions: torch.Tensor, potential: SystemPotential) -> torch.Tensor:
        batch = positions.detach().cpu().numpy()
        energies, forces = potential._evaluate(batch, with_forces=ctx.needs_input_grad[0])
        if forces is not None:
            ctx.save_for_backward(torch.from_numpy(forces).to(positions.device))
            ctx.failed = torch.from_numpy(np.isinf(energies)).to(positions.device)
        return torch.from_numpy(energies).to(positions.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (forces,) = ctx.saved_tensors
        weights = torch.where(ctx.failed, torch.zeros_like(grad), grad)  # inf or NaN times zero would be NaN
        return -weights[:, None, None] * forces, None


def _as_batch(positions: FloatArray | unit.Quantity, n_atoms: int) -> FloatArray:
    """Positions as a C-contiguous float64 array of shape (n, n_atoms, 3), checked."""
    if isinstance(positions, unit.Quantity):
        positions = positions.value_in_unit(unit.nanometer)
    batch = np.asarray(positions)
    if batch.dtype.kind != "f":
        raise TypeError(f"Positions have dtype {batch.dtype}; expected real floating-point numbers, in nm.")
    if batch.ndim != 3 or batch.shape[1:] != (n_atoms, 3):
        hint = " For one configuration pass positions[None]." if batch.shape == (n_atoms, 3) else ""
        raise ValueError(f"Positions have shape {batch.shape}; expected (n, {n_atoms}, 3), in nm.{hint}")
    return np.ascontiguousarray(batch, dtype=np.float64)


def _check_arguments(system: openmm.System, topology: app.Topology | None, backend: str, n_workers: int | None) -> None:
    if not isinstance(system, openmm.System):
        raise TypeError(f"Expected an openmm.System, found {type(system).__name__}.")
    if backend not in ("auto", "openmm"):
        raise ValueError(f"Unknown backend {backend!r}; expected 'auto' or 'openmm'.")
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
