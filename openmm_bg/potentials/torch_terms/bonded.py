"""Bonds, angles and torsions: HarmonicBondForce, HarmonicAngleForce, PeriodicTorsionForce and RBTorsionForce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openmm
import torch
from openmm import unit

from openmm_bg.potentials.torch_terms.geometry import angles, configurations_last, dihedrals, distances
from openmm_bg.potentials.torch_terms.term import Parameters, Term, register

MeasureOf = Callable[..., torch.Tensor]
EnergyOf = Callable[..., torch.Tensor]


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
        The coordinate (k, n) from coordinates (3, n_atoms, n) and an index array (k,) for each atom.
    energy : callable
        Energies (k, n) from the coordinate and one array (k, 1) for each parameter.
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
        coordinate = self._measure(configurations_last(positions), *self._atoms)
        return self._energy(coordinate, *self._values).sum(0)


def _plain(value: Any) -> float:
    """A number without its unit, in OpenMM's own units."""
    return float(value.value_in_unit_system(unit.md_unit_system) if isinstance(value, unit.Quantity) else value)


def _harmonic(coordinate: torch.Tensor, minimum: torch.Tensor, stiffness: torch.Tensor) -> torch.Tensor:
    return 0.5 * stiffness * (coordinate - minimum).square()


def _periodic(
    angle: torch.Tensor, periodicity: torch.Tensor, phase: torch.Tensor, barrier: torch.Tensor
) -> torch.Tensor:
    return barrier * (1.0 + torch.cos(periodicity * angle - phase))


def _ryckaert_bellemans(angle: torch.Tensor, *coefficients: torch.Tensor) -> torch.Tensor:
    cosine = -torch.cos(angle)  # of the angle measured from trans
    energy = coefficients[-1].expand_as(angle)
    for coefficient in reversed(coefficients[:-1]):
        energy = energy * cosine + coefficient
    return energy


@register(openmm.HarmonicBondForce)
def _bonds(force: openmm.HarmonicBondForce, system: openmm.System) -> Term:
    entries = [force.getBondParameters(i) for i in range(force.getNumBonds())]
    return BondedTerm(force, entries, 2, distances, _harmonic)


@register(openmm.HarmonicAngleForce)
def _angles(force: openmm.HarmonicAngleForce, system: openmm.System) -> Term:
    entries = [force.getAngleParameters(i) for i in range(force.getNumAngles())]
    return BondedTerm(force, entries, 3, angles, _harmonic)


@register(openmm.PeriodicTorsionForce)
def _torsions(force: openmm.PeriodicTorsionForce, system: openmm.System) -> Term:
    entries = [force.getTorsionParameters(i) for i in range(force.getNumTorsions())]
    return BondedTerm(force, entries, 4, dihedrals, _periodic)


@register(openmm.RBTorsionForce)
def _rb_torsions(force: openmm.RBTorsionForce, system: openmm.System) -> Term:
    entries = [force.getTorsionParameters(i) for i in range(force.getNumTorsions())]
    return BondedTerm(force, entries, 4, dihedrals, _ryckaert_bellemans)
