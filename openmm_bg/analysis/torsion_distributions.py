"""Distributions of backbone and side-chain torsions, residue by residue, against those of a reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm.app
from numpy.typing import ArrayLike, NDArray

from openmm_bg.analysis.dihedrals import backbone_pairs, ramachandran_angles, torsion_angles
from openmm_bg.analysis.divergences import BinnedFrames, Divergence, histogram_divergence
from openmm_bg.analysis.ensembles import FrameWeights, as_ensemble
from openmm_bg.analysis.side_chains import SideChainTorsion, side_chain_torsions
from openmm_bg.density import FloatArray

RAMACHANDRAN_BINS = 24  # 15 degrees
CHI_BINS = 36  # 10 degrees


@dataclass(frozen=True)
class TorsionComparison:
    """How far the torsions of an ensemble are from those of a reference.

    Attributes
    ----------
    ramachandran : dict of str to Divergence
        Of the joint distribution of phi and psi of each residue that has both, by residue ("ALA2").
    chi : dict of str to Divergence
        Of each side-chain torsion, by residue and name ("LEU61 chi1").
    """

    ramachandran: dict[str, Divergence]
    chi: dict[str, Divergence]


def compare_torsions(
    generated: Any,
    reference: Any,
    topology: openmm.app.Topology,
    *,
    weights: ArrayLike | None = None,
    reference_weights: ArrayLike | None = None,
    ramachandran_bins: int = RAMACHANDRAN_BINS,
    chi_bins: int = CHI_BINS,
    rng: np.random.Generator | int | None = 0,
) -> TorsionComparison:
    """Compare the distributions of phi and psi, and of all chi, with those of a reference.

    A chi that looks the same after half a turn, such as chi2 of PHE, is compared modulo half a turn.

    Parameters
    ----------
    generated, reference : array_like, Quantity, mdtraj.Trajectory or Weights
        Positions, shape (n, n_atoms, 3), arrays in nm, molecules whole; the reference in the order in which it was
        sampled.
    topology : openmm.app.Topology
        Of the molecule.
    weights, reference_weights : array_like, shape (n,), optional
        Weights of independent samples.
    ramachandran_bins, chi_bins : int
        Number of bins of each angle. The fewer, the lower the floor, and the less is seen.
    rng : Generator, int or None
        Source of the resamples for the errors.

    Raises
    ------
    ValueError
        If positions or weights do not fit the topology.
    """
    ours, theirs = as_ensemble(generated, topology, weights), as_ensemble(reference, topology, reference_weights)
    generator = np.random.default_rng(rng)
    pairs, torsions = backbone_pairs(topology), side_chain_torsions(topology)
    backbone = [np.stack(ramachandran_angles(side.positions, pairs), axis=-1) for side in (ours, theirs)]
    side_chains = [chi_angles(side.positions, torsions) for side in (ours, theirs)]

    def divergence(angles: list[FloatArray], bins: int) -> Divergence:
        first, second = (
            bin_angles(values, bins, side.weights) for values, side in zip(angles, (ours, theirs), strict=True)
        )
        return histogram_divergence(first, second, bins ** angles[0].shape[1], rng=generator)

    return TorsionComparison(
        {
            pair.residue: divergence([angles[:, index] for angles in backbone], ramachandran_bins)
            for index, pair in enumerate(pairs)
        },
        {
            str(torsion): divergence([torsion.symmetry * angles[:, [index]] for angles in side_chains], chi_bins)
            for index, torsion in enumerate(torsions)
        },
    )


def chi_angles(positions: ArrayLike, torsions: list[SideChainTorsion]) -> FloatArray:
    """Return side-chain torsions in radians in (-pi, pi], shape (..., n_atoms, 3) to (..., n_torsions)."""
    return torsion_angles(positions, np.array([torsion.atoms for torsion in torsions], dtype=np.int64).reshape(-1, 4))


def bin_angles(angles: ArrayLike, bins: int, weights: FrameWeights) -> BinnedFrames:
    """Put frames into a histogram of one or several angles, shape (n, n_angles), in radians modulo a turn."""
    values = np.asarray(angles, dtype=np.float64)
    place = np.floor((values + math.pi) / (2.0 * math.pi) * bins).astype(np.int64) % bins
    cells: NDArray[np.int64] = np.ravel_multi_index(tuple(place.T), (bins,) * values.shape[1]).astype(np.int64)
    return BinnedFrames(cells, np.concatenate([np.cos(values), np.sin(values)], axis=1), weights)
