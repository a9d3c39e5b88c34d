from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pandas", reason="the report extra is not installed")
pytest.importorskip("scipy", reason="the report extra is not installed")

from scipy import stats

from knapsack_rl import metrics
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.probe.numbers import Visits, measured, share_of
from knapsack_rl.influence import Influence


def probed(steps: int = 30, prompts: int = 24, seed: int = 0, *, size: int = 8) -> tuple[Visits, Influence]:
    """Gradients along one direction and noise; those of hard prompts are noise alone."""
    random = np.random.default_rng(seed)
    rates = np.tile([0.05, 0.5, 0.95], prompts // 3)
    visits, influence = Visits(), Influence()
    for step in range(steps):
        won = random.binomial(size, rates)
        believed = np.full(prompts, np.nan) if step == 0 else rates
        kinds = {"kind": ["odd" if number % 2 else "even" for number in range(prompts)]}
        gradients = random.normal(size=(prompts, 50)) * 0.1
        gradients[:, 0] += rates > 0.1
        influence.observe(gradients, won, np.full(prompts, size), believed, kinds)
        visits.add([f"prompt {number}" for number in range(prompts)], won, np.full(prompts, size), rates, kinds)
    return visits, influence


def test_shares_are_those_of_all_groups_and_statuses_those_of_the_last_visits() -> None:
    visits, influence = probed()
    numbers = measured(visits, influence, group_size=8)
    table = visits.table
    assert (numbers.steps, numbers.prompts_per_step, numbers.prompts) == (30, 24, 24)
    assert numbers.all_right.value == np.mean(table["successes"] == 8)
    assert numbers.all_wrong.value == np.mean(table["successes"] == 0)
    assert numbers.effective_gradient_ratio.value == pytest.approx(
        1 - numbers.all_right.value - numbers.all_wrong.value
    )
    last = table[table["step"] == 30]["successes"]
    counts = {"extremely hard": last == 0, "hard": last == 1, "easy": last == 7, "extremely easy": last == 8}
    assert {name: numbers.statuses[name].value for name in counts} == {n: np.mean(of) for n, of in counts.items()}


def test_prompts_whose_gradients_are_noise_are_worth_nothing() -> None:
    numbers = measured(*probed(), group_size=8)
    assert abs(numbers.hard.worth) < 3 * numbers.hard.error < 0.5
    assert numbers.middle.worth > 10 * numbers.middle.error
    assert numbers.common.low > 0.0


def test_every_group_with_a_gradient_counts_in_its_band_but_at_first_visits() -> None:
    visits, influence = probed()
    numbers = measured(visits, influence, group_size=8)
    later = visits.table.query("step > 1 and 0 < successes < 8")
    assert sum(band.groups for band in numbers.bands) == len(later)
    assert numbers.hard.groups + numbers.middle.groups + numbers.solved.groups == len(later)
    assert sum(kind.groups for kind in numbers.categories["kind"]) == len(visits.table.query("0 < successes < 8"))


def test_gains_are_those_of_the_first_visits_in_a_row() -> None:
    """Twenty-four prompts, two at a step, five times each: the first three pairs count."""
    visits = Visits()
    right = np.random.default_rng(0).integers(1, 8, size=(60, 2))
    for step, won in enumerate(right):
        visits.add([f"{step % 12}, {place}" for place in range(2)], won, [8, 8], [0.5, 0.5], {})
    first, later = right[:36].ravel(), right[12:48].ravel()
    expected = metrics.learning_progress(first, [8] * 72, later, [8] * 72, np.repeat(np.arange(36), 2))
    assert np.isfinite(expected.error[[1, 3]]).all()
    found = measured(visits, Influence(), group_size=8).gains
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other)


def test_two_groups_of_a_prompt_in_a_step_are_one_visit() -> None:
    apart, together = Visits(), Visits()
    for won in np.random.default_rng(0).integers(0, 9, size=(20, 6, 2)):
        prompts = [f"{place}" for place in range(6)]
        apart.add(prompts * 2, won.T.ravel(), [8] * 12, [0.5] * 12, {})
        together.add(prompts, won.sum(axis=1), [16] * 6, [0.5] * 6, {})
    found, expected = (measured(visits, Influence(), group_size=8).gains for visits in (apart, together))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_where_nothing_came_twice_bands_are_not_known() -> None:
    visits, influence = Visits(), Influence()
    for step in range(5):
        influence.observe(np.eye(4), [1, 1, 1, 1], [2, 2, 2, 2], np.full(4, np.nan))
        visits.add([f"{step}, {number}" for number in range(4)], [1] * 4, [2] * 4, [0.5] * 4, {})
    numbers = measured(visits, influence, group_size=2)
    assert all(math.isnan(band.worth) and math.isinf(band.error) and band.groups == 0 for band in numbers.bands)


def test_a_probe_that_was_stopped_before_its_first_step_says_so() -> None:
    with pytest.raises(InvalidInputError, match="before its first step"):
        measured(Visits(), Influence(), group_size=8)


@given(st.integers(1, 500).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_intervals_of_shares_are_those_of_wilson(counts: tuple[int, int]) -> None:
    right, count = counts
    found = share_of(right / count, count)
    low, high = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert 0.0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1.0
