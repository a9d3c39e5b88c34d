from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the report extra is not installed")
pytest.importorskip("pyarrow", reason="the report extra is not installed")

from scipy import integrate, stats

import knapsack_rl as kr
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit.accounting import Accounts, Log
from knapsack_rl.experiments.audit.expectation import (
    candidate,
    expect,
    fit_prior,
    predicted_mixed,
    unbiased_mixed,
)
from knapsack_rl.experiments.audit.replay import replay
from knapsack_rl.experiments.audit.rows import Batch
from knapsack_rl.experiments.audit.values import Encoded


def log_of(step: np.ndarray, prompt: np.ndarray, rollouts: np.ndarray, successes: np.ndarray) -> Log:
    names = Encoded([f"p{index}" for index in range(prompt.max() + 1)], prompt)
    accounts = Accounts(0.0)
    unknown = np.full(len(step), np.nan)
    accounts.add(Batch(step, names, names, unknown, unknown, rollouts=rollouts, successes=successes))
    return accounts.log()


def learner(
    seed: int, prompts: int = 400, per_step: int = 100, steps: int = 24, size: int = 8
) -> tuple[Log, np.ndarray]:
    """A log of a learner whose success rates are known: one for each group of the log."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1.5, 2.8, prompts)
    order = np.concatenate([rng.permutation(prompts) for _ in range(steps * per_step // prompts)]).reshape(steps, -1)
    rate = np.empty((steps, per_step))
    for step, of_step in enumerate(order):
        logit[of_step] += 0.1
        rate[step] = 1 / (1 + np.exp(-logit[of_step]))
    won = rng.binomial(size, rate)
    log = log_of(np.repeat(np.arange(steps), per_step), order.ravel(), np.full(order.size, size), won.ravel())
    at = {(step, prompt): rate[step, place] for step in range(steps) for place, prompt in enumerate(order[step])}
    names = [int(text[1:]) for text in log.texts]
    return log, np.array([at[step, names[p]] for step, p in zip(log.step.tolist(), log.prompt.tolist(), strict=True)])


def test_the_unbiased_estimate_is_the_share_of_mixed_subsets_and_unbiased() -> None:
    drawn, rate = 7, 0.23
    counts = np.arange(drawn + 1)
    for rollouts in range(drawn + 1):
        estimate = unbiased_mixed(np.full(drawn + 1, rollouts), counts, np.full(drawn + 1, drawn))
        mean = float(stats.binom.pmf(counts, drawn, rate) @ estimate)
        assert mean == pytest.approx(float(kr.nonzero_gradient_probability(rollouts, rate)), abs=1e-12)


def test_the_unbiased_estimate_is_what_drawing_subsets_gives() -> None:
    rng = np.random.default_rng(0)
    rewards = np.array([1, 1, 0, 0, 0, 0, 0, 0, 0, 0])
    drawn = np.array([rng.permutation(rewards)[:4].sum() for _ in range(20_000)])
    estimate = unbiased_mixed(np.array([4]), np.array([2]), np.array([10]))
    assert estimate[0] == pytest.approx(np.mean((drawn > 0) & (drawn < 4)), abs=0.01)


@pytest.mark.parametrize(("rollouts", "a", "b"), list(product((2, 9, 128), (0.05, 1.0, 12.5), (0.4, 30.0))))
def test_the_prediction_is_the_integral_over_the_posterior(rollouts: int, a: float, b: float) -> None:
    def weighted(p: float) -> float:
        return float(kr.nonzero_gradient_probability(rollouts, p))

    expected = stats.beta(a, b).expect(weighted) if min(a, b) >= 1 else _integral(weighted, a, b)
    assert predicted_mixed(np.array([rollouts]), a, b)[0] == pytest.approx(expected, rel=1e-6, abs=1e-8)


def _integral(function: Callable[[float], float], a: float, b: float) -> float:
    """E[f(p)], p ~ Beta(a, b), where the density is infinite at an end: scipy takes the ends as weights."""
    whole = integrate.quad(function, 0.0, 1.0, weight="alg", wvar=(a - 1, b - 1))[0]
    return float(whole / integrate.quad(lambda _: 1.0, 0.0, 1.0, weight="alg", wvar=(a - 1, b - 1))[0])


def test_one_rollout_or_none_is_never_mixed() -> None:
    assert predicted_mixed(np.array([0, 1]), 1.0, 1.0).tolist() == [0.0, 0.0]
    assert unbiased_mixed(np.array([0, 1]), np.array([1, 1]), np.array([2, 2])).tolist() == [0.0, 0.0]


def test_the_prior_is_found_again_from_its_own_counts() -> None:
    rng = np.random.default_rng(0)
    rate = rng.beta(0.5, 1.5, 20_000)
    won = rng.binomial(8, rate)
    counts = np.bincount(won, minlength=9)[None, :].astype(float)
    a, b = candidate(int(fit_prior(np.arange(9), np.full(9, 8), counts)[0]))
    assert a / (a + b) == pytest.approx(0.25, abs=0.03)
    assert a + b == pytest.approx(2.0, rel=0.25)


def test_a_replay_is_the_loop_that_one_would_write_by_hand() -> None:
    log, _ = learner(3)
    plans = replay(log, "knapsack", 2, 32)
    allocator = kr.BudgetAllocator("knapsack", group_size=8, min_rollouts=2, max_rollouts=32)
    for step in np.unique(log.step):
        of_step = log.step == step
        ids = log.prompt[of_step].tolist()
        assert plans.planned[of_step].tolist() == allocator.ask(ids).rollouts.tolist()
        allocator.tell(ids, log.successes[of_step], log.rollouts[of_step])


def test_every_step_is_planned_with_exactly_what_was_spent_in_it() -> None:
    rng = np.random.default_rng(1)
    step = np.repeat(np.arange(30), 12)
    prompt = np.concatenate([rng.permutation(40)[:12] for _ in range(30)])
    rollouts = rng.integers(1, 40, 360)
    rollouts[:12] = 1  # below the minimum, which has to give way
    log = log_of(step, prompt, rollouts, rng.binomial(rollouts, 0.3))
    plans = replay(log, "knapsack", 2, 16)
    assert np.bincount(log.step, plans.planned).tolist() == np.bincount(log.step, log.rollouts).tolist()
    assert plans.outside > 0
    assert plans.planned.min() >= 1


def test_a_plan_does_not_look_at_its_own_step_or_at_later_ones() -> None:
    log, _ = learner(4)
    changed = log_of(log.step, log.prompt, log.rollouts, np.where(log.step < 12, log.successes, 0))
    same_prompts = {text: index for index, text in enumerate(changed.texts)}
    before, after = replay(log).planned, replay(changed).planned
    place = {
        (s, changed.texts[p]): n for s, p, n in zip(changed.step.tolist(), changed.prompt.tolist(), after, strict=True)
    }
    assert len(same_prompts) == len(log.texts)
    early = log.step <= 12
    pairs = [(s, f"p{p}") for s, p in zip(log.step[early].tolist(), log.prompt[early].tolist(), strict=True)]
    assert sorted(before[early].tolist()) == sorted(int(place[pair]) for pair in pairs)


@pytest.mark.parametrize(("low", "high"), [(0, 8), (9, 8)])
def test_bounds_that_cannot_be_are_refused(low: int, high: int) -> None:
    with pytest.raises(InvalidInputError, match="rollouts"):
        replay(learner(0, steps=4)[0], "knapsack", low, high)


def test_what_is_expected_is_what_the_true_success_rates_give() -> None:
    inside = []
    for seed in range(8):
        log, rate = learner(seed)
        plans = replay(log)
        found = expect(log, plans)

        def true_ratio(rollouts: np.ndarray, rate: np.ndarray = rate) -> float:
            return float((rollouts * kr.nonzero_gradient_probability(rollouts, rate)).sum() / rollouts.sum())

        planned, spent = true_ratio(plans.planned), true_ratio(log.rollouts)
        assert found.planned.value == pytest.approx(planned, abs=0.025)
        assert found.spent.value == pytest.approx(spent, abs=0.025)
        assert found.without_prior.value < found.planned.value
        assert found.without_prior.low < planned
        inside += [
            found.planned.low <= planned <= found.planned.high,
            found.gain.low <= planned - spent <= found.gain.high,
        ]
    assert np.mean(inside) >= 0.85


def test_what_was_observed_is_the_logs_effective_gradient_ratio() -> None:
    log, _ = learner(1)
    found = expect(log, replay(log))
    assert found.observed.value == pytest.approx(kr.metrics.effective_gradient_ratio(log.successes, log.rollouts))
    assert found.observed.low < found.observed.value < found.observed.high


def test_uniform_plans_gain_nothing() -> None:
    log, _ = learner(2)
    found = expect(log, replay(log, "uniform"))
    assert found.gain.value == pytest.approx(0.0, abs=1e-12)
    assert found.without_prior.value == pytest.approx(found.observed.value)


def test_what_needs_no_prior_is_at_least_reached_as_often_as_its_interval_says() -> None:
    exceeded, points = [], []
    for seed in range(40):
        log, rate = learner(seed, prompts=40, per_step=20, steps=8)
        plans = replay(log, "uniform")
        true = float((plans.planned * kr.nonzero_gradient_probability(plans.planned, rate)).sum() / plans.planned.sum())
        found = expect(log, plans).without_prior
        exceeded.append(found.low > true)
        points.append(found.value > true)
    assert np.mean(exceeded) <= 0.1
    assert np.mean(points) > 0.2


def test_where_all_resamples_are_alike_there_is_no_interval() -> None:
    log = log_of(np.repeat(np.arange(3), 20), np.tile(np.arange(20), 3), np.full(60, 4), np.full(60, 2))
    found = expect(log, replay(log))
    for estimate in (found.observed, found.spent, found.planned, found.gain, found.without_prior):
        assert np.isnan([estimate.low, estimate.high]).all()
    assert np.isnan(found.by_window["planned"][1:]).all()
    assert np.isfinite(found.by_window["planned"][0]).all()


def test_the_same_log_gives_the_same_numbers() -> None:
    log, _ = learner(5, steps=8)
    assert expect(log, replay(log)).planned == expect(log, replay(log)).planned


def test_windows_add_up_to_the_whole() -> None:
    log, _ = learner(6)
    plans = replay(log)
    found = expect(log, plans)
    weight = np.bincount(found.window, plans.planned)
    assert found.by_window["planned"][0] @ weight / weight.sum() == pytest.approx(found.planned.value)
    assert found.effective_planned.sum() / plans.planned.sum() == pytest.approx(found.planned.value)


def test_a_log_of_two_prompts_and_two_steps_has_no_interval() -> None:
    log = log_of(np.array([1, 1, 2, 2]), np.array([0, 1, 0, 1]), np.array([4, 4, 4, 4]), np.array([0, 4, 1, 4]))
    found = expect(log, replay(log))
    assert 0.0 < found.planned.value < 1.0
    assert np.isnan([found.planned.low, found.planned.high, found.without_prior.low, found.gain.high]).all()
    assert np.isnan(found.by_window["observed"][1:]).all()
    assert found.clusters == 2
