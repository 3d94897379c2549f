"""Replica exchange with a Boltzmann generator in several MPI processes, each on a GPU of its own if there are any.

    mpiexec -n 2 python -m mpi4py examples/replica_exchange_mpi.py molecule.pdb 200

`replica_exchange_after.py` for several processes: four lines more, and one question that only the first process asks.
`python -m mpi4py` ends all processes when one of them fails. examples/slurm/replica_exchange.sh starts it under Slurm.
"""

from __future__ import annotations

import sys

import mpiplus
import torch
from openmm import app, unit
from openmmtools import mcmc, multistate, states

from openmm_bg import BoltzmannGenerator, BoltzmannGeneratorMove
from openmm_bg.moves import DurableReporter, check_ranks, place_on_gpu

TEMPERATURES = (300.0, 350.0, 410.0, 480.0)
check_ranks(n_replicas=len(TEMPERATURES))

pdb = app.PDBFile(sys.argv[1])
forcefield = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
system = forcefield.createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds)
ladder = [states.ThermodynamicState(system, t * unit.kelvin) for t in TEMPERATURES]
start = states.SamplerState(pdb.positions)

generator = BoltzmannGenerator.load("generator.bg", system=system)
if torch.cuda.is_available():
    place_on_gpu(generator)
move = mcmc.LangevinDynamicsMove(timestep=2 * unit.femtosecond, collision_rate=1 / unit.picosecond, n_steps=500)
move = mcmc.SequenceMove([BoltzmannGeneratorMove(generator), move])
reporter = DurableReporter("replica_exchange.nc", checkpoint_interval=1)
if mpiplus.run_single_node(0, reporter.storage_exists, broadcast_result=True):
    sampler = multistate.ReplicaExchangeSampler.from_storage(reporter)
else:
    sampler = multistate.ReplicaExchangeSampler(mcmc_moves=move, number_of_iterations=1)
    sampler.create(ladder, [start], storage=reporter)
    sampler.minimize(tolerance=10 * unit.kilojoule_per_mole / unit.nanometer)
sampler.extend(int(sys.argv[2]))
mpiplus.run_single_node(0, print, f"{sampler.iteration} iterations in replica_exchange.nc")
