"""Estimators: what we believe a prompt's success rate is, and how sure we are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.beta import Belief
from knapsack_rl.success_rate.discounted import DiscountedBeta
from knapsack_rl.success_rate.features import Features
from knapsack_rl.success_rate.recent import RecentRewards
from knapsack_rl.success_rate.regression import Regression
from knapsack_rl.success_rate.transitions import TransitionTable

__all__ = ["DiscountedBeta", "Estimator", "RecentRewards", "Regression", "TransitionTable"]


class Estimator(Protocol):
    """What an allocator asks of an estimator. Keys are 64-bit, shape (M,); `update` alone changes anything."""

    def __len__(self) -> int:
        """Known prompts."""

    def known(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether each prompt was ever visited."""

    def rates(self, keys: NDArray[np.uint64], features: Features) -> NDArray[np.float64]:
        """Point estimates, NaN where never visited."""

    def all_rates(self) -> NDArray[np.float64]:
        """Success rates of all known prompts, as observed last, in order of their first visit."""

    def belief(self, keys: NDArray[np.uint64], features: Features) -> Belief:
        """A distribution of each prompt's success rate at its next visit, for unknown prompts too."""

    def update(
        self,
        keys: NDArray[np.uint64],
        successes: NDArray[np.int64],
        rollouts: NDArray[np.int64],
        features: Features,
    ) -> None:
        """Take in one visit a prompt; rows of one prompt are parts of one visit, rows without rollouts are none."""

    def state_dict(self) -> dict[str, Any]:
        """What was learned: numbers, texts and arrays."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what was learned, or raise StateError and change nothing."""
