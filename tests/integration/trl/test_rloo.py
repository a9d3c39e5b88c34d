"""RLOOTrainer under the guarantees of the adapter: its own updates where plans are even, leave-one-out where not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import small
import torch
from trl import RLOOTrainer

from knapsack_rl import BudgetAllocator, InvalidInputError
from knapsack_rl.trl import KnapsackGRPOTrainer, KnapsackRLOOTrainer

# Adam divides by the size of a gradient, also where it is nothing but rounding; SGD shows the gradient as it is.
STEEP = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 4}
ACCUMULATED = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
IN_PARTS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "num_iterations": 2,
}


def weights_of(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def assert_same(ours, theirs):
    for name, weight in weights_of(theirs).items():
        assert torch.linalg.norm(weights_of(ours)[name] - weight) <= 1e-6 * torch.linalg.norm(weight), name


def logged(trainer, name):
    return [step[name] for step in trainer.state.log_history if name in step]


def graded(completion_ids, ease, **_):
    """Some rewards are missing, and few of the others are equal; eighths leave no rounding in a mean of equals."""
    return [
        None if ids[0] % 5 == 0 else won + len(ids) / 8
        for ids, won in zip(completion_ids, small.luck(completion_ids, ease), strict=True)
    ]


def in_both(make, options, skip_idle, **more):
    plain = make(options, kind=RLOOTrainer, **more)
    start = weights_of(plain)
    plain.train()  # before the next one is built, since building seeds the generators
    uniform = BudgetAllocator("uniform", group_size=4, algorithm="rloo")
    ours = make(options, kind=KnapsackRLOOTrainer, allocator=uniform, skip_idle=skip_idle, **more)
    assert ours.skip_idle is skip_idle
    ours.train()
    assert any(not torch.equal(weight, start[name]) for name, weight in weights_of(plain).items())
    return plain, ours


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reward_clip_range": (0.25, 0.75), "reward_weights": [1.0, 0.5]},
        pytest.param({"epsilon": 0.01, **IN_PARTS}, id="in parts"),
    ],
)
def test_even_groups_train_exactly_as_plain_trl(make, options):
    rewards = [small.luck, graded] if "reward_weights" in options else [graded]
    plain, ours = in_both(make, options, False, reward_funcs=rewards)
    assert list(ours._logs["advantages"]) == pytest.approx(list(plain._logs["advantages"]), abs=1e-9)
    for name, weight in weights_of(plain).items():
        assert torch.equal(weight, weights_of(ours)[name]), name


@pytest.mark.parametrize("options", [{}, {"normalize_advantages": True}, {"reward_clip_range": (0.25, 0.75)}], ids=str)
def test_uneven_groups_have_leave_one_out_advantages_over_the_rewards_there_are(make, observed_rloo, options):
    trainer = make({"max_steps": 8} | options, kind=observed_rloo, reward_funcs=[graded], success_threshold=0.6)
    trainer.train()
    uneven = [batch for batch in trainer.batches if len(set(batch["record"].plan.rollouts)) > 1]
    assert len(uneven) >= 4
    for batch in uneven:
        assert batch["rows"] == 16
        rewards = batch["rewards"][:, 0].clip(*options.get("reward_clip_range", (-np.inf, np.inf)))
        expected = leave_one_out(batch["prompts"], rewards)
        if "normalize_advantages" in options:
            known = expected[~np.isnan(expected)]
            expected = (expected - known.mean()) / (known.std(ddof=1) + 1e-4)
        assert batch["advantages"] == pytest.approx(np.nan_to_num(expected), abs=1e-6)
        flat = Counter(
            np.isclose(np.nanstd(rewards[[other == prompt for other in batch["prompts"]]]), 0.0)
            for prompt in set(batch["prompts"])
        )
        assert batch["metrics"]["frac_reward_zero_std"] == pytest.approx(flat[True] / flat.total())


def leave_one_out(prompts, rewards):
    """Rollout by rollout; NaN where there is no reward, or no other to compare it with."""
    advantages = []
    for j, prompt in enumerate(prompts):
        others = [r for k, r in enumerate(rewards) if k != j and prompts[k] == prompt and not np.isnan(r)]
        advantages.append(rewards[j] - np.mean(others) if others else np.nan)
    return np.array(advantages)


@pytest.mark.parametrize(
    "options", [ACCUMULATED, IN_PARTS, ACCUMULATED | {"mask_truncated_completions": True}], ids=["4", "parts", "masked"]
)
@pytest.mark.parametrize("normalize", [False, True])
def test_without_idle_rollouts_the_update_is_that_of_plain_trl(make, options, normalize):
    plain, ours = in_both(make, STEEP | options | {"normalize_advantages": normalize}, True)
    assert_same(ours, plain)
    assert 0.0 < np.mean(logged(ours, "effective_gradient_ratio")) < 1.0


@pytest.mark.parametrize("strategy", ["knapsack", "adaptive"])
def test_uneven_groups_and_waves_make_the_update_of_the_run_that_skips_nothing(make, strategy):
    runs = []
    for skip in (False, True):
        allocator = BudgetAllocator(strategy, group_size=4, max_rollouts=8)
        trainer = make(STEEP | IN_PARTS | {"max_steps": 16}, KnapsackRLOOTrainer, allocator=allocator, skip_idle=skip)
        trainer.train()
        runs.append(trainer)
    largest, waves = (logged(runs[1], name) for name in ("rollouts/max", "waves"))
    assert max(largest) > 4
    assert (max(waves) > 1) == (strategy == "adaptive")
    assert_same(runs[1], runs[0])


def test_a_resumed_run_in_waves_is_the_uninterrupted_run_bit_for_bit(make, tmp_path):
    def built():
        options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4}
        return make(options, KnapsackRLOOTrainer, allocator=BudgetAllocator("adaptive", group_size=4))

    whole = built()
    whole.train()
    resumed = built()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for name, weight in weights_of(whole).items():
        assert torch.equal(weight, weights_of(resumed)[name]), name


def test_a_kl_term_in_the_reward_is_refused_in_words(make):
    with pytest.raises(InvalidInputError, match=r"args.beta: expected 0, got 0.05.*from the reward.* Set beta=0.0"):
        make({"beta": 0.05}, KnapsackRLOOTrainer)


def test_only_normalised_advantages_of_groups_that_may_be_uneven_are_clipped_unless_told_otherwise(make):
    def clip(kind=KnapsackGRPOTrainer, bound="auto", **options):
        return make(options, kind, advantage_clip=bound).advantage_clip

    def of_uniform(bound="auto"):
        return make({}, allocator=BudgetAllocator("uniform", group_size=4), advantage_clip=bound).advantage_clip

    assert clip(scale_rewards="group") == clip(scale_rewards="batch") == 5.0
    assert clip(scale_rewards="none", multi_objective_aggregation="normalize_then_sum") == 5.0
    assert of_uniform() is None
    assert of_uniform(2.0) == 2.0
    assert clip(scale_rewards="none") is None
    assert clip(scale_rewards="none", bound=2.0) == 2.0
    assert clip(KnapsackRLOOTrainer) is None
    assert clip(KnapsackRLOOTrainer, normalize_advantages=True) == 5.0
    assert clip(KnapsackRLOOTrainer, normalize_advantages=True, bound=None) is None


def test_rewards_of_any_size_keep_their_advantages(make, observed_rloo):
    def dear(completion_ids, ease, **_):
        return [100.0 * won for won in small.luck(completion_ids, ease)]

    trainer = make({"max_steps": 2}, observed_rloo, reward_funcs=dear)
    trainer.train()
    assert max(np.abs(batch["advantages"]).max() for batch in trainer.batches) == 100.0
