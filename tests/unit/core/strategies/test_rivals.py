"""The strategies of other papers: their rules against brute force and closed forms, and what all of them keep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import knapsack_rl as kr
from knapsack_rl.estimators.features import NONE
from knapsack_rl.estimators.streaks import Streaks
from knapsack_rl.strategies.rivals import HORA, RIVALS

IDS = [f"prompt {i}" for i in range(9)]
TRUE_RATES = np.linspace(0.0, 1.0, len(IDS))
ALL = pytest.mark.parametrize("strategy", [strategy.name for strategy in (HORA, *RIVALS)])


def trained(strategy: str, visits: int = 3, seed: int = 0, **options) -> kr.BudgetAllocator:
    """An allocator that has seen all of IDS but the last two a few times."""
    allocator, rng = kr.BudgetAllocator(strategy, seed=seed, **options), np.random.default_rng(1)
    for _ in range(visits):
        tried = rng.integers(2, 12, len(IDS) - 2)
        allocator.tell(IDS[:-2], rng.binomial(tried, TRUE_RATES[:-2]), tried)
    return allocator


def walk(step: kr.Step, rng: np.random.Generator, arriving: float = 1.0) -> list[list[int]]:
    """The waves of a step whose rollouts succeed by TRUE_RATES, a share of them failing to arrive."""
    waves = []
    while step.remaining:
        rollouts = step.ask().rollouts
        assert step.ask().rollouts.tolist() == rollouts.tolist()
        scored = rng.binomial(rollouts, arriving)
        step.tell(rng.binomial(scored, TRUE_RATES), scored)
        waves.append(rollouts.tolist())
    return waves


def best_plans(prompts: int, budget: int, low: int, high: int, value: Callable[[int, int], float]) -> float:
    """The largest sum of value(prompt, N) over all plans."""
    plans = itertools.product(range(low, high + 1), repeat=prompts)
    return max(sum(value(i, n) for i, n in enumerate(plan)) for plan in plans if sum(plan) == budget)


class TestEveryRival:
    @ALL
    @pytest.mark.parametrize("algorithm", ["grpo", "rloo", "reinforce"])
    @pytest.mark.parametrize(("group_size", "low", "high"), [(8, 2, 128), (4, 4, 4), (5, 1, 7), (6, 6, 9), (3, 1, 3)])
    def test_spends_the_budget_within_the_bounds_whatever_arrives(
        self, strategy: str, algorithm: str, group_size: int, low: int, high: int
    ) -> None:
        allocator = kr.BudgetAllocator(strategy, group_size, low, high, algorithm=algorithm)
        rng = np.random.default_rng(2)
        for arriving in (1.0, 0.6, 0.0, 1.0):
            for plan in (allocator.ask(IDS).rollouts, np.sum(walk(allocator.step(IDS), rng, arriving), axis=0)):
                assert plan.sum() == group_size * len(IDS)
                assert plan.min() >= low
                assert plan.max() <= high

    @ALL
    def test_is_uniform_before_anything_is_known(self, strategy: str) -> None:
        assert kr.BudgetAllocator(strategy, group_size=5).ask(IDS).rollouts.tolist() == [5] * len(IDS)

    @ALL
    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_takes_steps_of_few_prompts(self, strategy: str, count: int) -> None:
        assert trained(strategy).ask(IDS[:count]).rollouts.sum() == 8 * count

    @ALL
    def test_changes_nothing_by_asking(self, strategy: str) -> None:
        allocator = trained(strategy)
        before = allocator.state_dict()["estimator"]
        assert allocator.ask(IDS).rollouts.tolist() == allocator.ask(IDS).rollouts.tolist()
        after = allocator.state_dict()["estimator"]
        assert before.keys() == after.keys()
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])

    @ALL
    def test_goes_on_after_a_resume_as_if_nothing_had_happened(self, strategy: str, tmp_path: Path) -> None:
        original, from_file, from_state = trained(strategy), kr.BudgetAllocator(strategy), kr.BudgetAllocator(strategy)
        original.save(tmp_path / "state.npz")
        from_file.load(tmp_path / "state.npz")
        from_state.load_state_dict(original.state_dict())
        for _ in range(3):
            waves = [walk(a.step(IDS), np.random.default_rng(3)) for a in (original, from_file, from_state)]
            assert waves[0] == waves[1] == waves[2]

    @ALL
    def test_serves_prompts_by_who_they_are_and_not_where_they_stand(self, strategy: str) -> None:
        order = np.random.default_rng(4).permutation(len(IDS))
        straight = trained(strategy).step(IDS)
        permuted = trained(strategy).step([IDS[i] for i in order])
        waves = 0
        while straight.remaining and waves < 2:  # a remainder goes to whoever stands first, and the third wave sees it
            plan, permuted_plan = straight.ask().rollouts, permuted.ask().rollouts
            assert np.abs(plan[order] - permuted_plan).max() <= 1
            assert sorted(plan) == sorted(permuted_plan)
            for step, rates in ((straight, TRUE_RATES), (permuted, TRUE_RATES[order])):
                step.tell((step.ask().rollouts * rates).astype(int), step.ask().rollouts)
            waves += 1

    @ALL
    def test_plans_twice_for_a_prompt_that_is_there_twice(self, strategy: str) -> None:
        plan = trained(strategy).ask([IDS[3], IDS[3], IDS[5]])
        assert plan.rollouts.shape == (3,)
        assert plan.rollouts.sum() == 24

    @ALL
    def test_refuses_a_state_that_lacks_something_and_keeps_its_own(self, strategy: str) -> None:
        allocator = trained(strategy)
        before, state = allocator.ask(IDS).rollouts.tolist(), allocator.state_dict()
        for name in state["estimator"]:
            if name != "discount":
                broken = {key: value for key, value in state["estimator"].items() if key != name}
                with pytest.raises(kr.StateError, match="state: expected"):
                    allocator.load_state_dict(state | {"estimator": broken})
        assert allocator.ask(IDS).rollouts.tolist() == before

    @pytest.mark.parametrize(
        ("strategy", "change"),
        [
            ("coba", {"failure": 1.5}),
            ("coba", {"failure": float("nan")}),
            ("mopps", {"updates": -1}),
            ("greso", {"updates": -1}),
            ("greso", {"easy": 0.99}),
            ("greso", {"hard": "much"}),
            ("greso", {"won": np.full(7, 99)}),
        ],
    )
    def test_refuses_a_state_that_cannot_be_and_keeps_its_own(self, strategy: str, change: dict) -> None:
        allocator = trained(strategy)
        before, state = allocator.ask(IDS).rollouts.tolist(), allocator.state_dict()
        with pytest.raises(kr.StateError, match="state: expected"):
            allocator.load_state_dict(state | {"estimator": state["estimator"] | change})
        assert allocator.ask(IDS).rollouts.tolist() == before


class TestNeyman:
    @pytest.mark.parametrize(("group_size", "low", "high"), [(4, 1, 8), (5, 2, 7), (3, 2, 12)])
    def test_has_the_least_variance_of_all_plans(self, group_size: int, low: int, high: int) -> None:
        allocator, ids = trained("neyman", group_size=group_size, min_rollouts=low, max_rollouts=high), IDS[3:7]
        p, belief = (np.arange(20000) + 0.5) / 20000, allocator.belief(ids)
        variances = []
        for a, b in zip(belief.wins, belief.losses, strict=True):
            log_weight = (a - 1) * np.log(p) + (b - 1) * np.log(1 - p)
            weight = np.exp(log_weight - log_weight.max())
            variances.append(float((weight * p * (1 - p)).sum() / weight.sum()))
        plan = allocator.ask(ids).rollouts
        best = best_plans(4, 4 * group_size, low, high, lambda i, n: -variances[i] / n)
        assert -sum(variances / plan) == pytest.approx(best, rel=1e-9)

    def test_is_proportional_to_the_deviation_where_numbers_are_large(self) -> None:
        allocator = kr.BudgetAllocator("neyman", 5000, 1, 10**6)
        for _ in range(30):  # the belief is then narrow
            allocator.tell(["even", "rare"], [50000, 1000], [100000, 100000])
        even, rare = allocator.ask(["even", "rare"]).rollouts
        p = allocator.belief(["even", "rare"]).mean
        assert even / rare == pytest.approx(math.sqrt(p[0] * (1 - p[0]) / (p[1] * (1 - p[1]))), rel=0.01)


class TestHora:
    def test_has_the_largest_chance_of_hits_of_all_plans(self) -> None:
        won, tried = [0, 1, 3, 6], [9, 6, 7, 6]
        allocator = kr.BudgetAllocator("hora", 5, 2, 9)
        allocator.tell(IDS[:4], won, tried)
        step = allocator.step(IDS[:4])
        assert step.ask().rollouts.tolist() == [2, 2, 2, 2]
        step.tell([0, 1, 0, 2], [2, 2, 1, 2])
        a = [1 + w + s for w, s in zip(won, [0, 1, 0, 2], strict=True)]
        b = [2 + t + s - x for t, s, x in zip(tried, [2, 2, 1, 2], a, strict=True)]

        def hit(i: int, n: int) -> float:
            miss = math.prod((Fraction(b[i] + j, a[i] + b[i] + j) for j in range(n)), start=Fraction(1))
            return float(1 - miss)

        plan = step.ask().rollouts
        assert sum(hit(i, int(n)) for i, n in enumerate(plan)) == pytest.approx(best_plans(4, 12, 0, 7, hit))

    def test_counts_every_outcome_of_a_prompt_alike(self) -> None:
        allocator = kr.BudgetAllocator("hora")
        for won in (0, 3, 1):
            allocator.tell(["a"], [won], [4])
        belief = allocator.belief(["a", "new"])
        assert belief.wins.tolist() == [5.0, 1.0]
        assert belief.losses.tolist() == [9.0, 1.0]

    def test_leaves_the_surely_solved_at_the_minimum(self) -> None:
        allocator = kr.BudgetAllocator("hora")
        allocator.tell(["sure", "rare"], [400, 2], [400, 100])
        assert allocator.ask(["sure", "rare"]).rollouts.tolist() == [3, 13]  # one certain hit, then nothing to gain


class TestCoba:
    @staticmethod
    def value(p: float, n: int, failure: float, tau: float) -> float:
        alpha = 1 + 9 * (failure if failure > 0.5 else 1 / (1 + math.exp(-10 * (failure - 0.5))))
        beta = 11 - alpha
        constant = math.gamma(alpha + beta) / math.gamma(alpha) / math.gamma(beta)
        return (1 - math.exp(-n * p * (1 - p) / tau)) * constant * p ** (alpha - 1) * (1 - p) ** (beta - 1)

    @pytest.mark.parametrize("won", [(0, 1, 2, 5), (0, 5, 8, 9), (0, 0, 3, 8)])
    def test_has_the_largest_value_of_all_plans_for_the_open_prompts(self, won: tuple[int, ...]) -> None:
        allocator, ids = kr.BudgetAllocator("coba", 4, 1, 9), IDS[:4]
        allocator.tell(ids, won, [10] * 4)
        rates = np.array(won) / 10
        opened = rates > 0
        p = np.clip(rates[opened], 0.01, 0.99)
        tau = 3 + 9 * min(float(np.var(p)) * 6, 1)
        failure = 1 - sum(won) / 40
        plan = allocator.ask(ids).rollouts
        assert plan[opened].sum() == len(p) + int(0.8 * 12)
        got = sum(self.value(p[i], int(n), failure, tau) for i, n in enumerate(plan[opened]))
        best = best_plans(len(p), len(p) + 9, 1, 9, lambda i, n: self.value(p[i], n, failure, tau))
        assert got == pytest.approx(best)

    @pytest.mark.parametrize(
        ("rates", "most", "planned"),
        [
            ((0.0, 0.0, 0.0, 1.0), 99, (10, 10, 10, 2)),  # nothing is open
            ((0.0, 0.0, 0.5, 1.0), 99, (6, 6, 18, 2)),  # one of four is: .7 of the 24 beyond the minimum
            ((0.0, 0.05, 0.99, 0.995), 99, (7, None, None, 2)),  # two of four are: .8; both bounds are open
            ((0.04, 0.05, 0.5, 1.0), 99, (7, None, None, 2)),
            ((0.5, 0.5, 1.0, 1.0), 11, (11, 11, 5, 5)),  # the open are full: the rest is for the easy
        ],
    )
    def test_sets_a_share_aside_for_the_hard_and_gives_it_to_the_open_and_the_easy_when_there_is_room(
        self, rates: tuple[float, ...], most: int, planned: tuple[int | None, ...]
    ) -> None:
        allocator, ids = kr.BudgetAllocator("coba", 8, 2, most), IDS[:4]
        allocator.tell(ids, [round(200 * rate) for rate in rates], [200] * 4)
        plan = allocator.ask(ids).rollouts.tolist()
        assert sum(plan) == 32
        assert [n for n, expected in zip(plan, planned, strict=True) if expected] == [n for n in planned if n]

    def test_what_no_hard_prompt_takes_goes_to_the_open_in_proportion_to_their_failures(self) -> None:
        allocator = kr.BudgetAllocator("coba", 100, 2, 999)
        allocator.tell(["hard", "easy"], [20, 80], [100, 100])
        hard, easy = allocator.ask(["hard", "easy"]).rollouts.tolist()
        by_value = 4 + int(0.8 * 196)  # of 200, and the other 40 are 32 and 8
        assert hard + easy - 40 == by_value
        tau = 3 + 9 * 0.3**2 * 6
        best = best_plans(2, by_value, 2, by_value, lambda i, n: self.value((0.2, 0.8)[i], n, 0.5, tau))
        assert self.value(0.2, hard - 32, 0.5, tau) + self.value(0.8, easy - 8, 0.5, tau) == pytest.approx(best)

    def test_consolidates_the_easy_while_the_model_fails_and_turns_to_the_hard_when_it_succeeds(self) -> None:
        plans = []
        for others in (0, 10):
            allocator = kr.BudgetAllocator("coba")
            allocator.tell(["hard", "easy", *IDS], [3, 7] + [others] * len(IDS), [10] * (2 + len(IDS)))
            plans.append(allocator.ask(["hard", "easy"]).rollouts)
        (hard, easy), (hard_later, easy_later) = plans
        assert easy > hard
        assert hard_later > easy_later


class TestPilotCommit:
    def test_commits_evenly_to_the_middle_and_drops_or_defers_the_rest(self) -> None:
        step = kr.BudgetAllocator("pilot-commit", 64).step(["none", "eighth", "three quarters", "more", "lost"])
        assert step.ask().rollouts.tolist() == [16] * 5
        step.tell([0, 2, 12, 13, 0], [16, 16, 16, 16, 0])
        plan = step.ask().rollouts  # 240, of which the two that are kept have room for 224
        assert plan[1:3].tolist() == [112, 112]
        assert plan.sum() == 240

    def test_shares_with_everyone_when_nobody_is_kept(self) -> None:
        step = kr.BudgetAllocator("pilot-commit", 8).step(["a", "b"])
        step.tell([0, 2], step.ask().rollouts)
        assert step.ask().rollouts.tolist() == [6, 6]


class TestReinforceAda:
    @pytest.mark.parametrize(("algorithm", "second"), [("grpo", [3, 3, 0]), ("reinforce", [6, 0, 0])])
    def test_goes_on_with_the_groups_that_have_no_gradient(self, algorithm: str, second: list[int]) -> None:
        step = kr.BudgetAllocator("reinforce-ada", algorithm=algorithm).step(["wrong", "right", "both"])
        step.tell([0, 2, 1], step.ask().rollouts)
        assert step.ask().rollouts.tolist() == second

    def test_has_four_rounds(self) -> None:
        waves = walk(kr.BudgetAllocator("reinforce-ada").step(IDS), np.random.default_rng(5))
        assert [sum(wave) for wave in waves] == [18, 18, 18, 18]

    def test_shares_the_rest_when_every_group_has_both(self) -> None:
        step = kr.BudgetAllocator("reinforce-ada").step(["a", "b"])
        step.tell([1, 1], step.ask().rollouts)
        assert step.ask().rollouts.tolist() == [2, 2]


class TestGreso:
    KEYS = np.arange(3, dtype=np.uint64)

    def test_a_streak_is_of_visits_without_a_gradient_and_a_single_reward_says_nothing(self) -> None:
        streaks = Streaks()
        for won, tried, expected in (
            ([0, 4, 2], [4, 4, 4], [1, 1, 0]),
            ([0, 1, 0], [2, 1, 1], [2, 1, 0]),
            ([1, 4, 0], [4, 4, 4], [0, 2, 1]),
        ):
            streaks.update(self.KEYS, np.array(won), np.array(tried), NONE)
            assert streaks.state_dict()["streak"].tolist() == expected

    def test_a_prompt_is_kept_with_a_probability_that_falls_with_its_streak(self) -> None:
        streaks = Streaks()
        streaks.update(self.KEYS, np.array([0, 4, 2]), np.array([4, 4, 4]), NONE)
        assert streaks.keep(np.arange(4, dtype=np.uint64)).tolist() == [0.5, 0.5, 1.0, 1.0]
        streaks.update(self.KEYS, np.array([0, 4, 2]), np.array([4, 4, 4]), NONE)
        assert streaks.keep(self.KEYS) == pytest.approx([0.49**2, 0.49**2, 1.0])

    def test_the_willingness_rises_where_zero_variance_is_rare_and_stays_within_its_bounds(self) -> None:
        rare, common = Streaks(), Streaks()
        for _ in range(60):
            rare.update(self.KEYS, np.array([1, 2, 3]), np.array([4, 4, 4]), NONE)
            common.update(self.KEYS, np.array([0, 4, 0]), np.array([4, 4, 4]), NONE)
        assert [rare.state_dict()[name] for name in ("easy", "hard")] == pytest.approx([0.95, 0.95])
        assert [common.state_dict()[name] for name in ("easy", "hard")] == pytest.approx([0.05, 0.05])

    def test_prompts_are_skipped_as_often_as_their_streak_says(self) -> None:
        ids, allocator = [f"{i}" for i in range(4000)], kr.BudgetAllocator("greso", seed=6)
        for _ in range(2):
            allocator.tell(ids, [0, 2] * 2000, [4] * 4000)
        rollouts = allocator.ask(ids).rollouts
        assert (rollouts[1::2] > 2).all()
        assert (rollouts[::2] > 2).mean() == pytest.approx(0.49**2, abs=4 * math.sqrt(0.24 * 0.76 / 2000))

    def test_a_skip_lasts_until_the_next_update_only(self) -> None:
        ids, allocator = [f"{i}" for i in range(200)], kr.BudgetAllocator("greso")
        allocator.tell(ids, [0, 2] * 100, [4] * 200)
        before = allocator.ask(ids).rollouts
        allocator.tell(["someone else"], [1], [2])
        assert (before[::2] > 2).tolist() != (allocator.ask(ids).rollouts[::2] > 2).tolist()


class TestMopps:
    def test_half_of_the_prompts_share_what_is_left(self) -> None:
        rollouts = sorted(trained("mopps").ask(IDS).rollouts.tolist())
        assert rollouts[:4] == [2] * 4
        assert sum(rollouts[4:]) == 64
        assert rollouts[-1] - rollouts[4] <= 1

    def test_those_that_are_surely_in_the_middle_are_chosen(self) -> None:
        allocator = kr.BudgetAllocator("mopps")
        allocator.tell(["a", "b", "c", "d"], [500, 0, 1000, 520], [1000] * 4)
        assert allocator.ask(["a", "b", "c", "d"]).rollouts.tolist() == [14, 2, 2, 14]

    def test_old_outcomes_fade_to_the_uniform_prior(self) -> None:
        allocator = kr.BudgetAllocator("mopps")
        allocator.tell(["a"], [8], [8])
        allocator.tell(["a"], [1], [4])
        belief = allocator.belief(["a", "new"])
        assert belief.wins.tolist() == [0.5 * 9 + 0.5 * 1 + 1, 1.0]
        assert belief.losses.tolist() == [0.5 * 1 + 0.5 * 1 + 3, 1.0]

    def test_a_draw_is_from_the_belief(self) -> None:
        ids, allocator = [f"{i}" for i in range(4000)], kr.BudgetAllocator("mopps", seed=7)
        allocator.tell(ids[:2000], [0] * 2000, [2] * 2000)  # Beta(1, 3) against the uniform prior of the others
        chosen = allocator.ask(ids).rollouts > 2
        # The half nearest 1/2 has a radius r at which P(|p - 1/2| <= r) is 1/2 on average over both.
        radii = np.linspace(0.0, 0.5, 100001)
        tried, new = (0.5 + radii) ** 3 - (0.5 - radii) ** 3, 2 * radii  # P(p <= x) is 1 - (1 - x)^3, and x
        at = int(np.argmin(np.abs(tried + new - 1.0)))
        assert chosen[:2000].mean() == pytest.approx(tried[at], abs=0.05)
        assert chosen[2000:].mean() == pytest.approx(new[at], abs=0.05)

    @pytest.mark.parametrize("what", ["seed", "update"])
    def test_draws_change_with_the_seed_and_with_every_update(self, what: str) -> None:
        allocator, other = trained("mopps"), trained("mopps", seed=int(what == "seed"))
        if what == "update":
            other.tell(["someone else"], [1], [2])
        ids = [*IDS, *(f"new {i}" for i in range(50))]
        assert allocator.ask(ids).rollouts.tolist() != other.ask(ids).rollouts.tolist()
