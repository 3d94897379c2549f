"""Side-chain torsions chi1 to chi5 of proteins, as mdtraj finds them by the names of atoms."""

from __future__ import annotations

from dataclasses import dataclass

import mdtraj
import networkx as nx
import numpy as np
import openmm.app

_CHI = (mdtraj.compute_chi1, mdtraj.compute_chi2, mdtraj.compute_chi3, mdtraj.compute_chi4, mdtraj.compute_chi5)
# Pairs of atoms at the end of a torsion that have the same chemical surroundings: which is which means nothing.
_EQUIVALENT = ({"CD1", "CD2"}, {"OD1", "OD2"}, {"OE1", "OE2"}, {"NH1", "NH2"})


@dataclass(frozen=True)
class SideChainTorsion:
    """One torsion of a side chain.

    Attributes
    ----------
    residue : str
        Name and number, as "LEU61".
    residue_index : int
        Place among the topology's residues.
    name : str
        "chi1" to "chi5".
    atoms : tuple of four int
    in_ring : bool
        Whether it is about a bond of a ring of its own residue, as in proline.
    symmetry : int
        2 for a torsion that looks the same after half a turn (phenyl rings, carboxylates), else 1.
    """

    residue: str
    residue_index: int
    name: str
    atoms: tuple[int, int, int, int]
    in_ring: bool
    symmetry: int

    def __str__(self) -> str:
        return f"{self.residue} {self.name}"


def side_chain_torsions(topology: openmm.app.Topology) -> list[SideChainTorsion]:
    """Return the side-chain torsions of a protein in the order of its residues, then chi1, chi2, ...

    Atoms are found by their names in the PDB, in any residue: also in those that are not standard but use the names.
    Torsions that only turn a methyl, a hydroxyl or an ammonium group have no chi.
    """
    n_atoms = topology.getNumAtoms()
    trajectory = mdtraj.Trajectory(np.zeros((1, n_atoms, 3), dtype=np.float32), mdtraj.Topology.from_openmm(topology))
    atoms = list(topology.atoms())
    graph = nx.Graph((a.index, b.index) for a, b in topology.bonds() if a.residue.index == b.residue.index)
    bridges = {frozenset(bond) for bond in nx.bridges(graph)}
    found = []
    for number, compute in enumerate(_CHI, start=1):
        for indices in compute(trajectory, periodic=False)[0]:
            a, b, c, d = (int(index) for index in indices)
            residue = atoms[b].residue
            in_ring = frozenset((b, c)) not in bridges
            symmetry = 1 if in_ring else _symmetry(graph, atoms, c, d)
            label = f"{residue.name}{residue.id}"
            found.append(SideChainTorsion(label, residue.index, f"chi{number}", (a, b, c, d), in_ring, symmetry))
    return sorted(found, key=lambda torsion: (torsion.residue_index, torsion.name))


def _symmetry(graph: nx.Graph, atoms: list[openmm.app.topology.Atom], center: int, end: int) -> int:
    """2 if a planar centre carries `end` and an atom of the same surroundings, else 1."""
    heavy = [n for n in graph[center] if atoms[n].element is not openmm.app.element.hydrogen]
    for other in heavy:
        same = {atoms[other].name, atoms[end].name} in _EQUIVALENT
        if same and graph.degree(center) == 3 and _environment(graph, atoms, other) == _environment(graph, atoms, end):
            return 2
    return 1


def _environment(graph: nx.Graph, atoms: list[openmm.app.topology.Atom], atom: int) -> list[str]:
    return sorted(atoms[n].element.symbol for n in graph[atom])
