"""Which prompts of a step that is placed without barriers can be known to get no more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import knapsack_rl as kr
from knapsack_rl.strategies import STRATEGIES

GROUP = 8
ONE_WAVE = [name for name in kr.strategies() if not STRATEGIES[name].in_waves]
IN_WAVES = [name for name in kr.strategies() if name not in ONE_WAVE and STRATEGIES[name].exponents is None]


def allocator_of(strategy: str, **more: object) -> kr.BudgetAllocator:
    return kr.BudgetAllocator(strategy, **({"group_size": GROUP, "max_rollouts": 64} | more))


def generated(step: kr.Step, rates: np.ndarray, seed: int, slots: int, failures: float = 0.0, close: bool = True):
    """Run a step to its end, rollouts coming back in random order; yields after each report who is closed.

    The j-th rollout of a prompt has the same outcome whenever it is placed.
    """
    draws, order = np.random.default_rng(seed).random((2, len(rates), 200)), np.random.default_rng(seed + 1)
    flight: list[tuple[int, int]] = []
    while step.remaining:
        begun = step.placed.copy()
        added = step.place(slots - len(flight)).rollouts
        flight += [(i, j) for i in np.flatnonzero(added) for j in range(begun[i], begun[i] + added[i])]
        counts = np.zeros((3, len(rates)), dtype=int)
        for _ in range(int(order.integers(1, len(flight) + 1))):
            i, j = flight.pop(int(order.integers(len(flight))))
            counts[:, i] += (0, 0, 1) if draws[1, i, j] < failures else (draws[0, i, j] < rates[i], 1, 0)
        step.report(*counts)
        yield step.close() if close else np.zeros(len(rates), dtype=bool)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    strategy=st.sampled_from(kr.strategies()),
    slots=st.integers(2, 120),
    bounds=st.sampled_from([(2, 64), (0, 64), (2, 9), (0, 9), (0, 2), (1, 16), (4, 16), (5, 9)]),
    failures=st.sampled_from([0.0, 0.3]),
    algorithm=st.sampled_from(["grpo", "reinforce"]),
    concentration=st.sampled_from([0.3, 50.0]),
)
@example(
    seed=4, strategy="adaptive", slots=30, bounds=(4, 16), failures=0.0, algorithm="grpo", concentration=50.0
)  # a group has a gradient before its minimum
def test_who_is_closed_gets_no_more_and_the_budget_is_spent_exactly(
    seed: int,
    strategy: str,
    slots: int,
    bounds: tuple[int, int],
    failures: float,
    algorithm: str,
    concentration: float,
) -> None:
    rates = np.random.default_rng(seed).beta(concentration, concentration, 12)
    group = min(GROUP, bounds[1] - (bounds[1] > 2))
    least, most = bounds
    step = allocator_of(
        strategy, group_size=group, min_rollouts=least, max_rollouts=most, revisit=None, algorithm=algorithm
    ).step(list(range(12)))
    closed, sizes = np.zeros(12, dtype=bool), np.zeros(12, dtype=int)
    for now in generated(step, rates, seed, slots, failures):
        assert (now >= closed).all()
        closed, sizes = now, np.where(closed, sizes, step.placed)
        assert (step.placed[closed] >= least).all()
        assert (step.placed == sizes).all()
    assert step.placed.sum() == 12 * group
    assert (step.placed <= most).all()
    assert closed.all()


@pytest.mark.parametrize("strategy", ONE_WAVE)
def test_with_one_wave_all_are_closed_from_the_beginning(strategy: str) -> None:
    step = allocator_of(strategy).step(list(range(12)))
    step.place(5)  # of 96
    expected = step.forecast().rollouts
    closed = step.close()
    assert closed.tolist() == (step.placed == expected).tolist()  # the others get what was planned for them
    step.place(12 * GROUP)
    assert step.close().all()
    assert step.placed.tolist() == expected.tolist()


@pytest.mark.parametrize("strategy", [*IN_WAVES, *ONE_WAVE])
@pytest.mark.parametrize("seed", range(3))
def test_closing_changes_no_plan_of_strategies_that_keep_to_their_waves(strategy: str, seed: int) -> None:
    rates = np.random.default_rng(seed).random(12)
    with_it, without = (allocator_of(strategy).step(list(range(12))) for _ in range(2))
    for _ in generated(with_it, rates, seed, 30):
        pass
    for _ in generated(without, rates, seed, 30, close=False):
        pass
    assert with_it.placed.tolist() == without.placed.tolist()


def test_a_group_with_a_gradient_is_closed_when_it_is_back_and_one_without_is_not() -> None:
    step = allocator_of("adaptive").step(["mixed", "mixed, one in flight", "right", "wrong"])
    step.place(8)
    step.report([1, 1, 2, 0], [2, 1, 2, 2])
    assert step.close().tolist() == [True, False, False, False]
    step.report([0, 0, 0, 0], [0, 1, 0, 0])
    assert step.close().tolist() == [True, True, False, False]
    step.place(100)
    assert step.placed[:2].tolist() == [2, 2]
    assert step.placed.sum() == 4 * GROUP
    assert step.close().all()


def test_a_group_that_has_a_gradient_before_its_minimum_is_not_closed() -> None:
    step = allocator_of("adaptive", min_rollouts=4, max_rollouts=16).step(list("abcdefgh"))
    first = step.place(30).rollouts
    step.report([1] + [0] * 6 + [1], first)
    assert first.tolist() == [4] * 7 + [2]
    assert step.close().tolist() == [True] + [False] * 7
    step.place(100)
    assert step.placed[[0, 7]].tolist() == [4, 4]


def test_where_every_group_has_a_gradient_enough_stay_open_for_none_to_exceed_two_mean_groups() -> None:
    """A hundred coins: two throws each leave 600 throws, which 50 of them could just take."""
    step = allocator_of("adaptive", max_rollouts=128).step(list(range(100)))
    step.place(200)
    step.report([1] * 100, [2] * 100)
    closed = step.close()
    assert closed.sum() == 100 - np.ceil(600 / (2 * GROUP - 2))
    step.place(600)
    assert (step.placed[closed] == 2).all()
    assert 2 * GROUP - 2 <= step.placed[~closed].min() <= step.placed.max() <= 2 * GROUP
    assert step.placed.sum() == 100 * GROUP


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), slots=st.integers(2, 200), concentration=st.sampled_from([0.3, 1.0, 100.0]))
def test_no_group_with_a_gradient_grows_beyond_two_mean_groups(seed: int, slots: int, concentration: float) -> None:
    rates = np.random.default_rng(seed).beta(concentration, concentration, 12)
    step = allocator_of("adaptive").step(list(range(12)))
    mixed, sizes = np.zeros(12, dtype=bool), np.zeros(12, dtype=int)
    for _ in generated(step, rates, seed, slots):
        grown = mixed & (step.placed > sizes)
        assert (step.placed[grown] <= 2 * GROUP).all()
        mixed, sizes = (step.successes > 0) & (step.successes < step.scored), step.placed.copy()


def test_under_a_cost_limit_only_full_groups_are_closed_before_the_end() -> None:
    allocator = allocator_of("adaptive", cost_limit=1.0)
    allocator.tell(["a", "b", "c"], [1, 4, 7], [8, 8, 8], costs=[80.0, 400.0, 800.0])
    step = allocator.step(["a", "b", "c"])
    step.place(6)
    step.report([1, 1, 1], [2, 2, 2])
    assert not step.close().any()


def test_closing_before_anything_was_placed_is_refused() -> None:
    with pytest.raises(kr.StateError, match="step: close came before place"):
        kr.BudgetAllocator("adaptive").step(["a"]).close()
