"""The flow as a Force: energy and forces are those of its density, and dynamics on them samples it."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from exactness_fixtures import (
    BUTANE,
    MOLECULES,
    RIGID_CHAIN,
    RIGID_TRIMER,
    WithoutJacobian,
    WithoutMetric,
    scrambled,
    untrained,
)
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

from openmm_bg import BoltzmannGenerator, flow_force
from openmm_bg.potentials import torch_force
from openmm_bg.systems import peptide
from openmm_bg.testing import GaussianDensity


def saved(generator: BoltzmannGenerator, folder: Path) -> BoltzmannGenerator:
    generator.save(folder / "flow.bg")
    return generator


def system_of(molecule: SmallMolecule, generator: BoltzmannGenerator) -> openmm.System:
    return alone(molecule.system(), flow_force(generator, backend="python"))


# ---------------------------------------------------------------------------------------------------- energy and forces


@pytest.mark.parametrize("molecule", MOLECULES.values(), ids=MOLECULES)
def test_energy_and_forces_are_those_of_the_density(molecule: SmallMolecule, tmp_path: Path) -> None:
    generator = saved(scrambled(molecule), tmp_path)
    context = reference_context(system_of(molecule, generator))
    samples = generator.sample(4, rng=1).positions
    for positions in samples:
        (u,), (du,) = reduced_and_gradient(generator, positions[None])
        assert u == -generator.log_prob(positions[None])[0]
        energy, forces = energy_and_forces(context, positions)
        assert energy == pytest.approx(KT * u, rel=1e-9)
        np.testing.assert_allclose(forces, -KT * du, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("molecule", [BUTANE, RIGID_CHAIN], ids=["free", "constrained"])
def test_forces_are_finite_differences_of_the_energy(molecule: SmallMolecule, tmp_path: Path) -> None:
    generator = saved(scrambled(molecule), tmp_path)
    generator.flow.double()  # the rounding of float32 networks would drown the differences
    generator.save(tmp_path / "double.bg")
    context = reference_context(system_of(molecule, generator))
    positions = generator.sample(1, rng=2).positions[0]
    _, forces = energy_and_forces(context, positions)
    step = 2e-6  # the slope of u_flow jumps at the knots of the splines
    for atom, axis in np.ndindex(*positions.shape):
        energies = []
        for sign in (-1.0, 1.0):
            moved = positions.copy()
            moved[atom, axis] += sign * step
            energies.append(energy_and_forces(context, moved)[0])
        slope = (energies[1] - energies[0]) / (2.0 * step)
        assert -forces[atom, axis] == pytest.approx(slope, rel=1e-4, abs=1e-4 * np.abs(forces).max())


def test_a_peptide_with_constrained_hydrogens_has_the_forces_of_its_density(tmp_path: Path) -> None:
    molecule = peptide("ACE-ALA-NME")
    generator = BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, 310.0, positions=molecule.positions, seed=0
    )
    assert molecule.system.getNumConstraints() > 0
    saved(generator, tmp_path)
    context = reference_context(alone(copy.deepcopy(molecule.system), flow_force(generator, backend="python")))
    positions = generator.sample(1, rng=3).positions
    (reduced,), (gradient,) = reduced_and_gradient(generator, positions)
    energy, forces = energy_and_forces(context, positions[0])
    kT0 = KT * 310.0 / 300.0
    assert energy == pytest.approx(kT0 * reduced, rel=1e-9)
    np.testing.assert_allclose(forces, -kT0 * gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("molecule", [BUTANE, RIGID_CHAIN], ids=["free", "constrained"])
def test_the_traced_density_is_the_density(molecule: SmallMolecule) -> None:
    generator = scrambled(molecule)
    traced = torch_force.traced_force(generator)
    samples = generator.sample(20, rng=4).positions
    reduced, gradient = reduced_and_gradient(generator, samples)
    for positions, u, du in zip(samples, reduced, gradient, strict=True):
        energy, forces = traced(torch.tensor(positions))
        assert energy.item() == pytest.approx(KT * u, rel=1e-6)
        np.testing.assert_allclose(forces.numpy(), -KT * du, atol=1e-5 * KT * np.abs(du).max())


class OtherWhenTraced(BoltzmannGenerator):
    """Mutant: the trace takes another branch."""

    def _encode(self, positions: torch.Tensor, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
        latent, log_prob = super()._encode(positions, dtype)
        return latent, log_prob * (1.001 if torch.jit.is_tracing() else 1.0)


def test_a_trace_that_differs_from_the_density_is_refused() -> None:
    with pytest.raises(RuntimeError, match="traced density differs"):
        torch_force.traced_force(scrambled(RIGID_TRIMER, OtherWhenTraced))


@pytest.mark.parametrize("backend", ["python", "traced"])
def test_off_the_support_is_a_finite_plateau_without_force(backend: str, tmp_path: Path) -> None:
    generator = saved(scrambled(BUTANE), tmp_path)
    sample = generator.sample(1, rng=5).positions[0]
    coincident = sample.copy()
    coincident[1] = coincident[0]
    straight = np.array([[0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.3, 0.0, 0.0], [0.45, 0.0, 0.0]])
    context = reference_context(system_of(BUTANE, generator))
    traced = torch_force.traced_force(generator)
    assert (generator.log_prob(np.stack([coincident, straight])) == -np.inf).all()
    for positions in (coincident, straight):
        if backend == "python":
            energy, forces = energy_and_forces(context, positions)
        else:
            energy, forces = (value.numpy() for value in traced(torch.tensor(positions)))
        assert energy == pytest.approx(1e6 * KT)
        np.testing.assert_array_equal(forces, 0.0)


def test_positions_that_are_no_numbers_have_no_energy(tmp_path: Path) -> None:
    generator = saved(scrambled(RIGID_TRIMER), tmp_path)
    positions = generator.sample(1, rng=5).positions[0]
    positions[0, 0] = np.nan
    energy, _ = torch_force.traced_force(generator)(torch.tensor(positions))
    assert torch.isnan(energy)
    assert np.isnan(energy_and_forces(reference_context(system_of(RIGID_TRIMER, generator)), positions)[0])


# ------------------------------------------------------------------------------------------------------------- dynamics


def deviation_of_dynamics(
    molecule: SmallMolecule, generator: BoltzmannGenerator, *, timestep: float = 0.004, n_starts: int = 40
) -> float:
    starts = generator.sample(n_starts, rng=6).positions
    frames, energies = dynamics(system_of(molecule, generator), starts, n_frames=20, stride=10, timestep=timestep)
    assert energies.max() < 50.0 * KT  # the plateau is never reached
    return deviation_from_flow(molecule, generator, frames, energies)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("molecule", "timestep"),
    [(RIGID_TRIMER, 0.004), (RIGID_CHAIN, 0.001)],
    ids=["two constraints", "coupled constraints"],
)
def test_dynamics_on_the_flow_alone_samples_its_own_distribution(
    molecule: SmallMolecule, timestep: float, tmp_path: Path
) -> None:
    generator = saved(crooked(molecule), tmp_path)
    assert deviation_of_dynamics(molecule, generator, timestep=timestep) < 3.5


@pytest.mark.slow
@pytest.mark.parametrize(("mutant", "n_starts"), [(WithoutJacobian, 40), (WithoutMetric, 320)])
def test_dynamics_without_jacobian_or_metric_fails(
    mutant: type[BoltzmannGenerator], n_starts: int, tmp_path: Path
) -> None:
    generator = saved(crooked(RIGID_TRIMER, mutant), tmp_path)
    assert deviation_of_dynamics(RIGID_TRIMER, generator, n_starts=n_starts) > 8.0


# -------------------------------------------------------------------------------------------------- copies and storage


def test_xml_is_short_and_the_same_for_every_force_of_a_generator(tmp_path: Path) -> None:
    generator = saved(untrained(BUTANE), tmp_path)
    texts = [openmm.XmlSerializer.serialize(system_of(BUTANE, generator)) for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(texts[0]) < 2000
    duplicate = copy.deepcopy(system_of(BUTANE, generator))
    assert openmm.XmlSerializer.serialize(duplicate) == texts[0]


FRESH = """
import json, sys
import numpy as np
import openmm
system = openmm.XmlSerializer.deserialize(open(sys.argv[1]).read())
context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
context.setPositions(np.load(sys.argv[2]))
print(json.dumps(context.getState(energy=True).getPotentialEnergy()._value))
"""


def test_another_process_reads_the_force_back_or_says_what_is_missing(tmp_path: Path) -> None:
    generator = saved(untrained(BUTANE), tmp_path)
    system = system_of(BUTANE, generator)
    positions = generator.sample(1, rng=7).positions[0]
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    np.save(tmp_path / "positions.npy", positions)
    command = [sys.executable, "-c", FRESH, str(tmp_path / "system.xml"), str(tmp_path / "positions.npy")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    expected, _ = energy_and_forces(reference_context(system), positions)
    assert json.loads(ran.stdout.splitlines()[-1]) == pytest.approx(expected, abs=1e-9)
    (tmp_path / "flow.bg").rename(tmp_path / "elsewhere.bg")
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "OpenMMException" in ran.stderr  # at the first energy: an error in reading XML would end the process
    assert "Could not load the density of a stored move or Force" in ran.stderr
    assert "openmm_bg.moves.register" in ran.stderr


def test_later_training_does_not_change_the_force(tmp_path: Path) -> None:
    generator = saved(scrambled(BUTANE), tmp_path)
    system = system_of(BUTANE, generator)
    positions = generator.sample(1, rng=8).positions[0]
    before, _ = energy_and_forces(reference_context(system), positions)
    with torch.no_grad():
        generator.features.scale.mul_(1.3)
    assert energy_and_forces(reference_context(copy.deepcopy(system)), positions)[0] == before
    with pytest.raises(ValueError, match=r"not been saved .* generator.save"):
        flow_force(generator, backend="python")


# ------------------------------------------------------------------------------------------------------------ bad input


def test_what_has_no_density_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks log_prob_tensor, temperature"):
        flow_force(GaussianDensity(np.zeros((3, 3)), 0.1))
    with pytest.raises(ValueError, match="unknown; use 'auto'"):
        flow_force(untrained(BUTANE), backend="cuda")  # type: ignore[arg-type]


def test_a_generator_that_was_never_saved_is_refused() -> None:
    with pytest.raises(ValueError, match=r"generator.save\(path\)"):
        flow_force(untrained(BUTANE), backend="python")


def test_a_system_of_another_size_is_refused_at_the_first_energy(tmp_path: Path) -> None:
    generator = saved(untrained(RIGID_TRIMER), tmp_path)
    context = reference_context(alone(BUTANE.system(), flow_force(generator, backend="python")))
    with pytest.raises(openmm.OpenMMException, match=r"4 particles, the generator is one of 3 atoms"):
        energy_and_forces(context, BUTANE.reference())


@pytest.fixture
def mismatched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A build of openmmtorch for another release of torch, which must not even be imported."""
    package = tmp_path / "site"
    (package / "some_openmmtorch-9.1.dist-info").mkdir(parents=True)
    (package / "openmmtorch.py").write_text("raise SystemExit('imported')")
    metadata = "Metadata-Version: 2.1\nName: some-openmmtorch\nVersion: 9.1\nRequires-Dist: torch<2.0,>=1.9\n"
    (package / "some_openmmtorch-9.1.dist-info" / "METADATA").write_text(metadata)
    (package / "some_openmmtorch-9.1.dist-info" / "RECORD").write_text("openmmtorch.py,,\n")
    monkeypatch.syspath_prepend(package)
    monkeypatch.delitem(sys.modules, "openmmtorch", raising=False)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("mismatched")
def test_a_build_of_openmmtorch_for_another_torch_is_refused_before_it_is_imported(tmp_path: Path) -> None:
    generator = saved(untrained(BUTANE), tmp_path)
    message = r"some-openmmtorch 9.1 works with torch<2.0,>=1.9, but torch .* acellera-openmmtorch-cpu>=1.10"
    with pytest.raises(ImportError, match=message):
        flow_force(generator, backend="torchforce")
    assert isinstance(flow_force(generator), openmm.PythonForce)


def test_a_missing_openmmtorch_is_named_with_its_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_force, "MODULE", "openmmtorch_that_is_not_there")
    with pytest.raises(ImportError, match=r"not installed. Install acellera-openmmtorch-cpu>=1.10 beside torch 2.12"):
        flow_force(untrained(BUTANE), backend="torchforce")
