"""What both trainers start from: the problems, the model and the allocator of a recipe."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import knapsack_rl as kr
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.engines.warm_start import warm_started
from knapsack_rl.experiments.recipe.schema import ORACLE, Recipe
from knapsack_rl.experiments.runs import manifest
from knapsack_rl.experiments.runs.progress import Display
from knapsack_rl.tasks import Task, load_task


def problems_and_model(recipe: Recipe, display: Display) -> tuple[Task, Any, Any]:
    """The task, the model and its tokenizer.

    Raises:
        InvalidInputError: a step takes more prompts than there are problems, or the model is damaged or cannot be
            loaded.
        MissingExtraError: the task needs a package that is not installed.
    """
    display.phase("making the problems")
    task = problems(recipe)
    display.phase("making the model")
    if recipe.model.kind == "pretrained":
        folder = Path(recipe.model.path)
        if (folder / manifest.MANIFEST).is_file() and (why := manifest.damage(folder)):
            raise InvalidInputError(f"model.path: {folder} is damaged: {why}. Choose another checkpoint of that run.")
    return task, *warm_started(recipe.model, recipe.task, recipe.seed, on_step=display.warm_start)


def problems(recipe: Recipe) -> Task:
    """The task.

    Raises:
        InvalidInputError: a step takes more prompts than there are problems.
        MissingExtraError: the task needs a package that is not installed.
    """
    task = load_task(recipe.task, recipe.seed)
    if len(task.train) < recipe.training.prompts_per_step:
        raise InvalidInputError(
            f"training.prompts_per_step: expected at most the {len(task.train)} problems that the task has to train "
            f"on, got {recipe.training.prompts_per_step}."
        )
    return task


def feature_columns(recipe: Recipe, task: Task) -> list[str]:
    """Columns of the problems that the allocator is told.

    Raises:
        InvalidInputError: the task has no such column.
    """
    present = task.train.column_names
    if recipe.allocator.features is None:
        return [name for name in ("category",) if name in present]
    for name in recipe.allocator.features:
        if name not in present:
            raise InvalidInputError(
                f"allocator.features: expected columns of the problems ({', '.join(present)}), got {name!r}."
            )
    return recipe.allocator.features


def allocator(recipe: Recipe) -> kr.BudgetAllocator:
    """The recipe's allocator."""
    settings = recipe.allocator
    strategy: Any = settings.strategy
    if strategy == ORACLE:
        strategy = import_module("knapsack_rl.experiments.engines.minimal.oracle").STRATEGY  # which needs PyTorch
    return kr.BudgetAllocator(
        strategy=strategy,
        group_size=recipe.training.group_size,
        min_rollouts=settings.min_rollouts,
        max_rollouts=settings.max_rollouts,
        revisit=settings.revisit,
        fallback=settings.fallback,
        confidence=settings.confidence,
        cost_limit=settings.cost_limit,
        seed=recipe.seed,
    )


def remarks(recipe: Recipe) -> list[tuple[str, str]]:
    """What somebody should know before a run, in (label, text) rows: why no plan of it can be uneven, if none can."""
    why = allocator(recipe).explain_even(recipe.training.prompts_per_step, "Raise training.prompts_per_step.")
    return [] if why is None else [("plans", why)]
