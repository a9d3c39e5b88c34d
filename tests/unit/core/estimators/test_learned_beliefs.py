"""Estimators that learn: against plain reimplementations, and on simulated prompts whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from knapsack_rl.errors import StateError
from knapsack_rl.estimators import (
    DiscountedBeta,
    Estimator,
    RecentRewards,
    Regression,
    Streaks,
    TransitionTable,
)
from knapsack_rl.estimators.features import NONE, Features, as_features
from knapsack_rl.estimators.regression import MEMORY

Visit = list[tuple[int, int, int]]


def keys(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.uint64)


def counts(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def histories(seed: int, people: int = 12, steps: int = 25) -> list[Visit]:
    """Steps of (prompt, successes, rollouts): some prompts are there twice, and some rows have no rollouts."""
    random = np.random.default_rng(seed)
    rates = random.beta(0.5, 0.5, people)
    made = []
    for _ in range(steps):
        who = random.integers(0, people, 7)
        tried = random.integers(0, 9, 7)
        made.append(list(zip(who.tolist(), random.binomial(tried, rates[who]).tolist(), tried.tolist(), strict=True)))
    return made


def tell(estimator: Estimator, visit: Visit) -> None:
    who, won, tried = (np.array(column) for column in zip(*visit, strict=True))
    estimator.update(who.astype(np.uint64), won, tried, NONE)


def totals(visit: Visit) -> dict[int, tuple[int, int]]:
    """Successes and rollouts of each prompt that has any."""
    sums: dict[int, tuple[int, int]] = {}
    for who, won, tried in visit:
        sums[who] = sums.get(who, (0, 0))[0] + won, sums.get(who, (0, 0))[1] + tried
    return {who: counts for who, counts in sums.items() if counts[1]}


class PlainDiscountedBeta:
    """The same belief, a prompt at a time."""

    def __init__(self, discount: float) -> None:
        self.discount = discount
        self.memory: dict[int, tuple[float, float]] = {}
        self.rates, self.weight, self.excess, self.pairs = 0.5, 1.0, 0.3, 1.0

    def update(self, visit: Visit) -> None:
        mean = self.rates / self.weight
        self.rates, self.weight, self.excess, self.pairs = (
            0.9 * number for number in (self.rates, self.weight, self.excess, self.pairs)
        )
        for who, (won, tried) in totals(visit).items():
            self.rates += won / tried
            self.weight += 1
            if tried > 1:
                self.excess += (won - tried * mean) ** 2 - tried * mean * (1 - mean)
                self.pairs += tried * (tried - 1) * mean * (1 - mean)
            wins, losses = self.memory.get(who, (0.0, 0.0))
            self.memory[who] = self.discount * wins + won, self.discount * losses + tried - won

    def belief(self, who: int) -> tuple[float, float]:
        mean = min(max(self.rates / self.weight, 0.005), 0.995)
        strength = 1 / min(max(self.excess / self.pairs, 0.02), 0.9) - 1
        wins, losses = self.memory.get(who, (0.0, 0.0))
        return mean * strength + wins, (1 - mean) * strength + losses


@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_discounted_beta_is_what_a_plain_one_says(seed: int, discount: float) -> None:
    estimator, plain = DiscountedBeta(discount), PlainDiscountedBeta(discount)
    everyone = np.arange(13, dtype=np.uint64)
    for visit in histories(seed):
        tell(estimator, visit)
        plain.update(visit)
        belief = estimator.belief(everyone, NONE)
        expected = np.array([plain.belief(who) for who in range(13)])
        np.testing.assert_allclose(np.stack((belief.wins, belief.losses), axis=1), expected, rtol=1e-5)


def test_a_fixed_prior_is_what_is_believed_of_a_prompt_that_nobody_saw() -> None:
    estimator = DiscountedBeta(0.5, prior=(1.0, 3.0))
    tell(estimator, [(1, 4, 4)])
    belief = estimator.belief(keys(1, 2), NONE)
    assert (belief.wins.tolist(), belief.losses.tolist()) == ([5.0, 1.0], [3.0, 3.0])


class PlainTransitionTable:
    """The same belief, a prompt at a time; a cell is a pair of words."""

    def __init__(self) -> None:
        self.cell_of: dict[int, tuple[str, str]] = {}
        self.cells: dict[tuple[str, str], list[float]] = {}
        self.all = [1.0, 2.0, 0.4, 1.0]

    def update(self, visit: Visit) -> None:
        visits = totals(visit)
        if not visits:
            return
        for cell in self.cells.values():
            cell[:] = [0.95 * number for number in cell]
        paired = any(tried > 1 for _, tried in visits.values())
        self.all = [number * (0.9 if place < 2 or paired else 1.0) for place, number in enumerate(self.all)]
        for who, (won, tried) in visits.items():
            before = self.cell_of.get(who, ("never", "never"))
            both = won * (won - 1) / (tried * (tried - 1)) if tried > 1 else 0.0
            seen = [won / tried, 1.0, both, float(tried > 1)]
            cell = self.cells.setdefault(before, [0.0] * 4)
            cell[:] = [old + new for old, new in zip(cell, seen, strict=True)]
            self.all = [old + new for old, new in zip(self.all, seen, strict=True)]
            rate = won / tried
            outcome = "none" if not won else "all" if won == tried else f"{(rate > 0.25) + (rate > 0.5)} quarters"
            self.cell_of[who] = outcome, before[0]

    def belief(self, who: int) -> tuple[float, float]:
        rate, visits, both, paired = self.cells.get(self.cell_of.get(who, ("never", "never")), [0.0] * 4)
        mean_of_all = self.all[0] / self.all[1]
        square_of_all = max(self.all[2] / self.all[3], 1.02 * mean_of_all**2)
        mean = min(max((rate + 10 * mean_of_all) / (visits + 10), 0.001), 0.999)
        variance = (both + 10 * square_of_all) / (paired + 10) - mean**2
        spread = mean * (1 - mean)
        weight = spread / min(max(variance, 0.01 * spread), 0.9 * spread) - 1
        return mean * weight, (1 - mean) * weight


@pytest.mark.parametrize("seed", range(6))
def test_a_transition_table_is_what_a_plain_one_says(seed: int) -> None:
    estimator, plain = TransitionTable(), PlainTransitionTable()
    everyone = np.arange(13, dtype=np.uint64)
    for visit in histories(seed, steps=60):
        tell(estimator, visit)
        plain.update(visit)
        belief = estimator.belief(everyone, NONE)
        expected = np.array([plain.belief(who) for who in range(13)])
        np.testing.assert_allclose(np.stack((belief.wins, belief.losses), axis=1), expected, rtol=1e-9)


@pytest.mark.parametrize("outcome", [0, 1])
def test_a_transition_table_outlives_long_trainings_of_single_rollouts(outcome: int) -> None:
    """Whose squares nobody has ever seen; sums that only faded would end as 0 / 0."""
    estimator = TransitionTable()
    for _ in range(8000):
        estimator.update(keys(1), np.array([outcome]), np.array([1]))
    belief = estimator.belief(keys(1, 2), NONE)
    assert np.all((belief.mean > 0.0) & (belief.mean < 1.0))
    assert belief.mean[0] == pytest.approx(outcome, abs=0.1)
    restored = TransitionTable()
    restored.load_state_dict(estimator.state_dict())
    assert restored.belief(keys(1, 2), NONE).wins.tolist() == belief.wins.tolist()


def beta_binomial(random: np.random.Generator, mean: Any, rho: float, tried: int, count: int) -> np.ndarray:
    kappa = 1 / rho - 1
    return random.binomial(tried, random.beta(np.full(count, mean) * kappa, (1 - np.full(count, mean)) * kappa))


ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "last visit": lambda: RecentRewards(0),
    "window": lambda: RecentRewards(16),
    "discounted": lambda: DiscountedBeta(prior=(1.0, 1.0)),
    "transitions": TransitionTable,
    "streaks": Streaks,
    "regression": Regression,
}


class TestLateOutcomes:
    MADE = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)

    def rows_of_prompt_1(self, make: Callable[[], Estimator], late: bool) -> dict[str, float]:
        """After two visits in steps that were open at the same time: of many prompts, and of this one alone."""
        estimator = make()
        estimator.update(keys(2), counts(3), counts(8))
        steps = estimator.begin(), estimator.begin()
        many = keys(1, *range(10, 40)), np.full(31, 6), np.full(31, 8)
        visits = [(many, steps[0]), ((keys(1), counts(1), counts(4)), steps[1])]
        for visit, began in visits[::-1] if late else visits:
            estimator.update(*visit, NONE, began)
        state = estimator.table.state_dict()
        state.pop("visited", None)  # an age, which counts visits
        return {name: float(column[list(state["keys"]).index(1)]) for name, column in state.items()}

    @MADE
    def test_a_visit_that_is_told_late_is_the_one_before_the_last_however_large_its_step(
        self, make: Callable[[], Estimator]
    ) -> None:
        rows = self.rows_of_prompt_1(make, late=True)
        assert rows == pytest.approx(self.rows_of_prompt_1(make, late=False))

    @MADE
    def test_the_rate_is_that_of_the_newest_visit_whenever_that_is_told(self, make: Callable[[], Estimator]) -> None:
        estimator = make()
        older, newer = estimator.begin(), estimator.begin()
        estimator.update(keys(1), counts(8), counts(8), NONE, newer)
        estimator.update(keys(1), counts(0), counts(8), NONE, older)
        assert estimator.all_rates() == (0.5 if estimator.settings.get("window") else 1.0)
        estimator.update(keys(1), counts(0), counts(16))  # by somebody who tells without a step
        assert estimator.all_rates() == 0.0

    def test_a_window_has_room_for_what_comes_late_as_far_as_newer_rewards_leave_it(self) -> None:
        for size, rate in ((12, 4 / 16), (16, 0.0), (20, 0.0)):
            estimator = RecentRewards(16)
            late = estimator.begin()
            estimator.update(keys(1), counts(0), counts(size))
            estimator.update(keys(1), counts(8), counts(8), NONE, late)
            assert estimator.rates(keys(1)) == rate

    def test_a_late_visit_teaches_nothing_about_what_follows_what(self) -> None:
        for make in (TransitionTable, Regression):
            estimator = make()
            estimator.update(keys(*range(20)), np.full(20, 2), np.full(20, 4))
            late = estimator.begin()
            estimator.update(keys(*range(20)), np.full(20, 4), np.full(20, 4))
            taught = estimator.belief(keys(99), NONE).mean, estimator.state_dict().get("weights")
            estimator.update(keys(*range(20)), np.full(20, 0), np.full(20, 4), NONE, late)
            if make is Regression:
                assert estimator.state_dict()["weights"].tolist() == taught[1].tolist()
            else:
                assert not estimator._cells[:, 0].sum() < 20  # the late failures are in no cell
            assert np.isfinite(estimator.belief(keys(*range(20)), NONE).mean).all()

    @MADE
    def test_steps_that_begin_after_a_restart_are_newer_than_all_before(self, make: Callable[[], Estimator]) -> None:
        estimator, restored = make(), make()
        for _ in range(3):
            estimator.update(keys(1), counts(1), counts(16))
        restored.load_state_dict(estimator.state_dict())
        restored.update(keys(1), counts(16), counts(16))
        assert restored.all_rates() == 1.0

    def test_a_state_in_which_a_prompt_was_visited_after_the_last_visit_is_refused(self) -> None:
        estimator = Regression()
        estimator.update(keys(2, 1), counts(3, 2), counts(8, 8))
        for change in ({"visits": 1}, {"visits": -1}, {"visits": "two"}, {"visited": np.array([-1, 2])}):
            with pytest.raises(StateError, match="visits"):
                Regression().load_state_dict({**estimator.state_dict(), **change})


class TestRegression:
    """On prompts that are new every time, unless their history is what it is about."""

    @staticmethod
    def trained(
        rate: Callable[[np.ndarray, np.ndarray], np.ndarray],
        make: Callable[[np.ndarray, np.ndarray], Any] = lambda number, topic: None,
        rho: float = 0.2,
        steps: int = 40,
        seed: int = 0,
    ) -> Regression:
        """Told `steps` of 64 new prompts, each with a number from N(0, 1), one of three topics and 8 rollouts."""
        random, estimator = np.random.default_rng(seed), Regression()
        for step in range(steps):
            number, topic = random.normal(size=64), random.integers(0, 3, 64)
            won = beta_binomial(random, rate(number, topic), rho, 8, 64)
            who = np.arange(64, dtype=np.uint64) + np.uint64(64 * step)
            estimator.update(who, won, np.full(64, 8), as_features(make(number, topic), 64))
        return estimator

    @staticmethod
    def of_new_prompts(estimator: Regression, features: Any, count: int) -> np.ndarray:
        return estimator.belief(np.arange(count, dtype=np.uint64) + np.uint64(10**9), as_features(features, count)).mean

    @pytest.mark.parametrize("mean", [0.1, 0.5, 0.85])
    @pytest.mark.parametrize("rho", [0.05, 0.3, 0.7])
    def test_recovers_the_mean_and_the_correlation_of_its_prompts(self, mean: float, rho: float) -> None:
        found = np.array([self.correlation(mean, rho, seed) for seed in range(3)])
        assert found[:, 0].mean() == pytest.approx(mean, abs=0.06)
        assert found[:, 1].mean() == pytest.approx(rho, abs=0.05 + 0.2 * rho)

    def correlation(self, mean: float, rho: float, seed: int) -> tuple[float, float]:
        estimator = self.trained(lambda number, topic: np.full(64, mean), rho=rho, seed=seed)
        belief = estimator.belief(keys(10**9), NONE)
        return float(belief.mean[0]), float(1 / (1 + belief.wins[0] + belief.losses[0]))

    @pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (1e6, 1.0), (-40.0, 1e-7), (3e8, 1e5)])
    def test_learns_what_a_number_is_worth_whatever_its_scale_and_offset(self, offset: float, scale: float) -> None:
        def rate(number: np.ndarray, topic: np.ndarray) -> np.ndarray:
            return 1 / (1 + np.exp(1.0 - 1.5 * number))

        estimator = self.trained(rate, lambda number, topic: {"length": offset + scale * number}, rho=0.1)
        number = np.array([-1.5, 0.0, 1.5])
        found = self.of_new_prompts(estimator, {"length": offset + scale * number}, 3)
        assert found == pytest.approx(rate(number, number), abs=0.08)

    def test_learns_a_category_and_takes_an_unknown_one_for_the_average(self) -> None:
        rates = np.array([0.1, 0.5, 0.9])
        names = np.array(["algebra", "geometry", "sets"])
        estimator = self.trained(lambda number, topic: rates[topic], lambda number, topic: {"topic": names[topic]})
        found = self.of_new_prompts(estimator, {"topic": [*names, "logic"]}, 4)
        assert found[:3] == pytest.approx(rates, abs=0.08)
        assert found[3] == pytest.approx(0.5, abs=0.12)

    def test_an_outcome_that_comes_late_is_used_and_not_taken_for_the_newest(self) -> None:
        estimator = Regression()
        estimator.update(keys(1), counts(7), counts(8))
        late = estimator.begin()
        estimator.update(keys(1), counts(6), counts(8))
        estimator.update(keys(1), counts(0), counts(4), NONE, late)
        of_the_first = {name: float(estimator.table.read(name, np.array([0]))[0]) for name in ("won", "tried")}
        assert of_the_first == {"won": 6.0, "tried": 8.0}
        losses = estimator.table.read("losses", np.array([0]))[0]
        assert losses == pytest.approx((1 * 0.6 + 4) * 0.6 + 2)

    def test_evidence_is_as_old_as_the_step_that_made_it(self) -> None:
        estimator = Regression()
        for prompt in range(2):
            estimator.update(keys(prompt), counts(4), counts(8))
        began = estimator.begin()
        for prompt in range(2, 10):
            estimator.update(keys(prompt), counts(4), counts(8))
        estimator.update(keys(10), counts(4), counts(8), NONE, began)
        estimator.update(keys(11), counts(4), counts(8))
        ages = estimator.clock - estimator.table.read("visited", np.arange(12))
        assert ages.tolist() == [*range(11, 1, -1), 9, 0]

    def test_a_column_that_says_nothing_gets_no_weight(self) -> None:
        estimator = self.trained(
            lambda number, topic: np.full(64, 0.4), lambda number, topic: {"x": number, "same": np.full(64, 7.0)}
        )
        found = self.of_new_prompts(estimator, {"x": [-2.0, 0.0, 2.0], "same": [7.0] * 3}, 3)
        assert found == pytest.approx([0.4] * 3, abs=0.12)

    def test_an_outlier_makes_no_belief_certain_beyond_the_bounds(self) -> None:
        estimator = self.trained(lambda number, topic: 1 / (1 + np.exp(-number)), lambda number, topic: {"x": number})
        found = self.of_new_prompts(estimator, {"x": [-1e90, 1e90]}, 2)
        assert np.all((found > 0.0) & (found < 1.0))
        assert found[0] < 0.01 < 0.99 < found[1]

    def test_tells_prompts_apart_by_what_they_have_shown(self) -> None:
        random, estimator = np.random.default_rng(3), Regression()
        truth = random.beta(0.5, 0.5, 64)
        who = np.arange(64, dtype=np.uint64)
        for _ in range(15):
            estimator.update(who, random.binomial(8, truth), np.full(64, 8))
        found = estimator.belief(who, NONE).mean
        assert np.abs(found - truth).mean() < 0.1
        assert np.abs(found.mean() - truth.mean()) < 0.05

    @pytest.mark.parametrize("start", [0.1, 0.7])
    def test_is_not_misled_by_sampling_that_stops_at_the_first_success(self, start: float) -> None:
        """A visit ends with its success, so that k / n is too high on average; at most 16 rollouts."""
        random, estimator = np.random.default_rng(4), Regression()
        plain: list[float] = []
        for step in range(60):
            rates = random.beta(4 * start, 4 * (1 - start), 64)
            first = random.geometric(rates)
            won, tried = (first <= 16).astype(np.int64), np.minimum(first, 16)
            plain += (won / tried).tolist()
            estimator.update(np.arange(64, dtype=np.uint64) + np.uint64(64 * step), won, tried)
        found = float(estimator.belief(keys(10**9), NONE).mean[0])
        assert found == pytest.approx(start, abs=0.07)
        assert abs(np.mean(plain) - start) > 0.1

    def test_follows_a_policy_that_learns(self) -> None:
        random, estimator = np.random.default_rng(5), Regression()
        for step in range(80):
            now = 0.1 + 0.7 * step / 80
            who = np.arange(64, dtype=np.uint64) + np.uint64(64 * step)
            estimator.update(who, beta_binomial(random, now, 0.2, 8, 64), np.full(64, 8))
        behind = 0.7 / 80 * MEMORY / 64  # a memory of so many visits looks that far back on average
        assert float(estimator.belief(keys(10**9), NONE).mean[0]) == pytest.approx(now - behind, abs=0.06)

    @pytest.mark.parametrize("rollouts", [8, 64])
    @pytest.mark.parametrize("new", [True, False])
    def test_follows_a_policy_that_collapses_after_everything_was_solved(self, rollouts: int, new: bool) -> None:
        """Newton's steps from where everyone is certain are the longest of all."""
        estimator = Regression()
        who = np.arange(256, dtype=np.uint64)
        tried = np.full(256, rollouts)
        for step in range(46):
            if new:
                who = who + np.uint64(256)
            estimator.update(who, tried * (step < 40), tried)
        asked = who + np.uint64(256) if new else who
        assert estimator.belief(asked, NONE).mean.mean() < 0.15
        assert np.abs(estimator.state_dict()["weights"]).max() < 10.0

    def test_rows_of_one_prompt_are_parts_of_one_visit(self) -> None:
        whole, parts = Regression(), Regression()
        whole.update(keys(1, 2), np.array([3, 1]), np.array([8, 2]))
        parts.update(keys(1, 2, 1, 1), np.array([1, 1, 0, 2]), np.array([2, 2, 3, 3]))
        for first, second in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
            np.testing.assert_array_equal(first, second)

    def test_asking_about_the_same_arrays_again_sees_what_was_learned_in_between(self) -> None:
        estimator, other = Regression(), Regression()
        who = keys(1, 2, 3)
        before = estimator.belief(who, NONE)
        assert estimator.belief(who, NONE).mean.tolist() == before.mean.tolist()
        estimator.update(who, np.array([4, 0, 4]), np.array([4, 4, 4]))
        after = estimator.belief(who, NONE)
        assert after.mean.tolist() != before.mean.tolist()
        estimator.load_state_dict(other.state_dict())
        assert estimator.belief(who, NONE).mean.tolist() == before.mean.tolist()


def with_features(count: int) -> Features:
    return as_features({"topic": ["x", "y"] * (count // 2), "length": range(count)}, count)


ESTIMATORS = {"discounted": DiscountedBeta, "transitions": TransitionTable, "regression": Regression}
OF_ALL = {
    "negative keys": {"keys": [-1, 2]},
    "keys twice": {"keys": np.array([1, 1], dtype=np.uint64)},
    "too few outcomes": {"won": [1.0]},
    "more right than scored": {"won": [9.0, 1.0]},
    "negative outcomes": {"won": [-1.0, 1.0]},
    "unknown outcomes": {"won": [np.nan, 1.0]},
    "more than single precision holds": {"tried": [1e300, 4.0]},
    "visits without rollouts": {"tried": [0.0, 4.0]},
    "text": {"tried": ["4", "4"]},
}
DAMAGE = [(name, kind, damage) for name in ESTIMATORS for kind, damage in OF_ALL.items()] + [
    ("discounted", "three moments", {"moments": [1.0, 2.0, 3.0]}),
    ("discounted", "unknown moments", {"moments": [1.0, np.nan, 3.0, 4.0]}),
    ("discounted", "no weight", {"moments": [1.0, 0.0, 3.0, 4.0]}),
    ("discounted", "negative memory", {"losses": [-1.0, 2.0]}),
    ("transitions", "a cell beyond the table", {"cell": [36, 0]}),
    ("transitions", "a cell that wraps around", {"cell": [256, 0]}),
    ("transitions", "half a cell", {"cell": [0.5, 0.0]}),
    ("transitions", "a smaller table", {"cells": np.zeros((35, 4))}),
    ("transitions", "negative sums", {"cells": np.full((36, 4), -1.0)}),
    ("transitions", "infinite sums", {"cells": np.full((36, 4), np.inf)}),
    ("transitions", "nobody's sums", {"all": [1.0, 0.0, 1.0, 1.0]}),
    ("transitions", "nobody's pairs", {"all": [1.0, 2.0, 1.0, 0.0]}),
    ("regression", "another number of columns", {"columns": ["topic (text)"]}),
    ("regression", "no columns", {"columns": None}),
    ("regression", "columns of another kind", {"columns": ["length", "topic"]}),
    ("regression", "a column of another width", {"columns": ["length (numbers: 2)", "topic (text)"]}),
    ("regression", "columns that are none", {"columns": 3}),
    ("regression", "no whole number of visits", {"visits": 2.5}),
    ("regression", "infinitely many visits", {"visits": float("inf")}),
    ("regression", "visits before the last", {"visits": 1}),
    ("regression", "negative visits", {"visits": -2}),
    ("regression", "a visit before the first", {"visited": [-1, 2]}),
    ("regression", "a correlation out of bounds", {"log_kappa": 700.0}),
    ("regression", "an unknown correlation", {"log_kappa": np.nan}),
    ("regression", "an enormous correlation", {"log_kappa": 10**400}),
    ("regression", "no information on the correlation", {"kappa_information": 0.0}),
    ("regression", "nobody's rate", {"everyone": [0.0, 0.0]}),
    ("regression", "a rate above 1", {"everyone": [3.0, 2.0]}),
    ("regression", "fewer weights", {"weights": np.zeros(10)}),
    ("regression", "unknown weights", {"weights": np.full(11, np.nan)}),
    ("regression", "no information", {"information": np.zeros((11, 11))}),
    ("regression", "negative information", {"information": -np.eye(11)}),
    ("regression", "lopsided information", {"information": np.eye(11) + np.eye(11, k=-1)}),
    ("regression", "moments of two numbers", {"moments": np.ones((3, 2))}),
    ("regression", "a scalar for moments", {"moments": 1.0}),
    ("regression", "negative squares", {"moments": [[1.0], [1.0], [-1.0]]}),
    ("regression", "a category above 1", {"category_rate": [9.0, 0.1]}),
    ("regression", "a category of the future", {"category_visited": [0, 99]}),
    ("regression", "a category twice", {"category_keys": np.array([5, 5], dtype=np.uint64)}),
]


def told(name: str) -> Estimator:
    estimator: Estimator = ESTIMATORS[name]()
    estimator.update(keys(1, 2), np.array([1, 2]), np.array([4, 4]), with_features(2))
    return estimator


@pytest.mark.parametrize(("name", "damage"), [(n, d) for n, _, d in DAMAGE], ids=[f"{n}: {k}" for n, k, _ in DAMAGE])
def test_a_damaged_state_is_refused_and_changes_nothing(name: str, damage: dict[str, Any]) -> None:
    estimator = told(name)
    state = estimator.state_dict()
    assert damage.keys() <= state.keys()
    with pytest.raises(StateError, match="state: expected"):
        estimator.load_state_dict(state | damage)
    assert state.keys() == estimator.state_dict().keys()
    for part, value in estimator.state_dict().items():
        np.testing.assert_array_equal(value, state[part])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_state_without_one_of_its_parts_is_refused(name: str) -> None:
    estimator = told(name)
    complete = estimator.state_dict()
    for part in complete:
        with pytest.raises(StateError, match=part):
            estimator.load_state_dict({key: value for key, value in complete.items() if key != part})


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_state_is_a_copy(name: str) -> None:
    estimator, other = told(name), ESTIMATORS[name]()
    state = estimator.state_dict()
    before = estimator.belief(keys(1, 2, 3, 4), with_features(4)).wins.tolist()
    estimator.update(keys(1, 3), np.array([4, 0]), np.array([4, 4]), with_features(2))
    other.load_state_dict(state)
    assert other.belief(keys(1, 2, 3, 4), with_features(4)).wins.tolist() == before
    other.update(keys(1, 3), np.array([0, 4]), np.array([4, 4]), with_features(2))
    again = ESTIMATORS[name]()
    again.load_state_dict(state)
    assert again.belief(keys(1, 2, 3, 4), with_features(4)).wins.tolist() == before
