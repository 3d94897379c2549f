from __future__ import annotations

import json
import math
import tracemalloc

import mdtraj
import networkx as nx
import numpy as np
import pytest
from metrics_fixtures import chain_of, moved_about, villin_structure
from openmm import app, unit
from scipy.spatial.distance import cdist

from openmm_bg.analysis import (
    backbone_atoms,
    clash_counts,
    compare_ensembles,
    inverted_counts,
    radius_of_gyration,
    rmsf,
    side_chain_torsions,
)

SIGMA = 0.01  # nm


def rattled(x: np.ndarray, n: int, seed: int, sigma: float = SIGMA) -> np.ndarray:
    return x + np.random.default_rng(seed).normal(0.0, sigma, (n, *x.shape))


def test_fluctuations_are_those_of_the_noise_wherever_the_molecule_is() -> None:
    topology, x = villin_structure()
    n = 1000
    frames = moved_about(rattled(x, n, 1), np.random.default_rng(2))
    found = rmsf(frames, topology)
    assert np.array_equal(found.atoms, backbone_atoms(topology))
    # A superposition of m atoms takes six of their 3 m degrees of freedom out of the noise.
    expected = SIGMA * math.sqrt(3.0 - 6.0 / 105.0)
    mean_square = np.sqrt(np.mean(found.value**2))
    assert mean_square == pytest.approx(expected, abs=3.5 * expected / math.sqrt(6 * 105 * n))
    # chi square with three degrees of freedom a frame: relative error sqrt(1 / 6 n)
    assert found.error.mean() == pytest.approx(expected / math.sqrt(6 * n), rel=0.15)
    assert found.mean.value == pytest.approx(found.value.mean())
    assert found.mean.error == pytest.approx(expected / math.sqrt(6 * n * 105), rel=0.3)
    without = frames[:, found.atoms].std(axis=0)
    assert without.mean() > 50.0 * expected


def test_fluctuations_about_the_mean_are_those_of_mdtraj() -> None:
    topology, x = villin_structure()
    frames = moved_about(rattled(x, 60, 3, sigma=0.03), np.random.default_rng(4))
    atoms = [atom.index for atom in topology.atoms() if atom.name == "CA"]
    trajectory = mdtraj.Trajectory(frames[:, atoms], None).superpose(mdtraj.Trajectory(x[None, atoms], None))
    for _ in range(10):
        mean = mdtraj.Trajectory(trajectory.xyz.mean(axis=0, keepdims=True), None)
        trajectory.superpose(mean)
    expected = mdtraj.rmsf(trajectory, mean)
    assert rmsf(frames, topology, atoms=atoms).value == pytest.approx(expected, rel=1e-3)


def test_weighted_fluctuations_are_those_of_the_mixture() -> None:
    topology, x = villin_structure()
    frames = np.concatenate([rattled(x, 400, 5, SIGMA), rattled(x, 400, 6, 2.0 * SIGMA)])
    degrees = 3.0 - 6.0 / 105.0
    weighted = rmsf(frames, topology, weights=np.repeat([0.9, 0.1], 400))
    expected = SIGMA * math.sqrt(degrees * (0.9 * 1.0 + 0.1 * 4.0))
    assert abs(weighted.mean.value - expected) < 3.5 * weighted.mean.error + 0.003 * expected
    plain = rmsf(frames, topology, weights=np.ones(800))
    assert abs(plain.mean.value - expected) > 8.0 * plain.mean.error


def test_fluctuations_of_two_atoms_are_refused() -> None:
    topology, x = villin_structure()
    with pytest.raises(ValueError, match="a superposition needs three or more"):
        rmsf(rattled(x, 5, 0), topology, atoms=[0, 1])


def test_radius_of_gyration_is_mass_weighted() -> None:
    topology, x = villin_structure()
    frames = rattled(x, 3, 7)
    mass = np.array([atom.element.mass.value_in_unit(unit.dalton) for atom in topology.atoms()])
    center = np.einsum("a,nad->nd", mass, frames) / mass.sum()
    square = np.sum((frames - center[:, None]) ** 2, axis=2) @ mass / mass.sum()
    assert radius_of_gyration(frames + 30.0, topology) == pytest.approx(np.sqrt(square), rel=1e-4)


def pair(first: str, second: str, distance: float) -> tuple[app.Topology, np.ndarray]:
    """Two atoms that no bonds join."""
    return chain_of([first, second], []), np.array([[[0.0, 0.0, 0.0], [distance, 0.0, 0.0]]])


@pytest.mark.parametrize(
    ("first", "second", "distance", "expected"),
    [("C", "C", 0.299, 1), ("C", "C", 0.301, 0), ("C", "O", 0.281, 1), ("C", "O", 0.283, 0), ("H", "H", 0.199, 1)],
)
def test_atoms_clash_if_their_spheres_overlap(first: str, second: str, distance: float, expected: int) -> None:
    topology, x = pair(first, second, distance)
    assert clash_counts(x, topology).tolist() == [expected]
    assert clash_counts(x, topology, overlap=0.5 * unit.angstrom).tolist() == [0]
    assert clash_counts(x - 0.0, topology, overlap=0.0).tolist() == [1]


@pytest.mark.parametrize(("donor", "expected"), [("N", 0), ("C", 1)])
def test_hydrogen_bonds_are_no_clashes(donor: str, expected: int) -> None:
    topology = chain_of([donor, "H", "O"], [(0, 1)])
    x = np.array([[[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.29, 0.0, 0.0]]])  # H...O 0.19 nm
    assert clash_counts(x, topology).tolist() == [expected]


def test_only_atoms_four_bonds_apart_can_clash() -> None:
    for n_atoms, expected in ((4, 0), (5, 1)):
        topology = chain_of(["C"] * n_atoms, [(k, k + 1) for k in range(n_atoms - 1)])
        x = np.arange(n_atoms)[None, :, None] * np.array([0.5, 0.0, 0.0])
        x[0, -1] = [0.0, 0.25, 0.0]  # near the first atom alone
        assert clash_counts(x, topology).tolist() == [expected]


def test_clashes_of_a_protein_are_those_of_all_pairs() -> None:
    topology, x = villin_structure()
    frames = rattled(x, 3, 8, sigma=0.03)
    atoms = list(topology.atoms())
    graph = nx.Graph((a.index, b.index) for a, b in topology.bonds())
    separation = np.full((len(atoms), len(atoms)), 99)
    for start, lengths in nx.all_pairs_shortest_path_length(graph, cutoff=5):
        separation[start, list(lengths)] = list(lengths.values())
    radii = np.array([{"H": 0.12, "C": 0.17, "N": 0.155, "O": 0.152, "S": 0.18}[a.element.symbol] for a in atoms])
    polar = np.array([a.element.symbol in "NOS" for a in atoms])
    donated = np.array([a.element.symbol == "H" and polar[next(iter(graph[a.index]))] for a in atoms])
    bonded_by_hydrogen = np.outer(donated, polar) | np.outer(polar, donated)
    looked_at = np.triu((separation > 3) & ~bonded_by_hydrogen, 1)
    expected = [int(np.sum((cdist(f, f) < radii[:, None] + radii - 0.04) & looked_at)) for f in frames]
    assert min(expected) > 10
    assert clash_counts(frames, topology).tolist() == expected


def test_inverted_centres_are_counted_against_the_reference() -> None:
    topology, x = villin_structure()
    frames = np.repeat(x[None], 3, axis=0)
    frames[2] *= -1.0  # the mirror image
    atoms = {atom.name: atom.index for atom in topology.atoms() if atom.residue.index == 7}
    frames[1, [atoms["HA"], atoms["CB"]]] = frames[1, [atoms["CB"], atoms["HA"]]]
    n_centers = sum(residue.name != "GLY" for residue in topology.residues()) + sum(
        residue.name == "THR" for residue in topology.residues()
    )
    assert inverted_counts(frames, topology, x[None]).tolist() == [0, 1, n_centers]
    majority = np.concatenate([frames, x[None], x[None]])
    assert inverted_counts(frames, topology, majority).tolist() == [0, 1, n_centers]
    assert inverted_counts(frames, topology, -x[None])[2] == 0


def test_structures_of_another_molecule_are_refused() -> None:
    topology, x = villin_structure()
    for counts in (clash_counts, lambda frames, top: inverted_counts(frames, top, x[None])):
        with pytest.raises(ValueError, match=r"expected \(n, 582, 3\), all finite"):
            counts(np.zeros((2, 581, 3)), topology)
        with pytest.raises(ValueError, match="all finite"):
            counts(np.full((2, 582, 3), np.nan), topology)


def test_equal_ensembles_are_at_the_floor_in_every_metric() -> None:
    topology, x = villin_structure()
    found = compare_ensembles(rattled(x, 200, 9), rattled(x, 200, 10), topology)
    rows = {name: (value, beside) for name, _, value, beside in found.rows()}
    for name in (
        "distance distortion",
        "contact probabilities, mean difference",
        "phi, psi: total variation",
        "phi, psi: Jensen-Shannon divergence",
        "chi: total variation",
        "chi: Jensen-Shannon divergence",
    ):
        value, floor = rows[name]
        assert value.value < 1.3 * floor.value, name
    for name in ("distance distortion per structure", "mean RMSF", "radius of gyration", "clashes per structure"):
        value, reference = rows[name]
        assert abs(value.value - reference.value) < 4.0 * math.hypot(value.error, reference.error), name
    assert rows["inverted centres per structure"][0].value < 0.02  # the noise turns a centre over once in a while
    assert json.loads(json.dumps(found.as_json()))["mean RMSF"]["unit"] == "nm"
    for name in rows:
        assert name in str(found)
    assert len(found.torsions.chi) == len(side_chain_torsions(topology))


def test_another_ensemble_is_above_the_floor_in_every_metric() -> None:
    topology, x = villin_structure()
    ours, theirs = rattled(1.02 * x, 200, 11, 3.0 * SIGMA), rattled(x, 200, 12)
    found = compare_ensembles(ours, theirs, topology)
    for name, _, value, beside in found.rows():
        if name.startswith(("chi", "phi, psi")):  # whose errors are upper bounds
            assert value.value > 2.0 * beside.value, name
        elif name != "inverted centres per structure":
            assert value.value - beside.value > 8.0 * math.hypot(value.error, beside.error), name


def test_small_peptides_have_no_contacts_to_compare() -> None:
    topology, x = villin_structure()
    modeller = app.Modeller(topology, x * unit.nanometer)
    modeller.delete([residue for residue in topology.residues() if residue.index > 2])
    small = np.array(modeller.positions.value_in_unit(unit.nanometer))
    found = compare_ensembles(rattled(small, 50, 13), rattled(small, 50, 14), modeller.topology)
    assert found.contacts is None
    assert len(found.torsions.ramachandran) == 1


@pytest.mark.slow
def test_all_metrics_of_many_frames_take_little_memory() -> None:
    topology, x = villin_structure()
    ours, theirs = rattled(x, 2000, 15), rattled(x, 2000, 16)
    tracemalloc.start()
    compare_ensembles(ours, theirs, topology)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6  # the frames themselves are 56 MB
