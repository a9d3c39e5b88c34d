"""The fewest rollouts that a prompt gets at a visit (docs/reliability.md says so for each strategy)."""

from __future__ import annotations

import numpy as np
import pytest

import knapsack_rl as kr

GROUP, LEAST = 16, 1
A_QUARTER = ("pilot-commit", "reinforce-ada")
BELIEFS = (
    "adaptive",
    "adaptive-learnability",
    "measured",
    "hora",
    "knapsack-discounted",
    "knapsack-transitions",
    "knapsack-regression",
    "neyman",
)
"""Those whose doubt keeps most prompts above the minimum, which bounds them all the same."""
IDS = [f"prompt {i}" for i in range(24)]


@pytest.mark.parametrize("strategy", kr.strategies())
def test_the_floor_is_the_minimum_the_quarter_that_everyone_gets_first_or_of_even_groups_the_group(
    strategy: str,
) -> None:
    floor = {"uniform": GROUP, "cautious": GROUP, **dict.fromkeys(A_QUARTER, GROUP // 4)}.get(strategy, LEAST)
    random = np.random.default_rng(0)
    rates = random.choice([0.0, 0.0, 0.1, 0.5, 0.9, 1.0, 1.0], len(IDS))
    allocator, fewest = kr.BudgetAllocator(strategy, GROUP, LEAST), GROUP
    for _ in range(12):
        step = allocator.step(IDS)
        while step.remaining:
            more = step.ask().rollouts
            step.tell(random.binomial(more, rates), more)
        fewest = min(fewest, int(step.placed.min()))
    assert fewest >= floor if strategy in BELIEFS else fewest == floor
