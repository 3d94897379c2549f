"""Langevin dynamics with openmm.app and a Boltzmann generator: trajectory, energies and checkpoints.

    python examples/simulation_after.py molecule.pdb 100000

`simulation_before.py` with three lines more. It reads generator.bg, as `train_your_own.py --output` makes it.
"""

from __future__ import annotations

import os
import sys

from openmm import LangevinMiddleIntegrator, app, unit

from openmm_bg import BoltzmannGenerator, BoltzmannGeneratorSampling  # NEW

pdb = app.PDBFile(sys.argv[1])
forcefield = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
system = forcefield.createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds)
integrator = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 2 * unit.femtosecond)
simulation = app.Simulation(pdb.topology, system, integrator)
resume = os.path.exists("checkpoint.xml")
if resume:
    simulation.loadState("checkpoint.xml")
else:
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin)
simulation.reporters.append(app.DCDReporter("trajectory.dcd", 500, append=resume))
simulation.reporters.append(app.StateDataReporter("energies.csv", 500, step=True, temperature=True, append=resume))
simulation.reporters.append(app.CheckpointReporter("checkpoint.xml", 500, writeState=True))
generator = BoltzmannGenerator.load("generator.bg", system=system)  # NEW
simulation.reporters.append(BoltzmannGeneratorSampling(simulation, generator, 500, log="generator.csv"))  # NEW
simulation.step(int(sys.argv[2]))
print(f"{simulation.currentStep} steps in trajectory.dcd")
