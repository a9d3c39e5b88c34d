"""What waiting between the waves of a step costs, and what placing rollouts without waiting would bring.

    python benchmarks/barriers.py                # seeds 20 .. 39; prints the table in docs/waves.md
    python benchmarks/barriers.py --longest 8    # the same with responses cut off at 8 medians

An engine with a number of slots generates 256 x 8 rollouts by continuous batching at constant speed. Durations are
log-normal (sigma 1), independent of prompts and outcomes; success rates come from Beta(.4, .6), and the belief about a
prompt is the posterior after three earlier outcomes. All ways of placing see the same outcomes and durations: the j-th
rollout of a prompt is the same one wherever it is placed. The rule behind `Step.place` was chosen on seeds 0 .. 5.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.allocator import BudgetAllocator
from knapsack_rl.belief import Belief
from knapsack_rl.beta import log_beta
from knapsack_rl.estimators import RecentRewards
from knapsack_rl.estimators.features import NONE, Features
from knapsack_rl.expected_value import expected_gains
from knapsack_rl.solver import largest_gains
from knapsack_rl.strategies.ours import EXPONENTS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PROMPTS, GROUP, LEAST, MOST = 256, 8, 2, 128
BUDGET = PROMPTS * GROUP
PRIOR = (0.4, 0.6)
EARLIER = 3
REPRICE = 16  # completions between two looks at the price; a look costs as much as some dozen placements
WAYS = ("one shot", "three waves", "no barriers: `place`", "no barriers, price throughout", "no barriers, no price")


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


def draw(seed: int, longest: float) -> World:
    rng = np.random.default_rng(seed)
    rates = rng.beta(*PRIOR, PROMPTS)
    earlier = rng.binomial(EARLIER, rates).astype(np.float64)
    belief = Belief(PRIOR[0] + earlier, PRIOR[1] + EARLIER - earlier)
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
        gains = expected_gains(world.belief, successes, placed, added, EXPONENTS)
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


class Market:
    """Expected gains of the next rollout, and the price at which the expected demand is what is left to spend.

    With belief Beta(a, b), f wrong (none right) and q pending rollouts, the gain of one more is
    B(a + 1 + e, b + g + f + q) / B(a, b + f), as in `expected_gains`, and likewise where all are right; the tables hold
    the logarithms of numerators and denominators for all counts.
    """

    def __init__(self, belief: Belief) -> None:
        e, g = EXPONENTS
        a, b, count = belief.wins[:, None], belief.losses[:, None], np.arange(MOST + 1.0)
        self.whole = np.stack((log_beta(a, b + count), log_beta(a + count, b)))  # all wrong, all right
        self.one_more = np.stack((log_beta(a + 1 + e, b + g + count), log_beta(a + e + count, b + 1 + g)))
        self.after = np.exp(self.one_more - self.whole)[:, :, :MOST]  # gain once so many are known to be alike
        self.order = np.argsort(-self.after, axis=None)
        self.count = np.arange(MOST)

    def gain(self, i: int, placed: int, successes: int, scored: int) -> float:
        """What one more rollout of prompt i is worth; mixed groups come last, the largest of them last of all."""
        if placed == MOST:
            return -np.inf
        if 0 < successes < scored:
            return -float(placed)
        total = 0.0
        if successes == 0:
            total += np.exp(self.one_more[0, i, placed] - self.whole[0, i, scored])
        if successes == scored:
            total += np.exp(self.one_more[1, i, placed] - self.whole[1, i, scored])
        return total

    def price(self, placed: Ints, successes: Ints, scored: Ints, left: int) -> float:
        """Under the belief, a group asks for rollout k + 1 when its first k are alike and its gain is above the price.

        The sum of these probabilities over prompts and k is the expected demand: no sampling is needed.
        """
        prompts = np.arange(PROMPTS)
        known = self.whole[:, prompts, scored]
        chance = np.exp(np.minimum(self.whole[:, :, :MOST] - known[:, :, None], 0.0))
        alike = np.stack((successes == 0, successes == scored))
        chance *= alike[:, :, None] & (self.count >= placed[:, None])
        demand = np.cumsum(chance.ravel()[self.order])
        if demand[-1] <= left:
            return -np.inf
        return float(self.after.ravel()[self.order[np.searchsorted(demand, left)]])


def streamed(world: World, slots: int, priced: bool) -> Outcome:
    """Two simpler rules: the minimum for everyone, then the largest gain, if wanted only above the price."""
    market = Market(world.belief)
    placed, successes, scored = np.zeros((3, PROMPTS), dtype=np.int64)
    gains = np.zeros(PROMPTS)
    pilot = [i for _ in range(LEAST) for i in range(PROMPTS)][::-1]
    flight: list[tuple[float, int, bool]] = []
    left, now, work, news = BUDGET, 0.0, 0.0, REPRICE
    price = -np.inf
    while left or flight:
        while left and len(flight) < slots:
            if pilot:
                i = pilot.pop()
            else:
                if priced and news >= REPRICE:
                    price, news = market.price(placed, successes, scored, left), 0
                i = int(gains.argmax())
                if gains[i] <= price:
                    if flight:
                        break
                    price, news = -np.inf, 0  # waiting would teach nothing more: the budget must be spent
            duration = float(world.durations[i, placed[i]])
            heapq.heappush(flight, (now + duration, i, bool(world.rights[i, placed[i]])))
            placed[i] += 1
            left, work = left - 1, work + duration
            gains[i] = market.gain(i, int(placed[i]), int(successes[i]), int(scored[i]))
        now, i, right = heapq.heappop(flight)
        scored[i] += 1
        successes[i] += right
        news += 1
        gains[i] = market.gain(i, int(placed[i]), int(successes[i]), int(scored[i]))
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
    allocator._estimator = Told(world.belief)
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
    if way.startswith("no barriers"):
        return streamed(world, slots, priced=way.endswith("throughout"))
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
