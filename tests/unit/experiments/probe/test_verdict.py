from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

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


def numbers(**changes: Any) -> Numbers:
    """Those of a run that noise limits, in which a group's worth does not depend on its success rate."""
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


def test_where_nearly_solved_prompts_teach_most_and_hard_ones_least_groups_stay_even() -> None:
    found = verdict(numbers(hard=worth(0.1), middle=worth(1.0), solved=worth(3.0, 0.4)))
    assert (found.kind, found.strategy) == ("uniform", "uniform")


def test_where_hard_prompts_teach_as_much_as_the_middle_adaptive_is_chosen() -> None:
    assert verdict(numbers(hard=worth(1.0, 0.15), middle=worth(1.2, 0.15))).strategy == "adaptive"


def test_hard_prompts_that_teach_nothing_are_no_reason_for_adaptive_where_the_middle_teaches_less() -> None:
    assert verdict(numbers(hard=worth(0.0), middle=worth(-1.0), solved=worth(2.0, 2.0))).kind == "unclear"


def test_where_hard_prompts_teach_clearly_less_than_half_of_the_middle_measured_is_chosen() -> None:
    assert verdict(numbers(hard=worth(0.1), middle=worth(1.0))).kind == "measured"


def test_where_errors_are_large_the_verdict_is_that_nothing_is_clear() -> None:
    found = verdict(numbers(steps=40, hard=worth(1.0, 0.2), middle=worth(1.2, 0.3)))
    assert found.kind == "unclear"
    assert "probe longer" in found.headline
    # 1 - 0.6 is 0.8 of two standard errors of .25, and errors fall with the root of the steps.
    assert "70 steps would tell" in " ".join(found.advice)


def test_more_steps_are_not_promised_to_tell_what_fading_ones_cannot() -> None:
    found = verdict(numbers(steps=40, hard=worth(1.0, 0.4), middle=worth(1.2, 0.6)))  # which takes 250
    assert found.kind == "unclear"
    assert "hardly tell" in " ".join(found.advice)
    assert "hardly tell" in " ".join(verdict(numbers(hard=worth(0.5), middle=worth(1.001))).advice)


def test_where_no_prompt_came_twice_the_verdict_is_that_no_direction_is_seen() -> None:
    unknown = Worth("some", 0, math.nan, math.inf)
    nothing = dict.fromkeys(("common", "noise_scale", "learned"), NOTHING)
    found = verdict(numbers(hard=unknown, middle=unknown, solved=unknown, **nothing))
    assert (found.kind, found.strategy) == ("no direction", "uniform")
    assert "could not be measured" in " ".join(found.reasons)
    assert "not known" in " ".join(found.reasons)


def test_where_groups_have_nothing_in_common_that_shows_no_band_counts() -> None:
    found = verdict(numbers(common=Estimate(0.001, -0.001, 0.003), hard=worth(0.1), solved=worth(3.0)))
    assert found.kind == "no direction"


def test_bands_and_categories_are_said_to_pull_up_or_down_only_where_that_is_clear() -> None:
    kinds = [Worth("algebra", 50, 2.0, 0.5), Worth("puzzles", 50, -1.0, 0.4), Worth("rhymes", 50, 0.5, 0.4)]
    (said,) = [one for one in verdict(numbers(categories={"kind": kinds})).reasons if "kind" in one]
    assert "algebra pulls the others up" in said
    assert "puzzles pulls the others down" in said
    assert "rhymes" not in said


measurements = st.floats(-5.0, 5.0) | st.just(math.nan)
errors = st.floats(0.0, 5.0) | st.just(math.inf) | st.just(math.nan)
worths = st.builds(worth, measurements, errors)
shares = st.builds(share_of, st.floats(0.0, 1.0), st.integers(0, 1000))
scales = st.floats(0.5, 1e6) | st.just(math.inf) | st.just(math.nan)


@given(worths, worths, worths, shares, shares, st.builds(Estimate, scales, scales, scales))
def test_whatever_was_measured_there_is_a_verdict_with_a_strategy_that_exists(
    hard: Worth, middle: Worth, solved: Worth, right: Estimate, wrong: Estimate, noise: Estimate
) -> None:
    found = verdict(
        numbers(
            hard=hard,
            middle=middle,
            solved=solved,
            statuses=statuses() | {"extremely easy": right, "extremely hard": wrong},
            noise_scale=noise,
            bands=[hard, middle, solved],
        )
    )
    assert found.strategy in kr.strategies()
    assert "nan" not in " ".join([found.headline, *found.reasons, *found.advice]).split()


@given(worths, worths, worths, st.integers(-8, 8))
def test_a_verdict_does_not_depend_on_the_unit_of_worth(hard: Worth, middle: Worth, solved: Worth, power: int) -> None:
    def scaled(one: Worth) -> Worth:
        return replace(one, worth=one.worth * 2.0**power, error=one.error * 2.0**power)  # without rounding

    before = verdict(numbers(hard=hard, middle=middle, solved=solved)).kind
    assert verdict(numbers(hard=scaled(hard), middle=scaled(middle), solved=scaled(solved))).kind == before


@given(worths, worths, worths)
def test_more_certainty_never_makes_a_clear_verdict_unclear(hard: Worth, middle: Worth, solved: Worth) -> None:
    def surer(one: Worth) -> Worth:
        return replace(one, error=one.error / 2.0)

    before = verdict(numbers(hard=hard, middle=middle, solved=solved)).kind
    after = verdict(numbers(hard=surer(hard), middle=surer(middle), solved=surer(solved))).kind
    assert before == "unclear" or after != "unclear"
