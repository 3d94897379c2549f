from __future__ import annotations

import math

import numpy as np
import pytest
from metrics_fixtures import autoregressive
from openmm import unit
from scipy.stats import norm

from openmm_bg.analysis import compare_energies, energy_quantiles
from openmm_bg.analysis.energy_quantiles import PROBABILITIES


def scores(weights: np.ndarray | None, n_repeats: int = 30) -> np.ndarray:
    """Deviation of quantiles from the normal distribution's, in standard errors, of correlated chains."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(n_repeats):
        quantiles = energy_quantiles(autoregressive(4000, rng), weights=weights, probabilities=(0.25, 0.75), rng=rng)
        found += [(q.value - norm.ppf(p)) / q.error for q, p in zip(quantiles, (0.25, 0.75), strict=True)]
    return np.array(found)


def test_quantiles_of_a_chain_are_the_analytic_ones_within_errors_that_cover_them() -> None:
    # 60 scores, of which two of one chain are correlated: the mean square is 1 with a standard deviation below 0.26.
    assert 0.4 < np.mean(scores(None) ** 2) < 1.0 + 3.5 * 0.26


def test_quantiles_with_errors_that_ignore_correlation_fail_the_same_check() -> None:
    assert np.mean(scores(np.ones(4000)) ** 2) > 1.0 + 8.0 * 0.26


def test_weighted_quantiles_are_those_of_the_target() -> None:
    energies = np.random.default_rng(2).standard_normal(20_000)
    weighted = energy_quantiles(energies, weights=np.exp(energies))  # a normal distribution about 1
    plain = energy_quantiles(energies)
    for probability, found, without in zip(PROBABILITIES, weighted, plain, strict=True):
        expected = 1.0 + norm.ppf(probability)
        assert abs(found.value - expected) < 4.0 * found.error
        assert abs(without.value - expected) > 8.0 * without.error
    assert weighted[0].n_effective == pytest.approx(20_000 / math.e, rel=0.1)


def test_quantiles_without_ties_are_order_statistics() -> None:
    energies = np.arange(10.0)[::-1]
    found = energy_quantiles(energies * unit.kilocalorie_per_mole, probabilities=(0.0, 0.1, 0.5, 1.0))
    assert [q.value / 4.184 for q in found] == pytest.approx([0.0, 0.0, 4.0, 9.0])


def test_distance_of_shifted_distributions_is_the_shift() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = rng.normal(0.5, 1.0, 10_000), rng.standard_normal(10_000)
    found = compare_energies(ours, theirs)
    assert abs(found.wasserstein.value - 0.5) < 3.5 * found.wasserstein.error
    assert found.wasserstein.error == pytest.approx(math.sqrt(2.0 / 10_000), rel=0.3)
    assert found.floor.value < 0.1
    assert found.reference[3].value == pytest.approx(np.median(theirs), abs=1e-3)


def test_energies_without_a_value_count_as_infinite() -> None:
    energies = np.append(np.random.default_rng(4).standard_normal(95), np.full(5, np.inf))
    found = energy_quantiles(energies, probabilities=(0.5, 0.99))
    assert abs(found[0].value) < 0.5
    assert found[0].error > 0.0
    assert math.isinf(found[1].value)
    assert math.isnan(found[1].error)
    compared = compare_energies(energies, energies[:95])
    assert math.isinf(compared.wasserstein.value)
    assert compared.floor.value < 1.0


def test_energies_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ValueError, match="4 energies that count were given, 1 of them NaN"):
        energy_quantiles([1.0, 2.0, math.nan, 4.0])
    with pytest.raises(ValueError, match="one a frame is needed"):
        energy_quantiles(np.ones((3, 4)))
    with pytest.raises(ValueError, match="give probabilities from 0 to 1"):
        energy_quantiles(np.arange(5.0), probabilities=(50.0,))
    with pytest.raises(ValueError, match="give one for each"):
        energy_quantiles(np.arange(5.0), weights=np.ones(4))
