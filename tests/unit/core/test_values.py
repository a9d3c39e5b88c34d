"""The paper's closed forms, against simulation and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

import knapsack_rl as kr
from knapsack_rl.values import ALGORITHMS

TWO_OUTCOME_ALGORITHMS = ("grpo", "rloo", "reinforce")
EXTREME_RATES = [0.0, 5e-324, 1e-300, 1e-17, 0.5, 1 - 2**-53, 1.0]


def agreement(algorithm: str, rates: np.ndarray) -> np.ndarray | None:
    """What ReMax needs to know besides the rates: here the greedy response succeeded."""
    return rates if algorithm == "remax" else None


def has_gradient(algorithm: str, rewards: np.ndarray, greedy_reward: int) -> np.ndarray:
    """Appendix B in words, for rewards of shape (groups, rollouts)."""
    if algorithm == "reinforce":
        return rewards.any(axis=1)
    if algorithm == "remax":
        return (rewards != greedy_reward).any(axis=1)
    return rewards.any(axis=1) & ~rewards.all(axis=1)


@pytest.mark.parametrize("greedy_reward", [0, 1])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("rate", "rollouts"), [(0.5, 2), (0.1, 8), (0.9, 8), (0.02, 64), (0.7, 1)])
def test_nonzero_gradient_probability_is_the_frequency_in_simulated_groups(
    algorithm: str, rate: float, rollouts: int, greedy_reward: int
) -> None:
    groups = 20_000
    rewards = np.random.default_rng(rollouts).random((groups, rollouts)) < rate
    frequency = has_gradient(algorithm, rewards, greedy_reward).mean()
    a = (rate if greedy_reward else 1 - rate) if algorithm == "remax" else None
    probability = kr.nonzero_gradient_probability(rollouts, rate, algorithm, greedy_agreement=a)
    standard_error = np.sqrt(probability * (1 - probability) / groups)
    assert abs(frequency - probability) <= 4 * standard_error + 1e-12


@pytest.mark.parametrize("rate", [0.5, 0.2, 0.05, 0.9])
def test_expected_rollouts_is_the_mean_waiting_time_in_simulation(rate: float) -> None:
    groups = 20_000
    rewards = np.random.default_rng(1).random((groups, 600)) < rate
    waiting = (rewards != rewards[:, :1]).argmax(axis=1) + 1
    assert (waiting > 1).all()  # 600 rollouts were enough for every group
    assert kr.expected_rollouts(rate) == pytest.approx(waiting.mean(), abs=4 * waiting.std() / np.sqrt(groups))


def test_the_papers_worked_numbers_come_out() -> None:
    assert kr.expected_rollouts(0.5) == pytest.approx(3.0)
    assert kr.expected_rollouts(0.01) == pytest.approx(100.0, abs=0.02)
    assert np.floor(kr.rollouts_for_confidence(0.01, 0.9)) == 229
    assert kr.rollouts_for_confidence(0.9, 0.9) == pytest.approx(np.log(0.1) / np.log(0.9))


def test_confidence_needs_whole_numbers_of_coin_flips_at_one_half() -> None:
    flips = np.arange(1, 30)
    needed = [int(kr.rollouts_for_confidence(0.5, 1 - 0.5**k)) for k in flips]
    assert needed == flips.tolist()


@pytest.mark.parametrize("quantity", [kr.rollouts_for_confidence, kr.expected_rollouts])
def test_certain_prompts_need_infinitely_many_rollouts(quantity) -> None:
    assert quantity([0.0, 1.0]).tolist() == [np.inf, np.inf]
    assert np.isfinite(quantity([1e-300, 0.3, 1 - 2**-53])).all()


def test_rollouts_for_confidence_is_symmetric_and_grows_with_confidence() -> None:
    rates = np.array([0.125, 0.25, 0.5])
    np.testing.assert_array_equal(kr.rollouts_for_confidence(rates), kr.rollouts_for_confidence(1 - rates))
    assert (kr.rollouts_for_confidence(rates, 0.99) > kr.rollouts_for_confidence(rates, 0.9)).all()


@pytest.mark.parametrize("confidence", [5e-324, 1e-12, 1 - 2**-53])
def test_confidence_may_come_close_to_0_and_1(confidence: float) -> None:
    needed = kr.rollouts_for_confidence([0.1, 0.5, 0.9], confidence)
    assert np.isfinite(needed).all()
    assert (needed > 0).all()


def test_information_gain_is_largest_at_one_third() -> None:
    rates = np.linspace(0, 1, 3001)
    gains = kr.information_gain(rates)
    assert rates[gains.argmax()] == pytest.approx(1 / 3)
    assert gains.max() == pytest.approx(4 / 27)
    assert gains[0] == gains[-1] == 0.0


def test_value_is_the_product_of_probability_and_information_gain() -> None:
    rollouts, rates = np.array([2, 8, 128]), np.array([0.1, 0.5, 0.9])
    expected = (1 - rates**rollouts - (1 - rates) ** rollouts) * rates * (1 - rates) ** 2
    np.testing.assert_allclose(kr.value(rollouts, rates), expected, rtol=1e-14)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_value_is_increasing_and_concave_from_the_first_rollout(algorithm: str) -> None:
    rates = np.linspace(0, 1, 201)
    n = np.arange(1, 200)[:, None]
    values = kr.value(n, rates, algorithm, greedy_agreement=rates if algorithm == "remax" else None)
    gains = np.diff(values, axis=0)
    assert gains.min() >= -1e-16
    assert np.diff(gains, axis=0).max() <= 2e-16


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_rollouts_have_no_gradient_and_no_value(algorithm: str) -> None:
    rates = np.array([0.0, 0.3, 1.0])
    a = agreement(algorithm, rates)
    assert not kr.nonzero_gradient_probability([0, 0, 0], rates, algorithm, greedy_agreement=a).any()
    assert not kr.value([0, 0, 0], rates, algorithm, greedy_agreement=a).any()


def test_one_rollout_alone_has_no_gradient_in_grpo_but_may_have_one_in_reinforce() -> None:
    assert kr.nonzero_gradient_probability(1, [0.1, 0.3, 0.7]).tolist() == [0.0, 0.0, 0.0]
    assert kr.nonzero_gradient_probability(1, 0.25, "reinforce") == 0.25


@pytest.mark.parametrize("algorithm", TWO_OUTCOME_ALGORITHMS)
def test_unknown_rates_give_unknown_probabilities_and_values(algorithm: str) -> None:
    rollouts = [0, 1, 8]
    assert np.isnan(kr.nonzero_gradient_probability(rollouts, [np.nan] * 3, algorithm)).all()
    assert np.isnan(kr.value(rollouts, [np.nan] * 3, algorithm)).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_extreme_rates_and_counts_stay_probabilities(algorithm: str) -> None:
    rates = np.array(EXTREME_RATES)
    n = np.array([0, 1, 2, 3, 128, 10**6, 2**62])[:, None]
    a = agreement(algorithm, rates)
    probability = kr.nonzero_gradient_probability(n, rates, algorithm, greedy_agreement=a)
    assert probability.shape == (7, len(EXTREME_RATES))
    assert probability.min() >= 0.0
    assert probability.max() <= 1.0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rounding_never_makes_a_probability_negative(algorithm: str) -> None:
    rates = np.random.default_rng(0).random(10_000)
    probability = kr.nonzero_gradient_probability(1, rates, algorithm, greedy_agreement=agreement(algorithm, rates))
    assert probability.min() >= 0.0


def test_scalars_lists_and_single_precision_are_taken_as_they_are() -> None:
    assert kr.value(2, 0.5).shape == ()
    assert kr.value([2, 4], 0.5).shape == (2,)
    assert kr.value([[2], [4]], np.float32([0.25, 0.5, 0.75])).shape == (2, 3)
    assert kr.value(2, np.float32(0.5)).dtype == np.float64


class TestRemax:
    def test_is_told_that_it_needs_the_greedy_agreement(self) -> None:
        with pytest.raises(kr.InvalidInputError, match=r"greedy_agreement.*remax.*greedy response"):
            kr.nonzero_gradient_probability(8, 0.5, "remax")
        with pytest.raises(kr.InvalidInputError, match="greedy_agreement"):
            kr.allocate([0.5, 0.2], 16, algorithm="remax")

    def test_probability_depends_on_the_agreement_alone(self) -> None:
        probability = kr.nonzero_gradient_probability([4, 4], [0.1, 0.9], "remax", greedy_agreement=[0.5, 0.5])
        assert probability.tolist() == [1 - 0.5**4] * 2

    def test_agreement_follows_from_the_greedy_reward(self) -> None:
        """Where the greedy response failed, a group without any success has no gradient, as in REINFORCE."""
        rates = np.array([0.1, 0.6])
        np.testing.assert_allclose(
            kr.nonzero_gradient_probability(6, rates, "remax", greedy_agreement=1 - rates),
            kr.nonzero_gradient_probability(6, rates, "reinforce"),
        )

    @pytest.mark.parametrize("algorithm", TWO_OUTCOME_ALGORITHMS)
    def test_agreement_does_not_belong_to_other_algorithms(self, algorithm: str) -> None:
        with pytest.raises(kr.InvalidInputError, match="greedy_agreement"):
            kr.value(8, [0.5], algorithm, greedy_agreement=[0.5])

    def test_agreement_has_the_shape_of_the_rates(self) -> None:
        with pytest.raises(kr.InvalidInputError, match=r"greedy_agreement.*\(2,\).*\(1,\)"):
            kr.value(8, [0.5, 0.5], "remax", greedy_agreement=[0.5])

    def test_agreement_is_a_probability(self) -> None:
        with pytest.raises(kr.InvalidInputError, match=r"greedy_agreement.*1.5"):
            kr.value(8, [0.5], "remax", greedy_agreement=[1.5])


@pytest.mark.parametrize("algorithm", ["GRPO", "ppo", "", None, ["grpo"], np.array(["grpo", "rloo"])])
def test_unknown_algorithms_are_refused_with_the_known_ones(algorithm) -> None:
    with pytest.raises(kr.InvalidInputError, match="algorithm: expected one of grpo, rloo, reinforce, remax"):
        kr.nonzero_gradient_probability(8, 0.5, algorithm)


@pytest.mark.parametrize(
    "rates",
    [
        [1.1], [-0.1], [np.inf], [-np.inf], "half", ["0.5"], [0.5 + 0j], np.array([0.5j]),
        [[0.1], [0.2, 0.3]], [object()], np.array(["2026-01-01"], dtype="datetime64[D]"), {"p": 0.5},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "quantity",
    [kr.information_gain, kr.rollouts_for_confidence, kr.expected_rollouts, lambda rates: kr.value(8, rates)],
)
def test_what_is_no_success_rate_is_refused_by_name(quantity, rates) -> None:
    with pytest.raises(kr.InvalidInputError, match="success_rates: expected"):
        quantity(rates)


@pytest.mark.parametrize(
    "rollouts",
    [
        [-1], [1.5], [np.nan], [np.inf], [1e30], [10**30], ["3"], [1 + 1j], None, [[1], [1, 2]],
        np.array([2**63], dtype=np.uint64),
    ],
)  # fmt: skip
def test_what_is_no_count_is_refused_by_name(rollouts) -> None:
    with pytest.raises(kr.InvalidInputError, match="rollouts: expected"):
        kr.value(rollouts, 0.5)


def test_shapes_that_do_not_broadcast_are_refused() -> None:
    with pytest.raises(kr.InvalidInputError, match=r"rollouts: expected a shape.*\(3,\).*\(2,\)"):
        kr.value([1, 2], [0.1, 0.2, 0.3])


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1, 2, np.nan, np.inf, "high", None, [0.9]])
def test_confidence_lies_strictly_between_0_and_1(confidence) -> None:
    for call in (
        lambda: kr.rollouts_for_confidence(0.5, confidence),
        lambda: kr.allocate([0.5], 8, confidence=confidence),
        lambda: kr.BudgetAllocator(confidence=confidence),
    ):
        with pytest.raises(kr.InvalidInputError, match="confidence: expected a probability strictly between"):
            call()


class TestAnAlgorithmOfOnesOwn:
    def noisy_verifier(self, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """GRPO where one reward in ten is the wrong one: a reward is 1 with the chance u."""
        u = 0.9 * rates + 0.1 * (1 - rates)
        return u, 1 - u

    @pytest.mark.parametrize(("rate", "rollouts"), [(0.5, 2), (0.02, 8), (0.98, 8)])
    def test_its_probability_is_the_frequency_in_simulated_groups(self, rate: float, rollouts: int) -> None:
        rng = np.random.default_rng(rollouts)
        right = rng.random((20_000, rollouts)) < rate
        rewards = right ^ (rng.random(right.shape) < 0.1)
        frequency = has_gradient("grpo", rewards, 0).mean()
        probability = kr.nonzero_gradient_probability(rollouts, rate, self.noisy_verifier)
        assert abs(frequency - probability) <= 4 * np.sqrt(probability * (1 - probability) / len(rewards))

    @pytest.mark.parametrize("name", TWO_OUTCOME_ALGORITHMS)
    def test_one_that_does_what_a_named_one_does_has_its_plans_bit_for_bit(self, name: str) -> None:
        rates = np.append(np.random.default_rng(0).beta(0.5, 0.5, 60), [np.nan, 0.0, 1.0, 0.0])
        same = {"reinforce": lambda p: (1 - p, np.zeros_like(p))}.get(name, lambda p: (p, 1 - p))
        for more in ({}, {"costs": np.linspace(1.0, 2.0, 64), "cost_budget": 700.0}):
            ours, theirs = (kr.allocate(rates, 512, 2, 32, algorithm=a, **more) for a in (same, name))
            assert np.array_equal(ours.rollouts, theirs.rollouts)
            assert (ours.value, ours.bound) == (theirs.value, theirs.bound)

    @pytest.mark.parametrize(
        ("returns", "message"),
        [
            (lambda p: p, r"two arrays, u and v, of the shape of its argument, \(2,\), got "),
            (lambda p: (p, 0.0), r"two arrays, .* got shapes"),
            (lambda p: (p, p), r"at most 1 together, got 0.9 and 0.9 at a success rate of 0.9"),
            (lambda p: (p, -p), r"at most 1 together"),
            (lambda p: (p, np.nan * p), r"at most 1 together"),
        ],
    )
    def test_what_is_no_pair_of_chances_is_refused_in_words(self, returns, message: str) -> None:
        with pytest.raises(kr.InvalidInputError, match=f"algorithm: .*{message}"):
            kr.allocate([0.2, 0.9], 16, algorithm=returns)
