"""New structures: found, grouped and judged as a toy molecule with known wells demands."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
from openmm import app, unit
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from openmm_bg.analysis import (
    DwellTime,
    NoveltyVerdict,
    backbone_pairs,
    dwell_time,
    find_novel,
    judge_novelty,
    ramachandran_angles,
)
from openmm_bg.analysis.chirality import stereocentres, wrong_hands
from openmm_bg.analysis.isomers import PeptideBonds
from openmm_bg.analysis.superposition import Superposed, clusters, superposed_atoms
from openmm_bg.systems import peptide
from openmm_bg.training.simulate import simulate

KT = 2.494338785445972  # kJ/mol at 300 K
BOND, ANGLE = 0.153, math.radians(111.0)
KNOWN_WELLS = [(180.0, 5.0), (-60.0, 5.0)]  # degrees, kT

# Four atoms in a chain: what is far from the known wells of the one torsion has to settle at 60 degrees or fall back.
SHORT_RUN = {
    "n_steps": 50_000,
    "stride": 50,
    "n_equilibration_steps": 1000,
    "timestep": 0.001,
    "friction": 5.0,
    "sustained": 0.5,
    "platform": "Reference",
    "seed": 1,
}


def chain_topology() -> app.Topology:
    topology = app.Topology()
    residue = topology.addResidue("BUT", topology.addChain())
    atoms = [topology.addAtom(f"C{i}", app.Element.getBySymbol("C"), residue) for i in range(4)]
    for first, second in pairwise(atoms):
        topology.addBond(first, second)
    return topology


def chain_system(wells: list[tuple[float, float]]) -> openmm.System:
    """A chain whose torsion has wells, (centre in degrees, depth in kT)."""
    system = openmm.System()
    for _ in range(4):
        system.addParticle(14.0)
    bonds, angles = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    for i in range(3):
        bonds.addBond(i, i + 1, BOND, 2e5)
    for i in range(2):
        angles.addAngle(i, i + 1, i + 2, ANGLE, 400.0)
    terms = (f"{-depth * KT}*exp(8*(cos(theta-({math.radians(centre)}))-1))" for centre, depth in wells)
    torsion = openmm.CustomTorsionForce(" + ".join(terms))
    torsion.addTorsion(0, 1, 2, 3, [])
    for force in (bonds, angles, torsion):
        system.addForce(force)
    return system


def chain_at(degrees: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Chains with these torsions, slightly distorted, in random poses; shape (n, 4, 3)."""
    phi = np.radians(degrees)
    x = np.zeros((len(phi), 4, 3))
    x[:, 0] = BOND * np.array([math.cos(ANGLE), math.sin(ANGLE), 0.0])
    x[:, 2] = [BOND, 0.0, 0.0]
    x[:, 3, 0] = BOND * (1.0 - math.cos(ANGLE))
    x[:, 3, 1] = BOND * math.sin(ANGLE) * np.cos(phi)
    x[:, 3, 2] = BOND * math.sin(ANGLE) * np.sin(phi)
    x += rng.normal(scale=0.002, size=x.shape)
    return moved(x, rng)


def moved(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rotations = Rotation.random(len(x), rng=rng).as_matrix()
    return np.einsum("nij,naj->nai", rotations, x) + rng.normal(size=(len(x), 1, 3))


def in_wells(centres: list[float], n: int, rng: np.random.Generator, spread: float = 12.0) -> np.ndarray:
    return chain_at(rng.choice(centres, n) + rng.normal(scale=spread, size=n), rng)


def judged(
    wells: list[tuple[float, float]], elsewhere: float, *, spread: float = 12.0, cutoff: float = 0.01, **options: object
) -> NoveltyVerdict:
    """Verdict on a generator that makes the known wells and, near a torsion of `elsewhere` degrees, something else."""
    rng = np.random.default_rng(0)
    training = in_wells([180.0, -60.0], 2000, rng, spread)
    generated = np.concatenate([in_wells([180.0, -60.0], 50, rng, spread), in_wells([elsewhere], 40, rng, spread=4.0)])
    novel = find_novel(generated, training, chain_topology(), cutoff=cutoff, n_known=2)
    return judge_novelty(novel, chain_system(wells), 300.0, **{**SHORT_RUN, **options})


def test_deep_well_that_is_absent_from_the_training_frames_is_new_and_metastable() -> None:
    verdict = judged([*KNOWN_WELLS, (60.0, 8.0)], 60.0)
    assert len(verdict.metastable) == 1
    assert verdict.sentence.startswith("1 new metastable state")
    found = verdict.metastable[0]
    torsion = mdtraj.compute_dihedrals(mdtraj.Trajectory(found.settled[None], None), [[0, 1, 2, 3]])
    assert np.degrees(torsion[0, 0]) == pytest.approx(60.0, abs=3.0)
    assert found.deviation > 0.01 > found.displacement
    assert found.dwell is not None
    assert verdict.reference is not None
    assert found.dwell.lower > verdict.reference.value / 3.0


@pytest.mark.parametrize("top", [118.0, -116.0])
def test_structure_on_a_barrier_falls_back_and_is_transient(top: float) -> None:
    verdict = judged(KNOWN_WELLS, top)
    assert {found.verdict for found in verdict.clusters} == {"transient"}
    assert verdict.sentence.startswith("None: no generated structure is both new and metastable")
    assert all(found.deviation < 0.01 and found.dwell is None for found in verdict.clusters)


def test_shallow_well_is_left_at_once_and_is_transient() -> None:
    verdict = judged([(180.0, 12.0), (-60.0, 12.0), (60.0, 4.0)], 60.0, n_equilibration_steps=400)
    found = verdict.clusters[0]
    assert found.verdict == "transient"
    assert found.dwell is not None
    assert verdict.reference is not None
    assert found.dwell.upper < verdict.reference.lower / 3.0
    assert found.dwell.n_left == 8


def test_edge_of_a_known_well_is_known() -> None:
    verdict = judged([(180.0, 6.0), (-60.0, 6.0)], 180.0 - 14.0, spread=1.0, cutoff=0.006)
    largest = verdict.clusters[0]
    assert largest.verdict == "known"
    assert verdict.radius > largest.displacement > 0.006 > largest.deviation
    assert not verdict.metastable


def test_nothing_is_metastable_while_known_states_outlive_the_simulations() -> None:
    deep = [(180.0, 12.0), (-60.0, 12.0), (60.0, 12.0)]
    verdict = judged(deep, 60.0, n_steps=10_000)
    assert {found.verdict for found in verdict.clusters} == {"undecided"}
    assert verdict.sentence.startswith("None shown so far")
    assert "longer" in verdict.sentence
    assert verdict.reference is not None
    assert verdict.reference.n_left == 0


def test_generator_of_the_training_distribution_makes_nothing_new() -> None:
    rng = np.random.default_rng(3)
    training = in_wells([180.0, -60.0], 2000, rng)
    novel = find_novel(training[rng.permutation(2000)[:300]], training, chain_topology())
    assert novel.n_far == 0
    verdict = judge_novelty(novel, chain_system(KNOWN_WELLS), 300.0)
    assert verdict.sentence == "None: no generated structure is far from all training frames."


def test_independent_samples_of_the_training_distribution_are_no_farther_than_the_floor() -> None:
    rng = np.random.default_rng(4)
    draw = in_wells([180.0, -60.0], 6000, rng)
    novel = find_novel(draw[:4000], draw[4000:], chain_topology())
    assert novel.floor == pytest.approx(0.01, abs=0.001)
    assert novel.n_far / novel.n_whole <= 0.01 + 3.5 * math.sqrt(0.01 * (1 / 4000 + 1 / 2000))
    # A training set of half as many wells: that check does fail where something is missing.
    half = find_novel(draw[:4000], in_wells([180.0], 2000, rng), chain_topology())
    assert half.n_far / half.n_whole > 0.4


def test_clusters_do_not_depend_on_pose_or_order_of_frames() -> None:
    rng = np.random.default_rng(5)
    training = in_wells([180.0], 500, rng)
    generated = np.concatenate([in_wells([at], n, rng, 3.0) for at, n in ((60.0, 9), (-60.0, 6), (0.0, 4))])
    first = find_novel(generated, training, chain_topology(), cutoff=0.02)
    order = rng.permutation(len(generated))
    shuffled = moved(training, rng)[rng.permutation(500)]
    second = find_novel(moved(generated, rng)[order], shuffled, chain_topology(), cutoff=0.02)
    assert [sorted(c.members) for c in first.clusters] == [list(range(9)), list(range(9, 15)), list(range(15, 19))]
    assert [sorted(order[c.members]) for c in second.clusters] == [sorted(c.members) for c in first.clusters]
    assert [order[c.representative] for c in second.clusters] == [c.representative for c in first.clusters]
    np.testing.assert_allclose(second.deviations, first.deviations[order], atol=1e-5)


def test_mirror_image_is_far() -> None:
    rng = np.random.default_rng(6)
    training = in_wells([60.0], 300, rng)
    novel = find_novel(training[:5] * [1.0, 1.0, -1.0], training, chain_topology())
    assert novel.n_far == 5


def test_deviations_are_those_of_kabsch_in_double_precision() -> None:
    rng = np.random.default_rng(7)
    one, other = rng.normal(scale=0.3, size=(2, 4, 12, 3))
    atoms = np.arange(1, 12)
    found = np.stack([Superposed(one, atoms).from_one(Superposed(other, atoms), k) for k in range(4)], axis=1)
    for i in range(4):
        for k in range(4):
            a, b = (x[atoms] - x[atoms].mean(axis=0) for x in (one[i], other[k]))
            root_sum = Rotation.align_vectors(a, b)[1]
            assert found[i, k] == pytest.approx(root_sum / math.sqrt(11), abs=1e-5)
    np.testing.assert_allclose(Superposed(one, atoms).nearest(Superposed(other, atoms)), found.min(axis=1))


def test_complete_linkage_keeps_clusters_within_the_diameter() -> None:
    points = np.random.default_rng(8).uniform(size=60)
    distances = np.abs(points[:, None] - points)
    found = clusters(distances, diameter=0.1)
    assert sorted(np.concatenate(found)) == list(range(60))
    assert all(np.ptp(points[members]) <= 0.1 for members in found)
    sizes = [len(members) for members in found]
    assert sizes == sorted(sizes, reverse=True)
    for members in found:
        squares = (distances[np.ix_(members, members)] ** 2).sum(axis=1)
        assert squares[0] == squares.min()


def test_broken_structures_are_counted_by_reason_and_left_out() -> None:
    molecule = peptide("ACE-VAL-ALA-NME")
    x = molecule.positions
    names = [f"{a.residue.name}-{a.name}" for a in molecule.topology.atoms()]
    training = x + np.random.default_rng(9).normal(scale=0.003, size=(50, *x.shape))
    generated = np.repeat(x[None], 7, axis=0)
    generated[1, 3, 0] = np.nan
    swapped = [names.index("VAL-CG1"), names.index("VAL-CG2")]
    hydrogens = [[names.index(f"VAL-HG{g}{k}") for k in (1, 2, 3)] for g in (1, 2)]
    generated[3][[*swapped, *hydrogens[0], *hydrogens[1]]] = x[[*swapped[::-1], *hydrogens[1], *hydrogens[0]]]
    generated[4] *= [1.0, 1.0, -1.0]
    generated[5] *= 0.6
    generated[6] += 4.0
    energies = [0.0, 0.0, np.inf, 0.0, 0.0, 0.0, 0.0]
    novel = find_novel(generated, training, molecule.topology, energies=energies)
    assert novel.broken == {
        "positions that are not finite": 1,
        "an energy that is not finite": 1,
        "a centre of the wrong hand": 1,
        "clashes": 1,
    }
    assert np.isfinite(novel.deviations).tolist() == [True, False, False, True, False, False, True]
    assert "7 structures, 4 broken" in novel.summary
    assert "1 with clashes" in novel.summary


def test_stereocentres_are_those_of_chemistry() -> None:
    molecule = peptide("ACE-VAL-ILE-GLY-THR-PRO-NME")
    atoms = list(molecule.topology.atoms())
    found = {f"{atoms[row[0]].residue.name}-{atoms[row[0]].name}" for row in stereocentres(molecule.topology)}
    assert found == {"VAL-CA", "ILE-CA", "ILE-CB", "THR-CA", "THR-CB", "PRO-CA"}
    mirrored = molecule.positions[None] * [1.0, -1.0, 1.0]
    assert wrong_hands(mirrored, molecule.positions[None], molecule.topology) == [6]
    assert wrong_hands(molecule.positions[None], molecule.positions[None], molecule.topology) == [0]


def test_turned_peptide_bonds_that_no_frame_has_are_named() -> None:
    molecule = peptide("ACE-ALA-PRO-NME")
    bonds = PeptideBonds.of(molecule.positions[None], molecule.topology)
    assert bonds.names == ("ALA2", "PRO3", "NME4")
    assert bonds.unseen(molecule.positions) == []
    atoms = [f"{atom.residue.name}-{atom.name}" for atom in molecule.topology.atoms()]
    carbon, nitrogen = (molecule.positions[atoms.index(name)] for name in ("ALA-C", "PRO-N"))
    half_turn = Rotation.from_rotvec(math.pi * (nitrogen - carbon) / np.linalg.norm(nitrogen - carbon))
    behind = [i for i, name in enumerate(atoms) if name[:3] in ("PRO", "NME")]
    turned = molecule.positions.copy()
    turned[behind] = half_turn.apply(turned[behind] - carbon) + carbon
    assert bonds.unseen(turned) == ["cis peptide bond before PRO3"]
    both = PeptideBonds.of(np.stack([molecule.positions, turned]), molecule.topology)
    assert both.unseen(turned) == []
    assert PeptideBonds.of(turned[None], molecule.topology).unseen(molecule.positions) == [
        "trans peptide bond before PRO3"
    ]


def test_backbone_is_compared_in_peptides_and_all_heavy_atoms_in_small_molecules() -> None:
    long, short = peptide("YGGFM").topology, peptide("ACE-ALA-NME").topology
    assert len(superposed_atoms(long)) == 15
    assert len(superposed_atoms(short)) == 10
    with pytest.raises(ValueError, match="there are 22 atoms"):
        superposed_atoms(short, [0, 1, 2, 22])


# Dwell times


def censored(rng: np.random.Generator, mean: float, n: int, limit: float) -> tuple[np.ndarray, np.ndarray]:
    times = rng.exponential(mean, n)
    return np.minimum(times, limit), times <= limit


@pytest.mark.parametrize(("n_copies", "limit"), [(8, 10.0), (8, 2.0), (20, 0.5)])
def test_intervals_of_censored_dwell_times_cover_the_truth(n_copies: int, limit: float) -> None:
    rng = np.random.default_rng(10)
    n, sigma = 4000, math.sqrt(0.05 * 0.95 / 4000)
    right = wrong = 0
    for _ in range(n):
        times, left = censored(rng, 1.0, n_copies, limit)
        found = DwellTime.of(times, left)
        right += found.lower <= 1.0 <= found.upper
        uncensored = DwellTime.of(times, np.ones(n_copies, dtype=bool))  # the mutant: the end of watching is an exit
        wrong += uncensored.lower <= 1.0 <= uncensored.upper
    assert right / n >= 0.95 - 4.0 * sigma
    if limit <= 0.5:
        assert wrong / n < 0.95 - 8.0 * sigma


def test_estimate_from_censored_times_is_consistent_and_knows_when_nothing_left() -> None:
    times, left = censored(np.random.default_rng(11), 3.0, 20_000, 1.0)
    found = DwellTime.of(times, left)
    assert abs(found.value - 3.0) < 3.5 * found.value / math.sqrt(found.n_left)
    assert times.mean() < 1.0
    nothing = DwellTime.of([5.0, 5.0], [False, False])
    assert (nothing.value, nothing.upper) == (math.inf, math.inf)
    assert nothing.lower == pytest.approx(20.0 / chi2.ppf(0.975, 2))
    with pytest.raises(ValueError, match="one of each"):
        DwellTime.of([1.0], [True, False])


def test_survival_of_censored_copies_is_exponential() -> None:
    rng = np.random.default_rng(12)
    drawn, limits = rng.exponential(1.0, 20_000), rng.uniform(0.0, 3.0, 20_000)
    times, share = DwellTime.of(np.minimum(drawn, limits), drawn <= limits).survival()
    at = np.searchsorted(times, [0.5, 1.0, 2.0]) - 1
    np.testing.assert_allclose(share[at], np.exp([-0.5, -1.0, -2.0]), atol=0.02)


def test_copy_leaves_at_the_first_of_enough_frames_outside() -> None:
    stays, visits = [0.0] * 10, [0.0, 2.0, 0.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0]
    late = [0.0] * 8 + [2.0, 2.0]
    found = dwell_time([np.array(copy) for copy in (stays, visits, late)], 1.0, interval=0.5, n_sustained=3)
    np.testing.assert_allclose(found.times, [4.0, 1.75, 4.0])  # an exit in the last two frames cannot be told
    assert found.left.tolist() == [False, True, False]
    with pytest.raises(ValueError, match="takes 11"):
        dwell_time([np.array(stays)], 1.0, n_sustained=11)


def test_dwell_times_from_frames_are_unbiased() -> None:
    rng = np.random.default_rng(13)
    exits = rng.exponential(20.0, 3000)
    copies = [np.where(np.arange(1, 41) > exit_time, 2.0, 0.0) for exit_time in exits]
    found = dwell_time(copies, 1.0, interval=0.1, n_sustained=4)
    assert abs(found.value - 2.0) < 3.5 * found.value / math.sqrt(found.n_left)


# Simulations


def test_interrupted_run_goes_on_to_the_same_result(tmp_path: Path) -> None:
    options = {"n_steps": 2000, "n_copies": 2}
    whole = judged([*KNOWN_WELLS, (60.0, 8.0)], 60.0, **options)
    calls = []

    def interrupt(done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == 23:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judged([*KNOWN_WELLS, (60.0, 8.0)], 60.0, folder=tmp_path, progress=interrupt, **options)
    assert 0 < calls[-1][0] < calls[-1][1]
    calls.clear()
    resumed = judged([*KNOWN_WELLS, (60.0, 8.0)], 60.0, folder=tmp_path, progress=lambda *a: calls.append(a), **options)
    assert calls[0][0] > 0
    for one, other in zip(whole.clusters, resumed.clusters, strict=True):
        np.testing.assert_array_equal(one.settled, other.settled)
        assert one.verdict == other.verdict
        assert (one.dwell is None) == (other.dwell is None)
        if one.dwell is not None and other.dwell is not None:
            np.testing.assert_array_equal(one.dwell.times, other.dwell.times)
    assert resumed.radius == whole.radius


def test_longer_run_extends_what_is_in_the_folder(tmp_path: Path) -> None:
    deep = [(180.0, 12.0), (-60.0, 12.0), (60.0, 12.0)]
    short = judged(deep, 60.0, n_steps=2000, n_copies=2, folder=tmp_path)
    calls: list[tuple[int, int]] = []
    longer = judged(deep, 60.0, n_steps=4000, n_copies=3, folder=tmp_path, progress=lambda *a: calls.append(a))
    assert calls[0][0] >= 0.3 * calls[0][1]
    assert calls[-1][0] == calls[-1][1]
    assert longer.watched == pytest.approx(short.watched + 2.0)
    assert longer.reference is not None
    assert len(longer.reference.times) == 3


def test_no_time_leaves_all_undecided_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    verdict = judged(KNOWN_WELLS, 60.0, max_seconds=0.0)
    assert {found.verdict for found in verdict.clusters} == {"undecided"}
    assert verdict.known == [None, None]
    judged(KNOWN_WELLS, 60.0, n_steps=2000, n_copies=1, folder=tmp_path)
    damaged = next(tmp_path.glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        judged(KNOWN_WELLS, 60.0, n_steps=2000, n_copies=1, folder=tmp_path)


def test_dynamics_that_blows_up_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="smaller timestep"):
        judged(KNOWN_WELLS, 60.0, timestep=0.05)


def test_clusters_beyond_the_largest_are_said_not_to_be_simulated() -> None:
    rng = np.random.default_rng(14)
    training = in_wells([180.0], 300, rng)
    generated = np.concatenate([in_wells([60.0], 5, rng, 2.0), in_wells([-60.0], 3, rng, 2.0)])
    novel = find_novel(generated, training, chain_topology(), cutoff=0.02, n_known=1)
    assert len(novel.clusters) == 2
    verdict = judge_novelty(
        novel, chain_system(KNOWN_WELLS), 300.0 * unit.kelvin, max_clusters=1, **{**SHORT_RUN, "n_steps": 2000}
    )
    assert verdict.n_not_simulated == 1
    assert "1 smaller cluster" in verdict.sentence


def test_arguments_out_of_range_are_refused() -> None:
    rng = np.random.default_rng(15)
    training = in_wells([180.0], 300, rng)
    topology = chain_topology()
    with pytest.raises(ValueError, match="training frames"):
        find_novel(training, training[:3], topology)
    with pytest.raises(ValueError, match="cutoff"):
        find_novel(training, training, topology, cutoff=-0.1)
    with pytest.raises(ValueError, match="energies have shape"):
        find_novel(training, training, topology, energies=[1.0])
    with pytest.raises(ValueError, match="atoms"):
        find_novel(training[:, :3], training, topology)
    novel = find_novel(in_wells([60.0], 3, rng), training, topology)
    with pytest.raises(ValueError, match="multiple of the stride"):
        judge_novelty(novel, chain_system(KNOWN_WELLS), 300.0, n_steps=1001, stride=100)
    with pytest.raises(ValueError, match="particles"):
        judge_novelty(novel, openmm.System(), 300.0)
    with pytest.raises(ValueError, match="sustained time"):
        judge_novelty(novel, chain_system(KNOWN_WELLS), 300.0, n_steps=1000, n_equilibration_steps=2000)


@pytest.mark.slow
def test_state_of_positive_phi_that_dynamics_did_not_reach_in_alanine_dipeptide_is_metastable() -> None:
    molecule = peptide("ACE-ALA-NME")
    training = simulate(molecule, 300.0, n_steps=100_000, stride=100, n_chains=2, platform="Reference", seed=1)
    frames = training.positions.reshape(-1, molecule.n_atoms, 3)
    pairs = backbone_pairs(molecule.topology)
    phi = ramachandran_angles(frames, pairs)[0][:, 0]
    assert np.all(phi < 0.0)
    nitrogen, carbon = pairs[0].phi[1:3]
    behind = [a.index for a in molecule.topology.atoms() if a.index > carbon]
    turned = frames[::25].copy()
    for x, angle in zip(turned, math.radians(60.0) - phi[::25], strict=True):
        axis = x[carbon] - x[nitrogen]
        rotation = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis))
        x[behind] = rotation.apply(x[behind] - x[carbon]) + x[carbon]
    generated = np.concatenate([frames[:50], turned])
    novel = find_novel(generated, frames, molecule.topology, n_known=1)
    verdict = judge_novelty(
        novel, molecule.system, 300.0, n_steps=75_000, n_copies=16, max_clusters=3, platform="Reference", seed=1
    )
    (found,) = verdict.metastable
    phi, psi = np.degrees(ramachandran_angles(found.settled, pairs))
    assert 40.0 < phi[0] < 80.0
    assert -60.0 < psi[0] < 60.0
    assert found.isomers == []
    assert found.dwell is not None
    assert verdict.reference is not None
    assert found.dwell.lower > verdict.reference.value / 3.0
