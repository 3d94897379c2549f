"""Contacts between residues: how often their closest heavy atoms touch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openmm.app
from numpy.typing import ArrayLike, NDArray
from openmm import unit
from scipy.spatial import cKDTree

from openmm_bg.analysis.ensembles import as_ensemble
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.feature_means import Features, feature_means, mean_absolute_difference
from openmm_bg.density import FloatArray

CUTOFF = 0.45  # nm, between the closest heavy atoms
MINIMUM_SEPARATION = 3  # residues along the chain; neighbours are always close


@dataclass(frozen=True)
class ContactMap:
    """How often pairs of residues touch.

    Attributes
    ----------
    pairs : ndarray of int, shape (n_pairs, 2)
        Indices of the residues.
    probability : ndarray, shape (n_pairs,)
        Share of the ensemble in which the two are in contact.
    """

    pairs: NDArray[np.int64] = field(repr=False)
    probability: FloatArray = field(repr=False)

    def matrix(self, n_residues: int) -> FloatArray:
        """The probabilities as a symmetric matrix, NaN for pairs that were not looked at."""
        full = np.full((n_residues, n_residues), np.nan)
        first, second = self.pairs.T
        full[first, second] = full[second, first] = self.probability
        return full


@dataclass(frozen=True)
class ContactDifference:
    """How far two contact maps are apart.

    Attributes
    ----------
    value : Estimate
        Mean over pairs of the absolute difference of their probabilities.
    floor : Estimate
        The same for the two halves of the reference.
    """

    value: Estimate
    floor: Estimate


def contact_map(
    frames: Any,
    topology: openmm.app.Topology,
    *,
    cutoff: Any = CUTOFF,
    minimum_separation: int = MINIMUM_SEPARATION,
    weights: ArrayLike | None = None,
) -> ContactMap:
    """Return the probability of contact of all pairs of residues.

    Parameters
    ----------
    frames : array_like, Quantity, mdtraj.Trajectory or Weights
        Positions, shape (n, n_atoms, 3), arrays in nm, molecules whole.
    topology : openmm.app.Topology
        Of the molecule.
    cutoff : float or Quantity
        Largest distance of the closest heavy atoms of two residues in contact, in nm.
    minimum_separation : int
        Pairs closer along the sequence are left out.
    weights : array_like, shape (n,), optional
        Weights of independent samples.

    Raises
    ------
    ValueError
        If the topology has no two residues so far apart, or positions or weights do not fit it.
    """
    pairs, features = _contacts(topology, cutoff, minimum_separation)
    return ContactMap(pairs, feature_means(as_ensemble(frames, topology, weights), features))


def contact_difference(
    generated: Any,
    reference: Any,
    topology: openmm.app.Topology,
    *,
    cutoff: Any = CUTOFF,
    minimum_separation: int = MINIMUM_SEPARATION,
    weights: ArrayLike | None = None,
    reference_weights: ArrayLike | None = None,
) -> ContactDifference:
    """Return how far the contact probabilities of an ensemble are from those of a reference.

    Parameters and errors are those of `contact_map`.
    """
    ours, theirs = as_ensemble(generated, topology, weights), as_ensemble(reference, topology, reference_weights)
    _, features = _contacts(topology, cutoff, minimum_separation)
    first, second = theirs.halves()
    return ContactDifference(
        mean_absolute_difference(ours, theirs, features), mean_absolute_difference(second, first, features)
    )


def _contacts(
    topology: openmm.app.Topology, cutoff: Any, minimum_separation: int
) -> tuple[NDArray[np.int64], Features]:
    """Pairs of residues, and whether each is in contact as a feature that is 0 or 1."""
    reach = float(cutoff.value_in_unit(unit.nanometer) if unit.is_quantity(cutoff) else cutoff)
    n_residues = topology.getNumResidues()
    first, second = np.triu_indices(n_residues, k=minimum_separation)
    if len(first) == 0 or minimum_separation < 1 or not reach > 0.0:
        raise ValueError(
            f"contacts within {reach} nm of residues {minimum_separation} apart were asked for in a molecule of "
            f"{n_residues} residues; give a positive cutoff and a separation from 1 to {n_residues - 1}"
        )
    column = np.full((n_residues, n_residues), -1, dtype=np.int64)
    column[first, second] = column[second, first] = np.arange(len(first))
    heavy = [atom for atom in topology.atoms() if atom.element is not openmm.app.element.hydrogen]
    atoms = np.array([atom.index for atom in heavy], dtype=np.int64)
    residue = np.array([atom.residue.index for atom in heavy], dtype=np.int64)

    def in_contact(positions: FloatArray) -> FloatArray:
        found = np.zeros((len(positions), len(first)))
        for row, frame in zip(found, positions[:, atoms], strict=True):
            close = residue[cKDTree(frame).query_pairs(reach, output_type="ndarray")]
            touched = column[close[:, 0], close[:, 1]]
            row[touched[touched >= 0]] = 1.0
        return found

    return np.stack([first, second], axis=1), Features(in_contact, len(first), len(first))
