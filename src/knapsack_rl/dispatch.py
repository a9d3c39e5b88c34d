"""Getting jobs to workers (paper, section 4.2, "rollout balancing")."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.validation import as_counts, as_floats, as_integer

Ints = NDArray[np.int64]


class Groups(list[Ints]):
    """What each worker gets: one int64 vector of item positions per worker.

    Attributes:
        imbalance: the largest load over the mean load, 1 where the balance is perfect; the factor by which the slowest
            worker keeps the others waiting.
    """

    def __init__(self, groups: Iterable[Ints], imbalance: float) -> None:
        super().__init__(groups)
        self.imbalance = imbalance


def shuffled_jobs(rollouts: ArrayLike, workers: int, seed: int) -> list[Ints]:
    """Every rollout its own job, dealt at random (the paper's default).

    Args:
        rollouts: shape (M,), N_i.
        workers: number of workers, 1 or more.
        seed: 0 or more; the same seed gives the same deal on every machine.

    Returns:
        One int64 vector per worker: the position of the prompt that each of its jobs is a rollout of. Workers differ
        by at most one job.

    Raises:
        InvalidInputError: an argument is out of range.

    Cost: O(budget).
    """
    counts = _one_per_prompt(rollouts)
    jobs = np.repeat(np.arange(len(counts)), counts)
    generator = np.random.default_rng(as_integer("seed", seed, at_least=0))
    return np.array_split(generator.permutation(jobs), as_integer("workers", workers, at_least=1))


def balanced_groups(costs: ArrayLike, workers: int) -> Groups:
    """Whole groups to workers, so that prefixes stay shared and loads are about equal.

    Karmarkar and Karp's largest differencing method (the paper's reference 14): repeatedly take the two partial
    solutions with the largest spread and put the heavy loads of one with the light loads of the other.

    Args:
        costs: shape (M,), cost of each group, for instance its rollouts or its expected tokens; 0 or more, finite.
        workers: number of workers, 1 or more; with fewer groups than workers, some get none.

    Returns:
        For each worker the positions of its groups, ascending; every position appears once. `.imbalance` says how even
        it is.

    Raises:
        InvalidInputError: an argument is out of range.

    Cost: O(M workers log(M workers)) for costs of the same order, O(M^2) where one outweighs all the others together.
    """
    loads = _finite(costs)
    count = as_integer("workers", workers, at_least=1)

    # A partial solution is a list of (load, positions), heaviest first; the heap holds the largest spread on top.
    empty: list[tuple[float, list[int]]] = [(0.0, [])]
    heap = [
        (-load, position, [(load, [position]), *empty * (count - 1)]) for position, load in enumerate(loads.tolist())
    ]
    if count > 1:
        heapq.heapify(heap)
        while len(heap) > 1:
            _, order, first = heapq.heappop(heap)
            _, _, second = heapq.heappop(heap)
            merged = [(a + b, left + right) for (a, left), (b, right) in zip(first, reversed(second), strict=True)]
            merged.sort(key=lambda part: part[0], reverse=True)
            heapq.heappush(heap, (merged[-1][0] - merged[0][0], order, merged))
        parts = [positions for _, positions in heap[0][2]] if heap else [[] for _ in range(count)]
    else:
        parts = [list(range(len(loads)))]

    groups = [np.array(sorted(positions), dtype=np.int64) for positions in parts]
    totals = np.array([loads[positions].sum() for positions in groups])
    return Groups(groups, float(totals.max() * count / totals.sum()) if totals.any() else 1.0)


def longest_first(costs: ArrayLike, rollouts: ArrayLike, workers: int) -> Groups:
    """Whole groups to workers, balanced by what they are expected to cost, each worker's longest rollouts first.

    For workers that batch continuously and have more rollouts than slots: one that starts its longest rollouts first
    ends with short ones, so that its slots fall empty together (Graham, "Bounds on multiprocessing timing anomalies",
    1969), and prefixes stay shared. docs/dispatch.md says when that ends a step sooner.

    Args:
        costs: shape (M,), expected cost of one rollout of each prompt, for instance its tokens; 0 or more, finite.
            `BudgetAllocator.expected_costs` has them.
        rollouts: shape (M,), N_i.
        workers: number of workers, 1 or more; with fewer groups than workers, some get none.

    Returns:
        For each worker the positions of its groups, in the order in which to start them: costs do not rise. Every
        position appears once. `.imbalance` says how even the expected loads are.

    Raises:
        InvalidInputError: an argument is out of range, or shapes differ.

    Cost: as `balanced_groups`.
    """
    lengths, counts = _finite(costs), _one_per_prompt(rollouts)
    if lengths.shape != counts.shape:
        raise InvalidInputError(
            f"costs: expected one for each of the {len(counts)} prompts of rollouts, got {len(lengths)}."
        )
    groups = balanced_groups(lengths * counts, workers)
    return Groups((part[np.argsort(-lengths[part], kind="stable")] for part in groups), groups.imbalance)


def _one_per_prompt(rollouts: ArrayLike) -> Ints:
    counts = as_counts("rollouts", rollouts)
    if counts.ndim != 1:
        raise InvalidInputError(f"rollouts: expected a vector, one number per prompt, got shape {counts.shape}.")
    return counts


def _finite(costs: ArrayLike) -> NDArray[np.float64]:
    loads = as_floats("costs", costs)
    if loads.ndim != 1 or not np.all(np.isfinite(loads)) or np.any(loads < 0):
        raise InvalidInputError(f"costs: expected a vector of finite numbers of 0 or more, got {loads!r}.")
    return loads
