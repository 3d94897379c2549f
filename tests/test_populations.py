"""Populations of basins: right, with honest errors, and refused where they are not to be believed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import mdtraj
import numpy as np
import pytest
from openmm import unit

from openmm_bg.analysis import Estimate, Populations, Weights, compare_populations, find_basins, populations
from openmm_bg.analysis.membership import assign
from openmm_bg.density import Samples
from openmm_bg.training.data import SimulationCost, TrajectoryData

KT = 2.494338785445972  # kJ/mol at 300 K
NAMES = ["A", "B"]


def two_state_chain(n: int, population: float, persistence: float, rng: np.random.Generator) -> np.ndarray:
    """Label 1 with the given population; correlation between neighbours is `persistence`."""
    uniform = rng.random(n)
    stays = rng.random(n) < persistence
    stays[0] = False
    fresh = (uniform < population).astype(np.int64)
    last_fresh = np.maximum.accumulate(np.where(stays, 0, np.arange(n)))
    return fresh[last_fresh]


def checks(found: Populations) -> dict[str, str]:
    return {check.name: check.status for check in found.verdict.checks}


def coverage(make: Callable[[np.random.Generator], tuple[Estimate, float]], n: int = 200) -> tuple[float, float]:
    """Share of 95 % intervals that hold the truth, and the standardised mean deviation."""
    rng = np.random.default_rng(1)
    z = np.array([(e.value - truth) / e.error for e, truth in (make(rng) for _ in range(n))])
    return float(np.mean(np.abs(z) < 1.96)), float(z.mean() * math.sqrt(n))


@pytest.mark.parametrize("n_chains", [1, 2, 5])
def test_errors_of_correlated_chains_are_calibrated(n_chains: int) -> None:
    def make(rng: np.random.Generator) -> tuple[Estimate, float]:
        chains = [two_state_chain(6000 // n_chains, 0.3, 0.8, rng) for _ in range(n_chains)]
        return populations(chains, NAMES, 300.0).populations["B"], 0.3

    share, bias = coverage(make)
    assert 0.90 <= share <= 0.98
    assert abs(bias) < 4.0


def test_errors_of_free_energies_are_calibrated_and_know_the_covariance() -> None:
    truth = -KT * math.log(0.3 / 0.5)

    def make(rng: np.random.Generator) -> tuple[Estimate, float]:
        uniform = rng.random(4000)
        stays = rng.random(4000) < 0.7
        stays[0] = False
        fresh = np.select([uniform < 0.3, uniform < 0.8], [0, 1], 2)
        chain = fresh[np.maximum.accumulate(np.where(stays, 0, np.arange(4000)))]
        return populations(chain, ["a", "b", "c"], 300 * unit.kelvin).difference("a", "b"), truth

    share, bias = coverage(make)
    assert 0.90 <= share <= 0.98
    assert abs(bias) < 4.0


def gaussian_chain(n: int, memory: float, rng: np.random.Generator) -> np.ndarray:
    """A normal, correlated in time: x exactly N(0, 1) at every step."""
    noise = rng.standard_normal(n) * math.sqrt(1.0 - memory**2)
    x = np.empty(n)
    x[0] = rng.standard_normal()
    for i in range(1, n):
        x[i] = memory * x[i - 1] + noise[i]
    return x


@pytest.mark.parametrize("memory", [0.0, 0.8], ids=["independent", "correlated"])
def test_weighted_samples_give_the_known_population_with_calibrated_errors(memory: float) -> None:
    # Samples of N(0, 1), weighted for N(0.5, 1): P(x > 1) = 1 - Phi(0.5).
    truth = 0.5 * math.erfc(0.5 / math.sqrt(2.0))

    def make(rng: np.random.Generator) -> tuple[Estimate, float]:
        x = gaussian_chain(4000, memory, rng) if memory else rng.standard_normal(4000)
        found = populations(
            (x > 1.0).astype(np.int64), ["low", "high"], 300.0, weights=np.exp(0.5 * x), independent=not memory
        )
        return found.populations["high"], truth

    share, bias = coverage(make)
    assert 0.90 <= share <= 0.98
    assert abs(bias) < 4.0


def test_an_error_that_takes_correlated_samples_for_independent_is_caught() -> None:
    def make(rng: np.random.Generator) -> tuple[Estimate, float]:
        chain = two_state_chain(6000, 0.3, 0.9, rng)
        return populations(chain, NAMES, 300.0, independent=True).populations["B"], 0.3

    assert coverage(make)[0] < 0.75  # 19 samples are worth one: intervals are four times too narrow


def test_population_without_the_weights_is_far_off() -> None:
    x = np.random.default_rng(3).standard_normal(20_000)
    inside, truth = (x > 1.0).astype(np.int64), 0.5 * math.erfc(0.5 / math.sqrt(2.0))
    right = populations(inside, NAMES, 300.0, weights=np.exp(0.5 * x), independent=True).populations["B"]
    wrong = populations(inside, NAMES, 300.0, independent=True).populations["B"]
    assert abs(right.value - truth) < 4.0 * right.error
    assert abs(wrong.value - truth) > 8.0 * wrong.error


def test_reweighted_samples_bring_weights_and_temperature() -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((5000, 1, 3))
    log_w = 0.5 * x[:, 0, 0]
    log_w -= np.log(np.exp(log_w).sum())
    weights = Weights(log_w, 310.0, np.zeros(5000), x)
    found = populations(weights, {"high": lambda p: p[:, 0, 0] > 1.0, "low": lambda p: p[:, 0, 0] <= 1.0})
    assert found.temperature == 310.0
    assert found.independent
    assert found.populations["high"].value == pytest.approx(float(weights.weights @ (x[:, 0, 0] > 1.0)))
    assert found.populations["high"].error == pytest.approx(weights.mean(x[:, 0, 0] > 1.0).error, rel=0.2)
    with pytest.raises(ValueError, match="bring their own"):
        populations(weights, {"high": lambda p: p[:, 0, 0] > 1.0}, 300.0)


def test_populations_of_a_partition_sum_to_one_and_free_energies_are_consistent() -> None:
    labels = np.random.default_rng(5).integers(0, 3, 3000)
    found = populations(labels, ["a", "b", "c"], 300.0)
    assert sum(e.value for e in found.populations.values()) == pytest.approx(1.0)
    a, b = found.difference("a", "b"), found.difference("b", "a")
    assert a.value == pytest.approx(-b.value)
    assert a.error == pytest.approx(b.error, rel=1e-6)
    p = found.populations["c"]
    assert found.against_the_rest("c").value == pytest.approx(-KT * math.log(p.value / (1.0 - p.value)))
    assert found.against_the_rest("c").error == pytest.approx(KT * p.error / (p.value * (1.0 - p.value)), rel=0.1)
    assert min(e.value for e in found.free_energies.values()) == 0.0
    frame = found.to_dataframe()
    assert list(frame.index) == ["a", "b", "c"]
    assert frame.loc["a", "population"] == found.populations["a"].value
    assert str(found).endswith(found.verdict.sentence)
    assert json.loads(found.to_json())["verdict"] == found.verdict.answer == "believe"


def test_two_chains_stuck_in_different_basins_have_a_large_error_and_are_refused() -> None:
    found = populations([np.zeros(500, dtype=int), np.ones(500, dtype=int)], NAMES, 300.0)
    assert found.populations["A"].error == pytest.approx(0.5)
    assert found.verdict.refused


def test_a_basin_that_was_never_sampled_is_refused() -> None:
    found = populations(np.random.default_rng(0).integers(0, 2, 2000), ["A", "B", "lost"], 300.0)
    assert checks(found)["no basin lost"] == "bad"
    assert found.verdict.refused
    assert "lost" in found.verdict.checks[0].text
    assert math.isinf(found.difference("lost", "A").value)
    assert math.isnan(found.difference("lost", "A").error)
    assert found.as_json()["populations"]["lost"] == {"value": 0.0, "error": None}


def test_a_chain_that_never_left_its_basin_has_no_error() -> None:
    found = populations(np.zeros(100, dtype=int), NAMES, 300.0)
    assert math.isnan(found.populations["A"].error)
    assert found.verdict.refused


def drifting(rng: np.random.Generator, drift: float) -> np.ndarray:
    parts = [two_state_chain(500, 0.4 + drift * (i / 7 - 0.5), 0.8, rng) for i in range(8)]
    return np.concatenate(parts)


def test_drift_is_refused_and_its_absence_seldom_so() -> None:
    rng = np.random.default_rng(6)
    status = [checks(populations(drifting(rng, 0.0), NAMES, 300.0))["both halves agree"] for _ in range(100)]
    assert status.count("bad") == 0
    assert status.count("warning") <= 6
    assert all(populations(drifting(rng, 0.8), NAMES, 300.0).verdict.refused for _ in range(10))


def test_chains_that_sample_different_ensembles_are_refused() -> None:
    rng = np.random.default_rng(7)
    same = [two_state_chain(2000, 0.3, 0.5, rng) for _ in range(4)]
    assert populations(same, NAMES, 300.0).verdict.answer == "believe"
    other = populations([*same[:3], two_state_chain(2000, 0.5, 0.5, rng)], NAMES, 300.0)
    assert checks(other)["chains agree"] == "bad"


def test_few_entries_are_pointed_out() -> None:
    chain = np.zeros(3000, dtype=int)
    chain[1000:1020] = chain[2000:2020] = 1
    found = populations(chain, NAMES, 300.0)
    assert checks(found)["entries"] == "bad"
    assert "2 times" in next(check.text for check in found.verdict.checks if check.name == "entries")


def test_heavy_tailed_weights_are_refused() -> None:
    rng = np.random.default_rng(8)
    w = (1.0 - rng.random(5000)) ** -0.9  # Pareto, k = 0.9
    found = populations(rng.integers(0, 2, 5000), NAMES, 300.0, weights=w, independent=True)
    assert checks(found)["tail of the weights"] == "bad"
    assert found.verdict.refused


def test_convergence_ends_where_the_whole_begins() -> None:
    chain = two_state_chain(2000, 0.3, 0.5, np.random.default_rng(9))
    found = populations(chain, NAMES, 300.0)
    convergence = found.convergence(5)
    assert convergence.fraction.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert convergence.forward["B"][-1] == convergence.backward["B"][-1] == found.populations["B"]
    assert convergence.forward["B"][0].value == chain[:400].mean()
    assert convergence.backward["B"][0].value == chain[1600:].mean()
    assert convergence.forward["B"][0].error > convergence.forward["B"][-1].error


def test_methods_that_agree_are_believed_and_those_that_differ_are_not() -> None:
    rng = np.random.default_rng(10)
    first = populations(two_state_chain(4000, 0.3, 0.5, rng), NAMES, 300.0)
    second = populations((rng.random(2000) < 0.3).astype(np.int64), NAMES, 300.0, independent=True)
    assert compare_populations({"chain": first, "draws": second}).answer == "believe"
    elsewhere = {"A": Estimate(0.5, 0.01), "B": Estimate(0.5, 0.01)}
    verdict = compare_populations({"chain": first, "published": elsewhere})
    assert verdict.refused
    assert verdict.named("bad") == ["methods agree"]


def test_a_basin_that_one_method_lost_is_refused_although_the_rest_agrees() -> None:
    rng = np.random.default_rng(11)
    names = ["A", "B", "C"]
    all_three = populations(rng.choice(3, 4000, p=[0.6, 0.39, 0.01]), names, 300.0)
    without = {"A": Estimate(0.6, 0.1), "B": Estimate(0.4, 0.1), "C": Estimate(0.0, math.nan)}
    verdict = compare_populations({"chain": all_three, "generator": without})
    assert "basins of all methods" in verdict.named("bad")
    assert "C has" in verdict.checks[0].text
    assert "generator" in verdict.checks[0].text


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.zeros((5, 3)), NAMES, 300.0), {}, "labels"),
        ((np.zeros(5), NAMES, 300.0), {}, "integer labels"),
        ((np.array([0]), NAMES, 300.0), {}, "two or more"),
        ((np.array([0, 2]), NAMES, 300.0), {}, "there are 2 names"),
        ((np.array([0, 1]), NAMES), {}, "temperature"),
        ((np.array([0, 1]), NAMES, -1.0), {}, "temperature"),
        ((np.array([0, 1]), [], 300.0), {}, "at least one"),
        ((np.array([0, 1]), ["A", "A"], 300.0), {}, "a name of its own"),
        ((np.array([0, 1]), NAMES, 300.0), {"weights": [1.0, -1.0]}, "non-negative"),
        ((np.array([0, 1]), NAMES, 300.0), {"weights": [1.0, np.nan]}, "finite"),
        ((np.array([0, 1]), NAMES, 300.0), {"weights": [1.0]}, "one finite"),
        ((np.array([0, 1]), NAMES, 300.0), {"weights": [0.0, 0.0]}, "all weights are zero"),
        (([np.array([0, 1])] * 2, NAMES, 300.0), {"weights": [[1.0, 1.0]]}, "one for each chain"),
        ((np.zeros((5, 2)), {"A": lambda x: x[:, 0, 0] > 0}, 300.0), {}, "n_atoms, 3"),
    ],
)
def test_bad_input_is_refused_with_a_reason(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        populations(*arguments, **options)


def test_basins_that_overlap_or_are_not_boolean_are_refused() -> None:
    x = np.random.default_rng(0).normal(size=(10, 2, 3))
    with pytest.raises(ValueError, match="must not overlap"):
        assign(x, {"all": lambda p: np.ones(len(p), dtype=bool), "some": lambda p: p[:, 0, 0] > 0})
    with pytest.raises(ValueError, match="one boolean"):
        assign(x, {"number": lambda p: p[:, 0, 0]})
    outside = assign(x * unit.nanometer, {"right": lambda p: p[:, 0, 0] > 0.0})
    assert outside.tolist() == [0 if inside else -1 for inside in x[:, 0, 0] > 0.0]


def test_chains_come_as_arrays_quantities_and_trajectories() -> None:
    x = np.random.default_rng(0).normal(size=(2, 50, 1, 3)).astype(np.float32).astype(np.float64)
    basins = {"right": lambda p: p[:, 0, 0] > 0.0}
    topology = mdtraj.Topology()
    topology.add_atom("A", mdtraj.element.carbon, topology.add_residue("R", topology.add_chain()))
    data = TrajectoryData(x, np.zeros((2, 50)), 310.0, SimulationCost(1.0, 100, "Reference"))
    for samples in (list(x), x, [chain * unit.nanometer for chain in x], [mdtraj.Trajectory(c, topology) for c in x]):
        found = populations(samples, basins, 300.0)
        assert len(found.labels) == 2
        assert found.populations["right"].value == pytest.approx(np.mean(x[..., 0, 0] > 0.0))
    assert populations(data, basins).temperature == 310.0
    with pytest.raises(ValueError, match="follow the generator"):
        populations(Samples(x[0], np.zeros(50)), basins, 300.0)


def test_positions_of_samples_without_weight_are_not_looked_at() -> None:
    x = np.random.default_rng(0).normal(size=(10, 1, 3))
    x[3] = np.nan
    w = np.ones(10)
    w[3] = 0.0

    def right(p: np.ndarray) -> np.ndarray:
        assert np.isfinite(p).all()
        return p[:, 0, 0] > 0.0

    found = populations(x, {"right": right}, 300.0, weights=w, independent=True)
    assert found.populations["right"].value == pytest.approx(np.mean(np.delete(x[:, 0, 0], 3) > 0.0))


def double_well(n: int, rng: np.random.Generator) -> np.ndarray:
    """Overdamped dynamics in V = 3 (x^2 - 1)^2 + x / 2 + 2 y^2, kT = 1, in two dimensions."""
    step = 0.005
    noise = rng.standard_normal((n, 2)) * math.sqrt(2.0 * step)
    path = np.empty((n, 2))
    x, y = -1.0, 0.0
    for i in range(n):
        x += -step * (12.0 * x * (x * x - 1.0) + 0.5) + noise[i, 0]
        y += -step * 4.0 * y + noise[i, 1]
        path[i] = x, y
    return path


@pytest.fixture(scope="module")
def well_path() -> np.ndarray:
    pytest.importorskip("deeptime", reason="deeptime is not installed (pip install 'openmm-bg[analysis]')")
    return double_well(200_000, np.random.default_rng(12))[::5]


def test_found_basins_are_the_wells_and_their_populations_those_of_quadrature(well_path: np.ndarray) -> None:
    found = find_basins([well_path[:20_000], well_path[20_000:]], 2, lagtime=20, n_microstates=50)
    labels = found.assign(well_path)
    deep = np.abs(np.abs(well_path[:, 0]) - 1.0) < 0.3
    assert np.mean((labels == 0)[deep] == (well_path[:, 0] < 0.0)[deep]) > 0.999
    x = np.linspace(-3.0, 3.0, 6001)
    density = np.exp(-3.0 * (x**2 - 1.0) ** 2 - 0.5 * x)
    truth = density[x < 0.0].sum() / density.sum()
    estimate = populations(labels, found.names, 300.0).populations["basin 1"]
    assert abs(estimate.value - truth) < 3.5 * estimate.error + 0.005  # where exactly the wells part: 0.5 %
    assert found.populations[0] == pytest.approx(estimate.value, abs=0.03)


def test_found_basins_are_functions_of_positions_too(well_path: np.ndarray) -> None:
    found = find_basins(well_path, 2, lagtime=20, n_microstates=50)
    positions = np.concatenate([well_path[:100], np.zeros((100, 1))], axis=1)[:, None, :]
    labels = assign(positions, found.masks(lambda p: p[:, 0, :2]))
    assert labels.tolist() == found.assign(well_path[:100]).tolist()


def test_basins_that_no_chain_connects_are_not_found(well_path: np.ndarray) -> None:
    rng = np.random.default_rng(13)
    chains = [rng.normal(center, 0.1, (500, 2)) for center in (-1.0, 1.0)]
    with pytest.raises(ValueError, match="did not both enter and leave"):
        find_basins(chains, 2, n_microstates=20)
    with pytest.raises(ValueError, match="lag time"):
        find_basins(well_path[:10], 2, lagtime=10)
    with pytest.raises(ValueError, match="two basins"):
        find_basins(well_path, 1)


def test_without_deeptime_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "deeptime.clustering", None)
    with pytest.raises(ImportError, match=r"openmm-bg\[analysis\]"):
        find_basins(np.zeros((10, 2)), 2, n_microstates=2)
