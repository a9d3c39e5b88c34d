"""A step that was begun with `place` goes on in another process."""

from __future__ import annotations

import numpy as np
import pytest

import knapsack_rl as kr

IDS = [f"prompt {number}" for number in range(6)]


def allocator_of(strategy: str) -> kr.BudgetAllocator:
    allocator = kr.BudgetAllocator(strategy, 8)
    allocator.tell(IDS, [0, 1, 2, 6, 7, 8], [8] * 6, costs=[10.0] * 6)
    return allocator


@pytest.mark.parametrize("strategy", kr.strategies())
def test_a_step_that_is_restored_places_and_teaches_what_the_saved_one_does(strategy: str) -> None:
    random, plans, rates, found = np.random.default_rng(0), [], [], []
    allocators = allocator_of(strategy), allocator_of(strategy)
    for allocator in allocators:
        allocator.on_step = found.append
    steps = [allocator.step(IDS) for allocator in allocators]
    steps[0].place(30)
    ended = random.binomial(steps[0].in_flight, 0.5)
    won = random.binomial(ended, 0.5)
    steps[0].report(won, ended, costs=ended * 2.0)
    steps[1].load_state_dict(steps[0].state_dict())
    seeds = np.random.default_rng(1), np.random.default_rng(1)
    for allocator, step, draw in zip(allocators, steps, seeds, strict=True):
        placed = []
        while step.remaining:
            placed.append(step.place(5).rollouts.tolist())
            step.report(draw.binomial(step.in_flight, 0.5), step.in_flight)
        plans.append(placed)
        rates.append(allocator.success_rates(IDS).tolist())
    assert plans[0] == plans[1]
    assert rates[0] == rates[1]
    assert found[0] == found[1]


def test_a_step_that_placed_nothing_has_no_state_and_a_state_of_other_prompts_is_refused() -> None:
    allocator = allocator_of("knapsack")
    with pytest.raises(kr.StateError, match="only one that was begun with place can be saved"):
        allocator.step(IDS).state_dict()
    step = allocator.step(IDS)
    step.place(48)
    with pytest.raises(kr.StateError, match="expected that of a step"):
        allocator.step(IDS[:3]).load_state_dict(step.state_dict())
    with pytest.raises(kr.StateError, match="begun the other way"):
        step.load_state_dict(step.state_dict())
