"""What every estimator is: a table of known prompts, a belief about each prompt, and a state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.belief import Belief
from knapsack_rl.estimators.features import NONE, Features
from knapsack_rl.estimators.table import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]


class Began(NamedTuple):
    """When a step began.

    Attributes:
        visits: how many visits had been told by then.
        number: of the step, in the order in which they began.
    """

    visits: int
    number: int


class Estimator(ABC):
    """What an allocator asks of an estimator. Keys are 64-bit, shape (M,); `update` alone changes anything."""

    _prompts: Table
    """A row for each known prompt; the column `step` has the number of the newest step that visited it."""
    _latest = _begun = _open = 0
    """Number of the newest step that was told, of the newest that began, and how many began that were not told yet."""
    _COUNTS = ("won", "tried")
    """Columns of successes and rewards that `all_rates` divides."""

    def __len__(self) -> int:
        """Known prompts."""
        return len(self._prompts)

    @property
    def clock(self) -> int:
        """Visits so far, for estimators to which the age of evidence matters; 0 for all others."""
        return 0

    def begin(self) -> Began:
        """Say when a step begins that begins now.

        Its number is above those of all that were told and of all that are open. While none is, it follows from the
        state, so that a run that was resumed counts as it would have.
        """
        self._begun = max(self._latest, self._begun if self._open else 0) + 1
        self._open += 1
        return Began(self.clock, self._begun)

    def known(self, keys: Keys) -> NDArray[np.bool_]:
        """Whether each prompt was ever visited. O(M)."""
        return self._prompts.find(keys) >= 0

    def all_rates(self) -> Floats:
        """Success rates of all known prompts, as observed last, in order of their first visit. O(known prompts)."""
        won, tried = (self._prompts[name] for name in self._COUNTS)
        return np.asarray(won / tried, dtype=np.float64)

    def rates(self, keys: Keys, features: Features = NONE) -> Floats:
        """Point estimates, shape (M,), NaN where never visited."""
        return self.point(keys, self.belief(keys, features))

    def point(self, keys: Keys, belief: Belief) -> Floats:
        """The point estimates for prompts about which this is believed, NaN where never visited. O(M)."""
        return np.where(self.known(keys), belief.mean, np.nan)

    @abstractmethod
    def belief(self, keys: Keys, features: Features) -> Belief:
        """A distribution of each prompt's success rate at its next visit, for unknown prompts too."""

    @abstractmethod
    def update(
        self, keys: Keys, successes: Ints, rollouts: Ints, features: Features = NONE, began: Began | None = None
    ) -> None:
        """Take in one visit a prompt; rows of one prompt are parts of one visit, rows without rollouts are none.

        `began` is what `begin` said when the step of these rollouts began; None for one that begins now. A visit that
        is told late, after one of the same prompt whose step began later, does not pass for its last.
        """

    def _told(self, began: Began | None) -> Began:
        """Note that a step is told; one that begins now if `began` is None."""
        began = began or self.begin()
        self._open = max(self._open - 1, 0)
        return began

    def _newest(self, rows: Ints, began: Began) -> NDArray[np.bool_]:
        """Note a visit of these rows, and say of which of them no newer one has been told."""
        newest = np.asarray(self._prompts["step"][rows] <= began.number)
        self._prompts["step"][rows[newest]] = began.number
        if newest.any():
            self._latest = max(self._latest, began.number)
        return newest

    def _take_over(self, prompts: Table) -> None:
        """Replace the table by that of a saved state; steps that begin from now on are newer than all in it."""
        self._prompts = prompts
        self._latest = int(prompts["step"].max(initial=0))

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What was learned: numbers, texts and arrays."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what was learned, or raise StateError and change nothing."""


class ObservedRates(Estimator):
    """An estimator whose point estimates are the observed rates themselves, exact zeros and ones included."""

    def point(self, keys: Keys, belief: Belief) -> Floats:
        """The observed rates, NaN where never visited; what is believed of them plays no part. O(M)."""
        won, tried = self._counts(keys)
        with np.errstate(invalid="ignore"):
            return won / tried

    def belief(self, keys: Keys, features: Features) -> Belief:
        """The rewards that count, on Jeffreys' prior Beta(1/2, 1/2); features play no part."""
        won, tried = self._counts(keys)
        return Belief(won + 0.5, tried - won + 0.5)

    def _counts(self, keys: Keys) -> tuple[Floats, Floats]:
        rows = self._prompts.find(keys)
        won, tried = (self._prompts.read(name, rows) for name in self._COUNTS)
        return won, tried
