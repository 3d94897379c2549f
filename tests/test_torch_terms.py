"""Each native force in torch equals OpenMM's Reference platform over random Systems, and its gradient is its force."""

from __future__ import annotations

import itertools

import numpy as np
import openmm
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fixtures import assert_as_openmm, assert_gradient_is_force, gradients_at, particles, scattered

from openmm_bg.potentials import UnsupportedForce
from openmm_bg.potentials.torch_terms import build_term

few = settings(max_examples=4, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
sizes = st.integers(9, 13)


def with_force(n: int, force: openmm.Force) -> openmm.System:
    system = particles(n)
    system.addForce(force)
    return system


def bonds(n: int, rng: np.random.Generator) -> openmm.Force:
    force = openmm.HarmonicBondForce()
    for _ in range(n):
        force.addBond(*map(int, rng.choice(n, 2, replace=False)), rng.uniform(0.1, 0.2), rng.uniform(1e4, 4e5))
    return force


def angles(n: int, rng: np.random.Generator) -> openmm.Force:
    force = openmm.HarmonicAngleForce()
    for _ in range(n):
        force.addAngle(*map(int, rng.choice(n, 3, replace=False)), rng.uniform(0, np.pi), rng.uniform(100, 800))
    return force


def torsions(n: int, rng: np.random.Generator) -> openmm.Force:
    force = openmm.PeriodicTorsionForce()
    for _ in range(n):
        atoms = map(int, rng.choice(n, 4, replace=False))
        force.addTorsion(*atoms, int(rng.integers(1, 7)), rng.uniform(-4, 4), rng.uniform(-20, 20))
    return force


def rb_torsions(n: int, rng: np.random.Generator) -> openmm.Force:
    force = openmm.RBTorsionForce()
    for _ in range(n):
        force.addTorsion(*map(int, rng.choice(n, 4, replace=False)), *rng.normal(scale=10, size=6))
    return force


def cmap(n: int, rng: np.random.Generator) -> openmm.Force:
    force = openmm.CMAPTorsionForce()
    for size in (6, 9):
        force.addMap(size, rng.normal(scale=10, size=size * size))
    for which in (0, 1, 1, 0):
        force.addTorsion(which, *map(int, rng.choice(n, 4, replace=False)), *map(int, rng.choice(n, 4, replace=False)))
    return force


def nonbonded(n: int, rng: np.random.Generator, *, cutoff: float | None = None, offsets: bool = True) -> openmm.Force:
    force = openmm.NonbondedForce()
    for _ in range(n):
        force.addParticle(rng.normal(), rng.uniform(0.1, 0.3), rng.uniform(0, 1))
    pairs = list(itertools.combinations(range(n), 2))
    for index in rng.choice(len(pairs), n, replace=False):
        i, j = pairs[index][:: rng.choice([-1, 1])]
        scale = rng.choice([0.0, 0.5])
        force.addException(i, j, scale * rng.normal(), 0.2, scale * rng.uniform(0, 1))
    if cutoff is not None:
        force.setNonbondedMethod(openmm.NonbondedForce.CutoffNonPeriodic)
        force.setCutoffDistance(cutoff)
        force.setReactionFieldDielectric(rng.uniform(1, 80))
        if rng.random() < 0.7:
            force.setUseSwitchingFunction(True)
            force.setSwitchingDistance(0.7 * cutoff)
    if offsets:
        force.addGlobalParameter("lambda_a", 0.5)
        force.addGlobalParameter("lambda_b", 1.0)
        force.addParticleParameterOffset("lambda_a", 0, 0.4, 0.05, 0.3)
        force.addParticleParameterOffset("lambda_b", 0, -0.4, 0.02, 0.1)
        force.addExceptionParameterOffset("lambda_b", 1, 0.5, 0.0, 0.4)
    return force


def gbsa(n: int, rng: np.random.Generator, *, cutoff: float | None = None) -> openmm.Force:
    force = openmm.GBSAOBCForce()
    for _ in range(n):
        force.addParticle(rng.normal(), rng.uniform(0.1, 0.25), rng.uniform(0.6, 1.2))
    force.setSolventDielectric(rng.uniform(20, 80))
    force.setSoluteDielectric(rng.uniform(1, 4))
    force.setSurfaceAreaEnergy(rng.uniform(0, 3))
    if cutoff is not None:
        force.setNonbondedMethod(openmm.GBSAOBCForce.CutoffNonPeriodic)
        force.setCutoffDistance(cutoff)
    return force


MAKERS = {
    "bonds": bonds,
    "angles": angles,
    "torsions": torsions,
    "rb_torsions": rb_torsions,
    "cmap": cmap,
    "nonbonded": nonbonded,
    "nonbonded with cutoff": lambda n, rng: nonbonded(n, rng, cutoff=0.5),
    "gbsa": gbsa,
    "gbsa with cutoff": lambda n, rng: gbsa(n, rng, cutoff=0.5),
}


@pytest.mark.parametrize("kind", MAKERS)
@few
@given(n=sizes, seed=seeds)
def test_random_forces_equal_openmm(kind: str, n: int, seed: int) -> None:
    system = with_force(n, MAKERS[kind](n, np.random.default_rng(seed)))
    assert_as_openmm(system, scattered(n, seed))


@pytest.mark.parametrize("kind", MAKERS)
def test_gradients_are_forces(kind: str) -> None:
    system = with_force(9, MAKERS[kind](9, np.random.default_rng(5)))
    assert_gradient_is_force(system, scattered(9, 5, rows=1)[0], step=1e-6)


@pytest.mark.parametrize("kind", MAKERS)
def test_clashes_have_finite_gradients(kind: str) -> None:
    """All atoms in one place, all on a line, two in one place, and one nearly on another."""
    system = with_force(9, MAKERS[kind](9, np.random.default_rng(3)))
    line = np.zeros((9, 3))
    line[:, 0] = np.arange(9) * 0.15
    pair = scattered(9, 3, rows=1)[0]
    pair[0] = pair[1]
    near = pair.copy()
    near[0, 0] += 1e-7
    energies, gradients = gradients_at(system, np.stack([np.zeros((9, 3)), line, pair, near]))
    assert not energies.isnan().any()
    assert gradients.isfinite().all()


def test_global_parameters_move_charges_of_particles_and_exceptions() -> None:
    system = with_force(10, nonbonded(10, np.random.default_rng(1)))
    batch = scattered(10, 1)
    assert_as_openmm(system, batch, {"lambda_a": 0.1, "lambda_b": -0.7})
    assert_as_openmm(system, batch)


def test_atoms_inside_others_are_descreened_as_by_openmm() -> None:
    force = openmm.GBSAOBCForce()
    for charge, radius, scale in ((0.5, 0.1, 0.8), (-0.5, 0.4, 1.0), (0.2, 0.15, 0.7)):
        force.addParticle(charge, radius, scale)
    assert_as_openmm(with_force(3, force), scattered(3, 2, rows=8, box=0.3, apart=0.03))


def test_forces_without_torch_or_with_a_box_are_refused_by_name() -> None:
    system = particles(2)
    gay_berne = openmm.GayBerneForce()
    gay_berne.setName("ellipsoids")
    with pytest.raises(UnsupportedForce, match=r"'ellipsoids' is a GayBerneForce.*HarmonicBondForce.*backend='openmm'"):
        build_term(gay_berne, system)
    ewald = openmm.NonbondedForce()
    ewald.setNonbondedMethod(openmm.NonbondedForce.PME)
    with pytest.raises(UnsupportedForce, match="'NonbondedForce' is periodic"):
        build_term(ewald, system)
    assert build_term(openmm.CMMotionRemover(), system) is None


def test_a_force_without_entries_has_no_energy() -> None:
    for force_class in (openmm.HarmonicBondForce, openmm.RBTorsionForce, openmm.CMAPTorsionForce):
        term = build_term(force_class(), particles(3))
        assert term is not None
        assert torch.equal(term(torch.rand(4, 3, 3, dtype=torch.float64), {}), torch.zeros(4, dtype=torch.float64))
