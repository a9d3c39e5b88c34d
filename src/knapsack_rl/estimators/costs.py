"""What one rollout of a prompt is expected to cost, in tokens, seconds or whatever the caller counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.errors import StateError
from knapsack_rl.estimators.features import NONE, Features
from knapsack_rl.estimators.state import number
from knapsack_rl.estimators.table import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

_DISCOUNT = 0.5  # what is left of a prompt's older costs at a new visit: answers grow and shrink as the policy learns
_FADING = 0.9  # of everyone's costs, at each update
_PRIOR = 4.0  # rollouts that the mean of its categories weighs in a prompt's expected cost
_SHARED_PRIOR = 16.0  # rollouts that the mean over all prompts weighs in that of a category


class RolloutCosts:
    """Discounted means of the cost of a rollout, drawn to those of the prompt's categories, and these to that of all.

    With S the cost and W the rollouts that count, and m the mean over all prompts,

        category c    m_c = (S_c + 16 m) / (W_c + 16)
        prompt i      (S_i + 4 m_c) / (W_i + 4),    m_c averaged over the prompt's categories; m where it has none

    A prompt's S and W are halved at each of its visits, everyone's are multiplied by 0.9 at each update. Nothing that
    was told is worth 1, so that without observations all prompts cost the same.
    """

    def __init__(self) -> None:
        self._prompts = Table(cost=np.float32, rollouts=np.float32)
        self._categories = Table(cost=np.float64, rollouts=np.float64)
        self._cost = self._rollouts = 0.0

    def __len__(self) -> int:
        """Prompts whose costs were ever told."""
        return len(self._prompts)

    def expected(self, keys: Keys, features: Features = NONE) -> Floats:
        """Cost of one rollout of each prompt, shape (M,), above 0. O(M)."""
        overall = self._cost / self._rollouts if self._rollouts else 1.0
        shared = np.full(len(keys), overall)
        if features.categories:
            means = [_mean(self._categories, column, overall, _SHARED_PRIOR) for column in features.categories.values()]
            shared = np.mean(means, axis=0)
        return _mean(self._prompts, keys, shared, _PRIOR)

    def update(self, keys: Keys, costs: Floats, rollouts: Ints, features: Features = NONE) -> None:
        """Take in what the rollouts of a visit cost. O(M).

        Args:
            keys: who the prompts are; rows of one prompt are parts of one visit.
            costs: shape (M,), of a prompt's rollouts together, 0 or more.
            rollouts: shape (M,), how many there were; a row without any, or without a cost, teaches nothing.
            features: what else is known about the prompts.
        """
        seen = np.flatnonzero((rollouts > 0) & (costs > 0.0))
        if not len(seen):
            return
        costs, counts = costs[seen], rollouts[seen].astype(np.float64)
        _add(self._prompts, keys[seen], costs, counts, _DISCOUNT)
        self._categories["cost"][:] *= _FADING
        self._categories["rollouts"][:] *= _FADING
        for column in features.categories.values():
            _add(self._categories, column[seen], costs, counts, 1.0)
        self._cost = _FADING * self._cost + float(costs.sum())
        self._rollouts = _FADING * self._rollouts + float(counts.sum())

    def state_dict(self) -> dict[str, Any]:
        """What was learned: numbers and arrays, 16 bytes a prompt. O(known prompts)."""
        overall = {"cost_of_all": self._cost, "rollouts_of_all": self._rollouts}
        return {**self._prompts.state_dict(), **self._categories.state_dict("category_"), **overall}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what was learned.

        Raises:
            StateError: the state is not what `state_dict` writes. Nothing has changed then.
        """
        prompts, categories = self._prompts.restored(state), self._categories.restored(state, "category_")
        cost, rollouts = (number(state, f"{name}_of_all", 0.0, np.finfo(float).max) for name in ("cost", "rollouts"))
        for table in (prompts, categories):
            if not np.all((table["cost"] >= 0.0) & (table["rollouts"] >= 0.0)):
                raise StateError("state: expected costs and rollouts that are not negative.")
        if (cost > 0.0) != (rollouts > 0.0):
            raise StateError("state: expected a cost of all rollouts exactly where there were some.")
        self._prompts, self._categories, self._cost, self._rollouts = prompts, categories, cost, rollouts


def _mean(table: Table, keys: Keys, prior: Floats | float, weight: float) -> Floats:
    """Mean cost of a rollout of these keys, drawn to the prior as if that were `weight` rollouts more."""
    rows = table.find(keys)
    return np.asarray((table.read("cost", rows) + weight * prior) / (table.read("rollouts", rows) + weight))


def _add(table: Table, keys: Keys, costs: Floats, rollouts: Floats, discount: float) -> None:
    """Add costs and rollouts to the rows of these keys, what they held before multiplied by the discount."""
    different, part = np.unique(keys, return_inverse=True)
    rows = table.rows(different)
    for name, came in (("cost", costs), ("rollouts", rollouts)):
        table[name][rows] = discount * table[name][rows] + np.bincount(part, came, len(different))
