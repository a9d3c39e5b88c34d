"""The paper's rule: a minimum for everyone, a fallback for the never-solved, a knapsack for the rest (section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl.errors import InfeasibleBudgetError, InvalidInputError
from knapsack_rl.priced import cheapest, largest_gains_within_cost
from knapsack_rl.solver import largest_gains
from knapsack_rl.validation import as_confidence, as_costs, as_integer, as_positive, as_rates
from knapsack_rl.values import Algorithm, information_gain, rollouts_for_confidence, same_outcome_rates, value

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


_MOST = 2**31 - 1
"""Rollouts of a prompt beyond which a bound is none, so that sums of them fit an int64."""
_ROUNDING = 1e-12
"""Relative difference up to which a cost counts as equal to its budget, since sums of floats depend on their order."""


@dataclass(frozen=True)
class Plan:
    """Rollouts for the prompts of one step.

    Attributes:
        rollouts: int64, shape (M,), N_i; sums to the budget exactly.
        value: sum of Value(N_i, p_i) over the prompts that have a success rate (paper, equation 5).
        fallback: rollouts that the fallback moved to never-solved prompts.
        cost: what the rollouts cost together, in the unit of the costs; None where costs were not given.
        bound: no plan with the same bounds and budgets has more value; the value itself, up to rounding, where the plan
            is optimal. Infinite where it is not known.
    """

    rollouts: Ints
    value: float
    fallback: int = 0
    cost: float | None = None
    bound: float = math.inf


def allocate(
    success_rates: ArrayLike,
    budget: int | None,
    min_rollouts: int = 2,
    max_rollouts: int = 128,
    *,
    algorithm: Algorithm = "grpo",
    fallback: bool = True,
    confidence: float = 0.9,
    greedy_agreement: ArrayLike | None = None,
    costs: ArrayLike | None = None,
    cost_budget: float | None = None,
) -> Plan:
    """Split a step's budget of rollouts over its prompts by the paper's rule (section 4.2, equation 5, table 3).

    1. Never-visited prompts (NaN) get the mean, budget / M, so that a first epoch is uniform.
    2. Every other prompt gets `min_rollouts`.
    3. A prompt with 0 < p < 1 needs floor(`rollouts_for_confidence`) more, at most up to `max_rollouts`. What the needs
       leave of the budget is the surplus; the fallback spreads it evenly over the prompts with p = 0.
    4. The exact knapsack spends the rest on 0 < p < 1. What does not fit there goes evenly to the unsolved (p = 0) and
       never-visited, and to always-solved prompts (p = 1) only when everyone else is full.

    With a `cost_budget` the same rule spends cost. The mean is then what even groups could have for it, cost_budget /
    sum(costs); needs and surplus are costs too; and the knapsack maximises the value of all plans that cost no more,
    up to what `Plan.bound` shows to be missing. With both budgets, exactly `budget` rollouts are placed: as without
    costs, if that plan is cheap enough; otherwise never-visited prompts and the fallback get what leaves the rest
    affordable, and the cheapest prompts, of whatever success rate, take the rollouts that the value has no money for.

    Args:
        success_rates: shape (M,), p_i in [0, 1], NaN where the prompt was never visited.
        budget: rollouts of the step, between M * `min_rollouts` and M * `max_rollouts`; None for as many as
            `cost_budget` pays for.
        min_rollouts: fewest rollouts a prompt gets, 1 or more. (From 0 the value is not concave: the first rollout on a
            prompt is worth nothing by itself. Leave out the prompts that should get none.)
        max_rollouts: most rollouts a prompt gets.
        algorithm: `grpo`, `rloo`, `reinforce` or `remax` (appendix B), or a function of your own; see
            `values.nonzero_gradient_probability`.
        fallback: whether never-solved prompts get the surplus.
        confidence: the chance of a non-zero gradient that the needs aim at, in (0, 1).
        greedy_agreement: shape (M,), for `remax` only; see `values.nonzero_gradient_probability`.
        costs: shape (M,), what one rollout of each prompt costs, in tokens, seconds or any other unit; finite, above 0.
        cost_budget: what the rollouts may cost together, in the same unit; sum(costs * rollouts) stays at or below it,
            but for rounding (1e-12 of it).

    Returns:
        The plan; equal prompts are served in order of position, so the same input gives the same plan. With equal costs
        it is that of as many rollouts as the cost budget pays for.

    Raises:
        InfeasibleBudgetError: the budget is below M * `min_rollouts` or above M * `max_rollouts`, or the cost budget
            does not pay for the cheapest plan.
        InvalidInputError: any other argument is out of range.

    Cost: O(M + budget) time and memory; with a cost budget O(M log M + rollouts).
    """
    rates = as_rates("success_rates", success_rates, allow_nan=True)
    if rates.ndim != 1:
        raise InvalidInputError(f"success_rates: expected a vector, one per prompt, got shape {rates.shape}.")
    low, high = _check_bounds(min_rollouts, max_rollouts)
    total = None if budget is None else check_budget(len(rates), budget, low, high)[0]
    most = max(_MOST if total is None else total, low)  # no limit is then too large for an int64
    rule = _Rule(rates, low, min(high, most), algorithm, fallback, as_confidence(confidence), greedy_agreement)
    prices = None if costs is None else as_costs("costs", costs, len(rates))
    if cost_budget is None:
        if total is None:
            raise InvalidInputError("budget: expected an integer, or None together with a cost_budget, got None.")
        return rule.plan(total, prices)
    if prices is None:
        raise InvalidInputError("costs: expected the cost of one rollout of each prompt with a cost_budget, got None.")
    limit = as_positive("cost_budget", cost_budget)
    check_cost_budget(limit, prices, low, high, total)
    return rule.plan_within(limit, prices, total)


@dataclass(frozen=True)
class _Rule:
    """The paper's rule for the prompts of one step. Budgets are arguments of its methods."""

    rates: Floats
    low: int
    high: int
    algorithm: Algorithm
    fallback: bool
    confidence: float
    greedy_agreement: ArrayLike | None

    @cached_property
    def unvisited(self) -> Mask:
        """Prompts without a success rate."""
        return np.isnan(self.rates)

    @cached_property
    def unsolved(self) -> Mask:
        """Prompts without a success, for which the fallback is."""
        return np.asarray(self.rates == 0.0)

    @cached_property
    def learnable(self) -> Mask:
        """Prompts whose value grows with their rollouts."""
        return (self.rates > 0.0) & (self.rates < 1.0)

    @cached_property
    def needs(self) -> Ints:
        """Rollouts beyond the minimum after which a learnable prompt has a gradient with the wanted confidence."""
        needs = np.zeros(len(self.rates), dtype=np.int64)
        rates = self.rates[self.learnable]
        needs[self.learnable] = np.minimum(rollouts_for_confidence(rates, self.confidence), self.high - self.low)
        return needs

    @cached_property
    def gains(self) -> _ValueGains:
        """What rollouts beyond the minimum gain; nothing where there is no success rate."""
        u, v = same_outcome_rates(self.rates, self.algorithm, self.greedy_agreement)
        if self.greedy_agreement is not None and np.any(np.isnan(u) & ~self.unvisited):
            raise InvalidInputError(
                "greedy_agreement: expected a probability for every prompt that has a success rate, got NaN."
            )
        u, v, rates = (np.where(self.unvisited, 0.0, array) for array in (u, v, self.rates))
        return _ValueGains(u, v, information_gain(rates), self.low)

    def value(self, rollouts: Ints) -> float:
        """The objective of equation 5."""
        return total_value(rollouts, self.rates, self.algorithm, self.greedy_agreement)

    def plan(self, budget: int, costs: Floats | None = None) -> Plan:
        """The plan of `budget` rollouts, whatever they cost."""
        rollouts = np.full(len(self.rates), self.low, dtype=np.int64)
        unvisited = int(self.unvisited.sum())
        rollouts[self.unvisited] = _even_shares(budget * unvisited // max(len(rollouts), 1), unvisited)
        left = budget - int(rollouts.sum())
        moved = self._spread(rollouts, self.unsolved, left - int(self.needs.sum())) if self.fallback else 0

        items = np.flatnonzero(self.learnable)
        knapsack = min(left - moved, items.size * (self.high - self.low))
        room = np.full(items.size, self.high - self.low, dtype=np.int64)
        gains = self.gains
        rollouts[items] += largest_gains(lambda chosen, *units: gains(items[chosen], *units), room, knapsack)

        left -= moved + knapsack
        left -= self._spread(rollouts, self.unsolved | self.unvisited, left)
        self._spread(rollouts, self.rates == 1.0, left)
        return self._plan(rollouts, moved, costs)

    def plan_within(self, cost_budget: float, costs: Floats, budget: int | None) -> Plan:
        """The plan that costs at most `cost_budget`; of exactly `budget` rollouts where that is given."""
        count, limit = len(costs), cost_budget * (1.0 + _ROUNDING)
        if budget is None and (not count or costs.min() == costs.max()):
            affordable = int(min(limit / costs[0], 2.0**62)) if count else 0
            return self.plan(min(affordable, count * self.high), costs)
        if budget is not None:
            plan = self.plan(budget, costs)
            if float(costs @ plan.rollouts) <= limit:
                return plan

        order = np.argsort(costs, kind="stable") if not self.learnable.all() else None

        def fits(rollouts: Ints) -> bool:
            """Whether somebody's rollouts leave enough for the cheapest plan of everyone else's."""
            if budget is not None:
                rollouts = rollouts + cheapest(costs, self.high - rollouts, budget - int(rollouts.sum()), order)
            return float(costs @ rollouts) <= limit

        def fits_with_needs(rollouts: Ints) -> bool:
            needed = rollouts + self.needs
            within = budget is None or int(needed.sum()) <= budget
            return within and float(costs @ needed) <= limit and fits(rollouts)

        rollouts, moved = np.full(count, self.low, dtype=np.int64), 0
        mean = cost_budget / float(costs.sum()) if budget is None else min(cost_budget / costs.sum(), budget / count)
        share = int(mean * self.unvisited.sum()) - self.low * int(self.unvisited.sum())
        rollouts, _ = self._raised(rollouts, self.unvisited, share, fits)
        if self.fallback:
            rollouts, moved = self._raised(rollouts, self.unsolved, count * self.high, fits_with_needs)

        left = limit - float(costs @ rollouts)
        room = self.high - rollouts
        if budget is None:  # what nobody could pay for, even with the minimum for all others, needs no look
            payable = np.floor((limit - self.low * float(costs.sum())) / costs)
            room = np.where(self.learnable, np.minimum(room, payable), 0).astype(np.int64)
        rest = None if budget is None else budget - int(rollouts.sum())
        solved = largest_gains_within_cost(self.gains, costs / cost_budget, room, left / cost_budget, rest)
        prices = solved.per_cost * costs / cost_budget + solved.per_rollout
        elsewhere = float(((rollouts - self.low) * np.maximum(prices, 0.0))[~self.learnable].sum())
        bound = self.value(rollouts) + solved.bound + elsewhere
        rollouts = rollouts + solved.units
        gaining = self.learnable & (rollouts < self.high) & (self.gains.next(rollouts) > 0.0)
        if budget is None and not gaining.any():
            for receivers in (self.unsolved | self.unvisited, self.rates == 1.0):
                rollouts, _ = self._raised(rollouts, receivers, count * self.high, fits)
        return self._plan(rollouts, moved, costs, bound)

    def _plan(self, rollouts: Ints, moved: int, costs: Floats | None, bound: float | None = None) -> Plan:
        """These rollouts as a plan; without a bound they are the largest gains, but for what others got."""
        value = self.value(rollouts)
        if bound is None:
            # Weak duality: at the price of the best gain left out, nothing that others got could have gained more.
            elsewhere = int((rollouts - self.low)[~self.learnable].sum())
            room = self.learnable & (rollouts < self.high)
            bound = value + elsewhere * (float(self.gains.next(rollouts)[room].max(initial=0.0)) if elsewhere else 0.0)
        return Plan(rollouts, value, moved, None if costs is None else float(costs @ rollouts), max(bound, value))

    def _spread(self, rollouts: Ints, receivers: Mask, amount: int) -> int:
        """Add up to `amount` rollouts evenly to the receivers, in place, none above the maximum; returns the number."""
        items = np.flatnonzero(receivers)
        left = min(amount, items.size * self.high - int(rollouts[items].sum()))
        if left <= 0:
            return 0
        given = left
        while left:
            items = items[rollouts[items] < self.high]
            share = left // items.size  # whole shares first: who fills up early must not make the others uneven
            extra = np.minimum(share, self.high - rollouts[items]) if share else _even_shares(left, items.size)
            rollouts[items] += extra
            left -= int(extra.sum())
        return given

    def _raised(self, rollouts: Ints, receivers: Mask, most: int, fits: Callable[[Ints], bool]) -> tuple[Ints, int]:
        """The rollouts with as many more as fit, up to `most`, spread evenly over the receivers, and how many."""
        items = np.flatnonzero(receivers)
        least, most = 0, max(min(most, items.size * self.high - int(rollouts[items].sum())), 0)
        tried = most
        while least < most:
            raised = rollouts.copy()
            self._spread(raised, receivers, tried)
            least, most = (tried, most) if fits(raised) else (least, tried - 1)
            tried = (least + most + 1) // 2
        raised = rollouts.copy()
        return raised, self._spread(raised, receivers, least)


class _ValueGains:
    """Value(low + k + 1, p) - Value(low + k, p) = InfoGain(p) [u^(low+k) (1 - u) + v^(low+k) (1 - v)], k = 0, 1, ..."""

    def __init__(self, u: Floats, v: Floats, weight: Floats, low: int) -> None:
        self.u, self.v, self.weight, self.low = u, v, weight, low

    def __call__(self, items: Ints, start: int, width: int) -> Floats:
        """As `solver.Gains`."""
        terms = self._geometric(self.u[items], self.weight[items], self.low + start, width)
        terms += self._geometric(self.v[items], self.weight[items], self.low + start, width)
        return terms

    def next(self, rollouts: Ints) -> Floats:
        """What one rollout more than these gains, shape (M,)."""
        return self.weight * (self.u**rollouts * (1.0 - self.u) + self.v**rollouts * (1.0 - self.v))

    @staticmethod
    def _geometric(base: Floats, weight: Floats, first: int, width: int) -> Floats:
        terms = np.empty((base.size, width))
        terms[:, 0] = weight * (1.0 - base) * base**first
        terms[:, 1:] = base[:, None]
        return np.multiply.accumulate(terms, axis=1, out=terms)


def check_budget(prompts: int, budget: int, min_rollouts: int, max_rollouts: int) -> tuple[int, int, int]:
    """Budget, minimum and maximum as Python's integers, if some allocation can meet them.

    Raises:
        InvalidInputError: a bound or the budget is not an integer, or the bounds are crossed.
        InfeasibleBudgetError: the budget lies outside prompts * [min_rollouts, max_rollouts].
    """
    low, high = _check_bounds(min_rollouts, max_rollouts)
    total = as_integer("budget", budget, at_least=0)
    if total < prompts * low:
        raise InfeasibleBudgetError(
            f"budget: {prompts} prompts with min_rollouts={low} need at least {prompts * low} rollouts, got {total}, "
            f"{prompts * low - total} too few. Raise the budget (or group_size) or lower min_rollouts."
        )
    if total > prompts * high:
        raise InfeasibleBudgetError(
            f"budget: {prompts} prompts with max_rollouts={high} take at most {prompts * high} rollouts, got {total}, "
            f"{total - prompts * high} too many. Lower the budget (or group_size) or raise max_rollouts."
        )
    if total >= 2**63:
        raise InvalidInputError(f"budget: expected a number below 2**63, got {total}.")
    return total, low, high


def check_cost_budget(cost_budget: float, costs: Floats, low: int, high: int, budget: int | None) -> None:
    """See that some allocation within the bounds, of `budget` rollouts where that is given, costs no more.

    Raises:
        InfeasibleBudgetError: the cheapest one costs more than `cost_budget`.
    """
    rollouts = np.full(len(costs), low, dtype=np.int64)
    which = f"{len(costs)} prompts with min_rollouts={low}"
    if budget is not None:
        rollouts += cheapest(costs, np.full(len(costs), min(high - low, budget)), budget - len(costs) * low)
        which = f"{budget} rollouts on {which} and max_rollouts={high}"
    least = float(costs @ rollouts)
    if least > cost_budget * (1.0 + _ROUNDING):
        raise InfeasibleBudgetError(
            f"cost_budget: {which} cost at least {least:.10g}, got {cost_budget:.10g}, {least - cost_budget:.4g} too "
            f"little. Raise cost_budget or lower {'min_rollouts' if budget is None else 'budget'}."
        )


def total_value(
    rollouts: Ints, success_rates: Floats, algorithm: Algorithm = "grpo", greedy_agreement: ArrayLike | None = None
) -> float:
    """Sum of Value(N_i, p_i) over the prompts whose success rate is known (the objective of equation 5)."""
    return float(np.nansum(value(rollouts, success_rates, algorithm, greedy_agreement=greedy_agreement)))


def _check_bounds(min_rollouts: int, max_rollouts: int) -> tuple[int, int]:
    """Minimum and maximum as Python's integers."""
    low = as_integer("min_rollouts", min_rollouts, at_least=1)
    high = as_integer("max_rollouts", max_rollouts, at_least=1)
    if low > high:
        raise InvalidInputError(f"min_rollouts, max_rollouts: expected min <= max, got {low} and {high}.")
    return low, high


def _even_shares(total: int, count: int) -> Ints:
    """`total` in `count` parts that differ by at most one, the larger ones first."""
    share, rest = divmod(total, max(count, 1))
    return share + (np.arange(count) < rest)
