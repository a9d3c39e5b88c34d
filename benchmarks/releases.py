"""When the groups of a step of `adaptive` are released, if it holds them all or closes some early, and what it costs.

    python benchmarks/releases.py     # seeds 20 .. 39; prints the table in docs/verl.md

The engine, the durations and the outcomes are those of barriers.py, cut off at 8 medians. As verl's budget keeper does,
half of the budget at most is in flight beyond the first rollouts; what the engine has no slot for waits its turn there.
A group is released when its own rollouts are back and it can get no more.
"""

from __future__ import annotations

import argparse
import collections
import heapq

import numpy as np
from numpy.typing import NDArray

from barriers import BUDGET, GROUP, LEAST, MOST, PROMPTS, Told, World, draw
from knapsack_rl.allocator import BudgetAllocator

RATES = {"as in waves.md: Beta(.4, .6)": (0.4, 0.6), "all near 1/2: Beta(50, 50)": (50.0, 50.0)}
LONGEST = 8.0


def run(world: World, slots: int, early: bool) -> tuple[float, ...]:
    """Releases before the last rollout is placed; their mean time; groups with a gradient; the largest of them."""
    allocator = BudgetAllocator("adaptive", GROUP, LEAST, MOST)
    allocator.estimator = Told(world.belief)
    step = allocator.step(range(PROMPTS))
    waiting: collections.deque[tuple[int, int]] = collections.deque()
    running: list[tuple[float, int, bool]] = []
    released, last_placed, now, room = np.full(PROMPTS, np.inf), 0.0, 0.0, LEAST * PROMPTS
    while step.remaining:
        before = step.placed
        plan = step.place(max(0, room)).rollouts
        waiting += [(i, j) for i in np.flatnonzero(plan).tolist() for j in range(before[i], before[i] + plan[i])]
        last_placed = now if plan.any() else last_placed
        while waiting and len(running) < slots:
            i, j = waiting.popleft()
            heapq.heappush(running, (now + float(world.durations[i, j]), i, bool(world.rights[i, j])))
        now, i, right = heapq.heappop(running)
        one: NDArray[np.int64] = np.zeros(PROMPTS, dtype=np.int64)
        one[i] = 1
        step.report(one * right, one)
        flight = step.in_flight
        closed = step.close() if early else np.full(PROMPTS, step.remaining == flight.sum())
        released[closed & (flight == 0) & np.isinf(released)] = now
        room = BUDGET // 2 - int(flight.sum())
    if step.placed.sum() != BUDGET:
        raise RuntimeError(f"placed {step.placed.sum()} of {BUDGET}")
    mixed = (step.successes > 0) & (step.successes < step.placed)
    return float((released < last_placed).sum()), released.mean() / now, float(mixed.sum()), float(step.placed.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=20, help="first seed")
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds, 2 or more")
    asked = parser.parse_args()
    print("| success rates | slots | groups | before the last is placed | mean time | with gradient | largest |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for name, prior in RATES.items():
        for slots in (64, 256, 1024):
            for way in ("held", "closed early"):
                found = [
                    run(draw(seed, LONGEST, prior), slots, way != "held")
                    for seed in range(asked.first, asked.first + asked.seeds)
                ]
                (before, time, mixed, largest), (sd, *_) = np.mean(found, axis=0), np.std(found, axis=0, ddof=1)
                numbers = f"{before:.0f} ± {sd:.0f} | {time:.3f} | {mixed:.1f} | {largest:.1f}"
                print(f"| {name} | {slots} | {way} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
