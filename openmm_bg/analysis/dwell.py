"""How long structures stay where they are, from copies of which some never leave.

Copies are watched for a limited time, so that a stay is either seen to end or is *censored*: longer than it was
watched. For exits at a constant rate, d of them in a watched time T of all copies together give the maximum-likelihood
dwell time T / d and, with the quantiles q of chi^2, the 95 % interval

    2 T / q(0.975; 2 d + 2)  to  2 T / q(0.025; 2 d),

infinity where d = 0 (Garwood, Biometrika 28, 437 (1936); Cox and Oakes, Analysis of Survival Data, 1984, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import CensoredData, chi2, ecdf

from openmm_bg.density import FloatArray

_TAIL = 0.025  # on each side of a 95 % interval


@dataclass(frozen=True)
class DwellTime:
    """How long copies of one structure stay. Times are in ps if they come from `judge_novelty`.

    Attributes
    ----------
    times : ndarray, shape (n_copies,)
        Time until each copy left, or for which it was watched.
    left : ndarray of bool, shape (n_copies,)
        Whether it was seen to leave.
    value : float
        Mean dwell time for exits at a constant rate; infinity if no copy left.
    lower, upper : float
        95 % bounds of it.
    """

    times: FloatArray = field(repr=False)
    left: NDArray[np.bool_] = field(repr=False)
    value: float
    lower: float
    upper: float

    @classmethod
    def of(cls, times: ArrayLike, left: ArrayLike) -> Self:
        """Estimate it from times of which those that are not `left` are censored.

        Raises
        ------
        ValueError
            If there are none, or a time is negative or not finite.
        """
        t, ended = np.asarray(times, dtype=np.float64), np.asarray(left, dtype=bool)
        if t.ndim != 1 or t.shape != ended.shape or not len(t) or not (np.isfinite(t) & (t >= 0.0)).all():
            raise ValueError(
                f"times of shape {t.shape} and exits of shape {ended.shape} were given; expected one of each for every "
                "copy, times finite and not negative"
            )
        total, n_left = float(t.sum()), int(ended.sum())
        lower = 2.0 * total / float(chi2.ppf(1.0 - _TAIL, 2 * n_left + 2))
        if n_left == 0:
            return cls(t, ended, math.inf, lower, math.inf)
        return cls(t, ended, total / n_left, lower, 2.0 * total / float(chi2.ppf(_TAIL, 2 * n_left)))

    @property
    def n_left(self) -> int:
        """Number of copies that left."""
        return int(self.left.sum())

    @property
    def watched(self) -> float:
        """The longest time for which a copy stayed or was watched."""
        return float(self.times.max())

    def survival(self) -> tuple[FloatArray, FloatArray]:
        """Return times and the share of copies that stay longer (Kaplan and Meier), whatever the rate does."""
        curve = ecdf(CensoredData.right_censored(self.times, ~self.left)).sf
        return np.asarray(curve.quantiles), np.asarray(curve.probabilities)

    def __str__(self) -> str:
        copies = f"{self.n_left} of {len(self.times)} copies left"
        if self.n_left == 0:
            return f"more than {self.lower:.3g} ps ({copies})"
        return f"{self.value:.3g} ps, 95 % {self.lower:.3g} to {self.upper:.3g} ({copies})"


def dwell_time(
    deviations: Sequence[FloatArray], radius: float, *, interval: float = 1.0, n_sustained: int = 1
) -> DwellTime:
    """Estimate how long copies keep to a structure, from their deviations from it along time.

    A copy leaves when it deviates by more than the radius in so many frames in a row, at the first of them. What begins
    too late to be told from an excursion is not counted, for any copy.

    Parameters
    ----------
    deviations : sequence of ndarray
        Of each copy, at the intervals 1, 2, ... after its start.
    radius : float
        In the unit of the deviations.
    interval : float
        Between frames.
    n_sustained : int
        Frames in a row.

    Returns
    -------
    DwellTime
        In the unit of the interval.

    Raises
    ------
    ValueError
        If no copy is as long as `n_sustained` frames, or this is less than one.
    """
    if n_sustained < 1:
        raise ValueError(f"n_sustained is {n_sustained}; expected 1 or more")
    watched = [np.asarray(copy, dtype=np.float64) for copy in deviations if len(copy) >= n_sustained]
    if not watched:
        raise ValueError(
            f"copies of {[len(copy) for copy in deviations]} frames were given; to tell an exit from an excursion "
            f"takes {n_sustained}"
        )
    stays: list[tuple[float, bool]] = []
    for copy in watched:
        windows = np.lib.stride_tricks.sliding_window_view(copy > radius, n_sustained)
        outside = np.asarray(windows.all(axis=-1))
        # It left between two frames: half an interval before the first one outside.
        stays.append((int(np.argmax(outside)) + 0.5, True) if outside.any() else (float(len(outside)), False))
    times, left = zip(*stays, strict=True)
    return DwellTime.of(interval * np.array(times), left)


def positive(name: str, value: Any, in_unit: Any) -> float:
    """Return a number in the unit given, from a number or a Quantity; ValueError unless it is positive and finite."""
    number = float(value.value_in_unit(in_unit) if hasattr(value, "value_in_unit") else value)
    if not (math.isfinite(number) and number > 0.0):
        raise ValueError(f"{name} is {number}; expected a positive number")
    return number
