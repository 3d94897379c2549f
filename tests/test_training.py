"""Training learns what it should: held against exact densities of a molecule whose coordinates are independent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_molecules import STAR, TEMPERATURE, SmallMolecule, kB
from training_fixtures import MOLECULE, ONE_WELL, TWO_WELLS, frames, plain, untrained

from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.training import Stage, TrainingHistory, fit, train
from openmm_bg.training.data import SimulationCost, TrajectoryData
from openmm_bg.training.dataset import prepare
from openmm_bg.training.losses import log_likelihood

HOT = 600.0
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
FAST = Stage("data", 150, nll=1.0, batch_size=256, learning_rate=(2e-2, 1e-3))
COOL = (
    Stage("data", 60, nll=1.0, batch_size=256, patience=3),
    Stage("cooling", 60, reverse_kl=1.0, temperature=("data", None), batch_size=128),
    Stage("refinement", 20, reverse_kl=1.0, reweighted=0.5, batch_size=128, refresh=10, pool_size=512),
)


@pytest.fixture
def potential():
    with SystemPotential(MOLECULE.system(), platform="Reference", n_workers=1) as made:
        yield made


@pytest.fixture(scope="module")
def fitted() -> tuple[BoltzmannGenerator, TrainingHistory]:
    generator = untrained()
    return generator, generator.fit(frames(4000)[0], max_steps=300, progress=False)


def hot_data(n: int = 2000) -> TrajectoryData:
    positions = frames(n, temperature=HOT)[0]
    return TrajectoryData(positions[None], np.zeros((1, n)), HOT, SimulationCost(0.0, 0, "Reference"))


def divergence(generator: BoltzmannGenerator, temperature: float = TEMPERATURE) -> float:
    """KL divergence of the generator from the exact density, by frames that no training has seen."""
    positions, exact = frames(4000, seed=2, temperature=temperature)
    return float((exact - generator.log_prob(positions)).mean())


def weighted_validation_loss(generator: BoltzmannGenerator, positions: np.ndarray, weights: np.ndarray) -> float:
    data = prepare(generator, positions, weights, 0.1)
    with torch.no_grad():
        terms = -log_likelihood(generator, data.circular, data.linear)[data.validation].numpy()
    return float(np.average(terms, weights=data.weights[data.validation].numpy()))


def device_or_skip(device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("This torch has no CUDA.")
    return device


# ------------------------------------------------------------------------------------------------------- likelihood


def test_fit_reaches_the_entropy_of_the_exact_density(fitted) -> None:
    generator, history = fitted
    assert divergence(untrained()) > 5.0
    assert -0.02 < divergence(generator) < 0.1  # nats; the sampling error is below 0.01
    validation = [step["validation"] for step in history.steps if "validation" in step]
    assert min(validation) < validation[0] - 0.1


def test_a_fast_stage_learns_the_exact_torsion(potential: SystemPotential) -> None:
    generator = untrained()
    train(generator, potential, data=frames(2000)[0], stages=[FAST], progress=False)
    torsions = MOLECULE.internal(generator.sample(4000, rng=0).positions)[2][:, 0]
    _, phase, k = MOLECULE.torsion
    grid = np.linspace(-np.pi, np.pi, 4001)
    weights = np.exp(-k * (1.0 + np.cos(2.0 * grid - phase)) / (kB * TEMPERATURE))
    expected = np.average(np.cos(2.0 * grid), weights=weights)
    assert np.cos(2.0 * torsions).mean() == pytest.approx(expected, abs=0.08)
    assert expected < -0.4


def test_weights_of_hot_frames_give_the_cold_density() -> None:
    positions, _ = frames(6000, temperature=HOT)
    with SystemPotential(MOLECULE.system(), platform="Reference", n_workers=1) as potential:
        energies = potential.energy(positions)
    weights = np.exp(-energies * (1.0 / TEMPERATURE - 1.0 / HOT) / kB)
    weighted, plainly = untrained(), untrained()
    weighted.fit(positions, weights=weights, max_steps=200, progress=False)
    plainly.fit(positions, max_steps=200, progress=False)
    assert divergence(weighted) < 0.3 * divergence(plainly)
    assert divergence(plainly, HOT) < 0.3 * divergence(weighted, HOT)


def test_early_stopping_returns_to_the_lowest_weighted_validation_loss() -> None:
    positions = frames(60)[0]
    weights = np.random.default_rng(3).uniform(0.1, 3.0, 60)
    generator = untrained()
    history = generator.fit(positions, weights=weights, max_steps=1500, progress=False)
    validation = [step["validation"] for step in history.steps if "validation" in step]
    assert history.stages[0]["stopped_because"] == "the validation loss stopped falling"
    assert history.stages[0]["steps"] < 1500
    assert len(validation) - 1 - int(np.argmin(validation)) == 6  # the patience of fit
    assert weighted_validation_loss(generator, positions, weights) == pytest.approx(min(validation), abs=1e-4)
    assert abs(weighted_validation_loss(generator, positions, np.ones(60)) - min(validation)) > 1e-2


def test_what_is_held_out_are_blocks_of_time_of_every_chain() -> None:
    chains = frames(2000)[0].reshape(2, 1000, 4, 3)
    data = prepare(untrained(), chains, None, 0.1)
    assert len(data.validation) == pytest.approx(200, abs=10)
    assert not set(data.validation.tolist()) & set(data.train.tolist())
    assert len(data.validation) + len(data.train) == 2000
    for chain in range(2):
        rows = [row for row in data.validation.tolist() if row // 1000 == chain]
        assert np.count_nonzero(np.diff(rows) > 1) == 4  # five blocks
        assert min(rows) > chain * 1000


def test_max_steps_and_max_seconds_are_obeyed() -> None:
    positions = frames(200)[0]
    history = fit(untrained(), positions, max_steps=7, progress=False)
    assert history.stages[0]["steps"] == 7
    history = fit(untrained(), positions, max_steps=10**6, max_seconds=0.5, validation_fraction=0.0, progress=False)
    assert history.stages[0]["stopped_because"] == "time is up"
    assert 0.5 <= history.seconds < 1.5


def test_progress_shows_the_stage_or_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    positions = frames(100)[0]
    fit(untrained(), positions, max_steps=2, progress=False)
    assert capsys.readouterr().out == ""
    fit(untrained(), positions, max_steps=2, progress=True)
    assert "data" in capsys.readouterr().out


def test_mirrored_frames_are_left_out_with_a_warning() -> None:
    molecule = SmallMolecule((14.0, 1.0, 1.0, 1.0), STAR, angle_spring=100.0, torsion=(1, 2.1 - np.pi, 40.0))
    positions = frames(200, molecule)[0]
    positions[:10] *= [-1.0, 1.0, 1.0]
    generator = untrained(molecule)
    history = generator.fit(positions, max_steps=2, progress=False)
    assert len(history.warnings) == 1
    assert "10 of 200 frames are left out" in history.warnings[0]
    assert np.isfinite(generator.log_prob(positions[10:])).all()


# ------------------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize("device", DEVICES)
def test_training_from_hot_data_raises_the_effective_sample_size(device: str) -> None:
    generator = untrained().to(device_or_skip(device))
    platform = "CUDA" if device == "cuda" else "Reference"
    records: list[dict] = []
    with SystemPotential(MOLECULE.system(), platform=platform, n_workers=1) as potential:
        history = train(generator, potential, data=hot_data(), stages=COOL, seed=1, progress=records.append)
        assert history.n_energy_evaluations == potential.n_evaluations
    assert [stage["name"] for stage in history.stages] == ["data", "cooling", "refinement"]
    ess = [record["ess_fraction"] for record in history.evaluations]
    assert ess[0] < 0.6 < 0.75 < ess[-1]
    assert divergence(generator) < 0.3
    cooling = [step["temperature"] for step in history.steps if step["stage"] == "cooling"]
    assert cooling[0] == HOT
    assert cooling == sorted(cooling, reverse=True)
    assert cooling[-1] == pytest.approx(TEMPERATURE)
    assert {record["stage"] for record in records} == {"data", "cooling", "refinement"}
    assert generator.device.type == device


@pytest.mark.parametrize("device", DEVICES)
def test_fit_sample_and_log_prob_work_on_every_device(device: str, tmp_path: Path) -> None:
    generator = untrained().to(device_or_skip(device))
    generator.fit(frames(500)[0], max_steps=30, progress=False, folder=tmp_path)
    samples = generator.sample(100, rng=3)
    assert samples.positions.shape == (100, 4, 3)
    np.testing.assert_allclose(generator.log_prob(samples.positions), samples.log_prob, atol=1e-3)
    on_cpu = generator.to("cpu")
    np.testing.assert_allclose(on_cpu.log_prob(samples.positions), samples.log_prob, atol=1e-3)
    np.testing.assert_allclose(on_cpu.sample(100, rng=3).positions, samples.positions, atol=1e-4)


def test_the_same_seed_gives_the_same_history(potential: SystemPotential) -> None:
    stages = (Stage("data", 10, nll=1.0, batch_size=32), Stage("cooling", 10, reverse_kl=1.0, batch_size=32))
    first, again, other = (
        train(untrained(), potential, data=hot_data(200), stages=stages, seed=seed, progress=False)
        for seed in (1, 1, 2)
    )
    assert plain(first) == plain(again)
    assert plain(first)["steps"] != plain(other)["steps"]


@pytest.mark.parametrize(("minimum", "used"), [(0.0, True), (1.0, False)])
def test_resampled_torsions_are_used_only_when_the_weights_are_even_enough(
    potential: SystemPotential, minimum: float, used: bool
) -> None:
    stage = Stage("guarded", 10, reweighted=1.0, minimum_ess=minimum, pool_size=256, batch_size=32)
    generator = untrained()
    before = generator.flow.state_dict()["torsion_layers.0.marginal"].clone()
    history = train(generator, potential, data=hot_data(200), stages=[stage], progress=False)
    assert all(("reweighted" in step) == used for step in history.steps)
    assert torch.equal(before, generator.flow.state_dict()["torsion_layers.0.marginal"]) != used


@pytest.mark.parametrize("limit", [1000, 6000, 10_000])
def test_max_evaluations_is_never_exceeded(potential: SystemPotential, limit: int) -> None:
    history = train(
        untrained(), potential, data=hot_data(200), stages=COOL, max_evaluations=limit, seed=1, progress=False
    )
    assert history.n_energy_evaluations == potential.n_evaluations <= limit
    assert history.stages[0]["steps"] == 60  # likelihood costs none
    assert history.stages[-1]["stopped_because"] == "energy evaluations are used up"


def test_without_evaluations_only_the_losses_cost_energies(potential: SystemPotential) -> None:
    stage = Stage("energies", 4, reverse_kl=1.0, batch_size=16, learning_rate=(1e-3, 1e-3))
    settings = {"data": hot_data(200), "stages": [stage], "seed": 1, "progress": False}
    generator, other = untrained(), untrained()
    frugal = train(generator, potential, evaluation_size=0, **settings)
    evaluated = train(other, potential, evaluation_size=30, **settings)
    assert frugal.evaluations == []
    assert len(evaluated.evaluations) == 1
    assert evaluated.n_energy_evaluations - frugal.n_energy_evaluations == 30
    assert generator.content_hash == other.content_hash


def test_a_well_that_training_lost_is_reported() -> None:
    generator = untrained(TWO_WELLS)
    keep = Stage("keep", 1, nll=1.0, learning_rate=(1e-9, 1e-9))
    with SystemPotential(TWO_WELLS.system(), platform="Reference", n_workers=1) as potential:
        both = frames(1000, TWO_WELLS)[0]
        healthy = train(generator, potential, data=both, stages=[FAST], progress=False)
        train(generator, potential, data=frames(1000, ONE_WELL)[0], stages=[FAST], progress=False)
        collapsed = train(generator, potential, data=both, stages=[keep], progress=False)
    assert not healthy.warnings
    assert len(healthy.evaluations[-1]["populations"]) == 2
    assert len(collapsed.warnings) == 1
    assert "torsion 0" in collapsed.warnings[0]


def test_without_data_training_makes_hot_dynamics_once(
    potential: SystemPotential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openmm_bg.training.fitting.HOT_STEPS", 2000)
    stages = [Stage("cooling", 5, reverse_kl=1.0, temperature=("data", None), batch_size=16)]
    history = train(untrained(), potential, stages=stages, folder=tmp_path, seed=1, progress=False)
    assert history.steps[0]["temperature"] == 700.0
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "dynamics").iterdir()}
    assert written
    again = train(untrained(), potential, stages=stages, folder=tmp_path, seed=1, progress=False)
    assert plain(again) == plain(history)
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "dynamics").iterdir()}


def test_history_is_kept_and_drawn(fitted, tmp_path: Path) -> None:
    history = fitted[1]
    history.save(tmp_path / "history.json")
    assert TrainingHistory.load(tmp_path / "history.json") == history
    history.plot(tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
