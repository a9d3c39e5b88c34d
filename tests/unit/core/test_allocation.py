"""The paper's rule: exactness against independent solutions, and the rule itself against a plain reading of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import knapsack_rl as kr
from knapsack_rl.values import ALGORITHMS

from dynamic_programme import best_rollouts

TABLE_3 = [0.0, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def random_rates(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Rates of every kind: continuous, counted over a few rollouts (ties), one half, solved and unsolved."""
    continuous = rng.beta(0.5, 0.5, shape)
    counted = rng.integers(0, 9, shape) / 8
    finer = rng.integers(0, 17, shape) / 16
    kind = rng.integers(0, 4, shape)
    return np.choose(kind, [continuous, counted, finer, np.full(shape, 0.5)])


def optional_agreement(algorithm: str, rng: np.random.Generator, rates: np.ndarray) -> np.ndarray | None:
    if algorithm != "remax":
        return None
    return np.where(rng.random(rates.shape) < 0.5, rates, 1 - rates)


class TestExactness:
    """Without the fallback the plan is the optimum of equation 5: nothing else constrains it."""

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @pytest.mark.parametrize(
        ("prompts", "low", "high"), [(1, 1, 9), (2, 1, 12), (2, 2, 7), (3, 1, 6), (3, 2, 9), (4, 1, 5), (4, 3, 7)]
    )
    def test_value_equals_brute_force_on_small_cases(self, algorithm: str, prompts: int, low: int, high: int) -> None:
        """4 algorithms x 7 shapes x 500 cases: 14,000 allocations, each against every other allocation."""
        cases = 500
        rng = np.random.default_rng([prompts, low, high])
        rates = random_rates(rng, cases, prompts)
        agreement = optional_agreement(algorithm, rng, rates)
        budgets = rng.integers(prompts * low, prompts * high + 1, cases)

        choices = np.array(list(itertools.product(range(low, high + 1), repeat=prompts)))
        values = kr.value(
            choices[:, None, :], np.broadcast_to(rates, (len(choices), cases, prompts)), algorithm,
            greedy_agreement=None if agreement is None else np.broadcast_to(agreement, (len(choices), cases, prompts)),
        ).sum(axis=2)  # fmt: skip
        values[choices.sum(axis=1)[:, None] != budgets] = -np.inf
        best = values.max(axis=0)

        for case in range(cases):
            plan = kr.allocate(
                rates[case], int(budgets[case]), low, high, algorithm=algorithm, fallback=False,
                greedy_agreement=None if agreement is None else agreement[case],
            )  # fmt: skip
            assert plan.rollouts.sum() == budgets[case]
            assert plan.value == pytest.approx(best[case], rel=1e-12, abs=1e-15)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @pytest.mark.parametrize("kind", ["continuous", "counted over 8", "counted over 16", "one half"])
    def test_value_equals_dynamic_programming_at_the_papers_size(self, algorithm: str, kind: str) -> None:
        rng = np.random.default_rng(len(kind))
        rates = {
            "continuous": rng.beta(0.3, 0.3, 256),
            "counted over 8": rng.binomial(8, rng.beta(0.4, 0.4, 256)) / 8,
            "counted over 16": rng.binomial(16, rng.beta(0.4, 0.4, 256)) / 16,
            "one half": np.full(256, 0.5),
        }[kind]
        agreement = optional_agreement(algorithm, rng, rates)
        plan = kr.allocate(rates, 2048, 2, 128, algorithm=algorithm, fallback=False, greedy_agreement=agreement)
        values = kr.value(
            np.broadcast_to(np.arange(2, 129), (256, 127)), np.broadcast_to(rates[:, None], (256, 127)), algorithm,
            greedy_agreement=None if agreement is None else np.broadcast_to(agreement[:, None], (256, 127)),
        )  # fmt: skip
        best = values[np.arange(256), best_rollouts(values, 2048 - 512)].sum()
        assert plan.rollouts.sum() == 2048
        assert plan.value == pytest.approx(best, rel=1e-12)

    @pytest.mark.parametrize("seed", range(4))
    def test_what_the_fallback_leaves_is_spent_optimally_at_the_papers_size(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rates = rng.binomial(8, rng.beta(0.4, 0.2, 256)) / 8
        plan = kr.allocate(rates, 2048)
        learnable = (rates > 0) & (rates < 1)
        values = kr.value(np.arange(2, 129), rates[learnable, None])
        spent = int(plan.rollouts[learnable].sum()) - 2 * len(values)
        best = values[np.arange(len(values)), best_rollouts(values, spent)].sum()
        assert plan.value == pytest.approx(best, rel=1e-12)


class TestTable3:
    def test_with_fallback(self) -> None:
        plan = kr.allocate(TABLE_3, 64)
        assert plan.rollouts.tolist() == [29, 23, 2, 2, 2, 2, 2, 2]
        assert plan.fallback == 27

    def test_without_fallback(self) -> None:
        plan = kr.allocate(TABLE_3, 64, fallback=False)
        assert plan.rollouts.tolist() == [2, 50, 2, 2, 2, 2, 2, 2]
        assert plan.fallback == 0

    def test_value_is_that_of_the_one_prompt_that_can_teach(self) -> None:
        assert kr.allocate(TABLE_3, 64).value == pytest.approx(float(kr.value(23, 0.9)))


def plain_rule(rates: list[float], budget: int, low: int, high: int, fallback: bool, confidence: float) -> list[int]:
    """The rule as the documentation tells it, one rollout at a time."""
    count = len(rates)
    unvisited = [i for i in range(count) if np.isnan(rates[i])]
    unsolved = [i for i in range(count) if rates[i] == 0]
    solved = [i for i in range(count) if rates[i] == 1]
    learnable = [i for i in range(count) if 0 < rates[i] < 1]
    plan = [low] * count

    def deal(receivers: list[int], amount: int) -> int:
        """One each in turn, in order of position; whoever is full is passed over."""
        dealt = 0
        while dealt < amount and any(plan[i] < high for i in receivers):
            for i in receivers:
                if dealt < amount and plan[i] < high:
                    plan[i] += 1
                    dealt += 1
        return dealt

    for i in unvisited:
        plan[i] = 0
    for k in range(budget * len(unvisited) // count):
        plan[unvisited[k % len(unvisited)]] += 1
    left = budget - sum(plan)

    costs = [min(int(np.log(1 - confidence) / np.log(max(rates[i], 1 - rates[i]))), high - low) for i in learnable]
    if fallback:
        left -= deal(unsolved, left - sum(costs))
    while left and any(plan[i] < high for i in learnable):
        gains = [
            float(kr.value(plan[i] + 1, rates[i]) - kr.value(plan[i], rates[i])) if plan[i] < high else -1.0
            for i in learnable
        ]
        plan[learnable[int(np.argmax(gains))]] += 1
        left -= 1
    left -= deal(sorted(unsolved + unvisited), left)
    deal(solved, left)
    return plan


def test_the_rule_is_what_its_description_says() -> None:
    """Coarse rates without mirror images, so that rounding in the plain version cannot reverse near-ties."""
    rng = np.random.default_rng(5)
    for _ in range(400):
        rates = rng.choice([np.nan, 0.0, 0.125, 0.3, 0.45, 0.6, 0.9, 1.0], size=rng.integers(1, 9))
        low = int(rng.integers(1, 4))
        high = low + int(rng.integers(0, 25))
        budget = int(rng.integers(len(rates) * low, len(rates) * high + 1))
        fallback, confidence = bool(rng.integers(2)), float(rng.choice([0.5, 0.9, 0.99]))
        plan = kr.allocate(rates, budget, low, high, fallback=fallback, confidence=confidence)
        expected = plain_rule(rates.tolist(), budget, low, high, fallback, confidence)
        assert plan.rollouts.sum() == budget
        learnable = (rates > 0) & (rates < 1)
        assert plan.rollouts[~learnable].tolist() == np.array(expected)[~learnable].tolist()
        assert plan.value == pytest.approx(np.nansum(kr.value(expected, rates)), rel=1e-12, abs=1e-15)


def test_leftovers_go_evenly_even_when_somebody_fills_up_early() -> None:
    """The unsolved take 2 + k, the never-visited 10 + k, until these are full at 12."""
    plan = kr.allocate([0.0, np.nan, 0.0, 0.0, np.nan, 0.0, 1.0, 1.0], 80, 2, 12, fallback=False)
    assert plan.rollouts.sum() == 80
    assert plan.rollouts[[0, 2, 3, 5]].tolist() == [12, 12, 12, 12]
    plan = kr.allocate([0.0, np.nan, 0.0, 0.0, 1.0], 25, 2, 7, fallback=False)
    assert plan.rollouts.tolist() == [6, 7, 5, 5, 2]


class TestNeverVisited:
    def test_a_first_step_is_uniform(self) -> None:
        assert kr.allocate([np.nan] * 4, 32).rollouts.tolist() == [8, 8, 8, 8]

    def test_the_mean_is_rounded_so_that_the_sum_holds(self) -> None:
        assert kr.allocate([np.nan] * 5, 17).rollouts.tolist() == [4, 4, 3, 3, 3]

    def test_they_get_the_mean_among_prompts_that_can_take_the_rest(self) -> None:
        rates = [np.nan, 0.5, 0.1, np.nan, 0.0, 1.0, 1.0]
        plan = kr.allocate(rates, 60)
        assert {plan.rollouts[0], plan.rollouts[3]} <= {8, 9}

    def test_they_share_with_the_unsolved_before_solved_prompts_get_more(self) -> None:
        assert kr.allocate([np.nan, 1.0, np.nan, 1.0, 1.0], 17).rollouts.tolist() == [6, 2, 5, 2, 2]

    def test_they_do_not_count_in_the_value(self) -> None:
        plan = kr.allocate([np.nan, 0.5], 16)
        assert plan.value == pytest.approx(float(kr.value(plan.rollouts[1], 0.5)))

    def test_none_reads_as_never_visited(self) -> None:
        assert kr.allocate([None, None], 16).rollouts.tolist() == [8, 8]


class TestCorners:
    @pytest.mark.parametrize("rate", [0.0, 5e-324, 1e-300, 1e-17, 0.5, 1 - 2**-53, 1.0, np.nan])
    @pytest.mark.parametrize("algorithm", ["grpo", "rloo", "reinforce"])
    @pytest.mark.parametrize("fallback", [True, False])
    def test_one_rate_everywhere(self, rate: float, algorithm: str, fallback: bool) -> None:
        rollouts = kr.allocate([rate] * 7, 40, 2, 9, algorithm=algorithm, fallback=fallback).rollouts
        assert rollouts.sum() == 40
        assert rollouts.min() >= 2
        assert rollouts.max() <= 9

    def test_equal_prompts_get_equal_shares(self) -> None:
        assert kr.allocate([0.5] * 6, 44).rollouts.tolist() == [8, 8, 7, 7, 7, 7]

    def test_no_prompts(self) -> None:
        plan = kr.allocate([], 0)
        assert plan.rollouts.shape == (0,)
        assert plan.rollouts.dtype == np.int64
        assert (plan.value, plan.fallback) == (0.0, 0)

    @pytest.mark.parametrize("rate", [0.0, 0.4, 1.0, np.nan])
    def test_one_prompt_gets_everything(self, rate: float) -> None:
        assert kr.allocate([rate], 57).rollouts.tolist() == [57]

    @pytest.mark.parametrize(("budget", "each"), [(10, 2), (640, 128)])
    def test_a_budget_at_a_limit_leaves_no_choice(self, budget: int, each: int) -> None:
        assert kr.allocate([0.0, 0.5, 1.0, np.nan, 0.1], budget).rollouts.tolist() == [each] * 5

    def test_equal_bounds_leave_no_choice(self) -> None:
        assert kr.allocate([0.0, 0.5, 1.0, np.nan], 16, 4, 4).rollouts.tolist() == [4] * 4

    @pytest.mark.parametrize("max_rollouts", [10**6, 2**63, 10**30])
    def test_the_maximum_may_be_no_limit_at_all(self, max_rollouts: int) -> None:
        rates = [0.5, 0.2, 1.0, 0.0, np.nan]
        expected = kr.allocate(rates, 4000, max_rollouts=4000)
        plan = kr.allocate(rates, 4000, max_rollouts=max_rollouts)
        assert plan.rollouts.tolist() == expected.rollouts.tolist()
        assert plan.fallback == expected.fallback

    def test_huge_bounds_do_not_overflow(self) -> None:
        plan = kr.allocate([0.0] * 8, 2**62, max_rollouts=2**62)
        assert sum(plan.rollouts.tolist()) == 2**62

    @pytest.mark.parametrize("integer", [np.int8, np.uint8, np.int16, np.int64])
    def test_narrow_numpy_integers_do_not_overflow(self, integer: type[np.integer]) -> None:
        plan = kr.allocate([np.nan, np.nan, 0.5, 0.1], integer(120), integer(2), integer(100))
        assert plan.rollouts.tolist() == kr.allocate([np.nan, np.nan, 0.5, 0.1], 120, 2, 100).rollouts.tolist()

    def test_rates_may_come_in_any_numeric_container(self) -> None:
        class Column:
            """As a column of a data frame: only the array protocol."""

            def __array__(self, dtype=None, copy=None) -> np.ndarray:
                return np.array([0.0, 0.25, 1.0], dtype=dtype or np.float64)

        expected = kr.allocate([0.0, 0.25, 1.0], 24).rollouts.tolist()
        for rates in ((0, 0.25, 1), np.float32([0, 0.25, 1]), np.array([0, 0.25, 1], dtype=object), Column()):
            assert kr.allocate(rates, 24).rollouts.tolist() == expected
        assert kr.allocate([False, True], 16).rollouts.tolist() == kr.allocate([0.0, 1.0], 16).rollouts.tolist()

    def test_the_input_is_left_alone(self) -> None:
        rates = np.array([np.nan, 0.0, 0.5, 1.0])
        before = rates.copy()
        kr.allocate(rates, 32)
        np.testing.assert_array_equal(rates, before)

    def test_the_same_input_gives_the_same_plan(self) -> None:
        rates = random_rates(np.random.default_rng(3), 256)
        assert kr.allocate(rates, 2048).rollouts.tolist() == kr.allocate(rates, 2048).rollouts.tolist()

    def test_a_remax_prompt_with_unknown_agreement_is_refused(self) -> None:
        with pytest.raises(kr.InvalidInputError, match=r"greedy_agreement.*NaN"):
            kr.allocate([0.5, 0.3], 20, algorithm="remax", greedy_agreement=[0.5, np.nan])

    def test_a_never_visited_remax_prompt_needs_no_agreement(self) -> None:
        plan = kr.allocate([0.5, np.nan], 20, algorithm="remax", greedy_agreement=[0.5, np.nan])
        assert plan.rollouts.tolist() == [10, 10]


class TestRefusals:
    def test_too_small_a_budget_says_by_how_much(self) -> None:
        with pytest.raises(kr.InfeasibleBudgetError, match=r"budget: .*at least 6 .*got 5, 1 too few") as error:
            kr.allocate([0.1, 0.5, 1.0], 5)
        assert isinstance(error.value, ValueError)

    def test_too_large_a_budget_says_by_how_much(self) -> None:
        with pytest.raises(kr.InfeasibleBudgetError, match=r"budget: .*at most 384 .*got 400, 16 too many"):
            kr.allocate([0.1, 0.5, 1.0], 400)

    def test_no_prompts_can_take_no_budget(self) -> None:
        with pytest.raises(kr.InfeasibleBudgetError, match="5 too many"):
            kr.allocate([], 5)

    def test_an_absurd_budget_is_refused(self) -> None:
        with pytest.raises(kr.InfeasibleBudgetError, match="too many"):
            kr.allocate([0.5], 10**40)
        with pytest.raises(kr.InvalidInputError, match="budget"):
            kr.allocate([0.5], 10**40, max_rollouts=10**40)

    @pytest.mark.parametrize("budget", [8.0, "8", None, [8], np.float64(8), -8])
    def test_a_budget_is_a_whole_number(self, budget) -> None:
        with pytest.raises(kr.InvalidInputError, match="budget: expected an integer"):
            kr.allocate([0.5], budget)

    @pytest.mark.parametrize(("bound", "least"), [("min_rollouts", 0), ("max_rollouts", 1)])
    @pytest.mark.parametrize("number", [-1, 2.0, None, "2"])
    def test_bounds_are_whole_numbers_of_at_least_0_and_1(self, bound: str, least: int, number) -> None:
        with pytest.raises(kr.InvalidInputError, match=f"{bound}: expected an integer of at least {least}"):
            kr.allocate([0.5], 8, **{bound: number})

    @pytest.mark.parametrize("flag", [None, 1, "no", 0.0, [True], object()])
    def test_the_fallback_is_on_or_off(self, flag) -> None:
        for call in (lambda: kr.allocate([0.5], 8, fallback=flag), lambda: kr.BudgetAllocator(fallback=flag)):
            with pytest.raises(kr.InvalidInputError, match="fallback: expected True or False, got"):
                call()

    def test_crossed_bounds_are_refused(self) -> None:
        with pytest.raises(kr.InvalidInputError, match="min_rollouts, max_rollouts: expected min <= max, got 5 and 3"):
            kr.allocate([0.5], 4, 5, 3)

    @pytest.mark.parametrize(
        "rates", [0.5, None, [[0.5, 0.1]], "0.5", ["0.5"], [0.5, 2], [0.5 + 1j], [[0.5], [0.1, 0.2]]]
    )
    def test_rates_are_a_vector_of_probabilities(self, rates) -> None:
        with pytest.raises(kr.InvalidInputError, match="success_rates: expected"):
            kr.allocate(rates, 8)
