from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.signal import lfilter

from openmm_bg.analysis.estimate import Estimate, agreement, z_score
from openmm_bg.analysis.timeseries import (
    block_length,
    bootstrap_means,
    chain_mean,
    effective_sample_size,
    resample_multiplicities,
    statistical_inefficiency,
)

RHO = 0.9
INEFFICIENCY = (1 + RHO) / (1 - RHO)


def autoregressive(n: int, seed: int, rho: float = RHO) -> np.ndarray:
    """A stationary AR(1) chain of unit variance about zero."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(n) * math.sqrt(1 - rho**2)
    noise[0] = rng.standard_normal()
    return lfilter([1.0], [1.0, -rho], noise)


def coverage(length: int | None, n_repeats: int = 150) -> float:
    """How often the true mean, zero, is within one standard error: 0.683 if errors are right."""
    estimates = [chain_mean(autoregressive(6000, seed), length=length, rng=seed) for seed in range(n_repeats)]
    return float(np.mean([abs(estimate.value) <= estimate.error for estimate in estimates]))


def test_errors_of_correlated_chains_cover_the_true_mean_as_often_as_they_should():
    # Binomial standard deviation of 150 repeats: 0.038.
    assert coverage(None) == pytest.approx(0.683, abs=0.1)


def test_errors_that_ignore_autocorrelation_fail_the_same_check():
    # An error too small by sqrt(19) covers erf(0.229 / sqrt 2) = 18 %.
    assert coverage(1) < 0.3


def test_statistical_inefficiency_of_an_autoregressive_chain_is_the_analytic_one():
    chain = autoregressive(200_000, seed=1)
    assert statistical_inefficiency(chain) == pytest.approx(INEFFICIENCY, rel=0.15)
    assert effective_sample_size(chain) == pytest.approx(200_000 / INEFFICIENCY, rel=0.15)


def test_error_of_a_chain_is_the_analytic_one():
    n = 100_000
    error = chain_mean(autoregressive(n, seed=2)).error
    assert error == pytest.approx(math.sqrt(INEFFICIENCY / n), rel=0.2)


def test_error_of_independent_samples_is_the_standard_error():
    values = np.random.default_rng(3).exponential(size=(2000, 2))
    errors = bootstrap_means(values, n_resamples=1000).std(axis=0)
    np.testing.assert_allclose(errors, values.std(axis=0) / math.sqrt(2000), rtol=0.1)


def test_resamples_are_made_of_whole_circular_blocks():
    for counts in resample_multiplicities(12, 4, 50, rng=0):
        assert counts.sum() == 12
        chosen = np.flatnonzero(counts > 0)
        starts = np.flatnonzero((counts > 0) & (np.roll(counts, 1) < counts))
        assert len(chosen) >= 4
        assert len(starts) <= 3
    singles = np.mean(list(resample_multiplicities(12, 4, 5000, rng=1)), axis=0)
    np.testing.assert_allclose(singles, 1.0, atol=0.1)


def test_block_never_exceeds_a_tenth_of_the_chain():
    assert block_length(np.linspace(0.0, 1.0, 200)) == 20


def test_chain_that_never_moves_has_an_unknown_error():
    estimate = chain_mean(np.zeros(100))
    assert estimate.value == 0.0
    assert math.isnan(estimate.error)
    assert statistical_inefficiency(np.zeros(100)) == 100.0


@pytest.mark.parametrize(
    ("series", "message"),
    [([1.0], "at least two"), (np.zeros((3, 2)), "at least two"), ([1.0, math.nan, 2.0], "1 of the 3 values")],
)
def test_series_that_cannot_be_used_is_refused(series, message):
    with pytest.raises(ValueError, match=message):
        statistical_inefficiency(series)


def test_block_longer_than_the_chain_is_refused():
    with pytest.raises(ValueError, match="a block of 11 samples was asked of a chain of 10"):
        list(resample_multiplicities(10, 11, 1, rng=0))


def test_z_score_and_agreement():
    assert z_score(Estimate(1.0, 0.3), Estimate(2.0, 0.4)) == pytest.approx(-2.0)
    assert agreement(Estimate(1.0, 0.3), Estimate(1.9, 0.4)) == "agree"
    assert agreement(Estimate(1.0, 0.3), Estimate(2.1, 0.4)) == "disagree"
    assert agreement(Estimate(0.0, math.nan), Estimate(0.02, 0.001)) == "undetermined"


def test_estimate_writes_unknown_errors_as_null():
    assert Estimate(0.5, math.nan).as_json() == {"value": 0.5, "error": None}
