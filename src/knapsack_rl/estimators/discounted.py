"""Discounted Beta: a prompt's own outcomes, older ones counting less, on a prior that all prompts share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.belief import Belief
from knapsack_rl.errors import StateError
from knapsack_rl.estimators.base import Began, Estimator
from knapsack_rl.estimators.features import NONE, Features
from knapsack_rl.estimators.table import Table, one_visit, remember

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
        self.discount, self.prior = discount, prior
        self._prompts = Table(wins=np.float32, losses=np.float32, won=np.float32, tried=np.float32, step=np.uint32)
        self._moments = np.array([0.5, 1.0, 0.3, 1.0])  # of rates: sum, weight; of correlation: numerator, denominator

    def belief(self, keys: Keys, features: Features) -> Belief:
        """The belief about each prompt's success rate; features play no part."""
        rows, (a, b) = self._prompts.find(keys), self._shared()
        return Belief(a + self._prompts.read("wins", rows), b + self._prompts.read("losses", rows))

    def update(
        self, keys: Keys, successes: Ints, rollouts: Ints, features: Features = NONE, began: Began | None = None
    ) -> None:
        """Take in one visit a prompt; rows of one prompt are parts of the same visit. O(len(keys)), amortised."""
        began = self._told(began)
        visited, won, tried, _ = one_visit(keys, successes, rollouts)
        if not len(visited):
            return  # nothing came, so that nothing fades
        mean = self._moments[0] / self._moments[1]
        spread = mean * (1.0 - mean)
        excess = ((won - tried * mean) ** 2 - tried * spread)[tried > 1].sum()
        pairs = (tried * (tried - 1) * spread).sum()
        self._moments = _FADING * self._moments + [(won / tried).sum(), len(visited), excess, pairs]
        table, rows = self._prompts, self._prompts.rows(visited)
        remember(table, rows, won, tried, self.discount, self._newest(rows, began))

    def _shared(self) -> tuple[float, float]:
        if self.prior is not None:
            return self.prior
        rates, weight, excess, pairs = self._moments
        mean = float(np.clip(rates / weight, 0.005, 0.995))
        strength = 1.0 / float(np.clip(excess / max(pairs, 1e-9), *_RHO)) - 1.0
        return mean * strength, (1.0 - mean) * strength

    def state_dict(self) -> dict[str, Any]:
        """The beliefs as plain numbers and arrays."""
        return {"discount": self.discount, "moments": self._moments.copy(), **self._prompts.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the beliefs by saved ones.

        Raises:
            StateError: the state is not what `state_dict` writes, or of another discount. Nothing has changed then.
        """
        prompts = self._prompts.restored(state)
        try:
            discount, moments = float(state["discount"]), np.array(state["moments"], dtype=np.float64)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StateError(f"state: expected discount and moments of an estimator, got {error!r}.") from error
        if discount != self.discount:
            raise StateError(f"state: expected beliefs with discount {self.discount}, got {discount}.")
        if moments.shape != (4,) or not np.all(np.isfinite(moments)) or moments[1] <= 0.0:
            raise StateError("state: expected four finite moments with a positive weight.")
        won, tried = prompts["won"], prompts["tried"]
        if not np.all((prompts["wins"] >= 0) & (prompts["losses"] >= 0) & (won >= 0) & (won <= tried) & (tried > 0)):
            raise StateError("state: expected no negative counts, 0 <= won <= tried, and tried above 0.")
        self._take_over(prompts)
        self._moments = moments
