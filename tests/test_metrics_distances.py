from __future__ import annotations

import math
import tracemalloc

import mdtraj
import numpy as np
import pytest
from metrics_fixtures import autoregressive, chain_of, villin_structure
from openmm import app, unit

from openmm_bg.analysis import Weights, contact_difference, contact_map, distance_distortion, structure_distortion
from openmm_bg.analysis.distances import backbone_atoms
from openmm_bg.analysis.ensembles import Ensemble, FrameWeights
from openmm_bg.analysis.feature_means import Features, mean_absolute_difference

BREATH = 0.01  # relative change of all distances, one standard deviation


def triangle() -> tuple[app.Topology, np.ndarray]:
    """N, CA and C of one residue with the distances 3, 4 and 5 angstrom."""
    return chain_of(["N", "CA", "C"], [(0, 1), (1, 2)]), np.array([[0.3, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.4, 0.0]])


def breathing(amplitudes: np.ndarray) -> np.ndarray:
    """Frames of the triangle, larger by BREATH times an amplitude."""
    return triangle()[1] * (1.0 + BREATH * amplitudes)[:, None, None]


def test_distortion_of_a_triangle_is_that_counted_by_hand() -> None:
    topology, x = triangle()
    frames = np.repeat(x[None], 8, axis=0)
    wider = frames * 1.1
    found = distance_distortion(wider, frames, topology)
    assert found.value.value == pytest.approx(0.4)  # 10 % of the mean of 3, 4 and 5
    assert found.per_structure.value == pytest.approx(0.4)
    assert found.floor.value == found.per_structure_floor.value == 0.0
    assert math.isnan(found.value.error)  # frames that never change tell of no error
    assert structure_distortion(wider, frames, topology) == pytest.approx(np.full(8, 0.4))


def test_distances_of_a_protein_are_those_of_mdtraj() -> None:
    topology, x = villin_structure()
    rng = np.random.default_rng(1)
    ours, theirs = (x * scale + rng.normal(0.0, 0.02, (40, *x.shape)) for scale in (1.01, 1.0))
    atoms = backbone_atoms(topology)
    assert len(atoms) == 105
    pairs = np.transpose(np.triu_indices(105, 1))
    distances = [
        10.0 * mdtraj.compute_distances(mdtraj.Trajectory(side[:, atoms], None), pairs, periodic=False)
        for side in (ours, theirs)
    ]
    means = [side.mean(axis=0) for side in distances]
    halves = [side.mean(axis=0) for side in (distances[1][:20], distances[1][20:])]
    found = distance_distortion(ours, theirs, topology)
    assert found.value.value == pytest.approx(np.abs(means[0] - means[1]).mean(), rel=1e-5)
    assert found.floor.value == pytest.approx(np.abs(halves[0] - halves[1]).mean(), rel=1e-5)
    per_structure = np.abs(distances[0] - means[1]).mean(axis=1)
    assert found.per_structure.value == pytest.approx(per_structure.mean(), rel=1e-5)
    assert structure_distortion(ours, theirs, topology) == pytest.approx(per_structure, rel=1e-5)
    assert found.per_structure_floor.value == pytest.approx(np.abs(distances[1][20:] - halves[0]).mean(), rel=1e-5)


def test_input_may_be_a_quantity_a_trajectory_or_weighted_samples() -> None:
    topology, _ = triangle()
    frames = breathing(np.linspace(-1.0, 1.0, 40))
    reference = breathing(np.linspace(-2.0, 2.0, 40))
    expected = distance_distortion(frames, reference, topology).per_structure.value
    as_quantity = distance_distortion(frames * 10.0 * unit.angstrom, reference, topology)
    assert as_quantity.per_structure.value == pytest.approx(expected)
    trajectory = mdtraj.Trajectory(frames, mdtraj.Topology.from_openmm(topology))
    assert distance_distortion(trajectory, reference, topology).per_structure.value == pytest.approx(expected, rel=1e-4)
    samples = np.concatenate([frames, np.full((1, 3, 3), np.nan)])
    log_weights = np.append(np.full(40, -math.log(40)), -np.inf)
    weighted = Weights(log_weights, 300.0, np.zeros(41), samples)
    assert distance_distortion(weighted, reference, topology).per_structure.value == pytest.approx(expected)
    with pytest.raises(ValueError, match="have weights already"):
        distance_distortion(weighted, reference, topology, weights=np.ones(41))


def standard_scores(weights: np.ndarray | None) -> np.ndarray:
    """Deviation from the true difference in standard errors, of 60 pairs of correlated chains of three features."""
    sizes = np.array([3.0, -4.0, 5.0])
    features = Features(lambda x: x[:, :, 0] * sizes, 3, 3)
    rng = np.random.default_rng(2)
    scores = []
    for _ in range(60):
        chains = (np.repeat(autoregressive(2000, rng)[:, None, None] + shift, 3, axis=1) for shift in (2.0, 0.0))
        ours, theirs = (Ensemble(chain, FrameWeights.of(2000, weights)) for chain in chains)
        found = mean_absolute_difference(ours, theirs, features)
        scores.append((found.value - 8.0) / found.error)
    return np.array(scores)


def test_errors_of_distortions_cover_the_truth_along_correlated_chains() -> None:
    scores = standard_scores(None)
    # The mean square of 60 normal scores is 1 with a standard deviation of 0.18; the errors are cautious by design.
    assert 0.5 < np.mean(scores**2) < 1.0 + 3.5 * 0.18


def test_errors_that_ignore_correlation_fail_the_same_check() -> None:
    scores = standard_scores(np.ones(2000))  # weighted frames count as independent
    assert np.mean(scores**2) > 1.0 + 8.0 * 0.18


def test_weighted_frames_have_the_averages_of_the_target() -> None:
    topology, _ = triangle()
    rng = np.random.default_rng(3)
    ours, theirs = rng.standard_normal((2, 5000))
    # Weights exp(s) turn a standard normal into one about 1: the distortion is 1 % of 4 A.
    found = distance_distortion(breathing(ours), breathing(theirs), topology, weights=np.exp(ours)).value
    assert abs(found.value - 0.04) < 3.5 * found.error
    assert found.error == pytest.approx(0.04 * math.sqrt((2.0 * math.e + 1.0) / 5000), rel=0.25)
    without = distance_distortion(breathing(ours), breathing(theirs), topology).value
    assert abs(without.value - 0.04) > 8.0 * without.error


def test_per_structure_distortion_is_that_of_a_normal_distribution() -> None:
    topology, _ = triangle()
    rng = np.random.default_rng(4)
    found = distance_distortion(*(breathing(rng.standard_normal(5000)) for _ in range(2)), topology)
    expected = 0.04 * math.sqrt(2.0 / math.pi)
    for estimate in (found.per_structure, found.per_structure_floor):
        assert abs(estimate.value - expected) < 3.5 * estimate.error
    assert found.value.value < 3.0 * found.floor.value + 3.5 * found.value.error


def test_distances_take_little_memory() -> None:
    topology, x = villin_structure()
    atoms = backbone_atoms(topology)
    backbone = app.Modeller(topology, x * unit.nanometer)
    backbone.delete([atom for atom in topology.atoms() if atom.index not in set(atoms.tolist())])
    frames = x[atoms] + np.random.default_rng(5).normal(0.0, 0.01, (2000, 105, 3))
    tracemalloc.start()
    distance_distortion(frames, frames[::-1], backbone.topology)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6  # all distances of both at once: 175 MB


def test_contacts_are_those_of_mdtraj() -> None:
    topology, x = villin_structure()
    frames = x + np.random.default_rng(6).normal(0.0, 0.03, (30, *x.shape))
    found = contact_map(frames, topology)
    trajectory = mdtraj.Trajectory(frames, mdtraj.Topology.from_openmm(topology))
    distances, pairs = mdtraj.compute_contacts(trajectory, found.pairs, scheme="closest-heavy", periodic=False)
    assert np.array_equal(pairs, found.pairs)
    assert found.probability == pytest.approx((distances < 0.45).mean(axis=0))
    assert 0.0 < found.probability.mean() < 0.5
    matrix = found.matrix(35)
    assert np.isnan(matrix[10, 12])
    assert np.array_equal(matrix, matrix.T, equal_nan=True)
    assert matrix[tuple(found.pairs[7])] == found.probability[7]


def test_difference_of_contacts_is_the_mean_over_pairs() -> None:
    """Four residues of one carbon: 0 and 3 touch in a third of the frames of one ensemble, and never in the other."""
    topology = chain_of(["C"] * 4, [(0, 1), (1, 2), (2, 3)], residues=[0, 1, 2, 3])
    far = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.5, 0.0]])
    near = far.copy()
    near[3, 1] = 0.4
    rng = np.random.default_rng(7)
    inside = rng.random(3000) < 1.0 / 3.0
    ours, theirs = np.where(inside[:, None, None], near, far), np.repeat(far[None], 3000, axis=0)
    only = contact_difference(ours, theirs, topology)
    assert only.value.value == pytest.approx(inside.mean())
    assert only.floor.value == 0.0
    all_pairs = contact_difference(ours, theirs, topology, minimum_separation=1)
    assert all_pairs.value.value == pytest.approx(inside.mean() / 6.0)
    both = contact_difference(ours, ours[::-1], topology, cutoff=4.5 * unit.angstrom)
    assert both.value.value == 0.0
    assert both.floor.value == pytest.approx(abs(inside[:1500].mean() - inside[1500:].mean()))
    assert both.floor.error == pytest.approx(math.sqrt(2.0 / 9.0 / 1500 * 2.0), rel=0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :2], "positions of 2 atoms were given; the topology has 3"),
        (lambda x: x[:3], "3 frames that count were given; at least 4"),
        (lambda x: np.where(np.arange(len(x))[:, None, None] == 5, np.nan, x), "first is frame 5"),
        (lambda x: x[0], "expected \\(n, n_atoms, 3\\)"),
    ],
)
def test_frames_that_cannot_be_used_are_refused(change, message: str) -> None:
    topology, _ = triangle()
    frames = breathing(np.linspace(-1.0, 1.0, 20))
    for arguments in ((change(frames), frames), (frames, change(frames))):
        with pytest.raises(ValueError, match=message):
            distance_distortion(*arguments, topology)


@pytest.mark.parametrize("weights", [np.ones(19), np.full(20, -1.0), np.zeros(20), np.full(20, np.nan)])
def test_weights_that_are_none_are_refused(weights: np.ndarray) -> None:
    topology, _ = triangle()
    frames = breathing(np.linspace(-1.0, 1.0, 20))
    with pytest.raises(ValueError, match=r"weights of shape .* give one for each"):
        distance_distortion(frames, frames, topology, weights=weights)


def test_molecules_without_backbone_or_contacts_are_refused() -> None:
    topology = chain_of(["C", "O", "H"], [(0, 1), (1, 2)])
    frames = breathing(np.linspace(-1.0, 1.0, 20))
    with pytest.raises(ValueError, match="no residue of the topology has the atoms N, CA and C"):
        distance_distortion(frames, frames, topology)
    with pytest.raises(ValueError, match="residues 3 apart were asked for in a molecule of 1 residues"):
        contact_map(frames, topology)
