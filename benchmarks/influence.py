"""Whether some weights tell what all would: influences from blocks of them beside those from full gradients; the cost.

    python benchmarks/influence.py [RECIPE] [KEY=VALUE ...] [--seeds SEED ...] [--steps N]

The minimal trainer makes N steps at even groups. In each step every group is differentiated once more, alone, in all
weights of the model. Printed is the correlation, over all groups with a gradient of all steps and seeds, between the
influences that `GroupGradients` gives, those of the full gradients, and those of the full gradients without Adam's
division by the root of a weight's mean square. Then the mean influence in each band of believed success rates by each
of the three, in units of its mean; and what an update takes with and without the measure, in processor time.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import live
from knapsack_rl.experiments.engines.minimal.grpo import Collected, Loop
from knapsack_rl.influence import BANDS, EDGES, _influences, _sample_deviations, _success_weights

NAMES = ("blocks of weights", "all weights", "all weights, SGD")


def full_gradients(loop: Loop, collected: Collected) -> NDArray[Any]:
    """The gradient of each prompt's rollouts in all weights, the mean over rollouts, shape (prompts, weights)."""
    rollouts, policy = collected.rollouts, loop.policy
    advantages, watch = loop.advantages(rollouts), policy.watch
    policy.watch = None
    weights = [weight for weight in policy.model.parameters() if weight.requires_grad]
    rows = []
    for group in range(len(collected.rows)):
        chosen = np.flatnonzero(rollouts.groups == group)
        prompts = [loop.columns["prompt"][row] for row in rollouts.rows[chosen]]
        loss = policy._loss(prompts, rollouts.of(chosen), torch.from_numpy(advantages[chosen]).float(), None)
        parts = torch.autograd.grad(loss, weights)
        rows.append(torch.cat([part.flatten() for part in parts]).numpy() / max(len(chosen), 1))
    policy.watch = watch
    return np.stack(rows)


def influences(gradients: NDArray[Any], collected: Collected, adam: bool = True) -> NDArray[Any]:
    """Of each group, in units of what a gradient has in common with itself."""
    won, tried = collected.rollouts.counts(len(collected.rows))
    some = (won > 0) & (won < tried)
    u = gradients.astype(np.float64) * some[:, None]
    squares = np.square(u[some]).mean(axis=0)
    size = np.sqrt(squares) if adam else np.ones_like(squares)
    unit = size.sum() if adam else squares.sum()  # the mean of sum_c u_c^2 / s_c
    return np.asarray(_influences(u, _success_weights(_sample_deviations(won, tried), tried), size, len(u)) / unit)


def update(loop: Loop, collected: Collected) -> float:
    began = time.process_time()
    loop.update(collected.rollouts, [collected.step])
    return time.process_time() - began


def main() -> None:
    parser = live.parser(__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parsed = parser.parse_args()
    found: list[NDArray[Any]] = []
    spent = np.zeros(2)
    for seed in parsed.seeds:
        loop = live.loop(Loop, [*parsed.arguments, "training.measure_influence=true"], seed)
        watch = loop.policy.watch
        for number in range(parsed.steps):
            training = loop.recipe.training
            collected = loop.collect([next(loop.order) for _ in range(training.prompts_per_step)])
            won, tried = collected.rollouts.counts(len(collected.rows))
            whole = full_gradients(loop, collected)
            measured = number % 2 == 0  # the others show what an update takes without
            loop.policy.watch = watch if measured else None
            spent[int(measured)] += update(loop, collected)
            if not measured or watch is None:
                continue
            sketch = watch.gradients.numpy() / np.maximum(tried, 1)[:, None]
            live_groups = (won > 0) & (won < tried)
            believed = np.where(collected.visited, collected.belief.mean, np.nan)
            columns = [influences(sketch, collected), influences(whole, collected), influences(whole, collected, False)]
            found.append(np.stack([believed, *columns])[:, live_groups])
    rates, *values = np.concatenate(found, axis=1)
    likeness = np.corrcoef(np.stack(values))
    print(f"{len(rates)} groups with a gradient\n\n| correlation with | {' | '.join(NAMES)} |\n|---|---|---|---|")
    for name, row in zip(NAMES, likeness, strict=True):
        print(f"| {name} | {' | '.join(f'{number:.2f}' for number in row)} |")
    print(f"\n| believed rate | groups | {' | '.join(NAMES)} |\n|---|---:|---:|---:|---:|")
    bands = np.searchsorted(EDGES[1:-1], rates, side="right")
    known = ~np.isnan(rates)
    for band, name in enumerate(BANDS):
        here = known & (bands == band)
        if here.sum() > 1:
            cells = [
                f"{value[here].mean() / value[known].mean():.2f} +- "
                f"{2 * value[here].std() / np.sqrt(here.sum()) / abs(value[known].mean()):.2f}"
                for value in values
            ]
            print(f"| {name} | {here.sum()} | {' | '.join(cells)} |")
    print(f"\nAn update takes {spent[1] / spent[0]:.3f} times as long with the measure (processor time).")


if __name__ == "__main__":
    main()
