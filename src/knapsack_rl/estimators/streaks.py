"""Streaks of visits without a gradient, and how willing we are to visit such prompts again: what GRESO remembers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.errors import StateError
from knapsack_rl.estimators.base import ObservedRates, Visits
from knapsack_rl.estimators.state import EXACT, number, whole_number

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

_START, _STEP, _BOUNDS = 0.5, 0.01, (0.05, 0.95)  # of the willingness
_TARGETS = {"easy": 0.25 / 3, "hard": 0.5 / 3}  # shares of a step's prompts that may be all right, or all wrong
_LONGEST = 65535  # streak that the table can hold


class Streaks(ObservedRates):
    """For each prompt its last visit and how many visits in a row, up to that one, had equal rewards only.

    A prompt whose streak is z is kept with probability willingness^z. The willingness towards prompts that were all
    right (`easy`), and that towards those that were all wrong (`hard`), falls by .01 at an update in which the share of
    such prompts reaches its target, and rises by .01 at any other. It rests while all prompts are new. A visit that is
    told late counts there, and changes nothing about the prompt.

    Attributes:
        updates: how many there were; whoever draws at random by it draws anew after each.
    """

    def __init__(self) -> None:
        super().__init__(streak=np.uint16)
        self.updates = 0
        self._willingness = dict.fromkeys(_TARGETS, _START)

    def keep(self, keys: Keys) -> Floats:
        """The probability with which each prompt is not skipped, shape (len(keys),). O(len(keys))."""
        rows = self.table.find(keys)
        easy = self.table.read("won", rows) > 0
        streak = self.table.read("streak", rows)
        return np.asarray(np.where(easy, self._willingness["easy"], self._willingness["hard"]) ** streak)

    def learn(self, visits: Visits) -> None:
        """Move the willingness towards its targets. O(V)."""
        self.updates += 1
        if visits.known.any():
            for name, count in (("easy", visits.won == visits.tried), ("hard", visits.won == 0)):
                step = -_STEP if count.mean() >= _TARGETS[name] else _STEP
                self._willingness[name] = float(np.clip(self._willingness[name] + step, *_BOUNDS))

    def remember(self, rows: Ints, visits: Visits) -> None:
        """Make the streaks longer, or end them. O(V)."""
        rows, won, tried = rows[visits.newest], visits.won[visits.newest], visits.tried[visits.newest]
        streak = self.table["streak"][rows].astype(np.int64)
        equal = (won == 0) | (won == tried)
        # One reward always equals itself: it neither makes a streak longer nor ends it.
        longer = np.where(equal, np.minimum(streak + 1, _LONGEST), 0)
        self.table["streak"][rows] = np.where(tried == 1, streak, longer)

    def state_dict(self) -> dict[str, Any]:
        """As in `Estimator`, the updates, and the willingness as `easy` and `hard`."""
        return {**super().state_dict(), "updates": self.updates, **self._willingness}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As in `Estimator`."""
        prompts, updates = self._restored(state), whole_number(state, "updates")
        willingness = {name: number(state, name, *_BOUNDS) for name in _TARGETS}
        won, tried, streak = prompts["won"], prompts["tried"], prompts["streak"]
        equal, checked = (won == 0) | (won == tried), (tried > 1) & (tried < EXACT)
        if np.any(((streak > 0) != equal) & checked) or np.any(streak > updates):
            raise StateError("state: expected streaks that are those of won and tried, and at most as many as updates.")
        self._take_over(prompts)
        self.updates, self._willingness = updates, willingness
