"""One simulated training run: ask, sample, tell, update, a thousand times."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from knapsack_rl import BudgetAllocator, allocate, strategies
from knapsack_rl import metrics as step_metrics
from knapsack_rl.belief import Belief
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.simulate.policy import SimulatedPolicy
from knapsack_rl.experiments.simulate.worlds import World
from knapsack_rl.validation import as_integer, one_of
from knapsack_rl.values import information_gain, nonzero_gradient_probability

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BATCH, GROUP_SIZE, STEPS = 256, 8, 1000
"""The paper's: prompts a step, mean rollouts a prompt, steps (section 5.1)."""
MIN_ROLLOUTS, MAX_ROLLOUTS = 2, 128
HELD_OUT = 4096
ORACLE = "oracle"
TOLD = ", told features"
"""Ends the name of an arm whose strategy is told the features that drive the world's difficulties."""
FRESH = 8
"""Rollouts of every prompt from the final policy, the same for every arm, by which it is judged solved or not."""
_EVALUATIONS = 50
_QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}


def strategy_names() -> tuple[str, ...]:
    """What an arm may run: the strategies of the library, and the oracle."""
    return (*strategies(), ORACLE)


@dataclass(frozen=True)
class Arm:
    """A strategy at a cost.

    Attributes:
        name: what figures call it.
        strategy: one of `strategy_names()`. The `oracle` is told the true success rates of the step and solves the
            paper's knapsack on them within the same bounds; no real run can do that.
        group_size: mean rollouts a prompt.
        told: whether the strategy is told the prompts' features; not all learn from them.
    """

    name: str
    strategy: str
    group_size: int = GROUP_SIZE
    told: bool = False


def arm_named(name: str) -> Arm:
    """The arm of a strategy, or of one that is told features: "adaptive", "adaptive, told features".

    Raises:
        InvalidInputError: there is no such strategy, or it has nothing to learn from features (the oracle).
    """
    strategy = name.removesuffix(TOLD)
    told = strategy != name
    return Arm(name, one_of("strategy", strategy, strategies() if told else strategy_names()), told=told)


@dataclass
class Simulation:
    """What a run leaves behind.

    Attributes:
        steps: one value a step for every name in `_Run._record` and what it calls; `mean_success_rate` and `held_out`
            are NaN between evaluations, `log_score` and `belief_rmse` for the oracle, which has no belief.
        budgets: shape (MAX_ROLLOUTS + 1,), how many visits got so many rollouts.
        first: status (0 to 4) of each prompt at its first visit, -1 where never visited.
        last: the same at its last visit.
        start: statuses of all prompts in `FRESH` rollouts before training.
        final: the same after it.
        unsolved: expected number of training prompts without a success in `FRESH` rollouts after training.
        seconds: processor time of the run without what only measures it.
    """

    steps: dict[str, list[float]] = field(default_factory=dict)
    budgets: Ints = field(default_factory=lambda: np.zeros(MAX_ROLLOUTS + 1, dtype=np.int64))
    first: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    last: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    start: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    final: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    unsolved: float = 0.0
    seconds: float = 0.0


def simulate(
    world: World,
    arm: Arm,
    optimizer: str = "adam",
    *,
    seed: int = 0,
    steps: int = STEPS,
    batch: int = BATCH,
    progress: Callable[[], object] = lambda: None,
) -> Simulation:
    """Train a policy on the world's prompts with one strategy.

    The seed fixes the prompts, their order (a new permutation each epoch, a rest of less than a batch left out) and the
    random number behind the j-th rollout of a prompt in a step. All of these are the same for every strategy, so that
    two arms differ by their plans only.

    Args:
        world: what there is to learn.
        arm: who allocates.
        optimizer: one of `worlds.OPTIMIZERS`.
        seed: 0 or more.
        steps: updates.
        batch: prompts a step.
        progress: called after every step.

    Raises:
        InvalidInputError: a name is unknown, or the world has fewer prompts than a batch.

    Cost: O(steps * batch * MAX_ROLLOUTS + prompts) time.
    """
    as_integer("seed", seed, at_least=0)
    if as_integer("batch", batch, at_least=1) > world.prompts:
        raise InvalidInputError(f"batch: expected at most the world's {world.prompts} prompts, got {batch}.")
    run = _Run(world, arm, optimizer, seed, batch)
    evaluate_every = max(1, as_integer("steps", steps, at_least=1) // _EVALUATIONS)
    run.evaluate_statuses("start")
    for step in range(steps):
        run.step(step)
        run.evaluate((step + 1) % evaluate_every == 0 or step in (0, steps - 1))
        progress()
    run.evaluate_statuses("final")
    return run.result


class _Run:
    """The state of a run between two steps."""

    def __init__(self, world: World, arm: Arm, optimizer: str, seed: int, batch: int) -> None:
        self.arm, self.seed, self.batch, self.prompts = arm, seed, batch, world.prompts
        self.policy = SimulatedPolicy(world, seed, optimizer, HELD_OUT)
        strategy = one_of("strategy", arm.strategy, strategy_names())
        self.allocator = None if strategy == ORACLE else _allocator(strategy, arm.group_size)
        # Without the constant, which tells prompts nothing apart.
        self._features = self.policy.features[:, 1:] if arm.told else None
        self.result = Simulation(first=np.full(world.prompts, -1), last=np.full(world.prompts, -1))
        self._order = np.empty(0, dtype=np.int64)

    def step(self, step: int) -> None:
        """Allocate, sample, learn, record."""
        begin = time.process_time()
        rows = self._rows(step)
        rates = self.policy.success_rates(rows)
        draws = np.random.default_rng((self.seed, 1, step)).random((self.batch, MAX_ROLLOUTS))
        wins = np.zeros((self.batch, MAX_ROLLOUTS + 1), dtype=np.int64)
        np.cumsum(draws < rates[:, None], axis=1, out=wins[:, 1:])  # successes among the first n rollouts
        rollouts, waves, believed = self._place(rows, rates, wins)
        successes = wins[np.arange(self.batch), rollouts]
        self.policy.update(rows, successes, rollouts)
        self.result.seconds += time.process_time() - begin
        self._record(rows, rates, rollouts, successes, waves)
        self._record_belief(believed, rates, rollouts, successes)

    def _place(self, rows: Ints, rates: Floats, wins: Ints) -> tuple[Ints, int, Belief | None]:
        """Rollouts of each prompt in this step, in how many waves they were placed, and what was believed before."""
        budget = self.arm.group_size * self.batch
        if self.allocator is None:
            return _oracle(rates, budget), 1, None
        rollouts, waves = np.zeros(self.batch, dtype=np.int64), 0
        step = self.allocator.step(rows.tolist(), None if self._features is None else self._features[rows])
        believed = step.belief
        while step.remaining:
            more = step.ask().rollouts
            index = np.arange(self.batch)
            step.tell(wins[index, rollouts + more] - wins[index, rollouts], more)
            rollouts, waves = rollouts + more, waves + 1
        return rollouts, waves, believed

    def _rows(self, step: int) -> Ints:
        per_epoch = self.prompts // self.batch
        epoch, position = divmod(step, per_epoch)
        if position == 0:
            self._order = np.random.default_rng((self.seed, 2, epoch)).permutation(self.prompts)
        return self._order[position * self.batch : (position + 1) * self.batch]

    def _record(self, rows: Ints, rates: Floats, rollouts: Ints, successes: Ints, waves: int) -> None:
        mixed = (successes > 0) & (successes < rollouts)
        correct, wrong = step_metrics.zero_gradient_ratios(successes, rollouts)
        measured = {
            "effective_gradient_ratio": step_metrics.effective_gradient_ratio(successes, rollouts),
            "all_correct": correct,
            "all_wrong": wrong,
            "effective_prompts": float(mixed.mean()),
            "rollouts": float(rollouts.sum()),
            **{name: float(np.quantile(rollouts, at)) for name, at in _QUANTILES.items()},
            **self._against_references(rates, rollouts, mixed if waves > 1 else None),
        }
        for name, number in measured.items():
            self.result.steps.setdefault(name, []).append(number)
        self.result.budgets += np.bincount(rollouts, minlength=MAX_ROLLOUTS + 1)
        status = step_metrics.status(successes / rollouts)
        new = self.result.first[rows] < 0
        self.result.first[rows[new]] = status[new]
        self.result.last[rows] = status

    def _record_belief(self, believed: Belief | None, rates: Floats, rollouts: Ints, successes: Ints) -> None:
        """How good the belief from before the step was: by what came out, and by the true p, which only this knows."""
        score = error = np.nan
        if believed is not None:
            score = float(believed.log_likelihood(successes, rollouts).mean())
            error = float(np.sqrt(np.mean((believed.mean - rates) ** 2)))
        for name, number in (("log_score", score), ("belief_rmse", error)):
            self.result.steps.setdefault(name, []).append(number)

    def _against_references(self, rates: Floats, rollouts: Ints, mixed: NDArray[np.bool_] | None) -> dict[str, float]:
        """Value (equation 5) and expected EGR of this plan, of uniform's and of the oracle's, at the same true p.

        A plan made in waves depends on its own outcomes. What it has earned (`mixed`, the groups with gradient) is
        then the unbiased estimate.
        """
        budget = int(rollouts.sum())
        plans = {
            "": rollouts,
            "uniform_": np.full(self.batch, self.arm.group_size),
            "oracle_": rollouts if self.arm.strategy == ORACLE else _oracle(rates, budget),
        }
        found = {}
        for name, plan in plans.items():
            chance = nonzero_gradient_probability(plan, rates) if name or mixed is None else mixed
            found[f"{name}value"] = float(chance @ information_gain(rates))
            found[f"{name}expected_egr"] = float(chance @ plan) / budget
        return found

    def evaluate(self, due: bool) -> None:
        """Mean true success rate of all training prompts and of the held-out ones."""
        rates = self.policy.success_rates() if due else np.full(self.prompts + HELD_OUT, np.nan)
        for name, part in (("mean_success_rate", rates[: self.prompts]), ("held_out", rates[self.prompts :])):
            self.result.steps.setdefault(name, []).append(float(part.mean()))

    def evaluate_statuses(self, when: str) -> None:
        """Statuses of all training prompts from fresh rollouts."""
        rates = self.policy.success_rates()[: self.prompts]
        successes = np.random.default_rng((self.seed, 3)).binomial(FRESH, rates)
        setattr(self.result, when, step_metrics.status(successes / FRESH))
        self.result.unsolved = float(((1.0 - rates) ** FRESH).sum())


def _allocator(strategy: str, group_size: int) -> BudgetAllocator:
    return BudgetAllocator(strategy, group_size, MIN_ROLLOUTS, MAX_ROLLOUTS)


def _oracle(rates: Floats, budget: int) -> Ints:
    return allocate(rates, budget, MIN_ROLLOUTS, MAX_ROLLOUTS, fallback=False).rollouts
