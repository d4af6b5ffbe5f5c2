#!/usr/bin/env bash
# Run this on every node, with the same words:
#
#     HEAD_NODE=node1 NUM_NODES=2 JOB_ID=qwen3-14b bash examples/launch/torchrun.sh +experiment=aepo_qwen3_14b
#
# HEAD_NODE is one of the nodes; all must reach its port. JOB_ID names the folder of the run, which all nodes share.
set -euo pipefail

: "${HEAD_NODE:?the name of one node, which all others reach}"
: "${JOB_ID:?a name for this run; with ckpt_path=last, the same name continues it}"
NUM_NODES="${NUM_NODES:-2}"
GPUS_PER_NODE="${GPUS_PER_NODE:-8}"
PORT="${PORT:-29400}"

# One CPU thread for each rank: the ranks share the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec torchrun \
    --nnodes "$NUM_NODES" \
    --nproc-per-node "$GPUS_PER_NODE" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$HEAD_NODE:$PORT" \
    --rdzv-id "$JOB_ID" \
    train.py \
    strategy=fsdp \
    trainer.num_nodes="$NUM_NODES" \
    trainer.devices="$GPUS_PER_NODE" \
    "$@"
