"""Root-mean-square deviations after superposition: which atoms, nearest neighbours, clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mdtraj
import numpy as np
import openmm.app
from numpy.typing import ArrayLike, NDArray
from openmm import unit
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from openmm_bg.analysis.distances import backbone_atoms
from openmm_bg.analysis.membership import in_nanometers
from openmm_bg.density import FloatArray

Indices = NDArray[np.int64]

_FEWEST_RESIDUES = 4  # fewer do not have a fold: their backbone atoms alone say little
_FEWEST_ATOMS = 4  # three are superposed by their mirror image


def superposed_atoms(topology: openmm.app.Topology, atoms: ArrayLike | None = None) -> Indices:
    """Return the atoms whose deviation counts: N, CA and C of four residues or more, else all but hydrogens.

    Parameters
    ----------
    topology : openmm.app.Topology
    atoms : array_like of int, optional
        The caller's own choice, which is checked.

    Raises
    ------
    ValueError
        If there are fewer than four atoms, or an index is not one of the topology.
    """
    if atoms is None:
        by_name = [{atom.name for atom in residue.atoms()} for residue in topology.residues()]
        if sum({"N", "CA", "C"} <= names for names in by_name) >= _FEWEST_RESIDUES:
            return backbone_atoms(topology)
        heavy = [a.index for a in topology.atoms() if a.element is None or a.element.symbol != "H"]
        chosen = np.array(heavy, dtype=np.int64)
    else:
        chosen = np.asarray(atoms, dtype=np.int64)
    n_atoms = topology.getNumAtoms()
    if chosen.ndim != 1 or len(np.unique(chosen)) != len(chosen) or len(chosen) < _FEWEST_ATOMS:
        raise ValueError(
            f"{chosen.tolist()} are the atoms to superpose; expected {_FEWEST_ATOMS} different ones or more"
        )
    if chosen.min() < 0 or chosen.max() >= n_atoms:
        raise ValueError(f"atoms {chosen.min()} to {chosen.max()} were given to superpose; there are {n_atoms} atoms")
    return chosen


class Superposed:
    """Structures of some atoms, ready to be compared by their deviation after the best proper rotation.

    Single precision, as in mdtraj: deviations below 1e-4 nm or so are rounding.

    Parameters
    ----------
    positions : array_like, Quantity or mdtraj.Trajectory
        Shape (n, n_atoms, 3), arrays in nm, molecules whole.
    atoms : ndarray of int
        Those that count.
    """

    def __init__(self, positions: Any, atoms: Indices) -> None:
        x = getattr(positions, "xyz", positions)
        x = np.asarray(x.value_in_unit(unit.nanometer) if unit.is_quantity(x) else x)
        if x.ndim != 3 or x.shape[1] <= atoms.max():
            raise ValueError(f"positions have shape {x.shape}; expected (n, n_atoms, 3), in nm, of all atoms")
        self._frames = mdtraj.Trajectory(in_nanometers(x[:, atoms]).astype(np.float32), None)
        self._frames.center_coordinates()

    def __len__(self) -> int:
        return int(self._frames.n_frames)

    def __getitem__(self, chosen: slice | Sequence[int] | NDArray[Any]) -> Superposed:
        part = object.__new__(Superposed)
        # Not a slice of the Trajectory, which would leave its traces behind.
        part._frames = mdtraj.Trajectory(self._frames.xyz[chosen], None)
        part._frames.center_coordinates()
        return part

    def from_one(self, other: Superposed, index: int) -> FloatArray:
        """Deviation in nm of each structure from one of another set, shape (n,)."""
        return np.asarray(mdtraj.rmsd(self._frames, other._frames, index, precentered=True), dtype=np.float64)

    def nearest(self, other: Superposed) -> FloatArray:
        """Deviation in nm of each structure from the nearest of another set, shape (n,)."""
        return np.array([other.from_one(self, index).min() for index in range(len(self))], dtype=np.float64)

    def pairwise(self) -> FloatArray:
        """Deviations in nm between all structures, shape (n, n), symmetric, zero on the diagonal."""
        matrix = np.stack([self.from_one(self, index) for index in range(len(self))])
        matrix = 0.5 * (matrix + matrix.T)
        np.fill_diagonal(matrix, 0.0)
        return matrix


def clusters(deviations: FloatArray, *, diameter: float | None = None, n_clusters: int | None = None) -> list[Indices]:
    """Return the members of clusters by complete linkage, most members first, the medoid first in each.

    Parameters
    ----------
    deviations : ndarray, shape (n, n)
        Symmetric, zero on the diagonal.
    diameter : float, optional
        Largest deviation between two members.
    n_clusters : int, optional
        How many clusters at most, instead of a diameter.
    """
    if len(deviations) == 0:
        return []
    if len(deviations) == 1:
        return [np.zeros(1, dtype=np.int64)]
    tree = linkage(squareform(deviations, checks=False), "complete")
    labels = fcluster(tree, diameter, "distance") if n_clusters is None else fcluster(tree, n_clusters, "maxclust")
    found = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        spread = (deviations[np.ix_(members, members)] ** 2).sum(axis=1)
        found.append(members[np.argsort(spread, kind="stable")])
    return sorted(found, key=lambda members: -len(members))
