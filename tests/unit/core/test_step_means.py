"""Means over steps, and whether their errors are what they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.step_means import StepMeans


@pytest.mark.parametrize("kept", [1.0, 0.985])
def test_errors_of_pooled_classes_are_those_of_repeated_runs(kept: float) -> None:
    """Steps that lift or lower all classes together, uneven counts, fading: the error is the spread over many runs."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(400):
        means = StepMeans(3, kept=kept, least=2.5)
        for _ in range(60):
            counts = random.integers(1, 8, size=3)
            common = random.normal()
            means.add([common * n + random.normal(scale=math.sqrt(n)) for n in counts], counts)
        found.append([means.of(slice(1, 3)), means.of(slice(0, 1))])
    mean, variance = np.moveaxis(np.array(found), 2, 0)
    for place in (0, 1):
        scaled = mean[:, place] / np.sqrt(variance[:, place])
        assert np.mean(scaled) == pytest.approx(0.0, abs=0.2)
        assert np.std(scaled) == pytest.approx(1.0, abs=0.15)  # four standard errors of a deviation of 400


def test_errors_of_ratios_are_those_of_repeated_runs() -> None:
    """What lifts all classes of a step alike drops out of a ratio, and must drop out of its error."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(400):
        means = StepMeans(3, kept=1.0, least=2.5)
        for _ in range(60):
            counts, size = random.integers(1, 8, size=3), random.gamma(4.0)
            means.add(size * (np.array([1, 3, 2]) * counts + random.normal(size=3) * np.sqrt(counts)), counts)
        found.append(means.ratio(slice(0, 1), slice(1, 3)))
    ratio, variance = np.array(found).T
    assert np.mean(ratio) == pytest.approx(0.4, abs=0.02)  # 1 over the mean of 3 and 2
    assert np.std((ratio - 0.4) / np.sqrt(variance)) == pytest.approx(1.0, abs=0.15)


def test_nothing_is_said_of_the_error_before_enough_steps() -> None:
    means = StepMeans(1, kept=0.985, least=2.5)
    for step in range(4):
        assert math.isinf(means.of(slice(None))[1]) == (step < 3)
        means.add([1.0 + step % 2], [2.0])


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(0, 9), st.floats(0.1, 1.0))
def test_several_steps_at_once_are_as_one_after_the_other(seed: int, classes: int, steps: int, kept: float) -> None:
    random = np.random.default_rng(seed)
    x, n = random.normal(size=(steps, classes)), random.integers(0, 5, size=(steps, classes))
    one, other = (StepMeans(classes, kept=kept, least=2.0) for _ in range(2))
    one.add(x, n)
    for row in zip(x, n, strict=True):
        other.add(*row)
    np.testing.assert_allclose(one.sums, other.sums, atol=1e-12)
    np.testing.assert_allclose(one.products, other.products, atol=1e-12)


def test_a_saved_state_goes_on_and_a_damaged_one_changes_nothing() -> None:
    means, again = (StepMeans(2, kept=0.9, least=2.0) for _ in range(2))
    means.add([1.0, 2.0], [3.0, 4.0])
    again.load_state_dict(means.state_dict())
    assert again.state_dict() == means.state_dict()
    wrong = ([[1.0]], "many", [[1.0] * 2, [-5.0] * 2])
    for damage in (*({"sums": sums} for sums in wrong), {"products": [[math.nan] * 4] * 4}):
        with pytest.raises((TypeError, ValueError)):
            again.load_state_dict(means.state_dict() | damage)
        assert again.state_dict() == means.state_dict()
