"""The solve with prices: the largest gains under a budget of cost, and under one of rollouts at the same time.

Lagrange's relaxation puts a price on what is scarce: `per_cost` on a unit of cost, `per_rollout` on a rollout. At given
prices every unit is bought that gains more than it costs,

    gain > per_cost * cost + per_rollout

and for all prices that are not negative (that of an exact number of rollouts may be),

    bound = sum of max(gain - per_cost * cost - per_rollout, 0) + per_cost * cost budget + per_rollout * budget

is at least what any plan can gain (Everett, 1963; Fisher, 1981). Since gains fall, a plan at the best prices misses the
bound by no more than what a unit or two gain. Where that is too much, a search near the prices looks for a better plan,
and lowers the bound by what it has seen to be out of reach.

Prices come from a sample first (every eighth prompt, whose prices come from every eighth of those). Only units whose
gain is close to these prices are looked at one by one; the others are bought or left unseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.errors import InfeasibleBudgetError
from knapsack_rl.solver import Gains

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

_SAMPLED = 8  # of so many prompts one is in the sample
_SMALL = 40  # prompts up to which all units are looked at
_ROWS = 4096  # prompts whose gains are computed together, so that they stay in the processor's cache
_COLUMNS = 16  # units shown of each in the first round
_WIDTH = 10.0  # how far prices may be from those of a sample, in 1 / sqrt(items of the sample), relatively
_WIDEST = 0.35  # of the first guess
_FARTHEST = 1e3  # relative distance from the sample's prices beyond which all units are looked at
_STEP = 1.2  # ratio of the first prices tried to those of the sample
_PRICES = 60  # tried at most; a dozen are enough
_TURNED = 400  # units that the search may turn over
_STATES = 1000  # that it keeps
_EXCHANGES = 16  # after it, at most
_NEVER = 1e200  # loss of a unit that there is not; infinity times nothing is no number
_GOLDEN = 0.6180339887498949  # multiples of it are spread evenly between the integers
_ENOUGH = 5e-4  # of the bound: what may be missing
_ROUNDING = 1e-13  # relative difference of two values up to which they count as equal
_ROUGHLY = 0.03  # the same in a sample, divided by its items


class Priced(NamedTuple):
    """What a solve found.

    Attributes:
        units: int64, shape (M,).
        missing: no choice of units within these budgets gains more than these do by more than this.
        missing_at_prices: the same as the prices alone prove it; it stays true, at these prices, of other budgets.
        per_cost: the price of a unit of cost, 0 or more; 0 where the cost is no limit.
        per_rollout: the price of a rollout; 0 where their number is free.
    """

    units: Ints
    missing: float
    missing_at_prices: float
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
        The units, and how near to the optimum they are at the least.

    Cost: O(M + units) time and memory where the sample's prices are near; more where it misleads, up to O(room.sum()).
        Where more than `_ENOUGH` is missing, up to `_TURNED` steps of the search, each O(`_STATES` log `_STATES`).
    """
    problem = _Problem(gains, costs, room, cost_budget, budget)
    near, choice = problem.solved()
    bound = problem.bound(near, choice)
    missing, enough = bound - near.gained(choice.bought), _ENOUGH * abs(bound)
    if missing > enough:
        # A plan with a unit turned over that is farther from the prices than this is worse than the one at hand.
        paid = choice.per_cost * costs + choice.per_rollout
        low = paid - missing if budget is not None else np.maximum(paid - missing, 0.0)
        units = near.units(choice.bought)
        wider = problem.near(low, paid + missing)
        first = wider.first(units)
        if np.array_equal(wider.units(first), units):  # gains that rounding puts beyond these cannot be searched
            slack = cost_budget - float(costs @ units)
            turned = choice._replace(bought=first)
            bought, missing = _searched(wider, turned, budget is None, slack, bound - wider.gained(first), enough)
            if budget is not None and missing > enough:
                lowest = wider.gained(bought) + missing
                bought = _exchanged(wider, bought, cost_budget - float(costs @ wider.units(bought)))
                missing = lowest - wider.gained(bought)
            near, choice = wider, choice._replace(bought=bought)
    gained = near.gained(choice.bought)
    at_prices = bound - gained
    if budget is None and missing > enough:
        missing = min(missing, problem.bound_of_number() - gained)
    missing = max(min(missing, at_prices), 0.0)
    return Priced(near.units(choice.bought), missing, max(at_prices, missing), choice.per_cost, choice.per_rollout)


def _affordable(costs: Floats, room: Ints, cost_budget: float) -> int:
    """How many of the cheapest units `cost_budget` pays for."""
    order = np.argsort(costs)
    costs, room = costs[order], room[order]
    before = np.append(0.0, np.cumsum(costs * room))
    full = int(np.searchsorted(before, cost_budget, side="right")) - 1
    if full == len(costs):
        return int(room.sum())
    return int(room[:full].sum()) + int((cost_budget - before[full]) / costs[full] + 1e-9)


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


def _extremes(costs: Floats, room: Ints, budget: int) -> tuple[float, float, float]:
    """What `budget` units cost at the least, in equal shares of the room, and at the most."""
    order = np.argsort(costs)
    even = budget * float(costs @ room) / max(int(room.sum()), 1)
    costs, room = costs[order], room[order]
    return float(costs @ _first(room, budget)), even, float(costs[::-1] @ _first(room[::-1], budget))


class _Near(NamedTuple):
    """Units whose gain is near the prices: gain, cost and item of each. Those above are `sure`, and gain `worth`."""

    sure: Ints
    worth: float
    gain: Floats
    cost: Floats
    owner: Ints

    def units(self, bought: Mask) -> Ints:
        """Units per item, the sure ones and these."""
        return self.sure + np.bincount(self.owner[bought], minlength=len(self.sure))

    def gained(self, bought: Mask) -> float:
        """What the sure ones and these gain."""
        return self.worth + float(self.gain[bought].sum())

    def first(self, units: Ints) -> Mask:
        """The units near the prices among the first so many of each item, of which they are none, some, or all."""
        order = np.argsort(self.owner, kind="stable")
        in_order = self.owner[order]
        number = np.arange(len(order)) - np.searchsorted(in_order, in_order)
        first = np.empty(len(order), dtype=bool)
        first[order] = number < (units - self.sure)[in_order]
        return first


class _Choice(NamedTuple):
    """Which of the near units are bought, as a mask, and the prices at which they are."""

    bought: Mask
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
            guess, width = sample.solved()[1], min(_WIDTH / np.sqrt(len(sample.room)), _WIDEST)
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
            width *= (
                2.0 if choice is None else 1.3
            )  # nearer prices may do with the same width, but might go in a circle
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
        least, even, most = _extremes(costs, room, budget)
        enough = np.interp(self.cost_budget, _extremes(self.costs, self.room, self.budget), (least, even, most))
        return _Problem(self._of(some), costs, room, (1.0 + 1e-9) * float(enough), budget, _ROUGHLY / len(some))

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

    def bound_of_number(self) -> float:
        """A bound from the most units that the cost budget could pay for; infinite where one without them is lower.

        Where costs are nearly equal, it is their number that keeps a slack from being spent.
        """
        most = _affordable(self.costs, self.room, self.cost_budget)
        problem = _Problem(self.gains, self.costs, self.room, self.cost_budget * (1 + 1e-9), most)
        near, choice = problem.solved()
        return problem.bound(near, choice) if choice.per_rollout >= 0.0 else np.inf

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


def _mask(near: _Near, units: Ints) -> Mask:
    mask = np.zeros(len(near.gain), dtype=bool)
    mask[units] = True
    return mask


def _mixture(near: _Near, cheap: Mask, dear: Mask, slack: float) -> Mask:
    """The cheap plan with as many of its units replaced by those of the dear one as the slack pays for."""
    gone, come = np.flatnonzero(cheap & ~dear), np.flatnonzero(dear & ~cheap)
    gone, come = (units[np.argsort(near.cost[units], kind="stable")] for units in (gone, come))
    fitting = np.flatnonzero(np.cumsum(near.cost[come] - near.cost[gone]) <= slack)
    replaced = int(fitting[-1]) + 1 if fitting.size else 0
    bought = cheap.copy()
    bought[gone[:replaced]], bought[come[:replaced]] = False, True
    return bought


class _Turns(NamedTuple):
    """Units that may be turned over (given up if bought, bought if not), in the order in which the search tries them.

    Attributes:
        unit: which they are.
        gain: what each gains more when it is turned over; negative for one given up. So are `cost` and `number`.
        cost: what it costs more.
        number: 1 or -1.
        loss: how far its gain is from the prices.
    """

    unit: Ints
    gain: Floats
    cost: Floats
    number: Ints
    loss: Floats

    @staticmethod
    def near(near: _Near, choice: _Choice, most: float) -> _Turns:
        """Those whose loss is below `most`, by turns one to give up and one to buy, those nearest in price first.

        Where many are equally near, cheap and dear ones follow on each other, so that many sums of costs come soon.
        """
        loss = np.abs(near.gain - choice.per_cost * near.cost - choice.per_rollout)
        units = np.flatnonzero(loss < most)
        scattered = np.empty(len(units))
        scattered[np.argsort(near.cost[units], kind="stable")] = np.arange(len(units)) * _GOLDEN % 1.0
        far = np.round(loss[units] / near.cost[units] / (choice.per_cost or 1.0), 9)
        units = units[np.lexsort((scattered, far))]
        bought = choice.bought[units]
        rank = np.where(bought, np.cumsum(bought), np.cumsum(~bought))
        units = units[np.argsort(rank, kind="stable")]
        sign = np.where(choice.bought[units], -1, 1)
        return _Turns(units, sign * near.gain[units], sign * near.cost[units], sign, loss[units])


class _States(NamedTuple):
    """Plans that the search has on its hands, an entry each: gain, cost and number of units beyond those of the first.

    `origin` is the position of the plan that each was made of among those of the step before, plus their number where
    the unit of the step was turned over.
    """

    gain: Floats
    cost: Floats
    number: Ints
    origin: Ints

    def of(self, which: Ints | Mask) -> _States:
        """Some of them."""
        return _States(self.gain[which], self.cost[which], self.number[which], self.origin[which])

    def doubled(self, turns: _Turns, step: int) -> _States:
        """All of them as they are, then all of them with one unit turned over."""
        return _States(
            np.concatenate((self.gain, self.gain + turns.gain[step])),
            np.concatenate((self.cost, self.cost + turns.cost[step])),
            np.concatenate((self.number, self.number + turns.number[step])),
            np.arange(2 * len(self.gain)),
        )

    def undominated(self, free: bool) -> _States:
        """Without those that cost as much or more than another (of as many rollouts), and gain less or the same."""
        number = np.zeros_like(self.number) if free else self.number
        states = self.of(np.lexsort((-self.gain, self.cost, number)))
        level = states.gain - states.gain.min()
        if not free:  # those of every further number stand above all of the one before
            further = np.diff(states.number, prepend=states.number[0]) > 0
            level += np.cumsum(further) * 1.5 * (float(np.ptp(level)) or 1.0)
        best = np.maximum.accumulate(level)
        return states.of(np.append(True, level[1:] > best[:-1]))


class _Outlook(NamedTuple):
    """What the units that are still to be turned over, from each step on, lose at least; shape (units + 1,).

    Attributes:
        buying: the least loss of one that would be bought.
        giving: the same of one that would be given up.
        spending: the least loss for a unit of cost more, which is no more than the price of leaving it unspent.
        saving: the least loss for a unit of cost less.
    """

    buying: Floats
    giving: Floats
    spending: Floats
    saving: Floats

    @staticmethod
    def of(turns: _Turns, per_cost: float) -> _Outlook:
        """That of all steps."""

        def least(losses: Floats, which: Mask) -> Floats:
            after = np.append(np.where(which, losses, _NEVER), _NEVER)
            return np.minimum.accumulate(after[::-1])[::-1]

        buy, give, ratio = turns.number > 0, turns.number < 0, turns.loss / np.abs(turns.cost)
        spending = np.minimum(least(ratio, buy), per_cost)
        return _Outlook(least(turns.loss, buy), least(turns.loss, give), spending, least(ratio, give))

    def lost(self, states: _States, choice: _Choice, slack: float, free: bool, step: int) -> Floats:
        """What every plan that can still be made of a state gains less than the bound, at least; shape (states,)."""
        lost = choice.per_cost * states.cost + choice.per_rollout * states.number - states.gain
        over = states.cost - slack
        more = np.where(over > 0.0, over * self.saving[step], -over * self.spending[step])
        more = np.maximum(more, min(self.buying[step], self.giving[step]))  # plans without another unit are known
        if not free:
            short = np.where(states.number > 0, self.giving[step], self.buying[step])
            more = np.maximum(more, np.abs(states.number) * short)
        return np.asarray(lost + more)


def _searched(
    near: _Near, choice: _Choice, free: bool, slack: float, missing: float, enough: float
) -> tuple[Mask, float]:
    """The units bought in the best plan that the search finds, and what is missing from it at most.

    A dynamic programme over the units nearest to the prices, in the way of Pisinger's minimal algorithm (1997). What a
    plan gains less than the bound is the losses of the units turned over and the price of the slack that it leaves. So
    a state that loses as much as is missing from the best plan, but for `enough`, is of no use. Of too many states some
    are dropped. By the least loss among all that was dropped or never tried the bound can be lowered.
    """
    turns = _Turns.near(near, choice, missing - enough)
    outlook = _Outlook.of(turns, choice.per_cost)
    start = np.zeros(1, dtype=np.int64)
    states, lost = _States(np.zeros(1), np.zeros(1), start, start), np.zeros(min(len(turns.unit), 1))
    best, chosen, least, origins = 0.0, start[:0], missing - enough, list[tuple[int, Ints]]()
    for step in range(min(len(turns.unit), _TURNED)):
        before = len(states.gain)
        states = states.doubled(turns, step)
        gained = np.where((states.cost <= slack) & (free | (states.number == 0)), states.gain, -np.inf)
        position = int(gained.argmax())
        if gained[position] > best:
            best, chosen = float(gained[position]), _turned([*origins, (before, states.origin)], position)
            if missing - best <= enough:
                break
        states = states.undominated(free)
        lost = outlook.lost(states, choice, slack, free, step + 1)
        kept, dropped = _kept(lost, missing - best - enough)
        states, lost, least = states.of(kept), lost[kept], min(least, dropped)
        origins.append((before, states.origin))
        if not len(lost):
            break
    bought = choice.bought.copy()
    bought[turns.unit[chosen]] ^= True
    elsewhere = missing - choice.per_cost * slack  # but for rounding nothing is missing besides the price of the slack
    lower = min(least, missing - best, float(lost.min(initial=_NEVER))) - max(elsewhere, 0.0)
    return bought, missing - best - max(lower, 0.0)


def _kept(lost: Floats, most: float) -> tuple[Ints, float]:
    """Which states to keep, those that lose less than `most`, and the least that the others lose.

    Of too many neighbours in cost one each is kept, the one that loses least. The best of all would be too much alike.
    """
    useful = np.flatnonzero(lost < most)
    together = -(-len(useful) // _STATES)
    if together > 1:
        groups = np.append(lost[useful], np.full(-len(useful) % together, np.inf)).reshape(-1, together)
        useful = useful[groups.argmin(axis=1) + together * np.arange(len(groups))]
    others = np.ones(len(lost), dtype=bool)
    others[useful] = False
    return useful, float(lost[others].min(initial=_NEVER))


def _exchanged(near: _Near, bought: Mask, slack: float) -> Mask:
    """The units bought after one was given for another as often as that gains, the most first, within the slack.

    Where all units are equally near to the prices, the search may not come upon such a pair.
    """
    bought = bought.copy()
    for _ in range(_EXCHANGES):
        ours, others = np.flatnonzero(bought), np.flatnonzero(~bought)
        if not (len(ours) and len(others)):
            break
        others = others[np.argsort(near.cost[others], kind="stable")]
        payable = np.searchsorted(near.cost[others], near.cost[ours] + slack, side="right")
        most = np.append(-np.inf, np.maximum.accumulate(near.gain[others]))
        more = most[payable] - near.gain[ours]
        give = int(more.argmax())
        if more[give] <= 0.0:
            break
        come = others[int(near.gain[others[: payable[give]]].argmax())]
        bought[ours[give]], bought[come] = False, True
        slack -= float(near.cost[come] - near.cost[ours[give]])
    return bought


def _turned(origins: list[tuple[int, Ints]], position: int) -> Ints:
    """The steps whose units were turned over to make the state at this position; see `_States.origin`."""
    steps = []
    for step in range(len(origins) - 1, -1, -1):
        before, origin = origins[step]
        turned, position = divmod(int(origin[position]), before)
        steps += [step] * turned
    return np.array(steps, dtype=np.int64)
