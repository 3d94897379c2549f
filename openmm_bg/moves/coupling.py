"""A solute that is coupled to its solvent step by step, by Langevin dynamics in an OpenMM Context.

At level 0 the solute feels nothing of the solvent, at level 1 all of it: first Lennard-Jones interactions appear, soft
in their core, then charges. The dynamics is V R O R V, a palindromic splitting, with constraints. What it does in all,
protocol and shadow work together, is the change of total energy less the heat of the O steps (docs: theory, "A solute
in its solvent"); the potential of the levels between enters nowhere else, so that it may be any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import openmm
from openmm import unit

from openmm_bg.density import FloatArray
from openmm_bg.moves.solute import ELECTROSTATICS, STERICS, coupled_system

_CONSTRAINT_TOLERANCE = 1e-7  # steps have to reverse
_MAX_SEED = np.iinfo(np.int32).max


@dataclass(frozen=True)
class CoupledLangevin:
    """Langevin dynamics of solute and solvent while the solute is coupled to its solvent; needs `atom_subset`.

    Parameters
    ----------
    timestep : Quantity or float (ps)
    friction : Quantity or float (1/ps)
    carry_velocities : bool
        False: velocities belong to the path, are drawn at both its ends, and anew after an acceptance. True: those of
        the sampler state are where the current state's path begins, and an accepted path's last ones go on.
    """

    timestep: float = 0.002
    friction: float = 1.0
    carry_velocities: bool = False

    def __post_init__(self) -> None:
        for name, in_md_units in (("timestep", unit.picosecond), ("friction", unit.picosecond**-1)):
            value = getattr(self, name)
            number = float(value.value_in_unit(in_md_units) if isinstance(value, unit.Quantity) else value)
            if not (np.isfinite(number) and number > 0.0):
                raise ValueError(f"{name} must be positive, but is {value!r}.")
            object.__setattr__(self, name, number)
        object.__setattr__(self, "carry_velocities", bool(self.carry_velocities))


class Ride(NamedTuple):
    """What dynamics along a sequence of levels did; energies in kJ/mol.

    Attributes
    ----------
    positions, velocities : ndarray, shape (n_particles, 3), nm and nm/ps
    kinetic_before, kinetic_after : float
    heat : float
        Energy that the O steps took up.
    """

    positions: FloatArray
    velocities: FloatArray
    kinetic_before: float
    kinetic_after: float
    heat: float


class Coupling:
    """A Context in which the solute of another Context is coupled to its solvent.

    Parameters
    ----------
    target : openmm.Context
        Of the thermodynamic state; left as it is.
    atoms : sequence of int
        The solute.
    propagation : CoupledLangevin
    kT : float
        In kJ/mol.
    seed : int
        Positive, of the integrator's noise.
    frame : ndarray, shape (n_atoms, 3)
        A fixed shape of the solute, by superposition on which its orientation is measured.
    """

    def __init__(
        self,
        target: openmm.Context,
        atoms: Sequence[int],
        propagation: CoupledLangevin,
        kT: float,
        seed: int,
        frame: FloatArray,
    ) -> None:
        self.frame = frame
        system = coupled_system(target.getSystem(), atoms)
        self.masses = np.array(
            [system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())]
        )
        self.integrator = self._integrator(propagation, kT)
        self.integrator.setConstraintTolerance(_CONSTRAINT_TOLERANCE)
        self.integrator.setRandomNumberSeed(seed)
        platform = target.getPlatform()
        wanted = {"Precision", "DeviceIndex", "Threads"} & set(platform.getPropertyNames())
        properties = {name: platform.getPropertyValue(target, name) for name in wanted}
        self.context = openmm.Context(system, self.integrator, platform, properties)
        self.follow(target, kT)

    def follow(self, target: openmm.Context, kT: float) -> None:
        """Take over box and parameters of the target's Context, and a temperature."""
        self.temperature = kT / unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)
        self.integrator.setGlobalVariableByName("kT", kT)
        self.context.setPeriodicBoxVectors(*target.getState().getPeriodicBoxVectors())
        for name, value in target.getParameters().items():
            if name in self.context.getParameters():
                self.context.setParameter(name, value)

    def ride(
        self,
        positions: FloatArray,
        velocities: FloatArray | None,
        levels: FloatArray,
        rng: np.random.Generator,
    ) -> Ride:
        """One step of dynamics at each level in turn; velocities are drawn if there are none.

        Raises
        ------
        openmm.OpenMMException
            If the dynamics blows up.
        """
        self.context.setPositions(positions)
        self.context.computeVirtualSites()
        if velocities is None:
            self.context.setVelocitiesToTemperature(self.temperature, int(rng.integers(1, _MAX_SEED)))
        else:
            self.context.setVelocities(velocities)
        before = self._kinetic_energy()
        self.integrator.setGlobalVariableByName("heat", 0.0)
        for level in levels:
            self.context.setParameter(STERICS, min(1.0, 2.0 * level))
            self.context.setParameter(ELECTROSTATICS, max(0.0, 2.0 * level - 1.0))
            self.integrator.step(1)
        state = self.context.getState(positions=True)
        return Ride(
            state.getPositions(asNumpy=True).value_in_unit(unit.nanometer),
            self.velocities(),
            before,
            self._kinetic_energy(),
            self.integrator.getGlobalVariableByName("heat"),
        )

    def velocities(self) -> FloatArray:
        """Present velocities in nm/ps, shape (n_particles, 3)."""
        velocities = self.context.getState(velocities=True).getVelocities(asNumpy=True)
        found: FloatArray = velocities.value_in_unit(unit.nanometer / unit.picosecond)
        return found

    def _kinetic_energy(self) -> float:
        return float(0.5 * (self.masses[:, None] * self.velocities() ** 2).sum())

    @staticmethod
    def _integrator(propagation: CoupledLangevin, kT: float) -> openmm.CustomIntegrator:
        integrator = openmm.CustomIntegrator(propagation.timestep)
        kept = float(np.exp(-propagation.friction * propagation.timestep))
        for name, value in (("kept", kept), ("drawn", np.sqrt(1.0 - kept**2)), ("kT", kT), ("heat", 0.0), ("ke", 0.0)):
            integrator.addGlobalVariable(name, float(value))
        integrator.addPerDofVariable("free", 0.0)
        _add_steps(integrator)
        return integrator


def _add_steps(integrator: openmm.CustomIntegrator) -> None:
    """V R O R V; heat counts what O changes."""
    _kick(integrator, 0.5)
    _drift(integrator, 0.5)
    _thermalise(integrator)
    _drift(integrator, 0.5)
    _kick(integrator, 0.5)


def _kick(integrator: openmm.CustomIntegrator, fraction: float) -> None:
    integrator.addComputePerDof("v", f"v + {fraction}*dt*f/m")
    integrator.addConstrainVelocities()


def _drift(integrator: openmm.CustomIntegrator, fraction: float) -> None:
    integrator.addComputePerDof("x", f"x + {fraction}*dt*v")
    integrator.addComputePerDof("free", "x")
    integrator.addConstrainPositions()
    integrator.addComputePerDof("v", f"v + (x - free)/({fraction}*dt)")
    integrator.addConstrainVelocities()


def _thermalise(integrator: openmm.CustomIntegrator) -> None:
    integrator.addComputeSum("ke", "0.5*m*v*v")
    integrator.addComputeGlobal("heat", "heat - ke")
    integrator.addComputePerDof("v", "kept*v + drawn*sqrt(kT/m)*gaussian")
    integrator.addConstrainVelocities()
    integrator.addComputeSum("ke", "0.5*m*v*v")
    integrator.addComputeGlobal("heat", "heat + ke")
