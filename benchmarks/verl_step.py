"""What a step of verl costs with the trainer mode `knapsack` and without, on a CPU, with the engine of the tests.

    python benchmarks/verl_step.py [--rounds 3] [--steps 30]     # in the environment with verl

Runs alternate between verl's own mode `sync`, `knapsack` with the strategy `uniform`, which trains on groups of the
same size, and `knapsack` with `adaptive`. A step has 32 prompts x 8 rollouts of up to 32 tokens. The first five steps
of a run are left out. The ratio of a round is that of the medians of its two runs; "ours" is the median of
knapsack/driver_seconds over the median step of the same run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "integration" / "with_verl"))
import runs

WARM_UP = 5
SIZE = (
    "data.train_batch_size=32",
    "data.max_response_length=32",
    "actor_rollout_ref.actor.ppo_mini_batch_size=32",
    "actor_rollout_ref.rollout.n=8",
)
ARMS = {
    "sync": ("sync",),
    "knapsack, uniform": ("knapsack", "+trainer.v1.knapsack.strategy=uniform"),
    "knapsack, adaptive": ("knapsack", "+trainer.v1.knapsack.strategy=adaptive"),
}


def seconds_of(mode: str, *overrides: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every step: its time, and what of it our part of the driver took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        runs.make_data(path / "train.parquet", prompts=64)
        run = runs.run(path, *SIZE, *overrides, mode=mode, steps=steps)
        if run.code:
            sys.exit(run.output[-5000:])
        whole = np.array(run.of("timing_s/step"))[WARM_UP:]
        return whole, np.array(run.of("knapsack/driver_seconds/sum") or [0.0] * steps)[WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    asked = parser.parse_args()
    measured: dict[str, list[float]] = {name: [] for name in ARMS}
    for number in range(asked.rounds):
        for name, arm in ARMS.items():
            seconds, ours = seconds_of(*arm, steps=asked.steps)
            measured[name].append(float(np.median(seconds)))
            median, low, high = np.quantile(seconds, [0.5, 0.25, 0.75])
            share = np.median(ours) / median
            print(f"round {number + 1}, {name}: {median:.3f} s ({low:.3f} to {high:.3f}), ours {share:.4f}", flush=True)
    for name in list(ARMS)[1:]:
        ratios = np.divide(measured[name], measured["sync"])
        print(f"{name} / sync: {np.median(ratios):.3f} (rounds: {', '.join(f'{ratio:.3f}' for ratio in ratios)})")


if __name__ == "__main__":
    main()
