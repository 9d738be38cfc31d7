#!/usr/bin/env bash
# sbatch examples/ziya2-13b/slurm.sh examples/ziya2-13b/stage1.toml
# A requeued job goes on from the newest checkpoint of the run directory.
#SBATCH --job-name=ziya2-13b
#SBATCH --nodes=10
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --requeue
set -euo pipefail
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD NODES=$SLURM_JOB_NUM_NODES
srun bash -c 'NODE=$SLURM_NODEID exec examples/ziya2-13b/launch.sh "$@"' launch "$@"
