from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from knapsack_rl import BudgetAllocator, InvalidInputError, metrics
from knapsack_rl.advantages import ClipWatch
from knapsack_rl.rewards import Judge, ThresholdWatch, gated, histogram

REWARDS = arrays.arrays(np.float64, st.integers(1, 40), elements=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))


def cut(rewards: np.ndarray, waves: int) -> list[np.ndarray]:
    return [np.arange(len(rewards))[part::waves] for part in range(waves)]


@given(REWARDS, st.integers(1, 5), st.integers(1, 6))
def test_graded_and_threshold_say_the_same_of_0_and_1(rewards: np.ndarray, prompts: int, waves: int) -> None:
    rewards, groups = (rewards > 0.4).astype(float), np.arange(len(rewards)) % prompts
    by_threshold, graded = Judge(prompts, 0.5), Judge(prompts, 0.5, graded=True)
    for part in cut(rewards, waves):
        by_threshold.count(rewards[part], groups[part])
        graded.count(rewards[part], groups[part])
    assert (by_threshold.varied == graded.varied).all()
    assert (graded.mixed == by_threshold.mixed).all()
    if waves == 1:
        assert graded.successes.tolist() == by_threshold.successes.tolist()


@given(REWARDS, st.integers(1, 5), st.integers(1, 40))
def test_graded_groups_are_mixed_exactly_where_their_rewards_differ(
    rewards: np.ndarray, prompts: int, waves: int
) -> None:
    groups, judge = np.arange(len(rewards)) % prompts, Judge(prompts, 0.5, graded=True)
    told = np.zeros((2, prompts), dtype=int)
    for part in cut(rewards, waves):
        told += judge.count(rewards[part], groups[part])
    assert (told == (judge.successes, judge.scored)).all()
    assert (judge.scored == np.bincount(groups, minlength=prompts)).all()
    varied = [len(set(rewards[groups == group])) > 1 for group in range(prompts)]
    assert judge.mixed.tolist() == varied


def test_at_once_a_graded_success_is_a_reward_above_the_groups_mean() -> None:
    judge = Judge(3, 0.5, graded=True)
    won, tried = judge.count([0.2, 0.4, 0.6, 0.9, 0.9, 0.1, 0.1], [0, 0, 0, 1, 1, 2, 2])
    assert won.tolist() == [1, 2, 0]
    assert tried.tolist() == [3, 2, 2]


def test_a_missing_reward_is_not_counted() -> None:
    judge = Judge(1, graded=True)
    assert [part.tolist() for part in judge.count([np.nan, 0.3], [0, 0])] == [[1], [1]]


@pytest.mark.parametrize(
    ("rewards", "groups", "message"),
    [([np.inf], [0], "infinity"), ([1.0], [3], "group below 2"), ([1.0, 2.0], [0], "shapes")],
)
def test_what_is_no_reward_of_the_step_is_refused(rewards: list[float], groups: list[int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Judge(2).count(rewards, groups)


def test_partial_credit_is_not_starved() -> None:
    """Half of the prompts earn partial credit that differs, half never anything: the first have all the gradients."""
    generator, prompts = np.random.default_rng(0), 32

    def ratio(graded: bool, fallback: bool = False) -> float:
        allocator, found = BudgetAllocator("knapsack", 8, fallback=fallback), []
        for _ in range(20):
            step, judge = allocator.step(list(range(prompts))), Judge(prompts, 0.0, graded)
            while step.remaining:
                groups = np.repeat(np.arange(prompts), step.ask().rollouts)
                rewards = np.where(groups < prompts // 2, generator.choice([0.2, 0.4, 0.6], len(groups)), 0.0)
                step.tell(*judge.count(rewards, groups))
            live = int(step.placed[judge.varied].sum())
            found.append(live / step.budget)
        return float(np.mean(found[5:]))

    assert ratio(graded=False) < 0.3
    assert ratio(graded=True) > 0.8
    assert ratio(graded=True, fallback=True) > 1.5 * ratio(graded=False, fallback=True)  # the rest is the paper's


def test_a_threshold_that_separates_nothing_is_said_once_with_the_rewards() -> None:
    watch, said = ThresholdWatch(), []
    for _ in range(20):
        judge, rewards = Judge(8), np.tile([0.2, 0.4], 8)
        judge.count(rewards, np.repeat(np.arange(8), 2))
        said.append(watch.observe(judge, rewards))
    [sentence] = [one for one in said if one is not None]
    assert "0.2 (50%), 0.4 (50%)" in sentence
    assert "graded_rewards=True" in sentence


def test_nothing_is_said_where_the_threshold_tells_right_from_wrong() -> None:
    watch = ThresholdWatch()
    for _ in range(20):
        judge, rewards = Judge(8, 0.5), np.tile([0.1, 1.0], 8)
        judge.count(rewards, np.repeat(np.arange(8), 2))
        assert watch.observe(judge, rewards) is None


def test_many_values_are_shown_in_intervals() -> None:
    assert histogram(np.arange(12)) == ", ".join(
        f"{low:.3g} to {low + 11 / 6:.3g} (17%)" for low in np.arange(6) * 11 / 6
    )
    assert histogram([np.nan]) == "none"


@pytest.mark.parametrize(
    ("gate", "kept"), [("none", [1.0, 1.0, 1.0]), ("success", [0.0, 1.0, 1.0]), ("both", [0.0, 0.0, 1.0])]
)
def test_a_gate_leaves_no_gradient_to_groups_without_a_success_or_a_failure(gate: str, kept: list[float]) -> None:
    judge = Judge(3, 0.5)
    judge.count([0.1, 0.2, 0.9, 0.8, 0.1, 0.9], [0, 0, 1, 1, 2, 2])
    assert gated(np.ones(3), [0, 1, 2], judge, gate).tolist() == kept
    assert metrics.effective_prompts(judge.successes, judge.scored) == 1 / 3


def test_a_threshold_that_separates_what_has_no_gradient_is_said_once() -> None:
    watch, said = ThresholdWatch(), []
    for _ in range(20):
        judge, rewards = Judge(8, 0.5), np.tile([0.0, 1.0], 8)
        judge.count(rewards, np.repeat(np.arange(8), 2))
        said.append(watch.observe(judge, rewards, live=np.arange(8) < 4))
    [sentence] = [one for one in said if one is not None]
    assert "of 64 groups with both successes and failures, 32 have no gradient" in sentence
    assert "0 (50%), 1 (50%)" in sentence


def test_what_was_looked_at_is_forgotten_so_that_a_later_change_is_noticed() -> None:
    watch, said = ThresholdWatch(), []
    for step in range(1000):
        rewards = np.tile([0.1, 1.0] if step < 900 else [0.6, 1.0], 8)
        judge = Judge(8, 0.5)
        judge.count(rewards, np.repeat(np.arange(8), 2))
        said.append(watch.observe(judge, rewards))
    [when] = [step for step, one in enumerate(said) if one is not None]
    assert 900 <= when < 920


def test_a_bound_that_changes_more_than_a_few_advantages_is_said_once() -> None:
    watch = ClipWatch(5.0)
    assert watch.observe(np.r_[np.zeros(96), np.full(4, -6.0)]) == (0.04, None)
    found = [watch.observe(np.r_[np.zeros(3), 6.0]) for _ in range(20)]
    assert {share for share, _ in found} == {0.25}
    [sentence] = [one for _, one in found if one is not None]
    assert "advantage_clip=5 changed 21% of the advantages of the last 5 steps" in sentence


def test_a_bound_for_the_rare_rollout_is_no_news_and_no_bound_changes_nothing() -> None:
    rare, none = ClipWatch(5.0), ClipWatch(None)
    for _ in range(20):
        assert rare.observe(np.r_[np.zeros(127), 11.0]) == (1 / 128, None)
        assert none.observe(np.array([100.0])) == (0.0, None)
