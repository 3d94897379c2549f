"""A molecule: its OpenMM System, Topology and one structure; and how one is made from a force field."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from openmm_bg.systems.diagnosis import advice

FloatArray = NDArray[np.float64]

DEFAULT_FORCEFIELD = ("amber99sbildn.xml", "amber99_obc.xml")

_MINIMIZER_TOLERANCE = 1.0  # kJ/mol/nm, root mean square over the force components
_IMPLICIT_SOLVENT = (openmm.GBSAOBCForce, openmm.CustomGBForce)


@dataclass(frozen=True)
class MolecularSystem:
    """A molecule that can be simulated.

    Attributes
    ----------
    system : openmm.System
        Masses, forces and constraints.
    topology : openmm.app.Topology
        Atoms, residues and bonds, in the order of the System's particles.
    positions : ndarray, shape (n_atoms, 3), float64
        One structure in nm.
    """

    system: openmm.System
    topology: app.Topology
    positions: FloatArray

    def __post_init__(self) -> None:
        n_atoms = self.topology.getNumAtoms()
        n_particles = self.system.getNumParticles()
        if n_particles != n_atoms:
            raise ValueError(
                f"The System has {n_particles} particles and the topology {n_atoms} atoms; give the topology the "
                "System was made from, with atoms in the same order."
            )
        positions = np.array(self.positions, dtype=np.float64)
        if positions.shape != (n_atoms, 3):
            raise ValueError(f"Positions have shape {positions.shape}; expected ({n_atoms}, 3), in nm.")
        if not np.isfinite(positions).all():
            raise ValueError("The positions hold values that are not finite numbers.")
        object.__setattr__(self, "positions", positions)

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.positions)


def load_forcefield(forcefield: app.ForceField | Sequence[str] | str) -> app.ForceField:
    """Return a ForceField, from the names of its files if need be.

    Raises
    ------
    ValueError
        If a file cannot be found or read.
    """
    if isinstance(forcefield, app.ForceField):
        return forcefield
    files = [forcefield] if isinstance(forcefield, str) else list(forcefield)
    try:
        return app.ForceField(*files)
    except Exception as error:  # OpenMM raises OSError, ValueError or a bare Exception, depending on the file
        raise ValueError(
            f"Cannot load the force field {files}: {error}. Expected names of files that come with OpenMM "
            "(such as 'amber99sbildn.xml') or paths of OpenMM force-field XML files."
        ) from error


def create_system(
    forcefield: app.ForceField,
    topology: app.Topology,
    *,
    constraints: Any,
    hydrogen_mass: unit.Quantity | float | None,
    positions: unit.Quantity | None = None,
) -> openmm.System:
    """Parametrise a molecule without cutoff.

    Centre-of-mass motion is not removed: a Langevin thermostat acts on all degrees of freedom, the molecule is free to
    diffuse without a box, and a CMMotionRemover would only take away three degrees of freedom that no density here
    describes and that a redraw of velocities after a Monte Carlo move puts back.

    Positions, where they are at hand, let the message about a structure that does not fit name missing hydrogens.

    Raises
    ------
    ValueError
        If a residue does not match the force field, saying what to do.
    """
    mass = hydrogen_mass if hydrogen_mass is None or unit.is_quantity(hydrogen_mass) else hydrogen_mass * unit.dalton
    try:
        return forcefield.createSystem(
            topology,
            nonbondedMethod=app.NoCutoff,
            constraints=constraints,
            hydrogenMass=mass,
            removeCMMotion=False,
        )
    except ValueError as error:
        raise ValueError(
            f"The force field does not fit the molecule: {error} {advice(forcefield, topology, positions)}"
        ) from error


def minimize(system: openmm.System, positions: FloatArray, *, max_iterations: int = 0) -> FloatArray:
    """Return the local minimum of the energy near `positions` (nm), constraints satisfied.

    A structure of more than 150 atoms is minimised without its implicit solvent first, which is many times cheaper.
    The result is reproducible: one platform, one thread.

    Parameters
    ----------
    max_iterations : int
        Bound on the iterations of each stage; 0 means until convergence.
    """
    stages = [system]
    if len(positions) > 150:
        vacuum = copy.deepcopy(system)
        for index in reversed(range(vacuum.getNumForces())):
            if isinstance(vacuum.getForce(index), _IMPLICIT_SOLVENT):
                vacuum.removeForce(index)
        stages = [vacuum, system]
    small = len(positions) <= 150 and not any(isinstance(f, openmm.CustomGBForce) for f in system.getForces())
    platform = openmm.Platform.getPlatformByName("Reference" if small else "CPU")
    properties = {} if small else {"Threads": "1", "DeterministicForces": "true"}
    for stage in stages:
        context = openmm.Context(stage, openmm.VerletIntegrator(0.001), platform, properties)
        context.setPositions(positions)
        context.applyConstraints(1e-8)
        openmm.LocalEnergyMinimizer.minimize(context, _MINIMIZER_TOLERANCE, max_iterations)
        positions = np.asarray(context.getState(getPositions=True).getPositions(asNumpy=True)._value)
    return positions
