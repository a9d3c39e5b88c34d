from __future__ import annotations

import numpy as np
import pytest

import knapsack_rl as kr
from knapsack_rl.experiments.simulate import theory


def test_table_3_is_the_papers() -> None:
    found = theory.table_3()
    assert found["success_rate"] == [0.0, 0.9, *[1.0] * 6]
    assert found["cost"] == [np.inf, 22.0, *[0.0] * 6]
    assert found["with_fallback"] == [29, 23, 2, 2, 2, 2, 2, 2]
    assert found["without_fallback"] == [2, 50, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.93])
@pytest.mark.parametrize("learning_rate", [1.0, 0.1])
def test_exact_information_gain_is_an_update_of_a_softmax(p: float, learning_rate: float) -> None:
    weights = np.exp(np.random.default_rng(0).standard_normal(99))
    before = np.concatenate(([p], (1.0 - p) * weights / weights.sum()))
    logits = np.log(before) + 3.0  # any constant
    logits += learning_rate * (np.eye(100)[0] - before)  # the gradient of log p of the right action, which is the first
    after = np.exp(logits) / np.exp(logits).sum()
    found = theory.exact_information_gain(np.array([p]), learning_rate)
    assert found == pytest.approx(after[0] - before[0], rel=1e-9)


def test_exact_information_gain_is_the_formula_of_a_small_step() -> None:
    rates = np.linspace(0.02, 0.98, 49)
    small = theory.exact_information_gain(rates, 1e-6) / 1e-6
    others = theory._others(theory.ACTIONS, 0) * (1.0 - rates[:, None])
    before_its_last_term_is_dropped = rates * (1.0 - rates) ** 2 + rates * (others**2).sum(axis=1)  # proof, step 4
    np.testing.assert_allclose(small, before_its_last_term_is_dropped, rtol=1e-4)
    np.testing.assert_allclose(small, kr.information_gain(rates), rtol=0.05)


def test_with_the_papers_step_the_formula_underrates_hard_prompts() -> None:
    rates = np.linspace(0.001, 0.999, 999)
    exact = theory.exact_information_gain(rates)
    assert rates[exact.argmax()] == pytest.approx(0.27, abs=0.02)
    ratio = exact / kr.information_gain(rates)
    assert np.interp(0.1, rates, ratio) == pytest.approx(1.45, abs=0.03)
    assert np.abs(ratio[(rates > 0.4) & (rates < 0.9)] - 1.0).max() < 0.1


def test_the_highlighted_points_are_worth_about_the_same() -> None:
    values = [float(kr.value(rollouts, p)) for p, rollouts in theory.HIGHLIGHTED]
    assert max(values) - min(values) < 0.002


def test_the_value_grid_holds_the_value_of_each_pair() -> None:
    rates, rollouts, values = theory.value_grid(max_rollouts=16, rates=11)
    assert values.shape == (16, 11)
    n, p = rollouts[7], rates[3]
    assert values[7, 3] == pytest.approx((1 - p**n - (1 - p) ** n) * p * (1 - p) ** 2)


def test_first_gradients_come_when_theorem_1_says() -> None:
    rates, means, sufficient = theory.first_gradients(prompts=300)
    assert len(rates) < 300
    assert 0.0 < rates.min() <= rates.max() < 1.0
    expected, confident = theory.first_gradients_by_theorem(rates)
    moderate = (rates > 0.1) & (rates < 0.9)
    assert np.mean(means[moderate] / expected[moderate]) == pytest.approx(1.0, abs=0.03)
    hard = (rates > 0.1) & (rates < 0.25)
    assert np.mean(sufficient[hard] / confident[hard]) == pytest.approx(1.0, abs=0.1)
    # The theorem drops the smaller of two powers, which counts in the middle: at p = 1/2 it asks for 3.3, not 4.3.
    middle = (rates > 0.4) & (rates < 0.6)
    assert np.mean(sufficient[middle]) > np.mean(confident[middle])


def test_measured_waits_are_those_of_drawing_without_replacement() -> None:
    """With k of n responses right, the wait is 1 + k/(n - k + 1) + (n - k)/(k + 1) on average."""
    rates, means, _ = theory.first_gradients(prompts=100, responses=16, orders=4000)
    k = np.rint(16 * rates)
    np.testing.assert_allclose(means, 1 + k / (17 - k) + (16 - k) / (k + 1), rtol=0.06)
