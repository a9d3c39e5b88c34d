"""What holds for every plan, whatever the rates, bounds and budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import knapsack_rl as kr

ALGORITHMS = ("grpo", "rloo", "reinforce")

probabilities = st.one_of(
    st.floats(0.0, 1.0),
    st.integers(0, 8).map(lambda k: k / 8),
    st.integers(0, 16).map(lambda k: k / 16),
    st.sampled_from([0.0, 5e-324, 1e-300, 1e-17, 0.5, 1 - 2**-53, 1.0]),
)
beliefs = st.one_of(probabilities, st.just(float("nan")))
counted = st.integers(0, 8).map(lambda k: k / 8)
unextreme = st.one_of(counted, st.floats(0.001, 0.999), st.just(float("nan")))  # no gain underflows to zero


@dataclass(frozen=True)
class Case:
    """A feasible call of `allocate`."""

    rates: list[float]
    budget: int
    low: int
    high: int
    options: dict[str, Any] = field(default_factory=dict)

    def plan(self) -> kr.Plan:
        return kr.allocate(self.rates, self.budget, self.low, self.high, **self.options)


@st.composite
def cases(draw: st.DrawFn, rates: st.SearchStrategy[float] = beliefs, highest: int = 10**6, **fixed: Any) -> Case:
    drawn = draw(st.lists(rates, min_size=1, max_size=24))
    low = draw(st.integers(1, 4))
    high = draw(st.one_of(st.integers(low, low + 30), st.sampled_from([128, highest])))
    budget = draw(st.integers(len(drawn) * low, min(len(drawn) * high, len(drawn) * 200)))
    options = {
        "algorithm": draw(st.sampled_from(ALGORITHMS)),
        "fallback": draw(st.booleans()),
        "confidence": draw(st.sampled_from([5e-324, 0.1, 0.5, 0.9, 0.99, 1 - 2**-53])),
    }
    return Case(drawn, budget, low, high, options | fixed)


@settings(max_examples=500, deadline=None)
@given(cases())
def test_the_budget_is_spent_exactly_and_the_bounds_hold(case: Case) -> None:
    plan = case.plan()
    assert plan.rollouts.dtype == np.int64
    assert plan.rollouts.sum() == case.budget
    assert plan.rollouts.min() >= case.low
    assert plan.rollouts.max() <= case.high


@settings(deadline=None)
@given(cases())
def test_the_value_is_that_of_the_rollouts(case: Case) -> None:
    plan = case.plan()
    assert plan.value == np.nansum(kr.value(plan.rollouts, case.rates, case.options["algorithm"]))
    assert 0.0 <= plan.value <= len(case.rates) * 4 / 27 + 1e-12


@settings(deadline=None)
@given(cases())
def test_the_same_call_gives_the_same_plan(case: Case) -> None:
    first, second = case.plan(), case.plan()
    assert first.rollouts.tolist() == second.rollouts.tolist()
    assert (first.value, first.fallback) == (second.value, second.fallback)


@settings(deadline=None)
@given(cases(probabilities, fallback=False))
def test_moving_one_rollout_never_raises_the_value(case: Case) -> None:
    """With concave values this local optimum is the global one."""
    rollouts, rates = case.plan().rollouts, np.array(case.rates)
    algorithm = case.options["algorithm"]
    more = kr.value(rollouts + 1, rates, algorithm) - kr.value(rollouts, rates, algorithm)
    less = kr.value(rollouts, rates, algorithm) - kr.value(rollouts - 1, rates, algorithm)
    can_take, can_give = rollouts < case.high, rollouts > case.low
    if can_take.any() and can_give.any():
        assert more[can_take].max() <= less[can_give].min() + 1e-14


@settings(deadline=None)
@given(cases(counted, highest=128), st.randoms(use_true_random=False))
def test_the_order_of_the_prompts_matters_only_between_equal_prompts(case: Case, random: Any) -> None:
    order = list(range(len(case.rates)))
    random.shuffle(order)
    plan = case.plan()
    shuffled = kr.allocate([case.rates[i] for i in order], case.budget, case.low, case.high, **case.options)

    def shares(rates: list[float], rollouts: np.ndarray) -> list[tuple[float, int]]:
        return sorted(zip(rates, rollouts.tolist(), strict=True))

    assert shuffled.value == pytest.approx(plan.value, rel=1e-12)
    assert shuffled.fallback == plan.fallback
    assert shares([case.rates[i] for i in order], shuffled.rollouts) == shares(case.rates, plan.rollouts)


@settings(deadline=None)
@given(cases(unextreme, highest=128))
def test_equal_prompts_differ_by_at_most_one_rollout(case: Case) -> None:
    rates, rollouts = np.array(case.rates), case.plan().rollouts
    for rate in np.unique(rates[~np.isnan(rates)]):
        assert np.ptp(rollouts[rates == rate]) <= 1


@settings(deadline=None)
@given(cases())
def test_solved_prompts_get_more_than_the_minimum_only_when_all_others_are_full(case: Case) -> None:
    rollouts, rates = case.plan().rollouts, np.array(case.rates)
    solved = rates == 1.0
    if (rollouts[solved] > case.low).any():
        assert (rollouts[~solved] == case.high).all()


@settings(deadline=None)
@given(cases())
def test_never_visited_prompts_get_the_mean_while_others_can_take_the_rest(case: Case) -> None:
    rollouts, rates = case.plan().rollouts, np.array(case.rates)
    unvisited = np.isnan(rates)
    mean = case.budget / len(rates)
    assert (rollouts[unvisited] >= np.floor(mean)).all()
    learnable = (rates > 0) & (rates < 1)
    if (rollouts[learnable] < case.high).any() or unvisited.all():
        assert (rollouts[unvisited] <= np.ceil(mean)).all()


@settings(deadline=None)
@given(cases(fallback=True))
def test_the_fallback_takes_only_what_the_costs_leave(case: Case) -> None:
    plan, rates = case.plan(), np.array(case.rates)
    unsolved, learnable = rates == 0.0, (rates > 0) & (rates < 1)
    costs = np.minimum(
        np.floor(kr.rollouts_for_confidence(rates[learnable], case.options["confidence"])), case.high - case.low
    )
    if plan.fallback:
        assert plan.rollouts[learnable].sum() >= costs.sum() + case.low * learnable.sum()
    room = unsolved.sum() * (case.high - case.low)
    assert 0 <= plan.fallback <= min(room, (plan.rollouts[unsolved] - case.low).sum())


@settings(deadline=None)
@given(cases(fallback=False))
def test_without_the_fallback_nothing_is_moved(case: Case) -> None:
    plan, rates = case.plan(), np.array(case.rates)
    assert plan.fallback == 0
    learnable = (rates > 0) & (rates < 1)
    if (plan.rollouts[learnable] < case.high).any():
        assert (plan.rollouts[rates == 0.0] == case.low).all()


@settings(deadline=None)
@given(cases(probabilities, fallback=False), st.integers(1, 5))
def test_a_larger_budget_never_has_less_value(case: Case, more: int) -> None:
    budget = min(case.budget + more, len(case.rates) * case.high)
    larger = kr.allocate(case.rates, budget, case.low, case.high, **case.options)
    assert larger.value >= case.plan().value - 1e-15


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(1, 9), st.integers(0, 9), st.integers(0, 500))
def test_an_infeasible_budget_says_which_way_and_by_how_much(count: int, low: int, spread: int, budget: int) -> None:
    high = low + spread
    if count * low <= budget <= count * high:
        assert kr.allocate([0.5] * count, budget, low, high).rollouts.sum() == budget
        return
    missing = f"{count * low - budget} too few" if budget < count * low else f"{budget - count * high} too many"
    with pytest.raises(kr.InfeasibleBudgetError, match=missing):
        kr.allocate([0.5] * count, budget, low, high)


@settings(deadline=None)
@given(probabilities, st.integers(1, 300), st.sampled_from(ALGORITHMS))
def test_more_rollouts_never_have_less_value_and_gain_ever_less(rate: float, n: int, algorithm: str) -> None:
    values = kr.value([n, n + 1, n + 2], rate, algorithm)
    first, second = np.diff(values)
    assert first >= -1e-16
    assert second <= first + 2e-16


@settings(deadline=None)
@given(
    st.one_of(st.none(), st.text(), st.lists(st.floats() | st.text() | st.none()), st.floats(), st.complex_numbers())
)
def test_whatever_comes_is_either_allocated_or_refused_by_name(rates: Any) -> None:
    count = len(rates) if isinstance(rates, list) else 1
    refusal = None
    try:
        plan = kr.allocate(rates, 8 * count)
    except kr.InvalidInputError as error:
        refusal = str(error)
    if refusal is None:
        assert plan.rollouts.sum() == 8 * count
    else:
        assert refusal.startswith("success_rates: expected")
