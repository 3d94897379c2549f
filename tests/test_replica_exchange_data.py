"""Replica exchange makes data of the lowest temperature, and no interruption costs what was there."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit
from openmmtools.multistate import MultiStateReporter

from openmm_bg.analysis import chain_mean
from openmm_bg.moves.replica_simulation import ReplicaSimulation, _round_trips, geometric_ladder, simulate_replicas
from openmm_bg.systems import MolecularSystem
from openmm_bg.training.simulate import SimulationError

BOLTZMANN = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)
LADDER = (300.0, 360.0, 430.0)
STIFFNESS, N_ATOMS = 2000.0, 30


def oscillators() -> MolecularSystem:
    """Independent harmonic particles: variance kT/stiffness in each direction, energies gamma distributed."""
    system = openmm.System()
    force = openmm.CustomExternalForce(f"0.5*{STIFFNESS}*(x^2+y^2+z^2)")
    topology = app.Topology()
    residue = topology.addResidue("OSC", topology.addChain())
    for index in range(N_ATOMS):
        system.addParticle(12.0)
        force.addParticle(index, [])
        topology.addAtom(f"C{index}", app.element.carbon, residue)
    system.addForce(force)
    return MolecularSystem(system, topology, np.full((N_ATOMS, 3), 0.01))


def run(folder: Path, **changes) -> ReplicaSimulation:
    options = {"stride": 60, "friction": 5.0, "n_equilibration": 5, "platform": "Reference", "n_frames": 30}
    return simulate_replicas(oscillators(), LADDER, folder, **{**options, **changes})


@pytest.fixture(scope="module")
def long_run(tmp_path_factory) -> tuple[Path, ReplicaSimulation]:
    folder = tmp_path_factory.mktemp("replicas")
    return folder, run(folder, n_frames=350, timestep=0.004)


def test_energies_and_variances_are_those_of_the_lowest_temperature(long_run) -> None:
    data = long_run[1].data
    assert data.positions.shape == (1, 350, N_ATOMS, 3)
    assert data.temperature == 300.0
    energy = chain_mean(data.energies[0])
    expected = 1.5 * N_ATOMS * BOLTZMANN * 300.0
    assert abs(energy.value - expected) < 4.0 * energy.error
    assert energy.error < 0.02 * expected
    variance = chain_mean(np.square(data.positions[0]).mean(axis=(1, 2)))
    assert abs(variance.value - BOLTZMANN * 300.0 / STIFFNESS) < 4.0 * variance.error


def test_frames_of_one_replica_would_not_pass(long_run) -> None:
    """The mutant: the replicas, which wander through all temperatures, instead of the state."""
    folder, result = long_run
    reporter = MultiStateReporter(str(folder / "replicas.nc"), open_mode="r")
    reduced = np.asarray(reporter.read_energies()[0])[-350:, :, 0].mean(axis=1)
    reporter.close()
    energy = chain_mean(reduced * BOLTZMANN * 300.0)
    assert abs(energy.value - 1.5 * N_ATOMS * BOLTZMANN * 300.0) > 8.0 * energy.error
    assert len(result.data.energies[0]) == len(reduced)


def test_energies_belong_to_the_frames(long_run) -> None:
    data = long_run[1].data
    by_hand = 0.5 * STIFFNESS * np.square(data.positions[0]).sum(axis=(1, 2))
    np.testing.assert_allclose(data.energies[0], by_hand, rtol=1e-5)


def test_exchanges_are_accepted_as_gamma_distributed_energies_say(long_run) -> None:
    result = long_run[1]
    draws = np.random.default_rng(0).gamma(1.5 * N_ATOMS, size=(2, 400_000))
    for pair, found in enumerate(result.fraction_accepted):
        cold, hot = LADDER[pair], LADDER[pair + 1]
        exponent = (1.0 / cold - 1.0 / hot) * (cold * draws[0] - hot * draws[1])
        expected = np.exp(np.minimum(0.0, exponent)).mean()
        assert found == pytest.approx(expected, abs=0.06)
    assert result.n_round_trips > 10


def test_cost_counts_the_steps_of_all_replicas(long_run) -> None:
    cost = long_run[1].data.cost
    assert cost.n_steps == 355 * 3 * 61
    assert cost.platform == "Reference"
    assert cost.seconds > 0.0


def test_round_trips_are_counted_from_the_lowest_temperature() -> None:
    def trips(*visited: int) -> int:
        other = [(1 - np.sign(v)) * 2 for v in visited]
        states = np.array([visited, other, np.ones(len(visited), dtype=int)]).T
        return _round_trips(states[:, :1].repeat(3, axis=1)) // 3

    assert trips(0, 1, 2, 1, 0) == 1
    assert trips(0, 1, 2, 1, 2) == 0
    assert trips(2, 1, 0, 1, 2) == 0
    assert trips(2, 0, 2, 0, 2, 1, 0) == 2
    assert trips(1, 1, 1) == 0


def test_ctrl_c_leaves_a_folder_that_goes_on_where_it_stopped(tmp_path) -> None:
    def stop(n_frames: int, seconds: float) -> None:
        if n_frames == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=stop)
    kept = run(tmp_path, n_frames=12).data
    data = run(tmp_path).data
    assert data.energies.shape == (1, 30)
    np.testing.assert_array_equal(data.positions[:, :12], kept.positions)
    assert len(np.unique(data.energies)) == 30
    assert data.cost.seconds > kept.cost.seconds
    assert run(tmp_path).data.cost == data.cost  # a finished run is read


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_replica_exchange_data import run
run(Path(sys.argv[2]), n_frames=100_000, progress=lambda done, seconds: print(done, flush=True))
"""


def test_a_killed_run_goes_on(tmp_path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    done = 0
    while done < 8:
        done = int(process.stdout.readline() or 8)
    time.sleep(0.05)
    process.kill()
    process.wait()
    process.stdout.close()
    data = run(tmp_path).data
    assert data.energies.shape[1] >= 30
    by_hand = 0.5 * STIFFNESS * np.square(data.positions[0]).sum(axis=(1, 2))
    np.testing.assert_allclose(data.energies[0], by_hand, rtol=1e-5)


def test_other_settings_are_refused_and_nothing_is_overwritten(tmp_path) -> None:
    run(tmp_path, n_frames=2)
    before = (tmp_path / "replicas.nc").read_bytes()
    with pytest.raises(ValueError, match="stride: 60 there, 61 asked for"):
        run(tmp_path, n_frames=3, stride=61)
    assert (tmp_path / "replicas.nc").read_bytes() == before


def test_a_run_that_blows_up_says_so(tmp_path) -> None:
    with pytest.raises(SimulationError, match="smaller timestep"):
        run(tmp_path, timestep=0.5, friction=0.01, stride=2000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 0}, "stride is 0"),
        ({"n_equilibration": 0}, "n_equilibration is 0"),
        ({"n_frames": None}, "say when to stop"),
        ({"platform": "Abacus"}, "Abacus"),
    ],
)
def test_wrong_options_are_named(tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **changes)


def test_ladders_are_geometric_and_ascend() -> None:
    ladder = geometric_ladder(300.0, 600.0, 5)
    np.testing.assert_allclose(np.divide(ladder[1:], ladder[:-1]), 2.0**0.25)
    with pytest.raises(ValueError, match="at least 2"):
        geometric_ladder(300.0, 600.0, 1)
    with pytest.raises(ValueError, match="from 300 to 250 K"):
        geometric_ladder(300.0, 250.0, 4)
    with pytest.raises(ValueError, match="ascending"):
        simulate_replicas(oscillators(), (300.0, 300.0), "nowhere", n_frames=1)
