"""Placing without barriers, whatever order rollouts come back in and however many fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import knapsack_rl as kr
from knapsack_rl.strategies import STRATEGIES

Ints = NDArray[np.int64]
WAITING = [name for name, strategy in STRATEGIES.items() if strategy.in_waves]
ONE_WAVE = [name for name in STRATEGIES if name not in WAITING]


class Engine:
    """Slots in which rollouts of prompts with given success rates end in a random order; some of them fail."""

    def __init__(self, size: int, slots: int, seed: int, failing: float) -> None:
        self.random = np.random.default_rng(seed)
        self.rates = self.random.choice([0.0, 0.1, 0.5, 0.95, 1.0], size)
        self.slots, self.failing = slots, failing
        self.flying = np.zeros(size, dtype=np.int64)

    @property
    def free(self) -> int:
        return self.slots - int(self.flying.sum())

    def start(self, rollouts: Ints) -> None:
        self.flying = self.flying + rollouts

    def some(self) -> tuple[Ints, Ints, Ints]:
        """Successes, rollouts and failures: a random part of what is in flight, of one rollout or more."""
        each = np.repeat(np.arange(len(self.flying)), self.flying)
        back = self.random.choice(each, self.random.integers(1, len(each) + 1), replace=False)
        back = np.bincount(back, minlength=len(self.flying))
        self.flying = self.flying - back
        failed = self.random.binomial(back, self.failing)
        return self.random.binomial(back - failed, self.rates), back - failed, failed


class Case:
    """An allocator with a history, a step of it and an engine; the same arguments make the same case."""

    def __init__(self, strategy: str, size: int, slots: int, seed: int, failing: float, algorithm: str) -> None:
        self.low, self.high, self.group = 1 + seed % 3, 3 + seed % 9, 3
        self.allocator = kr.BudgetAllocator(strategy, self.group, self.low, self.high, algorithm=algorithm)
        random, names = np.random.default_rng(seed + 1), [f"prompt {i}" for i in range(6)]
        for _ in range(seed % 4):
            tried = random.integers(0, 9, 6)
            self.allocator.tell(names, random.binomial(tried, np.linspace(0.0, 1.0, 6)), tried)
        self.ids = [f"prompt {i}" for i in random.integers(0, 9, size)]  # of which some are new, and some there twice
        self.step = self.allocator.step(self.ids)
        self.engine = Engine(size, slots, seed, failing)
        self.plans: list[list[int]] = []

    def run(self) -> Ints:
        """What was placed of the whole step."""
        placed = np.zeros(len(self.ids), dtype=np.int64)
        while self.step.remaining:
            plan = self.step.place(self.engine.free).rollouts
            assert plan.min() >= 0
            assert plan.sum() <= self.engine.free
            placed += plan
            self.plans.append(plan.tolist())
            self.engine.start(plan)
            assert self.engine.flying.any()  # or the loop would wait for ever
            self.step.report(*self.engine.some())
        return placed


everything = {
    "strategy": st.sampled_from(kr.strategies()),
    "size": st.integers(1, 12),
    "slots": st.integers(1, 50),
    "seed": st.integers(0, 10_000),
    "failing": st.sampled_from([0.0, 0.2, 1.0]),
    "algorithm": st.sampled_from(["grpo", "rloo", "reinforce"]),
}
streams = given(**everything)
adaptive_streams = given(**{**everything, "strategy": st.just("adaptive")})


@settings(deadline=None)
@streams
@example(strategy="adaptive", size=12, slots=5, seed=10, failing=0.2, algorithm="grpo")
def test_the_budget_is_spent_exactly_and_within_the_bounds_whatever_comes_back_when(**case: Any) -> None:
    stream = Case(**case)
    placed = stream.run()
    assert placed.sum() == stream.group * len(stream.ids)
    assert all(stream.low <= n <= stream.high for n in placed.tolist())
    assert not stream.step.place(99).rollouts.any()


@settings(deadline=None, max_examples=50)
@streams
def test_the_same_reports_lead_to_the_same_plans(**case: Any) -> None:
    first, second = Case(**case), Case(**case)
    second.allocator.load_state_dict(first.allocator.state_dict())  # resumed
    assert first.run().tolist() == second.run().tolist()
    assert first.plans == second.plans


@settings(deadline=None, max_examples=50)
@streams
def test_the_last_report_teaches_the_totals_once_and_none_before_it_anything(**case: Any) -> None:
    stream, plain = Case(**case), Case(**case)
    update, calls = stream.allocator.estimator.update, []
    stream.allocator.estimator.update = lambda *counts: (calls.append(stream.step.remaining), update(*counts))[1]  # type: ignore[method-assign]
    stream.run()
    assert len(calls) == 1
    nothing = np.zeros(len(stream.ids), dtype=np.int64)
    stream.step.report(nothing, nothing)
    assert len(calls) == 1
    plain.allocator.tell(plain.ids, stream.step.successes, stream.step.scored)
    for name, value in plain.allocator.state_dict()["estimator"].items():
        np.testing.assert_array_equal(stream.allocator.state_dict()["estimator"][name], value)


@settings(deadline=None, max_examples=50)
@adaptive_streams
def test_nobody_gets_more_than_the_minimum_before_everybody_has_it(**case: Any) -> None:
    stream = Case(**case)
    step, engine = stream.step, stream.engine
    placed = np.zeros(len(stream.ids), dtype=np.int64)
    while step.remaining:
        plan = step.place(engine.free).rollouts
        beyond = (plan > 0) & (placed + plan > stream.low)
        assert not beyond.any() or (placed + plan >= stream.low).all()
        placed = placed + plan
        engine.start(plan)
        won, tried, failed = engine.some()
        step.report(won, tried, failed)


@pytest.mark.parametrize("strategy", ONE_WAVE)
def test_strategies_of_one_wave_place_what_ask_plans_and_never_wait(strategy: str) -> None:
    allocator = kr.BudgetAllocator(strategy, 4)
    allocator.tell(["a", "b", "c"], [0, 3, 8], [8, 8, 8])
    names = ["a", "b", "c", "d"]
    whole = allocator.ask(names).rollouts.tolist()
    assert allocator.step(names).place(100).rollouts.tolist() == whole
    step = allocator.step(names)
    assert np.sum([step.place(3).rollouts for _ in range(6)], axis=0).tolist() == whole


@pytest.mark.parametrize("slots", [1, 3, 100])
@pytest.mark.parametrize("strategy", ONE_WAVE)
def test_strategies_of_one_wave_say_what_the_fallback_moved_however_rollouts_are_placed(
    strategy: str, slots: int
) -> None:
    found: list[dict[str, float]] = []
    allocator = kr.BudgetAllocator(strategy, 8, on_step=found.append)
    names = list("abcdefgh")
    allocator.tell(names, [0, 7, *[8] * 6], [8] * 8)
    step = allocator.step(names)
    expected = step.forecast().fallback
    while step.remaining:
        step.place(slots)
        step.report([0] * 8, step.in_flight)
    assert found[-1]["fallback_rollouts"] == expected
    assert expected or strategy not in ("knapsack", "knapsack-window")


@pytest.mark.parametrize("strategy", [name for name in WAITING if not name.startswith(("adaptive", "measured"))])
def test_other_strategies_keep_their_waves(strategy: str) -> None:
    allocator = kr.BudgetAllocator(strategy, 4)
    names = ["a", "b", "c", "d"]
    waves, stream = allocator.step(names), allocator.step(names)
    while waves.remaining:
        asked = waves.ask().rollouts
        assert np.sum([stream.place(3).rollouts for _ in range(6)], axis=0).tolist() == asked.tolist()
        won = np.minimum(asked, [0, 1, 2, 9])
        waves.tell(won, asked)
        for position in (2, 0, 1, 3):
            only = np.eye(4, dtype=np.int64)[position]
            stream.report(won * only, asked * only)
    assert stream.remaining == 0


def test_what_other_steps_teach_meanwhile_does_not_move_a_step_that_has_begun() -> None:
    def placed(disturb: bool) -> list[list[int]]:
        allocator = kr.BudgetAllocator("adaptive", 4)
        allocator.tell(["a", "b"], [1, 7], [8, 8])
        step, plans = allocator.step(["a", "b"]), []
        while step.remaining:
            plans.append(step.place(2).rollouts)
            if disturb:
                allocator.tell(["a", "b"], [8, 0], [8, 8])
            step.report([0, 0], plans[-1])
        return [plan.tolist() for plan in plans]

    assert placed(disturb=True) == placed(disturb=False)


def test_free_slots_never_wait_and_go_where_a_rollout_is_expected_to_gain_most() -> None:
    """The minimum for everyone, then one rollout at a time by brute force over the gains of all prompts."""
    allocator = kr.BudgetAllocator("adaptive", 4, 2, 9)
    ids = [str(i) for i in range(6)]
    for _ in range(3):
        allocator.tell(ids, [0, 1, 3, 5, 7, 8], [8] * 6)
    step = allocator.step(ids)
    assert step.place(12).rollouts.tolist() == [2] * 6
    step.report([0, 0, 1, 0, 2, 1], [2, 1, 2, 0, 2, 1])
    placed, scored, won = step.placed.copy(), step.scored, step.successes
    expected = np.zeros(6, dtype=np.int64)
    for _ in range(7):
        gains = kr.expected_gains(step.belief, won, scored, placed + expected - scored, (0.5, 2.0))
        open_to = (placed + expected < 9) & ~((won > 0) & (won < scored))
        best = np.where(open_to, gains(np.arange(6), 0, 1)[:, 0], -1.0)
        expected[int(best.argmax())] += 1
    assert step.place(7).rollouts.tolist() == expected.tolist()


def test_the_two_ways_through_a_step_do_not_mix() -> None:
    allocator = kr.BudgetAllocator("adaptive", 4)
    placed, asked = allocator.step(["a"]), allocator.step(["a"])
    placed.place(1)
    asked.ask()
    with pytest.raises(kr.StateError, match="ask came in a step that was begun the other way"):
        placed.ask()
    with pytest.raises(kr.StateError, match="tell came in a step that was begun the other way"):
        placed.tell([0], [1])
    with pytest.raises(kr.StateError, match="place came in a step that was begun the other way"):
        asked.place(1)
    with pytest.raises(kr.StateError, match="report came before place"):
        asked.report([0], [1])


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (([0, 0], [2, 0]), r"at most the 1 that are in flight, got 2 at position 0"),
        (([0, 0], [1, 0], [1, 0]), r"at most the 1 that are in flight, got 2 at position 0"),
        (([2, 0], [1, 0]), r"successes: expected at most rollouts"),
        (([0], [1]), r"expected one number for each of the 2 prompts"),
        (([0, 0], [1, 0], 1), r"failed: expected 0 or one number for each of the 2 prompts"),
        (([0, 0], [0, 0], [1]), r"failed: expected 0 or one number for each of the 2 prompts"),
        (([0, 0], [0, 0], [-1, 0]), r"failed: expected counts of 0 or more"),
    ],
)
def test_a_report_that_cannot_be_is_refused_and_changes_nothing(counts: tuple[Any, ...], message: str) -> None:
    step = kr.BudgetAllocator("adaptive", 4).step(["a", "b"])
    assert step.place(1).rollouts.tolist() == [1, 0]
    with pytest.raises(kr.InvalidInputError, match=message):
        step.report(*counts)
    assert (step.remaining, step.scored.tolist()) == (8, [0, 0])
    step.report([1, 0], [1, 0])
    assert (step.remaining, step.scored.tolist()) == (7, [1, 0])


@pytest.mark.parametrize("most", [-1, 1.5, "2"])
def test_a_number_of_slots_that_is_none_is_refused_and_begins_nothing(most: Any) -> None:
    step = kr.BudgetAllocator("adaptive", 4).step(["a"])
    with pytest.raises(kr.InvalidInputError, match="most: expected an integer of at least 0"):
        step.place(most)
    assert step.ask().rollouts.tolist() == [2]
