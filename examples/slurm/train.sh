#!/bin/bash
# Training on four GPUs of two nodes: one torchrun a node, one process a GPU. Submit it where molecule.pdb and hot.npz
# are, and again to go on from the checkpoint. The folder has to be on a file system that all nodes see.
#SBATCH --job-name=train-generator
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
set -euo pipefail
source .venv/bin/activate
export OMP_NUM_THREADS=4
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 2 \
  --rdzv-backend c10d --rdzv-endpoint "$first_node:29500" --rdzv-id "$SLURM_JOB_ID" \
  train_in_processes.py molecule.pdb hot.npz 10800
