from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pandas", reason="the report extra is not installed")

import knapsack_rl as kr
from knapsack_rl.experiments.probe.numbers import Estimate, Numbers, Worth, share_of
from knapsack_rl.experiments.probe.verdict import verdict

NOTHING = Estimate(math.nan, math.nan, math.nan)


def exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


def worth(value: float, error: float = 0.1) -> Worth:
    return Worth("some", 100, value, error)


def gains(hard: float, easy: float, error: float = 0.01) -> kr.metrics.LearningProgress:
    """Rises of prompts with less than half right and of those with more, and their error."""
    return kr.metrics.LearningProgress(np.full(5, 100.0), np.array([0.02, hard, 0.2, easy, 0.0]), np.full(5, error))


def numbers(**changes: Any) -> Numbers:
    """Those of a run that noise limits, in which hard prompts gain more than easy ones, and nothing is clear."""
    usual = Numbers(
        steps=40,
        prompts_per_step=64,
        group_size=8,
        prompts=640,
        statuses={name: exactly(0.2) for name in kr.metrics.STATUSES},
        effective_gradient_ratio=exactly(0.6),
        all_right=exactly(0.2),
        all_wrong=exactly(0.2),
        learned=Estimate(0.1, 0.05, 0.15),
        gains=gains(0.17, 0.1, 0.05),
        noise_scale=Estimate(400.0, 300.0, 500.0),
        common=Estimate(0.01, 0.005, 0.015),
        hard=worth(1.0),
        middle=worth(1.0),
        solved=worth(1.0),
        bands=[Worth("0-0.5", 100, 1.0, 0.1), Worth("0.5-1", 100, 1.0, 0.1)],
        categories={},
    )
    return replace(usual, **changes)


def statuses(**shares: float) -> dict[str, Estimate]:
    return {name: share_of(shares.get(name.replace(" ", "_"), 0.0), 640) for name in kr.metrics.STATUSES}


def test_where_nearly_all_prompts_are_solved_there_is_nothing_to_gain() -> None:
    found = verdict(numbers(statuses=statuses(extremely_easy=0.97, easy=0.03)))
    assert (found.kind, found.strategy) == ("solved", "uniform")
    assert "other data" in " ".join(found.advice)


def test_where_nearly_no_prompt_is_solved_other_data_are_wanted() -> None:
    found = verdict(numbers(statuses=statuses(extremely_hard=0.97, hard=0.03)))
    assert (found.kind, found.strategy) == ("unsolved", "uniform")
    assert "warm start" in " ".join(found.advice)


def test_nine_tenths_of_few_prompts_are_not_clearly_nearly_all() -> None:
    few = {name: share_of(0.9 if name == "extremely easy" else 0.025, 20) for name in kr.metrics.STATUSES}
    assert verdict(numbers(statuses=few)).kind != "solved"


def test_where_a_step_has_more_prompts_than_the_noise_scale_more_steps_are_wanted() -> None:
    found = verdict(numbers(noise_scale=Estimate(20.0, 15.0, 40.0)))
    assert (found.kind, found.strategy) == ("more steps", "uniform")
    assert "does not limit" in " ".join(found.reasons)


@pytest.mark.parametrize(("hard", "easy"), [(0.3, 0.1), (0.16, 0.02), (0.1, -0.05)])
def test_where_hard_prompts_gain_clearly_more_than_easy_ones_adaptive_is_chosen(hard: float, easy: float) -> None:
    found = verdict(numbers(gains=gains(hard, easy)))
    assert (found.kind, found.strategy) == ("adaptive", "adaptive")


@pytest.mark.parametrize(("hard", "easy"), [(0.05, 0.06), (0.02, 0.1), (-0.05, 0.1)])
def test_where_hard_prompts_gain_little_more_than_easy_ones_groups_stay_even(hard: float, easy: float) -> None:
    found = verdict(numbers(gains=gains(hard, easy)))
    assert (found.kind, found.strategy) == ("uniform", "uniform")
    assert "skip_idle" in " ".join(found.advice)


def test_hard_prompts_that_gain_nothing_are_no_reason_for_adaptive_where_easy_ones_lose() -> None:
    found = verdict(numbers(gains=gains(0.0, -0.3)))
    assert found.kind == "unclear"
    assert "A longer probe is not expected to tell" in " ".join(found.advice)


def test_where_errors_are_large_the_verdict_is_that_nothing_is_clear() -> None:
    found = verdict(numbers(steps=40, gains=gains(0.3, 0.1, 0.055)))
    assert (found.kind, found.strategy) == ("unclear", "cautious")
    assert "probe longer" in found.headline
    # .3 - 1.5 x .1 is 1.51 errors of .055 sqrt(1 + 1.5^2), and errors fall with the root of the prompts.
    assert "1,119 prompts would tell, visited four times each: 70 steps" in " ".join(found.advice)


def test_visits_after_the_fourth_are_no_reason_to_probe_longer() -> None:
    """As in TRL, where the data are given: 80 prompts at ten steps of eight, over and over."""
    few = numbers(steps=400, prompts=80, prompts_per_step=8, gains=gains(0.3, 0.1, 0.055))
    assert "140 prompts would tell, visited four times each: 70 steps" in " ".join(verdict(few).advice)


def test_steps_that_no_probe_should_take_are_not_promised() -> None:
    found = verdict(numbers(steps=40, gains=gains(0.16, 0.1, 0.2)))
    assert found.kind == "unclear"
    assert "A longer probe is not expected to tell" in " ".join(found.advice)


def test_where_no_prompt_came_twice_nothing_is_clear() -> None:
    unknown = Worth("some", 0, math.nan, math.inf)
    nothing = dict.fromkeys(("common", "noise_scale", "learned"), NOTHING)
    never = kr.metrics.LearningProgress(np.zeros(5), np.full(5, math.nan), np.full(5, math.inf))
    found = verdict(numbers(gains=never, hard=unknown, middle=unknown, solved=unknown, **nothing))
    assert (found.kind, found.strategy) == ("unclear", "cautious")
    assert any("Too few steps had prompts that came again" in one for one in found.advice)
    assert "could not be measured" in " ".join(found.reasons)
    assert "not known" in " ".join(found.reasons)


def test_bands_and_categories_are_said_to_pull_up_or_down_only_where_that_is_clear() -> None:
    kinds = [Worth("algebra", 50, 2.0, 0.5), Worth("puzzles", 50, -1.0, 0.4), Worth("rhymes", 50, 0.5, 0.4)]
    (said,) = [one for one in verdict(numbers(categories={"kind": kinds})).reasons if "kind" in one]
    assert "algebra pulls the others up" in said
    assert "puzzles pulls the others down" in said
    assert "rhymes" not in said


measurements = st.floats(-1.0, 1.0) | st.just(math.nan)
errors = st.floats(0.0, 1.0) | st.just(math.inf) | st.just(math.nan)
shares = st.builds(share_of, st.floats(0.0, 1.0), st.integers(0, 1000))
scales = st.floats(0.5, 1e6) | st.just(math.inf) | st.just(math.nan)
both = st.builds(gains, measurements, measurements, errors)


@given(both, st.builds(worth, measurements, errors), shares, shares, st.builds(Estimate, scales, scales, scales))
def test_whatever_was_measured_there_is_a_verdict_with_a_strategy_that_exists(
    gained: kr.metrics.LearningProgress, worthy: Worth, right: Estimate, wrong: Estimate, noise: Estimate
) -> None:
    found = verdict(
        numbers(
            gains=gained,
            hard=worthy,
            statuses=statuses() | {"extremely easy": right, "extremely hard": wrong},
            noise_scale=noise,
            bands=[worthy],
        )
    )
    assert found.strategy in kr.strategies()
    assert "nan" not in " ".join([found.headline, *found.reasons, *found.advice]).split()


@given(both)
def test_more_certainty_never_changes_a_clear_verdict(gained: kr.metrics.LearningProgress) -> None:
    before = verdict(numbers(gains=gained)).kind
    after = verdict(numbers(gains=gained._replace(error=gained.error / 2.0))).kind
    assert before in ("unclear", after)


@given(both)
def test_hard_prompts_that_gain_more_never_turn_adaptive_into_uniform(gained: kr.metrics.LearningProgress) -> None:
    more = gained._replace(rise=gained.rise + 0.1 * (np.array(kr.metrics.PROGRESS) == "less than half right"))
    if verdict(numbers(gains=gained)).kind == "adaptive":
        assert verdict(numbers(gains=more)).kind == "adaptive"
