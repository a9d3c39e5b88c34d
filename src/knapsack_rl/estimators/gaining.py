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
from knapsack_rl.estimators.state import whole_number

_CERTAIN = 3.0  # standard errors: it is asked at every step, and two would be reached by chance sooner or later


class Gaining(Regression):
    """`Regression`, which also watches `metrics.learning_progress` until it is clear that hard prompts gain most.

    It watches the first `metrics.EARLY` pairs of visits of each prompt. The steps that its errors come from are those
    of the later visits, since an update is told no others. Groups have to be even as long as it watches. Memory and
    cost are those of `Regression`, a byte more for each known prompt, and O(V N) an update for groups of N.

    Attributes:
        hard_gain: whether prompts with less than half right were seen to gain more than `metrics.FAVOURED` times what
            those with more gain, by three standard errors. Once true it stays so.
    """

    def __init__(self) -> None:
        super().__init__(times=np.uint8)  # visited, up to the first that does not count
        self.hard_gain = False
        self._rises = metrics.progress_means()

    @property
    def progress(self) -> metrics.LearningProgress:
        """What was seen so far."""
        return metrics.progress_of(self._rises)

    def learn(self, visits: Visits) -> None:
        """As in `Regression`; and from the pairs of visits, until it is clear."""
        super().learn(visits)
        if self.hard_gain:
            return
        rows = self.table.find(visits.keys)
        again = visits.known & visits.newest & (self.table.read("times", rows) <= metrics.EARLY)
        if not again.any():
            return
        won, tried = (self.table.read(column, rows[again]).astype(np.int64) for column in ("won", "tried"))
        weight, total = metrics.rises(won, tried, visits.won[again], visits.tried[again])
        self._rises.add(total.sum(axis=1), weight.sum(axis=1))
        self.hard_gain = self.progress.lean[0] > _CERTAIN

    def remember(self, rows: NDArray[np.int64], visits: Visits) -> None:
        """As in `Regression`, and count the visits."""
        super().remember(rows, visits)
        self.table["times"][rows] = np.minimum(self.table["times"][rows], metrics.EARLY) + 1

    def state_dict(self) -> dict[str, Any]:
        """As in `Regression`, and what was seen of gains."""
        gains = {"gain_sums": self._rises.sums.copy(), "gain_products": self._rises.products.copy()}
        return {**super().state_dict(), "hard_gain": int(self.hard_gain), **gains}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As in `Estimator`."""
        rises, known = metrics.progress_means(), whole_number(state, "hard_gain")
        try:
            rises.load_state_dict({"sums": state["gain_sums"], "products": state["gain_products"]})
            times = np.asarray(state["times"])
            if known > 1 or np.any((times < 1) | (times > metrics.EARLY + 1)):
                raise ValueError(f"hard_gain of {known}, times outside 1 to {metrics.EARLY + 1}")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StateError(
                f"state: expected what was seen of gains, as state_dict writes it, got {error!r}."
            ) from error
        super().load_state_dict(state)
        self.hard_gain, self._rises = bool(known), rises
