"""A generator's move in a Simulation: with its reporters, its checkpoints, its integrators, and what goes wrong."""

from __future__ import annotations

import io
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import openmm
import pytest
from app_fixtures import (
    REFERENCE,
    Recorder,
    gaussian,
    hybrid_monte_carlo,
    langevin,
    molecule_simulation,
    oscillator,
    oscillator_system,
    oscillator_topology,
    positions_of,
    velocities_of,
)
from exactness_fixtures import BENT, BUTANE, shifted, untrained
from openmm import app, unit

from openmm_bg import BoltzmannGeneratorSampling
from openmm_bg.density import Samples
from openmm_bg.moves import Independence
from openmm_bg.testing import GaussianDensity

HEADER = "step,n_accepted,n_proposed,n_nonfinite_energy,n_off_support,n_current_off_support"


def sampling_of(simulation: app.Simulation, interval: int = 10, **options: Any) -> BoltzmannGeneratorSampling:
    options = {"kernel": Independence(3), "seed": 5, **options}
    return BoltzmannGeneratorSampling(simulation, gaussian(), interval, **options)


class Interrupted(GaussianDensity):
    """Ctrl-C comes while the energies of a scan's proposals are being asked for."""

    at: int | None = None
    n_calls = 0

    def log_prob(self, positions: np.ndarray) -> np.ndarray:
        self.n_calls += 1
        if self.n_calls == self.at:
            raise KeyboardInterrupt
        return super().log_prob(positions)


# ---------------------------------------------------------------------------------------------- steps and reporters


def test_step_and_reporter_are_the_same_simulation() -> None:
    first = oscillator()
    sampling_of(first).step(95)
    second = oscillator()
    second.reporters.append(sampling_of(second))
    second.step(95)
    assert np.array_equal(positions_of(first), positions_of(second))
    assert first.reporters == []


def test_scans_come_at_multiples_of_the_interval_however_the_steps_are_divided() -> None:
    log = io.StringIO()
    sampling = sampling_of(oscillator(), log=log)
    for steps in (7, 13, 1, 29):
        sampling.step(steps)
    assert [line.split(",")[0] for line in log.getvalue().splitlines()] == ["step", "10", "20", "30", "40", "50"]
    assert sampling.n_proposed == 15


def test_every_reporter_is_given_the_state_before_the_move_wherever_it_stands() -> None:
    simulation = oscillator()
    recorders = [Recorder(10, periodic) for periodic in (None, True, True, False, True, None)]
    starts: list[np.ndarray] = []
    sampling = sampling_of(simulation)
    simulation.reporters.extend([*recorders[:3], sampling, *recorders[3:]])
    for _ in range(20):
        simulation.step(10)
        starts.append(sampling.last_scan.positions[0])
        assert np.array_equal(positions_of(simulation), sampling.last_scan.positions[sampling.last_scan.chain[-1]])
    assert sampling.n_accepted > 10
    for recorder in recorders:
        shift = (np.array(recorder.given) - starts) / 2.0  # wrapped positions are in a box of 2 nm
        assert np.allclose(shift, np.round(shift), atol=1e-9)
        assert (np.abs(shift) < 1e-9).all() == (recorder.periodic is not True)
    after = [not np.array_equal(recorder.in_context, starts) for recorder in recorders]
    assert after == [False, False, False, True, False, True]  # unwrapped reports are made last, in their order


def test_with_step_the_move_is_the_last_of_all() -> None:
    simulation = oscillator()
    recorder = Recorder(10)
    sampling = sampling_of(simulation)
    simulation.reporters.append(recorder)
    sampling.step(100)
    assert np.array_equal(recorder.in_context, recorder.given)


def test_a_second_generator_goes_on_from_where_the_first_left_the_molecule() -> None:
    simulation = oscillator()
    first, second = sampling_of(simulation), sampling_of(simulation, seed=6)
    simulation.reporters.extend([first, second])
    for _ in range(20):
        simulation.step(10)
        assert np.array_equal(second.last_scan.positions[0], first.last_scan.positions[first.last_scan.chain[-1]])
    assert first.n_accepted > 0


def test_a_rejected_scan_leaves_the_trajectory_as_it_would_have_been() -> None:
    moved = oscillator()
    far = GaussianDensity(np.full((1, 3), 50.0), 0.01)
    sampling = BoltzmannGeneratorSampling(moved, far, 10, kernel=Independence(3))
    sampling.step(200)
    plain = oscillator()
    plain.step(200)
    assert (sampling.n_accepted, sampling.n_proposed) == (0, 60)
    assert np.array_equal(positions_of(moved), positions_of(plain))
    assert np.array_equal(velocities_of(moved), velocities_of(plain))


def test_energies_in_torch_are_those_of_the_context() -> None:
    scans = []
    for energies in ("openmm", "torch"):
        simulation = molecule_simulation(BUTANE, langevin(timestep=0.001))
        sampling = BoltzmannGeneratorSampling(
            simulation, untrained(BUTANE), 5, kernel=Independence(8), energies=energies, seed=3
        )
        sampling.step(5)
        scans.append(sampling.last_scan)
    assert np.array_equal(scans[0].chain, scans[1].chain)
    assert np.allclose(scans[0].reduced_potential, scans[1].reduced_potential, rtol=1e-9)


def test_velocities_are_drawn_anew_when_a_proposal_is_accepted() -> None:
    simulation = oscillator()
    recorder = Recorder(1)
    simulation.reporters.append(recorder)
    sampling = sampling_of(simulation, interval=1)
    n_drawn = 0
    for _ in range(50):
        sampling.step(1)
        scan = sampling.last_scan
        n_drawn += scan.moved
        assert scan.moved == (not np.array_equal(positions_of(simulation), recorder.given[-1]))
    assert 10 < n_drawn < 50


@pytest.mark.parametrize("form", ["step", "reporter"])
def test_standard_reporters_write_the_state_before_the_move(form: str, tmp_path: Path) -> None:
    simulation = molecule_simulation(BUTANE, langevin(timestep=0.001))
    recorder = Recorder(10)
    simulation.reporters += [
        app.DCDReporter(str(tmp_path / "a.dcd"), 10),
        app.PDBReporter(str(tmp_path / "a.pdb"), 10),
        app.XTCReporter(str(tmp_path / "a.xtc"), 10),
        app.StateDataReporter(str(tmp_path / "a.csv"), 10, step=True, potentialEnergy=True),
        app.CheckpointReporter(str(tmp_path / "a.chk"), 10),
        recorder,
    ]
    sampling = BoltzmannGeneratorSampling(simulation, shifted(BUTANE), 10, kernel=Independence(64), seed=3)
    if form == "reporter":
        simulation.reporters.insert(0, sampling)
    sampling.step(60)
    scan = sampling.last_scan
    assert scan.moved
    assert np.array_equal(scan.positions[0], recorder.given[-1])
    frames = np.array(recorder.given)
    topology = mdtraj.Topology.from_openmm(simulation.topology)
    assert np.allclose(mdtraj.load(tmp_path / "a.dcd", top=topology).xyz, frames, atol=1e-6)
    assert np.allclose(mdtraj.load(tmp_path / "a.xtc", top=topology).xyz, frames, atol=1e-3)
    pdb = app.PDBFile(str(tmp_path / "a.pdb"))
    found = [pdb.getPositions(asNumpy=True, frame=i).value_in_unit(unit.nanometer) for i in range(pdb.getNumFrames())]
    assert np.allclose(found, frames, atol=1e-4)
    table = np.loadtxt(tmp_path / "a.csv", delimiter=",")
    assert table[:, 0].tolist() == [10, 20, 30, 40, 50, 60]
    other = molecule_simulation(BUTANE, langevin(timestep=0.001))
    other.loadCheckpoint(str(tmp_path / "a.chk"))
    stored = scan.positions[0 if form == "step" else scan.chain[-1]]
    assert np.array_equal(positions_of(other), stored)


@pytest.mark.parametrize("first", ["tempering", "move"])
def test_tempering_beside_the_move_as_a_reporter_is_refused(first: str, capsys: pytest.CaptureFixture) -> None:
    simulation = oscillator()
    sampling = sampling_of(simulation)
    app.SimulatedTempering(simulation, temperatures=[300.0, 400.0])
    simulation.reporters.insert(0 if first == "move" else 1, sampling)
    with pytest.raises(ValueError, match="call the `step`"):
        simulation.step(10)
    simulation.reporters.remove(sampling)
    sampling.step(100)
    assert sampling.n_proposed == 30
    capsys.readouterr()


def test_an_object_of_another_simulation_is_refused() -> None:
    simulation = oscillator()
    simulation.reporters.append(sampling_of(oscillator()))
    with pytest.raises(ValueError, match="belongs to another Simulation"):
        simulation.step(1)


# --------------------------------------------------------------------------------------------------- stop and resume


def test_a_checkpoint_continues_as_the_uninterrupted_run(tmp_path: Path) -> None:
    whole = oscillator()
    sampling_of(whole).step(95)

    first = oscillator()
    sampling_of(first).step(45)
    first.saveCheckpoint(str(tmp_path / "a.chk"))
    second = oscillator(langevin())
    second.loadCheckpoint(str(tmp_path / "a.chk"))
    resumed = sampling_of(second)
    resumed.step(50)
    assert second.currentStep == 95
    assert np.array_equal(positions_of(second), positions_of(whole))
    assert resumed.n_proposed == 15


def test_a_state_file_continues_from_the_same_configuration_and_step(tmp_path: Path) -> None:
    first = oscillator()
    sampling_of(first).step(45)
    first.saveState(str(tmp_path / "a.xml"))
    second = oscillator()
    second.loadState(str(tmp_path / "a.xml"))
    assert np.allclose(positions_of(second), positions_of(first), atol=1e-12)
    resumed = sampling_of(second)
    resumed.step(5)
    assert resumed.n_proposed == 3


@pytest.mark.parametrize("at", [1, 2, 3])
def test_ctrl_c_in_a_scan_leaves_the_simulation_before_it(at: int) -> None:
    simulation = oscillator()
    density = Interrupted(np.zeros((1, 3)), gaussian().sigma)
    recorder = Recorder(10)
    simulation.reporters.append(recorder)
    sampling = BoltzmannGeneratorSampling(simulation, density, 10, kernel=Independence(3), seed=5)
    sampling.step(50)
    counts = sampling.statistics
    density.at = density.n_calls + at
    with pytest.raises(KeyboardInterrupt):
        sampling.step(50)
    n_done = -(-at // 2) - 1
    assert simulation.currentStep == 60 + 10 * n_done
    assert np.array_equal(positions_of(simulation), recorder.given[-1])
    assert sampling.n_proposed == counts["n_proposed"] + 3 * n_done
    assert simulation.reporters == [recorder]
    sampling.step(10)
    assert simulation.currentStep == 70 + 10 * n_done


def test_an_interrupt_while_proposals_are_placed_restores_positions_and_velocities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    simulation = oscillator()
    sampling = sampling_of(simulation)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "_draw_velocities", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sampling.step(200)
    assert sampling.n_accepted == 0
    plain = oscillator()
    plain.step(simulation.currentStep)
    assert np.array_equal(positions_of(simulation), positions_of(plain))
    assert np.array_equal(velocities_of(simulation), velocities_of(plain))


# ------------------------------------------------------------------------------------------------------------- the log


def test_the_log_holds_the_statistics_after_each_scan(tmp_path: Path) -> None:
    path = tmp_path / "scans.csv"
    sampling = sampling_of(oscillator(), log=path)
    rows = []
    for _ in range(5):
        sampling.step(10)
        rows.append([sampling.simulation.currentStep, *sampling.statistics.values()])
        assert path.read_text().splitlines()[-1] == ",".join(map(str, rows[-1]))  # flushed
    assert path.read_text().splitlines()[0] == HEADER == ",".join(["step", *sampling.statistics])
    assert np.array_equal(np.loadtxt(path, delimiter=",", skiprows=1, dtype=int), rows)


@pytest.mark.parametrize("torn", ["", "110,4", "110,44,153,0,0,"])
def test_a_log_goes_on_where_it_ended_and_a_torn_line_is_cut_off(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "scans.csv"
    first = sampling_of(oscillator(), log=path)
    first.step(100)
    lines = path.read_text()
    path.write_text(lines + torn)
    second = sampling_of(oscillator(), log=str(path))
    assert second.statistics == first.statistics
    second.step(10)
    assert path.read_text().startswith(lines)
    assert len(path.read_text().splitlines()) == len(lines.splitlines()) + 1
    assert int(path.read_text().splitlines()[-1].split(",")[2]) == 33


@pytest.mark.parametrize("content", ["Step,Energy\n1,2\n", "nothing of ours", f"{HEADER}\n1,2,three\n"])
def test_a_file_that_is_no_log_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "energies.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"no log of a generator's move|is damaged"):
        sampling_of(oscillator(), log=path)
    assert path.read_text() == content


@pytest.mark.parametrize("path", ["/dev/full", "missing/scans.csv"])
def test_a_log_that_can_not_be_written_is_an_error_at_once(tmp_path: Path, path: str) -> None:
    with pytest.raises(OSError, match="Cannot write the log of the generator's move"):
        sampling_of(oscillator(), log=tmp_path / path)


def test_a_log_that_is_no_file_is_refused() -> None:
    with pytest.raises(ValueError, match="give the name of a file"):
        sampling_of(oscillator(), log=3)


def test_a_disk_that_fills_up_leaves_whole_lines_and_a_simulation_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "scans.csv"
    sampling = sampling_of(oscillator(), log=path)
    sampling.step(50)
    before = path.read_text()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="Lines written before are intact"):
            sampling.step(50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == before
    assert sampling.simulation.currentStep == 60
    sampling.step(40)
    steps = [line.split(",")[0] for line in path.read_text().splitlines()[1:]]
    assert steps == ["10", "20", "30", "40", "50", "70", "80", "90", "100"]
    assert path.read_text().splitlines()[-1].split(",")[2] == "30"


# ----------------------------------------------------------------------------------- integrators and what is refused


def with_andersen(system: openmm.System) -> openmm.System:
    system.addForce(openmm.AndersenThermostat(310.0, 1.0))
    return system


def nose_hoover() -> openmm.NoseHooverIntegrator:
    return openmm.NoseHooverIntegrator(310.0, 1.0, 0.001)


def of_one_particle() -> openmm.NoseHooverIntegrator:
    integrator = openmm.NoseHooverIntegrator(0.001)
    integrator.addSubsystemThermostat([0], [], 310.0, 1.0, 310.0, 1.0, 3, 3, 3)
    return integrator


@pytest.mark.parametrize(
    ("integrator", "system"),
    [
        (openmm.LangevinIntegrator(310.0, 1.0, 0.001), oscillator_system()),
        (openmm.LangevinMiddleIntegrator(310.0, 1.0, 0.001), oscillator_system()),
        (openmm.VariableLangevinIntegrator(310.0, 1.0, 0.001), oscillator_system()),
        (openmm.BrownianIntegrator(310.0, 100.0, 0.0001), oscillator_system()),
        (nose_hoover(), oscillator_system()),
        (openmm.MTSLangevinIntegrator(310.0, 1.0, 0.001, [(0, 1)]), oscillator_system()),
        (openmm.VerletIntegrator(0.001), with_andersen(oscillator_system())),
    ],
    ids=["Langevin", "LangevinMiddle", "variable", "Brownian", "Nose-Hoover", "MTS", "Andersen"],
)
def test_the_temperature_is_that_of_the_thermostat_at_each_scan(
    integrator: openmm.Integrator, system: openmm.System
) -> None:
    simulation = oscillator(integrator, system)
    seen = []

    class Watched(BoltzmannGeneratorSampling):
        def scan_in(self, context: openmm.Context, kT: float, *rest: Any) -> Any:
            seen.append(kT / 0.00831446261815324)
            return super().scan_in(context, kT, *rest)

    sampling = Watched(simulation, gaussian(), 5, kernel=Independence(2))
    sampling.step(5)
    if hasattr(integrator, "setTemperature"):
        integrator.setTemperature(450.0)
    sampling.step(5)
    assert np.allclose(seen, [310.0, 450.0 if hasattr(integrator, "setTemperature") else 310.0])


@pytest.mark.parametrize("kind", ["Nose-Hoover", "Brownian"])
def test_integrators_with_more_or_less_than_velocities_keep_the_distribution(kind: str) -> None:
    """The mean potential energy of the oscillator is 3/2 kT, also with variables of its own or without velocities."""
    integrator = nose_hoover() if kind == "Nose-Hoover" else openmm.BrownianIntegrator(310.0, 100.0, 0.0002)
    simulation = oscillator(integrator)
    recorder = Recorder(10)
    simulation.reporters.append(recorder)
    sampling = sampling_of(simulation, kernel=Independence(2))
    sampling.step(20_000)
    squares = (np.array(recorder.given) ** 2).sum(axis=(1, 2)) * 100.0 / (0.00831446261815324 * 310.0)
    means = squares.reshape(40, -1).mean(axis=1)
    assert abs(means.mean() - 1.5) < 3.5 * means.std() / np.sqrt(40)
    assert means.std() / np.sqrt(40) < 0.06


def compound() -> openmm.CompoundIntegrator:
    integrator = openmm.CompoundIntegrator()
    integrator.addIntegrator(langevin())
    return integrator


def without_groups() -> openmm.Integrator:
    integrator = langevin()
    integrator.setIntegrationForceGroups({1})
    return integrator


def with_barostat(system: openmm.System) -> openmm.System:
    system.addForce(openmm.MonteCarloBarostat(1.0, 300.0))
    return system


def periodic() -> openmm.System:
    system = oscillator_system()
    force = openmm.NonbondedForce()
    force.addParticle(0.0, 0.3, 0.0)
    force.setNonbondedMethod(openmm.NonbondedForce.PME)
    system.addForce(force)
    return system


@pytest.mark.parametrize(
    ("simulation", "match"),
    [
        (lambda: oscillator(openmm.VerletIntegrator(0.001)), "no temperature"),
        (lambda: oscillator(openmm.MTSIntegrator(0.001, [(0, 1)])), "no temperature"),
        (lambda: oscillator(langevin(), with_andersen(oscillator_system())), "2 thermostats"),
        (lambda: oscillator(of_one_particle()), "a part of the atoms"),
        (lambda: oscillator(openmm.NoseHooverIntegrator(0.001)), "no temperature"),
        (lambda: oscillator(compound()), "can not follow CompoundIntegrator"),
        (lambda: oscillator(openmm.QTBIntegrator(300.0, 1.0, 0.001)), "can not follow QTBIntegrator"),
        (lambda: oscillator(langevin(temperature=0.0)), "is 0.0 K"),
        (lambda: oscillator(without_groups()), r"forces of groups \[0\]"),
        (lambda: oscillator(langevin(), with_barostat(periodic())), "constant pressure"),
        (lambda: oscillator(langevin(), periodic()), "is periodic"),
    ],
)
def test_what_can_not_be_sampled_is_refused_before_anything_is_written(
    simulation: Callable[[], app.Simulation], match: str, tmp_path: Path
) -> None:
    made = simulation()
    with pytest.raises(ValueError, match=match):
        sampling_of(made, log=tmp_path / "scans.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("interval", [0, -5, 2.5, None])
def test_an_interval_that_is_none_is_refused(interval: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="positive number of steps"):
        sampling_of(oscillator(), interval, log=tmp_path / "scans.csv")
    assert list(tmp_path.iterdir()) == []


def test_another_molecule_other_constraints_and_other_names_are_refused(tmp_path: Path) -> None:
    simulation = molecule_simulation(BENT, langevin())
    log = tmp_path / "scans.csv"
    with pytest.raises(ValueError, match="4 atoms"):
        BoltzmannGeneratorSampling(simulation, untrained(BUTANE), 10, log=log)
    rigid = BENT.system()
    rigid.addConstraint(0, 1, BENT.length)
    constrained = app.Simulation(BENT.topology(), rigid, langevin(), REFERENCE)
    with pytest.raises(ValueError, match="constraint between atoms 0 and 1"):
        BoltzmannGeneratorSampling(constrained, untrained(BENT), 10, log=log)
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for name in ("N0", "C1", "C2"):
        topology.addAtom(name, app.element.carbon, residue)
    renamed = app.Simulation(topology, BENT.system(), langevin(), REFERENCE)
    with pytest.raises(ValueError, match="MOL:N0"):
        BoltzmannGeneratorSampling(renamed, untrained(BENT), 10, log=log)
    with pytest.raises(ValueError, match="not a proposal density"):
        BoltzmannGeneratorSampling(simulation, "ala2.bg", 10, log=log)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_restraint_to_a_point_in_space_is_refused() -> None:
    system = BENT.system()
    force = openmm.CustomExternalForce("x^2")
    force.addParticle(0)
    system.addForce(force)
    simulation = app.Simulation(BENT.topology(), system, langevin(), REFERENCE)
    with pytest.raises(ValueError, match="CustomExternalForce"):
        BoltzmannGeneratorSampling(simulation, untrained(BENT), 10)


def test_proposals_without_an_energy_or_a_density_are_counted_rejections() -> None:
    class Broken(GaussianDensity):
        def sample(self, n: int, *, rng: Any = None) -> Samples:
            positions = super().sample(n, rng=rng).positions
            positions[0] = np.nan
            positions[1] = 1e200
            return Samples(positions, self.log_prob(positions))

        def log_prob(self, positions: np.ndarray) -> np.ndarray:
            return super().log_prob(np.clip(positions, -1.0, 1.0))

    simulation = oscillator()
    density = Broken(np.zeros((1, 3)), gaussian().sigma)
    sampling = BoltzmannGeneratorSampling(simulation, density, 10, kernel=Independence(4), seed=1)
    sampling.step(50)
    assert (sampling.n_off_support, sampling.n_nonfinite_energy, sampling.n_proposed) == (5, 5, 20)
    assert 0.0 < sampling.fraction_accepted <= 0.5
    sampling.reset_statistics()
    assert sampling.n_proposed == 0


def test_it_runs_with_a_metropolised_custom_integrator() -> None:
    simulation = oscillator(hybrid_monte_carlo())
    sampling = sampling_of(simulation, 1)
    sampling.step(10)
    assert sampling.n_proposed == 30
    assert simulation.topology.getNumAtoms() == oscillator_topology().getNumAtoms() == 1
