"""Metrics against loops over single rollouts, and the paper's thresholds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl import metrics
from knapsack_rl.errors import InvalidInputError


def groups_of_rewards(rng: np.random.Generator) -> list[list[int]]:
    return [
        rng.binomial(1, rng.choice([0.0, 0.1, 0.5, 1.0]), rng.integers(0, 9)).tolist()
        for _ in range(rng.integers(1, 30))
    ]


def counts(groups: list[list[int]]) -> tuple[list[int], list[int]]:
    return [sum(group) for group in groups], [len(group) for group in groups]


def test_effective_gradient_ratio_is_equation_4_over_single_rollouts() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        groups = [*groups_of_rewards(rng), [0, 1]]
        nonzero = total = 0
        for group in groups:
            for reward in group:
                advantage = reward - sum(group) / len(group)
                nonzero += advantage != 0
                total += 1
        assert metrics.effective_gradient_ratio(*counts(groups)) == pytest.approx(nonzero / total)


def test_shares_of_prompts_are_counted_group_by_group() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        groups = [group for group in groups_of_rewards(rng) if group] or [[1]]
        ratios = metrics.zero_gradient_ratios(*counts(groups))
        assert ratios.all_positive == pytest.approx(np.mean([all(group) for group in groups]))
        assert ratios.all_negative == pytest.approx(np.mean([not any(group) for group in groups]))
        assert metrics.effective_prompts(*counts(groups)) == pytest.approx(1 - sum(ratios))


def test_zero_gradient_ratios_are_positive_then_negative() -> None:
    positive, negative = metrics.zero_gradient_ratios([4, 0, 0, 2], [4, 4, 4, 4])
    assert (positive, negative) == (0.25, 0.5)


def test_uneven_groups_weigh_by_their_rollouts_only_in_the_effective_gradient_ratio() -> None:
    assert metrics.effective_gradient_ratio([1, 0], [30, 10]) == 0.75
    assert metrics.effective_prompts([1, 0], [30, 10]) == 0.5


def test_prompts_without_rollouts_are_left_out() -> None:
    assert metrics.effective_prompts([0, 1], [0, 2]) == 1.0
    assert metrics.effective_gradient_ratio([0, 1], [0, 2]) == 1.0
    assert tuple(metrics.zero_gradient_ratios([0, 2], [0, 2])) == (1.0, 0.0)


@pytest.mark.parametrize(("successes", "rollouts"), [([], []), ([0], [0])])
def test_shares_of_nothing_are_unknown(successes: list[int], rollouts: list[int]) -> None:
    shares = [
        metrics.effective_gradient_ratio(successes, rollouts),
        metrics.effective_prompts(successes, rollouts),
        *metrics.zero_gradient_ratios(successes, rollouts),
    ]
    assert np.isnan(shares).all()


@pytest.mark.parametrize(
    "metric", [metrics.effective_gradient_ratio, metrics.effective_prompts, metrics.zero_gradient_ratios]
)
def test_impossible_counts_are_refused(metric) -> None:
    with pytest.raises(InvalidInputError, match="successes, rollouts: expected two vectors of the same length"):
        metric([1], [2, 2])
    with pytest.raises(InvalidInputError, match="successes: expected at most rollouts, got 3 successes of 2"):
        metric([0, 3], [2, 2])
    with pytest.raises(InvalidInputError, match="rollouts: expected counts of 0 or more"):
        metric([0], [-2])


def test_status_has_the_papers_thresholds() -> None:
    rates = [0.0, 5e-324, 0.2, np.nextafter(0.2, 1), 0.5, np.nextafter(0.8, 0), 0.8, 1 - 2**-53, 1.0]
    assert metrics.status(rates).tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 4]
    assert metrics.status([1 / 5, 4 / 5, 8 / 10, 2 / 10]).tolist() == [1, 3, 3, 1]
    assert metrics.status([0, 1]).tolist() == [0, 4]
    assert metrics.status([]).tolist() == []
    assert len(metrics.STATUSES) == 5


def test_status_of_the_never_visited_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"success_rates: .*NaN at position 1"):
        metrics.status([0.5, np.nan])


def test_transition_matrix_counts_moves_between_statuses() -> None:
    rng = np.random.default_rng(2)
    before, after = rng.integers(0, 9, 500) / 8, rng.integers(0, 9, 500) / 8
    matrix = metrics.transition_matrix(before, after)
    begin, end = metrics.status(before), metrics.status(after)
    assert matrix.shape == (5, 5)
    for i in range(5):
        for j in range(5):
            expected = sum((b == i) and (e == j) for b, e in zip(begin, end, strict=True)) / sum(begin == i)
            assert matrix[i, j] == pytest.approx(expected)
    np.testing.assert_array_equal(matrix, metrics.transition_matrix(begin, end))


def test_transition_rows_always_sum_to_1() -> None:
    np.testing.assert_array_equal(metrics.transition_matrix([], []), np.eye(5))
    matrix = metrics.transition_matrix([0.0, 0.0, 1.0], [0.5, 0.0, 1.0])
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0)
    assert matrix[0].tolist() == [0.5, 0.0, 0.5, 0.0, 0.0]
    assert matrix[3].tolist() == [0.0, 0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([0.5], [0.5, 0.5], "before, after: expected two vectors of the same length"),
        ([[0.5]], [[0.5]], "before, after: expected two vectors"),
        ([5], [0], "before: expected statuses 0 to 4, got 5"),
        ([0], [-1], "after: expected"),
        ([0.5], [1.5], "after: expected probabilities"),
        ([np.nan], [0.5], "before: expected probabilities"),
        ([[0.5], [0.5, 0.1]], [0.5], "before: expected numbers"),
    ],
)
def test_impossible_transitions_are_refused_by_name(before, after, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        metrics.transition_matrix(before, after)


visits = st.integers(1, 9).flatmap(lambda tried: st.tuples(st.integers(0, tried), st.just(tried)))


@given(st.lists(st.tuples(visits, visits), max_size=12))
def test_learning_progress_is_the_mean_over_all_parts_of_all_groups(pairs) -> None:
    weight, total = np.zeros((2, 5))
    for (won, tried), (later_won, later_tried) in pairs:
        part = max(tried // 2, 3)
        if tried <= part:
            continue
        parts = list(combinations([1] * won + [0] * (tried - won), part))
        for right in map(sum, parts):
            kind = 0 if right == 0 else 4 if right == part else 1 + (2 * right >= part) + (2 * right > part)
            weight[kind] += 1 / len(parts)
            total[kind] += (later_won / later_tried - (won - right) / (tried - part)) / len(parts)
    before, after = (np.array([pair[i] for pair in pairs]).reshape(-1, 2).T for i in (0, 1))
    found = metrics.learning_progress(*before, *after)
    np.testing.assert_allclose(found.pairs, weight, atol=1e-9)
    np.testing.assert_allclose(found.rise, np.where(weight > 0, total / np.maximum(weight, 1e-12), np.nan), atol=1e-9)


def test_where_nothing_is_learned_no_class_gains_and_errors_say_how_sure_that_is() -> None:
    """Sorting by the whole group would show those with few right rise and those with many fall."""
    random, scores = np.random.default_rng(0), []
    for _ in range(200):
        rates = np.tile(random.beta(0.5, 0.5, 200), 2)
        first, later = random.binomial(8, rates), random.binomial(8, rates)
        found = metrics.learning_progress(first, np.full(400, 8), later, np.full(400, 8), np.arange(400) // 20)
        scores.append(found.rise / found.error)
    assert np.all(np.abs(np.mean(scores, axis=0)) < 0.3)
    np.testing.assert_allclose(np.std(scores, axis=0), 1.0, atol=0.2)


def test_learning_progress_finds_who_gains() -> None:
    random = np.random.default_rng(1)
    rates = random.beta(0.7, 0.7, 20_000)
    grown = rates + 0.8 * rates * (1 - rates) ** 2  # the paper's worth of a gradient
    counts = random.binomial(8, rates), np.full(20_000, 8), random.binomial(8, grown), np.full(20_000, 8)
    found = metrics.learning_progress(*counts)
    told = random.binomial(4, rates)
    for kind, right in enumerate(range(5)):
        expected = (grown - rates)[told == right]
        assert found.rise[kind] == pytest.approx(expected.mean(), abs=4 * found.error[kind])
    assert found.rise[1] > 1.5 * found.rise[3] > 0


def test_learning_progress_of_what_never_came_again_is_not_known() -> None:
    found = metrics.learning_progress([], [], [], [])
    assert np.isnan(found.rise).all()
    assert np.isinf(found.error).all()
    assert np.isinf(metrics.learning_progress([1, 2], [8, 8], [3, 4], [8, 8], steps=[1, 1]).error).all()


def test_pairs_of_different_lengths_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="later_successes"):
        metrics.learning_progress([1, 2], [8, 8], [1], [8])
    with pytest.raises(InvalidInputError, match="steps"):
        metrics.learning_progress([1, 2], [8, 8], [1, 1], [8, 8], steps=[1])
