"""What rollouts are worth in expectation, when the success rate is only believed: p ~ Beta(a, b).

With the information gain p^e (1 - p)^g (the paper's has e = 1, g = 2), all expectations are ratios of Beta functions:

    E[p^x (1 - p)^y] = B(a + x, b + y) / B(a, b)

A mixture of concave functions is concave, so that the largest gains stay an exact solution of the knapsack.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl.belief import Belief
from knapsack_rl.beta import log_beta
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.solver import Gains
from knapsack_rl.validation import as_counts, as_floats, one_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PAPER = (1.0, 2.0)
"""Exponents e and g of the paper's information gain, p (1 - p)^2 (proposition 1)."""
ALGORITHMS = ("grpo", "rloo", "reinforce")


def expected_value(
    rollouts: ArrayLike, belief: Belief, exponents: tuple[float, float] = PAPER, algorithm: str = "grpo"
) -> Floats:
    """E[P(non-zero gradient in N rollouts | p) p^e (1 - p)^g] under p ~ Beta(a, b).

    Args:
        rollouts: N_i, counts of 0 or more, shape (M,).
        belief: about the M prompts.
        exponents: e and g, 0 or more.
        algorithm: `grpo`, `rloo` or `reinforce` (paper, appendix B).

    Returns:
        float64, shape (M,).

    Raises:
        InvalidInputError: a count is negative, the shapes differ, an exponent is negative, or the algorithm is unknown.

    Cost: O(M).
    """
    n = as_counts("rollouts", rollouts).astype(np.float64)
    if n.shape != belief.wins.shape:
        raise InvalidInputError(
            f"rollouts: expected one count for each of {belief.wins.shape} beliefs, got shape {n.shape}."
        )
    both = as_floats("exponents", exponents)
    if both.shape != (2,) or not np.all((both >= 0.0) & np.isfinite(both)):
        raise InvalidInputError(f"exponents: expected two finite numbers of 0 or more, got {exponents!r}.")
    e, g = both
    two_sided = one_of("algorithm", algorithm, ALGORITHMS) != "reinforce"
    moment = _moments(belief)
    idle = moment(e, g + n) + (moment(e + n, g) if two_sided else 0.0)
    return np.asarray(np.where(n > 0, np.maximum(moment(e, g) - idle, 0.0), 0.0))


def expected_gains(
    belief: Belief,
    successes: Ints,
    rollouts: Ints,
    pending: Ints,
    exponents: tuple[float, float] = PAPER,
    algorithm: str = "grpo",
) -> Gains:
    """What each further rollout of a prompt adds to its expected value, given what its group shows so far.

    With s successes and f failures, p ~ Beta(a', b') = Beta(a + s, b + f), and the j-th further rollout (j = 0, 1, ...)
    makes the difference when it is the first to differ from all others:

        all failed so far       E[p^(1+e) (1 - p)^(g+j)]
        all succeeded so far    E[p^(e+j) (1 - p)^(1+g)]
        nothing known yet       the sum of both
        mixed                   0

    Args:
        belief: before these outcomes.
        successes: shape (M,), s.
        rollouts: shape (M,), s + f.
        pending: shape (M,), further rollouts that are placed but not known; j counts from there.
        exponents: e and g of the information gain.
        algorithm: `grpo`, `rloo` or `reinforce`; with the last, any success gives a gradient.

    Returns:
        Gains as `solver.largest_gains` takes them, non-increasing in j for groups with a rollout, known or pending.
        (The first rollout of a group is worth nothing by itself; place that before.)

    Raises:
        InvalidInputError: another algorithm.
    """
    one_of("algorithm", algorithm, ALGORITHMS)
    e, g = exponents
    after = belief.given(successes, rollouts)
    waits_for_success = successes == 0
    waits_for_failure = (successes == rollouts) & (algorithm != "reinforce")
    a, b = after.wins, after.losses
    whole = log_beta(a, b)

    def series(items: Ints, start: Ints, width: int, rising: Floats, fixed: Floats) -> Floats:
        """B(rising + j, fixed) / B(a, b) for j = start, start + 1, ...; by B(x + 1, y) = B(x, y) x / (x + y)."""
        terms = np.empty((len(items), width))
        lowest = rising[items] + start
        terms[:, 0] = np.exp(log_beta(lowest, fixed[items]) - whole[items])
        if width > 1:
            x = lowest[:, None] + np.arange(width - 1)
            np.divide(x, x + fixed[items][:, None], out=terms[:, 1:])
        return np.multiply.accumulate(terms, axis=1, out=terms)

    def gains(items: Ints, start: int, width: int) -> Floats:
        total = np.zeros((len(items), width))
        for waits, rising, fixed in ((waits_for_success, b + g, a + 1.0 + e), (waits_for_failure, a + e, b + 1.0 + g)):
            rows = np.flatnonzero(waits[items])
            waiting = items[rows]
            total[rows] += series(waiting, pending[waiting] + start, width, rising, fixed)
        return total

    return gains


def _moments(belief: Belief) -> Callable[[Floats | float, Floats | float], Floats]:
    """E[p^x (1 - p)^y] of each prompt."""
    a, b = belief.wins, belief.losses
    whole = log_beta(a, b)

    def moment(x: Floats | float, y: Floats | float) -> Floats:
        return np.asarray(np.exp(log_beta(a + x, b + y) - whole))

    return moment
