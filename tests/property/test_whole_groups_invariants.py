"""None, or two and more: the exact solve against a dynamic programme, and against an integer programme for costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import knapsack_rl as kr

optimize = pytest.importorskip("scipy.optimize")

RATES = st.one_of(
    st.sampled_from([0.5, 0.5, 0.3, 0.7, 0.1, 0.9, 0.999, 1e-3, 1e-9, 1.0 - 1e-12]),
    st.floats(1e-6, 1.0 - 1e-6),
)
NOT_LEARNABLE = st.sampled_from([0.0, 1.0, np.nan])


def best_value(rates: list[float], budget: int, low: list[int], high: int, algorithm: str) -> float | None:
    """The largest value of all plans, or None where there is none."""
    best = {0: 0.0}
    for rate, least in zip(rates, low, strict=True):
        single = least == 0 and algorithm != "reinforce"
        sizes = [n for n in range(least, high + 1) if not (single and n == 1)]
        worth = np.zeros(len(sizes)) if np.isnan(rate) else kr.value(sizes, rate, algorithm)
        after: dict[int, float] = {}
        for total, gained in best.items():
            for size, more in zip(sizes, worth.tolist(), strict=True):
                if total + size <= budget:
                    after[total + size] = max(after.get(total + size, -1.0), gained + more)
        best = after
    return best.get(budget)


@settings(max_examples=400, deadline=None)
@given(
    data=st.data(), high=st.sampled_from([1, 2, 3, 4, 6, 9]), algorithm=st.sampled_from(["grpo", "rloo", "reinforce"])
)
def test_no_plan_has_more_value_and_what_is_refused_has_no_plan(data: st.DataObject, high: int, algorithm: str) -> None:
    learnable = data.draw(st.booleans())
    rates = data.draw(st.lists(RATES if learnable else RATES | NOT_LEARNABLE, max_size=6))
    low = data.draw(
        st.just([0] * len(rates)) | st.lists(st.integers(0, min(high, 3)), min_size=len(rates), max_size=len(rates))
    )
    budget = data.draw(st.integers(0, high * len(rates) + 1))
    wanted = best_value(rates, budget, low, high, algorithm)
    fallback = data.draw(st.booleans())
    bounds = np.array(low, dtype=int) if any(low) else 0
    if wanted is None:
        with pytest.raises(kr.InfeasibleBudgetError, match="budget: "):
            kr.allocate(rates, budget, bounds, high, algorithm=algorithm, fallback=fallback)
        return
    plan = kr.allocate(rates, budget, bounds, high, algorithm=algorithm, fallback=fallback)
    assert plan.rollouts.sum() == budget
    assert np.all((plan.rollouts >= low) & (plan.rollouts <= high))
    if algorithm != "reinforce":
        assert not np.any((plan.rollouts == 1) & (np.array(low) == 0))
    assert plan.bound >= wanted * (1.0 - 1e-9)
    if learnable:
        assert plan.value == pytest.approx(wanted, rel=1e-9, abs=1e-18)
        assert plan.bound == plan.value


@settings(max_examples=60, deadline=None)
@given(rates=st.lists(RATES | NOT_LEARNABLE, min_size=1, max_size=12), data=st.data())
def test_equal_costs_give_the_plan_without_costs(rates: list[float], data: st.DataObject) -> None:
    high = data.draw(st.sampled_from([2, 3, 8]))
    pays = data.draw(st.integers(0, high * len(rates)))
    plan = kr.allocate(rates, None, 0, high, costs=np.full(len(rates), 3.0), cost_budget=3.0 * pays + 1.0)
    assert pays - 1 <= plan.rollouts.sum() <= pays
    assert plan.rollouts.tolist() == kr.allocate(rates, int(plan.rollouts.sum()), 0, high).rollouts.tolist()


@pytest.mark.parametrize("counted", [False, True])
def test_with_costs_a_plan_of_the_papers_size_misses_less_than_a_thousandth(counted: bool) -> None:
    for seed in range(3):
        random = np.random.default_rng(seed)
        rates, costs = random.beta(0.6, 0.6, 256), np.exp(random.normal(0.0, 1.0, 256))
        budget = 1024 if counted else None
        plan = kr.allocate(rates, budget, 0, costs=costs, cost_budget=float(costs.sum()) * 3.0)
        assert plan.cost <= costs.sum() * 3.0 * (1.0 + 1e-9)
        assert not np.any(plan.rollouts == 1)
        assert budget is None or plan.rollouts.sum() == budget
        assert plan.bound * (1.0 - 1e-3) <= plan.value <= plan.bound * (1.0 + 1e-12)


@pytest.mark.parametrize("counted", [False, True])
def test_with_costs_a_bound_holds_for_every_plan_that_an_integer_programme_finds(counted: bool) -> None:
    random = np.random.default_rng(5)
    for _ in range(12):
        high, count = int(random.choice([2, 3, 8])), int(random.integers(2, 9))
        rates, costs = random.random(count), np.exp(random.normal(0.0, 1.0, count))
        budget = 2 * int(random.integers(1, count + 1)) if counted else None
        limit = float(costs.sum()) * random.uniform(0.8, 2.0)
        best = integer_programme(rates, costs, limit, budget, high)
        if best is None:
            with pytest.raises(kr.InfeasibleBudgetError, match="cost_budget"):
                kr.allocate(rates, budget, 0, high, costs=costs, cost_budget=limit)
            continue
        plan = kr.allocate(rates, budget, 0, high, costs=costs, cost_budget=limit, fallback=False)
        assert plan.value <= best * (1.0 + 1e-6)
        assert plan.bound >= best * (1.0 - 1e-6)
        assert plan.cost <= limit * (1.0 + 1e-9)


def integer_programme(rates: Any, costs: Any, limit: float, budget: int | None, high: int) -> float | None:
    """The largest value, by HiGHS: one binary variable for each size of each group but 1."""
    count, sizes = len(rates), np.arange(high + 1)
    worth = np.array([kr.value(sizes, rate) for rate in rates])
    most = np.ones((count, high + 1))
    most[:, 1] = 0.0
    constraints = [
        optimize.LinearConstraint(np.kron(np.eye(count), np.ones(high + 1)), 1, 1),
        optimize.LinearConstraint(np.outer(costs, sizes).reshape(1, -1), -np.inf, limit),
    ]
    if budget is not None:
        constraints.append(optimize.LinearConstraint(np.tile(sizes, count)[None], budget, budget))
    found = optimize.milp(
        -worth.ravel(),
        constraints=constraints,
        integrality=np.ones(worth.size),
        bounds=optimize.Bounds(0, most.ravel()),
    )
    return None if found.x is None else -float(found.fun)
