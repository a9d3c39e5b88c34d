"""The budget keeper: a Ray actor that owns the allocator and spends the budget of every step exactly.

The driver opens a step and gets the first rollouts of each prompt. Workers report rollouts as they are scored
(`Reports` sends those of a worker together) and are told how many more their prompt gets; a prompt without rollouts in
flight waits until it gets some, or until it is certain that it gets none and its group is therefore complete: when the
budget of its step is placed, or earlier where the trainer does not wait for whole steps (`Step.close`). What a step
showed is told to the allocator when its last rollout is back, once, whatever verl then does with the group: train on
it, filter it, or drop it as stale.

A checkpoint holds the beliefs and verl's own list of the groups that are finished, and a restart generates all others
anew. So that the two agree, `hold` lets no group become complete while verl writes it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from knapsack_rl import metrics
from knapsack_rl.belief import Belief
from knapsack_rl.errors import StateError
from knapsack_rl.step import Step
from knapsack_rl.verl.options import KnapsackOptions

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Features = dict[str, list[Any]]

_TOGETHER_SECONDS = 0.01  # reports that come within it are sent together, and planned for together

Answers = dict[str, "int | Exception"]
"""By group: how many more rollouts to start (0 for a group that is complete), or why it cannot be completed."""


class Opening(NamedTuple):
    """How a step begins.

    Attributes:
        first: rollouts to start of each prompt.
        more: whether more may follow when some of them are scored.
        expected: how many each prompt would get in all, if the step were planned at once.
    """

    first: list[int]
    more: bool
    expected: list[int]


class Report(NamedTuple):
    """Rollouts of a group that ended.

    Attributes:
        uid: the group.
        successes: those above the success threshold.
        scored: those that got a reward.
        failed: those that got none.
        waiting: whether nothing of the group is in flight any more.
        tokens: what all of these wrote, failed ones included as far as it is known.
    """

    uid: str
    successes: int
    scored: int
    failed: int
    waiting: bool
    tokens: int = 0


class Visit(NamedTuple):
    """What came of one prompt of a step.

    Attributes:
        rollouts: those that were placed.
        scored: those with a reward; the others failed.
        successes: those above the success threshold.
        wins, losses: what was believed of the success rate before the step, as in `Belief`.
        unvisited: whether nothing was known about the prompt before the step.
        tokens: what its rollouts wrote.
        expected_tokens: what one of them was expected to write, before the step; NaN where nothing was known.
    """

    rollouts: int
    scored: int
    successes: int
    wins: float
    losses: float
    unvisited: bool
    tokens: float = 0.0
    expected_tokens: float = math.nan


class _OpenStep:
    """A step whose rollouts are still being generated."""

    def __init__(
        self,
        step: Step,
        unvisited: NDArray[np.bool_],
        may_learn: asyncio.Event,
        tell: Callable[[], None],
        early: bool,
    ) -> None:
        self.step, self.unvisited, self.may_learn, self.tell, self.early = step, unvisited, may_learn, tell, early
        self.most_in_flight = max(1, step.remaining // 2)
        self.belief, self.expected_tokens = step.belief, step.expected_costs  # before it learns
        prompts = len(step)
        self.news = np.zeros((4, prompts), dtype=np.int64)  # successes, scored, failed, tokens since the last flush
        self.granted = np.zeros(prompts, dtype=np.int64)  # placed, and not yet fetched by a worker
        self.closed, self.complete, self.abandoned = np.zeros((3, prompts), dtype=bool)
        self.unplaced = step.remaining
        self.error: Exception | None = None
        self.flushing: asyncio.Task[None] | None = None

    def place(self, most: int) -> Ints:
        """Place up to `most` rollouts, and note what is left of the budget for whoever needs it."""
        placed = self.step.place(most).rollouts
        self.unplaced = self.step.remaining - int(self.step.in_flight.sum())
        self.closed |= not self.unplaced
        return placed

    def is_complete(self, position: int) -> bool:
        """Of a group that waits: whether all that it reported has been learned from, and it can get nothing more."""
        return bool(self.closed[position]) and not self.granted[position] and not self.news[:, position].any()

    def take(self, position: int) -> int:
        """What was placed for a group since somebody last asked."""
        more = int(self.granted[position])
        self.granted[position] = 0
        return more

    def flush_soon(self) -> None:
        """See to it that what was reported is learned from."""
        if self.flushing is None and self.news.any():
            self.flushing = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        """Learn from everything that was reported, place more, and tell those who wait."""
        await asyncio.sleep(_TOGETHER_SECONDS)
        await self.may_learn.wait()
        try:
            self._learn_and_place()
        except Exception as error:  # of which everybody who waits must hear
            self.error = error
        self.tell()
        self.flush_soon()

    def _learn_and_place(self) -> None:
        news, self.news = self.news, np.zeros_like(self.news)
        self.flushing = None
        self.step.report(*news)
        for finding in self.step.findings:
            logger.warning("%s", finding.text)
        # Beyond the first rollouts half of the budget at most is on its way at a time: what is not placed yet can still
        # go where the others show that it is needed.
        room = self.most_in_flight - int(self.step.in_flight.sum())
        if room > 0:
            self.granted = self.granted + self.place(room)
        if self.early:
            self.closed = self.step.close()
        # What went to groups that nobody generates any more has failed.
        self.news[2] += np.where(self.abandoned, self.granted, 0)
        self.granted = np.where(self.abandoned, 0, self.granted)


class BudgetKeeper:
    """Owns the allocator of a run. An asyncio actor: `ray.remote(BudgetKeeper)`.

    Args:
        settings: `trainer.v1.knapsack`.
        group_size: mean rollouts of a group.
        estimator: verl's `algorithm.adv_estimator`.
        early: whether groups may be complete while other rollouts of their step are still to be placed
            (`Step.close`), for trainers that do not wait for whole steps.
    """

    def __init__(self, settings: KnapsackOptions, group_size: int, estimator: str, early: bool = False) -> None:
        self._settings, self._early = settings, early
        self._allocator = settings.allocator(group_size, estimator)
        self._steps: list[_OpenStep] = []
        self._open: dict[str, tuple[_OpenStep, int]] = {}
        self._visits: dict[str, Visit] = {}
        self._dropped: list[Visit] = []  # groups that verl has dropped since somebody last asked
        self._waiting: defaultdict[str, set[str]] = defaultdict(set)  # groups without rollouts in flight, by worker
        self._changed = asyncio.Event()
        self._may_learn = asyncio.Event()
        self._may_learn.set()
        self._settling: set[str] = set()  # groups that are complete, which verl has not been told yet
        self._settled = asyncio.Event()

    async def alive(self) -> None:
        """Answer, which a dead keeper does not."""

    async def open(
        self, uids: list[str], prompt_ids: list[str], features: Features, sources: list[str | None] | None = None
    ) -> Opening:
        """Open a step. Where the strategy has one wave nothing more follows, and a group may be reported as a whole.

        Args:
            uids: verl's names of the groups, new for every step.
            prompt_ids: who the prompts are.
            features: what else is known about them.
            sources: their data sources, by which outcomes are watched.
        """
        watch = {} if sources is None else {"data_source": sources}
        step = self._allocator.step(prompt_ids, features, waves=self._settings.waves, watch=watch)
        opened = _OpenStep(step, ~step.visited, self._may_learn, self._tell, self._early)
        first = opened.place(step.remaining)
        self._steps = [step for step in self._steps if step.step.remaining] + [opened]
        self._open.update({uid: (opened, position) for position, uid in enumerate(uids)})
        expected = first
        if opened.unplaced:
            expected = step.forecast().rollouts
        return Opening(first.tolist(), bool(opened.unplaced), expected.tolist())

    async def report(self, worker: str, reports: list[Report]) -> Answers:
        """Take in what ended, and answer about the groups that do not wait. `answers` has the others."""
        found: Answers = {}
        for uid, successes, scored, failed, waiting, tokens in reports:
            if uid not in self._open:
                found[uid] = StateError(f"report: no step has the group {uid!r}. It is complete, or of another run.")
                continue
            step, position = self._open[uid]
            step.news[:, position] += (successes, scored, failed, tokens)
            step.flush_soon()
            if waiting:
                self._waiting[worker].add(uid)
            else:
                found[uid] = step.error or step.take(position)
        return found

    async def answers(self, worker: str) -> Answers:
        """Wait until there is an answer about some of the groups of a worker that wait."""
        while True:
            found: Answers = {}
            for uid in self._waiting[worker]:
                step, position = self._open[uid]
                if step.error or step.granted[position]:
                    found[uid] = step.error or step.take(position)
                elif step.is_complete(position):
                    self._close(uid)
                    found[uid] = 0
            if found:
                self._waiting[worker] -= found.keys()
                return found
            await self._changed.wait()

    async def abandon(self, uid: str) -> None:
        """Count as failed what is in flight of a group that nobody will report, and whatever it would still get."""
        if uid in self._open:
            for waiting in self._waiting.values():
                waiting.discard(uid)
            step, position = self._open[uid]
            step.news[2, position] += step.step.in_flight[position] - step.news[1:3, position].sum()
            step.granted[position], step.abandoned[position] = 0, True
            step.flush_soon()
            self._close(uid)

    async def settle(self, uid: str) -> None:
        """Hear that verl knows that a group is complete, or was abandoned."""
        self._settling.discard(uid)
        self._settled.set()

    async def hold(self) -> None:
        """Let no group become complete until `release`, and wait until verl knows of all that are."""
        self._may_learn.clear()
        while self._settling or self._closing():
            self._settled.clear()
            await self._settled.wait()

    async def release(self) -> None:
        """Go on after `hold`."""
        self._may_learn.set()

    async def visits(self, uids: list[str]) -> dict[str, float]:
        """Metrics of complete groups, which are then forgotten: those of an update, and those that were dropped."""
        found = summary([self._visits.pop(uid) for uid in uids if uid in self._visits])
        dropped, self._dropped = self._dropped, []
        found["dropped_rollouts/sum"] = float(sum(visit.rollouts for visit in dropped))
        lost = sum(visit.rollouts - visit.scored for visit in dropped)
        found["failed_rollouts/sum"] = found.get("failed_rollouts/sum", 0.0) + lost
        return found | self._allocator.alarm.metrics()

    async def drop(self, uids: list[str]) -> None:
        """Hear which groups verl does not train on; beliefs keep what they showed."""
        self._dropped += [self._visits.pop(uid) for uid in uids if uid in self._visits]

    async def save(self, path: str) -> None:
        """Save the allocator's state, as `BudgetAllocator.save`, with the complete groups of steps that are not."""
        allocator = self._allocator
        begun = [step for step in self._steps if step.step.remaining and step.complete.any()]
        if begun:
            allocator = self._allocator.copy()
        for step in begun:
            step.step.teach(allocator.estimator, allocator.sitting, np.flatnonzero(step.complete))
        allocator.save(path)

    async def load(self, path: str) -> None:
        """Load it."""
        self._allocator.load(path)

    def _tell(self) -> None:
        """Let everybody who waits look again."""
        woken, self._changed = self._changed, asyncio.Event()
        woken.set()

    def _closing(self) -> bool:
        """Whether a worker is about to hear that one of its groups is complete."""
        waiting = (self._open[uid] for uids in self._waiting.values() for uid in uids)
        return any(step.error is None and step.is_complete(position) for step, position in waiting)

    def _close(self, uid: str) -> None:
        opened, position = self._open.pop(uid)
        opened.complete[position] = True
        self._settling.add(uid)
        step, belief = opened.step, opened.belief
        rollouts, scored, successes = (int(x[position]) for x in (step.placed, step.scored, step.successes))
        wins, losses = float(belief.wins[position]), float(belief.losses[position])
        expected = math.nan if opened.expected_tokens is None else float(opened.expected_tokens[position])
        unvisited, tokens = bool(opened.unvisited[position]), float(step.spent[position])
        self._visits[uid] = Visit(rollouts, scored, successes, wins, losses, unvisited, tokens, expected)


class Reports:
    """A worker's way to the keeper: what is reported within a hundredth of a second goes in one message.

    Args:
        worker: a name that no other worker has.
        report, answers: the keeper's methods.
    """

    def __init__(
        self,
        worker: str,
        report: Callable[[str, list[Report]], Awaitable[Answers]],
        answers: Callable[[str], Awaitable[Answers]],
    ) -> None:
        self._worker, self._report, self._answers = worker, report, answers
        self._next: list[Report] = []
        self._open: dict[str, asyncio.Future[int]] = {}
        self._waiting: set[str] = set()
        self._sending: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    async def send(self, report: Report) -> int:
        """Report what ended of a group, and return how many more rollouts it gets: 0 if it waits and is complete.

        Raises:
            Exception: the keeper is gone, or the group cannot be completed.
        """
        answer = self._open[report.uid] = asyncio.get_running_loop().create_future()
        self._next.append(report)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        return await answer

    async def _send(self) -> None:
        await asyncio.sleep(_TOGETHER_SECONDS)
        reports, self._next, self._sending = self._next, [], None
        self._waiting |= {report.uid for report in reports if report.waiting}
        await self._answered(lambda: self._report(self._worker, reports), [report.uid for report in reports])
        if self._waiting and self._listening is None:
            self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while self._waiting:
            await self._answered(lambda: self._answers(self._worker), list(self._waiting))
        self._listening = None

    async def _answered(self, call: Callable[[], Awaitable[Answers]], concerned: list[str]) -> None:
        """Hand on the answers of a call; if it fails, so does everybody whom it concerns."""
        try:
            answers = await call()
        except Exception as error:
            answers = dict.fromkeys(concerned, error)
        for uid, answer in answers.items():
            self._waiting.discard(uid)
            future = self._open.pop(uid, None)  # the other call may have failed before
            if future is None or future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


def summary(visits: list[Visit]) -> dict[str, float]:
    """Metrics of the groups of an update. Names choose how verl reduces them over the updates of a step."""
    if not visits:
        return {}
    rollouts, scored, successes, wins, losses, unvisited, tokens, expected = (
        np.array(column) for column in zip(*visits, strict=True)
    )
    found = metrics.step_metrics(
        rollouts,
        successes,
        scored=scored,
        visited=~unvisited,
        belief=Belief(wins, losses),
        costs=tokens if tokens.any() else None,
        expected_costs=None if np.isnan(expected).any() else expected,
    )
    return found | {"failed_rollouts/sum": float((rollouts - scored).sum())}
