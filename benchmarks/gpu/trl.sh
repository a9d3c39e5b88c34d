#!/usr/bin/env bash
# What skip_idle and waves cost and save in TRL on a GPU, checked against float64 on the CPU: at most eight minutes, no
# network, one JSON (measure.py documents it).
#
#     bash benchmarks/gpu/trl.sh [--output gpu-trl.json]
#     bash benchmarks/gpu/trl.sh --dry                     # a tiny model for some seconds on the CPU
set -euo pipefail
cd "$(dirname "$0")/../.."
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" # one: Trainer would split a batch over several
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH="src:benchmarks${PYTHONPATH:+:$PYTHONPATH}"
exec timeout 480 "${PYTHON:-python}" benchmarks/gpu/measure.py "$@"
