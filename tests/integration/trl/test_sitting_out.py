"""A prompt without rollouts in a step: the others get them, and TRL, the records and the logs take it as it is."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest

from knapsack_rl import BudgetAllocator


@pytest.mark.parametrize(("strategy", "waves"), [("knapsack", True), ("adaptive", True), ("adaptive", False)])
def test_freed_rollouts_go_to_the_other_prompts_and_who_sat_out_is_known(make, observed, strategy, waves):
    allocator = BudgetAllocator(strategy, group_size=4, min_rollouts=0, max_rollouts=12, revisit=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        trainer = make({"max_steps": 15}, kind=observed, allocator=allocator, waves=waves)
        trainer.train()
    absent: Counter[str] = Counter()
    for batch, logged in zip(trainer.batches, trainer.state.log_history, strict=False):
        record = batch["record"]
        rollouts, names = record.plan.rollouts, [row["prompt"] for row in record.rows]
        assert rollouts.sum() == batch["rows"] == 16
        assert not np.any(rollouts == 1)
        assert Counter(batch["prompts"]) == {name: n for name, n in zip(names, rollouts, strict=True) if n}
        assert np.all(np.isnan(record.rewards) == (rollouts == 0))
        assert not np.any(record.scored[rollouts == 0])
        assert batch["metrics"]["sitting_out"] == logged["sitting_out"] == np.mean(rollouts == 0)
        for name, count in zip(names, rollouts, strict=True):
            absent[name] = 0 if count else absent[name] + 1
        assert max(absent.values()) <= 2
    assert any(np.any(batch["record"].plan.rollouts == 0) for batch in trainer.batches)
    assert allocator.sitting_out(absent).sum() >= 0
    assert allocator.metrics()["sitting_prompts"] == sum(count > 0 for count in absent.values())
