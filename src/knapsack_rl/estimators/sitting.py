"""Who sits out: prompts that got no rollouts at their last visits, and at how many of them in a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.errors import StateError
from knapsack_rl.estimators.table import Table

Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

MOST_VISITS = 255
"""In a row that are counted; one byte a prompt holds them."""


class SittingOut:
    """Visits in a row at which a prompt got no rollouts, up to 255."""

    def __init__(self) -> None:
        self._prompts = Table(visits=np.uint8)

    def __len__(self) -> int:
        """Prompts that sit out now."""
        return int(np.count_nonzero(self._prompts["visits"]))

    def visits(self, keys: Keys) -> Ints:
        """Of each prompt, shape (M,): how many times in a row it has sat out. O(M)."""
        return self._prompts.read("visits", self._prompts.find(keys)).astype(np.int64)

    def update(self, keys: Keys, rollouts: Ints) -> None:
        """Take in a visit of these prompts; rows of one prompt are parts of one visit. O(M)."""
        different, part = np.unique(keys, return_inverse=True)
        out = np.bincount(part, rollouts > 0, len(different)) == 0
        known = self._prompts.find(different)
        self._prompts["visits"][known[(known >= 0) & ~out]] = 0
        rows = self._prompts.rows(different[out])
        self._prompts["visits"][rows] = np.minimum(self._prompts["visits"][rows].astype(np.int64) + 1, MOST_VISITS)

    def state_dict(self) -> dict[str, Any]:
        """Those who sit out: 9 bytes each. O(prompts that ever did)."""
        state = self._prompts.state_dict()
        now = state["visits"] > 0
        return {name: values[now] for name, values in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what is known.

        Raises:
            StateError: the state is not what `state_dict` writes. Nothing has changed then.
        """
        prompts = self._prompts.restored(state)
        if not np.all(prompts["visits"] > 0):
            raise StateError(f"state: expected 1 to {MOST_VISITS} visits of each prompt that sits out, got 0.")
        self._prompts = prompts
