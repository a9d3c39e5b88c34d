"""How long a step's generation takes, by how its rollouts are dealt to workers: a simulation.

    python benchmarks/dealing.py                                   # seeds 100 .. 119; a table of docs/dispatch.md
    python benchmarks/dealing.py --prompt-tokens 4096              # long prompts
    python benchmarks/dealing.py --lengths benchmarks/lengths.csv  # lengths of a real model's rollouts

Eight workers with some slots each batch continuously. A decoding step gives every running rollout one token and takes
`BASE + EACH * running` seconds: an engine reads the weights once a step and, for each rollout, its cache, and computes.
The numbers are the roofline of Qwen2.5-7B (7.6e9 parameters, 28 layers, 4 heads of 128 in the cache) in bf16 on one
H100 SXM (3.35 TB/s, 989 TFLOPS, of which half is reached): weights 15.2 GB, and a token 57 kB of cache for each of
1,500 tokens before it, and 15.2 GFLOP. A prompt that the worker has not had in this step is prefilled while nothing
else runs, at 15.2 GFLOP a token; one that it has had is in its cache.

256 prompts get 2,048 rollouts by the paper's rule, from the outcomes of an earlier visit of 8; success rates come from
Beta(.4, .6). Lengths are log-normal and cut off: median 1,000 tokens, sigma 1, at most 8,192. A part of the variance
of their logarithm is between prompts. Hard prompts tend to be long: prompts' means have a correlation of .5 with the
normal score of the failure rate.
"""

from __future__ import annotations

import argparse
import heapq
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

import knapsack_rl as kr
from knapsack_rl.estimators.costs import RolloutCosts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GROUP, WORKERS, SLOTS = 8, 8, (32, 64, 256)
BASE, EACH, PREFILL = 15.2e9 / 3.35e12, 57e3 * 1500 / 3.35e12 + 15.2e9 / 495e12, 15.2e9 / 495e12
MEDIAN, SIGMA, LONGEST, MOST = 1000.0, 1.0, 8192, 512
PREDICTIONS = ("one visit", "the prompt's mean", "its own length")
"""What is known of a rollout's length: what `RolloutCosts` learned from one visit of 8, or more than anyone knows."""
WAYS = {
    "shuffled_jobs": False,
    "balanced_groups by rollouts": False,
    "balanced_groups by tokens": True,
    "longest_first": True,
    "single rollouts, longest first": True,
    "one queue, shuffled": False,
    "one queue, longest first": True,
}
"""How rollouts get to workers, and whether that looks at expected lengths."""


@dataclass(frozen=True)
class World:
    """A planned step; its rollouts are numbered prompt by prompt, and vectors over them have shape (budget,)."""

    plan: Ints
    """Rollouts of each prompt, shape (M,)."""
    prompts: Ints
    lengths: Ints
    expected: dict[str, Floats]
    """By prediction: expected tokens of each rollout."""


def draw(seed: int, prompts: int, between: float, real: Ints | None = None) -> World:
    rng = np.random.default_rng(seed)
    rates = np.sort(rng.beta(0.4, 0.6, prompts))
    scores = np.array([NormalDist().inv_cdf((rank + 0.5) / prompts) for rank in range(prompts)])
    long = -0.5 * scores + np.sqrt(0.75) * rng.standard_normal(prompts)
    plan = kr.allocate(rng.binomial(GROUP, rates) / GROUP, prompts * GROUP).rollouts
    if real is None:
        logs = np.sqrt(between) * long[:, None] + np.sqrt(1.0 - between) * rng.standard_normal((prompts, MOST))
        pool = np.ceil(np.clip(MEDIAN * np.exp(SIGMA * logs), 1, LONGEST)).astype(np.int64)
    else:
        ranks = np.argsort(np.argsort(long)) * len(real) // prompts
        rows = real[np.argsort(real.mean(axis=1), kind="stable")[ranks]]
        pool = np.take_along_axis(rows, rng.integers(0, real.shape[1], (prompts, MOST)), axis=1)
    costs, keys = RolloutCosts(), np.arange(prompts, dtype=np.uint64)
    costs.update(keys, pool[:, -GROUP:].sum(axis=1).astype(np.float64), np.full(prompts, GROUP))
    whose = np.repeat(np.arange(prompts), plan)
    lengths = np.concatenate([row[:count] for row, count in zip(pool, plan, strict=True)])
    known = (costs.expected(keys)[whose], pool.mean(axis=1)[whose], lengths.astype(np.float64))
    return World(plan, whose, lengths, dict(zip(PREDICTIONS, known, strict=True)))


def dealt(way: str, world: World, expected: Floats, workers: int, seed: int) -> list[deque[int]]:
    """The rollouts of each worker in the order to start them; a single list where they share one queue."""
    if way.startswith("one queue"):
        order = np.random.default_rng((seed, 1)).permutation(len(expected))
        return [deque(order[np.argsort(-expected[order], kind="stable")] if WAYS[way] else order)]
    if way.startswith("single"):  # to whoever has least to do
        loads = [(0.0, worker) for worker in range(workers)]
        queues: list[deque[int]] = [deque() for _ in loads]
        for job in np.argsort(-expected, kind="stable"):
            load, worker = loads[0]
            queues[worker].append(job)
            heapq.heapreplace(loads, (load + expected[job], worker))
        return queues
    groups = np.split(np.arange(len(expected)), np.cumsum(world.plan)[:-1])
    if way == "shuffled_jobs":
        waiting = [deque(group) for group in groups]
        deal = kr.dispatch.shuffled_jobs(world.plan, workers, seed)
        return [deque(waiting[prompt].popleft() for prompt in part) for part in deal]
    tokens = np.bincount(world.prompts, expected, len(groups))
    if way == "longest_first":
        deal = kr.dispatch.longest_first(tokens / world.plan, world.plan, workers)
        groups = [group[np.argsort(-expected[group], kind="stable")] for group in groups]
    else:
        deal = kr.dispatch.balanced_groups(tokens if WAYS[way] else world.plan, workers)
    return [deque(np.concatenate([groups[prompt] for prompt in part])) for part in deal]


def played(queues: list[deque[int]], world: World, slots: int, prompt_tokens: int) -> tuple[float, float]:
    """Seconds until the last rollout ends, and the share of rollouts that found their prompt in the worker's cache."""
    queues = queues * (WORKERS // len(queues))
    clocks, steps = [0.0] * WORKERS, [0] * WORKERS
    running: list[list[int]] = [[] for _ in queues]  # a heap for each worker: the steps at which its rollouts end
    seen: list[set[int]] = [set() for _ in queues]

    def start(worker: int) -> None:
        job = queues[worker].popleft()
        if world.prompts[job] not in seen[worker]:
            seen[worker].add(world.prompts[job])
            clocks[worker] += PREFILL * prompt_tokens
        heapq.heappush(running[worker], steps[worker] + int(world.lengths[job]))

    for worker in list(range(WORKERS)) * slots:  # in turns, since they may share a queue
        if queues[worker]:
            start(worker)
    ready = sorted((clocks[worker], worker) for worker in range(WORKERS))
    while ready:
        _, worker = heapq.heappop(ready)
        mine = running[worker]
        while queues[worker] and len(mine) < slots:
            start(worker)
        if mine:
            clocks[worker] += (mine[0] - steps[worker]) * (BASE + EACH * len(mine))
            steps[worker] = mine[0]
            while mine and mine[0] == steps[worker]:
                heapq.heappop(mine)
            heapq.heappush(ready, (clocks[worker], worker))
    return max(clocks), 1.0 - sum(map(len, seen)) / len(world.lengths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=100, help="first seed")
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds, 2 or more")
    parser.add_argument("--prompts", type=int, default=256, help="prompts of a step, 8 rollouts each on average")
    parser.add_argument("--between", type=float, default=0.5, help="share of log-lengths' variance between prompts")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--lengths", type=Path, help="sample lengths from this table, one prompt a line")
    chosen = parser.parse_args()
    real = None if chosen.lengths is None else np.loadtxt(chosen.lengths, delimiter=",", dtype=np.int64)
    cases = [(way, known) for way, looks in WAYS.items() for known in (PREDICTIONS if looks else ("",))]
    found: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    correlations = []
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        world = draw(seed, chosen.prompts, chosen.between, real)
        correlations.append([np.corrcoef(known, world.lengths)[0, 1] for known in world.expected.values()])
        oracle = world.expected[PREDICTIONS[-1]]
        for slots in SLOTS:
            ideal, _ = played(dealt("one queue, longest first", world, oracle, WORKERS, seed), world, slots, 0)
            for way, known in cases:
                queues = dealt(way, world, world.expected[known or PREDICTIONS[0]], WORKERS, seed)
                seconds, hits = played(queues, world, slots, chosen.prompt_tokens)
                found.setdefault((way, known, slots), []).append((seconds / ideal, hits))
    told = ", ".join(f"{name} {r:.2f}" for name, r in zip(PREDICTIONS, np.mean(correlations, axis=0), strict=True))
    print(f"correlation with lengths: {told}")
    print(f"| dealt | known | {' | '.join(f'{slots} slots' for slots in SLOTS)} | prefix in the cache |")
    print(f"| --- | --- | {'---: | ' * len(SLOTS)}---: |")
    for way, known in cases:
        results = [np.array(found[way, known, slots]) for slots in SLOTS]
        cells = [f"{result[:, 0].mean():.2f} ± {result[:, 0].std(ddof=1):.2f}" for result in results]
        shared = [result[:, 1].mean() for result in results]
        print(f"| {way} | {known} | {' | '.join(cells)} | {min(shared):.2f} to {max(shared):.2f} |")


if __name__ == "__main__":
    main()
