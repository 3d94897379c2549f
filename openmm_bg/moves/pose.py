"""Where a configuration stands in space: alignment of proposals, and Systems for which the pose matters.

A density that is invariant under translation and rotation proposes shapes; its samples come in an arbitrary pose.
Aligning each proposal to the current configuration (Kabsch, Acta Cryst. A 32, 922, 1976: fixed atoms and weights,
proper rotations, the same centre both ways) preserves the measure and is undone by aligning back, so the acceptance
needs no correction, provided that the energy does not depend on the pose.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openmm
from openmm import unit

from openmm_bg.density import FloatArray

_TRANSLATION = np.array([1.1, -0.7, 0.9])  # nm; as large as what a restraint to a fixed point must not let pass
_ROTATION_AXIS = np.array([1.0, 2.0, 3.0]) / np.sqrt(14.0)
_ROTATION_ANGLE = 2.0  # rad
_ABSOLUTE_TOLERANCE = 0.05  # kJ/mol; a single-precision platform repeats an energy of a few thousand kJ/mol to less
_RELATIVE_TOLERANCE = 1e-5


def particle_masses(system: openmm.System) -> FloatArray:
    """Masses of all particles in amu, shape (n_atoms,)."""
    return np.array([system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())])


def align(positions: FloatArray, reference: FloatArray, weights: FloatArray) -> FloatArray:
    """Translate and rotate configurations onto a reference, least squares in the weights.

    Parameters
    ----------
    positions : ndarray, shape (n, n_atoms, 3)
        Finite configurations in nm.
    reference : ndarray, shape (n_atoms, 3)
    weights : ndarray, shape (n_atoms,)
        Non-negative; masses keep the centre of mass in place.

    Returns
    -------
    aligned : ndarray, shape (n, n_atoms, 3)
        The same shapes, never mirrored.
    """
    rotations, centres, centre = superposition(positions, reference, weights)
    aligned: FloatArray = (positions - centres[:, None]) @ rotations + centre
    return aligned


def superposition(
    positions: FloatArray, reference: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Rotations and centres that superpose configurations on a reference: (positions - centres) @ rotations + centre.

    Returns
    -------
    rotations : ndarray, shape (n, 3, 3)
        Proper ones.
    centres : ndarray, shape (n, 3)
        Weighted centres of the configurations.
    centre : ndarray, shape (3,)
        That of the reference.
    """
    weights = weights / weights.sum()
    centre = weights @ reference
    centres = np.einsum("a,nad->nd", weights, positions)
    covariance = np.einsum("nai,a,aj->nij", positions - centres[:, None], weights, reference - centre)
    left, _, right = np.linalg.svd(covariance)
    left[:, :, -1] *= np.sign(np.linalg.det(left @ right))[:, None]
    return left @ right, centres, centre


def check_free_pose(system: openmm.System) -> None:
    """Raise ValueError if the System ties particles to points in space.

    Raises
    ------
    ValueError
        If there is a CustomExternalForce that acts on particles, or a particle without mass that is not a virtual
        site: such a particle never moves.
    """
    for force in system.getForces():
        if isinstance(force, openmm.CustomExternalForce) and force.getNumParticles() > 0:
            raise ValueError(
                f"The System has a CustomExternalForce ({force.getEnergyFunction()!r}) on {force.getNumParticles()} "
                "particles: its energy depends on where the molecule is in space, but the generator proposes shapes "
                "without a place. Remove the force or restrain internal coordinates (distances, angles) instead."
            )
    fixed = [i for i in np.flatnonzero(particle_masses(system) == 0.0) if not system.isVirtualSite(int(i))]
    if fixed:
        raise ValueError(
            f"Particles {[int(i) for i in fixed[:10]]} have no mass and so never move, but the generator proposes "
            "whole molecules without a place in space. Give them their masses."
        )


def check_energy_invariance(
    energy: Callable[[FloatArray], FloatArray], positions: FloatArray, masses: FloatArray
) -> bool:
    """Raise ValueError if the energy changes when the whole configuration is moved and turned.

    Finds what no list of force names can: centroid, compound or collective-variable forces that name absolute
    coordinates.

    Parameters
    ----------
    energy : callable
        Energies in kJ/mol, shape (n, n_atoms, 3) to (n,).
    positions : ndarray, shape (n_atoms, 3)
        In nm.
    masses : ndarray, shape (n_atoms,)

    Returns
    -------
    known : bool
        False if the energy at `positions` is not finite, so that nothing was found out.

    Raises
    ------
    ValueError
        If the energy changes by more than rounding does.
    """
    centre = masses @ positions / masses.sum()
    moved = (positions - centre) @ _rotation(_ROTATION_AXIS, _ROTATION_ANGLE).T + centre + _TRANSLATION
    before, after = energy(np.stack([positions, moved]))
    if not np.isfinite(before):
        return False
    if not abs(after - before) <= _ABSOLUTE_TOLERANCE + _RELATIVE_TOLERANCE * abs(before):
        raise ValueError(
            f"The energy of the System depends on the place or orientation of the molecule in space: it changed from "
            f"{before:.6g} to {after:.6g} kJ/mol when all particles were moved and turned together, but the generator "
            "proposes shapes without a place. Remove external fields and restraints to fixed points, or restrain "
            "internal coordinates instead."
        )
    return True


def _rotation(axis: FloatArray, angle: float) -> FloatArray:
    cross = np.cross(np.eye(3), axis)
    matrix: FloatArray = np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross)
    return matrix
