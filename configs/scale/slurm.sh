#!/usr/bin/env bash
#SBATCH --job-name=lantern
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@180
#
# `lantern fit` as a SLURM job: a task a GPU, in a working folder that all nodes see, with lantern on the PATH.
#
#   sbatch configs/scale/slurm.sh runs/fsdp2 --config configs/scale/fsdp2.yaml
#
# The first argument is the run's folder. Three minutes before its time is up the job saves the run and ends; sent again, it
# goes on from there.
set -euo pipefail

RUN_DIR=$1
shift
if compgen -G "$RUN_DIR/checkpoints/*.ckpt" > /dev/null; then
  set -- "$@" --ckpt_path last
fi

# Lightning's own requeueing saves in the middle of a step, which tasks that share a student can't.
SLURM='[{class_path: lightning.pytorch.plugins.environments.SLURMEnvironment, init_args: {auto_requeue: false}}]'

srun lantern fit "$@" --run_dir "$RUN_DIR" --trainer.plugins "$SLURM" \
  --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.num_nodes "$SLURM_NNODES"
