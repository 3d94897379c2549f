#!/bin/bash
# Replica exchange of four states on four GPUs of two nodes. Submit it where molecule.pdb and generator.bg are, and again
# to go on: the storage is resumed. The folder has to be on a file system that all nodes see.
#SBATCH --job-name=replica-exchange
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
set -euo pipefail
source .venv/bin/activate
export OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"

# The mpiexec of the MPI library that mpi4py uses: that of the mpich wheel in .venv, or the one of the cluster's module.
mpiexec -n "$SLURM_NTASKS" python -m mpi4py replica_exchange_mpi.py molecule.pdb 1000
