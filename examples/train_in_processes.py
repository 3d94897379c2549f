"""Train a generator in several processes, each with its share of every batch and a GPU of its own if there are any.

    torchrun --standalone --nproc-per-node 2 examples/train_in_processes.py molecule.pdb hot.npz 3600

hot.npz are data as `TrajectoryData.save` writes them, of the same molecule at a high temperature; the number is the
seconds of training. Started without torchrun it trains in one process. It leaves generator.bg, and in training/ a
checkpoint from which it goes on when it is started again. examples/slurm/train.sh starts it under Slurm.
"""

from __future__ import annotations

import os
import sys

import torch
from openmm import app, unit

from openmm_bg import BoltzmannGenerator, SystemPotential, train
from openmm_bg.training.data import TrajectoryData

rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
if torch.cuda.is_available():
    torch.cuda.set_device(local_rank % torch.cuda.device_count())

pdb = app.PDBFile(sys.argv[1])
forcefield = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
system = forcefield.createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds)
generator = BoltzmannGenerator.from_system(system, pdb.topology, 300.0 * unit.kelvin, positions=pdb.positions, seed=1)
if torch.cuda.is_available():
    generator.to("cuda")
with SystemPotential(system, pdb.topology) as potential:
    data = TrajectoryData.load(sys.argv[2])
    seconds = float(sys.argv[3])
    history = train(generator, potential, data=data, max_seconds=seconds, folder="training", progress=rank == 0)
if rank == 0:
    generator.save("generator.bg")
    ess_fraction = history.evaluations[-1]["ess_fraction"]
    print(f"generator.bg after {history.n_energy_evaluations} energies; ESS/N {ess_fraction:.1%}")
