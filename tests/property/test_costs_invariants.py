"""What holds for every plan under a budget of cost, whatever the rates, costs and bounds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import knapsack_rl as kr

rates = st.one_of(
    st.floats(0.0, 1.0), st.integers(0, 8).map(lambda k: k / 8), st.sampled_from([0.0, 1e-300, 1.0, float("nan")])
)
prices = st.one_of(st.floats(1e-3, 1e3), st.integers(1, 9).map(float), st.just(1.0))
EXACT = 1 + 1e-12  # a cost budget holds up to the rounding of a sum


@dataclass(frozen=True)
class Case:
    """A feasible call of `allocate` with a cost budget."""

    rates: list[float]
    costs: list[float]
    cost_budget: float
    budget: int | None
    low: int
    high: int
    options: dict[str, Any]

    def plan(self) -> kr.Plan:
        return kr.allocate(
            self.rates,
            self.budget,
            self.low,
            self.high,
            costs=self.costs,
            cost_budget=self.cost_budget,
            **self.options,
        )


@st.composite
def cases(draw: st.DrawFn, largest: int = 24, highest: int = 128) -> Case:
    drawn = draw(st.lists(rates, min_size=1, max_size=largest))
    count = len(drawn)
    costs = draw(st.one_of(st.lists(prices, min_size=count, max_size=count), prices.map(lambda cost: [cost] * count)))
    low = draw(st.integers(1, 3))
    high = draw(st.integers(low, highest))
    budget = draw(st.one_of(st.none(), st.integers(count * low, count * high)))
    rollouts, left = np.full(count, low), 0 if budget is None else budget - count * low
    for position in np.argsort(costs):  # the cheapest plan
        added = min(left, high - low)
        rollouts[position] += added
        left -= added
    least, most = float(rollouts @ np.array(costs)), high * sum(costs)
    cost_budget = least + draw(st.floats(0.0, 1.1)) * (most - least)
    options = {"algorithm": draw(st.sampled_from(["grpo", "reinforce"])), "fallback": draw(st.booleans())}
    return Case(drawn, costs, cost_budget, budget, low, high, options)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_both_budgets_and_the_bounds_hold(case: Case) -> None:
    plan = case.plan()
    assert plan.rollouts.dtype == np.int64
    assert plan.rollouts.min() >= case.low
    assert plan.rollouts.max() <= case.high
    assert case.budget is None or plan.rollouts.sum() == case.budget
    assert plan.cost == float(np.array(case.costs) @ plan.rollouts)
    assert plan.cost <= case.cost_budget * EXACT


@settings(max_examples=300, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1))
def test_no_plan_drawn_at_random_is_above_the_bound(case: Case, seed: int) -> None:
    plan, rng, costs = case.plan(), np.random.default_rng(seed), np.array(case.costs)
    assert plan.value <= plan.bound
    rollouts = np.full(len(costs), case.low)
    for position in rng.permutation(len(costs)):
        rollouts[position] += rng.integers(0, case.high - case.low + 1)
        if rollouts @ costs > case.cost_budget or (case.budget is not None and rollouts.sum() > case.budget):
            rollouts[position] = case.low
    if case.budget is None or rollouts.sum() == case.budget:
        value = np.nansum(kr.value(rollouts, case.rates, case.options["algorithm"]))
        assert value <= plan.bound + 1e-12


@settings(max_examples=200, deadline=None)
@given(cases(largest=4, highest=6))
def test_the_bound_is_at_least_the_best_of_all_plans(case: Case) -> None:
    plan = case.plan()
    every = np.array(list(itertools.product(range(case.low, case.high + 1), repeat=len(case.rates))))
    every = every[every @ np.array(case.costs) <= case.cost_budget * EXACT]
    every = every if case.budget is None else every[every.sum(axis=1) == case.budget]
    best = np.nansum(kr.value(every, case.rates, case.options["algorithm"]), axis=1).max()
    assert plan.value <= best + 1e-12
    assert best <= plan.bound + 1e-12


@settings(max_examples=200, deadline=None)
@given(cases())
def test_the_same_call_gives_the_same_plan(case: Case) -> None:
    first, second = case.plan(), case.plan()
    assert first.rollouts.tolist() == second.rollouts.tolist()
    assert (first.value, first.cost, first.bound) == (second.value, second.cost, second.bound)


@settings(max_examples=200, deadline=None)
@given(st.lists(rates, min_size=1, max_size=24), st.integers(2, 30), prices, st.booleans())
def test_equal_costs_give_the_plan_without_costs(drawn: list[float], mean: int, cost: float, both: bool) -> None:
    budget, costs = mean * len(drawn), [cost] * len(drawn)
    plain = kr.allocate(drawn, budget)
    plan = kr.allocate(drawn, budget if both else None, costs=costs, cost_budget=cost * budget)
    assert plan.rollouts.tolist() == plain.rollouts.tolist()
    assert (plan.value, plan.fallback, plan.bound) == (plain.value, plain.fallback, plain.bound)
