"""Advantages over groups of any sizes: the paper's equation 3, in float64, with TRL's scalings and aggregations.

The paper's equation 3 divides by the deviation with N; TRL and verl, which the paper trained with, divide by the one
with N - 1 (Bessel's correction), and so does this module.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.validation import as_counts, as_floats, one_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ROLLOUT_WEIGHTS = ("none", "sqrt")
"""What `rollout_weights` may be."""
EPSILON = 1e-6  # the paper's, beside equation 3
TRL_EPSILON = 1e-4
_CLIPPED_STEPS = 5  # looked at before anything is said about the bound
_CLIPPED = 0.05  # mean share of clipped advantages in them, above which it is said


class Advantages(NamedTuple):
    """Advantages of a batch of rollouts, and what TRL logs beside them."""

    values: Floats
    """Shape (rollouts,), not clipped."""
    zero_std: float
    """TRL's frac_reward_zero_std: share whose reward deviation, as the scaling takes it, is zero. GRPO's is a share of
    rollouts, RLOO's one of groups."""
    idle: NDArray[np.bool_]
    """Shape (rollouts,): whether all rewards of its group are equal (`idle_rollouts`)."""


def total_rewards(rewards: Floats, weights: Floats) -> Floats:
    """Weighted sum over the reward functions, shape (rollouts,); NaN where no function gave a reward."""
    return np.where(np.isnan(rewards).all(axis=1), np.nan, np.nansum(rewards * weights, axis=1))


def group_advantages(
    rewards: ArrayLike,
    groups: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    scale_rewards: str = "group",
    multi_objective_aggregation: str = "sum_then_normalize",
) -> Advantages:
    """Advantages of rollouts whose groups may be of any size and in any order (paper, equation 3).

    Args:
        rewards: shape (rollouts,), or (rollouts, reward functions); NaN where there is none.
        groups: shape (rollouts,), position of the prompt that each is a rollout of.
        weights: shape (reward functions,); by default 1 each.
        scale_rewards: TRL's `group`, `batch` or `none`.
        multi_objective_aggregation: TRL's `sum_then_normalize` or `normalize_then_sum`.

    Returns:
        The advantages; exactly 0 for rollouts without any reward and in groups of equal rewards (`idle_rollouts`).

    Raises:
        InvalidInputError: shapes do not fit, or an option is unknown.

    Cost: O(rollouts log rollouts).
    """
    one_of("scale_rewards", scale_rewards, ("group", "batch", "none"))
    one_of("multi_objective_aggregation", multi_objective_aggregation, ("sum_then_normalize", "normalize_then_sum"))
    each, of, weight = _checked(rewards, groups, weights)
    total = total_rewards(each, weight)
    if multi_objective_aggregation == "sum_then_normalize":
        mean, std = _moments(total, of)
        spread = {"group": std, "batch": np.full_like(std, _deviation(total)), "none": std}[scale_rewards]
        values = total - mean
        if scale_rewards != "none":
            values = values / (spread + EPSILON)
    else:
        moments = [_moments(column, of) for column in each.T]
        normalized = np.stack(
            [(column - mean) / (std + EPSILON) for column, (mean, std) in zip(each.T, moments, strict=True)], axis=1
        )
        summed = total_rewards(normalized, weight)
        spread = np.full_like(summed, _deviation(summed))
        known = summed[~np.isnan(summed)]
        values = (summed - (known.mean() if known.size else 0.0)) / (spread + EPSILON)
    idle = idle_rollouts(each, of, weight, multi_objective_aggregation=multi_objective_aggregation)
    values = np.where(idle | np.isnan(values), 0.0, values)
    return Advantages(values, float(np.isclose(spread, 0.0).mean()) if len(spread) else 0.0, idle)


def leave_one_out_advantages(
    rewards: ArrayLike, groups: ArrayLike, weights: ArrayLike | None = None, *, normalize: bool = False
) -> Advantages:
    """RLOO's advantages (Ahmadian et al., 2024): each reward minus the mean of the others in its group.

    That is N / (N - 1) times its distance from the mean of all N, so that they sum to 0 in every group.

    Args:
        rewards: shape (rollouts,), or (rollouts, reward functions); NaN where there is none.
        groups: shape (rollouts,), position of the prompt that each is a rollout of.
        weights: shape (reward functions,); by default 1 each.
        normalize: TRL's `normalize_advantages`: divided by their deviation over the whole batch, plus TRL's 1e-4. Their
            mean, which TRL subtracts too, is 0.

    Returns:
        The advantages; exactly 0 for rollouts without any reward, in groups of equal rewards, and for a reward without
        others.

    Raises:
        InvalidInputError: shapes do not fit.

    Cost: O(rollouts log rollouts).
    """
    each, of, weight = _checked(rewards, groups, weights)
    total = total_rewards(each, weight)
    mean, std = _moments(total, of)
    count = np.bincount(of, ~np.isnan(total))[of]
    with np.errstate(divide="ignore", invalid="ignore"):  # 0/0 for a reward without others
        values = (total - mean) * (count / (count - 1.0))
    if normalize:
        values = values / (_deviation(values) + TRL_EPSILON)
    idle = idle_rollouts(total, of)
    values = np.where(idle | np.isnan(values), 0.0, values)
    flat = np.isclose(std, 0.0)[np.unique(of, return_index=True)[1]]
    return Advantages(values, float(flat.mean()) if len(flat) else 0.0, idle)


def idle_rollouts(
    rewards: ArrayLike,
    groups: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    multi_objective_aggregation: str = "sum_then_normalize",
) -> NDArray[np.bool_]:
    """Shape (rollouts,): whether all rewards of a rollout's group are equal, so that its advantage is exactly 0.

    To be asked beside the advantages, where rounding in the mean leaves a little over that a small epsilon blows up.
    Compared are the weighted sums, or where functions are normalised one by one, each of them; NaN counts for none.
    Arguments as `group_advantages`.
    """
    each, of, weight = _checked(rewards, groups, weights)
    compared = total_rewards(each, weight)[:, None] if multi_objective_aggregation == "sum_then_normalize" else each
    low = np.full((of.max(initial=-1) + 1, compared.shape[1]), np.inf)
    high = -low
    np.fmin.at(low, of, compared)
    np.fmax.at(high, of, compared)
    return np.asarray((low >= high).all(axis=1))[of]


def divisors(rewards: ArrayLike, advantages: ArrayLike, groups: Ints, prompts: int) -> Floats:
    """What the distances of a group's rewards from their mean were divided by to give its advantages.

    The square root of sum (r - mean)^2 / sum A^2: the deviation of a sample for GRPO, 1 where nothing is scaled,
    (N - 1) / N for RLOO, the batch's deviation where that scales. Where several reward functions were normalised one by
    one, the size of it.

    Args:
        rewards: shape (rollouts,), what the advantages were made from; NaN where there is none.
        advantages: shape (rollouts,), before they are clipped or weighed.
        groups: shape (rollouts,), position of the prompt that each is a rollout of, below `prompts`.
        prompts: how many there are.

    Returns:
        Shape (prompts,); 0 for a group without any advantage.

    Raises:
        InvalidInputError: shapes do not fit, an advantage is not finite, or a group is not one of the prompts.

    Cost: O(rollouts log rollouts).
    """
    each, of, _ = _checked(rewards, groups, None)
    value = as_floats("advantages", advantages)
    if each.shape[1] != 1 or value.shape != (len(each),):
        raise InvalidInputError(
            f"rewards, advantages: expected one of each for every rollout, got shapes {np.shape(rewards)} and "
            f"{value.shape}. Add several rewards up first."
        )
    if not np.isfinite(value).all():
        raise InvalidInputError("advantages: expected finite numbers, got some that are not.")
    if groups.max(initial=-1) >= prompts:
        raise InvalidInputError(f"groups: expected numbers below the {prompts} prompts, got {groups.max()}.")
    mean, _ = _moments(each[:, 0], of)
    distances = np.bincount(groups, np.nan_to_num(each[:, 0] - mean) ** 2, prompts)
    sizes = np.bincount(groups, value**2, prompts)
    return np.sqrt(np.divide(distances, sizes, out=np.zeros(prompts), where=sizes > 0.0))


def is_success(rewards: ArrayLike, threshold: float = 0.0) -> NDArray[np.bool_]:
    """Whether each reward is a success: above the threshold, compared in float32, as trainers hold rewards.

    A missing reward (NaN) is no success. In float64, .1 from a float32 tensor would be above a threshold of .1.
    """
    return np.asarray(as_floats("rewards", rewards).astype(np.float32) > np.float32(threshold))


def rollout_weights(groups: Ints, kind: str, group_size: float) -> Floats:
    """What advantages are multiplied by so that large groups weigh less: sqrt(group_size / N_i), or 1.

    Args:
        groups: shape (rollouts,), position of the prompt that each is a rollout of; N_i is how often i occurs.
        kind: `sqrt` or `none`.
        group_size: the mean group size, whose groups have the weight 1.

    Returns:
        Shape (rollouts,).

    Raises:
        InvalidInputError: an unknown kind.
    """
    if one_of("rollout_weights", kind, ROLLOUT_WEIGHTS) == "none":
        return np.ones(len(groups))
    _, of, count = np.unique(groups, return_inverse=True, return_counts=True)
    return np.asarray(np.sqrt(group_size / count[of]))


def bounded(advantages: Floats, clip: float | None, weights: Floats) -> Floats:
    """What a trainer makes of advantages: clipped to [-clip, clip] (paper, appendix C), if not None, then weighed."""
    return (advantages if clip is None else np.clip(advantages, -clip, clip)) * weights


class ClipWatch:
    """Notices a bound that bends more than the few advantages that it is there for, and says so once."""

    def __init__(self, clip: float | None) -> None:
        self.clip = clip
        self._shares: deque[float] = deque(maxlen=_CLIPPED_STEPS)
        self._said = False

    def observe(self, advantages: Floats) -> tuple[float, str | None]:
        """The share of a step's rollouts that the bound changes, and what there is to say.

        Args:
            advantages: shape (rollouts,), not clipped.
        """
        share = float((np.abs(advantages) > self.clip).mean()) if self.clip is not None and len(advantages) else 0.0
        self._shares.append(share)
        mean = sum(self._shares) / len(self._shares)
        if self._said or len(self._shares) < _CLIPPED_STEPS or mean <= _CLIPPED:
            return share, None
        self._said = True
        return share, (
            f"advantage_clip={self.clip:g} changed {mean:.0%} of the advantages of the last {len(self._shares)} steps. "
            "It is there for the rare rollout of a large group; groups whose advantages it bends no longer sum to 0. "
            "Raise it, or set it to None where advantages are in the unit of the rewards."
        )


def _checked(rewards: ArrayLike, groups: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Ints, Floats]:
    """Rewards (rollouts, functions), groups and weights that fit together."""
    each = as_floats("rewards", rewards)
    each = each[:, None] if each.ndim == 1 else each
    if np.isinf(each).any():
        rollout, function = (int(position[0]) for position in np.nonzero(np.isinf(each)))
        raise InvalidInputError(
            f"rewards: expected finite numbers, or NaN for none, got {each[rollout, function]} for rollout {rollout} "
            f"from reward function {function}. One infinite reward would decide the advantages of its whole group."
        )
    of = as_counts("groups", groups)
    if each.ndim != 2 or of.shape != (len(each),):
        raise InvalidInputError(
            "rewards, groups: expected a row of rewards and a group for each rollout, "
            f"got shapes {each.shape} and {of.shape}."
        )
    of = np.unique(of, return_inverse=True)[1].reshape(-1)  # whatever numbers name the groups
    weight = np.ones(each.shape[1]) if weights is None else as_floats("weights", weights)
    if weight.shape != (each.shape[1],):
        raise InvalidInputError(f"weights: expected one for each of {each.shape[1]} rewards, got shape {weight.shape}.")
    return each, of, weight


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
