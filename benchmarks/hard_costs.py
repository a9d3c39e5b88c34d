"""Hard cases of a cost budget: how near plans are to their bounds, and to what HiGHS finds.

    python benchmarks/hard_costs.py [--prompts 256] [--cases 50] [--seconds 20]

For each family of costs, with the cost budget alone and with a number of rollouts besides: how many cases there were,
in how many the bound shows the plan to be within a thousandth of the optimum, how far the worst plan is from its bound,
and, over the other cases, how far the worst is from HiGHS's bound on the integer programme, and from its best plan, in
so many seconds (0 for none of it). Then the time of a plan, median and longest. Seeds are those of no test.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

import knapsack_rl as kr

Floats = NDArray[np.float64]
PAPER_PROMPTS = 256
LOW = 2
GAP = 5e-5  # of the optimum, up to which HiGHS looks


def gain(rates: Floats) -> Floats:
    """Of the third rollout."""
    return np.diff(kr.value(np.array([2, 3]), rates[:, None]), axis=1)[:, 0]


def one_dear(rng: np.random.Generator, rates: Floats) -> Floats:
    costs = rng.uniform(1, 2, len(rates))
    costs[rng.integers(len(rates))] = costs.sum()
    return costs


CostsOf = Callable[[np.random.Generator, Floats], Floats]
COSTS: dict[str, CostsOf] = {
    "lengths of answers": lambda rng, rates: rng.lognormal(0, 0.7, len(rates)),
    "over six orders of magnitude": lambda rng, rates: 10 ** rng.uniform(0, 6, len(rates)),
    "nearly equal gains for the cost": lambda rng, rates: gain(rates) * rng.uniform(0.999, 1.001, len(rates)) + 1e-9,
    "in proportion to the gain": lambda rng, rates: gain(rates) + 1e-4,
    "against the gain": lambda rng, rates: 1 / (gain(rates) + 1e-4),
    "one prompt as dear as all others": one_dear,
    "two values": lambda rng, rates: rng.choice([1.0, 100.0], len(rates)),
    "two values, far apart": lambda rng, rates: rng.choice([1.0, 1e5], len(rates), p=[0.8, 0.2]),
    "powers of two": lambda rng, rates: 2.0 ** rng.integers(0, 12, len(rates)).astype(np.float64),
    "a sum of subsets": lambda rng, rates: 2.0 * rng.integers(1000, 2000, len(rates)).astype(np.float64),
}


@dataclass(frozen=True)
class Case:
    """A feasible call of `allocate` in which the cost budget binds."""

    rates: Floats
    costs: Floats
    budget: int | None
    cost_budget: float
    high: int

    def plan(self) -> kr.Plan:
        """Ours."""
        return kr.allocate(
            self.rates,
            self.budget,
            LOW,
            self.high,
            costs=self.costs,
            cost_budget=self.cost_budget,
            fallback=False,
        )

    def best(self, seconds: float) -> tuple[float, float] | None:
        """Value of the best plan that HiGHS finds, and its bound; None where it finds none in so many seconds.

        A binary variable stands for each rollout beyond two. None of our prices are used.
        """
        values = kr.value(np.arange(LOW, self.high + 1), self.rates[:, None])
        gains, cost = np.diff(values, axis=1).ravel(), np.repeat(self.costs, self.high - LOW)
        left = self.cost_budget - LOW * self.costs.sum()
        scale = 1e3 / left if left > 0 else 1.0
        constraints = [optimize.LinearConstraint(scale * cost[None, :], -np.inf, scale * left)]
        if self.budget is not None:
            rest = self.budget - LOW * len(self.rates)
            constraints.append(optimize.LinearConstraint(np.ones((1, len(gains))), rest, rest))
        found = optimize.milp(
            -gains / gains.max(),
            constraints=constraints,
            integrality=np.ones(len(gains), dtype=np.int64),
            bounds=optimize.Bounds(0, 1),
            options={"mip_rel_gap": GAP, "time_limit": seconds},
        )
        if found.x is None:
            return None
        least = float(values[:, 0].sum())
        return least + float(gains @ np.round(found.x)), least - float(found.mip_dual_bound * gains.max())


def case(costs_of: CostsOf, prompts: int, both: bool, seed: int) -> Case:
    """Rates U-shaped or as observed over sixteen rollouts; cost budgets from the edge of feasible to ample."""
    rng = np.random.default_rng(seed)
    rates = rng.beta(0.4, 0.4, prompts) if rng.random() < 0.5 else rng.integers(1, 16, prompts) / 16
    costs, high = costs_of(rng, rates), int(rng.choice([4, 8, 24]))
    budget = LOW * prompts + int(rng.choice([0.05, 0.3, 0.7]) * prompts * (high - LOW)) if both else None
    least, most = LOW * costs.sum(), min(8, high) * costs.sum()
    if budget is not None:
        cheapest, left = np.full(prompts, LOW), budget - LOW * prompts
        for position in np.argsort(costs):
            cheapest[position] += (added := min(left, high - LOW))
            left -= added
        least, most = costs @ cheapest, kr.allocate(rates, budget, LOW, high, costs=costs, fallback=False).cost
    tight = rng.choice([1e-4, 1e-3, 0.02, 0.3, 0.9])
    return Case(rates, costs, budget, float(least + tight * max(most - least, 1e-3 * least)), high)


def worst(gaps: list[float]) -> str:
    return f"{max(gaps):.1e}" if gaps else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=PAPER_PROMPTS)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0)
    asked = parser.parse_args()
    print("| costs | budgets | cases | proved | below the bound | below HiGHS's bound | its plan | ms | longest |")
    print("| --- | --- |" + " ---: |" * 7)
    for number, (kind, costs_of) in enumerate(COSTS.items()):
        for both in (False, True):
            gaps, to_bound, to_best, milliseconds = [], [], [], []
            for seed in range(asked.cases):
                hard = case(costs_of, asked.prompts, both, 2_000_000 + 1000 * number + seed)
                began = time.perf_counter()
                plan = hard.plan()
                milliseconds.append(1e3 * (time.perf_counter() - began))
                gaps.append(1.0 - plan.value / plan.bound)
                found = hard.best(asked.seconds) if gaps[-1] > 1e-3 and asked.seconds else None
                if found is not None:
                    to_best.append(1.0 - plan.value / found[0])
                    to_bound.append(1.0 - plan.value / found[1])
            proved = sum(gap <= 1e-3 for gap in gaps)
            print(
                f"| {kind} | {'both' if both else 'cost'} | {len(gaps)} | {proved} | {worst(gaps)} | {worst(to_bound)} "
                f"| {worst(to_best)} | {np.median(milliseconds):.1f} | {max(milliseconds):.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
