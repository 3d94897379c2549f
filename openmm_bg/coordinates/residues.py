"""Backbone and side chains of a peptide or protein, from the bonds between its residues.

An amino acid is a residue with bonds N-CA and CA-C, whatever hangs on them: D forms, norleucine and any other
non-standard one, every protonation state. A cap is a residue that one amide bond joins to the rest of the chain (ACE,
NME, NH2, formyl, longer acids and amines).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import openmm.app
from numpy.typing import NDArray
from openmm.app.topology import Atom, Residue

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Neighbours = dict[Atom, list[Atom]]

TRIPLE = {"N": "N", "CA": "C", "C": "C"}  # names and elements of the atoms that make a residue an amino acid


@dataclass(frozen=True)
class Backbone:
    """Which atoms of a molecule are backbone and which are side chain; both masks have shape (n_atoms,).

    Attributes
    ----------
    residue : ndarray of int, shape (n_atoms,)
        Index of each atom's residue.
    chain : ndarray of bool
        The atoms along the chain: N, CA and C, and what continues them in a cap.
    side_chain : ndarray of bool
        Everything but the chain, its hydrogens, and the oxygens of its carbonyls and of its carboxyl end.
    """

    residue: IntArray
    chain: BoolArray
    side_chain: BoolArray


def find_backbone(topology: openmm.app.Topology) -> Backbone:
    """Tell backbone from side chains.

    Raises
    ------
    ValueError
        If a residue is neither an amino acid nor a cap.
    """
    neighbours: Neighbours = {atom: [] for atom in topology.atoms()}
    for first, second in topology.bonds():
        neighbours[first].append(second)
        neighbours[second].append(first)
    amino_acids = {residue: triple for residue in topology.residues() if (triple := _triple(residue, neighbours))}
    chain = {atom for triple in amino_acids.values() for atom in triple}
    unknown = []
    for residue in topology.residues():
        if residue not in amino_acids:
            cap = _cap_chain(residue, neighbours, amino_acids.keys(), chain)
            if cap is None:
                unknown.append(f"{residue.name}{residue.id} (chain {residue.chain.id})")
            else:
                chain |= cap
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise ValueError(
            f"Neither amino acids (atoms N, CA and C, bonded in this order) nor caps (joined to one amino acid by an "
            f"amide bond): {shown}. Reduced coordinates need backbone and side chains: remove these residues, give a "
            'topology with all bonds and the usual atom names, or use coordinates="full", which takes any molecule.'
        )
    atoms = list(topology.atoms())
    return Backbone(
        residue=np.array([atom.residue.index for atom in atoms], dtype=np.int64),
        chain=np.array([atom in chain for atom in atoms], dtype=bool),
        side_chain=np.array([not _belongs_to_chain(atom, chain, neighbours) for atom in atoms], dtype=bool),
    )


def _symbol(atom: Atom) -> str | None:
    return None if atom.element is None else atom.element.symbol


def _carbonyl_oxygens(carbon: Atom, neighbours: Neighbours) -> list[Atom]:
    """Oxygens that are bonded to this atom alone."""
    return [atom for atom in neighbours[carbon] if _symbol(atom) == "O" and len(neighbours[atom]) == 1]


def _triple(residue: Residue, neighbours: Neighbours) -> tuple[Atom, Atom, Atom] | None:
    """N, CA and C of an amino acid, None for any other residue."""
    found = {atom.name: atom for atom in residue.atoms() if TRIPLE.get(atom.name) == _symbol(atom)}
    if len(found) < len(TRIPLE):
        return None
    n, ca, c = found["N"], found["CA"], found["C"]
    return (n, ca, c) if n in neighbours[ca] and c in neighbours[ca] else None


def _cap_chain(
    residue: Residue,
    neighbours: Neighbours,
    amino_acids: Collection[Residue],
    chain: set[Atom],
) -> set[Atom] | None:
    """Atoms with which a cap continues the chain (none if it sits on a side chain); None if it is no cap."""
    own = set(residue.atoms())
    links = [(atom, other) for atom in own for other in neighbours[atom] if other not in own]
    if len(links) != 1 or links[0][1].residue not in amino_acids:
        return None
    inner, outer = links[0]
    symbols = {_symbol(inner), _symbol(outer)}
    carbonyl = inner if _symbol(inner) == "C" else outer
    if symbols != {"C", "N"} or not _carbonyl_oxygens(carbonyl, neighbours):
        return None
    if outer not in chain:
        return set()
    carbons = [atom for atom in neighbours[inner] if atom in own and _symbol(atom) == "C"]
    return {inner, *carbons[:1]}


def _belongs_to_chain(atom: Atom, chain: set[Atom], neighbours: Neighbours) -> bool:
    """Whether an atom is one of the chain, a hydrogen on it, an oxygen of its carbonyls or of its carboxyl end."""
    if atom in chain:
        return True
    above = [other for other in neighbours[atom] if other in chain]
    if _symbol(atom) == "O":
        return any(_carbonyl_oxygens(other, neighbours) for other in above)
    if _symbol(atom) == "H":
        oxygens = [other for other in neighbours[atom] if _symbol(other) == "O"]
        return bool(above) or any(_belongs_to_chain(oxygen, chain, neighbours) for oxygen in oxygens)
    return False
