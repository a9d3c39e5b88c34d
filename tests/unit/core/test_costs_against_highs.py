"""Hard cases of a cost budget, against an integer programme that HiGHS solves without any of our prices."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("scipy")

from hard_costs import COSTS, PAPER_PROMPTS, Case, CostsOf, case


def check(case: Case, seconds: float, within: float) -> None:
    plan = case.plan()
    found = case.best(seconds)
    if found is None:
        pytest.skip("HiGHS found no plan in the time it has.")
    best, bound = found
    assert plan.cost is not None
    assert plan.cost <= case.cost_budget * (1 + 1e-12)
    assert case.budget is None or plan.rollouts.sum() == case.budget
    assert best <= plan.bound * (1 + 1e-6)  # HiGHS lets a constraint be exceeded by so much
    assert plan.value <= bound * (1 + 1e-6)
    assert plan.value >= (1 - within) * best


def numbered(seeds: range) -> list[Any]:
    """A seed of its own for every family, so that none has the rates of another."""
    return [
        pytest.param(COSTS[kind], 1000 * number + seed, id=f"{kind} {seed}")
        for number, kind in enumerate(COSTS)
        for seed in seeds
    ]


@pytest.mark.parametrize("both", [False, True], ids=["cost", "cost and rollouts"])
@pytest.mark.parametrize(("costs_of", "seed"), numbered(range(3)))
def test_few_prompts(costs_of: CostsOf, seed: int, both: bool) -> None:
    check(case(costs_of, 12, both, seed), seconds=2, within=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("both", [False, True], ids=["cost", "cost and rollouts"])
@pytest.mark.parametrize(("costs_of", "seed"), numbered(range(10, 30)))
def test_the_papers_size(costs_of: CostsOf, seed: int, both: bool) -> None:
    """A case whose bound shows it to be within a thousandth needs no integer programme."""
    hard = case(costs_of, PAPER_PROMPTS, both, seed)
    plan = hard.plan()
    if plan.value < 0.999 * plan.bound:
        check(hard, seconds=20, within=1e-3)
