"""How fast the core is. It measures and prints; nothing here asserts a time.

pytest benchmarks/test_core.py --benchmark-only --benchmark-columns=min,median,max,rounds
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

import knapsack_rl as kr
from knapsack_rl.strategies import ours

from dynamic_programme import best_rollouts

GROUP_SIZE = 8
MIN_ROLLOUTS, MAX_ROLLOUTS = 2, 128
PAPER_PROMPTS = 256
OURS = [strategy.name for strategy in (ours.UNIFORM, ours.KNAPSACK, ours.ADAPTIVE, *ours.VARIANTS)]

Print = Callable[[str], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Print:
    """Prints a line whether or not pytest captures output."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return line


def success_rates(prompts: int, seed: int = 0) -> NDArray[np.float64]:
    """Rates as on competition mathematics: a third never solved, a fifth always, the rest U-shaped."""
    rng = np.random.default_rng(seed)
    rates = rng.beta(0.4, 0.4, prompts)
    kind = rng.random(prompts)
    rates[kind < 0.33] = 0.0
    rates[kind > 0.80] = 1.0
    return rates


def prompt_ids(first: int, count: int) -> list[str]:
    return [f"{i:032x}" for i in range(first, first + count)]


@pytest.mark.benchmark(group="allocate")
@pytest.mark.parametrize("prompts", [PAPER_PROMPTS, 10 * PAPER_PROMPTS])
@pytest.mark.parametrize("fallback", [True, False], ids=["fallback", "no fallback"])
def test_allocate(benchmark: BenchmarkFixture, prompts: int, fallback: bool) -> None:
    rates = success_rates(prompts)
    plan = benchmark(kr.allocate, rates, prompts * GROUP_SIZE, fallback=fallback)
    assert plan.rollouts.sum() == prompts * GROUP_SIZE


@pytest.mark.benchmark(group="allocate")
def test_allocate_from_observed_rates(benchmark: BenchmarkFixture) -> None:
    """Rates that are counts over eight rollouts, so that many prompts tie."""
    rates = np.round(success_rates(PAPER_PROMPTS) * GROUP_SIZE) / GROUP_SIZE
    plan = benchmark(kr.allocate, rates, PAPER_PROMPTS * GROUP_SIZE)
    assert plan.rollouts.sum() == PAPER_PROMPTS * GROUP_SIZE


@pytest.mark.benchmark(group="allocate")
def test_allocate_a_million_prompts(benchmark: BenchmarkFixture, say: Print) -> None:
    rates = success_rates(1_000_000)
    budget = 8 * rates.size
    plan = benchmark.pedantic(kr.allocate, (rates, budget), rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    assert plan.rollouts.sum() == budget

    tracemalloc.start()
    kr.allocate(rates, budget)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    benchmark.extra_info["peak MB"] = round(peak / 1e6)
    say(f"a million prompts, budget {budget:,}: {peak / 1e6:.0f} MB at the peak, the input's 8 MB not counted")


@pytest.mark.benchmark(group="allocate within a cost")
@pytest.mark.parametrize("prompts", [PAPER_PROMPTS, 10 * PAPER_PROMPTS, 1_000_000])
@pytest.mark.parametrize("both", [False, True], ids=["cost", "cost and rollouts"])
def test_allocate_within_a_cost(benchmark: BenchmarkFixture, prompts: int, both: bool, say: Print) -> None:
    """Answers of log-normal length, and three quarters of what even groups would cost."""
    rates, costs = success_rates(prompts), np.random.default_rng(1).lognormal(0.0, 0.7, prompts)
    budget, cost_budget = GROUP_SIZE * prompts if both else None, 0.75 * GROUP_SIZE * costs.sum()

    def allocate() -> kr.Plan:
        return kr.allocate(rates, budget, costs=costs, cost_budget=cost_budget, fallback=False)

    plan = benchmark.pedantic(allocate, rounds=3 if prompts == 1_000_000 else 100, warmup_rounds=1)  # type: ignore[no-untyped-call]
    assert plan.cost is not None
    assert plan.cost <= cost_budget
    say(f"{prompts:,} prompts, {'both budgets' if both else 'cost'}: {1 - plan.value / plan.bound:.1e} below the bound")


@pytest.mark.benchmark(group="dynamic programme")
def test_dynamic_programme_at_the_papers_size(benchmark: BenchmarkFixture, say: Print) -> None:
    """The yardstick: the same problem, minimums set aside, solved without the concavity of the values."""
    rates = success_rates(PAPER_PROMPTS)
    values = kr.value(np.arange(MIN_ROLLOUTS, MAX_ROLLOUTS + 1), rates[:, None])
    budget = PAPER_PROMPTS * GROUP_SIZE
    extra = benchmark.pedantic(  # type: ignore[no-untyped-call]
        best_rollouts, (values, budget - PAPER_PROMPTS * MIN_ROLLOUTS), rounds=3, warmup_rounds=1
    )
    optimum = kr.value(extra + MIN_ROLLOUTS, rates).sum()
    ours = kr.allocate(rates, budget, fallback=False).value
    say(f"value of the plan: {ours:.12f}, of the dynamic programme {optimum:.12f}, difference {ours - optimum:.1e}")
    assert ours == pytest.approx(optimum, rel=1e-12)


KNOWN = 1_000_000
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module", params=OURS)
def well_travelled(request: pytest.FixtureRequest) -> kr.BudgetAllocator:
    """An allocator that has seen a million prompts once."""
    rng, rates = np.random.default_rng(0), success_rates(KNOWN)
    allocator = kr.BudgetAllocator(request.param, GROUP_SIZE, MIN_ROLLOUTS, MAX_ROLLOUTS, seed=0)
    for first in range(0, KNOWN, 50_000):
        chunk = rates[first : first + 50_000]
        allocator.tell(prompt_ids(first, chunk.size), rng.binomial(GROUP_SIZE, chunk), np.full(chunk.size, GROUP_SIZE))
    return allocator


def a_step() -> tuple[tuple[list[str], NDArray[np.float64]], dict[str, object]]:
    """Prompts of a step, and the luck of each; the latter decides how many of its rollouts are right."""
    rows = RANDOM.integers(0, KNOWN, PAPER_PROMPTS)
    return ([f"{i:032x}" for i in rows], RANDOM.random(PAPER_PROMPTS)), {}


@pytest.mark.benchmark(group="ask and tell")
def test_ask_and_tell_with_a_million_known_prompts(
    benchmark: BenchmarkFixture, well_travelled: kr.BudgetAllocator
) -> None:
    """One step of 256 prompts in one shot: `ask`, then `tell` of what the plan's rollouts brought."""

    def ask_and_tell(ids: list[str], luck: NDArray[np.float64]) -> NDArray[np.int64]:
        rollouts = well_travelled.ask(ids).rollouts
        well_travelled.tell(ids, np.floor(luck * (rollouts + 1)).astype(np.int64), rollouts)
        return rollouts

    rollouts = benchmark.pedantic(ask_and_tell, setup=a_step, rounds=200, warmup_rounds=5)  # type: ignore[no-untyped-call]
    assert rollouts.sum() == PAPER_PROMPTS * GROUP_SIZE


@pytest.mark.benchmark(group="a step in its waves")
def test_a_step_in_its_waves_with_a_million_known_prompts(
    benchmark: BenchmarkFixture, well_travelled: kr.BudgetAllocator
) -> None:
    """One step of 256 prompts in as many waves as the strategy has; generation takes no time here."""

    def play(ids: list[str], luck: NDArray[np.float64]) -> NDArray[np.int64]:
        step = well_travelled.step(ids)
        while step.remaining:
            rollouts = step.ask().rollouts
            step.tell(np.floor(luck * (rollouts + 1)).astype(np.int64), rollouts)
        return step.scored

    scored = benchmark.pedantic(play, setup=a_step, rounds=200, warmup_rounds=5)  # type: ignore[no-untyped-call]
    assert scored.sum() == PAPER_PROMPTS * GROUP_SIZE


@pytest.mark.benchmark(group="state")
def test_save_the_state_of_a_million_prompts(
    benchmark: BenchmarkFixture, well_travelled: kr.BudgetAllocator, tmp_path: Path, say: Print
) -> None:
    file = tmp_path / "allocator.npz"
    benchmark.pedantic(well_travelled.save, (file,), rounds=3)  # type: ignore[no-untyped-call]
    megabytes = file.stat().st_size / 1e6
    benchmark.extra_info["MB"] = round(megabytes, 1)
    say(f"{well_travelled.strategy}: state of a million prompts, {megabytes:.1f} MB on disk")
