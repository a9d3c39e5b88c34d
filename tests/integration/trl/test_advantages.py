"""Advantages: TRL's own on even groups, the paper's equation 3 on uneven ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import small
import torch
from trl import GRPOTrainer

from knapsack_rl import BudgetAllocator

MODES = [("group", "sum_then_normalize"), ("batch", "sum_then_normalize"), ("none", "sum_then_normalize")]
MODES += [(scale, "normalize_then_sum") for scale in ("group", "batch", "none")]


def shortness(completion_ids, **_):
    return [1.0 - len(ids) / 5 for ids in completion_ids]


def weights_of(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


@pytest.mark.parametrize(("scale", "aggregation"), MODES)
def test_even_groups_train_exactly_as_plain_trl(make, scale, aggregation):
    options = {
        "scale_rewards": scale,
        "multi_objective_aggregation": aggregation,
        "reward_weights": [1.0, 0.5],
        "max_steps": 3,
    }
    rewards = {"reward_funcs": [small.luck, shortness]}
    plain = make(options, kind=GRPOTrainer, **rewards)
    plain.train()  # before the next one is built, since building seeds the generators
    uniform = BudgetAllocator("uniform", group_size=4)
    ours = make(options, **rewards, allocator=uniform, skip_idle=False)
    ours.train()
    assert list(ours._logs["advantages"]) == pytest.approx(list(plain._logs["advantages"]), abs=1e-9)
    for name, weight in weights_of(plain).items():
        if aggregation == "sum_then_normalize":
            assert torch.equal(weight, weights_of(ours)[name]), name
        else:  # TRL leaves rounding dust on groups whose rewards are all equal; here they have no gradient at all
            torch.testing.assert_close(weight, weights_of(ours)[name], rtol=0.0, atol=1e-5)


def doubtful_luck(completion_ids, ease, **_):
    return [
        None if ids[0] % 4 == 0 else won
        for ids, won in zip(completion_ids, small.luck(completion_ids, ease), strict=True)
    ]


def doubtful_shortness(completion_ids, **_):
    return [
        None if ids[0] % 2 == 0 else short for ids, short in zip(completion_ids, shortness(completion_ids), strict=True)
    ]


@pytest.mark.parametrize("rewards", [(small.luck, shortness), (doubtful_luck, doubtful_shortness)], ids=["all", "some"])
@pytest.mark.parametrize(("scale", "aggregation"), MODES)
def test_uneven_groups_have_the_advantages_of_equation_3_over_the_rewards_there_are(
    make, observed, scale, aggregation, rewards
):
    trainer = make(
        {
            "scale_rewards": scale,
            "multi_objective_aggregation": aggregation,
            "reward_weights": [1.0, 0.5],
            "max_steps": 8,
        },
        kind=observed,
        reward_funcs=list(rewards),
        success_reward=rewards[0].__name__,
        advantage_clip=None,
    )
    trainer.train()
    uneven = [batch for batch in trainer.batches if len(set(batch["record"].plan.rollouts)) > 1]
    assert len(uneven) >= 4
    for batch in uneven:
        expected = np.array(plain_advantages(batch["prompts"], batch["rewards"], [1.0, 0.5], scale, aggregation))
        assert batch["advantages"] == pytest.approx(expected, abs=1e-5)
        assert batch["logged"] == pytest.approx(expected, abs=1e-9)
        assert not batch["advantages"][expected == 0.0].any()


def plain_advantages(prompts, rewards, weights, scale, aggregation):
    """Equation 3 with the deviation of N - 1, rollout by rollout, from the prompts that TRL logged."""

    def scored(values):
        return [value for value in values if not math.isnan(value)]

    def mean_and_deviation(values):
        known = scored(values)
        mean = math.fsum(known) / max(len(known), 1)
        return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in known) / max(len(known) - 1, 1))

    groups = {prompt: [j for j, other in enumerate(prompts) if other == prompt] for prompt in prompts}
    unscored = np.isnan(rewards).all(axis=1)
    if aggregation == "sum_then_normalize":
        total = [
            math.nan if nothing else math.fsum(scored(w * r for w, r in zip(weights, row, strict=True)))
            for row, nothing in zip(rewards.tolist(), unscored, strict=True)
        ]
        overall = mean_and_deviation(total)[1]
        out = []
        for prompt, reward in zip(prompts, total, strict=True):
            mean, deviation = mean_and_deviation([total[j] for j in groups[prompt]])
            if math.isnan(reward) or len({*scored(total[j] for j in groups[prompt])}) == 1:
                out.append(0.0)
            elif scale == "none":
                out.append(reward - mean)
            else:
                out.append((reward - mean) / ((deviation if scale == "group" else overall) + 1e-6))
        return out
    sums = np.where(unscored, np.nan, 0.0)
    for k, weight in enumerate(weights):
        for j, prompt in enumerate(prompts):
            if not math.isnan(rewards[j, k]):
                mean, deviation = mean_and_deviation(rewards[groups[prompt], k])
                sums[j] += weight * (rewards[j, k] - mean) / (deviation + 1e-6)
    mean, deviation = mean_and_deviation(sums)
    idle = [all(len({*scored(column)}) <= 1 for column in rewards[groups[prompt]].T) for prompt in prompts]
    return [0.0 if flat else (s - mean) / (deviation + 1e-6) for s, flat in zip(sums, idle | unscored, strict=True)]


def test_advantages_of_uneven_groups_are_clipped_too(make, observed):
    trainer = make({"max_steps": 8}, kind=observed, advantage_clip=0.5)
    trainer.train()
    uneven = [batch["advantages"] for batch in trainer.batches if len(set(batch["record"].plan.rollouts)) > 1]
    assert len(uneven) >= 4
    assert {np.abs(advantages).max() for advantages in uneven} == {0.5}


def test_groups_with_equal_rewards_have_exactly_no_advantage(make, observed):
    def awkward(completion_ids, **_):
        return [0.1] * len(completion_ids)  # three times .1 in float32 does not average to .1

    trainer = make({"num_generations": 3, "per_device_train_batch_size": 12}, kind=observed, reward_funcs=awkward)
    trainer.train()
    assert all(np.all(batch["advantages"] == 0.0) for batch in trainer.batches)


def test_advantages_are_clipped_as_in_the_paper_and_the_bound_can_be_changed(make, observed):
    def once(completion_ids, **_):
        return [float(j % 64 == 0) for j in range(len(completion_ids))]

    for clip, largest in ((5.0, 5.0), (1.5, 1.5), (None, pytest.approx(7.875, rel=1e-3))):
        trainer = make(
            {"num_generations": 64, "per_device_train_batch_size": 128, "max_steps": 1},
            kind=observed,
            reward_funcs=once,
            allocator=BudgetAllocator("knapsack", group_size=64),
            advantage_clip=clip,
        )
        trainer.train()
        assert trainer.batches[0]["advantages"].max() == largest


def test_rollouts_without_a_reward_have_no_advantage_and_are_no_failures(make, observed):
    def unsure(completion_ids, **_):
        return [None if j % 2 else float(j % 4 == 0) for j in range(len(completion_ids))]

    trainer = make({"max_steps": 1}, kind=observed, reward_funcs=unsure)
    trainer.train()
    batch = trainer.batches[0]
    assert np.all(batch["advantages"][1::2] == 0.0)
    assert batch["record"].scored.tolist() == [2, 2, 2, 2]
    assert batch["record"].successes.tolist() == [1, 1, 1, 1]
