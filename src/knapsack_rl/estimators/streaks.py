"""Streaks of visits without a gradient, and how willing we are to visit such prompts again: what GRESO remembers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.errors import StateError
from knapsack_rl.estimators.base import Began, ObservedRates
from knapsack_rl.estimators.features import NONE, Features
from knapsack_rl.estimators.table import Table, one_visit, whole_number

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
        self.updates = 0
        self._prompts = Table(streak=np.uint16, won=np.float32, tried=np.float32, step=np.uint32)
        self._willingness = dict.fromkeys(_TARGETS, _START)

    def keep(self, keys: Keys) -> Floats:
        """The probability with which each prompt is not skipped, shape (len(keys),). O(len(keys))."""
        rows = self._prompts.find(keys)
        easy = self._prompts.read("won", rows) > 0
        streak = self._prompts.read("streak", rows)
        return np.asarray(np.where(easy, self._willingness["easy"], self._willingness["hard"]) ** streak)

    def update(
        self, keys: Keys, successes: Ints, rollouts: Ints, features: Features = NONE, began: Began | None = None
    ) -> None:
        """Take in one visit a prompt; rows of one prompt are parts of the same visit. O(len(keys)), amortised."""
        began = self._told(began)
        visited, won, tried, _ = one_visit(keys, successes, rollouts)
        if self.known(visited).any():
            for name, count in (("easy", won == tried), ("hard", won == 0)):
                step = -_STEP if count.mean() >= _TARGETS[name] else _STEP
                self._willingness[name] = float(np.clip(self._willingness[name] + step, *_BOUNDS))
        table, rows = self._prompts, self._prompts.rows(visited)
        newest = self._newest(rows, began)
        rows, won, tried = rows[newest], won[newest], tried[newest]
        streak = table["streak"][rows].astype(np.int64)
        equal = (won == 0) | (won == tried)
        # One reward always equals itself: it neither makes a streak longer nor ends it.
        table["streak"][rows] = np.where(tried == 1, streak, np.where(equal, np.minimum(streak + 1, _LONGEST), 0))
        table["won"][rows], table["tried"][rows] = won, tried
        self.updates += int(np.any(rollouts))

    def state_dict(self) -> dict[str, Any]:
        """What was learned as plain numbers and arrays."""
        return {"updates": self.updates, **self._willingness, **self._prompts.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what was learned.

        Raises:
            StateError: the state is not what `state_dict` writes. Nothing has changed then.
        """
        prompts, updates = self._prompts.restored(state), whole_number(state, "updates")
        try:
            willingness = {name: float(state[name]) for name in _TARGETS}
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"state: expected the numbers easy and hard of an estimator, got {error!r}.") from error
        if updates < 0 or not all(_BOUNDS[0] <= number <= _BOUNDS[1] for number in willingness.values()):
            raise StateError(f"state: expected updates of 0 or more, and easy and hard within {_BOUNDS}.")
        if not np.all((prompts["won"] >= 0) & (prompts["won"] <= prompts["tried"]) & (prompts["tried"] > 0)):
            raise StateError("state: expected 0 <= won <= tried, and tried above 0.")
        self._take_over(prompts)
        self.updates, self._willingness = updates, willingness
