"""CustomGBForce in torch against OpenMM: what the app layer writes, openmmtools' systems, and random expressions."""

from __future__ import annotations

import numpy as np
import openmm
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from openmm import app
from openmm.app.internal import customgbforces
from openmmtools import alchemy, testsystems
from torch_reference import assert_equal_to_reference, by_torch, perturbed

from openmm_bg.potentials.torch_terms import UnsupportedForce, build_term, custom_gb
from openmm_bg.systems import villin

MODELS = ["GBSAHCTForce", "GBSAOBC1Force", "GBSAOBC2Force", "GBSAGBnForce", "GBSAGBn2Force"]


def solvated_alone(molecule: testsystems.TestSystem, model: str, cutoff: float | None, kappa: float) -> openmm.System:
    """A System with nothing but the implicit solvent that the app layer writes for a molecule."""
    force_class = getattr(customgbforces, model)
    force = force_class(SA="ACE", cutoff=cutoff, kappa=kappa)
    system = openmm.System()
    charges = next(f for f in molecule.system.getForces() if isinstance(f, openmm.NonbondedForce))
    for index, values in enumerate(force_class.getStandardParameters(molecule.topology)):
        system.addParticle(1.0)
        force.addParticle([charges.getParticleParameters(index)[0]._value, *values])
    force.finalize()
    if cutoff is not None:
        force.setNonbondedMethod(openmm.CustomGBForce.CutoffNonPeriodic)
        force.setCutoffDistance(cutoff)
    system.addForce(force)
    return system


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("cutoff", "kappa"), [(None, 0.0), (0.6, 1.1)])
def test_models_of_the_app_layer(model: str, cutoff: float | None, kappa: float) -> None:
    molecule = testsystems.AlanineDipeptideVacuum()
    system = solvated_alone(molecule, model, cutoff, kappa)
    assert_equal_to_reference(system, perturbed(molecule.positions._value, 3, 0.01))


def test_alanine_dipeptide_in_ff96_and_obc1() -> None:
    molecule = testsystems.AlanineDipeptideImplicit()
    positions = perturbed(molecule.positions._value, 3, 0.005)
    positions[0] = molecule.positions._value
    assert_equal_to_reference(molecule.system, positions)
    assert by_torch(molecule.system, positions[:1])[0][0] == pytest.approx(-138.97, abs=0.01)


def test_host_and_guest_of_openmmtools() -> None:
    molecule = testsystems.HostGuestImplicit()
    assert_equal_to_reference(molecule.system, perturbed(molecule.positions._value, 2, 0.002))


def test_alchemical_peptide_in_implicit_solvent_at_lambdas_set_at_run_time() -> None:
    molecule = testsystems.AlanineDipeptideImplicit(constraints=None)
    region = alchemy.AlchemicalRegion(alchemical_atoms=range(6, 16))
    system = alchemy.AbsoluteAlchemicalFactory().create_alchemical_system(molecule.system, region)
    positions = perturbed(molecule.positions._value, 2, 0.005)
    for sterics, electrostatics in ((1.0, 0.4), (0.2, 0.0)):
        parameters = {"lambda_sterics": sterics, "lambda_electrostatics": electrostatics}
        assert_equal_to_reference(system, positions, parameters)


def test_villin_in_gbn2() -> None:
    molecule = villin()
    system = app.ForceField("amber14-all.xml", "implicit/gbn2.xml").createSystem(molecule.topology)
    assert_equal_to_reference(system, perturbed(molecule.positions, 1, 0.002))


@settings(deadline=None, max_examples=6, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    pair=st.sampled_from([openmm.CustomGBForce.ParticlePair, openmm.CustomGBForce.ParticlePairNoExclusions]),
    cutoff=st.sampled_from([None, 0.5]),
)
def test_random_systems_with_exclusions_tables_and_all_kinds_of_terms(
    seed: int, pair: int, cutoff: float | None
) -> None:
    rng = np.random.default_rng(seed)
    force = openmm.CustomGBForce()
    force.addGlobalParameter("k", 1.3)
    for name in ("q", "s"):
        force.addPerParticleParameter(name)
    force.addTabulatedFunction("table", openmm.Continuous1DFunction(rng.uniform(0.5, 1, 6), 0.0, 1.0))
    force.addComputedValue("I", "q2*exp(-r*s1)*table(r)", pair)
    force.addComputedValue("B", "k*s+tanh(I)+0.1*x*y", openmm.CustomGBForce.SingleParticle)
    force.addEnergyTerm("q*B^2+z*I", openmm.CustomGBForce.SingleParticle)
    force.addEnergyTerm("q1*q2/sqrt(r^2+B1^2*B2^2)", openmm.CustomGBForce.ParticlePairNoExclusions)
    force.addEnergyTerm("k*(I1+I2)*exp(-r)", openmm.CustomGBForce.ParticlePair)
    system = openmm.System()
    for _ in range(9):
        system.addParticle(1.0)
        force.addParticle([rng.normal(), rng.uniform(0.5, 1.0)])
    for i, j in {tuple(sorted(int(atom) for atom in rng.permutation(9)[:2])) for _ in range(6)}:
        force.addExclusion(i, j)
    if cutoff is not None:
        force.setNonbondedMethod(openmm.CustomGBForce.CutoffNonPeriodic)
        force.setCutoffDistance(cutoff)
    system.addForce(force)
    assert_equal_to_reference(system, rng.uniform(0, 0.8, (3, 9, 3)), {"k": float(rng.uniform(0.5, 2.0))})


def test_blocks_of_rows_equal_all_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    molecule = testsystems.AlanineDipeptideVacuum()
    system = solvated_alone(molecule, "GBSAGBn2Force", None, 0.0)
    positions = perturbed(molecule.positions._value, 3, 0.01)
    energies, forces = by_torch(system, positions)
    monkeypatch.setitem(custom_gb._LARGEST_ARRAY, "cpu", 22 * 3 * 4)
    pieces, forces_of_pieces = by_torch(system, positions)
    np.testing.assert_allclose(pieces, energies, rtol=1e-12)
    np.testing.assert_allclose(forces_of_pieces, forces, rtol=1e-9, atol=1e-9)


def test_clashes_leave_energies_and_gradients_finite() -> None:
    molecule = testsystems.AlanineDipeptideVacuum()
    positions = perturbed(molecule.positions._value, 3, 0.05)
    positions[0, 5] = positions[0, 9]
    positions[1] = 0.0
    positions[2] *= 1e-3
    for model in MODELS:
        energies, forces = by_torch(solvated_alone(molecule, model, None, 0.0), positions)
        assert not np.isnan(energies).any()
        assert np.isfinite(forces).all()


def test_gradient_is_the_derivative_of_the_energy() -> None:
    molecule = testsystems.AlanineDipeptideVacuum()
    system = solvated_alone(molecule, "GBSAGBn2Force", None, 0.0)
    term = build_term(system.getForce(0), system)
    assert term is not None
    x = torch.tensor(molecule.positions._value[None], requires_grad=True)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    (gradient,) = torch.autograd.grad(term(x, {}).sum(), x)
    step = 1e-5 * direction
    numerical = (term(x + step, {}) - term(x - step, {})).item() / 2e-5
    assert (gradient * direction).sum().item() == pytest.approx(numerical, rel=1e-6)


def test_periodic_force_is_refused() -> None:
    force = openmm.CustomGBForce()
    force.setNonbondedMethod(openmm.CustomGBForce.CutoffPeriodic)
    with pytest.raises(UnsupportedForce, match="periodic"):
        build_term(force, openmm.System())
