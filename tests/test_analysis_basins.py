from __future__ import annotations

import math

import mdtraj
import numpy as np
import pytest
from openmm import app

from openmm_bg.analysis.acceptance import acceptance_by_basin, fraction_accepted
from openmm_bg.analysis.basins import (
    BASIN_NAMES,
    RARE_BASIN,
    assign_basins,
    basin_statistics,
    rare_population,
)
from openmm_bg.analysis.dihedrals import backbone_pairs, ramachandran_angles, slowest_pair, torsion_angles
from openmm_bg.analysis.surfaces import free_energy_surface
from openmm_bg.analysis.thermal import thermal_energy
from openmm_bg.analysis.transitions import round_trips
from openmm_bg.systems import peptide

KT = thermal_energy(300.0)


def two_state_chain(n: int, population: float, memory: float, seed: int) -> np.ndarray:
    """phi of a Markov chain that redraws its state with probability 1 - memory: phi = 1 rare, -1.5 otherwise."""
    rng = np.random.default_rng(seed)
    fresh = rng.uniform(size=n) > memory
    fresh[0] = True
    drawn = np.where(rng.uniform(size=n) < population, 1.0, -1.5)
    return drawn[np.maximum.accumulate(np.where(fresh, np.arange(n), 0))]


@pytest.mark.parametrize("sequence", ["ACE-ALA-NME", "ACE-GLY-PRO-ALA-NME", "AGPA"])
def test_backbone_torsions_are_those_of_mdtraj(sequence):
    molecule = peptide(sequence)
    pairs = backbone_pairs(molecule.topology)
    positions = molecule.positions + np.random.default_rng(0).normal(scale=0.03, size=(20, molecule.n_atoms, 3))
    trajectory = mdtraj.Trajectory(positions, mdtraj.Topology.from_openmm(molecule.topology))
    by_phi = {tuple(atoms): angles for atoms, angles in zip(*swap(mdtraj.compute_phi(trajectory)), strict=True)}
    by_psi = {tuple(atoms): angles for atoms, angles in zip(*swap(mdtraj.compute_psi(trajectory)), strict=True)}
    phi, psi = ramachandran_angles(positions, pairs)
    assert len(pairs) == len(set(by_phi)) - (sequence == "AGPA")
    for index, pair in enumerate(pairs):
        np.testing.assert_allclose(phi[:, index], by_phi[pair.phi], atol=1e-4)
        np.testing.assert_allclose(psi[:, index], by_psi[pair.psi], atol=1e-4)


def swap(result: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return result[0], result[1].T


def test_molecule_without_backbone_has_no_torsions():
    phi, psi = ramachandran_angles(np.zeros((2, 3, 3)), backbone_pairs(app.Topology()))
    assert phi.shape == psi.shape == (2, 0)


def test_torsion_sign_of_four_points():
    points = np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1]])
    assert torsion_angles(points, [0, 1, 2, 3]) == pytest.approx(math.pi / 2)


def test_slowest_residue_is_found():
    fast, slow = two_state_chain(4000, 0.5, 0.5, 1), two_state_chain(4000, 0.5, 0.98, 2)
    assert slowest_pair(np.column_stack([fast, slow])) == 1


@pytest.mark.parametrize(
    ("phi", "psi", "name"),
    [
        (-150, 155, "beta"),
        (-75, 150, "PII"),
        (-70, -40, "alpha_R"),
        (-80, 70, "PII"),
        (60, 40, "alpha_L"),
        (70, -60, "alpha_L"),
        (170, 170, "beta"),
        (-179, -170, "beta"),
        (160, -20, "alpha_R"),
    ],
)
def test_basins_are_where_the_literature_has_them(phi, psi, name):
    assert BASIN_NAMES[int(assign_basins(math.radians(phi), math.radians(psi)))] == name


def test_basins_partition_the_torus_and_nan_is_marked():
    grid = np.linspace(-math.pi, math.pi, 101)
    labels = assign_basins(*np.meshgrid(grid, grid))
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert assign_basins(math.nan, 0.0) == -1


def test_populations_of_a_chain_cover_the_truth_and_the_mutant_without_blocks_does_not():
    truth, scores, naive = 0.1, [], []
    for seed in range(150):
        phi = two_state_chain(8000, truth, 0.95, seed)
        estimate = rare_population(phi, rng=seed)
        scores.append(abs(estimate.value - truth) / estimate.error)
        naive.append(abs(estimate.value - truth) / math.sqrt(truth * (1 - truth) / len(phi)))
    assert np.mean(np.array(scores) <= 1.0) == pytest.approx(0.683, abs=0.1)
    assert np.mean(np.array(naive) <= 1.0) < 0.3


def test_free_energy_difference_of_independent_weighted_samples_is_the_analytic_one():
    rng = np.random.default_rng(5)
    phi = np.where(rng.uniform(size=20_000) < 0.5, 1.0, -1.2)
    weights = np.where(phi > 0, 0.1, 0.9)
    statistics = basin_statistics(phi, np.full(20_000, 2.5), 300.0, weights=weights)
    assert statistics.populations[RARE_BASIN].value == pytest.approx(0.1, abs=0.003)
    difference = statistics.free_energy_differences[RARE_BASIN]
    assert difference.value == pytest.approx(KT * math.log(9), abs=3 * difference.error)
    # Var ln(odds) of n even draws: 4 / n.
    assert difference.error == pytest.approx(KT * math.sqrt(4 / 20_000), rel=0.2)
    assert sum(estimate.value for estimate in statistics.populations.values()) == pytest.approx(1.0)


def test_basin_never_entered_has_no_error_and_an_infinite_free_energy():
    statistics = basin_statistics(np.full(100, -1.5), np.full(100, 2.5), 300.0)
    assert statistics.populations[RARE_BASIN].value == 0.0
    assert math.isnan(statistics.populations[RARE_BASIN].error)
    assert statistics.free_energy_differences[RARE_BASIN].value == math.inf


def test_angle_that_is_nan_needs_a_weight_of_zero():
    phi, psi = np.array([-1.0, math.nan, 1.0]), np.zeros(3)
    with pytest.raises(ValueError, match="1 samples have a NaN angle and a weight"):
        basin_statistics(phi, psi, 300.0)
    basin_statistics(phi, psi, 300.0, weights=[0.5, 0.0, 0.5])


def test_acceptance_is_told_apart_by_basin_of_origin():
    rng = np.random.default_rng(6)
    origin = rng.integers(2, 4, size=30_000)
    accepted = rng.uniform(size=30_000) < np.where(origin == 3, 0.2, 0.6)
    acceptance = acceptance_by_basin(origin, accepted)
    assert set(acceptance) == {"alpha_R", "alpha_L"}
    assert acceptance["alpha_R"].value == pytest.approx(0.6, abs=0.015)
    assert acceptance["alpha_L"].value == pytest.approx(0.2, abs=0.015)
    assert acceptance["alpha_L"].error == pytest.approx(math.sqrt(0.2 * 0.8 / 15_000), rel=0.25)
    assert acceptance["alpha_L"].n_effective == np.sum(origin == 3)


def test_error_of_an_acceptance_knows_of_long_waits():
    # Waits of 400 proposals on average, between spells of 1600 in which 60 % are accepted.
    def chain(seed: int, n: int = 100_000) -> np.ndarray:
        rng = np.random.default_rng(seed)
        spells = np.column_stack([rng.geometric(1 / 1600, 400), rng.geometric(1 / 400, 400)]).ravel()
        waits = np.repeat(np.arange(800) % 2 == 1, spells)[:n]
        return ~waits & (rng.uniform(size=n) < 0.6)

    estimates = [fraction_accepted(chain(seed), length=256) for seed in range(60)]
    spread = np.std([estimate.value for estimate in estimates], ddof=1)
    assert np.median([estimate.error for estimate in estimates]) == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize("value", [False, True])
def test_error_of_an_acceptance_of_zero_or_one_is_unknown(value):
    assert math.isnan(fraction_accepted(np.full(50_000, value)).error)


def test_error_of_an_acceptance_from_a_few_blocks_is_unknown():
    accepted = np.random.default_rng(0).uniform(size=2000) < 0.5
    assert fraction_accepted(accepted, length=200).error > 0.0
    assert math.isnan(fraction_accepted(accepted, length=256).error)
    accepted[500:1000] = False
    assert math.isnan(fraction_accepted(accepted).error)


def test_round_trips_are_counted_between_the_cores():
    # Through phi = pi and back is no crossing; two crossings are one round trip.
    phi = [-1.0, -3.0, 3.0, -3.0, -1.0, 1.0, 2.0, 3.0, 2.0, -1.0, 1.0, -1.0, 1.0]
    trips = round_trips(phi)
    assert (trips.n_crossings, trips.count) == (5, 2)
    assert math.isnan(trips.upper_bound)


def test_no_crossing_gives_the_rule_of_three():
    trips = round_trips(np.full(50, -1.0), duration=1000.0)
    assert trips.count == 0
    assert trips.upper_bound == pytest.approx(3.0 / 1000.0, rel=0.01)


def test_surface_of_a_chain_has_errors_that_know_its_correlation():
    # One bin a state: the error of ln p of a state is that of its population, divided by it.
    phi = two_state_chain(20_000, 0.3, 0.9, seed=7)
    surface = free_energy_surface(phi, np.zeros(20_000), 300.0, bins=2)
    n_independent = 20_000 / 19.0
    expected = KT * math.sqrt(0.3 * 0.7 / n_independent) / 0.3
    assert surface.error[1, 1] == pytest.approx(expected, rel=0.25)
    assert surface.free_energy[1, 1] == pytest.approx(KT * math.log(7 / 3), abs=4 * expected)
    assert np.isinf(surface.free_energy[0, 0])
    assert surface.free_energy_in_kt.min() == 0.0


def test_surface_without_samples_on_its_grid_is_refused():
    with pytest.raises(ValueError, match="none of the 3 samples lies on the grid"):
        free_energy_surface([5.0] * 3, [0.0] * 3, 300.0, length=1)
