"""Bonds, angles and torsions: HarmonicBondForce, HarmonicAngleForce, PeriodicTorsionForce and RBTorsionForce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openmm
import torch
from openmm import unit

from openmm_bg.potentials.torch_terms.geometry import SMALLEST, configurations_last, cross, dot, length, vectors
from openmm_bg.potentials.torch_terms.pairs import AnalyticEnergy
from openmm_bg.potentials.torch_terms.term import Parameters, Term, register

Tensors = tuple[torch.Tensor, ...]
Pair = tuple[torch.Tensor, torch.Tensor]
MeasureOf = Callable[..., tuple[torch.Tensor, Callable[[torch.Tensor], Tensors]]]
EnergyOf = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class BondedTerm(Term):
    """Sum over bonds, angles or torsions of a function of the coordinate and the parameters of each.

    Parameters
    ----------
    force : openmm.Force
        The force.
    entries : sequence
        What the force's getter returns for each: the atoms, then the parameters.
    n_atoms : int
        Atoms of an entry.
    measure : callable
        The measure (k, n) from coordinates (3, n_atoms, n) and an index array (k,) for each atom, and a function that
        turns derivatives (k, n) by the measure into derivatives (3, k, n) by each atom's position.
    energy : callable
        Energies (k, n) and their derivatives from the measure and one array (k, 1) for each parameter.
    """

    def __init__(
        self, force: openmm.Force, entries: Sequence[Any], n_atoms: int, measure: MeasureOf, energy: EnergyOf
    ) -> None:
        super().__init__(force, elements=9 * len(entries))
        self._measure, self._energy = measure, energy
        rows = [[_plain(value) for value in entry] for entry in entries]
        table = np.array(rows, dtype=np.float64) if rows else np.zeros((0, n_atoms))
        self.store("_atoms", table[:, :n_atoms].T.astype(np.int64), torch.int64)
        self.store("_values", table[:, n_atoms:].T[:, :, None])
        self._n_entries = len(rows)

    def forward(self, positions: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Energies (n,) in kJ/mol of positions (n, n_atoms, 3) in nm."""
        if self._n_entries == 0:
            return positions.new_zeros(len(positions))
        energy = AnalyticEnergy.apply(configurations_last(positions), self._energy_and_gradient)
        assert isinstance(energy, torch.Tensor)
        return energy

    def _energy_and_gradient(self, x: torch.Tensor, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        measure, by_atoms = self._measure(x, *self._atoms)
        energy, slope = self._energy(measure, *self._values)
        if not with_gradient:
            return energy.sum(0), None
        gradient = torch.zeros_like(x)
        derivatives: Tensors = by_atoms(slope)
        for atoms, by_atom in zip(self._atoms, derivatives, strict=True):
            gradient.index_add_(1, atoms, by_atom)
        return energy.sum(0), gradient


def _plain(value: Any) -> float:
    """A number without its unit, in OpenMM's own units."""
    return float(value.value_in_unit_system(unit.md_unit_system) if isinstance(value, unit.Quantity) else value)


def _distance(
    x: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> tuple[torch.Tensor, Callable[[torch.Tensor], Tensors]]:
    vector = vectors(x, first, second)
    distance = length(vector)

    def by_atoms(slope: torch.Tensor) -> Tensors:
        on_second = vector * (slope / distance)
        return -on_second, on_second

    return distance, by_atoms


def _angle(
    x: torch.Tensor, first: torch.Tensor, second: torch.Tensor, third: torch.Tensor
) -> tuple[torch.Tensor, Callable[[torch.Tensor], Tensors]]:
    a, b = vectors(x, second, first), vectors(x, second, third)
    normal = cross(a, b)
    size, product = length(normal), dot(a, b)

    def by_atoms(slope: torch.Tensor) -> Tensors:
        factor = slope / size
        on_first = cross(a, normal).mul_(factor / _square(a))
        on_third = cross(normal, b).mul_(factor / _square(b))
        return on_first, -(on_first + on_third), on_third

    return torch.atan2(size, product), by_atoms


def _dihedral(
    x: torch.Tensor, first: torch.Tensor, second: torch.Tensor, third: torch.Tensor, fourth: torch.Tensor
) -> tuple[torch.Tensor, Callable[[torch.Tensor], Tensors]]:
    """The dihedral angle, and its derivatives of Blondel and Karplus, J. Comput. Chem. 17, 1132 (1996)."""
    a, b, c = vectors(x, first, second), vectors(x, second, third), vectors(x, third, fourth)
    before, after = cross(a, b), cross(b, c)
    axis = length(b)

    def by_atoms(slope: torch.Tensor) -> Tensors:
        scaled = slope * axis
        on_first = before * -(scaled / _square(before))
        on_fourth = after * (scaled / _square(after))
        along = axis.square().reciprocal_()
        shared = on_fourth * (dot(b, c) * along) - on_first * (dot(a, b) * along)
        return on_first, shared - on_first, -(shared + on_fourth), on_fourth

    return torch.atan2(axis * dot(a, after), dot(before, after)), by_atoms


def _square(vector: torch.Tensor) -> torch.Tensor:
    """Squared lengths, bounded below so that quotients by them are finite."""
    return dot(vector, vector).clamp_(min=SMALLEST**2)


def _harmonic(measure: torch.Tensor, minimum: torch.Tensor, stiffness: torch.Tensor) -> Pair:
    slope = stiffness * (measure - minimum)
    return 0.5 * slope * (measure - minimum), slope


def _periodic(angle: torch.Tensor, periodicity: torch.Tensor, phase: torch.Tensor, barrier: torch.Tensor) -> Pair:
    argument = periodicity * angle - phase
    return barrier * (1.0 + torch.cos(argument)), -barrier * periodicity * torch.sin(argument)


def _ryckaert_bellemans(angle: torch.Tensor, *coefficients: torch.Tensor) -> Pair:
    cosine = -torch.cos(angle)  # of the angle measured from trans
    energy, slope = coefficients[-1].expand_as(angle), torch.zeros_like(angle)
    for coefficient in reversed(coefficients[:-1]):
        slope = slope * cosine + energy
        energy = energy * cosine + coefficient
    return energy, slope * torch.sin(angle)


@register(openmm.HarmonicBondForce)
def _bonds(force: openmm.HarmonicBondForce, system: openmm.System) -> Term:
    entries = [force.getBondParameters(i) for i in range(force.getNumBonds())]
    return BondedTerm(force, entries, 2, _distance, _harmonic)


@register(openmm.HarmonicAngleForce)
def _angles(force: openmm.HarmonicAngleForce, system: openmm.System) -> Term:
    entries = [force.getAngleParameters(i) for i in range(force.getNumAngles())]
    return BondedTerm(force, entries, 3, _angle, _harmonic)


@register(openmm.PeriodicTorsionForce)
def _torsions(force: openmm.PeriodicTorsionForce, system: openmm.System) -> Term:
    entries = [force.getTorsionParameters(i) for i in range(force.getNumTorsions())]
    return BondedTerm(force, entries, 4, _dihedral, _periodic)


@register(openmm.RBTorsionForce)
def _rb_torsions(force: openmm.RBTorsionForce, system: openmm.System) -> Term:
    entries = [force.getTorsionParameters(i) for i in range(force.getNumTorsions())]
    return BondedTerm(force, entries, 4, _dihedral, _ryckaert_bellemans)
