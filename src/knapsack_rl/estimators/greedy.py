"""Whether the greedy response to a prompt succeeded when it was last seen; ReMax compares rollouts with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.errors import StateError
from knapsack_rl.estimators.table import Table

Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]


class GreedyResponses:
    """The newest outcome of each prompt's greedy response."""

    def __init__(self) -> None:
        self._prompts = Table(succeeded=np.int8)

    def __len__(self) -> int:
        """Prompts whose greedy response was ever told."""
        return len(self._prompts)

    def agreement(self, keys: Keys, success_rates: Floats) -> Floats:
        """The chance that a rollout earns what the greedy response earns, shape (M,); NaN where the rate is NaN.

        Where no greedy response was told it counts as what most rollouts are, which makes the chance the larger one.
        """
        rows = self._prompts.find(keys)
        succeeded = np.where(rows >= 0, self._prompts.read("succeeded", rows), success_rates >= 0.5)
        return np.where(succeeded > 0.0, success_rates, 1.0 - success_rates)

    def update(self, keys: Keys, succeeded: Floats) -> None:
        """Take in outcomes, 0 or 1, NaN where there is none; the last one of a prompt counts. O(M)."""
        told = np.flatnonzero(~np.isnan(succeeded))
        rows = self._prompts.rows(keys[told])
        self._prompts["succeeded"][rows] = succeeded[told]

    def state_dict(self) -> dict[str, Any]:
        """What was told: arrays, 9 bytes a prompt. O(known prompts)."""
        return self._prompts.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what was told.

        Raises:
            StateError: the state is not what `state_dict` writes. Nothing has changed then.
        """
        prompts = self._prompts.restored(state)
        if not np.isin(prompts["succeeded"], (0, 1)).all():
            raise StateError("state: expected outcomes of greedy responses that are 0 or 1.")
        self._prompts = prompts
