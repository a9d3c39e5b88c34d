"""One test for each defect of the paper's reference code (numbered as in the list of defects that it was run for)."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import knapsack_rl as kr

from dynamic_programme import best_rollouts


def test_01_a_surplus_without_unsolved_prompts_does_not_crash() -> None:
    rates = np.linspace(0.25, 0.75, 256)
    plan = kr.allocate(rates, 2048)
    assert plan.rollouts.sum() == 2048
    assert plan.fallback == 0


def test_02_the_fallback_keeps_to_the_maximum() -> None:
    plan = kr.allocate([0.5] * 255 + [0.0], 2048)
    assert plan.rollouts[-1] == 128
    assert plan.fallback == 126
    assert plan.rollouts.sum() == 2048


def test_03_a_surplus_does_not_go_to_solved_prompts_while_others_have_room() -> None:
    rates = np.array([0.5] * 250 + [1.0] * 6)
    assert kr.allocate(rates, 256 * 16).rollouts[250:].tolist() == [2] * 6

    full = kr.allocate(rates, 250 * 128 + 6 * 5).rollouts  # the others are full: only then, and evenly
    assert full.tolist() == [128] * 250 + [5] * 6


@pytest.mark.parametrize("other", [0.0, np.nan])
def test_03_unsolved_and_never_visited_prompts_come_before_solved_ones(other: float) -> None:
    plan = kr.allocate([1.0, other, 1.0, 1.0], 60, fallback=False)
    assert plan.rollouts.tolist() == [2, 54, 2, 2]


def test_04_never_visited_is_not_unsolved() -> None:
    plan = kr.allocate([np.nan, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 64)
    assert plan.rollouts.tolist() == [8] * 8
    assert plan.fallback == 0

    mixed = kr.allocate([np.nan, 0.0, 0.5, 0.9], 64)
    assert mixed.rollouts[0] == 16
    assert mixed.fallback == mixed.rollouts[1] - 2


def test_05_the_minimum_has_its_value_so_that_the_plan_is_optimal() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        rates = rng.uniform(0.02, 0.98, 12)
        values = kr.value(np.arange(2, 17), rates[:, None])
        best = values[np.arange(12), best_rollouts(values, 96 - 24)].sum()
        assert kr.allocate(rates, 96, 2, 16).value == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("fallback", [True, False])
def test_06_left_over_budget_keeps_to_the_maximum(fallback: bool) -> None:
    for rates in ([0.5, 0.5, 1.0, 1.0], [0.0, 0.5, 1.0, 1.0], [0.0, 0.0, np.nan, 1.0]):
        plan = kr.allocate(rates, 60, 2, 16, fallback=fallback)
        assert plan.rollouts.max() == 16
        assert plan.rollouts.sum() == 60


def test_07_memory_grows_with_prompts_and_budget_not_with_their_product() -> None:
    rates = np.random.default_rng(0).beta(0.4, 0.4, 4096)
    tracemalloc.start()
    plan = kr.allocate(rates, 8 * 4096)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.rollouts.sum() == 8 * 4096
    assert peak < 8e6  # bytes; the tables of the reference would take 2.1e9


def test_08_defaults_work_and_any_feasible_total_is_accepted() -> None:
    assert kr.allocate([0.5, 0.2], 16).rollouts.sum() == 16
    assert kr.allocate([0.5, 0.2], 17).rollouts.sum() == 17
    assert kr.BudgetAllocator().ask(["a", "b"]).rollouts.tolist() == [8, 8]


def test_08_impossible_bounds_are_explained_rather_than_asserted() -> None:
    with pytest.raises(kr.InfeasibleBudgetError, match=r"group_size: .*min_rollouts=9"):
        kr.BudgetAllocator(group_size=8, min_rollouts=9)


def test_09_a_window_of_rewards_remembers_a_success_that_the_last_visit_missed() -> None:
    last_visit, window = kr.BudgetAllocator("knapsack"), kr.BudgetAllocator("knapsack-window")
    for allocator in (last_visit, window):
        allocator.tell(["hard"], [1], [8])
        allocator.tell(["hard"], [0], [8])
    assert last_visit.success_rates(["hard"]) == 0.0
    assert window.success_rates(["hard"]) == 1 / 16


def test_10_any_count_of_successes_is_legal() -> None:
    allocator = kr.BudgetAllocator()
    allocator.tell(["a"], [37], [101])
    assert allocator.success_rates(["a"]) == 37 / 101


def test_11_identities_do_not_collide_between_types_files_or_missing_indices() -> None:
    allocator = kr.BudgetAllocator()
    allocator.tell(["0", 0, ""], [1, 2, 3], [4, 4, 4])
    assert allocator.success_rates([0, "", "0"]).tolist() == [0.5, 0.75, 0.25]
    assert kr.prompt_id("2 + 2 = ?") != kr.prompt_id("2 + 3 = ?")


def test_12_the_state_after_tell_holds_the_outcome_of_the_step() -> None:
    allocator, resumed = kr.BudgetAllocator(), kr.BudgetAllocator()
    allocator.tell(["a", "b"], [0, 3], [8, 8])
    resumed.load_state_dict(allocator.state_dict())
    assert resumed.success_rates(["a", "b"]).tolist() == [0.0, 0.375]


@pytest.mark.parametrize("strategy", kr.strategies())
def test_13_the_state_does_not_grow_with_the_length_of_training(strategy: str, tmp_path) -> None:
    allocator = kr.BudgetAllocator(strategy)
    arrays, sizes = [], []
    for visits in (1, 20, 200):  # the first tells how many prompts and weights there are
        for _ in range(visits):
            allocator.tell(range(50), [1] * 50, [3] * 50)
        allocator.save(tmp_path / "state.npz")
        sizes.append((tmp_path / "state.npz").stat().st_size)
        with np.load(tmp_path / "state.npz") as file:
            arrays.append({name: (file[name].shape, file[name].dtype) for name in file.files if name != "header"})
    assert arrays[0] == arrays[1] == arrays[2]
    assert max(sizes) <= min(sizes) + 1000  # numbers in the header may have more digits, of 4 bytes each


def test_14_beliefs_are_fresh_at_the_next_ask() -> None:
    allocator = kr.BudgetAllocator("knapsack")
    ids = ["solved", "unsolved", "mixed", "new"]
    allocator.tell(ids[:3], [8, 0, 4], [8, 8, 8])
    assert allocator.ask(ids).rollouts.tolist() == kr.allocate([1.0, 0.0, 0.5, np.nan], 32).rollouts.tolist()
