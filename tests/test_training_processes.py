"""Two processes of torchrun train what one does; only the first writes; one that fails ends both with its error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_processes
from training_fixtures import MOLECULE, frames, plain, untrained

from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.training import Stage, TrainingHistory, train
from openmm_bg.training.processes import Processes

TESTS = Path(__file__).parent
TOLERANCE = 1e-5  # of parameters of order one after 32 steps in float32


def run(folder: Path, mode: str = "plain") -> subprocess.CompletedProcess[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, TESTS / "training_processes.py", folder, "--mode", mode]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def result(folder: Path) -> tuple[BoltzmannGenerator, TrainingHistory]:
    return BoltzmannGenerator.load(folder / "result.bg"), TrainingHistory(
        **json.loads((folder / "result.json").read_text())
    )


def distance(first: BoltzmannGenerator, second: BoltzmannGenerator) -> float:
    pairs = zip(first._tensors().values(), second._tensors().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs if a.numel())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folders of a run of one process and of two."""
    found = {}
    for n in (1, 2):
        found[n] = tmp_path_factory.mktemp(f"processes{n}")
        if n == 1:
            training_processes.run(found[n], "plain")
        else:
            ran = run(found[n])
            assert ran.returncode == 0, ran.stderr
    return found


def test_two_processes_end_with_the_parameters_of_one(folders: dict[int, Path]) -> None:
    (one, _), (two, _) = (result(folders[n]) for n in (1, 2))
    assert distance(one, two) < TOLERANCE


@pytest.mark.slow
def test_processes_that_keep_their_gradients_would_be_noticed(folders: dict[int, Path], tmp_path: Path) -> None:
    ran = run(tmp_path, "gradients apart")
    assert ran.returncode == 0, ran.stderr
    assert distance(result(tmp_path)[0], result(folders[1])[0]) > 100 * TOLERANCE


def test_two_processes_report_the_losses_and_evaluations_of_one(folders: dict[int, Path]) -> None:
    one, two = (plain(result(folders[n])[1]) for n in (1, 2))
    assert one["n_energy_evaluations"] == two["n_energy_evaluations"]
    assert one["stages"] == two["stages"]
    assert len(one["steps"]) == len(two["steps"]) > 4
    for first, second in zip(one["steps"], two["steps"], strict=True):
        assert first.keys() == second.keys()
        values = [[value for value in step.values() if not isinstance(value, str)] for step in (first, second)]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-4)
    fractions = [[found["ess_fraction"] for found in history["evaluations"]] for history in (one, two)]
    np.testing.assert_allclose(*fractions, rtol=1e-4)


def test_processes_share_the_work_and_only_the_first_reports(folders: dict[int, Path]) -> None:
    first, second = (json.loads((folders[2] / f"process{rank}.json").read_text()) for rank in (0, 1))
    total = result(folders[2])[1].n_energy_evaluations
    assert first["own_evaluations"] + second["own_evaluations"] == total
    assert abs(first["own_evaluations"] - second["own_evaluations"]) < 0.02 * total
    assert first["hash"] == second["hash"]
    assert (first["reports"] > 0, second["reports"]) == (True, 0)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_in_all_processes(folders: dict[int, Path], tmp_path: Path) -> None:
    interrupted = run(tmp_path, "interrupt")
    assert interrupted.returncode != 0
    assert "KeyboardInterrupt" in interrupted.stderr
    assert (tmp_path / "training" / "checkpoint.safetensors").exists()
    ran = run(tmp_path, "seconds")  # a limit that is never reached: the clock of the first counts
    assert ran.returncode == 0, ran.stderr
    assert distance(result(tmp_path)[0], result(folders[1])[0]) < TOLERANCE


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("failure", "ValueError: The energies of process 1 failed."),
        ("other data", "Process 1 of 2 was started with other data than process 0"),
    ],
)
def test_a_process_that_fails_ends_the_run_with_its_error(mode: str, message: str, tmp_path: Path) -> None:
    ran = run(tmp_path, mode)
    assert ran.returncode != 0
    assert message in ran.stderr
    assert not (tmp_path / "result.bg").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"stages": (Stage("tiny", 5, conditional_kl=1.0, batch_size=4),)},
            "batches of 1, which cannot be shared by 2",
        ),
        ({"data": None}, "Training in 2 processes needs data that all of them read"),
    ],
    ids=["batch", "data"],
)
def test_what_two_processes_cannot_do_is_refused_before_anything_is_written(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "find", lambda: Processes(0, 2))
    with (
        SystemPotential(MOLECULE.system(), platform="Reference", n_workers=1) as potential,
        pytest.raises(ValueError, match=message),
    ):
        train(
            untrained(), potential, **{"data": frames(100)[0], "folder": tmp_path / "run", "progress": False} | options
        )
    assert not (tmp_path / "run").exists()


def test_without_a_launcher_there_is_one_process() -> None:
    assert Processes.find() == Processes(0, 1, None)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("n", [1, 2, 7, 256])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_cover_a_batch_once(n: int, size: int) -> None:
    rows = np.concatenate([np.arange(n)[Processes(rank, size).share(n)] for rank in range(size)])
    np.testing.assert_array_equal(rows, np.arange(n))


def test_a_batch_for_every_process_is_enough() -> None:
    stages: list[Any] = [
        Stage("data", 1, nll=1.0, batch_size=4),
        Stage("energies", 1, conditional_kl=1.0, batch_size=16),
    ]
    Processes(0, 4).check_batches(stages)
    with pytest.raises(ValueError, match=r"'data' has batches of 4, .* 5 processes"):
        Processes(0, 5).check_batches(stages)
    with pytest.raises(ValueError, match=r"'energies' has batches of 4, .* quarter"):
        Processes(0, 5).check_batches(stages[1:])
