"""What groups of another size would have given, from how success rates are spread."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.experiments.audit.accounting import Log
from knapsack_rl.experiments.audit.expectation import (
    FEW_PROMPTS,
    candidate,
    fit_prior,
    predicted_mixed,
    resampled,
    unbiased_mixed,
)

SIZES = (2, 4, 8, 16, 32)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupSizes:
    """For each of `SIZES`, the share of groups that would be mixed, with its 95 % interval.

    Attributes:
        share: what is expected.
        low: low end of the interval; NaN with too few prompts.
        high: high end.
        mean: rollouts of a group in the log, on average.
    """

    share: Floats
    low: Floats
    high: Floats
    mean: float


def group_sizes(log: Log, seed: int = 0) -> GroupSizes:
    """Expected shares of mixed groups for all groups of the log at other sizes.

    For a group that drew n rollouts, N <= n needs no assumption; for N > n a beta prior is fitted to all groups, once
    for each resample of prompts.

    Cost: O(groups), and 400 fits to the different counts.
    """
    weights, bucket = resampled(len(log.keys), seed)
    bucket = bucket[log.prompt]
    base = int(log.rollouts.max()) + 1
    distinct, which = np.unique(log.rollouts * base + log.successes, return_inverse=True)
    drawn, won = distinct // base, distinct % base
    counts = np.bincount(bucket * len(distinct) + which, minlength=weights.shape[1] * len(distinct))
    occurs = weights @ counts.reshape(weights.shape[1], len(distinct))
    fits = fit_prior(won, drawn, occurs)
    samples = np.empty((len(weights), len(SIZES)))
    for place, size in enumerate(SIZES):
        sizes = np.full(len(distinct), size)
        known = unbiased_mixed(np.minimum(sizes, drawn), won, drawn)
        for fit in np.unique(fits):
            a, b = candidate(int(fit))
            mixed = np.where(drawn >= size, known, predicted_mixed(sizes, a + won, b + (drawn - won)))
            mine = fits == fit
            samples[mine, place] = occurs[mine] @ mixed / occurs[mine].sum(axis=1)
    low, high = np.quantile(samples[1:], (0.025, 0.975), axis=0)
    if len(log.keys) < FEW_PROMPTS:
        low, high = np.full(len(SIZES), np.nan), np.full(len(SIZES), np.nan)
    return GroupSizes(samples[0], low, high, float(log.rollouts.mean()))
