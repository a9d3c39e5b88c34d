"""What a task is: problems to train on, problems to be examined on, and a verifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Task:
    """Verifiable problems.

    Every data set has the columns `prompt` (a string, or a list of `{"role", "content"}` messages) and `id`
    (a string that names the problem in every run), whatever the reward needs, and `category` where one is known.

    Attributes:
        train: problems to train on.
        evaluation: held-out problems by the name of their benchmark; none of them is in `train`.
        reward: a reward function as TRL calls it, `reward(prompts, completions, **columns)`: 1.0 or 0.0 per
            completion, None where nothing could be verified. Its `__name__` is the name of the metric.
    """

    train: Dataset
    evaluation: dict[str, Dataset]
    reward: Callable[..., list[float | None]]


def by_category(
    problems: Sequence[dict[str, str]], train_problems: int, reward: Callable[..., list[float | None]]
) -> Task:
    """A task whose first problems are trained on; the others are a benchmark for each category, by its name."""
    from datasets import Dataset

    held_out: dict[str, list[dict[str, str]]] = {}
    for problem in problems[train_problems:]:
        held_out.setdefault(problem["category"], []).append(problem)
    return Task(
        train=Dataset.from_list(list(problems[:train_problems])),
        evaluation={name: Dataset.from_list(held_out[name]) for name in sorted(held_out)},
        reward=reward,
    )
