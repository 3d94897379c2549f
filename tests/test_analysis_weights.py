from __future__ import annotations

import math

import numpy as np
import pytest
from openmm import unit

from openmm_bg.analysis.thermal import thermal_energy
from openmm_bg.analysis.weights import Weights, pareto_k, reweight
from openmm_bg.density import Samples

TEMPERATURE = 300.0
KT = thermal_energy(TEMPERATURE)


class Harmonic:
    """U = kT |x|^2 / 2: one particle, a standard Gaussian at 300 K."""

    def energy(self, positions: np.ndarray) -> np.ndarray:
        return 0.5 * KT * np.sum(positions**2, axis=(1, 2))


class Fixed:
    """Energies decided beforehand."""

    def __init__(self, energies: list[float]) -> None:
        self.energies = np.array(energies)

    def energy(self, positions: np.ndarray) -> np.ndarray:
        return self.energies[: len(positions)]


def gaussian_samples(n: int, sigma: float, seed: int = 0) -> Samples:
    x = np.random.default_rng(seed).normal(scale=sigma, size=(n, 1, 3))
    log_prob = -0.5 * np.sum((x / sigma) ** 2, axis=(1, 2)) - 3 * math.log(sigma * math.sqrt(2 * math.pi))
    return Samples(x, log_prob)


def gaussian_ess_fraction(sigma: float) -> float:
    """E[w]^2 / E[w^2] of three dimensions of width sigma against width 1."""
    return (math.sqrt(2 * sigma**2 - 1) / sigma**2) ** 3


@pytest.mark.parametrize("sigma", [1.0, 1.2, 1.6])
def test_effective_sample_size_of_gaussians_is_the_analytic_one(sigma):
    weights = reweight(gaussian_samples(50_000, sigma), Harmonic(), TEMPERATURE)
    assert weights.ess_fraction == pytest.approx(gaussian_ess_fraction(sigma), rel=0.02)
    assert weights.weights.sum() == pytest.approx(1.0)
    assert weights.largest_weight == pytest.approx(weights.weights.max())


def test_normalisation_is_the_logarithm_of_the_partition_function():
    weights = reweight(gaussian_samples(50_000, 1.3), Harmonic(), TEMPERATURE * unit.kelvin)
    assert weights.log_normalisation == pytest.approx(1.5 * math.log(2 * math.pi), abs=0.02)


def test_reweighted_mean_is_unbiased_and_its_error_covers_the_truth():
    # <x^2> of the target is 1; unweighted it would be 1.69.
    scores = []
    for seed in range(200):
        weights = reweight(gaussian_samples(500, 1.3, seed), Harmonic(), TEMPERATURE)
        estimate = weights.mean(lambda x: x[:, 0, 0] ** 2, rng=seed)
        scores.append((estimate.value - 1.0) / estimate.error)
    assert np.mean(scores) == pytest.approx(0.0, abs=0.35)
    assert np.mean(np.abs(scores) <= 1.0) == pytest.approx(0.683, abs=0.1)


def test_mean_takes_values_as_well_as_a_function():
    samples = gaussian_samples(1000, 1.2)
    weights = reweight(samples, Harmonic(), TEMPERATURE)
    by_function = weights.mean(lambda x: x[:, 0, 1])
    assert weights.mean(samples.positions[:, 0, 1]).value == pytest.approx(by_function.value)


def test_surface_is_the_analytic_free_energy():
    samples = gaussian_samples(200_000, 1.2)
    weights = reweight(samples, Harmonic(), TEMPERATURE)
    x, y = samples.positions[:, 0, 0], samples.positions[:, 0, 1]
    surface = weights.surface(x, y, bins=10, ranges=((-1, 1), (-1, 1)), n_resamples=50)
    centre = 0.5 * (surface.x_edges[1:] + surface.x_edges[:-1])
    truth = 0.5 * KT * (centre[:, None] ** 2 + centre[None, :] ** 2)
    difference = surface.free_energy - truth
    deviation = (difference - np.average(difference, weights=surface.error**-2)) / surface.error
    assert np.sqrt(np.mean(deviation**2)) == pytest.approx(1.0, abs=0.25)


def test_failed_energies_and_samples_off_the_support_weigh_nothing_but_count():
    log_prob = np.array([0.0, 0.0, -np.inf, 0.0])
    positions = np.zeros((4, 1, 3))
    positions[2] = np.nan
    # The potential sees the three supported samples only.
    weights = reweight(Samples(positions, log_prob), Fixed([1.0, np.inf, 1.0]), TEMPERATURE)
    np.testing.assert_allclose(weights.weights, [0.5, 0.0, 0.0, 0.5])
    assert weights.n_zero == 2
    assert weights.ess_fraction == pytest.approx(0.5)
    assert weights.mean(lambda x: np.arange(len(x))).value == pytest.approx(0.5)


def test_weights_are_not_clipped():
    log_weights = np.zeros(1000)
    log_weights[0] = math.log(1e6)
    log_weights -= math.log(np.exp(log_weights).sum())
    weights = Weights(log_weights, TEMPERATURE, np.zeros(1000), np.zeros((1000, 1, 3)))
    assert weights.ess == pytest.approx(1.0, rel=0.01)
    assert weights.largest_weight > 0.99


def test_log_weights_far_apart_do_not_overflow():
    weights = reweight(Samples(np.zeros((3, 1, 3)), np.zeros(3)), Fixed([0.0, 1e6, -1e6]), TEMPERATURE)
    np.testing.assert_allclose(weights.weights, [0.0, 0.0, 1.0])
    assert weights.ess == pytest.approx(1.0)


@pytest.mark.parametrize("k", [0.3, 0.9])
def test_pareto_k_is_that_of_a_pareto_tail(k):
    draws = np.random.default_rng(4).uniform(size=20_000)
    log_weights = -k * np.log(draws)
    weights = Weights(log_weights, TEMPERATURE, np.zeros(20_000), np.zeros((20_000, 1, 3)))
    assert weights.pareto_k == pytest.approx(k, abs=0.12)


@pytest.mark.parametrize("scale", [100.0, 300.0, 1e3, 1e6])
def test_pareto_k_of_weights_beyond_floating_point_is_large(scale):
    """Scaled log weights have a k scaled as much: below the range of floating point and above it."""
    excess = -np.log(np.random.default_rng(4).uniform(size=2000))
    assert pareto_k(scale * excess - 1e7) == pytest.approx(scale, rel=0.35)


def test_pareto_k_of_a_handful_of_weights_is_infinite():
    weights = reweight(Samples(np.zeros((5, 1, 3)), np.zeros(5)), Fixed([1.0, 2, 3, 4, 5]), TEMPERATURE)
    assert weights.pareto_k == math.inf


@pytest.mark.parametrize(
    ("log_prob", "energies", "message"),
    [
        ([0.0], [1.0], "at least two are needed, found 1"),
        ([0.0, math.nan], [1.0, 1.0], "1 of 2 log densities are NaN"),
        ([0.0, math.inf], [1.0, 1.0], "1 of 2 log densities"),
        ([0.0, 0.0], [1.0, math.nan], "1 of 2 energies are NaN or -inf"),
        ([0.0, 0.0], [math.inf, math.inf], "none of the 2 samples has a finite energy"),
        ([-math.inf, -math.inf], [], "none of the 2 samples has a finite energy"),
        ([[0.0], [0.0]], [1.0, 1.0], "one log density a sample"),
    ],
)
def test_samples_that_cannot_be_weighed_are_refused(log_prob, energies, message):
    log_prob = np.array(log_prob)
    with pytest.raises(ValueError, match=message):
        reweight(Samples(np.zeros((len(log_prob), 1, 3)), log_prob), Fixed(energies), TEMPERATURE)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_impossible_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="give a positive one"):
        reweight(gaussian_samples(10, 1.2), Harmonic(), temperature)
