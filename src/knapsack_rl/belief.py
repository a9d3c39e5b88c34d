"""What is believed about success rates: a Beta distribution for each prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.beta import log_beta

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Belief:
    """What is believed about the success rates of M prompts: p_i ~ Beta(wins_i, losses_i).

    Attributes:
        wins: shape (M,), positive; after s successes and f failures it is wins + s,
        losses: shape (M,), positive; and this losses + f.
    """

    wins: Floats
    losses: Floats

    @property
    def mean(self) -> Floats:
        """Expected success rates, strictly between 0 and 1."""
        return np.asarray(self.wins / (self.wins + self.losses))

    @property
    def deviation(self) -> Floats:
        """Standard deviations of the success rates."""
        mean = self.mean
        return np.sqrt(mean * (1.0 - mean) / (self.wins + self.losses + 1.0))

    def given(self, successes: NDArray[np.int64], rollouts: NDArray[np.int64]) -> Belief:
        """The belief after these outcomes of each prompt; it does not matter why sampling stopped there."""
        return Belief(self.wins + successes, self.losses + (rollouts - successes))

    def log_likelihood(self, successes: NDArray[np.int64], rollouts: NDArray[np.int64]) -> Floats:
        """Log probability of each prompt's outcomes, in the order in which they came: the log score of the belief."""
        after = self.given(successes, rollouts)
        return log_beta(after.wins, after.losses) - log_beta(self.wins, self.losses)
