"""Placing the rollouts of a step while others are being generated, so that nothing waits at the end of a wave.

Strategies that go by expected gains place a rollout as soon as there is room for it (`ByGain`). All others keep to
their waves (`InWaves`), which are handed out in portions; strategies of one wave never wait.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.belief import Belief
from knapsack_rl.expected_value import expected_gains
from knapsack_rl.strategies.base import Strategy, View

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LONGEST = 512  # rollouts of one prompt that the price looks ahead; chances to be still alike are small by then


class Placement(Protocol):
    """Where the next rollouts of a step go."""

    def place(self, view: View, most: int, left: int) -> Ints:
        """At most `most` of the `left` rollouts, shape (M,); some where something is left and nothing pending."""


def placement(strategy: Strategy, view: View) -> Placement:
    """How this strategy places a step that begins with this view."""
    return InWaves(strategy, view) if strategy.exponents is None else ByGain(view, strategy.exponents)


class InWaves:
    """The strategy's waves: each is planned when all of the one before is back, and handed out in order of position."""

    def __init__(self, strategy: Strategy, view: View) -> None:
        self._strategy = strategy
        self._wave = 0
        self._planned = np.zeros_like(view.placed)

    def place(self, view: View, most: int, left: int) -> Ints:
        """As in `Placement`."""
        if left and not (self._planned.any() or view.pending.any()):
            self._planned = self._strategy.wave(self._wave, view, left).rollouts
            self._wave += 1
        now = _first(self._planned, most)
        self._planned = self._planned - now
        return now


class ByGain:
    """The minimum for everyone, then each rollout where it is expected to gain most, those in flight counted in.

    As long as some prompts' first rollouts are out, a better use for a rollout may yet appear. Until then a prompt gets
    more only if its own first rollouts are back, and if the gain is above a price: that at which the demand to expect
    is what is left. Afterwards waiting cost more than it found (docs/waves.md): rollouts go where they gain most.

    The price needs no sampling. A group asks for rollout k + 1 if its first k are alike and its gain is then above the
    price; the belief gives the chance of the former, and the sum of these chances is the demand.
    """

    def __init__(self, view: View, exponents: tuple[float, float]) -> None:
        self._belief, self._exponents = view.prompts.belief, exponents
        e, g = exponents
        width = min(view.settings.max_rollouts, _LONGEST)
        mirrored = Belief(self._belief.losses, self._belief.wins)
        sides = [_alike(self._belief, (e, g), width), _alike(mirrored, (g, e), width)]  # all wrong, all right
        if view.settings.algorithm == "reinforce":
            del sides[1]  # where all are right, there is a gradient already
        self._chances, self._gains = (np.stack(tables) for tables in zip(*sides, strict=True))
        self._order = np.argsort(-self._gains, axis=None, kind="stable")

    def place(self, view: View, most: int, left: int) -> Ints:
        """As in `Placement`."""
        added = _first(view.missing, most)
        most = min(most, left) - int(added.sum())
        if most == 0 or (view.missing > added).any():
            return added
        pending = view.pending + added
        unknown = view.placed - view.pending < view.settings.min_rollouts  # of their first rollouts
        gains = expected_gains(
            self._belief, view.successes, view.scored, pending, self._exponents, view.settings.algorithm
        )
        if not unknown.any():
            return view.largest(gains, most + int(added.sum()), ~view.mixed)
        may = ~view.mixed & ~unknown
        most = min(most, int((view.settings.max_rollouts - view.placed)[may].sum()))
        if most == 0:
            return added
        rollouts = view.largest(gains, most + int(added.sum()), may) - added
        count = np.arange(rollouts.max())
        above = gains(np.arange(len(rollouts)), 0, len(count)) > self.price(view, left)
        return np.asarray(added + (above & (count < rollouts[:, None])).sum(axis=1))

    def price(self, view: View, left: int) -> float:
        """The gain above which rollouts are wanted, so that `left` of them are wanted in expectation."""
        have = np.maximum(view.placed, view.settings.min_rollouts)
        left -= int((have - view.placed).sum())
        known = np.minimum(view.scored, self._chances.shape[2] - 1)
        alike = np.stack((view.successes == 0, view.successes == view.scored))[: len(self._chances)]
        so_far = self._chances[:, np.arange(len(known)), known]
        weight = np.divide(alike, so_far, out=np.zeros_like(so_far), where=so_far > 0.0)
        wanted = np.where(np.arange(self._chances.shape[2]) >= have[:, None], self._chances * weight[:, :, None], 0.0)
        demand = np.cumsum(wanted.ravel()[self._order])
        if demand[-1] <= left:
            return 0.0
        return float(self._gains.ravel()[self._order[np.searchsorted(demand, left)]])


def _alike(belief: Belief, exponents: tuple[float, float], width: int) -> tuple[Floats, Floats]:
    """Chances that the first k = 0, 1, ... rollouts are all wrong, and the gain of one more then; shapes (M, width)."""
    nothing = np.zeros(len(belief.wins), dtype=np.int64)
    spread = Belief(belief.wins[:, None], belief.losses[:, None])
    chances = np.exp(spread.log_likelihood(np.zeros(1, dtype=np.int64), np.arange(width)))
    both = expected_gains(belief, nothing, nothing, nothing, exponents, "reinforce")(np.arange(len(nothing)), 0, width)
    return chances, np.divide(both, chances, out=np.zeros_like(both), where=chances > 0.0)


def _first(rollouts: Ints, most: int) -> Ints:
    """The first `most` of these rollouts in order of position, so that those of a prompt start together."""
    return np.diff(np.minimum(np.cumsum(rollouts), most), prepend=0)
