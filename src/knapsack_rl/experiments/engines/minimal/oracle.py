"""An oracle: a strategy that is told the true success rates, and what tells it.

A reference and no competitor: it samples each prompt before every step, and nobody is charged for that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import knapsack_rl as kr
from knapsack_rl.experiments.engines.minimal.grpo import Loop
from knapsack_rl.strategies.ours import last_visit

_COLUMNS = ("successes of the oracle's samples", "the oracle's samples")


def oracle(view: kr.View[Any], amount: int) -> kr.Plan:
    """The paper's rule on what the oracle's samples show; the estimator only keeps score."""
    successes, scored = (view.features.numbers[name][:, 0] for name in _COLUMNS)
    with np.errstate(invalid="ignore"):
        rates = successes / scored
    settings = view.settings
    return kr.allocate(
        rates,
        amount,
        view.least,
        settings.max_rollouts,
        fallback=settings.fallback,
        confidence=settings.confidence,
        costs=None if settings.cost_limit is None else view.costs,
        cost_budget=view.cost_budget(amount),
    )


STRATEGY = kr.Strategy(last_visit, oracle, name="oracle")


class Oracle:
    """Samples the prompts of a step with the policy that is about to be trained on them."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        # Apart from the loop's, so that an oracle does not change what training samples.
        self._random = torch.Generator().manual_seed(loop.recipe.seed + 1)

    def look(self, rows: list[int]) -> dict[str, Any]:
        """Features for the strategy, of the problems in these rows."""
        samples = np.full(len(rows), self._loop.recipe.allocator.oracle_samples)
        counts = self._loop.generate(rows, samples, self._random).counts(len(rows))
        return dict(zip(_COLUMNS, counts, strict=True))
