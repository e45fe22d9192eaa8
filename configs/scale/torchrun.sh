#!/usr/bin/env bash
# `lantern fit` in the processes that torchrun starts, on one machine or several.
#
#   bash configs/scale/torchrun.sh --config configs/scale/fsdp2.yaml
#
# On several machines run it on each of them, in one working folder that all see:
#
#   NODES=2 HEAD=first.machine:29500 bash configs/scale/torchrun.sh --config configs/scale/fsdp2.yaml
#
# Stopped by Ctrl-C or SIGTERM it saves the run; to go on, add --ckpt_path last.
set -euo pipefail

PROCESSES=${PROCESSES:-2}  # on each machine, one a GPU
NODES=${NODES:-1}
HEAD=${HEAD:-localhost:0}  # where machines meet; port 0 is a free one, for a single machine

exec torchrun --nnodes "$NODES" --nproc-per-node "$PROCESSES" --rdzv-backend c10d --rdzv-endpoint "$HEAD" \
  -m lantern_pl fit "$@" --trainer.devices "$PROCESSES" --trainer.num_nodes "$NODES"
