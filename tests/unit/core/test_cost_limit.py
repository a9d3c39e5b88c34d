"""A limit on what a step is expected to cost: learned costs, and strategies that keep to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import knapsack_rl as kr
from knapsack_rl.estimators import RecentRewards
from knapsack_rl.strategies import base
from knapsack_rl.testing import check_strategy

IDS = [f"prompt {number}" for number in range(24)]
COSTS = np.where(np.arange(24) % 3, 10.0, 200.0)  # of one rollout
RATES = np.array([0.1, 0.3, 0.5, 0.9] * 6)


def allocator(strategy: Any = "knapsack", *, told: bool = True, **options: Any) -> kr.BudgetAllocator:
    """One that has seen every prompt once, sixteen rollouts each, and maybe their costs."""
    made = kr.BudgetAllocator(strategy, **options)
    tried = np.full(24, 16)
    costs, truncated = (COSTS * tried, np.arange(24) % 17) if told else (None, None)
    made.tell(IDS, np.round(RATES * 16).astype(int), tried, costs=costs, truncated=truncated)
    return made


@pytest.mark.parametrize("strategy", kr.strategies())
def test_without_a_limit_costs_change_no_plan(strategy: str) -> None:
    with_costs, without = allocator(strategy), allocator(strategy, told=False)
    assert with_costs.ask(IDS).rollouts.tobytes() == without.ask(IDS).rollouts.tobytes()


@pytest.mark.parametrize("strategy", kr.strategies())
def test_a_limit_without_costs_changes_no_plan(strategy: str) -> None:
    limited, unlimited = allocator(strategy, told=False, cost_limit=1.0), allocator(strategy, told=False)
    assert limited.ask(IDS).rollouts.tolist() == unlimited.ask(IDS).rollouts.tolist()


@pytest.mark.parametrize("limit", [1.0, 1.1])
@pytest.mark.parametrize("strategy", kr.strategies())
def test_a_step_costs_at_most_the_limit_times_what_even_groups_would(strategy: str, limit: float) -> None:
    limited = allocator(strategy, cost_limit=limit)
    costs = limited.expected_costs(IDS)
    plan = limited.ask(IDS)
    assert plan.rollouts.sum() == 8 * 24
    assert costs @ plan.rollouts <= limit * 8 * costs.sum() * (1 + 1e-8)
    assert plan.cost == pytest.approx(costs @ plan.rollouts)


@pytest.mark.parametrize("strategy", kr.strategies())
def test_a_step_placed_rollout_by_rollout_keeps_to_the_limit(strategy: str) -> None:
    limited, rng = allocator(strategy, cost_limit=1.0), np.random.default_rng(0)
    costs, step = limited.expected_costs(IDS), limited.step(IDS)
    while step.remaining:
        step.place(int(rng.integers(0, 40)))
        back = rng.binomial(step.in_flight, 0.7) if rng.random() < 0.9 else step.in_flight
        step.report(rng.binomial(back, RATES), back, costs=back * COSTS)
    assert step.placed.sum() == 8 * 24
    assert costs @ step.placed <= 8 * costs.sum() * (1 + 1e-8)


@pytest.mark.parametrize(
    "strategy", ["adaptive", "cautious", "measured", "adaptive-learnability", "knapsack-discounted"]
)
def test_without_a_maximum_a_step_looks_at_no_more_rollouts_of_a_prompt_than_it_places(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prices are found among all rollouts that there is room for: of 2^31 - 1 each no memory holds the gains."""
    solve, rooms = base.largest_gains_in_groups_within_cost, []

    def watched(gains: Any, costs: Any, room: Any, *others: Any) -> Any:
        assert room.max() <= 50 * 8
        rooms.append(room)
        return solve(gains, costs, room, *others)

    monkeypatch.setattr(base, "largest_gains_in_groups_within_cost", watched)
    random, ids = np.random.default_rng(0), list(range(50))
    rates = random.random(50)
    prices = np.where(rates < 0.5, 10.0, 1.0)  # what is worth most is dear
    unlimited = kr.BudgetAllocator(strategy, max_rollouts=2**31 - 1, cost_limit=1.0)
    if strategy == "cautious":
        unlimited.estimator.hard_gain = True  # type: ignore[attr-defined]
    for _ in range(4):
        step = unlimited.step(ids)
        while step.remaining:
            rollouts = step.ask().rollouts
            step.tell(random.binomial(rollouts, rates), rollouts, costs=rollouts * prices)
        assert step.placed.sum() == 50 * 8
    assert rooms


def due(strategy: Any, **options: Any) -> kr.BudgetAllocator:
    """One to which `a`, a hundred times as dear as the seven others, has sat out as often as it may."""
    options = {"min_rollouts": 0, "revisit": 1, "cost_limit": 1.0} | options
    made = kr.BudgetAllocator(strategy, 4, **options)
    made.tell(list("abcdefgh"), [1] * 8, [2] * 8, costs=[200.0] + [2.0] * 7)
    made.tell(list("abcdefgh"), [0] + [1] * 7, [0] + [2] * 7)
    return made


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 31])
@pytest.mark.parametrize("strategy", kr.strategies())
def test_a_dear_prompt_that_is_due_is_paid_for_by_the_rollouts_after_it(strategy: str, slots: int) -> None:
    allocator = due(strategy)
    step, rng = allocator.step(list("abcdefgh")), np.random.default_rng(0)
    costs = step.expected_costs
    while step.remaining:
        step.place(slots)
        step.report(rng.binomial(step.in_flight, 0.5), step.in_flight, costs=step.in_flight * 2.0)
    assert costs is not None
    assert step.placed.sum() == 32
    assert step.placed[0] >= 2
    assert costs @ step.placed <= 4 * costs.sum() * (1 + 1e-8)


def test_a_wave_that_does_not_pay_for_who_is_due_takes_all_that_is_left() -> None:
    three = kr.Strategy(lambda: RecentRewards(0), base.uniform, lambda number, prompts, left, settings: 3, name="three")
    assert due(three).step(list("abcdefgh")).ask().rollouts.tolist() == [4] * 8


@pytest.mark.parametrize("strategy", kr.strategies())
def test_a_budget_that_does_not_pay_for_who_is_due_is_refused_with_what_can_be_changed(strategy: str) -> None:
    message = (
        r"budget, cost_limit, revisit: 2 of 8 rollouts go to prompts that have sat out revisit=1 visits\. With them "
        r"the step costs at least 140, and cost_limit=1 allows 107\. Raise the budget or cost_limit, or pass a larger"
    )
    for call in ("ask", "step"):
        with pytest.raises(kr.InfeasibleBudgetError, match=message):
            getattr(due(strategy), call)(list("abcdefgh"), budget=8)
        getattr(due(strategy, revisit=None), call)(list("abcdefgh"), budget=8)
        getattr(due(strategy, cost_limit=1.5), call)(list("abcdefgh"), budget=8)


@pytest.mark.parametrize("strategy", kr.strategies())
def test_a_budget_of_nothing_costs_nothing(strategy: str) -> None:
    assert not allocator(strategy, min_rollouts=0, cost_limit=1.0).ask(IDS, budget=0).rollouts.any()


def test_of_equally_promising_prompts_the_dear_ones_get_fewer_rollouts() -> None:
    rollouts = allocator("adaptive", cost_limit=1.0).ask(IDS).rollouts
    for rate in (0.1, 0.3, 0.5):
        alike = rate == RATES
        assert rollouts[alike & (COSTS == 200)].mean() <= rollouts[alike & (COSTS == 10)].mean()


def test_the_costs_of_all_waves_of_a_step_are_one_visit() -> None:
    in_waves, at_once = kr.BudgetAllocator("adaptive"), kr.BudgetAllocator("adaptive")
    step = in_waves.step(IDS)
    while step.remaining:
        rollouts = step.ask().rollouts
        step.tell(np.zeros(24), rollouts, costs=rollouts * COSTS)
    assert step.spent.tolist() == (step.placed * COSTS).tolist()
    at_once.tell(IDS, np.zeros(24), step.placed, costs=step.placed * COSTS)
    assert in_waves.expected_costs(IDS).tolist() == at_once.expected_costs(IDS).tolist()


def test_waves_whose_costs_were_not_told_do_not_count_as_free() -> None:
    made = kr.BudgetAllocator("adaptive")
    step = made.step(IDS)
    while step.remaining:
        rollouts = step.ask().rollouts
        step.tell(np.zeros(24), rollouts, costs=None if step.placed.any() else rollouts * 7.0)
    assert made.expected_costs(IDS) == pytest.approx(np.full(24, 7.0))


def test_what_costs_are_told_of_rollouts_that_failed_counts_too() -> None:
    made = kr.BudgetAllocator("uniform")
    step = made.step(["a"])
    step.place(8)
    step.report([0], [4], failed=[4], costs=[80.0])
    assert made.expected_costs(["a"]).tolist() == [10.0]


def test_the_truncated_rollouts_of_all_waves_of_a_step_are_one_visit() -> None:
    in_waves, at_once = kr.BudgetAllocator("adaptive"), kr.BudgetAllocator("adaptive")
    step, cut = in_waves.step(IDS), np.zeros(24, dtype=int)
    while step.remaining:
        rollouts = step.ask().rollouts
        step.tell(np.zeros(24), rollouts, costs=rollouts * COSTS, truncated=rollouts // 2)
        cut += rollouts // 2
    at_once.tell(IDS, np.zeros(24), step.placed, costs=step.placed * COSTS, truncated=cut)
    assert in_waves.truncation_rates(IDS).tolist() == at_once.truncation_rates(IDS).tolist()
    assert in_waves.truncation_rates(IDS).max() > 0.2


def test_rollouts_that_failed_may_be_truncated_too() -> None:
    made = kr.BudgetAllocator("uniform")
    step = made.step(["a"])
    step.place(8)
    step.report([0], [4], failed=[4], costs=[80.0], truncated=[8])
    assert made.truncation_rates(["a", "new"]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("truncated", "costs", "message"),
    [
        ([3, 0], [1.0, 1.0], "truncated: expected at most the 2 rollouts that came back, got 3 at position 0"),
        ([1], [1.0, 1.0], "truncated: expected one number for each of the 2 prompts"),
        ([-1, 0], [1.0, 1.0], "truncated: expected counts of 0 or more"),
        ([1, 0], None, "truncated: expected it together with the costs"),
    ],
)
def test_truncated_rollouts_that_make_no_sense_are_refused_and_nothing_is_learned(
    truncated: Any, costs: Any, message: str
) -> None:
    made = kr.BudgetAllocator("uniform", group_size=2)
    with pytest.raises(kr.InvalidInputError, match=message):
        made.tell(["a", "b"], [1, 1], [2, 2], costs=costs, truncated=truncated)
    assert not made.visited(["a", "b"]).any()
    step = made.step(["a", "b"])
    plan = step.ask()
    with pytest.raises(kr.InvalidInputError, match=message):
        step.tell([0, 0], plan.rollouts, costs=costs, truncated=truncated)
    assert step.remaining == 4


def test_a_saved_state_has_the_costs(tmp_path: Path) -> None:
    original = allocator(cost_limit=1.0)
    original.save(tmp_path / "state.npz")
    from_file, from_state = (kr.BudgetAllocator("knapsack", cost_limit=1.0) for _ in range(2))
    from_file.load(tmp_path / "state.npz")
    from_state.load_state_dict(original.state_dict())
    for restored in (from_file, from_state):
        assert restored.expected_costs([*IDS, "new"]).tolist() == original.expected_costs([*IDS, "new"]).tolist()
        assert restored.ask(IDS).rollouts.tolist() == original.ask(IDS).rollouts.tolist()
        assert restored.truncation_rates(IDS).tolist() == original.truncation_rates(IDS).tolist()


def test_a_state_without_costs_forgets_those_there_were() -> None:
    made = allocator()
    made.load_state_dict(allocator(told=False).state_dict())
    assert made.expected_costs(IDS).tolist() == [1.0] * 24
    assert "costs" not in made.state_dict()


def test_damaged_costs_of_a_state_are_refused_and_change_nothing() -> None:
    made = allocator()
    before, state = made.expected_costs(IDS).tolist(), allocator().state_dict()
    for damaged in (3, {}, state["costs"] | {"cost": -state["costs"]["cost"]}):
        with pytest.raises(kr.StateError, match="state: expected"):
            made.load_state_dict(state | {"costs": damaged})
    assert made.expected_costs(IDS).tolist() == before


def test_a_copy_learns_costs_by_itself() -> None:
    made = allocator()
    before, twin = made.expected_costs(IDS).tolist(), made.copy()
    twin.tell(IDS, np.zeros(24), np.full(24, 8), costs=np.full(24, 1e6))
    assert made.expected_costs(IDS).tolist() == before
    assert twin.expected_costs(IDS).min() > 1000


def careless(view: kr.View[Any], amount: int) -> kr.Plan:
    """The paper's rule, whatever the rollouts cost."""
    return kr.allocate(view.rates, amount, view.least, view.settings.max_rollouts, algorithm=view.settings.algorithm)


def test_a_rule_that_spends_more_than_the_limit_is_refused_by_name() -> None:
    own = kr.Strategy(lambda: RecentRewards(0), careless)
    with pytest.raises(kr.InvalidInputError, match="strategy: expected the rule of 'careless' to place rollouts for"):
        allocator(own, cost_limit=1.0).ask([*IDS[:4], *IDS[9:13]], budget=64)
    with pytest.raises(AssertionError, match="the expected cost of a step stays within its limit"):
        check_strategy(own)


@pytest.mark.parametrize(("limit", "message"), [(0.5, "cost_limit: expected 1 or more"), ("1", "cost_limit: expected")])
def test_a_limit_that_even_groups_exceed_is_refused(limit: Any, message: str) -> None:
    with pytest.raises(kr.InvalidInputError, match=message):
        kr.BudgetAllocator(cost_limit=limit)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.one_of(st.floats(1e-30, 1e30), st.just(1e-30))),
        min_size=1,
        max_size=40,
    )
)
@example([("a", 1, 1e30)] * 5)
@example([("a", 2**31 - 1, 1e-30)] + [("b", 1, 1e30)] * 3)
def test_whatever_costs_may_be_told_are_expected_saved_and_loaded(visits: list[tuple[str, int, float]]) -> None:
    told, loaded = kr.BudgetAllocator("uniform"), kr.BudgetAllocator("uniform")
    for name, tried, cost in visits:
        told.tell([name], [0], [tried], costs=[cost])
    expected = told.expected_costs(list("abcd"))
    each = [cost / tried for _, tried, cost in visits]
    assert (expected >= min(each) * (1 - 1e-6)).all()
    assert (expected <= max(each) * (1 + 1e-6)).all()
    loaded.load_state_dict(told.state_dict())
    assert loaded.expected_costs(list("abcd")).tolist() == expected.tolist()


@pytest.mark.parametrize("costs", [[1.0], [-1.0, 2.0], [np.nan, 1.0], ["a", "b"], [1e39, 1.0], [1e-46, 1.0]])
def test_costs_that_make_no_sense_are_refused_and_nothing_is_learned(costs: Any) -> None:
    made = kr.BudgetAllocator("uniform")
    with pytest.raises(kr.InvalidInputError, match="costs: expected"):
        made.tell(["a", "b"], [1, 1], [2, 2], costs=costs)
    assert not made.visited(["a", "b"]).any()
    step = made.step(["a", "b"])
    plan = step.ask()
    with pytest.raises(kr.InvalidInputError, match="costs: expected"):
        step.tell([0, 0], plan.rollouts, costs=costs)
    assert step.remaining == 16
