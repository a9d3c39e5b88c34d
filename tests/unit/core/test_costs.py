"""Allocation under a budget of cost: what a plan costs, how near to the optimum it is, and who gets what."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import knapsack_rl as kr

RATES = [0, 0.9, 1, 1, 1, 1, 1, 1]
PROMPTS, BUDGET = 256, 2048


def best_value(rates: Any, costs: Any, cost_budget: float, budget: int | None, low: int, high: int) -> float:
    """The value of the best of all plans, looked at one by one."""
    plans = np.array(list(itertools.product(range(low, high + 1), repeat=len(rates))))
    plans = plans[plans @ np.asarray(costs) <= cost_budget * (1 + 1e-12)]
    plans = plans if budget is None else plans[plans.sum(axis=1) == budget]
    return float(np.nansum(kr.value(plans, rates), axis=1).max())


def test_the_cost_of_the_papers_table_is_what_its_rollouts_cost() -> None:
    plan = kr.allocate(RATES, 64, costs=[3, 2, 1, 1, 1, 1, 1, 1])
    assert plan.rollouts.tolist() == [29, 23, 2, 2, 2, 2, 2, 2]
    assert plan.cost == 3 * 29 + 2 * 23 + 12


def test_without_costs_there_is_no_cost_and_the_bound_is_the_value_of_an_optimal_plan() -> None:
    plan = kr.allocate([0.1, 0.5, 0.8], 24)
    assert plan.cost is None
    assert plan.bound == plan.value


def test_the_bound_counts_what_the_fallback_keeps_from_the_knapsack() -> None:
    with_fallback, without = kr.allocate(RATES, 64), kr.allocate(RATES, 64, fallback=False)
    assert without.bound == without.value
    assert with_fallback.value < without.value <= with_fallback.bound


def test_a_plan_that_somebody_else_made_has_no_bound() -> None:
    plan = kr.Plan(np.array([4, 4]), 0.1, 0)
    assert (plan.cost, plan.bound) == (None, math.inf)


@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize("cost", [1.0, 0.1, 7.0])
def test_equal_costs_give_the_plan_of_as_many_rollouts_as_they_pay_for(cost: float, fallback: bool) -> None:
    for budget in (16, 17, 64, 500):
        plain = kr.allocate(RATES, budget, fallback=fallback)
        costs = np.full(8, cost)
        for given in (None, budget):
            plan = kr.allocate(RATES, given, costs=costs, cost_budget=cost * budget, fallback=fallback)
            assert plan.rollouts.tolist() == plain.rollouts.tolist()
            assert (plan.value, plan.bound) == (plain.value, plain.bound)
            assert plan.cost == pytest.approx(cost * budget, rel=1e-12)


def test_a_cost_budget_that_does_not_bind_changes_nothing() -> None:
    rates = np.random.default_rng(0).choice([0, 0.2, 0.7, 1, np.nan], 40)
    costs = np.linspace(1, 9, 40)
    plain = kr.allocate(rates, 320)
    plan = kr.allocate(rates, 320, costs=costs, cost_budget=float(costs @ plain.rollouts))
    assert plan.rollouts.tolist() == plain.rollouts.tolist()
    assert plan.bound == plain.bound


def test_of_two_equal_prompts_the_cheaper_one_gets_more() -> None:
    for budget in (None, 16):
        cheap, dear = kr.allocate([0.1, 0.1], budget, costs=[1, 3], cost_budget=24).rollouts
        assert cheap > dear


@pytest.mark.parametrize("budget", [None, 12])
def test_small_cases_are_solved_exactly(budget: int | None) -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        rates, costs = rng.choice([0.02, 0.1, 0.3, 0.5, 0.8, 1.0], 4), rng.choice([1.0, 2.0, 2.5, 7.0], 4)
        least = 2 * costs.sum() if budget is None else 2 * costs.sum() + 4 * costs.min()
        cost_budget = float(least * rng.uniform(1, 3))
        plan = kr.allocate(rates, budget, 2, 6, costs=costs, cost_budget=cost_budget, fallback=False)
        best = best_value(rates, costs, cost_budget, budget, 2, 6)
        assert plan.value == pytest.approx(best, rel=1e-3)
        assert plan.bound >= best - 1e-12


@pytest.mark.parametrize("kind", ["lengths", "two prices", "as the value", "against the value", "integers"])
@pytest.mark.parametrize("budget", [None, BUDGET])
def test_the_papers_size_is_within_a_thousandth_of_the_bound_at_half_the_even_cost(
    kind: str, budget: int | None
) -> None:
    """The bound is at least the optimum, so that no integer programme is needed to see it."""
    rng = np.random.default_rng(2)
    rates = rng.beta(0.4, 0.4, PROMPTS)
    gain = kr.information_gain(rates)
    costs = {
        "lengths": rng.lognormal(0, 0.7, PROMPTS),
        "two prices": rng.choice([1.0, 100.0], PROMPTS),
        "as the value": gain + 1e-3,
        "against the value": 1 / (gain + 1e-3),
        "integers": rng.integers(1, 20, PROMPTS).astype(float),
    }[kind]
    plan = kr.allocate(rates, budget, costs=costs, cost_budget=0.5 * BUDGET * costs.mean())
    assert plan.cost is not None
    assert plan.cost <= 0.5 * BUDGET * costs.mean() * (1 + 1e-12)
    assert budget is None or plan.rollouts.sum() == budget
    assert plan.value >= 0.999 * plan.bound


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, BUDGET])
def test_highs_finds_no_plan_beyond_the_bound_and_none_that_is_a_thousandth_better(budget: int | None) -> None:
    pytest.importorskip("scipy")
    from hard_costs import Case

    rng = np.random.default_rng(3)
    rates, costs = rng.beta(0.4, 0.4, PROMPTS), rng.lognormal(0, 0.7, PROMPTS)
    cost_budget = 0.7 * BUDGET * costs.mean()
    plan = kr.allocate(rates, budget, 2, 24, costs=costs, cost_budget=cost_budget)
    found = Case(rates, costs, budget, cost_budget, 24).best(seconds=60)
    assert found is not None
    best, _ = found
    assert 0.999 * best <= plan.value <= plan.bound
    assert best <= plan.bound * (1 + 1e-9)


def test_never_visited_prompts_get_what_even_groups_could_have_for_the_cost() -> None:
    assert kr.allocate([np.nan] * 4, None, costs=[1, 2, 3, 4], cost_budget=70).rollouts.tolist() == [7, 7, 7, 7]
    plan = kr.allocate([np.nan, 0.1, 0.5], None, costs=[1, 2, 3], cost_budget=48)
    assert plan.rollouts[0] == 8


def test_a_surplus_of_cost_goes_to_the_never_solved() -> None:
    plan = kr.allocate([0.0, 0.5, 0.5], None, costs=[2, 1, 1], cost_budget=60)
    needs = math.floor(kr.rollouts_for_confidence(0.5)) * 2
    assert plan.fallback == (60 - 2 * 2 - 2 * 2 - needs) // 2
    assert plan.rollouts[0] == 2 + plan.fallback
    assert kr.allocate([0.0, 0.5, 0.5], None, costs=[2, 1, 1], cost_budget=60, fallback=False).rollouts[0] == 2


def test_solved_prompts_take_rollouts_of_a_cost_budget_only_when_all_others_are_full() -> None:
    plan = kr.allocate([1.0, 0.5, 0.0], None, max_rollouts=8, costs=[1, 2, 3], cost_budget=45)
    assert plan.rollouts.tolist() == [5, 8, 8]
    plan = kr.allocate([1.0, 0.5, 0.0], None, max_rollouts=8, costs=[1, 2, 3], cost_budget=39)
    assert plan.rollouts.tolist() == [2, 6, 8]


def test_a_slack_that_pays_for_no_learnable_prompt_is_left_over() -> None:
    plan = kr.allocate([1.0, 0.5], None, costs=[1, 10], cost_budget=59)
    assert plan.rollouts.tolist() == [2, 5]
    assert plan.cost == 52


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": None, "costs": [1, 5], "cost_budget": 10}, "cost_budget: 2 prompts .* at least 12, got 10, 2 too"),
        ({"budget": 9, "costs": [1, 5], "cost_budget": 16}, "cost_budget: 9 rollouts .* at least 17, got 16, 1 too"),
        ({"budget": 3, "costs": [1, 5], "cost_budget": 99}, "budget: 2 prompts with min_rollouts=2 need at least 4"),
    ],
)
def test_an_infeasible_budget_says_which_and_by_how_much(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(kr.InfeasibleBudgetError, match=message):
        kr.allocate([0.5, 0.5], **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": None}, "budget: expected an integer, or None together with a cost_budget"),
        ({"budget": 8, "cost_budget": 9}, "costs: expected the cost of one rollout of each prompt"),
        ({"budget": 8, "costs": [1.0]}, "costs: expected one number for each of the 2 prompts"),
        ({"budget": 8, "costs": [1.0, 0.0]}, "costs: expected finite numbers above 0, got 0.0 at position 1"),
        ({"budget": 8, "costs": [np.nan, 1.0]}, "costs: expected finite numbers above 0, got nan at position 0"),
        ({"budget": 8, "costs": ["a", "b"]}, "costs: expected numbers"),
        ({"budget": 8, "costs": [1, 1], "cost_budget": -1}, "cost_budget: expected a finite number above 0, got -1"),
        ({"budget": 8, "costs": [1, 1], "cost_budget": math.inf}, "cost_budget: expected a finite number above 0"),
        ({"budget": 8, "costs": [1.0, 1e-300]}, "costs: expected finite numbers above 0, got 1e-300 at position 1"),
        ({"budget": None, "costs": [1e163, 1.0], "cost_budget": 1e99}, "costs: .* between 1e-100 and 1e\\+100"),
        ({"budget": 8, "costs": [1, 1], "cost_budget": 10**400}, "cost_budget: expected a finite number above 0"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(kr.InvalidInputError, match=message):
        kr.allocate([0.5, 0.5], **arguments)


def test_a_budget_of_cost_that_pays_for_more_than_a_maximum_of_one_allows_buys_whole_groups_only() -> None:
    rates, low = [0.5, 0.3, 0.2], np.array([0, 1, 0])
    plan = kr.allocate(rates, None, low, 1, costs=[2.0, 2.0, 2.0], cost_budget=100.0)
    assert plan.rollouts.tolist() == [0, 1, 0]
    assert kr.allocate(rates, None, 0, 1, costs=[2.0, 2.0, 2.0], cost_budget=100.0).rollouts.tolist() == [0, 0, 0]
    assert kr.allocate(rates, None, 0, 1, algorithm="reinforce", costs=[2.0] * 3, cost_budget=100.0).cost == 6.0


def test_a_maximum_beyond_all_integers_of_the_machine_is_none() -> None:
    bounded, unbounded = (kr.allocate([0.5, 0.2], 9, 0, high, costs=[1, 2], cost_budget=90) for high in (9, 10**400))
    assert bounded.rollouts.tolist() == unbounded.rollouts.tolist()
    assert kr.allocate([], 0, 0, 10**400, costs=[], cost_budget=1).rollouts.size == 0


def test_a_budget_of_cost_may_be_any_real_number() -> None:
    for budget in (np.float32(2.5), np.int8(2), 2, 2.5):
        assert kr.allocate([0.5, 0.5], None, 1, costs=[1, 1], cost_budget=budget).cost == 2.0


def test_no_prompts_cost_nothing() -> None:
    assert kr.allocate([], None, costs=[], cost_budget=1).cost == 0.0
    assert kr.allocate([], 0, costs=[], cost_budget=1).cost == 0.0
