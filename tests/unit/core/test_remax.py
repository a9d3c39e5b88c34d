"""ReMax by ask and tell: what the greedy response earned is an observation, and decides what rollouts are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import knapsack_rl as kr

IDS = ["hard", "won by luck", "even", "easy", "unknown"]
WON, TRIED = [0, 1, 4, 7, 6], [8, 8, 8, 8, 8]
GREEDY = [1, 0, 1, 0, np.nan]


def told(strategy: str = "knapsack") -> kr.BudgetAllocator:
    allocator = kr.BudgetAllocator(strategy, 16, algorithm="remax")
    allocator.tell(IDS, WON, TRIED, greedy=GREEDY)
    return allocator


def test_the_greedy_response_is_one_more_observation() -> None:
    rates = told().success_rates([*IDS, "never seen"])
    assert rates == pytest.approx([1 / 9, 1 / 9, 5 / 9, 7 / 9, 6 / 8, np.nan], nan_ok=True)


def test_a_plan_is_that_of_the_paper_where_rollouts_are_compared_with_the_newest_greedy_response() -> None:
    allocator = told()
    p = np.array([1 / 9, 1 / 9, 5 / 9, 7 / 9, 6 / 8, np.nan])
    agreement = [p[0], 1 - p[1], p[2], 1 - p[3], p[4], np.nan]  # most rollouts of the last known one are right
    expected = kr.allocate(p, 96, algorithm="remax", greedy_agreement=agreement)
    plan = allocator.ask([*IDS, "never seen"])
    assert plan.rollouts.tolist() == expected.rollouts.tolist()
    assert plan.value == pytest.approx(expected.value)
    # Nearly every rollout of the first differs from its greedy response; of the second, hardly any.
    assert plan.rollouts[0] < plan.rollouts[1]

    allocator.tell(["hard", "hard"], [0, 0], [4, 4], greedy=[1, 0])  # the last one counts
    allocator.tell(["easy"], [7], [8])  # says nothing of the greedy response
    p[0], p[3] = 1 / 10, 7 / 8
    agreement[0], agreement[3] = 1 - p[0], 1 - p[3]
    again = kr.allocate(p[:5], 80, algorithm="remax", greedy_agreement=agreement[:5])
    assert allocator.ask(IDS).rollouts.tolist() == again.rollouts.tolist()


@pytest.mark.parametrize("strategy", ["uniform", "knapsack", "knapsack-window"])
def test_a_saved_state_makes_the_same_plan(tmp_path: Path, strategy: str) -> None:
    allocator = told(strategy)
    allocator.save(tmp_path / "state.npz")
    again = kr.BudgetAllocator(strategy, 16, algorithm="remax")
    again.load(tmp_path / "state.npz")
    for other in (again, allocator.copy()):
        assert other.ask(IDS).rollouts.tolist() == allocator.ask(IDS).rollouts.tolist()
        assert other.ask(IDS).value == allocator.ask(IDS).value
    saved = allocator.state_dict()["greedy"]
    assert saved["succeeded"].dtype == np.int8


def test_a_damaged_outcome_is_refused_and_changes_nothing() -> None:
    allocator = told()
    state, before = allocator.state_dict(), allocator.ask(IDS).rollouts.tolist()
    state["greedy"]["succeeded"][0] = 2
    with pytest.raises(kr.StateError, match="greedy responses that are 0 or 1"):
        allocator.load_state_dict(state)
    with pytest.raises(kr.StateError, match="the state of greedy"):
        allocator.load_state_dict(state | {"greedy": [1]})
    assert allocator.ask(IDS).rollouts.tolist() == before


@pytest.mark.parametrize("greedy", [[1, 0], [1, 0, 1, 0, 2], [1, 0, 1, 0, 0.5], 1.0])
def test_what_is_no_outcome_is_refused_and_teaches_nothing(greedy) -> None:
    allocator = kr.BudgetAllocator(algorithm="remax")
    with pytest.raises(kr.InvalidInputError, match=r"greedy: expected 1 .right., 0 .wrong. or NaN .not known."):
        allocator.tell(IDS, WON, TRIED, greedy=greedy)
    assert allocator.metrics() == {"known_prompts": 0.0}


def test_other_algorithms_have_no_use_for_it() -> None:
    with pytest.raises(kr.InvalidInputError, match=r"greedy: only algorithm='remax' .* got algorithm='grpo'"):
        kr.BudgetAllocator().tell(IDS, WON, TRIED, greedy=GREEDY)


@pytest.mark.parametrize("strategy", kr.strategies())
def test_a_strategy_that_takes_it_plans_with_it(strategy: str) -> None:
    try:
        allocator = kr.BudgetAllocator(strategy, algorithm="remax")
    except kr.InvalidInputError:
        return
    for _ in range(2):
        rollouts = allocator.ask(IDS).rollouts
        assert rollouts.sum() == 8 * len(IDS)
        allocator.tell(IDS, rollouts // 2, rollouts, greedy=GREEDY)


def test_what_looks_at_the_other_rollouts_of_a_group_is_refused() -> None:
    with pytest.raises(kr.InvalidInputError, match=r"algorithm: the strategy 'adaptive' .* Use .* 'knapsack'"):
        kr.BudgetAllocator("adaptive", algorithm="remax")
    for strategy in ("knapsack-discounted", "knapsack-transitions", "knapsack-regression"):
        message = f"algorithm: expected one of grpo, rloo, reinforce, got 'remax' .* '{strategy}'.* Use .* 'knapsack'"
        with pytest.raises(kr.InvalidInputError, match=message):
            kr.BudgetAllocator(strategy, algorithm="remax")
    with pytest.raises(kr.InvalidInputError, match=r"algorithm: 'remax' has to be told .* Use the allocator's ask"):
        told().step(IDS)
