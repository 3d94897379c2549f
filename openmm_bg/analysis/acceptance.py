"""Fractions of proposals accepted, with errors that know of waits."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmm_bg.analysis.basins import BASIN_NAMES
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.timeseries import bootstrap_means, statistical_inefficiency

_BLOCK_IN_INEFFICIENCIES = 5.0
_BLOCK_IN_WAITS = 3
_FEWEST_BLOCKS = 10


def fraction_accepted(
    accepted: ArrayLike,
    *,
    among: ArrayLike | None = None,
    length: int = 1,
    rng: np.random.Generator | int | None = 0,
) -> Estimate:
    """Return the fraction of proposals accepted along a chain.

    Parameters
    ----------
    accepted : array_like of bool, shape (n,)
        Whether each proposal was accepted, in the order of the chain.
    among : array_like of bool, shape (n,), optional
        The proposals that count; by default all.
    length : int
        Least length of the bootstrap's blocks: the number of proposals in a scan, say, which share a starting state.

    Returns
    -------
    Estimate
        `n_effective` holds the number of proposals that count. The error comes from a circular block bootstrap whose
        blocks are as long as `length`, five statistical inefficiencies and three times the longest wait, whichever is
        longest. It is NaN where fewer than ten such blocks hold a proposal that counts, and for a fraction of exactly
        0 or 1, whose spread says nothing.

    Raises
    ------
    ValueError
        If the shapes differ or no proposal counts.
    """
    outcome = np.asarray(accepted, dtype=bool)
    counted = np.ones(len(outcome), dtype=bool) if among is None else np.asarray(among, dtype=bool)
    if outcome.ndim != 1 or outcome.shape != counted.shape:
        raise ValueError(f"one outcome a proposal is needed, found shapes {outcome.shape} and {counted.shape}")
    n_counted = int(counted.sum())
    if n_counted == 0:
        raise ValueError("no proposal counts, so there is no fraction of them")
    value = float(outcome[counted].mean())
    unknown = Estimate(value, math.nan, float(n_counted))
    if value in (0.0, 1.0):
        return unknown
    inefficiency = statistical_inefficiency(np.where(counted, outcome - value, 0.0))
    wait = longest_run(counted & ~outcome)
    block = max(length, math.ceil(_BLOCK_IN_INEFFICIENCIES * inefficiency), _BLOCK_IN_WAITS * wait)
    if len(np.unique(np.flatnonzero(counted) // block)) < _FEWEST_BLOCKS:
        return unknown
    replicates = bootstrap_means(outcome, weights=counted, length=block, rng=rng)
    return Estimate(value, float(np.nanstd(replicates, ddof=1)), float(n_counted))


def acceptance_by_basin(
    origin: ArrayLike,
    accepted: ArrayLike,
    *,
    length: int = 1,
    rng: np.random.Generator | int | None = 0,
) -> dict[str, Estimate]:
    """Return the fraction of proposals accepted from each basin.

    Parameters
    ----------
    origin : array_like of int, shape (n,)
        Basin (`assign_basins`) of the state that each proposal was to replace, in the order of the chain.
    accepted : array_like of bool, shape (n,)
        Whether it was accepted.
    length : int
        As in `fraction_accepted`.

    Returns
    -------
    dict of str to Estimate
        As of `fraction_accepted`; only basins from which a proposal was made.
    """
    labels, outcome = np.asarray(origin), np.asarray(accepted, dtype=bool)
    if labels.ndim != 1 or labels.shape != outcome.shape:
        raise ValueError(f"one origin and one outcome a proposal are needed, found {labels.shape} and {outcome.shape}")
    return {
        name: fraction_accepted(outcome, among=labels == index, length=length, rng=rng)
        for index, name in enumerate(BASIN_NAMES)
        if np.any(labels == index)
    }


def longest_run(happens: NDArray[np.bool_]) -> int:
    """Return how often at most something happens in a row, from a bool a step."""
    borders = np.concatenate([[-1], np.flatnonzero(~happens), [len(happens)]])
    return int(np.diff(borders).max()) - 1
