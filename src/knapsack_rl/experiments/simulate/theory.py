"""Numbers behind the paper's figures 3, 4 and 10 and its table 3, computed anew. No training is simulated for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from knapsack_rl import allocate
from knapsack_rl.experiments.simulate.policy import sigmoid
from knapsack_rl.values import expected_rollouts, rollouts_for_confidence, value

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CONFIDENCE = 0.9
ACTIONS = 100
"""Of the softmax policy in figure 10."""
HIGHLIGHTED = ((0.35, 4), (0.19, 16), (0.52, 8))
"""The three points of almost equal value in figure 4: success rate, rollouts."""
TABLE_3_RATES = (0.0, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
TABLE_3_BUDGET = 64


def first_gradients(
    seed: int = 0, prompts: int = 1000, responses: int = 256, orders: int = 100
) -> tuple[Floats, Floats, Floats]:
    """How many rollouts it takes until a group has a gradient, measured on sampled responses (figure 3).

    Each prompt has `responses` sampled rewards, from which its success rate is estimated; prompts at 0 or 1 are left
    out, as in the paper (section 3.2). The responses are put into `orders` random orders, and in each the first
    position is found at which both rewards have appeared. In place of a model's, success rates are drawn from
    Beta(0.4, 0.4): many at both ends.

    Returns:
        Estimated success rates, mean rollouts until the first gradient, and the rollouts that suffice in `CONFIDENCE`
        of the orders; one entry for each prompt that is left.

    Cost: O(prompts * responses * orders) time.
    """
    rng = np.random.default_rng(seed)
    successes = rng.binomial(responses, rng.beta(0.4, 0.4, prompts))
    successes = successes[(successes > 0) & (successes < responses)]
    means, sufficient = np.empty((2, len(successes)))
    for index, count in enumerate(successes):
        keys = rng.random((orders, responses))  # sorted by them, the responses stand in a random order
        both = np.maximum(keys[:, :count].min(axis=1), keys[:, count:].min(axis=1))
        first = (keys <= both[:, None]).sum(axis=1)
        means[index] = first.mean()
        sufficient[index] = np.quantile(first, CONFIDENCE, method="inverted_cdf")
    return successes / responses, means, sufficient


def first_gradients_by_theorem(success_rates: Floats) -> tuple[Floats, Floats]:
    """Theorem 1's two budgets: the expected number of rollouts, and those for `CONFIDENCE`."""
    return expected_rollouts(success_rates), rollouts_for_confidence(success_rates, CONFIDENCE)


def value_grid(max_rollouts: int = 32, rates: int = 199) -> tuple[Floats, Ints, Floats]:
    """Success rates, rollouts and Value(N, p) on their grid, shape (rollouts, rates) (figure 4)."""
    p = np.linspace(0.0, 1.0, rates)
    n = np.arange(1, max_rollouts + 1)
    return p, n, value(n[:, None], p)


def exact_information_gain(
    success_rates: Floats, learning_rate: float = 1.0, actions: int = ACTIONS, seed: int = 0
) -> Floats:
    """What one update on a sampled success really adds to the success rate (figure 10; appendix A).

    The policy is a softmax over `actions`, one of which is right and has probability p; the logits of the others are
    drawn from a standard normal. After the right action was sampled with advantage 1, every logit moves by
    learning_rate (I[k = y] - p_k) (equation 8 and step 3 of its proof), and the softmax is evaluated again.

    Args:
        success_rates: shape (M,), p in (0, 1).
        learning_rate: the paper's is 1.
        actions: 2 or more; the paper's are 100.
        seed: of the other actions' logits.

    Returns:
        Shape (M,), new p - old p.
    """
    p = np.asarray(success_rates, dtype=np.float64)
    others = _others(actions, seed) * (1.0 - p[:, None])  # shape (M, actions - 1), p_k
    # new p = p e^{lr (1 - p)} / (p e^{lr (1 - p)} + sum_k p_k e^{-lr p_k}), as a sigmoid of its log-odds
    log_odds = np.log(p) + learning_rate * (1.0 - p) - np.log((others * np.exp(-learning_rate * others)).sum(axis=1))
    return np.asarray(sigmoid(log_odds) - p)


def table_3() -> dict[str, list[float]]:
    """The paper's table 3 through `knapsack_rl.allocate`: rates, costs, and plans with and without the fallback."""
    rates = np.array(TABLE_3_RATES)
    # Rounded up, as the table prints them; a solved prompt is asked for nothing beyond its minimum (section 4.2).
    costs = np.where(rates == 1.0, 0.0, np.ceil(rollouts_for_confidence(rates, CONFIDENCE)))
    return {
        "success_rate": list(TABLE_3_RATES),
        "cost": costs.tolist(),
        "with_fallback": allocate(TABLE_3_RATES, TABLE_3_BUDGET).rollouts.tolist(),
        "without_fallback": allocate(TABLE_3_RATES, TABLE_3_BUDGET, fallback=False).rollouts.tolist(),
    }


def _others(actions: int, seed: int) -> Floats:
    """Shares of the wrong actions in what the right one leaves, shape (actions - 1,)."""
    weights = np.exp(np.random.default_rng(seed).standard_normal(actions - 1))
    return np.asarray(weights / weights.sum())
