"""What waiting between the waves of a step costs, and what placing rollouts without waiting would bring.

    python benchmarks/barriers.py                # seeds 20 .. 39; prints the table in docs/waves.md
    python benchmarks/barriers.py --longest 8    # the same with responses cut off at 8 medians

An engine with a number of slots generates 256 x 8 rollouts by continuous batching at constant speed. Durations are
log-normal (sigma 1), independent of prompts and outcomes; success rates come from Beta(.4, .6), and the belief about a
prompt is the posterior after three earlier outcomes. All ways of placing see the same outcomes and durations: the j-th
rollout of a prompt is the same one wherever it is placed.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.allocator import BudgetAllocator
from knapsack_rl.belief import Belief
from knapsack_rl.estimators import RecentRewards
from knapsack_rl.estimators.features import NONE, Features
from knapsack_rl.expected_value import expected_gains
from knapsack_rl.influence import ASSUMED
from knapsack_rl.solver import largest_gains

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PROMPTS, GROUP, LEAST, MOST = 256, 8, 2, 128
BUDGET = PROMPTS * GROUP
PRIOR = (0.4, 0.6)
EARLIER = 3
WAYS = ("one shot", "three waves", "no barriers: `place`")


@dataclass(frozen=True)
class World:
    """One step: rates and belief of shape (M,), rights and durations of shape (M, MOST)."""

    rates: Floats
    belief: Belief
    rights: NDArray[np.bool_]
    durations: Floats


@dataclass(frozen=True)
class Outcome:
    """How a step went: when it ended, the work in it, and what each prompt got."""

    makespan: float
    work: float
    placed: Ints
    successes: Ints


def draw(seed: int, longest: float, prior: tuple[float, float] = PRIOR) -> World:
    rng = np.random.default_rng(seed)
    rates = rng.beta(*prior, PROMPTS)
    earlier = rng.binomial(EARLIER, rates).astype(np.float64)
    belief = Belief(prior[0] + earlier, prior[1] + EARLIER - earlier)
    rights = rng.random((PROMPTS, MOST)) < rates[:, None]
    durations = np.minimum(rng.lognormal(0.0, 1.0, (PROMPTS, MOST)), longest)
    return World(rates, belief, rights, durations)


def in_waves(world: World, slots: int, seed: int, halve: bool) -> Outcome:
    """A pilot, half and the rest with a barrier after each, or all in one shot."""
    rng = np.random.default_rng((seed, 1))
    placed, successes = np.zeros((2, PROMPTS), dtype=np.int64)
    now = work = 0.0
    wave = 0
    while (left := BUDGET - int(placed.sum())) > 0:
        added = np.maximum(LEAST - placed, 0)
        more = left - int(added.sum())
        if halve:
            more = (0, (more + 1) // 2)[wave] if wave < 2 else more
        gains = expected_gains(world.belief, successes, placed, added, ASSUMED)
        mixed = (successes > 0) & (successes < placed)
        room = np.where(mixed, 0, MOST - placed - added)
        some = min(more, int(room.sum()))
        added = added + largest_gains(gains, room, some)
        for _ in range(more - some):  # all else is mixed: evenly
            added[np.argmin(placed + added)] += 1
        column = np.arange(MOST)
        new = (column >= placed[:, None]) & (column < (placed + added)[:, None])
        durations = rng.permutation(world.durations[new])
        ends = [now] * slots
        for duration in durations:
            heapq.heapreplace(ends, ends[0] + duration)
        now, work, wave = max(ends), work + float(durations.sum()), wave + 1
        placed = placed + added
        successes = (world.rights & (column < placed[:, None])).sum(axis=1)
    return Outcome(now, work, placed, successes)


class Told(RecentRewards):
    """Believes what it was given."""

    def __init__(self, belief: Belief) -> None:
        super().__init__(0)
        self._given = belief

    def belief(self, keys: NDArray[np.uint64], features: Features = NONE) -> Belief:
        """As in `Estimator`."""
        return self._given


def placed_by_the_library(world: World, slots: int) -> Outcome:
    """`Step.place` whenever a slot is free, and a report of each rollout as it ends."""
    allocator = BudgetAllocator("adaptive", GROUP, LEAST, MOST)
    allocator.estimator = Told(world.belief)
    step = allocator.step(range(PROMPTS))
    placed, nothing = np.zeros((2, PROMPTS), dtype=np.int64)
    flight: list[tuple[float, int, bool]] = []
    now = work = 0.0
    while step.remaining:
        plan = step.place(slots - len(flight)).rollouts
        for i in np.flatnonzero(plan).tolist():
            for j in range(placed[i], placed[i] + plan[i]):
                heapq.heappush(flight, (now + float(world.durations[i, j]), i, bool(world.rights[i, j])))
                work += float(world.durations[i, j])
        placed += plan
        now, i, right = heapq.heappop(flight)
        back, won = nothing.copy(), nothing.copy()
        back[i], won[i] = 1, right
        step.report(won, back)
    return Outcome(now, work, placed, step.successes)


def run(way: str, world: World, slots: int, seed: int) -> Outcome:
    if way.endswith("`place`"):
        return placed_by_the_library(world, slots)
    return in_waves(world, slots, seed, halve=way == "three waves")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=20, help="first seed")
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds, 2 or more")
    parser.add_argument("--longest", type=float, default=np.inf, help="cut durations off here; the median is 1")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    print("| slots | way | makespan / one shot | idle slots | groups with gradient | sum of p^.5 (1-p)^2 over them |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for slots in (64, 256, 1024):
        rows: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
        for seed in seeds:
            world = draw(seed, arguments.longest)
            reference = 1.0
            for way in WAYS:
                result = run(way, world, slots, seed)
                if result.placed.sum() != BUDGET:
                    raise RuntimeError(f"{way}: placed {result.placed.sum()} of {BUDGET}")
                if way == WAYS[0]:
                    reference = result.makespan
                mixed = (result.successes > 0) & (result.successes < result.placed)
                worth = float((world.rates**0.5 * (1 - world.rates) ** 2)[mixed].sum())
                idle = 1 - result.work / (slots * result.makespan)
                rows[way].append((result.makespan / reference, idle, float(mixed.sum()), worth))
        for way, values in rows.items():
            mean, sd = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
            print(
                f"| {slots} | {way} | {mean[0]:.2f} ± {sd[0]:.2f} | {mean[1]:.2f} "
                f"| {mean[2]:.0f} ± {sd[2]:.0f} | {mean[3]:.1f} ± {sd[3]:.1f} |"
            )


if __name__ == "__main__":
    main()
