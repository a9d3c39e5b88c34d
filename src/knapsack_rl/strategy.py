"""What a strategy is: an estimator, waves, and a rule that places the rollouts of a wave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.allocation import Plan, total_value
from knapsack_rl.beta import Belief
from knapsack_rl.solver import Gains, largest_gains
from knapsack_rl.success_rate import Estimator
from knapsack_rl.success_rate.features import Features

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
class View:
    """What a rule sees of a step. Arrays have shape (M,), one entry for each prompt.

    Attributes:
        keys: who the prompts are.
        features: what else is known about them.
        estimator: what earlier steps have taught.
        settings: bounds and the like.
        placed: rollouts that earlier waves of the step placed.
        scored: those of them that came back with a reward.
        successes: those of them that were right.
        pending: those that are still being generated.
    """

    keys: Keys
    features: Features
    estimator: Estimator
    settings: Settings
    placed: Ints
    scored: Ints
    successes: Ints
    pending: Ints

    @cached_property
    def rates(self) -> Floats:
        """Point estimates from before the step, NaN where never visited."""
        return self.estimator.rates(self.keys, self.features)

    @cached_property
    def belief(self) -> Belief:
        """The belief from before the step."""
        return self.estimator.belief(self.keys, self.features)

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """Groups that have a gradient already, whatever follows."""
        some = self.successes > 0
        return some if self.settings.algorithm == "reinforce" else some & (self.successes < self.scored)

    @property
    def room(self) -> Ints:
        """How many more rollouts each prompt may get."""
        return self.settings.max_rollouts - self.placed

    @property
    def missing(self) -> Ints:
        """How many each prompt needs to have `min_rollouts`."""
        return np.maximum(self.settings.min_rollouts - self.placed, 0)

    def even(self, amount: int, receivers: NDArray[np.bool_] | None = None, added: Ints | None = None) -> Ints:
        """Place `amount` so that the receivers end as even as they can; what they have no room for, everyone does.

        Args:
            amount: rollouts to place.
            receivers: who is served first; None for everyone.
            added: what this wave has placed already.

        Returns:
            `added` and the amount, shape (M,); equals are served in order of position.
        """
        total = np.zeros(len(self.keys), dtype=np.int64) if added is None else added.copy()
        everyone = np.ones(len(self.keys), dtype=bool)
        for chosen in (everyone if receivers is None else receivers, everyone):
            have = self.placed + total
            room = np.where(chosen, self.settings.max_rollouts - have, 0)
            some = min(amount, int(room.sum()))
            total += largest_gains(_to_the_least(have), room, some)
            amount -= some
        return total

    def largest(self, gains: Gains, amount: int, receivers: NDArray[np.bool_], added: Ints) -> Ints:
        """Place `amount` where it gains most among the receivers; what they have no room for goes evenly to everyone.

        Args:
            gains: of each prompt's further rollouts, after those in `added`.
            amount: rollouts to place.
            receivers: who may gain.
            added: what this wave has placed already.

        Returns:
            `added` and the amount, shape (M,).
        """
        room = np.where(receivers, self.room - added, 0)
        some = min(amount, int(room.sum()))
        total = added + largest_gains(gains, room, some)
        return self.even(amount - some, added=total)

    def plan(self, rollouts: Ints, fallback: int = 0) -> Plan:
        """These rollouts as a plan, whose value is that of all that the step has placed with it."""
        return Plan(rollouts, total_value(self.placed + rollouts, self.rates, self.settings.algorithm), fallback)


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
    """

    estimator: Callable[[], Estimator]
    rule: Rule
    waves: Waves = one_wave
