"""The budget keeper without Ray: workers are coroutines here, as they are in verl."""

from __future__ import annotations

import asyncio
import math
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import knapsack_rl as kr
from knapsack_rl.belief import Belief
from knapsack_rl.estimators import state
from knapsack_rl.verl.keeper import BudgetKeeper, Report, Reports, Visit, summary
from knapsack_rl.verl.options import KnapsackOptions

PROMPTS = 12


def keeper_of(strategy: str, early: bool = False, **more: object) -> BudgetKeeper:
    options = KnapsackOptions.read({"strategy": strategy, "max_rollouts": 32, **more})
    return BudgetKeeper(options, 8, "grpo", early=early)


async def report(keeper: BudgetKeeper, *outcome: object, waiting: bool) -> int:
    return await Reports("worker", keeper.report, keeper.answers).send(Report(*outcome, waiting=waiting))


class Workers:
    """Runs the rollouts of a step; each ends after a random number of turns of the event loop."""

    def __init__(self, keeper: BudgetKeeper, rates: list[float], seed: int = 0, failures: float = 0.0) -> None:
        self.keeper, self.rates, self.failures = keeper, rates, failures
        self.random = random.Random(seed)
        self.started = dict.fromkeys(range(len(rates)), 0)
        self.successes = dict.fromkeys(range(len(rates)), 0)
        self.scored = dict.fromkeys(range(len(rates)), 0)
        self.finished: set[str] = set()
        self.events: list[str] = []  # in order
        self.reports = Reports(f"worker {id(self)}", keeper.report, keeper.answers)

    async def rollout(self, position: int) -> bool | None:
        for _ in range(self.random.randrange(6)):
            await asyncio.sleep(0)
        return None if self.random.random() < self.failures else self.random.random() < self.rates[position]

    async def group(self, uid: str, position: int, first: int) -> None:
        more, running, complete = first, set(), False
        while not complete:
            self.started[position] += more
            self.events += ["start"] * more
            running |= {asyncio.create_task(self.rollout(position)) for _ in range(more)}
            done = set()
            if running:  # a prompt that sits out has none
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            outcomes = [task.result() for task in done]
            scored = [outcome for outcome in outcomes if outcome is not None]
            self.successes[position] += sum(scored)
            self.scored[position] += len(scored)
            failed = len(outcomes) - len(scored)
            more = await self.reports.send(Report(uid, sum(scored), len(scored), failed, waiting=not running))
            complete = not (more or running)
        self.events.append("early" if self.keeper._steps[-1].unplaced else "release")
        for _ in range(self.random.randrange(6)):  # verl is told
            await asyncio.sleep(0)
        self.finished.add(uid)
        await self.keeper.settle(uid)

    async def step(self, name: str = "step", prompts: list[str] | None = None) -> list[str]:
        uids = [f"{name}-{position}" for position in range(len(self.rates))]
        ids = [f"prompt {position}" for position in range(len(self.rates))] if prompts is None else prompts
        first, _, _ = await self.keeper.open(uids, ids, {})
        await asyncio.wait_for(
            asyncio.gather(*(self.group(uid, i, n) for i, (uid, n) in enumerate(zip(uids, first, strict=True)))), 60
        )
        return uids


@pytest.mark.parametrize("strategy", kr.strategies())
@pytest.mark.parametrize("failures", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("early", [False, True])
def test_the_budget_of_a_step_is_spent_exactly_whatever_fails(strategy: str, failures: float, early: bool) -> None:
    async def run() -> None:
        workers = Workers(
            keeper_of(strategy, early), [position / PROMPTS for position in range(PROMPTS)], failures=failures
        )
        for number in range(3):
            before = sum(workers.started.values())
            await workers.step(f"step {number}")
            assert sum(workers.started.values()) - before == 8 * PROMPTS

    asyncio.run(run())


@pytest.mark.parametrize("strategy", ["uniform", "knapsack", "adaptive", "reinforce-ada"])
def test_groups_without_rollouts_are_complete_and_their_prompts_sit_out(strategy: str) -> None:
    async def run() -> None:
        keeper = keeper_of(strategy, min_rollouts=0, revisit=2)
        rates, absent = [0.0] * 3 + [1.0] * 3 + [0.5] * 6, np.zeros(PROMPTS, dtype=int)
        ids = [f"prompt {position}" for position in range(PROMPTS)]
        for number in range(8):
            workers = Workers(keeper, rates, seed=number)
            uids = await workers.step(f"step {number}")
            started = np.array(list(workers.started.values()))
            assert started.sum() == 8 * PROMPTS
            assert not (started == 1).any()
            assert workers.finished == set(uids)
            absent = np.where(started, 0, absent + 1)
            assert absent.max() <= 2
            assert keeper._allocator.sitting_out(ids).tolist() == absent.tolist()
            found = await keeper.visits(uids)
            assert found["sitting_out"] == np.mean(started == 0)
            assert found["rollouts/sum"] == 8 * PROMPTS
        if strategy == "knapsack":
            assert found["sitting_out"] > 0.0

    asyncio.run(run())


def test_a_checkpoint_inside_a_step_knows_who_has_sat_out(tmp_path: Path) -> None:
    async def run() -> None:
        keeper = keeper_of("knapsack", min_rollouts=0)
        ids = [f"prompt {position}" for position in range(4)]
        keeper._allocator.tell(ids, [8, 4, 4, 4], [8] * 4)
        opening = await keeper.open(ids, ids, {})
        assert opening.first[0] == 0
        assert await report(keeper, ids[0], 0, 0, 0, waiting=True) == 0
        await keeper.settle(ids[0])
        await keeper.save(str(tmp_path / "state.npz"))
        resumed = keeper_of("knapsack", min_rollouts=0)
        await resumed.load(str(tmp_path / "state.npz"))
        assert resumed._allocator.sitting_out(ids).tolist() == [1, 0, 0, 0]
        assert keeper._allocator.sitting_out(ids).tolist() == [0, 0, 0, 0]

    asyncio.run(run())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), failures=st.sampled_from([0.0, 0.2]), strategy=st.sampled_from(kr.strategies()))
def test_every_outcome_reaches_the_allocator_once(seed: int, failures: float, strategy: str) -> None:
    async def run() -> None:
        rates = np.random.default_rng(seed).random(PROMPTS).tolist()
        keeper = keeper_of(strategy)
        workers = Workers(keeper, rates, seed, failures)
        await workers.step()
        taught = kr.BudgetAllocator(strategy, 8, 2, 32)
        ids = [f"prompt {position}" for position in range(PROMPTS)]
        taught.tell(ids, list(workers.successes.values()), list(workers.scored.values()), {})
        assert keeper._allocator.ask(ids).rollouts.tolist() == taught.ask(ids).rollouts.tolist()
        assert keeper._allocator.visited(ids).tolist() == [count > 0 for count in workers.scored.values()]

    asyncio.run(run())


def test_tokens_of_all_rollouts_are_costs_and_a_limit_holds_for_what_a_step_is_expected_to_write() -> None:
    """Long prompts write 90 tokens a rollout and short ones 10; a quarter of all fails, and its tokens count."""

    async def run() -> None:
        keeper = keeper_of("knapsack", cost_limit=1.0)
        ids, written = [f"prompt {number}" for number in range(8)], [90] * 4 + [10] * 4
        link = Reports("worker", keeper.report, keeper.answers)
        taught = kr.BudgetAllocator("knapsack", 8, 2, 32, cost_limit=1.0)
        for step in range(3):
            uids = [f"{step}-{prompt}" for prompt in ids]
            first, _, _ = await keeper.open(uids, ids, {})
            assert first == taught.ask(ids).rollouts.tolist()
            rollouts = np.array(first)
            failed = rollouts // 4
            successes = np.array([1] * 4 + [2] * 4)
            told = [
                link.send(Report(uid, *(int(x) for x in counts), waiting=True, tokens=int(tokens)))
                for uid, tokens, *counts in zip(
                    uids, rollouts * written, successes, rollouts - failed, failed, strict=True
                )
            ]
            assert await asyncio.wait_for(asyncio.gather(*told), 60) == [0] * 8
            open_step = taught.step(ids)
            open_step.place(64)
            open_step.report(successes, rollouts - failed, failed, rollouts * written)
        assert keeper._allocator.expected_costs(ids).tolist() == taught.expected_costs(ids).tolist()
        assert (np.diff(keeper._allocator.expected_costs(ids)[[3, 4]]) < 0).all()
        plan, costs = keeper._allocator.ask(ids), keeper._allocator.expected_costs(ids)
        assert plan.rollouts @ costs <= 8 * costs.sum() * (1 + 1e-9)
        unlimited = keeper_of("knapsack")
        unlimited._allocator.load_state_dict(keeper._allocator.state_dict())
        assert unlimited._allocator.ask(ids).rollouts @ costs > 8 * costs.sum()

    asyncio.run(run())


def test_adaptive_gives_more_to_prompts_that_fail_and_nothing_more_to_groups_with_both_outcomes() -> None:
    async def run() -> None:
        workers = Workers(keeper_of("adaptive"), [0.0] * 4 + [0.5] * 8)
        await workers.step()
        assert min(workers.started[position] for position in range(4)) > 8
        assert np.mean([workers.started[position] for position in range(4, 12)]) < 8

    asyncio.run(run())


def test_a_step_in_waves_says_at_once_what_each_prompt_is_expected_to_get() -> None:
    async def run() -> None:
        keeper = keeper_of("adaptive")
        ids = [f"prompt {number}" for number in range(12)]
        for _ in range(3):
            keeper._allocator.tell(ids, [1] * 4 + [8] * 8, [8] * 12)
        opening = await keeper.open(ids, ids, {})
        assert opening.first == [2] * 12
        assert opening.more
        assert sum(opening.expected) == 12 * 8
        assert min(opening.expected[:4]) > max(opening.expected[4:])

    asyncio.run(run())


def test_a_group_of_a_strategy_with_one_wave_is_complete_when_its_own_rollouts_are() -> None:
    async def run() -> None:
        keeper = keeper_of("uniform")
        assert await keeper.open(["a", "b"], ["prompt a", "prompt b"], {}) == ([8, 8], False, [8, 8])
        assert await report(keeper, "a", 3, 8, 0, waiting=True) == 0  # b has not even begun
        assert (await keeper.visits(["a"]))["effective_prompts"] == 1.0

    asyncio.run(run())


@pytest.mark.parametrize("strategy", ["uniform", "knapsack"])
def test_with_one_wave_every_group_is_released_by_its_own_last_rollout(strategy: str) -> None:
    """The groups are reported one after the other, each before the next has a single rollout back."""

    async def run() -> None:
        keeper = keeper_of(strategy)
        uids = [f"{position}" for position in range(PROMPTS)]
        opening = await keeper.open(uids, uids, {})
        for uid, size in zip(uids, opening.first, strict=True):
            assert await asyncio.wait_for(report(keeper, uid, 0, size, 0, waiting=True), 60) == 0

    asyncio.run(run())


def events_of_a_step(seed: int, early: bool) -> list[str]:
    """What happens to 48 groups of `adaptive`, in order."""

    async def run() -> list[str]:
        workers = Workers(keeper_of("adaptive", early), np.random.default_rng(seed).random(48).tolist(), seed)
        await workers.step()
        return workers.events

    events = asyncio.run(run())
    assert events.count("start") == 48 * 8
    assert events.count("early") + events.count("release") == 48
    return events


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_released_while_others_of_their_step_still_get_rollouts_unless_the_trainer_waits_for_all(
    seed: int,
) -> None:
    events = events_of_a_step(seed, early=True)
    assert events.count("early") > 0
    assert "start" in events[events.index("early") :]
    assert events_of_a_step(seed, early=False).count("early") == 0


def test_steps_may_be_in_flight_together_and_come_back_in_any_order() -> None:
    async def run() -> None:
        keeper = keeper_of("adaptive")
        parts = [Workers(keeper, [0.2, 0.8, 0.0], seed) for seed in range(4)]
        await asyncio.gather(*(part.step(f"step {number}") for number, part in enumerate(parts)))
        assert [sum(part.started.values()) for part in parts] == [24] * 4

    asyncio.run(run())


def test_a_group_that_is_complete_or_unknown_cannot_report() -> None:
    async def run() -> None:
        keeper = keeper_of("uniform")
        await keeper.open(["a"], ["prompt a"], {})
        await report(keeper, "a", 0, 8, 0, waiting=True)
        for uid in ("a", "another"):
            with pytest.raises(kr.StateError, match=f"report: no step has the group '{uid}'"):
                await report(keeper, uid, 0, 1, 0, waiting=False)

    asyncio.run(run())


def test_reports_that_come_together_go_in_one_message_and_each_gets_its_answer() -> None:
    async def run() -> None:
        keeper, messages = keeper_of("adaptive"), []

        async def counted(worker: str, reports: list[Report]) -> dict[str, int | Exception]:
            messages.append(len(reports))
            return await keeper.report(worker, reports)

        workers = Workers(keeper, [0.3] * 40)
        workers.reports = Reports("worker", counted, keeper.answers)
        await workers.step()
        assert sum(messages) >= 2 * 40
        assert len(messages) < sum(messages) / 3

    asyncio.run(run())


def test_a_keeper_that_is_gone_leaves_nobody_waiting() -> None:
    async def run() -> None:
        keeper = keeper_of("uniform")
        await keeper.open(["a", "b"], ["prompt a", "prompt b"], {})

        async def gone(worker: str, *reports: object) -> dict[str, int | Exception]:
            raise ConnectionError("gone")

        for link in (Reports("worker", gone, keeper.answers), Reports("worker", keeper.report, gone)):
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(link.send(Report("a", 0, 1, 0, waiting=True)), 60)

    asyncio.run(run())


def test_two_calls_that_fail_together_leave_nobody_waiting() -> None:
    async def run() -> None:
        uids, called = [f"{number}" for number in range(8)], asyncio.Event()

        async def dies(worker: str, *reports: object) -> dict[str, int | Exception]:
            if reports and reports[0][0].uid == "0":
                return {}  # the first message arrives: its groups wait, and somebody listens
            called.set()
            await asyncio.sleep(0)
            raise ConnectionError("gone")

        async def until_the_next_report(worker: str, number: int) -> dict[str, int | Exception]:
            await called.wait()
            raise ConnectionError("gone")

        link = Reports("worker", dies, until_the_next_report)
        early = [asyncio.create_task(link.send(Report(uid, 0, 1, 0, waiting=True))) for uid in uids[:4]]
        while not link._waiting:
            await asyncio.sleep(0.001)
        late = [asyncio.create_task(link.send(Report(uid, 0, 1, 0, waiting=True))) for uid in uids[4:]]
        outcomes = await asyncio.wait_for(asyncio.gather(*early, *late, return_exceptions=True), 60)
        assert [type(outcome) for outcome in outcomes] == [ConnectionError] * 8

    asyncio.run(run())


def test_the_state_is_that_of_an_allocator(tmp_path: Path) -> None:
    async def run() -> None:
        keeper = keeper_of("knapsack")
        await Workers(keeper, [0.1, 0.5, 0.9]).step()
        await keeper.save(str(tmp_path / "state.npz"))
        allocator = kr.BudgetAllocator("knapsack", 8, 2, 32)
        allocator.load(tmp_path / "state.npz")
        ids = [f"prompt {position}" for position in range(3)]
        assert allocator.ask(ids).rollouts.tolist() == keeper._allocator.ask(ids).rollouts.tolist()
        again = keeper_of("knapsack")
        await again.load(str(tmp_path / "state.npz"))
        assert again._allocator.ask(ids).rollouts.tolist() == allocator.ask(ids).rollouts.tolist()

    asyncio.run(run())


def test_metrics_of_an_update_are_those_of_its_groups() -> None:
    visits = [Visit(4, 4, 0, 1.0, 1.0, True), Visit(6, 6, 3, 2.0, 3.0, False), Visit(2, 1, 1, 1.0, 2.0, False)]
    found = summary(visits)
    assert found["effective_gradient_ratio"] == pytest.approx(6 / 12)
    assert found["effective_prompts"] == pytest.approx(1 / 3)
    assert found["zero_gradient_ratio/all_positive"] == pytest.approx(1 / 3)
    assert found["prompt_success"] == pytest.approx(0.5)
    assert (found["rollouts/min"], found["rollouts/max"]) == (2, 6)
    assert found["rollouts/sum"] == 12
    assert found["failed_rollouts/sum"] == 1
    scores = [
        Belief(np.array([a]), np.array([b])).log_likelihood(np.array([s]), np.array([n]))
        for a, b, s, n in ((1.0, 1.0, 0, 4), (2.0, 3.0, 3, 6), (1.0, 2.0, 1, 1))
    ]
    assert found["belief/log_score"] == pytest.approx(np.mean(scores))
    assert summary([]) == {}


def test_a_group_that_failed_whole_is_spent_and_says_nothing_of_the_belief() -> None:
    found = summary([Visit(4, 0, 0, 1.0, 1.0, True), Visit(4, 4, 2, 1.0, 1.0, False)])
    assert found["rollouts/sum"] == 8
    assert found["failed_rollouts/sum"] == 4
    assert found["belief/log_score"] == pytest.approx(np.log(1 / 30))  # B(3, 3) / B(1, 1)
    assert found["prompt_success"] == 0.5
    assert math.isnan(summary([Visit(4, 0, 0, 1.0, 1.0, True)])["belief/log_score"])


def test_groups_that_verl_drops_are_forgotten_for_the_metrics_only() -> None:
    async def run() -> None:
        keeper = keeper_of("knapsack")
        uids = await Workers(keeper, [0.5, 0.5]).step()
        await keeper.drop(uids)
        assert await keeper.visits(uids) == {"dropped_rollouts/sum": 16.0, "failed_rollouts/sum": 0.0, "alarms": 0.0}
        assert await keeper.visits(uids) == {"dropped_rollouts/sum": 0.0, "failed_rollouts/sum": 0.0, "alarms": 0.0}
        assert keeper._allocator.visited(["prompt 0", "prompt 1"]).all()

    asyncio.run(run())


def test_failed_rollouts_of_a_dropped_group_are_counted() -> None:
    async def run() -> None:
        keeper = keeper_of("knapsack")
        await keeper.open(["a"], ["prompt a"], {})
        await report(keeper, "a", 2, 5, 3, waiting=True)
        await keeper.drop(["a"])
        assert await keeper.visits([]) == {"dropped_rollouts/sum": 8.0, "failed_rollouts/sum": 3.0, "alarms": 0.0}

    asyncio.run(run())


def test_what_a_checkpoint_tells_of_an_open_step_is_as_old_as_that_step(tmp_path: Path) -> None:
    async def run() -> None:
        keeper = keeper_of("knapsack")
        await keeper.open(["old p", "old q"], ["p", "q"], {})
        await keeper.open(["new p"], ["p"], {})
        await report(keeper, "new p", 8, 8, 0, waiting=True)
        await report(keeper, "old p", 0, 8, 0, waiting=True)
        await keeper.save(str(tmp_path / "state.npz"))
        saved = kr.BudgetAllocator("knapsack", 8, 2, 32)
        saved.load(tmp_path / "state.npz")
        assert saved.success_rates(["p"]) == 1.0
        await report(keeper, "old q", 0, 8, 0, waiting=True)
        assert keeper._allocator.success_rates(["p"]) == 1.0

    asyncio.run(run())


def test_a_state_saved_in_the_middle_of_a_step_holds_the_groups_that_are_complete(tmp_path: Path) -> None:
    async def run() -> None:
        keeper = keeper_of("knapsack")
        await keeper.open(["a", "b"], ["prompt a", "prompt b"], {})
        await report(keeper, "a", 3, 8, 0, waiting=True)
        await report(keeper, "b", 1, 5, 0, waiting=False)
        await keeper.save(str(tmp_path / "state.npz"))
        saved = kr.BudgetAllocator("knapsack", 8, 2, 32)
        saved.load(tmp_path / "state.npz")
        assert saved.visited(["prompt a", "prompt b"]).tolist() == [True, False]
        assert not keeper._allocator.visited(["prompt a"]).any()  # nothing was told twice when the step ends
        await report(keeper, "b", 0, 3, 0, waiting=True)
        assert keeper._allocator.visited(["prompt a", "prompt b"]).all()

    asyncio.run(run())


@pytest.mark.parametrize("strategy", ["uniform", "adaptive"])
@pytest.mark.parametrize("turns", [1, 5, 20, 60])
def test_a_checkpoint_knows_of_the_groups_that_verl_lists_as_finished_and_of_no_other(
    strategy: str, turns: int, tmp_path: Path
) -> None:
    async def run() -> None:
        keeper = keeper_of(strategy)
        workers = Workers(keeper, [position / PROMPTS for position in range(PROMPTS)])
        running = asyncio.create_task(workers.step())
        for _ in range(turns):
            await asyncio.sleep(0.001)
        await asyncio.wait_for(keeper.hold(), 60)
        await keeper.save(str(tmp_path / "state.npz"))
        listed = set(workers.finished)
        for _ in range(50):  # verl writes
            await asyncio.sleep(0.001)
        assert workers.finished == listed
        await keeper.release()
        uids = await running
        saved = kr.BudgetAllocator(strategy, 8, 2, 32)
        saved.load(tmp_path / "state.npz")
        ids = [f"prompt {position}" for position in range(PROMPTS)]
        assert saved.visited(ids).tolist() == [uid in listed for uid in uids]
        assert sum(workers.started.values()) == 8 * PROMPTS

    asyncio.run(run())


@pytest.mark.parametrize("strategy", kr.strategies())
def test_a_group_that_is_given_up_keeps_nobody_waiting_and_its_rollouts_are_spent(strategy: str) -> None:
    async def run() -> None:
        keeper = keeper_of(strategy)
        workers = Workers(keeper, [0.5, 0.0, 0.0])
        first, more, _ = await keeper.open(["a", "b", "c"], ["prompt a", "prompt b", "prompt c"], {})
        assert more == (sum(first) < 24)
        await report(keeper, "a", 1, 1, 0, waiting=False)
        others = asyncio.gather(workers.group("b", 1, first[1]), workers.group("c", 2, first[2]))
        await keeper.abandon("a")
        await asyncio.wait_for(others, 60)
        opened = keeper._steps[0]
        while opened.step.remaining:  # what the abandoned group would still have got
            await asyncio.sleep(0.001)
        assert opened.step.placed.sum() == 24
        assert opened.step.scored[0] == 1
        await keeper.abandon("a")  # once is enough

    asyncio.run(run())


def test_a_report_that_cannot_be_true_stops_everybody_of_its_step() -> None:
    async def run() -> None:
        keeper = keeper_of("uniform")
        await keeper.open(["a", "b"], ["prompt a", "prompt b"], {})
        for uid, count in (("a", 9), ("b", 1)):
            with pytest.raises(kr.InvalidInputError, match="expected at most the 8 that are in flight, got 9"):
                await report(keeper, uid, 0, count, 0, waiting=True)

    asyncio.run(run())


def test_a_data_source_whose_grader_breaks_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> dict[str, float]:
        keeper = keeper_of("uniform")
        for number in range(40):
            uids = [f"{number}-{position}" for position in range(PROMPTS)]
            sources = ["even" if position % 2 else "odd" for position in range(PROMPTS)]
            await keeper.open(uids, [f"p{position}" for position in range(PROMPTS)], {}, sources)
            for position, uid in enumerate(uids):
                successes = 0 if number >= 20 and position % 2 else 4
                await report(keeper, uid, successes, 8, 0, waiting=True)
            found = await keeper.visits(uids)
        return found

    with caplog.at_level("WARNING"):
        found = asyncio.run(run())
    [said] = [record.getMessage() for record in caplog.records if "none of its last" in record.getMessage()]
    assert said.startswith("data_source 'even'")
    assert found["alarms"] == 1.0
    assert found["category/data_source/odd/success"] == 0.5


def test_a_prompt_that_sits_out_is_not_complete_while_verl_lists_its_groups() -> None:
    async def run() -> None:
        keeper = keeper_of("knapsack", min_rollouts=0)
        ids = [f"prompt {position}" for position in range(4)]
        keeper._allocator.tell(ids, [8, 4, 4, 4], [8] * 4)
        assert (await keeper.open(ids, ids, {})).first[0] == 0
        await keeper.hold()
        waiting = asyncio.create_task(report(keeper, ids[0], 0, 0, 0, waiting=True))
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert not keeper._settling
        await keeper.release()
        assert await asyncio.wait_for(waiting, 60) == 0

    asyncio.run(run())


def test_rollouts_are_placed_while_a_checkpoint_is_written_and_only_complete_groups_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is that of the moment at which it was asked for, whatever is learned while it is written."""
    write, may_end = state.write, threading.Event()

    def slow(path: Path, *content: Any) -> None:
        assert may_end.wait(60)
        write(path, *content)

    async def run() -> None:
        keeper = keeper_of("adaptive")
        workers = Workers(keeper, [0.5] * PROMPTS)
        uids = [f"group {position}" for position in range(PROMPTS)]
        opening = await keeper.open(uids, [f"prompt {position}" for position in range(PROMPTS)], {})
        await keeper.hold()
        saving = asyncio.create_task(keeper.save(str(tmp_path / "state.npz")))
        groups = asyncio.gather(*(workers.group(uid, i, opening.first[i]) for i, uid in enumerate(uids)))
        while sum(workers.started.values()) < 8 * PROMPTS:
            await asyncio.sleep(0.001)
        assert not saving.done()
        assert not workers.finished
        may_end.set()
        await saving
        await keeper.release()
        await groups

    monkeypatch.setattr(state, "write", slow)
    asyncio.run(asyncio.wait_for(run(), 60))
    saved = kr.BudgetAllocator("adaptive", 8)
    saved.load(tmp_path / "state.npz")
    assert not saved.visited([f"prompt {position}" for position in range(PROMPTS)]).any()
