"""A generator whose density depends on the temperature is normalised and exact at all of them, trained there or not."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from exactness_fixtures import BUTANE, RIGID_CHAIN, UMBRELLA
from openmm import unit
from openmmtools import cache, mcmc
from openmmtools.multistate import MultiStateReporter, MultiStateSampler, ReplicaExchangeSampler, SAMSSampler
from small_molecules import TEMPERATURE, SmallMolecule, kB, reference_contexts
from training_fixtures import SMALL, TWO_WELLS
from training_fixtures import frames as exact_frames

from openmm_bg import registry
from openmm_bg.density import Samples
from openmm_bg.flows import FlowConfig
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.moves import BoltzmannGeneratorMove, Independence, Scan, observe_scans
from openmm_bg.potentials import SystemPotential
from openmm_bg.training import Stage, train
from openmm_bg.training.data import SimulationCost, TrajectoryData

RANGE = (300.0, 600.0)
LADDER = np.geomspace(300.0, 600.0, 12)
MultiStateSampler._global_citation_silence = True


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = openmm.Platform.getPlatformByName("Reference")
    monkeypatch.setattr(cache, "global_context_cache", cache.ContextCache(platform=platform))
    monkeypatch.setattr("openmm_bg.moves.move._streams", defaultdict(itertools.count))


def untrained(molecule: SmallMolecule, kind: type[BoltzmannGenerator] = BoltzmannGenerator) -> BoltzmannGenerator:
    return kind.from_system(
        molecule.system(),
        molecule.topology(),
        TEMPERATURE,
        positions=molecule.reference(),
        temperature_range=RANGE,
        seed=0,
    )


def scrambled(molecule: SmallMolecule, kind: type[BoltzmannGenerator] = BoltzmannGenerator) -> BoltzmannGenerator:
    """Wide, and every weight of the flow, those of the temperature too, does something that was never learnt."""
    generator = untrained(molecule, kind)
    features = generator.features
    counts = (len(features.free_bonds), len(features.free_angles), len(features.linear_torsion_rows))
    widths = torch.cat([torch.full((n,), width) for n, width in zip(counts, (0.16, 1.1, 0.8), strict=True)])
    numbers = torch.Generator().manual_seed(7)
    with torch.no_grad():
        features.scale.copy_(widths)
        for parameter in generator.flow.parameters():
            parameter.add_(0.07 * torch.randn(parameter.shape, generator=numbers))
    return generator


def chain(
    molecule: SmallMolecule, generator: BoltzmannGenerator, temperature: float, n_scans: int = 60
) -> tuple[np.ndarray, BoltzmannGeneratorMove]:
    """States of a chain in blocks, shape (2 n_scans, 256, n_atoms, 3)."""
    move = BoltzmannGeneratorMove(generator, kernel=Independence(512), seed=3)
    state, sampler_state, contexts = molecule.state(temperature), molecule.start(), reference_contexts()
    states = []
    for _ in range(n_scans + 2):
        move.apply(state, sampler_state, contexts)
        states.append(move.last_scan.positions[move.last_scan.chain])
    return np.concatenate(states[2:]).reshape(-1, 256, molecule.n_atoms, 3), move


# ------------------------------------------------------------------------------------------------------------- density


@pytest.mark.parametrize("molecule", [BUTANE, UMBRELLA, RIGID_CHAIN], ids=["torsion", "siblings", "constraints"])
def test_densities_of_two_temperatures_differ_and_have_the_same_integral(molecule: SmallMolecule) -> None:
    generator = scrambled(molecule)
    warm, hot = generator.at(400.0), generator.at(440.0 * unit.kelvin)
    drawn = hot.sample(20_000, rng=1)
    np.testing.assert_allclose(hot.log_prob(drawn.positions), drawn.log_prob, atol=1e-3)
    log_ratio = warm.log_prob(drawn.positions) - drawn.log_prob
    assert log_ratio.std() > 0.05
    ratio = np.exp(log_ratio)
    assert abs(ratio.mean() - 1.0) < 3.5 * ratio.std() / np.sqrt(len(ratio))


def test_before_training_widths_grow_with_the_root_of_the_temperature() -> None:
    generator = untrained(BUTANE)
    widths = []
    for temperature in (250.0, 1000.0):
        bonds = BUTANE.internal(generator.at(temperature).sample(20_000, rng=1).positions)[0]
        widths.append(np.diff(np.quantile(np.log(bonds[:, 0]), [0.16, 0.84])))
    assert widths[1] / widths[0] == pytest.approx(2.0, rel=0.02)


def test_views_share_weights_and_leave_the_generator_at_its_own_temperature() -> None:
    generator = scrambled(BUTANE)
    before, content = generator.log_prob(BUTANE.reference()[None]), generator.content_hash
    view = generator.at(500.0)
    assert (view.temperature, generator.temperature) == (500.0 * unit.kelvin, TEMPERATURE * unit.kelvin)
    assert view.content_hash != content == generator.content_hash
    assert generator.at(TEMPERATURE).content_hash == content
    np.testing.assert_array_equal(generator.log_prob(BUTANE.reference()[None]), before)
    with torch.no_grad():
        generator.flow.affine.marginal.add_(0.1)
    fresh = generator.at(500.0)
    np.testing.assert_array_equal(view.log_prob(BUTANE.reference()[None]), fresh.log_prob(BUTANE.reference()[None]))


def test_a_file_keeps_range_and_temperature(tmp_path: Path) -> None:
    generator = scrambled(BUTANE).at(450.0)
    generator.save(tmp_path / "generator.bg")
    loaded = BoltzmannGenerator.load(tmp_path / "generator.bg", system=BUTANE.system())
    assert loaded.temperature_range == (300.0 * unit.kelvin, 600.0 * unit.kelvin)
    assert loaded.content_hash == generator.content_hash
    for temperature in (450.0, 300.0):
        expected = generator.at(temperature).log_prob(BUTANE.reference()[None])
        np.testing.assert_array_equal(loaded.at(temperature).log_prob(BUTANE.reference()[None]), expected)
    np.testing.assert_array_equal(
        loaded.log_prob(BUTANE.reference()[None]), generator.log_prob(BUTANE.reference()[None])
    )


def test_generators_for_one_temperature_are_described_as_before() -> None:
    assert "temperature_range" not in FlowConfig().to_dict()
    generator = BoltzmannGenerator.from_system(BUTANE.system(), BUTANE.topology(), 300.0)
    assert generator.temperature_range is None
    with pytest.raises(ValueError, match=r"one density for all temperatures\. .* temperature_range"):
        generator.at(300.0)


@pytest.mark.parametrize("bad", [(600.0, 300.0), (0.0, 300.0), (300.0, np.inf), (300.0, 300.0)])
def test_a_range_that_is_none_is_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="temperature"):
        BoltzmannGenerator.from_system(BUTANE.system(), BUTANE.topology(), 300.0, temperature_range=bad)
    with pytest.raises(ValueError, match="positive and finite"):
        untrained(BUTANE).at(-1.0)


# ----------------------------------------------------------------------------------------------------------- exactness


class JudgedAtAnother(BoltzmannGenerator):
    """Mutant: drawn at the temperature of the state, judged by the density of another one."""

    def sample(self, n: int, *, rng: Any = None) -> Samples:
        return BoltzmannGenerator.sample(self.at(2.0 * self._temperature), n, rng=rng)


@pytest.mark.parametrize("molecule", [BUTANE, RIGID_CHAIN], ids=["torsion", "constraints"])
@pytest.mark.parametrize("temperature", [250.0, 437.0, 800.0])
def test_the_move_is_exact_at_temperatures_never_trained_at(molecule: SmallMolecule, temperature: float) -> None:
    states, move = chain(molecule, scrambled(molecule), temperature)
    assert 0.03 < move.fraction_accepted < 0.9
    assert molecule.deviation(states, temperature) < 3.5


def test_a_density_of_the_wrong_temperature_is_seen_at_eight_sigma() -> None:
    states, _ = chain(BUTANE, scrambled(BUTANE, JudgedAtAnother), 437.0)
    assert BUTANE.deviation(states, 437.0) > 8.0


# --------------------------------------------------------------------------------------------- ladders of temperatures


def one_for_all(generator: BoltzmannGenerator, folder: Path) -> Any:
    generator.save(folder / "generator.bg")
    return BoltzmannGeneratorMove(generator, kernel=Independence(4))


def one_for_each(generator: BoltzmannGenerator, folder: Path) -> Any:
    moves = []
    for i, temperature in enumerate(LADDER):
        own = generator.at(temperature)
        own.save(folder / f"generator {i}.bg")
        moves.append(BoltzmannGeneratorMove(own, kernel=Independence(4)))
    return moves


@pytest.mark.parametrize("made", [one_for_all, one_for_each])
def test_twelve_temperatures_take_one_generator_or_one_each_and_resume(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = scrambled(BUTANE)
    sampler = ReplicaExchangeSampler(
        mcmc_moves=made(generator, tmp_path), number_of_iterations=3, online_analysis_interval=None
    )
    states = [BUTANE.state(temperature) for temperature in LADDER]
    sampler.create(states, [BUTANE.start()], MultiStateReporter(str(tmp_path / "run.nc"), checkpoint_interval=1))
    seen: dict[float, list[Scan]] = defaultdict(list)
    with observe_scans(lambda scan, state: seen[state.temperature.value_in_unit(unit.kelvin)].append(scan)):
        sampler.run()
    assert sorted(seen) == pytest.approx(LADDER.tolist())
    for temperature, scans in seen.items():
        for scan in scans:
            expected = generator.at(temperature).log_prob(scan.positions)
            np.testing.assert_allclose(scan.log_prob, expected, atol=1e-3)
    hashes = [move.generator.content_hash for move in sampler.mcmc_moves]
    assert len(set(hashes)) == (1 if made is one_for_all else 12)
    counts = [move.statistics for move in sampler.mcmc_moves]
    assert all(count["n_proposed"] == 12 for count in counts)
    assert sum(count["n_accepted"] for count in counts) > 0
    del sampler
    monkeypatch.setattr(registry, "_densities", {})
    resumed = ReplicaExchangeSampler.from_storage(MultiStateReporter(str(tmp_path / "run.nc")))
    assert [move.generator.content_hash for move in resumed.mcmc_moves] == hashes
    assert [move.statistics for move in resumed.mcmc_moves] == counts
    resumed.extend(1)
    assert all(move.n_proposed == 16 for move in resumed.mcmc_moves)


@pytest.mark.parametrize("kind", [MultiStateSampler, SAMSSampler])
def test_other_samplers_of_twelve_states_count_by_state_and_resume(kind: Any, tmp_path: Path) -> None:
    sampler = kind(
        mcmc_moves=one_for_all(scrambled(BUTANE), tmp_path), number_of_iterations=5, online_analysis_interval=None
    )
    starts = [BUTANE.start()] * (1 if kind is SAMSSampler else 12)
    states = [BUTANE.state(temperature) for temperature in LADDER]
    sampler.create(states, starts, MultiStateReporter(str(tmp_path / "run.nc"), checkpoint_interval=1))
    visited = np.zeros(12, dtype=int)

    def count(scan: Scan, state: Any) -> None:
        visited[np.argmin(np.abs(LADDER - state.temperature.value_in_unit(unit.kelvin)))] += scan.n_proposed

    with observe_scans(count):
        sampler.run()
        del sampler
        resumed = kind.from_storage(MultiStateReporter(str(tmp_path / "run.nc")))
        resumed.extend(2)
    assert [move.n_proposed for move in resumed.mcmc_moves] == visited.tolist()
    assert visited.sum() == 7 * 4 * len(starts)


class Exchanged(ReplicaExchangeSampler):
    """Keeps the configuration of every state in every iteration."""

    def _compute_energies(self) -> None:
        super()._compute_energies()
        order = np.argsort(self._replica_thermodynamic_states)
        self.trace = [*getattr(self, "trace", []), [self._sampler_states[i].positions._value for i in order]]


@pytest.mark.slow
def test_every_state_of_a_ladder_of_twelve_is_sampled_exactly(tmp_path: Path) -> None:
    move = BoltzmannGeneratorMove(scrambled(BUTANE), kernel=Independence(16), seed=4)
    sampler = Exchanged(mcmc_moves=mcmc.SequenceMove([move]), online_analysis_interval=None)
    states = [BUTANE.state(temperature) for temperature in LADDER]
    sampler.create(states, [BUTANE.start()], MultiStateReporter(str(tmp_path / "run.nc")))
    sampler.equilibrate(420)
    trace = np.array(sampler.trace)[20:]
    for state in (0, 4, 8, 11):
        assert BUTANE.deviation(trace[:, state].reshape(40, 10, 4, 3), LADDER[state]) < 4.0


# ------------------------------------------------------------------------------------------------------------ training


def ess(generator: BoltzmannGenerator, potential: SystemPotential, temperature: float) -> float:
    at = generator.at(temperature) if generator.temperature_range else generator
    drawn = at.sample(2000, rng=5)
    log_weight = -potential.energy(drawn.positions) / (kB * temperature) - at.log_prob(drawn.positions)
    weight = np.exp(log_weight - log_weight.max())
    return float(weight.sum() ** 2 / (weight**2).sum() / len(weight))


@pytest.mark.slow
def test_one_training_serves_all_temperatures_of_the_range() -> None:
    stages = (
        Stage("data", 60, nll=1.0, batch_size=256),
        Stage("cooling", 100, reverse_kl=1.0, temperature=("data", None), batch_size=128),
        Stage("range", 300, reverse_kl=1.0, reweighted=0.3, learning_rate=(2e-3, 1e-4), batch_size=128, pool_size=1024),
    )
    frames, _ = exact_frames(2000, TWO_WELLS, temperature=600.0)
    data = TrajectoryData(frames[None], np.zeros((1, 2000)), 600.0, SimulationCost(0.0, 0, "Reference"))
    found = {}
    for kind, temperature_range in (("conditioned", RANGE), ("plain", None)):
        generator = BoltzmannGenerator.from_system(
            TWO_WELLS.system(),
            TWO_WELLS.topology(),
            TEMPERATURE,
            flow=SMALL,
            positions=TWO_WELLS.reference(),
            temperature_range=temperature_range,
            seed=0,
        )
        with SystemPotential(TWO_WELLS.system(), platform="Reference", n_workers=1) as potential:
            train(generator, potential, data=data, stages=stages, seed=1, progress=False)
            found[kind] = [ess(generator, potential, temperature) for temperature in (300.0, 360.0, 437.0, 600.0)]
        assert generator.temperature == TEMPERATURE * unit.kelvin
    assert min(found["conditioned"]) > 0.7, found
    assert found["plain"][0] > 0.7, found  # where it was trained
    assert found["conditioned"][-1] > 2.0 * found["plain"][-1], found


def test_data_of_another_temperature_give_the_widths_of_every_temperature() -> None:
    """Frames at 600 K and a likelihood alone: bonds at 300 K are narrower by the root of two."""
    frames, _ = exact_frames(4000, TWO_WELLS, temperature=600.0)
    generator = BoltzmannGenerator.from_system(
        TWO_WELLS.system(), TWO_WELLS.topology(), TEMPERATURE, flow=SMALL, temperature_range=RANGE, seed=0
    )
    data = TrajectoryData(frames[None], np.zeros((1, 4000)), 600.0, SimulationCost(0.0, 0, "Reference"))
    stages = (Stage("data", 2, nll=1.0, learning_rate=(1e-5, 1e-5)),)
    with SystemPotential(TWO_WELLS.system(), platform="Reference", n_workers=1) as potential:
        train(generator, potential, data=data, stages=stages, progress=False)
    for temperature in RANGE:
        bonds = TWO_WELLS.internal(generator.at(temperature).sample(20_000, rng=1).positions)[0]
        expected = np.sqrt(kB * temperature / 4e4)
        np.testing.assert_allclose(bonds.std(axis=0), expected, rtol=0.04)
