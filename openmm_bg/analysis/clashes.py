"""What no molecule does: atoms that overlap, and centres of the wrong hand."""

from __future__ import annotations

from typing import Any

import mdtraj
import networkx as nx
import numpy as np
import openmm.app
from numpy.typing import NDArray
from openmm import unit
from scipy.spatial import cKDTree

from openmm_bg.analysis.membership import in_nanometers
from openmm_bg.coordinates.chirality import signed_volumes, stereocentres
from openmm_bg.density import FloatArray

OVERLAP = 0.04  # nm, beyond which two van der Waals spheres clash (Word et al., J. Mol. Biol. 285, 1711 (1999))
_BONDS_APART = 4  # pairs closer than this along the bonds are bonded terms or scaled ones


def clash_counts(positions: Any, topology: openmm.app.Topology, *, overlap: Any = OVERLAP) -> NDArray[np.int64]:
    """Return the number of clashes in each structure.

    Two atoms at least four bonds apart clash if their van der Waals spheres (Bondi's radii, as in mdtraj) overlap by
    more than `overlap`. A hydrogen on N, O or S does not clash with N, O or S: that is a hydrogen bond. Good structures
    from dynamics have a few, so count them in the reference too.

    Parameters
    ----------
    positions : array_like, Quantity or mdtraj.Trajectory
        Shape (n, n_atoms, 3), arrays in nm, molecules whole.
    topology : openmm.app.Topology
        With bonds.
    overlap : float or Quantity
        nm.

    Returns
    -------
    ndarray of int, shape (n,)

    Raises
    ------
    ValueError
        If positions are not finite or are not of the topology's atoms.
    """
    x = _checked(positions, topology)
    allowed = float(overlap.value_in_unit(unit.nanometer) if unit.is_quantity(overlap) else overlap)
    radii = _radii(topology)
    near_by_bonds, n_atoms = _excluded(topology), x.shape[1]
    donated, polar = _polar(topology)
    reach = 2.0 * float(radii.max()) - allowed
    counts = np.zeros(len(x), dtype=np.int64)
    for index, frame in enumerate(x):
        first, second = cKDTree(frame).query_pairs(reach, output_type="ndarray").T
        distance = np.linalg.norm(frame[first] - frame[second], axis=1)
        near = distance < radii[first] + radii[second] - allowed
        first, second = first[near], second[near]
        hydrogen_bond = (donated[first] & polar[second]) | (polar[first] & donated[second])
        counts[index] = np.count_nonzero(~hydrogen_bond & ~np.isin(first * n_atoms + second, near_by_bonds))
    return counts


def inverted_counts(positions: Any, topology: openmm.app.Topology, reference: Any) -> NDArray[np.int64]:
    """Return the number of stereocentres of each structure that have another hand than in a reference.

    Looked at are alpha carbons, and beta carbons with two different branches as in isoleucine and threonine. Dynamics
    never inverts one; a generator that does has proposals that are never accepted, or a basin that is not wanted.

    Parameters
    ----------
    positions : array_like, Quantity or mdtraj.Trajectory
        Shape (n, n_atoms, 3), arrays in nm, molecules whole.
    topology : openmm.app.Topology
        With bonds.
    reference : array_like, Quantity or mdtraj.Trajectory
        Structures of the right hand, shape (n, n_atoms, 3); the majority decides.

    Returns
    -------
    ndarray of int, shape (n,)
    """
    centers = stereocentres(topology)
    right = np.sign(np.sign(signed_volumes(_checked(reference, topology), centers)).sum(axis=0))
    found = np.sign(signed_volumes(_checked(positions, topology), centers))
    return np.asarray(np.count_nonzero(found != right, axis=1), dtype=np.int64)


def _checked(positions: Any, topology: openmm.app.Topology) -> FloatArray:
    x = in_nanometers(positions)
    n_atoms = topology.getNumAtoms()
    if x.shape[1] != n_atoms or not np.isfinite(x).all():
        raise ValueError(f"positions have shape {x.shape}; expected (n, {n_atoms}, 3), all finite")
    return x


def _radii(topology: openmm.app.Topology) -> FloatArray:
    """Van der Waals radii in nm, shape (n_atoms,)."""
    return np.array([atom.element.radius for atom in mdtraj.Topology.from_openmm(topology).atoms], dtype=np.float64)


def _excluded(topology: openmm.app.Topology) -> NDArray[np.int64]:
    """Pairs that are fewer than four bonds apart, the pair (i, j) as i n_atoms + j."""
    n_atoms = topology.getNumAtoms()
    graph = nx.Graph((first.index, second.index) for first, second in topology.bonds())
    graph.add_nodes_from(range(n_atoms))
    pairs = [
        atom * n_atoms + other
        for atom in range(n_atoms)
        for other in nx.single_source_shortest_path_length(graph, atom, cutoff=_BONDS_APART - 1)
    ]
    return np.array(pairs, dtype=np.int64)


def _polar(topology: openmm.app.Topology) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which atoms are hydrogens that can be donated, and which are N, O or S."""
    symbols = ["" if atom.element is None else atom.element.symbol for atom in topology.atoms()]
    polar = np.isin(symbols, ["N", "O", "S"])
    donated = np.zeros(len(symbols), dtype=bool)
    for first, second in topology.bonds():
        for hydrogen, heavy in ((first.index, second.index), (second.index, first.index)):
            donated[hydrogen] |= bool(symbols[hydrogen] == "H" and polar[heavy])
    return donated, polar
