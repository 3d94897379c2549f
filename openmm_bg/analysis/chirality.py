"""Centres of the wrong hand: structures that dynamics never reaches, because no barrier of that height is crossed."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import openmm.app
from numpy.typing import NDArray

from openmm_bg.analysis.membership import in_nanometers

_NEIGHBOURS = 4


def stereocentres(topology: openmm.app.Topology) -> NDArray[np.int64]:
    """Return atoms with four bonds to groups that all differ: shape (n_centres, 5), the centre first.

    Groups differ if no relabelling of the molecule maps one onto the other, as far as colour refinement by elements and
    bonds can tell (Morgan, J. Chem. Doc. 5, 107 (1965)). The two hydrogens of a CH2, or the two methyl groups of
    valine, are alike, and a swap of their labels is not another molecule.
    """
    graph = nx.Graph((first.index, second.index) for first, second in topology.bonds())
    elements = [None if atom.element is None else atom.element.symbol for atom in topology.atoms()]
    graph.add_nodes_from(range(len(elements)))
    colours = _numbered(dict(enumerate(elements)))
    while True:
        refined = _numbered({a: (colours[a], tuple(sorted(colours[b] for b in graph[a]))) for a in graph})
        if len(set(refined.values())) == len(set(colours.values())):
            break
        colours = refined
    found = [
        [atom, *sorted(graph[atom])]
        for atom in range(len(elements))
        if len({colours[b] for b in graph[atom]}) == _NEIGHBOURS == len(graph[atom])
    ]
    return np.array(found, dtype=np.int64).reshape(-1, _NEIGHBOURS + 1)


def wrong_hands(positions: Any, reference: Any, topology: openmm.app.Topology) -> NDArray[np.int64]:
    """Return the number of stereocentres in each structure whose hand is not that of the reference.

    Parameters
    ----------
    positions, reference : array_like, Quantity or mdtraj.Trajectory
        Shape (n, n_atoms, 3), arrays in nm, molecules whole. The hand of the reference is that of most of its frames;
        a centre of which half of them have the other hand is not judged.
    topology : openmm.app.Topology
        With bonds.

    Returns
    -------
    ndarray of int, shape (n,)
    """
    centres = stereocentres(topology)
    usual = np.median(_hands(reference, centres), axis=0)
    wrong = (_hands(positions, centres) != usual) & (usual != 0.0)
    return np.asarray(np.count_nonzero(wrong, axis=1), dtype=np.int64)


def _hands(positions: Any, centres: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sign of the volume spanned by the bonds to the first three neighbours, shape (n, n_centres)."""
    x = in_nanometers(positions)
    bonds = x[:, centres[:, 1:4]] - x[:, centres[:, :1]]
    return np.sign(np.linalg.det(bonds))


def _numbered(colours: dict[int, Any]) -> dict[int, int]:
    numbers = {colour: number for number, colour in enumerate(sorted(set(colours.values()), key=repr))}
    return {atom: numbers[colour] for atom, colour in colours.items()}
