"""A solute that is proposed anew in its solvent: exact, and what its proof needs is missed when it is left out."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import openmm
import pytest
import yaml
from exactness_fixtures import TRIMER, shifted
from openmm import unit
from openmmtools import utils
from openmmtools.states import SamplerState, ThermodynamicState
from openmmtools.testsystems import AlanineDipeptideExplicit
from scipy.special import expit
from small_molecules import TEMPERATURE, SmallMolecule, kB, reference_contexts

from openmm_bg.moves import Annealed, BoltzmannGeneratorMove, CoupledLangevin, Independence, coupling, solvated
from openmm_bg.moves.solute import ELECTROSTATICS, STERICS, coupled_system, solute_system
from openmm_bg.testing import GaussianDensity

KT = kB * TEMPERATURE
COULOMB = 138.935456


@pytest.fixture(autouse=True)
def fresh_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the random numbers of a seeded move independent of the tests that ran before."""
    monkeypatch.setattr("openmm_bg.moves.move._streams", defaultdict(itertools.count))


def score(chain: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> float:
    """Largest deviation, in standard errors, of averages of a chain, (n_blocks, n, k), from weighted draws."""
    blocks = chain.mean(axis=1)
    expected = weights @ reference
    error = np.sqrt(blocks.var(axis=0, ddof=1) / len(blocks) + weights**2 @ (reference - expected) ** 2)
    return float(np.abs((blocks.mean(axis=0) - expected) / error).max())


# ------------------------------------------------------------- a solute of one atom, two solvent atoms, all in wells

SPRING, PLACES = 250.0, np.array([[0.0, 0.0, 0.0], [0.3, 0.0, 0.0], [0.0, 0.3, 0.0]])
CHARGES, SIGMA, EPSILON, MASSES = np.array([0.06, -0.06, 0.04]), 0.25, 0.5, np.array([10.0, 14.0, 6.0])


def wells() -> openmm.System:
    system, well, nonbonded = (
        openmm.System(),
        openmm.CustomExternalForce(f"0.5*{SPRING}*((x-x0)^2+(y-y0)^2+(z-z0)^2)"),
        openmm.NonbondedForce(),
    )
    for name in ("x0", "y0", "z0"):
        well.addPerParticleParameter(name)
    for i in range(3):
        system.addParticle(MASSES[i])
        well.addParticle(i, PLACES[i])
        nonbonded.addParticle(CHARGES[i], SIGMA, EPSILON)
    system.addForce(well)
    system.addForce(nonbonded)
    return system


ALL_PAIRS, SOLVENT_PAIR = ((0, 1), (0, 2), (1, 2)), ((1, 2),)


def interaction(x: np.ndarray, pairs: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Lennard-Jones and Coulomb energy in kT, written out again."""
    energy = np.zeros(len(x))
    for i, j in pairs:
        r = np.linalg.norm(x[:, i] - x[:, j], axis=-1)
        energy += 4 * EPSILON * ((SIGMA / r) ** 12 - (SIGMA / r) ** 6) + COULOMB * CHARGES[i] * CHARGES[j] / r
    return energy / KT


def in_wells(x: np.ndarray, atoms: list[int]) -> np.ndarray:
    """Energy of the wells in kT."""
    energy: np.ndarray = 0.5 * SPRING * ((x - PLACES)[:, atoms] ** 2).sum(axis=(1, 2)) / KT
    return energy


def wells_reference(n: int = 400_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, velocities and weights of independent draws."""
    rng = np.random.default_rng(7)
    x = PLACES + np.sqrt(KT / SPRING) * rng.standard_normal((n, 3, 3))
    v = np.sqrt(KT / MASSES)[:, None] * rng.standard_normal((n, 3, 3))
    weights = np.exp(-interaction(x, ALL_PAIRS))
    return x, v, weights / weights.sum()


def wells_observables(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bounded functions of places, velocities, their products and distances."""
    y = (x - PLACES) / np.sqrt(KT / SPRING)
    w = v / np.sqrt(KT / MASSES)[:, None]
    distances = [
        np.exp(-5.0 * np.linalg.norm(x[..., i, :] - x[..., j, :], axis=-1)) for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    squares = [np.exp(-(values**2).sum(-1) / 3.0) for values in (y, w)]
    return np.concatenate(
        [
            np.tanh(y[..., 0]),
            np.tanh(y[..., 1]),
            *squares,
            np.tanh((y * w).sum(-1)),
            np.tanh(w.sum(-1)),
            np.stack(distances, -1),
        ],
        axis=-1,
    )


def after_some_scans(kernel: Annealed, n_draws: int, n_scans: int = 5) -> tuple[float, BoltzmannGeneratorMove]:
    """Score of states that start as exact and independent draws and are offered a few proposals each."""
    density = GaussianDensity(PLACES[:1] + 0.05, 0.12)
    state, contexts = ThermodynamicState(wells(), TEMPERATURE * unit.kelvin), reference_contexts()
    move = BoltzmannGeneratorMove(density, kernel=kernel, atom_subset=[0], seed=3)
    places, velocities, weights = wells_reference()
    drawn = np.random.default_rng(6).choice(len(weights), n_draws, p=weights)
    x, v = places[drawn], velocities[drawn]
    for i in range(n_draws):
        sampler_state = SamplerState(x[i] * unit.nanometer, v[i] * unit.nanometer / unit.picosecond)
        for _ in range(n_scans):
            move.apply(state, sampler_state, contexts)
        x[i] = sampler_state.positions.value_in_unit(unit.nanometer)
        v[i] = sampler_state.velocities.value_in_unit(unit.nanometer / unit.picosecond)
    return score(wells_observables(x, v)[:, None], wells_observables(places, velocities), weights), move


STEPS = {"timestep": 0.06, "friction": 0.3}  # a third of a radian in the wells, one and a half in a path


@pytest.mark.parametrize("n_draws", [300, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("carried", [False, True], ids=["fresh velocities", "carried velocities"])
@pytest.mark.parametrize("n_proposals", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_bad_density_keeps_the_exact_distribution(n_proposals: int, carried: bool, n_draws: int) -> None:
    kernel = Annealed(n_proposals, 5, CoupledLangevin(**STEPS, carry_velocities=carried), power=1.0)
    found, move = after_some_scans(kernel, n_draws)
    assert 0.1 < move.fraction_accepted < 0.9
    assert found < 3.9  # the largest of 18


class WithoutWork(solvated.SolvatedPaths):
    """Mutant: the importance weight of the path's end."""

    def _log_weights(self, potential: np.ndarray, log_prob: np.ndarray, rest: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(potential), 0.0, -np.inf)


class WithoutFlip(solvated.SolvatedPaths):
    """Mutant: the path of the current state goes on as its velocities do, not back."""

    def _ride(self, positions: np.ndarray, velocities: np.ndarray | None, levels: np.ndarray) -> Any:
        return super()._ride(positions, None if velocities is None else -velocities, levels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutant", "carried"), [(WithoutWork, False), (WithoutFlip, True)], ids=["no work", "no momentum flip"]
)
def test_mutants_are_seen_at_eight_sigma(monkeypatch: pytest.MonkeyPatch, mutant: Any, carried: bool) -> None:
    monkeypatch.setattr("openmm_bg.moves.move.SolvatedPaths", mutant)
    kernel = Annealed(1, 5, CoupledLangevin(**STEPS, carry_velocities=carried), power=1.0)
    found, move = after_some_scans(kernel, 3500)
    assert move.fraction_accepted > 0.1
    assert found > 8.0


def imbalance(n: int) -> float:
    """Standard errors by which works up and down miss Bennett's equation at the free energy by quadrature.

    Of coarse dynamics with much friction, in which every step does shadow work.
    """
    rng, density = np.random.default_rng(9), GaussianDensity(PLACES[:1] + 0.05, 0.12)
    propagation = CoupledLangevin(0.06, 50.0)
    levels = Annealed(1, 5, propagation, power=1.0).levels
    context = openmm.Context(wells(), openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(PLACES)
    coupled = coupling.Coupling(context, [0], propagation, KT, 5, PLACES[:1])
    draws = PLACES + np.sqrt(KT / SPRING) * rng.standard_normal((400_000, 3, 3))
    full, solvent = (np.exp(-interaction(draws, pairs)) for pairs in (ALL_PAIRS, SOLVENT_PAIR))
    free_energy = np.log(solvent.mean() / full.mean()) - 1.5 * np.log(2.0 * np.pi * KT / SPRING)
    upper = draws[rng.choice(len(draws), n, p=full / full.sum())]
    lower = draws[rng.choice(len(draws), n, p=solvent / solvent.sum())]
    lower[:, :1] = density.sample(n, rng=rng).positions
    up = [coupled.ride(x, None, levels[1:-1], rng) for x in lower]
    down = [coupled.ride(x, None, levels[-2:0:-1], rng) for x in upper]

    def work(ends: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Change of potential energy from the lower to the upper ends."""
        uncoupled = interaction(starts, SOLVENT_PAIR) + in_wells(starts, [1, 2]) - density.log_prob(starts[:, :1])
        return interaction(ends, ALL_PAIRS) + in_wells(ends, [0, 1, 2]) - uncoupled

    rest = [np.array([r.kinetic_after - r.kinetic_before - r.heat for r in rides]) / KT for rides in (up, down)]
    work_up = work(np.array([r.positions for r in up]), lower) + rest[0]
    work_down = work(upper, np.array([r.positions for r in down])) - rest[1]
    accepted = expit(free_energy - work_up), expit(work_down - free_energy)
    error = np.hypot(*(np.std(fraction) for fraction in accepted)) / np.sqrt(n)
    return float(abs(np.mean(accepted[0]) - np.mean(accepted[1])) / error)


@pytest.mark.parametrize("n", [1000, pytest.param(8000, marks=pytest.mark.slow)])
def test_works_both_ways_give_the_free_energy_by_quadrature(n: int) -> None:
    assert imbalance(n) < 3.5


def not_palindromic(integrator: openmm.CustomIntegrator) -> None:
    """Mutant: V R O instead of V R O R V."""
    coupling._kick(integrator, 1.0)
    coupling._drift(integrator, 1.0)
    coupling._thermalise(integrator)


@pytest.mark.slow
def test_a_splitting_that_is_not_palindromic_is_seen_at_eight_sigma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coupling, "_add_steps", not_palindromic)
    assert imbalance(8000) > 8.0


# ---------------------------------------------------------- a solute of three atoms, free or rigid, in a periodic box

BOX, CUTOFF = 1.1, 0.5
SOLUTES = {
    "free": SmallMolecule((12.0, 16.0, 2.0), TRIMER, angle_spring=30.0),
    "constrained": SmallMolecule((12.0, 2.0, 12.0), TRIMER, bond_spring=None, angle_spring=30.0),
}


def in_solvent(molecule: SmallMolecule) -> openmm.System:
    """Three Lennard-Jones atoms around the molecule, cut off and switched."""
    system, nonbonded = molecule.system(), openmm.NonbondedForce()
    nonbonded.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    nonbonded.setCutoffDistance(CUTOFF)
    nonbonded.setUseSwitchingFunction(True)
    nonbonded.setSwitchingDistance(0.4)
    nonbonded.setUseDispersionCorrection(False)
    for _ in range(3):
        system.addParticle(20.0)
    for _ in range(6):
        nonbonded.addParticle(0.0, 0.3, 1.5)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        nonbonded.addException(i, j, 0.0, 1.0, 0.0)
    system.addForce(nonbonded)
    system.setDefaultPeriodicBoxVectors(*(BOX * np.eye(3)))
    return system


def solvent_energy(x: np.ndarray) -> np.ndarray:
    """Lennard-Jones with OpenMM's switching function, written out again."""
    energy = np.zeros(x.shape[:-2])
    for i, j in itertools.combinations(range(6), 2):
        if j > 2:
            d = x[..., i, :] - x[..., j, :]
            r = np.linalg.norm(d - BOX * np.round(d / BOX), axis=-1)
            t = np.clip((r - 0.4) / (CUTOFF - 0.4), 0.0, 1.0)
            energy += 6.0 * ((0.3 / r) ** 12 - (0.3 / r) ** 6) * (1.0 - 10 * t**3 + 15 * t**4 - 6 * t**5)
    return energy


def box_reference(molecule: SmallMolecule, n: int = 300_000) -> tuple[np.ndarray, np.ndarray]:
    """Independent draws: the molecule by inverting its exact distributions, the solvent uniform; weights."""
    rng = np.random.default_rng(8)
    coordinates = []
    for i in range(1 if molecule.constrained else 3):
        grid, density = molecule.distribution(i)
        cumulative = np.cumsum(density) - 0.5 * density
        coordinates.append(np.interp(rng.uniform(size=n), cumulative / density.sum(), grid))
    bonds = np.full((n, 2), molecule.length) if molecule.constrained else np.stack(coordinates[:2], -1)
    shapes = molecule.positions(bonds, coordinates[-1][:, None], np.empty((n, 0)))
    x = np.concatenate([shapes, rng.uniform(0.0, BOX, (n, 3, 3))], axis=1)  # orientation is the solvent's
    weights = np.exp(-np.minimum(solvent_energy(x) / KT, 700.0))
    return x, weights / weights.sum()


def box_observables(molecule: SmallMolecule, x: np.ndarray) -> np.ndarray:
    internal = molecule.coordinates(x[..., :3, :])
    energy = solvent_energy(x) / KT
    d = x[..., :3, None, :] - x[..., None, 3:, :]
    r = np.linalg.norm(d - BOX * np.round(d / BOX), axis=-1)
    near = [(r[..., i, :] < 0.35).sum(-1).astype(float) for i in range(3)]
    return np.concatenate([internal, np.stack([energy, np.cos(internal[..., -1]) * energy, *near], -1)], -1)


def redrawn_solvent(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Metropolis steps that offer each solvent atom any place in the box."""
    for atom in (3, 4, 5):
        proposed = x.copy()
        proposed[atom] = rng.uniform(0.0, BOX, 3)
        if -rng.standard_exponential() < (solvent_energy(x) - solvent_energy(proposed)) / KT:
            x = proposed
    return x


@pytest.mark.parametrize("name", ["constrained", pytest.param("free", marks=pytest.mark.slow)])
def test_a_molecule_in_a_box_has_the_distribution_of_independent_draws(name: str) -> None:
    molecule, n_scans = SOLUTES[name], 800
    state = ThermodynamicState(in_solvent(molecule), TEMPERATURE * unit.kelvin)
    others = np.array([[0.5, 0.5, 0.5], [0.0, 0.5, 0.0], [0.5, 0.0, 0.5]])
    start = np.concatenate([molecule.reference(), others])
    sampler_state = SamplerState(start * unit.nanometer, box_vectors=BOX * np.eye(3) * unit.nanometer)
    kernel = Annealed(2, 10, CoupledLangevin(0.004, 2.0), power=1.0)
    move = BoltzmannGeneratorMove(shifted(molecule), kernel=kernel, atom_subset=[0, 1, 2], seed=3)
    contexts, chain, rng = reference_contexts(), [], np.random.default_rng(4)
    for _ in range(n_scans + 20):
        move.apply(state, sampler_state, contexts)
        chain.append(move.last_scan.positions[move.last_scan.chain])
        sampler_state.positions = redrawn_solvent(chain[-1][-1], rng) * unit.nanometer
    assert 0.05 < move.fraction_accepted < 0.9
    reference, weights = box_reference(molecule)
    x = np.reshape(chain[20:], (20, -1, 6, 3))
    assert score(box_observables(molecule, x), box_observables(molecule, reference), weights) < 3.9


# ------------------------------------------------------------------------------------------------------ the Systems


@pytest.fixture(scope="module")
def explicit() -> AlanineDipeptideExplicit:
    return AlanineDipeptideExplicit(hydrogenMass=None)


def energy_of(system: openmm.System, positions: Any, parameters: dict[str, float]) -> float:
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    for name, value in parameters.items():
        context.setParameter(name, value)
    context.setPositions(positions)
    return context.getState(getEnergy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


def test_a_coupled_solute_feels_its_solvent_as_in_the_system_and_an_uncoupled_one_not_at_all() -> None:
    system = wells()
    coupled = coupled_system(system, [0])
    full, none = ({STERICS: level, ELECTROSTATICS: level} for level in (1.0, 0.0))
    rng = np.random.default_rng(1)
    for _ in range(5):
        x = PLACES + 0.05 * rng.standard_normal((3, 3))
        assert energy_of(coupled, x, full) == pytest.approx(energy_of(system, x, {}), abs=1e-6)
        moved = x.copy()
        moved[0] += [0.4, 0.1, 0.0]
        solvent = [energy_of(coupled, y, none) - 0.5 * SPRING * ((y[0] - PLACES[0]) ** 2).sum() for y in (x, moved)]
        assert solvent[0] == pytest.approx(solvent[1], abs=1e-6)


def test_within_an_uncoupled_solute_the_energy_is_that_in_vacuum(explicit: AlanineDipeptideExplicit) -> None:
    atoms = list(range(22))
    coupled = coupled_system(explicit.system, atoms)
    none = {STERICS: 0.0, ELECTROSTATICS: 0.0}
    vacuum = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(explicit.system))
    for force in vacuum.getForces():
        if isinstance(force, openmm.NonbondedForce):
            force.setNonbondedMethod(force.NoCutoff)
            for i in range(22, force.getNumParticles()):
                force.setParticleParameters(i, 0.0, 1.0, 0.0)
            for i in range(force.getNumExceptions()):
                a, b, *_ = force.getExceptionParameters(i)
                if a >= 22:
                    force.setExceptionParameters(i, a, b, 0.0, 1.0, 0.0)
    x = explicit.positions.value_in_unit(unit.nanometer)
    y = x.copy()
    y[atoms] += 0.003 * np.random.default_rng(3).standard_normal((22, 3))
    differences = [energy_of(s, y, p) - energy_of(s, x, p) for s, p in ((coupled, none), (vacuum, {}))]
    assert differences[0] == pytest.approx(differences[1], abs=0.02)


def test_a_solute_by_itself_keeps_masses_constraints_and_charges(explicit: AlanineDipeptideExplicit) -> None:
    alone = solute_system(explicit.system, list(range(22)))
    assert alone.getNumParticles() == 22
    assert alone.getNumConstraints() == 12
    with pytest.raises(ValueError, match="only one of them is in atom_subset"):
        solute_system(explicit.system, list(range(21)))
    with pytest.raises(ValueError, match="must name different particles"):
        solute_system(explicit.system, [0, 0])


def test_forces_that_cannot_be_switched_off_are_refused() -> None:
    system = wells()
    system.addForce(openmm.CustomNonbondedForce("r"))
    with pytest.raises(ValueError, match="a CustomNonbondedForce"):
        coupled_system(system, [0])
    bonded = wells()
    bonded.getForce(1).addException(0, 1, 0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="Give the atoms of a whole molecule"):
        coupled_system(bonded, [0])


# --------------------------------------------------------------------------------------------------------- the move


@pytest.mark.parametrize(
    "options",
    [
        {"atom_subset": [0]},
        {"atom_subset": [0], "kernel": Independence(4)},
        {"kernel": Annealed(1, 2, CoupledLangevin())},
    ],
)
def test_a_subset_and_its_kernel_belong_together(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="belong together"):
        BoltzmannGeneratorMove(GaussianDensity(np.zeros((1, 3)), 0.1), **options)


def test_the_subset_is_stored_and_restored() -> None:
    kernel = Annealed(1, 7, CoupledLangevin(1.0 * unit.femtosecond, 2.0 / unit.picosecond))
    move = BoltzmannGeneratorMove(GaussianDensity(np.zeros((2, 3)), 0.1), kernel=kernel, atom_subset=(3, 4), seed=5)
    restored = utils.deserialize(yaml.safe_load(yaml.safe_dump(utils.serialize(move))))
    assert restored.atom_subset == [3, 4]
    assert restored.kernel == kernel
    assert restored.kernel.propagation.timestep == pytest.approx(0.001)


def test_dynamics_that_fails_is_an_error_when_all_of_it_does() -> None:
    kernel = Annealed(1, 50, CoupledLangevin(50.0, 1.0), power=1.0)
    move = BoltzmannGeneratorMove(GaussianDensity(PLACES[:1], 0.12), kernel=kernel, atom_subset=[0], seed=3)
    state, sampler_state = ThermodynamicState(wells(), 300 * unit.kelvin), SamplerState(PLACES * unit.nanometer)
    try:
        for _ in range(5):
            move.apply(state, sampler_state, reference_contexts())
    except openmm.OpenMMException:
        pass
    assert move.n_accepted == 0
    np.testing.assert_array_equal(sampler_state.positions.value_in_unit(unit.nanometer), PLACES)
