"""How far two histograms are apart: Jensen-Shannon divergence and total variation, beside what noise alone gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from openmm_bg.analysis.ensembles import FrameWeights
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.density import FloatArray

_N_RESAMPLES = 100


@dataclass(frozen=True)
class Divergence:
    """Divergences of two histograms on the same bins.

    Both lie from 0, equal, to 1, nowhere at the same place. Finite samples never give 0, so that each has a floor.

    Attributes
    ----------
    jensen_shannon : Estimate
        Jensen-Shannon divergence in bits.
    total_variation : Estimate
        Half the sum of the absolute differences of the bins: the share of samples that would have to move.
    jensen_shannon_floor, total_variation_floor : Estimate
        The same for the two halves of the reference. They are high where the reference itself has not converged.
    """

    jensen_shannon: Estimate
    total_variation: Estimate
    jensen_shannon_floor: Estimate
    total_variation_floor: Estimate


@dataclass(frozen=True)
class BinnedFrames:
    """Frames of an ensemble in the bins of a histogram.

    Attributes
    ----------
    cells : ndarray of int, shape (n,)
        Bin of each frame, 0 to n_cells - 1.
    series : ndarray, shape (n, m)
        Observables along the frames, by whose correlation the errors are estimated.
    weights : FrameWeights
    """

    cells: NDArray[np.int64]
    series: FloatArray
    weights: FrameWeights

    def halves(self) -> tuple[BinnedFrames, BinnedFrames]:
        """The first and the second half of the frames."""
        first, second = (
            BinnedFrames(self.cells[part], self.series[part], weights) for part, weights in self.weights.halves()
        )
        return first, second

    def histogram(self, n_cells: int) -> FloatArray:
        """Probability of each bin."""
        return np.asarray(np.bincount(self.cells, weights=self.weights.share, minlength=n_cells), dtype=np.float64)

    def resampled(self, n_cells: int, rng: np.random.Generator) -> FloatArray:
        """The same in bootstrap resamples, shape (n_resamples, n_cells)."""
        shares = self.weights.resamples(self.series, _N_RESAMPLES, rng)
        return np.array([np.bincount(self.cells, weights=share, minlength=n_cells) for share in shares])


def histogram_divergence(
    generated: BinnedFrames, reference: BinnedFrames, n_cells: int, *, rng: np.random.Generator | int | None = 0
) -> Divergence:
    """Return the divergences of an ensemble from a reference, and those of the halves of the reference."""
    generator = np.random.default_rng(rng)
    values = _both(generated, reference, n_cells, generator)
    first, second = reference.halves()
    return Divergence(*values, *_both(second, first, n_cells, generator))


def jensen_shannon(p: FloatArray, q: FloatArray) -> FloatArray:
    """Return the Jensen-Shannon divergence in bits of distributions along the last axis."""
    middle = 0.5 * (p + q)
    nats = 0.5 * np.sum(rel_entr(p, middle) + rel_entr(q, middle), axis=-1)
    return np.asarray(np.maximum(nats, 0.0) / math.log(2.0))


def total_variation(p: FloatArray, q: FloatArray) -> FloatArray:
    """Return the total variation distance of distributions along the last axis."""
    return np.asarray(0.5 * np.sum(np.abs(p - q), axis=-1))


def _both(
    first: BinnedFrames, second: BinnedFrames, n_cells: int, rng: np.random.Generator
) -> tuple[Estimate, Estimate]:
    p, q = first.histogram(n_cells), second.histogram(n_cells)
    p_resampled, q_resampled = first.resampled(n_cells, rng), second.resampled(n_cells, rng)
    n_effective = min(first.weights.n_effective, second.weights.n_effective)
    estimates = []
    for divergence in (jensen_shannon, total_variation):
        spread = float(divergence(p_resampled, q_resampled).std(ddof=1))
        estimates.append(Estimate(float(divergence(p, q)), spread if spread > 0.0 else math.nan, n_effective))
    return estimates[0], estimates[1]
