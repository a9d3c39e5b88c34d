"""What holds for every plan under a budget of cost, whatever the rates, costs and bounds.

`pytest tests/property/test_costs_invariants.py -m long` looks at fifty thousand cases.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import knapsack_rl as kr
from knapsack_rl.estimators import RecentRewards
from knapsack_rl.strategies import base

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

    def best(self) -> float:
        """The value of the best of all plans, looked at one by one."""
        every = np.array(list(itertools.product(range(self.low, self.high + 1), repeat=len(self.rates))))
        every = every[every @ np.array(self.costs) <= self.cost_budget * EXACT]
        every = every if self.budget is None else every[every.sum(axis=1) == self.budget]
        return float(np.nansum(kr.value(every, self.rates, self.options["algorithm"]), axis=1).max())

    def check(self) -> kr.Plan:
        """See that its plan keeps to the bounds and the budgets, and is not above its own bound."""
        plan = self.plan()
        assert plan.rollouts.dtype == np.int64
        assert plan.rollouts.min() >= self.low
        assert plan.rollouts.max() <= self.high
        assert self.budget is None or plan.rollouts.sum() == self.budget
        assert plan.cost == float(np.array(self.costs) @ plan.rollouts)
        assert plan.cost <= self.cost_budget * EXACT
        assert plan.value <= plan.bound
        return plan


def cost_budget(costs: list[float], budget: int | None, low: int, high: int, tight: float) -> float:
    """What the cheapest plan costs (at `tight` 0), what the full one does (at 1), or something between."""
    count = len(costs)
    rollouts, left = np.full(count, low), 0 if budget is None else budget - count * low
    for position in np.argsort(costs):
        added = min(left, high - low)
        rollouts[position] += added
        left -= added
    least, most = float(rollouts @ np.array(costs)), high * sum(costs)
    return least + tight * (most - least)


@st.composite
def cases(draw: st.DrawFn, largest: int = 24, highest: int = 128) -> Case:
    drawn = draw(st.lists(rates, min_size=1, max_size=largest))
    count = len(drawn)
    costs = draw(st.one_of(st.lists(prices, min_size=count, max_size=count), prices.map(lambda cost: [cost] * count)))
    low = draw(st.integers(1, 3))
    high = draw(st.integers(low, highest))
    budget = draw(st.one_of(st.none(), st.integers(count * low, count * high)))
    spend = cost_budget(costs, budget, low, high, draw(st.floats(0.0, 1.1)))
    options = {"algorithm": draw(st.sampled_from(["grpo", "reinforce"])), "fallback": draw(st.booleans())}
    return Case(drawn, costs, spend, budget, low, high, options)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_both_budgets_and_the_bounds_hold(case: Case) -> None:
    case.check()


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
    plan, best = case.check(), case.best()
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


STEPS = [
    *kr.strategies(),
    kr.Strategy(lambda: RecentRewards(0), base.uniform, lambda number, *others: 2 + number, name="small-waves"),
]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    strategy=st.sampled_from(STEPS),
    count=st.integers(1, 12),
    more=st.integers(0, 3),
    revisit=st.sampled_from([None, 0, 1]),
    limit=st.sampled_from([1.0, 1.01, 1.5]),
    algorithm=st.sampled_from(["grpo", "reinforce"]),
    placed=st.booleans(),
    budget=st.one_of(st.none(), st.integers(0, 40)),
)
@example(seed=3, strategy="adaptive", count=6, more=2, revisit=1, limit=1.0, algorithm="grpo", placed=True, budget=None)
def test_who_is_due_keeps_no_step_from_its_cost_limit(
    seed: int,
    strategy: Any,
    count: int,
    more: int,
    revisit: int | None,
    limit: float,
    algorithm: str,
    placed: bool,
    budget: int | None,
) -> None:
    """Whatever is dear: a step is refused when it opens, or ends within its limit with everybody due in it."""
    random, high = np.random.default_rng(seed), 2 + more
    allocator = kr.BudgetAllocator(
        strategy, 2, 0, high, algorithm=algorithm, revisit=revisit, cost_limit=limit, seed=seed
    )
    ids, costs = list(range(count)), np.exp(random.normal(size=count) * random.choice([0.0, 1.0, 4.0]))
    some = random.choice([0, 2], count)
    allocator.tell(ids, [1] * count, [2] * count, costs=2 * costs)
    allocator.tell(ids, random.binomial(some, 0.5), some)
    owed = np.zeros(count, dtype=bool) if revisit is None else allocator.sitting_out(ids) >= revisit
    try:
        step = allocator.step(ids, budget=budget)
    except kr.InfeasibleBudgetError:
        assert budget is not None
        return
    prices = step.expected_costs
    assert prices is not None
    while step.remaining:
        rollouts = (step.place(int(random.integers(1, 6))) if placed else step.ask()).rollouts
        back = random.binomial(step.in_flight, 0.7) if placed and random.random() < 0.5 else None
        back = (step.in_flight if placed else rollouts) if back is None else back
        (step.report if placed else step.tell)(random.binomial(back, 0.4), back)
    assert step.placed.sum() == step.budget
    assert (step.placed[owed] > 0).all() or not step.budget
    assert step.placed.max(initial=0) <= high
    assert prices @ step.placed <= limit * prices.mean() * step.budget * (1 + 1e-7)


def random_case(rng: np.random.Generator, largest: int, highest: int) -> Case:
    """As `cases`, drawn faster, and more often with costs of many orders of magnitude or in proportion to the gain."""
    count, low = int(rng.integers(1, largest + 1)), int(rng.integers(1, 4))
    high = int(rng.integers(low, highest + 1))
    drawn = rng.beta(0.4, 0.4, count) if rng.random() < 0.5 else rng.integers(0, 17, count) / 16
    drawn[rng.random(count) < 0.05] = np.nan
    drawn[rng.random(count) < 0.05] = 1e-300
    gain = np.nan_to_num(kr.information_gain(drawn)) + 1e-6
    costs = (
        rng.lognormal(0, 0.7, count),
        10 ** rng.uniform(0, 6, count),
        rng.choice([1.0, 100.0], count),
        rng.integers(1, 9, count).astype(float),
        gain,
        1 / gain,
        gain * rng.uniform(0.999, 1.001, count),
        np.where(np.arange(count) == 0, float(count), 1.0),
    )[rng.integers(8)].tolist()
    budget = int(rng.integers(count * low, count * high + 1)) if rng.random() < 0.5 else None
    spend = cost_budget(costs, budget, low, high, rng.choice([0.0, rng.random() ** 4, rng.random()]))
    options = {"algorithm": str(rng.choice(["grpo", "reinforce"])), "fallback": bool(rng.random() < 0.3)}
    return Case(drawn.tolist(), costs, spend, budget, low, high, options)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_the_certificate_holds_in_ten_thousand_cases_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number in range(4_000):
        random_case(rng, 40 if number % 8 else 600, 128).check()
    for _ in range(4_000):
        case = random_case(rng, 4, 6)
        plan, best = case.check(), case.best()
        assert plan.value <= best + 1e-12
        assert best <= plan.bound + 1e-12
    for _ in range(2_000):
        case = random_case(rng, 40, 128)
        costs, budget = [case.costs[0]] * len(case.rates), case.budget or len(case.rates) * case.high
        plain = kr.allocate(case.rates, budget, case.low, case.high, **case.options)
        for given_budget in (None, budget):
            spend = {"costs": costs, "cost_budget": costs[0] * budget}
            plan = kr.allocate(case.rates, given_budget, case.low, case.high, **spend, **case.options)
            assert plan.rollouts.tolist() == plain.rollouts.tolist()
            assert (plan.value, plan.bound) == (plain.value, plain.bound)
