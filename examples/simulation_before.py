"""Langevin dynamics with openmm.app: trajectory, energies and checkpoints; run it again to go on.

    python examples/simulation_before.py molecule.pdb 100000

A script as people have it. `simulation_after.py` is the same one with a Boltzmann generator in it.
"""

from __future__ import annotations

import os
import sys

from openmm import LangevinMiddleIntegrator, app, unit

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
simulation.step(int(sys.argv[2]))
print(f"{simulation.currentStep} steps in trajectory.dcd")
