"""Handedness of the stereocentres of a peptide, as signed volumes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import openmm.app
from numpy.typing import ArrayLike, NDArray
from openmm.app.topology import Atom

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Stereocentre:
    """An atom with three different heavy neighbours.

    Attributes
    ----------
    name : str
        Residue, its number and the atom, as in "ALA2:CA".
    atom : int
        Index of the central atom.
    neighbours : tuple of int
        N, C and the side chain of an alpha carbon; CA, the heavier and the lighter branch of a beta carbon.
    """

    name: str
    atom: int
    neighbours: tuple[int, int, int]


def stereocentres(topology: openmm.app.Topology) -> list[Stereocentre]:
    """Alpha carbons with one side chain, and beta carbons with two different branches, as in isoleucine and threonine.

    Centres further out are not looked for: no standard amino acid has one.
    """
    bonded: dict[Atom, list[Atom]] = {atom: [] for atom in topology.atoms()}
    for first, second in topology.bonds():
        bonded[first].append(second)
        bonded[second].append(first)
    found = []
    for residue in topology.residues():
        atoms = {atom.name: atom for atom in residue.atoms()}
        if not {"N", "CA", "C"} <= atoms.keys():
            continue
        alpha = atoms["CA"]
        side = [atom for atom in _heavy(bonded[alpha]) if atom.name not in ("N", "C")]
        if len(side) != 1:
            continue
        beta = side[0]
        found.append(_centre(alpha, (atoms["N"], atoms["C"], beta)))
        branches = [atom for atom in _heavy(bonded[beta]) if atom != alpha]
        ranks = [(atom.element.mass._value, len(_heavy(bonded[atom]))) for atom in branches]
        if len(bonded[beta]) == 4 and len(branches) == 2 and ranks[0] != ranks[1]:
            heavier, lighter = branches if ranks[0] > ranks[1] else reversed(branches)
            found.append(_centre(beta, (alpha, heavier, lighter)))
    return found


def signed_volumes(positions: ArrayLike, centres: list[Stereocentre]) -> FloatArray:
    """Triple product of the bonds of each centre to its neighbours in their order.

    Parameters
    ----------
    positions : array_like, shape (..., n_atoms, 3), nm
    centres : list of Stereocentre

    Returns
    -------
    ndarray, shape (..., n_centres), nm^3
        At an alpha carbon positive for L and negative for D amino acids; a mirror image changes all signs.
    """
    x = np.asarray(positions, dtype=np.float64)
    middle = x[..., [centre.atom for centre in centres], :]
    arms = [x[..., [centre.neighbours[k] for centre in centres], :] - middle for k in range(3)]
    return np.asarray(np.sum(arms[0] * np.cross(arms[1], arms[2]), axis=-1))


def _centre(atom: Atom, neighbours: tuple[Atom, Atom, Atom]) -> Stereocentre:
    first, second, third = neighbours
    name = f"{atom.residue.name}{atom.residue.id}:{atom.name}"
    return Stereocentre(name, atom.index, (first.index, second.index, third.index))


def _heavy(atoms: list[Atom]) -> list[Atom]:
    return [atom for atom in atoms if atom.element is not openmm.app.element.hydrogen]
