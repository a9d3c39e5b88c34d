"""Where the time of a step goes with a pretrained model: CPU seconds of the minimal trainer, by part.

    python benchmarks/pretrained_step.py recipes/smollm2-word-problems.yaml model.path=SmolLM2.gguf task.folder=DATA

Makes `--steps` steps of the recipe and times reading the prompts, sampling, the verifier, forward and backward of the
update, and the optimiser. Then the forward and backward passes are made again on the same rollouts: without sharing
prompts, and twice as they are, without the measure of influence (docs/influence.md) and with it.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from knapsack_rl.experiments.engines import ingredients
from knapsack_rl.experiments.engines.minimal import attention, run
from knapsack_rl.experiments.engines.minimal.grpo import Loop, Policy
from knapsack_rl.experiments.recipe import recipe_file
from knapsack_rl.experiments.runs.progress import Display
from knapsack_rl.gradients import GroupGradients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = recipe_file.read(options.recipe, options.changes)
    console = Console()
    with Display(console, recipe.name, options.steps) as display:
        task, model, tokenizer = ingredients.problems_and_model(recipe, display)
    loop = Loop(recipe, task, run.policy(recipe, model, tokenizer))
    spent: dict[str, float] = defaultdict(float)
    policy = loop.policy
    timed(policy, "read", "read the prompts", spent)
    timed(policy, "sample", "sample", spent)
    timed(policy, "log_probabilities", "forward", spent)
    timed(policy.optimizer, "step", "optimiser", spent)
    timed(policy, "update", "update", spent)
    watch = GroupGradients(policy.model)  # costs nothing until it is the policy's
    rollouts = with_gradient = tokens = 0
    plain = unwatched = watched = 0.0
    for number in range(options.steps + 1):
        if number == 1:  # the first step warms up
            spent.clear()
        began = time.process_time()
        collected, _ = loop.step()
        spent["step"] += time.process_time() - began
        if number == 0:
            continue
        advantages = loop.advantages(collected.rollouts)
        rollouts += len(advantages)
        with_gradient += int(np.count_nonzero(advantages))
        tokens += int(collected.rollouts.lengths.sum())
        forward = spent["forward"]
        plain += without_sharing(loop, collected.rollouts, advantages)
        unwatched += passes(loop, policy, collected.rollouts, advantages)
        watch.begin(len(collected.rows))
        policy.watch = watch
        watched += passes(loop, policy, collected.rollouts, advantages)
        policy.watch = watch.owners = None
        spent["forward"] = forward  # that of the step alone

    steps = options.steps
    print(
        f"{rollouts / steps:.0f} rollouts a step, {with_gradient / steps:.0f} with a gradient, "
        f"{tokens / rollouts:.1f} tokens each; {options.threads} thread(s)\n"
    )
    print("| part of a step | CPU seconds |\n|---|---|")
    rows = {
        "reading each prompt once": spent["read the prompts"],
        "sampling": spent["sample"] - spent["read the prompts"],
        "update: forward": spent["forward"],
        "update: backward and clipping": spent["update"] - spent["forward"] - spent["optimiser"],
        "update: optimiser": spent["optimiser"],
        "verifier, plan and the rest": spent["step"] - spent["sample"] - spent["update"],
        "the whole step": spent["step"],
        "update: forward and backward without sharing": plain,
        "update: forward and backward once more": unwatched,
        "the same, with the measure of influence": watched,
    }
    for name, seconds in rows.items():
        print(f"| {name} | {seconds / steps:.2f} |")


def timed(owner: Any, name: str, part: str, spent: dict[str, float]) -> None:
    """Add to `spent[part]` what the method `name` of `owner` takes."""
    method: Callable[..., Any] = getattr(owner, name)

    def measured(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return method(*args, **kwargs)
        finally:
            spent[part] += time.process_time() - began

    setattr(owner, name, measured)


def without_sharing(loop: Loop, rollouts: Any, advantages: Any) -> float:
    """CPU seconds of `passes` by the plain policy."""
    policy = loop.policy
    plain = Policy.__new__(Policy)
    vars(plain).update({name: value for name, value in vars(policy).items() if name not in ("log_probabilities",)})
    policy.model.set_attn_implementation("sdpa")
    try:
        return passes(loop, plain, rollouts, advantages)
    finally:
        policy.model.set_attn_implementation(attention.NAME)


def passes(loop: Loop, policy: Policy, rollouts: Any, advantages: Any) -> float:
    """CPU seconds of the forward and backward passes of an update; no weight changes."""
    prompts = [loop.columns["prompt"][row] for row in rollouts.rows]
    began = time.process_time()
    for chosen in policy.passes(prompts, np.flatnonzero(advantages)):
        weights = torch.from_numpy(advantages[chosen]).float()
        policy._loss([prompts[row] for row in chosen], rollouts.of(chosen), weights, None).backward()  # type: ignore[no-untyped-call]
    seconds = time.process_time() - began
    policy.optimizer.zero_grad()
    return seconds


if __name__ == "__main__":
    main()
