"""The paper's rule: a minimum for everyone, a fallback for the never-solved, a knapsack for the rest (section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl.errors import InfeasibleBudgetError, InvalidInputError
from knapsack_rl.priced import cheapest
from knapsack_rl.solver import largest_gains
from knapsack_rl.validation import (
    as_confidence,
    as_costs,
    as_counts,
    as_flag,
    as_integer,
    as_positive,
    as_rates,
    is_ragged,
)
from knapsack_rl.values import (
    Algorithm,
    information_gain,
    rollouts_for_confidence,
    same_outcome_rates,
    smallest_group,
    value,
)
from knapsack_rl.whole_groups import (
    cheapest_groups,
    hull,
    largest_gains_in_groups,
    largest_gains_in_groups_within_cost,
)

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
    min_rollouts: int | ArrayLike = 2,
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

    With a minimum of 0 a prompt may sit out. For `grpo` and `rloo`, where a single rollout is worth nothing, it then
    gets none, or 2 and more; the knapsack is exact all the same (`whole_groups`). Never-visited prompts still get the
    mean, in groups of 2 and more where that is below 2.

    Args:
        success_rates: shape (M,), p_i in [0, 1], NaN where the prompt was never visited.
        budget: rollouts of the step, between the sum of the minima and M * `max_rollouts`; None for as many as
            `cost_budget` pays for.
        min_rollouts: fewest rollouts a prompt gets, 0 or more; or shape (M,), the fewest of each.
        max_rollouts: most rollouts a prompt gets.
        algorithm: `grpo`, `rloo`, `reinforce` or `remax` (appendix B), or a function of your own; see
            `values.nonzero_gradient_probability`.
        fallback: whether never-solved prompts get the surplus.
        confidence: the chance of a non-zero gradient that the needs aim at, in (0, 1).
        greedy_agreement: shape (M,), for `remax` only; see `values.nonzero_gradient_probability`.
        costs: shape (M,), what one rollout of each prompt costs, in tokens, seconds or any other unit; 1e-100 to 1e100.
        cost_budget: what the rollouts may cost together, in the same unit; sum(costs * rollouts) stays at or below it,
            but for rounding (1e-12 of it).

    Returns:
        The plan; equal prompts are served in order of position, so the same input gives the same plan. With equal costs
        it is that of as many rollouts as the cost budget pays for.

    Raises:
        InfeasibleBudgetError: the budget is below the sum of the minima or above M * `max_rollouts`, groups of none or
            of 2 and more do not add up to it, or the cost budget does not pay for the cheapest plan.
        InvalidInputError: any other argument is out of range.

    Cost: O(M + budget) time and memory; with a cost budget O(M log M + rollouts).
    """
    rates = as_rates("success_rates", success_rates, allow_nan=True)
    if rates.ndim != 1:
        raise InvalidInputError(f"success_rates: expected a vector, one per prompt, got shape {rates.shape}.")
    smallest = smallest_group(algorithm)
    low, high = _check_bounds(len(rates), min_rollouts, max_rollouts)
    total = None if budget is None else check_budget(len(rates), budget, low, high, smallest)[0]
    most = max(_MOST if total is None else total, int(low.max(initial=smallest)))  # no limit is too large for an int64
    rule = _Rule(
        rates,
        low,
        min(high, most),
        algorithm,
        as_flag("fallback", fallback),
        as_confidence(confidence),
        greedy_agreement,
    )
    prices = None if costs is None else as_costs("costs", costs, len(rates))
    if cost_budget is None:
        if total is None:
            raise InvalidInputError("budget: expected an integer, or None together with a cost_budget, got None.")
        return rule.plan(total, prices)
    if prices is None:
        raise InvalidInputError("costs: expected the cost of one rollout of each prompt with a cost_budget, got None.")
    limit = as_positive("cost_budget", cost_budget)
    check_cost_budget(limit, prices, low, high, total, smallest)
    return rule.plan_within(limit, prices, total)


@dataclass(frozen=True)
class _Rule:
    """The paper's rule for the prompts of one step. Budgets are arguments of its methods."""

    rates: Floats
    low: Ints
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
    def whole(self) -> Mask:
        """Prompts that get none, or 2 and more."""
        return np.asarray((self.low == 0) & (smallest_group(self.algorithm) > 1))

    @cached_property
    def needs(self) -> Ints:
        """Rollouts beyond the minimum after which a learnable prompt has a gradient with the wanted confidence."""
        needs = np.zeros(len(self.rates), dtype=np.int64)
        rates = self.rates[self.learnable]
        room = (self.high - self.low)[self.learnable]
        needs[self.learnable] = np.minimum(rollouts_for_confidence(rates, self.confidence), room)
        return np.where(self.whole & self.learnable, np.clip(needs, 2, self.high), needs)

    @cached_property
    def gains(self) -> _ValueGains:
        """What rollouts beyond the minimum gain; nothing where there is no success rate."""
        u, v = same_outcome_rates(self.rates, self.algorithm, self.greedy_agreement)
        if self.greedy_agreement is not None and np.any(np.isnan(u) & ~self.unvisited):
            raise InvalidInputError(
                "greedy_agreement: expected a probability for every prompt that has a success rate, got NaN."
            )
        u, v, rates = (np.where(self.unvisited, 0.0, array) for array in (u, v, self.rates))
        return _ValueGains(u, v, information_gain(rates), self.low, smallest_group(self.algorithm))

    def value(self, rollouts: Ints) -> float:
        """The objective of equation 5."""
        return total_value(rollouts, self.rates, self.algorithm, self.greedy_agreement)

    def plan(self, budget: int, costs: Floats | None = None) -> Plan:
        """The plan of `budget` rollouts, whatever they cost."""
        return self._plan(*self._placed(budget), costs)

    def _placed(self, budget: int) -> tuple[Ints, int]:
        """The rollouts of that plan, and how many of them the fallback moved."""
        rollouts, left = self.low.copy(), budget - int(self.low.sum())
        left -= self._share(rollouts, budget, left)
        moved = self._spread(rollouts, self.unsolved, left - int(self.needs.sum())) if self.fallback else 0

        items = np.flatnonzero(self.learnable)
        room = (self.high - self.low)[items]
        knapsack = min(left - moved, int(room.sum()))
        gains = self.gains
        units = largest_gains_in_groups(
            lambda chosen, *units: gains(items[chosen], *units), room, knapsack, self.whole[items]
        )
        rollouts[items] += units

        left -= moved + int(units.sum())
        left -= self._spread(rollouts, self.unsolved | self.unvisited, left)
        left -= self._spread(rollouts, self.rates == 1.0, left)
        if left:
            self._open_another(rollouts)
        return rollouts, moved

    def plan_within(self, cost_budget: float, costs: Floats, budget: int | None) -> Plan:
        """The plan that costs at most `cost_budget`; of exactly `budget` rollouts where that is given."""
        count, limit = len(costs), cost_budget * (1.0 + _ROUNDING)
        if budget is None and (not count or costs.min() == costs.max()):
            affordable = min(int(min(limit / costs[0], 2.0**62)) if count else 0, _room_of_all(self.high, self.whole))
            return self.plan(_largest_possible(affordable, self.low, self.high, self.whole), costs)
        if budget is not None:
            rollouts, moved = self._placed(budget)
            if float(costs @ rollouts) <= limit:
                return self._plan(rollouts, moved, costs)

        waiting = self.unvisited | (self.unsolved & self.fallback)
        order = np.argsort(costs, kind="stable") if waiting.any() else None

        def fits(rollouts: Ints) -> bool:
            """Whether somebody's rollouts leave enough for the cheapest plan of everyone else's."""
            if budget is not None:
                rollouts = rollouts + cheapest(costs, self.high - rollouts, budget - int(rollouts.sum()), order)
            return float(costs @ rollouts) <= limit

        def fits_with_needs(rollouts: Ints) -> bool:
            needed = rollouts + self.needs
            within = budget is None or int(needed.sum()) <= budget
            return within and float(costs @ needed) <= limit and fits(rollouts)

        rollouts, moved = self.low.copy(), 0
        most = int(min(limit / costs.min(), count * self.high)) if count else 0  # rollouts that anybody can pay for
        mean = cost_budget / float(costs.sum()) if budget is None else min(cost_budget / costs.sum(), budget / count)
        share = int(mean * self.unvisited.sum()) - int(self.low[self.unvisited].sum())
        rollouts, _ = self._raised(rollouts, self.unvisited, share, fits)
        if self.fallback:
            rollouts, moved = self._raised(rollouts, self.unsolved, most, fits_with_needs)

        left = limit - float(costs @ rollouts)
        room = self.high - rollouts
        if budget is None:  # what nobody could pay for, even with the minimum for all others, needs no look
            payable = np.floor((limit - _least_cost(costs, self.low)) / costs)
            room = np.where(self.learnable, np.minimum(room, payable), 0).astype(np.int64)
        rest = None if budget is None else budget - int(rollouts.sum())
        solved = largest_gains_in_groups_within_cost(
            self.gains, costs / cost_budget, room, left / cost_budget, rest, self.whole & (rollouts == 0)
        )
        prices = solved.per_cost * costs / cost_budget + solved.per_rollout
        others = (rollouts - self.low)[~self.learnable]
        elsewhere = float(others @ np.maximum(prices[~self.learnable], 0.0))
        missing = solved.missing_at_prices + elsewhere if others.any() else solved.missing
        rollouts = rollouts + solved.units
        bound = self.value(rollouts) + missing
        if budget is not None and self.whole.any() and float(costs @ rollouts) > limit * (1.0 + _ROUNDING):
            extra = budget - int(self.low.sum())
            rollouts, moved = self.low + cheapest_groups(costs, self.high - self.low, extra, self.whole), 0
        gaining = self.learnable & (rollouts < self.high) & (self.gains.next(rollouts) > 0.0)
        if budget is None and not gaining.any():
            for receivers in (self.unsolved | self.unvisited, self.rates == 1.0):
                rollouts, _ = self._raised(rollouts, receivers, most, fits)
        return self._plan(rollouts, moved, costs, bound)

    def _plan(self, rollouts: Ints, moved: int, costs: Floats | None, bound: float | None = None) -> Plan:
        """These rollouts as a plan; without a bound they are the largest gains, but for what others got."""
        value = self.value(rollouts)
        if bound is None:
            bound = value + self._missing(rollouts, value)
        return Plan(rollouts, value, moved, None if costs is None else float(costs @ rollouts), max(bound, value))

    def _missing(self, rollouts: Ints, value: float) -> float:
        """What the largest gains miss of the optimum at most, because others got rollouts too."""
        if self.learnable.all():
            return 0.0
        # Weak duality: at the price of the best gain left out, nothing that others got could have gained more.
        elsewhere = int((rollouts - self.low)[~self.learnable].sum())
        room = self.learnable & (rollouts < self.high)
        price = float(self.gains.next(rollouts)[room].max(initial=0.0)) if elsewhere or self.whole.any() else 0.0
        if self._all_gain(rollouts, price):
            return elsewhere * price
        return self._most(int(rollouts.sum())) - value

    def _all_gain(self, rollouts: Ints, price: float) -> bool:
        """Whether all last rollouts gain at least the price, as largest gains do; exchanges may have changed that."""
        if not self.whole.any():
            return True
        before = np.where(self.whole & (rollouts <= 2), 0, rollouts - 1)  # of a group's first ones the mean
        last = self.gains.next(np.maximum(before, 0))[self.learnable & (rollouts > self.low)]
        return bool(np.all(last >= price * (1.0 - _ROUNDING)))

    def _most(self, budget: int) -> float:
        """What the hull of the values could gain with all rollouts beyond the minima."""
        room = np.where(self.learnable, self.high - self.low, 0)
        units = largest_gains(hull(self.gains, self.whole), room, min(budget - int(self.low.sum()), int(room.sum())))
        single = self.whole & (units == 1)
        return self.value(self.low + units) + float(self.gains.next(self.low)[single].sum())

    def _share(self, rollouts: Ints, budget: int, left: int) -> int:
        """Raise never-visited prompts to the mean, in place, for at most the `left` rollouts; returns how many."""
        items = np.flatnonzero(self.unvisited)
        least, whole = rollouts[items], self.whole[items]
        amount = min(budget * items.size // max(len(rollouts), 1) - int(least.sum()), left)
        if amount <= 0:
            return 0
        if least.min() == least.max() and (amount >= 2 * items.size or not whole.any()):
            rollouts[items] += _even_shares(amount, items.size)
            return amount
        units = largest_gains_in_groups(
            lambda chosen, start, width: -(least[chosen, None] + start + np.arange(width, dtype=np.float64)),
            self.high - least,
            amount,
            whole,
        )
        rollouts[items] += units
        return int(units.sum())

    def _open_another(self, rollouts: Ints) -> None:
        """Place a rollout that nobody can take alone, in place: somebody gives up one, and both go where there is none.

        Whoever gives loses least, whoever gets them gains most; always-solved prompts get them last.
        """
        spare = np.flatnonzero(np.where(self.whole, rollouts > 2, rollouts > self.low))
        none = np.flatnonzero(self.whole & (rollouts == 0))
        lost, gained = self.gains.next(np.maximum(rollouts - 1, 0))[spare], self.gains.next(rollouts)[none]
        rollouts[spare[::-1][np.argmin(lost[::-1])]] -= 1
        rollouts[none[np.argmax(np.where(self.rates[none] == 1.0, -1.0, gained))]] = 2

    def _spread(self, rollouts: Ints, receivers: Mask, amount: int) -> int:
        """Add up to `amount` rollouts evenly to the receivers, in place, none above the maximum; returns the number."""
        items = np.flatnonzero(receivers)
        left = min(amount, items.size * self.high - int(rollouts[items].sum()))
        if left <= 0:
            return 0
        if (fresh := self.whole[items] & (rollouts[items] == 0)).any():
            extra = largest_gains_in_groups(
                lambda chosen, start, width: np.tile(-1.0 - start - np.arange(width), (len(chosen), 1)),
                self.high - rollouts[items],
                left,
                fresh,
            )
            rollouts[items] += extra
            return int(extra.sum())
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
    """Value(low + k + 1, p) - Value(low + k, p) = InfoGain(p) [u^(low+k) (1 - u) + v^(low+k) (1 - v)], k = 0, 1, ...

    But for a first rollout where single ones are worth nothing: it gains nothing.
    """

    def __init__(self, u: Floats, v: Floats, weight: Floats, low: Ints, smallest: int) -> None:
        self.sides, self.weight, self.low, self.smallest = (u, v) if smallest > 1 else (u,), weight, low, smallest
        self.same = int(low[0]) if len(low) and low.min() == low.max() else None

    def __call__(self, items: Ints, start: int, width: int) -> Floats:
        """As `solver.Gains`."""
        low = self.low[items] if self.same is None else self.same
        terms = self._geometric(self.sides[0][items], self.weight[items], low + start, width)
        for side in self.sides[1:]:
            terms += self._geometric(side[items], self.weight[items], low + start, width)
        if start == 0 and self.smallest > 1:
            terms[self.low[items] == 0, 0] = 0.0
        return terms

    def next(self, rollouts: Ints) -> Floats:
        """What one rollout more than these gains, shape (M,); of a group's first ones the mean."""
        if self.smallest > 1:
            rollouts = np.where(rollouts == 0, 2, rollouts)  # the third gains what the first two do on average
        return np.asarray(self.weight * sum(side**rollouts * (1.0 - side) for side in self.sides))

    @staticmethod
    def _geometric(base: Floats, weight: Floats, first: Ints | int, width: int) -> Floats:
        terms = np.empty((base.size, width))
        terms[:, 0] = weight * (1.0 - base) * base**first
        terms[:, 1:] = base[:, None]
        return np.multiply.accumulate(terms, axis=1, out=terms)


def check_budget(
    prompts: int, budget: int, min_rollouts: int | ArrayLike, max_rollouts: int, smallest: int = 1
) -> tuple[int, Ints, int]:
    """Budget, the minimum of each prompt, shape (prompts,), and the maximum, if some allocation can meet them.

    Args:
        prompts: how many.
        budget: rollouts of all.
        min_rollouts: fewest of each prompt.
        max_rollouts: most of each prompt.
        smallest: size of the smallest group (`values.smallest_group`) that a prompt gets whose minimum is 0.

    Raises:
        InvalidInputError: a bound or the budget is not an integer, or the bounds are crossed.
        InfeasibleBudgetError: the budget lies outside prompts * [min_rollouts, max_rollouts], or no groups that are
            empty or large enough add up to it.
    """
    low, high = _check_bounds(prompts, min_rollouts, max_rollouts)
    total, least = as_integer("budget", budget, at_least=0), int(low.sum())
    if total < least:
        raise InfeasibleBudgetError(
            f"budget: {_with_minimum(low)} need at least {least} rollouts, got {total}, "
            f"{least - total} too few. Raise the budget (or group_size) or lower min_rollouts."
        )
    whole = (low == 0) & (smallest > 1)
    most = _room_of_all(high, whole)
    if total > most:
        raise InfeasibleBudgetError(
            f"budget: {prompts} prompts with max_rollouts={high} take at most {most} rollouts, got {total}, "
            f"{total - most} too many. Lower the budget (or group_size) or raise max_rollouts."
        )
    if total >= 2**63:
        raise InvalidInputError(f"budget: expected a number below 2**63, got {total}.")
    if _largest_possible(total, low, high, whole) != total:
        raise InfeasibleBudgetError(
            f"budget: {_with_minimum(low)} and max_rollouts={high} cannot have {total} rollouts together, since a "
            f"prompt that may sit out gets none, or 2 and more. Make the budget one more or less"
            f"{', or raise max_rollouts' if high == 2 else ''}."
        )
    return total, low, high


def _room_of_all(high: int, whole: Mask) -> int:
    """The most rollouts that all prompts take together; none of a maximum of 1 where single ones make no group."""
    return len(whole) * high if high > 1 else int((~whole).sum()) * high


def _largest_possible(budget: int, low: Ints, high: int, whole: Mask) -> int:
    """The budget, or one rollout less where no whole groups add up to it."""
    rest = budget - int(low.sum())
    if not whole.any() or (~whole & (low < high)).any() or rest == 0:
        return budget
    return budget - 1 if rest == 1 or (high == 2 and rest % 2) else budget


def _with_minimum(low: Ints) -> str:
    """The prompts and their minimum in words."""
    least, most = (int(low.min()), int(low.max())) if len(low) else (0, 0)
    return f"{len(low)} prompts with min_rollouts={least if least == most else f'{least} to {most}'}"


def check_cost_budget(
    cost_budget: float, costs: Floats, low: Ints, high: int, budget: int | None, smallest: int = 1
) -> None:
    """See that some allocation within the bounds, of `budget` rollouts where that is given, costs no more.

    Raises:
        InfeasibleBudgetError: the cheapest one costs more than `cost_budget`.
    """
    rollouts, which = low, _with_minimum(low)
    if budget is not None:
        whole = (low == 0) & (smallest > 1)
        room = np.minimum(min(high, 2**63 - 1) - low, budget)
        rollouts = low + cheapest_groups(costs, room, budget - int(low.sum()), whole)
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


def _check_bounds(prompts: int, min_rollouts: int | ArrayLike, max_rollouts: int) -> tuple[Ints, int]:
    """The minimum of each prompt, shape (prompts,), and the maximum."""
    high = as_integer("max_rollouts", max_rollouts, at_least=1)
    if not is_ragged(min_rollouts) and np.ndim(min_rollouts) == 0:
        least = as_integer("min_rollouts", min_rollouts, at_least=0)
        if least > high:
            raise InvalidInputError(f"min_rollouts, max_rollouts: expected min <= max, got {least} and {high}.")
        min_rollouts = np.full(prompts, least)
    low = as_counts("min_rollouts", min_rollouts)
    if low.shape != (prompts,):
        raise InvalidInputError(
            f"min_rollouts: expected an integer, or one for each of the {prompts} prompts, got shape {low.shape}."
        )
    if (low > high).any():
        position = int(np.flatnonzero(low > high)[0])
        raise InvalidInputError(
            f"min_rollouts, max_rollouts: expected min <= max, got {low[position]} at position {position} and {high}."
        )
    return low, high


def _least_cost(costs: Floats, low: Ints) -> float:
    """What the minima cost."""
    if low.min() == low.max():
        return int(low[0]) * float(costs.sum())
    return float(costs @ low)


def _even_shares(total: int, count: int) -> Ints:
    """`total` in `count` parts that differ by at most one, the larger ones first."""
    share, rest = divmod(total, max(count, 1))
    return share + (np.arange(count) < rest)
