"""An ensemble as frames: a chain in which all frames count alike, or independent samples with weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import openmm.app
from numpy.typing import ArrayLike

from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.membership import in_nanometers
from openmm_bg.analysis.timeseries import block_length, chain_mean, resample_multiplicities
from openmm_bg.analysis.weights import Weights
from openmm_bg.density import FloatArray

FEWEST_FRAMES = 4  # two for each half of a reference


@dataclass(frozen=True)
class FrameWeights:
    """How much each frame counts, and whether neighbours are correlated.

    Attributes
    ----------
    share : ndarray, shape (n,)
        Positive, of sum one.
    independent : bool
        True for weighted samples; False for a chain, whose autocorrelation goes into every error.
    """

    share: FloatArray
    independent: bool

    @classmethod
    def of(cls, n_frames: int, weights: ArrayLike | None) -> Self:
        """Make them for the frames that have a weight above zero, all alike if `weights` is None."""
        if weights is None:
            return cls(np.full(n_frames, 1.0 / n_frames), independent=False)
        w = np.asarray(weights, dtype=np.float64)
        return cls(w[w > 0.0] / w.sum(), independent=True)

    def halves(self) -> tuple[tuple[slice, FrameWeights], tuple[slice, FrameWeights]]:
        """The first and the second half of the frames, each with its weights."""
        middle = len(self.share) // 2
        first, second = (
            (part, FrameWeights(self.share[part] / self.share[part].sum(), self.independent))
            for part in (slice(None, middle), slice(middle, None))
        )
        return first, second

    @property
    def n_effective(self) -> float:
        """Kish's effective number of samples."""
        return float(1.0 / np.sum(self.share**2))

    def mean(self, series: ArrayLike) -> Estimate:
        """Return the average of an observable, shape (n,), with its error.

        Of a chain as by `chain_mean`; of weighted samples by the delta method, sum w^2 (f - mean)^2 of normalised
        weights. The error is NaN for an observable that never changes.
        """
        values = np.asarray(series, dtype=np.float64)
        if not self.independent:
            return chain_mean(values)
        value = float(self.share @ values)
        variance = float(np.sum(self.share**2 * (values - value) ** 2))
        return Estimate(value, math.sqrt(variance) if np.ptp(values) > 0.0 else math.nan, self.n_effective)

    def resamples(self, series: FloatArray, n_resamples: int, rng: np.random.Generator | int | None) -> FloatArray:
        """Return the share of each frame in bootstrap resamples, shape (n_resamples, n); rows sum to one.

        Blocks are those of the slowest of the observables, `series` of shape (n, m); single frames where they are
        independent.
        """
        length = 1 if self.independent else max(block_length(column) for column in series.T)
        counts = np.stack(list(resample_multiplicities(len(self.share), length, n_resamples, rng)))
        shares = counts * self.share
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Ensemble:
    """Frames and how much they count.

    Attributes
    ----------
    positions : ndarray, shape (n, n_atoms, 3)
        nm, molecules whole.
    weights : FrameWeights
    """

    positions: FloatArray = field(repr=False)
    weights: FrameWeights

    def __len__(self) -> int:
        return len(self.positions)

    def halves(self) -> tuple[Ensemble, Ensemble]:
        """The first and the second half of the frames: what one ensemble looks like twice."""
        first, second = (Ensemble(self.positions[part], weights) for part, weights in self.weights.halves())
        return first, second

    def chunks(self, n_numbers: int) -> Iterator[slice]:
        """Yield slices of frames such that an array of `n_numbers` a frame takes some 16 MB."""
        step = max(1, 2**21 // max(1, n_numbers))
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))


def check_weights(weights: ArrayLike | None, n_frames: int) -> FloatArray | None:
    """Return weights as an array; raise ValueError unless there is a valid one for each frame."""
    if weights is None:
        return None
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (n_frames,) or not np.all(w >= 0.0) or not 0.0 < w.sum() < math.inf:
        raise ValueError(
            f"weights of shape {w.shape} were given for {n_frames} frames; give one for each, finite and not negative, "
            "of which some are positive"
        )
    return w


def as_ensemble(source: Any, topology: openmm.app.Topology, weights: ArrayLike | None = None) -> Ensemble:
    """Return an ensemble from positions or weighted samples; frames of weight zero are left out.

    Parameters
    ----------
    source : array_like, Quantity, mdtraj.Trajectory, Weights or Ensemble
        Positions of shape (n, n_atoms, 3), arrays in nm, along a chain; or weighted samples as `reweight` returns them.
    topology : openmm.app.Topology
        Of the molecule.
    weights : array_like, shape (n,), optional
        Non-negative weights of any normalisation, of independent samples.

    Raises
    ------
    ValueError
        If atoms are not as many as the topology's, there are fewer than four frames, a frame that counts is not
        finite, or weights do not fit the frames.
    """
    if isinstance(source, Ensemble):
        return source
    if isinstance(source, Weights):
        if weights is not None:
            raise ValueError("the samples have weights already; give no others")
        source, weights = source.positions, source.weights
    positions = in_nanometers(source)
    if positions.shape[1] != topology.getNumAtoms():
        raise ValueError(
            f"positions of {positions.shape[1]} atoms were given; the topology has {topology.getNumAtoms()}"
        )
    checked = check_weights(weights, len(positions))
    if checked is not None:
        positions = positions[checked > 0.0]
    if len(positions) < FEWEST_FRAMES:
        raise ValueError(f"{len(positions)} frames that count were given; at least {FEWEST_FRAMES} are needed")
    bad = np.asarray(~np.isfinite(positions).all(axis=(1, 2)))
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {len(bad)} frames hold positions that are not finite (the first is frame "
            f"{int(np.argmax(bad))}): draws off the support of a generator do; leave them out or give them no weight"
        )
    return Ensemble(positions, FrameWeights.of(len(bad), checked))
