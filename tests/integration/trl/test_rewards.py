"""Rewards as people have them: graded, shaped, infinite, compared, post-processed, with logs of their own."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import small
import torch
from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer

from knapsack_rl import BudgetAllocator, InvalidInputError
from knapsack_rl.trl import KnapsackGRPOTrainer, KnapsackRLOOTrainer
from knapsack_rl.trl.waves import merge_extras, merge_logged

KINDS = [KnapsackGRPOTrainer, KnapsackRLOOTrainer]


def shares(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Partial credit of many values, all above 0."""
    return [0.1 + sum(ids) % 7 / 10 for ids in completion_ids]


def adaptive() -> BudgetAllocator:
    return BudgetAllocator("adaptive", group_size=4, max_rollouts=10)


# Graded rewards, and thresholds that say nothing


@pytest.mark.parametrize("strategy", ["knapsack", "adaptive"])
def test_with_graded_rewards_a_prompt_is_mixed_exactly_where_its_rewards_differ(make, observed, strategy):
    allocator = BudgetAllocator(strategy, group_size=4, max_rollouts=10)
    trainer = make(kind=observed, allocator=allocator, reward_funcs=shares, graded_rewards=True)
    trainer.train()
    for batch in trainer.batches:
        groups = defaultdict(set)
        for prompt, reward in zip(batch["prompts"], batch["rewards"][:, 0], strict=True):
            groups[prompt].add(reward)
        record = batch["record"]
        mixed = (record.successes > 0) & (record.successes < record.scored)
        assert mixed.tolist() == [len(groups[row["prompt"]]) > 1 for row in record.rows]
    assert any(len(set(batch["record"].plan.rollouts)) > 1 for batch in trainer.batches)


@pytest.mark.parametrize("kind", KINDS)
def test_a_threshold_that_separates_nothing_is_said_once(make, caplog, kind):
    data = Dataset.from_dict({"prompt": [f"w{i % 16} w{i // 16}" for i in range(32)], "ease": [0.5] * 32})
    options = {"per_device_train_batch_size": 64, "max_steps": 8}
    with caplog.at_level(logging.WARNING, logger="knapsack_rl.trl.trainer"):
        make(options, kind=kind, reward_funcs=shares, train_dataset=data).train()
    [said] = [record.getMessage() for record in caplog.records if "success_threshold" in record.getMessage()]
    assert "all successes or all failures by it" in said
    assert "graded_rewards=True" in said


def test_a_deciding_reward_without_weight_is_said_once(make, caplog):
    def same(completions: list[str], **_: Any) -> list[float]:
        return [0.5] * len(completions)

    data = Dataset.from_dict({"prompt": [f"w{i % 16} w{i // 16}" for i in range(32)], "ease": [0.5] * 32})
    options = {"per_device_train_batch_size": 64, "max_steps": 8, "reward_weights": [0.0, 1.0]}
    with caplog.at_level(logging.WARNING, logger="knapsack_rl.trl.trainer"):
        make(options, reward_funcs=[small.luck, same], success_reward="luck", train_dataset=data).train()
    [said] = [record.getMessage() for record in caplog.records if "success_threshold" in record.getMessage()]
    assert "have no gradient" in said


# The gate


@pytest.mark.parametrize(("gate", "strategy"), [("success", "uniform"), ("success", "knapsack"), ("both", "knapsack")])
def test_a_gate_leaves_exactly_the_groups_that_the_outcome_has_taught(make, observed, gate, strategy):
    allocator = BudgetAllocator(strategy, group_size=4, max_rollouts=10)
    options = {"reward_funcs": [small.luck, shares], "success_reward": "luck", "outcome_gate": gate}
    trainer = make({"max_steps": 5}, kind=observed, allocator=allocator, **options)
    trainer.train()
    shut = 0
    for batch in trainer.batches:
        groups = defaultdict(list)
        for prompt, rewards in zip(batch["prompts"], batch["rewards"], strict=True):
            groups[prompt].append(rewards)
        for prompt, advantage in zip(batch["prompts"], batch["advantages"], strict=True):
            rewards = np.array(groups[prompt])
            won = rewards[:, 0] > 0
            opens = won.any() if gate == "success" else won.any() and not won.all()
            differ = len(set(rewards.sum(axis=1))) > 1
            shut += differ and not opens
            if not opens:
                assert advantage == 0.0
        live = np.mean(batch["advantages"] != 0.0)
        assert batch["metrics"]["effective_gradient_ratio"] == pytest.approx(live)
    assert shut, "the test would show nothing"


# Infinite rewards, and bounds that bend


@pytest.mark.parametrize("strategy", ["uniform", "adaptive"])
def test_an_infinite_reward_is_refused_with_the_name_of_its_function(make, strategy):
    def logarithm(completions: list[str], **_: Any) -> list[float]:
        return [-np.inf if j % 3 == 0 else 1.0 for j in range(len(completions))]

    trainer = make(
        reward_funcs=[small.luck, logarithm], allocator=BudgetAllocator(strategy, group_size=4, max_rollouts=10)
    )
    before = [weight.detach().clone() for weight in trainer.model.parameters()]
    with pytest.raises(InvalidInputError, match=r"reward_funcs: logarithm returned -inf for \d+ of \d+ rollouts"):
        trainer.train()
    assert all(map(torch.equal, before, trainer.model.parameters()))


def test_a_bound_that_bends_many_advantages_is_said_once_with_the_share(make, caplog):
    with caplog.at_level(logging.WARNING, logger="knapsack_rl.trl.trainer"):
        trainer = make({"max_steps": 8}, advantage_clip=0.1)
        trainer.train()
    [said] = [record.getMessage() for record in caplog.records if "advantage_clip" in record.getMessage()]
    assert "of the advantages of the last 5 steps" in said
    steps = [step for step in trainer.state.log_history if "advantage_clipped" in step]
    assert [step["advantage_clipped"] for step in steps] == [step["effective_gradient_ratio"] for step in steps]


# Subclasses


class Doubled(KnapsackGRPOTrainer):
    """Post-processes rewards: what was right is wrong."""

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return 1.0 - super()._calculate_rewards(*args, **kwargs)


@pytest.mark.parametrize("strategy", ["uniform", "knapsack", "adaptive"])
def test_a_subclass_that_changes_rewards_trains_and_counts_with_exactly_those(make, strategy):
    def unluck(**columns: Any) -> list[float]:
        return [1.0 - reward for reward in small.luck(**columns)]

    def trained(**options: Any) -> Any:
        allocator = BudgetAllocator(strategy, group_size=4, max_rollouts=10)
        trainer = make({"max_steps": 4}, allocator=allocator, **options)
        trainer.train()
        return trainer

    changed, plain = trained(kind=Doubled), trained(reward_funcs=unluck)
    assert changed.last_step.successes.tolist() == plain.last_step.successes.tolist()
    assert list(changed._logs["advantages"]) == list(plain._logs["advantages"])
    assert list(changed._logs["rewards"]["luck"]) == list(plain._logs["rewards"]["unluck"])
    for weight, other in zip(changed.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(weight, other)


@pytest.mark.parametrize("allocator", [BudgetAllocator("uniform", group_size=4), adaptive()], ids=["even", "waves"])
def test_a_subclass_that_returns_something_else_than_all_rewards_is_refused(make, allocator):
    class Half(KnapsackGRPOTrainer):
        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super()._calculate_rewards(*args, **kwargs)[:-1]

    with pytest.raises(
        InvalidInputError, match=r"_calculate_rewards: expected .* of shape \(\d+, 1\), .*got \(\d+, 1\)"
    ):
        make(kind=Half, allocator=allocator).train()


# Functions that compare rollouts


def rank(prompts: list[str], completion_ids: list[list[int]], log_extra: Any, **_: Any) -> list[float]:
    """1 for the largest of a prompt's completions, which stand side by side, 0 for the others."""
    seen: list[str] = []
    for prompt in prompts:
        if not seen or seen[-1] != prompt:
            assert prompt not in seen, "a group came in parts"
            seen.append(prompt)
    sums = [sum(ids) for ids in completion_ids]
    best: dict[str, int] = {}
    for prompt, number in zip(prompts, sums, strict=True):
        best[prompt] = max(number, best.get(prompt, number))
    log_extra("sum", sums)
    return [float(number == best[prompt]) for prompt, number in zip(prompts, sums, strict=True)]


def test_a_function_that_compares_rollouts_sees_whole_groups(make, observed):
    rank.compares_rollouts = True
    trainer = make({"max_steps": 6}, kind=observed, reward_funcs=[small.luck, rank], success_reward="luck")
    trainer.train()
    assert any(len(set(batch["record"].plan.rollouts)) > 1 for batch in trainer.batches)
    for batch in trainer.batches:
        best = Counter()
        for prompt, reward in zip(batch["prompts"], batch["rewards"][:, 1], strict=True):
            best[prompt] += int(reward)
        assert min(best[prompt] for prompt in batch["prompts"]) >= 1


def test_a_function_that_compares_rollouts_may_be_asynchronous_and_must_reward_each(make):
    async def judge(prompts: list[str], **_: Any) -> list[float]:
        return [float(j) for j in range(len(prompts))][: len(prompts) - short]

    judge.compares_rollouts = True
    short = 0
    make({"max_steps": 1}, reward_funcs=judge).train()
    short = 1
    with pytest.raises(InvalidInputError, match="judge: expected 16 rewards, one for each rollout of the step, got 15"):
        make({"max_steps": 1}, reward_funcs=judge).train()


def test_a_function_that_compares_rollouts_is_refused_where_they_come_in_waves(make):
    rank.compares_rollouts = True
    with pytest.raises(InvalidInputError, match=r"waves: rank compares the rollouts of a prompt.*Pass waves=False"):
        make(reward_funcs=rank, allocator=adaptive())
    make({"max_steps": 1}, reward_funcs=rank, allocator=adaptive(), waves=False).train()


# What reward functions log


@pytest.mark.parametrize("strategy", ["uniform", "adaptive"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_reward_functions_log_is_weighed_and_aligned_whatever_the_waves(make, strategy, kind):
    def telling(completion_ids: Any, ease: Any, log_metric: Any, log_extra: Any, **_: Any) -> list[float]:
        rewards = small.luck(completion_ids, ease)
        log_metric("mean_luck", float(np.mean(rewards)))
        log_extra("luck_again", rewards)
        return rewards

    allocator = BudgetAllocator(strategy, group_size=4, max_rollouts=10)
    trainer = make({"max_steps": 5}, kind=kind, reward_funcs=telling, allocator=allocator)
    trainer.train()
    steps = [step for step in trainer.state.log_history if "mean_luck" in step]
    assert len(steps) == 5
    assert (max(step["waves"] for step in steps) > 1) == (strategy == "adaptive")
    assert [step["mean_luck"] for step in steps] == pytest.approx([step["reward"] for step in steps])
    assert len(trainer._logs["extra"]["luck_again"]) == 16
    assert list(trainer._logs["extra"]["luck_again"]) == list(trainer._logs["rewards"]["telling"])


def test_a_wave_that_logged_nothing_counts_for_nothing_and_leaves_its_rows_empty():
    assert merge_logged([{"a": [1.0]}, {"a": [4.0, 6.0], "b": [2.0]}], [1, 2]) == {
        "a": [1.0, 4.0, 6.0, 4.0, 6.0],
        "b": [2.0, 2.0],
    }
    assert merge_extras([{"a": [1]}, {"b": [2, 3]}], [1, 2]) == {"a": [1, None, None], "b": [None, 2, 3]}


# Columns made on the fly, gaps, masks


def test_columns_made_on_the_fly_train_as_stored_ones(make):
    def trained(data: Any) -> Any:
        trainer = make(
            {"max_steps": 5},
            train_dataset=data,
            allocator=adaptive(),
            id_column="task",
            feature_columns=["level"],
        )
        trainer.train()
        return trainer

    def extended(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return rows | {"task": rows["ease"], "level": [1.0 - share for share in rows["ease"]]}

    stored = small.rows().map(extended, batched=True)
    plain = trained(stored)
    for data in (small.rows().with_transform(extended), stored.with_format("torch"), stored.with_format("numpy")):
        other = trained(data)
        assert other.last_step.plan.rollouts.tolist() == plain.last_step.plan.rollouts.tolist()
        assert other.allocator.metrics()["known_prompts"] == 12


@pytest.mark.parametrize("gap", [None, float("nan")])
def test_a_feature_with_a_gap_is_refused_with_its_row(make, gap):
    data = small.rows().add_column("level", [1.0, 2.0, gap, *range(9)])
    with pytest.raises(InvalidInputError, match=r"feature_columns: 'level' has a gap in row 2 of the data set \(1 of"):
        make(train_dataset=data, feature_columns=["level"])


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_say_what_masking_took_from_the_loss(make, kind):
    trainer = make({"mask_truncated_completions": True}, kind=kind)
    trainer.train()
    steps = [step for step in trainer.state.log_history if "masked_rollouts" in step]
    assert len(steps) == 6
    for step in steps:
        assert step["masked_rollouts"] == pytest.approx(step["completions/clipped_ratio"])
        assert step["masked_rollouts/with_advantage"] <= step["effective_gradient_ratio"]
    assert any(step["masked_rollouts/with_advantage"] > 0.0 for step in steps)


def test_rloo_is_trls_bit_for_bit_without_the_new_options(make):
    options = {"max_steps": 3}
    plain = make(options, kind=RLOOTrainer)
    plain.train()
    ours = make(options, kind=KnapsackRLOOTrainer, allocator=BudgetAllocator("uniform", group_size=4), skip_idle=False)
    ours.train()
    assert isinstance(ours.args, RLOOConfig)
    for weight, other in zip(plain.model.parameters(), ours.model.parameters(), strict=True):
        assert torch.equal(weight, other)
