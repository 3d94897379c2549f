from __future__ import annotations

import math

import numpy as np
import pytest
from metrics_fixtures import autoregressive
from openmm import unit

from openmm_bg.analysis import assign_rotamers, autocorrelation_time, relaxation_quantile, rotamer_relaxation
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.rotamers import ROTAMER_CENTERS, RotamerRelaxation

POPULATIONS = np.array([0.1, 0.6, 0.3])
WIDTH = 0.2  # rad, of a well


def jumping(n: int, tau: float, rng: np.random.Generator, width: float = WIDTH) -> np.ndarray:
    """A torsion that draws its rotamer anew at the rate 1 / tau, and is noise within a well."""
    jumps = rng.random(n) < 1.0 - math.exp(-1.0 / tau)
    jumps[0] = True
    drawn = rng.choice(3, size=n, p=POPULATIONS)
    state = drawn[np.maximum.accumulate(np.where(jumps, np.arange(n), 0))]
    return ROTAMER_CENTERS[state] + rng.normal(0.0, width, n)


def analytic_time(tau: float) -> float:
    """Integrated autocorrelation time of exp(i chi) of `jumping`: rho(t) = a exp(-t / tau) for t > 0."""
    shrunk = math.exp(-(WIDTH**2))
    mean = abs(POPULATIONS @ np.exp(1j * ROTAMER_CENTERS)) ** 2
    a = shrunk * (1.0 - mean) / (1.0 - shrunk * mean)
    return 0.5 + a / math.expm1(1.0 / tau)


def scores(rho: float | None, n_repeats: int = 60) -> np.ndarray:
    """Deviation of the autocorrelation time from the analytic one, in standard errors."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(n_repeats):
        if rho is None:
            expected, time = analytic_time(20.0), rotamer_relaxation(jumping(40_000, 20.0, rng)).time
        else:
            expected = 0.5 * (1.0 + rho) / (1.0 - rho)
            time = autocorrelation_time(autoregressive(20_000, rng, rho))
        found.append((time.value - expected) / time.error)
    return np.array(found)


@pytest.mark.parametrize("rho", [0.0, 0.9, 0.97, None])
def test_autocorrelation_time_is_the_analytic_one_within_its_error(rho: float | None) -> None:
    found = scores(rho)
    # The mean of 60 scores of unit variance has a standard deviation of 0.13, their mean square one of 0.18.
    assert abs(found.mean()) < 3.5 * 0.13 * 1.5
    assert np.mean(found**2) < 1.0 + 3.5 * 0.18


def test_time_of_the_angle_itself_fails_the_same_check() -> None:
    """Trans lies on the cut at 180 degrees, where the angle jumps by a turn and its exponential does not."""
    angles = jumping(40_000, 20.0, np.random.default_rng(2))
    wrapped = np.angle(np.exp(1j * angles))
    found = autocorrelation_time(wrapped)
    assert abs(found.value - analytic_time(20.0)) > 8.0 * max(found.error, rotamer_relaxation(angles).time.error)


def test_transitions_are_counted_from_core_to_core() -> None:
    rng = np.random.default_rng(3)
    n, tau, width = 40_000, 50.0, 0.38
    angles = jumping(n, tau, rng, width)
    expected = (n - 1) * (1.0 - math.exp(-1.0 / tau)) * (1.0 - np.sum(POPULATIONS**2))
    found = rotamer_relaxation(angles).n_transitions
    assert abs(found - expected) < 4.0 * math.sqrt(2.0 * expected)
    away = np.abs(np.angle(np.exp(1j * (angles[:, None] - ROTAMER_CENTERS))))
    recrossings = np.count_nonzero(np.diff(away.argmin(axis=1)))
    assert recrossings - expected > 8.0 * math.sqrt(2.0 * expected)


def test_rotamer_on_the_way_is_the_last_core() -> None:
    degrees = [10.0, 70.0, 115.0, 125.0, 60.0, 125.0, 170.0, -179.0, -120.0, -90.0, 359.0, 300.0]
    assert assign_rotamers(np.radians(degrees)).tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_resolved_relaxation_says_so_with_times_in_the_unit_of_the_interval() -> None:
    angles = jumping(40_000, 20.0, np.random.default_rng(4))
    frames = rotamer_relaxation(angles)
    assert frames.status == "resolved"
    assert frames.populations == pytest.approx(POPULATIONS, abs=0.03)
    assert frames.lower < frames.time.value < frames.upper
    picoseconds = rotamer_relaxation(angles, interval=500.0 * unit.femtosecond)
    assert picoseconds.time.value == pytest.approx(0.5 * frames.time.value)
    assert (picoseconds.lower, picoseconds.upper) == pytest.approx((0.5 * frames.lower, 0.5 * frames.upper))
    assert picoseconds.duration == pytest.approx(0.5 * 39_999)
    assert picoseconds.rate.value * picoseconds.time.value == pytest.approx(1.0)
    assert picoseconds.rate.error / picoseconds.rate.value == pytest.approx(frames.time.error / frames.time.value)


@pytest.mark.parametrize("duration_in_times", [0.3, 2.0, 10.0, 30.0, 300.0])
def test_bounds_hold_the_true_time_however_short_the_chain(duration_in_times: float) -> None:
    rng = np.random.default_rng(5)
    n = 2000
    tau = n / duration_in_times
    found = [rotamer_relaxation(jumping(n, tau, rng), populations=POPULATIONS) for _ in range(200)]
    inside = np.mean([each.lower <= tau <= each.upper for each in found])
    assert inside > 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / 200)
    assert all(each.status == "resolved" for each in found) == (duration_in_times == 300.0)
    naive = np.mean([abs(each.time.value - tau) < 1.96 * each.time.error for each in found])
    if duration_in_times <= 2.0:  # the autocorrelation time by itself does not see what did not happen
        assert naive < 0.95 - 8.0 * math.sqrt(0.95 * 0.05 / 200)


def test_a_torsion_that_never_moved_bounds_its_time_only_if_other_rotamers_are_known() -> None:
    angles = math.pi + np.random.default_rng(6).normal(0.0, WIDTH, 3001)
    alone = rotamer_relaxation(angles)
    assert (alone.status, alone.n_transitions, alone.lower, alone.upper) == ("never moved", 0, 0.0, math.inf)
    assert alone.time.value < 1.0
    assert math.isnan(alone.time.error)
    known = rotamer_relaxation(angles, populations=POPULATIONS)
    # Forty percent of the draws would have left: none in 3000 frames has a probability of 2.5 % at this time.
    assert math.exp(-0.4 * 3000 / known.lower) == pytest.approx(0.025)
    assert math.isinf(known.upper)


def test_a_populated_rotamer_that_was_never_visited_leaves_the_chain_too_short() -> None:
    rng = np.random.default_rng(7)
    angles = jumping(40_000, 20.0, rng)
    two = np.where(np.abs(np.degrees(angles)) > 120.0, angles, np.radians(-60.0))  # gauche+ became gauche-
    assert rotamer_relaxation(two).status == "resolved"
    found = rotamer_relaxation(two, populations=POPULATIONS)
    assert found.status == "too short"
    assert found.lower == pytest.approx(0.1 * 39_999 / -math.log(0.025))
    assert math.isinf(found.upper)


def relaxation(status: str, time: float, lower: float, upper: float) -> RotamerRelaxation:
    return RotamerRelaxation(Estimate(time, 1.0), lower, upper, 30, (1.0, 0.0, 0.0), 1.0, status)


def test_quantile_over_torsions_is_known_only_if_unresolved_ones_cannot_change_it() -> None:
    resolved = [relaxation("resolved", time, time - 1.0, time + 1.0) for time in (2.0, 4.0, 6.0)]
    slow = relaxation("never moved", 0.1, 50.0, math.inf)
    assert relaxation_quantile([*resolved, slow, slow], 0.5) == (6.0, 5.0, 7.0)
    value, lower, upper = relaxation_quantile([*resolved, slow, slow], 0.9)
    assert math.isnan(value)
    assert (lower, upper) == (50.0, math.inf)
    unknown = relaxation("never moved", 0.1, 0.0, math.inf)
    value, lower, upper = relaxation_quantile([*resolved, unknown, unknown], 0.5)
    assert math.isnan(value)
    assert (lower, upper) == (1.0, 7.0)
    with pytest.raises(ValueError, match=r"the quantile 0\.5 of 0 torsions"):
        relaxation_quantile([], 0.5)


def test_chains_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ValueError, match="10 finite angles"):
        rotamer_relaxation(np.zeros(9))
    with pytest.raises(ValueError, match="10 finite angles"):
        rotamer_relaxation(np.full(20, np.nan))
    with pytest.raises(ValueError, match=r"the interval between frames is 0\.0"):
        rotamer_relaxation(np.zeros(20), interval=0.0)
    with pytest.raises(ValueError, match="of sum one"):
        rotamer_relaxation(np.zeros(20), populations=(0.5, 0.5))


def test_constant_series_has_no_error() -> None:
    found = autocorrelation_time(np.ones(100))
    assert math.isnan(found.error)
    assert found.n_effective == 1.0
