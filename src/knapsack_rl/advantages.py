"""Advantages over groups of any sizes: the paper's equation 3, in float64, with TRL's scalings and aggregations.

The paper's equation 3 divides by the deviation with N; TRL and verl, which the paper trained with, divide by the one
with N - 1 (Bessel's correction), and so does this module.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EPSILON = 1e-6  # the paper's, beside equation 3; TRL has 1e-4


class Advantages(NamedTuple):
    """Advantages of a batch of rollouts, and what TRL logs beside them."""

    values: Floats
    """Shape (rollouts,), unclipped."""
    zero_std: float
    """Share of rollouts whose reward deviation, as the scaling takes it, is zero (TRL's frac_reward_zero_std)."""


def total_rewards(rewards: Floats, weights: Floats) -> Floats:
    """Weighted sum over the reward functions, shape (rollouts,); NaN where no function gave a reward."""
    return np.where(np.isnan(rewards).all(axis=1), np.nan, np.nansum(rewards * weights, axis=1))


def group_advantages(
    rewards: Floats, weights: Floats, groups: Ints, *, scale_rewards: str, multi_objective_aggregation: str
) -> Advantages:
    """Advantages of rollouts whose groups may be of any size and in any order.

    Args:
        rewards: shape (rollouts, reward functions), NaN where a function gave no reward.
        weights: shape (reward functions,).
        groups: shape (rollouts,), position of the prompt that each is a rollout of.
        scale_rewards: TRL's `group`, `batch` or `none`.
        multi_objective_aggregation: TRL's `sum_then_normalize` or `normalize_then_sum`.

    Returns:
        The advantages, 0 for rollouts without any reward; see `idle_rollouts` for groups of equal rewards.

    Cost: O(rollouts log rollouts).
    """
    total = total_rewards(rewards, weights)
    if multi_objective_aggregation == "sum_then_normalize":
        mean, std = _moments(total, groups)
        spread = {"group": std, "batch": np.full_like(std, _deviation(total)), "none": std}[scale_rewards]
        values = total - mean
        if scale_rewards != "none":
            values = values / (spread + EPSILON)
    else:
        moments = [_moments(column, groups) for column in rewards.T]
        normalized = np.stack(
            [(column - mean) / (std + EPSILON) for column, (mean, std) in zip(rewards.T, moments, strict=True)], axis=1
        )
        summed = total_rewards(normalized, weights)
        spread = np.full_like(summed, _deviation(summed))
        known = summed[~np.isnan(summed)]
        values = (summed - (known.mean() if known.size else 0.0)) / (spread + EPSILON)
    return Advantages(np.nan_to_num(values, nan=0.0), float(np.isclose(spread, 0.0).mean()))


def belief_advantages(successes: NDArray[np.bool_], judged: NDArray[np.bool_], expected: Floats) -> Floats:
    """Advantages over a baseline from before the step: (r - m) / sqrt(m (1 - m)), which is a success's z-score.

    Args:
        successes: shape (rollouts,), r.
        judged: shape (rollouts,), whether a rollout has the reward that decides; the others' advantage is 0.
        expected: shape (rollouts,), m, the believed success rate of each rollout's prompt, between 0 and 1 exclusive.
    """
    return np.where(judged, (successes - expected) / np.sqrt(expected * (1.0 - expected)), 0.0)


def idle_rollouts(
    rewards: Floats, weights: Floats, groups: Ints, *, multi_objective_aggregation: str
) -> NDArray[np.bool_]:
    """Shape (rollouts,): whether all rewards of a rollout's group are equal, so that its advantage is exactly 0.

    To be asked beside the advantages, where rounding in the mean leaves a little over that a small epsilon blows up.
    Compared are the weighted sums, or where functions are normalised one by one, each of them; NaN counts for none.
    """
    together = multi_objective_aggregation == "sum_then_normalize"
    compared = total_rewards(rewards, weights)[:, None] if together else rewards
    low = np.full((groups.max() + 1, compared.shape[1]), np.inf)
    high = -low
    np.fmin.at(low, groups, compared)
    np.fmax.at(high, groups, compared)
    return np.asarray((low >= high).all(axis=1))[groups]


def _moments(rewards: Floats, groups: Ints) -> tuple[Floats, Floats]:
    """Mean and deviation (N - 1) of each rollout's group over its scored rollouts; of a single one, deviation 0."""
    scored = ~np.isnan(rewards)
    count = np.bincount(groups, scored)
    mean = np.bincount(groups, np.where(scored, rewards, 0.0)) / np.maximum(count, 1)
    square = np.bincount(groups, np.where(scored, (rewards - mean[groups]) ** 2, 0.0))
    return mean[groups], np.sqrt(square / np.maximum(count - 1, 1))[groups]


def _deviation(rewards: Floats) -> float:
    scored = rewards[~np.isnan(rewards)]
    return float(scored.std(ddof=1)) if scored.size > 1 else 0.0
