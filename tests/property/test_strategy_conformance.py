"""What every strategy keeps to, whatever it was told: budgets, waves, purity, state, order, and what it refuses."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import knapsack_rl as kr
from knapsack_rl.estimators import Regression

ALL = pytest.mark.parametrize("strategy", kr.strategies())
LEARNED = [name for name in kr.strategies() if isinstance(kr.BudgetAllocator(name).estimator, Regression)]
"""Strategies that learn from features."""
PEOPLE = [*(f"prompt {i}" for i in range(10)), *range(4), ""]
Ints = NDArray[np.int64]


class Case:
    """An allocator that has been told a history, and a step that it is asked for; all drawn by seed and size."""

    def __init__(
        self, strategy: str, seed: int, steps: int, size: int, group: int, low: int, high: int, algorithm: str
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.make = lambda: kr.BudgetAllocator(strategy, group, low, high, seed=seed % 7, algorithm=algorithm)
        self.rates = dict(zip(PEOPLE, self.random.choice([0.0, 0.05, 0.3, 0.5, 0.9, 1.0], len(PEOPLE)), strict=True))
        self.allocator = self.make()
        self.told = set()
        for _ in range(steps):
            batch = self.batch(int(self.random.integers(1, 13)))
            tried = self.random.integers(0, 12, len(batch))
            self.told |= {name for name, n in zip(batch, tried, strict=True) if n}
            self.allocator.tell(batch, self.outcomes(batch, tried), tried, features(batch))
        self.ids = self.batch(size)
        self.group, self.low, self.high = group, low, high
        self.budget = size * group

    def batch(self, size: int) -> list[str | int]:
        """Prompts, some of which may be there twice."""
        return [PEOPLE[i] for i in self.random.integers(0, len(PEOPLE), size)]

    def outcomes(self, ids: list[str | int], rollouts: Ints) -> Ints:
        return self.random.binomial(rollouts, [self.rates[name] for name in ids])

    def arriving(self, rollouts: Ints, share: float) -> Ints:
        return self.random.binomial(rollouts, share)

    def resumed(self, from_file: bool) -> kr.BudgetAllocator:
        """Another allocator in the state of this one."""
        other = self.make()
        if not from_file:
            other.load_state_dict(self.allocator.state_dict())
            return other
        with tempfile.TemporaryDirectory() as folder:
            self.allocator.save(Path(folder) / "state.npz")
            other.load(Path(folder) / "state.npz")
        return other


def features(ids: list[str | int]) -> dict[str, Any]:
    """Of all kinds, and always the same of a prompt."""
    of = [PEOPLE.index(name) for name in ids]
    return {
        "topic": ["odd" if i % 2 else None if i % 4 else "even" for i in of],
        "length": [1e6 + i for i in of],
        "state": np.array([[np.sin(i), np.cos(i), 1.0] for i in of]).reshape(len(of), 3),
    }


def snapshot(allocator: kr.BudgetAllocator) -> dict[str, Any]:
    """The whole state as bytes, to compare bit for bit."""
    estimator = allocator.state_dict()["estimator"]
    return {
        name: (item.tobytes(), item.shape) if isinstance(item, np.ndarray) else item for name, item in estimator.items()
    }


def same_plans(first: kr.Plan, second: kr.Plan) -> bool:
    same = first.rollouts.tobytes() == second.rollouts.tobytes()
    return same and (first.value, first.fallback) == (second.value, second.fallback)


def spends(plan: kr.Plan, case: Case) -> bool:
    total = plan.rollouts.sum() == case.budget and plan.rollouts.dtype == np.int64
    return bool(total and all(case.low <= n <= case.high for n in plan.rollouts.tolist()))


@st.composite
def settings_of_a_case(draw: st.DrawFn) -> dict[str, Any]:
    low = draw(st.integers(1, 4))
    high = low + draw(st.sampled_from([0, 1, 5, 20, 120]))
    group = draw(st.sampled_from(sorted({low, min(high, low + 3), min(high, 8), high if high < 30 else low})))
    return {
        "seed": draw(st.integers(0, 10**6)),
        "steps": draw(st.integers(0, 4)),
        "size": draw(st.integers(0, 12)),
        "group": max(group, low),
        "low": low,
        "high": high,
        "algorithm": draw(st.sampled_from(["grpo", "rloo", "reinforce"])),
    }


any_case = settings_of_a_case()


@ALL
@settings(deadline=None, max_examples=20)
@given(drawn=any_case, from_file=st.booleans())
def test_an_allocator_that_was_resumed_goes_on_bit_for_bit(
    strategy: str, drawn: dict[str, Any], from_file: bool
) -> None:
    case = Case(strategy, **drawn)
    resumed = case.resumed(from_file)
    assert snapshot(resumed) == snapshot(case.allocator)
    for _ in range(3):
        ids = case.batch(len(case.ids))
        assert same_plans(case.allocator.ask(ids, features(ids)), resumed.ask(ids, features(ids)))
        steps = [allocator.step(ids, features(ids)) for allocator in (case.allocator, resumed)]
        while steps[0].remaining:
            plan, again = (step.ask() for step in steps)
            assert same_plans(plan, again)
            won = case.outcomes(ids, plan.rollouts)
            for step in steps:
                step.tell(won, plan.rollouts)
        assert not steps[1].remaining
        assert snapshot(resumed) == snapshot(case.allocator)


@ALL
@given(right=st.booleans(), visits=st.integers(1, 60), drawn=st.integers(0, 100))
@settings(deadline=None, max_examples=15)
def test_prompts_that_are_all_right_or_all_wrong_get_a_plan_too(
    strategy: str, right: bool, visits: int, drawn: int
) -> None:
    allocator = kr.BudgetAllocator(strategy, group_size=6, max_rollouts=40, seed=drawn)
    tried = np.full(5, 40)
    for _ in range(visits):
        allocator.tell(PEOPLE[:5], tried * right, tried)
    for plan in (allocator.ask(PEOPLE[:5]), allocator.ask(PEOPLE[:9])):
        assert plan.rollouts.mean() == 6
        assert 2 <= plan.rollouts.min() <= plan.rollouts.max() <= 40
        assert np.isfinite(plan.value)
    step, waves = allocator.step(PEOPLE[:5]), []
    while step.remaining:
        waves.append(step.ask().rollouts)
        step.tell(waves[-1] * (not right), waves[-1])  # the opposite of what was believed
    assert np.sum(waves) == 30


@pytest.mark.parametrize(
    "strategy", ["knapsack", "knapsack-discounted", "knapsack-regression", "adaptive", "neyman", "hora"]
)
@settings(deadline=None, max_examples=40)
@given(drawn=any_case)
def test_a_rule_by_gains_lets_only_prompts_with_equal_beliefs_swap(strategy: str, drawn: dict[str, Any]) -> None:
    case = Case(strategy, **drawn)
    if strategy == "knapsack":  # whose fallback and whose first visits are shared out evenly, with a remainder
        case.ids = [name for name in case.ids if 0.0 < case.allocator.success_rates([name])[0] < 1.0]
    permuted = [case.ids[i] for i in case.random.permutation(len(case.ids))]

    def what_beliefs_get(ids: list[str | int]) -> Counter[tuple[float, ...]]:
        belief = case.allocator.belief(ids, features(ids))
        plan = case.allocator.ask(ids, features(ids)).rollouts.tolist()
        believed = zip(np.round(belief.mean, 9).tolist(), np.round(belief.wins, 9).tolist(), plan, strict=True)
        return Counter(believed)

    assert what_beliefs_get(case.ids) == what_beliefs_get(permuted)


@ALL
@settings(deadline=None, max_examples=25)
@given(drawn=any_case)
def test_the_rows_of_a_prompt_in_one_call_are_one_visit(strategy: str, drawn: dict[str, Any]) -> None:
    case = Case(strategy, **drawn)
    apart, together = case.resumed(from_file=False), case.resumed(from_file=False)
    ids = [*case.ids, *case.ids[::-1]]
    tried = case.random.integers(0, 5, len(ids))
    won = case.outcomes(ids, tried)
    apart.tell(ids, won, tried, features(ids))
    different = sorted(set(ids), key=lambda name: case.random.random())
    sums = [
        [sum(n for n, name in zip(counts.tolist(), ids, strict=True) if name == one) for one in different]
        for counts in (won, tried)
    ]
    together.tell(different, *sums, features(different))
    everyone = features(PEOPLE)
    np.testing.assert_allclose(
        apart.success_rates(PEOPLE, everyone), together.success_rates(PEOPLE, everyone), rtol=1e-6
    )
    assert apart.metrics() == pytest.approx(together.metrics())


@ALL
@settings(deadline=None, max_examples=25)
@given(drawn=any_case, seed=st.integers(0, 3))
def test_only_told_prompts_are_visited(strategy: str, drawn: dict[str, Any], seed: int) -> None:
    case = Case(strategy, **drawn)
    assert {name for name, known in zip(PEOPLE, case.allocator.visited(PEOPLE), strict=True) if known} == case.told
    rates = case.allocator.success_rates(PEOPLE, features(PEOPLE))
    assert np.isnan(rates).tolist() == [name not in case.told for name in PEOPLE]
    assert all(0.0 <= rate <= 1.0 for rate in rates[~np.isnan(rates)].tolist())
    belief = case.allocator.belief(PEOPLE, features(PEOPLE))
    assert np.all((belief.mean > 0.0) & (belief.mean < 1.0))
    assert np.all(belief.wins > 0.0)
    assert np.all(belief.losses > 0.0)


@ALL
@pytest.mark.parametrize("most", [2**31, 2**62, 2**63 - 1, 2**70])
def test_a_maximum_that_no_prompt_can_reach_is_none(strategy: str, most: int) -> None:
    ids = list("abcd")
    unbounded, bounded = (kr.BudgetAllocator(strategy, 8, max_rollouts=maximum) for maximum in (most, 4 * 8))
    for allocator in (unbounded, bounded):
        allocator.tell(["a", "b", "c"], [0, 3, 8], [8, 8, 8])
    assert unbounded.ask(ids).rollouts.tolist() == bounded.ask(ids).rollouts.tolist()
    step = unbounded.step(ids)
    assert step.place(10**30).rollouts.sum() <= 4 * 8
    with pytest.raises(kr.InvalidInputError, match="rollouts: expected at most"):
        step.report([0, 0, 0, 0], [2**63 - 1, 0, 0, 0], [2**63 - 1, 0, 0, 0])


BAD_COUNTS = {
    "more right than scored": ([3, 1], [2, 1]),
    "a negative count": ([-1, 1], [2, 1]),
    "half a rollout": ([0.5, 1], [2, 1]),
    "no number": ([np.nan, 1], [2, 1]),
    "text": (["1", "1"], [2, 1]),
    "counts of one prompt": ([1], [2]),
    "counts of three prompts": ([1, 1, 1], [2, 2, 2]),
    "different lengths": ([1, 1], [2]),
    "a matrix": ([[1, 1]], [[2, 2]]),
}
BAD_FEATURES = {
    "NaN": {"x": [1.0, np.nan]},
    "infinity": {"x": [np.inf, 1.0]},
    "one value too few": {"x": [1.0]},
    "one value too many": {"x": ["a", "b", "c"]},
    "a text for a column": {"x": "ab"},
    "a number for a column": {"x": 1.0},
    "text and numbers in a column": {"x": ["a", 1.0]},
    "three dimensions": np.zeros((2, 2, 2)),
    "too many numbers": np.zeros((2, 257)),
    "too many numbers in two columns": {"x": np.zeros((2, 200)), "y": np.zeros((2, 57))},
}


@ALL
class TestBadInput:
    @pytest.mark.parametrize("counts", BAD_COUNTS.values(), ids=BAD_COUNTS.keys())
    def test_bad_counts_are_refused_and_change_nothing(self, strategy: str, counts: tuple[Any, Any]) -> None:
        allocator = kr.BudgetAllocator(strategy)
        allocator.tell(["a", "b"], [1, 4], [4, 4])
        before = snapshot(allocator)
        with pytest.raises(kr.InvalidInputError, match="expected"):
            allocator.tell(["a", "b"], *counts)
        step = allocator.step(["a", "b"])
        plan, remaining = step.ask(), step.remaining
        with pytest.raises(kr.InvalidInputError, match="expected"):
            step.tell(*counts)
        assert step.remaining == remaining
        assert same_plans(step.ask(), plan)
        assert (step.scored.tolist(), step.successes.tolist()) == ([0, 0], [0, 0])
        assert snapshot(allocator) == before

    def test_more_than_was_asked_for_is_refused_and_changes_nothing(self, strategy: str) -> None:
        allocator = kr.BudgetAllocator(strategy)
        step = allocator.step(["a", "b"])
        asked = step.ask().rollouts
        with pytest.raises(kr.InvalidInputError, match=r"rollouts: expected at most .* asked for so far"):
            step.tell([0, 0], asked + np.array([0, 1]))
        assert step.remaining == 16
        assert step.scored.tolist() == [0, 0]
        step.tell([0, 0], asked)
        assert step.scored.tolist() == asked.tolist()

    @pytest.mark.parametrize("bad", BAD_FEATURES.values(), ids=BAD_FEATURES.keys())
    def test_bad_features_are_refused_by_name_and_change_nothing(self, strategy: str, bad: Any) -> None:
        allocator = kr.BudgetAllocator(strategy)
        before = snapshot(allocator)
        for call in (
            lambda: allocator.ask(["a", "b"], bad),
            lambda: allocator.step(["a", "b"], bad),
            lambda: allocator.belief(["a", "b"], bad),
            lambda: allocator.success_rates(["a", "b"], bad),
            lambda: allocator.tell(["a", "b"], [1, 1], [2, 2], bad),
        ):
            with pytest.raises(kr.InvalidInputError, match=r"features.*: expected"):
                call()
        assert snapshot(allocator) == before
        assert allocator.metrics() == {"known_prompts": 0.0}


def to_the_end(step: kr.Step, asked: Any) -> None:
    """Go on with a step in which nothing succeeds."""
    step.tell([0, 0], asked)
    while step.remaining:
        step.tell([0, 0], step.ask().rollouts)


CHANGED = {
    "none any more": None,
    "a column more": {"x": [1.0, 2.0], "topic": ["p", "q"], "y": [1.0, 2.0]},
    "a column less": {"x": [1.0, 2.0]},
    "another name": {"z": [1.0, 2.0], "topic": ["p", "q"]},
    "numbers for text": {"x": [1.0, 2.0], "topic": [1.0, 2.0]},
    "text for numbers": {"x": ["1", "2"], "topic": ["p", "q"]},
    "another width": {"x": [[1.0, 2.0], [2.0, 1.0]], "topic": ["p", "q"]},
}


@pytest.mark.parametrize("strategy", LEARNED)
@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED.keys())
def test_who_learns_from_features_refuses_other_columns_and_changes_nothing(strategy: str, changed: Any) -> None:
    allocator = kr.BudgetAllocator(strategy)
    in_flight = allocator.step(["a", "b"], changed)
    plan = in_flight.ask()
    first = {"x": [1.0, 2.0], "topic": ["p", "q"]}
    allocator.tell(["a", "b"], [1, 4], [4, 4], first)
    before = snapshot(allocator)
    for call in (
        lambda: allocator.ask(["a", "b"], changed),
        lambda: allocator.step(["a", "b"], changed).ask(),
        lambda: allocator.belief(["a", "b"], changed),
        lambda: allocator.success_rates(["a", "b"], changed),
        lambda: allocator.tell(["a", "b"], [1, 1], [2, 2], changed),
    ):
        with pytest.raises(kr.InvalidInputError, match=r"features: expected the columns of the first call.*topic"):
            call()
    with pytest.raises(kr.InvalidInputError, match="features: expected the columns of the first call"):
        to_the_end(in_flight, plan.rollouts)
    assert snapshot(allocator) == before
    allocator.ask([], {"x": [], "topic": []})  # of no prompts there is nothing to tell text from numbers by
    allocator.tell([], [], [], {"x": [], "topic": []})
    assert snapshot(allocator) == before


@pytest.mark.parametrize("strategy", [name for name in kr.strategies() if name not in LEARNED])
def test_who_learns_nothing_from_features_does_not_mind_them(strategy: str) -> None:
    told, untold = kr.BudgetAllocator(strategy), kr.BudgetAllocator(strategy)
    for changing in (features(PEOPLE), None, {"x": range(len(PEOPLE))}):
        assert same_plans(told.ask(PEOPLE, changing), untold.ask(PEOPLE))
        won = [i % 5 for i in range(len(PEOPLE))]
        told.tell(PEOPLE, won, [4] * len(PEOPLE), changing)
        untold.tell(PEOPLE, won, [4] * len(PEOPLE))
    assert snapshot(told) == snapshot(untold)
