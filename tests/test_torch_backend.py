"""Batches in torch equal OpenMM's Reference platform for real molecules, however they are cut; refusals are clear."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from torch_fixtures import assert_as_openmm, assert_gradient_is_force, by_reference, particles

from openmm_bg.potentials import BackendMismatch, SystemPotential, TorchBackend, UnsupportedForce, torch_backend
from openmm_bg.potentials.torch_terms import term as term_module
from openmm_bg.potentials.torch_terms.term import Term
from openmm_bg.systems import MolecularSystem, peptide, villin

REFERENCE_DATA = "OPENMM_BG_REFERENCE_DATA"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(scope="module")
def molecule() -> MolecularSystem:
    return peptide("ACE-ALA-NME")


def moved(positions: np.ndarray, n: int = 3, scale: float = 0.005) -> np.ndarray:
    return positions + np.random.default_rng(0).normal(scale=scale, size=(n, *positions.shape))


def with_force_field(molecule: MolecularSystem, *files: str) -> openmm.System:
    return app.ForceField(*files).createSystem(molecule.topology, nonbondedMethod=app.NoCutoff)


@pytest.mark.parametrize("files", [("amber99sbildn.xml",), ("amber99sbildn.xml", "amber99_obc.xml")])
def test_alanine_dipeptide_equals_openmm(molecule: MolecularSystem, files: tuple[str, ...]) -> None:
    assert_as_openmm(with_force_field(molecule, *files), moved(molecule.positions))


def test_a_peptide_with_energy_maps_equals_openmm() -> None:
    capless = peptide("GLY-ALA-GLY")
    system = with_force_field(capless, "charmm36.xml")
    assert [f.getNumTorsions() > 0 for f in system.getForces() if isinstance(f, openmm.CMAPTorsionForce)] == [True]
    assert_as_openmm(system, moved(capless.positions))


def test_villin_in_obc2_equals_openmm() -> None:
    large = villin()
    system = with_force_field(large, "amber99sbildn.xml", "amber99_obc.xml")
    assert any(isinstance(force, openmm.GBSAOBCForce) for force in system.getForces())
    assert_as_openmm(system, moved(large.positions, 2))


def test_recorded_energies_and_forces_of_a_tetrapeptide_are_found_again() -> None:
    """NNQQ, amber99sbildn + OBC2 with a cutoff of 2 nm, as recorded by others with OpenMM."""
    folder = Path(os.environ.get(REFERENCE_DATA, "")) / "nnqq_obc"
    if REFERENCE_DATA not in os.environ or not folder.is_dir():
        pytest.skip(f"{REFERENCE_DATA} does not name a folder with nnqq_obc")
    topology = app.PDBFile(str(folder / "implicit-2olx-traj-state0.pdb")).topology
    recorded = np.load(folder / "implicit-2olx-traj-arrays.npz")
    system = app.ForceField("amber99sbildn.xml", "amber99_obc.xml").createSystem(
        topology, nonbondedMethod=app.CutoffNonPeriodic, nonbondedCutoff=2.0 * unit.nanometer, constraints=None
    )
    backend = TorchBackend(system)
    energies, forces = backend.evaluate(recorded["positions"].astype(np.float64), with_forces=True)
    assert forces is not None
    # OpenMM's Reference platform of today is 1.12e-3 kJ/mol and 0.01101 kJ/mol/nm from the (single-precision) record.
    assert np.abs(energies - recorded["energies"][:, 0]).max() < 1.2e-3
    assert np.abs(forces - recorded["forces"]).max() < 0.0115
    np.testing.assert_allclose(
        energies[:5], by_reference(system, recorded["positions"][:5].astype(float))[0], rtol=1e-9
    )


def test_gradient_of_a_molecule_is_its_force(molecule: MolecularSystem) -> None:
    assert_gradient_is_force(molecule.system, molecule.positions)


@pytest.mark.parametrize("precision", ["double", "mixed"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_equals_one_by_one(
    molecule: MolecularSystem, device: str, precision: torch_backend.Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    backend = TorchBackend(molecule.system, device, precision=precision, reference=molecule.positions)
    batch = moved(molecule.positions, 13)
    monkeypatch.setattr(backend, "_rows_at_once", lambda: 5)
    energies, forces = backend.evaluate(batch, with_forces=True)
    alone = [backend.evaluate(batch[i : i + 1], with_forces=True) for i in range(len(batch))]
    np.testing.assert_allclose(energies, [energy[0] for energy, _ in alone], rtol=1e-12, atol=1e-9)
    assert forces is not None
    tolerance = 1e-7 if precision == "double" else 1e-2
    np.testing.assert_allclose(forces, [force[0] for _, force in alone if force is not None], atol=tolerance)


def test_mixed_precision_stays_close_to_double(molecule: MolecularSystem) -> None:
    batch = moved(molecule.positions, 20)
    double, mixed = (
        TorchBackend(molecule.system, precision=precision, reference=molecule.positions).evaluate(
            batch, with_forces=False
        )[0]
        for precision in ("double", "mixed")
    )
    assert 1e-9 < np.abs(double - mixed).max() < 2e-3


def test_potential_in_torch_equals_that_of_openmm_and_is_differentiable(molecule: MolecularSystem) -> None:
    batch = moved(molecule.positions, 4)
    with (
        SystemPotential(molecule.system, platform="Reference") as expected,
        SystemPotential(molecule.system, backend="torch", device="cpu") as potential,
    ):
        assert potential.platform_name == "torch"
        results = []
        for each in (expected, potential):
            positions = torch.from_numpy(batch).requires_grad_()
            energies = each(positions)
            (energies * torch.arange(1, 5)).sum().backward()
            results.append((energies.detach(), positions.grad))
        torch.testing.assert_close(results[1], results[0], rtol=1e-8, atol=1e-6)
        assert potential.n_evaluations == 4


def test_clashes_and_nan_are_never_nan_energies(molecule: MolecularSystem) -> None:
    broken = np.stack([np.zeros_like(molecule.positions), np.full_like(molecule.positions, np.nan), molecule.positions])
    with SystemPotential(molecule.system, backend="torch", device="cpu") as potential:
        energies, forces = potential.energy_and_forces(broken)
        positions = torch.from_numpy(broken).requires_grad_()
        through_torch = potential(positions)
        through_torch[2:].sum().backward()
    for found in (energies, through_torch.detach().numpy()):
        assert found[0] > 1e6
        assert found[1] == np.inf
        assert np.isfinite(found[2])
    assert np.isfinite(forces).all()
    assert positions.grad is not None
    assert positions.grad.isfinite().all()
    assert potential.n_evaluations == 4


def test_auto_takes_the_faster_one_and_says_why(molecule: MolecularSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    def took(backend: object, batch: np.ndarray) -> float:
        return len(batch) * (seconds if isinstance(backend, TorchBackend) else 1.0)

    monkeypatch.setattr(torch_backend, "_seconds", took)
    for seconds, expected in ((0.5, "torch"), (0.97, "openmm")):
        with SystemPotential(molecule.system) as potential:
            assert potential.backend_choice.startswith(f"{expected}, measured: torch {1 / seconds:,.0f}, openmm 1 ")
            assert (potential.platform_name == "torch") == (expected == "torch")
    with SystemPotential(molecule.system, n_workers=1) as potential:
        assert potential.backend_choice == "openmm, as asked for"


def test_auto_falls_back_where_torch_cannot() -> None:
    system = particles(2)
    force = openmm.GayBerneForce()
    for other in (1, 0):
        force.addParticle(0.3, 0.5, other, -1, 0.3, 0.3, 0.3, 1.0, 1.0, 1.0)
    system.addForce(force)
    with pytest.raises(UnsupportedForce, match="GayBerneForce"):
        SystemPotential(system, backend="torch")
    with SystemPotential(system) as potential:
        assert "torch cannot: The force 'GayBerneForce'" in potential.backend_choice


@pytest.mark.parametrize("wrong", ["energy", "gradient"])
def test_a_term_that_disagrees_with_openmm_is_found(
    molecule: MolecularSystem, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    class Wrong(Term):
        def __init__(self, force: openmm.Force, system: openmm.System) -> None:
            super().__init__(force)
            self.right = builder(force, system)

        def forward(self, positions: torch.Tensor, parameters: object) -> torch.Tensor:
            energy = self.right(positions, parameters)
            return 1.00001 * energy if wrong == "energy" else energy.detach()

    builder = term_module._BUILDERS[openmm.HarmonicAngleForce]
    monkeypatch.setitem(term_module._BUILDERS, openmm.HarmonicAngleForce, Wrong)
    message = "energy of the force 'HarmonicAngleForce'" if wrong == "energy" else "total forces.*HarmonicAngleForce"
    with pytest.raises(BackendMismatch, match=message):
        TorchBackend(molecule.system)


def test_a_force_that_is_right_at_the_defaults_of_its_parameters_alone_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Deaf(Term):
        def __init__(self, force: openmm.Force, system: openmm.System) -> None:
            super().__init__(force)
            self.right = builder(force, system)

        def forward(self, positions: torch.Tensor, parameters: object) -> torch.Tensor:
            return self.right(positions, self.defaults)

    system = particles(2)
    bond = openmm.CustomBondForce("0.5 * coupling * (r - 0.1)^2")
    bond.addGlobalParameter("coupling", 1.0)
    bond.addBond(0, 1, [])
    system.addForce(bond)
    assert TorchBackend(system).parameters == {"coupling": 1.0}
    builder = term_module._BUILDERS[openmm.CustomBondForce]
    monkeypatch.setitem(term_module._BUILDERS, openmm.CustomBondForce, Deaf)
    with pytest.raises(BackendMismatch, match=r"energy of the force 'CustomBondForce'.*'coupling': 0\.75"):
        TorchBackend(system)


def test_out_of_memory_makes_smaller_chunks_and_then_a_clear_error(
    molecule: MolecularSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = TorchBackend(molecule.system)
    batch = moved(molecule.positions, 20)
    expected = backend.evaluate(batch, with_forces=False)[0]
    whole, most, tried = backend._chunk, 3, []

    def chunk(positions: torch.Tensor, with_gradients: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        tried.append(len(positions))
        if len(positions) > most:
            raise torch.OutOfMemoryError("too much")
        return whole(positions, with_gradients)

    monkeypatch.setattr(backend, "_chunk", chunk)
    np.testing.assert_allclose(backend.evaluate(batch, with_forces=False)[0], expected, rtol=1e-12)
    assert tried[:4] == [20, 10, 5, 2]
    most = 0
    with pytest.raises(MemoryError, match="does not suffice for one configuration of 22 atoms"):
        backend.evaluate(batch, with_forces=False)


def test_bad_input_is_refused(molecule: MolecularSystem) -> None:
    with pytest.raises(ValueError, match="Unknown device 'abacus'"):
        SystemPotential(molecule.system, backend="torch", device="abacus")
    with pytest.raises(ValueError, match=r"torch sees \d+ CUDA devices"):
        SystemPotential(molecule.system, backend="torch", device="cuda:99")
    with pytest.raises(ValueError, match="Unknown precision 'half'"):
        SystemPotential(molecule.system, backend="torch", precision="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_workers are OpenMM's"):
        SystemPotential(molecule.system, backend="torch", n_workers=2)
    periodic = particles(2)
    periodic.addForce(openmm.NonbondedForce())
    for _ in range(2):
        periodic.getForce(0).addParticle(0, 1, 0)
    periodic.getForce(0).setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    with pytest.raises(UnsupportedForce, match="periodic boundary"):
        TorchBackend(periodic)
    site = particles(3)
    site.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(UnsupportedForce, match="Particle 2 is a virtual site"):
        TorchBackend(site)
    with SystemPotential(molecule.system, backend="torch", device="cpu") as potential:
        with pytest.raises(ValueError, match=r"shape \(2, 21, 3\); expected \(n, 22, 3\)"):
            potential(torch.zeros(2, 21, 3, dtype=torch.float64))
        with pytest.raises(TypeError, match="float32"):
            potential(torch.zeros(2, 22, 3))
        with pytest.raises(ValueError, match=r"positions\[None\]"):
            potential.energy(molecule.positions)
    with pytest.raises(RuntimeError, match="closed"):
        potential.energy(molecule.positions[None])
    with pytest.raises(ValueError, match="No force has a global parameter 'lambda'"):
        TorchBackend(molecule.system).set_parameters({"lambda": 1.0})


def test_an_empty_batch_has_no_energies(molecule: MolecularSystem) -> None:
    energies, forces = TorchBackend(molecule.system).evaluate(np.zeros((0, 22, 3)), with_forces=True)
    assert energies.shape == (0,)
    assert forces is not None
    assert forces.shape == (0, 22, 3)


_MEMORY = """
import resource
import numpy as np
import openmm
from openmm_bg.potentials import TorchBackend
from openmm_bg.potentials.platforms import lattice
from openmm_bg.systems import villin
{body}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2)
"""
_VILLIN = """
molecule = villin()
backend = TorchBackend(molecule.system, reference=molecule.positions)
noise = np.random.default_rng(0).normal(size=(1024, 582, 3))
energies, forces = backend.evaluate(molecule.positions + 0.001 * noise, with_forces=True)
assert np.isfinite(energies).all() and np.isfinite(forces).all()
"""
_LARGE = """
system, nonbonded, born = openmm.System(), openmm.NonbondedForce(), openmm.GBSAOBCForce()
for i in range(5000):
    system.addParticle(12.0)
    nonbonded.addParticle(0.1 * (-1) ** i, 0.2, 0.2)
    born.addParticle(0.1 * (-1) ** i, 0.15, 0.8)
system.addForce(nonbonded)
system.addForce(born)
energies, forces = TorchBackend(system).evaluate(lattice(5000)[None], with_forces=True)
assert np.isfinite(energies).all() and np.isfinite(forces).all()
"""


@pytest.mark.slow
@pytest.mark.parametrize("body", [_VILLIN, _LARGE], ids=["582 atoms x 1024", "5000 atoms"])
def test_large_batches_and_large_molecules_stay_within_eight_gigabytes(body: str) -> None:
    program = _MEMORY.format(body=body)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 8.0
