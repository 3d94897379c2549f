"""Bad generators in openmm.app, in turn with dynamics: a Simulation and replica exchange still sample exactly."""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import openmm
import pytest
from app_fixtures import (
    REFERENCE,
    SIGMA,
    SPRING,
    Recorder,
    gaussian,
    hybrid_monte_carlo,
    langevin,
    molecule_simulation,
    oscillator,
    positions_of,
    velocities_of,
)
from exactness_fixtures import BENT, BUTANE, RIGID_TRIMER, WithoutLogProb, shifted, untrained
from openmm import app, unit
from pymbar import MBAR
from small_molecules import CHAIN, TEMPERATURE, SmallMolecule, deviation, kB

from openmm_bg.moves import BoltzmannGeneratorSampling, GeneratorReplicaExchange, Independence

KT = kB * TEMPERATURE
HEAVY_HYDROGENS = SmallMolecule(  # H-O-O-H whose hydrogens took 3 amu each from the oxygens
    (4.0, 13.0, 13.0, 4.0), CHAIN, bond_spring=None, angle_spring=60.0, torsion=(2, 0.4, 2.0)
)


class KeptVelocities(BoltzmannGeneratorSampling):
    """Mutant: an accepted configuration goes on with the velocities of the one before."""

    def _draw_velocities(self, context: openmm.Context, temperature: float, rng: np.random.Generator) -> None:
        pass


class WithoutFlowEnergy(GeneratorReplicaExchange):
    """Mutant: exchanges with the reservoir forget its log density."""

    def _reservoir_energy(self) -> float:
        return 0.0


def precise(timestep: float) -> openmm.Integrator:
    integrator = langevin(timestep=timestep)
    integrator.setConstraintTolerance(1e-8)
    return integrator


def blocks(positions: list[np.ndarray], n_blocks: int = 60) -> np.ndarray:
    kept = np.array(positions)[len(positions) % n_blocks :]
    return kept.reshape(n_blocks, -1, *kept.shape[-2:])


def scanned(sampling: BoltzmannGeneratorSampling, n_scans: int, form: str = "step") -> list[np.ndarray]:
    """Every state of the chain of every scan."""
    chains = []
    if form == "reporter":
        sampling.simulation.reporters.append(sampling)
    for _ in range(n_scans):
        (sampling if form == "step" else sampling.simulation).step(sampling.interval)
        chains.append(sampling.last_scan.positions[sampling.last_scan.chain])
    return chains


# ----------------------------------------------------------------------------------------------------- a Simulation


@pytest.mark.parametrize(
    ("form", "n_scans"),
    [("step", 1200), ("reporter", 900), pytest.param("reporter", 3000, marks=pytest.mark.slow)],
)
def test_a_bad_flow_in_turn_with_dynamics_is_exact(form: str, n_scans: int) -> None:
    simulation = molecule_simulation(BENT, hybrid_monte_carlo())
    recorder = Recorder(1)
    simulation.reporters.append(recorder)
    sampling = BoltzmannGeneratorSampling(simulation, shifted(BENT), 1, kernel=Independence(8), seed=3)
    chains = scanned(sampling, n_scans, form)
    assert 0.02 < sampling.fraction_accepted < 0.8
    assert BENT.deviation(blocks(chains)) < 3.5
    assert BENT.deviation(blocks(recorder.given)) < 3.5


def test_forgetting_the_log_density_is_seen_at_eight_sigma() -> None:
    simulation = molecule_simulation(BENT, hybrid_monte_carlo())
    kernel = WithoutLogProb(64)
    sampling = BoltzmannGeneratorSampling(simulation, shifted(BENT), 1, kernel=kernel, seed=3)
    assert BENT.deviation(blocks(scanned(sampling, 600))) > 8.0


@pytest.mark.parametrize("kind", [BoltzmannGeneratorSampling, KeptVelocities])
def test_a_constrained_molecule_keeps_its_distribution_and_its_temperature(
    kind: type[BoltzmannGeneratorSampling],
) -> None:
    """Of nine degrees of freedom two are constrained and three are the centre of mass: four keep 2 kT."""
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 0.2, 0.0005)
    integrator.setRandomNumberSeed(5)
    integrator.setConstraintTolerance(1e-8)
    simulation = molecule_simulation(RIGID_TRIMER, integrator)
    sampling = kind(simulation, shifted(RIGID_TRIMER), 20, kernel=Independence(2), seed=3)
    masses = np.array(RIGID_TRIMER.masses)
    kinetic, positions = [], []
    for _ in range(1000):
        sampling.step(20)
        velocities = velocities_of(simulation)
        velocities = velocities - masses @ velocities / masses.sum()
        kinetic.append(0.5 * float((masses[:, None] * velocities**2).sum()) / KT)
        positions.append(positions_of(simulation))
    error = deviation(np.reshape(kinetic, (50, -1)).mean(axis=1, keepdims=True), 2.0)
    if kind is KeptVelocities:
        assert error > 8.0
    else:
        assert error < 3.5
        assert RIGID_TRIMER.deviation(blocks(positions, 50)) < 3.5


def test_repartitioned_hydrogen_masses_with_constraints_are_exact() -> None:
    simulation = molecule_simulation(HEAVY_HYDROGENS, precise(0.001))
    sampling = BoltzmannGeneratorSampling(simulation, shifted(HEAVY_HYDROGENS), 10, kernel=Independence(16), seed=3)
    assert HEAVY_HYDROGENS.deviation(blocks(scanned(sampling, 600))) < 3.5


def test_simulated_tempering_beside_the_move_samples_each_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of K x^2 / kT is three at either temperature, taken as that of each scan."""
    monkeypatch.setattr("random.random", random.Random(1).random)
    simulation = oscillator(langevin(timestep=0.004))
    app.SimulatedTempering(
        simulation, temperatures=[300.0, 900.0], weights=[1.6, 0.0], tempChangeInterval=4, reportFile=None
    )
    sampling = BoltzmannGeneratorSampling(simulation, gaussian(1.9), 4, kernel=Independence(4), seed=3)
    means: dict[float, list[float]] = defaultdict(list)
    for _ in range(4000):
        sampling.step(4)
        temperature = simulation.integrator.getTemperature().value_in_unit(unit.kelvin)
        squares = (sampling.last_scan.positions[sampling.last_scan.chain] ** 2).sum(axis=(1, 2))
        means[temperature].append(squares.mean() * SPRING / (kB * temperature))
    for values in means.values():
        assert len(values) > 1000
        averages = np.array(values)[len(values) % 40 :].reshape(40, -1).mean(axis=1)
        error = averages.std(ddof=1) / np.sqrt(40)
        assert error < 0.15
        assert abs(averages.mean() - 3.0) < 3.5 * error


# ------------------------------------------------------------------------------------------------- replica exchange


def test_replicas_at_three_temperatures_sample_each_its_own_distribution() -> None:
    temperatures = [300.0, 450.0, 700.0]
    states = [{"temperature": temperature} for temperature in temperatures]
    simulation = molecule_simulation(BUTANE, langevin(timestep=0.001))
    kernel = Independence(512)
    sampler = GeneratorReplicaExchange(states, simulation, 5, shifted(BUTANE), kernel=kernel, seed=3)
    chains: dict[int, list[np.ndarray]] = defaultdict(list)

    def record(sampler: GeneratorReplicaExchange) -> None:
        for state, scans in sampler.scans.items():
            chains[state].append(scans.last_scan.positions[scans.last_scan.chain])

    sampler.reporters.append(record)
    sampler.simulate(60)
    for state, temperature in enumerate(temperatures):
        samples = np.reshape(chains[state][1:], (-1, 256, 4, 3))
        assert BUTANE.deviation(samples, temperature) < 3.5
        for other in temperatures:
            if other != temperature:
                assert BUTANE.deviation(samples, other) > 4.0


def learned(
    molecule: SmallMolecule, kind: type[GeneratorReplicaExchange], n_iterations: int
) -> tuple[list[np.ndarray], GeneratorReplicaExchange]:
    """Configurations of the one state beside the reservoir after every iteration."""
    simulation = molecule_simulation(molecule, precise(0.0005))
    sampler = kind([{}], simulation, 4, reservoir=shifted(molecule), seed=3)
    positions: list[np.ndarray] = []

    def record(sampler: GeneratorReplicaExchange) -> None:
        state = sampler.replicaConformation[sampler.replicaStateIndex.index(0)]
        positions.append(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))

    sampler.reporters.append(record)
    sampler.simulate(n_iterations)
    return positions, sampler


@pytest.mark.parametrize(
    ("molecule", "n_iterations"),
    [
        (BENT, 600),
        (RIGID_TRIMER, 600),
        pytest.param(BENT, 3000, marks=pytest.mark.slow),
        pytest.param(RIGID_TRIMER, 3000, marks=pytest.mark.slow),
    ],
    ids=["bent", "constraints", "bent, long", "constraints, long"],
)
def test_two_states_one_of_them_a_bad_flow_are_exact(molecule: SmallMolecule, n_iterations: int) -> None:
    positions, sampler = learned(molecule, GeneratorReplicaExchange, n_iterations)
    assert sampler.swapsProposed[0, 1] == n_iterations
    assert 0.05 < sampler.swapsAccepted[0, 1] / n_iterations < 0.8
    assert molecule.deviation(blocks(positions)) < 3.5


def test_exchange_without_the_log_density_of_the_flow_is_seen_at_eight_sigma() -> None:
    positions, _ = learned(RIGID_TRIMER, WithoutFlowEnergy, 1200)
    assert RIGID_TRIMER.deviation(blocks(positions)) > 8.0


def test_energies_that_openmm_reports_give_the_free_energies_by_mbar(tmp_path: Path) -> None:
    """Of oscillators against a normalised Gaussian: f = -3/2 ln(2 pi kT / K), absolute."""
    springs = np.array([60.0, 200.0, 500.0])
    simulation = oscillator(langevin(timestep=0.01))
    sampler = GeneratorReplicaExchange(
        [{"K": spring} for spring in springs], simulation, 40, reservoir=gaussian(1.2), seed=3
    )
    folder = tmp_path / "exchange"
    sampler.reporters.append(app.ReplicaExchangeReporter(str(folder), 1, sampler, energy=True))
    sampler.simulate(1200)
    energies = np.loadtxt(folder / "energy.csv", delimiter=",").reshape(-1, 4, 4)[20:]
    assert np.allclose(energies[-1], sampler.reducedEnergies)
    mbar = MBAR(energies.reshape(-1, 4).T, np.full(4, len(energies)), solver_protocol="robust")
    found = mbar.compute_free_energy_differences()
    expected = -1.5 * np.log(2.0 * np.pi * KT / springs)
    difference, error = found["Delta_f"][3, :3] - expected, found["dDelta_f"][3, :3]
    assert (error < 0.06).all()
    assert (np.abs(difference) < 3.5 * 1.5 * error).all()  # samples of a state in turn are hardly correlated
    wrong = -1.5 * np.log(2.0 * np.pi * KT / springs) - 3.0 * np.log(1.2 * SIGMA)  # a density not normalised
    assert (np.abs(found["Delta_f"][3, :3] - wrong) > 8.0 * error).all()


def test_swaps_between_basins_are_counted_apart() -> None:
    simulation = molecule_simulation(BUTANE, langevin(timestep=0.001))
    sampler = GeneratorReplicaExchange(
        [{}], simulation, 5, reservoir=shifted(BUTANE), basin=lambda x: BUTANE.internal(x[None])[2][0, 0] > 0.0, seed=3
    )
    pairs: list[tuple[bool, np.ndarray]] = []

    def record(sampler: GeneratorReplicaExchange) -> None:
        ends = [c.getPositions(asNumpy=True).value_in_unit(unit.nanometer) for c in sampler.replicaConformation]
        torsions = BUTANE.internal(np.array(ends))[2][:, 0]
        pairs.append((bool((torsions > 0.0).sum() == 1), np.array(sampler.replicaStateIndex)))

    sampler.reporters.append(record)
    sampler.simulate(200)
    swapped = [not np.array_equal(a[1], b[1]) for a, b in pairwise(pairs)]
    apart = [pair[0] for pair in pairs]
    assert sampler.interbasinProposed.tolist() == [sum(apart), 0]
    assert sampler.interbasinAccepted[0] - sum(np.logical_and(swapped, apart[:-1])) in (0, 1)  # the last is not seen
    assert 0 < sampler.interbasinAccepted[0] < sampler.swapsAccepted[0, 1]


def test_an_untrained_flow_in_some_states_alone() -> None:
    assert REFERENCE.getName() == "Reference"
    simulation = molecule_simulation(BENT, langevin(timestep=0.0005))
    states = [{"temperature": 300.0}, {"temperature": 400.0}, {"temperature": 500.0}]
    kernel = Independence(4)
    sampler = GeneratorReplicaExchange(states, simulation, 5, {1: untrained(BENT)}, kernel=kernel, seed=3)
    sampler.simulate(10)
    assert {state: scans.n_proposed for state, scans in sampler.scans.items()} == {1: 40}
