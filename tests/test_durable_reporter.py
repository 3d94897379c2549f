"""A stored simulation can be resumed after it died at any moment, and a write that fails leaves what was there."""

from __future__ import annotations

import argparse
import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpiplus
import numpy as np
import openmm
import pytest
from killed_runs import N_PROPOSALS, SAMPLERS, TEMPERATURES, started, storage
from openmmtools import cache
from openmmtools.multistate import MultiStateReporter, ReplicaExchangeSampler

from openmm_bg.moves import DurableReporter

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def reference_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = openmm.Platform.getPlatformByName("Reference")
    monkeypatch.setattr(cache, "global_context_cache", cache.ContextCache(platform=platform))


def options(folder: Path, **changed: Any) -> argparse.Namespace:
    default = {"folder": folder, "reporter": "durable", "sampler": "replica", "checkpoint_interval": 1}
    return argparse.Namespace(**{**default, **changed})


def killed(folder: Path, kills: int, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, HERE / "killed_runs.py", folder, "--kills", str(kills), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return result


def counts(sampler: Any) -> list[int]:
    return [move.statistics["n_proposed"] for move in sampler.mcmc_moves]


# --------------------------------------------------------------------------------------------------- killed at any time


def test_after_ten_kills_at_random_moments_nothing_but_running_iterations_is_lost(tmp_path: Path) -> None:
    result = killed(tmp_path / "run", 10)
    assert result["problems"] == []
    assert result["opened"] >= 7
    assert result["iterations"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "arguments"),
    [
        (100, ()),
        (30, ("--sampler", "learned")),
        (30, ("--sampler", "sams")),
        (30, ("--checkpoint-interval", "3")),
    ],
    ids=["replica exchange", "learned exchange", "SAMS", "checkpoints apart"],
)
def test_after_many_kills_at_random_moments_nothing_but_running_iterations_is_lost(
    kills: int, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    result = killed(tmp_path / "run", kills, "--seed", "1", *arguments)
    assert result["problems"] == []
    assert result["opened"] >= 2 * kills // 3
    assert result["iterations"] >= kills // 3


def snapshots(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, Path]]:
    """The folder of a run at each moment at which one of the files begins to be written: word, iterations, folder."""
    taken: list[tuple[str, int, Path]] = []
    completed = [-1]
    say, write_last = DurableReporter._say, DurableReporter.write_last_iteration

    def say_and_copy(self: DurableReporter, state: Any) -> None:
        say(self, state)
        if state != "clean":
            taken.append((state, completed[0], folder / f"snapshot {len(taken)}"))
            shutil.copytree(folder / "run", taken[-1][2])
        if state == "copy":
            completed[0] = self._iteration

    with monkeypatch.context() as patched:
        patched.setattr(DurableReporter, "_say", say_and_copy)
        (folder / "run").mkdir()
        sampler = started(options(folder / "run"))
        sampler.run(n_iterations=3)
        del sampler
    assert write_last is DurableReporter.write_last_iteration
    return taken


def garble(state: str, folder: Path) -> None:
    """Leave the files that are being written as a crash might."""
    patterns = {"creating": ["*.nc", "*.safe/*.nc"], "main": ["*.nc"], "copy": ["*.safe/*.nc"]}
    for pattern in patterns[state]:
        for path in folder.glob(pattern):
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2] + bytes(100))


def test_whatever_is_being_written_the_storage_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = snapshots(tmp_path, monkeypatch)
    assert {state for state, _, _ in taken} == {"creating", "main", "copy"}
    for state, completed, folder in taken:
        garble(state, folder)
        sampler = started(options(folder))
        last = completed + (state == "copy") if completed >= 0 else 0
        assert sampler.iteration == min(last, 3), (state, completed)
        assert counts(sampler) == [N_PROPOSALS * sampler.iteration] * len(TEMPERATURES)
        sampler.run(n_iterations=1)
        assert sampler.iteration == min(last, 3) + 1


@pytest.mark.parametrize("interrupted_at", [0, 1, 2, 3])
def test_a_repair_that_is_interrupted_is_repeated(
    interrupted_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = next(path for state, done, path in snapshots(tmp_path, monkeypatch) if state == "main" and done == 1)
    garble("main", folder)
    replace, calls = os.replace, []

    def dying(source: Any, target: Any) -> None:
        if str(source).endswith(".nc") or str(target).endswith(".nc"):
            calls.append(target)
            if len(calls) == interrupted_at + 1:
                raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            storage(options(folder)).storage_exists()
    assert started(options(folder)).iteration == 1


def test_a_storage_whose_copy_is_gone_is_refused_and_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = next(path for state, done, path in snapshots(tmp_path, monkeypatch) if state == "main" and done == 1)
    for path in folder.glob("*.safe/*.nc"):
        path.unlink()
    before = (folder / "run.nc").read_bytes()
    with pytest.raises(OSError, match=r"interrupted while it was written, and its copy is gone: .*run.nc.safe/run.nc"):
        storage(options(folder)).storage_exists()
    assert (folder / "run.nc").read_bytes() == before


# ------------------------------------------------------------------------------------------- writes that do not succeed

FULL = """
import resource, signal, sys
sys.path.insert(0, {here!r})
from test_durable_reporter import options, started
from pathlib import Path
sampler = started(options(Path({folder!r})))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
sampler.run(n_iterations=500)
"""


def test_a_full_disk_is_a_clear_error_and_the_earlier_data_is_intact(tmp_path: Path) -> None:
    sampler = started(options(tmp_path))
    sampler.run(n_iterations=3)
    del sampler
    code = FULL.format(here=str(HERE), folder=str(tmp_path), size=(tmp_path / "run.nc").stat().st_size + 8192)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 1, ran.stderr
    assert "the disk may be full. What was stored before is intact; remedy that and resume." in ran.stderr
    resumed = started(options(tmp_path))
    assert 3 <= resumed.iteration < 500
    assert counts(resumed) == [N_PROPOSALS * resumed.iteration] * len(TEMPERATURES)
    energies, _, _ = resumed._reporter.read_energies()
    assert energies.shape[0] == resumed.iteration + 1
    assert np.isfinite(energies).all()
    resumed.run(n_iterations=2)


def test_nothing_is_written_after_a_write_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = started(options(tmp_path))
    sampler.run(n_iterations=2)

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("NetCDF: HDF error")

    with monkeypatch.context() as patched:
        patched.setattr(MultiStateReporter, "write_energies", full)
        with pytest.raises(OSError, match="NetCDF: HDF error"):
            sampler.run(n_iterations=1)
    with pytest.raises(OSError, match=r"An earlier write to .* failed. Restart"):
        sampler.run(n_iterations=1)
    del sampler
    assert started(options(tmp_path)).iteration == 2


@pytest.mark.parametrize("place", [lambda folder: Path("/proc/no/run.nc"), lambda folder: folder / "file" / "run.nc"])
def test_a_folder_that_cannot_be_written_to_is_a_clear_error_at_once(
    place: Callable[[Path], Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=r"Cannot write to .*run.nc: .* Its folder may not exist, not be writable"):
        DurableReporter(place(tmp_path)).open("w")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_second_writer_is_refused_and_leaves_the_first_alone(tmp_path: Path) -> None:
    sampler = started(options(tmp_path))
    sampler.run(n_iterations=1)
    sampler._reporter._say("main")  # as in the middle of a write
    assert storage(options(tmp_path)).storage_exists()  # a look from outside repairs nothing
    with pytest.raises(BlockingIOError, match=r"Another process, .* writes to .*run.nc. Wait until it ends, end it"):
        storage(options(tmp_path)).open("a")
    sampler.run(n_iterations=1)
    del sampler
    assert started(options(tmp_path)).iteration == 2


def test_a_simulation_that_nothing_refers_to_any_more_leaves_its_storage(tmp_path: Path) -> None:
    """Python frees objects that refer to each other some time after the last name of them is gone."""
    sampler = started(options(tmp_path))
    sampler.run(n_iterations=2)
    sampler.itself = sampler
    gc.disable()
    try:
        del sampler
        assert started(options(tmp_path)).iteration == 2
    finally:
        gc.enable()


# -------------------------------------------------------------------------------- the first of several MPI processes


@pytest.fixture
def opened_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DurableReporter:
    """A resumed storage as the first of two MPI processes opens it: only to read, until the other has read it."""

    class Processes:
        rank, size = 0, 2

    sampler = started(options(tmp_path))
    sampler.run(n_iterations=2)
    del sampler
    reporter = DurableReporter(tmp_path / "run.nc", checkpoint_interval=1)
    with monkeypatch.context() as patched:
        patched.setattr("openmm_bg.moves.durable_reporter.mpiplus.get_mpicomm", Processes)
        reporter.open("a")
    with pytest.raises(BlockingIOError, match=r"Another process, .* writes to"):
        storage(options(tmp_path)).open("a")
    return reporter


def test_a_storage_that_was_only_read_is_left_as_it_was(opened_first: DurableReporter, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nc")}
    opened_first.close()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.nc")} == before
    assert started(options(tmp_path)).iteration == 2


def test_what_was_to_be_written_is_written_when_it_closes(opened_first: DurableReporter, tmp_path: Path) -> None:
    opened_first.write_dict("note", {"is": "there"})
    opened_first.close()
    for path in (tmp_path / "run.nc", opened_first.safe_folder / "run.nc"):
        reader = MultiStateReporter(str(path), open_mode="r")
        assert reader.read_dict("note") == {"is": "there"}
        reader.close()
    assert started(options(tmp_path)).iteration == 2


def test_a_storage_that_can_not_be_written_to_when_it_closes_is_let_go(
    opened_first: DurableReporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, said = signal.getsignal(signal.SIGINT), []

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    opened_first.write_dict("note", {"is": "there"})
    with monkeypatch.context() as patched, mpiplus.delay_termination():
        patched.setattr(MultiStateReporter, "open", full)
        patched.setattr("openmm_bg.moves.durable_reporter._logger.warning", lambda *words: said.append(str(words[1])))
        opened_first.close()
        assert signal.getsignal(signal.SIGINT) is handler
    assert len(said) == 1
    assert "No space left on device. Its folder may not exist" in said[0]
    assert started(options(tmp_path)).iteration == 2


# ----------------------------------------------------------------------------------------------- resume as openmmtools


@pytest.mark.parametrize("name", SAMPLERS)
def test_runs_resume_and_extend_with_all_counts(name: str, tmp_path: Path) -> None:
    chosen = options(tmp_path, sampler=name)
    sampler = started(chosen)
    sampler.number_of_iterations = 3
    sampler.run()
    assert sampler.is_completed
    del sampler
    resumed = started(chosen)
    assert (resumed.iteration, resumed.number_of_iterations) == (3, 3)
    resumed.extend(n_iterations=4)
    del resumed
    again = started(chosen)
    assert (again.iteration, again.number_of_iterations) == (7, 7)
    proposed = [move.statistics.get("n_proposed", 0) for move in again.mcmc_moves]
    assert sum(proposed) == 7 * N_PROPOSALS * (1 if name == "sams" else len(TEMPERATURES))


def test_counts_are_those_of_the_checkpoint_that_a_run_resumes_from(tmp_path: Path) -> None:
    for reporter, expected in (("durable", 6), ("plain", 8)):  # openmmtools' own counts two lost iterations twice
        chosen = options(tmp_path / reporter, checkpoint_interval=3, reporter=reporter)
        chosen.folder.mkdir()
        started(chosen).run(n_iterations=8)
        resumed = started(chosen)
        assert resumed.iteration == 6
        assert counts(resumed) == [expected * N_PROPOSALS] * len(TEMPERATURES)


def test_the_files_are_those_of_openmmtools_and_their_copies_equal(tmp_path: Path) -> None:
    started(options(tmp_path)).run(n_iterations=3)
    read = []
    for path in (tmp_path / "run.nc", tmp_path / "run.nc.safe" / "run.nc"):
        reporter = MultiStateReporter(str(path), open_mode="r")
        read.append((reporter.read_energies()[0], reporter.read_replica_thermodynamic_states()))
        states = reporter.read_sampler_states(3)
        assert len(states) == len(TEMPERATURES)
        read[-1] += (np.array([state.positions._value for state in states]),)
        reporter.close()
    for original, duplicate in zip(*read, strict=True):
        np.testing.assert_array_equal(original, duplicate)


def test_a_storage_of_the_plain_reporter_is_taken_over(tmp_path: Path) -> None:
    started(options(tmp_path, reporter="plain")).run(n_iterations=2)
    sampler = ReplicaExchangeSampler.from_storage(DurableReporter(tmp_path / "run.nc", open_mode="r+"))
    sampler.run(n_iterations=2)
    del sampler
    assert (tmp_path / "run.nc.safe" / "run.nc").exists()
    assert started(options(tmp_path)).iteration == 4
