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
CHARGES, SIGMA, EPSILON, MASSES = np.array([0.15, -0.15, 0.1]), 0.25, 1.0, np.array([10.0, 14.0, 6.0])


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


def wells_reference(n: int = 400_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, velocities and weights of independent draws, with the interaction written out again."""
    rng = np.random.default_rng(7)
    x = PLACES + np.sqrt(KT / SPRING) * rng.standard_normal((n, 3, 3))
    v = np.sqrt(KT / MASSES)[:, None] * rng.standard_normal((n, 3, 3))
    energy = np.zeros(n)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        r = np.linalg.norm(x[:, i] - x[:, j], axis=-1)
        energy += 4 * EPSILON * ((SIGMA / r) ** 12 - (SIGMA / r) ** 6) + COULOMB * CHARGES[i] * CHARGES[j] / r
    weights = np.exp(-(energy - energy.min()) / KT)
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
        [np.tanh(y[..., 0]), np.tanh(y[..., 1]), *squares, np.tanh((y * w).sum(-1)), np.stack(distances, -1)], axis=-1
    )


def run_wells(kernel: Annealed, n_scans: int) -> tuple[float, BoltzmannGeneratorMove]:
    density = GaussianDensity(PLACES[:1] + 0.05, 0.12)
    state = ThermodynamicState(wells(), TEMPERATURE * unit.kelvin)
    sampler_state, contexts = SamplerState(PLACES * unit.nanometer), reference_contexts()
    move = BoltzmannGeneratorMove(density, kernel=kernel, atom_subset=[0], seed=3)
    places, velocities = [], []
    for _ in range(n_scans + 10):
        move.apply(state, sampler_state, contexts)
        places.append(sampler_state.positions.value_in_unit(unit.nanometer))
        velocities.append(sampler_state.velocities.value_in_unit(unit.nanometer / unit.picosecond))
    x, v = (np.reshape(values[10:], (25, -1, 3, 3)) for values in (places, velocities))
    *reference, weights = wells_reference()
    return score(wells_observables(x, v), wells_observables(*reference), weights), move


STEPS = {"timestep": 0.03, "friction": 3.0}  # a sixth of the wells' angular period: shadow work matters
HEATED = {"timestep": 0.03, "friction": 60.0}  # velocities that are drawn anew in nearly every step: heat matters


@pytest.mark.parametrize("n_scans", [4000, pytest.param(12000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("carried", [False, True], ids=["fresh velocities", "carried velocities"])
@pytest.mark.parametrize("n_proposals", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_bad_density_gives_the_exact_distribution(n_proposals: int, carried: bool, n_scans: int) -> None:
    kernel = Annealed(n_proposals, 5, CoupledLangevin(**STEPS, carry_velocities=carried), power=1.0)
    found, move = run_wells(kernel, n_scans)
    assert 0.1 < move.fraction_accepted < 0.9
    assert found < 3.9  # the largest of 18


@pytest.mark.slow
def test_a_bad_density_gives_the_exact_distribution_at_strong_friction() -> None:
    found, move = run_wells(Annealed(1, 5, CoupledLangevin(**HEATED), power=1.0), 12_000)
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


def not_palindromic(integrator: openmm.CustomIntegrator) -> None:
    """Mutant: V R O instead of V R O R V."""
    coupling._kick(integrator, 1.0)
    coupling._drift(integrator, 1.0)
    coupling._thermalise(integrator)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "mutant", "carried", "steps"),
    [
        ("openmm_bg.moves.move.SolvatedPaths", WithoutWork, False, STEPS),
        ("openmm_bg.moves.coupling._add_steps", not_palindromic, False, HEATED),
        ("openmm_bg.moves.move.SolvatedPaths", WithoutFlip, True, STEPS),
    ],
    ids=["no work", "splitting that is not palindromic", "no momentum flip"],
)
def test_mutants_are_seen_at_eight_sigma(
    monkeypatch: pytest.MonkeyPatch, target: str, mutant: Any, carried: bool, steps: dict[str, float]
) -> None:
    monkeypatch.setattr(target, mutant)
    found, _ = run_wells(Annealed(1, 5, CoupledLangevin(**steps, carry_velocities=carried), power=1.0), 12_000)
    assert found > 8.0


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


@pytest.mark.parametrize("n_scans", [800, pytest.param(4000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SOLUTES)
def test_a_molecule_in_a_box_has_the_distribution_of_independent_draws(name: str, n_scans: int) -> None:
    molecule = SOLUTES[name]
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
