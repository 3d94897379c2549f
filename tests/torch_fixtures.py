"""Energies by OpenMM's Reference platform, which torch is held against."""

from __future__ import annotations

import numpy as np
import openmm
import torch

from openmm_bg.potentials import TorchBackend

RELATIVE_ENERGY, ABSOLUTE_ENERGY, RELATIVE_FORCE = 1e-6, 1e-5, 1e-4


def by_reference(
    system: openmm.System, batch: np.ndarray, parameters: dict[str, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    for name, value in (parameters or {}).items():
        context.setParameter(name, value)
    energies, forces = np.empty(len(batch)), np.empty(batch.shape)
    for row, positions in enumerate(batch):
        context.setPositions(positions)
        state = context.getState(getEnergy=True, getForces=True)
        energies[row] = state.getPotentialEnergy()._value
        forces[row] = state.getForces(asNumpy=True)._value
    return energies, forces


def assert_as_openmm(system: openmm.System, batch: np.ndarray, parameters: dict[str, float] | None = None) -> None:
    """Energies within 1e-6 of theirs + 1e-5 kJ/mol, forces within 1e-4 of the structure's largest."""
    backend = TorchBackend(system, reference=batch[0])
    backend.set_parameters(parameters or {})
    energies, forces = backend.evaluate(np.ascontiguousarray(batch), with_forces=True)
    assert forces is not None
    expected, expected_forces = by_reference(system, batch, parameters)
    np.testing.assert_allclose(energies, expected, rtol=RELATIVE_ENERGY, atol=ABSOLUTE_ENERGY)
    size = np.abs(expected_forces).max(axis=(1, 2), keepdims=True)
    assert (np.abs(forces - expected_forces) <= RELATIVE_FORCE * size + 1e-6).all()


def assert_gradient_is_force(system: openmm.System, positions: np.ndarray, step: float = 1e-5) -> None:
    """Minus the forces are central differences of the energies, in torch alone."""
    backend = TorchBackend(system, reference=positions)
    forces = backend.evaluate(positions[None], with_forces=True)[1]
    assert forces is not None
    moves = step * np.eye(positions.size).reshape(-1, *positions.shape)
    up, down = (backend.evaluate(positions + sign * moves, with_forces=False)[0] for sign in (1, -1))
    slopes = (up - down).reshape(positions.shape) / (2 * step)
    np.testing.assert_allclose(forces[0], -slopes, rtol=1e-4, atol=1e-4 * np.abs(slopes).max())


def particles(n: int) -> openmm.System:
    system = openmm.System()
    for _ in range(n):
        system.addParticle(1.0)
    return system


def scattered(n: int, seed: int, *, rows: int = 3, box: float = 0.8, apart: float = 0.12) -> np.ndarray:
    """Random positions (rows, n, 3) in a box, in nm, no two atoms closer than `apart`."""
    rng = np.random.default_rng(seed)
    batch = []
    while len(batch) < rows:
        placed: list[np.ndarray] = []
        while len(placed) < n:
            place = rng.uniform(0.0, box, 3)
            if all(np.linalg.norm(place - other) > apart for other in placed):
                placed.append(place)
        batch.append(placed)
    return np.array(batch)


def gradients_at(system: openmm.System, batch: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies and gradients without any repair of what is not finite."""
    backend = TorchBackend(system)
    positions = torch.from_numpy(batch).requires_grad_()
    energies = backend.term_energies(positions).sum(0)
    return energies.detach(), torch.autograd.grad(energies.sum(), positions)[0]
