"""Internal coordinates against independent geometry: round trips, numerical Jacobians, mdtraj, OpenMM."""

from __future__ import annotations

import mdtraj
import networkx as nx
import numpy as np
import openmm
import pytest
import torch
from molecule_fixtures import LINEAR, ORGANIC, bent_chain, cystine, organic, topology_of
from openmm import app
from openmmtools import testsystems
from scipy.spatial.transform import Rotation
from torch.autograd.functional import jacobian

from openmm_bg.coordinates import InternalCoordinates, build_zmatrix
from openmm_bg.coordinates.internal import Internal
from openmm_bg.coordinates.rotatable import rotatable_torsions
from openmm_bg.coordinates.zmatrix import bond_graph
from openmm_bg.systems import MolecularSystem, peptide

RESIDUES = (
    *("ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE"),
    *("LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL"),
)
VACUUM = app.ForceField("amber99sbildn.xml")
TOLERANCE = 1e-9  # nm


def thermal(positions: np.ndarray, n: int = 4, *, seed: int = 0, scale: float = 0.01) -> np.ndarray:
    """Copies of a structure with Gaussian noise, about that of room temperature."""
    return positions + scale * np.random.default_rng(seed).normal(size=(n, *positions.shape))


def superposed(mobile: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`mobile` moved onto `target` by the best proper rotation and translation."""
    rotation, _ = Rotation.align_vectors(target - target.mean(0), mobile - mobile.mean(0))
    return rotation.apply(mobile - mobile.mean(0)) + target.mean(0)


def round_trip(topology: app.Topology, positions: np.ndarray) -> np.ndarray:
    coordinates = InternalCoordinates(build_zmatrix(topology))
    return coordinates.to_cartesian(coordinates.to_internal(torch.tensor(positions))).numpy()


def assert_round_trip(topology: app.Topology, positions: np.ndarray) -> None:
    """The same distances and, after a proper rotation, the same positions: so the same chirality too."""
    for found, expected in zip(round_trip(topology, positions), positions, strict=True):
        np.testing.assert_allclose(superposed(found, expected), expected, rtol=0.0, atol=TOLERANCE)
        pairs = np.random.default_rng(0).integers(len(expected), size=(2, 500))
        np.testing.assert_allclose(
            np.linalg.norm(found[pairs[0]] - found[pairs[1]], axis=-1),
            np.linalg.norm(expected[pairs[0]] - expected[pairs[1]], axis=-1),
            rtol=0.0,
            atol=TOLERANCE,
        )


@pytest.fixture(scope="module")
def alanine() -> MolecularSystem:
    return peptide("ACE-ALA-NME")


@pytest.mark.parametrize("residue", RESIDUES)
def test_every_standard_residue_survives_a_round_trip_and_is_seeded_in_its_backbone(residue: str) -> None:
    molecule = peptide(f"ACE-{residue}-NME", forcefield=VACUUM)
    assert_round_trip(molecule.topology, thermal(molecule.positions))
    atoms = list(molecule.topology.atoms())
    seed = [atoms[i] for i in build_zmatrix(molecule.topology).seed]
    assert [atom.name for atom in seed] == ["N", "CA", "C"]
    assert {atom.residue.name for atom in seed} == {residue}


@pytest.mark.parametrize("name", ORGANIC)
def test_organic_molecules_survive_a_round_trip(name: str) -> None:
    molecule = organic(ORGANIC[name])
    assert_round_trip(molecule.topology, molecule.positions[None])
    assert_round_trip(molecule.topology, thermal(molecule.positions, seed=1))


@pytest.mark.parametrize("name", LINEAR)
def test_linear_groups_survive_a_round_trip_at_thermal_angles(name: str) -> None:
    molecule = organic(LINEAR[name])
    assert_round_trip(molecule.topology, thermal(molecule.positions, seed=2, scale=0.003))


@pytest.mark.parametrize("name", LINEAR)
def test_the_frame_is_never_spanned_by_atoms_in_a_line(name: str) -> None:
    molecule = organic(LINEAR[name])
    a0, a1, a2 = molecule.positions[list(build_zmatrix(molecule.topology).seed)]
    cosine = (a0 - a1) @ (a2 - a1) / (np.linalg.norm(a0 - a1) * np.linalg.norm(a2 - a1))
    assert abs(cosine) < 0.8


def test_a_force_field_ligand_with_fused_rings_survives_a_round_trip() -> None:
    system = testsystems.HostGuestVacuum()
    largest = max(nx.connected_components(nx.Graph([(a.index, b.index) for a, b in system.topology.bonds()])), key=len)
    modeller = app.Modeller(system.topology, system.positions)
    modeller.delete([atom for atom in system.topology.atoms() if atom.index not in largest])
    assert modeller.topology.getNumAtoms() > 100  # cucurbit[7]uril: 14 fused rings closed to a larger one
    positions = np.array(modeller.positions.value_in_unit(openmm.unit.nanometer))
    assert_round_trip(modeller.topology, positions[None])


def test_a_disulfide_and_its_large_ring_survive_a_round_trip() -> None:
    topology, positions = cystine()
    assert_round_trip(topology, thermal(positions))


def test_a_d_amino_acid_is_kept_apart_from_its_mirror_image() -> None:
    molecule = peptide("ACE-ALA-NME")
    mirrored = thermal(molecule.positions) * [1.0, 1.0, -1.0]
    assert_round_trip(molecule.topology, mirrored)
    coordinates = InternalCoordinates(build_zmatrix(molecule.topology))
    left = coordinates.to_internal(torch.tensor(molecule.positions[None]))
    right = coordinates.to_internal(torch.tensor(molecule.positions[None] * [1.0, 1.0, -1.0]))
    torch.testing.assert_close(left.bonds, right.bonds, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(left.angles, right.angles, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(torch.cos(left.torsions), torch.cos(right.torsions), rtol=0.0, atol=1e-10)
    torch.testing.assert_close(torch.sin(left.torsions), -torch.sin(right.torsions), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize(
    ("elements", "bonds"),
    [
        (["O", "H", "H"], [(0, 1), (0, 2)]),
        (["H", "O", "H"], [(2, 1), (1, 0)]),
        (["C", "C", "C"], [(0, 1), (1, 2), (0, 2)]),
        (["N", "H", "H", "H"], [(0, 1), (0, 2), (0, 3)]),
        (["O", "O", "H", "H"], [(0, 1), (0, 2), (1, 3)]),
        (["C", "C", "C", "C"], [(0, 1), (1, 2), (2, 3), (3, 0)]),
        (["C", "H", "H", "H", "H"], [(0, 1), (0, 2), (0, 3), (0, 4)]),
    ],
    ids=["water", "water, other order", "triangle", "ammonia", "peroxide", "square", "methane"],
)
def test_the_smallest_molecules_survive_a_round_trip(elements: list[str], bonds: list[tuple[int, int]]) -> None:
    positions = 0.15 * np.random.default_rng(3).normal(size=(20, len(elements), 3))
    assert_round_trip(topology_of(elements, bonds), positions)


def test_a_chain_of_5000_atoms_survives_a_round_trip() -> None:
    topology = app.Topology()
    chain = topology.addChain()
    before = None
    for _ in range(1000):  # glycine without hydrogens at CA, N-H and O kept: five atoms a residue
        residue = topology.addResidue("GLY", chain)
        n, ca, c, o, h = (
            topology.addAtom(name, app.Element.getBySymbol(name[0]), residue) for name in ("N", "CA", "C", "O", "H")
        )
        for pair in ((n, ca), (ca, c), (c, o), (n, h)):
            topology.addBond(*pair)
        if before is not None:
            topology.addBond(before, n)
        before = c
    # a persistent random walk of the backbone, with the others beside it
    rng = np.random.default_rng(4)
    positions = np.zeros((5000, 3))
    step = np.array([1.0, 0.0, 0.0])
    place = np.zeros(3)
    for residue in range(1000):
        for atom in range(3):
            step = step + 0.8 * rng.normal(size=3)
            step /= np.linalg.norm(step)
            place = place + 0.14 * step
            positions[5 * residue + atom] = place
        positions[5 * residue + 3] = positions[5 * residue + 2] + 0.07 * rng.normal(size=3)
        positions[5 * residue + 4] = positions[5 * residue] + 0.06 * rng.normal(size=3)
    assert build_zmatrix(topology).depth.max() > 1400
    assert_round_trip(topology, positions[None])


@pytest.mark.parametrize("n_atoms", [3, 4, 5, 9])
def test_log_jacobian_is_the_numerical_determinant_with_pose(n_atoms: int) -> None:
    """|d x / d (translation, rotation vector at 0, q)| = J: uniform rotations have unit density at the identity."""
    if n_atoms == 9:
        topology = organic(ORGANIC["ethanol"]).topology
    else:
        topology = bent_chain(n_atoms)[1]
    coordinates = InternalCoordinates(build_zmatrix(topology))
    start = 0.15 * torch.tensor(np.random.default_rng(n_atoms).normal(size=(1, n_atoms, 3)))
    internal = coordinates.to_internal(start)
    q = torch.cat(internal, 1)[0]
    n_bonds, n_angles = n_atoms - 1, n_atoms - 2
    generators = torch.zeros(3, 3, 3, dtype=torch.float64)
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        generators[i, k, j], generators[i, j, k] = 1.0, -1.0

    def posed(variables: torch.Tensor) -> torch.Tensor:
        shift, turn, inner = variables.split([3, 3, len(q)])
        placed = coordinates.to_cartesian(
            Internal(*(part[None] for part in inner.split([n_bonds, n_angles, n_atoms - 3])))
        )[0]
        rotation = torch.matrix_exp(torch.einsum("i,ijk->jk", turn, generators))
        return (placed @ rotation.T + shift).flatten()

    matrix = jacobian(posed, torch.cat([torch.zeros(6, dtype=torch.float64), q]))
    assert matrix.shape == (3 * n_atoms, 3 * n_atoms)
    expected = torch.linalg.slogdet(matrix).logabsdet
    torch.testing.assert_close(coordinates.log_jacobian(internal)[0], expected, rtol=0.0, atol=1e-9)


def test_torsions_have_the_sign_of_mdtraj_and_openmm(alanine: MolecularSystem) -> None:
    zmatrix = build_zmatrix(alanine.topology)
    positions = thermal(alanine.positions, 1)
    torsions = InternalCoordinates(zmatrix).to_internal(torch.tensor(positions)).torsions[0].numpy()
    quadruples = np.column_stack([zmatrix.references[:, ::-1], zmatrix.atoms])
    trajectory = mdtraj.Trajectory(positions, mdtraj.Topology.from_openmm(alanine.topology))
    absolute = mdtraj.compute_dihedrals(trajectory, quadruples)[0]
    expected = absolute - np.where(
        (zmatrix.first_sibling >= 0) & ~zmatrix.own_torsion, absolute[zmatrix.first_sibling], 0.0
    )
    np.testing.assert_allclose(np.exp(1j * torsions), np.exp(1j * expected), rtol=0.0, atol=2e-5)  # mdtraj: float32

    system = openmm.System()
    for _ in range(alanine.n_atoms):
        system.addParticle(1.0)
    for group, quadruple in enumerate(quadruples[zmatrix.own_torsion]):
        force = openmm.CustomTorsionForce("theta")
        force.addTorsion(*(int(i) for i in quadruple), [])
        force.setForceGroup(group)
        system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions[0])
    theta = [
        context.getState(getEnergy=True, groups={group}).getPotentialEnergy()._value
        for group in range(system.getNumForces())
    ]
    np.testing.assert_allclose(np.exp(1j * torsions[zmatrix.own_torsion]), np.exp(1j * np.array(theta)), atol=1e-7)


def test_siblings_share_references_and_store_differences(alanine: MolecularSystem) -> None:
    zmatrix = build_zmatrix(alanine.topology)
    graph = bond_graph(alanine.topology)
    placed = set(zmatrix.seed)
    for row, atom in enumerate(zmatrix.atoms):
        p1, p2, p3 = (int(p) for p in zmatrix.references[row])
        assert graph.has_edge(atom, p1)
        assert graph.has_edge(p1, p2)
        assert {p1, p2, p3} <= placed
        first = zmatrix.first_sibling[row]
        if first >= 0:
            assert first <= row
            assert (zmatrix.references[first] == zmatrix.references[row]).all()
        else:
            assert p1 == zmatrix.seed[1]
        placed.add(int(atom))
    assert placed == set(graph)
    # one torsion of its own per bond that turns: every parent but a1 has one
    owners = zmatrix.references[zmatrix.own_torsion, 0]
    assert len(owners) == len(set(owners.tolist())) == len(set(zmatrix.references[:, 0].tolist()) - {zmatrix.seed[1]})


def test_turning_a_first_sibling_turns_the_whole_group(alanine: MolecularSystem) -> None:
    zmatrix = build_zmatrix(alanine.topology)
    coordinates = InternalCoordinates(zmatrix)
    internal = coordinates.to_internal(torch.tensor(alanine.positions[None]))
    names = {atom.name: atom.index for atom in alanine.topology.atoms() if atom.residue.name == "ALA"}
    row = next(
        row
        for row in np.flatnonzero(zmatrix.own_torsion)
        if zmatrix.references[row, :2].tolist() == [names["CB"], names["CA"]]
    )
    turned = internal._replace(torsions=internal.torsions.clone())
    turned.torsions[0, row] += 0.7
    before, after = coordinates.to_cartesian(internal)[0], coordinates.to_cartesian(turned)[0]
    methyl = [names[name] for name in ("HB1", "HB2", "HB3")]
    others = [i for i in range(alanine.n_atoms) if i not in methyl]
    torch.testing.assert_close(before[others], after[others], rtol=0.0, atol=1e-12)
    assert (before[methyl] - after[methyl]).norm(dim=-1).min() > 0.05
    torch.testing.assert_close(torch.pdist(before[methyl]), torch.pdist(after[methyl]), rtol=0.0, atol=1e-12)


def test_rotatable_torsions_are_the_textbook_ones() -> None:
    """Side chains and backbone turn, rings and what the force field holds planar do not, impropers do not count."""

    def turning(molecule: MolecularSystem) -> set[frozenset[str]]:
        zmatrix = build_zmatrix(molecule.topology)
        atoms = list(molecule.topology.atoms())
        rows = np.flatnonzero(rotatable_torsions(zmatrix, molecule.system, molecule.topology))
        return {
            frozenset(f"{atoms[i].residue.name}:{atoms[i].name}" for i in zmatrix.references[row, :2]) for row in rows
        }

    caps = {frozenset(("ACE:C", "ACE:CH3")), frozenset(("NME:C", "NME:N"))}

    def bonds(residue: str, *pairs: str) -> set[frozenset[str]]:
        return caps | {frozenset(f"{residue}:{name}" for name in pair.split("-")) for pair in pairs}

    assert turning(peptide("ACE-TYR-NME")) == bonds("TYR", "N-CA", "CA-C", "CA-CB", "CB-CG", "CZ-OH")
    assert turning(peptide("ACE-PRO-NME")) == bonds("PRO", "CA-C")
    assert turning(peptide("ACE-ASN-NME")) == bonds("ASN", "N-CA", "CA-C", "CA-CB", "CB-CG")
    stiff = peptide("ACE-ALA-NME")
    names = {f"{atom.residue.name}:{atom.name}": atom.index for atom in stiff.topology.atoms()}
    torsions = next(force for force in stiff.system.getForces() if isinstance(force, openmm.PeriodicTorsionForce))
    improper = [names[name] for name in ("NME:N", "ALA:CA", "ALA:C", "ALA:O")]
    torsions.addTorsion(*improper, 2, np.pi, 44.0)  # Amber's X-X-C-O
    assert turning(stiff) == bonds("ALA", "N-CA", "CA-C", "CA-CB")


@pytest.mark.parametrize(
    ("elements", "bonds", "message"),
    [
        (["C", "O"], [(0, 1)], "has 2 atoms"),
        (["C", "C", "C", "C"], [(0, 1), (2, 3)], "2 molecules"),
        (["C", "C", "C", "Na"], [(0, 1), (1, 2)], r"of \[3, 1\] atoms"),
        (["C", "C", "C"], [], "createStandardBonds"),
    ],
)
def test_what_is_not_one_molecule_is_refused(elements: list[str], bonds: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_zmatrix(topology_of(elements, bonds))
