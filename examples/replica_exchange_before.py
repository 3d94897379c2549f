"""Replica exchange over temperatures with openmmtools, stored and resumable.

    python examples/replica_exchange_before.py molecule.pdb 200

A script as people have it. `replica_exchange_after.py` is the same one with a Boltzmann generator in it.
"""

from __future__ import annotations

import sys

from openmm import app, unit
from openmmtools import mcmc, multistate, states

pdb = app.PDBFile(sys.argv[1])
forcefield = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
system = forcefield.createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds)
ladder = [states.ThermodynamicState(system, t * unit.kelvin) for t in (300.0, 350.0, 410.0, 480.0)]
start = states.SamplerState(pdb.positions)

move = mcmc.LangevinDynamicsMove(timestep=2 * unit.femtosecond, collision_rate=1 / unit.picosecond, n_steps=500)
reporter = multistate.MultiStateReporter("replica_exchange.nc", checkpoint_interval=1)
if reporter.storage_exists():
    sampler = multistate.ReplicaExchangeSampler.from_storage(reporter)
else:
    sampler = multistate.ReplicaExchangeSampler(mcmc_moves=move, number_of_iterations=1)
    sampler.create(ladder, [start], storage=reporter)
    sampler.minimize(tolerance=10 * unit.kilojoule_per_mole / unit.nanometer)
sampler.extend(int(sys.argv[2]))
print(f"{sampler.iteration} iterations in replica_exchange.nc")
