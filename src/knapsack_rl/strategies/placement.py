"""Placing the rollouts of a step while others are being generated, so that nothing waits at the end of a wave.

Strategies that go by expected gains place a rollout as soon as there is room for it (`ByGain`). All others keep to
their waves (`InWaves`), which are handed out in portions; strategies of one wave never wait.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.strategies.base import AnyStrategy, View

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_LARGE = 2
"""Mean groups up to which a group that has a gradient may grow, so that others can be closed early."""


class Placement(Protocol):
    """Where the next rollouts of a step go.

    Attributes:
        fallback: rollouts that the fallback has moved to never-solved prompts.
    """

    fallback: int

    def place(self, view: View[Any], most: int, left: int) -> Ints:
        """At most `most` of the `left` rollouts, shape (M,); some where something is left and nothing pending."""

    def close(self, view: View[Any], left: int) -> Bools:
        """Which prompts get none of the `left` rollouts, shape (M,), those of `view.closed` included."""


def placement(strategy: AnyStrategy, view: View[Any]) -> Placement:
    """How this strategy places a step that begins with this view."""
    return InWaves(strategy, view) if strategy.exponents is None else ByGain(strategy.exponents, strategy.measured)


class InWaves:
    """The strategy's waves: each is planned when all of the one before is back, and handed out in order of position.

    Attributes:
        wave: number of the next one.
        planned: rollouts of the newest one that were not handed out yet, shape (M,).
        fallback: as in `Placement`, of the waves planned so far.
    """

    def __init__(self, strategy: AnyStrategy, view: View[Any]) -> None:
        self._strategy = strategy
        self.wave = self.fallback = 0
        self.planned = np.zeros_like(view.placed)

    def place(self, view: View[Any], most: int, left: int) -> Ints:
        """As in `Placement`."""
        if left and not (self.planned.any() or view.pending.any()):
            plan = self._strategy.wave(self.wave, view, left)
            self.planned = plan.rollouts
            self.fallback += plan.fallback
            self.wave += 1
        now = _first(self.planned, most)
        self.planned = self.planned - now
        return now

    def close(self, view: View[Any], left: int) -> Bools:
        """As in `Placement`: those that have no part in what is left of the last wave."""
        last = left == int(self.planned.sum())
        return np.asarray((view.room == 0) | (last & (self.planned == 0)))


class ByGain:
    """The minimum for everyone, then each rollout where it is expected to gain most, those in flight counted in.

    It waits for nothing but the first report. Waiting for more first rollouts to come back finds a few more groups with
    a gradient where slots abound, and costs more time than they are worth (docs/waves.md has the measurement).
    """

    fallback = 0

    def __init__(self, exponents: tuple[float, float], measured: bool) -> None:
        self._exponents, self._measured = exponents, measured

    def place(self, view: View[Any], most: int, left: int) -> Ints:
        """As in `Placement`."""
        if view.missing.any():
            return _first(view.missing, most)
        if (
            not view.settings.min_rollouts
        ):  # the first rollouts are as many, and go where they are expected to gain most
            pilot = len(view.placed) * view.settings.first_group - int(view.placed.sum())
            most = min(most, pilot) if pilot > 0 else most
        amount = view.possible(min(most, left), left)
        gains = view.expected_gains(self._exponents, self._measured)
        return _first(view.largest(gains, amount, ~view.mixed), most)

    def close(self, view: View[Any], left: int) -> Bools:
        """As in `Placement`: groups with a gradient, nothing pending and nothing missing, as far as others do without.

        They would get more only if groups without a gradient ran out before the budget does. For that case as many stay
        open as can take all that is left without any becoming larger than `_LARGE` mean groups. Under a `cost_limit`
        all do, since what is left might be too dear for the others.
        """
        settings, closed = view.settings, np.asarray((view.room == 0) | (left == 0))
        if settings.cost_limit is None:
            spare = np.minimum(view.room, np.maximum(_LARGE * settings.group_size - view.placed, 0))
            spare[view.placed == 0] = 0  # where single rollouts are worth nothing, one may not be able to go there
            done = np.flatnonzero(view.mixed & (view.pending == 0) & (view.missing == 0) & ~closed)
            done = done[np.argsort(spare[done], kind="stable")]
            closed[done[np.cumsum(spare[done]) <= int(spare.sum()) - left]] = True
        return closed


def _first(rollouts: Ints, most: int) -> Ints:
    """The first `most` of these rollouts in order of position, so that those of a prompt start together."""
    return np.diff(np.minimum(np.cumsum(rollouts), most), prepend=0)
