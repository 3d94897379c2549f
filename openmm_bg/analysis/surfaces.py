"""Two-dimensional free-energy surfaces with errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

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
    if length is None:
        angles = (np.cos(first), np.sin(first), np.cos(second), np.sin(second))
        length = 1 if weights is not None else max(block_length(series) for series in angles)

    x_edges, y_edges = (np.linspace(low, high, bins + 1) for low, high in ranges)
    column, row = (
        np.searchsorted(edges, values, side="right") - 1 for edges, values in ((x_edges, first), (y_edges, second))
    )
    column[first == x_edges[-1]] = row[second == y_edges[-1]] = bins - 1
    inside = (column >= 0) & (column < bins) & (row >= 0) & (row < bins)
    cell = np.where(inside, column * bins + row, bins * bins)

    def histogram(sample_weights: FloatArray) -> FloatArray:
        counts = np.bincount(cell, weights=sample_weights, minlength=bins * bins + 1)[:-1]
        return counts / counts.sum()

    if not np.sum(w[inside]) > 0.0:
        raise ValueError(f"none of the {len(first)} samples lies on the grid {ranges} with a positive weight")
    probability = histogram(w)
    replicates = np.array(
        [histogram(w * counts) for counts in resample_multiplicities(len(first), length, n_resamples, rng)]
    )
    kt = thermal_energy(temperature)
    with np.errstate(divide="ignore", invalid="ignore"):
        free_energy = -kt * np.log(probability)
        # The error of a logarithm by the delta method: resamples with an empty bin stay usable.
        error = np.where(probability > 0.0, kt * np.nanstd(replicates, axis=0, ddof=1) / probability, np.nan)
    shape = (bins, bins)
    return FreeEnergySurface(
        x_edges,
        y_edges,
        probability.reshape(shape),
        (free_energy - free_energy.min()).reshape(shape),
        error.reshape(shape),
        kt,
    )
