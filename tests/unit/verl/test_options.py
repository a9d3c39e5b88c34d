from __future__ import annotations

from typing import Any

import pytest

import knapsack_rl as kr
from knapsack_rl.verl.options import ALGORITHMS, KnapsackOptions


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategie": "adaptive"}, "trainer.v1.knapsack: expected one of strategy, .* Did you mean strategy"),
        ({"feature_fields": "topic"}, r"feature_fields: expected a list of columns, \[NAME, ...\], got 'topic'"),
        ({"feature_fields": None}, "feature_fields: expected a list of columns"),
        ({"rollout_weights": "root"}, "trainer.v1.knapsack.rollout_weights: expected none, sqrt or null, got 'root'"),
        (
            {"advantage_clip": 0.0},
            "trainer.v1.knapsack.advantage_clip: expected a positive number, auto or null, got 0.0",
        ),
        ({"advantage_clip": "5"}, "advantage_clip: expected a positive number, auto or null, got '5'"),
        ({"cost_limit": "1"}, "trainer.v1.knapsack.cost_limit: expected a number or null, got '1'"),
        ({"skip_idle": "no"}, "trainer.v1.knapsack.skip_idle: expected true or false, got 'no'"),
        ({"graded_rewards": 1}, "trainer.v1.knapsack.graded_rewards: expected true or false, got 1"),
        ({"waves": "no"}, "trainer.v1.knapsack.waves: expected true or false, got 'no'"),
        ({"fallback": 1}, "fallback: expected true or false, got 1"),
        ({"success_threshold": None}, "success_threshold: expected a finite number, got None"),
        ({"success_threshold": float("nan")}, "success_threshold: expected a finite number, got nan"),
        ({"success_field": 3}, "success_field: expected an entry of reward_extra_info or null, got 3"),
        ({"id_field": 3}, "id_field: expected a column or null, got 3"),
        ({"min_rollouts": "2"}, "min_rollouts: expected an integer, got '2'"),
        ({"min_returned": 0}, "min_returned: expected an integer of 1 or more, got 0"),
        ({"seed": True}, "seed: expected an integer, got True"),
    ],
)
def test_what_no_run_can_use_is_refused_by_its_name_in_verls_configuration(given: dict[str, Any], message: str) -> None:
    with pytest.raises(kr.InvalidInputError, match=message):
        KnapsackOptions.read(given)


def test_who_names_no_strategy_gets_that_of_an_allocator() -> None:
    assert KnapsackOptions.read({}).allocator(8, "grpo").strategy == kr.BudgetAllocator().strategy


def test_bounds_and_strategies_are_checked_as_those_of_an_allocator() -> None:
    with pytest.raises(kr.InvalidInputError, match=r"trainer\.v1\.knapsack\.strategy: expected one of uniform"):
        KnapsackOptions.read({"strategy": "adaptiv"}).allocator(8, "grpo")
    with pytest.raises(kr.InfeasibleBudgetError, match=r"actor_rollout_ref\.rollout\.n: expected a value between"):
        KnapsackOptions.read({"max_rollouts": 4}).allocator(8, "grpo")
    with pytest.raises(kr.InvalidInputError, match="cost_limit: expected 1 or more"):
        KnapsackOptions.read({"cost_limit": 0.5}).allocator(8, "grpo")


@pytest.mark.parametrize("estimator", ["gae", "remax", "grpo_passk", "optimal_token_baseline", "gdpo"])
def test_estimators_whose_gradient_no_groups_rewards_decide_are_refused(estimator: str) -> None:
    with pytest.raises(kr.InvalidInputError, match=f"algorithm.adv_estimator: expected one .*, got '{estimator}'"):
        KnapsackOptions.read({}).allocator(8, estimator)


@pytest.mark.parametrize(("estimator", "algorithm"), ALGORITHMS.items())
def test_the_estimator_decides_when_a_group_has_a_gradient(estimator: str, algorithm: str) -> None:
    assert KnapsackOptions.read({}).allocator(8, estimator).settings.algorithm == algorithm


def test_every_setting_reaches_the_allocator() -> None:
    given = {
        "strategy": "adaptive",
        "min_rollouts": 3,
        "max_rollouts": 9,
        "fallback": False,
        "confidence": 0.8,
        "seed": 7,
        "cost_limit": 1.5,
    }
    allocator = KnapsackOptions.read(given).allocator(5, "rloo")
    settings = allocator.settings
    assert (allocator.strategy, settings.group_size, settings.min_rollouts, settings.max_rollouts) == (
        "adaptive",
        5,
        3,
        9,
    )
    assert (settings.fallback, settings.confidence, settings.seed, settings.algorithm) == (False, 0.8, 7, "rloo")
    assert settings.cost_limit == 1.5


def test_groups_of_one_are_refused_where_a_mean_is_subtracted() -> None:
    with pytest.raises(kr.InvalidInputError, match=r"min_rollouts: expected 0, or 2 or more, got 1\."):
        KnapsackOptions.read({"min_rollouts": 1}).allocator(8, "grpo")
    assert KnapsackOptions.read({"min_rollouts": 1}).allocator(8, "reinforce_plus_plus").settings.min_rollouts == 1


def test_one_rollout_that_returned_is_enough_only_where_no_mean_of_the_group_is_subtracted() -> None:
    alone = KnapsackOptions.read({"min_returned": 1})
    with pytest.raises(kr.InvalidInputError, match=r"min_returned: expected 2 or more, got 1\."):
        alone.allocator(8, "grpo")
    alone.allocator(8, "reinforce_plus_plus")


@pytest.mark.parametrize(
    ("given", "estimator", "by_deviation", "bound"),
    [
        ({"strategy": "adaptive"}, "grpo", True, 5.0),
        ({"strategy": "cautious"}, "grpo", True, 5.0),
        ({}, "grpo", True, None),
        ({"advantage_clip": 3.0}, "grpo", True, 3.0),
        ({"strategy": "adaptive"}, "grpo_vectorized", False, None),
        ({"strategy": "adaptive"}, "rloo", True, None),
        ({"strategy": "adaptive"}, "opo", True, None),
        ({"strategy": "adaptive"}, "reinforce_plus_plus", False, 5.0),
        ({}, "reinforce_plus_plus", False, None),
        ({"advantage_clip": 3.0}, "rloo", True, 3.0),
        ({"advantage_clip": None}, "grpo", True, None),
    ],
)
def test_advantages_of_uniform_or_in_the_unit_of_the_rewards_are_not_bounded_unless_asked(
    given: dict[str, object], estimator: str, by_deviation: bool, bound: float | None
) -> None:
    assert KnapsackOptions.read(given).bound(estimator, by_deviation) == bound


def test_settings_in_force_are_written_as_they_are_read() -> None:
    given = {"strategy": "adaptive", "feature_fields": ["level"], "advantage_clip": None, "rollout_weights": "sqrt"}
    options = KnapsackOptions.read(given)
    assert KnapsackOptions.read(options.written()) == options
    assert options.written()["max_rollouts"] == 128
