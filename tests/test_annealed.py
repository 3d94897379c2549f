"""Annealed proposals are exact with bad generators, and each part of the proof is missed when it is left out."""

from __future__ import annotations

import itertools
import logging
import os
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
import pytest
import torch
import yaml
from annealed_fixtures import (
    Asymmetric,
    DifferentiableGaussian,
    NotPalindromic,
    QuarticWells,
    WithoutWork,
    many_chains,
)
from exactness_fixtures import FLOWS, MOLECULES, REPARTITIONED, UMBRELLA, scrambled, shifted
from openmm import unit
from openmmtools import utils
from openmmtools.states import SamplerState, ThermodynamicState
from scipy.special import eval_legendre, expit
from small_molecules import SmallMolecule, deviation, reference_contexts

from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.moves import (
    Annealed,
    AnnealedScan,
    BoltzmannGeneratorMove,
    Independence,
    LatentHMC,
    LatentLangevin,
)
from openmm_bg.moves.energies import ContextEnergies
from openmm_bg.moves.propagation import LatentTarget
from openmm_bg.testing import GaussianDensity

N_PROPOSALS = 256
PROPAGATIONS = {"metropolised": LatentHMC(0.4), "with shadow work": LatentLangevin(0.4)}


@pytest.fixture(autouse=True)
def fresh_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the random numbers of a seeded move independent of the tests that ran before."""
    monkeypatch.setattr("openmm_bg.moves.move._streams", defaultdict(itertools.count))


def run(
    molecule: SmallMolecule, generator: BoltzmannGenerator, kernel: Any, n_scans: int, energies: Any = "openmm"
) -> tuple[np.ndarray, BoltzmannGeneratorMove]:
    """Every state of the chain in blocks, shape (2 n_scans, n_proposals / 2, n_atoms, 3), and the move."""
    move = BoltzmannGeneratorMove(generator, kernel=kernel, energies=energies, seed=3)
    state, sampler_state, contexts = molecule.state(), molecule.start(), reference_contexts()
    chains = []
    for _ in range(n_scans + 2):
        move.apply(state, sampler_state, contexts)
        chains.append(move.last_scan.positions[move.last_scan.chain])
    return np.concatenate(chains[2:]).reshape(2 * n_scans, -1, molecule.n_atoms, 3), move


# ------------------------------------------------------------------------------- a bad flow against quadrature


@pytest.mark.parametrize("propagation", PROPAGATIONS)
@pytest.mark.parametrize("name", ["bent", "coupled constraints"])
def test_a_bad_flow_gives_the_exact_distribution(name: str, propagation: str) -> None:
    molecule = MOLECULES[name]
    kernel = Annealed(N_PROPOSALS, 3, PROPAGATIONS[propagation], power=1.5)
    states, move = run(molecule, shifted(molecule), kernel, 50)
    assert 0.05 < move.fraction_accepted < 0.8
    assert molecule.deviation(states) < 3.5


@pytest.mark.slow
@pytest.mark.parametrize("propagation", PROPAGATIONS)
@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("name", MOLECULES)
def test_every_bad_flow_gives_the_exact_distribution(name: str, flow: str, propagation: str) -> None:
    molecule = MOLECULES[name]
    kernel = Annealed(N_PROPOSALS, 3, PROPAGATIONS[propagation], power=1.5)
    states, move = run(molecule, FLOWS[flow](molecule), kernel, 60)
    assert 0.05 < move.fraction_accepted < 0.8
    assert molecule.deviation(states) < 3.5


@pytest.mark.parametrize("name", ["bent", "coupled constraints"])
def test_forgetting_the_work_is_seen_at_eight_sigma(name: str) -> None:
    molecule = MOLECULES[name]
    states, _ = run(molecule, shifted(molecule), WithoutWork(N_PROPOSALS, 3, LatentHMC(0.4)), 30)
    assert molecule.deviation(states) > 8.0


def test_energies_in_torch_give_the_same_works() -> None:
    scans = []
    for energies in ("openmm", "torch"):
        move = BoltzmannGeneratorMove(shifted(UMBRELLA), kernel=Annealed(16, 4), energies=energies, seed=3)
        move._rng, move._rng_process = np.random.default_rng(8), os.getpid()
        move.apply(UMBRELLA.state(), UMBRELLA.start(), reference_contexts())
        scans.append(move.last_scan)
    np.testing.assert_allclose(scans[0].work, scans[1].work, rtol=1e-6)
    np.testing.assert_array_equal(scans[0].chain, scans[1].chain)


# -------------------------------------------------- single proposals of many chains, on a target known by quadrature

GAUSSIAN = DifferentiableGaussian(np.full((2, 3), 0.03), 0.1)
WELLS = QuarticWells(0.1)


def deviation_of_many_chains(kernel: Annealed) -> float:
    """Of chains that start in the exact distribution and are offered six proposals, each with a path of its own."""
    start = WELLS.sample((40_000, *GAUSSIAN.mean.shape), np.random.default_rng(5))
    z = many_chains(kernel, GAUSSIAN, WELLS, GAUSSIAN.to_latent(start), 6)
    quantiles = WELLS.quantiles(GAUSSIAN.from_latent(z)).reshape(80, -1)
    return deviation(np.stack([eval_legendre(k, 2.0 * quantiles - 1.0).mean(axis=1) for k in range(1, 5)], -1))


@pytest.mark.parametrize("n_steps", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("propagation", PROPAGATIONS)
def test_single_proposals_leave_the_exact_distribution(propagation: str, n_steps: int) -> None:
    assert deviation_of_many_chains(Annealed(1, n_steps, PROPAGATIONS[propagation], power=1.0)) < 3.5


@pytest.mark.parametrize(
    "mutant",
    [
        WithoutWork(1, 1, LatentHMC(0.3), power=1.0),
        Asymmetric(1, 1, LatentHMC(0.3), power=1.0),
        Asymmetric(1, 1, LatentLangevin(0.3), power=1.0),
        Annealed(1, 1, NotPalindromic(0.3), power=1.0),
    ],
    ids=["no work", "asymmetric order", "asymmetric order, shadow work", "splitting that is not palindromic"],
)
def test_mutants_are_seen_at_eight_sigma(mutant: Annealed) -> None:
    assert deviation_of_many_chains(mutant) > 8.0


@pytest.mark.parametrize("propagation", PROPAGATIONS)
def test_works_both_ways_give_the_free_energy_by_quadrature(propagation: str) -> None:
    """Bennett's equation for the works up and down, and Jarzynski's for those up."""
    rng = np.random.default_rng(2)
    n, target = 40_000, LatentTarget(GAUSSIAN, WELLS)  # type: ignore[arg-type]
    exact = GAUSSIAN.to_latent(WELLS.sample((n, *GAUSSIAN.mean.shape), rng))
    down = np.arange(2 * n) < n
    kernel = Annealed(1, 6, PROPAGATIONS[propagation], power=1.0)
    paths = kernel.paths(target, np.concatenate([exact, target.draw(n, rng)]), down, rng)
    expected = -GAUSSIAN.n_dof * WELLS.log_partition
    dissipated = paths.work - expected
    up = np.exp(-dissipated[~down])
    assert abs(up.mean() - 1.0) < 3.5 * up.std() / np.sqrt(n) < 0.05
    acceptances = expit(-dissipated[~down]), expit(dissipated[down])
    error = np.hypot(*(np.std(fraction) for fraction in acceptances)) / np.sqrt(n)
    assert abs(acceptances[0].mean() - acceptances[1].mean()) < 3.5 * error < 0.01


def test_longer_paths_dissipate_less() -> None:
    rng, target = np.random.default_rng(3), LatentTarget(GAUSSIAN, WELLS)  # type: ignore[arg-type]
    z, up = target.draw(20_000, rng), np.zeros(20_000, dtype=bool)
    spread = [Annealed(1, n, LatentHMC(0.6), power=1.0).paths(target, z, up, rng).work.std() for n in (1, 4, 16)]
    assert spread[0] > 1.2 * spread[1] > 1.5 * spread[2]


# ----------------------------------------------------------------------------------- round trips that do not close


class Folded(DifferentiableGaussian):
    """Latents of what has x > 0 are those of its mirror image in that plane: decoded, it is elsewhere."""

    def to_latent(self, positions: np.ndarray) -> np.ndarray:
        folded = positions.copy()
        folded[..., 0] = -np.abs(folded[..., 0])
        return super().to_latent(folded)


class Tilted:
    """A Gaussian about (0.1, 0, 0) nm, of width 0.1 nm; stands for a Context."""

    centre = np.array([[0.1, 0.0, 0.0]])

    def reduced_potential_and_gradient(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        offset = (positions - self.centre) / 0.1
        return 0.5 * (offset**2).sum(axis=(1, 2)), offset / 0.1


@dataclass(frozen=True)
class NeverLooksBack(Annealed):
    """Mutant: takes what the latents decode to for what they came from."""

    def _closed(self, density: Any, current: Any, place: Any, first: Any, last: Any) -> np.ndarray:
        return np.ones(len(last.z), dtype=bool)


def deviation_in_turn_with_random_steps(kernel: Annealed) -> float:
    """Of x, its square and its sign in a chain of scans, with a step of a random walk that is exact before each."""
    rng, target, density = np.random.default_rng(4), Tilted(), Folded(np.zeros((1, 3)), 0.16)
    x, seen, off_support = Tilted.centre, [], []
    for _ in range(4000):
        trial = x + 0.08 * rng.standard_normal(x.shape)
        (u, u_trial), _ = target.reduced_potential_and_gradient(np.stack([x, trial]))
        x = trial if -rng.standard_exponential() < u - u_trial else x
        scan = kernel.scan(density, x, lambda positions: positions, target, rng)  # type: ignore[arg-type]
        off_support.append(scan.start_off_support)
        assert scan.start_off_support in (x[0, 0] > 0.0, False)
        x = scan.positions[scan.chain[-1]]
        seen.append((x[0, 0] - 0.1) / 0.1)
    assert (np.mean(off_support) > 0.2) == (type(kernel) is Annealed)
    columns = np.stack([np.array(seen), np.square(seen) - 1.0, np.sign(seen)], -1)
    return deviation(columns.reshape(40, -1, 3).mean(axis=1))


@pytest.mark.parametrize("propagation", [LatentHMC(0.1), LatentLangevin(0.1)], ids=PROPAGATIONS)
def test_configurations_that_latents_do_not_bring_back_are_neither_left_nor_proposed(propagation: Any) -> None:
    assert deviation_in_turn_with_random_steps(Annealed(1, 2, propagation, power=1.0)) < 3.5


def test_not_looking_back_is_seen_at_eight_sigma() -> None:
    assert deviation_in_turn_with_random_steps(NeverLooksBack(1, 2, LatentHMC(0.1), power=1.0)) > 8.0


# ----------------------------------------------------------------------------------------------------------- pieces


def target_of(molecule: SmallMolecule, generator: BoltzmannGenerator) -> LatentTarget:
    state = molecule.state()
    context, _ = reference_contexts().get_context(state)
    return LatentTarget(generator, ContextEnergies(context, state.kT.value_in_unit(unit.kilojoule_per_mole)))


@pytest.mark.parametrize("molecule", [UMBRELLA, REPARTITIONED], ids=["sibling torsion", "constraints"])
def test_the_latent_potential_is_minus_the_log_weight_and_has_its_gradient(molecule: SmallMolecule) -> None:
    generator = scrambled(molecule)
    target = target_of(molecule, generator)
    z = target.draw(20, np.random.default_rng(1))
    found = target.evaluate(z)
    log_weight = -target.energies.reduced_potential(found.positions) - generator.log_prob(found.positions)
    np.testing.assert_allclose(-found.phi, log_weight, atol=1e-3)
    step = 1e-3
    for i in range(generator.n_dof):
        shift = step * (np.arange(generator.n_dof) == i)
        slope = (target.evaluate(z + shift).phi - target.evaluate(z - shift).phi) / (2.0 * step)
        np.testing.assert_allclose(found.gradient[:, i], slope, rtol=0.02, atol=0.05)


def test_no_steps_are_independence_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    chains = []
    for kernel in (Independence(50), Annealed(50, n_steps=0)):
        monkeypatch.setattr("openmm_bg.moves.move._streams", defaultdict(itertools.count))
        states, move = run(REPARTITIONED, shifted(REPARTITIONED), kernel, 3)
        chains.append((states, move.last_scan.log_weight, move.statistics))
    np.testing.assert_array_equal(chains[0][0], chains[1][0])
    np.testing.assert_array_equal(chains[0][1], chains[1][1])
    assert chains[0][2] == chains[1][2]


def test_proposals_end_in_the_pose_of_the_current_state() -> None:
    move = BoltzmannGeneratorMove(shifted(UMBRELLA), kernel=Annealed(20, 2), seed=3)
    far = UMBRELLA.reference() + [7.0, -3.0, 1.0]
    move.apply(UMBRELLA.state(), SamplerState(far * unit.nanometer), reference_contexts())
    scan = move.last_scan
    assert isinstance(scan, AnnealedScan)
    np.testing.assert_array_equal(scan.positions[0], far)
    masses = np.array(UMBRELLA.masses)
    centres = np.einsum("a,nad->nd", masses / masses.sum(), scan.positions)
    np.testing.assert_allclose(centres, np.broadcast_to(centres[0], centres.shape), atol=1e-9)
    assert scan.n_evaluations == 21 * 3
    assert 0.0 < scan.fraction_propagated <= 1.0
    np.testing.assert_array_equal(scan.work, -scan.log_weight)


# -------------------------------------------------------------------------------------------------- what goes wrong


class Holes(DifferentiableGaussian):
    """Half of all latents decode to no configuration."""

    def from_latent_tensor(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions, log_prob = super().from_latent_tensor(latents)
        hole = latents[:, 0] > 0.0
        return torch.where(hole[:, None, None], torch.nan, positions), torch.where(hole, -torch.inf, log_prob)


def oscillator(power: int = 2) -> tuple[Any, SamplerState]:
    system = openmm.System()
    system.addParticle(12.0)
    force = openmm.CustomExternalForce(f"100*(x^{power} + y^{power} + z^{power})")
    force.addParticle(0)
    system.addForce(force)
    return ThermodynamicState(system, 300.0 * unit.kelvin), SamplerState(np.full((1, 3), -0.05) * unit.nanometer)


@pytest.mark.parametrize("propagation", PROPAGATIONS.values(), ids=PROPAGATIONS)
def test_paths_through_what_is_not_finite_are_counted_rejections(propagation: Any) -> None:
    state, sampler_state = oscillator()
    move = BoltzmannGeneratorMove(Holes(np.zeros((1, 3)), 0.15), kernel=Annealed(50, 3, propagation), seed=1)
    for _ in range(20):
        move.apply(state, sampler_state, reference_contexts())
        scan = move.last_scan
        lost = ~np.isfinite(scan.log_prob) | ~np.isfinite(scan.positions).all(axis=(1, 2))
        assert not lost[scan.chain].any()
        assert (sampler_state.positions.value_in_unit(unit.nanometer)[:, 0] < 0.0).all()
    assert move.n_off_support > 300
    assert move.n_accepted > 100


def test_dynamics_that_blows_up_is_never_accepted_and_keeps_the_state() -> None:
    state, sampler_state = oscillator(power=8)
    kernel = Annealed(20, 30, LatentLangevin(100.0), power=1.0)
    move = BoltzmannGeneratorMove(DifferentiableGaussian(np.zeros((1, 3)), 10.0), kernel=kernel, seed=1)
    before = sampler_state.positions.value_in_unit(unit.nanometer).copy()
    move.apply(state, sampler_state, reference_contexts())
    assert move.n_accepted == 0
    assert move.n_off_support + move.n_nonfinite_energy > 0
    np.testing.assert_array_equal(sampler_state.positions.value_in_unit(unit.nanometer), before)


class Elsewhere(DifferentiableGaussian):
    """A density without latents for what is not in it."""

    def to_latent(self, positions: np.ndarray) -> np.ndarray:
        return np.full((len(positions), self.n_dof), np.nan)


def test_a_start_off_the_support_is_kept_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    state, sampler_state = oscillator()
    move = BoltzmannGeneratorMove(Elsewhere(np.zeros((1, 3)), 0.15), kernel=Annealed(5, 2), seed=1)
    with caplog.at_level(logging.WARNING):
        move.apply(state, sampler_state, reference_contexts())
    assert (move.n_accepted, move.n_current_off_support) == (0, 5)
    assert "can not propose the current state" in caplog.text


def test_a_density_without_a_gradient_is_refused() -> None:
    state, sampler_state = oscillator()
    move = BoltzmannGeneratorMove(GaussianDensity(np.zeros((1, 3)), 0.1), kernel=Annealed(2, 1))
    with pytest.raises(ValueError, match="GaussianDensity has no from_latent_tensor"):
        move.apply(state, sampler_state, reference_contexts())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Annealed(0), "n_proposals must be an integer of at least 1"),
        (lambda: Annealed(4, -1), "n_steps must be an integer of at least 0"),
        (lambda: Annealed(4, 2.5), "n_steps must be an integer"),  # type: ignore[arg-type]
        (lambda: Annealed(4, 2, power=0.0), "power must be a positive number"),
        (lambda: LatentHMC(0.0), "step must be a positive number"),
        (lambda: LatentHMC(0.1, 0), "n_leapfrog must be a positive integer"),
        (lambda: LatentLangevin(0.1, -1.0), "friction must be a positive number"),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


# ---------------------------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize("propagation", [LatentHMC(0.1, 3), LatentLangevin(0.2, 5.0)])
def test_kernels_are_stored_as_plain_values_and_restored(propagation: Any) -> None:
    kernel = Annealed(8, 5, propagation, power=2.0)
    move = BoltzmannGeneratorMove(GAUSSIAN, kernel=kernel, seed=5)
    stored = yaml.safe_dump(utils.serialize(move))
    assert utils.deserialize(yaml.safe_load(stored)).kernel == kernel


@pytest.mark.parametrize(
    ("name", "match"), [("builtins:dict", "as an option, which is none"), ("openmm_bg.moves:Scan", "Scan")]
)
def test_only_kernels_are_restored(name: str, match: str) -> None:
    move = BoltzmannGeneratorMove(GAUSSIAN, kernel=Annealed(8, 5), seed=5)
    state = move.__getstate__()
    state["kernel"] = {"class": name}
    with pytest.raises((ValueError, TypeError), match=match):
        BoltzmannGeneratorMove.__new__(BoltzmannGeneratorMove).__setstate__(state)
    state["kernel"] = {"class": "openmm_bg.moves.propagation:LatentHMC", "step": 0.1, "n_leapfrog": 1}
    with pytest.raises(ValueError, match="as its kernel, which is none"):
        BoltzmannGeneratorMove.__new__(BoltzmannGeneratorMove).__setstate__(state)
