"""Allocators and their steps through random sequences of calls: `pytest tests/integration/fuzz -m long -s` plays 2,100.

Every sequence is a function of its number, which a failure shows. It is played twice: the second time the allocator
is replaced, now and then, by a new one that loads what it saved. Both must make the same plans, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import knapsack_rl as kr

Ints = NDArray[np.int64]

SEQUENCES, SHORT, CALLS = 2_100, 30, 25
PEOPLE: list[str | int] = [*(f"prompt {i}" for i in range(8)), *range(4)]
POINTWISE = ("uniform", "knapsack", "knapsack-window")


@dataclass
class InFlight:
    """A step that was opened, and what it promised then."""

    step: kr.Step
    ids: list[str | int]
    due: list[bool]
    placing: bool


@dataclass
class Sequence:
    """An allocator, its open steps, and a plain model of what must hold."""

    number: int
    folder: Path | None = None
    plans: list[bytes] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = draw = np.random.default_rng(self.number)
        self.strategy = kr.strategies()[self.number % len(kr.strategies())]
        low = int(draw.choice([0, 0, 1, 2, 3]))
        group = max(low, 2) + int(draw.integers(0, 5))
        remax = self.strategy in POINTWISE and draw.random() < 0.2
        self.options: dict[str, Any] = {
            "group_size": group,
            "min_rollouts": low,
            "max_rollouts": group + int(draw.choice([0, 1, 4, 30])),
            "seed": int(draw.integers(0, 5)),
            "algorithm": "remax" if remax else str(draw.choice(["grpo", "rloo", "reinforce"])),
            "cost_limit": [None, None, 1.0, 1.3][draw.integers(4)],
        }
        if low == 0:
            self.options["revisit"] = [None, 0, 1, 2, 4][draw.integers(5)]
        self.rates = dict(zip(PEOPLE, draw.choice([0.0, 0.05, 0.3, 0.5, 0.9, 1.0], len(PEOPLE)), strict=True))
        self.featured, self.priced = bool(draw.random() < 0.4), bool(draw.random() < 0.5)
        self.allocator = kr.BudgetAllocator(self.strategy, **self.options)
        self.open: list[InFlight] = []
        self.visited: set[str | int] = set()
        self.absent = dict.fromkeys(PEOPLE, 0)

    def play(self) -> None:
        for _ in range(CALLS):
            names = ["ask", "tell", "begin", "go_on", "go_on", "go_on", "give_up", "copy", "bad", "save"]
            name = str(self.random.choice(names))
            if name in ("begin", "go_on", "give_up") and self.options["algorithm"] == "remax":
                name = "tell"
            getattr(self, name)()
            self.calls[name] += 1
            self.look()
        while self.open:
            self.go_on()
        self.ask()
        self.plans.append(repr(sorted(self.allocator.metrics().items())).encode())

    def batch(self) -> list[str | int]:
        """Prompts, some of which may be there twice."""
        return [PEOPLE[i] for i in self.random.integers(0, len(PEOPLE), self.random.integers(1, 9))]

    def features(self, ids: list[str | int]) -> Any:
        if not self.featured:
            return None
        of = [PEOPLE.index(name) for name in ids]
        return {"topic": ["odd" if i % 2 else "even" for i in of], "length": [float(i * i) for i in of]}

    def outcomes(self, ids: list[str | int], rollouts: Ints) -> Ints:
        return self.random.binomial(rollouts, [self.rates[name] for name in ids])

    def costs(self, rollouts: Ints) -> Any:
        return rollouts * self.random.choice([1.0, 7.0, 90.0], len(rollouts)) if self.priced else None

    def some_budget(self, count: int) -> int | None:
        """One that all prompts can have, if each gets a group; None for the default."""
        least = max(self.options["min_rollouts"], 2)
        budget = int(self.random.integers(count * least, count * self.options["max_rollouts"] + 1))
        if self.options["max_rollouts"] == 2 or self.random.random() < 0.5:
            return None
        return budget

    def due(self, ids: list[str | int]) -> list[bool]:
        revisit = self.options.get("revisit")
        return [revisit is not None and self.absent[name] >= revisit for name in ids]

    def spends(self, rollouts: Ints, budget: int, due: list[bool]) -> None:
        """The budget exactly, within the bounds, with a group for those who may not sit out again."""
        assert rollouts.sum() == budget
        assert rollouts.min() >= self.options["min_rollouts"]
        assert rollouts.max() <= self.options["max_rollouts"]
        single = self.options["min_rollouts"] == 0 and self.options["algorithm"] in ("grpo", "rloo")
        assert not (single and np.any(rollouts == 1))
        assert np.all(rollouts[due] > 0)
        self.plans.append(rollouts.tobytes())

    def ask(self) -> None:
        ids = self.batch()
        features, budget = self.features(ids), self.some_budget(len(ids))
        plan = self.allocator.ask(ids, features, budget)
        self.spends(plan.rollouts, len(ids) * self.options["group_size"] if budget is None else budget, self.due(ids))
        if self.options["cost_limit"] is not None:
            costs = self.allocator.expected_costs(ids, features)
            assert costs @ plan.rollouts <= self.options["cost_limit"] * costs.mean() * plan.rollouts.sum() * (1 + 1e-8)

    def tell(self) -> None:
        ids = self.batch()
        tried = self.random.integers(0, 9, len(ids))
        options: dict[str, Any] = {"costs": self.costs(tried)}
        if options["costs"] is not None and self.random.random() < 0.3:
            options["truncated"] = self.random.integers(0, tried + 1)
        heard = tried > 0
        if self.options["algorithm"] == "remax":
            options["greedy"] = self.random.choice([0.0, 1.0, np.nan], len(ids))
            heard |= ~np.isnan(options["greedy"])
        self.allocator.tell(ids, self.outcomes(ids, tried), tried, self.features(ids), **options)
        self.learned(ids, tried, heard)

    def learned(self, ids: list[str | int], rollouts: Ints, heard: Any) -> None:
        """What the model takes in of a visit; rows of one prompt are parts of it."""
        self.visited |= {name for name, some in zip(ids, heard.tolist(), strict=True) if some}
        for name in set(ids):
            got = any(n for n, one in zip(rollouts.tolist(), ids, strict=True) if one == name)
            self.absent[name] = 0 if got or self.options["min_rollouts"] else min(self.absent[name] + 1, 255)

    def begin(self) -> None:
        ids = self.batch()
        due = self.due(ids)
        step = self.allocator.step(
            ids, self.features(ids), self.some_budget(len(ids)), waves=bool(self.random.random() < 0.8)
        )
        assert step.remaining == step.budget
        self.spends(step.forecast().rollouts, step.budget, due)
        self.open.append(InFlight(step, ids, due, bool(self.random.random() < 0.5)))

    def go_on(self) -> None:
        """One wave, or one call of `place` and of `report`, of some open step."""
        if not self.open:
            return
        one = self.open[self.random.integers(len(self.open))]
        step, failing = one.step, float(self.random.choice([0.0, 0.0, 0.3, 1.0]))
        before = step.remaining
        if one.placing:
            asked = step.place(int(self.random.integers(1, 20))).rollouts
            assert step.in_flight.sum() > 0
            each = np.repeat(np.arange(len(one.ids)), step.in_flight)
            ended = self.random.choice(each, int(self.random.integers(1, len(each) + 1)), replace=False)
            back = np.bincount(ended, minlength=len(one.ids))
            lost = self.random.binomial(back, failing)
            step.report(self.outcomes(one.ids, back - lost), back - lost, lost, self.costs(back))
            assert step.remaining == before - back.sum()
        else:
            asked = step.ask().rollouts
            assert asked.sum() > 0
            assert step.ask().rollouts.tobytes() == asked.tobytes()
            came = self.random.binomial(asked, 1.0 - failing)
            step.tell(self.outcomes(one.ids, came), came, self.costs(came))
            assert step.remaining == before - asked.sum()
        assert asked.min() >= 0
        self.plans.append(asked.tobytes())
        if not step.remaining:
            self.open.remove(one)
            self.spends(step.placed, step.budget, one.due)
            self.learned(one.ids, step.placed, step.scored > 0)

    def give_up(self) -> None:
        """Begin a step and leave it, or leave one in the middle: it has taught nothing."""
        before = self.allocator.state_dict()
        if self.open and self.random.random() < 0.3:
            self.open.pop(self.random.integers(len(self.open)))
        else:
            ids = self.batch()
            step = self.allocator.step(ids, self.features(ids))
            if self.random.random() < 0.5:
                step.place(3)
            else:
                step.ask()
        np.testing.assert_equal(self.allocator.state_dict(), before)

    def copy(self) -> None:
        """A copy plans alike, and what it is told the original does not know."""
        before, ids = self.allocator.state_dict(), self.batch()
        twin = self.allocator.copy()
        plan = self.allocator.ask(ids, self.features(ids)).rollouts
        assert twin.ask(ids, self.features(ids)).rollouts.tobytes() == plan.tobytes()
        twin.tell(ids, np.ones(len(ids), dtype=int), np.full(len(ids), 4), self.features(ids))
        np.testing.assert_equal(self.allocator.state_dict(), before)

    def bad(self) -> None:
        """What is refused changes nothing."""
        before = self.allocator.state_dict()
        won, tried = [([3], [2]), ([-1], [2]), ([0.5], [1]), ([1, 1], [1, 1]), ([1], [2**40])][self.random.integers(5)]
        with pytest.raises(kr.KnapsackError):
            self.allocator.tell(["prompt 1"], won, tried, self.features(["prompt 1"]))
        for one in self.open:
            with pytest.raises(kr.KnapsackError):
                (one.step.report if one.placing else one.step.tell)([0] * len(one.ids), [10**6] * len(one.ids))
        np.testing.assert_equal(self.allocator.state_dict(), before)

    def save(self) -> None:
        """What was saved is in a new allocator bit for bit; the second play goes on with it, unless steps are open."""
        through_file, ids = bool(self.random.random() < 0.3), self.batch()
        if self.folder is not None:
            fresh = kr.BudgetAllocator(self.strategy, **self.options)
            if through_file:
                self.allocator.save(self.folder / "state.npz")
                fresh.load(self.folder / "state.npz")
            else:
                fresh.load_state_dict(self.allocator.state_dict())
            np.testing.assert_equal(fresh.state_dict(), self.allocator.state_dict())
            plan = fresh.ask(ids, self.features(ids)).rollouts
            assert plan.tobytes() == self.allocator.ask(ids, self.features(ids)).rollouts.tobytes()
            self.allocator = self.allocator if self.open else fresh
        self.plans.append(self.allocator.ask(ids, self.features(ids)).rollouts.tobytes())

    def look(self) -> None:
        """What can be looked at agrees with the model."""
        assert self.allocator.visited(PEOPLE).tolist() == [name in self.visited for name in PEOPLE]
        assert self.allocator.sitting_out(PEOPLE).tolist() == [self.absent[name] for name in PEOPLE]
        belief = self.allocator.belief(PEOPLE, self.features(PEOPLE))
        assert np.all((belief.mean > 0.0) & (belief.mean < 1.0))
        assert np.all(self.allocator.expected_costs(PEOPLE, self.features(PEOPLE)) > 0.0)
        assert self.allocator.metrics()["known_prompts"] == len(self.visited)


def run(numbers: range, folder: Path, calls: Counter[str]) -> None:
    for number in numbers:
        first, second = Sequence(number), Sequence(number, folder)
        try:
            first.play()
            second.play()
            assert first.plans == second.plans, "a resumed allocator went on otherwise"
        except Exception as error:
            raise AssertionError(f"sequence {number}: {first.strategy}, {first.options}, {first.calls}") from error
        calls["sequences"] += 1
        calls.update(first.calls)


@pytest.fixture(scope="module")
def calls() -> Iterator[Counter[str]]:
    """How many sequences were played, and of which calls; printed when the module has run."""
    counted = Counter[str]()
    yield counted
    print(f"\n{counted.pop('sequences', 0):,} sequences: {dict(sorted(counted.items()))}")


def test_whatever_the_order_of_calls_the_promises_hold_and_a_resumed_allocator_goes_on_alike(
    tmp_path: Path, calls: Counter[str]
) -> None:
    run(range(SHORT), tmp_path, calls)


@pytest.mark.long
@pytest.mark.parametrize("chunk", range(7))
def test_and_so_in_two_thousand_sequences(chunk: int, tmp_path: Path, calls: Counter[str]) -> None:
    each = SEQUENCES // 7
    run(range(SHORT + chunk * each, SHORT + (chunk + 1) * each), tmp_path, calls)


def test_a_limit_of_cost_holds_where_the_last_rollout_could_only_go_to_a_dear_prompt(tmp_path: Path) -> None:
    """Found at random: with `min_rollouts=0` the plan of coba cost more than `cost_limit` allows, and was refused."""
    run(range(1210, 1211), tmp_path, Counter[str]())
