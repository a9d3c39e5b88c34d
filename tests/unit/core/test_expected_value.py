"""Expected values and gains under a belief, against integrals, enumeration and brute force over plans."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import knapsack_rl as kr
from knapsack_rl.belief import Belief
from knapsack_rl.beta import digamma, log_beta, log_gamma
from knapsack_rl.expected_value import expected_gains, expected_value
from knapsack_rl.influence import ASSUMED

ALGORITHMS = pytest.mark.parametrize("algorithm", ["grpo", "rloo", "reinforce"])
positive = st.floats(0.05, 60.0)


def belief(*pairs: tuple[float, float]) -> Belief:
    return Belief(*np.array(pairs, dtype=float).T)


def mean_over(a: float, b: float, function: object) -> float:
    """E[function(p)] for p ~ Beta(a, b), a midpoint rule on 200,000 points that are denser towards the ends."""
    t = (np.arange(200_000) + 0.5) / 200_000
    p = t**4 / (t**4 + (1 - t) ** 4)
    slope = 4 * t**3 * (1 - t) ** 3 / (t**4 + (1 - t) ** 4) ** 2
    log_density = (a - 1) * np.log(p) + (b - 1) * np.log((1 - t) ** 4 / (t**4 + (1 - t) ** 4))
    weights = np.exp(log_density - log_density.max()) * slope
    return float(weights @ function(p) / weights.sum())  # type: ignore[operator]


@settings(deadline=None)
@given(st.floats(1e-6, 1e4))
def test_log_gamma_is_that_of_the_standard_library(x: float) -> None:
    assert log_gamma(np.array([x]))[0] == pytest.approx(math.lgamma(x), rel=1e-11, abs=1e-11)


@settings(deadline=None)
@given(st.floats(1e-3, 1e3))
def test_digamma_is_the_slope_of_log_gamma(x: float) -> None:
    step = 1e-5 * x
    slope = (math.lgamma(x + step) - math.lgamma(x - step)) / (2 * step)
    assert digamma(np.array([x]))[0] == pytest.approx(slope, rel=1e-5, abs=1e-5)


def test_log_beta_of_whole_numbers_is_a_ratio_of_factorials() -> None:
    assert log_beta(np.array([3.0]), np.array([4.0]))[0] == pytest.approx(math.log(2 * 6 / 720))


@ALGORITHMS
@pytest.mark.parametrize("exponents", [(1.0, 2.0), ASSUMED, (0.0, 0.0)])
@pytest.mark.parametrize(("a", "b"), [(0.4, 0.9), (2.0, 5.0), (30.0, 1.5)])
def test_expected_values_are_integrals_over_the_belief(
    algorithm: str, exponents: tuple[float, float], a: float, b: float
) -> None:
    e, g = exponents
    for n in (1, 2, 7, 40):

        def worth(p: np.ndarray, n: int = n) -> np.ndarray:
            idle = (1 - p) ** n + (p**n if algorithm != "reinforce" else 0.0)
            return (1 - idle) * p**e * (1 - p) ** g

        found = expected_value([n], belief((a, b)), exponents, algorithm)[0]
        assert found == pytest.approx(mean_over(a, b, worth), rel=1e-4, abs=1e-9)


@ALGORITHMS
def test_a_belief_without_doubt_has_the_value_of_the_paper(algorithm: str) -> None:
    rates = np.array([0.05, 0.3, 0.8])
    sure = Belief(1e7 * rates, 1e7 * (1 - rates))
    for n in (1, 3, 20):
        counts = np.full(3, n)
        expected = kr.value(counts, rates, algorithm)
        assert expected_value(counts, sure, algorithm=algorithm) == pytest.approx(expected, rel=1e-4, abs=1e-7)


@ALGORITHMS
def test_gains_before_any_outcome_are_differences_of_values(algorithm: str) -> None:
    beliefs = belief((0.3, 2.0), (4.0, 4.0), (9.0, 0.5))
    nothing, placed = np.zeros(3, dtype=np.int64), np.array([1, 2, 5])
    gains = expected_gains(beliefs, nothing, nothing, placed, ASSUMED, algorithm)(np.arange(3), 0, 30)
    values = np.stack([expected_value(placed + j, beliefs, ASSUMED, algorithm) for j in range(31)], axis=1)
    assert gains == pytest.approx(np.diff(values, axis=1), rel=1e-6, abs=1e-12)


@ALGORITHMS
@pytest.mark.parametrize(("won", "tried"), [(0, 2), (2, 2), (0, 5), (1, 3)])
def test_gains_after_outcomes_are_integrals_over_the_posterior(algorithm: str, won: int, tried: int) -> None:
    e, g = ASSUMED
    one = np.ones(1, dtype=np.int64)
    found = expected_gains(belief((0.7, 1.6)), won * one, tried * one, 0 * one, ASSUMED, algorithm)
    for j, gain in enumerate(found(np.zeros(1, dtype=np.int64), 0, 6)[0]):

        def worth(p: np.ndarray, j: int = j) -> np.ndarray:
            """The chance that the (j+1)-th is the first to give the group a gradient, times the information gain."""
            first_success = (1 - p) ** j * p if won == 0 else 0.0 * p
            first_failure = p**j * (1 - p) if won == tried and algorithm != "reinforce" else 0.0 * p
            return (first_success + first_failure) * p**e * (1 - p) ** g

        assert gain == pytest.approx(mean_over(0.7 + won, 1.6 + tried - won, worth), rel=1e-4, abs=1e-12)


@settings(deadline=None)
@given(positive, positive, st.integers(0, 8), st.integers(0, 8), st.integers(0, 5))
def test_gains_fall_with_every_further_rollout(a: float, b: float, won: int, lost: int, pending: int) -> None:
    one = np.ones(1, dtype=np.int64)
    pending = max(pending, 1 - won - lost)
    gains = expected_gains(belief((a, b)), won * one, (won + lost) * one, pending * one, ASSUMED)
    row = gains(np.zeros(1, dtype=np.int64), 0, 40)[0]
    assert np.all(np.diff(row) <= 1e-15)
    assert np.all(row >= 0)
    assert (row[0] == 0) == (won > 0 and lost > 0)


@pytest.mark.parametrize("seed", range(5))
def test_a_one_shot_plan_of_the_adaptive_strategy_is_the_best_of_all_plans(seed: int) -> None:
    rng = np.random.default_rng(seed)
    allocator = kr.BudgetAllocator("adaptive", group_size=4, min_rollouts=1, max_rollouts=9)
    names = ["a", "b", "c", "d"]
    for _ in range(3):
        rollouts = rng.integers(1, 12, 4)
        allocator.tell(names, rng.binomial(rollouts, [0.02, 0.3, 0.6, 0.95]), rollouts)
    beliefs, plan = allocator.belief(names), allocator.ask(names).rollouts

    def worth(counts: np.ndarray) -> float:
        return float(expected_value(counts, beliefs, ASSUMED).sum())

    plans = (np.array(counts) for counts in itertools.product(range(1, 10), repeat=4) if sum(counts) == 16)
    assert worth(plan) == pytest.approx(max(map(worth, plans)), rel=1e-12)


def test_log_likelihoods_are_those_of_drawing_from_an_urn() -> None:
    """Polya's urn: each outcome is drawn with the mean of the belief after those before it."""
    wins, losses, expected = 0.7, 1.9, 0.0
    for outcome in (1, 0, 0, 1, 0):
        expected += math.log((wins if outcome else losses) / (wins + losses))
        wins, losses = wins + outcome, losses + 1 - outcome
    found = belief((0.7, 1.9)).log_likelihood(np.array([2]), np.array([5]))
    assert found[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    "exponents", ["12", 3, {1, 2}, None, (1.0,), (1, 2, 3), (-1.0, 2.0), (1.0, math.nan), (math.inf, 2), (10**400, 1)]
)
def test_exponents_that_are_not_two_finite_numbers_of_zero_or_more_are_refused(exponents: object) -> None:
    with pytest.raises(kr.InvalidInputError, match="exponents: expected"):
        expected_value([2], belief((1.0, 1.0)), exponents)
