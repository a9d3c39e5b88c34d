"""What verl's budget keeper costs per step: with its callers in one process, and as a Ray actor where Ray is installed.

    python benchmarks/keeper.py [--prompts 256 4096] [--strategy uniform adaptive]     # in the environment with verl
    python benchmarks/keeper.py --planning [--prompts 16384] [--strategy knapsack ...] # any environment, no Ray
    python benchmarks/keeper.py --journal [--prompts 512] [--strategy adaptive]        # the same

With `--planning` the processor time of what the keeper does at once is measured, in milliseconds: opening a step, which
hashes ids and places its first rollouts; the forecast for a step in waves, by which groups are dealt to workers; and a
pass, which learns from what was reported within a hundredth of a second and places more: the median and the longest of
two steps, without the one that ends a step, which also updates the beliefs ("last"). Prompts were visited twice.

With `--journal` the lines and bytes of the journal are counted, by event, for one step with names as long as verl's,
and the processor time to replay them.

Otherwise: a step of `prompts` x 8 rollouts that end as soon as they begin, so that nothing but the keeper and the calls
to it takes time: opening, a report for each group of a strategy with one wave or for each rollout of one with several,
planning. As an actor it has two callers, as verl's workers are. The keeper has its journal, in a temporary folder,
unless there is `--no-journal`. Seconds of the processor are those of one process with the callers in it; of an actor
and its callers they are not known.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib.util
import random
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import knapsack_rl as kr
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
    uids = [str(uuid.UUID(int=draw.getrandbits(128))) for _ in range(prompts)]
    return uids, [f"{position:032x}" for position in range(prompts)], [draw.betavariate(0.5, 0.5) for _ in uids]


async def journal(strategy: str, prompts: int, folder: str) -> None:
    """Print what a step leaves in the journal."""
    made = functools.partial(
        BudgetKeeper, KnapsackOptions.read({"strategy": strategy}), 8, "grpo", folder=folder, run="one"
    )
    keeper, (uids, ids, rates) = made(), of_step(0, prompts)
    first, more, _ = await keeper.open(uids, ids, {}, ["math"] * prompts)
    await run_part(keeper, list(zip(uids, rates, first, strict=True)), more)
    for uid in uids:
        await keeper.settle(uid)
    await keeper.visits(uids)
    lines, size = Counter[str](), Counter[str]()
    for line in Path(folder, "one", "events-0.jsonl").read_text().splitlines(keepends=True):
        event = line.split('"')[1]
        lines[event] += 1
        size[event] += len(line)
    began = time.process_time()
    made()
    taken = time.process_time() - began
    for event in lines:
        print(f"| {strategy} | {prompts:,} | {event} | {lines[event]:,} | {size[event]:,} |")
    print(f"| {strategy} | {prompts:,} | all, replayed in {taken:.2f} s | {lines.total():,} | {size.total():,} |")


def planning(strategy: str, prompts: int) -> tuple[float, ...]:
    """Milliseconds of the processor: opening, forecast, median pass, longest pass, last pass."""
    random, ids = np.random.default_rng(0), [f"prompt {position}" for position in range(prompts)]
    rates, allocator = random.beta(0.5, 0.5, prompts), kr.BudgetAllocator(strategy, 8)
    for _ in range(2):
        allocator.tell(ids, random.binomial(8, rates), np.full(prompts, 8))
    opening, forecasts, passes, last = (list[float]() for _ in range(4))
    for _ in range(2):
        began = time.process_time()
        step = allocator.step(ids)
        step.place(step.remaining)
        opening.append(time.process_time() - began)
        most = step.remaining // 2
        began = time.process_time()
        if step.remaining > step.in_flight.sum():
            step.forecast()
        forecasts.append(time.process_time() - began)
        while step.remaining:
            ended = np.minimum(step.in_flight, random.poisson(0.2, prompts))
            ended = ended if ended.any() else step.in_flight
            won = random.binomial(ended, rates)
            began = time.process_time()
            step.report(won, ended)
            room = most - int(step.in_flight.sum())
            if step.remaining and room > 0:
                step.place(room)
            (passes if step.remaining else last).append(time.process_time() - began)
    return tuple(1e3 * x for x in (min(opening), min(forecasts), np.median(passes), max(passes), min(last)))


async def in_process(strategy: str, prompts: int, steps: int, folder: str | None) -> list[tuple[float, ...]]:
    keeper = BudgetKeeper(KnapsackOptions.read({"strategy": strategy}), 8, "grpo", folder=folder, run="one")
    measured: list[tuple[float, ...]] = []
    for number in range(steps):
        uids, ids, rates = of_step(number, prompts)
        began, worked = time.perf_counter(), time.process_time()
        first, more, _ = await keeper.open(uids, ids, {})
        reports = await run_part(keeper, list(zip(uids, rates, first, strict=True)), more)
        await keeper.visits(uids)
        measured.append((time.perf_counter() - began, reports, time.process_time() - worked))
    return measured


def as_actor(strategy: str, prompts: int, steps: int, folder: str | None) -> list[tuple[float, ...]]:
    import ray

    class Caller:
        async def run(self, keeper: Any, groups: list[tuple[str, float, int]], more: bool) -> int:
            return await run_part(keeper, groups, more)

    keeper = ray.remote(BudgetKeeper).options(num_cpus=0, max_concurrency=1_000_000)
    keeper = keeper.remote(KnapsackOptions.read({"strategy": strategy}), 8, "grpo", folder=folder, run="actor")
    callers = [ray.remote(Caller).options(num_cpus=0).remote() for _ in range(2)]
    measured: list[tuple[float, ...]] = []
    for number in range(steps):
        uids, ids, rates = of_step(number, prompts)
        began = time.perf_counter()
        first, more, _ = ray.get(keeper.open.remote(uids, ids, {}))
        groups = list(zip(uids, rates, first, strict=True))
        reports = sum(ray.get([caller.run.remote(keeper, groups[i::2], more) for i, caller in enumerate(callers)]))
        ray.get(keeper.visits.remote(uids))
        measured.append((time.perf_counter() - began, reports, float("nan")))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", nargs="+", type=int)
    parser.add_argument("--strategy", nargs="+")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--planning", action="store_true")
    parser.add_argument("--journal", action="store_true")
    parser.add_argument("--no-journal", action="store_true")
    asked = parser.parse_args()
    if asked.planning:
        print("| strategy | prompts | opening | forecast | pass | longest | last |\n| --- |" + " ---: |" * 6)
        for strategy in asked.strategy or kr.strategies():
            for prompts in asked.prompts or [16384]:
                found = " | ".join(f"{number:.1f}" for number in planning(strategy, prompts))
                print(f"| {strategy} | {prompts:,} | {found} |", flush=True)
        return
    if asked.journal:
        print("| strategy | prompts | event | lines | bytes |\n| --- | ---: | --- | ---: | ---: |")
        for strategy in asked.strategy or ["adaptive"]:
            for prompts in asked.prompts or [512]:
                with tempfile.TemporaryDirectory() as folder:
                    asyncio.run(journal(strategy, prompts, folder))
        return
    ways: dict[str, Callable[..., list[tuple[float, ...]]]] = {
        "in one process": lambda *step: asyncio.run(in_process(*step))
    }
    if importlib.util.find_spec("ray") is not None:
        import ray

        ray.init(address="local", include_dashboard=False, logging_level="ERROR")
        ways["Ray actor"] = as_actor
    print("| keeper | strategy | prompts | reports | seconds a step | of the processor |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for way, measure in ways.items():
        for strategy in asked.strategy or ["uniform", "adaptive"]:
            for prompts in asked.prompts or [256, 4096]:
                with tempfile.TemporaryDirectory() as folder:
                    taken = measure(strategy, prompts, asked.steps, None if asked.no_journal else folder)
                seconds, reports, worked = min(taken[1:])  # the first also starts things up
                print(f"| {way} | {strategy} | {prompts:,} | {reports:,} | {seconds:.2f} | {worked:.2f} |", flush=True)


if __name__ == "__main__":
    main()
