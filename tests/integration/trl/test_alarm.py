"""A grader that breaks while the real trainer trains."""

from __future__ import annotations

import logging

import small

from knapsack_rl import BudgetAllocator


def test_a_category_whose_grader_breaks_is_named_once_with_examples_of_its_prompts(make, caplog):
    rows = small.rows(12).map(lambda row, i: {"source": "ab"[i % 2], "ease": 0.5}, with_indices=True)
    calls = []

    def grader(completion_ids, ease, source, **columns):
        calls.append(source)
        rewards = small.luck(completion_ids, ease)
        broken = len(calls) > 20
        return [0.0 if broken and where == "a" else reward for reward, where in zip(rewards, source, strict=True)]

    with caplog.at_level(logging.WARNING, logger="knapsack_rl"):
        trainer = make(
            {"max_steps": 36, "remove_unused_columns": False},
            train_dataset=rows,
            allocator=BudgetAllocator("uniform", group_size=4, max_rollouts=10),
            reward_funcs=grader,
            watch_columns=["source"],
        )
        trainer.train()
    said = [record.getMessage() for record in caplog.records if "a success" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("source 'a': none of its last")
    assert "Prompts: 'w" in said[0]
    last = [step for step in trainer.state.log_history if "alarms" in step][-1]
    assert last["alarms"] == 1.0
    assert last["category/source/a/success"] == 0.0
