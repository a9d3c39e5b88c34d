"""What a strategy is: an estimator, waves, and a rule that places the rollouts of a wave."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.advantages import ROLLOUT_WEIGHTS
from knapsack_rl.allocation import Plan, total_value
from knapsack_rl.belief import Belief
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.estimators.base import Estimator
from knapsack_rl.estimators.costs import RolloutCosts
from knapsack_rl.estimators.features import Features
from knapsack_rl.estimators.greedy import GreedyResponses
from knapsack_rl.estimators.sitting import SittingOut
from knapsack_rl.expected_value import expected_gains
from knapsack_rl.influence import Influence
from knapsack_rl.priced import cheapest
from knapsack_rl.solver import Gains
from knapsack_rl.validation import one_of
from knapsack_rl.values import smallest_group
from knapsack_rl.whole_groups import cheapest_groups, largest_gains_in_groups, largest_gains_in_groups_within_cost

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]
E = TypeVar("E", bound=Estimator)

_ROUNDING = 1e-9
"""Relative difference up to which a cost counts as equal to its limit, since sums of floats depend on their order."""
_ROOM = 128
"""Rollouts of a prompt that a solve with prices may always look at; of more only as many as the wave places."""


@dataclass(frozen=True)
class Settings:
    """What a rule needs to know besides beliefs and budget: the arguments of `BudgetAllocator`, checked."""

    group_size: int
    min_rollouts: int
    max_rollouts: int
    algorithm: str
    fallback: bool
    confidence: float
    seed: int
    cost_limit: float | None = None
    revisit: int | None = None

    @property
    def first_group(self) -> int:
        """Rollouts of a prompt in a first look at all: the minimum, or where that is 0, the smallest group."""
        return self.min_rollouts or smallest_group(self.algorithm)


@dataclass(frozen=True)
class Prompts(Generic[E]):
    """The prompts of a step, and what earlier steps have taught about them by the time somebody first asks.

    Attributes:
        keys: who they are, shape (M,).
        features: what else is known about them.
        estimator: what knows the rest.
        spending: what knows their costs.
        greedy: what knows the outcomes of their greedy responses.
        sitting: what knows who sits out.
        influence: what knows the worth of their gradients.
    """

    keys: Keys
    features: Features
    estimator: E
    spending: RolloutCosts = field(default_factory=RolloutCosts)
    greedy: GreedyResponses = field(default_factory=GreedyResponses)
    sitting: SittingOut = field(default_factory=SittingOut)
    influence: Influence = field(default_factory=Influence)

    @cached_property
    def belief(self) -> Belief:
        """What is believed about their success rates.

        Raises:
            InvalidInputError: an estimator of somebody's own gives something else than a positive Beta for each.
        """
        belief: Any = self.estimator.belief(self.keys, self.features)
        fits = isinstance(belief, Belief) and np.shape(belief.wins) == np.shape(belief.losses) == self.keys.shape
        counts = np.stack((belief.wins, belief.losses)) if fits else np.zeros((2, 1))
        if not np.all((counts > 0.0) & (counts < np.inf)):
            raise InvalidInputError(
                f"strategy: expected the belief of {type(self.estimator).__name__} to be a knapsack_rl.Belief with "
                f"{len(self.keys)} positive wins and losses, got {belief!r:.200}."
            )
        return belief  # type: ignore[no-any-return]

    @cached_property
    def rates(self) -> Floats:
        """Point estimates, NaN where never visited."""
        return self.estimator.point(self.keys, self.belief)

    @cached_property
    def costs(self) -> Floats:
        """What one rollout of each is expected to cost, above 0."""
        return self.spending.expected(self.keys, self.features)

    @cached_property
    def learned_costs(self) -> Floats | None:
        """`costs`; None where no cost was told yet."""
        return self.costs if len(self.spending) else None

    @cached_property
    def correction(self) -> Floats:
        """What the value of their gradients is multiplied by (`Influence.correction`)."""
        return self.influence.correction(self.belief.mean)

    @cached_property
    def sat_out(self) -> Ints:
        """At how many visits in a row each of them has got no rollouts."""
        return self.sitting.visits(self.keys)


@dataclass(frozen=True)
class View(Generic[E]):
    """What a rule sees of a step. Arrays have shape (M,), one entry for each prompt.

    Attributes:
        prompts: whose step it is, and what was believed of them before it.
        settings: bounds and the like.
        placed: rollouts that earlier waves of the step placed.
        scored: those of them that came back with a reward.
        successes: those of them that were right.
        pending: those that are still being generated.
        closed: prompts that get no more in this step.
    """

    prompts: Prompts[E]
    settings: Settings
    placed: Ints
    scored: Ints
    successes: Ints
    pending: Ints
    closed: NDArray[np.bool_]

    @classmethod
    def before(cls, prompts: Prompts[E], settings: Settings) -> View[E]:
        """That of a step of which nothing was placed yet."""
        nothing = np.zeros(len(prompts.keys), dtype=np.int64)
        return cls(prompts, settings, nothing, nothing, nothing, nothing, nothing > 0)

    @property
    def keys(self) -> Keys:
        """Who the prompts are: 64-bit hashes of their ids."""
        return self.prompts.keys

    @property
    def features(self) -> Features:
        """What else is known about the prompts, as the caller of `ask` or `step` passed it."""
        return self.prompts.features

    @property
    def estimator(self) -> E:
        """The strategy's estimator, for whatever a rule needs of it besides beliefs. A rule changes nothing in it.

        Unlike `belief` and `rates` it is as it is now: other steps may have taught it since this one began.
        """
        return self.prompts.estimator

    @property
    def belief(self) -> Belief:
        """What was believed of the success rates before the step."""
        return self.prompts.belief

    @property
    def rates(self) -> Floats:
        """The point estimates of the success rates, NaN where a prompt was never visited."""
        return self.prompts.rates

    @property
    def visited(self) -> NDArray[np.bool_]:
        """Whether anything was known about a prompt before the step."""
        return ~np.isnan(self.rates)

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """Groups that have a gradient already, whatever follows."""
        some = self.successes > 0
        return some if self.settings.algorithm == "reinforce" else some & (self.successes < self.scored)

    @property
    def costs(self) -> Floats:
        """What one rollout of each prompt is expected to cost."""
        return self.prompts.costs

    @property
    def greedy_agreement(self) -> Floats | None:
        """The chance that a rollout earns what the greedy response earns, for ReMax; None for other algorithms."""
        if self.settings.algorithm != "remax":
            return None
        return self.prompts.greedy.agreement(self.keys, self.rates)

    def cost_budget(self, amount: int) -> float | None:
        """What the next `amount` rollouts of the step may cost; None without a limit.

        All rollouts of the step so far may cost `cost_limit` times what as many would in even groups. Whoever keeps to
        it in every wave can do so in the next: the rollouts for which there is still room cost no more on average.
        """
        if self.settings.cost_limit is None or not len(self.placed):
            return None
        even = float(self.costs.mean()) * (int(self.placed.sum()) + amount)
        return self.settings.cost_limit * even * (1.0 + _ROUNDING) - float(self.costs @ self.placed)

    @property
    def least(self) -> Ints:
        """The fewest rollouts that each prompt may end with, shape (M,): `min_rollouts`.

        Where that is 0, the smallest group for prompts that were begun or may not sit out again, and 0 for the others.
        """
        settings = self.settings
        if settings.min_rollouts:
            return np.full(len(self.placed), settings.min_rollouts)
        needed = self.placed > 0
        if settings.revisit is not None:
            needed |= self.prompts.sat_out >= settings.revisit
        return np.where(needed, settings.first_group, 0)

    @property
    def room(self) -> Ints:
        """How many more rollouts each prompt may get."""
        return np.where(self.closed, 0, self.settings.max_rollouts - self.placed)

    def fresh(self, total: Ints) -> NDArray[np.bool_]:
        """Which prompts have nothing with `total` more, and get no rollout, or 2 and more."""
        single = self.settings.min_rollouts > 0 or self.settings.first_group == 1
        return np.zeros(len(total), dtype=bool) if single else self.placed + total == 0

    @property
    def missing(self) -> Ints:
        """How many each prompt needs to have the least that it may end with."""
        return np.asarray(np.maximum(self.least - self.placed, 0))

    def expected_gains(self, exponents: tuple[float, float], measured: bool = False) -> Gains:
        """What further rollouts, after those that are missing, are expected to gain (`expected_value.expected_gains`).

        The first of a prompt without any gains nothing where single rollouts are worth nothing. With `measured` a
        prompt's gains are multiplied by its `Prompts.correction`, which leaves them non-increasing.
        """
        missing = self.missing
        gains = expected_gains(
            self.belief, self.successes, self.scored, self.pending + missing, exponents, self.settings.algorithm
        )
        fresh = self.fresh(missing)
        if not (fresh.any() or measured):
            return gains

        def adjusted(items: Ints, start: int, width: int) -> Floats:
            table = gains(items, start, width)
            if measured:
                table *= self.prompts.correction[items, None]
            if start == 0:
                table[fresh[items], 0] = 0.0
            return table

        return adjusted

    def possible(self, amount: int, left: int) -> int:
        """`amount` or a few more of the `left` rollouts, so that groups of none or of 2 and more add up to them.

        Neither one rollout nor all but one of those left, and an even number where groups have 2 at most. All that are
        left where the cost limit does not pay for so few: a dear prompt that is due may be paid for by those after it.
        """
        if self.settings.min_rollouts == 0 and self.settings.first_group > 1:
            amount = max(amount + (amount % 2 if self.settings.max_rollouts == 2 else 0), 2)
            amount += amount == left - 1
        return amount if amount <= left and self.pays_for(amount) else left

    def pays_for(self, amount: int) -> bool:
        """Whether the next `amount` rollouts of the step can be had for their `cost_budget`. O(M log M)."""
        limit = self.cost_budget(amount)
        return limit is None or float(self.costs @ self.cheapest(amount)) <= limit

    def cheapest(self, amount: int) -> Ints:
        """What is missing, and the rest of `amount` where rollouts cost least; one less if that opens no group."""
        least = self.missing
        rest = amount - int(least.sum())
        room = np.minimum(self.room - least, rest)
        return least + cheapest_groups(self.costs, room, rest, self.fresh(least))

    def even(self, amount: int, receivers: NDArray[np.bool_] | None = None) -> Ints:
        """What is missing, and the rest of `amount` so that the receivers end as even as they can.

        Args:
            amount: rollouts to place.
            receivers: who is served first; None for everyone. What they have no room for, everyone gets.

        Returns:
            Rollouts, shape (M,), summing to `amount`; equals are served in order of position.
        """
        total = self.missing
        if receivers is not None:
            total = self.filled(total, amount, receivers, _to_the_least(self.placed + total))
        return self.completed(total, amount)

    def largest(self, gains: Gains, amount: int, receivers: NDArray[np.bool_] | None = None) -> Ints:
        """What is missing, and the rest of `amount` where it gains most among the receivers.

        Args:
            gains: of each prompt's further rollouts, after those that are missing.
            amount: rollouts to place.
            receivers: who may gain; None for everyone. What they have no room for goes evenly to everyone.

        Returns:
            Rollouts, shape (M,), summing to `amount`; equal gains go to the earlier prompt.
        """
        everyone = np.ones(len(self.placed), dtype=bool)
        total = self.filled(self.missing, amount, everyone if receivers is None else receivers, gains)
        return self.completed(total, amount)

    def completed(self, total: Ints, amount: int) -> Ints:
        """`total`, raised to `amount` so that all end as even as they can; arguments as `filled`."""
        everyone = np.ones(len(self.placed), dtype=bool)
        total = self.filled(total, amount, everyone, _to_the_least(self.placed + total))
        none = np.flatnonzero(self.fresh(total) & (self.settings.max_rollouts > 1))
        spare = np.flatnonzero((total > 0) & (self.placed + total > self.settings.first_group))
        if int(total.sum()) < amount and none.size and spare.size:  # one that nobody can take alone
            total[spare[-1]] -= 1
            total[none[0]] = 2
        limit = self.cost_budget(amount)
        if limit is not None and none.size and float(self.costs @ total) > limit:  # the one left was for somebody dear
            total = self.cheapest(amount)
        return total

    def filled(self, total: Ints, amount: int, receivers: NDArray[np.bool_], gains: Gains) -> Ints:
        """`total`, raised to `amount` where it gains most, as far as the receivers have room.

        Args:
            total: what the wave places so far, shape (M,).
            amount: what it is to sum to, at least what it does already.
            receivers: who may gain.
            gains: of each prompt's further rollouts, after those of `total`. Of a prompt that has none and may sit out
                the mean of the first two counts as the gain of each, and must be at least the third.

        Returns:
            Rollouts, shape (M,); their sum is `amount`, or less where the receivers are full, or so dear that the rest
            of `amount` has to go to others (`cost_budget`), or where a single rollout is left that opens no group.
            `total` itself where not even the cheapest rollouts up to `amount` are within its cost.
        """
        wanted = amount - int(total.sum())
        free = np.minimum(self.room - total, max(wanted, _ROOM))
        room = np.where(receivers, free, 0)
        count = min(wanted, int(room.sum()))
        fresh = self.fresh(total)
        units = largest_gains_in_groups(gains, room, count, fresh)
        limit = self.cost_budget(amount)
        if limit is None:
            return total + units
        left = limit - float(self.costs @ total)
        return total + self._affordable(gains, units, room, free - room, wanted, left, fresh)

    def _affordable(
        self,
        gains: Gains,
        units: Ints,
        room: Ints,
        others: Ints,
        wanted: int,
        left: float,
        fresh: NDArray[np.bool_],
    ) -> Ints:
        """These units, or the best ones that leave enough of what is `left` for the rest of the wanted among others."""
        count = int(units.sum())

        def rest(of_these: int) -> float:
            return float(self.costs @ cheapest(self.costs, others, wanted - of_these))

        if float(self.costs @ units) + rest(count) <= left:
            return units
        everyone = cheapest(self.costs, room + others, wanted)
        if float(self.costs @ everyone) > left:  # a part of a wave, which only as a whole pays for what is missing
            return np.zeros_like(units)
        # With ever more of the receivers' than among the cheapest the cost can only rise.
        least, most = int(np.minimum(everyone, room)[room > 0].sum()), count
        while least < most:
            tried = (least + most + 1) // 2
            fits = float(self.costs @ cheapest(self.costs, room, tried)) + rest(tried) <= left
            least, most = (tried, most) if fits else (least, tried - 1)
        return largest_gains_in_groups_within_cost(gains, self.costs, room, left - rest(least), least, fresh).units

    def plan(self, rollouts: Ints, fallback: int = 0) -> Plan:
        """These rollouts as a plan, whose value is that of all that the step has placed with it."""
        settings, agreement = self.settings, self.greedy_agreement
        value = total_value(self.placed + rollouts, self.prompts.rates, settings.algorithm, agreement)
        cost = None if settings.cost_limit is None else float(self.costs @ rollouts)
        return Plan(rollouts, value, fallback, cost)


def _to_the_least(have: Ints) -> Gains:
    """Serving whoever has least is a knapsack in which the n-th rollout of a prompt gains -n."""
    return lambda items, start, width: -(have[items, None] + start + np.arange(width, dtype=np.float64))


def uniform(view: View[Any], amount: int) -> Plan:
    """The same number for every prompt; a remainder goes to the first."""
    return view.plan(view.even(amount))


WaveSize = Callable[[int, int, int, Settings], int]
"""wave_size(number, prompts, remaining, settings) -> rollouts of wave 0, 1, ... of a step."""


def one_wave(number: int, prompts: int, remaining: int, settings: Settings) -> int:
    """Everything at once."""
    return remaining


@dataclass(frozen=True)
class Strategy(Generic[E]):
    """A rule that turns beliefs into rollouts, and the estimator that the beliefs come from.

    `BudgetAllocator(strategy=...)` takes one; `knapsack_rl.testing.check_strategy` says whether it keeps to what every
    trainer relies on.

    Attributes:
        estimator: makes the estimator; a class will do.
        rule: `rule(view, amount)` places `amount` rollouts, those of a wave, or of the whole step where there is only
            one: a plan whose rollouts sum to `amount`, so that every prompt ends between the bounds of
            `view.settings`, and none above `view.cost_budget(amount)`. It is a function of its arguments, and changes
            nothing.
        wave_size: how many rollouts each wave places, beyond what the minimum asks for. The wave that takes all that
            remains is the last; `one_wave` is a single one.
        exponents: e and g of the information gain p^e (1 - p)^g, if rollouts may also be placed one by one where they
            are expected to gain most (`Step.place`); None for a strategy that keeps to its waves.
        rollout_weights: what the trainers multiply the advantages of a group of N rollouts by, unless told otherwise:
            `none`, or `sqrt` for sqrt(group_size / N).
        name: by which states and reports know it; by default that of the rule.
        measured: whether the rule goes by `View.expected_gains(..., measured=True)`: trainers then measure what
            gradients are worth (`Step.tell_gradients`).
        ready: whether an estimator knows enough for the rule. A step that begins before is even and of one wave. None:
            always.

    Raises:
        InvalidInputError: something of this is of the wrong kind.
    """

    estimator: Callable[[], E]
    rule: Callable[[View[E], int], Plan]
    wave_size: WaveSize = one_wave
    exponents: tuple[float, float] | None = None
    rollout_weights: Literal["none", "sqrt"] = "none"
    name: str = ""
    measured: bool = False
    ready: Callable[[E], bool] | None = None

    def __post_init__(self) -> None:
        for argument in ("estimator", "rule", "wave_size", *(() if self.ready is None else ("ready",))):
            if not callable(getattr(self, argument)):
                raise InvalidInputError(f"{argument}: expected a function or a class, got {getattr(self, argument)!r}.")
        one_of("rollout_weights", self.rollout_weights, ROLLOUT_WEIGHTS)
        exponents = self.exponents
        if exponents is not None and not (
            np.shape(exponents) == (2,) and all(np.isfinite(number) and number >= 0.0 for number in exponents)
        ):
            raise InvalidInputError(f"exponents: expected two numbers of 0 or more, or None, got {exponents!r}.")
        name: Any = self.name or getattr(self.rule, "__name__", type(self.rule).__name__).replace("_", "-")
        if not isinstance(name, str) or name in ("<lambda>", "partial"):
            raise InvalidInputError(
                f"name: expected a text by which a saved state knows the strategy, got {self.name!r}, and the rule has "
                "no name of its own."
            )
        object.__setattr__(self, "name", name)

    @property
    def in_waves(self) -> bool:
        """Whether a step may take several waves."""
        return self.wave_size is not one_wave

    def now(self, estimator: E) -> Strategy[E]:
        """What a step goes by that begins now: the strategy itself, or even groups until it is `ready`."""
        return self if self.ready is None or self.ready(estimator) else self.even()

    def even(self) -> Strategy[E]:
        """Even groups in one wave, with the estimator and the name of this strategy."""
        return replace(self, rule=uniform, wave_size=one_wave, exponents=None, ready=None)

    def new_estimator(self) -> E:
        """An estimator that knows nothing yet.

        Raises:
            InvalidInputError: `estimator` makes something else.
        """
        made = self.estimator()
        if not isinstance(made, Estimator):
            raise InvalidInputError(
                f"strategy: the estimator of {self.name!r} is a {type(made).__name__}. Derive it from "
                "knapsack_rl.Estimator."
            )
        return made

    def plan(self, view: View[E], amount: int) -> Plan:
        """What the rule makes of `amount` rollouts, checked.

        Raises:
            InvalidInputError: the rollouts do not sum to `amount`, or a prompt would end outside its bounds. It names
                the strategy, since a rule of somebody's own is at fault.
        """
        plan = self.rule(view, amount)
        rollouts = getattr(plan, "rollouts", None)
        if not isinstance(rollouts, np.ndarray) or rollouts.dtype != np.int64 or rollouts.shape != view.placed.shape:
            raise InvalidInputError(
                f"strategy: expected the rule of {self.name!r} to return view.plan(rollouts) with "
                f"{len(view.placed)} integers (int64), one for each prompt, got {plan!r}."
            )
        total, fallback = int(rollouts.sum()), plan.fallback
        if not 0 <= fallback <= max(amount, 0):
            raise InvalidInputError(
                f"strategy: expected a fallback of {self.name!r} between 0 and the {amount} rollouts that it places, "
                f"got {fallback!r}."
            )
        if total != amount:
            raise InvalidInputError(
                f"strategy: expected the rule of {self.name!r} to place {amount} rollouts, and it placed {total}. "
                "view.even and view.largest place a given amount."
            )
        after = view.placed + rollouts
        low, high, single = view.settings.min_rollouts, view.settings.max_rollouts, view.settings.first_group - 1
        outside = (rollouts < 0) | (after < view.least) | (after > high) | ((after > 0) & (after <= single))
        if outside.any():
            wrong = int(np.flatnonzero(outside)[0])
            least = f"min_rollouts={low}" if low else "what it needs (none, or a group of 2)"
            raise InvalidInputError(
                f"strategy: expected the rule of {self.name!r} to leave every prompt between {least} and "
                f"max_rollouts={high}, and the prompt at position {wrong} has {after[wrong]}, of which it placed "
                f"{rollouts[wrong]}. view.missing says what a prompt needs."
            )
        limit = view.cost_budget(amount)
        if limit is not None and float(view.costs @ rollouts) > limit + _ROUNDING * float(view.costs @ after):
            raise InvalidInputError(
                f"strategy: expected the rule of {self.name!r} to place rollouts for at most {limit:.6g}, and they "
                f"cost {float(view.costs @ rollouts):.6g}. view.even and view.largest keep to view.cost_budget(amount)."
            )
        return plan

    def wave(self, number: int, view: View[E], left: int) -> Plan:
        """The wave of this number, counted from 0; 1 or more of the `left` rollouts."""
        amount: Any = self.wave_size(number, len(view.placed), left, view.settings)
        if not isinstance(amount, numbers.Integral):
            raise InvalidInputError(
                f"strategy: expected the wave_size of {self.name!r} to return an integer, got {amount!r}."
            )
        return self.plan(view, view.possible(max(int(amount), int(view.missing.sum()), 1), left))


AnyStrategy = Strategy[Any]
"""With an estimator of any kind."""
