"""Backbone torsions phi and psi of a peptide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import openmm.app
from numpy.typing import ArrayLike

from openmm_bg.analysis.timeseries import statistical_inefficiency
from openmm_bg.density import FloatArray


@dataclass(frozen=True)
class BackbonePair:
    """The atoms of phi (C, N, CA, C) and psi (N, CA, C, N) of one residue."""

    residue: str
    phi: tuple[int, int, int, int]
    psi: tuple[int, int, int, int]


def torsion_angles(positions: ArrayLike, atoms: ArrayLike) -> FloatArray:
    """Return torsion angles in (-pi, pi], positive in the IUPAC sense, as OpenMM and mdtraj define them.

    Parameters
    ----------
    positions : array_like, shape (..., n_atoms, 3)
        nm, molecules whole.
    atoms : array_like of int, shape (4,) or (m, 4)
        Atom indices of one or several torsions.

    Returns
    -------
    ndarray, shape (...,) or (..., m)
        Radians.
    """
    x = np.asarray(positions, dtype=np.float64)
    a, b, c, d = (x[..., index, :] for index in np.moveaxis(np.asarray(atoms, dtype=np.int64), -1, 0))
    axis = c - b
    before, after = np.cross(b - a, axis), np.cross(axis, d - c)
    sine = np.sum(np.cross(before, after) * axis, axis=-1) / np.linalg.norm(axis, axis=-1)
    return np.asarray(np.arctan2(sine, np.sum(before * after, axis=-1)))


def backbone_pairs(topology: openmm.app.Topology) -> list[BackbonePair]:
    """Return the residues of a topology that have both a phi and a psi, in order.

    An acetyl cap gives the first residue its phi and an N-methyl cap the last residue its psi.
    """
    atoms = {residue.index: {atom.name: atom.index for atom in residue.atoms()} for residue in topology.residues()}
    neighbours: dict[int, dict[str, int]] = {index: {} for index in atoms}
    for first, second in topology.bonds():
        for carbon, nitrogen in ((first, second), (second, first)):
            if carbon.name == "C" and nitrogen.name == "N" and carbon.residue.index != nitrogen.residue.index:
                neighbours[nitrogen.residue.index]["before"] = carbon.index
                neighbours[carbon.residue.index]["after"] = nitrogen.index
    pairs = []
    for residue in topology.residues():
        own, other = atoms[residue.index], neighbours[residue.index]
        if {"N", "CA", "C"} <= own.keys() and {"before", "after"} <= other.keys():
            n, ca, c = own["N"], own["CA"], own["C"]
            pairs.append(
                BackbonePair(f"{residue.name}{residue.id}", (other["before"], n, ca, c), (n, ca, c, other["after"]))
            )
    return pairs


def ramachandran_angles(positions: ArrayLike, pairs: list[BackbonePair]) -> tuple[FloatArray, FloatArray]:
    """Return phi and psi of several residues in radians, shape (..., n_atoms, 3) to (..., n_pairs) each."""
    phi = np.array([pair.phi for pair in pairs], dtype=np.int64).reshape(-1, 4)
    psi = np.array([pair.psi for pair in pairs], dtype=np.int64).reshape(-1, 4)
    return torsion_angles(positions, phi), torsion_angles(positions, psi)


def slowest_pair(phi: ArrayLike) -> int:
    """Return the index of the residue whose phi has the longest correlation time along a chain.

    Parameters
    ----------
    phi : array_like, shape (n, n_pairs)
        Radians, along a chain hot enough to cross every barrier a few times.
    """
    angles = np.asarray(phi, dtype=np.float64)
    slowness = [statistical_inefficiency(np.sin(angles[:, index])) for index in range(angles.shape[1])]
    return int(np.argmax(slowness))
