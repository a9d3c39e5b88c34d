"""What every strategy promises, whatever has happened before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import knapsack_rl as kr

pytestmark = pytest.mark.parametrize("strategy", kr.strategies())

NAMES = [f"prompt {number}" for number in range(9)]
ALGORITHMS = ("grpo", "rloo", "reinforce")


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[list[str], list[int], list[int]]]:
    """Batches of visits: names, successes, rollouts."""
    batches = []
    for _ in range(draw(st.integers(0, 5))):
        names = draw(st.lists(st.sampled_from(NAMES[:7]), min_size=1, max_size=7))
        rollouts = [draw(st.integers(0, 20)) for _ in names]
        batches.append((names, [draw(st.integers(0, n)) for n in rollouts], rollouts))
    return batches


@st.composite
def bounds(draw: st.DrawFn) -> dict[str, int]:
    low = draw(st.integers(1, 4))
    size = draw(st.integers(low, 9))
    return {"group_size": size, "min_rollouts": low, "max_rollouts": draw(st.integers(size, 24))}


def made(strategy: str, history: list[Any], **options: Any) -> kr.BudgetAllocator:
    allocator = kr.BudgetAllocator(strategy, **options)
    for names, successes, rollouts in history:
        allocator.tell(names, successes, rollouts, features_of(names))
    return allocator


def features_of(names: list[str]) -> dict[str, Any]:
    return {"topic": [name[-1] for name in names], "length": [len(name) + int(name[-1]) for name in names]}


def spent(step: kr.Step, outcomes: np.random.Generator, names: list[str], failures: bool) -> list[np.ndarray]:
    """Play the step out and return the rollouts of its waves; each name has a success rate of its own."""
    waves = []
    rates = np.array([(0.0, 0.05, 0.3, 0.7, 1.0)[int(name[-1]) % 5] for name in names])
    while step.remaining:
        rollouts = step.ask().rollouts
        assert step.ask().rollouts.tolist() == rollouts.tolist()
        back = outcomes.binomial(rollouts, 0.8) if failures else rollouts
        step.tell(outcomes.binomial(back, rates), back)
        waves.append(rollouts)
    return waves


@settings(deadline=None, max_examples=40)
@given(histories(), bounds(), st.lists(st.sampled_from(NAMES), max_size=9), st.sampled_from(ALGORITHMS), st.booleans())
def test_the_waves_of_a_step_spend_its_budget_exactly_within_the_bounds(
    strategy: str,
    history: list[Any],
    limits: dict[str, int],
    names: list[str],
    algorithm: str,
    failures: bool,
) -> None:
    allocator = made(strategy, history, algorithm=algorithm, **limits)
    waves = spent(allocator.step(names, features_of(names)), np.random.default_rng(0), names, failures)
    assert all(wave.min() >= 0 and wave.sum() > 0 for wave in waves)
    total = np.sum(waves, axis=0) if waves else np.zeros(0)
    assert total.sum() == limits["group_size"] * len(names)
    assert all(limits["min_rollouts"] <= count <= limits["max_rollouts"] for count in total.tolist())
    if waves:
        assert waves[0].min() >= limits["min_rollouts"]


@settings(deadline=None, max_examples=40)
@given(histories(), st.lists(st.sampled_from(NAMES), min_size=1, max_size=9), st.sampled_from(ALGORITHMS))
def test_asking_is_pure_and_a_step_teaches_with_its_last_tell_what_tell_teaches(
    strategy: str, history: list[Any], names: list[str], algorithm: str
) -> None:
    allocator, other = (made(strategy, history, algorithm=algorithm) for _ in range(2))
    features = features_of(names)
    plan = allocator.ask(names, features).rollouts.tolist()
    step = allocator.step(names, features)
    outcomes = np.random.default_rng(1)
    successes = np.zeros(len(names), dtype=np.int64)
    while step.remaining:
        assert allocator.ask(names, features).rollouts.tolist() == plan
        rollouts = step.ask().rollouts
        won = outcomes.binomial(rollouts, 0.4)
        successes += won
        step.tell(won, rollouts)
    other.tell(names, successes, step.scored, features)
    assert allocator.ask(names, features).rollouts.tolist() == other.ask(names, features).rollouts.tolist()
    assert allocator.success_rates(names, features).tobytes() == other.success_rates(names, features).tobytes()


@settings(deadline=None, max_examples=40)
@given(histories(), st.permutations(NAMES))
def test_permuting_the_prompts_permutes_the_plan_up_to_ties(
    strategy: str, history: list[Any], order: list[str]
) -> None:
    allocator = made(strategy, history)
    straight = allocator.ask(NAMES, features_of(NAMES)).rollouts
    permuted = allocator.ask(order, features_of(order)).rollouts
    # Equal gains go to the earlier prompt, so that a tie may move a rollout; the multiset of plans cannot change.
    assert sorted(straight.tolist()) == pytest.approx(sorted(permuted.tolist()), abs=1)
    moved = np.abs(straight - permuted[[order.index(name) for name in NAMES]])
    assert straight.sum() == permuted.sum()
    visited = allocator.visited(NAMES)
    if visited.all():
        rates = allocator.success_rates(NAMES, features_of(NAMES))
        distinct = np.array([np.sum(rates == rate) == 1 for rate in rates])
        assert moved[distinct].max(initial=0) <= 1


@settings(deadline=None, max_examples=30)
@given(histories(), histories())
def test_a_restored_allocator_plays_the_same_waves(strategy: str, history: list[Any], later: list[Any]) -> None:
    original, restored = made(strategy, history), kr.BudgetAllocator(strategy)
    restored.load_state_dict(original.state_dict())
    played = []
    for allocator in (original, restored):
        for names, successes, rollouts in later:
            allocator.tell(names, successes, rollouts, features_of(names))
        step = allocator.step(NAMES, features_of(NAMES))
        played.append(np.array(spent(step, np.random.default_rng(2), NAMES, True)).tobytes())
    assert played[0] == played[1]


@settings(deadline=None, max_examples=20)
@given(histories())
def test_beliefs_are_distributions_for_known_and_unknown_prompts(strategy: str, history: list[Any]) -> None:
    allocator = made(strategy, history)
    belief = allocator.belief(NAMES, features_of(NAMES))
    assert np.all(belief.wins > 0)
    assert np.all(belief.losses > 0)
    assert np.all((belief.mean > 0) & (belief.mean < 1))
    assert np.all(np.isfinite(belief.deviation))
    rates, visited = allocator.success_rates(NAMES, features_of(NAMES)), allocator.visited(NAMES)
    assert np.isnan(rates).tolist() == (~visited).tolist()
    assert np.all((rates[visited] >= 0) & (rates[visited] <= 1))


@pytest.mark.parametrize(
    ("names", "successes", "rollouts", "features", "message"),
    [
        (["a"], [3], [2], None, "successes: expected at most rollouts"),
        (["a"], [1, 1], [2, 2], None, "expected one length"),
        (["a", "b"], [1, 1], [2, 2], {"topic": ["x"]}, r"features\['topic'\]: expected one value for each of the 2"),
        (["a"], [1], [2], {"length": [np.nan]}, r"features\['length'\]: expected text, or finite numbers"),
        (["a"], [1], [2], np.zeros((1, 300)), "features: expected at most 256 numbers"),
        (["a"], [1], [2], {"topic": "x"}, r"features\['topic'\]: expected one value"),
        ([1.5], [1], [2], None, "prompt_ids: expected strings or integers"),
    ],
)
def test_bad_input_is_refused_and_teaches_nothing(
    strategy: str, names: Any, successes: Any, rollouts: Any, features: Any, message: str
) -> None:
    allocator = made(strategy, [(NAMES[:4], [1, 2, 0, 4], [4, 4, 4, 4])])
    before = allocator.belief(NAMES, features_of(NAMES)).wins.tobytes()
    with pytest.raises(kr.InvalidInputError, match=message):
        allocator.tell(names, successes, rollouts, features)
    assert allocator.belief(NAMES, features_of(NAMES)).wins.tobytes() == before
    assert not allocator.visited(["a", "b"]).any()


def test_a_step_that_is_given_up_has_taught_nothing(strategy: str) -> None:
    allocator = kr.BudgetAllocator(strategy, group_size=8)
    step = allocator.step(NAMES)
    plan = step.ask()
    if plan.rollouts.sum() < step.remaining:
        step.tell(np.zeros(len(NAMES), dtype=int), plan.rollouts)
    assert not allocator.visited(NAMES).any()


def test_more_results_than_were_asked_for_are_refused(strategy: str) -> None:
    step = kr.BudgetAllocator(strategy).step(NAMES)
    rollouts = step.ask().rollouts
    with pytest.raises(kr.InvalidInputError, match="rollouts: expected at most"):
        step.tell(rollouts, rollouts + 1)
    step.tell(rollouts * 0, rollouts)
