"""Allocators and steps told from several threads at once: nothing is lost, nothing is torn."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

import knapsack_rl as kr

THREADS = 8


@pytest.fixture(params=[None, 1e-6], ids=["default switch interval", "a microsecond"])
def switching(request: pytest.FixtureRequest) -> Iterator[None]:
    """How often the interpreter goes from thread to thread."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(request.param or before)
    yield
    sys.setswitchinterval(before)


def at_once(work) -> None:
    """`work(number)` in so many threads, which begin together; what one raises is raised."""
    together = Barrier(THREADS)

    def begin(number: int) -> None:
        together.wait()
        work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(begin, number) for number in range(THREADS)]:
            done.result()


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("strategy", kr.strategies())
def test_every_prompt_that_a_thread_tells_is_known_as_it_told_it(strategy: str) -> None:
    allocator = kr.BudgetAllocator(strategy)

    def tell(number: int) -> None:
        for visit in range(30):
            ids = [f"thread {number}, prompt {visit} {i}" for i in range(5)]
            allocator.tell([*ids, "everybody's"], [0, 1, 2, 3, 4, 2], [4] * 6)
            allocator.ask(ids)
            allocator.metrics()

    at_once(tell)
    assert allocator.metrics()["known_prompts"] == THREADS * 30 * 5 + 1
    state = allocator.state_dict()["estimator"]
    tried = state["rewards" if "rewards" in state else "tried"]
    assert set(tried.tolist()) <= {4.0, 16.0}
    restored = kr.BudgetAllocator(strategy)
    restored.load_state_dict(allocator.state_dict())  # which checks what it loads
    ids = [f"thread {number}, prompt 7 {i}" for number in range(THREADS) for i in range(5)]
    assert restored.ask(ids).rollouts.tolist() == allocator.ask(ids).rollouts.tolist()


@pytest.mark.usefixtures("switching")
def test_no_outcome_is_lost_where_threads_tell_of_the_same_prompts() -> None:
    allocator = kr.BudgetAllocator("hora")  # whose belief adds all outcomes up

    def tell(number: int) -> None:
        for _ in range(50):
            allocator.tell(["a", "b"], [1, 3], [4, 4])

    at_once(tell)
    belief = allocator.belief(["a", "b"])
    assert (belief.wins - 1.0).tolist() == [THREADS * 50, 3 * THREADS * 50]
    assert (belief.losses - 1.0).tolist() == [3 * THREADS * 50, THREADS * 50]


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("strategy", kr.strategies())
def test_workers_report_a_step_from_threads_and_its_budget_is_spent_once(strategy: str) -> None:
    allocator = kr.BudgetAllocator(strategy, group_size=6, max_rollouts=30)
    ids = [f"prompt {i}" for i in range(24)]
    step = allocator.step(ids)
    placed = np.zeros((THREADS, len(ids)), dtype=np.int64)

    def work(number: int) -> None:
        while step.remaining:
            mine = step.place(3).rollouts
            placed[number] += mine
            step.report(mine // 2, mine)

    at_once(work)
    assert placed.sum() == 6 * 24
    assert step.placed.tolist() == step.scored.tolist() == placed.sum(axis=0).tolist()
    assert allocator.metrics()["known_prompts"] == 24
