"""What verl's budget keeper costs per step: with its callers in one process, and as a Ray actor where Ray is installed.

    python benchmarks/keeper.py [--prompts 256 4096] [--strategy uniform adaptive]     # in the environment with verl

A step of `prompts` x 8 rollouts that end as soon as they begin, so that nothing but the keeper and the calls to it
takes time: opening, a report for each group of a strategy with one wave or for each rollout of one with several,
planning. As an actor it has two callers, as verl's workers are.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import random
import time
from collections.abc import Callable
from typing import Any

from knapsack_rl.verl.keeper import BudgetKeeper, Report, Reports
from knapsack_rl.verl.options import KnapsackOptions


async def run_group(reports: Reports, uid: str, rate: float, first: int, more: bool) -> int:
    """Rollouts whose outcomes are drawn at once; returns the number of reports."""
    sent, running = 0, first
    while running:
        part = 1 if more else running
        running -= part
        won = sum(random.random() < rate for _ in range(part))
        running += await reports.send(Report(uid, won, part, 0, waiting=not running))
        sent += 1
    return sent


async def run_part(keeper: Any, groups: list[tuple[str, float, int]], more: bool) -> int:
    methods = keeper.report, keeper.answers
    reports = Reports(groups[0][0], *(getattr(method, "remote", method) for method in methods))
    return sum(await asyncio.gather(*(run_group(reports, *group, more) for group in groups)))


def of_step(number: int, prompts: int) -> tuple[list[str], list[str], list[float]]:
    draw = random.Random(number)
    uids = [f"{number}-{position}" for position in range(prompts)]
    return uids, [f"prompt {position}" for position in range(prompts)], [draw.betavariate(0.5, 0.5) for _ in uids]


async def in_process(strategy: str, prompts: int, steps: int) -> list[tuple[float, int]]:
    keeper, measured = BudgetKeeper(KnapsackOptions.read({"strategy": strategy}), 8, "grpo"), []
    for number in range(steps):
        uids, ids, rates = of_step(number, prompts)
        began = time.perf_counter()
        first, more, _ = await keeper.open(uids, ids, {})
        reports = await run_part(keeper, list(zip(uids, rates, first, strict=True)), more)
        await keeper.visits(uids)
        measured.append((time.perf_counter() - began, reports))
    return measured


def as_actor(strategy: str, prompts: int, steps: int) -> list[tuple[float, int]]:
    import ray

    class Caller:
        async def run(self, keeper: Any, groups: list[tuple[str, float, int]], more: bool) -> int:
            return await run_part(keeper, groups, more)

    keeper = ray.remote(BudgetKeeper).options(num_cpus=0, max_concurrency=1_000_000)
    keeper = keeper.remote(KnapsackOptions.read({"strategy": strategy}), 8, "grpo")
    callers, measured = [ray.remote(Caller).options(num_cpus=0).remote() for _ in range(2)], []
    for number in range(steps):
        uids, ids, rates = of_step(number, prompts)
        began = time.perf_counter()
        first, more, _ = ray.get(keeper.open.remote(uids, ids, {}))
        groups = list(zip(uids, rates, first, strict=True))
        reports = sum(ray.get([caller.run.remote(keeper, groups[i::2], more) for i, caller in enumerate(callers)]))
        ray.get(keeper.visits.remote(uids))
        measured.append((time.perf_counter() - began, reports))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", nargs="+", type=int, default=[256, 4096])
    parser.add_argument("--strategy", nargs="+", default=["uniform", "adaptive"])
    parser.add_argument("--steps", type=int, default=4)
    asked = parser.parse_args()
    ways: dict[str, Callable[[str, int, int], list[tuple[float, int]]]] = {
        "in one process": lambda *step: asyncio.run(in_process(*step))
    }
    if importlib.util.find_spec("ray") is not None:
        import ray

        ray.init(address="local", include_dashboard=False, logging_level="ERROR")
        ways["Ray actor"] = as_actor
    print("| keeper | strategy | prompts | reports | seconds a step |\n| --- | --- | ---: | ---: | ---: |")
    for way, measure in ways.items():
        for strategy in asked.strategy:
            for prompts in asked.prompts:
                seconds, reports = min(measure(strategy, prompts, asked.steps)[1:])  # the first also starts things up
                print(f"| {way} | {strategy} | {prompts:,} | {reports:,} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
