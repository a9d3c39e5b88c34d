"""Ask and tell under any history: budgets, purity, state, and agreement with a plain model of every visit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import knapsack_rl as kr

identifiers = st.one_of(st.text(max_size=4), st.integers(-3, 3), st.just(2**80))
scored = st.integers(0, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
visits = st.lists(st.lists(st.tuples(identifiers, scored), max_size=6), max_size=8)
Visits = list[list[tuple[str | int, tuple[int, int]]]]


def tell_all(allocator: kr.BudgetAllocator, history: Visits) -> None:
    for batch in history:
        allocator.tell([name for name, _ in batch], [s for _, (s, _) in batch], [n for _, (_, n) in batch])


@settings(deadline=None)
@given(visits, st.lists(identifiers, max_size=8), st.sampled_from(kr.strategies()))
def test_every_step_spends_its_budget_within_the_bounds(history: Visits, ids: list[Any], strategy: str) -> None:
    allocator = kr.BudgetAllocator(strategy, group_size=5, min_rollouts=2, max_rollouts=11)
    tell_all(allocator, history)
    rollouts = allocator.ask(ids).rollouts
    assert rollouts.shape == (len(ids),)
    assert rollouts.sum() == 5 * len(ids)
    assert all(2 <= n <= 11 for n in rollouts.tolist())
    assert allocator.ask(ids).rollouts.tolist() == rollouts.tolist()


@settings(deadline=None)
@given(visits)
def test_the_last_visit_is_what_is_believed(history: Visits) -> None:
    allocator = kr.BudgetAllocator("knapsack")
    tell_all(allocator, history)
    believed: dict[Any, float] = {}
    for batch in history:
        totals: dict[Any, list[int]] = {}
        for name, (successes, rollouts) in batch:
            entry = totals.setdefault((type(name), name), [0, 0])
            entry[0] += successes
            entry[1] += rollouts
        believed |= {key: s / n for key, (s, n) in totals.items() if n}
    names = [name for _, name in believed]
    assert allocator.success_rates(names).tolist() == list(believed.values())
    assert allocator.metrics()["known_prompts"] == len(believed)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_a_window_is_the_mean_of_the_last_16_rewards_over_even_visits(successes: list[int]) -> None:
    allocator = kr.BudgetAllocator("knapsack-window")
    rewards: list[int] = []
    for won in successes:
        allocator.tell(["a"], [won], [4])
        rewards += [1] * won + [0] * (4 - won)
        assert allocator.success_rates(["a"]) == np.mean(rewards[-16:])


@settings(deadline=None)
@given(st.lists(scored.filter(lambda visit: visit[1] > 0), min_size=1, max_size=12))
def test_a_window_knows_solved_and_unsolved_exactly(history: list[tuple[int, int]]) -> None:
    """Whatever the visits' sizes: 16 equal rewards in a row are a rate of exactly 0 or 1."""
    allocator = kr.BudgetAllocator("knapsack-window")
    for won, tried in history:
        allocator.tell(["a"], [won], [tried])
        assert 0.0 <= allocator.success_rates(["a"])[0] <= 1.0
    for outcome in (0, 1):
        for _ in range(6):
            allocator.tell(["a"], [3 * outcome], [3])
        assert allocator.success_rates(["a"]) == outcome


@settings(deadline=None, max_examples=50)
@given(visits, visits, st.lists(identifiers, min_size=1, max_size=8), st.sampled_from(kr.strategies()))
def test_saving_and_resuming_changes_nothing(before: Visits, after: Visits, ids: list[Any], strategy: str) -> None:
    original, from_dict, from_file = (kr.BudgetAllocator(strategy) for _ in range(3))
    tell_all(original, before)
    from_dict.load_state_dict(original.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        original.save(Path(folder) / "state.npz")
        from_file.load(Path(folder) / "state.npz")
    for history in ([], after):
        for allocator in (original, from_dict, from_file):
            tell_all(allocator, history)
        plan = original.ask(ids)
        for resumed in (from_dict, from_file):
            assert resumed.ask(ids).rollouts.tobytes() == plan.rollouts.tobytes()
            assert resumed.success_rates(ids).tobytes() == original.success_rates(ids).tobytes()


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_on_disk_are_mistaken_for_a_state(content: bytes) -> None:
    allocator = kr.BudgetAllocator()
    allocator.tell(["a"], [1], [4])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.npz"
        path.write_bytes(content)
        try:
            allocator.load(path)
        except kr.StateError:
            assert allocator.success_rates(["a"]) == 0.25
        else:
            raise AssertionError("random bytes were loaded")
