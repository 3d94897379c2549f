"""Energies and forces of a System by OpenMM's Reference platform and by the torch terms, side by side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import openmm
import torch

from openmm_bg.potentials.torch_terms import build_term

Result = tuple[np.ndarray, np.ndarray]


def by_openmm(system: openmm.System, positions: np.ndarray, parameters: Mapping[str, float] | None = None) -> Result:
    """Energies (n,) in kJ/mol and forces (n, n_atoms, 3) in kJ/mol/nm of positions (n, n_atoms, 3) in nm."""
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    for name, value in (parameters or {}).items():
        context.setParameter(name, value)
    energies, forces = [], []
    for configuration in positions:
        context.setPositions(configuration)
        state = context.getState(getEnergy=True, getForces=True)
        energies.append(state.getPotentialEnergy()._value)
        forces.append(state.getForces(asNumpy=True)._value)
    return np.array(energies), np.array(forces)


def by_torch(system: openmm.System, positions: np.ndarray, parameters: Mapping[str, float] | None = None) -> Result:
    """The same from the sum of the terms of all forces."""
    terms = [term for term in (build_term(force, system) for force in system.getForces()) if term is not None]
    values = {name: value for term in terms for name, value in term.defaults.items()}
    values.update(parameters or {})
    x = torch.tensor(positions, dtype=torch.float64, requires_grad=True)
    energy = torch.stack([term(x, values) for term in terms]).sum(0)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    return energy.detach().numpy(), -gradient.numpy()


def assert_equal_to_reference(
    system: openmm.System, positions: np.ndarray, parameters: Mapping[str, float] | None = None
) -> None:
    """Energies to 1e-6 + 1e-5 kJ/mol, forces to 1e-4 of their norm + 1e-5 kJ/mol/nm; a batch equals one by one."""
    expected, expected_forces = by_openmm(system, positions, parameters)
    energies, forces = by_torch(system, positions, parameters)
    np.testing.assert_allclose(energies, expected, rtol=1e-6, atol=1e-5)
    difference = np.linalg.norm(forces - expected_forces, axis=(1, 2))
    assert (difference <= 1e-4 * np.linalg.norm(expected_forces, axis=(1, 2)) + 1e-5).all()
    alone, alone_forces = by_torch(system, positions[-1:], parameters)
    np.testing.assert_allclose(alone, energies[-1:], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(alone_forces, forces[-1:], rtol=1e-8, atol=1e-8)


def perturbed(positions: np.ndarray, n: int, scale: float, seed: int = 0) -> np.ndarray:
    """Configurations (n, n_atoms, 3): the given one with Gaussian noise of a standard deviation in nm."""
    return positions + np.random.default_rng(seed).normal(scale=scale, size=(n, *positions.shape))
