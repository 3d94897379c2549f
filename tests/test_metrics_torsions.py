from __future__ import annotations

import math
import sys

import mdtraj
import numpy as np
import pytest
from metrics_fixtures import autoregressive, turned, villin_structure
from openmm import app
from scipy.spatial.distance import jensenshannon
from scipy.stats import vonmises

from openmm_bg.analysis import chi_angles, compare_torsions, side_chain_torsions, slow_coordinates
from openmm_bg.analysis.divergences import histogram_divergence, jensen_shannon, total_variation
from openmm_bg.analysis.ensembles import FrameWeights
from openmm_bg.analysis.torsion_distributions import bin_angles
from openmm_bg.systems import peptide

# Side-chain torsions that the standard nomenclature names (IUPAC-IUB, Biochemistry 9, 3471 (1970)).
N_CHI = {"ALA": 0, "ARG": 5, "ASN": 2, "ASP": 2, "GLN": 3, "GLU": 3, "GLY": 0, "LEU": 2, "LYS": 4, "MET": 3, "PHE": 2}
N_CHI |= {"HIS": 2, "PRO": 2, "SER": 1, "THR": 1, "TRP": 2, "VAL": 1}


@pytest.fixture(scope="module")
def valine() -> tuple[app.Topology, np.ndarray]:
    molecule = peptide("ACE-VAL-NME")
    return molecule.topology, molecule.positions


@pytest.fixture(scope="module")
def others() -> app.Topology:
    return peptide("ACE-HIE-ILE-TYR-CYS-ASH-GLH-ARG-NME").topology


def test_villin_has_the_side_chain_torsions_that_its_residues_have() -> None:
    topology, _ = villin_structure()
    torsions = side_chain_torsions(topology)
    for residue in topology.residues():
        names = [torsion.name for torsion in torsions if torsion.residue_index == residue.index]
        standard = "HIS" if residue.name.startswith("HI") else residue.name
        assert names == [f"chi{k + 1}" for k in range(N_CHI[standard])], residue.name
    assert [str(torsion) for torsion in torsions if torsion.in_ring] == ["PRO21 chi1", "PRO21 chi2"]
    symmetric = {(t.residue[:3], t.name) for t in torsions if t.symmetry == 2}
    assert symmetric == {("ASP", "chi2"), ("GLU", "chi3"), ("PHE", "chi2"), ("ARG", "chi5")}
    assert len({torsion.atoms for torsion in torsions}) == len(torsions) == 74


def test_protonated_acids_and_mixed_rings_have_no_symmetry(others: app.Topology) -> None:
    torsions = side_chain_torsions(others)
    found = [(torsion.residue[:3], torsion.name) for torsion in torsions]
    expected = {"HI": 2, "ILE": 2, "TYR": 2, "CYS": 1, "AS": 2, "GL": 3, "ARG": 5}
    assert [sum(name.startswith(start) for name, _ in found) for start in expected] == list(expected.values())
    assert {item for item, t in zip(found, torsions, strict=True) if t.symmetry == 2} == {
        ("TYR", "chi2"),
        ("ARG", "chi5"),
    }
    assert not any(torsion.in_ring for torsion in torsions)


def test_side_chain_angles_are_those_of_mdtraj() -> None:
    topology, x = villin_structure()
    frames = x + np.random.default_rng(1).normal(0.0, 0.02, (5, *x.shape))
    torsions = side_chain_torsions(topology)
    found = chi_angles(frames, torsions)
    trajectory = mdtraj.Trajectory(frames, mdtraj.Topology.from_openmm(topology))
    for name, compute in (("chi1", mdtraj.compute_chi1), ("chi4", mdtraj.compute_chi4)):
        atoms, expected = compute(trajectory, periodic=False)
        columns = [k for k, torsion in enumerate(torsions) if torsion.name == name]
        assert [torsions[k].atoms for k in columns] == [tuple(row) for row in atoms.tolist()]
        assert np.abs(np.angle(np.exp(1j * (found[:, columns] - expected)))).max() < 1e-3


def test_divergences_are_those_of_scipy_and_by_hand() -> None:
    rng = np.random.default_rng(2)
    p, q = rng.dirichlet(np.full(20, 0.3), size=(2, 5))
    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2, axis=1) ** 2)
    apart = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.25, 0.75])
    assert (jensen_shannon(*apart), total_variation(*apart)) == (pytest.approx(1.0), pytest.approx(1.0))
    half = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    assert total_variation(*half) == pytest.approx(0.5)
    assert jensen_shannon(*half) == pytest.approx(0.25 * math.log2(2.0 / 3.0) + 0.25 + 0.5 * math.log2(4.0 / 3.0))
    assert jensen_shannon(p, p).tolist() == [0.0] * 5


def expected_variation(bins: int) -> float:
    """Total variation between binned von Mises distributions about 0 and about 1 rad, by their cumulative functions."""
    edges = np.linspace(-math.pi, math.pi, bins + 1)
    p, q = (np.diff(vonmises.cdf(edges, 2.0, loc=center)) for center in (0.0, 1.0))
    return 0.5 * float(np.abs(p - q).sum())


def test_total_variation_of_von_mises_distributions_is_that_of_quadrature() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = (rng.vonmises(center, 2.0, 20_000)[:, None] for center in (0.0, 1.0))
    weights = FrameWeights.of(20_000, None)
    found = histogram_divergence(bin_angles(ours, 36, weights), bin_angles(theirs, 36, weights), 36)
    assert abs(found.total_variation.value - expected_variation(36)) < 3.5 * found.total_variation.error
    assert found.total_variation_floor.value < 0.05
    edges = np.linspace(-math.pi, math.pi, 37)
    p, q = (np.diff(vonmises.cdf(edges, 2.0, loc=center)) for center in (0.0, 1.0))
    assert found.jensen_shannon.value == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=0.01)


def scores(weights: np.ndarray | None) -> np.ndarray:
    """Deviation of the total variation from the analytic one, in standard errors, of 60 pairs of correlated chains."""
    rng = np.random.default_rng(4)
    expected = 0.5 * abs(math.erf(1.0 / math.sqrt(2.0)))  # of the sign of normal variables about 1 and about 0
    frames = FrameWeights.of(4000, weights)
    found = []
    for _ in range(60):
        angles = [(autoregressive(4000, rng, 0.95) + center)[:, None] for center in (1.0, 0.0)]
        ours, theirs = (bin_angles(np.where(x > 0.0, 1.0, -1.0), 2, frames) for x in angles)
        both = histogram_divergence(ours, theirs, 2, rng=rng).total_variation
        found.append((both.value - expected) / both.error)
    return np.array(found)


def test_errors_of_divergences_cover_the_truth_along_correlated_chains() -> None:
    # The mean square of 60 scores is 1 with a standard deviation of 0.18.
    assert 0.4 < np.mean(scores(None) ** 2) < 1.0 + 3.5 * 0.18


def test_errors_of_divergences_that_ignore_correlation_fail_the_same_check() -> None:
    assert np.mean(scores(np.ones(4000)) ** 2) > 1.0 + 8.0 * 0.18


def test_torsion_of_a_side_chain_is_compared_and_no_other_is_touched(valine) -> None:
    topology, x = valine
    torsion = side_chain_torsions(topology)[0]
    rng = np.random.default_rng(5)
    ours, theirs = (
        turned(topology, x, torsion.atoms, rng.vonmises(center, 2.0, 4000) - chi_angles(x, [torsion])[0])
        for center in (0.0, 1.0)
    )
    ours, theirs = (side + rng.normal(0.0, 0.001, side.shape) for side in (ours, theirs))
    found = compare_torsions(ours, theirs, topology)
    assert list(found.ramachandran) == [torsion.residue]
    assert list(found.chi) == [f"{torsion.residue} chi1"]
    chi = found.chi[str(torsion)].total_variation
    assert abs(chi.value - expected_variation(36)) < 4.0 * chi.error
    backbone = found.ramachandran[torsion.residue]
    assert backbone.total_variation.value < 2.0 * backbone.total_variation_floor.value + 0.02


def test_weights_bring_draws_to_the_reference(valine) -> None:
    topology, x = valine
    torsion = side_chain_torsions(topology)[0]
    rng = np.random.default_rng(6)
    angles = rng.uniform(-math.pi, math.pi, 4000), rng.vonmises(1.0, 2.0, 4000)
    ours, theirs = (turned(topology, x, torsion.atoms, each - chi_angles(x, [torsion])[0]) for each in angles)
    weighted = compare_torsions(ours, theirs, topology, weights=np.exp(2.0 * np.cos(angles[0] - 1.0)))
    assert weighted.chi[str(torsion)].total_variation.value < 0.08
    plain = compare_torsions(ours, theirs, topology).chi[str(torsion)].total_variation
    assert plain.value - 0.08 > 8.0 * plain.error


def test_half_a_turn_of_a_phenyl_ring_is_no_difference() -> None:
    topology, x = villin_structure()
    torsions = {str(torsion): torsion for torsion in side_chain_torsions(topology)}
    rng = np.random.default_rng(7)
    flips = math.pi * rng.integers(0, 2, 400)
    for name, expected in (("PHE6 chi2", 0.0), ("LEU20 chi2", 0.5)):
        ours = turned(topology, x, torsions[name].atoms, flips)
        found = compare_torsions(ours, np.repeat(x[None], 400, axis=0), topology).chi[name]
        assert found.total_variation.value == pytest.approx(expected, abs=0.08)


def switching(topology: app.Topology, x: np.ndarray, n: int, stay: float, rng: np.random.Generator) -> np.ndarray:
    """Frames whose chi1 changes to and fro between two rotamers, each with probability 1 - stay."""
    state = np.cumsum(rng.random(n) > stay) % 2
    torsion = side_chain_torsions(topology)[0]
    frames = turned(topology, x, torsion.atoms, np.radians(120.0) * state)
    return frames + rng.normal(0.0, 0.002, frames.shape)


def test_slow_coordinate_is_the_torsion_that_switches(valine) -> None:
    topology, x = valine
    rng = np.random.default_rng(8)
    chains = [switching(topology, x, 8000, 0.98, rng) for _ in range(2)]
    found = slow_coordinates(chains, topology, lagtime=5)
    expected = -1.0 / math.log(2.0 * 0.98 - 1.0)  # the second eigenvalue of the two-state chain
    assert found.timescales[0] == pytest.approx(expected, rel=0.15)
    assert not found.timescales[1] > 5.0
    coordinates = found.project(chains[0])
    assert coordinates.shape == (8000, 2)
    chi = np.cos(chi_angles(chains[0], side_chain_torsions(topology))[:, 0])
    assert abs(np.corrcoef(coordinates[:, 0], chi)[0, 1]) > 0.99
    projected = np.concatenate([found.project(chain) for chain in chains])
    assert projected.var(axis=0) == pytest.approx(np.ones(2), rel=0.05)
    one_side = chains[1][coordinates_of_state(found, chains[1])]
    lost = found.compare(one_side, chains[0])
    assert lost.total_variation.value > 0.4
    assert found.compare(chains[1], chains[0]).total_variation.value < 2.0 * lost.total_variation_floor.value + 0.05


def coordinates_of_state(found, chain: np.ndarray) -> np.ndarray:
    return found.project(chain)[:, 0] > 0.0


def test_slow_coordinates_need_deeptime_and_say_so(valine, monkeypatch: pytest.MonkeyPatch) -> None:
    topology, x = valine
    monkeypatch.setitem(sys.modules, "deeptime.decomposition", None)
    with pytest.raises(ImportError, match=r"pip install 'openmm-bg\[tica\]'"):
        slow_coordinates(np.repeat(x[None], 20, axis=0), topology, 1)


def test_chains_too_short_for_slow_coordinates_are_refused(valine) -> None:
    topology, x = valine
    frames = np.repeat(x[None], 20, axis=0)
    with pytest.raises(ValueError, match=r"chains of \[20\] frames were given for a lag time of 20"):
        slow_coordinates(frames, topology, 20)
    with pytest.raises(ValueError, match="7 slow coordinates were asked for of 6 cosines and sines"):
        slow_coordinates(frames, topology, 1, n_components=7)
