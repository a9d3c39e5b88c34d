"""Even groups until it is seen that hard prompts gain most, and then those of `adaptive`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import knapsack_rl as kr
from knapsack_rl import metrics
from knapsack_rl.errors import StateError
from knapsack_rl.estimators import Gaining

PROMPTS, IN_A_STEP, SIZE = 1024, 64, 8


def trained(hard: float, seed: int, steps: int = 150) -> tuple[kr.BudgetAllocator, list[int], list[tuple]]:
    """Prompts that gain p (1 - p), or much more where p is small; and the waves of each step, and all visits."""
    random = np.random.default_rng(seed)
    rates = random.beta(0.4, 0.4, PROMPTS)
    allocator, waves, visits = kr.BudgetAllocator("cautious", group_size=SIZE), [], []
    for number in range(steps):
        if number % (PROMPTS // IN_A_STEP) == 0:
            order = random.permutation(PROMPTS)
        ids = order[number * IN_A_STEP % PROMPTS :][:IN_A_STEP]
        step, asked = allocator.step(ids.tolist()), 0
        while step.remaining:
            plan, asked = step.ask().rollouts, asked + 1
            step.tell(random.binomial(plan, rates[ids]), plan)
        assert step.placed.sum() == IN_A_STEP * SIZE
        waves.append(asked)
        visits += [(number, *visit) for visit in zip(ids.tolist(), step.successes, step.placed, strict=True)]
        rates[ids] = np.clip(rates[ids] + 0.3 * rates[ids] * (1 - rates[ids]) ** (1 + 2 * hard) * (1 + 4 * hard), 0, 1)
    return allocator, waves, visits


@pytest.mark.parametrize("seed", range(3))
def test_groups_stay_even_where_hard_prompts_gain_no_more_than_easy_ones(seed: int) -> None:
    allocator, waves, visits = trained(0.0, seed)
    assert set(waves) == {1}
    assert all(placed == SIZE for *_, placed in visits)
    assert not allocator.estimator.hard_gain


@pytest.mark.parametrize("seed", range(3))
def test_where_hard_prompts_gain_most_it_becomes_adaptive_for_good(seed: int) -> None:
    allocator, waves, _ = trained(1.0, seed)
    first = waves.index(3)
    assert PROMPTS // IN_A_STEP < first < 120
    assert set(waves[:first]) == {1}
    assert set(waves[first:]) == {3}
    assert allocator.estimator.hard_gain


def test_chance_alone_hardly_ever_makes_it_switch() -> None:
    """Sixty runs in which nobody gains, and sixty of p (1 - p): a switch cannot be taken back."""
    switched = 0
    for seed in range(120):
        random, estimator = np.random.default_rng(seed), Gaining()
        rates = random.beta(0.4, 0.4, 256)
        for number in range(32):
            here = np.arange(256)[64 * number % 256 :][:64]
            estimator.update(here.astype(np.uint64), random.binomial(SIZE, rates[here]), np.full(64, SIZE))
            rates[here] += 0.3 * (seed % 2) * rates[here] * (1 - rates[here])
        switched += estimator.hard_gain
        assert np.isfinite(estimator.progress.error[[1, 3]]).all()
    assert switched <= 1


def test_it_switches_at_the_step_that_makes_it_three_standard_errors() -> None:
    near, switched = [], 0
    for seed in range(6):
        random, estimator, seen = np.random.default_rng(seed), Gaining(), []
        rates = random.beta(0.6, 0.6, 1024)
        for number in range(64):
            here = np.arange(1024)[64 * number % 1024 :][:64]
            estimator.update(here.astype(np.uint64), random.binomial(SIZE, rates[here]), np.full(64, SIZE))
            seen.append(estimator.progress.lean[0])
            if estimator.hard_gain:
                break
            rates[here] += 1.2 * rates[here] * (1 - rates[here]) ** 3
        assert max(seen[:-1]) <= 3.0
        assert estimator.hard_gain == (seen[-1] > 3.0)
        near += [one for one in seen[:-1] if one > 2.0]
        switched += estimator.hard_gain
    assert switched > 2
    assert len(near) > 3


def test_hard_prompts_that_gain_more_but_not_half_as_much_again_are_no_reason() -> None:
    random, estimator = np.random.default_rng(0), Gaining()
    rates = random.beta(0.6, 0.6, 16384)
    for number in range(256):
        here = np.arange(16384)[256 * number % 16384 :][:256]
        estimator.update(here.astype(np.uint64), random.binomial(SIZE, rates[here]), np.full(256, SIZE))
        rates[here] += np.where(rates[here] < 0.5, 0.28, 0.2) * rates[here] * (1 - rates[here])
    rise, error = (getattr(estimator.progress, name)[[metrics.HARD, metrics.EASY]] for name in ("rise", "error"))
    assert rise[0] - rise[1] > 3.0 * np.hypot(*error)
    assert not estimator.hard_gain


def test_what_prompts_gain_after_their_first_visits_is_not_looked_at() -> None:
    """As runs converge: at first all gain p (1 - p), later only hard prompts do."""
    random, estimator = np.random.default_rng(0), Gaining()
    rates = random.beta(0.6, 0.6, 1024)
    for number in range(160):
        here = np.arange(1024)[64 * number % 1024 :][:64]
        won = random.binomial(SIZE, rates[here])
        estimator.update(here.astype(np.uint64), won, np.full(64, SIZE))
        learns = (number < 64) | (rates[here] < 0.5)
        rates[here] += 0.1 * learns * rates[here] * (1 - rates[here])
        if number == 63:
            before = estimator.progress
    assert not estimator.hard_gain
    for one, other in zip(before, estimator.progress, strict=True):
        np.testing.assert_array_equal(one, other)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 2]), st.sampled_from([None, 1.0]), st.integers(0, 9))
def test_until_then_it_places_what_uniform_places(seed: int, least: int, limit: float | None, more: int) -> None:
    random, ids = np.random.default_rng(seed), list(range(6))
    cautious, uniform = (
        kr.BudgetAllocator(name, group_size=SIZE, min_rollouts=least, cost_limit=limit)
        for name in ("cautious", "uniform")
    )
    for _ in range(3):
        won, costs = random.integers(0, SIZE + 1, 6), random.uniform(1, 2, 6) * SIZE
        budget = 6 * SIZE + more
        plans = [allocator.ask(ids, budget=budget).rollouts for allocator in (cautious, uniform)]
        np.testing.assert_array_equal(*plans)
        for allocator in (cautious, uniform):
            allocator.tell(ids, won, np.full(6, SIZE), costs=costs)


def test_what_it_sees_is_learning_progress_over_the_steps() -> None:
    allocator, _, visits = trained(0.0, 3, steps=60)
    last, pairs = {}, []
    for number, prompt, won, tried in visits:
        if prompt in last:
            pairs.append((*last[prompt], won, tried, number))
        last[prompt] = (won, tried)
    expected = metrics.learning_progress(*np.transpose(pairs)[:4], steps=np.transpose(pairs)[4])
    found = allocator.estimator.progress
    np.testing.assert_allclose(found.pairs, expected.pairs)
    np.testing.assert_allclose(found.rise, expected.rise)
    np.testing.assert_allclose(found.error, expected.error)


def test_from_then_on_it_plans_as_adaptive_does() -> None:
    cautious, _, _ = trained(1.0, 0)
    adaptive = kr.BudgetAllocator("adaptive", group_size=SIZE)
    adaptive.estimator.load_state_dict(cautious.estimator.state_dict())
    ids = list(range(IN_A_STEP))
    np.testing.assert_array_equal(cautious.ask(ids).rollouts, adaptive.ask(ids).rollouts)
    assert len(set(cautious.ask(ids).rollouts.tolist())) > 2


def test_a_step_that_began_even_stays_even_and_so_it_does_when_restored() -> None:
    allocator, _, _ = trained(1.0, 1, steps=0)
    opened = [allocator.step(list(range(8))) for _ in range(2)]
    opened[0].place(10)
    allocator.estimator.hard_gain = True
    opened[1].load_state_dict(opened[0].state_dict())
    for step in opened:
        while step.remaining:
            step.place(100)
            step.report(step.in_flight // 4, step.in_flight)
        assert set(step.placed.tolist()) == {SIZE}


@given(st.integers(0, 2**32 - 1))
def test_a_saved_state_goes_on_as_the_original(seed: int) -> None:
    random = np.random.default_rng(seed)
    original, copy = kr.BudgetAllocator("cautious"), kr.BudgetAllocator("cautious")
    for number in range(14):
        won, ids = random.integers(0, 9, 20), [20 * (number % 4) + place for place in range(20)]
        for allocator in (original, copy):
            allocator.tell(ids, won, np.full(20, 8))
        if number == 5:
            copy = kr.BudgetAllocator("cautious")
            copy.load_state_dict(original.state_dict())
    assert np.isfinite(original.estimator.progress.error).any()
    for name in ("pairs", "rise", "error"):
        np.testing.assert_array_equal(*(getattr(one.estimator.progress, name) for one in (original, copy)))


@pytest.mark.parametrize(
    "damage",
    [
        {"hard_gain": 2},
        {"hard_gain": None},
        {"times": np.zeros(1024, dtype=np.uint8)},
        {"times": np.full(1024, 5)},
        {"gain_sums": np.zeros((2, 4))},
        {"gain_sums": np.full((2, 5), -1.0)},
        {"gain_products": np.full((10, 10), np.nan)},
        {"gain_products": np.full((10, 10), -1.0)},
        {"gain_products": np.zeros((10, 10))},
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage: dict) -> None:
    estimator = trained(0.0, 0, steps=20)[0].estimator
    before = estimator.state_dict()
    with pytest.raises(StateError):
        estimator.load_state_dict(before | damage)
    np.testing.assert_array_equal(estimator.state_dict()["gain_products"], before["gain_products"])


def test_groups_too_small_to_tell_teach_nothing_of_gains() -> None:
    allocator = kr.BudgetAllocator("cautious", group_size=3)
    for won in (0, 1, 2, 3):
        allocator.tell(["a", "b"], [won, won], [3, 3])
    assert not allocator.estimator.progress.pairs.any()
    assert isinstance(allocator.estimator, Gaining)
