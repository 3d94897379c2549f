"""Targeted free energies against quadrature, pymbar, and mutants that must fail."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import openmm
import pytest
from openmm import unit
from small_molecules import CHAIN, SmallMolecule, kB
from training_fixtures import MOLECULE, SMALL, frames

from openmm_bg.analysis.free_energy_result import FreeEnergyResult
from openmm_bg.analysis.states import EnergyState, GeneratorState
from openmm_bg.analysis.targeted import mapped_energies, targeted_free_energy
from openmm_bg.analysis.timeseries import quiet_pymbar
from openmm_bg.density import FloatArray
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.testing import GaussianDensity
from openmm_bg.training import maps
from openmm_bg.training.map_training import train_map
from openmm_bg.training.maps import FlowMap, Mapped

with quiet_pymbar():
    import pymbar

TRIMER = SmallMolecule((15.0, 14.0, 15.0), CHAIN[:2], bond_spring=2e4, angle_spring=60.0)
LIGHT = SmallMolecule((20.0, 2.0, 20.0), CHAIN[:2], bond_spring=None, angle_spring=30.0)


@dataclass(frozen=True)
class Pair:
    """Two states of one molecule."""

    a: SmallMolecule
    b: SmallMolecule
    kelvin_a: float = 300.0
    kelvin_b: float = 300.0

    @property
    def exact(self) -> float:
        """f_B - f_A by quadrature."""
        return free_energy_of(self.b, self.kelvin_b) - free_energy_of(self.a, self.kelvin_a)

    def states(self) -> tuple[EnergyState, EnergyState]:
        return state("A", self.a, self.kelvin_a), state("B", self.b, self.kelvin_b)

    def samples(self, n: int, seed: int) -> tuple[FloatArray, FloatArray]:
        return exact_samples(self.a, self.kelvin_a, n, seed), exact_samples(self.b, self.kelvin_b, n, seed + 1)


PAIRS = {
    "springs": Pair(TRIMER, replace(TRIMER, bond_spring=6e4, angle_spring=200.0)),
    "temperatures": Pair(TRIMER, TRIMER, 300.0, 600.0),
    "torsion": Pair(MOLECULE, replace(MOLECULE, torsion=(1, -1.5, 6.0), angle_spring=200.0)),
    "constrained": Pair(LIGHT, replace(LIGHT, angle_spring=200.0, angle=1.6)),
}


@cache
def state(name: str, molecule: SmallMolecule, kelvin: float) -> EnergyState:
    return EnergyState(name, SystemPotential(molecule.system(), platform="Reference", n_workers=1), kelvin)


def angle_density(molecule: SmallMolecule, grid: FloatArray, kelvin: float) -> FloatArray:
    """Not normalised; with constraints the metric is in it."""
    density = np.sin(grid) * np.exp(-0.5 * molecule.angle_spring * (grid - molecule.angle) ** 2 / (kB * kelvin))
    if molecule.constrained:
        n = len(grid)
        positions = molecule.positions(np.full((n, 2), molecule.length), grid[:, None], np.zeros((n, 0)))
        density = density * np.exp(molecule.half_log_det_z(positions))
    return density


def free_energy_of(molecule: SmallMolecule, kelvin: float) -> float:
    """-ln of the configurational integral modulo pose: bonds, angles and torsions are independent here."""
    kt = kB * kelvin
    angle = np.linspace(0.0, np.pi, 20001)
    value = -(molecule.n_atoms - 2) * np.log(np.trapezoid(angle_density(molecule, angle, kelvin), angle))
    if not molecule.constrained:
        bond = np.linspace(0.02, 0.4, 20001)
        boltzmann = np.exp(-0.5 * molecule.bond_spring * (bond - molecule.length) ** 2 / kt)
        value -= (molecule.n_atoms - 1) * np.log(np.trapezoid(bond**2 * boltzmann, bond))
    if molecule.n_atoms == 4:
        torsion = np.linspace(-np.pi, np.pi, 20001)
        periodicity, phase, k = molecule.torsion
        boltzmann = np.exp(-k * (1.0 + np.cos(periodicity * torsion - phase)) / kt)
        value -= np.log(np.trapezoid(boltzmann, torsion))
    return float(value)


def exact_samples(molecule: SmallMolecule, kelvin: float, n: int, seed: int) -> FloatArray:
    if not molecule.constrained:
        return frames(n, molecule, seed, kelvin)[0]
    grid = np.linspace(0.0, np.pi, 20001)
    cumulative = np.cumsum(angle_density(molecule, grid, kelvin))
    angles = np.interp(np.random.default_rng(seed).random(n) * cumulative[-1], cumulative, grid)
    return molecule.positions(np.full((n, 2), molecule.length), angles[:, None], np.zeros((n, 0)))


@cache
def flow_map(name: str) -> FlowMap:
    """A poor map: of generators fitted for a moment, the source's to samples of both states."""
    pair = PAIRS[name]
    fitted = []
    soft, stiff = pair.samples(500, 100)
    for data in (np.stack([soft, stiff]), stiff[None]):
        generator = BoltzmannGenerator.from_system(
            pair.a.system(), pair.a.topology(), 300.0, flow=SMALL, positions=pair.a.reference(), seed=len(fitted)
        )
        generator.fit(data, max_steps=40, progress=False)
        fitted.append(generator)
    return FlowMap(*fitted)


def estimate(name: str, seed: int, *, both: bool = True, n: int = 1000, carry: FlowMap | None = None) -> Any:
    pair = PAIRS[name]
    a, b = pair.states()
    samples = pair.samples(n, seed)
    return targeted_free_energy(
        carry or flow_map(name), a, samples[0], b, samples[1] if both else None, independent=["A", "B"], n_bootstrap=0
    )


def deviation(result: FreeEnergyResult, exact: float) -> float:
    found = result.difference("A", "B").reduced
    return abs(found.value - exact) / found.error


@pytest.mark.parametrize("name", list(PAIRS))
@pytest.mark.parametrize("both", [True, False], ids=["BAR", "FEP"])
def test_a_poor_map_gives_the_free_energy_of_quadrature(name: str, both: bool) -> None:
    result = estimate(name, 1, both=both)
    assert result.method == ("targeted BAR" if both else "targeted FEP")
    assert result.difference("A", "B").reduced.error < 0.15
    assert deviation(result, PAIRS[name].exact) < 3.0
    assert not result.verdict.refused


@pytest.mark.parametrize("name", list(PAIRS))
def test_a_mutant_without_the_determinant_is_far_off(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = maps._carry

    def mutant(*arguments: Any) -> Mapped:
        mapped = right(*arguments)
        return Mapped(mapped.positions, np.where(np.isfinite(mapped.log_det), 0.0, -np.inf))

    monkeypatch.setattr(maps, "_carry", mutant)
    result = estimate(name, 1)
    assert deviation(result, PAIRS[name].exact) > 8.0


def test_the_identity_gives_pymbars_bar_and_exponential_averages_of_unmapped_energies() -> None:
    pair = PAIRS["springs"]
    a, b = pair.states()
    x, y = pair.samples(800, 5)
    source = flow_map("springs").source
    result = targeted_free_energy(FlowMap(source, source), a, x, b, y, independent=["A", "B"], n_bootstrap=0)
    forward = b.reduced_potential(x) - a.reduced_potential(x)
    reverse = a.reduced_potential(y) - b.reduced_potential(y)
    expected = pymbar.bar(forward, reverse)
    assert result.difference("A", "B").reduced.value == pytest.approx(expected["Delta_f"], abs=1e-6)
    assert result.asymptotic_errors[0, 1] == pytest.approx(expected["dDelta_f"], rel=0.02)
    energies = mapped_energies(FlowMap(source, source), a, x, b, y)
    np.testing.assert_allclose(energies.u_kn[1, :800] - energies.u_kn[0, :800], forward, atol=1e-4)
    one_way = targeted_free_energy(FlowMap(source, source), a, x, b, independent=["A"], n_bootstrap=0)
    expected = pymbar.exp(forward)
    assert one_way.difference("A", "B").reduced.value == pytest.approx(expected["Delta_f"], abs=1e-6)


def test_a_map_that_was_trained_is_exact_on_samples_it_has_not_seen_and_needs_fewer() -> None:
    pair = PAIRS["springs"]
    a, b = pair.states()
    x, y = pair.samples(2000, 7)
    source = flow_map("springs").source
    trained = FlowMap(source, source)
    train_map(trained, a, x, b, y, n_steps=80, learning_rate=(3e-3, 1e-4), seed=0)
    result = targeted_free_energy(trained, a, x, b, y, independent=["A", "B"])
    assert result.n_k.tolist() == [1000, 1000]  # the other half was for training
    assert deviation(result, pair.exact) < 3.0
    plain = estimate("springs", 7, n=1000, carry=FlowMap(source, source))
    assert result.errors[0, 1] < 0.6 * plain.errors[0, 1]
    seen = x[:1000], y[:1000]
    with pytest.raises(ValueError, match="trained on every sample that was given of 'A'"):
        targeted_free_energy(trained, a, seen[0], b, seen[1])


def test_two_generators_differ_by_nothing_through_any_map() -> None:
    first, second = (flow_map("torsion").source, flow_map("torsion").target)
    a, b = GeneratorState("A", first), GeneratorState("B", second)
    x, y = first.sample(1500, rng=1), second.sample(1500, rng=2)
    foreign = FlowMap(second, first)
    result = targeted_free_energy(foreign, a, x, b, y)
    assert deviation(result, 0.0) < 3.0
    own = mapped_energies(FlowMap(first, second), a, x, b, y)
    np.testing.assert_allclose(own.u_kn[0], own.u_kn[1], atol=5e-3)  # their own map costs no work at all


# ------------------------------------------------------------------------------------------------ harmonic oscillator


@dataclass(frozen=True)
class Well:
    """A particle in three dimensions, energies in kJ/mol at any temperature."""

    spring: float
    n_atoms: int = 1

    def energy(self, positions: FloatArray) -> FloatArray:
        return 0.5 * self.spring * (positions**2).sum((1, 2))

    def sigma(self, kelvin: float = 300.0) -> float:
        return float(np.sqrt(kB * kelvin / self.spring))

    def samples(self, n: int, rng: np.random.Generator, kelvin: float = 300.0) -> FloatArray:
        return rng.normal(0.0, self.sigma(kelvin), (n, 1, 3))


SOFT, HARD = Well(100.0), Well(2000.0)
ORIGIN = np.zeros((1, 3))


def harmonic(carry: FlowMap, n: int, seed: int, *, both: bool = True, n_bootstrap: int = 0) -> FreeEnergyResult:
    rng = np.random.default_rng(seed)
    x, y = SOFT.samples(n, rng), HARD.samples(n, rng)
    a, b = EnergyState("A", SOFT, 300.0), EnergyState("B", HARD, 300.0)
    return targeted_free_energy(
        carry, a, x, b, y if both else None, independent=["A", "B"], n_bootstrap=n_bootstrap, rng=seed
    )


def imperfect() -> FlowMap:
    """A map that squeezes by too little."""
    return FlowMap(GaussianDensity(ORIGIN, SOFT.sigma()), GaussianDensity(ORIGIN, 1.4 * HARD.sigma()))


EXACT = -3.0 * np.log(HARD.sigma() / SOFT.sigma())


def test_the_perfect_map_of_an_oscillator_costs_the_same_work_everywhere() -> None:
    perfect = FlowMap(GaussianDensity(ORIGIN, SOFT.sigma()), GaussianDensity(ORIGIN, HARD.sigma()))
    result = harmonic(perfect, 50, 1)
    assert result.difference("A", "B").reduced.value == pytest.approx(EXACT, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("both", [True, False], ids=["BAR", "FEP"])
def test_the_intervals_of_95_percent_hold_the_truth_in_95_percent_of_all_cases(both: bool) -> None:
    carry = imperfect()
    inside = 0
    for seed in range(200):
        found = harmonic(carry, 150, seed, both=both).difference("A", "B").reduced
        inside += abs(found.value - EXACT) < 1.96 * found.error
    assert 180 <= inside <= 196


def test_energies_are_averages_over_each_state_without_the_determinant() -> None:
    rng = np.random.default_rng(3)
    x, y = SOFT.samples(3000, rng), SOFT.samples(3000, rng, 500.0)
    a, b = EnergyState("A", SOFT, 300.0), EnergyState("B", SOFT, 500.0)
    carry = FlowMap(GaussianDensity(ORIGIN, SOFT.sigma()), GaussianDensity(ORIGIN, 1.1 * SOFT.sigma(500.0)))
    result = targeted_free_energy(carry, a, x, b, y, independent=["A", "B"])
    energy, entropy = result.energy_difference("A", "B"), result.entropy_difference("A", "B")
    assert abs(energy.value - 1.5 * kB * 200.0) < 3.0 * energy.error < 0.5
    assert abs(entropy.value - 1.5 * np.log(500.0 / 300.0)) < 3.0 * entropy.error < 0.2
    assert np.isnan(result.difference("A", "B").temperature)


class Folded(GaussianDensity):
    """A density whose forward pass folds space over: half of what its inverse pass takes does not come back."""

    def from_latent(self, latents: FloatArray) -> FloatArray:
        folded = np.array(latents, dtype=np.float64).reshape(-1, 3)
        folded[:, 0] = np.abs(folded[:, 0])
        return super().from_latent(folded)


def test_a_map_that_reaches_half_of_space_is_exact_in_both_directions_and_short_by_ln_2_in_one() -> None:
    half = FlowMap(GaussianDensity(ORIGIN, SOFT.sigma()), Folded(ORIGIN, 1.4 * HARD.sigma()))
    result = harmonic(half, 4000, 1)
    assert deviation(result, EXACT) < 3.0
    (reach,) = (check for check in result.verdict.checks if check.name == "reach of the map")
    assert reach.status == "warning"
    assert "50." in reach.text or "49." in reach.text
    one_way = harmonic(half, 4000, 1, both=False)
    assert deviation(one_way, EXACT + np.log(2.0)) < 3.0
    assert deviation(one_way, EXACT) > 8.0
    (reach,) = (check for check in one_way.verdict.checks if check.name == "reach of the map")
    assert reach.status == "warning"
    assert "nothing tells" in reach.text


# ---------------------------------------------------------------------------------------------------------- bad input


def test_states_on_another_measure_than_the_map_are_refused_by_name() -> None:
    carry, pair = flow_map("springs"), PAIRS["springs"]
    a, b = pair.states()
    x, y = pair.samples(50, 1)
    rigid = state("rigid", replace(TRIMER, bond_spring=None), 300.0)
    with pytest.raises(ValueError, match="constraint between atoms 0 and 1"):
        targeted_free_energy(carry, a, x, rigid, y)
    with pytest.raises(ValueError, match="3 atoms"):
        targeted_free_energy(carry, a, x, state("longer", MOLECULE, 300.0), y)
    with pytest.raises(ValueError, match="different measures"):
        targeted_free_energy(carry, a, x, GeneratorState("B", GaussianDensity(np.zeros((3, 3)), 0.1)), y)
    with pytest.raises(ValueError, match="have shape"):
        targeted_free_energy(carry, a, x[:, :2], b, y)
    with pytest.raises(ValueError, match="no samples"):
        targeted_free_energy(carry, a, None, b)
    with pytest.raises(ValueError, match="single sample"):
        targeted_free_energy(carry, a, x[:1], b, y)
    with pytest.raises(ValueError, match="declared independent"):
        targeted_free_energy(carry, a, x, b, y, independent=["C"])
    broken = x.copy()
    broken[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match="infinite energy in the very state"):
        targeted_free_energy(carry, a, broken, b, y)


def test_draws_of_a_density_are_no_samples_of_a_potential() -> None:
    carry, pair = flow_map("springs"), PAIRS["springs"]
    a, b = pair.states()
    with pytest.raises(ValueError, match="GeneratorState"):
        targeted_free_energy(carry, a, carry.source.sample(50, rng=1), b, pair.samples(50, 1)[1])


def test_charges_may_differ_between_the_states() -> None:
    pair = PAIRS["springs"]

    def charged(name: str, charge: float) -> EnergyState:
        system = pair.a.system()
        force = openmm.NonbondedForce()
        for q in (charge, -2.0 * charge, charge):
            force.addParticle(q, 0.1, 0.0)
        system.addForce(force)
        return EnergyState(name, SystemPotential(system, platform="Reference", n_workers=1), 300.0 * unit.kelvin)

    source = flow_map("springs").source
    a, b = charged("A", 0.0), charged("B", 0.01)
    x = pair.samples(400, 1)[0]
    forward = targeted_free_energy(FlowMap(source, source), a, x, b, independent=["A"], n_bootstrap=0)
    expected = pymbar.exp(b.reduced_potential(x) - a.reduced_potential(x))["Delta_f"]
    assert forward.difference("A", "B").reduced.value == pytest.approx(expected, abs=1e-6)


def test_several_chains_are_kept_apart_and_correlated_samples_left_out() -> None:
    pair = PAIRS["springs"]
    a, b = pair.states()
    x, y = pair.samples(400, 1)
    repeated = np.repeat(x, 10, axis=0).reshape(4, 1000, 3, 3)
    chains = [y[:200], y[200:]]
    energies = mapped_energies(flow_map("springs"), a, repeated, b, chains)
    assert np.bincount(energies.chains).tolist() == [1000] * 4 + [200] * 2
    result = targeted_free_energy(flow_map("springs"), a, repeated, b, chains)
    assert result.n_k[0] < 800
    assert deviation(result, pair.exact) < 3.5
    with pytest.raises(ValueError, match="no weights of samples"):  # which coordinates would they be of?
        result.mean(np.zeros(int(result.n_k.sum())), "B")
