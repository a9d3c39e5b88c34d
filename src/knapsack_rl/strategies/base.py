"""What a strategy is: an estimator, waves, and a rule that places the rollouts of a wave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.allocation import Plan, total_value
from knapsack_rl.belief import Belief
from knapsack_rl.estimators import Estimator
from knapsack_rl.estimators.features import Features
from knapsack_rl.solver import Gains, largest_gains

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Settings:
    """What a rule needs to know besides beliefs and budget; the arguments of `BudgetAllocator`, checked."""

    group_size: int
    min_rollouts: int
    max_rollouts: int
    algorithm: str
    fallback: bool
    confidence: float
    seed: int


@dataclass(frozen=True)
class Prompts:
    """The prompts of a step, and what earlier steps have taught about them by the time somebody first asks.

    Attributes:
        keys: who they are, shape (M,).
        features: what else is known about them.
        estimator: what knows the rest.
    """

    keys: Keys
    features: Features
    estimator: Estimator

    @cached_property
    def belief(self) -> Belief:
        """What is believed about their success rates."""
        return self.estimator.belief(self.keys, self.features)

    @cached_property
    def rates(self) -> Floats:
        """Point estimates, NaN where never visited."""
        return self.estimator.point(self.keys, self.belief)


@dataclass(frozen=True)
class View:
    """What a rule sees of a step. Arrays have shape (M,), one entry for each prompt.

    Attributes:
        prompts: whose step it is, and what was believed of them before it.
        settings: bounds and the like.
        placed: rollouts that earlier waves of the step placed.
        scored: those of them that came back with a reward.
        successes: those of them that were right.
        pending: those that are still being generated.
    """

    prompts: Prompts
    settings: Settings
    placed: Ints
    scored: Ints
    successes: Ints
    pending: Ints

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """Groups that have a gradient already, whatever follows."""
        some = self.successes > 0
        return some if self.settings.algorithm == "reinforce" else some & (self.successes < self.scored)

    @property
    def missing(self) -> Ints:
        """How many each prompt needs to have `min_rollouts`."""
        return np.maximum(self.settings.min_rollouts - self.placed, 0)

    def even(self, amount: int, receivers: NDArray[np.bool_] | None = None) -> Ints:
        """What is missing, and the rest of `amount` so that the receivers end as even as they can.

        Args:
            amount: rollouts to place.
            receivers: who is served first; None for everyone. What they have no room for, everyone gets.

        Returns:
            Rollouts, shape (M,), summing to `amount`; equals are served in order of position.
        """
        total, everyone = self.missing, np.ones(len(self.placed), dtype=bool)
        for chosen in (everyone if receivers is None else receivers, everyone):
            total = self.filled(total, amount, chosen, _to_the_least(self.placed + total))
        return total

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
        return self.filled(total, amount, everyone, _to_the_least(self.placed + total))

    def filled(self, total: Ints, amount: int, receivers: NDArray[np.bool_], gains: Gains) -> Ints:
        """`total`, raised to `amount` where it gains most, as far as the receivers have room.

        Args:
            total: what the wave places so far, shape (M,).
            amount: what it is to sum to, at least what it does already.
            receivers: who may gain.
            gains: of each prompt's further rollouts, after those of `total`.

        Returns:
            Rollouts, shape (M,); their sum is `amount`, or less where the receivers are full.
        """
        room = np.where(receivers, self.settings.max_rollouts - self.placed - total, 0)
        return total + largest_gains(gains, room, min(amount - int(total.sum()), int(room.sum())))

    def plan(self, rollouts: Ints, fallback: int = 0) -> Plan:
        """These rollouts as a plan, whose value is that of all that the step has placed with it."""
        return Plan(
            rollouts, total_value(self.placed + rollouts, self.prompts.rates, self.settings.algorithm), fallback
        )


Rule = Callable[[View, int], Plan]
"""rule(view, amount) -> the rollouts to add, which sum to `amount`; every prompt ends between its bounds."""
Waves = Callable[[int, int, int, Settings], int]
"""waves(number, prompts, remaining, settings) -> rollouts of wave 0, 1, ...; the wave that takes all is the last."""


def _to_the_least(have: Ints) -> Gains:
    """Serving whoever has least is a knapsack in which the n-th rollout of a prompt gains -n."""
    return lambda items, start, width: -(have[items, None] + start + np.arange(width, dtype=np.float64))


def one_wave(number: int, prompts: int, remaining: int, settings: Settings) -> int:
    """Everything at once."""
    return remaining


@dataclass(frozen=True)
class Strategy:
    """How a strategy works.

    Attributes:
        estimator: makes the estimator.
        rule: places the rollouts of a wave, and of a whole step where there is only one.
        waves: how many rollouts each wave places, beyond what the minimum asks for.
        exponents: e and g of the information gain, if rollouts may also be placed one by one where they are expected to
            gain most (`streaming`); None for a strategy that keeps to its waves.
        rollout_weights: what the trainers multiply the advantages of a group of N rollouts by, unless told otherwise:
            `none`, or `sqrt` for sqrt(group_size / N).
    """

    estimator: Callable[[], Estimator]
    rule: Rule
    waves: Waves = one_wave
    exponents: tuple[float, float] | None = None
    rollout_weights: Literal["none", "sqrt"] = "none"

    def wave(self, number: int, view: View, left: int) -> Plan:
        """The wave of this number, counted from 0; 1 or more of the `left` rollouts."""
        amount = self.waves(number, len(view.placed), left, view.settings)
        return self.rule(view, min(max(amount, int(view.missing.sum()), 1), left))
