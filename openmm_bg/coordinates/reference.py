"""Where an untrained density is centred when no structure is given: the force field's own equilibrium values."""

from __future__ import annotations

import math

import openmm
import torch
from openmm import unit

from openmm_bg.coordinates.internal import Internal
from openmm_bg.coordinates.zmatrix import ZMatrix


def reference_internal(zmatrix: ZMatrix, system: openmm.System) -> Internal:
    """Equilibrium bonds and angles of the System's harmonic forces and constraints; siblings spread evenly.

    The chirality of centres with four different neighbours is arbitrary: give `positions` to choose it.
    """
    lengths, angles = _equilibrium(system)
    a0, a1, a2 = zmatrix.seed
    bond_pairs = [(a0, a1), (a1, a2)]
    angle_triples = [(a0, a1, a2)]
    siblings: dict[int, list[int]] = {}
    for row, (atom, (p1, p2, _)) in enumerate(zip(zmatrix.atoms.tolist(), zmatrix.references.tolist(), strict=True)):
        bond_pairs.append((atom, p1))
        angle_triples.append((atom, p1, p2))
        siblings.setdefault(int(zmatrix.first_sibling[row]), []).append(row)
    torsions = torch.zeros(1, len(zmatrix.atoms), dtype=torch.float64)
    for first, rows in siblings.items():
        followers = [row for row in rows if row != first]
        step = 2.0 * math.pi / (len(followers) + 1)
        for k, row in enumerate(followers):
            torsions[0, row] = (k + 1) * step
        if first >= 0:
            torsions[0, first] = math.pi
    return Internal(
        torch.tensor([[lengths.get(frozenset(pair), 0.15) for pair in bond_pairs]], dtype=torch.float64),
        torch.tensor(
            [[angles.get((frozenset((i, k)), j), math.radians(109.5)) for i, j, k in angle_triples]],
            dtype=torch.float64,
        ),
        torsions,
    )


def _equilibrium(
    system: openmm.System,
) -> tuple[dict[frozenset[int], float], dict[tuple[frozenset[int], int], float]]:
    lengths, angles = {}, {}
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for index in range(force.getNumBonds()):
                i, j, length, _ = force.getBondParameters(index)
                lengths[frozenset((i, j))] = length.value_in_unit(unit.nanometer)
        elif isinstance(force, openmm.HarmonicAngleForce):
            for index in range(force.getNumAngles()):
                i, j, k, angle, _ = force.getAngleParameters(index)
                angles[frozenset((i, k)), j] = min(angle.value_in_unit(unit.radian), 0.97 * math.pi)
    for index in range(system.getNumConstraints()):
        i, j, length = system.getConstraintParameters(index)
        lengths[frozenset((i, j))] = length.value_in_unit(unit.nanometer)
    return lengths, angles
