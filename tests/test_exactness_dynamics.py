"""Bad generators in turn with dynamics, in openmmtools' samplers, at several temperatures: still exact."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from exactness_fixtures import BENT, BUTANE, RIGID_TRIMER, WithoutLogProb, shifted, untrained
from openmm import unit
from openmmtools import cache
from openmmtools.integrators import HMCIntegrator
from openmmtools.mcmc import IntegratorMove, MCMCMove, MCMCSampler, SequenceMove, WeightedMove
from openmmtools.multistate import MultiStateReporter, ReplicaExchangeSampler
from openmmtools.states import SamplerState, ThermodynamicState
from small_molecules import TEMPERATURE, SmallMolecule, deviation, kB, reference_contexts

from openmm_bg.density import Samples
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.moves import BoltzmannGeneratorMove, Independence, Scan, observe_scans

KT = kB * TEMPERATURE


class KeptVelocities(BoltzmannGeneratorMove):
    """Mutant: an accepted configuration goes on with the velocities of the one before."""

    def _draw_velocities(self, context: openmm.Context, temperature: Any, rng: np.random.Generator) -> None:
        pass


class Windowed(BoltzmannGenerator):
    """Proposes no angle above 1.7 rad."""

    def sample(self, n: int, *, rng: Any = None) -> Samples:
        positions = super().sample(n, rng=rng).positions
        positions[self._outside(positions)] = np.nan
        return Samples(positions, self.log_prob(positions))

    def log_prob(self, positions: Any) -> np.ndarray:
        return np.where(self._outside(positions), -np.inf, super().log_prob(positions))

    @staticmethod
    def _outside(positions: np.ndarray) -> np.ndarray:
        return BENT.internal(positions)[1][:, 0] > 1.7


class WithoutSupport(Windowed):
    """Mutant: a finite density where nothing is ever proposed, as from a clamped spline."""

    def log_prob(self, positions: Any) -> np.ndarray:
        return BoltzmannGenerator.log_prob(self, positions)


@pytest.fixture(autouse=True)
def reference_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samplers on the Reference platform, with random numbers that do not depend on the tests that ran before."""
    monkeypatch.setattr(cache, "global_context_cache", reference_contexts())
    monkeypatch.setattr("openmm_bg.moves.move._streams", defaultdict(itertools.count))
    monkeypatch.setattr(ReplicaExchangeSampler, "_global_citation_silence", True)
    np.random.seed(0)  # noqa: NPY002  openmmtools chooses moves and mixes replicas with it


def hybrid_monte_carlo() -> IntegratorMove:
    integrator = HMCIntegrator(TEMPERATURE * unit.kelvin, nsteps=12, timestep=4.0 * unit.femtosecond)
    integrator.setRandomNumberSeed(11)
    return IntegratorMove(integrator, n_steps=1)


def run(molecule: SmallMolecule, move: MCMCMove, n_iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """States of all scans, and the states after each iteration, in 60 blocks."""
    scanned: list[np.ndarray] = []
    between: list[np.ndarray] = []
    sampler = MCMCSampler(molecule.state(), molecule.start(), move=move)
    with observe_scans(lambda scan, _: scanned.append(scan.positions[scan.chain])):
        for _ in range(n_iterations):
            sampler.run(1)
            between.append(sampler.sampler_state.positions.value_in_unit(unit.nanometer))
    scanned = scanned[: len(scanned) // 60 * 60]
    shape = (60, -1, molecule.n_atoms, 3)
    return np.reshape(scanned, shape), np.reshape(between, shape)


ARRANGEMENTS = {
    "sequence": lambda move: SequenceMove([move, hybrid_monte_carlo()]),
    "weighted": lambda move: WeightedMove([(move, 0.5), (hybrid_monte_carlo(), 0.5)]),
}


@pytest.mark.parametrize(
    ("arrangement", "flow", "n_iterations"),
    [
        ("sequence", untrained, 1500),
        pytest.param("sequence", shifted, 3000, marks=pytest.mark.slow),
        pytest.param("weighted", untrained, 4800, marks=pytest.mark.slow),
        ("weighted", shifted, 1200),
    ],
)
def test_a_bad_flow_in_turn_with_dynamics_is_exact(arrangement: str, flow: Any, n_iterations: int) -> None:
    """The untrained flow is far too narrow to sample the target without the dynamics."""
    move = BoltzmannGeneratorMove(flow(BENT), kernel=Independence(8), seed=3)
    scanned, between = run(BENT, ARRANGEMENTS[arrangement](move), n_iterations)
    assert BENT.deviation(scanned) < 3.5
    assert BENT.deviation(between) < 3.5


@pytest.mark.slow
def test_dynamics_does_not_hide_a_forgotten_log_density() -> None:
    move = BoltzmannGeneratorMove(shifted(BENT), kernel=WithoutLogProb(8), seed=3)
    scanned, _ = run(BENT, ARRANGEMENTS["sequence"](move), 1500)
    assert BENT.deviation(scanned) > 8.0


@pytest.mark.slow
def test_a_flow_that_covers_half_of_the_target_is_exact_in_turn_with_dynamics() -> None:
    move = BoltzmannGeneratorMove(shifted(BENT, Windowed), kernel=Independence(8), seed=3)
    scanned, between = run(BENT, ARRANGEMENTS["sequence"](move), 1500)
    assert BENT.deviation(scanned) < 3.5
    assert BENT.deviation(between) < 3.5
    assert move.n_off_support > 0
    assert move.n_current_off_support > 0


def test_leaving_states_that_are_never_proposed_is_seen_at_eight_sigma() -> None:
    move = BoltzmannGeneratorMove(shifted(BENT, WithoutSupport), kernel=Independence(8), seed=3)
    scanned, _ = run(BENT, ARRANGEMENTS["sequence"](move), 1800)
    assert BENT.deviation(scanned) > 8.0


# ------------------------------------------------------------------------------------------------------- velocities


def internal_kinetic_energy(sampler_state: SamplerState, masses: np.ndarray) -> float:
    """Kinetic energy relative to the centre of mass, in kT."""
    velocities = sampler_state.velocities.value_in_unit(unit.nanometer / unit.picosecond)
    velocities = velocities - masses @ velocities / masses.sum()
    return 0.5 * float((masses[:, None] * velocities**2).sum()) / KT


@pytest.mark.parametrize("kind", [BoltzmannGeneratorMove, KeptVelocities])
def test_dynamics_of_a_constrained_molecule_goes_on_at_its_temperature(kind: type[BoltzmannGeneratorMove]) -> None:
    """Of nine degrees of freedom two are constrained and three are the centre of mass: four keep 2 kT."""
    move = kind(shifted(RIGID_TRIMER), kernel=Independence(2), seed=3)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 0.2, 0.0005)
    integrator.setRandomNumberSeed(5)
    integrator.setConstraintTolerance(1e-8)
    dynamics = IntegratorMove(integrator, 20)
    state, sampler_state = RIGID_TRIMER.state(), RIGID_TRIMER.start()
    kinetic, positions = [], []
    for _ in range(1000):
        for part in (move, dynamics):
            part.apply(state, sampler_state)
            kinetic.append(internal_kinetic_energy(sampler_state, np.array(RIGID_TRIMER.masses)))
            positions.append(sampler_state.positions.value_in_unit(unit.nanometer))
    error = deviation(np.reshape(kinetic, (50, -1)).mean(axis=1, keepdims=True), 2.0)
    if kind is KeptVelocities:
        assert error > 8.0
    else:
        assert error < 3.5
        assert RIGID_TRIMER.deviation(np.reshape(positions, (50, -1, 3, 3))) < 3.5


# ------------------------------------------------------------------------------------------------- replica exchange


def test_replicas_at_three_temperatures_sample_each_its_own_distribution(tmp_path: Path) -> None:
    temperatures = [300.0, 450.0, 700.0]
    generator = shifted(BUTANE)
    generator.save(tmp_path / "butane.bg")
    states = [BUTANE.state(temperature) for temperature in temperatures]
    chains: dict[float, list[np.ndarray]] = defaultdict(list)

    def observe(scan: Scan, state: ThermodynamicState) -> None:
        chains[state.temperature.value_in_unit(unit.kelvin)].append(scan.positions[scan.chain])

    move = BoltzmannGeneratorMove(generator, kernel=Independence(512), seed=3)
    sampler = ReplicaExchangeSampler(mcmc_moves=move, number_of_iterations=60)
    reporter = MultiStateReporter(str(tmp_path / "repex.nc"), checkpoint_interval=60)
    sampler.create(states, [BUTANE.start()] * 3, reporter)
    with observe_scans(observe):
        sampler.run()
    for temperature in temperatures:
        samples = np.reshape(chains[temperature][1:], (-1, 256, 4, 3))
        assert len(samples) >= 118
        assert BUTANE.deviation(samples, temperature) < 3.5
        for other in temperatures:
            if other != temperature:
                assert BUTANE.deviation(samples, other) > 4.0
