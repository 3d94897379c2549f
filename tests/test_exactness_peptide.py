"""A briefly fitted generator of alanine dipeptide: exact in turn with dynamics, and never a mirror image."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from exactness_fixtures import WithoutLogProb
from openmm import unit
from openmmtools import cache
from openmmtools.mcmc import IntegratorMove
from openmmtools.states import SamplerState, ThermodynamicState
from scipy import stats
from small_molecules import reference_contexts

from openmm_bg.analysis.dihedrals import backbone_pairs, ramachandran_angles
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.moves import BoltzmannGeneratorMove, Independence
from openmm_bg.systems import MolecularSystem, peptide
from openmm_bg.training.simulate import simulate

pytestmark = pytest.mark.slow
TEMPERATURE = 600.0  # K; the generator is fitted to 700 K
N_BLOCKS = 40


@pytest.fixture(scope="module")
def alanine() -> MolecularSystem:
    return peptide("ACE-ALA-NME")


@pytest.fixture(scope="module")
def generator_file(alanine: MolecularSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    trajectory = simulate(alanine, 700.0, n_steps=100_000, stride=50, platform="Reference", seed=1)
    generator = BoltzmannGenerator.from_system(
        alanine.system, alanine.topology, TEMPERATURE, positions=alanine.positions, seed=0
    )
    generator.fit(trajectory, max_steps=600, progress=False)
    path = tmp_path_factory.mktemp("generator") / "alanine.bg"
    generator.save(path)
    return path


@pytest.fixture(autouse=True)
def reference_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "global_context_cache", reference_contexts())
    monkeypatch.setattr("openmm_bg.moves.move._streams", defaultdict(itertools.count))


def langevin(n_steps: int, seed: int) -> IntegratorMove:
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 2.0, 0.001)
    integrator.setRandomNumberSeed(seed)
    return IntegratorMove(integrator, n_steps)


def observables(molecule: MolecularSystem, positions: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Block averages within phi < 0 of energy, phi, psi, bonds and angles; shape (N_BLOCKS, n)."""
    phi, psi = (angle[..., 0] for angle in ramachandran_angles(positions, backbone_pairs(molecule.topology)))
    atoms = {atom.name: atom.index for atom in molecule.topology.atoms() if atom.residue.name == "ALA"}
    to_n, to_c, to_cb = (positions[..., atoms[name], :] - positions[..., atoms["CA"], :] for name in ("N", "C", "CB"))
    lengths = [np.linalg.norm(vector, axis=-1) for vector in (to_n, to_c, to_cb)]
    cosine = (to_n * to_c).sum(-1) / (lengths[0] * lengths[1])
    columns = [energy, energy**2 / 1e3, np.cos(phi), np.cos(psi), np.sin(psi), np.cos(2 * psi), np.sin(2 * psi)]
    values = np.stack([*columns, *lengths, cosine], -1)
    inside = (phi < 0.0)[..., None]
    blocks = len(values) // N_BLOCKS * N_BLOCKS
    values, inside = (array[:blocks].reshape(N_BLOCKS, -1, array.shape[-1]) for array in (values, inside))
    return (values * inside).sum(axis=1) / inside.sum(axis=1)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Combined chi-squared of two sets of block averages, as the normal deviate of equal probability."""
    n, p = 2 * N_BLOCKS, first.shape[1]
    d = first.mean(axis=0) - second.mean(axis=0)
    t_squared = d @ np.linalg.solve((np.cov(first.T) + np.cov(second.T)) / N_BLOCKS, d)
    log_probability = stats.f.logsf((n - p - 1) / (p * (n - 2)) * t_squared, p, n - p - 1)
    return float(stats.norm.isf(np.exp(max(log_probability, -690.0))))


@pytest.fixture(scope="module")
def plain_dynamics(alanine: MolecularSystem) -> np.ndarray:
    """Observables of Langevin dynamics alone, from random numbers and a Context of its own."""
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 2.0, 0.001)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(alanine.system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(alanine.positions)
    context.setVelocitiesToTemperature(TEMPERATURE, 1)
    integrator.step(5_000)
    positions, energy = [], []
    for _ in range(8_000):
        integrator.step(50)
        state = context.getState(positions=True, energy=True)
        positions.append(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
        energy.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
    return observables(alanine, np.array(positions), np.array(energy))


@pytest.fixture
def with_generator(
    alanine: MolecularSystem, generator_file: Path
) -> Callable[[type[Independence]], tuple[np.ndarray, float]]:
    """Runs the move in turn with Langevin dynamics; observables of all scanned states, and the acceptance."""

    def run(kernel: type[Independence]) -> tuple[np.ndarray, float]:
        move = BoltzmannGeneratorMove(BoltzmannGenerator.load(generator_file), kernel=kernel(128), seed=3)
        state = ThermodynamicState(alanine.system, TEMPERATURE * unit.kelvin)
        kT = state.kT.value_in_unit(unit.kilojoule_per_mole)
        sampler_state = SamplerState(unit.Quantity(alanine.positions, unit.nanometer))
        langevin(5_000, 4).apply(state, sampler_state)
        dynamics = langevin(100, 5)
        positions, energy = [], []
        for _ in range(600):
            move.apply(state, sampler_state)
            scan = move.last_scan
            positions.append(scan.positions[scan.chain])
            energy.append(scan.reduced_potential[scan.chain] * kT)
            dynamics.apply(state, sampler_state)
        found = observables(alanine, np.concatenate(positions), np.concatenate(energy))
        return found, move.fraction_accepted

    return run


def test_move_and_dynamics_agree_with_dynamics_alone(with_generator: Callable, plain_dynamics: np.ndarray) -> None:
    found, fraction_accepted = with_generator(Independence)
    assert 0.02 < fraction_accepted < 0.9
    assert difference(found, plain_dynamics) < 3.5


def test_a_forgotten_log_density_is_seen_at_eight_sigma(with_generator: Callable, plain_dynamics: np.ndarray) -> None:
    found, _ = with_generator(WithoutLogProb)
    assert difference(found, plain_dynamics) > 8.0


def test_no_mirror_image_in_a_hundred_thousand_samples(alanine: MolecularSystem, generator_file: Path) -> None:
    atoms = {atom.name: atom.index for atom in alanine.topology.atoms() if atom.residue.name == "ALA"}
    samples = BoltzmannGenerator.load(generator_file).sample(100_000, rng=1)
    positions = np.concatenate([alanine.positions[None], samples.positions])
    to_n, to_c, to_cb = (positions[:, atoms[name]] - positions[:, atoms["CA"]] for name in ("N", "C", "CB"))
    handedness = np.sign(np.einsum("nd,nd->n", np.cross(to_n, to_c), to_cb))
    assert np.isfinite(samples.log_prob).all()
    assert (handedness == handedness[0]).all()


def test_the_density_of_drawn_states_is_that_of_the_map_that_drew_them(generator_file: Path) -> None:
    generator = BoltzmannGenerator.load(generator_file)
    latents = generator.flow.sample_base(20_000, torch.Generator().manual_seed(1))
    with torch.no_grad():
        positions, log_prob = generator._decode(latents)
    np.testing.assert_allclose(generator.log_prob(positions.numpy()), log_prob.numpy(), atol=1e-3)
