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


class Placement(Protocol):
    """Where the next rollouts of a step go."""

    def place(self, view: View[Any], most: int, left: int) -> Ints:
        """At most `most` of the `left` rollouts, shape (M,); some where something is left and nothing pending."""


def placement(strategy: AnyStrategy, view: View[Any]) -> Placement:
    """How this strategy places a step that begins with this view."""
    return InWaves(strategy, view) if strategy.exponents is None else ByGain(strategy.exponents)


class InWaves:
    """The strategy's waves: each is planned when all of the one before is back, and handed out in order of position.

    Attributes:
        wave: number of the next one.
        planned: rollouts of the newest one that were not handed out yet, shape (M,).
    """

    def __init__(self, strategy: AnyStrategy, view: View[Any]) -> None:
        self._strategy = strategy
        self.wave = 0
        self.planned = np.zeros_like(view.placed)

    def place(self, view: View[Any], most: int, left: int) -> Ints:
        """As in `Placement`."""
        if left and not (self.planned.any() or view.pending.any()):
            self.planned = self._strategy.wave(self.wave, view, left).rollouts
            self.wave += 1
        now = _first(self.planned, most)
        self.planned = self.planned - now
        return now


class ByGain:
    """The minimum for everyone, then each rollout where it is expected to gain most, those in flight counted in.

    It waits for nothing but the first report. Waiting for more first rollouts to come back finds a few more groups with
    a gradient where slots abound, and costs more time than they are worth (docs/waves.md has the measurement).
    """

    def __init__(self, exponents: tuple[float, float]) -> None:
        self._exponents = exponents

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
        return _first(view.largest(view.expected_gains(self._exponents), amount, ~view.mixed), most)


def _first(rollouts: Ints, most: int) -> Ints:
    """The first `most` of these rollouts in order of position, so that those of a prompt start together."""
    return np.diff(np.minimum(np.cumsum(rollouts), most), prepend=0)
