"""min_rollouts=0: a prompt gets none, or two and more; nobody sits out for longer than `revisit` allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import knapsack_rl as kr
from knapsack_rl.belief import Belief
from knapsack_rl.expected_value import expected_value
from knapsack_rl.strategies.base import Prompts, Settings, View

IDS = ["solved", "hopeless", "easy", "medium", "hard", "harder"]


def told(strategy: str = "knapsack", **options: Any) -> kr.BudgetAllocator:
    made = kr.BudgetAllocator(strategy, **{"min_rollouts": 0, **options})
    made.tell(IDS, [8, 0, 6, 4, 2, 1], [8] * 6)
    return made


class TestTheRule:
    def test_solved_and_hopeless_prompts_sit_out_and_the_others_get_their_rollouts(self) -> None:
        rates = [0.0, 1.0, 0.5, 0.3]
        assert kr.allocate(rates, 16, 0, fallback=False).rollouts[:2].tolist() == [0, 0]
        more, less = (kr.allocate(rates, 16, low, fallback=False).value for low in (0, 2))
        assert more > less

    @pytest.mark.parametrize(
        ("rates", "budget", "expected"),
        [
            ([0.5, 0.5, 0.5], 6, [2, 2, 2]),  # 3c for one is worth as much: groups of 2 come first
            ([0.5, 0.5, 0.5], 5, [3, 2, 0]),  # (a): the next unit of the earliest
            ([0.3, 0.3, 0.01], 9, [5, 4, 0]),
            ([0.5, 0.45], 4, [2, 2]),  # not [3, 1]
        ],
    )
    def test_groups_are_whole_and_ties_are_served_by_position(
        self, rates: list[float], budget: int, expected: list[int]
    ) -> None:
        assert kr.allocate(rates, budget, 0).rollouts.tolist() == expected

    def test_a_full_group_gives_one_up_so_that_another_can_open(self) -> None:
        assert kr.allocate([0.3, 0.3], 4, 0, 3).rollouts.tolist() == [2, 2]

    def test_three_go_to_one_where_a_pair_gives_way(self) -> None:
        plan = kr.allocate([0.35, 0.30, 0.001], 5, 0, 3)
        assert plan.rollouts.tolist() == [3, 2, 0]
        assert kr.allocate([0.35, 0.30, 0.34], 5, 0, 3).rollouts.tolist() == [3, 0, 2]

    @pytest.mark.parametrize("mean", [0.5, 1.0, 1.5, 3.0])
    def test_never_visited_prompts_get_the_mean_in_whole_groups(self, mean: float) -> None:
        rollouts = kr.allocate([np.nan] * 10, int(10 * mean), 0).rollouts
        assert rollouts.sum() == int(10 * mean)
        assert set(rollouts.tolist()) <= ({3} if mean == 3.0 else {0, 2, 3})

    def test_the_fallback_spreads_groups(self) -> None:
        plan = kr.allocate([0.0, 0.0, 0.0, 1.0, 0.9], 26, 0)
        assert plan.fallback == 26 - 21  # the need of p = .9
        assert plan.rollouts.tolist() == [3, 2, 0, 0, 21]

    def test_always_solved_prompts_get_nothing_until_the_others_are_full(self) -> None:
        assert kr.allocate([1.0, 0.0, 0.5, np.nan], 24, 0, 8).rollouts.tolist() == [0, 8, 8, 8]
        assert kr.allocate([1.0, 0.0, 0.5, np.nan], 27, 0, 8).rollouts.tolist() == [3, 8, 8, 8]
        assert kr.allocate([1.0, 0.0, 0.5], 17, 0, 8).rollouts.tolist() == [2, 7, 8]

    def test_one_rollout_is_enough_where_a_success_is(self) -> None:
        plan = kr.allocate([0.9, 0.0, 0.5], 3, 0, algorithm="reinforce", fallback=False)
        assert plan.rollouts.tolist() == [0, 0, 3] or plan.rollouts.min() == 0
        assert 1 in kr.allocate([0.5, 0.4], 3, 0, algorithm="reinforce").rollouts

    def test_every_prompt_may_have_a_minimum_of_its_own(self) -> None:
        assert kr.allocate([1.0, 1.0, 0.5], 12, [0, 2, 0]).rollouts.tolist() == [0, 2, 10]
        for low in (1, 2, 3):
            rates = np.random.default_rng(low).random(30)
            at_once, each = (kr.allocate(rates, 200, bound) for bound in (low, np.full(30, low)))
            assert at_once.rollouts.tobytes() == each.rollouts.tobytes()

    @pytest.mark.parametrize(
        ("budget", "low", "high", "message"),
        [
            (1, 0, 8, "cannot have 1 rollouts together, since a prompt that may sit out gets none, or 2 and more"),
            (3, 0, 2, "or raise max_rollouts"),
            (3, [2, 0], 2, "min_rollouts=0 to 2 and max_rollouts=2 cannot have 3"),
            (2, 0, 1, "max_rollouts=1 take at most 0 rollouts"),
            (3, [2, 2], 8, "need at least 4 rollouts, got 3, 1 too few"),
        ],
    )
    def test_a_budget_that_no_groups_add_up_to_is_refused(self, budget: int, low: Any, high: int, message: str) -> None:
        with pytest.raises(kr.InfeasibleBudgetError, match=message):
            kr.allocate([0.5, 0.5], budget, low, high)

    @pytest.mark.parametrize(
        ("low", "message"),
        [
            ([2], "min_rollouts: expected an integer, or one for each of the 2 prompts, got shape"),
            ([2, -1], "min_rollouts: expected counts of 0 or more, got -1 at position 1"),
            ([2, 0.5], "min_rollouts: expected whole numbers"),
            ([2, [9]], "min_rollouts: expected numbers"),
            ([2, 9], "min_rollouts, max_rollouts: expected min <= max, got 9 at position 1 and 8"),
        ],
    )
    def test_minima_that_make_no_sense_are_refused_by_name(self, low: Any, message: str) -> None:
        with pytest.raises(kr.InvalidInputError, match=message):
            kr.allocate([0.5, 0.5], 12, low, 8)

    def test_the_expected_value_of_three_is_one_and_a_half_times_that_of_two(self) -> None:
        random = np.random.default_rng(0)
        belief = Belief(random.gamma(1.0, 3.0, 200) + 0.01, random.gamma(1.0, 3.0, 200) + 0.01)
        for exponents in ((1.0, 2.0), (0.5, 2.0), (0.0, 0.0)):
            two, three = (expected_value(np.full(200, n), belief, exponents) for n in (2, 3))
            assert three == pytest.approx(1.5 * two, rel=1e-9)

    def test_gains_of_a_belief_add_up_to_expected_values(self) -> None:
        allocator = told("adaptive", revisit=None)
        settings = Settings(8, 0, 128, "grpo", True, 0.9, 0)
        prompts = Prompts(
            allocator._prompts(IDS, None).keys, allocator._prompts(IDS, None).features, allocator.estimator
        )
        view = View.before(prompts, settings)
        sums = view.expected_gains((0.5, 2.0))(np.arange(6), 0, 12).cumsum(axis=1)
        for count in (1, 2, 3, 7, 12):
            wanted = expected_value(np.full(6, count), view.belief, (0.5, 2.0))
            assert sums[:, count - 1] == pytest.approx(wanted, abs=1e-12)


class TestRevisits:
    @pytest.mark.parametrize("revisit", [0, 1, 4])
    def test_nobody_sits_out_longer(self, revisit: int) -> None:
        allocator, absent = told(revisit=revisit), np.zeros(6, dtype=int)
        for _ in range(12):
            plan = allocator.ask(IDS).rollouts
            allocator.tell(IDS, plan * [1, 0, 0.5, 0.5, 0.5, 0.5] // 1, plan)
            absent = np.where(plan, 0, absent + 1)
            assert allocator.sitting_out(IDS).tolist() == absent.tolist()
            assert absent.max() <= revisit
            assert allocator.metrics()["sitting_prompts"] == np.count_nonzero(absent)

    def test_without_a_guarantee_a_solved_prompt_never_comes_back(self) -> None:
        allocator = told(revisit=None)
        for visit in range(300):
            plan = allocator.ask(IDS).rollouts
            assert plan[0] == 0
            allocator.tell(IDS, np.minimum(plan, [8, 0, 6, 4, 2, 1]), plan)
            assert allocator.sitting_out(["solved"]).tolist() == [min(visit + 1, 255)]

    def test_a_step_is_a_visit_when_it_ends(self) -> None:
        allocator, found = told(), []
        allocator.on_step = found.append
        step = allocator.step(IDS)
        assert allocator.sitting_out(IDS).tolist() == [0] * 6
        step.tell(np.zeros(6, dtype=int), step.ask().rollouts)
        assert allocator.sitting_out(IDS).tolist() == (step.placed == 0).astype(int).tolist()
        assert found[0]["sitting_out"] == np.mean(step.placed == 0) > 0

    def test_saving_keeps_who_sits_out_in_nine_bytes_a_prompt(self, tmp_path: Path) -> None:
        allocator = told(revisit=1)
        allocator.tell(IDS, [0] * 6, [0, 2, 2, 2, 2, 2])
        allocator.save(tmp_path / "state.npz")
        resumed = kr.BudgetAllocator("knapsack", min_rollouts=0, revisit=1)
        resumed.load(tmp_path / "state.npz")
        assert resumed.sitting_out(IDS).tolist() == [1, 0, 0, 0, 0, 0]
        assert resumed.ask(IDS).rollouts.tobytes() == allocator.ask(IDS).rollouts.tobytes()
        assert resumed.ask(IDS).rollouts[0] == 2
        state = allocator.state_dict()["sitting_out"]
        assert sum(array.nbytes for array in state.values()) == 9
        allocator.copy().tell(["solved"], [1], [2])
        assert allocator.sitting_out(["solved"]).tolist() == [1]

    @pytest.mark.parametrize("damage", [{"visits": [0]}, {"visits": [256]}, {"visits": [1, 1]}, {"keys": [-1]}, None])
    def test_a_damaged_state_is_refused_and_changes_nothing(self, damage: Any) -> None:
        allocator = told()
        allocator.tell(IDS, [0] * 6, [0, 2, 2, 2, 2, 2])
        state = allocator.state_dict()
        state["sitting_out"] = 3 if damage is None else {**state["sitting_out"], **damage}
        with pytest.raises(kr.StateError, match="state: expected"):
            allocator.load_state_dict(state)
        assert allocator.sitting_out(IDS).tolist() == [1, 0, 0, 0, 0, 0]

    def test_a_minimum_above_0_counts_nobody(self) -> None:
        allocator = kr.BudgetAllocator()
        allocator.tell(IDS, [0] * 6, [0] * 6)
        assert allocator.sitting_out(IDS).tolist() == [0] * 6
        assert "sitting_out" not in allocator.state_dict()
        assert "sitting_prompts" not in allocator.metrics()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"revisit": 3}, "revisit: nobody sits out with min_rollouts=2, got revisit=3"),
            ({"min_rollouts": 0, "revisit": -1}, "revisit: expected an integer of at least 0, got -1"),
            ({"min_rollouts": 0, "revisit": 2.5}, "revisit: expected an integer"),
            ({"min_rollouts": 0, "revisit": 256}, "revisit: expected at most 255 visits"),
            ({"min_rollouts": 0, "group_size": 1}, "revisit: a step of 1 rollouts a prompt cannot give"),
        ],
    )
    def test_a_guarantee_that_cannot_be_given_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(kr.KnapsackError, match=message):
            kr.BudgetAllocator(**options)

    def test_a_budget_too_small_for_those_who_are_due_is_refused(self) -> None:
        allocator = told(revisit=0)
        with pytest.raises(kr.InfeasibleBudgetError, match="6 prompts with min_rollouts=2 need at least 12"):
            allocator.ask(IDS, budget=8)
        assert told(revisit=None).ask(IDS, budget=8).rollouts.sum() == 8


class TestStrategies:
    @pytest.mark.parametrize("strategy", kr.strategies())
    def test_a_mean_below_two_leaves_some_out(self, strategy: str) -> None:
        allocator = kr.BudgetAllocator(strategy, group_size=1, min_rollouts=0, max_rollouts=8, revisit=None)
        for ids in (IDS, [*IDS, "new"]):
            step = allocator.step(ids)
            while step.remaining:
                plan = step.ask().rollouts
                step.tell(plan // 2, plan)
            assert step.placed.sum() == len(ids)
            assert not (step.placed == 1).any()

    def test_uniform_is_even_in_groups_of_two_and_more(self) -> None:
        ask = kr.BudgetAllocator("uniform", min_rollouts=0, revisit=None).ask
        assert ask(IDS).rollouts.tolist() == [8] * 6
        assert ask(IDS, budget=7).rollouts.tolist() == [3, 2, 2, 0, 0, 0]

    def test_the_first_wave_of_adaptive_leaves_out_who_is_surely_solved_or_hopeless(self) -> None:
        allocator = kr.BudgetAllocator("adaptive", min_rollouts=0)
        names = [*(f"solved {i}" for i in range(20)), *(f"open {i}" for i in range(20))]
        for _ in range(6):
            allocator.tell(names, [16] * 20 + [6] * 20, [16] * 40)
        step = allocator.step(names)
        first = step.ask().rollouts
        assert first.sum() == 2 * 40
        assert not first[:20].any()
        assert first[20:].min() >= 2

    @pytest.mark.parametrize("slots", [1, 2, 3, 7, 1000])
    def test_rollouts_that_are_placed_one_by_one_make_whole_groups(self, slots: int) -> None:
        allocator = told("adaptive", group_size=4, max_rollouts=5)
        step = allocator.step(IDS)
        while step.remaining:
            step.place(slots - int(step.in_flight.sum()))
            back = np.minimum(step.in_flight, 1)
            step.report(back, back)
        assert step.placed.sum() == 24
        assert not (step.placed == 1).any()
