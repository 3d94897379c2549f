"""Whole distributions of energies: their quantiles, and the distance between two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from openmm import unit
from scipy.stats import rankdata, wasserstein_distance

from openmm_bg.analysis.ensembles import FEWEST_FRAMES, FrameWeights, check_weights
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.density import FloatArray

PROBABILITIES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_N_RESAMPLES = 100


@dataclass(frozen=True)
class EnergyComparison:
    """Energies of an ensemble beside those of a reference, in kJ/mol.

    Attributes
    ----------
    probabilities : tuple of float
    generated, reference : tuple of Estimate
        The quantile of each probability.
    wasserstein : Estimate
        Mean distance between equal quantiles (the 1-Wasserstein distance).
    floor : Estimate
        The same for the two halves of the reference.
    """

    probabilities: tuple[float, ...]
    generated: tuple[Estimate, ...]
    reference: tuple[Estimate, ...]
    wasserstein: Estimate
    floor: Estimate


def energy_quantiles(
    energies: Any,
    *,
    weights: ArrayLike | None = None,
    probabilities: Sequence[float] = PROBABILITIES,
    rng: np.random.Generator | int | None = 0,
) -> tuple[Estimate, ...]:
    """Return quantiles of energies with bootstrap errors.

    Parameters
    ----------
    energies : array_like or Quantity, shape (n,)
        kJ/mol, along a chain; +inf for what has no energy, such as a clash.
    weights : array_like, shape (n,), optional
        Weights of independent samples.
    probabilities : sequence of float
        In [0, 1].
    rng : Generator, int or None
        Source of the resamples.

    Returns
    -------
    tuple of Estimate
        kJ/mol. The error is NaN where the quantile is infinite, or in some resample.

    Raises
    ------
    ValueError
        If there are fewer than four energies that count, one is NaN, or weights or probabilities are not valid.
    """
    return _Energies.of(energies, weights, rng).quantiles(probabilities)


def compare_energies(
    generated: Any,
    reference: Any,
    *,
    weights: ArrayLike | None = None,
    reference_weights: ArrayLike | None = None,
    probabilities: Sequence[float] = PROBABILITIES,
    rng: np.random.Generator | int | None = 0,
) -> EnergyComparison:
    """Compare the whole distribution of energies with that of a reference.

    Parameters are those of `energy_quantiles`, for each of the two.
    """
    generator = np.random.default_rng(rng)
    ours = _Energies.of(generated, weights, generator)
    theirs = _Energies.of(reference, reference_weights, generator)
    first, second = (
        _Energies.resampled(theirs.values[part], half, generator) for part, half in theirs.weights.halves()
    )
    return EnergyComparison(
        tuple(probabilities),
        ours.quantiles(probabilities),
        theirs.quantiles(probabilities),
        ours.distance(theirs),
        second.distance(first),
    )


@dataclass(frozen=True)
class _Energies:
    """Energies (n,), how they count, and their shares in bootstrap resamples (n_resamples, n)."""

    values: FloatArray
    weights: FrameWeights
    shares: FloatArray

    @classmethod
    def of(cls, energies: Any, weights: ArrayLike | None, rng: np.random.Generator | int | None) -> Self:
        values = np.asarray(
            energies.value_in_unit(unit.kilojoule_per_mole) if unit.is_quantity(energies) else energies,
            dtype=np.float64,
        )
        if values.ndim != 1:
            raise ValueError(f"energies have shape {values.shape}; one a frame is needed")
        checked = check_weights(weights, len(values))
        if checked is not None:
            values = values[checked > 0.0]
        if len(values) < FEWEST_FRAMES or np.isnan(values).any():
            raise ValueError(
                f"{len(values)} energies that count were given, {int(np.isnan(values).sum())} of them NaN; at least "
                f"{FEWEST_FRAMES} numbers are needed"
            )
        return cls.resampled(values, FrameWeights.of(len(values), checked), rng)

    @classmethod
    def resampled(cls, values: FloatArray, weights: FrameWeights, rng: np.random.Generator | int | None) -> Self:
        # Correlation is measured on ranks, on which no single huge energy weighs.
        return cls(values, weights, weights.resamples(rankdata(values)[:, None], _N_RESAMPLES, rng))

    def quantiles(self, probabilities: Sequence[float]) -> tuple[Estimate, ...]:
        if not all(0.0 <= p <= 1.0 for p in probabilities):
            raise ValueError(f"quantiles of {tuple(probabilities)} were asked for; give probabilities from 0 to 1")
        order = np.argsort(self.values, kind="stable")
        ordered = self.values[order]

        def of(share: FloatArray) -> FloatArray:
            cumulative = np.cumsum(share[order])
            place = np.searchsorted(cumulative, np.asarray(probabilities) * cumulative[-1] * (1.0 - 1e-12))
            return ordered[np.minimum(place, len(ordered) - 1)]

        replicates = np.array([of(share) for share in self.shares])
        return tuple(
            Estimate(float(value), _spread(column), self.weights.n_effective)
            for value, column in zip(of(self.weights.share), replicates.T, strict=True)
        )

    def distance(self, other: _Energies) -> Estimate:
        if not (np.isfinite(self.values).all() and np.isfinite(other.values).all()):
            return Estimate(math.inf, math.nan)
        value = wasserstein_distance(self.values, other.values, self.weights.share, other.weights.share)
        replicates = [
            wasserstein_distance(self.values, other.values, ours, theirs)
            for ours, theirs in zip(self.shares, other.shares, strict=True)
        ]
        n_effective = min(self.weights.n_effective, other.weights.n_effective)
        return Estimate(float(value), _spread(np.array(replicates)), n_effective)


def _spread(replicates: FloatArray) -> float:
    return float(replicates.std(ddof=1)) if np.isfinite(replicates).all() and np.ptp(replicates) > 0.0 else math.nan
