"""What an allocator would have planned at each step of a log, from what was known before that step and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.allocator import BudgetAllocator
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit.accounting import Log
from knapsack_rl.metrics import STATUSES, status
from knapsack_rl.validation import as_integer

Ints = NDArray[np.int64]

# What the last visit of a prompt said of it when a step was planned.
BELIEFS = ("never visited", *STATUSES)


@dataclass(frozen=True)
class Replay:
    """Plans for the groups of a log.

    Attributes:
        planned: rollouts that each group would have got; those of a step add up to what was spent in it.
        belief: position in `BELIEFS` of what the visit before said of each group's prompt.
        outside: steps whose spending no plan within the bounds per prompt could meet; they are taken as even.
    """

    planned: Ints
    belief: Ints
    outside: int


def planner(strategy: str, min_rollouts: int, max_rollouts: int) -> BudgetAllocator:
    """An allocator that knows nothing yet.

    Raises:
        InvalidInputError: the strategy is unknown or a bound is out of range.
    """
    low, high = (
        as_integer("min_rollouts", min_rollouts, at_least=1),
        as_integer("max_rollouts", max_rollouts, at_least=1),
    )
    if low > high:
        raise InvalidInputError(f"min_rollouts, max_rollouts: expected min <= max, got {low} and {high}.")
    return BudgetAllocator(strategy, low, low, high)


def replay(log: Log, strategy: str = "knapsack", min_rollouts: int = 2, max_rollouts: int = 128) -> Replay:
    """Go through the log step by step: plan, then tell the allocator what the log says came back.

    A step's budget is what was spent in it.

    Raises:
        InvalidInputError: the strategy is unknown or a bound is out of range.

    Cost: that of the allocator's `ask` and `tell`, about a microsecond a rollout.
    """
    allocator = planner(strategy, min_rollouts, max_rollouts)
    planned, belief = np.zeros_like(log.rollouts), np.zeros_like(log.rollouts)
    last, outside = np.zeros(len(log.keys), dtype=np.int64), 0
    bounds = np.flatnonzero(np.diff(log.step, prepend=log.step[:1] - 1, append=log.step[-1:] + 1))
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        of_step = slice(start, end)
        prompts = log.prompt[of_step].tolist()
        spent, many = int(log.rollouts[of_step].sum()), len(prompts)
        belief[of_step] = last[log.prompt[of_step]]
        if many * min_rollouts <= spent <= many * max_rollouts:
            plan = allocator.ask(prompts, budget=spent).rollouts
        else:
            outside += 1
            plan = spent // many + (np.arange(many) < spent % many)
        planned[of_step] = plan
        allocator.tell(prompts, log.successes[of_step], log.rollouts[of_step])
        last[log.prompt[of_step]] = 1 + status(log.successes[of_step] / log.rollouts[of_step])
    return Replay(planned, belief, outside)
