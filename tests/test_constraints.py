"""Constraints as fixed coordinates, and 1/2 ln det Z against the dense definition C M^-1 C^T."""

from __future__ import annotations

import numpy as np
import openmm
import pytest
import torch
from molecule_fixtures import ORGANIC, bent_chain, organic, topology_of
from openmm import app, unit

from openmm_bg.coordinates import ConstraintMetric, InternalCoordinates, build_zmatrix, find_constraints
from openmm_bg.coordinates.features import Features
from openmm_bg.coordinates.internal import Internal
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.systems import peptide

VACUUM = app.ForceField("amber99sbildn.xml")


def masses_of(system: openmm.System) -> list[float]:
    return [system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())]


def pairs_of(system: openmm.System) -> tuple[tuple[int, int], ...]:
    parameters = [system.getConstraintParameters(index) for index in range(system.getNumConstraints())]
    return tuple((min(i, j), max(i, j)) for i, j, _ in parameters)


def dense_half_log_det(pairs: tuple[tuple[int, int], ...], masses: list[float], positions: np.ndarray) -> float:
    """1/2 ln det(C M^-1 C^T) with C the gradients of the distances, row by row."""
    gradients = np.zeros((len(pairs), len(masses), 3))
    for row, (i, j) in enumerate(pairs):
        direction = (positions[i] - positions[j]) / np.linalg.norm(positions[i] - positions[j])
        gradients[row, i], gradients[row, j] = direction, -direction
    z = np.einsum("aix,i,bix->ab", gradients, 1.0 / np.array(masses), gradients)
    sign, log_det = np.linalg.slogdet(z)
    assert sign > 0
    return 0.5 * log_det


def assert_metric(pairs: tuple[tuple[int, int], ...], masses: list[float], positions: np.ndarray) -> None:
    configurations = positions + 0.03 * np.random.default_rng(0).normal(size=(5, *positions.shape))
    found = ConstraintMetric(pairs, masses)(torch.tensor(configurations)).numpy()
    expected = [dense_half_log_det(pairs, masses, x) for x in configurations]
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-9)
    assert np.ptp(expected) > 1e-4  # it does depend on the configuration


@pytest.mark.parametrize("sequence", ["ACE-ALA-NME", "ACE-TRP-NME", "ACE-LYS-NME"])
@pytest.mark.parametrize("hydrogen_mass", [None, 4.0], ids=["masses", "repartitioned masses"])
@pytest.mark.parametrize("constraints", [app.HBonds, app.AllBonds], ids=["HBonds", "AllBonds"])
def test_the_metric_is_the_dense_determinant(sequence: str, hydrogen_mass: float | None, constraints: object) -> None:
    molecule = peptide(sequence, forcefield=VACUUM, constraints=constraints, hydrogen_mass=hydrogen_mass)
    assert_metric(pairs_of(molecule.system), masses_of(molecule.system), molecule.positions)


@pytest.mark.parametrize("n_outer", [2, 3, 4, 6])
def test_stars_with_unequal_masses_are_the_dense_determinant(n_outer: int) -> None:
    rng = np.random.default_rng(n_outer)
    masses = [*rng.uniform(1.0, 40.0, n_outer).tolist(), 7.0]
    assert_metric(tuple((i, n_outer) for i in range(n_outer)), masses, rng.normal(size=(n_outer + 1, 3)))


def test_the_metric_of_a_trimer_is_the_textbook_formula() -> None:
    """det Z = (1/m1 + 1/m2)(1/m2 + 1/m3) - (cos theta / m2)^2."""
    m1, m2, m3 = 12.0, 1.0, 12.0
    metric = ConstraintMetric(((0, 1), (1, 2)), [m1, m2, m3])
    theta = np.linspace(0.1, 3.0, 9)
    positions = np.zeros((9, 3, 3))
    positions[:, 0, 0] = 0.11
    positions[:, 2, 0], positions[:, 2, 1] = 0.15 * np.cos(theta), 0.15 * np.sin(theta)
    expected = 0.5 * np.log((1 / m1 + 1 / m2) * (1 / m2 + 1 / m3) - (np.cos(theta) / m2) ** 2)
    np.testing.assert_allclose(metric(torch.tensor(positions)).numpy(), expected, rtol=0.0, atol=1e-12)


def test_triangles_and_single_bonds_beside_each_other() -> None:
    pairs = ((0, 1), (1, 2), (0, 2), (2, 3), (4, 5), (6, 7), (6, 8))
    rng = np.random.default_rng(5)
    assert_metric(pairs, rng.uniform(1.0, 30.0, 9).tolist(), rng.normal(size=(9, 3)))


def test_no_constraints_have_no_metric() -> None:
    assert ConstraintMetric((), [1.0, 2.0, 3.0])(torch.zeros(4, 3, 3, dtype=torch.float64)).tolist() == [0.0] * 4


@pytest.mark.parametrize("pairs", [((0, 1), (1, 2)), ((0, 1), (1, 2), (2, 3))], ids=["star", "chain"])
def test_positions_that_are_no_numbers_spoil_only_themselves(pairs: tuple[tuple[int, int], ...]) -> None:
    good = torch.tensor(np.random.default_rng(0).normal(size=(3, 4, 3)))
    metric = ConstraintMetric(pairs, [12.0] * 4)
    bad = good.clone()
    bad[1, 1, 0] = torch.nan
    bad[2] = 0.0
    found = metric(bad)
    assert found[0] == metric(good)[0]
    assert not torch.isfinite(found[1:]).any()


def test_constrained_bonds_and_angles_come_out_exact() -> None:
    """1-3 distances across an angle of the z-matrix between constrained bonds are fixed angles."""
    system, topology, positions = bent_chain(5, constrained=[(0, 1), (1, 2), (2, 3), (3, 4), (1, 3), (0, 2)])
    zmatrix = build_zmatrix(topology)
    constraints = find_constraints(system, zmatrix, topology)
    assert (len(constraints.fixed_bonds), len(constraints.fixed_angles)) == (4, 2)
    features = Features(zmatrix, constraints, zmatrix.own_torsion)
    assert features.n_circular + features.n_linear == 3 * 5 - 6 - 6
    coordinates = InternalCoordinates(zmatrix)
    features.set_reference(coordinates.to_internal(torch.tensor(positions[None])), (0.03, 0.06, 0.05))
    generator = torch.Generator().manual_seed(0)
    circular = torch.randn(50, features.n_circular, generator=generator, dtype=torch.float64)
    linear = torch.randn(50, features.n_linear, generator=generator, dtype=torch.float64)
    x = coordinates.to_cartesian(features.decode(circular, linear)[0]).numpy()
    for index in range(system.getNumConstraints()):
        i, j, distance = system.getConstraintParameters(index)
        np.testing.assert_allclose(np.linalg.norm(x[:, i] - x[:, j], axis=-1), distance._value, rtol=0.0, atol=1e-12)


def test_the_eliminated_coordinates_have_a_constant_jacobian() -> None:
    """What makes a constraint acceptable: ln |det d sigma / d e| is the same in every configuration."""
    system, topology, positions = bent_chain(4, constrained=[(0, 1), (1, 2), (2, 3), (0, 2)])
    zmatrix = build_zmatrix(topology)
    constraints = find_constraints(system, zmatrix, topology)
    coordinates = InternalCoordinates(zmatrix)
    reference = coordinates.to_internal(torch.tensor(positions[None]))

    def sigma(eliminated: torch.Tensor, free_angle: float, torsion: float) -> torch.Tensor:
        bonds, angles = reference.bonds.clone()[0], reference.angles.clone()[0]
        bonds[list(constraints.fixed_bonds)] = eliminated[:3]
        free = ({0, 1} - set(constraints.fixed_angles)).pop()
        angles[list(constraints.fixed_angles)] = eliminated[3:]
        angles[free] = free_angle
        x = coordinates.to_cartesian(Internal(bonds[None], angles[None], torch.full((1, 1), torsion)))[0]
        pairs = torch.tensor(constraints.pairs)
        return (x[pairs[:, 0]] - x[pairs[:, 1]]).norm(dim=-1)

    eliminated = torch.tensor([*constraints.fixed_bonds.values(), *constraints.fixed_angles.values()])
    dets = [
        torch.linalg.slogdet(
            torch.autograd.functional.jacobian(lambda e, a=angle, t=torsion: sigma(e, a, t), eliminated.double())
        ).logabsdet
        for angle, torsion in ((1.5, 0.3), (2.0, -2.0), (2.6, 3.0))
    ]
    assert max(dets) - min(dets) < 1e-10


def test_a_molecule_without_freedom_is_refused() -> None:
    system, topology, positions = bent_chain(3, constrained=[(0, 1), (1, 2), (0, 2)])
    with pytest.raises(ValueError, match="nothing is left to generate"):
        BoltzmannGenerator.from_system(system, topology, 300.0, positions=positions)


def test_a_rigid_triangle_with_every_bond_constrained_is_accepted() -> None:
    """Three constrained bonds of a three-membered ring fix its angle: constant, so not to be refused."""
    topology = topology_of(["C", "C", "C", "H"], [(0, 1), (1, 2), (0, 2), (2, 3)])
    system = openmm.System()
    for _ in range(4):
        system.addParticle(12.0)
    for pair in ((0, 1), (1, 2), (0, 2)):
        system.addConstraint(*pair, 0.15)
    zmatrix = build_zmatrix(topology)
    constraints = find_constraints(system, zmatrix, topology)
    assert list(constraints.fixed_angles.values()) == pytest.approx([np.pi / 3])


def refused(system: openmm.System, topology: app.Topology, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_constraints(system, build_zmatrix(topology), topology)


def test_a_constrained_bond_that_closes_a_ring_is_refused_by_name() -> None:
    molecule = organic(ORGANIC["cyclohexane"])
    system = openmm.System()
    for _ in range(molecule.n_atoms):
        system.addParticle(12.0)
    for first, second in molecule.topology.bonds():
        system.addConstraint(first.index, second.index, 0.15)
    refused(system, molecule.topology, r"MOL1:C\d+ \(atom \d\) - MOL1:C\d+ \(atom \d\).*closes a ring.*HBonds")


def test_proline_with_all_bonds_is_refused_and_with_hydrogen_bonds_is_not() -> None:
    molecule = peptide("ACE-PRO-NME", forcefield=VACUUM, constraints=app.AllBonds)
    refused(molecule.system, molecule.topology, r"PRO2:C\w+ .* - PRO2:C\w+ .*closes a ring")
    molecule = peptide("ACE-PRO-NME", forcefield=VACUUM)
    find_constraints(molecule.system, build_zmatrix(molecule.topology), molecule.topology)


def test_hydrogen_angle_constraints_of_a_peptide_are_refused_by_name() -> None:
    molecule = peptide("ACE-SER-NME", forcefield=VACUUM, constraints=app.HAngles)
    refused(molecule.system, molecule.topology, r":H\w* \(atom \d+\) - .*:H\w* \(atom \d+\).*H-H")


def test_a_1_3_distance_with_a_free_bond_is_refused_by_name() -> None:
    system, topology, _ = bent_chain(4, constrained=[(0, 1), (0, 2)])
    refused(system, topology, r"MOL1:C0 \(atom 0\) - MOL1:C2 \(atom 2\).*free bond")


def test_a_distance_across_the_chain_is_refused() -> None:
    system, topology, _ = bent_chain(5, constrained=[(0, 1), (1, 2), (2, 3), (0, 3)])
    refused(system, topology, r"atom 0.*atom 3")


def test_a_constraint_given_twice_is_refused() -> None:
    system, topology, _ = bent_chain(4, constrained=[(0, 1), (1, 0)])
    refused(system, topology, r"atom 0.*atom 1.*twice")


def test_constraints_that_cannot_close_are_refused() -> None:
    system, topology, _ = bent_chain(4, constrained=[(0, 1), (1, 2)])
    system.addConstraint(0, 2, 0.31)
    refused(system, topology, "does not close")


def test_a_constrained_atom_without_mass_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(0, 1\).*without mass"):
        ConstraintMetric(((0, 1),), [12.0, 0.0, 12.0])
