"""What the tests of both backends of `flow_force` share: Systems of a flow alone, and dynamics on it."""

from __future__ import annotations

import numpy as np
import openmm
import torch
from openmm import unit
from small_molecules import TEMPERATURE, SmallMolecule, deviation, kB

from openmm_bg.flows import FlowConfig
from openmm_bg.generator import BoltzmannGenerator

KT = kB * TEMPERATURE
FEW_LAYERS = FlowConfig(
    torsion_layers=2, torsion_bins=6, torsion_hidden=8, linear_layers=1, linear_bins=6, linear_hidden=8, affine_hidden=8
)


def crooked(molecule: SmallMolecule, kind: type[BoltzmannGenerator] = BoltzmannGenerator) -> BoltzmannGenerator:
    """Broad, with every layer doing something, and few of them: dynamics takes one configuration at a time."""
    generator = kind.from_system(
        molecule.system(), molecule.topology(), TEMPERATURE, positions=molecule.reference(), flow=FEW_LAYERS, seed=0
    )
    numbers = torch.Generator().manual_seed(7)
    features = generator.features
    counts = (len(features.free_bonds), len(features.free_angles), len(features.linear_torsion_rows))
    with torch.no_grad():
        features.scale.copy_(
            torch.cat([torch.full((n,), width) for n, width in zip(counts, (0.16, 1.1, 0.8), strict=True)])
        )
        for parameter in generator.flow.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=numbers))
    return generator


def alone(system: openmm.System, force: openmm.Force) -> openmm.System:
    """The System's masses and constraints with this force only."""
    for index in reversed(range(system.getNumForces())):
        system.removeForce(index)
    system.addForce(force)
    return system


def reference_context(system: openmm.System, integrator: openmm.Integrator | None = None) -> openmm.Context:
    integrator = openmm.VerletIntegrator(0.001) if integrator is None else integrator
    return openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))


def energy_and_forces(context: openmm.Context, positions: np.ndarray) -> tuple[float, np.ndarray]:
    """In kJ/mol and nm."""
    context.setPositions(positions)
    state = context.getState(energy=True, forces=True)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
    return state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole), forces


def reduced_and_gradient(generator: BoltzmannGenerator, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u_flow and its gradient by autograd, of a batch."""
    x = torch.tensor(positions, requires_grad=True)
    reduced = -generator.log_prob_tensor(x)
    (gradient,) = torch.autograd.grad(reduced.sum(), x)
    return reduced.detach().numpy(), gradient.numpy()


def dynamics(
    system: openmm.System, starts: np.ndarray, *, n_frames: int, stride: int, timestep: float
) -> tuple[np.ndarray, np.ndarray]:
    """Frames of one trajectory from each start, (n_starts, n_frames, n_atoms, 3), and their energies in kJ/mol."""
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 10.0, timestep)
    integrator.setRandomNumberSeed(11)
    integrator.setConstraintTolerance(1e-7)
    context = reference_context(system, integrator)
    frames = np.empty((len(starts), n_frames, *starts.shape[1:]))
    energies = np.empty((len(starts), n_frames))
    for i, start in enumerate(starts):
        context.setPositions(start)
        context.setVelocitiesToTemperature(TEMPERATURE, i + 1)
        for j in range(n_frames):
            integrator.step(stride)
            state = context.getState(positions=True, energy=True)
            frames[i, j] = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
            energies[i, j] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    return frames, energies


def observables(molecule: SmallMolecule, positions: np.ndarray, reduced: np.ndarray) -> np.ndarray:
    """Cosines and sines of angles and torsions, and the energy in kT; (..., n_atoms, 3) to (..., n_observables)."""
    coordinates = molecule.coordinates(positions)
    if not molecule.constrained:
        coordinates = coordinates[..., molecule.n_atoms - 1 :]
    n_angles = coordinates.shape[-1] - (molecule.n_atoms - 3)
    angles, torsions = coordinates[..., :n_angles], coordinates[..., n_angles:]
    parts = [np.cos(angles), np.cos(angles) ** 2, np.cos(torsions), np.sin(torsions), reduced[..., None]]
    return np.concatenate(parts, axis=-1)


def deviation_from_flow(
    molecule: SmallMolecule, generator: BoltzmannGenerator, frames: np.ndarray, energies: np.ndarray
) -> float:
    """Standard deviations between trajectories and samples of the flow: dihedrals, angles, energies.

    The trajectories are the independent blocks, whatever the autocorrelation within them.
    """
    samples = generator.sample(200_000, rng=3)
    expected = observables(molecule, samples.positions, -samples.log_prob).mean(axis=0)
    return deviation(observables(molecule, frames, energies / KT).mean(axis=1), expected)
