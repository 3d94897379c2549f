"""The latent walk's blocks, plans, bookkeeping and failures; its steps are tuned in a phase that ends, and stored."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from openmm import app, unit
from openmmtools.mcmc import LangevinDynamicsMove
from openmmtools.states import SamplerState, ThermodynamicState
from scipy import stats
from small_molecules import TEMPERATURE, reference_contexts
from walk_fixtures import SERINE, SideChainDensity

from openmm_bg.base import Base
from openmm_bg.density import LatentLabels
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.moves import (
    AcceptanceByKind,
    BoltzmannGeneratorMove,
    BoltzmannGeneratorSampling,
    Independence,
    LatentWalk,
    TuningError,
    observe_scans,
    tune_in_simulation,
    tune_latent_walk,
)
from openmm_bg.moves.energies import ContextEnergies
from openmm_bg.moves.kernel import restored_kernel, stored_options
from openmm_bg.moves.latent_blocks import LatentBlocks, redrawn, stepped
from openmm_bg.testing import GaussianDensity

ALL = ["global", "side_chain", "side_chains", "backbone", "frozen"]


def applied(density: Any, kernel: LatentWalk, start: np.ndarray | None = None) -> BoltzmannGeneratorMove:
    move = BoltzmannGeneratorMove(density, kernel=kernel, seed=1)
    positions = SERINE.reference() if start is None else start
    move.apply(SERINE.state(), SamplerState(unit.Quantity(positions, unit.nanometer)), reference_contexts())
    return move


# ----------------------------------------------------------------------------------------------- steps and blocks


def test_steps_leave_the_base_as_it_is_and_forget_as_they_should() -> None:
    base, rng, step = Base(1, 1), np.random.default_rng(1), 0.6
    before = base.draw(20_000, rng)
    everything = np.ones((1, 2), dtype=bool)
    after = np.concatenate([stepped(base, z, everything, step, rng) for z in before])
    assert stats.kstest(after[:, 1], "norm").pvalue > 1e-3
    assert stats.kstest(after[:, 0], stats.uniform(-np.pi, 2.0 * np.pi).cdf).pvalue > 1e-3
    assert np.corrcoef(before[:, 1], after[:, 1])[0, 1] == pytest.approx(np.sqrt(1.0 - step**2), abs=0.02)
    turned = np.remainder(after[:, 0] - before[:, 0] + np.pi, 2.0 * np.pi) - np.pi
    assert stats.kstest(turned, stats.uniform(-step * np.pi, 2.0 * step * np.pi).cdf).pvalue > 1e-3


def test_a_step_of_one_is_a_fresh_draw_of_a_uniform_base() -> None:
    base, rng = Base(2, 2), np.random.default_rng(1)
    found = stepped(base, np.array([3.0, -1.0, 8.0, -8.0]), np.ones((20_000, 4), dtype=bool), 1.0, rng)
    assert stats.kstest(found[:, 0], stats.uniform(-np.pi, 2.0 * np.pi).cdf).pvalue > 1e-3
    assert stats.kstest(found[:, 2], "norm").pvalue > 1e-3


def test_what_a_block_does_not_hold_is_left_alone() -> None:
    base, rng, z = Base(2, 2), np.random.default_rng(1), np.array([3.0, -1.0, 8.0, -8.0])
    moves = np.array([[True, False, False, True]] * 5)
    for found in (stepped(base, z, moves, 0.5, rng), redrawn(base, z, moves, rng)):
        np.testing.assert_array_equal(found[:, 1:3], np.broadcast_to(z[1:3], (5, 2)))
        assert (found[:, [0, 3]] != z[[0, 3]]).all()


class Labelled(SideChainDensity):
    """Four residues: a side chain of two latents in each of the first two, a backbone latent in each."""

    def __init__(self) -> None:
        super().__init__()
        kinds = ["side_chain"] * 4 + ["backbone"] * 4 + ["frozen"]
        self.latent_labels = LatentLabels(np.array([0, 0, 1, 1, 0, 1, 2, 3, 2]), np.array(kinds))


def test_blocks_are_residues_stretches_and_all_side_chains_each_as_likely() -> None:
    blocks, rng = LatentBlocks(Labelled(), ALL, 2), np.random.default_rng(1)

    def found(kind: str) -> Counter[tuple[int, ...]]:
        return Counter(tuple(np.flatnonzero(row).tolist()) for row in blocks.choose(kind, 5000, rng))

    assert set(found("global")) == set(found("independence")) == {tuple(range(9))}
    assert set(found("side_chains")) == {(0, 1, 2, 3)}
    assert set(found("frozen")) == {(8,)}
    for kind, expected in (
        ("side_chain", {(0, 1), (2, 3)}),
        ("backbone", {(4,), (4, 5), (5, 6), (6, 7), (7,)}),  # each residue in two stretches
    ):
        counts = found(kind)
        assert set(counts) == expected
        assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_a_proposal_differs_from_the_state_it_was_judged_from_in_its_block_alone() -> None:
    density = SideChainDensity(1.0)
    kernel = LatentWalk(160, step=0.4, blocks=ALL, stretch=1, n_candidates=8)
    scan = applied(density, kernel).last_scan
    z = density.to_latent(scan.positions)
    change = np.remainder(z[1:] - z[scan.origin] + np.pi, 2.0 * np.pi) - np.pi
    labels = density.latent_labels
    for kind, moved in zip(scan.kind, np.abs(change) > 1e-9, strict=True):
        if kind in ("global", "independence"):
            assert moved.all()
        elif kind == "side_chains":
            assert (moved == (labels.kind == "side_chain")).all()
        else:
            (residue,) = set(labels.residue[moved].tolist())
            assert (moved == ((labels.kind == kind) & (labels.residue == residue))).all()
    assert 0.1 < scan.n_accepted / scan.n_proposed < 0.9


# ---------------------------------------------------------------------------------------------------- bookkeeping


@pytest.mark.parametrize(("fraction", "n_proposals"), [(0.0, 7), (0.05, 64), (0.5, 10), (1.0, 5)])
def test_proposals_are_divided_evenly_among_blocks_at_the_set_rate(fraction: float, n_proposals: int) -> None:
    kernel = LatentWalk(n_proposals, blocks=ALL[:3], fraction_independence=fraction, n_candidates=4)
    rng, totals = np.random.default_rng(1), Counter()
    for _ in range(2000):
        plan = list(kernel._plan(rng))
        assert sum(count for _, count in plan) == n_proposals
        assert all(1 <= count <= 4 for _, count in plan)
        for kind, count in plan:
            totals[kind] += count
    share = np.array([totals[kind] for kind in ALL[:3]]) / (2000 * n_proposals)
    np.testing.assert_allclose(share, (1.0 - fraction) / 3.0, atol=0.01)
    assert totals["independence"] / (2000 * n_proposals) == pytest.approx(fraction, abs=0.01)


def test_shares_of_blocks_are_what_was_asked_for() -> None:
    kernel = LatentWalk(7, blocks=ALL[:3], shares=[1, 0.1, 3], fraction_independence=0.0, n_candidates=4)
    assert restored_kernel(stored_options(kernel)) == kernel
    rng, totals = np.random.default_rng(1), Counter()
    for _ in range(4000):
        for kind, count in kernel._plan(rng):
            totals[kind] += count
    share = np.array([totals[kind] for kind in ALL[:3]]) / (4000 * 7)
    np.testing.assert_allclose(share, np.array([1.0, 0.1, 3.0]) / 4.1, atol=0.005)


def test_rows_have_their_own_energies_densities_and_weights() -> None:
    density = SideChainDensity(1.0)
    scan = applied(density, LatentWalk(64, step=0.3, blocks=ALL, fraction_independence=0.2)).last_scan
    context, _ = reference_contexts().get_context(SERINE.state())
    energies = ContextEnergies(context, SERINE.state().kT.value_in_unit(unit.kilojoule_per_mole))
    np.testing.assert_allclose(scan.reduced_potential, energies.reduced_potential(scan.positions.copy()), atol=1e-9)
    np.testing.assert_allclose(scan.log_prob, density.log_prob(scan.positions), atol=1e-9)
    np.testing.assert_allclose(scan.log_weight, -scan.reduced_potential - scan.log_prob, atol=1e-9)
    np.testing.assert_array_equal(scan.chain[scan.accepted], np.flatnonzero(scan.accepted) + 1)


class Counted(SideChainDensity):
    """Counts passes through its map."""

    n_passes = 0

    def from_latent(self, latents: np.ndarray) -> np.ndarray:
        self.n_passes += 1
        return super().from_latent(latents)


def test_few_passes_and_no_energy_more_than_there_are_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    n_energies = []
    original = ContextEnergies.reduced_potential
    monkeypatch.setattr(
        ContextEnergies, "reduced_potential", lambda self, x: (n_energies.append(len(x)), original(self, x))[1]
    )
    density = Counted()
    applied(density, LatentWalk(64, blocks=["side_chain"], fraction_independence=0.0))
    assert density.n_passes == 1 + 4  # the current state, and 16 candidates at a time
    assert sum(n_energies) == 1 + 64
    density, n_energies[:] = Counted(), []
    scan = applied(density, LatentWalk(64, step=0.4, blocks=["global"], fraction_independence=0.0)).last_scan
    assert density.n_passes <= 1 + 64 / 4 + scan.n_accepted + 4
    assert sum(n_energies) == 1 + 64


def test_energies_that_are_known_ahead_change_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    density, kernel = SideChainDensity(1.0), LatentWalk(120, step=0.4, blocks=ALL, target_acceptance=0.1)
    monkeypatch.setattr(BoltzmannGeneratorMove, "_random", lambda self: np.random.default_rng(1))
    one_by_one = applied(density, kernel).last_scan
    monkeypatch.setattr(ContextEnergies, "batched", True)
    at_once = applied(density, kernel).last_scan
    assert 10 < one_by_one.n_accepted < 110
    for field in dataclasses.fields(one_by_one):
        np.testing.assert_array_equal(getattr(at_once, field.name), getattr(one_by_one, field.name))


def test_what_is_known_of_a_proposal_that_was_not_judged_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    start = SideChainDensity(1.0).to_latent(SERINE.reference()[None])[0, 0]

    class Lossy(SideChainDensity):
        def encode(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            latents, log_prob = super().encode(positions)
            return latents, np.where(np.cos(latents[:, 0] - start) < 0.3, -np.inf, log_prob)

    monkeypatch.setattr(ContextEnergies, "batched", True)
    scan = applied(Lossy(1.0), LatentWalk(200, step=0.5, blocks=["global"], target_acceptance=0.1)).last_scan
    lost = ~np.isfinite(scan.log_prob)
    assert 10 < lost.sum() < 150
    assert not np.isfinite(scan.log_weight[lost]).any()
    assert not np.isfinite(scan.reduced_potential[lost]).any()


def test_acceptance_is_counted_by_kind_for_observers() -> None:
    acceptance = AcceptanceByKind()
    move = BoltzmannGeneratorMove(SideChainDensity(), kernel=LatentWalk(32, blocks=ALL[:2]), seed=1)
    sampler_state, contexts = SERINE.start(), reference_contexts()
    with observe_scans(acceptance):
        for _ in range(12):
            move.apply(SERINE.state(), sampler_state, contexts)
    assert acceptance.n_proposed.total() == move.n_proposed == 12 * 32
    assert acceptance.n_accepted.total() == move.n_accepted
    assert set(acceptance.fractions) == {"global", "side_chain", "independence"}
    plain = AcceptanceByKind()
    plain(applied(SideChainDensity(), Independence(8)).last_scan)
    assert plain.n_proposed == {"other": 8}


def test_the_error_of_an_acceptance_is_that_of_independent_trials_where_they_are() -> None:
    rng = np.random.default_rng(1)
    move = applied(SideChainDensity(), LatentWalk(20, blocks=["global"], fraction_independence=0.0))
    errors = []
    for _ in range(40):
        acceptance = AcceptanceByKind()
        for _ in range(50):
            accepted = rng.random(20) < 0.25
            chain = np.maximum.accumulate(np.where(accepted, np.arange(1, 21), 0))
            acceptance(dataclasses.replace(move.last_scan, chain=chain))
        errors.append(acceptance.errors["global"])
    assert np.mean(errors) == pytest.approx(np.sqrt(0.25 * 0.75 / 1000), rel=0.15)


# ------------------------------------------------------------------------------------------------------- failures


class Forgetful(SideChainDensity):
    """Its map leads elsewhere than where it is led back from, where chi is positive."""

    def encode(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        latents, log_prob = super().encode(positions)
        wrong = self.molecule.internal(positions)[2][:, 1] < 0.0
        latents[wrong, 3] += 0.1
        return latents, log_prob


def test_proposals_that_do_not_lead_back_are_rejected_and_counted() -> None:
    move = applied(Forgetful(), LatentWalk(64, step=0.5, blocks=["global"]))
    scan = move.last_scan
    chi = SERINE.internal(scan.positions)[2][:, 1]
    assert ((chi[1:] < 0.0) == ~np.isfinite(scan.log_prob[1:])).all()
    assert move.n_off_support == (chi[1:] < 0.0).sum() > 5
    assert (chi[scan.chain] > 0.0).all()


def test_a_state_that_does_not_lead_back_stays_and_is_counted() -> None:
    start = SERINE.positions(np.full((1, 4), 0.15), np.full((1, 3), 1.9), np.array([[2.1, -1.0]]))[0]
    move = applied(Forgetful(), LatentWalk(64, step=0.5, blocks=["global"]), start)
    assert move.n_accepted == 0
    assert move.n_current_off_support == move.n_proposed == 64
    assert move.last_scan.start_off_support


def test_a_context_that_fails_for_a_single_proposal_rejects_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ContextEnergies._evaluate

    def failing(self: ContextEnergies, positions: np.ndarray, forces: Any) -> np.ndarray:
        if len(positions) == 1 and abs(SERINE.internal(positions)[1][0, 0] - 1.9) > 0.2:
            raise openmm.OpenMMException("Particle coordinate is NaN")
        return original(self, positions, forces)

    monkeypatch.setattr(ContextEnergies, "_evaluate", failing)
    scan = applied(SideChainDensity(), LatentWalk(64, step=0.5, blocks=["global"], fraction_independence=0.0)).last_scan
    bad = np.abs(SERINE.internal(scan.positions)[1][:, 0] - 1.9) > 0.2
    assert bad.sum() == scan.n_nonfinite_energy > 3
    assert not bad[scan.chain].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_proposals": 0}, "n_proposals must be a positive integer, but is 0"),
        ({"n_candidates": 2.5}, "n_candidates must be a positive integer"),
        ({"stretch": 0}, "stretch must be a positive integer"),
        ({"target_acceptance": 1.0}, "target_acceptance must be between 0 and 1"),
        ({"fraction_independence": -0.1}, "fraction_independence must be from 0 to 1"),
        ({"fraction_independence": float("nan")}, "fraction_independence must be from 0 to 1"),
        ({"blocks": ["global", "loop"]}, "blocks must be some of .*'backbone'.*'loop'"),
        ({"blocks": []}, "blocks must be some of"),
        ({"blocks": ["global", "global"]}, "each once"),
        ({"shares": [1.0]}, "shares must be a positive number for each of the blocks"),
        ({"shares": [1.0, 0.0]}, "shares must be a positive number"),
        ({"step": 0.0}, "step must be above 0 and at most 1"),
        ({"step": float("nan")}, "step must be above 0 and at most 1"),
        ({"step": [0.1]}, "step must be above 0 and at most 1"),
        ({"step": {"backbone": 0.1}}, "step names"),
        ({"step": [0.1, 0.5]}, "side_chain block is drawn anew"),
    ],
)
def test_bad_numbers_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatentWalk(**options)


def test_steps_may_be_given_by_name() -> None:
    kernel = LatentWalk(blocks=("backbone", "side_chain", "global"), step={"global": 0.2, "backbone": 0.5})
    assert kernel.step == [0.5, 1.0, 0.2]
    assert kernel.steps == {"backbone": 0.5, "global": 0.2}


def test_a_density_without_latents_or_blocks_is_refused_with_a_way_out() -> None:
    class WithoutLatents:
        n_atoms = 5
        pose = "invariant"

        def sample(self, n: int, *, rng: Any = None) -> Any: ...

        def log_prob(self, positions: np.ndarray) -> Any: ...

    with pytest.raises(ValueError, match=r"WithoutLatents has none .*use kernel=Independence"):
        LatentBlocks(WithoutLatents(), ["global"], 3)  # type: ignore[arg-type]
    gaussian = GaussianDensity(np.zeros((5, 3)), 0.1)
    with pytest.raises(ValueError, match=r"\['side_chain'\].*has those for \['global'\].*coordinates=\"reduced\""):
        LatentBlocks(gaussian, ["global", "side_chain"], 3)
    density = SideChainDensity()
    density.latent_labels = LatentLabels(np.zeros(9, dtype=int), np.array(["backbone"] * 9))
    refused = r"\['side_chains', 'frozen'\]; it has those for \['global', 'rotamer', 'backbone'\]"
    with pytest.raises(ValueError, match=refused):
        LatentBlocks(density, ["side_chains", "frozen", "backbone"], 3)


# --------------------------------------------------------------------------------------------------------- tuning


def tuned(move: BoltzmannGeneratorMove, n_scans: int = 60, sampler_state: SamplerState | None = None) -> SamplerState:
    state = SERINE.start() if sampler_state is None else sampler_state
    tune_latent_walk(move, SERINE.state(), state, n_scans=n_scans, context_cache=reference_contexts())
    return state


@pytest.mark.parametrize("step", [0.01, 1.0])
def test_steps_come_to_the_acceptance_that_is_asked_for_and_stay(step: float) -> None:
    kernel = LatentWalk(64, step=step, blocks=["global", "side_chains"], target_acceptance=0.4)
    move = BoltzmannGeneratorMove(SideChainDensity(1.0), kernel=kernel, seed=1)
    sampler_state = tuned(move, 100)
    assert move.n_proposed == 0  # the phase is no part of the statistics
    found, record = move.kernel, move.kernel.tuning
    assert (record.n_scans, record.n_proposals, record.n_fixed_scans) == (100, 6400, 35)
    assert record.temperature == TEMPERATURE
    assert record.kinds == ["global", "side_chains", "independence"]
    assert record.step == found.step
    acceptance = AcceptanceByKind()
    with observe_scans(acceptance):
        for _ in range(40):
            move.apply(SERINE.state(), sampler_state, reference_contexts())
    assert move.kernel == found
    for kind in kernel.blocks:
        assert acceptance.fractions[kind] == pytest.approx(0.4, abs=0.05 + 3.5 * acceptance.errors[kind])


def test_a_generator_that_is_good_enough_gets_fresh_draws() -> None:
    kernel = LatentWalk(32, step=0.2, blocks=["frozen"], target_acceptance=0.1)
    move = BoltzmannGeneratorMove(SideChainDensity(), kernel=kernel, seed=1)
    tuned(move)
    assert move.kernel.steps == {"frozen": 1.0}
    assert move.kernel.tuning.acceptance[0] > 0.1


def test_an_acceptance_that_is_not_reached_is_an_error_and_changes_nothing() -> None:
    start = SERINE.positions(np.full((1, 4), 0.15), np.full((1, 3), 1.9), np.array([[2.1, -1.0]]))[0]
    kernel = LatentWalk(16, blocks=["global"])
    move = BoltzmannGeneratorMove(Forgetful(), kernel=kernel, seed=1)
    with pytest.raises(TuningError, match=r"target 0.25: global: 0.000 \+- 0.000 at step .*Equilibrate longer"):
        tuned(move, 20, SamplerState(unit.Quantity(start, unit.nanometer)))
    assert move.kernel is kernel
    assert move.n_proposed == 0


def test_an_interrupt_leaves_the_kernel_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = LatentWalk(16, blocks=["global"])
    move = BoltzmannGeneratorMove(SideChainDensity(), kernel=kernel, seed=1)
    original, calls = BoltzmannGeneratorMove.apply, []

    def interrupted(self: BoltzmannGeneratorMove, *arguments: Any) -> None:
        calls.append(self.kernel)
        if len(calls) > 5:
            raise KeyboardInterrupt
        original(self, *arguments)

    monkeypatch.setattr(BoltzmannGeneratorMove, "apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuned(move)
    assert calls[-1] != kernel
    assert move.kernel is kernel


def test_only_a_walk_in_a_long_enough_phase_is_tuned() -> None:
    with pytest.raises(ValueError, match="Only a LatentWalk has steps to tune, but the kernel is Independence"):
        tuned(BoltzmannGeneratorMove(SideChainDensity(), kernel=Independence(4)))
    with pytest.raises(ValueError, match="n_scans must be an integer of at least 10, but is 5"):
        tuned(BoltzmannGeneratorMove(SideChainDensity(), kernel=LatentWalk(4, blocks=["global"])), 5)


def test_dynamics_runs_before_each_scan_of_the_phase() -> None:
    class Counting(LangevinDynamicsMove):
        n_applied = 0

        def apply(self, *arguments: Any, **options: Any) -> None:
            Counting.n_applied += 1
            super().apply(*arguments, **options)

    move = BoltzmannGeneratorMove(SideChainDensity(), kernel=LatentWalk(32, blocks=["global"]), seed=1)
    dynamics = Counting(timestep=1.0 * unit.femtosecond, n_steps=5)
    cache = reference_contexts()
    tune_latent_walk(move, SERINE.state(), SERINE.start(), dynamics=dynamics, n_scans=60, context_cache=cache)
    assert Counting.n_applied == 60


def test_steps_are_tuned_in_a_simulation_too() -> None:
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 5.0, 0.001)
    integrator.setRandomNumberSeed(1)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(SERINE.topology(), SERINE.system(), integrator, platform)
    simulation.context.setPositions(SERINE.reference())
    kernel = LatentWalk(64, blocks=["global", "backbone"], target_acceptance=0.4)
    sampling = BoltzmannGeneratorSampling(simulation, SideChainDensity(), interval=10, kernel=kernel, seed=1)
    record = tune_in_simulation(sampling, n_scans=120)
    assert sampling.kernel.tuning == record
    assert record.acceptance[0] == pytest.approx(0.4, abs=0.05 + 2.0 * record.acceptance_error[0])
    assert simulation.currentStep == 1200
    assert sampling.n_proposed == 0
    sampling.step(20)
    assert sampling.n_proposed == 2 * 64
    assert sampling.kernel.tuning == record


# -------------------------------------------------------------------------------------------------------- storage


def test_a_tuned_walk_is_stored_with_its_record_as_plain_values() -> None:
    move = BoltzmannGeneratorMove(SideChainDensity(1.0), kernel=LatentWalk(64, blocks=["global"]), seed=1)
    tuned(move)
    stored = move.__getstate__()
    assert restored_kernel(json.loads(json.dumps(stored["kernel"]))) == move.kernel
    assert copy.deepcopy(move).kernel == move.kernel
    assert "n_fixed_scans=21" in repr(move)
    with pytest.raises(ValueError, match="are not those that were tuned"):
        dataclasses.replace(move.kernel, step=0.5)


def test_a_walk_that_is_not_tuned_is_stored_too() -> None:
    kernel = LatentWalk(np.int64(8), step=np.float64(0.2), blocks=("global", "backbone"))
    assert restored_kernel(json.loads(json.dumps(stored_options(kernel)))) == kernel


# ----------------------------------------------------------------------------------------------- a real generator


def test_a_generator_of_full_coordinates_walks_as_a_whole(ala2_generator_file: Path) -> None:
    generator = BoltzmannGenerator.load(ala2_generator_file)
    from openmm_bg.systems import peptide

    molecule = peptide("ACE-ALA-NME")
    state = ThermodynamicState(molecule.system, 300.0 * unit.kelvin)
    sampler_state = SamplerState(molecule.positions * unit.nanometer)
    move = BoltzmannGeneratorMove(generator, kernel=LatentWalk(32, step=0.05, blocks=["global"]), seed=1)
    move.apply(state, sampler_state, reference_contexts())
    scan = move.last_scan
    assert scan.n_off_support == 0
    assert scan.n_accepted > 3
    latents, log_prob = generator.encode(scan.positions)
    np.testing.assert_array_equal(latents, generator.to_latent(scan.positions))
    np.testing.assert_array_equal(log_prob, generator.log_prob(scan.positions))
    with pytest.raises(ValueError, match=r"\['side_chain'\]"):
        BoltzmannGeneratorMove(generator, kernel=LatentWalk(4)).apply(state, sampler_state, reference_contexts())
