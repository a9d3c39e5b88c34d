"""What it does to the gradient that a group's outcomes decide how many rollouts it gets (docs/waves.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import comb

import numpy as np
import pytest
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Advantages = Callable[[Floats], Floats]
GoesOn = Callable[[Ints], bool]

GUESS = 0.3  # the fixed baseline: the mean of a belief from before the step, which need not be right


def grpo(rewards: Floats) -> Floats:
    deviation = rewards.std()
    return (rewards - rewards.mean()) / deviation if deviation > 1e-12 else np.zeros_like(rewards)


def no_deviation(rewards: Floats) -> Floats:
    return rewards - rewards.mean()


def rloo(rewards: Floats) -> Floats:
    return (rewards - rewards.mean()) * len(rewards) / (len(rewards) - 1)


def fixed(rewards: Floats) -> Floats:
    return (rewards - GUESS) / np.sqrt(GUESS * (1 - GUESS))


ADVANTAGES = {"grpo": grpo, "no deviation": no_deviation, "rloo": rloo, "fixed": fixed}
GROUP_BASELINES = ("grpo", "no deviation", "rloo")

# A softmax policy over five responses: two right ones that differ, three wrong ones that differ.
LOGITS = np.array([0.4, -0.9, 1.1, 0.2, -0.3])
CHANCES = np.exp(LOGITS) / np.exp(LOGITS).sum()
RIGHT = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
SCORES = np.eye(5) - CHANCES  # row y: gradient of log pi(y) in the logits
LENGTHS = np.array([2.0, 9.0, 5.0, 1.0, 12.0])


def until_mixed(most: int) -> Callable[[Floats], bool]:
    """Goes on after a pilot of two while all rewards are equal, up to `most`."""
    return lambda rewards: len(rewards) < 2 or (len(rewards) < most and float(np.ptp(rewards)) == 0.0)


def in_waves(rewards: Floats) -> bool:
    """A pilot of two; two more for groups that are all wrong, one more for those that are all right."""
    if len(rewards) < 2:
        return True
    first = rewards[:2].sum()
    return len(rewards) < {0.0: 4, 1.0: 2, 2.0: 3}[float(first)]


def always(size: int) -> Callable[[Floats], bool]:
    return lambda rewards: len(rewards) < size


STOPPING = {"fixed size": always(4), "until mixed": until_mixed(5), "in waves": in_waves}


def groups(goes_on: GoesOn, chances: Floats) -> Iterator[tuple[Ints, float]]:
    """All sequences after which sampling stops, with their probabilities."""
    stack: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while stack:
        drawn, probability = stack.pop()
        if goes_on(np.array(drawn, dtype=np.int64)):
            stack += [((*drawn, y), probability * float(chance)) for y, chance in enumerate(chances)]
        else:
            yield np.array(drawn, dtype=np.int64), probability


def expected_gradient(
    goes_on: GoesOn, advantages: Advantages, rewards: Floats = RIGHT, scores: Floats = SCORES
) -> Floats:
    """E[sum of advantage times score], over all groups of responses."""
    return np.sum(
        [weight * (advantages(rewards[drawn]) @ scores[drawn]) for drawn, weight in groups(goes_on, CHANCES)], axis=0
    )


def by_rewards(goes_on: Callable[[Floats], bool], rewards: Floats = RIGHT) -> GoesOn:
    return lambda drawn: goes_on(rewards[drawn])


def factor(goes_on: Callable[[Floats], bool], advantages: Advantages, rate: float) -> float:
    """E[s c+ / p + f c- / (1 - p)] over all sequences of outcomes."""
    total = 0.0
    for drawn, probability in groups(lambda outcomes: goes_on(outcomes.astype(float)), np.array([1 - rate, rate])):
        advantage, won = advantages(drawn.astype(float)), drawn == 1
        total += probability * float(advantage[won].sum() / rate - advantage[~won].sum() / (1 - rate))
    return total


def cosine(a: Floats, b: Floats) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


RATE = float(CHANCES @ RIGHT)
RATE_GRADIENT = (CHANCES * RIGHT) @ SCORES
rates = pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.93])
stoppings = pytest.mark.parametrize("stopping", STOPPING)
methods = pytest.mark.parametrize("method", ADVANTAGES)


@methods
@stoppings
def test_the_expected_gradient_is_the_success_rates_gradient_times_a_positive_factor(
    stopping: str, method: str
) -> None:
    goes_on, advantages = STOPPING[stopping], ADVANTAGES[method]
    gradient = expected_gradient(by_rewards(goes_on), advantages)
    times = factor(goes_on, advantages, RATE)
    assert times > 0.0
    np.testing.assert_allclose(gradient, times * RATE_GRADIENT, rtol=0, atol=1e-12)


@methods
@stoppings
def test_weights_that_depend_on_the_groups_size_leave_the_direction_too(stopping: str, method: str) -> None:
    def weighed(rewards: Floats) -> Floats:
        return ADVANTAGES[method](rewards) / np.sqrt(len(rewards))

    assert cosine(expected_gradient(by_rewards(STOPPING[stopping]), weighed), RATE_GRADIENT) == pytest.approx(1.0)


@rates
@pytest.mark.parametrize("method", GROUP_BASELINES)
@pytest.mark.parametrize("most", [2, 5, 9])
def test_a_group_that_stops_once_mixed_weighs_as_the_closed_form_says(most: int, method: str, rate: float) -> None:
    k = np.arange(1, most)
    weights = {"grpo": np.sqrt(k), "no deviation": k / (k + 1), "rloo": np.ones(len(k))}[method]
    closed_form = weights @ (rate ** (k - 1.0) + (1 - rate) ** (k - 1.0))
    assert factor(until_mixed(most), ADVANTAGES[method], rate) == pytest.approx(closed_form)


@rates
@pytest.mark.parametrize("size", [2, 8])
def test_a_group_of_fixed_size_weighs_as_the_closed_forms_say(size: int, rate: float) -> None:
    chances = [comb(size, s) * rate**s * (1 - rate) ** (size - s) for s in range(size + 1)]
    root = sum(chance * np.sqrt(s * (size - s)) for s, chance in enumerate(chances))
    assert factor(always(size), grpo, rate) == pytest.approx(root / (rate * (1 - rate)))
    assert factor(always(size), no_deviation, rate) == pytest.approx(size - 1)
    assert factor(always(size), rloo, rate) == pytest.approx(size)


@rates
@stoppings
def test_with_a_fixed_baseline_a_group_weighs_its_expected_size_whatever_the_baseline(
    stopping: str, rate: float
) -> None:
    goes_on = STOPPING[stopping]
    outcomes = groups(lambda drawn: goes_on(drawn.astype(float)), np.array([1 - rate, rate]))
    size = sum(len(drawn) * probability for drawn, probability in outcomes)
    assert factor(goes_on, fixed, rate) * np.sqrt(GUESS * (1 - GUESS)) == pytest.approx(size)


@pytest.mark.parametrize("method", ["grpo", "rloo", "fixed"])
def test_sampled_gradients_of_a_softmax_policy_agree_within_their_noise(method: str) -> None:
    count, rng = 4_000, np.random.default_rng(0)
    goes_on, gradients = until_mixed(5), np.empty((count, 5))
    draws = rng.choice(5, size=(count, 5), p=CHANCES)
    for row, drawn in enumerate(draws):
        size = 2
        while goes_on(RIGHT[drawn[:size]]):
            size += 1
        gradients[row] = ADVANTAGES[method](RIGHT[drawn[:size]]) @ SCORES[drawn[:size]]
    error = gradients.std(axis=0) / np.sqrt(count)
    expected = factor(goes_on, ADVANTAGES[method], RATE) * RATE_GRADIENT
    assert (np.abs(gradients.mean(axis=0) - expected) < 4 * error).all()
    assert cosine(gradients.mean(axis=0), RATE_GRADIENT) > 0.98


GRADED = np.array([0.0, 1.0, 0.1, 0.0, 0.0])
GRADED_GRADIENT = (CHANCES * GRADED) @ SCORES


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_with_three_reward_levels_stopping_turns_the_gradient(method: str) -> None:
    def direction(goes_on: Callable[[Floats], bool]) -> Floats:
        return expected_gradient(by_rewards(goes_on, GRADED), ADVANTAGES[method], GRADED)

    assert cosine(direction(until_mixed(5)), direction(always(4))) < 0.999
    if method == "rloo":  # which points along the gradient of the expected reward where the size is fixed
        assert cosine(direction(always(4)), GRADED_GRADIENT) == pytest.approx(1.0)


def stops_at_a_short_one(drawn: Ints) -> bool:
    """Looks at content: among right responses it prefers to stop at the short one."""
    return len(drawn) < 2 or (len(drawn) < 4 and int(LENGTHS[drawn].min()) > 2)


@pytest.mark.parametrize("method", GROUP_BASELINES)
def test_stopping_that_looks_at_the_responses_turns_the_gradient_under_a_group_baseline(method: str) -> None:
    assert cosine(expected_gradient(stops_at_a_short_one, ADVANTAGES[method]), RATE_GRADIENT) < 0.999


@pytest.mark.parametrize(
    "goes_on", [by_rewards(until_mixed(5), GRADED), stops_at_a_short_one], ids=["graded", "content"]
)
def test_a_fixed_baseline_withstands_graded_rewards_and_any_look_at_earlier_responses(goes_on: GoesOn) -> None:
    gradient = expected_gradient(goes_on, fixed, GRADED)
    assert cosine(gradient, GRADED_GRADIENT) == pytest.approx(1.0)


def places_without_barriers(drawn: Ints) -> bool:
    """Two at once, as long as their lengths; a third once the shorter is back and wrong, or both are back and right."""
    if len(drawn) != 2:
        return len(drawn) < 2
    first_back = drawn[int(np.argmin(LENGTHS[drawn]))]
    return RIGHT[first_back] == 0.0 or RIGHT[drawn].sum() == 2.0


@methods
def test_without_barriers_what_is_known_depends_on_lengths_which_a_fixed_baseline_alone_withstands(method: str) -> None:
    turned = cosine(expected_gradient(places_without_barriers, ADVANTAGES[method]), RATE_GRADIENT)
    assert turned == pytest.approx(1.0, abs=1e-9) if method == "fixed" else turned < 0.9999


@methods
def test_prompts_that_share_a_budget_each_keep_the_direction_of_their_own_gradient(method: str) -> None:
    """Two rollouts each; the fifth goes to the second prompt if the first one's are mixed or its own are all wrong."""
    second_right, second_chances = np.array([0.0, 1.0, 0.0, 0.0, 1.0]), CHANCES[::-1]
    second_scores = np.eye(5) - second_chances
    first, second = np.zeros((2, 5))
    for drawn in product(range(5), repeat=5):
        one, two = list(drawn[:2]), list(drawn[2:4])
        to_second = RIGHT[one].sum() == 1.0 or second_right[two].sum() == 0.0
        (two if to_second else one).append(drawn[4])
        weight = np.prod(CHANCES[one]) * np.prod(second_chances[two])
        first += weight * (ADVANTAGES[method](RIGHT[one]) @ SCORES[one])
        second += weight * (ADVANTAGES[method](second_right[two]) @ second_scores[two])
    assert cosine(first, RATE_GRADIENT) == pytest.approx(1.0)
    assert cosine(second, (second_chances * second_right) @ second_scores) == pytest.approx(1.0)


@methods
def test_dividing_by_a_responses_own_length_turns_the_gradient_but_stopping_turns_it_no_further(method: str) -> None:
    advantages, shares = ADVANTAGES[method], SCORES / LENGTHS[:, None]
    at_fixed_size = expected_gradient(by_rewards(always(4)), advantages, scores=shares)
    assert cosine(at_fixed_size, RATE_GRADIENT) < 0.99
    for stopping in STOPPING.values():
        stopped = expected_gradient(by_rewards(stopping), advantages, scores=shares)
        assert cosine(stopped, at_fixed_size) == pytest.approx(1.0)


def test_dividing_a_group_by_its_own_tokens_makes_the_direction_depend_on_stopping() -> None:
    def direction(stopping: Callable[[Floats], bool]) -> Floats:
        return np.sum(
            [
                weight * (grpo(RIGHT[drawn]) @ SCORES[drawn]) / LENGTHS[drawn].sum()
                for drawn, weight in groups(by_rewards(stopping), CHANCES)
            ],
            axis=0,
        )

    assert cosine(direction(until_mixed(5)), direction(always(4))) < 0.999


@pytest.mark.parametrize("size", [2, 4])
def test_all_sequences_are_enumerated(size: int) -> None:
    found = {tuple(drawn): weight for drawn, weight in groups(lambda drawn: len(drawn) < size, CHANCES)}
    assert found.keys() == set(product(range(5), repeat=size))
    assert sum(found.values()) == pytest.approx(1.0)
