"""What cut-off lengths say about the next rollout of a prompt: estimates against the truth, on simulated lengths.

    python benchmarks/truncation.py

Every prompt has a mean length of its own (log-normal over prompts, sigma 1). Its rollouts are log-normal around that
(sigma .7), or geometric; or log-normal, and one in ten never ends by itself, as when a model repeats itself. A limit
cuts off a sixth of all rollouts. After four visits of 8 rollouts the next rollout's mean length is estimated: under the
same limit, under twice the limit, and without one. A row is the mean error over prompts in percent of the mean length,
positive where the estimate is too high, and the mean absolute error behind it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.estimators.costs import RolloutCosts

Floats = NDArray[np.float64]

PROMPTS, VISITS, ROLLOUTS, TRUTH = 4000, 4, 8, 4000
CUT = 1 / 6
ENDLESS = 1e6
"""Tokens of a rollout that never ends, so that without a limit it has a length."""


def log_normal(rng: np.random.Generator, means: Floats, count: int) -> Floats:
    return means[:, None] * rng.lognormal(-(0.7**2) / 2, 0.7, (len(means), count))


def geometric(rng: np.random.Generator, means: Floats, count: int) -> Floats:
    return rng.geometric(1.0 / np.maximum(means[:, None], 1.0), (len(means), count)).astype(np.float64)


def with_endless_ones(rng: np.random.Generator, means: Floats, count: int) -> Floats:
    return np.where(rng.random((len(means), count)) < 0.1, ENDLESS, log_normal(rng, means, count))


LENGTHS: dict[str, Callable[[np.random.Generator, Floats, int], Floats]] = {
    "log-normal": log_normal,
    "geometric": geometric,
    "log-normal, a tenth endless": with_endless_ones,
}


def main() -> None:
    print("| lengths | limit of the next rollout | as told | finished ones only | over 1 - share truncated |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name, draw in LENGTHS.items():
        rng = np.random.default_rng(0)
        means = 300.0 * rng.lognormal(0.0, 1.0, PROMPTS)
        limit = float(np.quantile(draw(rng, means, 100), 1 - CUT))
        keys = np.arange(PROMPTS, dtype=np.uint64)
        told, finished = RolloutCosts(), RolloutCosts()
        for _ in range(VISITS):
            lengths = draw(rng, means, ROLLOUTS)
            cut, costs = lengths > limit, np.minimum(lengths, limit)
            told.update(keys, costs.sum(axis=1), np.full(PROMPTS, ROLLOUTS), truncated=cut.sum(axis=1))
            finished.update(keys, np.where(cut, 0.0, costs).sum(axis=1), (~cut).sum(axis=1))
        expected = told.expected(keys)
        estimates = expected, finished.expected(keys), expected / (1.0 - told.truncation_rates(keys))
        for limits, next_limit in (("the same", limit), ("twice that", 2 * limit), ("none", np.inf)):
            if name == "log-normal, a tenth endless" and next_limit == np.inf:
                continue  # it would be the length that stands for endless
            truth = np.minimum(draw(rng, means, TRUTH), next_limit).mean(axis=1)
            errors = [100.0 * (estimate - truth) / truth.mean() for estimate in estimates]
            cells = " | ".join(f"{error.mean():+.1f} ({np.abs(error).mean():.1f})" for error in errors)
            print(f"| {name} | {limits} | {cells} |")


if __name__ == "__main__":
    main()
