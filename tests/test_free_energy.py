from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from exactness_fixtures import (
    BENT,
    BUTANE,
    FREE_ANGLE,
    REPARTITIONED,
    RIGID_ANGLE,
    RIGID_CHAIN,
    RIGID_TRIMER,
    WithoutJacobian,
    WithoutMetric,
    scrambled,
    shifted,
)
from free_energy_fixtures import KT, Oscillator, covered, exact_samples, line_oscillators, log_partition_function
from openmm import unit
from small_molecules import TEMPERATURE, SmallMolecule

from openmm_bg import EnergyState, GeneratorState, SystemPotential, free_energy
from openmm_bg.analysis import evaluate, mbar
from openmm_bg.analysis.free_energy_result import FreeEnergyResult
from openmm_bg.analysis.states import STANDARD_VOLUME
from openmm_bg.testing import GaussianDensity

POSE = math.log(8.0 * math.pi**2 * STANDARD_VOLUME)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def potential(molecule: SmallMolecule) -> SystemPotential:
    return SystemPotential(molecule.system(), platform="Reference", n_workers=1)


def by_generator(molecule: SmallMolecule, generator, n: int = 6000, seed: int = 1) -> FreeEnergyResult:
    states = [GeneratorState("flow", generator), EnergyState("target", potential(molecule), TEMPERATURE)]
    return free_energy(states, {"flow": generator.sample(n, rng=seed)}, n_bootstrap=0)


# --------------------------------------------------------------------------------------------------- analytic truths


def test_differences_of_oscillators_on_a_line_are_those_of_the_formula() -> None:
    energies, truth, _ = line_oscillators([1, 3, 9, 27], [0.0, 0.3, 0.6, 0.9], [800] * 4, np.random.default_rng(1))
    result = free_energy(energies)
    scores = (result.f_k - (truth - truth[0]))[1:] / result.errors[0, 1:]
    assert np.all(np.abs(scores) < 3.0)
    assert not result.verdict.refused


def test_a_normalised_gaussian_gives_the_absolute_free_energy_of_an_oscillator() -> None:
    well = Oscillator(300.0, 0.05)
    density = GaussianDensity(np.zeros((1, 3)), 1.3 * well.sigma)
    result = free_energy(
        [GeneratorState("gaussian", density), EnergyState("well", well, TEMPERATURE)],
        {"gaussian": density.sample(4000, rng=2), "well": well.samples(1000, np.random.default_rng(3))},
    )
    found = result.absolute("well")
    assert found.reduced.value == pytest.approx(well.free_energy, abs=3.0 * found.reduced.error)
    assert found.reduced.error < 0.03
    assert found.volume is None  # the density has a place in space
    assert found.measure == "dx in nm^3, without momenta"
    assert found.value.value_in_unit(unit.kilojoule_per_mole) == pytest.approx(KT * found.reduced.value)


def test_intervals_of_95_percent_hold_the_truth_of_oscillators() -> None:
    rng = np.random.default_rng(4)
    found = []
    for _ in range(200):
        energies, truth, _ = line_oscillators([1, 4, 10], [0.0, 0.5, 0.5], [150, 100, 0], rng)
        solution = mbar.solve(energies)
        found.append((solution.f_k[2], solution.errors[0, 2]))
    values, errors = np.array(found).T
    assert 0.90 <= covered(values, errors, truth[2] - truth[0]) <= 0.98
    assert abs(values.mean() - (truth[2] - truth[0])) < 3.5 * values.std() / math.sqrt(200)


@pytest.mark.slow
def test_intervals_of_95_percent_hold_the_absolute_free_energy_of_a_trimer() -> None:
    generator, n = shifted(BENT), 400
    states = [GeneratorState("flow", generator), EnergyState("target", potential(BENT), TEMPERATURE)]
    samples = {
        "flow": generator.sample(200 * n, rng=5),
        "target": exact_samples(BENT, 200 * n, np.random.default_rng(6)),
    }
    pool = evaluate(states, samples, decorrelate=False, independent=["target"])
    found = []
    for repeat in range(200):
        rows = n * repeat + np.arange(n)
        result = free_energy(pool.take(np.concatenate([rows, 200 * n + rows])), n_bootstrap=0)
        estimate = result.absolute("target", modulo_pose=True).reduced
        found.append((estimate.value, estimate.error, result.verdict.refused))
    values, errors, refused = np.array(found).T
    truth = -log_partition_function(BENT)
    assert 0.90 <= covered(values, errors, truth) <= 0.98
    assert abs(values.mean() - truth) < 3.5 * values.std() / math.sqrt(200)
    assert refused.mean() < 0.03  # false alarms


@pytest.mark.slow
def test_errors_of_correlated_chains_are_calibrated_and_without_decorrelation_are_not() -> None:
    rng = np.random.default_rng(7)
    honest, careless, bootstrapped = [], [], []
    for repeat in range(200):
        energies, truth, _ = line_oscillators([1, 4], [0.0, 0.5], [2000, 2000], rng, tau=4.0)
        for chosen, found in ((energies.decorrelate(), honest), (energies, careless)):
            solution = mbar.solve(chosen)
            found.append((solution.f_k[1], solution.errors[0, 1]))
        if repeat < 20:  # of whole chains, in blocks
            replicates = [mbar.solve_resample(energies, solution.f_k, c)[1] for c in energies.resamples(100, rng)]
            bootstrapped.append(np.std(replicates, ddof=1))
    truth = truth[1] - truth[0]
    assert 0.90 <= covered(*np.array(honest).T, truth) <= 0.98
    assert covered(*np.array(careless).T, truth) < 0.75
    assert np.mean(bootstrapped) == pytest.approx(np.std(np.array(careless)[:, 0]), rel=0.15)


# --------------------------------------------------------------------------------- absolute free energies of molecules


@pytest.mark.parametrize("build", [shifted, scrambled])
@pytest.mark.parametrize("molecule", [FREE_ANGLE, BENT, RIGID_TRIMER], ids=["free", "bent", "constrained"])
def test_three_atoms_have_the_absolute_free_energy_of_quadrature(molecule: SmallMolecule, build) -> None:
    result = by_generator(molecule, build(molecule))
    modulo_pose, full = result.absolute("target", modulo_pose=True), result.absolute("target")
    truth = -log_partition_function(molecule)
    assert modulo_pose.reduced.value == pytest.approx(truth, abs=3.0 * modulo_pose.reduced.error)
    assert full.reduced.value == pytest.approx(truth - POSE, abs=3.0 * full.reduced.error)
    assert full.volume is not None
    assert full.volume.value_in_unit(unit.nanometer**3) == pytest.approx(1.66054, abs=1e-5)
    assert ("constraints" in full.measure) == molecule.constrained


@pytest.mark.parametrize(
    "molecule", [BUTANE, RIGID_CHAIN, REPARTITIONED, RIGID_ANGLE], ids=["free", "rigid", "repartitioned", "rigid angle"]
)
def test_four_atoms_with_a_torsion_have_the_absolute_free_energy_of_quadrature(molecule: SmallMolecule) -> None:
    estimate = by_generator(molecule, shifted(molecule), 5000).absolute("target", modulo_pose=True).reduced
    assert estimate.value == pytest.approx(-log_partition_function(molecule), abs=3.0 * estimate.error)
    assert estimate.error < 0.1


def test_the_pose_volume_is_rotation_and_translation() -> None:
    # V for the first atom, 4 pi b^2 for the second, 2 pi b sin(theta) for the third; b^2 and sin are in the shape.
    result = by_generator(BENT, shifted(BENT), 500)
    small, large = (result.absolute("target", volume=v).reduced.value for v in (1.0, math.e))
    assert small - large == pytest.approx(1.0)
    modulo = result.absolute("target", modulo_pose=True).reduced.value
    assert modulo - small == pytest.approx(math.log(4.0 * math.pi * 2.0 * math.pi))


@pytest.mark.parametrize(
    ("molecule", "kind"), [(BENT, WithoutJacobian), (RIGID_TRIMER, WithoutMetric)], ids=["Jacobian", "det Z"]
)
def test_a_density_without_jacobian_or_metric_misses_by_far(molecule: SmallMolecule, kind) -> None:
    estimate = by_generator(molecule, shifted(molecule, kind)).absolute("target", modulo_pose=True).reduced
    assert abs(estimate.value + log_partition_function(molecule)) > 8.0 * estimate.error


def test_without_the_jacobian_of_a_constrained_angle_the_free_energy_is_off_by_a_constant() -> None:
    generator = shifted(RIGID_ANGLE)
    generator._log_constraint_jacobian = 0.0
    estimate = by_generator(RIGID_ANGLE, generator, 2000).absolute("target", modulo_pose=True).reduced
    b, theta = RIGID_ANGLE.length, RIGID_ANGLE.angle
    constant = math.log(b**2 * math.sin(theta) / (2.0 * b * math.sin(0.5 * theta)))
    assert estimate.value == pytest.approx(-log_partition_function(RIGID_ANGLE) - constant, abs=3.5 * estimate.error)
    assert abs(constant) > 8.0 * estimate.error


# ------------------------------------------------------------------------------------------ averages, energy, entropy


def test_averages_and_surfaces_at_an_unsampled_state_are_exact_within_errors() -> None:
    energies, _, x = line_oscillators([1, 4, 2], [0.0, 0.5, 0.2], [4000, 4000, 0], np.random.default_rng(8))
    result = free_energy(energies, n_bootstrap=60)
    mean, square = result.mean(x, "K=2"), result.mean((x - 0.2) ** 2, "K=2")
    assert mean.value == pytest.approx(0.2, abs=3.0 * mean.error)
    assert square.value == pytest.approx(0.5, abs=3.0 * square.error)
    assert 0.0 < square.error < 0.03
    profile = result.surface(x, state="K=2", bins=12, range=(-0.7, 1.1))
    centres = 0.5 * (profile.edges[1:] + profile.edges[:-1])
    difference = profile.free_energy - KT * (centres - 0.2) ** 2
    deviation = (difference - np.average(difference, weights=profile.error**-2)) / profile.error
    assert np.sqrt(np.mean(deviation**2)) == pytest.approx(1.0, abs=0.6)


def test_a_surface_of_two_coordinates_needs_no_chain() -> None:
    well = Oscillator(300.0)
    rng = np.random.default_rng(9)
    states = [EnergyState("a", well, TEMPERATURE), EnergyState("b", Oscillator(400.0), TEMPERATURE)]
    result = free_energy(states, {"a": well.samples(5000, rng)}, n_bootstrap=20)
    width = well.sigma
    surface = result.surface(
        lambda r: r[:, 0, 0], lambda r: r[:, 0, 1], state="b", bins=6, ranges=((-width, width), (-width, width))
    )
    centres = 0.5 * (surface.x_edges[1:] + surface.x_edges[:-1])
    truth = 200.0 * (centres[:, None] ** 2 + centres[None, :] ** 2)
    difference = surface.free_energy - truth
    deviation = (difference - np.average(difference, weights=surface.error**-2)) / surface.error
    assert np.sqrt(np.mean(deviation**2)) == pytest.approx(1.0, abs=0.5)


def test_energy_and_entropy_of_a_well_at_two_temperatures_are_those_of_equipartition() -> None:
    well = Oscillator(300.0)
    hot = 360.0
    rng = np.random.default_rng(10)
    states = [EnergyState("cold", well, TEMPERATURE), EnergyState("hot", well, hot)]
    samples = {"cold": well.samples(4000, rng), "hot": well.samples(4000, rng) * math.sqrt(hot / TEMPERATURE)}
    result = free_energy(states, samples)
    energy, entropy = result.energy_difference("cold", "hot"), result.entropy_difference("cold", "hot")
    assert energy.value == pytest.approx(1.5 * KT * (hot / TEMPERATURE - 1.0), abs=3.0 * energy.error)
    assert entropy.value == pytest.approx(1.5 * math.log(hot / TEMPERATURE), abs=3.0 * entropy.error)
    assert energy.error < 0.15
    with pytest.raises(ValueError, match="no common temperature"):
        _ = result.difference("cold", "hot").value


# -------------------------------------------------------------------------------------------------------------- output


@pytest.fixture(scope="module")
def result() -> FreeEnergyResult:
    energies, _, _ = line_oscillators([1, 2], [0.0, 0.2], [500, 500], np.random.default_rng(11))
    return free_energy(energies, n_bootstrap=20)


def test_json_names_units_and_holds_no_nan(result: FreeEnergyResult) -> None:
    found = json.loads(result.to_json())
    assert found["differences_kT"][0][1] == pytest.approx(result.f_k[1])
    assert found["temperatures_K"] == [TEMPERATURE, TEMPERATURE]
    assert found["verdict"] == "believe"
    assert {check["name"] for check in found["checks"]} >= {"overlap", "estimators agree", "both halves agree"}


def test_data_frame_has_a_row_for_each_state(result: FreeEnergyResult) -> None:
    frame = result.to_dataframe()
    assert list(frame.index) == ["K=1", "K=2"]
    assert frame.loc["K=2", "free_energy_kT"] == pytest.approx(result.f_k[1])
    assert frame.loc["K=2", "error_kT"] == pytest.approx(result.errors[0, 1])


def test_differences_carry_units(result: FreeEnergyResult) -> None:
    difference = result.difference("K=1", "K=2")
    assert difference.value.value_in_unit(unit.kilojoule_per_mole) == pytest.approx(KT * result.f_k[1])
    assert difference.error.value_in_unit(unit.kilojoule_per_mole) == pytest.approx(KT * result.errors[0, 1])
    assert "kJ/mol" in str(difference)
    assert "Believe" in str(result)


def test_the_same_seed_gives_the_same_result(result: FreeEnergyResult) -> None:
    assert result.energies is not None
    again = free_energy(result.energies, n_bootstrap=20)
    np.testing.assert_array_equal(again.bootstrap_f_k, result.bootstrap_f_k)
    other = free_energy(result.energies, n_bootstrap=20, rng=1)
    assert not np.array_equal(other.bootstrap_f_k, result.bootstrap_f_k)


def test_a_result_without_energies_gives_no_averages(result: FreeEnergyResult) -> None:
    with pytest.raises(ValueError, match="no weights of samples"):
        replace(result, energies=None).mean(np.zeros(3), 0)


def test_absolute_free_energies_need_a_known_state(result: FreeEnergyResult) -> None:
    with pytest.raises(ValueError, match="add a GeneratorState"):
        result.absolute(0)


@pytest.mark.parametrize("volume", [0.0, -1.0, math.inf])
def test_an_impossible_volume_is_refused(volume: float) -> None:
    result = by_generator(BENT, shifted(BENT), 200)
    with pytest.raises(ValueError, match="give a positive one"):
        result.absolute("target", volume=volume)
