"""DAPO's dynamic sampling: draw prompts until a step has the groups with a gradient that it wants; drop the others."""

from __future__ import annotations

import numpy as np

from knapsack_rl.experiments.engines.minimal.grpo import Collected, Loop, joined

MOST_ROUNDS = 10  # in a step, as in DAPO's own code


def step(loop: Loop, budget: int) -> tuple[list[Collected], float]:
    """One step of at most `budget` rollouts, dropped ones included: what was collected in each round, and the loss."""
    training = loop.recipe.training
    rounds: list[Collected] = []
    kept, groups = [], 0
    for _ in range(MOST_ROUNDS):
        spent = sum(int(done.planned.sum()) for done in rounds)
        affordable = (budget - spent) // training.group_size  # a multiple, as the whole budget is
        missing = min(training.prompts_per_step - groups, affordable)
        if missing == 0:
            break
        done = loop.collect([next(loop.order) for _ in range(missing)])
        successes, scored = done.rollouts.counts(len(done.rows))
        mixed = (successes > 0) & (successes < scored)
        with_gradient = done.rollouts.of(np.flatnonzero(mixed[done.rollouts.groups]))
        kept.append(with_gradient.moved(sum(len(earlier.rows) for earlier in rounds)))
        groups += int(mixed.sum())
        rounds.append(done)
    rollouts = joined(kept, loop.policy.tokenizer.pad_token_id)
    return rounds, loop.update(rollouts) if len(rollouts) else 0.0
