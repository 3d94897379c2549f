"""From a Topology to a tree of internal coordinates (a z-matrix whose references follow the tree).

Three seed atoms a0 - a1 - a2 define the frame. Every other atom hangs on its parent; its references are its parent,
grandparent and great-grandparent, so that all children of one atom share their references. The first child of an
atom carries a torsion phi, its siblings the difference of their torsion to the first one's: narrow, and it carries
the chirality. Children of a1 count as siblings of a2, whose torsion is 0 by definition.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import networkx as nx
import numpy as np
import openmm.app
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

RIGID_RING = 8  # atoms; about a bond of a larger ring the torsions turn from one well to another


@dataclass(frozen=True)
class ZMatrix:
    """The tree of internal coordinates; rows are ordered so that a parent stands before its children.

    Attributes
    ----------
    n_atoms : int
    seed : tuple of int
        Atoms a0, a1, a2; a1 is bonded to both others.
    atoms : ndarray, shape (n_atoms - 3,)
        The atom that each row places.
    references : ndarray, shape (n_atoms - 3, 3)
        Parent, grandparent and great-grandparent of each row's atom.
    first_sibling : ndarray, shape (n_atoms - 3,)
        The row whose torsion a row's torsion is relative to: itself for a torsion of its own, -1 for a child of a1.
    depth : ndarray, shape (n_atoms - 3,)
        Number of bonds between a row's atom and the seed.
    ring_torsion : ndarray of bool, shape (n_atoms - 3,)
        Whether the row carries a torsion of its own about a bond that lies in a ring of at most `RIGID_RING` atoms.
        Larger rings (those that disulfides close, cyclic peptides) turn about their bonds.
    """

    n_atoms: int
    seed: tuple[int, int, int]
    atoms: IntArray
    references: IntArray
    first_sibling: IntArray
    depth: IntArray
    ring_torsion: NDArray[np.bool_]

    @property
    def own_torsion(self) -> NDArray[np.bool_]:
        """Whether a row carries a torsion of its own (and not a difference to a sibling's)."""
        return np.asarray(self.first_sibling == np.arange(len(self.atoms)))


def bond_graph(topology: openmm.app.Topology) -> nx.Graph:
    """The bonds of a Topology as a graph over atom indices.

    Raises
    ------
    ValueError
        If the molecule has fewer than three atoms or is not connected.
    """
    graph = nx.Graph()
    graph.add_nodes_from(range(topology.getNumAtoms()))
    graph.add_edges_from((bond[0].index, bond[1].index) for bond in topology.bonds())
    if len(graph) < 3:
        raise ValueError(f"The topology has {len(graph)} atoms; internal coordinates need a molecule of at least 3.")
    if not nx.is_connected(graph):
        parts = sorted((len(part) for part in nx.connected_components(graph)), reverse=True)
        raise ValueError(
            f"The topology falls into {len(parts)} molecules that no bond connects (of {parts[:5]} atoms, largest "
            "first); a generator is made for one connected molecule. Remove ions, water and ligands, use implicit "
            "solvent, and make sure that the topology lists every bond (Topology.createStandardBonds, "
            "createDisulfideBonds)."
        )
    return graph


def build_zmatrix(topology: openmm.app.Topology) -> ZMatrix:
    """Choose seed and tree of internal coordinates for a connected molecule.

    The seed is the backbone (N, CA, C) nearest to the middle of the molecule where there is one, else the heaviest
    connected triple there. Atoms are reached along the shortest path, so that rings are cut opposite to the seed.
    No path leads through a cross-link (a disulfide, a lactam of side chains) if another does: the tree follows the
    backbone, and the ring that a cross-link closes is cut there.

    Raises
    ------
    ValueError
        If the molecule is too small or not connected.
    """
    graph = bond_graph(topology)
    tree = _without_cross_links(topology, graph)
    seed = _choose_seed(topology, tree)
    parent = _spanning_tree(tree, seed, _subtree_priority(topology, graph))
    return _rows(graph, seed, parent)


def _without_cross_links(topology: openmm.app.Topology, graph: nx.Graph) -> nx.Graph:
    """The graph less the bonds between residues, those of the backbone aside, without which it stays connected."""
    links = [
        (first.index, second.index)
        for first, second in topology.bonds()
        if first.residue != second.residue and {first.name, second.name} != {"C", "N"}
    ]
    if not links:
        return graph
    tree = graph.copy()
    for link in links:
        tree.remove_edge(*link)
        if not nx.has_path(tree, *link):
            tree.add_edge(*link)
    return tree


def _choose_seed(topology: openmm.app.Topology, graph: nx.Graph) -> tuple[int, int, int]:
    eccentricity = _eccentricity_from_ends(graph)
    backbones = []
    for residue in topology.residues():
        names = {atom.name: atom.index for atom in residue.atoms()}
        if {"N", "CA", "C"} <= names.keys():
            triple = (names["N"], names["CA"], names["C"])
            if graph.has_edge(triple[0], triple[1]) and graph.has_edge(triple[1], triple[2]):
                backbones.append(triple)
    if backbones:
        return min(backbones, key=lambda triple: (eccentricity[triple[1]], triple[1]))
    mass = [atom.element.mass._value if atom.element is not None else 0.0 for atom in topology.atoms()]
    symbols = [None if atom.element is None else atom.element.symbol for atom in topology.atoms()]
    inner = [atom for atom in graph if graph.degree(atom) >= 2]
    # a carbon with two neighbours (alkyne, nitrile) is linear: the frame at it would be degenerate
    centres = [atom for atom in inner if symbols[atom] != "C" or graph.degree(atom) > 2] or inner
    heavy = [atom for atom in centres if sum(mass[n] > 2.0 for n in graph[atom]) >= 2] or centres
    a1 = min(heavy, key=lambda atom: (eccentricity[atom], atom))
    a0, a2 = sorted(graph[a1], key=lambda atom: (-min(mass[atom], 2.0), -graph.degree(atom), -mass[atom], atom))[:2]
    return (a0, a1, a2)


def _eccentricity_from_ends(graph: nx.Graph) -> dict[int, int]:
    """The larger distance of each atom to two ends of the molecule (exact on trees, close to it with rings)."""
    start = next(iter(graph))
    first = list(nx.single_source_shortest_path_length(graph, start).items())[-1][0]
    from_first = dict(nx.single_source_shortest_path_length(graph, first))
    last = max(from_first, key=lambda atom: from_first[atom])
    from_last = dict(nx.single_source_shortest_path_length(graph, last))
    return {atom: max(from_first[atom], from_last[atom]) for atom in graph}


def _subtree_priority(topology: openmm.app.Topology, graph: nx.Graph) -> list[tuple[int, int]]:
    """Sort key that lets the backbone, then the most branched neighbour, come first among siblings."""
    backbone = {"N", "CA", "C"}
    return [(0 if atom.name in backbone else 1, -graph.degree(atom.index)) for atom in topology.atoms()]


def _spanning_tree(
    graph: nx.Graph, seed: tuple[int, int, int], priority: list[tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    """Parent and depth of each atom, in breadth-first order from the seed."""
    parent: dict[int, tuple[int, int]] = {}
    reached = set(seed)
    queue = deque((atom, 0) for atom in (seed[1], seed[0], seed[2]))
    while queue:
        atom, depth = queue.popleft()
        for neighbour in sorted(graph[atom], key=lambda n: (*priority[n], n)):
            if neighbour not in reached:
                reached.add(neighbour)
                parent[neighbour] = (atom, depth + 1)
                queue.append((neighbour, depth + 1))
    return parent


def _rows(graph: nx.Graph, seed: tuple[int, int, int], parent: dict[int, tuple[int, int]]) -> ZMatrix:
    a0, a1, a2 = seed
    rings = nx.Graph(graph.edges)
    rings.remove_edges_from(list(nx.bridges(graph)))
    first_row: dict[int, int] = {a1: -1}
    references, first_sibling, depth, ring = [], [], [], []
    # the frame at a seed atom is spanned by the two others
    frame = {a0: (a0, a1, a2), a1: (a1, a0, a2), a2: (a2, a1, a0)}
    for row, (atom, (above, level)) in enumerate(parent.items()):
        p1, p2, p3 = frame[above]
        frame[atom] = (atom, p1, p2)
        references.append((p1, p2, p3))
        first_sibling.append(first_row.setdefault(above, row))
        depth.append(level)
        ring.append(first_sibling[-1] == row and _in_rigid_ring(rings, p1, p2))
    return ZMatrix(
        n_atoms=len(graph),
        seed=seed,
        atoms=np.array(list(parent), dtype=np.int64),
        references=np.array(references, dtype=np.int64).reshape(-1, 3),
        first_sibling=np.array(first_sibling, dtype=np.int64),
        depth=np.array(depth, dtype=np.int64),
        ring_torsion=np.array(ring, dtype=bool),
    )


def _in_rigid_ring(rings: nx.Graph, i: int, j: int) -> bool:
    """Whether a bond lies in a ring of at most `RIGID_RING` atoms; `rings` holds the bonds that lie in any ring."""
    if not rings.has_edge(i, j):
        return False
    reached, edge = {i}, {i}
    for _ in range(RIGID_RING - 1):  # bonds of the way round that does not use the bond itself
        edge = {far for near in edge for far in rings[near] if (near, far) != (i, j)} - reached
        if j in edge:
            return True
        reached |= edge
    return False
