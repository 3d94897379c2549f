"""Compiled energies equal those of OpenMM and of the uncompiled terms; without a compiler all works as before."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from openmm import app
from torch_fixtures import assert_gradient_is_force, by_reference, particles, scattered

from openmm_bg.potentials import BackendMismatch, SystemPotential, TorchBackend, torch_backend
from openmm_bg.potentials.compilation import CompiledEnergy
from openmm_bg.potentials.torch_terms import build_term
from openmm_bg.systems import MolecularSystem, peptide

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def molecule() -> MolecularSystem:
    return peptide("ACE-ALA-NME")


def solvated(molecule: MolecularSystem, solvent: str, **options: object) -> openmm.System:
    return app.ForceField("amber99sbildn.xml", solvent).createSystem(molecule.topology, **options)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("solvent", "options"),
    [
        ("amber99_obc.xml", {}),
        ("amber99_obc.xml", {"nonbondedMethod": app.CutoffNonPeriodic, "nonbondedCutoff": 0.6}),
        ("implicit/obc2.xml", {}),
        ("implicit/gbn2.xml", {}),
    ],
    ids=["obc", "obc with a cutoff", "custom obc2", "custom gbn2"],
)
def test_compiled_equals_openmm_and_the_uncompiled_one(
    molecule: MolecularSystem, solvent: str, options: dict[str, object]
) -> None:
    system = solvated(molecule, solvent, **options)
    noise = np.random.default_rng(0).normal(scale=0.005, size=(35, *molecule.positions.shape))
    batch = molecule.positions + noise  # one full block and a part of one
    eager = TorchBackend(system, reference=molecule.positions)
    compiled = TorchBackend(system, reference=molecule.positions, compile=True)
    assert compiled.not_compiled is None
    assert compiled.compile_seconds is not None
    energies, forces = compiled.evaluate(batch, with_forces=True)
    assert forces is not None
    expected, expected_forces = by_reference(system, batch[:5])
    np.testing.assert_allclose(energies[:5], expected, rtol=1e-6, atol=1e-5)
    size = np.abs(expected_forces).max(axis=(1, 2), keepdims=True)
    assert (np.abs(forces[:5] - expected_forces) <= 1e-4 * size).all()
    same, same_forces = eager.evaluate(batch, with_forces=True)
    assert same_forces is not None
    np.testing.assert_allclose(energies, same, rtol=1e-10)
    np.testing.assert_allclose(compiled.evaluate(batch, with_forces=False)[0], same, rtol=1e-10)
    assert np.abs(forces - same_forces).max() < 1e-9 * np.abs(same_forces).max()

    clashes = batch[:3].copy()
    clashes[0] = 0.0
    clashes[1, 5] = clashes[1, 9]
    clashes[2] *= 1e-3
    energies, forces = compiled.evaluate(clashes, with_forces=True)
    assert forces is not None
    assert not np.isnan(energies).any()
    assert np.isfinite(forces).all()


def random_pairs(seed: int, cutoff: float | None) -> openmm.System:
    """Charges and spheres with exceptions, and implicit solvent."""
    rng = np.random.default_rng(seed)
    system, nonbonded, born = particles(7), openmm.NonbondedForce(), openmm.GBSAOBCForce()
    for _ in range(7):
        charge = float(rng.normal(scale=0.4))
        nonbonded.addParticle(charge, float(rng.uniform(0.1, 0.3)), float(rng.uniform(0.1, 1.0)))
        born.addParticle(charge, float(rng.uniform(0.1, 0.2)), float(rng.uniform(0.6, 1.0)))
    nonbonded.addException(0, 1, 0.0, 1.0, 0.0)
    nonbonded.addException(3, 2, 0.1, 0.2, 0.3)
    if cutoff is not None:
        for force in (nonbonded, born):
            force.setNonbondedMethod(type(force).CutoffNonPeriodic)
            force.setCutoffDistance(cutoff)
        nonbonded.setUseSwitchingFunction(True)
        nonbonded.setSwitchingDistance(0.8 * cutoff)
    system.addForce(nonbonded)
    system.addForce(born)
    return system


@pytest.mark.parametrize("cutoff", [None, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_compiled_equals_what_is_not(seed: int, cutoff: float | None) -> None:
    """The terms as a compiler sees them, run as they are."""
    system = random_pairs(seed, cutoff)
    x = torch.from_numpy(scattered(7, seed)).requires_grad_()
    for force in system.getForces():
        term = build_term(force, system)
        assert term is not None
        energies, same = term(x, {}), term.fused(x, {})
        torch.testing.assert_close(same, energies, rtol=1e-10, atol=1e-9)
        (gradient,), (same_gradient,) = (torch.autograd.grad(e.sum(), x) for e in (energies, same))
        torch.testing.assert_close(same_gradient, gradient, rtol=1e-8, atol=1e-7)


def test_without_a_compiler_the_reason_is_kept_and_energies_are_the_same(
    molecule: MolecularSystem, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*arguments: object) -> CompiledEnergy:
        raise RuntimeError("No working C++ compiler found\nand more lines")

    monkeypatch.setattr(torch_backend, "CompiledEnergy", fails)
    with caplog.at_level(logging.WARNING):
        backend = TorchBackend(molecule.system, reference=molecule.positions, compile=True)
    assert backend.not_compiled == "No working C++ compiler found"
    assert backend.compile_seconds is None
    assert "Energies are not compiled: No working C++ compiler found" in caplog.text
    expected = TorchBackend(molecule.system, reference=molecule.positions)
    batch = molecule.positions[None]
    assert backend.evaluate(batch, with_forces=False)[0] == expected.evaluate(batch, with_forces=False)[0]


def test_a_missing_compiler_is_found_by_torch_itself_and_survived(tmp_path: Path) -> None:
    program = (
        "from openmm_bg.potentials import SystemPotential\n"
        "from openmm_bg.systems import peptide\n"
        "m = peptide('ACE-ALA-NME')\n"
        "p = SystemPotential(m.system, backend='torch', device='cpu', reference=m.positions, compile=True)\n"
        "print(p.energy(m.positions[None])[0], p.backend_choice)\n"
    )
    environment = {**os.environ, "CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "not compiled" in done.stdout


class _Shifted:
    """A compiler that makes an error."""

    rows, seconds = 1, 0.0

    def __init__(self, terms: list[torch.nn.Module], parameters: dict[str, float], positions: torch.Tensor) -> None:
        self._terms, self._parameters = terms, parameters

    def __call__(self, positions: torch.Tensor, *, with_gradients: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        x = positions.detach().requires_grad_()
        energy = torch.stack([term(x, self._parameters) for term in self._terms]).sum(0)
        gradient = torch.autograd.grad(energy.sum(), x)[0] if with_gradients else None
        return energy.detach() + 0.5, gradient


def test_a_wrongly_compiled_energy_is_found(molecule: MolecularSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "CompiledEnergy", _Shifted)
    with pytest.raises(BackendMismatch, match="compiled energy"):
        TorchBackend(molecule.system, reference=molecule.positions, compile=True)


def test_changed_parameters_are_evaluated_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    system = particles(2)
    force = openmm.CustomBondForce("k*r^2")
    force.addGlobalParameter("k", 2.0)
    force.addBond(0, 1)
    system.addForce(force)
    monkeypatch.setattr(_Shifted, "__call__", lambda self, x, with_gradients: (x.new_full((len(x),), 2.0), 0.0 * x))
    backend = TorchBackend(system)
    backend._compiled, backend._compiled_for = _Shifted([], {}, torch.zeros(2, 3)), {"k": 2.0}  # type: ignore[assignment]
    apart = np.array([[[0.0, 0, 0], [1.0, 0, 0]]])
    assert backend.evaluate(apart, with_forces=False)[0] == 2.0
    backend.set_parameters({"k": 5.0})
    assert backend.evaluate(apart, with_forces=False)[0] == pytest.approx(5.0)


@needs_compiler
@pytest.mark.slow
def test_auto_measures_the_compiled_energies_and_names_the_seconds(molecule: MolecularSystem) -> None:
    system = solvated(molecule, "amber99_obc.xml")
    with SystemPotential(system, reference=molecule.positions, device="cpu", compile=True) as potential:
        assert "compiled in" in potential.backend_choice
        positions = torch.from_numpy(molecule.positions[None]).requires_grad_()
        potential(positions).sum().backward()
        assert positions.grad is not None
    assert_gradient_is_force(system, molecule.positions)
