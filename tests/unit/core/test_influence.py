"""What gradients are worth: unbiased, whatever the scale, and a correction only where it is known."""

from __future__ import annotations

import math
from itertools import pairwise, product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import knapsack_rl as kr
from knapsack_rl.advantages import divisors, group_advantages, leave_one_out_advantages
from knapsack_rl.errors import InvalidInputError, StateError
from knapsack_rl.influence import BANDS, EDGES, Influence, _influences, _signal_and_noise, _success_weights

MIDDLES = np.array([0.05, 0.175, 0.375, 0.625, 0.825, 0.95])


def step_of(random, worth, prompts=48, size=8, width=40):
    """A step whose groups with a gradient share a direction as far as their band's `worth` says, beside noise."""
    rates = random.random(prompts)
    won = random.binomial(size, rates)
    gradients = random.normal(size=(prompts, width)) * 0.5
    gradients[:, 0] += np.asarray(worth)[np.searchsorted([0.1, 0.25, 0.5, 0.75, 0.9], rates, side="right")]
    live = (won > 0) & (won < size)
    return gradients * live[:, None], won, np.full(prompts, size), rates


def told(worth, steps, seed=0):
    influence, random = Influence(), np.random.default_rng(seed)
    for _ in range(steps):
        influence.observe(*step_of(random, worth))
    return influence


@pytest.mark.parametrize(
    "advantages_of",
    [
        lambda rewards, groups: group_advantages(rewards, groups).values,
        lambda rewards, groups: group_advantages(rewards, groups, scale_rewards="none").values,
        lambda rewards, groups: leave_one_out_advantages(rewards, groups).values,
        lambda rewards, groups: group_advantages(rewards, groups, scale_rewards="none").values / 3.0,
    ],
    ids=["deviation of the group", "not scaled", "leave one out", "scaled by something else"],
)
def test_a_group_estimates_the_gradient_of_its_success_rate_without_bias(advantages_of) -> None:
    """Bernoulli policies p = sigmoid(theta x): grad log pi is (1 - p) x or -p x, and grad p is p (1 - p) x."""
    x = np.array([1.0, -2.0, 0.5])
    for size, p in product((2, 3, 8), (0.1, 0.5, 0.8)):
        expected = np.zeros(3)
        for won in range(1, size):
            rewards, groups = np.array([1.0] * won + [0.0] * (size - won)), np.zeros(size, dtype=np.int64)
            advantages = advantages_of(rewards, groups)
            divided = divisors(rewards, advantages, groups, 1)
            scores = np.array([1 - p] * won + [-p] * (size - won))
            group = np.mean(advantages * scores) * x
            chance = comb(size, won) * p**won * (1 - p) ** (size - won)
            expected += chance * _success_weights(divided, np.array([size])) * group
        np.testing.assert_allclose(expected, p * (1 - p) * x, rtol=1e-12)


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_influence_is_the_mean_product_with_the_gradients_of_all_others(groups: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    u, weights, size = random.normal(size=(groups, width)), random.random(groups), random.random(width) + 0.1
    o = weights[:, None] * u
    expected = [np.mean([(u[i] * o[j] / size).sum() for j in range(groups) if j != i]) for i in range(groups)]
    np.testing.assert_allclose(_influences(u, weights, size, groups), expected, atol=1e-10)
    more = np.array(expected) * (groups - 1) / (groups + 2)  # three groups without a gradient beside them
    np.testing.assert_allclose(_influences(u, weights, size, groups + 3), more, atol=1e-10)
    u[:, 0] = size[0] = 0.0  # nobody's gradient has this parameter
    assert np.isfinite(_influences(u, weights, size, groups)).all()


def test_the_noise_scale_is_that_of_the_gradients_distribution() -> None:
    random = np.random.default_rng(0)
    mean, deviations = np.array([0.3, -0.2, 0.0, 0.1]), np.array([1.0, 2.0, 0.5, 1.5])
    steps = [_signal_and_noise(mean + deviations * random.normal(size=(16, 4)), 16) for _ in range(20_000)]
    signal, noise = np.mean(steps, axis=0)[:, 0]
    assert signal == pytest.approx(mean @ mean, rel=0.1)
    assert noise == pytest.approx(deviations @ deviations, rel=0.01)


def test_the_interval_of_the_noise_scale_covers_the_true_one() -> None:
    random = np.random.default_rng(0)
    direction, covered = np.eye(40)[0] * 0.5, 0
    true = 40 * 1.0 / 0.25  # trace of the covariance over the squared mean
    for _ in range(50):
        influence = Influence()
        for _ in range(40):
            influence.observe(
                direction + random.normal(size=(64, 40)), np.full(64, 4), np.full(64, 8), np.full(64, 0.5)
            )
        low, high = influence.noise_interval
        assert low < influence.noise_scale < high
        covered += low < true < high
    assert covered >= 43


def test_a_noise_scale_without_a_common_direction_has_no_upper_end() -> None:
    random, influence = np.random.default_rng(0), Influence()
    for _ in range(40):
        influence.observe(random.normal(size=(64, 40)), np.full(64, 4), np.full(64, 8), np.full(64, 0.5))
    low, high = influence.noise_interval
    assert math.isinf(high)
    assert low > 64


def test_worth_of_several_bands_is_the_mean_over_their_groups() -> None:
    influence = told([0, 1, 1, 1, 1, 1], 15)
    bands = [influence.of(*band)[0] for band in pairwise(EDGES)]
    assert influence.of()[0] * influence.worth[0] == pytest.approx(bands, nan_ok=True)
    each = [influence.worth_between(*band) for band in pairwise(EDGES)]
    np.testing.assert_allclose(np.transpose(influence.worth), each)
    state = influence.state_dict()
    again = Influence()
    again.load_state_dict(state)
    assert again.of(0.25, 0.9) == influence.of(0.25, 0.9)
    assert again.noise_interval == influence.noise_interval


def test_worth_is_told_apart_by_band_within_its_errors() -> None:
    truth = np.array([-0.3, 0.2, 1.0, 1.2, 1.0, 2.0])
    worth, error = told(truth, 60).worth
    scaled = truth * (worth[3] / truth[3])
    assert np.all(np.abs(worth - scaled) < 4 * (error + error[3]))
    assert worth[0] < 0 < worth[2] < worth[5]


def test_the_scale_of_gradients_does_not_matter() -> None:
    random = np.random.default_rng(1)
    steps = [step_of(random, [0.5, 0.5, 1, 1, 1, 1]) for _ in range(10)]
    small, large = Influence(), Influence()
    for number, (gradients, *counts) in enumerate(steps):
        small.observe(gradients, *counts)
        large.observe(gradients * 10.0 ** (number - 3), *counts)
    np.testing.assert_allclose(small.worth, large.worth)
    assert small.noise_scale == pytest.approx(large.noise_scale)


@pytest.mark.parametrize("exponent", [-1000, -500, 0, 500, 1000])
def test_gradients_of_any_finite_size_teach_the_same_to_the_last_bit(exponent: int) -> None:
    random = np.random.default_rng(1)
    plain, scaled = Influence(), Influence()
    for _ in range(5):
        gradients, *counts = step_of(random, [0.5, 0.5, 1, 1, 1, 1])
        plain.observe(gradients, *counts)
        scaled.observe(np.ldexp(gradients, exponent), *counts)
    assert np.isfinite(plain.worth[0]).all()
    assert scaled.state_dict() == plain.state_dict()


def test_the_largest_gradients_and_divisors_that_are_taken_leave_a_state_that_loads() -> None:
    random = np.random.default_rng(1)
    influence, loaded = Influence(), Influence()
    for size in (1.0, 1e308, 1e-308):
        gradients, *counts = step_of(random, [1] * 6)
        gradients = gradients / np.abs(gradients).max() * size
        influence.observe(gradients, *counts, divisors=np.full(len(gradients), 1e100))
    loaded.load_state_dict(influence.state_dict())
    assert np.isfinite(influence.noise_scale)
    assert np.isfinite(influence.of()).all()


def in_units_of_the_middle(worth) -> np.ndarray:
    """Over its mean from .25 to .9, where `step_of` has as many groups in a band as the band is wide."""
    worth = np.asarray(worth)
    return worth / np.average(worth[2:5], weights=np.diff(EDGES)[2:5])


ASSUMED_WORTH = in_units_of_the_middle(MIDDLES**0.5 * (1 - MIDDLES) ** 2)


def test_nothing_is_corrected_before_anything_is_known() -> None:
    influence = Influence()
    np.testing.assert_array_equal(influence.correction(MIDDLES), 1.0)
    np.testing.assert_array_equal(told([1] * 6, 80).correction([np.nan]), 1.0)
    assert np.isnan(influence.worth[0]).all()
    assert np.isnan(influence.noise_scale)
    assert influence.metrics() == {}


@pytest.mark.parametrize("truth", [[0.2, 0.5, 1, 1, 1, 3], [2, 1.5, 1, 1, 0.7, 0.5]])
def test_value_goes_half_way_in_the_logarithm_from_what_is_assumed_to_what_is_measured(truth: list[float]) -> None:
    expected = np.sqrt(in_units_of_the_middle(truth) / ASSUMED_WORTH)
    np.testing.assert_allclose(told(truth, 300).correction(MIDDLES), expected, rtol=0.2)


def test_what_is_worth_as_assumed_is_left_alone_where_something_is_assumed() -> None:
    """Of nearly solved prompts so little is assumed that noise moves its root; what they count for stays small."""
    found = np.array([told(ASSUMED_WORTH, 80, seed).correction(MIDDLES) for seed in range(6)])
    np.testing.assert_allclose(found[:, :5].mean(axis=0), 1.0, atol=0.15)
    assert (found[:, 5] * ASSUMED_WORTH[5] < 0.15).all()


def test_what_is_worth_nothing_keeps_a_little_so_that_it_goes_on_being_measured() -> None:
    assert told([-0.5, 0.5, 1, 1, 1, 3], 80).correction(MIDDLES)[0] == pytest.approx(0.05**0.5)


def test_doubt_draws_the_correction_towards_one() -> None:
    found = [told([0.0, 0.3, 1, 1, 1, 1], steps).correction([0.05])[0] for steps in (3, 10, 100)]
    assert found[2] < 0.5
    assert found[2] <= found[1] <= 1.0
    assert found[0] > found[2]


def test_noise_alone_corrects_nothing() -> None:
    """Groups that share no direction have no worth to compare: the middle is not above 0, and the prior stands."""
    for seed in range(5):
        np.testing.assert_array_equal(told([0.0] * 6, 20, seed).correction(MIDDLES), 1.0)


def test_prompts_that_were_never_visited_count_for_the_others_only() -> None:
    random = np.random.default_rng(2)
    known, unknown = Influence(), Influence()
    for _ in range(20):
        gradients, won, tried, rates = step_of(random, [1] * 6)
        known.observe(gradients, won, tried, rates)
        unknown.observe(gradients, won, tried, np.full_like(rates, np.nan))
    assert np.isnan(unknown.worth[0]).all()
    assert unknown.noise_scale == known.noise_scale


def test_a_category_that_pulls_the_others_down_is_seen() -> None:
    influence, random = Influence(), np.random.default_rng(3)
    for _ in range(60):
        gradients, won, tried, rates = step_of(random, [1] * 6)
        odd = np.arange(len(won)) % 4 == 0
        gradients[odd, 0] *= -1.0
        influence.observe(gradients, won, tried, rates, {"source": ["odd" if bad else "good" for bad in odd]})
    worth = influence.worth_by_category("source")
    assert worth["odd"][0] + 2 * worth["odd"][1] < 0 < worth["good"][0] - 2 * worth["good"][1]
    assert {"influence/source/odd", "influence/source/good", "noise_scale"} < influence.metrics().keys()
    assert sum(name.startswith("influence/") for name in influence.metrics()) == len(BANDS) + 2


def test_a_column_that_tells_prompts_apart_is_given_up() -> None:
    influence, random = Influence(), np.random.default_rng(4)
    for number in range(60):
        names = [f"{number} {i}" for i in range(48)]
        influence.observe(*step_of(random, [1] * 6), {"name": names, "kind": ["a"] * 48})
    assert len(influence.worth_by_category("name")) <= 1000
    assert influence.worth_by_category("kind")["a"][0] == pytest.approx(1.0, rel=0.2)


def test_a_saved_state_goes_on_as_the_original() -> None:
    original, copy = told([0, 1, 1, 1, 1, 1], 15), Influence()
    copy.load_state_dict(original.state_dict())
    for influence in (original, copy):
        influence.observe(*step_of(np.random.default_rng(9), [1] * 6), categories={"kind": ["a"] * 48})
    assert copy.state_dict() == original.state_dict()


@pytest.mark.parametrize(
    "damage",
    [
        {"steps": -1},
        {"signal": [0.0]},
        {"signal": {"sums": [[0.0], [0.0]]}},
        {"signal": {"sums": [[0.0]] * 3, "products": [[0.0] * 2] * 2}},
        {"bands": {"sums": [[1.0] * 6] * 2, "products": [[1.0] * 6] * 6}},
        {"bands": {"sums": [[float("nan")] * 6] * 2, "products": [[1.0] * 12] * 12}},
        {"bands": {"sums": [[1.0] * 6] * 2, "products": [[float("inf")] * 12] * 12}},
        {"categories": {"kind": {"a": {"sums": [[1.0], [1.0]], "products": [[1.0]]}}}},
        {"categories": 3},
        {"steps": None},
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage: dict) -> None:
    influence = told([1] * 6, 5)
    before = influence.state_dict()
    with pytest.raises(StateError, match="Influence"):
        influence.load_state_dict(before | damage)
    assert influence.state_dict() == before


def test_gradients_that_do_not_fit_are_refused_and_teach_nothing() -> None:
    influence = Influence()
    for gradients in (np.ones(2), np.ones((3, 2)), np.array([[np.inf, 1.0], [1.0, 1.0]])):
        with pytest.raises(InvalidInputError, match="gradients"):
            influence.observe(gradients, [1, 1], [2, 2], [0.5, 0.5])
    for wrong in ([1.0], [1.0, -0.1], [1.0, np.nan], [1.0, 1e101], [[1.0, 1.0]]):
        with pytest.raises(InvalidInputError, match="divisors"):
            influence.observe(np.ones((2, 2)), [1, 1], [2, 2], [0.5, 0.5], divisors=wrong)
    assert influence.steps == 0


def step_with(allocator: kr.BudgetAllocator, random: np.random.Generator, rates: np.ndarray) -> kr.Step:
    step = allocator.step(list(range(len(rates))))
    while step.remaining:
        rollouts = step.ask().rollouts
        step.tell(random.binomial(rollouts, rates), rollouts)
    return step


@given(st.integers(0, 2**32 - 1))
def test_without_gradients_measured_plans_as_adaptive_does(seed: int) -> None:
    rates = np.random.default_rng(seed).random(12)
    plans = []
    for strategy in ("adaptive", "measured"):
        allocator, random = kr.BudgetAllocator(strategy), np.random.default_rng(seed)
        for _ in range(2):
            step_with(allocator, random, rates)
        plans.append(allocator.ask(list(range(12))).rollouts)
    np.testing.assert_array_equal(*plans)


def test_measured_takes_rollouts_from_prompts_whose_gradients_help_nobody() -> None:
    rates = np.linspace(0.02, 0.98, 48)
    allocator, random = kr.BudgetAllocator("measured"), np.random.default_rng(0)
    before = None
    for _ in range(60):
        step = step_with(allocator, random, rates)
        if before is None:
            before = allocator.ask(list(range(48))).rollouts
        live = (step.successes > 0) & (step.successes < step.scored)
        gradients = random.normal(size=(48, 30)) * 0.3
        gradients[:, 0] += np.where(rates < 0.25, -0.3, 1.0)
        step.tell_gradients(gradients * live[:, None])
    plain, hard = kr.BudgetAllocator("adaptive"), rates < 0.1
    state = allocator.state_dict() | {"strategy": "adaptive"}
    plain.load_state_dict(state)
    ids = list(range(48))
    assert allocator.ask(ids).rollouts[hard].sum() < 0.5 * plain.ask(ids).rollouts[hard].sum()
    assert allocator.ask(ids).rollouts.sum() == plain.ask(ids).rollouts.sum()


def test_measured_gives_rollouts_to_nearly_solved_prompts_whose_rare_failures_help_most() -> None:
    rates = np.linspace(0.02, 0.98, 48)
    allocator, random = kr.BudgetAllocator("measured"), np.random.default_rng(0)
    for _ in range(60):
        step = step_with(allocator, random, rates)
        live = (step.successes > 0) & (step.successes < step.scored)
        gradients = random.normal(size=(48, 30)) * 0.3
        gradients[:, 0] += np.where(rates > 0.85, 3.0, 1.0)
        step.tell_gradients(gradients * live[:, None])
    plain, ids = kr.BudgetAllocator("adaptive"), list(range(48))
    plain.load_state_dict(allocator.state_dict() | {"strategy": "adaptive"})
    easy = rates > 0.85
    assert allocator.ask(ids).rollouts[easy].sum() > 1.5 * plain.ask(ids).rollouts[easy].sum()


def test_a_step_that_is_open_plans_by_what_was_known_when_it_began() -> None:
    rates = np.linspace(0.02, 0.98, 48)
    allocator, random = kr.BudgetAllocator("measured"), np.random.default_rng(0)
    finished = step_with(allocator, random, rates)
    opened = allocator.step(list(range(48)))
    first = opened.ask().rollouts
    for _ in range(40):
        gradients = random.normal(size=(48, 3)) + np.where(rates < 0.25, -1.0, 1.0)[:, None]
        allocator.influence.observe(gradients, finished.successes, finished.scored, rates)
    assert allocator.influence.correction([0.05]) < 0.5
    twin = kr.BudgetAllocator("measured")
    step_with(twin, np.random.default_rng(0), rates)
    other = twin.step(list(range(48)))
    other.ask()
    for step in (opened, other):
        step.tell(np.zeros_like(first), first)
    np.testing.assert_array_equal(opened.ask().rollouts, other.ask().rollouts)


def test_gradients_come_after_the_step_and_with_a_row_for_each_prompt() -> None:
    allocator = kr.BudgetAllocator("measured")
    step = allocator.step(["a", "b"])
    with pytest.raises(StateError, match="before the step was over"):
        step.tell_gradients(np.zeros((2, 3)))
    rollouts = step.ask().rollouts
    step.tell(rollouts // 2, rollouts)
    while step.remaining:
        rollouts = step.ask().rollouts
        step.tell(rollouts // 2, rollouts)
    with pytest.raises(InvalidInputError, match="a row for each of 2 prompts"):
        step.tell_gradients(np.zeros((3, 3)))
    step.tell_gradients(np.ones((2, 3)))
    with pytest.raises(StateError, match="a second time"):
        step.tell_gradients(np.ones((2, 3)))
    assert allocator.influence.steps == 1


def test_the_allocators_file_holds_what_was_measured(tmp_path) -> None:
    rates = np.linspace(0.1, 0.9, 24)
    allocator, random = kr.BudgetAllocator("measured"), np.random.default_rng(0)
    for _ in range(5):
        step_with(allocator, random, rates).tell_gradients(random.normal(size=(24, 5)) + 1.0)
    allocator.save(tmp_path / "state.npz")
    again = kr.BudgetAllocator("measured")
    again.load(tmp_path / "state.npz")
    assert again.influence.state_dict() == allocator.influence.state_dict()
    assert allocator.copy().influence.state_dict() == allocator.influence.state_dict()


def test_gradients_that_are_all_alike_are_saved_and_loaded_again() -> None:
    """Their covariance is 0, and rounding may not take it below."""
    influence, again = Influence(), Influence()
    alike = np.tile(np.random.default_rng(0).normal(size=7), (6, 1))
    for _ in range(9):
        influence.observe(alike, [1] * 6, [4] * 6, [0.5] * 6)
    again.load_state_dict(influence.state_dict())
    assert again.state_dict() == influence.state_dict()


def test_all_bands_together_are_worth_one_without_an_error() -> None:
    worth, error = told([0, 1, 1, 1, 1, 1], 15).worth_between(0.0, 1.0)
    assert worth == pytest.approx(1.0)
    assert error == pytest.approx(0.0, abs=1e-6)
