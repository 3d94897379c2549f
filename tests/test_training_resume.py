"""Interrupted training goes on as if nothing had happened; damaged or foreign folders and bad input are refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_molecules import CHAIN, SmallMolecule
from training_fixtures import MASSES, MOLECULE, frames, plain, untrained

from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.training import Stage, TrainingHistory, train
from openmm_bg.training.data import SimulationCost, TrajectoryData

STAGES = (
    Stage("data", 60, nll=1.0, batch_size=32, patience=10),
    Stage("refinement", 40, reverse_kl=1.0, reweighted=0.5, batch_size=8, refresh=15, pool_size=128, minimum_ess=0.0),
)
CHECKPOINT = "checkpoint.safetensors"


def run(folder: Path | None, **options: Any) -> tuple[BoltzmannGenerator, TrainingHistory]:
    generator = options.pop("generator", None) or untrained()
    positions = frames(400, temperature=400.0)[0]
    data = TrajectoryData(positions[None], np.zeros((1, 400)), 400.0, SimulationCost(0.0, 0, "Reference"))
    options = {"data": data, "stages": STAGES, "seed": 3, "progress": False} | options
    with SystemPotential(MOLECULE.system(), platform="Reference", n_workers=1) as potential:
        return generator, train(generator, potential, folder=folder, **options)


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[BoltzmannGenerator, TrainingHistory]:
    return run(None)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The checkpoint of a run that was stopped in its second stage."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(KeyboardInterrupt):
        run(folder, progress=stop_at("refinement", 20))
    return (folder / CHECKPOINT).read_bytes()


def stop_at(stage: str, step: int):
    def report(record: dict[str, Any]) -> None:
        if (record["stage"], record["step"]) == (stage, step):
            raise KeyboardInterrupt

    return report


def test_a_run_that_is_interrupted_twice_ends_as_one_that_is_not(uninterrupted, tmp_path: Path) -> None:
    for place in (("data", 40), ("refinement", 20)):  # with a best state so far; between two draws of the pool
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, progress=stop_at(*place))
    generator, history = run(tmp_path)
    assert plain(history) == plain(uninterrupted[1])
    assert [stage["steps"] for stage in history.stages] == [60, 40]
    assert generator.content_hash == uninterrupted[0].content_hash


def test_a_run_interrupted_while_it_is_evaluated_records_each_stage_once(
    uninterrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("openmm_bg.training.trainer.Trainer._evaluate", lambda self: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    history = run(tmp_path)[1]
    assert plain(history)["stages"] == plain(uninterrupted[1])["stages"]
    assert len(history.evaluations) == len(uninterrupted[1].evaluations)


def test_a_finished_run_is_read_and_not_repeated(tmp_path: Path) -> None:
    first, history = run(tmp_path)
    second, again = run(tmp_path, progress=stop_at("data", 1))
    assert again == history
    assert first.content_hash == second.content_hash


def test_a_killed_run_goes_on_from_its_last_checkpoint(uninterrupted, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "import openmm_bg.training.trainer as trainer\n"
        "from test_training_resume import run\n"
        "from pathlib import Path\n"
        "trainer.CHECKPOINT_SECONDS = 0.0\n"
        "def report(record):\n"
        "    if record['stage'] == 'refinement' and record['step'] >= 20:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "run(Path(sys.argv[1]), progress=report)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    steps: list[dict[str, Any]] = []
    generator, history = run(tmp_path, progress=steps.append)
    assert steps[0]["stage"] == "refinement"
    assert plain(history)["stages"] == plain(uninterrupted[1])["stages"]
    assert generator.content_hash == uninterrupted[0].content_hash


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"stages": STAGES[:1]}, "stages"),
        ({"seed": 4}, "seed"),
        ({"data": frames(400)[0]}, "data"),
        ({"generator": untrained(temperature=310.0)}, "molecule or flow"),
    ],
    ids=["stages", "seed", "data", "temperature"],
)
def test_a_folder_with_another_run_is_refused_and_left_alone(
    interrupted: bytes, tmp_path: Path, options: dict[str, Any], what: str
) -> None:
    (tmp_path / CHECKPOINT).write_bytes(interrupted)
    with pytest.raises(ValueError, match=f"belongs to another run: its {what}.* differ"):
        run(tmp_path, **options)
    assert (tmp_path / CHECKPOINT).read_bytes() == interrupted


@pytest.mark.parametrize("damage", ["truncated", "changed", "foreign"])
def test_a_damaged_checkpoint_is_refused_and_left_alone(interrupted: bytes, tmp_path: Path, damage: str) -> None:
    content = {
        "truncated": interrupted[: len(interrupted) // 2],
        "changed": interrupted[:-100] + bytes(100 * [7]),
        "foreign": b"not a checkpoint",
    }[damage]
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(ValueError, match=CHECKPOINT):
        run(tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == content


@pytest.mark.parametrize("folder", ["file/run", "/proc/run"])
def test_an_unwritable_folder_is_found_before_training(folder: str, tmp_path: Path) -> None:
    if folder.startswith("/proc") and not Path("/proc").exists():
        pytest.skip("No folder here is closed to everybody.")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Choose a folder you can write to"):
        run(tmp_path / folder, progress=stop_at("data", 1))


def test_a_folder_that_exists_but_takes_no_files_is_found_before_training() -> None:
    if not Path("/proc").exists():
        pytest.skip("No folder here is closed to everybody.")
    with pytest.raises(OSError, match="Choose a folder you can write to"):
        run(Path("/proc"), progress=stop_at("data", 1))


# ---------------------------------------------------------------------------------------------------------- bad input


def nan_frames() -> np.ndarray:
    positions = frames(100)[0]
    positions[7, 1, 2] = np.nan
    return positions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trajectory": np.zeros((0, 4, 3))}, "empty"),
        ({"trajectory": frames(19)[0]}, "19 frames; at least 20"),
        ({"trajectory": np.zeros((100, 5, 3))}, r"\(100, 5, 3\)"),
        ({"trajectory": 10.0 * frames(100)[0]}, "angstrom"),
        ({"trajectory": nan_frames()}, "not finite, the first is frame 7"),
        ({"validation_fraction": 0.6}, "0.6; expected a number from 0 to 0.5"),
        ({"validation_fraction": float("nan")}, "validation_fraction"),
        ({"weights": np.ones(99)}, "99 weights for 100 frames"),
        ({"weights": np.full(100, np.inf)}, "finite weight"),
        ({"weights": -np.ones(100)}, "weight >= 0"),
        ({"weights": np.zeros(100)}, "not all zero"),
        ({"weights": np.eye(1, 100)[0]}, "left to learn from"),
        ({"max_steps": 0}, "steps"),
        ({"max_seconds": 0.0}, "max_seconds is 0.0"),
        ({"max_seconds": float("nan")}, "max_seconds is nan"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_fit_refuses_bad_input_with_a_clear_word(options: dict[str, Any], message: str) -> None:
    generator = untrained()
    before = generator.content_hash
    with pytest.raises(ValueError, match=message):
        generator.fit(**{"trajectory": frames(100)[0], "progress": False} | options)
    assert generator.content_hash == before


@pytest.mark.parametrize(
    "potential_of",
    [SmallMolecule(MASSES[:3], CHAIN[:2]), SmallMolecule((15.0, 13.0, 14.0, 15.0), CHAIN, bond_spring=4e4)],
    ids=["atoms", "masses"],
)
def test_a_potential_of_another_molecule_is_refused(potential_of: SmallMolecule) -> None:
    with (
        SystemPotential(potential_of.system(), platform="Reference", n_workers=1) as potential,
        pytest.raises(ValueError, match="generator"),
    ):
        train(untrained(), potential, data=frames(100)[0], progress=False)


def test_train_without_data_or_a_structure_says_what_to_give() -> None:
    generator = BoltzmannGenerator.from_system(MOLECULE.system(), MOLECULE.topology(), 300.0)
    with (
        SystemPotential(MOLECULE.system(), platform="Reference", n_workers=1) as potential,
        pytest.raises(ValueError, match=r"pass data=.*positions="),
    ):
        train(generator, potential, progress=False)


@pytest.mark.parametrize(
    "options", [{"stages": ()}, {"max_evaluations": 0}, {"max_seconds": -1.0}, {"evaluation_size": -1}], ids=str
)
def test_limits_and_recipes_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"stages|max_evaluations is 0|max_seconds is -1|evaluation_size is -1"):
        run(None, **options)
