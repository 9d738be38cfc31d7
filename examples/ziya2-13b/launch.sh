#!/usr/bin/env bash
# One stage on one or more machines with torchrun. On each machine:
#   NODES=10 NODE=0 HEAD=10.0.0.1 examples/ziya2-13b/launch.sh examples/ziya2-13b/stage1.toml [--section.key value ...]
set -euo pipefail
exec torchrun --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" --nproc-per-node "${GPUS:-8}" \
    --master-addr "${HEAD:-localhost}" --master-port "${PORT:-29500}" -m megatron_ziya.train "$@"
