from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import knapsack_rl as kr
from knapsack_rl.belief import Belief
from knapsack_rl.experiments.simulate.policy import Adam, Sgd, SimulatedPolicy, logit_gradients
from knapsack_rl.experiments.simulate.simulation import (
    HELD_OUT,
    MAX_ROLLOUTS,
    MIN_ROLLOUTS,
    Arm,
    Simulation,
    arm_named,
    simulate,
)
from knapsack_rl.experiments.simulate.worlds import OPTIMIZERS, WORLDS, Rates, World

TINY = World("A test.", prompts=96, readable=0.5, spread=2.0, unsolvable=0.1, features=4)
UNIFORM, KNAPSACK, ORACLE = (Arm(name, name) for name in ("uniform", "knapsack", "oracle"))


def run(arm: Arm, world: World = TINY, *, steps: int = 24, seed: int = 0, optimizer: str = "adam") -> Simulation:
    return simulate(world, arm, optimizer, seed=seed, steps=steps, batch=32)


def advantages(rewards: np.ndarray, clip: float) -> np.ndarray:
    """GRPO's, rollout by rollout (paper, equation 3 and appendix C)."""
    return np.clip((rewards - rewards.mean()) / (rewards.std() + 1e-6), -clip, clip)


@pytest.mark.parametrize("clip", [5.0, 0.7, np.inf])
def test_group_gradient_is_the_sum_over_its_rollouts(clip: float) -> None:
    for rollouts in (1, 2, 8, 128):
        for successes in {0, 1, rollouts // 3, rollouts // 2, rollouts - 1, rollouts}:
            rewards = np.repeat([1.0, 0.0], [successes, rollouts - successes])
            for p in (0.003, 0.4, 0.99):
                explicit = np.sum(advantages(rewards, clip) * (rewards - p))
                found = logit_gradients(np.array([successes]), np.array([rollouts]), np.array([p]), clip)
                assert found == pytest.approx(explicit, rel=1e-9, abs=1e-9)


def test_group_gradient_without_clipping_does_not_depend_on_the_success_rate() -> None:
    successes, rollouts = np.array([1, 4, 100]), np.array([8, 8, 128])
    mean = successes / rollouts
    for p in (0.01, 0.5, 0.9):
        found = logit_gradients(successes, rollouts, np.full(3, p), np.inf)
        np.testing.assert_allclose(found, rollouts * np.sqrt(mean * (1 - mean)), rtol=1e-4)


@pytest.mark.parametrize("readable", [0.05, 0.5, 1.0])
def test_gradients_are_those_of_the_log_likelihood_by_autograd(readable: float) -> None:
    torch = pytest.importorskip("torch")
    world = dataclasses.replace(TINY, readable=readable, sgd=Rates(1.0, 1.0, 1.0))
    policy = SimulatedPolicy(world, seed=3, optimizer="sgd", max_gradient_norm=np.inf)
    rng = np.random.default_rng(0)
    policy.shared += rng.standard_normal(world.features)
    policy.private += rng.standard_normal(world.prompts)
    rows = rng.permutation(world.prompts)[:40]
    rollouts = rng.integers(2, 20, 40)
    successes = rng.binomial(rollouts, policy.success_rates(rows))

    f = torch.tensor(min(policy.readable, 1e3), dtype=torch.float64, requires_grad=True)
    w = torch.tensor(policy.shared, requires_grad=True)
    theta = torch.tensor(policy.private[rows], requires_grad=True)
    learnable = torch.tensor(policy.learnable[rows].astype(float))
    features = torch.tensor(policy.features[rows].astype(float))
    p = torch.sigmoid(f) * torch.sigmoid(torch.tensor(policy.base[rows]) + learnable * (features @ w + theta))
    objective = torch.zeros((), dtype=torch.float64)
    for index, (k, n) in enumerate(zip(successes, rollouts, strict=True)):
        rewards = np.repeat([1.0, 0.0], [k, n - k])
        for reward, advantage in zip(rewards, advantages(rewards, 5.0), strict=True):
            if advantage:
                objective = objective + advantage * torch.log(p[index] if reward else 1 - p[index])
    (objective / rollouts.sum()).backward()

    before = policy.readable, policy.shared.copy(), policy.private.copy()
    policy.update(rows, successes, rollouts)

    if readable < 1.0:
        assert policy.readable - before[0] == pytest.approx(float(f.grad), rel=1e-6)
    np.testing.assert_allclose(policy.shared - before[1], w.grad.numpy(), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(policy.private[rows] - before[2][rows], theta.grad.numpy(), rtol=1e-6, atol=1e-12)
    untouched = np.setdiff1d(np.arange(world.prompts), rows)
    np.testing.assert_array_equal(policy.private[untouched], before[2][untouched])


def test_adam_steps_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    parameter = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.Adam([parameter], lr=0.03, maximize=True)
    ours, value = Adam(0.03, 5), np.zeros(5)
    for gradient in np.random.default_rng(1).standard_normal((40, 5)) * [1, 10, 1e-3, 1e-7, 0]:
        parameter.grad = torch.tensor(gradient)
        theirs.step()
        value += ours.step(gradient)
    np.testing.assert_allclose(value, parameter.detach().numpy(), rtol=1e-9, atol=1e-12)


def test_lazy_adam_treats_every_row_as_if_it_were_alone() -> None:
    rng = np.random.default_rng(2)
    lazy, alone = Adam(0.1, 6), [Adam(0.1, 1) for _ in range(6)]
    for _ in range(50):
        rows = rng.permutation(6)[: rng.integers(1, 6)]
        gradient = rng.standard_normal(len(rows))
        expected = [alone[row].step(gradient[[index]])[0] for index, row in enumerate(rows)]
        np.testing.assert_allclose(lazy.step(gradient, rows), expected, rtol=1e-12)


def test_sgd_steps_along_the_gradient() -> None:
    np.testing.assert_array_equal(Sgd(0.5).step(np.array([2.0, -4.0])), [1.0, -2.0])


def test_long_gradients_are_cut_to_the_largest_norm() -> None:
    world = dataclasses.replace(TINY, sgd=Rates(1.0, 1.0, 1.0))
    moved = []
    for limit in (np.inf, 1e-3):
        policy = SimulatedPolicy(world, seed=0, optimizer="sgd", max_gradient_norm=limit)
        start = policy.readable
        policy.update(np.arange(32), np.full(32, 4), np.full(32, 8))
        moved.append(np.concatenate(([policy.readable - start], policy.shared, policy.private)))
    assert np.linalg.norm(moved[0]) > 1e-3
    assert np.linalg.norm(moved[1]) == pytest.approx(1e-3)
    np.testing.assert_allclose(moved[1] / 1e-3, moved[0] / np.linalg.norm(moved[0]), atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rollouts_without_gradient_dilute_sgd_but_not_adam(optimizer: str) -> None:
    def shared_move(unsolved_rollouts: int) -> float:
        policy = SimulatedPolicy(TINY, seed=0, optimizer=optimizer)
        solvable = np.flatnonzero(policy.learnable)[:2]
        policy.update(solvable, np.array([4, 0]), np.array([8, unsolved_rollouts]))
        return float(policy.shared[0])

    diluted = shared_move(56) / shared_move(8)
    assert diluted == pytest.approx(0.25 if optimizer == "sgd" else 1.0, rel=1e-4)


def test_learning_one_prompt_moves_others_through_shared_parameters_only() -> None:
    policy = SimulatedPolicy(TINY, seed=0, optimizer="adam", held_out=50)
    before = policy.success_rates()
    row = np.flatnonzero(policy.learnable)[:1]
    policy.update(row, np.array([4]), np.array([8]))
    after = policy.success_rates()
    assert np.count_nonzero(policy.private) == 1
    solvable = policy.learnable[96:]
    assert np.all(after[96:][solvable] != before[96:][solvable])


def test_unsolvable_prompts_never_succeed() -> None:
    policy = SimulatedPolicy(dataclasses.replace(TINY, unsolvable=0.5), seed=0, optimizer="adam")
    for _ in range(20):
        policy.update(np.arange(96), np.where(policy.learnable, 4, 0), np.full(96, 8))
    assert policy.success_rates()[~policy.learnable].max() < 1e-16
    assert policy.success_rates()[policy.learnable].min() > 0.0


@pytest.mark.parametrize("explained", [0.0, 0.9])
def test_features_explain_the_share_of_the_difficulty_that_a_world_says(explained: float) -> None:
    world = dataclasses.replace(TINY, prompts=20_000, unsolvable=0.0, explained=explained)
    policy = SimulatedPolicy(world, seed=0, optimizer="adam")
    features, base = policy.features.astype(float), policy.base
    fitted = features @ np.linalg.lstsq(features, base, rcond=None)[0]
    assert 1.0 - np.var(base - fitted) / np.var(base) == pytest.approx(explained, abs=0.02)
    assert np.std(base) == pytest.approx(world.spread, rel=0.03)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("strategy", [*kr.strategies(), "oracle"])
def test_every_strategy_spends_the_same_and_repeats_itself(strategy: str, optimizer: str) -> None:
    one, again, other = (run(Arm(strategy, strategy), seed=seed, optimizer=optimizer) for seed in (5, 5, 6))
    assert one.steps["rollouts"] == [32.0 * 8] * 24
    for name, values in one.steps.items():
        np.testing.assert_array_equal(values, again.steps[name], err_msg=name)
    np.testing.assert_array_equal(one.last, again.last)
    np.testing.assert_array_equal(one.final, again.final)
    assert one.steps["effective_gradient_ratio"] != other.steps["effective_gradient_ratio"]
    assert one.budgets.sum() == 24 * 32
    assert one.budgets @ np.arange(MAX_ROLLOUTS + 1) == 24 * 32 * 8
    assert min(one.steps["min"]) >= MIN_ROLLOUTS


def test_arms_meet_the_same_prompts_and_the_same_luck() -> None:
    """A first epoch of the paper's rule is uniform, so nothing may differ in it."""
    uniform, knapsack = run(UNIFORM, steps=4), run(KNAPSACK, steps=4)
    for name in ("effective_gradient_ratio", "all_wrong", "expected_egr", "value"):
        assert uniform.steps[name][:3] == knapsack.steps[name][:3]
    assert uniform.steps["max"][3] == 8.0
    assert knapsack.steps["max"][3] > 8.0
    np.testing.assert_array_equal(uniform.first, knapsack.first)


def test_what_a_wave_adds_does_not_change_the_rollouts_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class InTwoWaves:
        """Uniform, but half of the rollouts after the other half."""

        def step(self, rows: list[int], features: None) -> InTwoWaves:
            self.belief = Belief(np.ones(len(rows)), np.ones(len(rows)))
            self.remaining, self.asked = 8 * len(rows), np.full(len(rows), 4)
            return self

        def ask(self) -> kr.Plan:
            return kr.Plan(self.asked, 0.0)

        def tell(self, successes: np.ndarray, rollouts: np.ndarray) -> None:
            assert np.all((successes >= 0) & (successes <= rollouts))
            self.remaining -= int(rollouts.sum())

    at_once = run(UNIFORM)
    module = "knapsack_rl.experiments.simulate.simulation._allocator"
    monkeypatch.setattr(module, lambda strategy, group_size: InTwoWaves())
    in_waves = run(UNIFORM)
    assert in_waves.steps["effective_gradient_ratio"] == at_once.steps["effective_gradient_ratio"]
    assert in_waves.steps["mean_success_rate"][-1] == at_once.steps["mean_success_rate"][-1]
    # What a plan in waves is worth is what it earned, an unbiased estimate of what was expected.
    assert in_waves.steps["expected_egr"] == in_waves.steps["effective_gradient_ratio"]


def test_expected_gradients_are_what_sampling_gives() -> None:
    found = run(UNIFORM, dataclasses.replace(TINY, prompts=6400), steps=200).steps
    expected, sampled = np.array(found["expected_egr"]), np.array(found["effective_gradient_ratio"])
    error = np.sqrt(0.25 / (200 * 32))
    assert abs(expected.mean() - sampled.mean()) < 4 * error


def test_no_plan_is_worth_more_than_the_oracles_at_the_same_success_rates() -> None:
    for arm in (UNIFORM, KNAPSACK, ORACLE):
        steps = run(arm).steps
        value, best, uniform = (np.array(steps[name]) for name in ("value", "oracle_value", "uniform_value"))
        assert np.all(value <= best + 1e-9)
        assert np.all(uniform <= best + 1e-9)
        if arm is ORACLE:
            np.testing.assert_array_equal(value, best)
        if arm is UNIFORM:
            np.testing.assert_allclose(value, uniform, rtol=1e-12)


def test_beliefs_are_held_against_the_true_success_rates_and_against_the_outcomes() -> None:
    """In a first step Jeffreys' prior is believed, and all else follows from the seed."""
    p = SimulatedPolicy(TINY, 0, "adam", HELD_OUT).success_rates(np.random.default_rng((0, 2, 0)).permutation(96)[:32])
    wins = (np.random.default_rng((0, 1, 0)).random((32, MAX_ROLLOUTS))[:, :8] < p[:, None]).sum(axis=1).tolist()

    found = run(UNIFORM, steps=1).steps

    assert found["belief_rmse"] == [pytest.approx(np.sqrt(np.mean((p - 0.5) ** 2)))]
    chances = [math.gamma(k + 0.5) * math.gamma(8.5 - k) / math.gamma(9.0) / math.pi for k in wins]
    assert found["log_score"] == [pytest.approx(np.mean(np.log(chances)))]


def test_the_oracle_believes_nothing() -> None:
    found = run(ORACLE, steps=2).steps

    assert np.isnan(found["belief_rmse"]).all()
    assert np.isnan(found["log_score"]).all()


def test_a_strategy_that_is_told_features_predicts_better_where_they_explain_the_difficulty() -> None:
    world = dataclasses.replace(TINY, prompts=3200, explained=0.9)
    told, untold = (run(arm_named(f"adaptive{end}"), world, steps=80) for end in (", told features", ""))

    first_visits = slice(40, None)  # nothing else is known of these prompts
    assert np.mean(told.steps["belief_rmse"][first_visits]) < 0.8 * np.mean(untold.steps["belief_rmse"][first_visits])


def test_strategies_that_do_not_learn_from_features_do_the_same_when_told() -> None:
    told, untold = run(arm_named("knapsack, told features")), run(KNAPSACK)

    for name, values in told.steps.items():
        np.testing.assert_array_equal(values, untold.steps[name], err_msg=name)


@pytest.mark.parametrize("name", ["oracle, told features", "knapsak, told features", "adaptive, told"])
def test_arms_without_a_strategy_are_refused(name: str) -> None:
    with pytest.raises(kr.InvalidInputError, match="strategy: expected one of"):
        arm_named(name)


def test_statuses_cover_every_visited_prompt() -> None:
    short = run(UNIFORM, steps=1)
    assert np.count_nonzero(short.first >= 0) == 32
    np.testing.assert_array_equal(short.first, short.last)
    whole = run(UNIFORM, steps=3)
    assert whole.first.min() >= 0
    assert len(whole.start) == len(whole.final) == 96


def test_a_world_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(kr.InvalidInputError, match="batch: expected at most the world's 96 prompts"):
        simulate(TINY, UNIFORM, batch=97)


@pytest.mark.parametrize(("arm", "optimizer"), [(Arm("x", "knapsak"), "adam"), (UNIFORM, "adamw")])
def test_unknown_names_are_refused(arm: Arm, optimizer: str) -> None:
    with pytest.raises(kr.InvalidInputError, match="Did you mean"):
        simulate(TINY, arm, optimizer, batch=32)


def test_every_world_says_what_it_is_for() -> None:
    assert {"paper", "fast", "slow", "unsolvable", "solvable", "features", "private", "small", "large"} <= set(WORLDS)
    assert WORLDS["paper"].prompts == 17_917
    assert all(world.purpose.endswith(".") for world in WORLDS.values())


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_papers_world_looks_as_its_figure_2_under_uniform(optimizer: str) -> None:
    found = simulate(WORLDS["paper"], UNIFORM, optimizer)
    egr = np.array(found.steps["effective_gradient_ratio"])
    smooth = np.convolve(egr, np.full(20, 1 / 20), mode="valid")
    assert smooth.max() < 0.6
    assert egr[100:400].mean() > 0.4
    assert egr[-50:].mean() < 0.3
    assert np.mean(found.steps["all_wrong"][:5]) > 0.9
    assert np.mean(found.steps["all_wrong"][-50:]) == pytest.approx(0.2, abs=0.05)
    assert np.mean(found.steps["all_correct"][600:700]) == pytest.approx(0.4, abs=0.05)
    transitions = kr.metrics.transition_matrix(found.first[found.first >= 0], found.last[found.first >= 0])
    assert transitions[0, 0] == pytest.approx(0.471, abs=0.05)
