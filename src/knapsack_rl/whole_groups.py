"""The exact solve where an item gets no unit, or two and more: a single rollout is worth nothing by itself.

For GRPO and RLOO, with u = p and v = 1 - p, the value starts with V(0) = V(1) = 0, V(2) = 2c and V(3) = 3c, where
c = InfoGain(p) p (1 - p); further rollouts gain less and less. The concave hull therefore has the gains c, c, c, g4
and so on, and every number of rollouts but 1 lies on it. The same holds of expected values under a Beta belief.

The largest gains of the hull are at least what any plan can gain. They are a plan unless an item ends with a single
unit, and since ties are served in order, at most one does. Let it be i; all gains taken are at least c_i, and all
others at most. Then the best plan is the best of three:

    (a) i gets none, and the best next unit goes to an item that has some;
    (b) i gets 2, and the least last unit of an item that keeps 2 or more is given up;
    (c) i gets 3, and an item with exactly 2 gets none.

Proof. Measure every plan by what it loses against the hull at a price of c_i a unit; at that price no unit of i up to
its third loses anything. A plan that raises an item which has some loses at least what (a) does, and one that lowers an
item which keeps 2 or more at least what (b) does. Otherwise items with 2 may only fall to 0, which loses at least what
(c) does, and items with none may only rise, which leaves i with 1 or too many units in all.

(Items whose third unit gains less than the first two on average, as with other gains than values, take part in (b) and
(c) in place of i where they are better; the proof is the same.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.priced import Priced, cheapest, largest_gains_within_cost
from knapsack_rl.solver import Gains, largest_gains

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

_EQUAL = 1e-12
"""Relative difference up to which gains are equal. By as much the first two units of a group go before a third one of
the same gain, so that equal items have 2 each before one of them has 3."""
_CORE = 48  # changes of a kind that exchanges choose from, those nearest to the prices
_EXCHANGES = 16  # at most, within a cost


def largest_gains_in_groups(gains: Gains, room: Ints, budget: int, fresh: Mask) -> Ints:
    """Units per item that maximise the sum of gains, where a fresh item gets no unit, or 2 and more.

    Args:
        gains: as for `solver.largest_gains`; of a fresh item the mean of the first two must be at least the third.
        room: shape (M,), the most units that an item may get, 0 or more.
        budget: units to spend, 0 or more.
        fresh: shape (M,), which items have nothing yet. Without any, this is `solver.largest_gains`.

    Returns:
        int64, shape (M,), summing to `budget` or to what there is room for; to one unit less where no item can take the
        last one. Equal gains go to the earlier item.

    Cost: that of `solver.largest_gains`, and O(M) for each different number of units where a single one is left.
    """
    room = np.where(fresh & (room < 2), 0, room)
    budget = min(budget, int(room.sum()))
    if not fresh.any():
        return largest_gains(gains, room, budget)
    falling = hull(gains, fresh)
    units = largest_gains(falling, room, budget)
    alone = np.flatnonzero(fresh & (units == 1))
    if not alone.size:
        return units
    return _Exchange(falling, np.zeros(len(room)), room, fresh, np.zeros(len(room))).paired(units, alone, np.inf)[0]


def largest_gains_in_groups_within_cost(
    gains: Gains, costs: Floats, room: Ints, cost_budget: float, budget: int | None, fresh: Mask
) -> Priced:
    """As `largest_gains_in_groups` for at most `cost_budget`; arguments as `priced.largest_gains_within_cost`.

    Returns:
        Units, and what the hull, which gains at least as much, proves to be missing. Where `budget` is given and no
        exchange makes groups whole within the cost, the units are the cheapest, and cost more if they have to.

    Cost: that of `largest_gains_within_cost`, and O(M) for each different number of units.
    """
    if not fresh.any():
        return largest_gains_within_cost(gains, costs, room, cost_budget, budget)
    room = np.where(fresh & (room < 2), 0, room)
    falling = hull(gains, fresh)
    solved = largest_gains_within_cost(falling, costs, room, cost_budget, budget)
    units, slack = solved.units.copy(), cost_budget - float(costs @ solved.units)
    alone = np.flatnonzero(fresh & (units == 1))
    if not alone.size:
        return solved
    exchange = _Exchange(falling, costs, room, fresh, solved.per_cost * costs + solved.per_rollout)
    if budget is None:
        units[alone] = 0
        units = exchange.improved(units, slack + float(costs[alone].sum()), missing=None)[0]
    else:
        units, slack = exchange.paired(units, alone[np.argsort(costs[alone], kind="stable")], slack)
        if int(units.sum()) == budget:
            units = exchange.improved(units, slack, missing=0)[0]
        else:
            units = cheapest_groups(costs, room, budget, fresh)
    lost = _gained(falling, solved.units, units)
    at_prices = max(solved.missing_at_prices + lost, 0.0)
    return solved._replace(units=units, missing=max(solved.missing + lost, 0.0), missing_at_prices=at_prices)


def _gained(gains: Gains, units: Ints, others: Ints) -> float:
    """How much more these units gain than the others."""
    items = np.flatnonzero(units != others)
    width = int(max(units[items].max(initial=0), others[items].max(initial=0)))
    if not width:
        return 0.0
    total = np.concatenate([np.zeros((len(items), 1)), gains(items, 0, width).cumsum(axis=1)], axis=1)
    which = np.arange(len(items))
    return float((total[which, units[items]] - total[which, others[items]]).sum())


def cheapest_groups(costs: Floats, room: Ints, budget: int, fresh: Mask) -> Ints:
    """The `budget` units that cost least, where a fresh item gets no unit, or 2 and more."""
    if not fresh.any():
        return cheapest(costs, room, budget)
    return largest_gains_in_groups(
        lambda items, start, width: np.repeat(-costs[items, None], width, axis=1), room, budget, fresh
    )


def hull(gains: Gains, fresh: Mask) -> Gains:
    """The gains, with the mean of the first two in place of each where an item is fresh."""

    def falling(items: Ints, start: int, width: int) -> Floats:
        table = gains(items, start, width)
        rows = np.flatnonzero(fresh[items])
        if start > 1 or not rows.size:
            return table
        first = table[rows, :3] if start == 0 and width >= 3 else gains(items[rows], 0, 3)
        each = np.maximum(first[:, :2].mean(axis=1), first[:, 2])  # rounding must not put the third above
        table = table if table.flags.owndata else table.copy()
        table[rows, : 2 - start] = (each + _EQUAL * np.abs(each))[:, None]
        return table

    return falling


class _Changes(NamedTuple):
    """Units that items may give up or get: the item, how many of it, what they gain and what they cost.

    The first stands for none.
    """

    item: Ints
    size: Ints
    gain: Floats
    cost: Floats


class _Exchange:
    """Changes of whole groups: a last unit or a pair against a next unit, a pair or three units of another item."""

    def __init__(self, falling: Gains, costs: Floats, room: Ints, fresh: Mask, prices: Floats) -> None:
        self._falling, self._costs, self._room, self._fresh, self._prices = falling, costs, room, fresh, prices
        self._pair, self._three, self._last, self._next = np.zeros((4, len(room)))
        groups = np.flatnonzero(fresh & (room >= 2))
        first = falling(groups, 0, 3)
        self._pair[groups], self._three[groups] = first[:, :2].sum(axis=1), first.sum(axis=1)

    def paired(self, units: Ints, alone: Ints, slack: float) -> tuple[Ints, float]:
        """The units with none alone, and the slack: the first half of those get 2, the others none.

        With an odd one, the best of (a), (b) and (c) above; where none of these is possible, a unit is missing.
        """
        first, others = alone[: len(alone) // 2], alone[len(alone) // 2 :]
        slack += float(self._costs[others].sum() - self._costs[first].sum())
        units[first], units[others] = 2, 0
        return self.improved(units, slack, missing=1, most=1) if len(alone) % 2 else (units, slack)

    def improved(self, units: Ints, slack: float, missing: int | None, most: int = _EXCHANGES) -> tuple[Ints, float]:
        """The units after the best exchanges within the slack, and what remains of that.

        `missing` is how many units they should be more than they are; None if their number is free.
        """
        changed = np.flatnonzero(self._room)
        for _ in range(most):
            self._look(units, changed)
            out, come = self._out(units), self._come(units)
            more = come.gain - out.gain[:, None]
            possible = (come.cost - out.cost[:, None] <= slack) & (come.item != out.item[:, None])
            if missing is not None:
                possible &= come.size - out.size[:, None] == missing
            more[~possible] = -np.inf
            best = float(more.max())
            if best == -np.inf:
                break
            equal = more >= best - 10.0 * _EQUAL * abs(best)
            gives, gets = np.unravel_index(int(equal.argmax()), more.shape)
            if not missing and best <= _EQUAL * come.gain[gets]:
                break
            for change, index, sign in ((out, gives, -1), (come, gets, 1)):
                if change.size[index]:
                    units[change.item[index]] += sign * change.size[index]
            slack -= float(come.cost[gets] - out.cost[gives])
            missing = None if missing is None else 0
            changed = np.array([item for item in (out.item[gives], come.item[gets]) if item >= 0])
        return units, slack

    def _look(self, units: Ints, items: Ints) -> None:
        """See what the last and the next unit of these items gain."""
        for count in np.unique(units[items]).tolist():
            those = items[units[items] == count]
            table = self._falling(those, max(count - 1, 0), 2)
            self._last[those], self._next[those] = table[:, 0], table[:, 1 if count else 0]

    def _out(self, units: Ints) -> _Changes:
        spare = np.where(self._fresh, units > 2, units > 0)
        return self._changes(-1, (1, spare, self._last), (2, self._fresh & (units == 2), self._pair))

    def _come(self, units: Ints) -> _Changes:
        begun, new = ~self._fresh | (units > 0), self._fresh & (units == 0)
        return self._changes(
            1,
            (1, begun & (units < self._room), self._next),
            (2, new & (self._room >= 2), self._pair),
            (3, new & (self._room >= 3), self._three),
        )

    def _changes(self, sign: int, *kinds: tuple[int, Mask, Floats]) -> _Changes:
        """Of each kind (size, which items, gain of each) those nearest to the prices, and none before them."""
        items, sizes, gains = [np.array([-1])], [0], [np.zeros(1)]
        for size, which, gain in kinds:
            those = np.flatnonzero(which)[::sign]  # of equal ones the earlier gets, and the later gives
            profit = sign * (gain[those] - size * self._prices[those])
            if len(those) > _CORE:
                those = those[np.argsort(-profit, kind="stable")[:_CORE]]
            items.append(those)
            sizes += [size] * len(those)
            gains.append(gain[those])
        who, many = np.concatenate(items), np.array(sizes)
        return _Changes(who, many, np.concatenate(gains), np.where(who < 0, 0.0, many * self._costs[who]))
