"""How fast side chains change their rotamer, and what can be said of one that hardly moves.

The relaxation time is the integrated autocorrelation time of u = exp(i chi),

    tau = interval (1/2 + sum_t rho(t)),   rho(t) = Re <du*(0) du(t)> / <|du|^2>,

summed up to where the sum over two neighbouring lags first is not positive (Geyer, Statist. Sci. 7, 473 (1992)), with
the error tau sqrt(2 (2 M + 1) / n) for n frames and M lags (Wolff, Comput. Phys. Commun. 156, 143 (2004)). Two
estimates are worth one independent sample if they are 2 tau apart.

A chain that stays in one well has a short autocorrelation time: that of the vibration in the well. So transitions
between rotamers are counted beside it, and the time between them gives bounds. In a chain that draws a rotamer from
its populations p at the rate 1/tau, and in every two-state process, transitions are seen at the rate
(1 - sum p^2) / tau, and a rotamer of population p is entered at the rate p / tau.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from openmm import unit
from scipy.stats import chi2

from openmm_bg.analysis.estimate import Estimate
from openmm_bg.density import FloatArray

Status = Literal["resolved", "too short", "never moved"]

ROTAMER_CENTERS = np.radians([60.0, 180.0, -60.0])  # gauche+, trans, gauche-
_CORE = math.radians(40.0)  # half the width of a core; what lies between the cores is on the way
_FEWEST_TRANSITIONS = 30
_LARGEST_RELATIVE_ERROR = 0.5
_TAIL = 0.025  # on each side of a 95 % interval
_NEVER = -math.log(_TAIL)  # Poisson: no event has a probability of 2.5 % if 3.7 are expected


@dataclass(frozen=True)
class RotamerRelaxation:
    """How fast one side-chain torsion relaxes. Times are in the unit of the interval between frames.

    Attributes
    ----------
    time : Estimate
        Integrated autocorrelation time of exp(i chi). Only with the status "resolved" is it that of the rotamers;
        its error is NaN if the torsion never changed its rotamer.
    lower, upper : float
        95 % bounds of the relaxation time: those of `time` if resolved, else those that the transitions leave, 0 and
        infinity where they leave none.
    n_transitions : int
        Changes of rotamer, from the core of one into the core of another.
    populations : tuple of three float
        Of gauche+ (60 degrees), trans (180) and gauche- (-60), as found along the chain.
    duration : float
        Length of the chain.
    status : str
        "resolved"; "too short" with fewer than 30 transitions, an error of half the time or more, or a rotamer known
        to be populated and never visited; "never moved" without any transition.
    """

    time: Estimate
    lower: float
    upper: float
    n_transitions: int
    populations: tuple[float, float, float]
    duration: float
    status: Status

    @property
    def rate(self) -> Estimate:
        """1 / `time`, the relaxation rate."""
        value, n_effective = self.time.value, self.time.n_effective
        return Estimate(1.0 / value, self.time.error / value**2, n_effective)


def rotamer_relaxation(
    chi: ArrayLike, *, interval: Any = 1.0, populations: ArrayLike | None = None
) -> RotamerRelaxation:
    """Estimate the relaxation time of a side-chain torsion, or bounds of it where it hardly moves.

    Parameters
    ----------
    chi : array_like, shape (n,)
        Radians, along one chain at even intervals; a torsion with wells near 60, 180 and -60 degrees, as chi1.
    interval : float or Quantity
        Between frames; a Quantity is taken in ps, a number in any unit (seconds of wall time, energy evaluations).
    populations : array_like, shape (3,), optional
        Of gauche+, trans and gauche-, known from elsewhere, such as a longer run or the other sampler of a comparison.
        Without them nothing can be said of a torsion that never moves: it may have one rotamer only. They also tell of
        rotamers that the chain should have visited, and give an upper bound to a chain of few transitions.

    Returns
    -------
    RotamerRelaxation

    Raises
    ------
    ValueError
        If the chain is shorter than 10 frames or holds what is not finite, or interval or populations are not positive
        or not a distribution.
    """
    angles = np.asarray(chi, dtype=np.float64)
    if angles.ndim != 1 or len(angles) < 10 or not np.isfinite(angles).all():
        raise ValueError(f"a chain of 10 finite angles or more is needed, found shape {angles.shape} or a NaN in it")
    step = float(interval.value_in_unit(unit.picosecond) if unit.is_quantity(interval) else interval)
    if not (math.isfinite(step) and step > 0.0):
        raise ValueError(f"the interval between frames is {step}; give a positive one")
    labels = assign_rotamers(angles)
    observed = np.bincount(labels, minlength=3) / len(labels)
    known = observed if populations is None else _distribution(populations)
    duration = step * (len(angles) - 1)
    n_transitions = int(np.count_nonzero(labels[1:] != labels[:-1]))
    time = autocorrelation_time(np.exp(1j * angles), step)
    missing = float(known[observed == 0.0].sum()) * duration  # expected visits to the missing rotamers times tau
    if n_transitions == 0:
        status: Status = "never moved"
    elif (
        n_transitions < _FEWEST_TRANSITIONS
        or not time.error < _LARGEST_RELATIVE_ERROR * time.value
        or missing > _NEVER * time.value
    ):
        status = "too short"
    else:
        status = "resolved"
    if status == "resolved":
        factor = math.exp(1.96 * time.error / time.value)
        lower, upper = time.value / factor, time.value * factor
    else:
        fewest, most = _bounds_of_count(n_transitions)
        mixed = float(1.0 - np.sum(known**2)) * duration if n_transitions else 0.0
        lower = max(mixed / most, missing / _NEVER)
        upper = mixed / fewest if populations is not None and fewest > 0.0 and missing == 0.0 else math.inf
    if status == "never moved":
        time = Estimate(time.value, math.nan, time.n_effective)
    gauche_plus, trans, gauche_minus = observed.tolist()
    return RotamerRelaxation(time, lower, upper, n_transitions, (gauche_plus, trans, gauche_minus), duration, status)


def assign_rotamers(chi: ArrayLike) -> NDArray[np.int64]:
    """Return the rotamer of each frame of a chain: 0 for gauche+, 1 for trans, 2 for gauche-.

    A frame belongs to the rotamer within 40 degrees of whose centre the chain was last, so that recrossings of the top
    of a barrier are no transitions; frames before the first such visit belong to the nearest centre.
    """
    angles = np.asarray(chi, dtype=np.float64)
    away = np.abs(np.angle(np.exp(1j * (angles[:, None] - ROTAMER_CENTERS))))
    nearest = away.argmin(axis=1)
    inside = away.min(axis=1) <= _CORE
    last = np.maximum.accumulate(np.where(inside, np.arange(len(angles)), -1))
    return np.asarray(np.where(last >= 0, nearest[last], nearest), dtype=np.int64)


def autocorrelation_time(series: ArrayLike, interval: float = 1.0) -> Estimate:
    """Return the integrated autocorrelation time of a real or complex observable.

    Parameters
    ----------
    series : array_like, shape (n,)
        Along one chain at even intervals.
    interval : float
        Between frames.

    Returns
    -------
    Estimate
        In the unit of the interval; half an interval for independent frames. The error is NaN for a constant series.
    """
    u = np.asarray(series)
    n = len(u)
    deviation = u - u.mean()
    spectrum = np.abs(np.fft.fft(deviation, 2 * n)) ** 2
    covariance = np.fft.ifft(spectrum)[:n].real
    if not covariance[0] > 0.0:
        return Estimate(n * interval / 2.0, math.nan, 1.0)
    correlation = covariance / covariance[0]
    pairs = correlation[: n - n % 2].reshape(-1, 2).sum(axis=1)
    positive = int(np.argmax(pairs <= 0.0)) if np.any(pairs <= 0.0) else len(pairs)
    window = max(1, 2 * positive - 1)
    tau = max(float(np.minimum.accumulate(pairs[:positive]).sum()) - 0.5, 0.5 / n)
    tau *= 1.0 + (2 * window + 1) / n  # the mean was estimated from the same chain
    relative = math.sqrt(2.0 * (2 * window + 1) / n)
    return Estimate(tau * interval, relative * tau * interval, max(1.0, n / (2.0 * tau)))


def relaxation_quantile(relaxations: Sequence[RotamerRelaxation], probability: float) -> tuple[float, float, float]:
    """Return a quantile of the relaxation times of several torsions, with what is known of it.

    Parameters
    ----------
    relaxations : sequence of RotamerRelaxation
    probability : float
        0.5 for the median, 0.9 for the fastest of the slowest tenth.

    Returns
    -------
    value : float
        The quantile; NaN if it depends on torsions whose time is not resolved.
    lower, upper : float
        The same quantile of all lower and all upper bounds: the quantile is between them.
    """
    if not relaxations or not 0.0 <= probability <= 1.0:
        raise ValueError(
            f"the quantile {probability} of {len(relaxations)} torsions was asked for; give some, and 0 to 1"
        )
    resolved = [r.status == "resolved" for r in relaxations]
    least = [r.time.value if known else r.lower for r, known in zip(relaxations, resolved, strict=True)]
    most = [r.time.value if known else r.upper for r, known in zip(relaxations, resolved, strict=True)]

    def quantile(values: list[float]) -> float:
        return float(np.quantile(values, probability, method="higher"))

    value = quantile(least)
    bounds = quantile([r.lower for r in relaxations]), quantile([r.upper for r in relaxations])
    return (value if value == quantile(most) else math.nan, *bounds)


def _distribution(populations: ArrayLike) -> FloatArray:
    p = np.asarray(populations, dtype=np.float64)
    if p.shape != (3,) or not np.all(p >= 0.0) or not abs(p.sum() - 1.0) < 0.01:
        raise ValueError(f"populations are {p}; give those of gauche+, trans and gauche-, of sum one")
    return p / p.sum()


def _bounds_of_count(n_events: int) -> tuple[float, float]:
    """95 % bounds of the expected number of events (Garwood, 1936), taken to come in pairs, there and back."""
    there_and_back = n_events // 2
    fewest = float(chi2.ppf(_TAIL, 2 * there_and_back)) if there_and_back else 0.0
    return fewest, float(chi2.ppf(1.0 - _TAIL, 2 * (math.ceil(n_events / 2) + 1)))
