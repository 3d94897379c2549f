"""Custom bonded and nonbonded forces in torch against OpenMM Reference, over random Systems and an alchemical one."""

from __future__ import annotations

import numpy as np
import openmm
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from openmmtools import alchemy, testsystems
from torch_reference import assert_equal_to_reference, by_torch, perturbed

from openmm_bg.potentials.torch_terms import UnsupportedForce, build_term

random_systems = settings(deadline=None, max_examples=6, derandomize=True)
seeds = st.integers(0, 10_000)


def particles(n: int) -> openmm.System:
    system = openmm.System()
    for _ in range(n):
        system.addParticle(1.0)
    return system


def scattered(rng: np.random.Generator, n_atoms: int, n: int = 3) -> np.ndarray:
    """Configurations of atoms on a perturbed lattice: random, without clashes."""
    lattice = np.argwhere(np.ones((4, 4, 4)))[rng.permutation(64)[:n_atoms]]
    return 0.25 * lattice + rng.uniform(-0.08, 0.08, (n, n_atoms, 3))


def choose(rng: np.random.Generator, n_atoms: int, size: int) -> list[int]:
    return [int(atom) for atom in rng.permutation(n_atoms)[:size]]


@random_systems
@given(seed=seeds, k=st.floats(-5, 5))
def test_bond_angle_torsion_and_external_forces(seed: int, k: float) -> None:
    rng = np.random.default_rng(seed)
    system = particles(7)
    bond = openmm.CustomBondForce("k*a*(r-b)^2+exp(-r/b)")
    angle = openmm.CustomAngleForce("a*(cos(theta)-b)^2+k*theta")
    torsion = openmm.CustomTorsionForce("a*(1+cos(2*theta-b))+k*min(d,2*pi-d)^2;d=abs(theta-0.3);pi=3.1415926535")
    external = openmm.CustomExternalForce("a*((x-b)^2+sin(y)*k)+z")
    for force, kind, size in (
        (bond, "Bond", 2),
        (angle, "Angle", 3),
        (torsion, "Torsion", 4),
        (external, "Particle", 1),
    ):
        force.addGlobalParameter("k", 1.0)
        for name in "ab":
            getattr(force, f"addPer{kind}Parameter")(name)
        for _ in range(4):
            getattr(force, f"add{kind}")(*choose(rng, 7, size), rng.uniform(0.1, 2.0, 2))
        system.addForce(force)
    assert_equal_to_reference(system, scattered(rng, 7), {"k": k})


@random_systems
@given(seed=seeds)
def test_compound_bond_with_points_and_tabulated_function(seed: int) -> None:
    rng = np.random.default_rng(seed)
    system = particles(8)
    force = openmm.CustomCompoundBondForce(
        4,
        "k*table(distance(p1,p3))+a*angle(p1,p2,p4)^2+cos(dihedral(p1,p2,p3,p4))*x1+y2*z3"
        "+pointdistance(x1,y1,z1,x4,y4,z4)+pointangle(x1,y1,z1,x3,y3,z3,0,1,2)"
        "+sin(pointdihedral(x4,y4,z4,x3,y3,z3,x2,y2,z2,x1,y1,z1))",
    )
    force.addTabulatedFunction("table", openmm.Continuous1DFunction(rng.normal(size=8), 0.0, 0.9))
    force.addGlobalParameter("k", 2.0)
    force.addPerBondParameter("a")
    for _ in range(5):
        force.addBond(choose(rng, 8, 4), [rng.normal()])
    system.addForce(force)
    assert_equal_to_reference(system, scattered(rng, 8))


@random_systems
@given(
    seed=seeds,
    groups=st.integers(0, 2),
    cutoff=st.sampled_from([None, 0.6]),
    switch=st.booleans(),
    lamda=st.floats(0, 1),
)
def test_nonbonded_with_exclusions_groups_cutoff_and_switch(
    seed: int, groups: int, cutoff: float | None, switch: bool, lamda: float
) -> None:
    rng = np.random.default_rng(seed)
    n_atoms = 12
    system = particles(n_atoms)
    force = openmm.CustomNonbondedForce(
        "lamda*4*eps*(s^12-s^6)+q1*q2/(r+c)*scale(t1,t2)+w1*w2; s=sig/r; sig=0.5*(sig1+sig2); eps=sqrt(eps1*eps2)"
    )
    for name in ("q", "sig", "eps", "t"):
        force.addPerParticleParameter(name)
    force.addGlobalParameter("lamda", 1.0)
    force.addGlobalParameter("c", 0.01)
    force.addComputedValue("w", "q*sig+c")
    table = rng.uniform(0.5, 1.0, (2, 2))
    force.addTabulatedFunction("scale", openmm.Discrete2DFunction(2, 2, (table + table.T).reshape(-1)))
    for _ in range(n_atoms):
        force.addParticle([rng.normal(), rng.uniform(0.1, 0.2), rng.uniform(0, 1), rng.integers(2)])
    for i, j in {tuple(sorted(choose(rng, n_atoms, 2))) for _ in range(10)}:
        force.addExclusion(i, j)
    for _ in range(groups):
        force.addInteractionGroup(choose(rng, n_atoms, 7), choose(rng, n_atoms, 6))
    if cutoff is not None:
        force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffNonPeriodic)
        force.setCutoffDistance(cutoff)
        force.setUseSwitchingFunction(switch)
        force.setSwitchingDistance(0.45)
    system.addForce(force)
    assert_equal_to_reference(system, scattered(rng, n_atoms), {"lamda": lamda})


def test_pairs_in_pieces_equal_pairs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    system = particles(9)
    force = openmm.CustomNonbondedForce("a1*a2/r")
    force.addPerParticleParameter("a")
    for _ in range(9):
        force.addParticle([rng.normal()])
    system.addForce(force)
    positions = scattered(rng, 9)
    energies, forces = by_torch(system, positions)
    monkeypatch.setattr("openmm_bg.potentials.torch_terms.custom_nonbonded.LARGEST_ARRAY", 20)
    pieces, forces_of_pieces = by_torch(system, positions)
    np.testing.assert_allclose(pieces, energies, rtol=1e-12)
    np.testing.assert_allclose(forces_of_pieces, forces, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("treatment", ["exact", "direct-space"])
def test_alchemical_system_at_lambdas_set_at_run_time(treatment: str) -> None:
    molecule = testsystems.AlanineDipeptideVacuum(constraints=None)
    region = alchemy.AlchemicalRegion(
        alchemical_atoms=range(6, 16), annihilate_sterics=True, annihilate_electrostatics=True
    )
    factory = alchemy.AbsoluteAlchemicalFactory(
        consistent_exceptions=False, disable_alchemical_dispersion_correction=True, alchemical_pme_treatment=treatment
    )
    system = factory.create_alchemical_system(molecule.system, region)
    positions = perturbed(molecule.positions._value, 3, 0.005)
    for sterics, electrostatics in ((1.0, 1.0), (0.5, 0.3), (0.0, 0.0)):
        parameters = {"lambda_sterics": sterics, "lambda_electrostatics": electrostatics}
        assert_equal_to_reference(system, positions, parameters)


def test_energies_and_gradients_of_coinciding_atoms_are_finite() -> None:
    system = particles(4)
    pairs = openmm.CustomNonbondedForce("(0.3/r)^12-(0.3/r)^6+1/r+log(r)")
    bond, angle, torsion = (
        openmm.CustomBondForce("1/r"),
        openmm.CustomAngleForce("theta"),
        openmm.CustomTorsionForce("theta"),
    )
    bond.addBond(0, 1)
    angle.addAngle(0, 1, 2)
    torsion.addTorsion(0, 1, 2, 3)
    for _ in range(4):
        pairs.addParticle([])
    for force in (pairs, bond, angle, torsion):
        system.addForce(force)
    line = np.outer(np.arange(4), [0.1, 0.0, 0.0])
    positions = np.stack([np.zeros((4, 3)), line, line * [[0], [1], [1], [2]], line * 1e-200])
    energies, forces = by_torch(system, positions)
    assert not np.isnan(energies).any()
    assert np.isfinite(forces).all()


def test_unreadable_expression_and_periodic_force_are_refused_by_name() -> None:
    system = particles(2)
    force = openmm.CustomBondForce("wrong(r)")
    force.setName("springs")
    with pytest.raises(UnsupportedForce, match=r"'springs' \(CustomBondForce\): unknown function 'wrong'"):
        build_term(force, system)
    pairs = openmm.CustomNonbondedForce("r")
    pairs.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    with pytest.raises(UnsupportedForce, match="periodic"):
        build_term(pairs, system)


def test_terms_without_members_have_no_energy() -> None:
    term = build_term(openmm.CustomBondForce("r"), particles(2))
    assert term is not None
    assert term(torch.zeros(3, 2, 3, dtype=torch.float64), {}).tolist() == [0.0, 0.0, 0.0]
