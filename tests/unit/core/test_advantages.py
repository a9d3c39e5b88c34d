"""Advantages, weights and successes as functions, against the same worked out group by group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import knapsack_rl as kr
from knapsack_rl import advantages

rewards_and_groups = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, 0.25, np.nan]), st.integers(0, 5)), min_size=1, max_size=40
)


@given(rewards_and_groups)
def test_an_advantage_is_the_reward_less_the_mean_over_the_deviation_of_its_group(pairs) -> None:
    rewards, groups = (np.array(column) for column in zip(*pairs, strict=True))
    found = advantages.group_advantages(rewards, groups).values
    for group in set(groups.tolist()):
        here = groups == group
        known = rewards[here & ~np.isnan(rewards)]
        if len(set(known.tolist())) < 2:
            assert (found[here] == 0.0).all()
            continue
        expected = (rewards[here] - known.mean()) / (known.std(ddof=1) + 1e-6)
        np.testing.assert_allclose(found[here], np.nan_to_num(expected), rtol=1e-12, atol=1e-12)


@given(rewards_and_groups)
def test_the_names_and_the_order_of_groups_play_no_part(pairs) -> None:
    rewards, groups = (np.array(column) for column in zip(*pairs, strict=True))
    order = np.random.default_rng(0).permutation(len(pairs))
    plain = advantages.group_advantages(rewards, groups).values
    moved = advantages.group_advantages(rewards[order], 10**12 + 7 * groups[order]).values
    np.testing.assert_allclose(moved, plain[order], atol=1e-12)


def test_equal_rewards_have_an_advantage_of_exactly_zero_whatever_rounding_leaves() -> None:
    assert (advantages.group_advantages([0.1] * 7, [0] * 7).values == 0.0).all()


def test_without_scaling_the_advantage_is_the_distance_from_the_mean() -> None:
    found = advantages.group_advantages([0.0, 1.0, 1.0, 0.0], [0, 0, 0, 0], scale_rewards="none").values
    assert found.tolist() == [-0.5, 0.5, 0.5, -0.5]


def test_several_rewards_are_added_up_by_their_weights() -> None:
    both = np.array([[1.0, 0.0], [0.0, 4.0], [1.0, np.nan], [0.0, 0.0]])
    alone = advantages.group_advantages([2.0, 2.0, 2.0, 0.0], [0, 0, 0, 0]).values
    assert advantages.group_advantages(both, [0, 0, 0, 0], [2.0, 0.5]).values.tolist() == alone.tolist()


def test_weights_are_the_root_of_the_mean_size_over_the_size_also_where_a_group_is_missing() -> None:
    groups = np.array([0, 0, 3, 3, 3, 3, 3, 3])
    found = advantages.rollout_weights(groups, "sqrt", 4)
    assert found == pytest.approx(np.sqrt(4 / np.array([2, 2, 6, 6, 6, 6, 6, 6])))
    assert (advantages.rollout_weights(groups, "none", 4) == 1.0).all()


def test_bounded_clips_before_it_weighs() -> None:
    assert advantages.bounded(np.array([9.0, -9.0, 1.0]), 5.0, np.array([2.0, 1.0, 3.0])).tolist() == [10.0, -5.0, 3.0]
    assert advantages.bounded(np.array([9.0]), None, np.array([1.0])).tolist() == [9.0]


@given(rewards_and_groups, st.sampled_from(["group", "batch", "none"]))
def test_divisors_turn_advantages_back_into_distances_from_the_mean(pairs, scale) -> None:
    rewards, groups = (np.array(column) for column in zip(*pairs, strict=True))
    values = advantages.group_advantages(rewards, groups, scale_rewards=scale).values
    found = advantages.divisors(rewards, values, groups, 6)
    for group in range(6):
        here = (groups == group) & ~np.isnan(rewards)
        if len(set(rewards[here].tolist())) < 2:
            assert found[group] == 0.0
            continue
        distances = rewards[here] - rewards[here].mean()
        np.testing.assert_allclose(found[group] * values[here], distances, rtol=1e-9, atol=1e-12)


def test_the_divisor_of_rloo_is_the_share_of_the_others() -> None:
    rewards, groups = np.array([1.0, 0.0, 0.0, 1.0, 0.0]), np.array([2, 2, 2, 0, 0])
    values = advantages.leave_one_out_advantages(rewards, groups).values
    np.testing.assert_allclose(advantages.divisors(rewards, values, groups, 3), [1 / 2, 0.0, 2 / 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 0.0], [0.5], [0, 0], 1), "rewards, advantages: expected one of each"),
        (([[1.0, 0.0], [0.0, 1.0]], [0.5, -0.5], [0, 0], 1), "Add several rewards up first"),
        (([1.0, 0.0], [0.5, np.nan], [0, 0], 1), "advantages: expected finite numbers"),
        (([1.0, 0.0], [0.5, -0.5], [0, 1], 1), "groups: expected numbers below the 1 prompts, got 1"),
    ],
)
def test_divisors_of_what_does_not_fit_are_refused_by_name(arguments, message: str) -> None:
    rewards, values, groups, prompts = arguments
    with pytest.raises(kr.errors.InvalidInputError, match=message):
        advantages.divisors(rewards, values, np.array(groups), prompts)


def test_a_success_is_above_the_threshold_as_trainers_hold_rewards() -> None:
    assert advantages.is_success([0.0, 0.1, 1.0, np.nan]).tolist() == [False, True, True, False]
    assert advantages.is_success(np.float32([0.1, 0.2]), 0.1).tolist() == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 0.0], [0]), "rewards, groups: expected a row of rewards and a group for each rollout"),
        (([1.0, np.inf], [0, 0]), "rewards: expected finite numbers, or NaN for none, got inf for rollout 1"),
        (([1.0, 0.0], [0, -1]), "groups: expected counts of 0 or more"),
        (([[1.0, 0.0]], [0], [1.0]), "weights: expected one for each of 2 rewards"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, message: str) -> None:
    with pytest.raises(kr.InvalidInputError, match=message):
        advantages.group_advantages(*arguments)


class TestStepMetrics:
    def test_count_what_was_spent_whether_or_not_it_came_back(self) -> None:
        """By hand: of 16 rollouts on three prompts, 3 of 6 right, none of 4 scored, 4 of 4 right."""
        found = kr.metrics.step_metrics([8, 4, 4], [3, 0, 4], scored=[6, 0, 4], visited=[True, False, True], waves=2)
        assert found["effective_gradient_ratio"] == 6 / 16
        assert found["effective_prompts"] == 1 / 3
        assert found["zero_gradient_ratio/all_positive"] == 1 / 3
        assert found["zero_gradient_ratio/all_negative"] == 0.0
        assert found["prompt_success"] == (0.5 + 1.0) / 2
        assert (found["rollouts/sum"], found["rollouts/min"], found["rollouts/max"]) == (16.0, 4.0, 8.0)
        assert found["never_visited"] == pytest.approx(1 / 3)
        assert found["waves"] == 2.0

    def test_the_advantages_decide_where_they_are_given(self) -> None:
        found = kr.metrics.step_metrics([8, 8], [4, 8], live=[0, 8])
        assert found["effective_gradient_ratio"] == found["effective_prompts"] == 0.5
        assert found["zero_gradient_ratio/all_positive"] == 0.0

    def test_costs_are_added_up_beside_what_was_expected_of_these_and_of_even_groups(self) -> None:
        """By hand: 12 and 4 rollouts at 10 and 30 tokens; 8 each would be 80 + 240."""
        found = kr.metrics.step_metrics([12, 4], [3, 0], costs=[130, 110], expected_costs=[10.0, 30.0])
        assert (found["cost/real"], found["cost/expected"], found["cost/even"]) == (240.0, 240.0, 320.0)
        assert not any(name.startswith("cost/") for name in kr.metrics.step_metrics([12, 4], [3, 0]))

    def test_of_no_prompts_are_not_numbers(self) -> None:
        assert np.isnan(kr.metrics.step_metrics([], [])["effective_gradient_ratio"])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"visited": [True]}, "visited: expected one entry for each of 2 prompts"),
            ({"rewards": [1.0, 0.0, 1.0]}, "rewards: expected one entry"),
            ({"live": [9, 0]}, "live: expected at most the rollouts"),
            ({"scored": [9, 8]}, "scored: expected at most the rollouts"),
            ({"belief": kr.Belief(np.ones(3), np.ones(3))}, "belief: expected one entry"),
            ({"costs": [1.0]}, "costs: expected one entry"),
            ({"expected_costs": [1.0, 2.0, 3.0]}, "expected_costs: expected one entry"),
        ],
    )
    def test_what_does_not_fit_is_refused_by_name(self, arguments, message: str) -> None:
        with pytest.raises(kr.InvalidInputError, match=message):
            kr.metrics.step_metrics([8, 8], [4, 8], **arguments)
