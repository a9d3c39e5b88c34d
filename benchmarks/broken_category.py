"""What becomes of the budget of a category whose grader breaks, and how few rollouts a prompt gets, in simulated runs.

    python benchmarks/broken_category.py --runs 12

Worlds and categories are those of `benchmarks/alarm.py`: 64 prompts x 8 rollouts a step, 8 categories. From the middle
on one category's grader says no (or yes), or all goes well. What counts is the last quarter: how many rollouts the
category's prompts get, as a multiple of what even groups would give them. With the default bounds, 2 to 128, it cannot
be less than .25.
"""

from __future__ import annotations

import argparse

from alarm import GROUP, STEPS, simulated
from knapsack_rl import strategies


def run(strategy: str, says: int | None, world: str, seed: int) -> tuple[int, int]:
    """Rollouts of the category in the last quarter, and what even groups would have given it."""
    got = even = 0
    for number, affected, step in simulated(strategy, world, seed, says, STEPS // 2, STEPS):
        if number >= STEPS * 3 // 4:
            got += int(step.placed[affected].sum())
            even += GROUP * int(affected.sum())
    return got, even


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12, help="of every strategy and way to break")
    parser.add_argument("--strategies", nargs="*", default=list(strategies()))
    parser.add_argument("--worlds", nargs="*", default=["paper", "fast", "slow", "unsolvable"])
    args = parser.parse_args()
    print("| strategy | graded right | says no | says yes |\n|---|---|---|---|")
    for strategy in args.strategies:
        shares = []
        for says in (None, 0, 1):
            found = [run(strategy, says, args.worlds[seed % len(args.worlds)], seed) for seed in range(args.runs)]
            shares.append(sum(got for got, _ in found) / sum(even for _, even in found))
        print(f"| `{strategy}` | {' | '.join(f'{share:.2f}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
