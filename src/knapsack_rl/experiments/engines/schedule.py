"""When a run evaluates, how it samples then, and what the rewards come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.advantages import is_success
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


class Score(NamedTuple):
    """What an evaluation found on a benchmark; problems without a scored sample are left out."""

    accuracy: float
    """Mean over problems of the mean reward of their samples: pass@1 where rewards are 0 and 1."""
    solved: float
    """Share of problems that at least one of their k samples solves: pass@k."""

    @staticmethod
    def of(rewards: NDArray[np.float64]) -> Score:
        """From the rewards, shape (problems, samples), NaN where the verifier gave none."""
        seen = rewards[~np.isnan(rewards).all(axis=1)]
        if not len(seen):
            return Score(float("nan"), float("nan"))
        return Score(float(np.nanmean(seen, axis=1).mean()), float(is_success(seen).any(axis=1).mean()))


def recorded(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """The scores by benchmark, as the record of an evaluation holds them."""
    return {
        "evaluation": {name: score.accuracy for name, score in scores.items()},
        "solved": {name: score.solved for name, score in scores.items()},
    }


def is_due(recipe: Recipe, step: int) -> bool:
    """Whether there is an evaluation after `step`."""
    return step % recipe.evaluation.every == 0 or step == recipe.training.steps
