"""When a run evaluates, and how it samples then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from knapsack_rl.experiments.recipe.schema import Recipe

if TYPE_CHECKING:
    from datasets import Dataset

# Which problems `max_problems` keeps must not depend on the recipe's seed: runs are compared on the same ones.
_SUBSET_SEED = 0


@dataclass(frozen=True)
class Sampling:
    """How an evaluation samples, and on how many problems of a benchmark (None: all)."""

    samples: int
    temperature: float
    top_p: float
    max_completion_length: int
    max_problems: int | None

    def kept(self, problems: Dataset) -> Dataset:
        """The part of a benchmark that is used, the same for every run."""
        if self.max_problems is None or self.max_problems >= len(problems):
            return problems
        return problems.shuffle(seed=_SUBSET_SEED).select(range(self.max_problems))


def sampling(recipe: Recipe, last: bool) -> Sampling:
    """The sampling of an evaluation; `last` is the one after the last step."""
    block = recipe.evaluation
    usual = Sampling(
        samples=block.samples,
        temperature=block.temperature,
        top_p=block.top_p,
        max_completion_length=block.max_completion_length or recipe.training.max_completion_length,
        max_problems=block.max_problems,
    )
    final = block.final
    if final is None or not last:
        return usual
    return Sampling(
        samples=final.samples or usual.samples,
        temperature=final.temperature or usual.temperature,
        top_p=final.top_p or usual.top_p,
        max_completion_length=final.max_completion_length or usual.max_completion_length,
        max_problems=final.max_problems,
    )


def is_due(recipe: Recipe, step: int) -> bool:
    """Whether there is an evaluation after `step`."""
    return step % recipe.evaluation.every == 0 or step == recipe.training.steps
