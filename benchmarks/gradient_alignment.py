"""Which prompts teach the others: what the gradient of a prompt does to held-out accuracy, to first order.

    python benchmarks/gradient_alignment.py [RECIPE] [KEY=VALUE ...] [--seeds SEED ...] [--after STEPS ...]

For `--prompts` problems of the training set, p and the gradient of p are estimated from `--rollouts` rollouts of each,
and so is the gradient G of held-out accuracy. In expectation, a group of N rollouts (the recipe's group size) whose
rewards are mixed, s of them right, pulls along

    E[sqrt(s (N - s)) | 0 < s < N] sqrt((N - 1) / N) / (p (1 - p)) grad p

with GRPO's advantages (docs/waves.md). Its influence is the product of that with G, in which each direction is divided
by the root of its mean square over the prompts: how far held-out accuracy rises where such a group has a gradient.
Printed, by p, is the mean over prompts, in units of the mean over all prompts with 0 < p < 1, and two standard errors
over the prompts, as if the other factors were exact.

Beside it, in the same unit, is what a gradient is taken to be worth: p (1 - p)^2 in the paper, p^(1/2) (1 - p)^2 under
`adaptive`, and p (1 - p) for comparison; and the correlation of each with influence over all prompts.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import live
from knapsack_rl.experiments.engines.minimal.grpo import Columns, Loop

BINS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def gradients(
    loop: Loop, columns: Columns, rows: list[int], rollouts: int, random: torch.Generator
) -> tuple[NDArray[Any], Tensor]:
    """Success rates of these problems, and score-function estimates of their gradients, shape (rows, weights)."""
    trained_on, loop.columns = loop.columns, columns
    rates, found = [], []
    weights = [weight for weight in loop.policy.model.parameters() if weight.requires_grad]
    for row in rows:
        sampled = loop.generate([row], np.array([rollouts]), random)
        advantages = (sampled.rewards - sampled.rewards.mean()) / (rollouts - 1)
        logs = loop.policy.log_probabilities([columns["prompt"][row]] * rollouts, sampled)
        ours = torch.arange(logs.shape[1]) < sampled.lengths[:, None]
        total = (logs * ours * torch.from_numpy(advantages).float()[:, None]).sum()
        found.append(torch.cat([part.flatten() for part in torch.autograd.grad(total, weights)]))
        rates.append(sampled.rewards.mean())
    loop.columns = trained_on
    return np.array(rates), torch.stack(found)


def pull(rates: NDArray[Any], size: int) -> NDArray[Any]:
    """Length of a mixed group's expected pull over that of grad p, shape of `rates`."""
    right = np.arange(1, size)
    chances = np.array([math.comb(size, s) for s in right]) * np.power.outer(rates, right)
    chances = chances * np.power.outer(1.0 - rates, size - right)
    mean = (chances * np.sqrt(right * (size - right))).sum(axis=-1) / chances.sum(axis=-1)
    return np.asarray(mean * np.sqrt((size - 1) / size) / (rates * (1.0 - rates)))


def influences(loop: Loop, prompts: int, rollouts: int, random: torch.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """Success rates and influences of some problems of the training set, those with 0 < p < 1."""
    held_out: Columns = {}
    for benchmark in loop.task.evaluation.values():
        for name in benchmark.column_names:
            held_out.setdefault(name, []).extend(benchmark[name])
    _, of_held_out = gradients(loop, held_out, list(range(len(held_out["id"]))), rollouts, random)
    rows = np.random.default_rng(loop.recipe.seed).permutation(len(loop.task.train))[:prompts].tolist()
    rates, of_trained = gradients(loop, loop.columns, rows, rollouts, random)
    mixed = (rates > 0.0) & (rates < 1.0)
    rates, of_trained = rates[mixed], of_trained[torch.from_numpy(mixed)]
    scale = 1.0 / (of_trained.square().mean(dim=0).sqrt() + 1e-12)
    influence = (of_trained * scale @ of_held_out.mean(dim=0)).numpy() * pull(rates, loop.recipe.training.group_size)
    return rates, influence / influence.mean()


def main() -> None:
    parser = live.parser(__doc__)
    parser.add_argument("--after", type=int, nargs="+", default=[0], help="steps of training with uniform before")
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--rollouts", type=int, default=64)
    parsed = parser.parse_args()
    points: dict[int, list[tuple[NDArray[Any], NDArray[Any]]]] = {after: [] for after in parsed.after}
    for seed in parsed.seeds:
        loop, done = live.loop(Loop, parsed.arguments, seed), 0
        random = torch.Generator().manual_seed(loop.recipe.seed + 1)  # as the oracle's: not the one that trains
        for after in sorted(points):
            for _ in range(after - done):
                loop.step()
            done = after
            points[after].append(influences(loop, parsed.prompts, parsed.rollouts, random))
    print("| after steps | p | prompts | influence | paper's | adaptive's | p (1 - p) |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for after, found in points.items():
        rates, influence = (np.concatenate(parts) for parts in zip(*found, strict=True))
        worth = [rates * (1.0 - rates) ** 2, rates**0.5 * (1.0 - rates) ** 2, rates * (1.0 - rates)]
        worth = [value / value.mean() for value in worth]
        for low, high in itertools.pairwise(BINS):
            here = (rates > low) & (rates <= high)
            if here.sum() < 2:
                continue
            mean, error = influence[here].mean(), 2.0 * influence[here].std() / np.sqrt(here.sum())
            values = " | ".join(f"{value[here].mean():.2f}" for value in worth)
            print(f"| {after} | {low:g} to {high:g} | {here.sum()} | {mean:.2f} +- {error:.2f} | {values} |")
        like = " | ".join(f"{np.corrcoef(influence, value)[0, 1]:.2f}" for value in worth)
        print(f"| {after} | correlation | {len(rates)} | 1 | {like} |", flush=True)


if __name__ == "__main__":
    main()
