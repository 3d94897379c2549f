"""openmmtools' own test suites pass when its moves are replaced by the generator move."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import openmm
import pytest
from openmm import unit
from openmmtools import cache, mcmc, testsystems, utils
from openmmtools.multistate import MultiStateSampler
from openmmtools.states import ThermodynamicState
from openmmtools.tests import test_mcmc, test_sampling

from openmm_bg.moves import BoltzmannGeneratorMove, Independence
from openmm_bg.testing import GaussianDensity

kT = (unit.MOLAR_GAS_CONSTANT_R * 298.0 * unit.kelvin).value_in_unit(unit.kilojoule_per_mole)
MultiStateSampler._global_citation_silence = True


class WithoutLogProb(Independence):
    """Mutant: a Metropolis test that forgets the proposal density."""

    def _log_weight(self, reduced_potential: np.ndarray, log_prob: np.ndarray) -> np.ndarray:
        return -reduced_potential


@pytest.fixture(autouse=True)
def reference_platform(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    platform = openmm.Platform.getPlatformByName("Reference")
    monkeypatch.setattr(cache, "global_context_cache", cache.ContextCache(platform=platform))
    state = np.random.get_state()  # noqa: NPY002  openmmtools draws its exchanges from numpy's global numbers
    np.random.seed(20)  # noqa: NPY002
    yield
    np.random.set_state(state)  # noqa: NPY002


class ExactWidthOscillator(testsystems.HarmonicOscillator):
    """openmmtools gives 3/2 kT as the standard deviation of the energy; it is sqrt(3/2) kT."""

    def get_potential_standard_deviation(self, state: Any) -> Any:
        return super().get_potential_standard_deviation(state) * np.sqrt(2.0 / 3.0)


def wrong_width_move(kernel: Independence) -> tuple[testsystems.TestSystem, BoltzmannGeneratorMove]:
    testsystem = ExactWidthOscillator()
    spring = testsystem.K.value_in_unit(unit.kilojoule_per_mole / unit.nanometer**2)
    generator = GaussianDensity(np.zeros((1, 3)), 1.3 * np.sqrt(kT / spring))
    return testsystem, BoltzmannGeneratorMove(generator, kernel=kernel, seed=1)


@pytest.mark.parametrize("nested", [False, True], ids=["alone", "in a weighted move"])
def test_the_mcmc_expectation_of_openmmtools_is_met_with_a_wrong_width(nested: bool) -> None:
    testsystem, move = wrong_width_move(Independence(4))
    if nested:
        move = mcmc.WeightedMove([(move, 0.5), (mcmc.GHMCMove(timestep=10.0 * unit.femtoseconds, n_steps=10), 0.5)])
    test_mcmc.subtest_mcmc_expectation(testsystem, move)


def test_the_mcmc_expectation_of_openmmtools_catches_a_forgotten_density(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_mcmc, "NSIGMA_CUTOFF", 8.0)
    with pytest.raises(AssertionError, match="Potential energy expectation"):
        test_mcmc.subtest_mcmc_expectation(*wrong_width_move(WithoutLogProb(4)))


def oscillator_move(kernel: Independence = Independence(2), **_: Any) -> BoltzmannGeneratorMove:  # noqa: B008
    """Stand-in for the displacement move in the suites of oscillators 1.2 to 2.0 angstroms wide."""
    return BoltzmannGeneratorMove(GaussianDensity(np.zeros((1, 3)), 0.2), kernel=kernel, seed=2)


def run_oscillators(suite: type, unsampled: bool, kernel: Independence, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[BoltzmannGeneratorMove] = []

    def stand_in(**options: Any) -> BoltzmannGeneratorMove:
        made.append(oscillator_move(kernel))
        return made[-1]

    monkeypatch.setattr(mcmc, "MCDisplacementMove", stand_in)
    level = logging.getLogger().level
    suite.setup_class()
    try:
        suite().run(include_unsampled_states=unsampled)
    finally:
        suite.teardown_class()
        logging.getLogger().setLevel(level)  # which the suite silences for good
        assert len(made) == 1


@pytest.mark.slow
@pytest.mark.parametrize("unsampled", [False, True], ids=["sampled states", "with unsampled states"])
@pytest.mark.parametrize(
    "suite",
    [
        test_sampling.TestHarmonicOscillatorsMultiStateSampler,
        test_sampling.TestHarmonicOscillatorsReplicaExchangeSampler,
    ],
)
def test_free_energies_of_oscillators_agree_with_theory(
    suite: type, unsampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_oscillators(suite, unsampled, Independence(2), monkeypatch)


@pytest.mark.slow
def test_free_energies_of_oscillators_by_sams_agree_with_theory(monkeypatch: pytest.MonkeyPatch) -> None:
    run_oscillators(test_sampling.TestHarmonicOscillatorsSAMSSampler, False, Independence(2), monkeypatch)


@pytest.mark.slow
def test_free_energies_of_oscillators_catch_a_forgotten_density(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="exceeds MAX_SIGMA"):
        run_oscillators(test_sampling.TestHarmonicOscillatorsMultiStateSampler, False, WithoutLogProb(2), monkeypatch)


def alanine_move(*_: Any, **__: Any) -> BoltzmannGeneratorMove:
    """Stand-in for the moves in the suites of unconstrained alanine dipeptide."""
    positions = testsystems.AlanineDipeptideVacuum(constraints=None).positions
    return BoltzmannGeneratorMove(GaussianDensity(positions, 0.001), kernel=Independence(1), seed=3)


class AlanineSuite(test_sampling.TestReplicaExchange):
    """The suite's bodies on the one molecule that the stand-in was made for."""

    __test__ = False

    def setup_method(self) -> None:
        self.setup_class()
        states, sampler_states, unsampled = self.alanine_test
        system = testsystems.AlanineDipeptideVacuum(constraints=None).system
        states = [ThermodynamicState(system, state.temperature) for state in states]
        self.hostguest_test = self.alanine_test = (states, sampler_states, unsampled)


@pytest.mark.parametrize(
    ("body", "replaced"),
    [
        ("test_from_storage", "LangevinDynamicsMove"),
        ("test_run_extend", "MCRotationMove"),
        ("test_checkpointing", "IntegratorMove"),
        ("test_resume_positions_velocities_from_storage", "MCRotationMove"),
        ("test_equilibrate", "IntegratorMove"),
    ],
)
def test_replica_exchange_stores_and_resumes_as_with_its_own_moves(
    body: str, replaced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cache, "global_context_cache", cache.ContextCache()
    )  # caches of one Platform never compare equal
    monkeypatch.setattr(mcmc, replaced, alanine_move)
    suite = AlanineSuite()
    suite.setup_method()
    getattr(suite, body)()


def test_the_state_survives_serialization_as_that_of_openmmtools_own_moves() -> None:
    move = oscillator_move()
    move.statistics = {"n_accepted": 1000, "n_proposed": 3000, "n_nonfinite_energy": 7, "n_off_support": 8}
    nested = [move, mcmc.SequenceMove([move, mcmc.GHMCMove()]), mcmc.WeightedMove([(move, 0.5), (mcmc.HMCMove(), 0.5)])]
    for original in nested:
        before = pickle.dumps(original)
        restored = utils.deserialize(utils.serialize(original))
        assert pickle.dumps(restored) == before
