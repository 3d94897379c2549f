"""The flow as a TorchForce is the flow as a PythonForce; run by `make test-torchforce` in an environment of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openmm
import pytest
from exactness_fixtures import BUTANE, MOLECULES, RIGID_CHAIN, scrambled, untrained
from flow_force_fixtures import (
    KT,
    alone,
    crooked,
    deviation_from_flow,
    dynamics,
    energy_and_forces,
    reduced_and_gradient,
    reference_context,
)
from small_molecules import SmallMolecule

from openmm_bg import BoltzmannGenerator, bridge, flow_force
from openmm_bg.systems import peptide

pytestmark = pytest.mark.torchforce


@pytest.mark.parametrize("molecule", MOLECULES.values(), ids=MOLECULES)
def test_energy_and_forces_equal_the_python_backend_and_autograd(molecule: SmallMolecule, tmp_path: Path) -> None:
    generator = scrambled(molecule)
    generator.save(tmp_path / "flow.bg")
    contexts = [
        reference_context(alone(molecule.system(), flow_force(generator, backend=backend)))
        for backend in ("torchforce", "python")
    ]
    for positions in generator.sample(4, rng=1).positions:
        (u,), (du,) = reduced_and_gradient(generator, positions[None])
        for context in contexts:
            energy, forces = energy_and_forces(context, positions)
            assert energy == pytest.approx(KT * u, rel=1e-6)
            np.testing.assert_allclose(forces, -KT * du, atol=1e-5 * KT * np.abs(du).max())


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_a_peptide_on_each_platform(platform: str) -> None:
    molecule = peptide("ACE-ALA-NME")
    generator = BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, 300.0, positions=molecule.positions, seed=0
    )
    system = alone(molecule.system, flow_force(generator, backend="torchforce"))
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform))
    positions = generator.sample(1, rng=2).positions
    (u,), (du,) = reduced_and_gradient(generator, positions)
    energy, forces = energy_and_forces(context, positions[0])
    tolerance = 1e-6 if platform == "Reference" else 1e-4  # single precision of the positions
    assert energy == pytest.approx(KT * u, rel=tolerance)
    np.testing.assert_allclose(forces, -KT * du, atol=10 * tolerance * KT * np.abs(du).max())


def test_dynamics_samples_the_flow(tmp_path: Path) -> None:
    generator = crooked(RIGID_CHAIN)
    system = alone(RIGID_CHAIN.system(), flow_force(generator, backend="torchforce"))
    frames, energies = dynamics(system, generator.sample(24, rng=6).positions, n_frames=20, stride=10, timestep=0.001)
    assert deviation_from_flow(RIGID_CHAIN, generator, frames, energies) < 3.5


def test_off_the_support_is_a_finite_plateau_without_force() -> None:
    generator = untrained(BUTANE)
    context = reference_context(alone(BUTANE.system(), flow_force(generator, backend="torchforce")))
    positions = generator.sample(1, rng=3).positions[0]
    positions[1] = positions[0]
    energy, forces = energy_and_forces(context, positions)
    assert energy == pytest.approx(1e6 * KT)
    np.testing.assert_array_equal(forces, 0.0)


def test_auto_takes_the_force_that_can_be_copied(tmp_path: Path) -> None:
    generator = untrained(BUTANE)
    generator.save(tmp_path / "flow.bg")
    assert type(flow_force(generator)).__name__ == "PythonForce"


def test_a_bridge_holds_a_force_that_can_be_copied(tmp_path: Path) -> None:
    generator = untrained(BUTANE)
    generator.save(tmp_path / "flow.bg")
    names = [type(force).__name__ for force in bridge(BUTANE.system(), generator).system.getForces()]
    assert "TorchForce" not in names
    assert "PythonForce" in names
