"""Free-energy surfaces of one and two coordinates with errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmm_bg.analysis.thermal import thermal_energy
from openmm_bg.analysis.timeseries import N_RESAMPLES, block_length, resample_multiplicities
from openmm_bg.density import FloatArray

ANGLE_RANGE = (-math.pi, math.pi)


@dataclass(frozen=True)
class FreeEnergySurface:
    """F(x, y) = -kT ln p(x, y) on a grid.

    Attributes
    ----------
    x_edges, y_edges : ndarray, shape (n_x + 1,) and (n_y + 1,)
        Edges of the bins.
    probability : ndarray, shape (n_x, n_y)
        Normalised probability of each bin.
    free_energy : ndarray, shape (n_x, n_y)
        kJ/mol, zero at the lowest bin, +inf in empty bins.
    error : ndarray, shape (n_x, n_y)
        One standard error of -kT ln(probability) in kJ/mol, NaN in empty bins.
    thermal_energy : float
        kT in kJ/mol.
    """

    x_edges: FloatArray
    y_edges: FloatArray
    probability: FloatArray
    free_energy: FloatArray
    error: FloatArray
    thermal_energy: float

    @property
    def free_energy_in_kt(self) -> FloatArray:
        """The free energy in units of kT, zero at the lowest bin."""
        return self.free_energy / self.thermal_energy


def free_energy_surface(
    x: ArrayLike,
    y: ArrayLike,
    temperature: Any,
    *,
    bins: int = 48,
    ranges: tuple[tuple[float, float], tuple[float, float]] = (ANGLE_RANGE, ANGLE_RANGE),
    weights: ArrayLike | None = None,
    length: int | None = None,
    replicates: Iterable[FloatArray] | None = None,
    n_resamples: int = N_RESAMPLES,
    rng: np.random.Generator | int | None = 0,
) -> FreeEnergySurface:
    """Estimate a free-energy surface from a chain or from weighted independent samples.

    Parameters
    ----------
    x, y : array_like, shape (n,)
        The two coordinates of each sample; by default angles in radians.
    temperature : float or Quantity
        Temperature in K.
    bins : int
        Number of bins along each axis.
    ranges : pair of (low, high)
        Extent of the grid; samples outside it count in the normalisation of no bin.
    weights : array_like, shape (n,), optional
        Non-negative weights of any normalisation.
    length : int, optional
        Length of the bootstrap's blocks. By default 1 if `weights` are given (independent samples), else that of the
        slowest of cos x, sin x, cos y and sin y along the chain.
    replicates : iterable of ndarray, shape (n,), optional
        The weights in each resample of an outer bootstrap, which then takes the place of the one over samples.

    Returns
    -------
    FreeEnergySurface

    Raises
    ------
    ValueError
        If the arrays differ in length or no sample with a weight lies on the grid.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"one x and one y a sample are needed, found shapes {first.shape} and {second.shape}")
    w = np.ones(len(first)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != first.shape:
        raise ValueError(f"weights of shape {w.shape} were given for {len(first)} samples; give one for each")
    if length is None and replicates is None:
        angles = (np.cos(first), np.sin(first), np.cos(second), np.sin(second))
        length = 1 if weights is not None else max(block_length(series) for series in angles)
    x_edges, y_edges = (np.linspace(low, high, bins + 1) for low, high in ranges)
    column, row = _bin(first, x_edges), _bin(second, y_edges)
    cell = np.where((column >= 0) & (row >= 0), column * bins + row, -1)
    if replicates is None:
        assert length is not None
        replicates = (w * counts for counts in resample_multiplicities(len(first), length, n_resamples, rng))
    kt = thermal_energy(temperature)
    probability, free_energy, error = _estimate(cell, bins * bins, w, replicates, kt, f"the grid {ranges}")
    shape = (bins, bins)
    return FreeEnergySurface(
        x_edges,
        y_edges,
        probability.reshape(shape),
        free_energy.reshape(shape),
        error.reshape(shape),
        kt,
    )


@dataclass(frozen=True)
class FreeEnergyProfile:
    """F(x) = -kT ln p(x) on a grid.

    Attributes
    ----------
    edges : ndarray, shape (n_x + 1,)
        Edges of the bins.
    probability : ndarray, shape (n_x,)
        Normalised probability of each bin.
    free_energy : ndarray, shape (n_x,)
        kJ/mol, zero at the lowest bin, +inf in empty bins.
    error : ndarray, shape (n_x,)
        One standard error of -kT ln(probability) in kJ/mol, NaN in empty bins.
    thermal_energy : float
        kT in kJ/mol.
    """

    edges: FloatArray
    probability: FloatArray
    free_energy: FloatArray
    error: FloatArray
    thermal_energy: float


def free_energy_profile(
    x: ArrayLike,
    temperature: Any,
    *,
    bins: int = 48,
    range: tuple[float, float] = ANGLE_RANGE,
    weights: ArrayLike,
    replicates: Iterable[FloatArray],
) -> FreeEnergyProfile:
    """Estimate the free energy along one coordinate from weighted samples.

    Parameters
    ----------
    x : array_like, shape (n,)
        The coordinate of each sample; by default an angle in radians.
    temperature : float or Quantity
        Temperature in K.
    bins : int
        Number of bins.
    range : (low, high)
        Extent of the grid; samples outside it count in the normalisation of no bin.
    weights : array_like, shape (n,)
        Non-negative weights of any normalisation.
    replicates : iterable of ndarray, shape (n,)
        The weights in each resample of a bootstrap.

    Raises
    ------
    ValueError
        If the arrays differ in length or no sample with a weight lies on the grid.
    """
    values, w = np.asarray(x, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or values.shape != w.shape:
        raise ValueError(f"one x and one weight a sample are needed, found shapes {values.shape} and {w.shape}")
    edges = np.linspace(*range, bins + 1)
    kt = thermal_energy(temperature)
    probability, free_energy, error = _estimate(_bin(values, edges), bins, w, replicates, kt, f"the grid {range}")
    return FreeEnergyProfile(edges, probability, free_energy, error, kt)


def _bin(values: FloatArray, edges: FloatArray) -> NDArray[np.int64]:
    """Index of the bin of each value, -1 outside; the last edge belongs to the last bin."""
    n_bins = len(edges) - 1
    found = np.searchsorted(edges, values, side="right") - 1
    found[values == edges[-1]] = n_bins - 1
    return np.where((found >= 0) & (found < n_bins), found, -1)


def _estimate(
    cell: NDArray[np.int64], n_cells: int, weights: FloatArray, replicates: Iterable[FloatArray], kt: float, grid: str
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Probability, free energy and its error in each cell, from the cell of each sample (-1 off the grid)."""
    inside = np.where(cell >= 0, cell, n_cells)

    def histogram(sample_weights: FloatArray) -> FloatArray:
        counts = np.bincount(inside, weights=sample_weights, minlength=n_cells + 1)[:-1]
        return counts / counts.sum()

    if not np.sum(weights[cell >= 0]) > 0.0:
        raise ValueError(f"none of the {len(cell)} samples lies on {grid} with a positive weight")
    probability = histogram(weights)
    resampled = np.array([histogram(each) for each in replicates])
    # The error of a logarithm by the delta method: resamples with an empty cell stay usable.
    spread = np.nanstd(resampled, axis=0, ddof=1) if len(resampled) > 1 else np.full(n_cells, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        free_energy = -kt * np.log(probability)
        error = np.where(probability > 0.0, kt * spread / probability, np.nan)
    return probability, free_energy - free_energy.min(), error
