"""Every strategy trains in TRL, and so does one of the user's own; where no plan can differ, the trainer says so."""

from __future__ import annotations

from typing import Any

import pytest

import knapsack_rl as kr
from knapsack_rl.estimators import DiscountedBeta
from knapsack_rl.testing import check_strategy


@pytest.mark.parametrize("strategy", kr.strategies())
def test_every_strategy_trains(make, observed, strategy: str) -> None:
    trainer = make(kind=observed, allocator=kr.BudgetAllocator(strategy, group_size=4, max_rollouts=10))
    ids = [trainer._prompt_id(row) for row in trainer.train_dataset]
    for _ in range(30):  # so that prompts are believed to differ from the first step on
        trainer.allocator.tell(ids, [number % 5 for number in range(len(ids))], [4] * len(ids))
    trainer.train()
    assert len(trainer.batches) == 6
    for batch in trainer.batches:
        record = batch["record"]
        assert batch["rows"] == record.plan.rollouts.sum() == record.scored.sum() == 16
        assert record.plan.rollouts.min() >= 2
    uneven = [len(set(batch["record"].plan.rollouts.tolist())) > 1 for batch in trainer.batches]
    assert any(uneven) == (strategy not in ("uniform", "cautious"))  # which has seen nothing yet


def fewest_successes_first(view: kr.View[Any], amount: int) -> kr.Plan:
    return view.plan(view.even(amount, view.belief.mean < 0.5))


def test_a_strategy_of_ones_own_trains(make, observed) -> None:
    mine = kr.Strategy(DiscountedBeta, fewest_successes_first)
    check_strategy(mine, cases=10)
    trainer = make(kind=observed, allocator=kr.BudgetAllocator(mine, group_size=4))
    trainer.train()
    assert trainer.allocator.strategy == "fewest-successes-first"
    assert any(len(set(batch["record"].plan.rollouts.tolist())) > 1 for batch in trainer.batches)


def test_one_prompt_in_a_generation_batch_is_said_with_the_change_to_make(make) -> None:
    with pytest.warns(UserWarning, match=r"no plan can be uneven\. A step has one prompt.*per_device_train_batch_size"):
        make({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "steps_per_generation": 1})


def test_a_bound_at_the_mean_is_said_with_the_change_to_make(make) -> None:
    with pytest.warns(UserWarning, match=r"no plan can be uneven\. min_rollouts .* both 4.*Lower min_rollouts"):
        make(allocator=kr.BudgetAllocator("knapsack", group_size=4, min_rollouts=4))


def test_uniform_is_even_without_a_word(make) -> None:
    make(allocator=kr.BudgetAllocator("uniform", group_size=4, min_rollouts=4))
