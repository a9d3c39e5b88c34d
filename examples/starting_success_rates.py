"""How hard a recipe's problems are for its small model before reinforcement learning.

Takes the recipe's task and model (from the cache of warm starts, or trained now), samples each of the first training
problems at temperature 1, and prints how the success rates are spread in each category:

    python examples/starting_success_rates.py                                             # the demonstration
    python examples/starting_success_rates.py recipes/reasoning-gym.yaml --problems 512 --samples 16
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from knapsack_rl.experiments.engines.warm_start import warm_started
from knapsack_rl.experiments.recipe import recipe_file
from knapsack_rl.tasks import load_task

KINDS = ["never solved", "below 1/3", "middle", "above 2/3", "always solved"]
KIND_EDGES = [1e-9, 1 / 3, 2 / 3, 1 - 1e-9]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("recipe", nargs="?", type=Path, help="a YAML file; by default the embedded demonstration")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--problems", type=int, default=320)
    options.add_argument("--samples", type=int, default=64)
    chosen = options.parse_args()

    recipe = recipe_file.read(chosen.recipe, [f"seed={chosen.seed}"])
    model, tokenizer = warm_started(recipe.model, recipe.task, recipe.seed)
    task = load_task(recipe.task, recipe.seed)
    torch.manual_seed(recipe.seed)

    problems = task.train.select(range(min(chosen.problems, len(task.train))))
    columns = {name: list(problems[name]) for name in problems.column_names if name != "prompt"}
    prompts, length = list(problems["prompt"]), recipe.training.max_completion_length
    tries = [
        task.reward(prompts=prompts, completions=texts, **columns)
        for texts in sampled(model, tokenizer, prompts, length, chosen.samples)
    ]
    rates = np.mean(np.array(tries, dtype=float), axis=0)

    title = f"{recipe.name}, seed {recipe.seed}: {len(prompts)} problems x {chosen.samples} samples"
    table = Table("category", *KINDS, "mean", title=title)
    categories = np.array(columns["category"])
    for category in sorted(set(categories), key=lambda name: rates[categories == name].mean()):
        table.add_row(category, *spread(rates[categories == category]))
    table.add_section()
    table.add_row("all", *spread(rates))
    Console().print(table)


def sampled(model: Any, tokenizer: Any, prompts: list[str], length: int, samples: int) -> Iterator[list[str]]:
    """`samples` times one completion of at most `length` tokens per prompt."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    for _ in range(samples):
        tokens = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=length)
        yield tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def spread(rates: np.ndarray) -> list[str]:
    """Numbers of problems of each kind, and the mean."""
    counts = np.bincount(np.digitize(rates, KIND_EDGES), minlength=len(KINDS))
    return [*map(str, counts), f"{rates.mean():.2f}"]


if __name__ == "__main__":
    main()
