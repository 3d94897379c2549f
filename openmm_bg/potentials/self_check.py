"""The comparison of forces in torch with OpenMM's Reference platform, which every torch backend has to pass."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import openmm
import torch
from numpy.typing import NDArray

from openmm_bg.potentials.torch_terms import Term

FloatArray = NDArray[np.float64]
Precision = Literal["double", "mixed"]
PRECISIONS = ("double", "mixed")

_DISPLACEMENTS, _SEED = (0.0, 0.005, 0.02), 20240501  # nm, of the structures that are compared
_ENERGY_TOLERANCE = {"double": (1e-6, 1e-5), "mixed": (2e-5, 2e-2)}  # of the force's energy; kJ/mol
_FORCE_TOLERANCE = {"double": 1e-4, "mixed": 1e-3}  # of the largest force
_MOST_GROUPS = 31


class BackendMismatch(ValueError):
    """A force whose energies or forces in torch are not those of OpenMM."""


@dataclass(frozen=True)
class SelfCheck:
    """What the comparison with OpenMM's Reference platform found.

    Attributes
    ----------
    energy_errors : dict of str
        Largest difference in kJ/mol, by the force's name.
    force_error : float
        Largest difference of the total forces, relative to the largest force.
    """

    energy_errors: dict[str, float]
    force_error: float


class Checked(Protocol):
    """What is compared."""

    terms: list[Term]
    parameters: dict[str, float]
    precision: Precision

    def term_energies(self, positions: torch.Tensor) -> torch.Tensor:
        """Energies (n_terms, n) of each force by itself."""

    def evaluate(self, positions: FloatArray, *, with_forces: bool) -> tuple[FloatArray, FloatArray | None]:
        """Energies (n,) and forces (n, n_atoms, 3)."""


def compare(
    backend: Checked,
    system: openmm.System,
    indices: Sequence[int],
    structure: FloatArray,
    *,
    may_be_infinite: bool = False,
) -> SelfCheck:
    """Compare with OpenMM's Reference platform about a structure, at the present parameters.

    Parameters
    ----------
    backend : Checked
    system : openmm.System
    indices : sequence of int
        The System's force that each term stands for.
    structure : ndarray, shape (n_atoms, 3)
        nm.
    may_be_infinite : bool
        Whether a force may lack a finite energy in every structure, as at parameters that nobody meant.

    Raises
    ------
    BackendMismatch
        Where they differ.
    """
    batch = _structures(structure)
    expected, expected_forces = _reference_energies(system, batch, indices, backend.parameters)
    energies = _alone(backend, batch)
    relative, absolute = _ENERGY_TOLERANCE[backend.precision]
    errors: dict[str, float] = {}
    for term, found, true in zip(backend.terms, energies, expected, strict=True):
        finite = np.isfinite(true)
        difference = np.abs(found[finite] - true[finite])
        allowed = absolute + relative * np.abs(true[finite])
        if not (finite.any() or may_be_infinite) or not (difference <= allowed).all():
            raise BackendMismatch(
                f"The energy of the force {term.name!r} in torch is {found} kJ/mol in {len(found)} test structures "
                f"and {true} by OpenMM's Reference platform (allowed: {absolute:g} + {relative:g} of the energy; "
                f"global parameters: {backend.parameters}). Use backend='openmm', and report the System."
            )
        errors[term.name] = max(errors.get(term.name, 0.0), float(difference.max(initial=0.0)))
    _, forces = backend.evaluate(batch, with_forces=True)
    finite = np.isfinite(expected_forces).all(axis=(1, 2)) & np.isfinite(expected).all(axis=0)
    assert forces is not None
    difference = np.abs(forces - expected_forces)[finite].max(axis=(1, 2))
    size = np.abs(expected_forces)[finite].max(axis=(1, 2)) + 1e-3
    if not (difference <= _FORCE_TOLERANCE[backend.precision] * size).all():
        raise BackendMismatch(
            f"Energies agree, but the total forces in torch differ from those of OpenMM's Reference platform by "
            f"{difference} kJ/mol/nm, where the largest force is {size}; forces: {', '.join(errors) or 'none'}. "
            "Use backend='openmm', and report the System."
        )
    return SelfCheck(errors, float((difference / size).max(initial=0.0)))


def compare_compiled(backend: Checked, structure: FloatArray) -> None:
    """Compare the backend's energies, with forces and without, with the sum of its terms about a structure.

    Raises
    ------
    BackendMismatch
        Where they differ.
    """
    batch = _structures(structure)
    energies = _alone(backend, batch)
    relative, absolute = _ENERGY_TOLERANCE[backend.precision]
    alone, allowed = energies.sum(0), absolute + relative * np.abs(energies).sum(0)
    known = np.isfinite(alone)
    for with_forces in (True, False):
        found = backend.evaluate(batch, with_forces=with_forces)[0]
        if not (np.abs(found - alone)[known] <= allowed[known]).all():
            raise BackendMismatch(
                f"The compiled energy is {found} kJ/mol and that of the single forces {alone} kJ/mol. "
                "Use compile=False, and report the System and the version of torch."
            )


def _structures(structure: FloatArray) -> FloatArray:
    noise = np.random.default_rng(_SEED).normal(size=(len(_DISPLACEMENTS), len(structure), 3))
    return np.asarray(structure, dtype=np.float64) + np.array(_DISPLACEMENTS)[:, None, None] * noise


def _alone(backend: Checked, batch: FloatArray) -> FloatArray:
    energies: FloatArray = backend.term_energies(torch.from_numpy(batch)).detach().cpu().numpy()
    return energies


def _reference_energies(
    system: openmm.System, batch: FloatArray, indices: Sequence[int], parameters: Mapping[str, float]
) -> tuple[FloatArray, FloatArray]:
    """Energies (n_forces, n) of single forces, and total forces (n, n_atoms, 3), on the Reference platform."""
    alone = copy.deepcopy(system)
    for force in alone.getForces():
        force.setForceGroup(0)
    energies = np.empty((len(indices), len(batch)))
    total = np.zeros(batch.shape)
    for start in range(0, len(indices), _MOST_GROUPS):
        some = indices[start : start + _MOST_GROUPS]
        for group, index in enumerate(some, start=1):
            alone.getForce(index).setForceGroup(group)
        platform = openmm.Platform.getPlatformByName("Reference")
        context = openmm.Context(alone, openmm.VerletIntegrator(0.001), platform)
        for name, value in parameters.items():
            context.setParameter(name, value)
        for row, positions in enumerate(batch):
            context.setPositions(positions)
            for group in range(1, len(some) + 1):
                state = context.getState(getEnergy=True, getForces=True, groups={group})
                energies[start + group - 1, row] = state.getPotentialEnergy()._value
                total[row] += state.getForces(asNumpy=True)._value
        for index in some:
            alone.getForce(index).setForceGroup(0)
    return energies, total
