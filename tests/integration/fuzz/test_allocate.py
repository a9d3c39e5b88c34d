"""Random and adversarial calls of `kr.allocate`: `pytest tests/integration/fuzz -m long -s` makes 100,000 of them.

Every case is a function of its number (`drawn`), which a failure shows. Each ends as a plan that keeps its
promises, or as a KnapsackError that names an argument; what is refused as infeasible has no plan.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import knapsack_rl as kr

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHUNKS, CHUNK, SHORT = 10, 10_000, 2_000
ALGORITHMS = ("grpo", "rloo", "reinforce", "remax")
ROUNDING = 1e-12
"""Relative difference up to which a cost counts as equal to its budget (docs of `allocate`)."""
ADVERSARIAL = np.array([0.0, 1.0, np.nan, 0.5, 0.5, 5e-324, 1e-300, 1e-17, 1e-9, 1e-3, 1 - 1e-12, 1 - 2**-53])
ARGUMENTS = set(inspect.signature(kr.allocate).parameters)
STRANGE: tuple[Any, ...] = (
    None,
    True,
    "8",
    b"\0",
    "",
    -1,
    0,
    1,
    0.5,
    -0.0,
    1e308,
    2**31,
    2**63,
    2**70,
    10**400,
    -(2**64),
    np.nan,
    np.inf,
    -np.inf,
    1j,
    [],
    [[0.5]],
    [0.5, [1]],
    {},
    {1: 2},
    object(),
    np.array(3),
    np.array(["a"]),
    np.array([None]),
    np.float32(0.5),
    np.uint8(255),
    np.int64(7),
    np.zeros((2, 2)),
    np.array([np.inf, 1.0]),
    np.full(3, 2**63, dtype=np.uint64),
    np.ma.masked_array([0.5, 0.5], [True, False]),
    [True, False],
    [2**70, 1],
    lambda rates: rates,
    lambda rates: (rates, 1.0 - rates),
)


@dataclass(frozen=True)
class Call:
    """A call of `allocate`; the names are those of its arguments."""

    arguments: dict[str, Any]
    strange: str | None = None
    """An argument that is anything but what is asked for. Only then no oracle knows whether there is a plan."""

    def __getattr__(self, name: str) -> Any:
        return self.arguments[name]

    def __call__(self) -> kr.Plan:
        return kr.allocate(**self.arguments)

    @property
    def least(self) -> Ints:
        return np.broadcast_to(self.min_rollouts, len(self.success_rates)).astype(np.int64)

    @property
    def whole(self) -> NDArray[np.bool_]:
        """Prompts that get none, or 2 and more."""
        return (self.least == 0) & (self.algorithm in ("grpo", "rloo"))

    @property
    def learnable(self) -> bool:
        """Whether all prompts are, so that the plan is the one of most value."""
        return bool(np.all((self.success_rates > 0.0) & (self.success_rates < 1.0)))

    def worth(self, rollouts: Any) -> Floats:
        """Value of each prompt's rollouts by the closed forms; the prompts are the last axis."""
        p, n = self.success_rates, np.asarray(rollouts, dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.algorithm == "remax":
                chance = -np.expm1(n * np.log(self.greedy_agreement))
            elif self.algorithm == "reinforce":
                chance = -np.expm1(n * np.log1p(-p))
            else:
                rare = np.minimum(p, 1.0 - p)  # of a tiny rate nothing is lost
                chance = np.where(n > 1, -np.expm1(n * np.log1p(-rare)) - rare**n, 0.0)
        return np.nan_to_num(np.where(n > 0, chance, 0.0) * p * (1.0 - p) ** 2, nan=0.0)

    def every_plan(self) -> Ints:
        """All plans within the bounds and the budget of rollouts, whatever they cost, shape (plans, M)."""
        sizes = [
            [n for n in range(least, self.max_rollouts + 1) if not (whole and n == 1)]
            for least, whole in zip(self.least.tolist(), self.whole.tolist(), strict=True)
        ]
        every = np.array(list(itertools.product(*sizes)), dtype=np.int64)
        return every if self.budget is None else every[every.sum(axis=1) == self.budget]

    def filled(self, key: Callable[[Ints, Ints], Floats]) -> Ints | None:
        """A plan made one group or rollout after the other, for whom the key is largest; None where that gets stuck."""
        rollouts = self.least.copy()
        left = math.inf if self.budget is None else self.budget - int(rollouts.sum())
        money = math.inf if self.cost_budget is None else self.cost_budget - float(self.costs @ rollouts)
        costs = np.zeros(len(rollouts)) if self.cost_budget is None else self.costs
        while left > 0:
            size = np.where(self.whole & (rollouts == 0), 2, 1)
            fits = (rollouts + size <= self.max_rollouts) & (size <= left) & (size * costs <= money)
            if not fits.any():
                return rollouts if self.budget is None else None
            chosen = int(np.where(fits, key(rollouts, size), -np.inf).argmax())
            rollouts[chosen] += size[chosen]
            left, money = left - size[chosen], money - size[chosen] * costs[chosen]
        return rollouts if left == 0 else None


def drawn(number: int) -> Call:
    """Case `number`: small ones above all, with bounds and budgets at their edges or one beyond them."""
    rng = np.random.default_rng(number)
    count = int(rng.choice([rng.integers(0, 5), rng.integers(1, 13), rng.integers(1, 60)], p=[0.65, 0.3, 0.05]))
    high = int(rng.choice([1, 2, 3, 4, 6, 9, 40, 128]) if rng.random() < 0.97 else rng.choice([2**31, 2**62]))
    low: Any = min(int(rng.choice([0, 0, 0, 1, 2, 2, 3])), high)
    if rng.random() < 0.3:
        low = rng.integers(0, min(high, 4) + 1, count)
    least, most = int(np.broadcast_to(low, count).sum()), count * min(high, 200)
    edges = [least - 1, least, least + 1, least + 2, most - 1, most, most + 1, count * 2]
    budget = int(rng.choice(edges) if rng.random() < 0.6 else rng.integers(least, most + 1))
    arguments: dict[str, Any] = {
        "success_rates": success_rates(rng, count),
        "budget": budget,
        "min_rollouts": low,
        "max_rollouts": high,
        "algorithm": str(rng.choice(ALGORITHMS)),
        "fallback": bool(rng.random() < 0.5),
        "confidence": float(rng.choice([5e-324, 0.1, 0.5, 0.9, 0.9, 0.99, 1 - 2**-53])),
        "greedy_agreement": None,
        "costs": None,
        "cost_budget": None,
    }
    if arguments["algorithm"] == "remax":
        agreement = rng.choice([0.0, 1.0, 0.5], count) if rng.random() < 0.2 else rng.random(count)
        arguments["greedy_agreement"] = np.where(np.isnan(arguments["success_rates"]), np.nan, agreement)
    if rng.random() < 0.4:
        arguments["costs"] = costs(rng, count, arguments["success_rates"])
        if rng.random() < 0.8:
            if rng.random() < 0.5:
                arguments["budget"] = None
            arguments["cost_budget"] = cost_budget(rng, Call(arguments))
    for value in arguments.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False  # nothing that came in is changed
    strange = sorted(arguments)[rng.integers(len(arguments))] if rng.random() < 0.1 else None
    if strange:
        arguments[strange] = STRANGE[rng.integers(len(STRANGE))]
    if places_millions(arguments):
        arguments["max_rollouts"] = 128
    return Call(arguments, strange)


def places_millions(arguments: dict[str, Any]) -> bool:
    """Whether the plan could be so large that it takes seconds and gigabytes, as the docs of `allocate` say."""
    high, budget, spend, prices = (arguments[name] for name in ("max_rollouts", "budget", "cost_budget", "costs"))
    if not isinstance(high, int) or high <= 1_000:
        return False
    if isinstance(budget, int):
        return budget > 1_000_000
    priced = isinstance(spend, float) and isinstance(prices, np.ndarray) and prices.dtype == float and prices.size
    return not priced or not spend <= 1_000_000 * float(prices.min())


def success_rates(rng: np.random.Generator, count: int) -> Floats:
    return [
        lambda: rng.random(count),
        lambda: rng.beta(0.3, 0.3, count),
        lambda: rng.integers(0, 9, count) / 8,
        lambda: rng.integers(1, 8, count) / 8,
        lambda: np.full(count, rng.choice(ADVERSARIAL)),
        lambda: rng.choice(rng.random(2), count),
        lambda: rng.choice(ADVERSARIAL, count),
        lambda: 10.0 ** -rng.uniform(0.1, 320, count),
    ][rng.integers(8)]()


def costs(rng: np.random.Generator, count: int, rates: Floats) -> Floats:
    gain = np.nan_to_num(rates * (1 - rates) ** 2) + 1e-9
    return [
        lambda: np.full(count, rng.choice([1.0, 3.0, 1e-100, 1e90])),
        lambda: rng.integers(1, 9, count).astype(float),
        lambda: rng.lognormal(0, 1, count),
        lambda: 10.0 ** rng.uniform(-6, 6, count),
        lambda: 10.0 ** rng.uniform(-100, 90, count),
        lambda: gain * rng.uniform(0.999, 1.001, count),
        lambda: 1.0 / gain,
    ][rng.integers(7)]()


def cost_budget(rng: np.random.Generator, call: Call) -> float:
    """What the cheapest plan costs, more or less of it by a hair, or something up to the cost of the dearest."""
    rollouts = call.least
    left = 0 if call.budget is None else max(call.budget - int(rollouts.sum()), 0)
    for position in np.argsort(call.costs, kind="stable"):
        added = min(left, call.max_rollouts - int(rollouts[position]))
        rollouts[position] += added
        left -= added
    least = float(call.costs @ rollouts)
    most = max(least, min(call.max_rollouts, 200) * float(call.costs.sum()))
    between = least + float(rng.random()) ** 3 * (most - least)
    edges = [least, least * (1 - 1e-9), least * (1 + 1e-9), most, 1e100, 1e-100]
    return max(float(rng.choice(edges) if rng.random() < 0.4 else between), 1e-100)


def check(call: Call) -> str:
    """See that the call ends as it should, and say how."""
    try:
        plan = call()
    except kr.KnapsackError as error:
        return refused(call, error)
    assert plan.rollouts.dtype == np.int64
    assert plan.rollouts.shape == np.shape(call.success_rates)
    assert call.budget is None or plan.rollouts.sum() == call.budget
    assert plan.rollouts.min(initial=0) >= 0
    assert np.isfinite(plan.value)
    assert 0.0 <= plan.value <= plan.bound
    again = call()
    assert again.rollouts.tobytes() == plan.rollouts.tobytes()
    assert (again.value, again.fallback, again.cost, again.bound) == (plan.value, plan.fallback, plan.cost, plan.bound)
    if call.strange:
        return "strange, a plan"
    promises_are_kept(call, plan)
    return "a plan"


def promises_are_kept(call: Call, plan: kr.Plan) -> None:
    """Bounds, groups, cost and value; against all plans where these are few, and against heuristics."""
    rollouts = plan.rollouts
    assert np.all((rollouts >= call.least) & (rollouts <= call.max_rollouts))
    assert not np.any(call.whole & (rollouts == 1))
    assert 0 <= plan.fallback <= rollouts[call.success_rates == 0.0].sum()
    assert (plan.cost is None) == (call.costs is None)
    assert call.costs is None or plan.cost == float(call.costs @ rollouts)
    limit = math.inf if call.cost_budget is None else call.cost_budget * (1.0 + 2.0 * ROUNDING)
    assert plan.cost is None or plan.cost <= limit
    assert plan.value == pytest.approx(call.worth(rollouts).sum(), rel=1e-9, abs=1e-14)
    optimal = call.learnable and call.cost_budget is None
    for other in others(call):
        if call.cost_budget is not None:
            other = other[other @ call.costs <= call.cost_budget]
        best = float(call.worth(other).sum(axis=1).max(initial=0.0))
        assert best <= plan.bound + 1e-13
        assert not optimal or best <= plan.value + 1e-13


def others(call: Call) -> Iterator[Ints]:
    """Plans to compare with: all if they are few, else even groups and the largest gains."""
    count = len(call.success_rates)
    if not count:
        if not call.budget:
            yield np.zeros((1, 0), dtype=np.int64)
    elif (call.max_rollouts + 1) ** count <= 2_500:
        yield call.every_plan()
    elif (call.budget or count * call.max_rollouts) <= 100:
        price = 1.0 if call.cost_budget is None else call.costs
        for key in (
            lambda rollouts, size: -rollouts,
            lambda rollouts, size: (call.worth(rollouts + size) - call.worth(rollouts)) / size / price,
        ):
            plan = call.filled(key)
            if plan is not None:
                yield plan[None]


def refused(call: Call, error: kr.KnapsackError) -> str:
    """See that the message names an argument, and that none of the plans that were looked at is within the budgets."""
    assert set(str(error).split(":")[0].split(", ")) <= set(call.arguments), error
    if call.strange:
        return "strange, refused"
    if call.budget is not None and call.budget < 0:
        return "infeasible"
    assert isinstance(error, kr.InfeasibleBudgetError), error
    for other in others(call):
        cheap = call.cost_budget is None or other @ call.costs <= call.cost_budget
        assert not np.any(np.broadcast_to(cheap, len(other)))
    return "infeasible"


def run(numbers: range, ends: Counter[str]) -> None:
    for number in numbers:
        call = drawn(number)
        try:
            ends[check(call)] += 1
        except Exception as error:
            raise AssertionError(f"drawn({number}): {call}") from error


@pytest.fixture(scope="module")
def ends() -> Iterator[Counter[str]]:
    """How the cases of this module ended; printed when it has run."""
    counted = Counter[str]()
    yield counted
    print(f"\n{counted.total():,} calls of allocate: {dict(sorted(counted.items()))}")


def test_a_call_ends_in_a_plan_that_keeps_its_promises_or_in_an_error_that_names_an_argument(
    ends: Counter[str],
) -> None:
    run(range(SHORT), ends)


@pytest.mark.long
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_and_so_do_a_hundred_thousand(chunk: int, ends: Counter[str]) -> None:
    run(range(SHORT + chunk * CHUNK, SHORT + (chunk + 1) * CHUNK), ends)


def test_no_plan_has_more_value_than_the_bound_of_both_budgets(ends: Counter[str]) -> None:
    """Found at random: of the ten prompts of this case there is a plan with 1e-4 more value than `Plan.bound` says."""
    run(range(26683, 26684), ends)


def test_both_budgets_hold_where_gains_underflow_and_only_the_cheapest_plan_is_paid_for(ends: Counter[str]) -> None:
    """Found at random: success rates of 1e-185 and less, and a cost budget that pays for the cheapest plan only."""
    run(range(42193, 42194), ends)


def test_a_maximum_that_is_no_limit_takes_no_memory(ends: Counter[str]) -> None:
    """Found at random: 3,300 rollouts at most are paid for, and 2^31 allowed; the search for how many took 8 GiB."""
    run(range(60143, 60144), ends)
