"""The solve with prices: the largest gains under a budget of cost, and under one of rollouts at the same time.

Lagrange's relaxation puts a price on what is scarce: `per_cost` on a unit of cost, `per_rollout` on a rollout. At given
prices every unit is bought that gains more than it costs,

    gain > per_cost * cost + per_rollout

and for all prices that are not negative (that of an exact number of rollouts may be),

    bound = sum of max(gain - per_cost * cost - per_rollout, 0) + per_cost * cost budget + per_rollout * budget

is at least what any plan can gain (Everett, 1963; Fisher, 1981). Since gains fall, a plan at the best prices misses the
bound by no more than what a unit or two gain. Exchanges of units near the prices make it less.

Prices come from a sample first (every eighth prompt, whose prices come from every eighth of those). Only units whose
gain is close to these prices are looked at one by one; the others are bought or left unseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.errors import InfeasibleBudgetError
from knapsack_rl.solver import Gains

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SAMPLED = 8  # of so many prompts one is in the sample
_SMALL = 40  # prompts up to which all units are looked at
_ROWS = 4096  # prompts whose gains are computed together, so that they stay in the processor's cache
_COLUMNS = 16  # units shown of each in the first round
_WIDTH = 2.0  # how far prices may be from those of a sample, in 1 / sqrt(items of the sample), relatively
_FARTHEST = 1e3  # relative distance from the sample's prices beyond which all units are looked at
_STEP = 1.2  # ratio of the first prices tried to those of the sample
_PRICES = 60  # tried at most; a dozen are enough
_CORE = (
    256,
    32,
    16,
)  # bought and other units, the nearest to the prices, exchanged one by one, in pairs, and in threes
_EXCHANGES = 8  # at most
_ENOUGH = 1e-4  # of the bound: what may be missing
_ROUNDING = 1e-13  # relative difference of two values up to which they count as equal
_ROUGHLY = 0.03  # the same in a sample, divided by its items


class Priced(NamedTuple):
    """What a solve found.

    Attributes:
        units: int64, shape (M,).
        bound: no choice of units within these budgets gains more.
        per_cost: the price of a unit of cost, 0 or more; 0 where the cost is no limit.
        per_rollout: the price of a rollout; 0 where their number is free.
    """

    units: Ints
    bound: float
    per_cost: float
    per_rollout: float


def largest_gains_within_cost(
    gains: Gains, costs: Floats, room: Ints, cost_budget: float, budget: int | None = None
) -> Priced:
    """Units that gain most for at most `cost_budget` in all, exactly `budget` of them where that is given.

    Args:
        gains: the marginal gains, non-increasing within every item, as for `solver.largest_gains`.
        costs: shape (M,), of one unit of each item, above 0.
        room: shape (M,), the most units that an item may get.
        cost_budget: what all may cost; enough for the `cheapest` units where `budget` is given.
        budget: units to spend, between 0 and `room.sum()`. None for as many as pay; units without a gain are not
            bought then.

    Returns:
        The units, and a bound that shows how near to the optimum they are.

    Cost: O(M + units) time and memory where the sample's prices are near; more where it misleads, up to O(room.sum()).
    """
    problem = _Problem(gains, costs, room, cost_budget, budget)
    near, choice = problem.solved()
    bound = problem.bound(near, choice)
    slack = cost_budget - float(costs @ near.sure) - float(near.cost[choice.bought].sum())
    missing = bound - near.worth - float(near.gain[choice.bought].sum())
    bought = _exchanged(near, choice, budget is None, slack, missing, _ENOUGH * abs(bound))
    units = near.sure + np.bincount(near.owner[bought], minlength=len(room))
    return Priced(units, bound, choice.per_cost, choice.per_rollout)


def cheapest(costs: Floats, room: Ints, budget: int, order: Ints | None = None) -> Ints:
    """The `budget` units that cost least, shape (M,); equal costs go to the earlier item.

    O(M log M), or O(M) with the `order` of the costs.
    """
    order = np.argsort(costs, kind="stable") if order is None else order
    units = np.empty_like(room)
    units[order] = _first(room[order], budget)
    return units


def _first(room: Ints, budget: int) -> Ints:
    """The first `budget` units in order of position."""
    return np.asarray(np.clip(budget - np.cumsum(room) + room, 0, room), dtype=np.int64)


def _extremes(costs: Floats, room: Ints, budget: int) -> tuple[float, float]:
    """What `budget` units cost at the least and at the most."""
    order = np.argsort(costs)
    costs, room = costs[order], room[order]
    return float(costs @ _first(room, budget)), float(costs[::-1] @ _first(room[::-1], budget))


class _Near(NamedTuple):
    """Units whose gain is near the prices: gain, cost and item of each. Those above are `sure`, and gain `worth`."""

    sure: Ints
    worth: float
    gain: Floats
    cost: Floats
    owner: Ints


class _Choice(NamedTuple):
    """Which of the near units are bought, as a mask, and the prices at which they are."""

    bought: NDArray[np.bool_]
    per_cost: float
    per_rollout: float


_NONE = _Choice(np.zeros(0, dtype=bool), 0.0, 0.0)


@dataclass(frozen=True)
class _Problem:
    """The arguments of `largest_gains_within_cost`."""

    gains: Gains
    costs: Floats
    room: Ints
    cost_budget: float
    budget: int | None
    tolerance: float = _ROUNDING

    def solved(self) -> tuple[_Near, _Choice]:
        """The best prices and the units near them: near the sample's prices, or farther away until they are found."""
        lowest = np.full(len(self.room), 0.0 if self.budget is None else -np.inf)
        highest = np.full(len(self.room), np.inf)
        sample = self.sample() if len(self.room) > _SMALL else None
        guess, width = _NONE, _FARTHEST
        if sample is not None:
            guess, width = sample.solved()[1], _WIDTH / np.sqrt(len(sample.room))
        while width < _FARTHEST:
            price = guess.per_cost * self.costs + guess.per_rollout
            reach = width * (guess.per_cost * self.costs + abs(guess.per_rollout))
            low, high = np.maximum(price - reach, lowest), price + reach
            near = self.near(low, high)
            choice = self.choice(near, guess.per_cost)
            if choice is not None:
                paid = choice.per_cost * self.costs + choice.per_rollout
                if np.all((low <= paid) & (paid <= high)):
                    return near, choice
                guess = choice if paid.any() else guess
            width *= 2.0
        near = self.near(lowest, highest)
        choice = self.choice(near, guess.per_cost)
        if choice is None:
            raise InfeasibleBudgetError("cost_budget: expected enough for the cheapest units.")
        return near, choice

    def sample(self) -> _Problem:
        """Every eighth item, with budgets that are as tight for it as those of all are."""
        some = np.arange(0, len(self.room), _SAMPLED)
        costs, room = self.costs[some], self.room[some]
        if self.budget is None:
            return _Problem(self._of(some), costs, room, self.cost_budget * costs.sum() / self.costs.sum(), None)
        budget = round(self.budget * (room.sum() / max(self.room.sum(), 1)))
        least, most = _extremes(self.costs, self.room, self.budget)
        tight = (self.cost_budget - least) / (most - least) if most > least else 1.0
        least, most = _extremes(costs, room, budget)
        enough = (1.0 + 1e-9) * least + max(tight, 0.0) * (most - least)
        return _Problem(self._of(some), costs, room, enough, budget, _ROUGHLY / len(some))

    def _of(self, some: Ints) -> Gains:
        return lambda items, start, width: self.gains(some[items], start, width)

    def near(self, low: Floats, high: Floats) -> _Near:
        """The units that gain more than `low` and less than `high`, each of shape (M,); those above are sure."""
        sure, worth = np.zeros_like(self.room), 0.0
        gain, owner = [np.empty(0)], [np.empty(0, dtype=np.int64)]
        for first in range(0, len(self.room), _ROWS):
            items = first + np.flatnonzero(self.room[first : first + _ROWS])
            shown, width = 0, min(_COLUMNS, int(self.room.max()))
            while items.size:
                table = self.gains(items, shown, width)
                exists = np.arange(shown, shown + width) < self.room[items, None]
                above = exists & (table >= high[items, None])
                between = exists & ~above & (table > low[items, None])
                sure[items] += above.sum(axis=1)
                worth += float(table[above].sum())
                gain.append(table[between])
                owner.append(np.repeat(items, between.sum(axis=1)))
                shown += width
                items = items[(table[:, -1] > low[items]) & (self.room[items] > shown)]
                width = min(shown, int(self.room[items].max(initial=0)) - shown)
        owners = np.concatenate(owner)
        return _Near(sure, worth, np.concatenate(gain), self.costs[owners], owners)

    def choice(self, near: _Near, guess: float) -> _Choice | None:
        """What to buy of the near units with what the sure ones leave; None where the prices are elsewhere."""
        left = self.cost_budget - float(self.costs @ near.sure)
        if self.budget is None:
            return _as_many_as_pay(near, left)
        return _exactly(near, self.budget - int(near.sure.sum()), left, guess, self.tolerance)

    def bound(self, near: _Near, choice: _Choice) -> float:
        """The value of the Lagrangian dual at these prices."""
        paid = choice.per_cost * near.cost + choice.per_rollout
        left = self.cost_budget - float(self.costs @ near.sure)
        rollouts = (self.budget or 0) - int(near.sure.sum())
        profit = float(np.maximum(near.gain - paid, 0.0).sum())
        return near.worth + profit + choice.per_cost * left + choice.per_rollout * rollouts


def _as_many_as_pay(near: _Near, left: float) -> _Choice | None:
    """The units that gain most for their cost, up to the first that does not fit; its ratio is the price."""
    ratio = near.gain / near.cost
    order = np.argsort(-ratio, kind="stable")
    fitting = int(np.searchsorted(np.cumsum(near.cost[order]), left, side="right"))
    if left < 0.0:
        return None
    bought = np.zeros(len(order), dtype=bool)
    bought[order[:fitting]] = True
    return _Choice(bought, float(ratio[order[fitting]]) if fitting < len(order) else 0.0, 0.0)


class _Plan(NamedTuple):
    """Which units have the largest gain - per_cost * cost, their gain and cost, and the least such difference."""

    units: Ints
    gain: float
    cost: float
    edge: float


def _exactly(near: _Near, count: int, left: float, guess: float, tolerance: float) -> _Choice | None:
    """`count` units for at most `left`, and the price of a unit of cost that makes the bound least.

    Two plans enclose that price, a dear one and a cheap one. The price at which both are equally good asks for the next
    plan, until there is none better (Handler and Zang, 1980). A mixture of the last two then costs what it may.
    """
    if not 0 <= count <= len(near.gain):
        return None

    def best(per_cost: float) -> _Plan:
        net = near.gain - per_cost * near.cost if per_cost < np.inf else -near.cost
        first = len(net) - count
        units = np.argpartition(net, first)[first:] if 0 < first < len(net) else np.arange(count)
        edge = net[units].min() if count else net.max(initial=0.0)
        return _Plan(units, float(near.gain[units].sum()), float(near.cost[units].sum()), float(edge))

    dear = cheap = best(guess / _STEP)  # close to the guess first: from there it takes fewer steps
    if dear.cost <= left:
        dear = best(0.0)
        if dear.cost <= left:
            return _Choice(_mask(near, dear.units), 0.0, dear.edge)
    else:
        cheap = best(guess * _STEP)
        if cheap.cost > left:
            dear, cheap = cheap, best(np.inf)
            if cheap.cost > left:
                return None
    for _ in range(_PRICES):
        price = (dear.gain - cheap.gain) / (dear.cost - cheap.cost)
        plan = best(price)
        equal = tolerance * (abs(dear.gain) + price * dear.cost)
        if plan.gain - price * plan.cost <= dear.gain - price * dear.cost + equal:
            break
        dear, cheap = (plan, cheap) if plan.cost > left else (dear, plan)
    bought = _mixture(near, _mask(near, cheap.units), _mask(near, dear.units), left - cheap.cost)
    return _Choice(bought, price, plan.edge)


def _mask(near: _Near, units: Ints) -> NDArray[np.bool_]:
    mask = np.zeros(len(near.gain), dtype=bool)
    mask[units] = True
    return mask


def _mixture(near: _Near, cheap: NDArray[np.bool_], dear: NDArray[np.bool_], slack: float) -> NDArray[np.bool_]:
    """The cheap plan with as many of its units replaced by those of the dear one as the slack pays for."""
    gone, come = np.flatnonzero(cheap & ~dear), np.flatnonzero(dear & ~cheap)
    gone, come = (units[np.argsort(near.cost[units], kind="stable")] for units in (gone, come))
    fitting = np.flatnonzero(np.cumsum(near.cost[come] - near.cost[gone]) <= slack)
    replaced = int(fitting[-1]) + 1 if fitting.size else 0
    bought = cheap.copy()
    bought[gone[:replaced]], bought[come[:replaced]] = False, True
    return bought


def _exchanged(near: _Near, choice: _Choice, free: bool, slack: float, missing: float, enough: float) -> Ints:
    """The units bought after exchanges that raise the value most, each within the slack, until `enough` is missing.

    An exchange gives up to three bought units for as many others, or for fewer or more where their number is free.
    """
    nothing = len(near.gain)
    gain, cost, bought = np.append(near.gain, 0.0), np.append(near.cost, 0.0), np.append(choice.bought, False)
    loss = np.abs(near.gain - choice.per_cost * near.cost - choice.per_rollout)
    sides = np.flatnonzero(choice.bought), np.flatnonzero(~choice.bought)
    core = np.concatenate([side[np.argsort(loss[side], kind="stable")[: _CORE[0]]] for side in sides])
    core = core[np.argsort(loss[core], kind="stable")]
    for _ in range(_EXCHANGES):
        if missing <= enough:
            break
        ours, others = (np.append(core[side], nothing) for side in (bought[core], ~bought[core]))
        best, out, come = 0.0, ours[:0], others[:0]
        for sizes in ((0, 1, 2, 3),) if free else ((1,), (2,), (3,)):
            ours_in, others_in = ours[_subsets(len(ours) - 1, sizes)], others[_subsets(len(others) - 1, sizes)]
            if len(ours_in) and len(others_in):
                more, i, j = _best_exchange(gain, cost, ours_in, others_in, slack)
                if more > best:
                    best, out, come = more, ours_in[i], others_in[j]
        if best <= 0.0:
            break
        slack -= float(cost[come].sum() - cost[out].sum())
        missing -= best
        bought[out], bought[come] = False, True
    return np.flatnonzero(bought[:-1])


def _best_exchange(gain: Floats, cost: Floats, ours: Ints, others: Ints, slack: float) -> tuple[float, int, int]:
    """What one of `ours`, given for one of `others`, gains at most within the slack, and which; rows are groups."""
    given, freed = gain[ours].sum(axis=1), cost[ours].sum(axis=1) + slack
    order = np.argsort(freed, kind="stable")
    least = np.append(np.minimum.accumulate(given[order][::-1])[::-1], np.inf)  # of those that free as much or more
    first = np.searchsorted(freed[order], cost[others].sum(axis=1))
    more = gain[others].sum(axis=1) - least[first]
    come = int(more.argmax())
    enough = order[first[come] :]
    return float(more[come]), int(enough[given[enough].argmin()]) if len(enough) else 0, come


@lru_cache(maxsize=256)
def _subsets(count: int, sizes: tuple[int, ...]) -> Ints:
    """Subsets of these sizes of the first units of `count`, a row each; `count` stands for nothing."""
    rows = [
        (*chosen, *[count] * (max(sizes) - size))
        for size in sizes
        for chosen in combinations(range(min(count, _CORE[max(size - 1, 0)])), size)
    ]
    return np.array(rows, dtype=np.int64).reshape(len(rows), max(sizes))
