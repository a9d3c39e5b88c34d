"""What goes through TRL's own logging, recomputed rollout by rollout from the completions that TRL logs."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from knapsack_rl import BudgetAllocator
from knapsack_rl.step import Step


def test_metrics_of_a_step_follow_from_its_logged_completions(make, tmp_path):
    trainer = make({"max_steps": 9, "log_completions": True, "num_completions_to_print": 0})
    trainer.train()
    steps = [step for step in trainer.state.log_history if "effective_gradient_ratio" in step]
    assert len(steps) == 9
    for step in steps:
        table = pd.read_parquet(tmp_path / "completions" / f"completions_{step['step']:05d}.parquet")
        groups = defaultdict(list)
        for prompt, reward in zip(table["prompt"], table["luck"], strict=True):
            groups[prompt].append(reward)
        mixed = [rewards for rewards in groups.values() if len(set(rewards)) > 1]
        expected = {
            "effective_gradient_ratio": sum(map(len, mixed)) / 16,
            "effective_prompts": len(mixed) / 4,
            "zero_gradient_ratio/all_positive": sum(set(rewards) == {1.0} for rewards in groups.values()) / 4,
            "zero_gradient_ratio/all_negative": sum(set(rewards) == {0.0} for rewards in groups.values()) / 4,
            "prompt_reward": np.mean([np.mean(rewards) for rewards in groups.values()]),
            "reward": table["luck"].mean(),
            "frac_reward_zero_std": 1 - sum(map(len, mixed)) / 16,
            "rollouts/min": min(map(len, groups.values())),
            "rollouts/q25": np.quantile([len(rewards) for rewards in groups.values()], 0.25),
            "rollouts/median": np.median([len(rewards) for rewards in groups.values()]),
            "rollouts/q75": np.quantile([len(rewards) for rewards in groups.values()], 0.75),
            "rollouts/max": max(map(len, groups.values())),
        }
        assert {name: step[name] for name in expected} == pytest.approx(expected)
        assert np.count_nonzero(table["advantage"]) / 16 == pytest.approx(step["effective_gradient_ratio"])
        assert step["allocation_seconds"] >= 0.0


def test_mean_reward_is_over_prompts_with_any_reward_though_none_could_be_judged(make):
    def style(ease, **_):
        return [round(share, 3) for share in ease]

    def unsure(completions, **_):
        return [None] * len(completions)

    trainer = make({"max_steps": 1}, reward_funcs=[style, unsure], success_reward="unsure")
    trainer.train()
    assert trainer.last_step.scored.tolist() == [0, 0, 0, 0]
    first = trainer.state.log_history[0]
    assert first["prompt_reward"] == pytest.approx(first["rewards/style/mean"])


def test_share_of_never_visited_prompts_falls_to_none_after_an_epoch(make):
    trainer = make({"max_steps": 6})
    trainer.train()
    shares = [step["never_visited"] for step in trainer.state.log_history if "never_visited" in step]
    assert shares == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("strategy", ["uniform", "knapsack", "adaptive"])
def test_the_allocator_is_told_the_tokens_and_the_truncated_rollouts_that_trl_counts(make, observed, strategy):
    """Even plans, uneven ones in one shot, and waves; the oracle is TRL's own mask and its own mean."""
    steps: list[Step] = []

    class Listening(BudgetAllocator):
        def step(self, prompt_ids, *more, **options):
            steps.append(super().step(prompt_ids, *more, **options))
            return steps[-1]

    trainer = make({"max_steps": 8}, kind=observed, allocator=Listening(strategy, group_size=4, max_rollouts=10))
    trainer.train()
    uneven = 0
    for batch, step in zip(trainer.batches, steps, strict=True):
        record = batch["record"]
        tokens = Counter()
        for prompt, count in zip(batch["prompts"], batch["tokens"], strict=True):
            tokens[prompt] += int(count)
        assert record.tokens.tolist() == step.spent.tolist() == [tokens[row["prompt"]] for row in record.rows]
        mean = batch["metrics"]["completions/mean_length"]
        assert batch["metrics"]["cost/real"] == record.tokens.sum() == pytest.approx(16 * mean)
        assert step._truncated.sum() == pytest.approx(16 * batch["metrics"]["completions/clipped_ratio"])
        uneven += len(set(record.plan.rollouts)) > 1
    assert len({int(count) for batch in trainer.batches for count in batch["tokens"]}) > 1, "this would show nothing"
    assert bool(uneven) == (strategy != "uniform")
    assert 0 < sum(step._truncated.sum() for step in steps) < 16 * len(steps), "this would show nothing"


@pytest.mark.parametrize("strategy", ["knapsack", "adaptive"])
def test_a_step_is_expected_to_cost_no_more_than_its_limit_allows(make, strategy):
    allocator = BudgetAllocator(strategy, group_size=4, max_rollouts=10, cost_limit=1.0)
    trainer = make({"max_steps": 9}, allocator=allocator)
    trainer.train()
    steps = [step for step in trainer.state.log_history if "cost/real" in step]
    assert ["cost/expected" in step for step in steps] == [False] + [True] * 8  # nothing is known before the first
    assert all(step["cost/expected"] <= step["cost/even"] * (1 + 1e-8) for step in steps[1:])
    assert any(step["rollouts/max"] > 4 for step in steps)


def test_metrics_reach_tensorboard_through_trls_logging(make, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    make({"max_steps": 3, "report_to": "tensorboard"}).train()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("train/effective_gradient_ratio")) == 3
