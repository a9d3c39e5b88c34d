"""The paper's rule: a minimum for everyone, a fallback for the never-solved, a knapsack for the rest (section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl.errors import InfeasibleBudgetError, InvalidInputError
from knapsack_rl.solver import Gains, largest_gains
from knapsack_rl.validation import as_floats, as_integer, as_rates
from knapsack_rl.values import information_gain, rollouts_for_confidence, same_outcome_rates, value

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Rollouts for the prompts of one step.

    Attributes:
        rollouts: int64, shape (M,), N_i; sums to the budget exactly.
        value: sum of Value(N_i, p_i) over the prompts that have a success rate (paper, equation 5).
        fallback: rollouts that the fallback moved to never-solved prompts.
    """

    rollouts: Ints
    value: float
    fallback: int = 0


def allocate(
    success_rates: ArrayLike,
    budget: int,
    min_rollouts: int = 2,
    max_rollouts: int = 128,
    *,
    algorithm: str = "grpo",
    fallback: bool = True,
    confidence: float = 0.9,
    greedy_agreement: ArrayLike | None = None,
) -> Plan:
    """Split a step's budget of rollouts over its prompts by the paper's rule (section 4.2, equation 5, table 3).

    1. Never-visited prompts (NaN) get the mean, budget / M, so that a first epoch is uniform.
    2. Every other prompt gets `min_rollouts`.
    3. A prompt with 0 < p < 1 costs floor(`rollouts_for_confidence`) more, at most up to `max_rollouts`. What the costs
       leave of the budget is the surplus; the fallback spreads it evenly over the prompts with p = 0.
    4. The exact knapsack spends the rest on 0 < p < 1. What does not fit there goes evenly to the unsolved (p = 0) and
       never-visited, and to always-solved prompts (p = 1) only when everyone else is full.

    Args:
        success_rates: shape (M,), p_i in [0, 1], NaN where the prompt was never visited.
        budget: rollouts of the step, between M * `min_rollouts` and M * `max_rollouts`.
        min_rollouts: fewest rollouts a prompt gets, 1 or more. (From 0 the value is not concave: the first rollout on a
            prompt is worth nothing by itself. Leave out the prompts that should get none.)
        max_rollouts: most rollouts a prompt gets.
        algorithm: `grpo`, `rloo`, `reinforce` or `remax` (appendix B).
        fallback: whether never-solved prompts get the surplus.
        confidence: the chance of a non-zero gradient that the costs aim at, in (0, 1).
        greedy_agreement: shape (M,), for `remax` only; see `values.nonzero_gradient_probability`.

    Returns:
        The plan; equal prompts are served in order of position, so the same input gives the same plan.

    Raises:
        InfeasibleBudgetError: the budget is below M * `min_rollouts` or above M * `max_rollouts`.
        InvalidInputError: any other argument is out of range.

    Cost: O(M + budget) time and memory.
    """
    rates = as_rates("success_rates", success_rates, allow_nan=True)
    if rates.ndim != 1:
        raise InvalidInputError(f"success_rates: expected a vector, one per prompt, got shape {rates.shape}.")
    budget, min_rollouts, max_rollouts = check_budget(len(rates), budget, min_rollouts, max_rollouts)
    max_rollouts = min(max_rollouts, max(budget, min_rollouts))  # no limit is then too large for an int64
    gains = _value_gains(rates, min_rollouts, algorithm, greedy_agreement)

    unvisited = np.isnan(rates)
    if greedy_agreement is not None and np.any(np.isnan(as_floats("greedy_agreement", greedy_agreement)) & ~unvisited):
        raise InvalidInputError(
            "greedy_agreement: expected a probability for every prompt that has a success rate, got NaN."
        )
    unsolved, learnable = rates == 0.0, (rates > 0.0) & (rates < 1.0)
    rollouts = np.full(len(rates), min_rollouts, dtype=np.int64)
    rollouts[unvisited] = _even_shares(budget * int(unvisited.sum()) // max(len(rates), 1), int(unvisited.sum()))
    left = budget - int(rollouts.sum())

    costs = np.minimum(rollouts_for_confidence(rates[learnable], confidence), max_rollouts - min_rollouts)
    surplus = left - int(np.floor(costs).sum())
    moved = _spread(rollouts, unsolved, surplus, max_rollouts) if fallback else 0

    items = np.flatnonzero(learnable)
    knapsack = min(left - moved, items.size * (max_rollouts - min_rollouts))
    room = np.full(items.size, max_rollouts - min_rollouts, dtype=np.int64)
    rollouts[items] += largest_gains(lambda chosen, start, width: gains(items[chosen], start, width), room, knapsack)

    left -= moved + knapsack
    left -= _spread(rollouts, unsolved | unvisited, left, max_rollouts)
    _spread(rollouts, rates == 1.0, left, max_rollouts)
    return Plan(rollouts, total_value(rollouts, rates, algorithm, greedy_agreement), moved)


def check_budget(prompts: int, budget: int, min_rollouts: int, max_rollouts: int) -> tuple[int, int, int]:
    """Budget, minimum and maximum as Python's integers, if some allocation can meet them.

    Raises:
        InvalidInputError: a bound or the budget is not an integer, or the bounds are crossed.
        InfeasibleBudgetError: the budget lies outside prompts * [min_rollouts, max_rollouts].
    """
    low = as_integer("min_rollouts", min_rollouts, at_least=1)
    high = as_integer("max_rollouts", max_rollouts, at_least=1)
    total = as_integer("budget", budget, at_least=0)
    if low > high:
        raise InvalidInputError(f"min_rollouts, max_rollouts: expected min <= max, got {low} and {high}.")
    if total < prompts * low:
        raise InfeasibleBudgetError(
            f"budget: {prompts} prompts with min_rollouts={low} need at least {prompts * low} rollouts, got {total}, "
            f"{prompts * low - total} too few. Raise the budget (or group_size) or lower min_rollouts."
        )
    if total > prompts * high:
        raise InfeasibleBudgetError(
            f"budget: {prompts} prompts with max_rollouts={high} take at most {prompts * high} rollouts, got {total}, "
            f"{total - prompts * high} too many. Lower the budget (or group_size) or raise max_rollouts."
        )
    if total >= 2**63:
        raise InvalidInputError(f"budget: expected a number below 2**63, got {total}.")
    return total, low, high


def total_value(
    rollouts: Ints, success_rates: Floats, algorithm: str = "grpo", greedy_agreement: ArrayLike | None = None
) -> float:
    """Sum of Value(N_i, p_i) over the prompts whose success rate is known (the objective of equation 5)."""
    return float(np.nansum(value(rollouts, success_rates, algorithm, greedy_agreement=greedy_agreement)))


def _value_gains(rates: Floats, low: int, algorithm: str, greedy_agreement: ArrayLike | None) -> Gains:
    """Value(low + k + 1, p) - Value(low + k, p) = InfoGain(p) [u^(low+k) (1 - u) + v^(low+k) (1 - v)], k = 0, 1, ..."""
    u, v = same_outcome_rates(rates, algorithm, greedy_agreement)
    weight = information_gain(rates)

    def geometric(base: Floats, weight: Floats, first: int, width: int) -> Floats:
        terms = np.empty((base.size, width))
        terms[:, 0] = weight * (1.0 - base) * base**first
        terms[:, 1:] = base[:, None]
        return np.multiply.accumulate(terms, axis=1, out=terms)

    def gains(items: Ints, start: int, width: int) -> Floats:
        terms = geometric(u[items], weight[items], low + start, width)
        terms += geometric(v[items], weight[items], low + start, width)
        return terms

    return gains


def _even_shares(total: int, count: int) -> Ints:
    """`total` in `count` parts that differ by at most one, the larger ones first."""
    share, rest = divmod(total, max(count, 1))
    return share + (np.arange(count) < rest)


def _spread(rollouts: Ints, receivers: NDArray[np.bool_], amount: int, max_rollouts: int) -> int:
    """Add up to `amount` rollouts evenly to the receivers, in place, none above the maximum; returns what was added."""
    items = np.flatnonzero(receivers)
    left = min(amount, items.size * max_rollouts - int(rollouts[items].sum()))
    if left <= 0:
        return 0
    given = left
    while left:
        items = items[rollouts[items] < max_rollouts]
        share = left // items.size  # whole shares first: who fills up early must not make the others uneven
        extra = np.minimum(share, max_rollouts - rollouts[items]) if share else _even_shares(left, items.size)
        rollouts[items] += extra
        left -= int(extra.sum())
    return given
