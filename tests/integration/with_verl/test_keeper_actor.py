"""The budget keeper as verl's run has it: a Ray actor, which is killed in the middle of a step and started again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="verl is installed in an environment of its own")

import ray

import knapsack_rl as kr
from knapsack_rl.verl.keeper import BudgetKeeper, Report, Reports
from knapsack_rl.verl.options import KnapsackOptions

PROMPTS = 12


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


class Workers:
    """Two of them, whose rollouts end at once; after some reports somebody kills the keeper."""

    def __init__(self, keeper: Any, rates: list[float], kill_after: list[int]) -> None:
        self.keeper, self.rates, self.kill_after = keeper, rates, kill_after
        self.random = random.Random(0)
        self.reported = 0
        self.started, self.won = np.zeros((2, len(rates)), dtype=int)
        self.reports = [Reports(f"worker {i}", keeper.report.remote, keeper.answers.remote) for i in range(2)]

    async def group(self, uid: str, position: int, more: int, one_by_one: bool) -> None:
        running = 0
        while more or running:
            self.started[position] += more
            running += more
            ended = 1 if one_by_one else running
            won = sum(self.random.random() < self.rates[position] for _ in range(ended))
            running -= ended
            self.won[position] += won
            self.reported += 1
            if self.reported in self.kill_after:
                ray.kill(self.keeper, no_restart=False)
            more = await self.reports[position % 2].send(Report(uid, won, ended, 0, waiting=not running))
        await self.keeper.settle.remote(uid)

    async def step(self, number: int) -> list[str]:
        uids, ids = [f"{number}-{i}" for i in range(PROMPTS)], [f"prompt {i}" for i in range(PROMPTS)]
        opening = await self.keeper.open.remote(uids, ids, {})
        groups = [self.group(uid, i, opening.first[i], opening.more) for i, uid in enumerate(uids)]
        await asyncio.wait_for(asyncio.gather(*groups), 120)
        return uids


@pytest.mark.parametrize("strategy", ["knapsack", "adaptive"])
def test_a_keeper_that_is_killed_in_the_middle_of_a_step_goes_on_with_it(
    strategy: str, cluster: None, tmp_path: Path
) -> None:
    """Every rollout counts once and the budget is met: plans are those of an allocator that was told the same."""
    name = f"keeper of {strategy}"
    made = (
        ray.remote(BudgetKeeper)
        .options(name=name, num_cpus=0, memory=1 << 20, max_restarts=-1, max_task_retries=-1, max_concurrency=1000)
        .remote(
            KnapsackOptions.read({"strategy": strategy, "max_rollouts": 32}), 8, "grpo", folder=str(tmp_path), run="run"
        )
    )
    keeper = ray.get_actor(name)  # as workers find it
    taught, ids = kr.BudgetAllocator(strategy, 8, 2, 32), [f"prompt {i}" for i in range(PROMPTS)]
    workers = Workers(keeper, [position / PROMPTS for position in range(PROMPTS)], kill_after=[9, 20, 21])
    for number in range(3):
        before = workers.started.copy(), workers.won.copy()
        uids = asyncio.run(workers.step(number))
        started, won = workers.started - before[0], workers.won - before[1]
        assert started.sum() == 8 * PROMPTS
        taught.tell(ids, won, started)
        found = ray.get(keeper.visits.remote(uids, number))
        assert found["rollouts/sum"] == 8 * PROMPTS
        assert found["rollouts/max"] == started.max()
    assert workers.reported > 21
    state = tmp_path / "state.npz"
    ray.get(keeper.save.remote(str(state)))
    saved = kr.BudgetAllocator(strategy, 8, 2, 32)
    saved.load(state)
    assert saved.success_rates(ids).tolist() == taught.success_rates(ids).tolist()
    assert ray.get(keeper.open.remote([f"next {i}" for i in range(PROMPTS)], ids, {})).expected == (
        taught.ask(ids).rollouts.tolist()
    )
    ray.kill(made)


def test_a_keeper_beside_ray_and_not_in_an_actor_begins_its_journal(cluster: None, tmp_path: Path) -> None:
    """As benchmarks run it: Ray's context knows of restarts in actors only."""
    options = KnapsackOptions.read({"strategy": "knapsack", "max_rollouts": 32})
    keeper = BudgetKeeper(options, 8, "grpo", folder=str(tmp_path), run="run")
    opened = asyncio.run(keeper.open(["0-a", "0-b"], ["a", "b"], {}))
    assert sum(opened.first) == 16
