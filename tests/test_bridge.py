"""Bridged Systems: the energy at every lambda, openmmtools' states on it, free energies, storage and bad input."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from exactness_fixtures import BUTANE, RIGID_CHAIN, RIGID_TRIMER, TRIMER
from flow_force_fixtures import crooked, energy_and_forces, reduced_and_gradient, reference_context
from openmm import unit
from openmmtools import cache, mcmc, multistate, states, utils
from pymbar import MBAR
from small_molecules import TEMPERATURE, SmallMolecule, kB, reference_contexts

from openmm_bg import BoltzmannGenerator, BoltzmannGeneratorMove, Independence, bridge
from openmm_bg.moves import BridgedSystem, place_lambdas
from openmm_bg.potentials.python_force import FlowEnergy
from openmm_bg.systems import peptide
from openmm_bg.testing import GaussianDensity

BENT_RIGID = SmallMolecule((12.0, 1.0, 12.0), TRIMER, bond_spring=None, angle_spring=60.0, angle=1.6)
multistate.MultiStateSampler._global_citation_silence = True


@pytest.fixture(autouse=True)
def reference_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "global_context_cache", reference_contexts())


def saved(molecule: SmallMolecule, folder: Path) -> BoltzmannGenerator:
    generator = crooked(molecule)
    generator.save(folder / "flow.bg")
    return generator


def direct(
    molecule: SmallMolecule, generator: BoltzmannGenerator, positions: np.ndarray, temperature: float, lambda_: float
) -> float:
    """Reduced potential from the target's own Context and the generator's own density."""
    energy, _ = energy_and_forces(reference_context(molecule.system()), positions)
    return lambda_ * energy / (kB * temperature) - (1.0 - lambda_) * generator.log_prob(positions[None])[0]


# ---------------------------------------------------------------------------------------------------------- the energy


@pytest.mark.parametrize("molecule", [BUTANE, RIGID_CHAIN], ids=["free", "constrained"])
def test_reduced_potentials_are_those_of_a_direct_calculation_in_one_context(
    molecule: SmallMolecule, tmp_path: Path
) -> None:
    generator = saved(molecule, tmp_path)
    bridged = bridge(molecule.system(), generator)
    ladder = [(300.0, 1.0), (300.0, 0.7), (350.0, 0.2), (280.0, 0.0), (400.0, 1.0)]
    bridge_states = [bridged.state(temperature * unit.kelvin, lambda_) for temperature, lambda_ in ladder]
    contexts = reference_contexts()
    for positions in generator.sample(3, rng=1).positions:
        expected = [direct(molecule, generator, positions, *place) for place in ladder]
        found = []
        for state in bridge_states:
            context, _ = contexts.get_context(state)
            context.setPositions(positions)
            found.append(state.reduced_potential(context))
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        together = states.ThermodynamicState.reduced_potential_at_states(context, bridge_states)
        np.testing.assert_allclose(together, expected, rtol=1e-9)
    assert len(contexts) == 1


def test_forces_are_those_of_target_and_flow_in_proportion(tmp_path: Path) -> None:
    generator = saved(BUTANE, tmp_path)
    bridged, temperature, lambda_ = bridge(BUTANE.system(), generator), 350.0, 0.3
    context = bridged.state(temperature, lambda_).create_context(openmm.LangevinMiddleIntegrator(350.0, 1.0, 0.001))
    positions = generator.sample(1, rng=2).positions
    _, (gradient,) = reduced_and_gradient(generator, positions)
    _, target = energy_and_forces(reference_context(BUTANE.system()), positions[0])
    _, forces = energy_and_forces(context, positions[0])
    expected = lambda_ * target - (1.0 - lambda_) * kB * temperature * gradient
    np.testing.assert_allclose(forces, expected, rtol=1e-8, atol=1e-6)


def test_a_changed_temperature_takes_the_flow_along(tmp_path: Path) -> None:
    generator = saved(RIGID_TRIMER, tmp_path)
    state = bridge(RIGID_TRIMER.system(), generator).state(300.0, 0.0)
    state.temperature = 450.0 * unit.kelvin
    positions = generator.sample(1, rng=3).positions[0]
    context, _ = cache.global_context_cache.get_context(state)
    context.setPositions(positions)
    assert state.reduced_potential(context) == pytest.approx(-generator.log_prob(positions[None])[0], rel=1e-9)


def test_the_target_costs_no_pass_through_the_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = saved(RIGID_TRIMER, tmp_path)
    bridged = bridge(RIGID_TRIMER.system(), generator)
    counts = {"passes": 0}
    evaluate = FlowEnergy._evaluate

    def counted(self: FlowEnergy, positions: np.ndarray) -> Any:
        counts["passes"] += 1
        return evaluate(self, positions)

    monkeypatch.setattr(FlowEnergy, "_evaluate", counted)
    positions = generator.sample(1, rng=4).positions[0]
    context = reference_context(bridged.system)
    energy_and_forces(context, positions)
    assert counts["passes"] == 0  # lambda is 1 in a new Context
    for lambda_ in (0.1, 0.2, 0.3):
        context.setParameter("lambda_bridge", lambda_)
        context.getState(energy=True)
    assert counts["passes"] == 1  # one configuration


def test_a_peptide_in_implicit_solvent_is_bridged(tmp_path: Path) -> None:
    molecule = peptide("ACE-ALA-NME")
    generator = BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, TEMPERATURE, positions=molecule.positions, seed=0
    )
    generator.save(tmp_path / "ala2.bg")
    bridged = bridge(molecule.system, generator)
    expected, _ = energy_and_forces(reference_context(molecule.system), molecule.positions)
    reduced = -generator.log_prob(molecule.positions[None])[0]
    for lambda_ in (1.0, 0.5, 0.0):
        state = bridged.state(TEMPERATURE, lambda_)
        context, _ = cache.global_context_cache.get_context(state)
        context.setPositions(molecule.positions)
        found = state.reduced_potential(context)
        assert found == pytest.approx(lambda_ * expected / (kB * TEMPERATURE) + (1.0 - lambda_) * reduced, rel=1e-8)
    context, integrator = cache.global_context_cache.get_context(
        bridged.state(TEMPERATURE, 0.5), openmm.LangevinMiddleIntegrator(TEMPERATURE, 5.0, 0.001)
    )
    context.setPositions(molecule.positions)
    context.setVelocitiesToTemperature(TEMPERATURE, 1)
    integrator.step(20)
    assert np.isfinite(context.getState(energy=True).getPotentialEnergy()._value)


# -------------------------------------------------------------------------------------------------- states and storage


def test_states_survive_copies_and_storage(tmp_path: Path) -> None:
    state = bridge(RIGID_TRIMER.system(), saved(RIGID_TRIMER, tmp_path)).state(310.0, 0.4)
    for duplicate in (copy.deepcopy(state), utils.deserialize(utils.serialize(state))):
        assert type(duplicate) is type(state)
        assert duplicate.lambda_bridge == 0.4
        assert duplicate.is_state_compatible(state)
        duplicate.temperature = 320.0 * unit.kelvin
        assert duplicate.bridge_temperature == 320.0
    assert state.temperature == 310.0 * unit.kelvin


def run(bridged: BridgedSystem, lambdas: list[float], n_iterations: int, storage: Path) -> Any:
    move = mcmc.SequenceMove(
        [
            BoltzmannGeneratorMove(bridged.generator, kernel=Independence(3), seed=1),
            mcmc.LangevinDynamicsMove(timestep=1.0 * unit.femtosecond, n_steps=3),
        ]
    )
    sampler = multistate.ReplicaExchangeSampler(mcmc_moves=move, number_of_iterations=n_iterations)
    reporter = multistate.MultiStateReporter(str(storage), checkpoint_interval=1)
    start = bridged.generator.sample(1, rng=2).positions[0]
    sampler.create(bridged.states(TEMPERATURE, lambdas), states.SamplerState(start * unit.nanometer), reporter)
    sampler.run()
    return sampler


RESUME = """
import json, sys
import openmm
from openmmtools import cache, multistate
multistate.MultiStateSampler._global_citation_silence = True
cache.global_context_cache.platform = openmm.Platform.getPlatformByName("Reference")
reporter = multistate.MultiStateReporter(sys.argv[1], checkpoint_interval=1)
sampler = multistate.ReplicaExchangeSampler.from_storage(reporter)
sampler.extend(2)
print(json.dumps({
    "iteration": sampler.iteration,
    "lambdas": [state.lambda_bridge for state in sampler._thermodynamic_states],
    "temperatures": [state.bridge_temperature for state in sampler._thermodynamic_states],
}))
"""


@pytest.mark.slow
def test_replica_exchange_is_stored_and_resumed_in_a_fresh_process(tmp_path: Path) -> None:
    bridged = bridge(BENT_RIGID.system(), saved(BENT_RIGID, tmp_path))
    run(bridged, [1.0, 0.5, 0.0], 2, tmp_path / "exchange.nc")._reporter.close()
    command = [sys.executable, "-c", RESUME, str(tmp_path / "exchange.nc")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "iteration": 4,
        "lambdas": [1.0, 0.5, 0.0],
        "temperatures": [TEMPERATURE] * 3,
    }


# --------------------------------------------------------------------------------------------------------- free energy


def decorrelated_mbar(sampler: Any) -> tuple[float, float]:
    """Reduced free energy of the first state less that of the last, and its error."""
    energies = sampler._reporter.read_energies()[0]
    replica_states = sampler._reporter.read_replica_thermodynamic_states()
    skipped, stride = 10, 2  # fresh independence proposals at every iteration
    energies, replica_states = energies[skipped::stride], replica_states[skipped::stride]
    n_states = energies.shape[2]
    by_state = [energies[replica_states == k] for k in range(n_states)]
    result = MBAR(np.concatenate(by_state).T, [len(part) for part in by_state], solver_protocol="robust")
    found = result.compute_free_energy_differences()
    return found["Delta_f"][-1, 0], found["dDelta_f"][-1, 0]


@pytest.mark.slow
def test_replica_exchange_and_mbar_give_the_free_energy_of_importance_sampling(tmp_path: Path) -> None:
    generator = saved(BENT_RIGID, tmp_path)
    bridged = bridge(BENT_RIGID.system(), generator)
    sampler = run(bridged, [1.0, 0.6, 0.25, 0.0], 210, tmp_path / "exchange.nc")
    found, error = decorrelated_mbar(sampler)

    samples = generator.sample(20_000, rng=5)
    angles = BENT_RIGID.internal(samples.positions)[1]
    energy = 0.5 * BENT_RIGID.angle_spring * ((angles - BENT_RIGID.angle) ** 2).sum(-1)
    weights = np.exp(-energy / (kB * TEMPERATURE) - samples.log_prob)
    expected = -np.log(weights.mean())
    expected_error = weights.std() / weights.mean() / np.sqrt(len(weights))
    assert expected_error < 0.05
    assert error < 0.15
    assert abs(found - expected) < 3.5 * np.hypot(error, expected_error)
    assert abs(found) > 8.0 * error  # a bridge that loses the density's normalisation gives another number


# -------------------------------------------------------------------------------------------------------------- ladder


def overlaps_by_quadrature(generator: BoltzmannGenerator, lambdas: np.ndarray) -> np.ndarray:
    """Of neighbouring lambdas of BENT_RIGID, whose only coordinate is an angle."""
    angles = np.linspace(1e-3, np.pi - 1e-3, 4000)
    n = len(angles)
    positions = BENT_RIGID.positions(np.full((n, 2), BENT_RIGID.length), angles[:, None], np.empty((n, 0)))
    measure = np.log(np.sin(angles)) + BENT_RIGID.half_log_det_z(positions)
    target = 0.5 * BENT_RIGID.angle_spring * (angles - BENT_RIGID.angle) ** 2 / (kB * TEMPERATURE)
    flow = -generator.log_prob(positions)
    log_densities = measure - lambdas[:, None] * target - (1.0 - lambdas[:, None]) * flow
    densities = np.exp(log_densities - log_densities.max(axis=1, keepdims=True))
    densities /= densities.sum(axis=1, keepdims=True)
    return np.minimum(densities[1:], densities[:-1]).sum(axis=1)


@pytest.mark.slow
def test_lambdas_are_placed_at_equal_overlap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    generator = saved(BENT_RIGID, tmp_path)
    bridged = bridge(BENT_RIGID.system(), generator)
    with caplog.at_level(logging.WARNING):
        ladder = place_lambdas(
            bridged, TEMPERATURE, 4, n_samples=60, n_steps=8, timestep=0.002, platform="Reference", rng=1
        )
    assert not [record for record in caplog.records if "overlap" in record.message]
    assert ladder.lambdas[0] == 1.0
    assert ladder.lambdas[-1] == 0.0
    assert np.ptp(ladder.overlaps) < 1e-3
    truth = overlaps_by_quadrature(generator, ladder.lambdas)
    uniform = overlaps_by_quadrature(generator, np.linspace(1.0, 0.0, 4))
    assert np.ptp(truth) < 0.5 * np.ptp(uniform)
    np.testing.assert_allclose(truth, ladder.overlaps, atol=0.1)


def test_a_pilot_run_that_can_not_work_is_refused(tmp_path: Path) -> None:
    bridged = bridge(BENT_RIGID.system(), saved(BENT_RIGID, tmp_path))
    with pytest.raises(ValueError, match="n_states=1"):
        place_lambdas(bridged, TEMPERATURE, 1)


# ------------------------------------------------------------------------------------------------------------ bad input


def test_a_lambda_outside_the_ends_is_refused(tmp_path: Path) -> None:
    bridged = bridge(BUTANE.system(), saved(BUTANE, tmp_path))
    for lambda_ in (-0.1, 1.1, float("nan")):
        with pytest.raises(states.GlobalParameterError, match="between 0"):
            bridged.state(300.0, lambda_)
    state = bridged.state(300.0, 0.5)
    with pytest.raises(states.GlobalParameterError, match="between 0"):
        state.lambda_bridge = 2.0
    with pytest.raises(states.GlobalParameterError, match="positive"):
        bridged.state(-1.0, 0.5)


def with_virtual_site() -> openmm.System:
    system = BUTANE.system()
    system.addParticle(0.0)
    system.setVirtualSite(4, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    return system


def with_constraint() -> openmm.System:
    system = BUTANE.system()
    system.addConstraint(0, 1, 0.15)
    return system


def in_a_box() -> openmm.System:
    system = BUTANE.system()
    force = openmm.CustomNonbondedForce("0")
    force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    for _ in range(4):
        force.addParticle([])
    system.addForce(force)
    return system


def tied() -> openmm.System:
    system = BUTANE.system()
    force = openmm.CustomExternalForce("x^2")
    force.addParticle(0)
    system.addForce(force)
    return system


def with_many_forces() -> openmm.System:
    system = BUTANE.system()
    for _ in range(33):
        system.addForce(openmm.HarmonicBondForce())
    return system


@pytest.mark.parametrize(
    ("system", "match"),
    [
        (with_virtual_site, r"virtual sites \(particles \[4\]\)"),
        (with_constraint, "only in the System"),
        (in_a_box, "periodic"),
        (tied, "CustomExternalForce"),
        (with_many_forces, "36 forces; at most 32"),
        (RIGID_CHAIN.system, "mass"),
    ],
    ids=["virtual site", "mixed constraints", "periodic", "tied", "many forces", "another molecule"],
)
def test_systems_that_can_not_be_bridged_are_refused(system: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        bridge(system(), saved(BUTANE, tmp_path))


def test_a_bridged_system_is_not_bridged_again(tmp_path: Path) -> None:
    generator = saved(BUTANE, tmp_path)
    with pytest.raises(ValueError, match="lambda_bridge already"):
        bridge(bridge(BUTANE.system(), generator).system, generator)


def test_a_generator_without_density_or_file_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks log_prob_tensor"):
        bridge(BUTANE.system(), GaussianDensity(np.zeros((4, 3)), 0.1))
    with pytest.raises(ValueError, match=r"generator.save\(path\)"):
        bridge(BUTANE.system(), crooked(BUTANE))
