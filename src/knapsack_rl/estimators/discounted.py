"""Discounted Beta: a prompt's own outcomes, older ones counting less, on a prior that all prompts share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.belief import Belief
from knapsack_rl.errors import StateError
from knapsack_rl.estimators.base import Estimator, Visits
from knapsack_rl.estimators.features import Features
from knapsack_rl.estimators.state import MOST_ROLLOUTS, numbers
from knapsack_rl.estimators.table import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

_FADING = 0.9  # of the evidence behind the prior, at each update
_RHO = (0.02, 0.9)  # bounds of the intra-class correlation


class DiscountedBeta(Estimator):
    """p_i ~ Beta(a + S_i, b + F_i), with S <- discount S + successes and F <- discount F + failures at each visit.

    A visit that is told late counts as the one before the last.

    The prior Beta(a, b) is fixed, or empirical: its mean is the recent mean over everyone's visits, and its weight
    a + b = 1/rho - 1 comes from the intra-class correlation rho of their outcomes, by moments. The moments are those of
    visits whose size was decided before their first outcome; where sampling stops by outcomes they are off.

    Args:
        discount: what is left of older outcomes at a new visit, in [0, 1].
        prior: a and b, or None for the empirical prior.
    """

    def __init__(self, discount: float = 0.5, prior: tuple[float, float] | None = None) -> None:
        super().__init__(wins=np.float32, losses=np.float32)
        self.discount, self.prior = discount, prior
        self._moments = np.array([0.5, 1.0, 0.3, 1.0])  # of rates: sum, weight; of correlation: numerator, denominator

    def belief(self, keys: Keys, features: Features) -> Belief:
        """The belief about each prompt's success rate; features play no part."""
        rows, (a, b) = self.table.find(keys), self._shared()
        return Belief(a + self.table.read("wins", rows), b + self.table.read("losses", rows))

    def learn(self, visits: Visits) -> None:
        """Learn the prior from everyone's outcomes. O(V)."""
        won, tried = visits.won, visits.tried
        mean = self._moments[0] / self._moments[1]
        spread = mean * (1.0 - mean)
        excess = ((won - tried * mean) ** 2 - tried * spread)[tried > 1].sum()
        pairs = (tried * (tried - 1) * spread).sum()
        self._moments = _FADING * self._moments + [(won / tried).sum(), len(won), excess, pairs]

    def remember(self, rows: Ints, visits: Visits) -> None:
        """Take the visits into the discounted counts. O(V)."""
        discounted(self.table, rows, visits, self.discount)

    def _shared(self) -> tuple[float, float]:
        if self.prior is not None:
            return self.prior
        rates, weight, excess, pairs = self._moments
        mean = float(np.clip(rates / weight, 0.005, 0.995))
        strength = 1.0 / float(np.clip(excess / max(pairs, 1e-9), *_RHO)) - 1.0
        return mean * strength, (1.0 - mean) * strength

    @property
    def settings(self) -> dict[str, Any]:
        """Discount and prior."""
        return {"discount": self.discount, "prior": None if self.prior is None else list(self.prior)}

    def state_dict(self) -> dict[str, Any]:
        """As in `Estimator`, and the moments that the prior comes from."""
        return {**super().state_dict(), "moments": self._moments.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As in `Estimator`."""
        prompts, moments = self._restored(state), numbers(state, "moments", (4,))
        if not 0.0 <= moments[0] <= moments[1] or moments[1] == 0.0:
            raise StateError("state: expected moments with a sum of rates between 0 and their positive weight.")
        check_memory(prompts)
        self._take_over(prompts)
        self._moments = moments


def check_memory(table: Table) -> None:
    """Refuse a discounted memory of a saved state that no outcomes lead to.

    Raises:
        StateError: a count is negative, or larger than any can become.
    """
    if not all(np.all((table[name] >= 0) & (table[name] < MOST_ROLLOUTS)) for name in ("wins", "losses")):
        raise StateError(f"state: expected wins and losses between 0 and {MOST_ROLLOUTS:g}.")


def discounted(table: Table, rows: Ints, visits: Visits, discount: float) -> None:
    """Take visits into a discounted memory (`wins`, `losses`) of which the last visit counts in full.

    A visit that is not the newest takes the place before the last one: S <- d (S - s_last) + d s + s_last.
    """
    last, lost = table["won"][rows], table["tried"][rows] - table["won"][rows]
    for name, came, at_last in (("wins", visits.won, last), ("losses", visits.tried - visits.won, lost)):
        older = table[name][rows]
        late = discount * (older - at_last + came) + at_last
        table[name][rows] = np.where(visits.newest, discount * older + came, late)
