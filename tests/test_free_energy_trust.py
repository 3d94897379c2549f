"""Bad input is refused or flagged, and bad estimates are refused by the verdict."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import openmm
import pytest
import torch
from exactness_fixtures import BENT, BUTANE, FREE_ANGLE, RIGID_TRIMER, shifted
from free_energy_fixtures import Oscillator, exact_samples, line_oscillators
from small_molecules import TEMPERATURE

from openmm_bg import EnergyState, GeneratorState, ReducedEnergies, Samples, SystemPotential, free_energy
from openmm_bg.analysis import evaluate
from openmm_bg.analysis.checks import Check
from openmm_bg.analysis.free_energy_result import FreeEnergyResult
from openmm_bg.testing import GaussianDensity


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check(result: FreeEnergyResult, name: str) -> Check:
    return next(check for check in result.verdict.checks if check.name == name)


def arrays(n_k: list[int], seed: int = 0) -> ReducedEnergies:
    return line_oscillators([1.0] * len(n_k), [0.4 * i for i in range(len(n_k))], n_k, np.random.default_rng(seed))[0]


# ------------------------------------------------------------------------------------------------- the verdict refuses


def test_a_sound_estimate_is_believed() -> None:
    result = free_energy(arrays([1000, 1000, 1000]), n_bootstrap=0)
    assert result.verdict.answer == "believe"
    assert all(check.status == "good" for check in result.verdict.checks)


def test_poor_overlap_is_refused_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    energies, _, _ = line_oscillators([1, 1], [0.0, 7.0], [2000, 2000], np.random.default_rng(1))
    with caplog.at_level(logging.WARNING, logger="openmm_bg"):
        result = free_energy(energies, n_bootstrap=0)
    assert result.verdict.refused
    assert check(result, "overlap").status == "bad"
    assert "Do not believe these numbers" in caplog.text
    assert "overlap" in caplog.text
    assert "Do not believe" in str(result)
    assert result.as_json()["verdict"] == "do not believe"


def test_a_heavy_tail_of_the_weights_is_refused() -> None:
    # Samples of a narrow well for a wide one: the weights have no variance.
    energies, _, _ = line_oscillators([10, 1], [0.0, 0.0], [3000, 0], np.random.default_rng(2))
    result = free_energy(energies, n_bootstrap=0)
    assert result.pareto_k[1] > 0.7
    assert check(result, "tail of the weights").status == "bad"
    assert result.verdict.refused


def test_drift_is_refused() -> None:
    energies, _, x = line_oscillators([1, 1], [0.0, 0.5], [2000, 2000], np.random.default_rng(3))
    x[3000:] += 0.6  # the second chain has not arrived yet
    drifting = replace(energies, u_kn=0.5 * (x - np.array([[0.0], [0.5]])) ** 2)
    result = free_energy(drifting, n_bootstrap=0, decorrelate=False)
    assert check(result, "both halves agree").status == "bad"
    assert result.verdict.refused


def test_samples_of_another_temperature_are_found_out() -> None:
    rng = np.random.default_rng(4)
    well, other = Oscillator(300.0), Oscillator(400.0, 0.02)
    states = [EnergyState("a", well, TEMPERATURE), EnergyState("b", other, TEMPERATURE)]
    honest = {"a": well.samples(3000, rng), "b": other.samples(3000, rng)}
    assert not free_energy(states, honest, n_bootstrap=0).verdict.refused
    hot = {**honest, "b": other.centre + 1.2 * (honest["b"] - other.centre)}
    result = free_energy(states, hot, n_bootstrap=0)
    assert check(result, "samples follow their states").status == "bad"


def double_well(lost: bool) -> tuple[ReducedEnergies, np.ndarray]:
    """A generator that covers two wells and a chain of the target, which visits both or one of them."""
    rng = np.random.default_rng(5)
    drawn = rng.choice([-1.0, 1.0], size=2000) + 0.25 * rng.standard_normal(2000)
    chain = np.where(rng.uniform(size=1000) < (0.0 if lost else 0.3), 1.0, -1.0) + 0.2 * rng.standard_normal(1000)
    x = np.concatenate([drawn, chain])

    def log_density(share: float, sigma: float) -> np.ndarray:
        wells = [np.log(p) - 0.5 * ((x - c) / sigma) ** 2 for p, c in ((1.0 - share, -1.0), (share, 1.0))]
        return np.logaddexp(*wells) - np.log(sigma) - 0.5 * np.log(2.0 * np.pi)

    u = -np.stack([log_density(0.5, 0.25), log_density(0.3, 0.2)])
    return ReducedEnergies(["flow", "target"], u, np.array([2000, 1000])), x


def test_a_basin_that_a_chain_lost_is_refused_with_and_without_its_name() -> None:
    energies, x = double_well(lost=True)
    result = free_energy(energies, n_bootstrap=0, basins=(x > 0.0).astype(int))
    assert check(result, "no basin is lost").status == "bad"
    assert "'target' has no sample in basin 1" in check(result, "no basin is lost").text
    assert check(result, "samples follow their states").status == "bad"
    energies, x = double_well(lost=False)
    result = free_energy(energies, n_bootstrap=0, basins=(x > 0.0).astype(int))
    assert check(result, "no basin is lost").status == "good"
    assert not result.verdict.refused
    assert abs(result.f_k[1]) < 3.0 * result.errors[0, 1]  # both are normalised


def test_disagreeing_estimators_are_refused() -> None:
    # The middle state's samples are not its own: MBAR spreads the damage, BAR of each pair does not.
    energies, _, x = line_oscillators([1, 1, 1], [0.0, 1.0, 2.0], [3000, 3000, 3000], np.random.default_rng(6))
    x[3000:6000] += 0.3
    wrong = replace(energies, u_kn=0.5 * (x - np.array([[0.0], [1.0], [2.0]])) ** 2)
    result = free_energy(wrong, n_bootstrap=0)
    assert check(result, "estimators agree").status == "bad"
    sound = free_energy(energies, n_bootstrap=0)
    assert check(sound, "estimators agree").status == "good"
    assert {d.method for d in sound.second_estimates} >= {"BAR", "EXP, forward", "EXP, reverse"}


def test_correlated_samples_declared_independent_are_refused() -> None:
    energies, _, _ = line_oscillators([1, 2], [0.0, 0.2], [3000, 3000], np.random.default_rng(7), tau=10.0)
    declared = replace(energies, independent=np.array([True, True]))
    result = free_energy(declared, n_bootstrap=0)
    assert check(result, "independent samples").status == "bad"
    assert result.verdict.refused
    assert check(free_energy(energies, n_bootstrap=0), "independent samples").status == "good"


def test_two_normalised_densities_that_disagree_are_refused() -> None:
    first, second = GaussianDensity(np.zeros((1, 3)), 0.05), GaussianDensity(np.full((1, 3), 0.01), 0.06)

    class Unnormalised(GaussianDensity):
        def log_prob(self, positions: np.ndarray) -> np.ndarray:
            return super().log_prob(positions) + 0.3

    for density, status in ((second, "good"), (Unnormalised(np.full((1, 3), 0.01), 0.06), "bad")):
        states = [GeneratorState("first", first), GeneratorState("second", density)]
        samples = {"first": first.sample(3000, rng=1), "second": density.sample(3000, rng=2)}
        assert check(free_energy(states, samples, n_bootstrap=0), "densities are normalised").status == status


def test_few_effective_samples_are_refused() -> None:
    energies, _, _ = line_oscillators([1, 1], [0.0, 1.0], [12, 12], np.random.default_rng(8))
    assert check(free_energy(energies, n_bootstrap=0), "effective samples").status != "good"


# ------------------------------------------------------------------------------------------------ input that is refused


def states_of(molecule, **potential):
    return [
        GeneratorState("flow", shifted(molecule)),
        EnergyState("target", SystemPotential(molecule.system(), platform="Reference", n_workers=1), TEMPERATURE),
    ]


def test_states_of_different_atoms_are_refused() -> None:
    states = [states_of(BENT)[0], states_of(BUTANE)[1]]
    with pytest.raises(ValueError, match="different numbers of atoms"):
        free_energy(states, {"flow": states[0].generator.sample(20, rng=0)})


def test_samples_of_other_atoms_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the samples of state 'target' have shape \(5, 4, 3\); expected \(n, 3, 3\)"):
        free_energy(states_of(BENT), {"target": np.zeros((5, 4, 3))})


def test_a_generator_of_another_molecule_is_refused() -> None:
    heavier = replace(BENT, masses=(12.0, 17.0, 1.0))
    states = [states_of(BENT)[0], states_of(heavier)[1]]
    with pytest.raises(ValueError, match=r"17"):
        free_energy(states, {"flow": states[0].generator.sample(20, rng=0)})


def test_constrained_and_free_states_do_not_mix() -> None:
    free = EnergyState("free", SystemPotential(FREE_ANGLE.system(), platform="Reference", n_workers=1), TEMPERATURE)
    rigid = EnergyState("rigid", SystemPotential(RIGID_TRIMER.system(), platform="Reference", n_workers=1), TEMPERATURE)
    with pytest.raises(ValueError, match="different constraints"):
        evaluate([free, rigid], {"free": np.zeros((5, 3, 3))})
    other = replace(RIGID_TRIMER, masses=(12.0, 2.0, 12.0))
    heavy = EnergyState("heavy", SystemPotential(other.system(), platform="Reference", n_workers=1), TEMPERATURE)
    with pytest.raises(ValueError, match="different masses"):
        evaluate([rigid, heavy], {"rigid": np.zeros((5, 3, 3))})


def test_a_molecule_tied_to_a_place_has_no_free_pose() -> None:
    system = BENT.system()
    tie = openmm.CustomExternalForce("x^2")
    tie.addParticle(0)
    system.addForce(tie)
    states = [states_of(BENT)[0], EnergyState("tied", SystemPotential(system, platform="Reference"), TEMPERATURE)]
    with pytest.raises(ValueError, match="CustomExternalForce"):
        free_energy(states, {"flow": states[0].generator.sample(20, rng=0)})


def test_states_without_any_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="give those of at least one"):
        free_energy(states_of(BENT), {})
    with pytest.raises(ValueError, match="states were given without samples"):
        free_energy(states_of(BENT))


def test_samples_of_an_unknown_state_are_refused() -> None:
    with pytest.raises(ValueError, match=r"samples of \['solvent'\] were given"):
        free_energy(states_of(BENT), {"solvent": np.zeros((5, 3, 3))})


@pytest.mark.parametrize(
    ("change", "n_k", "message"),
    [
        (lambda u: u[0].__setitem__(3, math.nan), [50, 50], "1 reduced energies are NaN, the first in state 'K=1'"),
        (lambda u: u[1].__setitem__(3, -math.inf), [50, 50], "1 reduced energies are -inf"),
        (lambda u: u[0].__setitem__(3, math.inf), [50, 50], "infinite energy in the very state"),
        (lambda u: u[2].__setitem__(slice(None), math.inf), [50, 50, 0], "nothing is known of it"),
    ],
)
def test_energies_that_are_no_numbers_are_refused(change, n_k, message) -> None:
    energies = line_oscillators([1, 2, 3][: len(n_k)], [0.0] * len(n_k), n_k, np.random.default_rng(0))[0]
    u = energies.u_kn.copy()
    change(u)
    with pytest.raises(ValueError, match=message):
        free_energy(ReducedEnergies(energies.names, u, energies.n_k), n_bootstrap=0)


def test_infinite_energies_in_other_states_are_taken() -> None:
    energies = arrays([400, 400])
    u = energies.u_kn.copy()
    u[0, 500:520] = math.inf
    result = free_energy(replace(energies, u_kn=u), n_bootstrap=10)
    assert np.isfinite(result.f_k).all()
    assert np.isfinite(result.errors).all()
    # 20 of 400 samples of the second state are impossible in the first.
    sound = free_energy(energies, n_bootstrap=0)
    assert result.f_k[1] < sound.f_k[1]


def test_a_single_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="state 'b' has a single sample"):
        ReducedEnergies(["a", "b"], np.zeros((2, 11)), np.array([10, 1]))


@pytest.mark.parametrize(
    ("n_k", "shape"), [([10, 10], (2, 19)), ([10], (2, 10)), ([10, 10], (3, 20))], ids=["columns", "counts", "rows"]
)
def test_energies_of_another_shape_are_refused(n_k, shape) -> None:
    with pytest.raises(ValueError, match="need energies of shape"):
        ReducedEnergies(["a", "b"], np.zeros(shape), np.array(n_k))


def test_draws_with_clipped_or_foreign_densities_are_refused() -> None:
    states = states_of(BENT)
    drawn = states[0].generator.sample(100, rng=0)
    for log_prob in (np.minimum(drawn.log_prob, np.quantile(drawn.log_prob, 0.2)), drawn.log_prob + 0.5):
        with pytest.raises(ValueError, match="another density, or their densities are clipped or not normalised"):
            free_energy(states, {"flow": Samples(drawn.positions, log_prob)})
    with pytest.raises(ValueError, match="give them to the GeneratorState"):
        free_energy(states, {"target": drawn})


def test_draws_off_the_support_lower_the_normalisation() -> None:
    well = Oscillator(300.0)

    class Half(GaussianDensity):
        """A Gaussian whose draws with x < 0 are rejected, and whose density was not told so."""

        def log_prob(self, positions: np.ndarray) -> np.ndarray:
            return np.where(positions[:, 0, 0] < 0.0, -np.inf, super().log_prob(positions))

    class HalfWell(Oscillator):
        def energy(self, positions: np.ndarray) -> np.ndarray:
            return np.where(positions[:, 0, 0] < 0.0, np.inf, super().energy(positions))

    density = Half(np.zeros((1, 3)), 1.2 * well.sigma)
    states = [GeneratorState("half", density), EnergyState("well", HalfWell(300.0), TEMPERATURE)]
    found = free_energy(states, {"half": density.sample(20_000, rng=0)}, n_bootstrap=0).absolute("well").reduced
    assert found.value == pytest.approx(well.free_energy + math.log(2.0), abs=0.05)


def test_densities_of_different_measures_do_not_mix() -> None:
    flow = states_of(BENT)[0]
    gaussian = GeneratorState("gaussian", GaussianDensity(np.zeros((3, 3)), 0.1))
    with pytest.raises(ValueError, match="different measures"):
        free_energy([flow, gaussian], {"flow": flow.generator.sample(20, rng=0)})


def test_chains_are_decorrelated_apart_from_each_other() -> None:
    rng = np.random.default_rng(9)
    chains = [exact_samples(BENT, 200, rng), exact_samples(BENT, 300, rng)]
    energies = evaluate(states_of(BENT), {"target": [np.repeat(chains[0], 10, axis=0), chains[1]]})
    assert energies.n_k[1] < 600  # the first chain holds every configuration ten times
    assert np.count_nonzero(energies.chains == 0) < 260
    assert np.count_nonzero(energies.chains == 1) > 200
    assert energies.inefficiencies["target"] > 5.0
    np.testing.assert_array_equal(energies.positions[-1], chains[1][energies.kept[-1] - 2000])
