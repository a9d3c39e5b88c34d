#!/usr/bin/env bash
# Makes everything in docs/evidence again: the comparisons, then the simulations. Finished runs are kept in runs/arms, so
# that a second call takes minutes; the first takes hours of processor time. From a checkout with .venv:
#
#   bash docs/evidence/regenerate.sh [NAME ...]     NAME: a file of recipes/comparisons, simulate, probes, or smollm2-gate
#
# What is about SmolLM2 takes model and data from the hub, or from where MODEL and DATA say (docs/how-to/pretrained-models.md).
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1

smollm2=(${MODEL:+"model.path=$MODEL"} ${DATA:+"task.folder=$DATA"})

comparison() {
  local file="recipes/comparisons/$1.yaml" kept="docs/evidence/$1" name
  local jobs=() given=()
  [[ "$1" != smollm2* ]] || given=("${smollm2[@]}")
  [[ "$1" != skip-idle* && "$1" != *cost-limit && "$1" != smollm2* ]] || jobs=(--jobs 1) # where seconds are compared: one run at a time
  name=$(sed -n 's/^name: //p' "$file")
  .venv/bin/knapsack-rl compare "$file" "${jobs[@]}" "${given[@]}"
  rm -rf "$kept" && mkdir -p "$kept"
  for table in comparison.yaml summary.md summary.csv runs.csv curves.csv cost_to_reach.csv tuning.csv; do
    [ ! -e "runs/$name/$table" ] || cp "runs/$name/$table" "$kept" # without tuning there is no tuning.csv
  done
  [[ "$1" != skip-idle* ]] || cp "runs/$name/figures/accuracy-by-seconds.png" "$kept"
  for figure in accuracy-by-rollouts accuracy differences cost-to-reach effective-gradient-ratio across-settings; do
    [ ! -e "runs/$name/figures/$figure.png" ] || cp "runs/$name/figures/$figure.png" "$kept"
  done
}

# The figures of single runs of a comparison, side by side: NAME SEED ARM ...
side_by_side() {
  local name=$1 seed=$2 arm folders=()
  shift 2
  for arm in "$@"; do
    folders+=("runs/arms/$(.venv/bin/python -c 'import pandas as pd, sys
runs = pd.read_csv(sys.argv[1])
print(runs[(runs["arm"] == sys.argv[2]) & (runs["seed"] == int(sys.argv[3]))]["folder"].item())' \
      "docs/evidence/$name/runs.csv" "$arm" "$seed")")
  done
  .venv/bin/knapsack-rl report "${folders[@]}" --output "runs/$name-$seed/report.html"
  mkdir -p "docs/evidence/$name/seed-$seed"
  for figure in gradient-ratios budget-histogram transitions status-counts single-prompts; do
    cp "runs/$name-$seed/figures/$figure.png" "docs/evidence/$name/seed-$seed"
  done
}

# That uniform learns on SmolLM2, by far more than the noise.
gate() {
  .venv/bin/knapsack-rl train recipes/smollm2-word-problems.yaml "${smollm2[@]}" allocator.strategy=uniform \
    evaluation.max_problems=256 'task.benchmarks=[gsm8k-test]' seed=101 name=smollm2-gate
  .venv/bin/python benchmarks/gate.py runs/smollm2-gate
  for figure in held-out-accuracy gradient-ratios; do
    cp "runs/smollm2-gate/figures/$figure".{png,csv} docs/evidence/smollm2-gate
  done
}

# One comparison of finished runs, taken at another cost: NAME, tokens or seconds, and further words of the command.
taken_at() {
  .venv/bin/knapsack-rl compare "recipes/comparisons/$1.yaml" "equal=$2" "name=$1-at-equal-$2" "${@:3}"
  for kind in md csv; do cp "runs/$1-at-equal-$2/summary.$kind" "docs/evidence/$1/summary-at-equal-$2.$kind"; done
}

simulations() {
  local kept=docs/evidence/simulate
  .venv/bin/knapsack-rl simulate --world all --optimizer adam sgd --strategy knapsack pilot-spread adaptive \
    --output runs/worlds
  cp runs/worlds/{results.csv,settings.json} "$kept"
  .venv/bin/knapsack-rl simulate --optimizer adam sgd --seed 0 1 2 3 4 --output runs/five-seeds
  cp runs/five-seeds/results.csv "$kept/five-seeds.csv"
}

# A probe with two seeds: LABEL, and the words of the command.
probed() {
  local label=$1 seed
  shift
  for seed in 101 102; do
    .venv/bin/knapsack-rl probe "$@" "seed=$seed" "name=$label-$seed"
    mkdir -p docs/evidence/probes
    cp "runs/probe/$label-$seed/probe.json" "docs/evidence/probes/$label-$seed.json"
  done
}

probes() {
  probed demonstration training.learning_rate=1e-3
  probed wrong-keys training.learning_rate=1e-3 task.wrong_answers=0.15
  probed nothing-solved model.warm_start.steps=20
  probed string-operations recipes/string-operations.yaml
  probed everything-solved recipes/string-operations.yaml 'task.supervised_shares=[0.5, 0.5]'
  probed sorting recipes/sorting.yaml training.learning_rate=1e-3
  probed guessing recipes/guessing.yaml training.learning_rate=1e-3
  probed reasoning-gym recipes/reasoning-gym.yaml training.learning_rate=3e-4
  .venv/bin/python docs/evidence/probes.py
}

[ $# -gt 0 ] || set -- adaptive-fresh-seeds adaptive half-the-rollouts half-the-group rivals adaptive-parts learning-rates \
  adaptive-group-sizes string-operations reasoning-gym demonstration-trl demonstration ablations group-sizes skip-idle \
  skip-idle-string-operations skip-idle-reasoning-gym cost-limit reasoning-gym-cost-limit sitting-out measured-demonstration measured-sorting \
  measured-reasoning-gym measured-wrong-keys measured-string-operations measured-guessing \
  shapes-demonstration shapes-sorting half-the-group-sorting \
  rates-demonstration group-sizes-demonstration simulate probes smollm2-gate smollm2-word-problems smollm2-shapes smollm2-twice-the-group \
  smollm2-hora
for wanted in "$@"; do
  case "$wanted" in
    simulate) simulations ;;
    probes) probes ;;
    smollm2-gate) gate ;;
    *) comparison "$wanted" ;;
  esac
  if [[ "$wanted" = *cost-limit ]]; then taken_at "$wanted" tokens && taken_at "$wanted" seconds; fi
  if [ "$wanted" = smollm2-word-problems ]; then
    for cost in tokens seconds; do taken_at "$wanted" "$cost" "${smollm2[@]}"; done
    side_by_side "$wanted" 201 uniform knapsack
  fi
done
