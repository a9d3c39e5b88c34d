"""How soon the alarm finds a broken grader, and how often it cries wolf, over simulated runs.

    python benchmarks/alarm.py --runs 20

Worlds of `knapsack-rl simulate`, 64 prompts x 8 rollouts a step, 8 categories of which each step has about 8 prompts,
easier ones and harder ones. In every scenario one category's grader breaks: it says no (or yes) from the first step on,
or from the middle on, or from the middle until three quarters. Delay: steps from the break to the alarm.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from knapsack_rl import BudgetAllocator, Step, strategies
from knapsack_rl.experiments.simulate.policy import SimulatedPolicy
from knapsack_rl.experiments.simulate.worlds import WORLDS

CATEGORIES, BATCH, GROUP, PROMPTS, STEPS = 8, 64, 8, 1024, 120
SCENARIOS = {
    "healthy": (None, 0, 0),
    "no, from the start": (0, 0, STEPS),
    "no, from the middle": (0, STEPS // 2, STEPS),
    "yes, from the start": (1, 0, STEPS),
    "yes, from the middle": (1, STEPS // 2, STEPS),
    "no, then repaired": (0, STEPS // 2, STEPS * 3 // 4),
}


def simulated(
    strategy: str, world: str, seed: int, says: int | None, begins: int, ends: int
) -> Iterator[tuple[int, NDArray[np.bool_], Step]]:
    """A run whose grader of one category says 0 or 1 to everything from one step to another, if it says anything.

    Yields each step when it is over: its number, which of its prompts are of that category, and what came of it.
    """
    policy = SimulatedPolicy(replace(WORLDS[world], prompts=PROMPTS, readable=0.5), seed, "adam", 16)
    order = np.argsort(policy.success_rates()[:PROMPTS] + 0.3 * np.random.default_rng(seed).standard_normal(PROMPTS))
    kinds = np.empty(PROMPTS, dtype=int)
    kinds[order] = np.arange(PROMPTS) * CATEGORIES // PROMPTS  # from hard to easy, with an overlap
    allocator, per_epoch = BudgetAllocator(strategy, GROUP), PROMPTS // BATCH
    for number in range(STEPS):
        epoch, place = divmod(number, per_epoch)
        rows = np.random.default_rng((seed, epoch)).permutation(PROMPTS)[place * BATCH : (place + 1) * BATCH]
        graded, affected = policy.success_rates(rows), kinds[rows] == affected_by(seed)
        if says is not None and begins <= number < ends:
            graded[affected] = says
        generator = np.random.default_rng((seed, 1, number))
        step = allocator.step(rows.tolist(), watch={"kind": [str(kind) for kind in kinds[rows]]})
        while step.remaining:
            more = step.ask().rollouts
            step.tell(generator.binomial(more, graded), more)
        policy.update(rows, step.successes, step.placed)
        yield number, affected, step


def affected_by(seed: int) -> int:
    """The category whose grader breaks; neither the hardest nor the easiest."""
    return 1 + seed % (CATEGORIES - 2)


def run(strategy: str, scenario: str, world: str, seed: int) -> tuple[int | None, int]:
    """Steps from the break to the alarm (None: not found), and false alarms."""
    says, begins, ends = SCENARIOS[scenario]
    delay, wrong, broken = None, 0, str(affected_by(seed))
    for number, _, step in simulated(strategy, world, seed, says, begins, ends):
        for found in step.findings:
            if says is not None and begins <= number < ends and found.category == broken:
                delay = number - begins if delay is None else delay
            elif found.kind != "spends in vain" and not (number >= ends and found.category == broken):
                wrong += 1  # what changes at once when a grader is repaired is no false alarm
                if "-v" in sys.argv:
                    print(strategy, scenario, world, seed, number, found.text, file=sys.stderr)
    return delay, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="of every scenario and strategy")
    parser.add_argument("--strategies", nargs="*", default=list(strategies()))
    parser.add_argument("--worlds", nargs="*", default=["paper", "fast", "slow", "unsolvable"])
    parser.add_argument("-v", action="store_true", help="show false alarms")
    args = parser.parse_args()
    results = {
        (strategy, scenario): [
            run(strategy, scenario, args.worlds[seed % len(args.worlds)], seed) for seed in range(args.runs)
        ]
        for strategy in args.strategies
        for scenario in SCENARIOS
    }
    for head in (("scenario", "strategy"), ("scenario",)):

        def label(key: tuple[str, str], by: int = len(head)) -> str:
            return " | ".join(reversed(key[2 - by :]))

        print(f"\n| {' | '.join(head)} | runs | found | delay: median, 95 %, largest | false alarms |")
        print("|---" * (len(head) + 4) + "|")
        for name in dict.fromkeys(map(label, results)):
            of = [one for key, found in results.items() if label(key) == name for one in found]
            delays = [delay for delay, _ in of if delay is not None]
            three = np.quantile(delays, [0.5, 0.95, 1.0]) if delays else ()
            shown = f"{len(delays) or ''} | {', '.join(f'{delay:.0f}' for delay in three)}"
            print(f"| {name} | {len(of)} | {shown} | {sum(one for _, one in of)} |")


if __name__ == "__main__":
    main()
