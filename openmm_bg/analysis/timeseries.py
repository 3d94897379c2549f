"""Errors of averages over correlated chains.

The statistical inefficiency g = 1 + 2 tau is the number of consecutive samples that are worth one independent
sample (Chodera et al., J. Chem. Theory Comput. 3, 26 (2007)); errors come from a circular block bootstrap
(Politis and Romano, 1992) whose blocks are several g long.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmm_bg.analysis.estimate import Estimate
from openmm_bg.density import FloatArray

# The variance of the mean of blocks of length L is too small by a fraction of about g / 2L.
_BLOCKS_IN_INEFFICIENCIES = 5.0
_MINIMUM_BLOCKS = 10
# pymbar's fast estimate skips lags and is high by some 20 %; the full one costs a pass over the chain for each lag.
_FINE_BELOW = 100.0
N_RESAMPLES = 200


@contextmanager
def quiet_pymbar() -> Iterator[None]:
    """Hold back what pymbar logs on import: advice on JAX and on time series, repeated in every process."""
    loggers = [logging.getLogger(name) for name in ("pymbar", "pymbar.timeseries", "pymbar.mbar_solvers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def statistical_inefficiency(series: ArrayLike) -> float:
    """Return g >= 1, the number of consecutive samples worth one independent sample.

    Parameters
    ----------
    series : array_like, shape (n,)
        One observable along a chain, in the order in which it was sampled.

    Returns
    -------
    float
        g as estimated by pymbar. A constant series, from which no correlation time can be estimated, gives n: it
        counts as one sample.

    Raises
    ------
    ValueError
        If the series is not one-dimensional, has fewer than two values or holds a value that is not finite.
    """
    values = _checked_series(series)
    if np.all(values == values[0]):
        return float(len(values))
    with quiet_pymbar():
        from pymbar.timeseries import statistical_inefficiency as pymbar_statistical_inefficiency
    g = float(pymbar_statistical_inefficiency(values, fast=True))
    if g < _FINE_BELOW:
        g = float(pymbar_statistical_inefficiency(values, fast=False))
    return min(float(len(values)), g)


def effective_sample_size(series: ArrayLike) -> float:
    """Return the number of independent samples that a chain of one observable is worth, n / g."""
    values = _checked_series(series)
    return len(values) / statistical_inefficiency(values)


def block_length(series: ArrayLike) -> int:
    """Return a block length for the bootstrap of a chain: five statistical inefficiencies, at most a tenth of it."""
    values = _checked_series(series)
    return _block_length(len(values), statistical_inefficiency(values))


def _block_length(n_samples: int, inefficiency: float) -> int:
    return max(1, min(math.ceil(_BLOCKS_IN_INEFFICIENCIES * inefficiency), n_samples // _MINIMUM_BLOCKS))


def resample_multiplicities(
    n_samples: int, length: int, n_resamples: int, rng: np.random.Generator | int | None
) -> Iterator[NDArray[np.int64]]:
    """Yield how often each sample occurs in each circular block-bootstrap resample of a chain.

    Parameters
    ----------
    n_samples : int
        Length of the chain.
    length : int
        Length of a block; 1 for independent samples.
    n_resamples : int
        Number of resamples.
    rng : Generator, int or None
        Source of random numbers, or its seed.

    Yields
    ------
    ndarray, shape (n_samples,), int64
    """
    for starts in _block_starts(n_samples, length, n_resamples, rng):
        counts = np.bincount(starts, minlength=n_samples)
        running = np.cumsum(np.concatenate([counts, counts]))
        yield running[n_samples:] - running[n_samples - length : 2 * n_samples - length]


def _block_starts(
    n_samples: int, length: int, n_resamples: int, rng: np.random.Generator | int | None
) -> Iterator[NDArray[np.int64]]:
    """First samples of the blocks of each resample."""
    if not 1 <= length <= n_samples:
        raise ValueError(f"a block of {length} samples was asked of a chain of {n_samples}; give 1 to {n_samples}")
    generator = np.random.default_rng(rng)
    for _ in range(n_resamples):
        yield generator.integers(n_samples, size=math.ceil(n_samples / length))


def bootstrap_means(
    values: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    length: int = 1,
    n_resamples: int = N_RESAMPLES,
    rng: np.random.Generator | int | None = 0,
) -> FloatArray:
    """Return bootstrap replicates of the (weighted) mean of one or several observables.

    Parameters
    ----------
    values : array_like, shape (n,) or (n, m)
        Observables.
    weights : array_like, shape (n,), optional
        Non-negative weights of any normalisation; the mean is sum(w f) / sum(w).
    length : int
        Length of the blocks, 1 for independent samples.

    Returns
    -------
    ndarray, shape (n_resamples,) or (n_resamples, m)
        NaN for a resample whose weights are all zero.
    """
    observables = np.asarray(values, dtype=np.float64)
    n_samples = len(observables)
    w = np.ones(n_samples) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (n_samples,):
        raise ValueError(f"weights of shape {w.shape} were given for {n_samples} samples; give one for each")
    # Sums over the circular block that begins at each sample; a resample is a choice of blocks.
    terms = np.column_stack([w, w[:, None] * observables.reshape(n_samples, -1)])
    running = np.cumsum(np.concatenate([np.zeros_like(terms[:1]), terms, terms[: length - 1]]), axis=0)
    blocks = running[length:] - running[:-length] if length > 1 else terms
    replicates = np.full((n_resamples, terms.shape[1] - 1), np.nan)
    for index, starts in enumerate(_block_starts(n_samples, length, n_resamples, rng)):
        total, *sums = blocks[starts].sum(axis=0)
        if total > 0.0:
            replicates[index] = np.array(sums) / total
    return replicates.reshape(n_resamples, *observables.shape[1:])


def chain_mean(series: ArrayLike, *, length: int | None = None, rng: np.random.Generator | int | None = 0) -> Estimate:
    """Return the mean of an observable along a correlated chain with its block-bootstrap error.

    Parameters
    ----------
    series : array_like, shape (n,)
        One observable along a chain.
    length : int, optional
        Length of the blocks; by default five statistical inefficiencies of the series.

    Returns
    -------
    Estimate
        The error is the larger of the bootstrap's and that from the statistical inefficiency, sigma sqrt(g / n), for
        each can be low by chance on a short chain. It is NaN for a chain on which the observable never changed.
    """
    values = _checked_series(series)
    if np.all(values == values[0]):
        return Estimate(float(values[0]), math.nan, 1.0)
    inefficiency = statistical_inefficiency(values) if length is None else float(length)
    blocks = _block_length(len(values), inefficiency) if length is None else length
    n_effective = len(values) / inefficiency
    by_blocks = float(bootstrap_means(values, length=blocks, rng=rng).std(ddof=1))
    by_inefficiency = float(values.std()) / math.sqrt(n_effective) if length is None else 0.0
    return Estimate(float(values.mean()), max(by_blocks, by_inefficiency), n_effective)


def _checked_series(series: ArrayLike) -> FloatArray:
    values = np.asarray(series, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"a chain of at least two numbers is needed, found an array of shape {values.shape}")
    n_bad = int(np.count_nonzero(~np.isfinite(values)))
    if n_bad:
        raise ValueError(f"{n_bad} of the {len(values)} values of the chain are not finite; remove or repair them")
    return values
