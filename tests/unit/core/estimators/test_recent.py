"""The estimators behind the strategies, against a plain list of every prompt's rewards."""

from __future__ import annotations

import numpy as np
import pytest

import knapsack_rl as kr
from knapsack_rl.errors import StateError
from knapsack_rl.estimators import RecentRewards

WINDOW = 16


def keys(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.uint64)


def counts(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def test_a_prompt_is_unknown_until_it_was_visited() -> None:
    estimator = RecentRewards(0)
    assert np.isnan(estimator.rates(keys(1, 2))).all()
    estimator.update(keys(1), counts(1), counts(4))
    assert len(estimator) == 1
    np.testing.assert_array_equal(estimator.rates(keys(2, 1)), [np.nan, 0.25])


def test_without_a_window_the_last_visit_alone_counts_whatever_its_size() -> None:
    estimator = RecentRewards(0)
    estimator.update(keys(1), counts(100), counts(128))
    estimator.update(keys(1), counts(1), counts(2))
    assert estimator.rates(keys(1)) == 0.5


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_a_window_is_the_mean_of_the_last_16_rewards(size: int) -> None:
    """Visits whose size divides the window, so that it never cuts through one."""
    rng = np.random.default_rng(size)
    prompts = np.arange(50, dtype=np.uint64)
    rewards: list[list[float]] = [[] for _ in prompts]
    estimator = RecentRewards(WINDOW)
    for visit in range(40):
        won = rng.binomial(size, rng.choice([0.0, 0.1, 0.5, 1.0], prompts.size))
        estimator.update(prompts, won, np.full(prompts.size, size))
        for history, successes in zip(rewards, won.tolist(), strict=True):
            history += [1.0] * successes + [0.0] * (size - successes)
        expected = [np.mean(history[-WINDOW:]) for history in rewards]
        np.testing.assert_array_equal(estimator.rates(prompts), expected, err_msg=f"after visit {visit}")


def test_a_window_forgets_a_success_after_16_further_failures() -> None:
    estimator = RecentRewards(WINDOW)
    estimator.update(keys(1), counts(1), counts(2))
    for _ in range(8):
        assert estimator.rates(keys(1)) > 0
        estimator.update(keys(1), counts(0), counts(2))
    assert estimator.rates(keys(1)) == 0.0


def test_a_window_that_cuts_through_a_visit_stays_within_one_reward_of_that_visits_rate() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        estimator = RecentRewards(WINDOW)
        first, second = rng.integers(1, 30), rng.integers(1, 16)
        won, again = rng.integers(0, first + 1), rng.integers(0, second + 1)
        estimator.update(keys(1), counts(won), counts(first))
        estimator.update(keys(1), counts(again), counts(second))
        kept = min(first, WINDOW - second)
        expected = (again + kept * won / first) / (second + kept)
        assert float(estimator.rates(keys(1))[0]) == pytest.approx(expected, abs=1 / (second + kept))


def test_a_visit_larger_than_the_window_counts_as_a_whole() -> None:
    estimator = RecentRewards(WINDOW)
    estimator.update(keys(1), counts(3), counts(8))
    estimator.update(keys(1), counts(1), counts(128))
    assert estimator.rates(keys(1)) == 1 / 128


def test_a_short_history_is_a_short_window() -> None:
    estimator = RecentRewards(WINDOW)
    estimator.update(keys(1), counts(1), counts(3))
    estimator.update(keys(1), counts(2), counts(2))
    assert estimator.rates(keys(1)) == 3 / 5


@pytest.mark.parametrize("window", [0, WINDOW])
def test_rows_of_one_prompt_are_parts_of_one_visit(window: int) -> None:
    whole, parts = RecentRewards(window), RecentRewards(window)
    for estimator in (whole, parts):
        estimator.update(keys(1, 2), counts(3, 3), counts(4, 4))
    whole.update(keys(1, 2), counts(3, 1), counts(8, 2))
    parts.update(keys(1, 2, 1, 1), counts(1, 1, 0, 2), counts(2, 2, 3, 3))
    np.testing.assert_array_equal(whole.rates(keys(1, 2)), parts.rates(keys(1, 2)))


@pytest.mark.parametrize("window", [0, WINDOW])
def test_visits_without_rollouts_are_no_visits(window: int) -> None:
    estimator = RecentRewards(window)
    estimator.update(keys(1, 2), counts(0, 0), counts(0, 0))
    assert len(estimator) == 0
    estimator.update(keys(), counts(), counts())
    estimator.update(keys(1), counts(1), counts(1))
    estimator.update(keys(1), counts(0), counts(0))
    assert estimator.rates(keys(1)) == 1.0


@pytest.mark.parametrize("window", [0, WINDOW])
def test_beliefs_about_many_prompts_survive_the_growth_of_the_table(window: int) -> None:
    estimator = RecentRewards(window)
    rng = np.random.default_rng(0)
    known: dict[int, float] = {}
    for size in (1, 2, 3, 100, 7, 1000):
        fresh = rng.integers(0, 2**63, size).astype(np.uint64)
        won = rng.integers(0, 9, size)
        estimator.update(fresh, won, np.full(size, 8))
        known |= dict(zip(fresh.tolist(), (won / 8).tolist(), strict=True))
    everyone = np.array(list(known), dtype=np.uint64)
    assert estimator.rates(everyone).tolist() == list(known.values())
    assert sorted(estimator.all_rates().tolist()) == sorted(known.values())


@pytest.mark.parametrize("window", [0, WINDOW])
def test_a_restored_estimator_goes_on_exactly_like_the_original(window: int) -> None:
    rng = np.random.default_rng(1)
    original, restored = RecentRewards(window), RecentRewards(window)
    people = np.arange(30, dtype=np.uint64)

    def visit(*estimators: RecentRewards) -> None:
        tried = rng.integers(0, 24, people.size)
        won = rng.binomial(tried, 0.3)
        for estimator in estimators:
            estimator.update(people, won, tried)

    for _ in range(10):
        visit(original)
    restored.load_state_dict(original.state_dict())
    for _ in range(10):
        visit(original, restored)
        np.testing.assert_array_equal(original.rates(people), restored.rates(people))


def test_a_state_dict_is_a_copy() -> None:
    estimator = RecentRewards(0)
    estimator.update(keys(1), counts(1), counts(4))
    state = estimator.state_dict()
    estimator.update(keys(1), counts(4), counts(4))
    other = RecentRewards(0)
    other.load_state_dict(state)
    other.update(keys(1), counts(0), counts(4))
    third = RecentRewards(0)
    third.load_state_dict(state)
    assert third.rates(keys(1)) == 0.25
    assert estimator.rates(keys(1)) == 1.0


DAMAGE = {
    "text for keys": {"keys": ["a", "b"]},
    "negative keys": {"keys": [-1, 2]},
    "fractional keys": {"keys": np.array([1.5, 2.0])},
    "keys twice": {"keys": np.array([1, 1], dtype=np.uint64)},
    "a matrix of keys": {"keys": np.array([[1, 2]], dtype=np.uint64)},
    "too few successes": {"successes": [1.0]},
    "more successes than rewards": {"successes": [9.0, 1.0]},
    "negative successes": {"successes": [-1.0, 1.0]},
    "unknown successes": {"successes": [np.nan, 1.0]},
    "no rewards": {"rewards": [0.0, 4.0]},
    "unknown rewards": {"rewards": [np.nan, 4.0]},
    "infinitely many rewards": {"rewards": [np.inf, 4.0]},
    "infinitely many of both": {"rewards": [np.inf, 4.0], "successes": [np.inf, 1.0]},
    "complex successes": {"successes": [1j, 1.0]},
}


@pytest.mark.parametrize("window", [0, WINDOW])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_state_is_refused_and_changes_nothing(damage: dict, window: int) -> None:
    estimator = RecentRewards(window)
    estimator.update(keys(1, 2), counts(1, 2), counts(4, 4))
    with pytest.raises(StateError, match="state: expected"):
        estimator.load_state_dict(estimator.state_dict() | damage)
    assert estimator.rates(keys(1, 2)).tolist() == [0.25, 0.5]


@pytest.mark.parametrize("window", [0, WINDOW])
def test_a_state_without_one_of_its_parts_is_refused(window: int) -> None:
    estimator = RecentRewards(window)
    complete = estimator.state_dict()
    for part in complete:
        with pytest.raises(StateError, match=part):
            estimator.load_state_dict({name: value for name, value in complete.items() if name != part})


def test_the_window_strategy_looks_back_on_16_rewards() -> None:
    allocator = kr.BudgetAllocator("knapsack-window")
    for successes in (8, 4, 2):
        allocator.tell(["a"], [successes], [8])
    assert allocator.success_rates(["a"]) == 6 / 16
