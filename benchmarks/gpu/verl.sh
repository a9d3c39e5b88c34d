#!/usr/bin/env bash
# What a step of verl takes on a GPU with the trainer mode `knapsack` and without: at most eight minutes, no network, one
# JSON (measure_verl.py documents it). It installs nothing: verl must be there, with vllm or sglang.
#
#     bash benchmarks/gpu/verl.sh [--output gpu-verl.json]
#     bash benchmarks/gpu/verl.sh --dry                    # a tiny model for a minute or two on the CPU
set -euo pipefail
cd "$(dirname "$0")/../.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
exec timeout 480 "${PYTHON:-python}" benchmarks/gpu/measure_verl.py "$@"
