"""What the benchmarks that watch a policy in training begin with: their arguments, and the loop of a recipe."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console

from knapsack_rl.experiments.engines import ingredients
from knapsack_rl.experiments.engines.minimal.grpo import Loop, Policy
from knapsack_rl.experiments.recipe import recipe_file
from knapsack_rl.experiments.runs.progress import Display

Kind = TypeVar("Kind", bound=Loop)


def parser(description: str | None) -> argparse.ArgumentParser:
    """`[RECIPE] [KEY=VALUE ...] [--seeds SEED ...]`; one thread from here on."""
    torch.set_num_threads(1)
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("arguments", nargs="*", metavar="RECIPE, KEY=VALUE")
    made.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    return made


def loop(kind: type[Kind], arguments: list[str], seed: int) -> Kind:
    """The minimal trainer's loop with even groups."""
    file = next((Path(argument) for argument in arguments if "=" not in argument), None)
    overrides = [argument for argument in arguments if "=" in argument]
    recipe = recipe_file.read(file, [*overrides, f"seed={seed}", "trainer=minimal", "allocator.strategy=uniform"])
    with Display(Console(file=io.StringIO()), recipe.name, recipe.training.steps) as display:
        task, model, tokenizer = ingredients.problems_and_model(recipe, display)
    return kind(recipe, task, Policy(model, tokenizer, recipe.training))
