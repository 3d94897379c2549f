"""Two MPI processes sample what one does and count the same; one that fails ends both; GPUs are given out in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mpi_runs
import numpy as np
import openmm
import pytest
import torch
from mpi_runs import N_PROPOSALS, TEMPERATURES
from openmm import unit
from openmmtools import cache, states, testsystems

from openmm_bg.analysis.timeseries import effective_sample_size
from openmm_bg.moves import check_ranks, local_rank, place_on_gpu

TESTS = Path(__file__).parent
MPIEXEC = Path(sys.executable).with_name("mpiexec")
needs_mpi = pytest.mark.skipif(not MPIEXEC.exists(), reason="There is no mpiexec beside this Python: pip install mpich")
ITERATIONS = 200
SAMPLERS = ("replica", "learned", "unmixed")


def run(folder: Path, n: int, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "mpi4py", TESTS / "mpi_runs.py", folder, *arguments]
    launcher = [MPIEXEC, "-n", str(n)] if n > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        [*launcher, *command], env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """What each process knows at the end, by number of processes and sampler."""
    found: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for n in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes{n}")
        if n == 1:
            for sampler in SAMPLERS:
                mpi_runs.run(folder, sampler, ITERATIONS, "", "")
        else:
            ran = run(folder, n, *SAMPLERS, "--iterations", str(ITERATIONS))
            assert ran.returncode == 0, ran.stdout + ran.stderr
        found[n] = {
            sampler: [json.loads((folder / f"{sampler}.{rank}.json").read_text()) for rank in range(n)]
            for sampler in SAMPLERS
        }
    return found


@needs_mpi
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_processes_count_what_one_does_and_both_know_it(runs: Any, sampler: str) -> None:
    for n in (1, 2):
        for counts in runs[n][sampler]:
            assert counts["n_proposed"] == [ITERATIONS * N_PROPOSALS] * len(TEMPERATURES)
            assert counts["n_displaced"] == [ITERATIONS] * len(TEMPERATURES)
            assert counts["n_drawn"] == (ITERATIONS + 1 if sampler == "learned" else None)
    first, second = runs[2][sampler]
    assert first["n_accepted"] == second["n_accepted"]


def deviations(counts: dict[str, Any]) -> list[float]:
    """Of the mean reduced energy of each temperature from the 3/2 of a harmonic oscillator, in standard errors."""
    series = [np.array(energies) for energies in counts["by_state"][: len(TEMPERATURES)]]
    return [float((u.mean() - 1.5) / (u.std() / np.sqrt(effective_sample_size(u)))) for u in series]


@needs_mpi
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("n", [1, 2])
def test_every_state_has_its_exact_energy(runs: Any, n: int, sampler: str) -> None:
    assert max(abs(z) for z in deviations(runs[n][sampler][0])) < 4.0


@needs_mpi
def test_a_move_without_its_density_would_be_noticed(tmp_path: Path) -> None:
    ran = run(tmp_path, 2, "unmixed", "--iterations", str(ITERATIONS), "--mutant", "no density")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    z = deviations(json.loads((tmp_path / "unmixed.0.json").read_text()))
    assert abs(sum(z)) / np.sqrt(len(z)) > 8.0


@needs_mpi
def test_processes_with_one_seed_draw_numbers_of_their_own(runs: Any) -> None:
    energies = np.array(runs[2]["unmixed"][0]["by_state"])  # the second state is the second process's
    correlation = np.corrcoef(energies[0], energies[1])[0, 1]
    assert abs(correlation) < 4.0 / np.sqrt(ITERATIONS)


@needs_mpi
@pytest.mark.parametrize(
    ("how", "message"),
    [("move", "ValueError: Node 2/2: No energy from the second process."), ("exit", "The second process ends itself.")],
)
def test_a_process_that_fails_ends_the_run_with_its_error(how: str, message: str, tmp_path: Path) -> None:
    ran = run(tmp_path, 2, "replica", "--fail", how)
    assert ran.returncode != 0
    assert message in ran.stderr
    assert not list(tmp_path.glob("*.json"))


@needs_mpi
@pytest.mark.parametrize(("sampler", "before"), [("replica", 2), ("learned", 0)])
def test_a_process_may_be_late_to_read_a_storage_that_is_resumed(sampler: str, before: int, tmp_path: Path) -> None:
    """Else the first one writes, and waits for the second, which waits for the storage to be clean."""
    for options, iterations in (([], before), (["--resume"], 2)):
        ran = run(tmp_path, 2, sampler, "--iterations", str(iterations), *options)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    found = [json.loads((tmp_path / f"{sampler}.{rank}.json").read_text()) for rank in (0, 1)]
    assert found == [before + 2] * 2


# --------------------------------------------------------------------------------------- wrong number of processes


@needs_mpi
def test_more_processes_than_replicas_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    ran = run(tmp_path, 2, "replica", "--replicas", "1")
    assert ran.returncode != 0
    assert "There are 2 MPI processes for 1 replica(s)" in ran.stderr
    assert not list(tmp_path.iterdir())


@needs_mpi
def test_processes_of_a_foreign_launcher_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    ran = run(tmp_path, 1, "replica", OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0")
    assert ran.returncode != 0
    assert "another MPI library" in ran.stderr
    assert not list(tmp_path.iterdir())


def test_a_learned_exchange_looks_at_the_number_of_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class FiveProcesses:
        rank, size = 0, 5

    monkeypatch.setattr("openmm_bg.moves.ranks.mpiplus.get_mpicomm", FiveProcesses)
    with pytest.raises(ValueError, match="5 MPI processes for 4 replica"):
        mpi_runs.run(tmp_path, "learned", 1, "", "")
    assert not list(tmp_path.glob("*.nc*"))


def test_mpi4py_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openmm_bg.moves.ranks.mpiplus.get_mpicomm", lambda: None)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    with pytest.raises(RuntimeError, match=r"SLURM_STEP_NUM_TASKS says that 3 processes .* mpi4py is not installed"):
        check_ranks(4)


def test_a_program_without_a_launcher_starts_no_mpi() -> None:
    code = (
        "import sys, mpiplus, openmm_bg.moves as moves\n"
        "assert moves.check_ranks(1) == 1 and mpiplus.get_mpicomm() is None\n"
        "assert 'mpi4py.MPI' not in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


# ----------------------------------------------------------------------------------------------------- whose GPU


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 0),
        ({"MPI_LOCALRANKID": "3", "PMI_RANK": "7"}, 3),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_RANK": "5"}, 1),
        ({"SLURM_LOCALID": "2", "SLURM_PROCID": "6"}, 2),
        ({"SLURM_LOCALID": "0", "MPI_LOCALRANKID": "2"}, 2),  # mpiexec of MPICH in a Slurm job
    ],
    ids=["none", "MPICH", "Open MPI", "Slurm", "MPICH in Slurm"],
)
def test_the_place_on_the_machine_is_what_the_launcher_says(variables: dict[str, str], expected: int) -> None:
    assert local_rank(variables) == expected


@pytest.mark.parametrize(("rank", "n_devices", "device"), [(0, 4, 0), (3, 4, 3), (5, 4, 1), (3, 1, 0)])
def test_contexts_are_made_on_the_gpu_of_the_process(
    rank: int, n_devices: int, device: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[Any] = []
    moved: list[Any] = []

    class Generator:
        def to(self, device: str) -> None:
            moved.append(device)

    monkeypatch.setenv("MPI_LOCALRANKID", str(rank))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_devices)
    monkeypatch.setattr(torch.cuda, "set_device", moved.append)
    monkeypatch.setattr("openmm_bg.moves.ranks.available_platforms", lambda: ["CUDA"])
    monkeypatch.setattr("openmm_bg.moves.ranks.openmm.Platform.getPlatformByName", lambda name: name)
    monkeypatch.setattr(cache.global_context_cache, "set_platform", lambda *given: chosen.append(given))
    assert place_on_gpu(Generator()) == device  # type: ignore[arg-type]
    assert chosen == [("CUDA", {"DeviceIndex": str(device), "Precision": "mixed"})]
    assert moved == [device, f"cuda:{device}"]


def test_openmmtools_takes_a_platform_with_a_device_index() -> None:
    """The idiom that place_on_gpu rests on, with the one platform property that every machine has."""
    contexts = cache.ContextCache(capacity=None, time_to_live=None)
    contexts.set_platform(openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"})
    state = states.ThermodynamicState(testsystems.HarmonicOscillator().system, 300.0 * unit.kelvin)
    context, _ = contexts.get_context(state)
    assert context.getPlatform().getPropertyValue(context, "Threads") == "1"


def test_a_machine_without_a_gpu_or_the_platform_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(RuntimeError, match="sees no GPU"):
        place_on_gpu()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("openmm_bg.moves.ranks.available_platforms", lambda: ["Reference"])
    with pytest.raises(ValueError, match="no platform 'CUDA' here, only Reference"):
        place_on_gpu()
