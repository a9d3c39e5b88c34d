"""Jobs to workers: shuffled single rollouts, and balanced whole groups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from knapsack_rl import dispatch
from knapsack_rl.errors import InvalidInputError


class TestShuffledJobs:
    @pytest.mark.parametrize("workers", [1, 2, 3, 7, 64])
    def test_every_rollout_is_one_job_of_one_worker(self, workers: int) -> None:
        rollouts = np.array([2, 0, 29, 23, 2, 1])
        jobs = dispatch.shuffled_jobs(rollouts, workers, seed=0)
        assert len(jobs) == workers
        assert all(part.dtype == np.int64 for part in jobs)
        np.testing.assert_array_equal(np.bincount(np.concatenate(jobs), minlength=6), rollouts)

    @pytest.mark.parametrize("workers", [1, 2, 3, 7, 64])
    def test_workers_differ_by_at_most_one_job(self, workers: int) -> None:
        sizes = [len(part) for part in dispatch.shuffled_jobs([10, 20, 30], workers, seed=1)]
        assert max(sizes) - min(sizes) <= 1

    def test_the_seed_decides(self) -> None:
        def deal(seed: int) -> list[list[int]]:
            return [part.tolist() for part in dispatch.shuffled_jobs([8] * 16, 4, seed)]

        assert deal(3) == deal(3)
        assert deal(3) != deal(4)

    def test_the_deal_of_a_seed_never_changes_silently(self) -> None:
        assert [part.tolist() for part in dispatch.shuffled_jobs([3, 2], 2, seed=0)] == [[0, 1, 1], [0, 0]]

    def test_jobs_of_one_prompt_are_spread_over_the_workers(self) -> None:
        jobs = dispatch.shuffled_jobs([128] + [2] * 64, 4, seed=0)
        assert all(20 < np.count_nonzero(part == 0) < 44 for part in jobs)

    def test_no_jobs_are_no_work(self) -> None:
        assert [len(part) for part in dispatch.shuffled_jobs([], 3, seed=0)] == [0, 0, 0]
        assert [len(part) for part in dispatch.shuffled_jobs([0, 0], 2, seed=0)] == [0, 0]

    @pytest.mark.parametrize(
        ("rollouts", "workers", "seed", "message"),
        [
            ([-1], 2, 0, "rollouts: expected counts of 0 or more"),
            ([1.5], 2, 0, "rollouts: expected whole numbers"),
            ([[1]], 2, 0, "rollouts: expected a vector"),
            ([1], 0, 0, "workers: expected an integer of at least 1, got 0"),
            ([1], 2.0, 0, "workers: expected an integer"),
            ([1], 2, -1, "seed: expected an integer of at least 0"),
            ([1], 2, None, "seed: expected an integer"),
        ],
    )
    def test_bad_arguments_are_refused_by_name(self, rollouts, workers, seed, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            dispatch.shuffled_jobs(rollouts, workers, seed)


def loads(groups: dispatch.Groups, costs: np.ndarray) -> np.ndarray:
    return np.array([costs[positions].sum() for positions in groups])


def least_possible_load(costs: np.ndarray, workers: int) -> float:
    """The smallest largest load over all partitions."""
    deals = np.array(list(itertools.product(range(workers), repeat=len(costs))))
    totals = np.stack([(costs * (deals == worker)).sum(axis=1) for worker in range(workers)])
    return float(totals.max(axis=0).min())


def is_partition(groups: dispatch.Groups, count: int) -> bool:
    return sorted(np.concatenate([*groups, np.empty(0, dtype=np.int64)]).tolist()) == list(range(count))


class TestBalancedGroups:
    @pytest.mark.parametrize("workers", [1, 2, 3, 4])
    def test_the_largest_load_is_within_the_known_bound_of_the_optimum(self, workers: int) -> None:
        """Michiels et al. (2007): 7/6 for two workers, 4/3 - 1/(3 (m - 1)) for m; one worker has no choice."""
        bound = {1: 1.0, 2: 7 / 6}.get(workers) or 4 / 3 - 1 / (3 * workers)
        rng = np.random.default_rng(workers)
        ratios = []
        for _ in range(60):
            costs = rng.integers(1, 60, rng.integers(1, 8)).astype(float)
            groups = dispatch.balanced_groups(costs, workers)
            assert len(groups) == workers
            assert is_partition(groups, len(costs))
            ratios.append(loads(groups, costs).max() / least_possible_load(costs, workers))
        assert max(ratios) <= bound + 1e-12
        assert np.mean(np.isclose(ratios, 1.0)) > 0.6  # and mostly it is the optimum

    @pytest.mark.parametrize(
        ("costs", "workers", "best"),
        [
            ([4, 5, 6, 7, 8], 2, 16),  # the textbook's set: differencing finds 16 : 14, the optimum is 15
            ([8, 7, 6, 5, 4, 3, 2, 1], 2, 18),
            ([1, 1, 1, 1], 2, 2),
            ([10, 1, 1, 1], 2, 10),
            ([5, 5, 5, 5, 5, 5], 3, 10),
            ([9, 8, 7, 6, 5, 4, 3, 2, 1], 3, 16),  # differencing again; the optimum is 15
            ([2, 2], 4, 2),
        ],
    )
    def test_known_sets(self, costs: list[int], workers: int, best: float) -> None:
        groups = dispatch.balanced_groups(costs, workers)
        assert loads(groups, np.array(costs)).max() == best

    def test_a_knapsack_plan_is_balanced_where_equal_counts_of_prompts_are_not(self) -> None:
        rollouts = np.array([128, 93, 64, 50] + [2] * 12 + [8] * 48)
        groups = dispatch.balanced_groups(rollouts, 8)
        chunks = [rollouts[part].sum() for part in np.array_split(np.arange(rollouts.size), 8)]
        assert groups.imbalance == pytest.approx(128 / (rollouts.sum() / 8))  # the largest group alone
        assert max(chunks) > 2 * loads(groups, rollouts).max()

    def test_imbalance_is_the_largest_load_over_the_mean(self) -> None:
        costs = np.array([3.5, 1.0, 2.0, 7.25])
        groups = dispatch.balanced_groups(costs, 3)
        totals = loads(groups, costs)
        assert groups.imbalance == pytest.approx(totals.max() / totals.mean())
        assert dispatch.balanced_groups([1, 1], 2).imbalance == 1.0
        assert dispatch.balanced_groups([1], 4).imbalance == 4.0

    def test_without_any_cost_the_balance_is_perfect(self) -> None:
        for costs in ([], [0, 0, 0]):
            groups = dispatch.balanced_groups(costs, 3)
            assert groups.imbalance == 1.0
            assert len(groups) == 3
            assert is_partition(groups, len(costs))

    def test_positions_ascend_and_the_answer_is_reproducible(self) -> None:
        costs = np.random.default_rng(0).integers(1, 9, 100)
        first, second = dispatch.balanced_groups(costs, 7), dispatch.balanced_groups(costs, 7)
        assert [part.tolist() for part in first] == [part.tolist() for part in second]
        assert all((np.diff(part) > 0).all() and part.dtype == np.int64 for part in first)

    @pytest.mark.parametrize(
        ("costs", "workers", "message"),
        [
            ([-1.0], 2, "costs: expected"),
            ([np.nan], 2, "costs: expected"),
            ([np.inf], 2, "costs: expected"),
            ([[1.0]], 2, "costs: expected"),
            (["a"], 2, "costs: expected numbers"),
            ([1.0], 0, "workers: expected an integer of at least 1"),
            ([1.0], 1.5, "workers: expected an integer"),
        ],
    )
    def test_bad_arguments_are_refused_by_name(self, costs, workers, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            dispatch.balanced_groups(costs, workers)


class TestLongestFirst:
    def test_every_group_goes_to_one_worker_which_starts_its_longest_rollouts_first(self) -> None:
        costs, rollouts = [10.0, 40.0, 10.0, 20.0], [8, 2, 8, 4]  # loads of 80
        groups = dispatch.longest_first(costs, rollouts, 2)
        assert groups.imbalance == 1.0
        assert is_partition(groups, 4)
        assert all((np.diff(np.array(costs)[part]) <= 0).all() and part.dtype == np.int64 for part in groups)

    @pytest.mark.parametrize("workers", [2, 3])
    def test_the_largest_load_is_within_grahams_bound_of_the_optimum(self, workers: int) -> None:
        """Graham (1969): 4/3 - 1/(3 m) for the longest processing time first; differencing keeps to it as well."""
        rng = np.random.default_rng(workers)
        for _ in range(60):
            rollouts = rng.integers(0, 9, rng.integers(1, 8))
            costs = rng.lognormal(0.0, 1.0, len(rollouts))
            groups = dispatch.longest_first(costs, rollouts, workers)
            most = loads(groups, costs * rollouts).max()
            assert most <= (4 / 3 - 1 / (3 * workers)) * least_possible_load(costs * rollouts, workers) + 1e-9

    def test_equal_costs_are_balanced_by_rollouts_and_keep_their_order(self) -> None:
        rollouts = np.array([2, 29, 23, 2, 2, 2, 2, 2])
        groups = dispatch.longest_first(np.full(8, 7.0), rollouts, 3)
        assert [part.tolist() for part in groups] == [part.tolist() for part in dispatch.balanced_groups(rollouts, 3)]

    def test_prompts_without_rollouts_weigh_nothing(self) -> None:
        groups = dispatch.longest_first([100.0, 1.0, 1.0], [0, 3, 3], 2)
        assert groups.imbalance == 1.0
        assert is_partition(groups, 3)

    @pytest.mark.parametrize(
        ("costs", "rollouts", "workers", "message"),
        [
            ([1.0], [1, 2], 2, "costs: expected one for each of the 2 prompts of rollouts, got 1"),
            ([-1.0], [1], 2, "costs: expected a vector of finite numbers"),
            ([np.nan], [1], 2, "costs: expected a vector of finite numbers"),
            ([1.0], [-1], 2, "rollouts: expected counts"),
            ([[1.0]], [[1]], 2, "costs: expected a vector"),
            ([1.0], [[1]], 2, "rollouts: expected a vector"),
            ([1.0], [1], 0, "workers: expected an integer of at least 1"),
        ],
    )
    def test_bad_arguments_are_refused_by_name(self, costs, rollouts, workers, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            dispatch.longest_first(costs, rollouts, workers)
