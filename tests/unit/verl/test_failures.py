"""What becomes of groups some of whose rollouts fail: verl's replay buffers and our worker, wrapper and keeper.

The worker's rollouts need no engine here, and verl's queue is a dictionary; with_verl has the real ones.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import logging
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("verl.trainer.ppo.v1", reason="verl is installed in an environment of its own")

from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.trainer.ppo.v1 import agent_loop_tq, replay_buffer

from knapsack_rl.verl import agent_loop, trainer
from knapsack_rl.verl.keeper import BudgetKeeper, Reports
from knapsack_rl.verl.options import KnapsackOptions

MODES = {
    "knapsack": trainer.KnapsackTrainerSync,
    "knapsack_colocate_async": trainer.KnapsackTrainerColocateAsync,
    "knapsack_separate_async": trainer.KnapsackTrainerSeparateAsync,
}
RATES = (0.0, 0.01, 0.08, 0.3)


def drawn(*names: object) -> float:
    """A number between 0 and 1 that belongs to these names."""
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:8], "big") / 2**64


class Queue:
    """verl's queue: rows and groups, by name, with their tags; and the one event loop of a process."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.tags: dict[str, dict[str, Any]] = {}
        self.runner = runner

    def kv_list(self) -> dict[str, dict[str, dict[str, Any]]]:
        return {"train": {key: dict(tag) for key, tag in self.tags.items()}}

    def kv_clear(self, keys: list[str], partition_id: str) -> None:
        for key in keys:
            del self.tags[key]

    async def async_kv_clear(self, keys: list[str], partition_id: str) -> None:
        self.kv_clear(keys, partition_id)

    async def async_kv_put(self, key: str, partition_id: str, tag: dict[str, Any]) -> None:
        self.tags.setdefault(key, {}).update(tag)


class Remote:
    """An actor in this process."""

    def __init__(self, actor: Any, runner: asyncio.Runner) -> None:
        self._actor, self._runner = actor, runner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)

        def remote(*arguments: Any) -> Any:
            try:
                return asyncio.get_running_loop().create_task(method(*arguments))
            except RuntimeError:
                return self._runner.run(method(*arguments))

        return SimpleNamespace(remote=remote)


class Worker(agent_loop._Worker):
    """Its rollouts have a row and a reward, or raise."""

    def __init__(self, queue: Queue, keeper: Remote, options: KnapsackOptions, rate: float, outputs: int) -> None:
        self.queue, self.rate, self.outputs = queue, rate, outputs
        self._knapsack, self._keeper, self._groups, self._error = options, keeper, {}, None
        self._reports = Reports("worker", keeper.report.remote, keeper.answers.remote)
        self._watch = agent_loop.ThresholdWatch()
        self.placed: collections.Counter[str] = collections.Counter()
        self.broken: set[tuple[str, int]] = set()
        self.reward_loop_worker_handles = None  # each has its reward

    async def _run_agent_loop(self, sampling_params: Any, *, uid: str, session_id: int, **columns: Any) -> None:
        self.placed[uid] += 1
        if drawn("fails", uid, session_id) < self.rate:
            raise RuntimeError("the sandbox is gone")
        reward = float(drawn("right", uid, session_id) < drawn(uid))
        if (uid, session_id) in self.broken:
            reward = float("nan")
        answers = [
            AgentLoopOutput(
                prompt_ids=[1], response_ids=[2], response_mask=[1], reward_score=reward, metrics=AgentLoopMetrics()
            )
            for reward in [reward] * self.outputs
        ]
        await self._compute_score(answers, {"uid": uid, "session_id": session_id})
        for number in range(self.outputs):
            await self.queue.async_kv_put(f"{uid}_{session_id}_{number}", "train", {"status": "success"})


class Run:
    """A trainer's replay buffer, with a worker and a keeper to fill it."""

    def __init__(self, queue: Queue, mode: str, strategy: str, size: int, rate: float, outputs: int = 1, **more: Any):
        options = KnapsackOptions.read({"strategy": strategy, "max_rollouts": 128} | more)
        self.keeper = Remote(BudgetKeeper(options, size, "grpo", early=mode != "knapsack"), queue.runner)
        self.worker = Worker(queue, self.keeper, options, rate, outputs)
        self.queue, self.opened = queue, 0
        self.trainer = object.__new__(MODES[mode])  # none of whose models is needed
        self.trainer.trainer_mode = mode.removeprefix("knapsack_").replace("knapsack", "sync")
        self.trainer.config = OmegaConf.create(
            {
                "trainer": {
                    "v1": {
                        "sampler": {
                            "max_off_policy_threshold": None,
                            "max_off_policy_strategy": "drop",
                            "sampler_kwargs": {},
                        }
                    }
                },
                "algorithm": {},
                "data": {"train_batch_size": 8},
            }
        )
        self.trainer._add_prompts_to_generate = lambda count: queue.runner.run(self.generate(count))
        self.trainer.agent_loop_manager = SimpleNamespace(check_alive=lambda: None)
        self.trainer._keeper = self.keeper
        self.buffer = self.trainer._build_replay_buffer()

    async def generate(self, count: int) -> None:
        """Groups of a step from beginning to end."""
        uids = [f"group {self.opened + number}" for number in range(count)]
        self.opened += count
        opening = await self.keeper.open.remote(uids, uids, {})
        for uid in uids:
            await self.queue.async_kv_put(uid, "train", {"is_prompt": True, "status": "pending", "global_steps": 1})
        groups = [
            {"uid": uid, agent_loop.ROLLOUTS: rollouts, agent_loop.MORE: opening.more}
            for uid, rollouts in zip(uids, opening.first, strict=True)
        ]
        await asyncio.gather(*(self.worker._run_prompt(group, {}, {"validate": False}) for group in groups))

    def sampled(self, count: int) -> tuple[list[str], dict[str, float]]:
        """Rows of an update of this many groups, and its metrics."""
        self.queue.runner.run(self.generate(count))
        batch, _ = self.buffer.sample(1, "train", count)
        metrics = self.keeper.visits.remote(self.trainer._sampled)
        assert self.worker._error is None
        return batch.keys, metrics


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    logging.disable(logging.ERROR)  # every failure says why
    with asyncio.Runner() as runner:
        made = Queue(runner)
        for module in (agent_loop, agent_loop_tq, replay_buffer):
            monkeypatch.setattr(module, "tq", made)
        yield made
    logging.disable(logging.NOTSET)


def fewer(than: int, trials: int, rate: float) -> float:
    """The probability that fewer of these independent trials succeed."""
    return sum(math.comb(trials, k) * rate**k * (1.0 - rate) ** (trials - k) for k in range(than))


def lost_share(size: int, rate: float, minimum: int) -> float:
    """Of the groups of a size: those of which fewer than the minimum return."""
    return fewer(min(minimum, size), size, 1.0 - rate)


def lost_rollouts(size: int, rate: float, minimum: int) -> float:
    """Of their rollouts: those that fail, and those that return without enough others."""
    return rate + (1.0 - rate) * fewer(min(minimum, size) - 1, size - 1, 1.0 - rate)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("strategy", "size", "minimum"), [("uniform", 4, 2), ("uniform", 8, 6), ("adaptive", 6, 2)])
def test_a_group_lives_with_the_rollouts_that_returned_if_they_are_enough(
    mode: str, rate: float, strategy: str, size: int, minimum: int, queue: Queue
) -> None:
    run = Run(queue, mode, strategy, size, rate, min_returned=minimum)
    groups = 150
    keys, metrics = run.sampled(groups)

    placed = run.worker.placed
    survivors = {
        uid: {session for session in range(count) if drawn("fails", uid, session) >= rate}
        for uid, count in placed.items()
    }
    enough = {uid for uid, count in placed.items() if len(survivors[uid]) >= min(minimum, count)}
    assert sorted(keys) == sorted(f"{uid}_{session}_0" for uid in enough for session in survivors[uid])
    lost = len(placed) - len(enough)
    assert len(enough) == (groups - lost if mode == "knapsack" else groups)  # the asynchronous modes replace them
    if strategy == "uniform":
        share = lost_share(size, rate, minimum)
        assert abs(lost - len(placed) * share) <= 4.0 * np.sqrt(len(placed) * share * (1.0 - share)) + 1e-9
    total = sum(placed.values())
    assert total == len(placed) * size
    assert metrics["rollouts/sum"] == sum(placed[uid] for uid in enough)
    assert metrics["rollouts/sum"] + metrics["dropped_rollouts/sum"] == total
    assert metrics["failed_rollouts/sum"] == total - sum(map(len, survivors.values()))
    assert sorted(queue.tags) == sorted(keys)  # of lost groups nothing stays


@pytest.mark.parametrize("rate", RATES)
def test_how_many_rollouts_are_lost_hardly_depends_on_the_size_of_their_group(rate: float, queue: Queue) -> None:
    """Where one of two fails the other has nothing to be compared with; verl by itself loses all of a group."""
    for size, groups in ((2, 400), (8, 100), (64, 40)):
        run = Run(queue, "knapsack_separate_async", "uniform", size, rate)
        keys, _ = run.sampled(groups)
        total = sum(run.worker.placed.values())
        share, expected = 1.0 - len(keys) / total, lost_rollouts(size, rate, 2)
        clusters = 1.0 if size == 2 else 0.0  # both of a pair are lost together
        assert abs(share - expected) <= 4.0 * np.sqrt(expected * (1.0 - expected) * (1.0 + clusters) / total) + 1e-9
        if size > 2:
            assert expected == pytest.approx(rate, abs=3e-4)
    assert lost_rollouts(64, 0.01, 64) == pytest.approx(0.4744, abs=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_a_group_without_enough_rollouts_leaves_no_row_of_any_output(mode: str, queue: Queue) -> None:
    run = Run(queue, mode, "uniform", 3, 0.3, outputs=2, min_returned=3)
    keys, metrics = run.sampled(40)
    whole = [uid for uid in run.worker.placed if all(drawn("fails", uid, session) >= 0.3 for session in range(3))]
    assert sorted(keys) == sorted(
        f"{uid}_{session}_{output}" for uid in whole for session in range(3) for output in (0, 1)
    )
    assert 0 < len(whole) < len(run.worker.placed)
    assert sorted(queue.tags) == sorted(keys)
    assert metrics["dropped_rollouts/sum"] == 3 * (len(run.worker.placed) - len(whole))


def test_a_rollout_whose_reward_is_not_a_number_has_failed_and_takes_no_group_with_it(queue: Queue) -> None:
    run = Run(queue, "knapsack", "uniform", 4, 0.0)
    run.worker.broken = {("group 0", 1), ("group 1", 0), ("group 1", 2), ("group 1", 3)}
    keys, metrics = run.sampled(2)
    assert sorted(keys) == [f"group 0_{session}_0" for session in (0, 2, 3)]
    assert metrics["failed_rollouts/sum"] == 4
    assert (metrics["rollouts/sum"], metrics["dropped_rollouts/sum"]) == (4, 4)
