"""Training data come from the right ensemble, and no interruption or bad folder costs what was already there."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import unit

from openmm_bg.systems import MolecularSystem, peptide
from openmm_bg.training import data as data_module
from openmm_bg.training.data import TrajectoryData
from openmm_bg.training.simulate import SimulationError, simulate

BOLTZMANN = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)


@pytest.fixture(scope="module")
def molecule() -> MolecularSystem:
    return peptide("ACE-ALA-NME")


def oscillators(n: int = 20, stiffness: float = 1000.0) -> tuple[openmm.System, np.ndarray]:
    """Independent harmonic particles: variance kT/stiffness in each direction, mean energy 3/2 kT each."""
    system = openmm.System()
    force = openmm.CustomExternalForce(f"0.5*{stiffness}*(x^2+y^2+z^2)")
    for index in range(n):
        system.addParticle(12.0)
        force.addParticle(index, [])
    system.addForce(force)
    return system, np.zeros((n, 3))


def run(molecule, folder: Path | None = None, *, n_steps: int = 60, **changes) -> TrajectoryData:
    arguments = {"stride": 10, "n_equilibration_steps": 20, "platform": "Reference", "seed": 3, **changes}
    return simulate(molecule, 400.0, n_steps=n_steps, folder=folder, **arguments)


def interrupt_at(n_steps: int):
    def progress(done: int, total: int) -> None:
        if done >= n_steps:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("temperature", [300.0, 900.0])
def test_variance_and_energy_of_oscillators_follow_equipartition_at_any_temperature(temperature: float) -> None:
    data = simulate(
        oscillators(),
        temperature * unit.kelvin,
        n_steps=40_000,
        stride=50,
        timestep=2.0 * unit.femtosecond,
        friction=10.0 / unit.picosecond,
        platform="Reference",
        seed=1,
    )
    variance = data.positions.var(axis=(0, 1)).ravel()
    energies = data.energies.mean() / 20
    error = variance.std() / np.sqrt(variance.size)  # 60 independent coordinates
    assert abs(variance.mean() - BOLTZMANN * temperature / 1000.0) < 4.0 * error
    assert error < 0.02 * variance.mean()
    assert energies == pytest.approx(1.5 * BOLTZMANN * temperature, rel=4.0 * error / variance.mean())


def test_shapes_cost_energies_and_constraints_are_those_of_the_system(molecule) -> None:
    calls: list[tuple[int, int]] = []
    data = run(molecule, progress=lambda done, total: calls.append((done, total)))
    assert data.positions.shape == (2, 6, 22, 3)
    assert data.energies.shape == (2, 6)
    assert data.temperature == 400.0
    assert (data.cost.n_steps, data.cost.platform) == (2 * (60 + 20), "Reference")
    assert data.cost.seconds > 0.0
    assert calls[-1] == (120, 120)
    context = openmm.Context(
        molecule.system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(data.positions[1, 3])
    assert context.getState(getEnergy=True).getPotentialEnergy()._value == pytest.approx(data.energies[1, 3])
    i, j, length = molecule.system.getConstraintParameters(0)
    lengths = np.linalg.norm(data.positions[:, :, i] - data.positions[:, :, j], axis=-1)
    np.testing.assert_allclose(lengths, length._value, rtol=1e-5)


def test_the_same_seed_repeats_the_chains_and_chains_differ(molecule) -> None:
    first, again, other = run(molecule), run(molecule), run(molecule, seed=4)
    np.testing.assert_array_equal(first.positions, again.positions)
    assert np.abs(first.positions - other.positions).max() > 1e-3
    assert np.abs(first.positions[0] - first.positions[1]).max() > 1e-3


def test_a_system_and_positions_do_as_well_as_a_molecule_and_can_be_minimised_first(molecule) -> None:
    strained = molecule.positions + np.random.default_rng(0).normal(scale=0.01, size=(22, 3))
    changes = {"n_steps": 10, "n_equilibration_steps": 0}
    plain = run((molecule.system, strained), **changes)
    relaxed = run((molecule.system, strained), minimized=True, **changes)
    assert relaxed.energies.max() < plain.energies.min()


def test_ctrl_c_leaves_a_folder_that_goes_on_where_it_stopped(molecule, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(molecule, tmp_path, n_steps=4000, progress=interrupt_at(40))
    kept = data_module.read_npz(tmp_path / "frames_00000.npz")["positions"]
    data = run(molecule, tmp_path, n_steps=4000)
    assert data.positions.shape[:2] == (2, 400)
    assert 2 <= kept.shape[1] < 400
    np.testing.assert_array_equal(data.positions[:, : kept.shape[1]], kept)
    jumps = np.linalg.norm(np.diff(data.positions, axis=1), axis=-1).max(axis=(0, 2))
    assert jumps[kept.shape[1] - 1] < 1.5 * jumps.max(initial=0.0, where=np.arange(399) != kept.shape[1] - 1)
    assert len(np.unique(data.energies)) == data.energies.size  # no stretch is repeated


SCRIPT = """
import sys
from openmm_bg.systems import peptide
from openmm_bg.training.simulate import simulate
simulate(peptide("ACE-ALA-NME"), 400.0, n_steps=50_000_000, stride=100, platform="Reference", folder=sys.argv[1],
         seed=3, progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="child processes are looked up in /proc")
@pytest.mark.parametrize("kind", ["interrupt", "kill"])
def test_a_script_that_is_stopped_leaves_no_process_behind(tmp_path, kind: str) -> None:
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert script.stdout is not None
    script.stdout.readline()
    children = Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text().split()
    assert len(children) == 2
    if kind == "interrupt":
        os.killpg(script.pid, signal.SIGINT)  # as a terminal does: every process of the group gets it
    else:
        script.kill()
    assert script.wait(timeout=60) != 0
    deadline = time.monotonic() + 30
    while any(_is_running(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_is_running(pid) for pid in children)
    if kind == "interrupt":
        kept = data_module.read_npz(tmp_path / "frames_00000.npz")["energies"]
        assert kept.shape[0] == 2
        assert (tmp_path / "checkpoint.npz").exists()


def _is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:  # it has gone
        return False


def test_going_on_does_not_repeat_the_random_numbers(tmp_path) -> None:
    free = openmm.System()
    free.addParticle(12.0)
    arguments = {"n_chains": 1, "n_equilibration_steps": 0, "stride": 1}
    run((free, np.zeros((1, 3))), tmp_path, n_steps=20, **arguments)
    data = run((free, np.zeros((1, 3))), tmp_path, n_steps=40, **arguments)
    steps = np.diff(data.positions[0, :, 0], axis=0)
    kicks = np.diff(steps, axis=0)  # the noise of the thermostat
    assert np.abs(kicks[1:18] - kicks[21:38]).max() > 1e-6
    assert np.abs(np.corrcoef(kicks[1:18].ravel(), kicks[21:38].ravel())[0, 1]) < 0.6


def test_a_finished_run_is_read_and_a_longer_one_extends_it(molecule, tmp_path, monkeypatch) -> None:
    first = run(molecule, tmp_path)
    longer = run(molecule, tmp_path, n_steps=100)
    np.testing.assert_array_equal(longer.positions[:, :6], first.positions)
    assert longer.positions.shape[1] == 10
    assert longer.cost.n_steps == 2 * 120
    assert longer.cost.seconds > first.cost.seconds

    def no_dynamics(*_: object, **__: object) -> None:
        raise AssertionError("dynamics was run again")

    monkeypatch.setattr("openmm_bg.training.simulate.choose_platform", no_dynamics)
    np.testing.assert_array_equal(run(molecule, tmp_path, n_steps=100).positions, longer.positions)
    np.testing.assert_array_equal(run(molecule, tmp_path, n_steps=60, seed=None).positions, first.positions)


def test_a_folder_with_other_settings_is_refused_and_left_alone(molecule, tmp_path) -> None:
    run(molecule, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for changes in ({"timestep": 0.001}, {"n_chains": 3}, {"seed": 9}, {"stride": 20}):
        with pytest.raises(ValueError, match=f"other settings .{next(iter(changes))}: .* Nothing was overwritten"):
            run(molecule, tmp_path, **changes)
    with pytest.raises(ValueError, match="another System"):
        run(peptide("ACE-ALA-NME", hydrogen_mass=2.0), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_is_reported_and_what_was_saved_stays(molecule, tmp_path, monkeypatch) -> None:
    first = run(molecule, tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # in this process, not in the chains
    with pytest.raises(OSError, match=r"No space left on device.*intact"):
        run(molecule, tmp_path, n_steps=100)
    monkeypatch.undo()
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz"}
    assert not list(tmp_path.glob(".*"))
    np.testing.assert_array_equal(run(molecule, tmp_path).positions, first.positions)


def test_an_unwritable_folder_is_refused_before_any_dynamics(molecule, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Choose a folder you can write to"):
        run(molecule, tmp_path / "file" / "folder")


def test_a_damaged_folder_is_refused_by_the_name_of_the_file(molecule, tmp_path) -> None:
    run(molecule, tmp_path)
    frames = tmp_path / "frames_00000.npz"
    frames.write_bytes(frames.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"frames_00000\.npz is truncated"):
        run(molecule, tmp_path)


def test_dynamics_that_blows_up_names_temperature_and_timestep_and_keeps_what_came_before(molecule, tmp_path) -> None:
    with pytest.raises(SimulationError, match=r"400 K with a timestep of 30 fs.*smaller timestep"):
        run(molecule, tmp_path, n_steps=20_000, timestep=0.030)
    with pytest.raises(SimulationError):
        run(molecule, tmp_path, n_steps=20_000, timestep=0.030)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_steps": 65}, "expected a multiple of the stride, 10"),
        ({"n_steps": 0}, "expected a multiple of the stride"),
        ({"timestep": 0.0}, "timestep is 0.0; expected a positive number"),
        ({"friction": -1.0}, "friction is -1.0"),
        ({"n_chains": 0}, "n_chains is 0"),
        ({"stride": 0}, "stride is 0"),
        ({"n_equilibration_steps": -5}, "n_equilibration_steps is -5"),
        ({"platform": "Abacus"}, "Unknown platform 'Abacus'"),
    ],
)
def test_settings_out_of_range_are_refused(molecule, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(molecule, **changes)


@pytest.mark.parametrize("temperature", [0.0, -300.0, np.nan, np.inf])
def test_a_temperature_that_is_not_positive_is_refused(molecule, temperature) -> None:
    with pytest.raises(ValueError, match=r"temperature is .*; expected a positive number"):
        simulate(molecule, temperature, n_steps=10, stride=10)


def test_positions_with_nan_or_of_another_molecule_are_refused(molecule) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        run((molecule.system, np.full((22, 3), np.nan)))
    with pytest.raises(ValueError, match=r"shape \(19, 3\); expected \(22, 3\)"):
        run((molecule.system, np.zeros((19, 3))))


def test_trajectory_data_survive_a_file_and_damaged_files_are_refused(molecule, tmp_path) -> None:
    data, path = run(molecule), tmp_path / "data.npz"
    data.save(path)
    loaded = TrajectoryData.load(path)
    np.testing.assert_array_equal(loaded.positions, data.positions)
    assert dataclasses.replace(loaded, positions=data.positions, energies=data.energies) == data
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated"):
        TrajectoryData.load(path)
    np.savez(path, positions=data.positions)
    with pytest.raises(ValueError, match="lacks 'description'"):
        TrajectoryData.load(path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        TrajectoryData.load(tmp_path / "nothing.npz")
    with pytest.raises(OSError, match="Cannot write"):
        data.save(tmp_path / "no" / "folder.npz")
