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
        self._prompts = Table(cost=np.float32, rollouts=np.float32, truncated=np.float32)
        self._categories = Table(cost=np.float64, rollouts=np.float64, truncated=np.float64)
        self._all = dict.fromkeys(self._prompts.columns, 0.0)

    def __len__(self) -> int:
        """Prompts whose costs were ever told."""
        return len(self._prompts)

    def expected(self, keys: Keys, features: Features = NONE) -> Floats:
        """Cost of one rollout of each prompt, shape (M,), above 0. O(M)."""
        return self._mean("cost", keys, features, 1.0)

    def truncation_rates(self, keys: Keys, features: Features = NONE) -> Floats:
        """Share of each prompt's rollouts that is expected to be cut off, shape (M,), in [0, 1]. O(M)."""
        return self._mean("truncated", keys, features, 0.0)

    def _mean(self, name: str, keys: Keys, features: Features, unknown: float) -> Floats:
        """Mean of a column over rollouts, by prompt, drawn to categories and all; `unknown` before any was told."""
        overall = self._all[name] / self._all["rollouts"] if self._all["rollouts"] else unknown
        shared = np.full(len(keys), overall)
        if features.categories:
            columns = features.categories.values()
            shared = np.mean([_mean(self._categories, name, column, overall, _SHARED_PRIOR) for column in columns], 0)
        return _mean(self._prompts, name, keys, shared, _PRIOR)

    def update(
        self, keys: Keys, costs: Floats, rollouts: Ints, features: Features = NONE, truncated: Ints | None = None
    ) -> None:
        """Take in what the rollouts of a visit cost. O(M).

        Args:
            keys: who the prompts are; rows of one prompt are parts of one visit.
            costs: shape (M,), of a prompt's rollouts together, 0 or more.
            rollouts: shape (M,), how many there were; a row without any, or without a cost, teaches nothing.
            features: what else is known about the prompts.
            truncated: shape (M,), how many of them were cut off, at most `rollouts`; None for none.
        """
        seen = np.flatnonzero((rollouts > 0) & (costs > 0.0))
        if not len(seen):
            return
        told = {
            "cost": costs,
            "rollouts": rollouts,
            "truncated": np.zeros(len(keys)) if truncated is None else truncated,
        }
        came = {name: column[seen].astype(np.float64) for name, column in told.items()}
        _add(self._prompts, keys[seen], came, _DISCOUNT)
        for name in self._categories.columns:
            self._categories[name][:] *= _FADING
        for column in features.categories.values():
            _add(self._categories, column[seen], came, 1.0)
        self._all = {name: _FADING * self._all[name] + float(came[name].sum()) for name in self._all}

    def state_dict(self) -> dict[str, Any]:
        """What was learned: numbers and arrays, 20 bytes a prompt. O(known prompts)."""
        overall = {f"{name}_of_all": number for name, number in self._all.items()}
        return {**self._prompts.state_dict(), **self._categories.state_dict("category_"), **overall}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what was learned.

        Raises:
            StateError: the state is not what `state_dict` writes. Nothing has changed then.
        """
        prompts, categories = self._prompts.restored(state), self._categories.restored(state, "category_")
        overall = {name: number(state, f"{name}_of_all", 0.0, np.finfo(float).max) for name in self._all}
        for table in (prompts, categories):
            if not np.all((table["cost"] >= 0.0) & (table["rollouts"] >= 0.0)):
                raise StateError("state: expected costs and rollouts that are not negative.")
            if not np.all((table["truncated"] >= 0.0) & (table["truncated"] <= table["rollouts"])):
                raise StateError("state: expected no more rollouts that were truncated than there were.")
        if (overall["cost"] > 0.0) != (overall["rollouts"] > 0.0) or overall["truncated"] > overall["rollouts"]:
            raise StateError("state: expected a cost of all rollouts, and truncated ones, only where there were some.")
        self._prompts, self._categories, self._all = prompts, categories, overall


def _mean(table: Table, name: str, keys: Keys, prior: Floats | float, weight: float) -> Floats:
    """Mean of a column over the rollouts of these keys, drawn to the prior as if that were `weight` rollouts more."""
    rows = table.find(keys)
    return np.asarray((table.read(name, rows) + weight * prior) / (table.read("rollouts", rows) + weight))


def _add(table: Table, keys: Keys, came: Mapping[str, Floats], discount: float) -> None:
    """Add to the rows of these keys, what they held before multiplied by the discount."""
    different, part = np.unique(keys, return_inverse=True)
    rows = table.rows(different)
    for name, column in came.items():
        table[name][rows] = discount * table[name][rows] + np.bincount(part, column, len(different))
