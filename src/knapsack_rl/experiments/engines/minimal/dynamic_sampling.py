"""DAPO's dynamic sampling: draw prompts until a step has the groups with a gradient that it wants; drop the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from knapsack_rl.experiments.engines.minimal.grpo import Collected, Loop, Rollouts, joined

MOST_ROUNDS = 10  # in a step, as in DAPO's own code


def collect(loop: Loop, budget: int) -> tuple[list[Collected], Rollouts]:
    """A step of at most `budget` rollouts: what each round collected, and the rollouts that are kept."""
    training = loop.recipe.training
    rounds: list[Collected] = []
    kept: list[Rollouts] = []
    missing = min(training.prompts_per_step, budget // training.group_size)  # a multiple, as the whole budget is
    while missing and len(rounds) < MOST_ROUNDS:
        done = loop.collect([next(loop.order) for _ in range(missing)])
        successes, scored = done.rollouts.counts(len(done.rows))
        mixed = (successes > 0) & (successes < scored)
        with_gradient = done.rollouts.of(np.flatnonzero(mixed[done.rollouts.groups]))
        position = sum(len(earlier.rows) for earlier in rounds)
        kept.append(replace(with_gradient, groups=with_gradient.groups + position))
        rounds.append(done)
        budget -= int(done.planned.sum())
        wanted = training.prompts_per_step - sum(len(np.unique(part.groups)) for part in kept)
        missing = min(wanted, budget // training.group_size)
    return rounds, joined(kept, loop.policy.tokenizer.pad_token_id)
