"""Energies and gradients are OpenMM's own, failures are +inf and counted, and the platform is chosen by measuring."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

from openmm_bg.potentials import SystemPotential, available_platforms, choose_platform
from openmm_bg.potentials.openmm_backend import OpenMMBackend
from openmm_bg.systems import MolecularSystem, peptide

PLATFORMS = ["Reference", "CPU", pytest.param("CUDA", marks=pytest.mark.cuda), "OpenCL"]
# Absolute in kJ/mol and kJ/mol/nm: mixed precision computes forces in single precision.
TOLERANCE = {"Reference": (1e-9, 1e-7), "CPU": (1e-2, 1.0), "CUDA": (1e-2, 1.0), "OpenCL": (1e-2, 1.0)}


@pytest.fixture(scope="module")
def molecule() -> MolecularSystem:
    return peptide("ACE-ALA-NME")


@pytest.fixture(scope="module")
def batch(molecule: MolecularSystem) -> np.ndarray:
    return molecule.positions + np.random.default_rng(0).normal(scale=0.002, size=(21, 22, 3))


@pytest.fixture(scope="module")
def expected(molecule: MolecularSystem, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies and forces from a plain Context, one structure after another."""
    context = openmm.Context(
        molecule.system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    energies, forces = [], []
    for positions in batch:
        context.setPositions(positions * unit.nanometer)
        state = context.getState(getEnergy=True, getForces=True)
        energies.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        forces.append(state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer))
    return np.array(energies), np.array(forces)


def overlapping(molecule: MolecularSystem) -> np.ndarray:
    """All atoms in one place: the energy is infinite or not a number."""
    return np.zeros_like(molecule.positions)


def dimer() -> openmm.System:
    """Two particles on a spring, whose energy and forces are known."""
    system = openmm.System()
    for _ in range(2):
        system.addParticle(10.0)
    bond = openmm.HarmonicBondForce()
    bond.addBond(0, 1, 0.1, 1000.0)
    system.addForce(bond)
    return system


@pytest.mark.parametrize("n_workers", [1, 3])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_energies_and_forces_are_those_of_a_plain_context(molecule, batch, expected, platform, n_workers) -> None:
    if platform == "OpenCL" and platform not in available_platforms():
        pytest.skip("OpenMM's OpenCL platform did not load here")
    energy_tolerance, force_tolerance = TOLERANCE[platform]
    with SystemPotential(molecule.system, molecule.topology, platform=platform, n_workers=n_workers) as potential:
        assert potential.platform_name == platform
        energies, forces = potential.energy_and_forces(batch)
        np.testing.assert_allclose(energies, expected[0], atol=energy_tolerance)
        np.testing.assert_allclose(forces, expected[1], atol=force_tolerance)
        np.testing.assert_allclose(potential.energy(batch * unit.nanometer), expected[0], atol=energy_tolerance)
        assert (potential.n_evaluations, potential.n_failures) == (42, 0)


def test_a_spring_has_its_analytic_energy_and_force() -> None:
    positions = np.array([[[0.0, 0.0, 0.0], [0.15, 0.0, 0.0]]])
    with SystemPotential(dimer(), platform="Reference") as potential:
        energies, forces = potential.energy_and_forces(positions)
    assert energies[0] == pytest.approx(0.5 * 1000.0 * 0.05**2)
    np.testing.assert_allclose(forces[0], [[50.0, 0, 0], [-50.0, 0, 0]], atol=1e-10)


def test_the_gradient_in_torch_is_that_of_finite_differences(molecule, batch) -> None:
    with SystemPotential(molecule.system, platform="Reference", n_workers=2) as potential:
        positions = torch.tensor(batch[:9], requires_grad=True)
        weights = torch.linspace(0.5, 2.0, 9, dtype=torch.float64)
        (weights * potential(positions)).sum().backward()
        assert positions.grad is not None
        step = 1e-6
        for row, atom, axis in [(0, 0, 0), (3, 8, 1), (8, 21, 2)]:
            shifted = np.repeat(batch[row : row + 1], 2, axis=0)
            shifted[:, atom, axis] += [step, -step]
            plus, minus = potential.energy(shifted)
            numerical = float(weights[row]) * (plus - minus) / (2 * step)
            assert float(positions.grad[row, atom, axis]) == pytest.approx(numerical, rel=1e-5, abs=1e-2)
        assert torch.autograd.gradcheck(potential, (positions[:1],), eps=1e-6, atol=0.1, rtol=1e-5)


def test_failed_configurations_are_infinite_counted_and_without_gradient(molecule, batch, expected) -> None:
    bad = batch[:6].copy()
    bad[0] = overlapping(molecule)
    bad[2, 5, 1] = np.nan
    bad[4] = np.inf
    fine = [1, 3, 5]
    with SystemPotential(molecule.system, platform="Reference", n_workers=1) as potential:
        energies, forces = potential.energy_and_forces(bad)
        assert np.isposinf(energies[[0, 2, 4]]).all()
        assert (forces[[0, 2, 4]] == 0.0).all()
        np.testing.assert_allclose(energies[fine], expected[0][fine], atol=1e-9)
        assert (potential.n_evaluations, potential.n_failures) == (4, 3)
        positions = torch.tensor(bad, requires_grad=True)
        potential(positions).sum().backward()
        assert positions.grad is not None
        assert torch.isfinite(positions.grad).all()
        assert (positions.grad[[0, 2, 4]] == 0.0).all()
        np.testing.assert_allclose(positions.grad[fine].numpy(), -expected[1][fine], atol=1e-7)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_no_clash_is_finite_and_low(molecule, batch, platform) -> None:
    if platform == "OpenCL" and platform not in available_platforms():
        pytest.skip("OpenMM's OpenCL platform did not load here")
    clash = batch[:2].copy()
    clash[0] = overlapping(molecule)
    clash[1, 21] = clash[1, 0] + 1e-5
    with SystemPotential(molecule.system, platform=platform, n_workers=1) as potential:
        energies, forces = potential.energy_and_forces(clash)
    assert not np.isnan(energies).any()
    assert (energies > 1e5).all()
    assert np.isfinite(forces).all()


def test_an_exception_of_openmm_is_a_counted_failure_and_its_text_is_kept() -> None:
    system = dimer()
    force = openmm.PythonForce(_fails_beyond_one_nanometer)
    system.addForce(force)
    positions = np.array([[[0.0, 0, 0], [0.1, 0, 0]], [[2.0, 0, 0], [2.1, 0, 0]]])
    with SystemPotential(system, platform="Reference", n_workers=1) as potential:
        energies, forces = potential.energy_and_forces(positions)
        assert energies[0] == pytest.approx(0.0)
        assert np.isposinf(energies[1])
        assert (forces[1] == 0.0).all()
        assert potential.n_failures == 1
        assert "far away" in str(potential.last_error)


def _fails_beyond_one_nanometer(state: openmm.State) -> tuple[float, np.ndarray]:
    positions = state.getPositions(asNumpy=True)._value
    if positions[0, 0] > 1.0:
        raise ValueError("far away")
    return 0.0, np.zeros_like(positions)


def test_virtual_sites_are_placed_before_the_energy_is_taken() -> None:
    system = dimer()
    system.addParticle(0.0)
    system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    tether = openmm.CustomExternalForce("100*x^2")
    tether.addParticle(2, [])
    system.addForce(tether)
    positions = np.array([[[0.0, 0, 0], [0.1, 0, 0], [7.0, 7.0, 7.0]]])
    with SystemPotential(system, platform="Reference") as potential:
        assert potential.energy(positions)[0] == pytest.approx(100 * 0.05**2)


def test_an_empty_batch_gives_empty_results(molecule) -> None:
    with SystemPotential(molecule.system, platform="Reference", n_workers=2) as potential:
        energies, forces = potential.energy_and_forces(np.empty((0, 22, 3)))
    assert energies.shape == (0,)
    assert forces.shape == (0, 22, 3)


def test_single_precision_arrays_are_taken_and_tensors_refused(molecule, batch, expected) -> None:
    with SystemPotential(molecule.system, platform="Reference") as potential:
        np.testing.assert_allclose(potential.energy(batch.astype(np.float32)), expected[0], atol=0.05)
        with pytest.raises(TypeError, match=r"expected torch\.float64"):
            potential(torch.tensor(batch, dtype=torch.float32))
        with pytest.raises(TypeError, match="dtype int64"):
            potential.energy(np.zeros((1, 22, 3), dtype=np.int64))


@pytest.mark.parametrize("shape", [(22, 3), (2, 21, 3), (2, 22, 2), (66,)])
def test_positions_of_another_shape_are_refused(molecule, shape) -> None:
    with (
        SystemPotential(molecule.system, platform="Reference") as potential,
        pytest.raises(ValueError, match=r"expected \(n, 22, 3\)"),
    ):
        potential.energy(np.zeros(shape))


def test_bad_arguments_are_refused_with_what_was_expected(molecule) -> None:
    with pytest.raises(ValueError, match=r"Unknown platform 'Abacus'.*Reference"):
        SystemPotential(molecule.system, platform="Abacus")
    with pytest.raises(ValueError, match="Unknown backend 'jax'; expected 'auto', 'openmm' or 'torch'"):
        SystemPotential(molecule.system, backend="jax")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_workers is 0"):
        SystemPotential(molecule.system, n_workers=0)
    with pytest.raises(ValueError, match="The topology has 19 atoms and the System 22"):
        SystemPotential(molecule.system, peptide("ACE-GLY-NME").topology)
    with pytest.raises(TypeError, match=r"Expected an openmm\.System"):
        SystemPotential(molecule.topology)
    with pytest.raises(ValueError, match="no particles"):
        SystemPotential(openmm.System())


def test_a_periodic_system_is_refused_with_what_to_do(molecule) -> None:
    system = copy.deepcopy(molecule.system)
    nonbonded = next(force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
    nonbonded.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    with pytest.raises(ValueError, match="NoCutoff"):
        SystemPotential(system)


def test_a_potential_cannot_be_pickled_or_used_after_closing(molecule, batch) -> None:
    potential = SystemPotential(molecule.system, platform="Reference")
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(potential)
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        copy.deepcopy(potential)
    potential.close()
    potential.close()
    with pytest.raises(RuntimeError, match="was closed"):
        potential.energy(batch)


def test_after_an_interrupt_the_threads_are_idle_and_the_next_batch_is_right(
    molecule, batch, expected, monkeypatch
) -> None:
    backend = OpenMMBackend(molecule.system, platform="Reference", n_workers=2)
    evaluate_rows = OpenMMBackend._evaluate_rows
    started = threading.Event()

    def interrupted(self: OpenMMBackend, context, positions, energies, forces) -> None:
        if not started.is_set():
            started.set()
            raise KeyboardInterrupt
        evaluate_rows(self, context, positions, energies, forces)

    monkeypatch.setattr(OpenMMBackend, "_evaluate_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        backend.evaluate(batch, with_forces=True)
    energies, _ = backend.evaluate(batch, with_forces=True)
    np.testing.assert_allclose(energies, expected[0], atol=1e-9)
    backend.close()


def test_calls_from_several_threads_do_not_mix(molecule, batch, expected) -> None:
    results: dict[int, np.ndarray] = {}
    with SystemPotential(molecule.system, platform="Reference", n_workers=2) as potential:

        def work(index: int) -> None:
            results[index] = potential.energy(np.roll(batch, index, axis=0))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index in range(6):
        np.testing.assert_allclose(results[index], np.roll(expected[0], index), atol=1e-9)


@pytest.mark.parametrize("task", ["energies", "dynamics"])
def test_auto_chooses_the_platform_that_measured_fastest_and_says_so(molecule, task) -> None:
    choice = choose_platform(molecule.system, molecule.positions, task=task, seconds=0.05)
    fastest = max(choice.rates, key=choice.rates.__getitem__)
    assert len(choice.rates) >= 2
    assert fastest.startswith(choice.name)
    assert choice.name in str(choice)
    assert f"{choice.rates[fastest]:,.0f}" in str(choice)


def test_a_named_platform_is_taken_in_any_case_without_a_contest(molecule) -> None:
    choice = choose_platform(molecule.system, platform="reference")
    assert (choice.name, choice.rates, str(choice)) == ("Reference", {}, "Reference")


def test_the_cpu_platform_may_use_one_thread_or_its_share_of_the_cores(molecule, monkeypatch) -> None:
    monkeypatch.setattr("openmm_bg.potentials.platforms.n_cores", lambda: 2)
    alone = choose_platform(molecule.system, platform="CPU", seconds=0.02)
    assert set(alone.rates) == {"CPU with 1 thread", "CPU with 2 threads"}
    pair = choose_platform(molecule.system, platform="CPU", n_concurrent=2)
    assert pair.properties == {"Threads": "1"}


def test_a_known_platform_that_is_absent_is_told_from_a_misspelt_one(molecule) -> None:
    absent = [name for name in ("CUDA", "HIP", "OpenCL") if name not in available_platforms()]
    if not absent:
        pytest.skip("this machine has every platform")
    with pytest.raises(ValueError, match="not installed or did not load"):
        choose_platform(molecule.system, platform=absent[0])


def test_a_platform_that_cannot_make_a_context_is_reported(molecule) -> None:
    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(openmm.NonbondedForce())  # describes no particle: no platform can make a Context
    with pytest.raises(RuntimeError, match="cannot compute this System here"):
        choose_platform(system, platform="auto")


def test_timing_dynamics_without_a_structure_is_refused(molecule) -> None:
    with pytest.raises(ValueError, match="give positions"):
        choose_platform(molecule.system, task="dynamics")


def test_a_custom_force_field_force_is_evaluated_like_any_other(molecule) -> None:
    topology = molecule.topology
    system = app.ForceField("amber14-all.xml", "implicit/obc2.xml").createSystem(topology, removeCMMotion=False)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(molecule.positions)
    energy = context.getState(getEnergy=True).getPotentialEnergy()._value
    with SystemPotential(system, topology) as potential:
        assert potential.energy(molecule.positions[None])[0] == pytest.approx(energy, abs=0.05)


def test_making_a_potential_leaves_the_random_numbers_of_running_dynamics_alone(molecule) -> None:
    """Contexts on the Reference platform share one generator, which a new integrator with a seed would reset."""

    def dynamics(between) -> np.ndarray:
        integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.002)
        integrator.setRandomNumberSeed(11)
        context = openmm.Context(molecule.system, integrator, openmm.Platform.getPlatformByName("Reference"))
        context.setPositions(molecule.positions)
        integrator.step(5)
        between()
        integrator.step(5)
        return context.getState(getPositions=True).getPositions(asNumpy=True)._value

    def evaluate() -> None:
        with SystemPotential(molecule.system) as potential:
            potential.energy_and_forces(np.repeat(molecule.positions[None], 20, axis=0))

    np.testing.assert_array_equal(dynamics(evaluate), dynamics(lambda: None))
