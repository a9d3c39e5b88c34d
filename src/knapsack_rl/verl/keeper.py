"""The budget keeper: a Ray actor that owns the allocator and spends the budget of every step exactly.

The driver opens a step and gets the first rollouts of each prompt. Workers report rollouts as they are scored
(`Reports` sends those of a worker together) and are told how many more their prompt gets; a prompt without rollouts in
flight waits until it gets some, or until it is certain that it gets none and its group is therefore complete: when the
budget of its step is placed, or earlier where the trainer does not wait for whole steps (`Step.close`). What a step
showed is told to the allocator when its last rollout is back, once, whatever verl then does with the group: train on
it, filter it, or drop it as stale.

A checkpoint holds the beliefs and verl's own list of the groups that are finished, and a restart generates all others
anew. So that the two agree, `hold` lets no group become complete while verl lists them, and nothing is learned between
it and `save`. From then on everybody is served again, but for groups that could only hear that they are complete.

Ray may kill the process and start it again. Whatever changes something here is an event, which a journal has before
anybody hears of it, and the new process does them all again. A call whose answer was lost comes twice: every one can be
made again, counts once, and has the same answer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from knapsack_rl import metrics
from knapsack_rl.allocator import packed, unpacked
from knapsack_rl.belief import Belief
from knapsack_rl.errors import StateError
from knapsack_rl.estimators import state
from knapsack_rl.step import Step
from knapsack_rl.verl.journal import Journal, plain
from knapsack_rl.verl.options import KnapsackOptions

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Arrays = dict[str, NDArray[Any]]
Features = dict[str, list[Any]]

_KEPT = ("most_in_flight", "heard", "news", "granted", "waits", "final", "complete", "abandoned", "unplaced")
"""What the keeper knows of a step besides the step."""
_EVENTS = ("opened", "reported", "flushed", "answered", "abandoned", "settle", "hold", "count", "drop")
_numbers = itertools.count(1)  # of the reports of this process

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
        number: larger in every later report of a group; `Reports` gives it.
    """

    uid: str
    successes: int
    scored: int
    failed: int
    waiting: bool
    tokens: int = 0
    number: int = 0


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
    """A step whose rollouts are still being generated.

    Args:
        step: none of whose rollouts was placed yet.
        arguments: of `BudgetKeeper.open`.
        may_learn: whether it may be learned from.
        flushed: called when it is time to learn from what was reported.
        early: whether groups may be complete before the whole budget is placed.
    """

    def __init__(
        self,
        step: Step,
        arguments: list[Any],
        may_learn: asyncio.Event,
        flushed: Callable[[_OpenStep], None],
        early: bool,
    ) -> None:
        self.step, self.arguments, self.may_learn = step, arguments, may_learn
        self.flushed, self.early = flushed, early
        self.most_in_flight = max(1, step.remaining // 2)
        prompts = len(step)
        self.heard = np.zeros(prompts, dtype=np.int64)  # number of the newest report
        self.news = np.zeros((4, prompts), dtype=np.int64)  # successes, scored, failed, tokens since the last flush
        self.granted = np.zeros(prompts, dtype=np.int64)  # placed, and not yet fetched by a worker
        self.waits, self.final, self.complete, self.abandoned = np.zeros((4, prompts), dtype=bool)
        self.unplaced = step.remaining
        self.opening = Opening([], False, [])
        self.error: Exception | None = None
        self.flushing: asyncio.Task[None] | None = None

    @property
    def uids(self) -> list[str]:
        """The names of its groups."""
        return self.arguments[0]

    def begin(self) -> None:
        """Place the first rollouts."""
        _ = self.step.expected_costs  # as they are before anything else is learned
        first = self.place(self.step.remaining)
        expected = self.step.forecast().rollouts if self.unplaced else first
        self.opening = Opening(first.tolist(), bool(self.unplaced), expected.tolist())

    def place(self, most: int) -> Ints:
        """Place up to `most` rollouts, and note what is left of the budget for whoever needs it."""
        placed = self.step.place(most).rollouts
        self.unplaced = self.step.remaining - int(self.step.in_flight.sum())
        self.final |= not self.unplaced
        return placed

    def is_complete(self) -> NDArray[np.bool_]:
        """Of groups that wait: whether all that they reported has been learned from, and they can get nothing more."""
        return self.final & (self.granted == 0) & ~self.news.any(axis=0)

    def is_ready(self) -> NDArray[np.bool_]:
        """Which groups wait for an answer that there is."""
        return self.waits & (self.is_complete() | (self.granted > 0) | (self.error is not None))

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
        await asyncio.sleep(_TOGETHER_SECONDS)
        await self.may_learn.wait()
        self.flushing = None
        self.flushed(self)
        self.flush_soon()

    def flush(self) -> None:
        """Learn from everything that was reported, and place more."""
        try:
            self._learn_and_place()
        except Exception as error:  # of which everybody who waits must hear
            self.error = error

    def _learn_and_place(self) -> None:
        news, self.news = self.news, np.zeros_like(self.news)
        self.step.report(*news)
        # Beyond the first rollouts half of the budget at most is on its way at a time: what is not placed yet can still
        # go where the others show that it is needed.
        room = self.most_in_flight - int(self.step.in_flight.sum())
        if room > 0:
            self.granted = self.granted + self.place(room)
        if self.early:
            self.final = self.step.close()
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
        folder: where the journals of runs are; None for none.
        run: a name that no other run has, by which a process that is started again knows its journal.
    """

    def __init__(
        self,
        settings: KnapsackOptions,
        group_size: int,
        estimator: str,
        early: bool = False,
        folder: str | None = None,
        run: str = "",
    ) -> None:
        self._settings, self._early = settings, early
        self._allocator = settings.allocator(group_size, estimator)
        self._steps: list[_OpenStep] = []
        self._open: dict[str, tuple[_OpenStep, int]] = {}
        self._visits: dict[str, Visit] = {}
        self._dropped: list[Visit] = []  # groups that verl has dropped since somebody last asked
        self._counted: tuple[int, dict[str, float]] = (-1, {})  # what `visits` found last
        self._waiting: dict[str, str] = {}  # groups without rollouts in flight, and whose they are
        self._ready: defaultdict[str, set[str]] = defaultdict(set)  # those for which there is an answer, by worker
        self._told: dict[str, tuple[int, int]] = {}  # of groups that do not wait: number of a report, and its answer
        self._sent: dict[str, tuple[int, dict[str, int]]] = {}  # the newest of `answers`, by worker: its number, and it
        self._changed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)  # by worker
        self._held = self._went_on = False  # whether groups may not become complete; and whether a step learned then
        self._may_learn = asyncio.Event()
        self._may_learn.set()
        self._settling: dict[str, int] = {}  # groups that are complete, which verl has not been told; newest reports
        self._settled = asyncio.Event()
        self._journal: Journal | None = None
        if folder is not None:
            journal = Journal(Path(folder) / run, run)
            if journal.new and _restarted():
                raise StateError(
                    f"journal: the budget keeper was started again, and {folder} has no journal of {run}. Somebody has "
                    "removed it. The run can go on from its last checkpoint."
                )
            self._recover(*journal.recovered())
            self._journal = journal

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
        opened = next((step for step in self._steps if step.uids == uids), None)
        if opened is None:
            opened = self._opened(uids, prompt_ids, json.loads(json.dumps(features, default=plain)), sources)
            self._note("opened", *opened.arguments)
        return opened.opening

    async def report(self, worker: str, reports: list[Report]) -> Answers:
        """Take in what ended, and answer about the groups that do not wait. `answers` has the others."""
        fresh = [report for report in reports if self._is_fresh(report)]
        if fresh:
            self._reported(worker, fresh)
            self._note("reported", worker, fresh)
            for step in {id(step): step for step, _ in (self._open[report.uid] for report in fresh)}.values():
                self._call(step)
        found: Answers = {}
        for report in reports:
            uid = report.uid
            if uid in self._open:
                step, _ = self._open[uid]
                step.flush_soon()
                number, more = self._told.get(uid, (-1, 0))
                if not report.waiting and step.error is not None:
                    found[uid] = step.error
                elif not report.waiting and number == report.number:
                    found[uid] = more
            elif report.number > self._settling.get(uid, -1):
                found[uid] = StateError(f"report: no step has the group {uid!r}. It is complete, or of another run.")
        return found

    async def answers(self, worker: str, number: int) -> Answers:
        """Wait until there is an answer about some of the groups of a worker that wait.

        Args:
            worker: whose groups.
            number: of the call, another one than that of the worker's last, whose answer has arrived.
        """
        for step in self._steps:  # of which another process may have left news
            step.flush_soon()
        while True:
            sent, found = self._sent.get(worker, (-1, {}))
            if sent == number:
                return dict(found)
            ready = sorted(self._ready.pop(worker, set()))
            errors = {uid: error for uid in ready if (error := self._open[uid][0].error) is not None}
            if errors:
                self._ready[worker] = set(ready) - errors.keys()
                return dict(errors)
            if ready:
                self._answered(worker, number, ready)
                self._note("answered", worker, number, ready)
            else:
                self._changed[worker].clear()
                await self._changed[worker].wait()

    async def abandon(self, uid: str) -> None:
        """Count as failed what is in flight of a group that nobody will report, and whatever it would still get."""
        if uid in self._open:
            step, _ = self._open[uid]
            self._abandoned(uid)
            self._note("abandoned", uid)
            step.flush_soon()

    async def settle(self, uid: str) -> None:
        """Hear that verl knows that a group is complete, or was abandoned."""
        self._settle(uid)
        self._note("settle", uid)
        self._settled.set()

    async def hold(self) -> None:
        """Let no group become complete until `release`, and wait until verl knows of all that are."""
        self._hold(True)
        self._note("hold", True)
        while self._settling or self._closing():
            self._settled.clear()
            await self._settled.wait()

    async def release(self) -> None:
        """Go on after `hold`."""
        self._hold(False)
        self._note("hold", False)
        for step in self._steps:
            self._call(step)

    async def visits(self, uids: list[str], number: int | None = None) -> dict[str, float]:
        """Metrics of complete groups, which are then forgotten: those of an update, and those that were dropped.

        Args:
            uids: the groups of the update.
            number: of the update, so that who asks again hears the same; by default the next.
        """
        if number is None:
            number = self._counted[0] + 1
        if number != self._counted[0]:
            self._count(uids, number)
            self._note("count", uids, number)
        return self._counted[1]

    async def drop(self, uids: list[str]) -> None:
        """Hear which groups verl does not train on; beliefs keep what they showed."""
        self._drop(uids)
        self._note("drop", uids)

    async def save(self, path: str) -> None:
        """Save the allocator's state, as `BudgetAllocator.save`, with the complete groups of steps that are not.

        It is as it is now. The file is written by a thread, during which everybody else is served.

        Raises:
            StateError: the keeper was killed while it did this after `hold`, and has learned more since.
        """
        if self._went_on:
            raise StateError(
                "checkpoint: the budget keeper was killed while it wrote its state, which can no longer be told apart "
                "from what came later. The run can go on from the checkpoint before."
            )
        allocator = self._allocator
        begun = [step for step in self._steps if step.step.remaining and step.complete.any()]
        if begun:
            allocator = self._allocator.copy()
        for step in begun:
            step.step.teach(allocator.estimator, allocator.sitting, np.flatnonzero(step.complete))
        content = packed(allocator.state_dict())
        self._may_learn.set()
        await asyncio.to_thread(state.write, Path(path), *content)

    async def load(self, path: str) -> None:
        """Load it, before any step."""
        self._allocator.load(path)
        if self._journal is not None:
            self._journal.begin_anew(*self._packed())
            await asyncio.to_thread(self._journal.wait)

    # What changes the keeper, and is done again from its journal

    def _opened(
        self, uids: list[str], prompt_ids: list[str], features: Features, sources: list[str | None] | None
    ) -> _OpenStep:
        # Here, and not when a state is read: events name steps by their position among those that it had.
        self._steps = [step for step in self._steps if step.step.remaining or not step.complete.all()]
        opened = self._added([uids, prompt_ids, features, sources])
        opened.begin()
        return opened

    def _added(self, arguments: list[Any]) -> _OpenStep:
        uids, prompt_ids, features, sources = arguments
        watch = {} if sources is None else {"data_source": sources}
        step = self._allocator.step(prompt_ids, features, waves=self._settings.waves, watch=watch)
        opened = _OpenStep(step, arguments, self._may_learn, self._flush, self._early)
        self._steps.append(opened)
        self._open.update({uid: (opened, position) for position, uid in enumerate(uids)})
        return opened

    def _is_fresh(self, report: Report) -> bool:
        if report.uid not in self._open:
            return False
        step, position = self._open[report.uid]
        return report.number > step.heard[position]

    def _reported(self, worker: str, reports: list[Any]) -> None:
        for uid, successes, scored, failed, waiting, tokens, number in reports:
            step, position = self._open[uid]
            step.heard[position] = number
            step.news[:, position] += (successes, scored, failed, tokens)
            step.waits[position] = waiting
            if waiting:
                self._waiting[uid] = worker
            elif step.error is None:
                self._told[uid] = number, step.take(position)

    def _flushed(self, number: int) -> None:
        self._went_on |= self._held
        self._steps[number].flush()

    def _answered(self, worker: str, number: int, uids: list[str]) -> None:
        """Tell groups that wait what was placed for them; those that can get nothing more are complete."""
        found = {}
        for uid in uids:
            step, position = self._open[uid]
            step.waits[position] = False
            del self._waiting[uid]
            found[uid] = step.take(position)
            if not found[uid]:
                self._close(uid)
        self._sent[worker] = number, found

    def _abandoned(self, uid: str) -> None:
        if uid in self._waiting:
            self._ready[self._waiting.pop(uid)].discard(uid)
        step, position = self._open[uid]
        step.waits[position] = False
        step.news[2, position] += step.step.in_flight[position] - step.news[1:3, position].sum()
        step.granted[position], step.abandoned[position] = 0, True
        self._close(uid)

    def _settle(self, uid: str) -> None:
        self._settling.pop(uid, None)

    def _hold(self, held: bool) -> None:
        self._held, self._went_on = held, False
        (self._may_learn.clear if held else self._may_learn.set)()

    def _count(self, uids: list[str], number: int) -> None:
        found = summary([self._visits.pop(uid) for uid in uids if uid in self._visits])
        dropped, self._dropped = self._dropped, []
        found["dropped_rollouts/sum"] = float(sum(visit.rollouts for visit in dropped))
        lost = sum(visit.rollouts - visit.scored for visit in dropped)
        found["failed_rollouts/sum"] = found.get("failed_rollouts/sum", 0.0) + lost
        self._counted = number, found | self._allocator.alarm.metrics()

    def _drop(self, uids: list[str]) -> None:
        self._dropped += [self._visits.pop(uid) for uid in uids if uid in self._visits]

    def _close(self, uid: str) -> None:
        opened, position = self._open.pop(uid)
        opened.complete[position] = True
        self._settling[uid] = int(opened.heard[position])
        self._told.pop(uid, None)
        step, belief = opened.step, opened.step.belief
        rollouts, scored, successes = (int(x[position]) for x in (step.placed, step.scored, step.successes))
        wins, losses = float(belief.wins[position]), float(belief.losses[position])
        expected = math.nan if step.expected_costs is None else float(step.expected_costs[position])
        unvisited, tokens = not step.visited[position], float(step.spent[position])
        self._visits[uid] = Visit(rollouts, scored, successes, wins, losses, unvisited, tokens, expected)

    # The journal

    def _note(self, event: str, *arguments: Any) -> None:
        """Put down what has happened before anybody hears of it."""
        if self._journal is None:
            return
        self._journal.append([event, *arguments])
        if self._journal.long:
            self._journal.begin_anew(*self._packed())

    def _recover(self, saved: tuple[dict[str, Any], Arrays] | None, events: Iterable[list[Any]]) -> None:
        """Become what the process was that wrote this, except that nothing is about to be learned from."""
        if saved is not None:
            self._unpack(*saved)
        for event, *arguments in events:
            if event not in _EVENTS:
                raise StateError(f"journal: expected an event of the budget keeper, got {event!r:.80}.")
            getattr(self, f"_{event}")(*arguments)
        for step in self._steps:
            self._call(step)

    def _packed(self) -> tuple[dict[str, Any], Arrays]:
        """Everything that the keeper knows, as JSON and arrays by name."""
        header, arrays = packed(self._allocator.state_dict())
        numbering = self._allocator.estimator.numbering()
        header = {
            "allocator": header,
            "begun": numbering["begun"],
            "alarm": self._allocator.alarm.newest,
            "visits": dict(self._visits),
            "dropped": list(self._dropped),
            "counted": self._counted,
            "waiting": dict(self._waiting),
            "told": dict(self._told),
            "sent": dict(self._sent),
            "settling": dict(self._settling),
            "held": [self._held, self._went_on],
            "steps": [],
        }
        arrays = {f"allocator.{name}": array for name, array in arrays.items()} | {"steps": numbering["step"]}
        for number, opened in enumerate(self._steps):
            kept = opened.step.state_dict() | {name: getattr(opened, name) for name in _KEPT}
            kept |= {"opening": opened.opening, "error": None if opened.error is None else str(opened.error)}
            found = {name: value for name, value in kept.items() if isinstance(value, np.ndarray)}
            arrays |= {f"{number}.{name}": array.copy() for name, array in found.items()}
            rest = {name: value for name, value in kept.items() if name not in found}
            header["steps"].append({"arguments": opened.arguments, **rest})
        return header, arrays

    def _unpack(self, header: dict[str, Any], arrays: Arrays) -> None:
        """Become that."""
        ours = {name.removeprefix("allocator."): array for name, array in arrays.items() if name[:10] == "allocator."}
        self._allocator.load_state_dict(unpacked(header["allocator"], ours))
        for number, kept in enumerate(header["steps"]):
            opened = self._added(kept["arguments"])
            found = {name: array for name, array in arrays.items() if name.startswith(f"{number}.")}
            kept |= {name.removeprefix(f"{number}."): array for name, array in found.items()}
            opened.step.load_state_dict(kept)
            for name in _KEPT:
                setattr(opened, name, kept[name])
            opened.opening = Opening(*kept["opening"])
            opened.error = None if kept["error"] is None else StateError(kept["error"])
            for position in np.flatnonzero(opened.complete):
                del self._open[opened.uids[position]]
        self._allocator.estimator.renumber({"begun": header["begun"], "step": arrays["steps"]})
        self._allocator.alarm.newest = header["alarm"]
        self._visits = {uid: Visit(*visit) for uid, visit in header["visits"].items()}
        self._dropped = [Visit(*visit) for visit in header["dropped"]]
        self._counted = tuple(header["counted"])
        self._waiting = header["waiting"]
        self._told = {uid: (number, more) for uid, (number, more) in header["told"].items()}
        self._sent = {worker: (number, found) for worker, (number, found) in header["sent"].items()}
        self._settling = header["settling"]
        held, went_on = header["held"]
        self._hold(held)
        self._went_on = went_on

    def _flush(self, step: _OpenStep) -> None:
        """Learn from what was reported of a step, and let everybody who waits look again."""
        number = self._steps.index(step)
        self._flushed(number)
        try:
            self._note("flushed", number)
        except OSError as error:  # of which everybody who waits must hear
            step.error = error
        for finding in step.step.findings:
            logger.warning("%s", finding.text)
        self._call(step)

    def _call(self, step: _OpenStep) -> None:
        """Let workers look whose groups of a step wait for an answer that there is."""
        ready = step.is_ready()
        if self._held:
            ready &= ~step.is_complete()
        for position in np.flatnonzero(ready):
            uid = step.uids[position]
            worker = self._waiting[uid]
            self._ready[worker].add(uid)
            self._changed[worker].set()

    def _closing(self) -> bool:
        """Whether a worker is about to hear that one of its groups is complete."""
        ready = (self._open[uid] for uids in self._ready.values() for uid in uids)
        return any(step.error is None and step.is_complete()[position] for step, position in ready)


def _restarted() -> bool:
    """Whether Ray has started this actor before."""
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    context = ray.get_runtime_context()  # which knows nothing of restarts outside of an actor
    return context.get_actor_id() is not None and bool(context.was_current_actor_reconstructed)


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
        answers: Callable[[str, int], Awaitable[Answers]],
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
        self._next.append(report._replace(number=next(_numbers)))
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
            number = next(_numbers)
            await self._answered(lambda: self._answers(self._worker, number), list(self._waiting))  # noqa: B023
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
