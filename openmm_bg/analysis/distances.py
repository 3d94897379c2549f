"""Distance distortion: how far the mean distances between backbone atoms are from those of a reference ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm.app
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import pdist

from openmm_bg.analysis.ensembles import Ensemble, as_ensemble
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.feature_means import Features, combined, feature_means, frame_values, mean_absolute_difference
from openmm_bg.density import FloatArray

_ANGSTROM = 10.0  # in a nanometre


@dataclass(frozen=True)
class DistanceDistortion:
    """Distance distortion of an ensemble against a reference, in angstrom.

    Attributes
    ----------
    value : Estimate
        Mean over pairs of |mean distance - mean distance in the reference|.
    floor : Estimate
        The same for the two halves of the reference: what noise alone gives. A value near it is as good as can be told.
    per_structure : Estimate
        Mean over structures and pairs of |distance - mean distance in the reference|; it grows with the fluctuations
        of the molecule and is not zero for a perfect ensemble.
    per_structure_floor : Estimate
        The same for the second half of the reference against the means of the first: what a perfect ensemble has.
    """

    value: Estimate
    floor: Estimate
    per_structure: Estimate
    per_structure_floor: Estimate


def backbone_atoms(topology: openmm.app.Topology) -> NDArray[np.int64]:
    """Return the indices of the atoms N, CA and C of all residues that have the three; caps have not.

    Raises
    ------
    ValueError
        If there are none.
    """
    found = []
    for residue in topology.residues():
        own = {atom.name: atom.index for atom in residue.atoms()}
        if {"N", "CA", "C"} <= own.keys():
            found += [own["N"], own["CA"], own["C"]]
    if not found:
        raise ValueError("no residue of the topology has the atoms N, CA and C; expected a peptide or protein")
    return np.array(found, dtype=np.int64)


def distance_distortion(
    generated: Any,
    reference: Any,
    topology: openmm.app.Topology,
    *,
    weights: ArrayLike | None = None,
    reference_weights: ArrayLike | None = None,
) -> DistanceDistortion:
    """Return the distance distortion over all pairs of the atoms N, CA and C (docs: metrics).

    Parameters
    ----------
    generated, reference : array_like, Quantity, mdtraj.Trajectory or Weights
        Positions, shape (n, n_atoms, 3), arrays in nm, molecules whole; the reference in the order in which it was
        sampled.
    topology : openmm.app.Topology
        Of the molecule.
    weights, reference_weights : array_like, shape (n,), optional
        Weights of independent samples.

    Returns
    -------
    DistanceDistortion
        In angstrom.

    Raises
    ------
    ValueError
        If there is no backbone, or positions or weights do not fit the topology.
    """
    ours, theirs = as_ensemble(generated, topology, weights), as_ensemble(reference, topology, reference_weights)
    features = _pair_distances(topology)
    first, second = theirs.halves()
    return DistanceDistortion(
        mean_absolute_difference(ours, theirs, features),
        mean_absolute_difference(second, first, features),
        _per_structure(ours, theirs, features),
        _per_structure(second, first, features),
    )


def structure_distortion(structures: Any, reference: Any, topology: openmm.app.Topology) -> FloatArray:
    """Return for each structure the mean over pairs of |distance - mean distance in the reference|, in angstrom.

    Parameters
    ----------
    structures, reference : array_like, Quantity, mdtraj.Trajectory or Weights
        Positions, shape (n, n_atoms, 3), arrays in nm. Structures of weight zero are left out.
    topology : openmm.app.Topology
        Of the molecule.

    Returns
    -------
    ndarray, shape (n,)
    """
    features = _pair_distances(topology)
    means = feature_means(as_ensemble(reference, topology), features)
    return frame_values(as_ensemble(structures, topology), features, lambda d: np.abs(d - means).mean(axis=1))


def _pair_distances(topology: openmm.app.Topology) -> Features:
    atoms = backbone_atoms(topology)

    def distances(positions: FloatArray) -> FloatArray:
        return _ANGSTROM * np.stack([pdist(frame) for frame in positions[:, atoms]])

    n_pairs = len(atoms) * (len(atoms) - 1) // 2
    return Features(distances, n_pairs, n_pairs)


def _per_structure(structures: Ensemble, reference: Ensemble, features: Features) -> Estimate:
    means = feature_means(reference, features)
    ours = structures.weights.mean(frame_values(structures, features, lambda d: np.abs(d - means).mean(axis=1)))
    # The reference's means are uncertain too: each moves the result by the mean sign of its pair.
    signs = Features(lambda x: np.sign(features.function(x) - means), features.n_features, features.n_numbers)
    direction = feature_means(structures, signs) / len(means)
    theirs = reference.weights.mean(frame_values(reference, features, lambda d: d @ direction))
    return combined(ours.value, ours, theirs)
