"""What a rollout is expected to cost: a prompt's own visits, its categories, everyone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import knapsack_rl as kr
from knapsack_rl.estimators.costs import RolloutCosts
from knapsack_rl.estimators.features import as_features
from knapsack_rl.identity import keys


def told(*visits: tuple[list[str], list[float], list[int]]) -> RolloutCosts:
    learned = RolloutCosts()
    for ids, costs, rollouts in visits:
        learned.update(keys(ids), np.array(costs), np.array(rollouts))
    return learned


def test_before_anything_is_told_all_prompts_cost_the_same() -> None:
    assert RolloutCosts().expected(keys(["a", "b"])).tolist() == [1.0, 1.0]


def test_an_unknown_prompt_costs_what_a_rollout_costs_on_average() -> None:
    learned = told((["a", "b"], [100.0, 20.0], [10, 2]))
    assert learned.expected(keys(["new"])).tolist() == [10.0]


def test_a_prompt_seen_often_costs_what_its_own_rollouts_cost() -> None:
    learned = told((["dear", "cheap"], [40_000.0, 4_000.0], [400, 400]))
    assert learned.expected(keys(["dear", "cheap"])) == pytest.approx([100, 10], rel=0.05)


def test_a_prompt_seen_once_is_drawn_to_the_mean() -> None:
    learned = told((["dear", "cheap"], [300.0, 100.0], [1, 1]))
    assert learned.expected(keys(["dear", "cheap"])).tolist() == [(300 + 4 * 200) / 5, (100 + 4 * 200) / 5]


def test_an_older_visit_counts_half() -> None:
    learned = told((["a"], [80.0], [8]), (["a"], [240.0], [8]))
    everyone = (0.9 * 80 + 240) / (0.9 * 8 + 8)
    assert learned.expected(keys(["a"])) == pytest.approx([(40 + 240 + 4 * everyone) / (4 + 8 + 4)])


def test_a_new_prompt_is_expected_to_cost_what_its_category_costs() -> None:
    learned, ids = RolloutCosts(), [str(number) for number in range(40)]
    topics = as_features({"topic": ["long", "short"] * 20}, 40)
    learned.update(keys(ids), np.tile([900.0, 100.0], 20), np.full(40, 10), topics)
    long, short, unknown = learned.expected(
        keys(["x", "y", "z"]), as_features({"topic": ["long", "short", "other"]}, 3)
    )
    assert long == pytest.approx(90, rel=0.1)
    assert short == pytest.approx(10, rel=0.35)
    assert unknown == pytest.approx(50)


def test_rows_of_one_prompt_are_parts_of_one_visit() -> None:
    ids = keys(["a", "b"])
    together, apart = told((["a", "b"], [30.0, 7.0], [3, 1])), told((["a", "b", "a"], [10.0, 7.0, 20.0], [1, 1, 2]))
    assert together.expected(ids).tolist() == apart.expected(ids).tolist()


def test_rollouts_without_a_cost_teach_nothing() -> None:
    learned = told((["a", "b"], [0.0, 5.0], [4, 0]))
    assert len(learned) == 0
    assert learned.expected(keys(["a"])).tolist() == [1.0]


def test_truncated_rollouts_change_no_expected_cost_and_are_counted_beside_it() -> None:
    ids, costs, tried = keys(["long", "short"]), np.array([800.0, 80.0]), np.array([8, 8])
    plain, told = RolloutCosts(), RolloutCosts()
    plain.update(ids, costs, tried)
    told.update(ids, costs, tried, truncated=np.array([8, 0]))
    assert told.expected(ids).tolist() == plain.expected(ids).tolist()
    assert plain.truncation_rates(ids).tolist() == [0.0, 0.0]
    assert told.truncation_rates(ids).tolist() == [(8 + 4 * 0.5) / 12, (0 + 4 * 0.5) / 12]
    assert told.truncation_rates(keys(["new"])).tolist() == [0.5]


def test_costs_and_truncation_rates_make_the_most_likely_mean_of_exponential_lengths() -> None:
    """Without shrinkage it is the sum of the lengths over the number of rollouts that ended by themselves."""
    rng, limit, ids, learned = np.random.default_rng(0), 150.0, keys(["a"]), RolloutCosts()
    lengths = rng.exponential(100.0, 40_000)
    cut = lengths > limit
    costs = np.array([np.minimum(lengths, limit).sum()])
    learned.update(ids, costs, np.array([lengths.size]), truncated=np.array([int(cut.sum())]))
    uncut = learned.expected(ids) / (1 - learned.truncation_rates(ids))
    assert uncut == pytest.approx(costs / (~cut).sum(), rel=1e-6)
    assert uncut == pytest.approx([100.0], rel=0.02)


def test_a_prompt_whose_rollouts_are_all_cut_off_has_a_finite_length_by_the_others() -> None:
    ids, learned = keys(["endless", "short"]), RolloutCosts()
    learned.update(ids, np.array([800.0, 80.0]), np.array([8, 8]), truncated=np.array([8, 0]))
    assert np.all(np.isfinite(learned.expected(ids) / (1 - learned.truncation_rates(ids))))


def test_a_restored_state_expects_the_same_bit_for_bit() -> None:
    learned, features = RolloutCosts(), as_features({"topic": ["x", "y", "x"]}, 3)
    cut = np.array([1, 0, 9])
    learned.update(keys(["a", "b", "c"]), np.array([7.0, 3.0, 100.0]), np.array([3, 1, 9]), features, cut)
    restored = RolloutCosts()
    restored.load_state_dict(learned.state_dict())
    for _ in range(2):
        ids = keys(["c", "new", "a"])
        assert restored.expected(ids, features).tolist() == learned.expected(ids, features).tolist()
        assert restored.truncation_rates(ids, features).tolist() == learned.truncation_rates(ids, features).tolist()
        for costs in (learned, restored):
            costs.update(ids, np.array([1.0, 2.0, 3.0]), np.array([1, 1, 1]), features)


@pytest.mark.parametrize(
    "change",
    [
        {"cost": np.array([-1.0])},
        {"cost": np.array([np.nan])},
        {"keys": np.array([1, 2], dtype=np.uint64)},
        {"category_rollouts": np.array([1.0])},
        {"cost_of_all": -1.0},
        {"rollouts_of_all": 0.0},
        {"cost_of_all": "much"},
        {"truncated": np.array([4.0])},
        {"truncated": np.array([-1.0])},
        {"truncated_of_all": 4.0},
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(change: dict[str, Any]) -> None:
    learned = told((["a"], [9.0], [3]))
    with pytest.raises(kr.StateError, match="state: expected"):
        learned.load_state_dict(learned.state_dict() | change)
    assert learned.expected(keys(["a"])).tolist() == [3.0]
