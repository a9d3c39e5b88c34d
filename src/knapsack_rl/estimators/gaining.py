"""The learned belief, and whether hard prompts gain most from one visit to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl import metrics
from knapsack_rl.errors import StateError
from knapsack_rl.estimators.base import Visits
from knapsack_rl.estimators.regression import Regression
from knapsack_rl.estimators.state import numbers, whole_number

Floats = NDArray[np.float64]

_CERTAIN = 3.0  # standard errors: it is asked at every step, and two would be reached by chance sooner or later
_UPDATES = 8.0  # T from which a standard error is worth three of it; with two updates one in five passes by chance
_SUMS = 5  # over updates, of x, n, x x, x n and n n


class Gaining(Regression):
    """`Regression`, which also watches `metrics.learning_progress` until it is clear that hard prompts gain most.

    In each class of `metrics.PROGRESS` an update has n pairs of visits, and x is the sum of their rises. For the mean
    rise m = sum x / sum n,

        error^2 = sum (x - m n)^2 / (sum n)^2 / (1 - 1/T),    T = (sum n)^2 / sum n^2.

    Groups have to be even as long as it watches. Memory and cost are those of `Regression`, and O(V N) an update for
    groups of N.

    Attributes:
        hard_gain: whether prompts with less than half right were seen to gain more than `metrics.FAVOURED` times what
            those with more gain, by three standard errors, over at least T = 8. It stays true.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hard_gain = False
        self._sums = np.zeros((_SUMS, len(metrics.PROGRESS)))

    @property
    def progress(self) -> metrics.LearningProgress:
        """What was seen so far."""
        x, n, xx, xn, nn = self._sums
        with np.errstate(invalid="ignore", divide="ignore"):
            rise = x / n
            error = np.sqrt(np.maximum(xx - 2.0 * rise * xn + rise**2 * nn, 0.0) / (n**2 - nn))
        return metrics.LearningProgress(n.copy(), rise, np.where(n**2 > (1.0 + 1e-9) * nn, error, np.inf))

    def learn(self, visits: Visits) -> None:
        """As in `Regression`; and from the pairs of visits, until it is clear."""
        super().learn(visits)
        again = visits.known & visits.newest
        if self.hard_gain or not again.any():
            return
        won, tried = (self.read(column, visits.keys[again]).astype(np.int64) for column in ("won", "tried"))
        weight, total = metrics.rises(won, tried, visits.won[again], visits.tried[again])
        x, n = total.sum(axis=1), weight.sum(axis=1)
        self._sums = self._sums + np.stack([x, n, x * x, x * n, n * n])
        _, pairs, *_, squares = self._sums
        told = bool(np.all(pairs[[1, 3]] ** 2 >= _UPDATES * squares[[1, 3]]))
        self.hard_gain = told and self.progress.lean[0] > _CERTAIN

    def state_dict(self) -> dict[str, Any]:
        """As in `Regression`, and what was seen of gains."""
        return {**super().state_dict(), "hard_gain": int(self.hard_gain), "gains": self._sums.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As in `Estimator`."""
        sums, known = numbers(state, "gains", self._sums.shape), whole_number(state, "hard_gain")
        if known > 1 or np.any(sums[[1, 2, 4]] < 0.0):
            raise StateError("state: expected hard_gain of 0 or 1, and gains with counts and squares of 0 or more.")
        super().load_state_dict(state)
        self.hard_gain, self._sums = bool(known), sums
