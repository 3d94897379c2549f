"""Importance weights of samples from a proposal density, and how far they can be trusted.

With `log_prob` on the measure that OpenMM samples, the weight of a draw x is

    log w(x) = -U(x) / kT - log_prob(x)

up to a constant; neither a Jacobian nor a constraint metric appears here (docs: theory, "The measure").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.surfaces import FreeEnergySurface, free_energy_surface
from openmm_bg.analysis.thermal import kelvin, thermal_energy
from openmm_bg.analysis.timeseries import bootstrap_means
from openmm_bg.density import FloatArray, Samples

# Above this the error of an importance estimate is not finite in practice (Vehtari et al., JMLR 25, 72 (2024)).
PARETO_K_LIMIT = 0.7
_ROUNDING = 1e-9
_WIDEST_TAIL = 500.0  # kT; further down a weight beside the largest one underflows


class HasEnergy(Protocol):
    """What `reweight` needs from a potential."""

    def energy(self, positions: FloatArray) -> FloatArray:
        """Energies in kJ/mol of positions in nm, shape (n, n_atoms, 3) to (n,); +inf where they failed."""
        ...


@dataclass(frozen=True)
class Weights:
    """Normalised importance weights of independent samples.

    Attributes
    ----------
    log_weights : ndarray, shape (n,)
        Normalised: the weights sum to one. -inf for a sample of weight zero.
    temperature : float
        K.
    energies : ndarray, shape (n,)
        Potential energies in kJ/mol, +inf for a sample whose energy failed.
    positions : ndarray, shape (n, n_atoms, 3)
        Positions in nm.
    log_normalisation : float
        Logarithm of the mean of the unnormalised weights: an estimate of ln Z of the target on the density's measure.
    """

    log_weights: FloatArray
    temperature: float
    energies: FloatArray = field(repr=False)
    positions: FloatArray = field(repr=False)
    log_normalisation: float = math.nan

    def __len__(self) -> int:
        return len(self.log_weights)

    @property
    def weights(self) -> FloatArray:
        """Weights that sum to one, shape (n,)."""
        return np.exp(self.log_weights)

    @property
    def n_zero(self) -> int:
        """Number of samples of weight zero: off the support, or without a finite energy."""
        return int(np.count_nonzero(np.isneginf(self.log_weights)))

    @property
    def ess(self) -> float:
        """Kish's effective sample size, (sum w)^2 / sum w^2, of the weights as they are: none is clipped."""
        return float(np.exp(2.0 * logsumexp(self.log_weights) - logsumexp(2.0 * self.log_weights)))

    @property
    def ess_fraction(self) -> float:
        """The effective sample size as a fraction of all samples, those of weight zero included."""
        return self.ess / len(self)

    @property
    def largest_weight(self) -> float:
        """Share of the largest single weight."""
        return float(np.exp(self.log_weights.max()))

    @property
    def pareto_k(self) -> float:
        """Shape k of the generalised Pareto distribution fitted to the largest weights (Vehtari et al., 2024).

        Below 0.5 the weights have a finite variance, above 0.7 estimates from them cannot be trusted. Infinite if there
        are too few non-zero weights to fit.
        """
        return pareto_k(self.log_weights)

    def mean(
        self,
        observable: Callable[[FloatArray], ArrayLike] | ArrayLike,
        *,
        rng: np.random.Generator | int | None = 0,
    ) -> Estimate:
        """Return a weighted average with its bootstrap error.

        Parameters
        ----------
        observable : callable or array_like, shape (n,)
            Values of the samples, or a function of positions in nm, shape (m, n_atoms, 3) to (m,). Only samples with a
            weight are passed to it.
        rng : Generator, int or None
            Source of the resamples.

        Returns
        -------
        Estimate
            The error is NaN if all samples with a weight have the same value.
        """
        heavy = ~np.isneginf(self.log_weights)
        if callable(observable):
            values = np.asarray(observable(self.positions[heavy]), dtype=np.float64)
            expected = (int(heavy.sum()),)
        else:
            values = np.asarray(observable, dtype=np.float64)
            expected = (len(self),)
        if values.shape != expected:
            raise ValueError(f"the observable has shape {values.shape}; one number a sample, {expected}, is needed")
        if not callable(observable):
            values = values[heavy]
        if not np.all(np.isfinite(values)):
            raise ValueError("the observable is not finite for some samples that have a weight")
        padded = np.zeros(len(self))
        padded[heavy] = values
        value = float(self.weights @ padded)
        if np.all(values == values[0]):
            return Estimate(value, math.nan, self.ess)
        replicates = bootstrap_means(padded, weights=self.weights, rng=rng)
        return Estimate(value, float(np.nanstd(replicates, ddof=1)), self.ess)

    def surface(self, x: ArrayLike, y: ArrayLike, **options: Any) -> FreeEnergySurface:
        """Return the weighted free-energy surface of two coordinates of the samples, shape (n,) each.

        Keywords are those of `free_energy_surface`. Coordinates of samples of weight zero may be NaN.
        """
        heavy = ~np.isneginf(self.log_weights)
        first, second = (np.asarray(values, dtype=np.float64) for values in (x, y))
        if first.shape != heavy.shape or second.shape != heavy.shape:
            raise ValueError(f"coordinates of shapes {first.shape}, {second.shape} were given for {len(self)} samples")
        return free_energy_surface(
            first[heavy], second[heavy], self.temperature, weights=self.weights[heavy], **options
        )


def pareto_k(log_weights: ArrayLike) -> float:
    """Return Pareto's k of the tail of importance weights, by arviz-stats; infinite if it cannot be fitted.

    Of weights too far apart for floating-point numbers it is Hill's estimate (1975), the mean of ln w above its least
    value in the tail.
    """
    from arviz_stats.base.array import array_stats

    values = np.asarray(log_weights, dtype=np.float64)
    finite = values[np.isfinite(values)]
    n_tail = math.ceil(min(0.2 * len(finite), 3.0 * math.sqrt(len(finite))))
    if n_tail <= 4:
        return math.inf
    tail = np.partition(finite, len(finite) - n_tail - 1)[-n_tail - 1 :]
    if np.ptp(tail) < _ROUNDING:
        return -math.inf  # the largest weights are one bound, but for rounding: there is no tail
    if np.ptp(tail) > _WIDEST_TAIL:
        return float((tail - tail.min()).sum() / n_tail)
    _, k = array_stats.psislw(-finite)
    return float(k)


def reweight(samples: Samples, potential: HasEnergy, temperature: Any) -> Weights:
    """Weigh independent samples of a density for the Boltzmann distribution of a potential.

    Parameters
    ----------
    samples : Samples
        Draws and their log density on the measure that OpenMM samples. Draws off the support (-inf) get weight zero.
    potential : SystemPotential or anything with its `energy`
        Gives energies in kJ/mol; a sample whose energy is +inf gets weight zero.
    temperature : float or Quantity
        K.

    Returns
    -------
    Weights

    Raises
    ------
    ValueError
        If there are fewer than two samples, an energy or log density is NaN or infinite with the wrong sign, or no
        sample has a weight.
    """
    log_prob = np.asarray(samples.log_prob, dtype=np.float64)
    positions = np.asarray(samples.positions, dtype=np.float64)
    if log_prob.ndim != 1 or len(positions) != len(log_prob):
        raise ValueError(
            f"one log density a sample is needed, found shapes {positions.shape} (positions) and {log_prob.shape}"
        )
    if len(log_prob) < 2:
        raise ValueError(f"weights compare samples with each other: at least two are needed, found {len(log_prob)}")
    _refuse(np.isnan(log_prob) | np.isposinf(log_prob), "log densities are NaN or +inf", "check the density")
    supported = np.isfinite(log_prob)
    energies = np.full(len(log_prob), np.inf)
    if supported.any():
        energies[supported] = np.asarray(potential.energy(positions[supported]), dtype=np.float64)
    _refuse(np.isnan(energies) | np.isneginf(energies), "energies are NaN or -inf", "check the System")
    unnormalised = np.full(len(log_prob), -np.inf)
    finite = supported & np.isfinite(energies)
    if not finite.any():
        raise ValueError(
            f"none of the {len(log_prob)} samples has a finite energy and a finite log density, so there is nothing to "
            "weigh; is the generator trained, and for this system?"
        )
    unnormalised[finite] = -energies[finite] / thermal_energy(temperature) - log_prob[finite]
    log_sum = float(logsumexp(unnormalised))
    return Weights(unnormalised - log_sum, kelvin(temperature), energies, positions, log_sum - math.log(len(log_prob)))


def _refuse(bad: np.ndarray, found: str, advice: str) -> None:
    if bad.any():
        raise ValueError(f"{int(bad.sum())} of {len(bad)} {found} (the first at {int(np.argmax(bad))}); {advice}")
