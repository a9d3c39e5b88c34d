"""What N rollouts on a prompt of success rate p are worth (paper, sections 3.2 and 4.1, appendix B).

For every algorithm the probability of a non-zero gradient is 1 - u^N - v^N, where u and v are the chances that a
single rollout keeps a group without gradient in the one way or the other:

| algorithm | u     | v     | no gradient when                                        |
|-----------|-------|-------|---------------------------------------------------------|
| grpo      | p     | 1 - p | all rewards are equal                                   |
| rloo      | p     | 1 - p | all rewards are equal                                   |
| reinforce | 1 - p | 0     | no reward is positive                                   |
| remax     | a     | 0     | every rollout earns what the greedy response earned     |

An algorithm of your own is a function of p that returns its u and v (docs/how-to/add-an-algorithm.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.validation import as_confidence, as_counts, as_rates, one_of

Floats = NDArray[np.float64]

ALGORITHMS = ("grpo", "rloo", "reinforce", "remax")
Algorithm = str | Callable[[Floats], tuple[Floats, Floats]]
"""One of `ALGORITHMS`, or a function of success rates that returns u and v; NaN gives NaN."""
_ROUNDING = 1e-12


def nonzero_gradient_probability(
    rollouts: ArrayLike,
    success_rates: ArrayLike,
    algorithm: Algorithm = "grpo",
    *,
    greedy_agreement: ArrayLike | None = None,
) -> Floats:
    """Probability that a group has a non-zero gradient (paper, section 3.2; other algorithms: appendix B).

    Args:
        rollouts: N_i, counts of 0 or more; broadcasts against `success_rates`. No rollouts, no gradient.
        success_rates: p_i in [0, 1]; NaN gives NaN.
        algorithm: `grpo`, `rloo`, `reinforce` or `remax`; or a function of success rates that returns u and v, the
            chances that a single rollout keeps a group without gradient in the one way or the other, each an array of
            the shape of the rates.
        greedy_agreement: for `remax` only: a_i, the chance that a rollout earns what the greedy response earned, which
            is p_i where the greedy response succeeded and 1 - p_i where it failed.

    Returns:
        float64 in [0, 1], of the broadcast shape.

    Raises:
        InvalidInputError: a count is negative, a probability is outside [0, 1], the algorithm is unknown or returns no
            such chances, or `greedy_agreement` is missing for `remax` or given for another algorithm.
    """
    n = as_counts("rollouts", rollouts)
    u, v = same_outcome_rates(as_rates("success_rates", success_rates, allow_nan=True), algorithm, greedy_agreement)
    try:
        probability = 1.0 - u**n - v**n
    except ValueError:
        raise InvalidInputError(
            f"rollouts: expected a shape that broadcasts with success_rates {u.shape}, got {n.shape}."
        ) from None
    # With no rollouts the formula reads 1 - 1 - 1, even for NaN; with one, rounding may leave a negative zero.
    return np.asarray(np.where(n == 0, 0.0 * u, np.maximum(probability, 0.0)))


def information_gain(success_rates: ArrayLike) -> Floats:
    """Expected increase of the success rate from one gradient: p (1 - p)^2 (paper, proposition 1).

    Args:
        success_rates: p in [0, 1]; NaN gives NaN.

    Returns:
        float64 in [0, 4/27], largest at p = 1/3, 0 at p = 0 and p = 1.

    Raises:
        InvalidInputError: a probability is outside [0, 1].
    """
    p = as_rates("success_rates", success_rates, allow_nan=True)
    return p * (1.0 - p) ** 2


def value(
    rollouts: ArrayLike,
    success_rates: ArrayLike,
    algorithm: Algorithm = "grpo",
    *,
    greedy_agreement: ArrayLike | None = None,
) -> Floats:
    """Value(N, p) = P(non-zero gradient) x information gain (paper, section 4.1). Arguments as there; O(size)."""
    probability = nonzero_gradient_probability(rollouts, success_rates, algorithm, greedy_agreement=greedy_agreement)
    return probability * information_gain(success_rates)


def rollouts_for_confidence(success_rates: ArrayLike, confidence: float = 0.9) -> Floats:
    """Rollouts after which a gradient is non-zero with probability `confidence` (paper, theorem 1, first part).

    ln(1 - confidence) / ln(max(p, 1 - p)), a real number; the theorem drops the smaller of the two powers.

    Args:
        success_rates: p in [0, 1]; NaN gives NaN.
        confidence: alpha in (0, 1).

    Returns:
        float64, positive, infinite at p = 0 and p = 1.

    Raises:
        InvalidInputError: an argument is outside its range.
    """
    p = as_rates("success_rates", success_rates, allow_nan=True)
    # log1p keeps ln(1 - p) exact for rates too small for 1 - p to differ from 1.
    with np.errstate(divide="ignore", over="ignore"):
        return np.asarray(np.log1p(-as_confidence(confidence)) / np.log1p(-np.minimum(p, 1.0 - p)) + 0.0)


def expected_rollouts(success_rates: ArrayLike) -> Floats:
    """Expected rollouts until a gradient is non-zero: 1/p + 1/(1 - p) - 1 (paper, theorem 1, second part).

    Args:
        success_rates: p in [0, 1]; NaN gives NaN.

    Returns:
        float64 of 3 or more, infinite at p = 0 and p = 1.

    Raises:
        InvalidInputError: a probability is outside [0, 1].
    """
    p = as_rates("success_rates", success_rates, allow_nan=True)
    with np.errstate(divide="ignore", over="ignore"):
        return np.asarray(1.0 / p + 1.0 / (1.0 - p) - 1.0)


def same_outcome_rates(
    success_rates: Floats, algorithm: Algorithm, greedy_agreement: ArrayLike | None = None
) -> tuple[Floats, Floats]:
    """The u and v of the table above, for validated success rates.

    Raises:
        InvalidInputError: the algorithm is unknown or returns no chances, or `greedy_agreement` is missing or does not
            belong.
    """
    if not callable(algorithm):
        one_of("algorithm", algorithm, ALGORITHMS)
    if (greedy_agreement is not None) != (algorithm == "remax"):
        raise InvalidInputError(
            "greedy_agreement: algorithm='remax' compares rollouts with the greedy response and needs the chance that "
            "a rollout earns what the greedy response earned (success_rates where the greedy response succeeded, "
            f"1 - success_rates where it failed); other algorithms have no use for it. Got algorithm={algorithm!r} "
            f"and greedy_agreement={'an array' if greedy_agreement is not None else None}."
        )
    if greedy_agreement is not None:
        a = as_rates("greedy_agreement", greedy_agreement, allow_nan=True)
        if a.shape != success_rates.shape:
            raise InvalidInputError(
                f"greedy_agreement: expected the shape of success_rates, {success_rates.shape}, got {a.shape}."
            )
        return a, np.zeros_like(a)
    if callable(algorithm):
        return _checked(algorithm(success_rates), success_rates)
    if algorithm == "reinforce":
        return 1.0 - success_rates, np.zeros_like(success_rates)
    return success_rates, 1.0 - success_rates


def _checked(found: Any, success_rates: Floats) -> tuple[Floats, Floats]:
    """What a function of somebody's own returned, if it is a u and a v for each success rate."""
    shapes = [np.shape(rates) for rates in found] if isinstance(found, tuple) else None
    if shapes != [success_rates.shape] * 2:
        raise InvalidInputError(
            "algorithm: expected the function to return two arrays, u and v, of the shape of its argument, "
            f"{success_rates.shape}, got {f'shapes {shapes}' if shapes else repr(found)[:80]}."
        )
    u, v = (np.asarray(rates, dtype=np.float64) for rates in found)
    wrong = ~np.isnan(success_rates) & ~((u >= 0.0) & (v >= 0.0) & (u + v <= 1.0 + _ROUNDING))
    if wrong.any():
        raise InvalidInputError(
            "algorithm: expected the function to return two chances that exclude each other, at most 1 together, "
            f"got {u[wrong][0]} and {v[wrong][0]} at a success rate of {success_rates[wrong][0]}."
        )
    return u, v
