"""The generator move samples the target exactly, whatever the density proposes, and refuses what it can not sample."""

from __future__ import annotations

import copy
import itertools
import logging
import pickle
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import openmm
import pytest
from openmm import unit
from openmmtools.cache import ContextCache
from openmmtools.mcmc import LangevinDynamicsMove, MCMCSampler, SequenceMove
from openmmtools.states import SamplerState, ThermodynamicState
from openmmtools.testsystems import HarmonicOscillator, WaterBox
from pymbar.timeseries import statistical_inefficiency
from scipy.integrate import quad
from scipy.spatial.transform import Rotation

from openmm_bg.density import LatentDensity, ProposalDensity, Samples
from openmm_bg.moves import BoltzmannGeneratorMove, Independence, Scan, observe_scans
from openmm_bg.moves.energies import ContextEnergies, TorchEnergies
from openmm_bg.moves.pose import align
from openmm_bg.potentials import TorchBackend
from openmm_bg.testing import GaussianDensity

kB = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)
SPRING = 2000.0  # kJ/mol/nm^2
PLATFORMS = ["Reference", pytest.param("CUDA", marks=pytest.mark.cuda)]


@pytest.fixture(autouse=True)
def fresh_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the random numbers of a seeded move independent of the tests that ran before."""
    monkeypatch.setattr("openmm_bg.moves.move._streams", defaultdict(itertools.count))


@pytest.fixture(params=PLATFORMS)
def contexts(request: pytest.FixtureRequest) -> ContextCache:
    platform = openmm.Platform.getPlatformByName(request.param)
    return ContextCache(
        platform=platform, platform_properties={"Precision": "mixed"} if request.param == "CUDA" else {}
    )


@pytest.fixture
def reference_contexts() -> ContextCache:
    return ContextCache(platform=openmm.Platform.getPlatformByName("Reference"))


class WithoutLogProb(Independence):
    """Mutant: a Metropolis test that forgets the proposal density."""

    def _log_weight(self, reduced_potential: np.ndarray, log_prob: np.ndarray) -> np.ndarray:
        return -reduced_potential


@dataclass
class Diatomic:
    """A pair of atoms (and a virtual site between them) with a log-normal length, without a place in space.

    In Cartesian coordinates modulo pose the density of the length is divided by the surface, r^2.
    """

    length: float = 0.15
    log_width: float = 0.1
    jacobian: bool = True
    virtual_site: bool = False
    pose: Literal["invariant", "absolute"] = "invariant"

    @property
    def n_atoms(self) -> int:
        return 2 + self.virtual_site

    @property
    def content_hash(self) -> str:
        return repr(self)

    def sample(self, n: int, *, rng: Any = None) -> Samples:
        rng = np.random.default_rng(rng)
        lengths = self.length * np.exp(self.log_width * rng.standard_normal(n))
        directions = Rotation.random(n, rng=rng).apply([1.0, 0.0, 0.0])
        positions = np.zeros((n, self.n_atoms, 3))  # the virtual site is left at the origin
        positions[:, 0] = 5.0
        positions[:, 1] = 5.0 + lengths[:, None] * directions
        return Samples(positions, self.log_prob(positions))

    def log_prob(self, positions: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(positions[:, 1] - positions[:, 0], axis=1)
        if self.log_width == 0.0:  # a rigid pair
            return np.zeros(len(positions))
        latents = np.log(lengths / self.length) / self.log_width
        log_length = -0.5 * latents**2 - np.log(lengths * self.log_width * np.sqrt(2.0 * np.pi))
        return log_length - 2.0 * np.log(lengths) if self.jacobian else log_length

    def check(self, system: openmm.System, topology: Any = None) -> None:
        assert system.getNumParticles() == self.n_atoms

    def save(self, path: Any) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, path: Any, *, system: Any = None) -> Diatomic:
        raise NotImplementedError


def oscillator(temperature: float = 300.0) -> tuple[ThermodynamicState, float]:
    """A particle on a spring, and the standard deviation of its coordinates in nm."""
    testsystem = HarmonicOscillator(K=SPRING * unit.kilojoule_per_mole / unit.nanometer**2, mass=12.0 * unit.dalton)
    state = ThermodynamicState(testsystem.system, temperature * unit.kelvin)
    return state, float(np.sqrt(kB * temperature / SPRING))


def diatomic_system(*, virtual_site: bool = False, constrained: bool = False) -> openmm.System:
    system = openmm.System()
    system.addParticle(12.0)
    system.addParticle(4.0)
    if constrained:
        system.addConstraint(0, 1, 0.15)
    else:
        bond = openmm.HarmonicBondForce()
        bond.addBond(0, 1, 0.15, 3000.0)
        system.addForce(bond)
    if virtual_site:
        system.addParticle(0.0)
        system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.4, 0.6))
    system.addForce(openmm.CMMotionRemover())
    return system


def start(n_atoms: int = 1, seed: int = 0) -> SamplerState:
    positions = 0.05 * np.random.default_rng(seed).standard_normal((n_atoms, 3))
    return SamplerState(unit.Quantity(positions, unit.nanometer))


def nanometers(sampler_state: SamplerState) -> np.ndarray:
    return np.array(sampler_state.positions.value_in_unit(unit.nanometer))


def velocities(sampler_state: SamplerState) -> np.ndarray:
    return np.array(sampler_state.velocities.value_in_unit(unit.nanometer / unit.picosecond))


def chain_states(
    move: BoltzmannGeneratorMove,
    state: ThermodynamicState,
    sampler_state: SamplerState,
    contexts: ContextCache,
    n_applications: int,
) -> np.ndarray:
    """All states of the chain, shape (n_applications * K, n_atoms, 3)."""
    states = []
    for _ in range(n_applications):
        move.apply(state, sampler_state, context_cache=contexts)
        states.append(move.last_scan.positions[move.last_scan.chain])
    return np.concatenate(states)


def deviation(series: np.ndarray, expected: float) -> float:
    """Deviation of a correlated series' mean in its own standard errors."""
    error = series.std() * np.sqrt(statistical_inefficiency(series) / len(series))
    return float((series.mean() - expected) / error)


# ---------------------------------------------------------------------------------------------------- exactness


def test_every_proposal_is_accepted_when_the_density_is_the_target(contexts: ContextCache) -> None:
    state, sigma = oscillator()
    move = BoltzmannGeneratorMove(GaussianDensity(np.zeros((1, 3)), sigma), kernel=Independence(500), seed=1)
    sampler_state = start()
    states = chain_states(move, state, sampler_state, contexts, 4)
    # Exact in double precision; on CUDA the energy is single precision, and one in a million is lost.
    assert move.n_accepted >= 1999
    assert move.fraction_accepted == move.n_accepted / 2000
    np.testing.assert_array_equal(np.sort(move.last_scan.chain), move.last_scan.chain)
    assert abs(deviation((states[:, 0, 0] / sigma) ** 2, 1.0)) < 4.0


def squared_deviations(kernel: Independence, contexts: ContextCache, width: float, shift: float) -> list[float]:
    state, sigma = oscillator()
    density = GaussianDensity(np.full((1, 3), shift * sigma), width * sigma)
    move = BoltzmannGeneratorMove(density, kernel=kernel, seed=2)
    states = chain_states(move, state, start(), contexts, 300)[64:, 0] / sigma
    return [deviation(states[:, axis] ** power, float(power == 2)) ** 2 for axis in range(3) for power in (1, 2)]


@pytest.mark.parametrize(("width", "shift"), [(1.5, 0.0), (1.2, 0.5)], ids=["too wide", "shifted"])
def test_a_wrong_density_still_gives_the_exact_distribution(contexts: ContextCache, width: float, shift: float) -> None:
    assert sum(squared_deviations(Independence(64), contexts, width, shift)) < 22.5  # chi^2 of 6: 1 in 1000


@pytest.mark.parametrize(("width", "shift"), [(1.5, 0.0), (1.2, 0.5)], ids=["too wide", "shifted"])
def test_forgetting_the_log_density_is_seen_at_eight_sigma(
    reference_contexts: ContextCache, width: float, shift: float
) -> None:
    assert max(squared_deviations(WithoutLogProb(64), reference_contexts, width, shift)) > 8.0**2


@pytest.mark.parametrize("temperature", [150.0, 300.0, 450.0])
def test_each_thermodynamic_state_is_sampled_at_its_own_temperature(contexts: ContextCache, temperature: float) -> None:
    state, _ = oscillator(temperature)
    generator = GaussianDensity(np.zeros((1, 3)), np.sqrt(2.0) * oscillator(300.0)[1])  # of another temperature
    move = BoltzmannGeneratorMove(generator, seed=3)
    states = chain_states(move, state, start(), contexts, 100)[64:, 0]
    assert abs(deviation(0.5 * SPRING * (states**2).sum(axis=1), 1.5 * kB * temperature)) < 4.0


def diatomic_length_deviation(density: Diatomic, kernel: Independence, contexts: ContextCache) -> float:
    state = ThermodynamicState(diatomic_system(), 300.0 * unit.kelvin)

    def boltzmann(r: float) -> float:
        return r**2 * np.exp(-1500.0 * (r - 0.15) ** 2 / (kB * 300.0))

    expected = quad(lambda r: r * boltzmann(r), 0.0, 0.6)[0] / quad(boltzmann, 0.0, 0.6)[0]
    move = BoltzmannGeneratorMove(density, kernel=kernel, seed=4)
    sampler_state = SamplerState(unit.Quantity(np.array([[0.0, 0.0, 0.0], [0.15, 0.0, 0.0]]), unit.nanometer))
    states = chain_states(move, state, sampler_state, contexts, 300)[64:]
    return deviation(np.linalg.norm(states[:, 1] - states[:, 0], axis=1), expected)


@pytest.mark.parametrize("log_width", [0.25, 0.4])
def test_proposals_without_a_place_give_the_exact_distribution_of_shapes(
    contexts: ContextCache, log_width: float
) -> None:
    assert abs(diatomic_length_deviation(Diatomic(0.16, log_width), Independence(64), contexts)) < 4.0


def test_forgetting_the_jacobian_is_seen_at_eight_sigma(reference_contexts: ContextCache) -> None:
    mutant = Diatomic(0.16, 0.25, jacobian=False)
    assert abs(diatomic_length_deviation(mutant, Independence(64), reference_contexts)) > 8.0


def test_forward_and_reverse_log_ratios_are_antisymmetric(reference_contexts: ContextCache) -> None:
    state, sigma = oscillator()

    class Fixed(GaussianDensity):
        proposal: np.ndarray

        def sample(self, n: int, *, rng: Any = None) -> Samples:
            return Samples(self.proposal[None], self.log_prob(self.proposal[None]))

    rng = np.random.default_rng(5)
    density = Fixed(np.zeros((1, 3)), 1.7 * sigma)
    ratios = []
    points = sigma * rng.standard_normal((2, 1, 3))
    for here, there in (points, points[::-1]):
        density.proposal = there
        move = BoltzmannGeneratorMove(density, kernel=Independence(1), seed=5)
        move.apply(state, SamplerState(unit.Quantity(here, unit.nanometer)), context_cache=reference_contexts)
        ratios.append(np.diff(move.last_scan.log_weight)[0])
    assert ratios[0] != 0.0
    assert ratios[0] == pytest.approx(-ratios[1], abs=1e-12)


def test_nothing_of_the_current_state_is_remembered_between_applications(reference_contexts: ContextCache) -> None:
    state, sigma = oscillator()
    density = GaussianDensity(np.zeros((1, 3)), sigma)
    move = BoltzmannGeneratorMove(density, kernel=Independence(2), seed=6)
    first, second = start(seed=1), start(seed=2)
    for sampler_state in (first, second, first, second):  # as replica exchange does
        before = nanometers(sampler_state)
        move.apply(state, sampler_state, context_cache=reference_contexts)
        scan = move.last_scan
        assert scan.log_prob[0] == density.log_prob(before[None])[0]
        assert scan.reduced_potential[0] == pytest.approx(0.5 * SPRING * (before**2).sum() / (kB * 300.0), rel=1e-12)


# ---------------------------------------------------------------------------------------------------- bad proposals


class Faulty(GaussianDensity):
    """One proposal in a hundred is NaN, infinite, has particles on top of each other, or nearly so."""

    fraction = 0.01

    def sample(self, n: int, *, rng: Any = None) -> Samples:
        rng = np.random.default_rng(rng)
        positions = super().sample(n, rng=rng).positions
        faults = rng.permutation(n)[: int(self.fraction * n)]
        positions[faults[0::5], 0, 0] = np.nan
        positions[faults[1::5], 1] = np.inf
        positions[faults[2::5], 1] = positions[faults[2::5], 0]
        positions[faults[3::5], 1] = positions[faults[3::5], 0] + 1e-5
        positions[faults[4::5]] *= 1e200  # the energy overflows
        return Samples(positions, self.log_prob(positions))


def trapped_pair() -> openmm.System:
    """Two argon-like particles, each tied to its own point."""
    system = openmm.System()
    traps = openmm.CustomExternalForce("1000*((x-x0)^2+(y-y0)^2+(z-z0)^2)")
    for name in ("x0", "y0", "z0"):
        traps.addPerParticleParameter(name)
    nonbonded = openmm.NonbondedForce()
    for i in range(2):
        system.addParticle(40.0)
        traps.addParticle(i, [0.5 * i, 0.0, 0.0])
        nonbonded.addParticle(0.0, 0.34, 0.99)
    system.addForce(traps)
    system.addForce(nonbonded)
    return system


def check_faulty(contexts: ContextCache, n_proposals: int) -> None:
    state = ThermodynamicState(trapped_pair(), 300.0 * unit.kelvin)
    places = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    density = Faulty(places, np.sqrt(kB * 300.0 / 2000.0))
    n_at_once = min(n_proposals, 10_000)
    move = BoltzmannGeneratorMove(density, kernel=Independence(n_at_once), seed=7)
    sampler_state = SamplerState(unit.Quantity(places, unit.nanometer))
    accepted_distances = []
    for _ in range(n_proposals // n_at_once):
        move.apply(state, sampler_state, context_cache=contexts)
        accepted = move.last_scan.positions[1:][move.last_scan.accepted]
        accepted_distances.append(np.linalg.norm(accepted[:, 1] - accepted[:, 0], axis=1))
    distances = np.concatenate(accepted_distances)
    assert len(distances) > 0.5 * n_proposals
    assert np.isfinite(distances).all()
    assert distances.min() > 0.2
    assert distances.max() < 1.0
    assert move.n_proposed == n_proposals
    # Of the faults, NaN, infinity and overflow have no density; those on top of each other have no energy.
    assert move.n_off_support == pytest.approx(0.006 * n_proposals)
    assert 0.002 * n_proposals <= move.n_nonfinite_energy <= 0.004 * n_proposals


def test_no_faulty_proposal_in_a_hundred_thousand_is_accepted(contexts: ContextCache) -> None:
    check_faulty(contexts, 100_000)


@pytest.mark.slow
def test_no_faulty_proposal_in_a_million_is_accepted(contexts: ContextCache) -> None:
    check_faulty(contexts, 1_000_000)


class Bounded(GaussianDensity):
    """A normal distribution cut at three standard deviations of the first coordinate; not normalised, which cancels."""

    def log_prob(self, positions: np.ndarray) -> np.ndarray:
        inside = np.abs(self.to_latent(positions)[:, 0]) < 3.0
        return np.where(inside, super().log_prob(positions), -np.inf)


def test_a_state_that_the_density_can_not_propose_is_kept_and_counted(
    reference_contexts: ContextCache, caplog: pytest.LogCaptureFixture
) -> None:
    state, sigma = oscillator()
    move = BoltzmannGeneratorMove(Bounded(np.zeros((1, 3)), sigma), kernel=Independence(20), seed=8)
    outside = np.array([[3.5 * sigma, 0.0, 0.0]])
    speed = np.array([[1.0, 2.0, 3.0]])
    sampler_state = SamplerState(
        unit.Quantity(outside, unit.nanometer), unit.Quantity(speed, unit.nanometer / unit.picosecond)
    )
    with caplog.at_level(logging.WARNING, logger="openmm_bg"):  # whatever level other suites have left
        for _ in range(3):
            move.apply(state, sampler_state, context_cache=reference_contexts)
    np.testing.assert_array_equal(nanometers(sampler_state), outside)
    np.testing.assert_array_equal(velocities(sampler_state), speed)
    assert (move.n_accepted, move.n_proposed, move.n_current_off_support) == (0, 60, 60)
    assert sum("can not propose the current state" in record.message for record in caplog.records) == 1


def test_an_overlapping_start_is_left_at_the_first_proposal_of_finite_energy(reference_contexts: ContextCache) -> None:
    state = ThermodynamicState(trapped_pair(), 300.0 * unit.kelvin)
    places = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    move = BoltzmannGeneratorMove(GaussianDensity(places, 0.03), kernel=Independence(1), seed=9)
    sampler_state = SamplerState(unit.Quantity(np.zeros((2, 3)), unit.nanometer))
    move.apply(state, sampler_state, context_cache=reference_contexts)
    assert move.n_accepted == 1


# ---------------------------------------------------------------------------------------------------- what is written


def test_velocities_are_kept_on_rejection_and_drawn_anew_on_acceptance(contexts: ContextCache) -> None:
    state, sigma = oscillator()
    speed = np.array([[1.0, 2.0, 3.0]])
    for width, accepted in ((sigma, True), (1e6, False)):
        move = BoltzmannGeneratorMove(GaussianDensity(np.zeros((1, 3)), width), kernel=Independence(3), seed=10)
        sampler_state = SamplerState(
            unit.Quantity(np.zeros((1, 3)), unit.nanometer),
            unit.Quantity(speed, unit.nanometer / unit.picosecond),
        )
        move.apply(state, sampler_state, context_cache=contexts)
        assert (move.n_accepted > 0) is accepted
        kept = np.allclose(velocities(sampler_state), speed, rtol=1e-6)
        assert kept is not accepted
        kinetic = 0.5 * 12.0 * (velocities(sampler_state) ** 2).sum()
        assert sampler_state.kinetic_energy.value_in_unit(unit.kilojoule_per_mole) == pytest.approx(kinetic, rel=1e-5)


def test_new_velocities_are_maxwell_boltzmann_and_never_repeat(contexts: ContextCache) -> None:
    state, sigma = oscillator(450.0)
    move = BoltzmannGeneratorMove(GaussianDensity(np.zeros((1, 3)), sigma), kernel=Independence(1), seed=11)
    sampler_state = start()
    drawn = []
    for _ in range(1000):
        move.apply(state, sampler_state, context_cache=contexts)
        drawn.append(velocities(sampler_state)[0])
    assert len(np.unique(np.array(drawn)[:, 0])) > 990
    squares = 12.0 * np.array(drawn).ravel() ** 2 / (kB * 450.0)
    assert abs(squares.mean() - 1.0) < 4.0 * np.sqrt(2.0 / len(squares))


def test_new_velocities_obey_the_constraints(contexts: ContextCache) -> None:
    state = ThermodynamicState(diatomic_system(constrained=True), 300.0 * unit.kelvin)
    move = BoltzmannGeneratorMove(Diatomic(log_width=0.0), kernel=Independence(4), seed=12)
    sampler_state = SamplerState(unit.Quantity(np.array([[0.0, 0.0, 0.0], [0.0, 0.15, 0.0]]), unit.nanometer))
    move.apply(state, sampler_state, context_cache=contexts)
    assert move.n_accepted == 4
    bond = np.subtract(*nanometers(sampler_state))
    assert np.linalg.norm(bond) == pytest.approx(0.15, abs=1e-6)
    assert abs(bond @ np.subtract(*velocities(sampler_state))) < 1e-5


def test_a_state_without_velocities_gets_some_even_on_rejection(reference_contexts: ContextCache) -> None:
    state, _ = oscillator()
    move = BoltzmannGeneratorMove(GaussianDensity(np.zeros((1, 3)), 1e6), kernel=Independence(1), seed=13)
    sampler_state = start()
    move.apply(state, sampler_state, context_cache=reference_contexts)
    assert move.n_accepted == 0
    assert (velocities(sampler_state) != 0.0).all()


def test_virtual_sites_follow_the_accepted_atoms(contexts: ContextCache) -> None:
    state = ThermodynamicState(diatomic_system(virtual_site=True), 300.0 * unit.kelvin)
    move = BoltzmannGeneratorMove(Diatomic(log_width=0.2, virtual_site=True), kernel=Independence(8), seed=14)
    initial = np.array([[0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.09, 0.0, 0.0]])
    sampler_state = SamplerState(unit.Quantity(initial, unit.nanometer))
    move.apply(state, sampler_state, context_cache=contexts)
    assert move.n_accepted > 0
    for positions in (nanometers(sampler_state)[None], move.last_scan.positions):
        np.testing.assert_allclose(positions[:, 2], 0.4 * positions[:, 0] + 0.6 * positions[:, 1], atol=1e-6)


def test_shapes_are_proposed_where_the_molecule_is(reference_contexts: ContextCache) -> None:
    state = ThermodynamicState(diatomic_system(), 300.0 * unit.kelvin)
    move = BoltzmannGeneratorMove(Diatomic(), seed=15)
    initial = np.array([[1.0, 2.0, 3.0], [1.0, 2.15, 3.0]])
    sampler_state = SamplerState(unit.Quantity(initial, unit.nanometer))
    move.apply(state, sampler_state, context_cache=reference_contexts)
    masses = np.array([0.75, 0.25])
    centres = np.einsum("a,nad->nd", masses, move.last_scan.positions)
    np.testing.assert_allclose(centres, np.tile(masses @ initial, (65, 1)), atol=1e-12)
    bonds = move.last_scan.positions[:, 1] - move.last_scan.positions[:, 0]
    np.testing.assert_allclose(bonds[:, [0, 2]], 0.0, atol=1e-12)
    assert (bonds[:, 1] > 0.0).all()


def test_alignment_is_the_optimal_proper_rotation_about_the_centre_of_mass() -> None:
    rng = np.random.default_rng(16)
    reference, weights = rng.standard_normal((7, 3)), rng.uniform(1.0, 16.0, 7)
    positions = np.concatenate([rng.standard_normal((20, 7, 3)), -reference[None]])  # the last one is its mirror image
    aligned = align(positions, reference, weights)
    for before, after in zip(positions, aligned, strict=True):
        centred = before - np.average(before, axis=0, weights=weights)
        target = reference - np.average(reference, axis=0, weights=weights)
        rotation, _ = Rotation.align_vectors(target, centred, weights=weights)
        np.testing.assert_allclose(
            after, rotation.apply(centred) + np.average(reference, axis=0, weights=weights), atol=1e-10
        )
    back = align(reference[None], aligned[0], weights)  # aligning back undoes the turn
    np.testing.assert_allclose(back[0], reference, atol=1e-10)


def test_the_box_and_the_thermodynamic_state_are_left_alone(reference_contexts: ContextCache) -> None:
    state, sigma = oscillator()
    move = BoltzmannGeneratorMove(GaussianDensity(np.zeros((1, 3)), sigma), seed=17)
    sampler_state = start()
    sampler_state.box_vectors = np.diag([3.0, 4.0, 5.0]) * unit.nanometer
    move.apply(state, sampler_state, context_cache=reference_contexts)
    np.testing.assert_array_equal(sampler_state.box_vectors.value_in_unit(unit.nanometer), np.diag([3.0, 4.0, 5.0]))
    assert state.temperature == 300.0 * unit.kelvin


# ---------------------------------------------------------------------------------------------------- interruptions


class Interrupted(GaussianDensity):
    interrupt = True

    def log_prob(self, positions: np.ndarray) -> np.ndarray:
        if self.interrupt and len(positions) == 65:
            raise KeyboardInterrupt
        return super().log_prob(positions)


def test_an_interrupted_application_changes_nothing(reference_contexts: ContextCache) -> None:
    state, sigma = oscillator()
    density = Interrupted(np.zeros((1, 3)), sigma)
    move = BoltzmannGeneratorMove(density, seed=18)
    speed = np.array([[1.0, 2.0, 3.0]])
    sampler_state = SamplerState(
        unit.Quantity(np.full((1, 3), 0.01), unit.nanometer), unit.Quantity(speed, unit.nanometer / unit.picosecond)
    )
    with pytest.raises(KeyboardInterrupt):
        move.apply(state, sampler_state, context_cache=reference_contexts)
    np.testing.assert_array_equal(nanometers(sampler_state), 0.01)
    np.testing.assert_array_equal(velocities(sampler_state), speed)
    assert set(move.statistics.values()) == {0}
    density.interrupt = False
    move.apply(state, sampler_state, context_cache=reference_contexts)
    assert move.n_accepted == 64


def test_positions_that_are_not_finite_are_refused(reference_contexts: ContextCache) -> None:
    state, sigma = oscillator()
    move = BoltzmannGeneratorMove(GaussianDensity(np.zeros((1, 3)), sigma))
    sampler_state = SamplerState(unit.Quantity(np.array([[0.0, np.nan, 0.0]]), unit.nanometer))
    with pytest.raises(ValueError, match=r"current positions of 1 of 1 atoms are not finite \(first: atom 0\)"):
        move.apply(state, sampler_state, context_cache=reference_contexts)


# ---------------------------------------------------------------------------------------------------- refusals


def restrained(force: openmm.Force) -> openmm.System:
    system = diatomic_system()
    system.addForce(force)
    return system


def external_field() -> openmm.System:
    force = openmm.CustomExternalForce("10*x")
    force.addParticle(0)
    return restrained(force)


def hidden_restraint() -> openmm.System:
    force = openmm.CustomCompoundBondForce(2, "0.5*((x1-1)^2+y2^2)")
    force.addBond([0, 1])
    return restrained(force)


def nested_restraint() -> openmm.System:
    inner = openmm.CustomExternalForce("z^2")
    inner.addParticle(1)
    force = openmm.CustomCVForce("cv")
    force.addCollectiveVariable("cv", inner)
    return restrained(force)


def fixed_atom() -> openmm.System:
    system = diatomic_system()
    system.setParticleMass(1, 0.0)
    return system


@pytest.mark.parametrize(
    ("system", "match"),
    [
        (external_field, "CustomExternalForce .* depends on where the molecule is in space"),
        (hidden_restraint, "changed from .* when all particles were moved and turned"),
        (nested_restraint, "changed from .* when all particles were moved and turned"),
        (fixed_atom, r"Particles \[1\] have no mass"),
    ],
)
def test_systems_tied_to_a_place_are_refused_for_generators_without_one(
    contexts: ContextCache, system: Callable[[], openmm.System], match: str
) -> None:
    state = ThermodynamicState(system(), 300.0 * unit.kelvin)
    sampler_state = SamplerState(unit.Quantity(np.array([[0.0, 0.0, 0.0], [0.15, 0.0, 0.0]]), unit.nanometer))
    with pytest.raises(ValueError, match=match):
        BoltzmannGeneratorMove(Diatomic()).apply(state, sampler_state, context_cache=contexts)


def test_a_restraint_that_is_switched_on_later_is_refused_then(reference_contexts: ContextCache) -> None:
    force = openmm.CustomCompoundBondForce(1, "strength*x1^2")
    force.addBond([0])
    force.addGlobalParameter("strength", 0.0)
    state = ThermodynamicState(restrained(force), 300.0 * unit.kelvin)
    sampler_state = SamplerState(unit.Quantity(np.array([[0.0, 0.0, 0.0], [0.15, 0.0, 0.0]]), unit.nanometer))
    move = BoltzmannGeneratorMove(Diatomic())
    move.apply(state, sampler_state, context_cache=reference_contexts)
    context, _ = reference_contexts.get_context(state)
    context.setParameter("strength", 5.0)
    with pytest.raises(ValueError, match="moved and turned"):
        move.apply(state, sampler_state, context_cache=reference_contexts)


@pytest.mark.parametrize("pressure", [None, 1.0 * unit.bar])
def test_explicit_solvent_is_refused_with_what_to_do_instead(
    reference_contexts: ContextCache, pressure: unit.Quantity | None
) -> None:
    water = WaterBox(box_edge=1.9 * unit.nanometer, cutoff=0.8 * unit.nanometer)
    state = ThermodynamicState(water.system, 300.0 * unit.kelvin, pressure)
    density = GaussianDensity(np.zeros((water.system.getNumParticles(), 3)), 1.0)
    with pytest.raises(ValueError, match="Use implicit solvent"):
        BoltzmannGeneratorMove(density).apply(state, SamplerState(water.positions), context_cache=reference_contexts)


def test_a_system_that_the_density_was_not_made_for_is_refused(reference_contexts: ContextCache) -> None:
    state, sigma = oscillator()
    move = BoltzmannGeneratorMove(GaussianDensity(np.zeros((2, 3)), sigma))
    with pytest.raises(ValueError, match="one of 2 atoms, but the System has 1 particles"):
        move.apply(state, start(), context_cache=reference_contexts)


def test_the_system_is_checked_once_per_context_and_not_in_every_application(
    reference_contexts: ContextCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, sigma = oscillator()
    checked: list[int] = []
    monkeypatch.setattr(GaussianDensity, "check", lambda self, system: checked.append(system.getNumParticles()))
    move = BoltzmannGeneratorMove(GaussianDensity(np.zeros((1, 3)), sigma), kernel=Independence(1))
    sampler_state = start()
    for _ in range(5):
        move.apply(state, sampler_state, context_cache=reference_contexts)
        move.apply(oscillator(400.0)[0], sampler_state, context_cache=reference_contexts)
    assert checked == [1]


@pytest.mark.parametrize(
    ("system", "match"),
    [(diatomic_system(constrained=True), "1 constraints"), (fixed_atom(), "without mass")],
)
def test_a_cartesian_gaussian_refuses_constraints_and_fixed_atoms(system: openmm.System, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        GaussianDensity(np.zeros((2, 3)), 0.1).check(system)


@pytest.mark.parametrize("n_proposals", [0, -1, 2.5, "64"])
def test_a_number_of_proposals_that_is_none_is_refused(n_proposals: Any) -> None:
    with pytest.raises(ValueError, match="positive integer"):
        Independence(n_proposals)


def test_what_is_no_density_is_refused() -> None:
    with pytest.raises(ValueError, match="not a proposal density"):
        BoltzmannGeneratorMove("ala2.bg")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- scans and streams


def test_scanned_states_are_the_chain_that_the_sampler_state_ends_in(reference_contexts: ContextCache) -> None:
    state, sigma = oscillator()
    move = BoltzmannGeneratorMove(GaussianDensity(np.zeros((1, 3)), 2.0 * sigma), kernel=Independence(200), seed=19)
    sampler_state = start()
    move.apply(state, sampler_state, context_cache=reference_contexts)
    scan = move.last_scan
    np.testing.assert_array_equal(scan.positions[scan.chain[-1]], nanometers(sampler_state))
    assert 0 < scan.n_accepted < 200
    assert scan.n_accepted == move.n_accepted == len(np.unique(scan.chain[scan.chain > 0]))
    np.testing.assert_array_equal(scan.chain, np.where(scan.accepted, np.arange(1, 201), scan.origin))
    np.testing.assert_allclose(scan.log_weight, -scan.reduced_potential - scan.log_prob)


def test_observers_see_the_scans_of_nested_moves_and_only_within_the_block(reference_contexts: ContextCache) -> None:
    state, sigma = oscillator()
    move = BoltzmannGeneratorMove(GaussianDensity(np.zeros((1, 3)), sigma), kernel=Independence(4), seed=20)
    nested = copy.deepcopy(SequenceMove([move, LangevinDynamicsMove(n_steps=2)]))
    sampler = MCMCSampler(state, start(), nested)
    seen: list[tuple[Scan, ThermodynamicState]] = []
    with observe_scans(lambda *arguments: seen.append(arguments)):
        sampler.run(3, context_cache=reference_contexts)
    sampler.run(2, context_cache=reference_contexts)
    assert len(seen) == 3
    assert [scan.n_proposed for scan, _ in seen] == [4, 4, 4]
    assert seen[0][1].temperature == 300.0 * unit.kelvin
    assert nested.move_list[0].last_scan is not None
    assert move.last_scan is None  # the nested one is a copy


def test_copies_of_a_seeded_move_do_not_repeat_its_random_numbers(reference_contexts: ContextCache) -> None:
    state, sigma = oscillator()
    move = BoltzmannGeneratorMove(GaussianDensity(np.zeros((1, 3)), sigma), seed=21)
    move.apply(state, start(), context_cache=reference_contexts)
    copies = [copy.deepcopy(move), pickle.loads(pickle.dumps(move))]
    assert [duplicate.last_scan for duplicate in copies] == [None, None]
    for duplicate in [move, *copies]:
        duplicate.apply(state, start(), context_cache=reference_contexts)
    first_proposals = {m.last_scan.positions[1, 0, 0] for m in [move, *copies]}
    assert len(first_proposals) == 3


# ---------------------------------------------------------------------------------------------------- the test density


def test_the_gaussian_density_is_normalised_and_inverts_its_latents() -> None:
    density = GaussianDensity(np.array([[0.1, 0.2, 0.3]]) * unit.nanometer, [[1.0, 2.0, 3.0]] * unit.angstrom)
    assert isinstance(density, LatentDensity)
    assert isinstance(density, ProposalDensity)
    samples = density.sample(1000, rng=22)
    np.testing.assert_array_equal(samples.positions, density.sample(1000, rng=22).positions)
    latents = density.to_latent(samples.positions)
    np.testing.assert_allclose(density.from_latent(latents), samples.positions)
    wide = GaussianDensity(density.mean, 2.0 * density.sigma)
    wide_samples = wide.sample(200_000, rng=23)
    weights = np.exp(density.log_prob(wide_samples.positions) - wide_samples.log_prob)
    assert weights.mean() == pytest.approx(1.0, abs=4.0 * weights.std() / np.sqrt(len(weights)))


@pytest.mark.parametrize(
    ("mean", "sigma"), [(np.zeros(3), 1.0), (np.zeros((2, 3)), -1.0), (np.full((1, 3), np.nan), 1.0)]
)
def test_a_gaussian_density_refuses_what_is_none(mean: np.ndarray, sigma: float) -> None:
    with pytest.raises(ValueError, match="must"):
        GaussianDensity(mean, sigma)


def test_energies_in_torch_follow_the_parameters_of_the_context() -> None:
    system = openmm.System()
    force = openmm.CustomBondForce("0.5 * k * stiffness * (r - 0.15)^2")
    force.addGlobalParameter("stiffness", 1.0)
    force.addPerBondParameter("k")
    for _ in range(2):
        system.addParticle(12.0)
    force.addBond(0, 1, [1000.0])
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    positions = np.array([[[0.0, 0.0, 0.0], [0.17, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.14, 0.0]]])
    backend = TorchBackend(system)
    for stiffness in (1.0, 3.0):
        context.setParameter("stiffness", stiffness)
        found = TorchEnergies(context, 2.5, backend).reduced_potential(positions)
        np.testing.assert_allclose(found, ContextEnergies(context, 2.5).reduced_potential(positions), rtol=1e-9)
        np.testing.assert_allclose(found, 0.5 * 1000.0 * stiffness * np.array([0.02, 0.01]) ** 2 / 2.5, rtol=1e-9)


def test_unknown_energies_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of 'openmm', 'torch', 'compiled'"):
        BoltzmannGeneratorMove(GaussianDensity(np.zeros((1, 3)), 0.1), energies="cuda")  # type: ignore[arg-type]
