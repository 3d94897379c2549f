"""Basins of the Ramachandran plane: populations, free-energy differences, acceptance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.thermal import thermal_energy
from openmm_bg.analysis.timeseries import bootstrap_means, chain_mean
from openmm_bg.density import FloatArray

RARE_PHI_LIMIT = 2.3  # rad; the basin of positive phi lies at 0 < phi < 2.3
RARE_BASIN = "alpha_L"

_DEGREE = math.pi / 180.0


@dataclass(frozen=True)
class Basin:
    """A region of the Ramachandran plane.

    Attributes
    ----------
    name : str
        Its usual name.
    description : str
        Its bounds in words.
    """

    name: str
    description: str


# A partition of the torus: the strip 2.3 < phi < pi is the far side of phi = -pi and belongs with it.
BASINS = (
    Basin("beta", "phi below -105° (or above 132°), psi outside (-120°, 50°)"),
    Basin("PII", "phi from -105° to 0°, psi outside (-120°, 50°)"),
    Basin("alpha_R", "phi negative (or above 132°), psi from -120° to 50°"),
    Basin(RARE_BASIN, "phi from 0 to 132° (0 < phi < 2.3 rad), any psi"),
)
BASIN_NAMES = tuple(basin.name for basin in BASINS)


def assign_basins(phi: ArrayLike, psi: ArrayLike) -> NDArray[np.int64]:
    """Return the index in `BASINS` of each (phi, psi), angles in radians in [-pi, pi]; -1 where an angle is NaN."""
    first, second = np.asarray(phi, dtype=np.float64), np.asarray(psi, dtype=np.float64)
    rare = in_rare_basin(first)
    helical = (second > -120.0 * _DEGREE) & (second < 50.0 * _DEGREE)
    extended = (first < -105.0 * _DEGREE) | (first >= RARE_PHI_LIMIT)
    label = np.select([rare, helical, extended], [3, 2, 0], default=1)
    return np.asarray(np.where(np.isnan(first) | np.isnan(second), -1, label), dtype=np.int64)


def in_rare_basin(phi: ArrayLike) -> NDArray[np.bool_]:
    """Return where 0 < phi < 2.3 rad."""
    angles = np.asarray(phi, dtype=np.float64)
    return np.asarray((angles > 0.0) & (angles < RARE_PHI_LIMIT))


@dataclass(frozen=True)
class BasinStatistics:
    """Populations of the basins and their differences in free energy, from one method.

    Attributes
    ----------
    populations : dict of str to Estimate
        Per basin; they sum to one.
    free_energy_differences : dict of str to Estimate
        Free energy in kJ/mol of each basin against all else, -kT ln(P / (1 - P)). Infinite for a basin never seen.
    """

    populations: dict[str, Estimate]
    free_energy_differences: dict[str, Estimate]


def basin_statistics(
    phi: ArrayLike,
    psi: ArrayLike,
    temperature: Any,
    *,
    weights: ArrayLike | None = None,
    rng: np.random.Generator | int | None = 0,
) -> BasinStatistics:
    """Estimate the populations of `BASINS`.

    Parameters
    ----------
    phi, psi : array_like, shape (n,)
        Radians, along a chain; or of independent samples, if `weights` are given.
    temperature : float or Quantity
        K.
    weights : array_like, shape (n,), optional
        Importance weights of independent samples.

    Returns
    -------
    BasinStatistics
        The error of a basin that was never entered, or never left, is NaN.
    """
    labels = assign_basins(phi, psi)
    w = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    if np.any((labels < 0) & (w > 0.0)):
        raise ValueError(f"{int(np.sum((labels < 0) & (w > 0.0)))} samples have a NaN angle and a weight; remove them")
    kt = thermal_energy(temperature)
    populations, differences = {}, {}
    for index, name in enumerate(BASIN_NAMES):
        inside = (labels == index).astype(np.float64)
        estimate = _population(inside, None if weights is None else w, rng)
        populations[name] = estimate
        differences[name] = _against_the_rest(estimate, kt)
    return BasinStatistics(populations, differences)


def rare_population(
    phi: ArrayLike, *, weights: ArrayLike | None = None, rng: np.random.Generator | int | None = 0
) -> Estimate:
    """Return the population of 0 < phi < 2.3 rad along a chain, or among weighted independent samples."""
    return _population(in_rare_basin(phi).astype(np.float64), weights, rng)


def _population(inside: FloatArray, weights: ArrayLike | None, rng: np.random.Generator | int | None) -> Estimate:
    if weights is None:
        return chain_mean(inside, rng=rng)
    w = np.asarray(weights, dtype=np.float64)
    n_effective = float(w.sum() ** 2 / np.sum(w**2))
    value = float(w @ inside / w.sum())
    if np.ptp(inside[w > 0.0]) == 0.0:
        return Estimate(value, math.nan, n_effective)
    error = float(np.nanstd(bootstrap_means(inside, weights=w, rng=rng), ddof=1))
    return Estimate(value, error, n_effective)


def _against_the_rest(population: Estimate, kt: float) -> Estimate:
    p = population.value
    if p <= 0.0 or p >= 1.0:
        return Estimate(math.inf if p <= 0.0 else -math.inf, math.nan, population.n_effective)
    return Estimate(-kt * math.log(p / (1.0 - p)), kt * population.error / (p * (1.0 - p)), population.n_effective)
