"""Ask and tell, steps in waves, and state that survives on disk."""

from __future__ import annotations

import json
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import knapsack_rl as kr
from knapsack_rl import identity
from knapsack_rl.estimators import DiscountedBeta, RecentRewards, Regression, TransitionTable
from knapsack_rl.strategies import STRATEGIES

LEARNERS = (DiscountedBeta, Regression, TransitionTable)
IDS = [f"prompt {i}" for i in range(12)]
ALL_STRATEGIES = pytest.mark.parametrize("strategy", kr.strategies())
LEARNED = [name for name in kr.strategies() if isinstance(STRATEGIES[name].estimator(), LEARNERS)]
"""Strategies whose belief about a prompt also comes from others."""
LAST_VISIT = pytest.mark.parametrize("strategy", [name for name in kr.strategies() if name not in LEARNED])
"""Strategies that believe what the last visit showed."""
ONE_SHOT = [name for name in kr.strategies() if not STRATEGIES[name].in_waves]


def trained(strategy: str = "knapsack", visits: int = 3, **options) -> kr.BudgetAllocator:
    """An allocator that has seen most of IDS a few times."""
    allocator = kr.BudgetAllocator(strategy, **options)
    rng = np.random.default_rng(0)
    for _ in range(visits):
        rollouts = rng.integers(1, 20, len(IDS) - 2)
        allocator.tell(IDS[:-2], rng.binomial(rollouts, np.linspace(0, 1, len(IDS) - 2)), rollouts)
    return allocator


class TestAsk:
    @ALL_STRATEGIES
    def test_a_first_epoch_is_uniform(self, strategy: str) -> None:
        plan = kr.BudgetAllocator(strategy, group_size=5).ask(IDS)
        assert plan.rollouts.tolist() == [5] * len(IDS)
        assert plan.rollouts.dtype == np.int64

    @ALL_STRATEGIES
    def test_the_budget_is_spent_exactly(self, strategy: str) -> None:
        allocator = trained(strategy)
        for count in range(len(IDS) + 1):
            assert allocator.ask(IDS[:count]).rollouts.sum() == count * 8

    def test_uniform_stays_uniform_whatever_it_is_told(self) -> None:
        assert trained("uniform").ask(IDS).rollouts.tolist() == [8] * len(IDS)

    def test_uniform_reports_the_value_that_its_plan_has(self) -> None:
        allocator = trained("uniform")
        expected = np.nansum(kr.value(np.full(len(IDS), 8), allocator.success_rates(IDS)))
        assert allocator.ask(IDS).value == pytest.approx(expected)

    @pytest.mark.parametrize("strategy", ["knapsack", "knapsack-window"])
    def test_a_plan_is_the_papers_rule_on_the_believed_rates(self, strategy: str) -> None:
        options = {
            "min_rollouts": 3,
            "max_rollouts": 20,
            "fallback": False,
            "confidence": 0.8,
            "algorithm": "reinforce",
        }
        allocator = trained(strategy, group_size=6, **options)
        expected = kr.allocate(allocator.success_rates(IDS), 6 * len(IDS), **options)
        plan = allocator.ask(IDS)
        assert plan.rollouts.tolist() == expected.rollouts.tolist()
        assert (plan.value, plan.fallback) == (expected.value, expected.fallback)

    @ALL_STRATEGIES
    def test_asking_changes_nothing(self, strategy: str) -> None:
        allocator = trained(strategy)
        before = allocator.state_dict()["estimator"]
        plans = [allocator.ask([*IDS, "someone new"]).rollouts.tolist() for _ in range(3)]
        after = allocator.state_dict()["estimator"]
        assert plans[0] == plans[1] == plans[2]
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])
        assert np.isnan(allocator.success_rates(["someone new"])).all()

    def test_the_seed_does_not_change_a_plan(self) -> None:
        assert trained(seed=0).ask(IDS).rollouts.tolist() == trained(seed=1).ask(IDS).rollouts.tolist()

    def test_a_prompt_twice_in_a_batch_gets_two_plans(self) -> None:
        allocator = trained()
        plan = allocator.ask([IDS[3], IDS[3], IDS[5]])
        assert plan.rollouts.shape == (3,)
        assert plan.rollouts.sum() == 24

    def test_ids_may_come_from_any_iterable(self) -> None:
        allocator = trained()
        expected = allocator.ask(IDS).rollouts.tolist()
        for ids in (tuple(IDS), np.array(IDS), np.array(IDS, dtype=object), iter(IDS), dict.fromkeys(IDS)):
            assert allocator.ask(ids).rollouts.tolist() == expected

    def test_integers_of_every_width_are_the_same_id(self) -> None:
        allocator = kr.BudgetAllocator()
        allocator.tell(np.arange(3), [0, 1, 2], [4, 4, 4])
        assert allocator.success_rates([0, np.int8(1), np.uint64(2)]).tolist() == [0.0, 0.25, 0.5]

    @pytest.mark.parametrize("ids", ["abc", b"abc", None, 5, [b"a"], [1.0], [None], [["a"]], [np.bool_(True)]])
    def test_what_is_no_sequence_of_ids_is_refused_by_name(self, ids) -> None:
        allocator = kr.BudgetAllocator()
        for call in (
            lambda: allocator.ask(ids),
            lambda: allocator.success_rates(ids),
            lambda: allocator.tell(ids, [1], [1]),
            lambda: allocator.step(ids).ask(),
        ):
            with pytest.raises(kr.InvalidInputError, match="prompt_ids: expected"):
                call()


class TestTell:
    @ALL_STRATEGIES
    def test_order_within_a_call_does_not_matter(self, strategy: str) -> None:
        forward, backward = kr.BudgetAllocator(strategy), kr.BudgetAllocator(strategy)
        won, tried = np.arange(12) % 5, np.full(12, 5)
        forward.tell(IDS, won, tried)
        backward.tell(IDS[::-1], won[::-1], tried)
        np.testing.assert_array_equal(forward.success_rates(IDS), backward.success_rates(IDS))

    @LAST_VISIT
    def test_a_subset_changes_only_its_own_prompts(self, strategy: str) -> None:
        allocator = trained(strategy)
        before = allocator.success_rates(IDS)
        allocator.tell(IDS[4:6], [16, 0], [16, 16])
        after = allocator.success_rates(IDS)
        assert after[4:6].tolist() == [1.0, 0.0]
        np.testing.assert_array_equal(np.delete(before, [4, 5]), np.delete(after, [4, 5]))

    @LAST_VISIT
    def test_the_counts_of_a_prompt_twice_in_a_call_are_added_up(self, strategy: str) -> None:
        allocator = kr.BudgetAllocator(strategy)
        allocator.tell(["a", "b", "a"], [1, 0, 3], [4, 4, 4])
        assert allocator.success_rates(["a", "b"]).tolist() == [0.5, 0.0]

    @pytest.mark.parametrize("strategy", LEARNED)
    def test_a_learned_belief_follows_a_prompts_outcomes_and_stays_between_certainties(self, strategy: str) -> None:
        allocator = kr.BudgetAllocator(strategy)
        for _ in range(40):
            allocator.tell(IDS[:3], [0, 4, 8], [8, 8, 8])
        wrong, mixed, right = allocator.success_rates(IDS[:3]).tolist()
        assert 0.0 < wrong < 0.25 < mixed < 0.75 < right < 1.0

    @pytest.mark.parametrize("strategy", LEARNED)
    def test_the_parts_of_a_visit_teach_a_learned_belief_what_the_whole_does(self, strategy: str) -> None:
        parts, whole = kr.BudgetAllocator(strategy), kr.BudgetAllocator(strategy)
        parts.tell(["a", "b", "a"], [1, 0, 3], [4, 4, 4])
        whole.tell(["b", "a"], [0, 4], [4, 8])
        ids = ["a", "b", "someone new"]
        assert parts.belief(ids).wins.tolist() == whole.belief(ids).wins.tolist()
        assert parts.belief(ids).losses.tolist() == whole.belief(ids).losses.tolist()

    def test_late_and_overlapping_batches_are_visits_in_the_order_of_their_arrival(self) -> None:
        allocator = kr.BudgetAllocator()
        first, second = allocator.ask(["a", "b"]), allocator.ask(["b", "c"])
        allocator.tell(["b", "c"], [2, 4], second.rollouts)
        allocator.tell(["a", "b"], [0, 8], first.rollouts)
        assert allocator.success_rates(["a", "b", "c"]).tolist() == [0.0, 1.0, 0.5]

    @ALL_STRATEGIES
    def test_no_scored_rollouts_are_no_visit(self, strategy: str) -> None:
        allocator = kr.BudgetAllocator(strategy)
        allocator.tell(["a", "b"], [0, 1], [0, 2])
        assert allocator.visited(["a", "b"]).tolist() == [False, True]
        np.testing.assert_array_equal(np.isnan(allocator.success_rates(["a", "b"])), [True, False])
        allocator.tell([], [], [])
        assert allocator.metrics()["known_prompts"] == 1.0

    @pytest.mark.parametrize(
        ("successes", "rollouts", "message"),
        [
            ([3], [2], "successes: expected at most rollouts, got 3 successes of 2 rollouts at position 0"),
            ([-1], [2], "successes: expected counts of 0 or more, got -1 at position 0"),
            ([0.5], [2], "successes: expected whole numbers"),
            ([np.nan], [2], "successes: expected whole numbers"),
            ([0], [np.inf], "rollouts: expected whole numbers"),
            (["1"], [2], "successes: expected numbers"),
            ([1], [[2]], r"successes, rollouts: expected two vectors .*\(1,\) and \(1, 1\)"),
            ([1, 1], [2], "successes, rollouts: expected two vectors of the same length"),
            (1, 2, "successes, rollouts: expected two vectors"),
            ([1, 1], [2, 2], "prompt_ids, successes, rollouts: expected one length, got 1 ids and 2 counts"),
        ],
    )
    def test_impossible_counts_are_refused_and_nothing_is_learned(self, successes, rollouts, message: str) -> None:
        allocator = kr.BudgetAllocator()
        allocator.tell(["a"], [1], [4])
        with pytest.raises(kr.InvalidInputError, match=message):
            allocator.tell(["a"], successes, rollouts)
        assert allocator.success_rates(["a"]) == 0.25

    def test_whole_numbers_may_come_as_floats_and_booleans(self) -> None:
        allocator = kr.BudgetAllocator()
        allocator.tell(["a", "b"], np.float32([1.0, 2.0]), [4.0, 4.0])
        allocator.tell(["c"], [True], [1])
        assert allocator.success_rates(["a", "b", "c"]).tolist() == [0.25, 0.5, 1.0]


class TestMetrics:
    def test_before_anything_is_known(self) -> None:
        assert kr.BudgetAllocator().metrics() == {"known_prompts": 0.0}

    def test_shares_are_over_the_known_prompts(self) -> None:
        allocator = kr.BudgetAllocator()
        allocator.tell(["a", "b", "c", "d"], [0, 0, 2, 4], [4, 4, 4, 4])
        metrics = allocator.metrics()
        assert metrics == {
            "known_prompts": 4.0, "mean_success_rate": 0.375, "never_solved": 0.5, "always_solved": 0.25,
        }  # fmt: skip
        assert all(type(number) is float for number in metrics.values())


class TestStep:
    @pytest.mark.parametrize("strategy", ONE_SHOT)
    def test_one_wave_places_the_whole_budget(self, strategy: str) -> None:
        allocator, told_directly = trained(strategy), trained(strategy)
        expected = allocator.ask(IDS).rollouts.tolist()
        step = allocator.step(IDS)
        assert step.remaining == 8 * len(IDS)
        waves = 0
        while step.remaining:
            plan = step.ask()
            assert plan.rollouts.tolist() == expected
            step.tell(np.zeros(len(IDS), dtype=int), plan.rollouts)
            waves += 1
        assert waves == 1
        told_directly.tell(IDS, np.zeros(len(IDS), dtype=int), expected)
        assert allocator.success_rates(IDS).tolist() == told_directly.success_rates(IDS).tolist()

    @pytest.mark.parametrize("strategy", sorted(set(kr.strategies()) - {*ONE_SHOT, "cautious"}))
    def test_several_waves_place_the_budget_of_the_step_together(self, strategy: str) -> None:
        step = trained(strategy).step(IDS)
        waves = []
        while step.remaining:
            waves.append(step.ask().rollouts)
            step.tell(waves[-1] // 2, waves[-1])
        assert len(waves) > 1
        assert np.sum(waves) == 8 * len(IDS)
        assert waves[0].min() >= 2

    def test_asking_again_before_tell_gives_the_same_plan(self) -> None:
        allocator = trained()
        step = allocator.step(IDS)
        first = step.ask().rollouts.tolist()
        allocator.tell(IDS, [0] * 12, [8] * 12)  # another step in flight
        assert step.ask().rollouts.tolist() == first

    @ALL_STRATEGIES
    def test_what_a_step_believes_is_computed_once_and_stays_while_other_steps_teach(self, strategy: str) -> None:
        allocator = trained(strategy)
        step = allocator.step(IDS)
        before, losses = step.belief, step.belief.losses.tolist()
        allocator.tell(IDS, [0] * 12, [8] * 12)
        assert step.belief is before
        assert step.belief.losses.tolist() == losses
        assert allocator.step(IDS).belief.losses.tolist() != losses

    @ALL_STRATEGIES
    def test_without_waves_a_step_places_what_ask_plans_in_one_shot(self, strategy: str) -> None:
        allocator = trained(strategy)
        expected = allocator.ask(IDS).rollouts.tolist()
        at_once, without_waiting = (allocator.step(IDS, waves=False) for _ in range(2))
        assert at_once.ask().rollouts.tolist() == expected
        assert without_waiting.place(8 * len(IDS)).rollouts.tolist() == expected
        at_once.tell([0] * 12, expected)
        assert at_once.remaining == 0

    def test_beliefs_change_with_the_last_tell_not_with_ask(self) -> None:
        allocator = kr.BudgetAllocator()
        step = allocator.step(["a"])
        step.ask()
        assert np.isnan(allocator.success_rates(["a"])).all()
        step.tell([2], [8])
        assert allocator.success_rates(["a"]) == 0.25

    def test_rollouts_that_failed_to_arrive_do_not_keep_the_step_open(self) -> None:
        step = kr.BudgetAllocator().step(["a", "b"])
        step.ask()
        step.tell([1, 0], [7, 0])
        assert step.remaining == 0

    def test_telling_before_asking_is_refused(self) -> None:
        step = kr.BudgetAllocator().step(["a"])
        with pytest.raises(kr.StateError, match="tell came before ask"):
            step.tell([1], [8])

    def test_telling_twice_is_refused_and_not_learned(self) -> None:
        allocator = kr.BudgetAllocator()
        step = allocator.step(["a"])
        step.ask()
        step.tell([2], [8])
        with pytest.raises(kr.StateError, match="tell came before ask"):
            step.tell([8], [8])
        assert allocator.success_rates(["a"]) == 0.25

    def test_asking_after_the_end_is_refused(self) -> None:
        step = kr.BudgetAllocator().step(["a"])
        step.ask()
        step.tell([2], [8])
        with pytest.raises(kr.StateError, match="ask came after the whole budget was placed"):
            step.ask()

    def test_a_refused_tell_leaves_the_step_as_it_was(self) -> None:
        allocator = kr.BudgetAllocator()
        step = allocator.step(["a", "b"])
        step.ask()
        with pytest.raises(kr.InvalidInputError, match="successes"):
            step.tell([9, 0], [8, 8])
        assert step.remaining == 16
        step.tell([8, 0], [8, 8])
        assert step.remaining == 0

    def test_a_step_without_prompts_is_over_at_once(self) -> None:
        assert kr.BudgetAllocator().step([]).remaining == 0

    def test_ids_from_a_generator_last_for_the_whole_step(self) -> None:
        allocator = kr.BudgetAllocator()
        step = allocator.step(name for name in ["a", "b"])
        step.tell([1, 2], step.ask().rollouts)
        assert allocator.success_rates(["a", "b"]).tolist() == [0.125, 0.25]


class TestConstruction:
    def test_there_are_at_least_the_three_strategies_of_the_trunk(self) -> None:
        assert {"uniform", "knapsack", "knapsack-window"} <= set(kr.strategies())

    @pytest.mark.parametrize("strategy", ["greedy", "", None, ["knapsack"]])
    def test_an_unknown_strategy_is_refused_with_the_known_ones(self, strategy) -> None:
        with pytest.raises(kr.InvalidInputError, match="strategy: expected one of uniform, knapsack"):
            kr.BudgetAllocator(strategy)

    @pytest.mark.parametrize(("argument", "least"), [("group_size", 1), ("min_rollouts", 0), ("max_rollouts", 1)])
    @pytest.mark.parametrize("number", [-3, 2.5, None, "8"])
    def test_numbers_of_rollouts_are_integers(self, argument: str, least: int, number) -> None:
        with pytest.raises(kr.InvalidInputError, match=f"{argument}: expected an integer of at least {least}"):
            kr.BudgetAllocator(**{argument: number})

    @pytest.mark.parametrize("group_size", [1, 129])
    def test_a_group_size_outside_the_bounds_is_refused(self, group_size: int) -> None:
        with pytest.raises(kr.InfeasibleBudgetError, match=r"group_size: .*min_rollouts=2.*max_rollouts=128"):
            kr.BudgetAllocator(group_size=group_size)

    def test_crossed_bounds_are_refused(self) -> None:
        with pytest.raises(kr.InvalidInputError, match="min_rollouts, max_rollouts"):
            kr.BudgetAllocator(min_rollouts=9, max_rollouts=8)

    @pytest.mark.parametrize("seed", [-1, 0.5, None])
    def test_a_seed_is_0_or_more(self, seed) -> None:
        with pytest.raises(kr.InvalidInputError, match="seed: expected an integer of at least 0"):
            kr.BudgetAllocator(seed=seed)

    def test_a_function_is_refused_with_the_strategy_to_write_instead(self) -> None:
        with pytest.raises(kr.InvalidInputError, match=r"algorithm: .* whose rule calls knapsack_rl.allocate"):
            kr.BudgetAllocator(algorithm=lambda rates: (rates, 1 - rates))

    def test_an_unknown_algorithm_is_refused(self) -> None:
        with pytest.raises(kr.InvalidInputError, match="algorithm: expected one of"):
            kr.BudgetAllocator(algorithm="ppo")


@ALL_STRATEGIES
class TestState:
    def test_a_state_dict_gives_the_same_next_plan_bit_for_bit(self, strategy: str) -> None:
        original, restored = trained(strategy), kr.BudgetAllocator(strategy)
        restored.load_state_dict(original.state_dict())
        assert_same_future(original, restored)

    def test_a_file_gives_the_same_next_plan_bit_for_bit(self, strategy: str, tmp_path: Path) -> None:
        original, restored = trained(strategy), kr.BudgetAllocator(strategy)
        original.save(tmp_path / "state.npz")
        restored.load(str(tmp_path / "state.npz"))
        assert_same_future(original, restored)

    def test_an_empty_state_is_a_state(self, strategy: str, tmp_path: Path) -> None:
        kr.BudgetAllocator(strategy).save(tmp_path / "state.npz")
        restored = trained(strategy)
        restored.load(tmp_path / "state.npz")
        assert restored.metrics() == {"known_prompts": 0.0}
        assert restored.ask(IDS).rollouts.tolist() == [8] * 12

    def test_a_state_holds_numbers_and_plain_arrays_only(self, strategy: str) -> None:
        def check(item: object) -> None:
            if isinstance(item, dict):
                for name, value in item.items():
                    assert isinstance(name, str)
                    check(value)
            elif isinstance(item, np.ndarray):
                assert item.dtype.kind in "iufb"
            else:
                json.dumps(item)

        check(trained(strategy).state_dict())

    def test_a_file_is_read_without_pickle(self, strategy: str, tmp_path: Path) -> None:
        trained(strategy).save(tmp_path / "state.npz")
        with np.load(tmp_path / "state.npz", allow_pickle=False) as file:
            assert all(file[name].dtype.kind in "iufbU" for name in file.files)

    @pytest.mark.parametrize("length", [0, 1, 100, -100, -1])
    def test_a_truncated_file_is_refused_and_changes_nothing(self, strategy: str, length: int, tmp_path: Path) -> None:
        trained(strategy).save(tmp_path / "state.npz")
        content = (tmp_path / "state.npz").read_bytes()[:length]
        assert_refused(strategy, tmp_path, content)

    def test_damaged_bytes_are_refused_and_change_nothing(self, strategy: str, tmp_path: Path) -> None:
        trained(strategy).save(tmp_path / "state.npz")
        content = bytearray((tmp_path / "state.npz").read_bytes())
        with zipfile.ZipFile(tmp_path / "state.npz") as file:
            start = file.getinfo("keys.npy").header_offset + 200  # within the array
        content[start] ^= 0xFF
        assert_refused(strategy, tmp_path, bytes(content))

    @pytest.mark.parametrize("content", [b"garbage", b"\x80\x04N.", b"PK\x03\x04", b"\x93NUMPY\x01\x00", bytes(1000)])
    def test_garbage_is_refused_and_changes_nothing(self, strategy: str, content: bytes, tmp_path: Path) -> None:
        assert_refused(strategy, tmp_path, content)

    @pytest.mark.parametrize(
        "header", ["", "{", "[]", "null", "{}", '{"version": 3}', '{"version": 3, "estimator": 3}']
    )
    def test_a_foreign_archive_is_refused_and_changes_nothing(self, strategy: str, header: str, tmp_path: Path) -> None:
        np.savez(tmp_path / "foreign.npz", header=np.array(header))
        assert_refused(strategy, tmp_path, (tmp_path / "foreign.npz").read_bytes())

    @pytest.mark.parametrize("version", [0, 2, 99, None, "3"])
    def test_another_version_is_refused_and_changes_nothing(self, strategy: str, version) -> None:
        allocator = trained(strategy)
        before = allocator.success_rates(IDS)
        with pytest.raises(kr.StateError, match=f"state: expected version 3, got {version!r}"):
            allocator.load_state_dict(allocator.state_dict() | {"version": version})
        np.testing.assert_array_equal(before, allocator.success_rates(IDS))

    @pytest.mark.parametrize("state", [None, 3, [], {}, {"version": 3}, {"version": 3, "estimator": None}])
    def test_what_is_no_state_is_refused(self, strategy: str, state) -> None:
        with pytest.raises(kr.StateError, match="state: expected"):
            kr.BudgetAllocator(strategy).load_state_dict(state)

    def test_a_missing_file_is_missing(self, strategy: str, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            kr.BudgetAllocator(strategy).load(tmp_path / "nowhere.npz")

    def test_saving_replaces_the_older_file_and_leaves_nothing_else(self, strategy: str, tmp_path: Path) -> None:
        for visits in (1, 2):
            trained(strategy, visits=visits).save(tmp_path / "state")
        restored = kr.BudgetAllocator(strategy)
        restored.load(tmp_path / "state")
        np.testing.assert_array_equal(restored.success_rates(IDS), trained(strategy, visits=2).success_rates(IDS))
        assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_million_prompts_take_less_than_100_megabytes(tmp_path: Path) -> None:
    allocator = kr.BudgetAllocator("knapsack-window")
    count = 1_000_000
    allocator.tell(range(count), np.arange(count) % 9, np.full(count, 8))
    allocator.save(tmp_path / "state.npz")
    assert (tmp_path / "state.npz").stat().st_size < 40e6


@pytest.mark.parametrize("other", kr.strategies())
def test_the_state_of_another_strategy_is_refused_by_both_names_and_changes_nothing(other: str) -> None:
    for strategy in set(kr.strategies()) - {other}:
        allocator = trained(strategy)
        before = allocator.success_rates(IDS)
        named = f"expected the state of strategy '{strategy}', got the state of '{other}'"
        with pytest.raises(kr.StateError, match=named):
            allocator.load_state_dict(trained(other).state_dict())
        np.testing.assert_array_equal(before, allocator.success_rates(IDS))


def test_a_setting_that_beliefs_depend_on_is_named_when_it_changed() -> None:
    def of(window: int) -> kr.BudgetAllocator:
        return kr.BudgetAllocator(kr.Strategy(lambda: RecentRewards(window), STRATEGIES["knapsack"].rule, name="mine"))

    allocator = of(16)
    with pytest.raises(kr.StateError, match=r"an estimator with .*'window': 16\}, got .*'window': 8\}"):
        allocator.load_state_dict(of(8).state_dict())


def test_settings_that_beliefs_do_not_depend_on_may_change() -> None:
    other = kr.BudgetAllocator("adaptive", 4, 1, 64, seed=9, algorithm="reinforce", fallback=False, confidence=0.5)
    allocator = trained("adaptive")
    other.load_state_dict(allocator.state_dict())
    assert other.belief(IDS).wins.tolist() == allocator.belief(IDS).wins.tolist()
    assert other.ask(IDS).rollouts.sum() == 4 * len(IDS)


@ALL_STRATEGIES
def test_a_step_that_is_given_up_leaves_no_trace_in_a_saved_state(strategy: str) -> None:
    allocator, plain = trained(strategy), trained(strategy)
    for given_up in (allocator.step(IDS), allocator.step(IDS[:3]), allocator.step(IDS)):
        given_up.ask()
    for either in (allocator, plain):
        either.tell(IDS[:5], [1] * 5, [4] * 5)
    state, expected = (either.state_dict()["estimator"] for either in (allocator, plain))
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value)


@pytest.mark.parametrize("name", ["version", "strategy", "settings", "estimator"])
@pytest.mark.parametrize("value", [np.array([1, 2]), None, 3.5, [], "x"], ids=str)
def test_a_state_with_something_else_for_one_of_its_parts_is_refused(name: str, value: object) -> None:
    allocator = trained()
    with pytest.raises(kr.StateError, match="state: expected"):
        allocator.load_state_dict(allocator.state_dict() | {name: value})


def long_trained(strategy: str) -> kr.BudgetAllocator:
    """An allocator that was told much, late visits, sizes on both sides of 16 and single rollouts included."""
    allocator, rng = kr.BudgetAllocator(strategy), np.random.default_rng(1)
    for _ in range(40):
        late = allocator.step(IDS)
        rollouts = rng.choice([1, 2, 5, 16, 17, 40], len(IDS))
        allocator.tell(IDS, rng.binomial(rollouts, rng.choice([0.0, 0.3, 1.0], len(IDS))), rollouts)
        late.ask()
        while late.remaining:
            plan = late.ask().rollouts
            late.tell(rng.binomial(plan, 0.5), plan)
    return allocator


@ALL_STRATEGIES
def test_whatever_was_told_leaves_a_state_that_loads(strategy: str) -> None:
    allocator = long_trained(strategy)
    restored = kr.BudgetAllocator(strategy)
    restored.load_state_dict(allocator.state_dict())
    assert restored.ask(IDS).rollouts.tolist() == allocator.ask(IDS).rollouts.tolist()


@pytest.mark.parametrize(
    ("strategy", "column", "change"),
    [
        ("knapsack-transitions", "cell", lambda cell: (cell + 6) % 36),
        ("greso", "streak", lambda streak: streak + 1000),
        ("greso", "streak", lambda streak: np.where(streak == 0, 1, 0)),
        ("knapsack-window", "recent", lambda recent: recent ^ 1),
        ("knapsack-window", "recent", lambda recent: recent | 2**15),
        ("knapsack", "recent", lambda recent: recent + 1),
    ],
)
def test_what_a_prompt_s_own_counts_contradict_is_refused(strategy: str, column: str, change) -> None:
    allocator = long_trained(strategy)
    state = allocator.state_dict()
    before, whole = allocator.state_dict(), state["estimator"][column]
    for position in range(len(whole)):
        state["estimator"][column] = whole.copy()
        state["estimator"][column][position] = change(whole)[position]
        if strategy == "greso" and state["estimator"]["tried"][position] == 1:
            continue  # one reward says nothing about a streak
        if (state["estimator"][column] == whole).all():
            continue
        with pytest.raises(kr.StateError, match="state: expected"):
            allocator.load_state_dict(state)
    np.testing.assert_equal(allocator.state_dict(), before)


@ALL_STRATEGIES
@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64])
def test_the_most_rollouts_that_may_come_back_are_learned_from_and_more_are_refused(strategy: str, dtype: type) -> None:
    allocator = kr.BudgetAllocator(strategy)
    most = 2**31 - 1
    allocator.tell(["a", "a", "b"], np.array([most, most, 0], dtype), np.array([most, most, most], dtype))
    for count in (most + 1, 2**53, 2**62) + ((2**63, 2**64 - 1) if dtype == np.uint64 else ()):
        with pytest.raises(kr.InvalidInputError, match=r"expected at most 2147483647|counts below 2\^63"):
            allocator.tell(["a"], np.zeros(1, dtype), np.array([count], dtype))
    restored = kr.BudgetAllocator(strategy)
    restored.load_state_dict(allocator.state_dict())
    assert restored.success_rates(["a", "b"]).tolist() == allocator.success_rates(["a", "b"]).tolist()
    assert restored.ask(["a", "b", "c"]).rollouts.sum() == 24


@ALL_STRATEGIES
def test_the_numbers_of_steps_in_a_state_cannot_exhaust_those_to_come(strategy: str) -> None:
    allocator = trained(strategy)
    state = allocator.state_dict()
    state["estimator"]["step"][:] = 2**32 - 1
    allocator.load_state_dict(state)
    allocator.tell(IDS, [1] * 12, [4] * 12)
    assert allocator.visited(IDS).all()


def test_the_ids_of_a_step_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, keys = [], identity.keys
    monkeypatch.setattr(identity, "keys", lambda ids: (calls.append(1), keys(ids))[1])
    step = kr.BudgetAllocator("adaptive").step(IDS)
    step.forecast()
    while step.remaining:
        step.tell(step.visited * 0, step.ask().rollouts)
    assert (len(calls), step.belief.mean.shape, len(step)) == (1, (12,), 12)


class TestBudget:
    @ALL_STRATEGIES
    @pytest.mark.parametrize("budget", [24, 25, 97, 300, 12 * 128])
    def test_a_step_may_have_any_budget_that_fits_its_bounds(self, strategy: str, budget: int) -> None:
        allocator = trained(strategy)
        plan = allocator.ask(IDS, budget=budget).rollouts
        assert plan.sum() == budget
        assert 2 <= plan.min() <= plan.max() <= 128
        step, placed = allocator.step(IDS, budget=budget), 0
        assert step.remaining == step.budget == budget
        while step.remaining:
            wave = step.ask().rollouts
            placed += int(wave.sum())
            step.tell(wave // 2, wave)
        assert placed == budget

    @pytest.mark.parametrize(("budget", "message"), [(23, "1 too few"), (12 * 128 + 1, "1 too many")])
    def test_a_budget_that_no_plan_can_meet_says_by_how_much(self, budget: int, message: str) -> None:
        for call in (kr.BudgetAllocator().ask, kr.BudgetAllocator().step):
            with pytest.raises(kr.InfeasibleBudgetError, match=message):
                call(IDS, budget=budget)

    @pytest.mark.parametrize("budget", [2.5, "64", [64]])
    def test_a_budget_is_a_whole_number(self, budget) -> None:
        with pytest.raises(kr.InvalidInputError, match="budget: expected an integer"):
            kr.BudgetAllocator().ask(IDS, budget=budget)

    def test_a_budget_is_spent_as_the_papers_rule_spends_it(self) -> None:
        allocator = trained()
        expected = kr.allocate(allocator.success_rates(IDS), 77)
        assert allocator.ask(IDS, budget=77).rollouts.tolist() == expected.rollouts.tolist()


class TestStepSaysWhoIsNew:
    def test_visited_is_as_it_was_before_the_step(self) -> None:
        allocator = kr.BudgetAllocator()
        allocator.tell(["a"], [1], [4])
        step = allocator.step(["a", "b"])
        step.tell([0, 0], step.ask().rollouts)
        assert step.visited.tolist() == [True, False]
        assert allocator.visited(["a", "b"]).tolist() == [True, True]

    @ALL_STRATEGIES
    def test_a_forecast_is_what_ask_plans_and_changes_nothing(self, strategy: str) -> None:
        allocator = trained(strategy)
        step = allocator.step(IDS)
        expected = allocator.ask(IDS).rollouts.tolist()
        assert step.forecast().rollouts.tolist() == expected
        assert step.remaining == 8 * len(IDS)


class TestOnStep:
    def test_the_metrics_of_a_step_come_once_when_it_ends(self) -> None:
        heard: list[dict[str, float]] = []
        allocator = kr.BudgetAllocator("adaptive", on_step=heard.append)
        step = allocator.step(["a", "b"])
        while step.remaining:
            assert heard == []
            plan = step.ask().rollouts
            step.tell(plan // 2, plan)
        assert len(heard) == 1
        assert heard[0]["rollouts/sum"] == 16.0
        assert heard[0]["never_visited"] == 1.0
        assert heard[0]["waves"] == 3.0

    def test_a_step_without_waves_and_a_tell_report_too(self) -> None:
        heard: list[dict[str, float]] = []
        allocator = kr.BudgetAllocator(on_step=heard.append)
        step = allocator.step(["a", "b"])
        placed = step.place(99).rollouts
        step.report([2, 0], placed)
        allocator.tell(["a", "b"], [4, 8], [8, 8])
        assert [metrics["effective_gradient_ratio"] for metrics in heard] == [0.5, 0.5]
        assert [metrics["never_visited"] for metrics in heard] == [1.0, 0.0]

    def test_costs_are_in_the_metrics_as_they_were_expected_before_the_step(self) -> None:
        heard: list[dict[str, float]] = []
        allocator = kr.BudgetAllocator("adaptive", on_step=heard.append)
        allocator.tell(["a", "b"], [4, 0], [8, 8], costs=[80.0, 240.0])
        expected = allocator.expected_costs(["a", "b"])
        step = allocator.step(["a", "b"])
        assert step.expected_costs.tolist() == expected.tolist()
        while step.remaining:
            plan = step.ask().rollouts
            step.tell(plan // 2, plan, costs=7.0 * plan)
        assert heard[0]["cost/real"] == 320.0
        assert "cost/expected" not in heard[0]  # nothing was known
        assert heard[1]["cost/real"] == 7.0 * 16
        assert heard[1]["cost/expected"] == pytest.approx(expected @ step.placed)
        assert heard[1]["cost/even"] == pytest.approx(8 * expected.sum())

    def test_what_it_raises_loses_nothing(self) -> None:
        def broken(metrics: dict[str, float]) -> None:
            raise OSError("no tracker")

        allocator = kr.BudgetAllocator(on_step=broken)
        with pytest.raises(OSError, match="no tracker"):
            allocator.tell(["a"], [1], [4])
        step = allocator.step(["a"])
        with pytest.raises(OSError, match="no tracker"):
            step.tell([8], step.ask().rollouts)
        assert (step.remaining, allocator.success_rates(["a"])) == (0, 1.0)

    def test_whoever_listens_may_wait_for_another_thread(self) -> None:
        known: list[float] = []

        def listen(metrics: dict[str, float]) -> None:
            with ThreadPoolExecutor(1) as pool:
                known.append(pool.submit(allocator.metrics).result(timeout=60)["known_prompts"])

        allocator = kr.BudgetAllocator(on_step=listen)
        for step in (allocator.step(["a"]), allocator.step(["b"])):
            step.tell([1], step.ask().rollouts)
        allocator.tell(["c"], [1], [2])
        assert known == [1.0, 2.0, 3.0]

    def test_a_tell_without_rollouts_and_a_copy_say_nothing(self) -> None:
        heard: list[dict[str, float]] = []
        allocator = kr.BudgetAllocator(on_step=heard.append)
        allocator.tell([], [], [])
        allocator.tell(["a"], [0], [0])
        allocator.copy().tell(["a"], [1], [2])
        assert heard == []

    def test_what_cannot_be_called_is_refused(self) -> None:
        with pytest.raises(kr.InvalidInputError, match="on_step: expected a function"):
            kr.BudgetAllocator(on_step="wandb")  # type: ignore[arg-type]


class TestPlansThatCannotDiffer:
    @pytest.mark.parametrize(
        ("bounds", "prompts", "message"),
        [
            ({}, 1, "one prompt, which gets all its rollouts .* More prompts, please"),
            ({"min_rollouts": 8}, 32, "min_rollouts and the mean group size are both 8.* Lower min_rollouts"),
            ({"max_rollouts": 8}, 32, "max_rollouts and the mean group size are both 8.* Raise max_rollouts"),
        ],
    )
    def test_are_explained_with_the_change_to_make(self, bounds: dict[str, int], prompts: int, message: str) -> None:
        said = kr.BudgetAllocator("knapsack", **bounds).explain_even(prompts, "More prompts, please.")
        assert said is not None
        assert re.search(message, said)
        assert kr.BudgetAllocator("uniform", **bounds).explain_even(prompts) is None

    def test_others_are_not(self) -> None:
        assert kr.BudgetAllocator("knapsack").explain_even(2) is None


def test_keys_in_a_saved_state_never_change_silently() -> None:
    """A state file of today must be found by the code of tomorrow."""
    allocator = kr.BudgetAllocator()
    allocator.tell(["a", 1, ""], [1, 1, 1], [2, 2, 2])
    assert sorted(allocator.state_dict()["estimator"]["keys"].tolist()) == [
        778860755400141486,
        1410542633125930404,
        16027976456189790694,
    ]


def assert_same_future(original: kr.BudgetAllocator, restored: kr.BudgetAllocator) -> None:
    rng = np.random.default_rng(9)
    for _ in range(5):
        plan, again = original.ask(IDS), restored.ask(IDS)
        assert plan.rollouts.tolist() == again.rollouts.tolist()
        assert (plan.value, plan.fallback) == (again.value, again.fallback)
        successes = rng.binomial(plan.rollouts, 0.4)
        original.tell(IDS, successes, plan.rollouts)
        restored.tell(IDS, successes, plan.rollouts)
        assert original.success_rates(IDS).tobytes() == restored.success_rates(IDS).tobytes()


def assert_refused(strategy: str, folder: Path, content: bytes) -> None:
    (folder / "damaged.npz").write_bytes(content)
    allocator = trained(strategy)
    before = allocator.success_rates(IDS)
    with pytest.raises(kr.StateError, match="expected"):
        allocator.load(folder / "damaged.npz")
    np.testing.assert_array_equal(before, allocator.success_rates(IDS))


def broken_half_way(allocator: kr.BudgetAllocator, steps: range) -> list[str]:
    """Steps of 20 prompts in two categories, of which one never succeeds from step 20 on; what was found."""
    kinds, found = ["a", "b"] * 10, []
    for number in steps:
        step = allocator.step([f"{number}-{prompt}" for prompt in range(20)], watch={"kind": kinds})
        while step.remaining:
            plan = step.ask().rollouts
            fails = (np.arange(20) % 2 == 1) & (number >= 20)
            step.tell(np.where(fails, 0, plan // 2), plan)
        found += [f"{finding.category}: {finding.kind}" for finding in step.findings]
    return found


def test_a_step_that_is_over_says_which_category_looks_broken() -> None:
    assert broken_half_way(kr.BudgetAllocator("uniform"), range(40)) == ["b: stopped succeeding", "b: spends in vain"]


def test_what_the_alarm_knows_survives_a_save(tmp_path: Path) -> None:
    allocator, resumed = kr.BudgetAllocator("uniform"), kr.BudgetAllocator("uniform")
    assert broken_half_way(allocator, range(20)) == []
    allocator.save(tmp_path / "state.npz")
    resumed.load(tmp_path / "state.npz")
    assert resumed.alarm.state_dict() == allocator.alarm.state_dict()
    assert broken_half_way(resumed, range(20, 30)) == ["b: stopped succeeding"]


def test_watched_columns_are_texts_one_for_each_prompt() -> None:
    with pytest.raises(
        kr.InvalidInputError, match=r"watch\['kind'\]: expected a text or None for each of the 2 prompts"
    ):
        kr.BudgetAllocator().step(["x", "y"], watch={"kind": ["a"]})


@pytest.mark.parametrize("column", [5, "ab", {"a", "b"}, {"a": 1, "b": 2}, None])
def test_a_watched_column_that_is_none_is_refused(column: Any) -> None:
    with pytest.raises(kr.InvalidInputError, match=r"watch\['kind'\]: expected a text or None for each of the 2"):
        kr.BudgetAllocator().step(["x", "y"], watch={"kind": column})


@pytest.mark.parametrize("watch", [["a", "b"], "ab", 5])
def test_a_watch_without_names_is_refused_by_name(watch: Any) -> None:
    with pytest.raises(kr.InvalidInputError, match="watch: expected a mapping of column names"):
        kr.BudgetAllocator().step(["x", "y"], watch=watch)


@pytest.mark.parametrize("strategy", ["uniform", "adaptive"])
@pytest.mark.parametrize("features", [["a", "b"], np.array(["a", "b"]), [0.5, 2.0], np.ones((2, 3))])
def test_a_step_takes_the_features_that_ask_takes(strategy: str, features: Any) -> None:
    allocator = kr.BudgetAllocator(strategy)
    allocator.ask(["x", "y"], features)
    step = allocator.step(["x", "y"], features)
    while step.remaining:
        rollouts = step.ask().rollouts
        step.tell(rollouts // 2, rollouts)
    assert allocator.success_rates(["x", "y"], features) == pytest.approx([0.5, 0.5], abs=0.2)


class Tensor:
    """What numpy cannot read, as torch says it: of bfloat16, on a GPU, or with a gradient."""

    def __init__(self, error: type[Exception]) -> None:
        self._error = error

    def __array__(self, *arguments: Any, **more: Any) -> Any:
        raise self._error("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")

    def detach(self) -> Any:
        return self


@pytest.mark.parametrize("error", [TypeError, RuntimeError])
@pytest.mark.parametrize("name", ["successes", "rollouts", "costs", "greedy", "truncated"])
def test_a_tensor_that_numpy_cannot_read_is_refused_by_the_name_of_its_argument(
    name: str, error: type[Exception]
) -> None:
    allocator = kr.BudgetAllocator(algorithm="remax")
    given = {"successes": [1], "rollouts": [2], "costs": [3.0], "greedy": [1]} | {name: Tensor(error)}
    with pytest.raises(kr.InvalidInputError, match=rf"{name}: expected numbers, .* Pass a tensor as .detach\(\).float"):
        allocator.tell(["a"], **given)
    assert not allocator.visited(["a"]).any()


@pytest.mark.parametrize("least", [0, 2])
@pytest.mark.parametrize("revisit", [np.array([1, 2]), "4", 1.5, [4]])
def test_a_guarantee_that_is_no_number_is_refused_by_name(revisit: Any, least: int) -> None:
    with pytest.raises(kr.InvalidInputError, match="revisit: expected an integer of at least 0"):
        kr.BudgetAllocator(min_rollouts=least, revisit=revisit)


@pytest.mark.parametrize("ids", [{"a", "b"}, frozenset("ab")])
def test_ids_without_an_order_are_refused_and_those_of_a_mapping_are_not(ids: Any) -> None:
    allocator = kr.BudgetAllocator()
    for call in (allocator.ask, allocator.step, allocator.visited, lambda ids: allocator.tell(ids, [1, 1], [2, 2])):
        with pytest.raises(kr.InvalidInputError, match=r"prompt_ids: expected ids in order, .* got a (frozen)?set"):
            call(ids)
    assert allocator.ask(dict.fromkeys("ab").keys()).rollouts.tolist() == [8, 8]


@pytest.mark.parametrize("column", [np.array([b"a", b"b"]), np.array(["a", "b"]), ["a", None]])
@pytest.mark.parametrize("name", ["kind", 7])
def test_any_text_that_is_a_feature_is_watched_whatever_its_column_is_called(name: object, column: object) -> None:
    allocator = kr.BudgetAllocator("uniform", 2)
    step = allocator.step(["x", "y"], {name: column})
    step.tell([1, 0], step.ask().rollouts)
    assert len(allocator.alarm.state_dict()[str(name)]) == 2
