"""Transition table: what became of prompts whose last two visits went alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.belief import Belief
from knapsack_rl.errors import StateError
from knapsack_rl.estimators.base import Estimator, Visits
from knapsack_rl.estimators.features import Features
from knapsack_rl.estimators.state import EXACT, numbers

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

_OUTCOMES = 6  # unvisited, none right, at most a quarter, at most a half, more, all right
_FADING = 0.95  # of a cell's evidence, at each update
_FADING_OF_ALL = 0.9
_PRIOR = 10.0  # visits that the mean over all cells counts for in each


class TransitionTable(Estimator):
    """p_i ~ Beta by moments of the recent success rates of prompts in the same cell.

    A cell is the outcome of the last visit and of the one before, each in one of six classes. The moments are those of
    visits whose size was decided before their first outcome; where sampling stops by outcomes they are off.

    A visit that is told late counts as the one before the last, and teaches no cell: what it followed is unknown.
    """

    def __init__(self) -> None:
        super().__init__(cell=np.uint8)
        # Sums over visits: rates, visits, products of two rollouts' rewards, visits that have two rollouts.
        self._cells = np.zeros((_OUTCOMES**2, 4))
        self._all = np.array([1.0, 2.0, 0.4, 1.0])

    def belief(self, keys: Keys, features: Features) -> Belief:
        """The belief about each prompt's success rate; features play no part."""
        cells = self._cells[self.table.read("cell", self.table.find(keys)).astype(np.int64)]
        mean_of_all = self._all[0] / self._all[1]
        square_of_all = max(self._all[2] / self._all[3], 1.02 * mean_of_all**2)
        mean = (cells[:, 0] + _PRIOR * mean_of_all) / (cells[:, 1] + _PRIOR)
        square = (cells[:, 2] + _PRIOR * square_of_all) / (cells[:, 3] + _PRIOR)
        mean = np.clip(mean, 1e-3, 1.0 - 1e-3)
        spread = mean * (1.0 - mean)
        weight = spread / np.clip(square - mean**2, 0.01 * spread, 0.9 * spread) - 1.0
        return Belief(mean * weight, (1.0 - mean) * weight)

    def learn(self, visits: Visits) -> None:
        """Learn what became of the prompts of each cell. O(V)."""
        won, tried = visits.won.astype(np.float64), visits.tried.astype(np.float64)  # whose squares overflow nothing
        pairs = tried > 1
        both = np.where(pairs, won * (won - 1) / np.maximum(tried * (tried - 1), 1), 0.0)
        seen = np.stack((won / tried, np.ones(len(won)), both, pairs), axis=1)
        cells = self.read("cell", visits.keys).astype(np.int64)
        self._cells = _FADING * self._cells
        np.add.at(self._cells, cells[visits.newest], seen[visits.newest])
        fading = np.full(4, _FADING_OF_ALL)
        if not pairs.any():
            fading[2:] = 1.0  # what pairs have shown stays until there are newer ones
        self._all = fading * self._all + seen.sum(axis=0)

    def remember(self, rows: Ints, visits: Visits) -> None:
        """Move the visited prompts to their next cells. O(V)."""
        cells = self.table["cell"][rows]
        last, outcome = cells // _OUTCOMES, _outcome(visits.won, visits.tried)
        self.table["cell"][rows] = np.where(visits.newest, _OUTCOMES * outcome + last, _OUTCOMES * last + outcome)

    def state_dict(self) -> dict[str, Any]:
        """As in `Estimator`, and the sums of all cells."""
        return {**super().state_dict(), "cells": self._cells.copy(), "all": self._all.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As in `Estimator`."""
        prompts = self._restored(state)
        cells, everyone = numbers(state, "cells", self._cells.shape), numbers(state, "all", (4,))
        if np.any(cells < 0.0) or np.any(everyone < 0.0) or np.any(everyone[[1, 3]] == 0.0):
            raise StateError("state: expected cells and all that are not negative, and all with positive weights.")
        if np.any(cells[:, [0, 2]] > cells[:, [1, 3]] + 1e-9) or np.any(everyone[[0, 2]] > everyone[[1, 3]] + 1e-9):
            raise StateError("state: expected sums of cells and all that are at most their weights.")
        if np.any(prompts["cell"] >= _OUTCOMES**2):
            raise StateError(f"state: expected cells of the table, 0 to {_OUTCOMES**2 - 1}.")
        won, tried = prompts["won"].astype(np.float64), prompts["tried"].astype(np.float64)
        if np.any((prompts["cell"] // _OUTCOMES != _outcome(won, tried)) & (tried < EXACT)):
            raise StateError("state: expected cells that are those of won and tried.")
        self._take_over(prompts)
        self._cells, self._all = cells, everyone


def _outcome(won: Ints | Floats, tried: Ints | Floats) -> Ints:
    """Class of a visit's outcome, 1 to 5."""
    rate = won / tried
    return np.asarray(1 + (won > 0) + (rate > 0.25) + (rate > 0.5) + (won == tried), dtype=np.int64)
