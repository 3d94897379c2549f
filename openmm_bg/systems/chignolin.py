"""Chignolin CLN025, a hairpin of ten residues, folded: built from the torsions of its crystal structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from openmm import app, unit

from openmm_bg.systems.molecular_system import DEFAULT_FORCEFIELD, FloatArray, MolecularSystem
from openmm_bg.systems.peptides import finish, heavy_atoms, parse_sequence, torsion_of

_SEQUENCE = "YYDPETGTWY"
# Torsions in degrees of PDB entry 5AWL: phi, psi, omega of each residue, and chi1, chi2, ... of those side chains that
# can turn. The first phi and the last psi and omega do not exist: the last psi places the two oxygens of the terminus.
_BACKBONE = (
    *((0.0, 150.4, 169.4), (-93.3, 138.4, 178.6), (-75.6, 133.6, -174.3), (-71.8, -20.9, 179.4)),
    *((-91.9, -40.8, -172.9), (-106.3, -17.1, -179.4), (70.4, 17.0, -178.6), (-104.0, 153.3, -177.9)),
    *((-80.6, 133.2, 174.3), (-136.8, -9.8, 180.0)),
)
_SIDE_CHAINS: tuple[tuple[float, ...], ...] = (
    *((-46.0, 96.2), (-67.3, 99.5), (-174.8, -77.3), (), (-78.1, -66.9, 151.5), (63.1,), (), (55.8,)),
    *((-175.2, -98.1), (68.6, 95.2)),
)
_CHI_ATOMS = {
    "ASP": ("N", "CA", "CB", "CG", "OD1"),
    "GLU": ("N", "CA", "CB", "CG", "CD", "OE1"),
    "THR": ("N", "CA", "CB", "OG1"),
    "TRP": ("N", "CA", "CB", "CG", "CD1"),
    "TYR": ("N", "CA", "CB", "CG", "CD1"),
}


def chignolin(
    *,
    forcefield: app.ForceField | Sequence[str] | str = DEFAULT_FORCEFIELD,
    constraints: Any = app.HBonds,
    hydrogen_mass: unit.Quantity | float | None = None,
) -> MolecularSystem:
    """Build the mini-protein chignolin CLN025 (YYDPETGTWY, 166 atoms), folded and minimised.

    Its torsions are those of the crystal structure, PDB entry 5AWL (Honda et al., J. Am. Chem. Soc. 130, 15327, 2008),
    its bonds and angles ideal; the energy is minimised then.

    Arguments as in `openmm_bg.systems.peptide`.
    """
    residues = parse_sequence(_SEQUENCE)
    topology, positions = heavy_atoms(residues, _BACKBONE)
    for residue, angles in zip(topology.residues(), _SIDE_CHAINS, strict=True):
        _turn_side_chain(residue, angles, positions)
    return finish(residues, topology, positions, forcefield, constraints, hydrogen_mass)


def _turn_side_chain(residue: app.topology.Residue, angles: tuple[float, ...], positions: FloatArray) -> None:
    """Set the torsions of a side chain (degrees) by rotating what is behind each bond, in place."""
    index = {atom.name: atom.index for atom in residue.atoms()}
    names = _CHI_ATOMS.get(residue.name, ())
    held = {"N", "CA", "C", "O", "OXT"}
    for place, wanted in enumerate(angles):
        a, b, c, d = (positions[index[name]] for name in names[place : place + 4])
        held.add(names[place + 2])
        moved = [index[name] for name in index if name not in held]
        positions[moved] = _rotated(positions[moved], b, c, wanted - torsion_of(a, b, c, d))


def _rotated(positions: FloatArray, start: FloatArray, end: FloatArray, angle: float) -> FloatArray:
    """Positions turned about the axis from `start` to `end`, clockwise along it (degrees; Rodrigues' formula)."""
    axis = (end - start) / np.linalg.norm(end - start)
    arm = positions - end
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turned = cosine * arm + sine * np.cross(axis, arm) + (1.0 - cosine) * np.outer(arm @ axis, axis)
    return np.asarray(turned + end)
