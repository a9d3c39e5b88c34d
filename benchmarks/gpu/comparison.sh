#!/usr/bin/env bash
# The comparison on a pretrained model, trained by TRL on a GPU: as many of its runs as eight minutes have room for. Called
# again, it goes on where it stopped; the call that makes the last run writes the page and the tables to runs/NAME.
# Without dynamic sampling and the oracle, which TRL cannot train.
#
#     bash benchmarks/gpu/comparison.sh [KEY=VALUE ...]    such as model.path=MODEL task.folder=DATA name=larger
#     bash benchmarks/gpu/comparison.sh --dry              a tiny model and a few problems, on the CPU
set -euo pipefail
cd "$(dirname "$0")/../.."
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" # one: Trainer would split a batch over several
export TOKENIZERS_PARALLELISM=false PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python}

settings=(trainer=trl)
settings+=('arms=[uniform, knapsack, adaptive, cautious, measured, adaptive-learnability, hora, uniform-twice-the-group, uniform-twice-the-steps]')
if [ "${1:-}" = --dry ]; then
  shift
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  "$python" benchmarks/small_problems.py "$scratch"
  settings+=("model.path=$scratch/model" "task.folder=$scratch/data" task.held_out=0.2 task.train_problems=32)
  settings+=('arms=[uniform, measured]' 'seeds=[1]' 'tuning.seeds=[2]' --output "$scratch/runs")
  settings+=(training.steps=2 training.prompts_per_step=4 training.micro_batch_size=16 model.warm_start.steps=4)
  settings+=(evaluation.every=2 evaluation.samples=2)
fi
code=0
timeout --signal=TERM --kill-after=60 480 "$python" -m knapsack_rl.cli compare \
  recipes/comparisons/smollm2-word-problems.yaml --jobs 1 "${settings[@]}" "$@" || code=$?
if [ "$code" = 124 ] || [ "$code" = 137 ]; then echo "The eight minutes are over. The same command goes on."; fi
exit "$code"
