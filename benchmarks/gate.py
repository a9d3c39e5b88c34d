"""Whether a run has learned: held-out accuracy of its end less that of its start, with its standard error.

    python benchmarks/gate.py runs/NAME

Both models answer the same problems, benchmark by benchmark, as in the run's evaluations. The error is that of a mean
of paired differences: the problems are a sample, and so are the answers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from knapsack_rl.experiments.engines import ingredients, models
from knapsack_rl.experiments.engines.minimal import run
from knapsack_rl.experiments.engines.minimal.grpo import Loop
from knapsack_rl.experiments.engines.schedule import sampling
from knapsack_rl.experiments.recipe import recipe_file
from knapsack_rl.experiments.runs.progress import Display


def rates(loop: Loop) -> dict[str, NDArray[np.float64]]:
    """Success rate of every problem of each benchmark."""
    how = sampling(loop.recipe, last=True)
    found: dict[str, NDArray[np.float64]] = {}
    for name, benchmark in loop.task.evaluation.items():
        rewarded = []
        problems = how.kept(benchmark)
        random = torch.Generator().manual_seed(loop.recipe.seed)
        for start in range(0, len(problems), 32):
            part = problems[start : start + 32]
            counts = np.full(len(part["prompt"]), how.samples)
            *_, rewards = loop.sampled({key: list(column) for key, column in part.items()}, counts, how, random)
            rewarded.append(rewards.reshape(-1, how.samples).mean(axis=1))
        found[name] = np.concatenate(rewarded)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a run of the minimal trainer")
    folder = parser.parse_args().run
    torch.set_num_threads(1)
    recipe = recipe_file.read(folder / "recipe.yaml", [])
    with Display(Console(), recipe.name, 1) as display:
        task, model, tokenizer = ingredients.problems_and_model(recipe, display)
    finished: dict[str, Any] = {"path": str(folder / "model"), "warm_start": None}
    if recipe.model.kind == "scratch":
        raise SystemExit("model: expected a run of a pretrained model, whose noise this is about.")
    trained, _ = models.pretrained(recipe.model.model_copy(update=finished))
    before, after = (rates(Loop(recipe, task, run.policy(recipe, policy, tokenizer))) for policy in (model, trained))
    for name, start in before.items():
        rise = after[name] - start
        error = rise.std(ddof=1) / np.sqrt(len(rise))
        print(f"{name}: {len(rise)} problems, {start.mean():.4f} before, {after[name].mean():.4f} after")
        print(f"  rise {rise.mean():.4f}, standard error {error:.4f}: {rise.mean() / error:.1f} standard errors")
        print(f"  better {np.mean(rise > 0):.3f}, worse {np.mean(rise < 0):.3f} of the problems")


if __name__ == "__main__":
    main()
