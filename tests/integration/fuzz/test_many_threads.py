"""Eight threads at one allocator, at random: `pytest tests/integration/fuzz -m long -s` counts their calls.

`tests/unit/core/test_threads.py` has the short form, and says what must hold call by call.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import knapsack_rl as kr

THREADS, CALLS = 8, 200
SHARED = [f"everybody's {i}" for i in range(16)]


@pytest.fixture(scope="module")
def calls() -> Iterator[Counter[str]]:
    """How many calls were made; printed when the module has run."""
    counted = Counter[str]()
    yield counted
    print(f"\n{counted.total():,} calls from {THREADS} threads at once: {dict(sorted(counted.items()))}")


@pytest.fixture(autouse=True)
def switching_every_microsecond() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Thread:
    """One of those that work at the allocator and at a step that all share; it counts its calls and what it told."""

    def __init__(self, number: int, allocator: kr.BudgetAllocator, step: kr.Step) -> None:
        self.number, self.allocator, self.step = number, allocator, step
        self.random = np.random.default_rng(number)
        self.calls, self.own, self.told = Counter[str](), 0, np.zeros(2, dtype=np.int64)
        self.placed = np.zeros(len(step), dtype=np.int64)

    def work(self, together: threading.Barrier) -> None:
        together.wait()
        for _ in range(CALLS):
            name = str(self.random.choice(["tell", "tell", "ask", "own_step", "shared_step", "state", "look"]))
            getattr(self, name)()
            self.calls[name] += 1
        while self.step.remaining:
            self.shared_step()
            self.calls["shared_step"] += 1

    def batch(self) -> list[str]:
        self.own += 1
        return [*self.random.choice(SHARED, 3).tolist(), f"thread {self.number}, prompt {self.own}"]

    def tell(self) -> None:
        ids, tried = self.batch(), self.random.integers(1, 9, 4)
        won = self.random.integers(0, tried + 1)
        self.allocator.tell(ids, won, tried, costs=tried * 3.0)
        self.told += won.sum(), tried.sum()

    def ask(self) -> None:
        assert self.allocator.ask(SHARED).rollouts.sum() == 6 * len(SHARED)

    def own_step(self) -> None:
        ids = self.batch()
        step = self.allocator.step(ids)
        while step.remaining:
            more = step.ask().rollouts
            step.tell(more // 2, more)
        assert step.placed.sum() == 6 * len(ids)
        self.told += step.successes.sum(), step.scored.sum()

    def shared_step(self) -> None:
        mine = self.step.place(2).rollouts
        self.placed += mine
        self.step.report(mine // 2, mine)

    def state(self) -> None:
        """What is saved while others tell is a whole state."""
        fresh = kr.BudgetAllocator(self.allocator.strategy, group_size=6)
        fresh.load_state_dict(self.allocator.state_dict())
        self.allocator.copy().ask(SHARED)

    def look(self) -> None:
        assert np.all(self.allocator.belief(SHARED).wins > 0.0)
        assert np.all(self.allocator.expected_costs(SHARED) > 0.0)
        self.allocator.metrics()


@pytest.mark.long
@pytest.mark.parametrize("strategy", kr.strategies())
def test_eight_threads_lose_nothing(strategy: str, calls: Counter[str]) -> None:
    allocator = kr.BudgetAllocator(strategy, group_size=6)
    step = allocator.step([f"of the step {i}" for i in range(100)])
    threads = [Thread(number, allocator, step) for number in range(THREADS)]
    together = threading.Barrier(THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(thread.work, together) for thread in threads]:
            done.result()
    assert sum(thread.placed for thread in threads).tolist() == step.scored.tolist()
    assert step.scored.sum() == step.budget == 600
    everyone = [*SHARED, *(f"thread {thread.number}, prompt {i + 1}" for thread in threads for i in range(thread.own))]
    assert allocator.visited(everyone[len(SHARED) :]).all()
    if strategy == "hora":  # whose belief adds all outcomes up
        belief = allocator.belief(everyone)
        told = sum(thread.told for thread in threads)
        assert (belief.wins - 1.0).sum() == told[0]
        assert (belief.losses - 1.0).sum() == told[1] - told[0]
    for thread in threads:
        calls.update(thread.calls)
