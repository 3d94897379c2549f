"""Simulations of openmm.app for the tests: an oscillator with closed-form answers, and the small molecules."""

from __future__ import annotations

import numpy as np
import openmm
from openmm import app, unit
from openmmtools.integrators import HMCIntegrator
from small_molecules import TEMPERATURE, SmallMolecule, kB

from openmm_bg.testing import GaussianDensity

SPRING = 200.0  # kJ/mol/nm^2
SIGMA = float(np.sqrt(kB * TEMPERATURE / SPRING))
REFERENCE = openmm.Platform.getPlatformByName("Reference")


def oscillator_system() -> openmm.System:
    """One particle in a harmonic well of the global parameter K about the origin."""
    system = openmm.System()
    system.addParticle(12.0)
    force = openmm.CustomExternalForce("0.5*K*(x^2+y^2+z^2)")
    force.addGlobalParameter("K", SPRING)
    force.addParticle(0)
    system.addForce(force)
    return system


def oscillator_topology() -> app.Topology:
    topology = app.Topology()
    topology.addAtom("C", app.element.carbon, topology.addResidue("MOL", topology.addChain()))
    return topology


def langevin(temperature: float = TEMPERATURE, timestep: float = 0.002) -> openmm.LangevinMiddleIntegrator:
    integrator = openmm.LangevinMiddleIntegrator(temperature, 5.0, timestep)
    integrator.setRandomNumberSeed(7)
    return integrator


def hybrid_monte_carlo() -> openmm.CustomIntegrator:
    """Exact dynamics: a step is a Metropolised trajectory."""
    integrator = HMCIntegrator(TEMPERATURE * unit.kelvin, nsteps=12, timestep=4.0 * unit.femtosecond)
    integrator.setRandomNumberSeed(11)
    return integrator


def oscillator(
    integrator: openmm.Integrator | None = None, system: openmm.System | None = None, start: float = 0.01
) -> app.Simulation:
    simulation = app.Simulation(
        oscillator_topology(),
        oscillator_system() if system is None else system,
        langevin() if integrator is None else integrator,
        REFERENCE,
    )
    simulation.context.setPositions(np.full((1, 3), start))
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, 1)
    return simulation


def gaussian(width: float = 1.3) -> GaussianDensity:
    """A density `width` times as broad as the oscillator's distribution."""
    return GaussianDensity(np.zeros((1, 3)), width * SIGMA)


def molecule_simulation(molecule: SmallMolecule, integrator: openmm.Integrator) -> app.Simulation:
    simulation = app.Simulation(molecule.topology(), molecule.system(), integrator, REFERENCE)
    simulation.context.setPositions(molecule.reference())
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, 1)
    return simulation


def positions_of(simulation: app.Simulation) -> np.ndarray:
    return simulation.context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)


def velocities_of(simulation: app.Simulation) -> np.ndarray:
    state = simulation.context.getState(velocities=True)
    return state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)


class Recorder:
    """A reporter that keeps the positions it is given, and those that the Context has when it is called."""

    def __init__(self, interval: int, periodic: bool | None = None) -> None:
        self.interval = interval
        self.periodic = periodic
        self.given: list[np.ndarray] = []
        self.in_context: list[np.ndarray] = []

    def describeNextReport(self, simulation: app.Simulation) -> dict:
        steps = self.interval - simulation.currentStep % self.interval
        return {"steps": steps, "periodic": self.periodic, "include": ["positions"]}

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        self.given.append(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
        self.in_context.append(positions_of(simulation))
