"""OpenMM's replica exchange with a generator: its contract, its reporter, resuming, and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from app_fixtures import (
    REFERENCE,
    SIGMA,
    SPRING,
    gaussian,
    langevin,
    molecule_simulation,
    oscillator,
    oscillator_system,
)
from exactness_fixtures import BENT, BUTANE, untrained
from openmm import app, unit
from small_molecules import TEMPERATURE, kB

from openmm_bg.density import Samples
from openmm_bg.moves import GeneratorReplicaExchange, Independence
from openmm_bg.testing import GaussianDensity

KT = kB * TEMPERATURE
LADDER = [{"temperature": 300.0}, {"temperature": 400.0}]


def exchange(simulation: app.Simulation, states: list[dict] | None = None, **options: Any) -> GeneratorReplicaExchange:
    options = {"kernel": Independence(3), "seed": 5, **options}
    if "generator" not in options and "reservoir" not in options:
        options["generator"] = gaussian()
    return GeneratorReplicaExchange(LADDER if states is None else states, simulation, 10, **options)


def positions_in(sampler: GeneratorReplicaExchange, state: int) -> np.ndarray:
    conformation = sampler.replicaConformation[sampler.replicaStateIndex.index(state)]
    return conformation.getPositions(asNumpy=True).value_in_unit(unit.nanometer)


class Unreliable(GaussianDensity):
    """Of three draws in a row one has no positions, one has an infinite energy."""

    n_draws = 0

    def sample(self, n: int, *, rng: Any = None) -> Samples:
        positions = super().sample(n, rng=rng).positions
        for i in range(n):
            positions[i] *= (1.0, np.nan, 1e200)[self.n_draws % 3]
            self.n_draws += 1
        return Samples(positions, self.log_prob(positions))

    def log_prob(self, positions: np.ndarray) -> np.ndarray:
        return super().log_prob(np.clip(positions, -1.0, 1.0))


# --------------------------------------------------------------------------------------------------------- contract


def test_the_scan_is_written_back_and_its_energies_are_those_of_the_exchange() -> None:
    sampler = exchange(oscillator(), [{"K": 150.0}, {"K": 250.0}], kernel=Independence(1))
    seen = []

    def record(sampler: GeneratorReplicaExchange) -> None:
        for state, spring in enumerate((150.0, 250.0)):
            scan = sampler.scans[state].last_scan
            positions = positions_in(sampler, state)
            assert np.array_equal(positions, scan.positions[scan.chain[-1]])
            replica = sampler.replicaStateIndex.index(state)
            squares = 0.5 * (positions**2).sum() / KT
            assert np.allclose(sampler.reducedEnergies[replica], [150.0 * squares, 250.0 * squares])
            assert np.isclose(scan.reduced_potential[scan.chain[-1]], spring * squares)
            seen.append(scan.moved)

    sampler.reporters.append(record)
    sampler.simulate(20)
    assert 5 < sum(seen) < 40
    assert sampler.scans[0].n_proposed == 20
    assert 0 < sampler.swapsAccepted[0, 1] <= sampler.swapsProposed[0, 1] == 80


def test_a_generator_that_is_never_accepted_leaves_the_trajectory_of_openmm() -> None:
    far = GaussianDensity(np.full((1, 3), 50.0), 0.01)
    with_move = exchange(oscillator(), [{}], generator=far)
    with_move.simulate(5)
    plain = app.ReplicaExchangeSampler([{}], oscillator(), 10)
    plain.simulate(5)
    for name in ("getPositions", "getVelocities"):
        ends = (getattr(sampler.replicaConformation[0], name)(asNumpy=True) for sampler in (with_move, plain))
        assert np.array_equal(*ends)


def test_the_reservoir_is_drawn_anew_with_velocities_of_its_temperature() -> None:
    sampler = exchange(oscillator(), [{"temperature": TEMPERATURE}], reservoir=gaussian(2.0))
    positions, velocities = [], []

    def record(sampler: GeneratorReplicaExchange) -> None:
        positions.append(positions_in(sampler, 1))
        conformation = sampler.replicaConformation[sampler.replicaStateIndex.index(1)]
        velocities.append(conformation.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond))
        assert {c.getStepCount() for c in sampler.replicaConformation} == {10 * sampler.currentIteration}
        assert np.isclose(sampler.replicaConformation[0].getTime() / sampler.replicaConformation[1].getTime(), 1.0)

    sampler.reporters.append(record)
    sampler.simulate(600)
    for values, variance in ((positions, (2.0 * SIGMA) ** 2), (velocities, KT / 12.0)):
        squares = np.square(values).ravel() / variance
        assert abs(squares.mean() - 1.0) < 3.5 * np.sqrt(2.0 / squares.size)
        assert abs(np.corrcoef(np.ravel(values)[:-3], np.ravel(values)[3:])[0, 1]) < 3.5 / np.sqrt(squares.size)


def test_energies_of_the_reservoir_are_its_log_density_at_any_temperature_of_the_ladder() -> None:
    sampler = exchange(oscillator(), reservoir=gaussian())
    sampler.simulate(3)
    for replica, conformation in enumerate(sampler.replicaConformation):
        positions = conformation.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        potential = 0.5 * SPRING * (positions**2).sum()
        expected = [potential / KT, potential / (kB * 400.0), -gaussian().log_prob(positions[None])[0]]
        assert np.allclose(sampler.reducedEnergies[replica], expected)
    assert sampler.swapsProposed[0, 2] == sampler.swapsProposed[1, 2] == 3


def test_the_same_seeds_give_the_same_run() -> None:
    ends = []
    for _ in range(2):
        sampler = exchange(oscillator(), reservoir=gaussian(), generator=gaussian(1.1))
        sampler.simulate(5)
        ends.append(np.append(sampler.reducedEnergies, sampler.replicaStateIndex))
    assert np.array_equal(*ends)


# ------------------------------------------------------------------------------------------- openmm's reporter, resume


def test_openmm_s_reporter_stores_and_resumes_the_reservoir_too(tmp_path: Path) -> None:
    folder = str(tmp_path / "exchange")
    options = {"trajectoryPerState": True, "trajectoryPerReplica": True, "energy": True, "checkpoints": True}
    first = exchange(oscillator(), reservoir=gaussian(), generator=gaussian(1.1))
    first.reporters.append(app.ReplicaExchangeReporter(folder, 1, first, **options))
    first.simulate(4)
    reported = [positions_in(first, state) for state in range(3)]
    first.reporters.clear()

    second = exchange(oscillator(start=0.3), reservoir=gaussian(), generator=gaussian(1.1))
    second.reporters.append(app.ReplicaExchangeReporter(folder, 1, second, resume=True, **options))
    assert second.currentIteration == 4
    assert sorted(second.replicaStateIndex) == [0, 1, 2]
    stored = np.array([c.getPositions(asNumpy=True).value_in_unit(unit.nanometer) for c in second.replicaConformation])
    assert np.allclose(np.sort(stored.ravel()), np.sort(np.ravel(reported)))
    second.simulate(3)
    second.reporters.clear()
    log = np.loadtxt(tmp_path / "exchange" / "log.csv", delimiter=",", skiprows=1, dtype=int)
    assert log[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert (np.sort(log[:, 2:], axis=1) == [0, 1, 2]).all()
    assert np.loadtxt(tmp_path / "exchange" / "energy.csv", delimiter=",").shape == (7, 9)


def test_a_folder_that_is_not_empty_is_refused_by_the_reporter_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        app.ReplicaExchangeReporter(str(tmp_path), 1, exchange(oscillator(), reservoir=gaussian()))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# -------------------------------------------------------------------------------------------------- what goes wrong


def test_draws_without_density_are_repeated_and_those_that_clash_are_never_taken() -> None:
    reservoir = Unreliable(np.zeros((1, 3)), gaussian().sigma)
    sampler = exchange(oscillator(), [{}], reservoir=reservoir)
    clashes = []

    def record(sampler: GeneratorReplicaExchange) -> None:
        energies = sampler.reducedEnergies
        drawn = sampler.replicaStateIndex.index(1)
        assert np.isfinite(energies[:, 1]).all()
        assert np.isfinite(energies[1 - drawn]).all()
        clashes.append(energies[drawn, 0] == np.inf)
        assert np.abs(positions_in(sampler, 0)).max() < 1.0

    sampler.reporters.append(record)
    sampler.simulate(40)
    assert sum(clashes) == 20
    assert reservoir.n_draws >= 59
    assert 0 < sampler.swapsAccepted[0, 1] <= 20


def test_a_start_of_enormous_energy_is_exchanged_without_overflow() -> None:
    sampler = exchange(oscillator(start=50.0), [{}], reservoir=gaussian())
    sampler.stepsPerIteration = 1
    sampler.simulate(1)
    assert sampler.swapsAccepted[0, 1] == 1


def test_dynamics_that_fails_is_an_error_and_no_exchange() -> None:
    sampler = exchange(oscillator(langevin(timestep=1e4)), [{}], reservoir=gaussian())
    sampler.stepsPerIteration = 1000
    with pytest.raises(RuntimeError, match="dynamics has failed"):
        sampler.simulate(1)


def test_ctrl_c_in_a_scan_leaves_the_replica_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = exchange(oscillator())
    sampler.simulate(2)
    before = list(sampler.replicaConformation)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sampler.scans[sampler.replicaStateIndex[0]].generator, "log_prob", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sampler.simulate(1)
    assert sampler.replicaConformation[1] is before[1]
    assert sampler.currentIteration == 2
    monkeypatch.undo()
    sampler.simulate(1)
    assert sampler.currentIteration == 3


def with_barostat() -> openmm.System:
    system = oscillator_system()
    force = openmm.NonbondedForce()
    force.addParticle(0.0, 0.3, 0.0)
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    system.addForce(force)
    system.addForce(openmm.MonteCarloBarostat(1.0, 300.0))
    return system


def multiple_steps() -> openmm.Integrator:
    return openmm.MTSLangevinIntegrator(300.0, 1.0, 0.001, [(0, 1)])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: exchange(oscillator(), []), "no state"),
        (lambda: exchange(oscillator(), generator=None), "neither a generator nor a reservoir"),
        (lambda: exchange(oscillator(), generator={}), "neither a generator nor a reservoir"),
        (lambda: exchange(oscillator(), generator={2: gaussian()}), r"states \[2\], but states are numbered 0 to 1"),
        (lambda: exchange(oscillator(), [{"groups": {0}}, {"groups": {0, 1}}]), "differ in 'groups'"),
        (lambda: exchange(oscillator(openmm.VerletIntegrator(0.001))), "no temperature"),
        (lambda: exchange(oscillator(multiple_steps())), "stays at 300.0 K"),
        (lambda: exchange(oscillator(system=with_barostat())), "periodic or at constant pressure"),
        (lambda: exchange(oscillator(), generator="ala2.bg"), "not a proposal density"),
        (lambda: exchange(oscillator(), energies="numpy"), "Unknown energies"),
        (lambda: exchange(molecule_simulation(BENT, langevin()), generator=untrained(BUTANE)), "4 atoms"),
        (lambda: exchange(molecule_simulation(BENT, langevin()), reservoir=untrained(BUTANE)), "4 atoms"),
    ],
)
def test_what_can_not_be_sampled_is_refused_at_once(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("options", [{"reservoir": untrained(BENT)}, {"generator": {1: untrained(BENT)}}])
def test_a_field_that_only_one_state_has_is_refused_in_the_first_iteration(options: dict[str, Any]) -> None:
    system = BENT.system()
    force = openmm.CustomCentroidBondForce(1, "strength*x1")
    force.addGlobalParameter("strength", 0.0)
    force.addBond([force.addGroup([0, 1, 2])], [])
    system.addForce(force)
    simulation = app.Simulation(BENT.topology(), system, langevin(timestep=0.0005), REFERENCE)
    simulation.context.setPositions(BENT.reference())
    sampler = exchange(simulation, [{"strength": 0.0}, {"strength": 50.0}], **options)
    with pytest.raises(ValueError, match="depends on the place or orientation"):
        sampler.simulate(1)


def test_making_a_sampler_leaves_the_simulation_as_it_was() -> None:
    simulation = oscillator(langevin(310.0))
    exchange(simulation, [{"temperature": 350.0, "K": 1.0}, {"temperature": 450.0, "K": 2.0}], reservoir=gaussian())
    assert simulation.integrator.getTemperature().value_in_unit(unit.kelvin) == 310.0
    assert simulation.context.getParameter("K") == SPRING
