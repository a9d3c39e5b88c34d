"""What a driver holds and does per step with many known prompts: memory, and the time of a step's ask and tell.

    python benchmarks/scale.py [--known 1000000 10000000] [--prompts 256 4096 65536]

A row is a process of its own: a table of `known` prompts that were visited once, then steps of `prompts` prompts in
one wave. Memory is what the process holds with the table, less what it held before; ids are made beforehand, hashing
them is part of a step. "Longest" is the longest step, in which the table may have grown by half.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

import knapsack_rl as kr

CHUNK = 100_000
STEPS = 20


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(strategy: str, known: int, prompts: int) -> None:
    random = np.random.default_rng(0)
    allocator = kr.BudgetAllocator(strategy, group_size=8)
    before, began = resident(), time.perf_counter()
    for first in range(0, known, CHUNK):
        ids = [f"prompt {number}" for number in range(first, min(first + CHUNK, known))]
        allocator.tell(ids, random.binomial(8, random.beta(0.5, 0.5, len(ids))), np.full(len(ids), 8))
    filled = time.perf_counter() - began
    del ids
    gc.collect()
    held, seconds = resident() - before, []
    for _ in range(STEPS):
        ids = [f"prompt {number}" for number in random.integers(0, int(1.01 * known), prompts)]  # one in 100 is new
        began = time.perf_counter()
        step = allocator.step(ids, waves=False)
        plan = step.ask()
        step.tell(random.binomial(plan.rollouts, 0.5), plan.rollouts)
        seconds.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as folder:
        began, state = time.perf_counter(), Path(folder) / "state.npz"
        allocator.save(state)
        saved, size = time.perf_counter() - began, state.stat().st_size / 2**20
        began = time.perf_counter()
        kr.BudgetAllocator(strategy, group_size=8).load(state)
        loaded = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"| {strategy} | {known:,} | {prompts:,} | {held:.0f} | {1e3 * np.median(seconds):.1f} "
        f"| {1e3 * max(seconds):.1f} | {size:.0f} | {saved:.1f} | {loaded:.1f} | {filled:.0f} | {peak:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", nargs="+", default=["adaptive"])
    parser.add_argument("--known", nargs="+", type=int, default=[1_000_000, 10_000_000])
    parser.add_argument("--prompts", nargs="+", type=int, default=[256, 4096, 65536])
    asked = parser.parse_args()
    print("| strategy | known | prompts | table, MiB | step, ms | longest, ms | file, MiB ", end="")
    print("| save, s | load, s | fill, s | peak, MiB |\n| --- |" + " ---: |" * 10)
    for strategy in asked.strategy:
        for known in asked.known:
            for prompts in asked.prompts:
                process = multiprocessing.get_context("spawn").Process(target=measure, args=(strategy, known, prompts))
                process.start()
                process.join()


if __name__ == "__main__":
    main()
