"""A budget keeper that is killed anywhere, and begun again from its journal, is the keeper that was not."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import knapsack_rl as kr
from knapsack_rl.estimators import state
from knapsack_rl.verl import keeper as module
from knapsack_rl.verl.journal import Journal
from knapsack_rl.verl.keeper import BudgetKeeper, Report
from knapsack_rl.verl.options import KnapsackOptions

PROMPTS = 6
WORKERS = ("one", "two")


def keeper_in(folder: Path | None, options: dict[str, Any], run: str = "run", early: bool = False) -> BudgetKeeper:
    given = KnapsackOptions.read({"strategy": "knapsack", "max_rollouts": 16, **options})
    return BudgetKeeper(given, 4, "grpo", early=early, folder=None if folder is None else str(folder), run=run)


def digest(keeper: BudgetKeeper) -> str:
    """Of everything that a keeper knows. Those who sit out have no order."""
    header, arrays = keeper._packed()
    order = np.argsort(arrays.get("allocator.sitting_out.keys", np.zeros(0)))
    sorted_arrays = {
        name: array[order] if name.startswith("allocator.sitting_out.") else array for name, array in arrays.items()
    }
    return state.digest(header, sorted_arrays)


@pytest.fixture(autouse=True)
def flushes_are_explicit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after a time, so that two keepers do the same."""
    monkeypatch.setattr(module._OpenStep, "flush_soon", lambda step: None)


class Restarts(RuleBasedStateMachine):
    """Everything is done to two keepers. One of them is killed now and then, and calls to it are made twice."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.running: dict[str, int] = {}  # rollouts in flight of each group
        self.ended: list[str] = []  # groups that are complete
        self.number = self.placed = self.opened = self.updates = 0
        self.runner = asyncio.Runner()

    @initialize(
        strategy=st.sampled_from(kr.strategies()),
        least=st.sampled_from([0, 2]),
        cost_limit=st.sampled_from([None, 1.0]),
        early=st.booleans(),
    )
    def begin(self, strategy: str, least: int, cost_limit: float | None, early: bool) -> None:
        self.early, self.options = early, {"strategy": strategy, "min_rollouts": least, "cost_limit": cost_limit}
        self.plain, self.kept = (keeper_in(folder, self.options, early=early) for folder in (None, self.folder))

    def both(self, method: str, *arguments: Any, again: bool = False) -> Any:
        said = self.runner.run(getattr(self.plain, method)(*arguments))
        for _ in range(1 + again):
            assert repr(self.runner.run(getattr(self.kept, method)(*arguments))) == repr(said)
        return said

    @rule(first=st.integers(0, 20), again=st.booleans())
    def open(self, first: int, again: bool) -> None:
        if self.opened == 12:
            return
        self.opened += 1
        uids = [f"{self.opened}-{position}" for position in range(PROMPTS)]
        prompts = [f"prompt {first + position}" for position in range(PROMPTS)]
        features = {"level": [str(position % 2) for position in range(PROMPTS)], "length": list(np.arange(6.0))}
        sources = [str(position % 3) for position in range(PROMPTS)]
        opening = self.both("open", uids, prompts, features, sources, again=again)
        self.running |= dict(zip(uids, opening.first, strict=True))
        self.waits = getattr(self, "waits", {})

    def worker(self, uid: str) -> str:
        return WORKERS[int(uid[-1]) % 2]

    @precondition(lambda self: any(uid not in self.waits for uid in self.running))
    @rule(data=st.data(), again=st.booleans())
    def report(self, data: st.DataObject, again: bool) -> None:
        able = [uid for uid in self.running if uid not in self.waits]
        worker = self.worker(data.draw(st.sampled_from(able)))
        chosen = [uid for uid in able if self.worker(uid) == worker and data.draw(st.booleans())]
        reports = []
        for uid in chosen:
            ended = data.draw(st.integers(min(1, self.running[uid]), self.running[uid]))
            scored = data.draw(st.integers(0, ended))
            won = data.draw(st.integers(0, scored))
            self.running[uid] -= ended
            self.number += 1
            waiting = not self.running[uid]
            reports.append(Report(uid, won, scored, ended - scored, waiting, 7 * ended, self.number))
            if waiting:
                self.waits[uid] = worker
        for uid, more in self.both("report", worker, reports, again=again).items():
            self.running[uid] += more

    @precondition(lambda self: self.plain._steps)
    @rule(data=st.data())
    def flush(self, data: st.DataObject) -> None:
        if not self.plain._may_learn.is_set():
            return
        number = data.draw(st.integers(0, len(self.plain._steps) - 1))
        for keeper in (self.plain, self.kept):
            if keeper._steps[number].news.any():
                keeper._flush(keeper._steps[number])

    @precondition(lambda self: self.running and self.plain._may_learn.is_set())
    @rule(data=st.data(), seed=st.integers(0, 1000))
    def finish(self, data: st.DataObject, seed: int) -> None:
        """All groups of a step to their end."""
        number = data.draw(st.sampled_from(sorted({uid.split("-")[0] for uid in self.running})))
        step, random = f"{number}-", np.random.default_rng(seed)
        for _ in range(100):
            if not any(uid.startswith(step) for uid in self.running):
                return
            for worker in WORKERS:
                reports = []
                for uid, running in self.running.items():
                    if uid.startswith(step) and uid not in self.waits and self.worker(uid) == worker:
                        self.number += 1
                        won = int(random.integers(0, running + 1))
                        reports.append(Report(uid, won, running, 0, True, 9 * running, self.number))
                        self.waits[uid], self.running[uid] = worker, 0
                self.both("report", worker, reports)
            for keeper in (self.plain, self.kept):
                for opened in keeper._steps:
                    if opened.news.any():
                        keeper._flush(opened)
            for worker in WORKERS:
                self.answers(worker, again=False)
        raise AssertionError(f"step {number} does not end")

    @rule(worker=st.sampled_from(WORKERS), again=st.booleans())
    def answers(self, worker: str, again: bool) -> None:
        if not self.plain._ready.get(worker):
            return  # it would wait
        self.number += 1
        for uid, more in self.both("answers", worker, self.number, again=again).items():
            del self.waits[uid]
            self.running[uid] += more
            if not more:
                del self.running[uid]
                self.ended.append(uid)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), again=st.booleans())
    def abandon(self, data: st.DataObject, again: bool) -> None:
        uid = data.draw(st.sampled_from(sorted(self.running)))
        self.both("abandon", uid, again=again)
        self.waits.pop(uid, None)
        del self.running[uid]
        self.ended.append(uid)

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), again=st.booleans())
    def settle(self, data: st.DataObject, again: bool) -> None:
        self.both("settle", data.draw(st.sampled_from(self.ended)), again=again)

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), dropped=st.booleans(), again=st.booleans())
    def take(self, data: st.DataObject, dropped: bool, again: bool) -> None:
        uids = [uid for uid in self.ended if data.draw(st.booleans())]
        if dropped:
            self.both("drop", uids, again=again)
        else:
            self.updates += 1
            self.both("visits", uids, self.updates, again=again)

    @rule(held=st.booleans())
    def hold(self, held: bool) -> None:
        if held and (self.plain._settling or self.plain._closing()):
            return  # it would wait
        self.both("hold" if held else "release")

    @rule(written=st.booleans())
    def compact(self, written: bool) -> None:
        """A state replaces the events; or the process is killed before all of it is on disk."""
        with pytest.MonkeyPatch.context() as patch:
            if not written:
                patch.setattr(Journal, "_write", lambda *arguments: None)
            self.kept._journal.begin_anew(*self.kept._packed())
            self.kept._journal.wait()

    @rule(torn=st.booleans(), compacted=st.booleans())
    def kill(self, torn: bool, compacted: bool) -> None:
        """What is on disk is all that is left, with a part of a line."""
        if compacted:
            self.compact(written=True)
        self.end(self.kept)
        if torn:
            newest = max((self.folder / "run").glob("events-*"), key=lambda path: int(path.stem.split("-")[1]))
            with newest.open("a") as file:
                file.write('["reported","one",[["1-0')
        self.kept = keeper_in(self.folder, self.options, early=self.early)

    @staticmethod
    def end(keeper: BudgetKeeper) -> None:
        keeper._journal.wait()
        os.close(keeper._journal._file)

    @rule()
    def compare(self) -> None:
        assert digest(self.kept) == digest(self.plain)

    def teardown(self) -> None:
        if hasattr(self, "kept"):
            self.compare()
            self.kill(torn=False, compacted=False)
            self.compare()
            asked = [f"prompt {number}" for number in range(26)]
            plans = [
                keeper._allocator.ask(asked, {"level": ["0"] * 26, "length": [1.0] * 26}, 26 * 4)
                for keeper in (self.plain, self.kept)
            ]
            assert plans[0].rollouts.tolist() == plans[1].rollouts.tolist()
            self.end(self.kept)
        self.runner.close()
        shutil.rmtree(self.folder)


Restarts.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestRestarts = Restarts.TestCase


KNAPSACK = {"strategy": "knapsack"}


def reported(uid: str, number: int = 1) -> list[Report]:
    return [Report(uid, 1, 4, 0, waiting=True, number=number)]


def close(keeper: BudgetKeeper) -> None:
    keeper._journal.wait()
    os.close(keeper._journal._file)


def test_the_keeper_serves_while_its_state_is_being_written_which_is_that_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint, and the state that replaces its events: neither ends before others were served."""
    keeper, served, write = keeper_in(tmp_path / "journal", KNAPSACK), threading.Event(), state.write
    begun: list[str] = []
    order: list[str] = []

    def slow(path: Path, *content: Any) -> None:
        begun.append(path.name)
        assert served.wait(60)
        write(path, *content)
        order.append(path.name)

    async def run() -> None:
        await keeper.open(["a", "b"], ["prompt a", "prompt b"], {})
        monkeypatch.setattr(state, "write", slow)
        keeper._journal.begin_anew(*keeper._packed())
        saving = asyncio.create_task(keeper.save(str(tmp_path / "state.npz")))
        while len(begun) < 2:
            await asyncio.sleep(0.001)
        await keeper.report("worker", reported("a"))
        keeper._flush(keeper._steps[0])
        assert await keeper.answers("worker", 2) == {"a": 0}
        order.append("served")
        served.set()
        await saving

    asyncio.run(run())
    close(keeper)
    assert order[0] == "served"
    assert sorted(order[1:]) == ["state-1.npz", "state.npz"]
    saved = kr.BudgetAllocator("knapsack", 4, 2, 16)
    saved.load(tmp_path / "state.npz")
    assert not saved.visited(["prompt a"]).any()
    assert not (tmp_path / "journal" / "run" / "events-0.jsonl").exists()
    again = keeper_in(tmp_path / "journal", KNAPSACK)
    assert digest(again) == digest(keeper)
    close(again)


def test_runs_with_the_same_folder_leave_each_other_s_journals_alone(tmp_path: Path) -> None:
    first = keeper_in(tmp_path, KNAPSACK, "first")
    asyncio.run(first.open(["a"], ["prompt a"], {}))
    second = keeper_in(tmp_path, KNAPSACK, "second")
    assert not second._steps
    close(second)
    close(first)
    again = keeper_in(tmp_path, KNAPSACK, "first")
    assert digest(again) == digest(first)
    close(again)


def test_a_keeper_that_is_started_again_without_its_journal_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_restarted", lambda: True)
    with pytest.raises(kr.StateError, match=r"was started again, and .* has no journal of run"):
        keeper_in(tmp_path, KNAPSACK)


def test_a_checkpoint_that_a_killed_keeper_was_writing_is_refused_where_it_has_learned_since(tmp_path: Path) -> None:
    keeper = keeper_in(tmp_path, KNAPSACK)
    asyncio.run(keeper.open(["a", "b"], ["prompt a", "prompt b"], {}))
    asyncio.run(keeper.hold())
    asyncio.run(keeper.report("worker", reported("a")))
    asyncio.run(keeper.save(str(tmp_path / "state.npz")))
    keeper._flush(keeper._steps[0])
    close(keeper)
    again = keeper_in(tmp_path, KNAPSACK)
    with pytest.raises(kr.StateError, match=r"killed while it wrote its state"):
        asyncio.run(again.save(str(tmp_path / "state.npz")))
    asyncio.run(again.release())
    asyncio.run(again.save(str(tmp_path / "state.npz")))
    close(again)


def test_a_keeper_that_was_loaded_from_a_checkpoint_still_knows_it_when_it_is_started_again(tmp_path: Path) -> None:
    allocator = kr.BudgetAllocator("knapsack", 4, 2, 16)
    allocator.tell(["prompt a"], [1], [4])
    allocator.save(tmp_path / "state.npz")
    keeper = keeper_in(tmp_path / "journal", KNAPSACK)
    asyncio.run(keeper.load(str(tmp_path / "state.npz")))
    close(keeper)
    again = keeper_in(tmp_path / "journal", KNAPSACK)
    assert again._allocator.success_rates(["prompt a"]).tolist() == [0.25]
    close(again)


@pytest.mark.parametrize("line", ['["opened"', '["run","other"]', '["close","a"]'])
def test_a_damaged_journal_is_refused_and_named(line: str, tmp_path: Path) -> None:
    keeper = keeper_in(tmp_path, KNAPSACK)
    close(keeper)
    with (tmp_path / "run" / "events-0.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(kr.StateError, match=r"events-0.jsonl: expected|an event of the budget keeper, got"):
        keeper_in(tmp_path, KNAPSACK)


def test_a_long_journal_is_replaced_by_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knapsack_rl.verl.journal._LONG", 200)
    keeper = keeper_in(tmp_path, KNAPSACK)
    for number in range(9):
        asyncio.run(keeper.open([f"{number}"], ["prompt"], {}))
        keeper._journal.wait()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) != ["events-0.jsonl"]
    assert sum(path.stat().st_size for path in (tmp_path / "run").glob("*.jsonl")) < 400
    close(keeper)
    again = keeper_in(tmp_path, KNAPSACK)
    assert digest(again) == digest(keeper)
    close(again)
