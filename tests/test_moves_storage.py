"""Moves survive copies, pickles, YAML and a resume in another process, and never carry their density along."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import openmm
import pytest
import yaml
from openmm import unit
from openmmtools import cache, mcmc, multistate, states, testsystems, utils

from openmm_bg import registry
from openmm_bg.moves import BoltzmannGeneratorMove, Independence, register
from openmm_bg.testing import GaussianDensity

COUNTS = {
    "n_accepted": 3,
    "n_proposed": 50,
    "n_nonfinite_energy": 2,
    "n_off_support": 1,
    "n_current_off_support": 5,
}
multistate.MultiStateSampler._global_citation_silence = True


@pytest.fixture(autouse=True)
def reference_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = openmm.Platform.getPlatformByName("Reference")
    monkeypatch.setattr(cache, "global_context_cache", cache.ContextCache(platform=platform))


@pytest.fixture
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The registry of a process that has loaded nothing yet."""
    densities: dict[str, Any] = {}
    monkeypatch.setattr(registry, "_densities", densities)
    monkeypatch.setattr(registry, "_warned", set())
    return densities


def counted_move(density: GaussianDensity) -> BoltzmannGeneratorMove:
    move = BoltzmannGeneratorMove(density, kernel=Independence(17), seed=5)
    move.statistics = COUNTS
    return move


def through_yaml(move: BoltzmannGeneratorMove) -> BoltzmannGeneratorMove:
    return utils.deserialize(yaml.safe_load(yaml.safe_dump(utils.serialize(move))))  # plain values only, or it raises


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda move: pickle.loads(pickle.dumps(move)),
        through_yaml,
        lambda move: copy.deepcopy(mcmc.SequenceMove([move])).move_list[0],
        lambda move: copy.deepcopy(mcmc.WeightedMove([(move, 1.0)])).move_set[0][0],
    ],
    ids=["deepcopy", "pickle", "yaml", "sequence", "weighted"],
)
def test_copies_keep_the_density_the_kernel_and_the_counts(duplicate: Any) -> None:
    move = counted_move(GaussianDensity(np.zeros((2, 3)), 0.1))
    duplicated = duplicate(move)
    assert duplicated is not move
    assert duplicated.generator is move.generator
    assert duplicated.kernel == Independence(17)
    assert duplicated.seed == 5
    assert duplicated.statistics == COUNTS
    assert duplicated.fraction_accepted == 3 / 50


def test_a_state_without_the_newer_counts_is_restored_with_zeros() -> None:
    move = counted_move(GaussianDensity(np.zeros((2, 3)), 0.1))
    state = move.__getstate__()
    state["statistics"] = {"n_accepted": 3, "n_proposed": 50}
    del state["seed"]
    restored = BoltzmannGeneratorMove.__new__(BoltzmannGeneratorMove)
    restored.__setstate__(state)
    assert (restored.n_accepted, restored.n_off_support, restored.seed) == (3, 0, None)


def test_a_damaged_state_is_an_error_and_not_a_half_built_move() -> None:
    state = utils.serialize(counted_move(GaussianDensity(np.zeros((2, 3)), 0.1)))
    del state["kernel"]
    with pytest.raises(ValueError, match=r"lacks \['kernel'\]"):
        utils.deserialize(state)


# ------------------------------------------------------------------------------------------- finding the density again


def test_a_saved_density_is_loaded_from_its_file(tmp_path: Path, fresh_registry: dict[str, Any]) -> None:
    density = GaussianDensity(np.zeros((2, 3)), 0.1)
    density.save(tmp_path / "pair.bg")
    state = utils.serialize(counted_move(density))
    fresh_registry.clear()
    first, second = utils.deserialize(dict(state)), utils.deserialize(dict(state))
    assert first.generator.content_hash == density.content_hash
    assert first.generator is second.generator  # loaded once
    np.testing.assert_array_equal(first.generator.sigma, density.sigma)


def test_a_density_that_was_never_saved_has_to_be_registered(
    fresh_registry: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    density = GaussianDensity(np.zeros((2, 3)), 0.1)
    with caplog.at_level(logging.WARNING):
        pickled = pickle.dumps(counted_move(density))
        pickle.dumps(counted_move(density))
    assert sum("was never saved to a file" in record.message for record in caplog.records) == 1
    fresh_registry.clear()
    with pytest.raises(ValueError, match=rf"never saved .* {density.content_hash} .* openmm_bg.moves.register"):
        pickle.loads(pickled)
    register(density)
    assert pickle.loads(pickled).generator is density


def test_a_density_that_is_saved_later_is_found(tmp_path: Path, fresh_registry: dict[str, Any]) -> None:
    density = GaussianDensity(np.zeros((2, 3)), 0.1)
    move = counted_move(density)
    density.save(tmp_path / "late.bg")
    pickled = pickle.dumps(move)
    fresh_registry.clear()
    assert pickle.loads(pickled).generator.content_hash == density.content_hash


@pytest.mark.parametrize(
    ("fate", "match"),
    [
        (lambda path: path.unlink(), "Could not load .* No such file .* openmm_bg.moves.register"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "Could not load .* is damaged"),
        (lambda path: path.write_text("a poem"), "Could not load .* is damaged"),
        (
            lambda path: GaussianDensity(np.ones((2, 3)), 0.1).save(path),
            "holds another density .* openmm_bg.moves.register",
        ),
    ],
    ids=["removed", "truncated", "foreign", "replaced"],
)
def test_a_file_that_no_longer_holds_the_density_is_refused(
    fate: Any, match: str, tmp_path: Path, fresh_registry: dict[str, Any]
) -> None:
    density = GaussianDensity(np.zeros((2, 3)), 0.1)
    density.save(tmp_path / "pair.bg")
    state = utils.serialize(counted_move(density))
    fresh_registry.clear()
    fate(tmp_path / "pair.bg")
    with pytest.raises(ValueError, match=match):
        utils.deserialize(state)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("no_such_module:Density", "cannot be imported"),
        ("openmm_bg.testing:NoSuchDensity", "cannot be imported"),
        ("collections:OrderedDict", "no class of proposal densities"),
        ("os:system", "is .*built-in function"),
    ],
)
def test_only_classes_of_densities_are_loaded(
    name: str, match: str, tmp_path: Path, fresh_registry: dict[str, Any]
) -> None:
    density = GaussianDensity(np.zeros((2, 3)), 0.1)
    density.save(tmp_path / "pair.bg")
    state = utils.serialize(counted_move(density))
    state["generator"]["class"] = name
    fresh_registry.clear()
    with pytest.raises(ValueError, match=match):
        utils.deserialize(state)


def test_a_file_of_a_gaussian_density_that_was_edited_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pair.bg"
    density = GaussianDensity(np.zeros((2, 3)), 0.1)
    density.save(path)
    assert GaussianDensity.load(path).content_hash == density.content_hash
    content = path.read_bytes()
    path.write_bytes(content[:-8] + np.float64(0.2).tobytes())
    with pytest.raises(ValueError, match="changed after it was saved"):
        GaussianDensity.load(path)


def test_a_gaussian_density_is_written_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError, match="folder"):
        GaussianDensity(np.zeros((2, 3)), 0.1).save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


# ------------------------------------------------------------------------------------------- replica exchange


def exchange(folder: Path, density: GaussianDensity, n_iterations: int) -> multistate.ReplicaExchangeSampler:
    system = testsystems.HarmonicOscillatorArray(N=density.n_atoms).system
    ladder = [states.ThermodynamicState(system, t * unit.kelvin) for t in (300.0, 350.0, 400.0)]
    move = mcmc.SequenceMove(
        [
            BoltzmannGeneratorMove(density, kernel=Independence(4), seed=6),
            mcmc.LangevinDynamicsMove(timestep=1.0 * unit.femtosecond, n_steps=2),
        ]
    )
    sampler = multistate.ReplicaExchangeSampler(mcmc_moves=move, number_of_iterations=n_iterations)
    reporter = multistate.MultiStateReporter(str(folder / "exchange.nc"), checkpoint_interval=1)
    sampler.create(ladder, states.SamplerState(density.mean * unit.nanometer), reporter)
    sampler.run()
    return sampler


RESUME = """
import json, sys
import openmm
from openmmtools import cache, multistate
multistate.MultiStateSampler._global_citation_silence = True
cache.global_context_cache.platform = openmm.Platform.getPlatformByName("Reference")
if len(sys.argv) > 2:
    from openmm_bg.moves import register
    from openmm_bg.testing import GaussianDensity
    register(GaussianDensity.load(sys.argv[2]))
reporter = multistate.MultiStateReporter(sys.argv[1], checkpoint_interval=1)
sampler = multistate.ReplicaExchangeSampler.from_storage(reporter)
before = [sequence.move_list[0].statistics for sequence in sampler.mcmc_moves]
sampler.extend(3)
moves = [sequence.move_list[0] for sequence in sampler.mcmc_moves]
print(json.dumps({
    "before": before,
    "after": [move.statistics for move in moves],
    "hashes": [move.generator.content_hash for move in moves],
    "one": len({id(move.generator) for move in moves}) == 1,
    "iteration": sampler.iteration,
}))
"""


def resume(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RESUME, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def oscillator_density(n_atoms: int = 3) -> GaussianDensity:
    testsystem = testsystems.HarmonicOscillatorArray(N=n_atoms)
    return GaussianDensity(testsystem.positions, 0.01)


def test_a_fresh_process_resumes_replica_exchange_with_the_density_and_the_counts(tmp_path: Path) -> None:
    density = oscillator_density()
    density.save(tmp_path / "oscillators.bg")
    sampler = exchange(tmp_path, density, 4)
    counts = [sequence.move_list[0].statistics for sequence in sampler.mcmc_moves]
    assert [count["n_proposed"] for count in counts] == [16, 16, 16]
    assert sum(count["n_accepted"] for count in counts) > 0
    sampler._reporter.close()

    done = resume(tmp_path / "exchange.nc")
    assert done.returncode == 0, done.stderr
    resumed = json.loads(done.stdout.splitlines()[-1])
    assert resumed["before"] == counts
    assert [count["n_proposed"] for count in resumed["after"]] == [28, 28, 28]
    assert resumed["hashes"] == [density.content_hash] * 3
    assert resumed["one"]
    assert resumed["iteration"] == 7


def test_a_fresh_process_says_what_to_do_without_the_file_and_resumes_after_it(tmp_path: Path) -> None:
    density = oscillator_density()
    density.save(tmp_path / "oscillators.bg")
    exchange(tmp_path, density, 2)._reporter.close()
    moved = (tmp_path / "oscillators.bg").rename(tmp_path / "moved.bg")

    refused = resume(tmp_path / "exchange.nc")
    assert refused.returncode != 0
    assert "ValueError: Could not load the density" in refused.stderr
    assert "openmm_bg.moves.register" in refused.stderr
    assert resume(tmp_path / "exchange.nc", moved).returncode == 0


def stored_bytes_of_moves(folder: Path) -> int:
    with netCDF4.Dataset(folder / "exchange.nc") as storage:
        return sum(len(str(variable[:])) for variable in storage.groups["mcmc_moves"].variables.values())


def test_a_density_of_five_megabytes_is_stored_in_as_few_bytes_as_a_tiny_one(tmp_path: Path) -> None:
    class Padded(GaussianDensity):
        """Carries weights that it does not need."""

        weights: np.ndarray

    sizes = []
    for name, n_weights in (("tiny", 1), ("large", 700_000)):
        folder = tmp_path / name
        folder.mkdir()
        density = Padded(oscillator_density().mean, 0.01)
        density.weights = np.random.default_rng(7).standard_normal(n_weights)
        density.path = str(folder / "oscillators.bg")
        exchange(folder, density, 20)._reporter.close()
        sizes.append((stored_bytes_of_moves(folder), (folder / "exchange.nc").stat().st_size))
    (tiny_moves, tiny_file), (large_moves, large_file) = sizes
    assert abs(large_moves - tiny_moves) < 100
    assert large_moves < 10_000
    assert large_file < 1.1 * tiny_file


def test_the_state_holds_no_scan_and_no_random_numbers() -> None:
    density = oscillator_density()
    move = BoltzmannGeneratorMove(density, kernel=Independence(1000))
    before = len(pickle.dumps(move))
    state = states.ThermodynamicState(testsystems.HarmonicOscillatorArray(N=3).system, 300.0 * unit.kelvin)
    move.apply(state, states.SamplerState(density.mean * unit.nanometer))
    assert move.last_scan is not None
    stream = io.BytesIO()
    pickle.dump(move, stream)
    assert len(stream.getvalue()) < before + 20
