"""Bonds of side chains about which a turn leads to another rotamer, and what turns with them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from openmm import app

from openmm_bg.coordinates.zmatrix import bond_graph

FloatArray = NDArray[np.float64]

_NEIGHBOURS = {app.element.carbon: 4, app.element.nitrogen: 4, app.element.oxygen: 2, app.element.sulfur: 2}


@dataclass(frozen=True)
class Rotamers:
    """Bonds about which a part of the molecule turns.

    Attributes
    ----------
    axis : ndarray of int, shape (m, 2)
        Atoms of each bond; the second one is on the side that turns.
    turning : ndarray of bool, shape (m, n_atoms)
        Which atoms turn.
    residue : ndarray of int, shape (m,)
        Index of the residue that each bond belongs to.
    """

    axis: NDArray[np.int64]
    turning: NDArray[np.bool_]
    residue: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.axis)

    def turned(self, positions: FloatArray, bonds: NDArray[np.int64], angles: FloatArray) -> FloatArray:
        """Turn what is behind some bonds.

        Parameters
        ----------
        positions : ndarray, shape (n_atoms, 3)
        bonds, angles : ndarray, shape (k,)
            Rows of `axis`, and by how much (rad) to turn about each. The order does not matter.

        Returns
        -------
        ndarray, shape (n_atoms, 3)
        """
        found = positions.copy()
        for bond, angle in zip(bonds, angles, strict=True):
            start, end = found[self.axis[bond]]
            axis = (end - start) / np.linalg.norm(end - start)
            arm = found[self.turning[bond]] - end
            along = np.outer(arm @ axis, axis)
            found[self.turning[bond]] = (
                end + along + np.cos(angle) * (arm - along) + np.sin(angle) * np.cross(axis, arm)
            )
        return found


def between_tetrahedral(topology: app.Topology, bonds: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether bonds, shape (m, 2), are between two tetrahedral atoms: a torsion about them has three wells."""
    graph = bond_graph(topology)
    tetrahedral = [graph.degree(atom.index) == _NEIGHBOURS.get(atom.element) for atom in topology.atoms()]
    both: NDArray[np.bool_] = np.all(np.array(tetrahedral, dtype=bool)[bonds], axis=1)
    return both


def find_rotamers(
    topology: app.Topology,
    bonds: NDArray[np.int64],
    residues: NDArray[np.int64],
    constrained: Collection[tuple[int, int]] = (),
) -> Rotamers:
    """Choose, from the bonds of side chains, those about which a third of a turn leads to another rotamer.

    They are between tetrahedral atoms, in no ring, and do not hold a methyl or an ammonium group alone, which such a
    turn takes to itself. No constraint but that of the bond itself joins what turns with the rest: only then does a
    turn leave the metric of the constraints, which has the angles of constraints that share an atom, as it is.

    Parameters
    ----------
    topology : openmm.app.Topology
    bonds : ndarray of int, shape (m, 2)
        Candidates; the second atom is nearer to the end of the side chain.
    residues : ndarray of int, shape (m,)
        Which residue each belongs to.
    constrained : collection of (int, int)
        Pairs of atoms whose distance is constrained.
    """
    graph = bond_graph(topology)
    bridges = {frozenset(bond) for bond in nx.bridges(graph)}
    atoms = list(topology.atoms())
    axis, turning, residue = [], [], []
    chosen = between_tetrahedral(topology, bonds)
    for (start, end), index in zip(bonds[chosen].tolist(), residues[chosen].tolist(), strict=True):
        if frozenset((start, end)) not in bridges:
            continue
        graph.remove_edge(start, end)
        behind = nx.node_connected_component(graph, end) - {end}
        graph.add_edge(start, end)
        if len(behind) == 3 and all(atoms[i].element == app.element.hydrogen for i in behind):
            continue
        turns = behind | {end}
        if any((i in turns) != (j in turns) and {i, j} != {start, end} for i, j in constrained):
            continue
        axis.append((start, end))
        turning.append([i in behind for i in range(len(atoms))])
        residue.append(index)
    return Rotamers(
        np.array(axis, dtype=np.int64).reshape(-1, 2),
        np.array(turning, dtype=bool).reshape(-1, len(atoms)),
        np.array(residue, dtype=np.int64),
    )
