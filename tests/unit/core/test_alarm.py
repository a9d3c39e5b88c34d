from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl import Belief, InvalidInputError, StateError
from knapsack_rl.alarm import Alarm, Finding

KINDS = ("algebra", "geometry", "logic")


def steps(alarm: Alarm, rates: dict[str, float], number: int, seed: int = 0, new: bool = True) -> list[Finding]:
    """So many steps of ten prompts of each category, with eight rollouts each."""
    generator = np.random.default_rng(seed)
    names = [name for name in rates for _ in range(10)]
    true = np.array([rates[name] for name in names])
    found = []
    for _ in range(number):
        belief = Belief(8.0 * true + 0.5, 8.0 * (1.0 - true) + 0.5)
        won = generator.binomial(8, true)
        visited = np.full(len(names), not new)
        found += alarm.observe(won, np.full(len(names), 8), {"source": names}, visited=visited, belief=belief)
    return found


def healthy(alarm: Alarm, new: bool = True) -> list[Finding]:
    return steps(alarm, {"algebra": 0.3, "geometry": 0.4, "logic": 0.5}, 20, new=new)


def test_nothing_is_said_of_categories_that_go_on_as_before() -> None:
    assert healthy(Alarm()) == []


@pytest.mark.parametrize(("rate", "kind"), [(0.0, "stopped succeeding"), (1.0, "stopped failing")])
def test_a_category_whose_outcomes_become_all_the_same_at_once_is_said_once(rate: float, kind: str) -> None:
    alarm = Alarm()
    healthy(alarm)
    found = steps(alarm, {"algebra": 0.3, "geometry": rate, "logic": 0.5}, 5)
    assert [(one.column, one.category, one.kind) for one in found] == [("source", "geometry", kind)]
    assert all(10 <= prompt < 20 for prompt in found[0].prompts)
    assert alarm.metrics()["alarms"] == 1.0


def test_once_it_succeeds_again_the_alarm_is_over_and_can_be_raised_again() -> None:
    alarm = Alarm()
    healthy(alarm)
    broken = {"algebra": 0.3, "geometry": 0.0, "logic": 0.5}
    assert len(steps(alarm, broken, 5)) == 1
    healthy(alarm)
    assert alarm.metrics()["alarms"] == 0.0
    assert len(steps(alarm, broken, 5)) == 1


def test_beliefs_that_expected_no_success_are_not_surprised_by_none() -> None:
    hopeless, alarm = Belief(np.full(10, 0.01), np.full(10, 8.0)), Alarm()
    groups, kind = np.full(10, 8), {"source": ["hard"] * 10}
    alarm.observe([1] + [0] * 9, groups, kind, visited=np.ones(10), belief=hopeless)  # it can succeed
    for _ in range(100):
        assert not alarm.observe(np.zeros(10, int), groups, kind, visited=np.ones(10), belief=hopeless)


def test_the_surprise_of_a_visited_group_is_the_beta_binomial_of_its_belief() -> None:
    alarm, belief = Alarm(), Belief(np.array([2.0]), np.array([3.0]))
    alarm.observe([1], [4], {}, visited=[True], belief=belief)
    alarm.observe([0], [4], {}, visited=[True], belief=belief)
    chance = np.prod([(3.0 + k) / (5.0 + k) for k in range(4)])  # of four failures in a row under Beta(2, 3)
    assert alarm.state_dict()[""][""]["success"]["surprise"] == pytest.approx(-np.log(chance))


@pytest.mark.parametrize(("rate", "kind"), [(0.0, "never succeeds"), (1.0, "never fails")])
def test_a_category_that_was_always_the_same_is_said_once_others_are_not(rate: float, kind: str) -> None:
    found = steps(Alarm(), {"algebra": 0.3, "geometry": rate, "logic": 0.5}, 20)
    assert [(one.category, one.kind) for one in found] == [("geometry", kind)]


def test_rewards_that_stop_differing_are_said_though_some_count_as_successes() -> None:
    alarm, names = Alarm(), ["format"] * 10
    for _ in range(10):
        alarm.observe([8] * 5 + [0] * 5, [8] * 10, {"source": names}, varied=[True] * 8 + [False] * 2)
    found = []
    for _ in range(10):
        found += alarm.observe([8] * 5 + [0] * 5, [8] * 10, {"source": names}, varied=[False] * 10)
    assert {(one.column, one.kind) for one in found} == {("", "stopped varying"), ("source", "stopped varying")}


def test_a_category_that_spends_ever_more_in_vain_is_said_once() -> None:
    alarm, kinds, found = Alarm(), {"source": ["a", "b"]}, []
    for _ in range(20):
        found += alarm.observe([2, 1], [14, 2], kinds, live=[14, 0])
    assert not found
    for _ in range(60):
        found += alarm.observe([2, 0], [8, 8], kinds, live=[8, 0])
    assert [(one.category, one.kind) for one in found if one.kind == "spends in vain"] == [("b", "spends in vain")]


def test_metrics_are_of_the_newest_step_by_category() -> None:
    alarm = Alarm()
    alarm.observe([1, 0, 4], [4, 4, 4], {"source": ["a", "a", "b"]})
    assert alarm.metrics() == {
        "category/source/a/success": 1 / 8,
        "category/source/a/rollouts": 2 / 3,
        "category/source/a/effective_gradient_ratio": 1 / 2,
        "category/source/b/success": 1.0,
        "category/source/b/rollouts": 1 / 3,
        "category/source/b/effective_gradient_ratio": 0.0,
        "alarms": 0.0,
    }


def test_a_column_that_tells_prompts_apart_is_no_category() -> None:
    alarm = Alarm()
    for step in range(25):
        names = [f"{step}-{prompt}" for prompt in range(50)]
        assert not alarm.observe(np.zeros(50, int), np.full(50, 8), {"id": names})
    assert len(alarm.state_dict()["id"]) <= 1000


@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.booleans())
def test_what_is_restored_from_its_state_goes_on_as_before(before: int, after: int, seed: int, new: bool) -> None:
    rates = {"algebra": 0.1, "geometry": 0.0, "logic": 0.9}
    alarm, resumed = Alarm(), Alarm()
    steps(alarm, {**rates, "geometry": 0.4}, 5, seed)
    steps(alarm, rates, before % 8, seed)
    resumed.load_state_dict(json.loads(json.dumps(alarm.state_dict())))
    assert steps(resumed, rates, after % 8, seed + 1, new) == steps(alarm, rates, after % 8, seed + 1, new)
    assert resumed.state_dict() == alarm.state_dict()


@pytest.mark.parametrize(
    "state",
    [
        [],
        {"source": 3},
        {"source": {"a": {}}},
        {"source": {"a": {"success": {"share": -1.0}}}},
    ],
)
def test_a_state_that_is_none_is_refused_and_changes_nothing(state: object) -> None:
    alarm = Alarm()
    healthy(alarm)
    before = alarm.state_dict()
    with pytest.raises(StateError, match=r"state: expected the alarm's"):
        alarm.load_state_dict(state)  # type: ignore[arg-type]
    assert alarm.state_dict() == before


def test_columns_of_another_length_are_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match=r"source: expected one entry for each of the 2 prompts, got 1"):
        Alarm().observe([1, 0], [2, 2], {"source": ["a"]})
