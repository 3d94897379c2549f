"""The latent walk samples exactly with deliberately bad densities, and each part of its proof is seen when left out.

A molecule of five atoms with a side chain is held against quadrature: every block kind, a base of von Mises circles,
walks mixed with independence proposals, and real generators of reduced coordinates, untrained, whose frozen coordinates
are drawn or kept. Mutants have to fail by more than eight standard deviations.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from openmm import unit
from openmmtools import testsystems
from openmmtools.mcmc import IntegratorMove
from openmmtools.states import SamplerState, ThermodynamicState
from scipy import stats
from small_molecules import TEMPERATURE, deviation, reference_contexts
from walk_fixtures import (
    SERINE,
    AdaptiveStep,
    OneWay,
    PlainStepOnCircles,
    SideChain,
    SideChainDensity,
    TurnedAsDrawn,
    WithoutFrozen,
    WrongScale,
)

from benchmarks.dipeptide_reference import FILE, TEMPERATURES, torsions, valine
from openmm_bg.flows import FlowConfig
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.moves import AcceptanceByKind, BoltzmannGeneratorMove, LatentWalk
from openmm_bg.systems import MolecularSystem
from openmm_bg.testing import GaussianDensity

ALL = ["global", "side_chain", "rotamer", "side_chains", "backbone", "frozen"]
LOOSE = replace(SERINE, coupling=6.0)  # whose side chain turns more easily
SMALL_FLOW = FlowConfig(
    torsion_layers=2, torsion_bins=8, torsion_hidden=16, linear_layers=1, linear_hidden=16, affine_hidden=16
)


@pytest.fixture(autouse=True)
def fresh_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the random numbers of a seeded move independent of the tests that ran before."""
    monkeypatch.setattr("openmm_bg.moves.move._streams", defaultdict(itertools.count))


def run(density: Any, kernel: LatentWalk, n_scans: int = 160) -> tuple[np.ndarray, dict[str, float]]:
    """Every state of the chain, shape (n, 5, 3), and the acceptance of each kind of proposal."""
    move = BoltzmannGeneratorMove(density, kernel=kernel, seed=3)
    state, sampler_state, contexts = SERINE.state(), SERINE.start(), reference_contexts()
    acceptance, chains = AcceptanceByKind(), []
    for number in range(n_scans + 4):
        move.apply(state, sampler_state, contexts)
        if number >= 4:
            acceptance(move.last_scan)
            chains.append(move.last_scan.positions[move.last_scan.chain])
    return np.concatenate(chains), acceptance.fractions


def last_states(density: Any, kernel: LatentWalk, n_starts: int, molecule: SideChain = SERINE) -> np.ndarray:
    """The states after one scan from each of many exact draws, shape (n_starts, 5, 3); independent of each other."""
    move = BoltzmannGeneratorMove(density, kernel=kernel, seed=3)
    state, contexts = molecule.state(), reference_contexts()
    last = []
    for start in molecule.draw(n_starts, np.random.default_rng(2)):
        sampler_state = SamplerState(unit.Quantity(start, unit.nanometer))
        move.apply(state, sampler_state, contexts)
        last.append(sampler_state.positions.value_in_unit(unit.nanometer))
    assert 0.05 < move.fraction_accepted < 0.9
    return np.array(last)


def walk(blocks: list[str], kind: type[LatentWalk] = LatentWalk, **options: Any) -> LatentWalk:
    defaults: dict[str, Any] = {"step": 0.4, "fraction_independence": 0.25, "stretch": 1, "n_candidates": 8}
    return kind(64, blocks=blocks, **(defaults | options))


# ----------------------------------------------------------------------------------- a bad density and quadrature


@pytest.mark.parametrize(
    ("blocks", "concentration"),
    [(["global"], 0.0), (["global"], 2.0), (ALL, 1.0)],
    ids=["global", "global-mises", "all-mises"],
)
def test_a_walk_mixed_with_independence_proposals_is_exact(blocks: list[str], concentration: float) -> None:
    states, acceptance = run(SideChainDensity(concentration), walk(blocks))
    assert set(acceptance) == {*blocks, "independence"}
    assert all(0.02 < fraction < 0.95 for fraction in acceptance.values())
    assert SERINE.far(states) < 3.5


@pytest.mark.parametrize(("block", "concentration"), [(kind, 2.0) for kind in ALL])
def test_exact_draws_stay_exact_under_each_kind_of_block_alone(block: str, concentration: float) -> None:
    kernel = LatentWalk(12, step=0.8, blocks=[block], fraction_independence=0.0, stretch=1, n_candidates=6)
    assert SERINE.far(last_states(SideChainDensity(concentration), kernel, 640)) < 3.5


def test_a_walk_without_independence_proposals_is_exact_by_itself() -> None:
    states, _ = run(SideChainDensity(1.0), walk(ALL, fraction_independence=0.0), 240)
    assert SERINE.far(states) < 3.5


def test_steps_of_size_one_are_exact_too() -> None:
    kernel = LatentWalk(12, step=1.0, blocks=["global", "backbone"], fraction_independence=0.0, stretch=1)
    assert SERINE.far(last_states(SideChainDensity(1.5), kernel, 640)) < 3.5


def test_exact_draws_are_told_from_those_of_a_slightly_different_molecule() -> None:
    """What the deviations above can see."""
    draws = SERINE.draw(10_000, np.random.default_rng(1))
    assert SERINE.far(draws) < 3.5
    draws[:, 4] += 0.005 * (draws[:, 4] - draws[:, 3]) / 0.15  # a bond 0.005 nm longer
    assert SERINE.far(draws) > 8.0


# ---------------------------------------------------------------------------------------------------------- mutants


def test_leaving_out_the_density_of_frozen_coordinates_is_seen_at_eight_sigma() -> None:
    states, _ = run(WithoutFrozen(0.0), walk(ALL))
    assert SERINE.far(states) > 8.0


def test_a_plain_wrapped_step_on_von_mises_circles_is_seen_at_eight_sigma() -> None:
    states, _ = run(SideChainDensity(3.0), walk(["global", "side_chains"], PlainStepOnCircles))
    assert SERINE.far(states) > 8.0
    alone = PlainStepOnCircles(12, step=0.8, blocks=["side_chains"], fraction_independence=0.0)
    assert SERINE.far(last_states(SideChainDensity(3.0), alone, 640)) > 8.0


def test_normal_latents_that_are_shrunk_by_too_little_are_seen_at_eight_sigma() -> None:
    states, _ = run(SideChainDensity(0.0), walk(["global"], WrongScale))
    assert SERINE.far(states) > 8.0


def turned(kind: type[LatentWalk] = LatentWalk, n_starts: int = 1600) -> float:
    """Standard deviations from the exact ensemble after scans of rotamers alone, where many are accepted."""
    kernel = kind(12, blocks=["rotamer"], fraction_independence=0.0, n_candidates=6)
    return LOOSE.far(last_states(SideChainDensity(2.0, LOOSE), kernel, n_starts, LOOSE))


def test_rotamers_are_exact_whatever_the_density_says_of_them() -> None:
    assert turned() < 3.5


def test_side_chains_that_turn_one_way_only_are_seen_at_eight_sigma() -> None:
    assert turned(OneWay, 3200) > 8.0


def test_turned_side_chains_judged_as_if_they_were_draws_are_seen_at_eight_sigma(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("openmm_bg.moves.latent_walk.WalkChain", TurnedAsDrawn)
    assert turned() > 8.0


@pytest.mark.slow
def test_a_step_that_goes_on_adapting_is_seen_at_eight_sigma() -> None:
    kernel = AdaptiveStep(48, step=0.4, blocks=["global"], fraction_independence=0.0)
    assert SERINE.far(last_states(SideChainDensity(0.0), kernel, 960)) > 8.0


# ---------------------------------------------------------------------------------------- openmmtools' own oscillator


@pytest.mark.parametrize("width", [0.6, 1.7])
def test_the_harmonic_oscillator_is_exact_with_a_gaussian_of_the_wrong_width(width: float) -> None:
    oscillator = testsystems.HarmonicOscillator()
    state = ThermodynamicState(oscillator.system, TEMPERATURE * unit.kelvin)
    sigma = np.sqrt((state.kT / oscillator.K).value_in_unit(unit.nanometer**2))
    density = GaussianDensity(np.full((1, 3), 0.2 * sigma), width * sigma)
    move = BoltzmannGeneratorMove(density, kernel=LatentWalk(256, step=0.6, blocks=["global"]), seed=1)
    sampler_state, contexts, chains = SamplerState(oscillator.positions), reference_contexts(), []
    for _ in range(60):
        move.apply(state, sampler_state, contexts)
        chains.append(move.last_scan.positions[move.last_scan.chain, 0] / sigma)
    x = np.array(chains)
    assert deviation(np.concatenate([x, x**2 - 1.0], axis=-1).mean(axis=1)) < 3.5


# ----------------------------------------------------------------------------- untrained generators, exact starts


def untrained(molecule: Any, positions: np.ndarray, frozen: str, widening: float) -> BoltzmannGenerator:
    """A generator that learnt nothing, its layers scrambled."""
    generator = BoltzmannGenerator.from_system(
        molecule.system,
        molecule.topology,
        TEMPERATURE,
        coordinates="reduced",
        frozen=frozen,
        flow=SMALL_FLOW,
        positions=positions,
        seed=0,
    )
    numbers = torch.Generator().manual_seed(7)
    with torch.no_grad():
        generator.features.scale.mul_(widening)
        for parameter in generator.flow.parameters():
            parameter.add_(0.07 * torch.randn(parameter.shape, generator=numbers))
    return generator


def of_serine(frozen: str) -> BoltzmannGenerator:
    """Too wide in all that is not chi."""
    molecule = MolecularSystem(SERINE.system(), SERINE.topology(), SERINE.reference())
    generator = untrained(molecule, SERINE.reference(), frozen, 2.5)
    generator.rotamers = SideChainDensity().rotamers  # without hydrogens no atom looks tetrahedral
    return generator


@pytest.mark.slow
@pytest.mark.parametrize(("frozen", "blocks"), [("keep", ALL[:5]), ("thermal", ALL)])
def test_exact_draws_stay_exact_under_the_walk_of_an_untrained_generator(frozen: str, blocks: list[str]) -> None:
    generator = of_serine(frozen)
    kernel = LatentWalk(24, step=0.4, blocks=blocks, fraction_independence=0.15, n_candidates=4)
    assert SERINE.far(last_states(generator, kernel, 640)) < 3.5


@pytest.mark.slow
def test_keep_holds_the_frozen_coordinates_and_moves_the_others() -> None:
    generator = of_serine("keep")
    move = BoltzmannGeneratorMove(generator, kernel=LatentWalk(64, blocks=ALL[:5], step=0.3), seed=1)
    sampler_state, before = SERINE.start(), SERINE.coordinates(SERINE.reference()[None])[0]
    for _ in range(5):
        move.apply(SERINE.state(), sampler_state, reference_contexts())
    after = SERINE.coordinates(sampler_state.positions.value_in_unit(unit.nanometer)[None])[0]
    changed = np.abs(after - before) > 1e-6
    assert changed.tolist() == [False] * 4 + [True, False, False] + [False, True]  # the angle N-CA-C and chi


# ------------------------------------------------------------- a capped dipeptide against temperature replica exchange

N_BLOCKS = 30


def block_means(found: np.ndarray) -> np.ndarray:
    """Fourier components of phi, psi and chi1 within phi < 0 and trans peptide bonds, shape (N_BLOCKS, 10)."""
    phi, psi, chi, *omega = np.moveaxis(found[: len(found) // N_BLOCKS * N_BLOCKS].astype(float), -1, 0)
    inside = (phi < 0.0) & (np.abs(omega) > 0.5 * np.pi).all(axis=0)
    values = [f(angle) for angle in (phi, psi, chi, 2.0 * psi, 2.0 * chi) for f in (np.cos, np.sin)]
    masked = (np.stack(values, -1) * inside[:, None]).reshape(N_BLOCKS, -1, len(values)).sum(axis=1)
    return masked / inside.reshape(N_BLOCKS, -1).sum(axis=1, keepdims=True)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Combined chi-squared of two sets of block averages, as the normal deviate of equal probability."""
    n, p = 2 * N_BLOCKS, first.shape[1]
    d = first.mean(axis=0) - second.mean(axis=0)
    t_squared = d @ np.linalg.solve((np.cov(first.T) + np.cov(second.T)) / N_BLOCKS, d)
    log_probability = stats.f.logsf((n - p - 1) / (p * (n - 2)) * t_squared, p, n - p - 1)
    return float(stats.norm.isf(np.exp(max(log_probability, -690.0))))


def walked(frozen: str, n_scans: int = 300, seed: int = 1) -> np.ndarray:
    """Torsions of every state of a walk in turn with dynamics."""
    molecule, temperature = valine(), TEMPERATURES[0]
    generator = untrained(molecule, molecule.positions, frozen, 1.5)
    state = ThermodynamicState(molecule.system, temperature * unit.kelvin)
    sampler_state, contexts = SamplerState(molecule.positions * unit.nanometer), reference_contexts()
    integrator = openmm.LangevinMiddleIntegrator(temperature, 1.0, 0.002)
    integrator.setRandomNumberSeed(seed)
    dynamics = IntegratorMove(integrator, 1000)
    kernel = LatentWalk(64, step={"global": 0.12, "side_chains": 0.3, "backbone": 0.3}, blocks=ALL[:5], n_candidates=8)
    move = BoltzmannGeneratorMove(generator, kernel=kernel, seed=seed)
    for _ in range(20):
        dynamics.apply(state, sampler_state, context_cache=contexts)
    found = []
    for _ in range(n_scans):
        dynamics.apply(state, sampler_state, context_cache=contexts)
        move.apply(state, sampler_state, contexts)
        found.append(torsions(molecule, move.last_scan.positions[move.last_scan.chain]))
    assert 0.1 < move.fraction_accepted < 0.7
    return np.concatenate(found)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["keep", "thermal"])
def test_chi_phi_and_psi_of_a_capped_dipeptide_are_those_of_replica_exchange(frozen: str) -> None:
    with np.load(FILE) as stored:
        reference = block_means(stored["torsions"])
    found = walked(frozen)
    assert difference(block_means(found), reference) < 3.5
