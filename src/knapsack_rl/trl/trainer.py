"""Variable group sizes in TRL's own GRPOTrainer and RLOOTrainer.

TRL's data loader delivers M prompts, each repeated G times, and everything behind it counts on that. The adapter leaves
the loader alone and re-deals the rows at the last moment, right before generation, when beliefs are freshest:

    plan      gather the M distinct rows, ask the allocator, deal the same number of rows to every process
    generate  TRL, told that every row is a group of its own
    score     advantages over the real groups, outcomes and token counts back to the allocator, metrics

A strategy that looks at the first rollouts before it places the rest has several plans in a step, each generated and
rewarded before the next is made (`waves`), all with the same policy. Where a plan is even (a first epoch, or the
strategy `uniform`) nothing is re-dealt and TRL's advantages are kept, so that the trainer is then TRL's plain one.
"""

from __future__ import annotations

import copy
import json
import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import IterableDataset
from numpy.typing import NDArray
from torch.utils.data import Sampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import RepeatSampler

from knapsack_rl import advantages as core
from knapsack_rl import dispatch, metrics
from knapsack_rl.allocation import Plan
from knapsack_rl.allocator import STATE_FILE, BudgetAllocator
from knapsack_rl.belief import Belief
from knapsack_rl.errors import StateError
from knapsack_rl.gradients import GroupGradients
from knapsack_rl.identity import prompt_id
from knapsack_rl.rewards import Judge, ThresholdWatch, gated
from knapsack_rl.step import Step
from knapsack_rl.trl import compatibility
from knapsack_rl.trl.comparing import WholeGroups, compares
from knapsack_rl.trl.idle import DIVISORS, IdleTrainer, loss_mask
from knapsack_rl.trl.sampler import EpochOrder
from knapsack_rl.trl.waves import Row

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class StepRecord:
    """What was planned for a generation batch and what came of it; arrays have shape (M,), one entry per prompt."""

    rows: list[Row]
    """The rows of the data set, in the order of the plan."""
    plan: Plan
    successes: Ints
    scored: Ints
    """Rollouts that could be judged: those with the reward that decides success."""
    rewards: Floats
    """Mean reward of the rollouts that got any, NaN where there are none."""
    tokens: Ints
    """Completion tokens that were generated for the rollouts."""
    belief: Belief
    """What was believed about the prompts before the step."""


class _Prompts(NamedTuple):
    """The M prompts of a step, and what was known of them before it."""

    rows: list[Row]
    visited: NDArray[np.bool_]
    belief: Belief
    expected_tokens: Floats | None
    """Of one rollout; None before any were counted."""


class _Generation(NamedTuple):
    """A generated and rewarded step, which the allocator has learned from."""

    output: dict[str, Any]
    """TRL's, for this process."""
    plan: Plan
    groups: Ints
    """Which prompt each rollout of all processes belongs to."""
    even: bool
    """Whether TRL saw the real groups, and its advantages are right."""
    waves: int


class KnapsackTrainer(IdleTrainer):
    """One of TRL's trainers with a group size per prompt, decided step by step by a `BudgetAllocator`.

    Takes what TRL's trainer takes, and trains on exactly as many rollouts.

    Args:
        allocator: whose `group_size` is `args.num_generations`; by default `BudgetAllocator(strategy="uniform")`. It
            is told the completion tokens of every prompt, so that a `cost_limit` bounds those of a step.
        success_threshold: a rollout is a success when its reward is above this.
        success_reward: name of the reward function that decides success; by default the weighted sum of all. Give it
            when some functions reward style or format.
        graded_rewards: whether that reward has no line between right and wrong (partial credit, a reward model). A
            success is then a rollout above the mean of its group, and a group has a gradient where its rewards differ.
        outcome_gate: `success` takes the advantages from groups without a success, `both` also from those without a
            failure, whatever other functions reward; `none` leaves them.
        advantage_clip: bound on the absolute advantage (paper, appendix C), None for none. By default ("auto") 5 where
            advantages are normalised, since one success in 128 then has one of 11. None where they are in the unit of
            the rewards (`scale_rewards="none"`; RLOO without `normalize_advantages`), which no bound must bend, and
            under the strategy `uniform`, which leaves TRL's updates as they are.
        id_column: a column that tells prompts with the same text apart. A prompt is its content and images, and this.
        waves: whether a strategy with several waves may generate several times in a step; False plans every step in one
            shot, for engines where waiting for the last rollout of each wave costs too much.
        feature_columns: columns that tell the allocator more about a prompt, for strategies that learn from it: text (a
            category) or numbers. See `BudgetAllocator.ask`.
        watch_columns: columns of text, such as the data source, by which the allocator's `alarm` watches outcomes; it
            watches text among the `feature_columns` as well.
        rollout_weights: `sqrt` multiplies the clipped advantage of each rollout by sqrt(num_generations / N_i), so that
            a prompt weighs in the gradient with the root of its rollouts and not with their number; `none` does not.
            By default what suits the strategy: `sqrt` for `adaptive`, `adaptive-learnability`, `cautious` and
            `measured`, `none` for all others.
        skip_idle: whether rollouts without gradient are left out of the update, which stays the same (`idle`). Where
            it would not, this is off, and a message says why.
        measure_influence: whether to measure what gradients are worth, for the allocator's `influence` and the logs.
            Strategies that go by it (`measured`) have it on.

    Attributes:
        skip_idle: whether they are.
        last_step: the newest generation batch, None before the first.

    Raises:
        InvalidInputError: TRL's version or an option cannot work with variable group sizes.
    """

    reward_funcs: list[Any]

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        *more: Any,
        allocator: BudgetAllocator | None = None,
        success_threshold: float = 0.0,
        success_reward: str | None = None,
        graded_rewards: bool = False,
        outcome_gate: Literal["none", "success", "both"] = "none",
        advantage_clip: float | Literal["auto"] | None = "auto",
        id_column: str | None = None,
        waves: bool = True,
        feature_columns: Sequence[str] = (),
        watch_columns: Sequence[str] = (),
        rollout_weights: Literal["none", "sqrt"] | None = None,
        skip_idle: bool = True,
        measure_influence: bool = False,
        **kwargs: Any,
    ) -> None:
        compatibility.check_trl_version()
        compatibility.check_trainer(type(self))
        if args is None:
            args = self._default_args()
        if allocator is None:
            allocator = BudgetAllocator(group_size=args.num_generations, max_rollouts=max(args.num_generations, 128))
        compatibility.check_options(args, allocator, id_column, feature_columns, watch_columns, train_dataset)
        compatibility.check_success(success_threshold, graded_rewards, outcome_gate)
        weights = allocator.rollout_weights if rollout_weights is None else rollout_weights
        compatibility.check_weights(args, weights)
        compatibility.check_clip(advantage_clip)
        super().__init__(model, reward_funcs, args, train_dataset, *more, **kwargs)
        compatibility.check_success_reward(success_reward, self.reward_func_names)
        if waves:
            compatibility.check_waves(self, allocator)
        self.allocator = allocator
        if measure_influence or allocator.measures:
            self._watch = GroupGradients(self.model)
        self.success_threshold = success_threshold
        self.success_reward = success_reward
        self.graded_rewards = graded_rewards
        self.outcome_gate = outcome_gate
        bends = self._normalises and allocator.strategy != "uniform"
        self.advantage_clip = (5.0 if bends else None) if advantage_clip == "auto" else advantage_clip
        self.id_column = id_column
        self.waves = waves
        self.feature_columns, self.watch_columns = tuple(feature_columns), tuple(watch_columns)
        self.rollout_weights = weights
        self.skip_idle = skip_idle and self._can_skip_idle()
        self.last_step: StepRecord | None = None
        self._generation_seconds = 0.0
        self._threshold_watch = ThresholdWatch()
        self._clip_watch = core.ClipWatch(self.advantage_clip)
        self._groups: Ints | None = None  # of the rollouts that are being rewarded, where they are dealt anew
        self.reward_funcs = [
            WholeGroups(function, name, self.accelerator, lambda: self._groups) if compares(function) else function
            for function, name in zip(self.reward_funcs, self.reward_func_names, strict=True)
        ]

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)

        started, self._generation_seconds = time.perf_counter(), 0.0
        rows = self._distinct_rows(inputs)
        step = self._opened(rows)
        prompts = _Prompts(rows, step.visited, step.belief, step.expected_costs)
        judge = Judge(len(rows), self.success_threshold, self.graded_rewards)
        if step.ask().rollouts.sum() == step.remaining:
            done = self._generate_at_once(step, judge, prompts.rows, inputs)
        else:
            done = self._generate_in_waves(step, judge, prompts.rows)
        self._report(step, prompts.rows)

        rewards = self._newest_rewards()
        exact = self._advantages(rewards, done)
        weights = core.rollout_weights(done.groups, self.rollout_weights, self.num_generations)
        bounded = core.bounded(exact.values, self.advantage_clip, weights)
        advantages = gated(bounded, done.groups, judge, self.outcome_gate)
        total = self._total(rewards)
        done.output.update(self._measure(step, done.groups, total, exact.values, weights, self._local(len(inputs))))
        done.output["advantages"] = torch.as_tensor(advantages[self._local(len(inputs))]).to(done.output["advantages"])
        self._logs["advantages"].clear()
        self._logs["advantages"].extend(advantages.tolist())
        record = self._record(prompts, done, rewards, judge)
        self.last_step = record
        found = self._watch_rewards(judge, rewards, exact, done) | self._masked(done, advantages)
        found["allocation_seconds"] = time.perf_counter() - started - self._generation_seconds
        self._log_step(record, advantages, done, prompts, found)
        return done.output

    # Plan

    @staticmethod
    def _default_args() -> Any:
        """TRL's arguments where none are given."""
        raise NotImplementedError

    def _distinct_rows(self, inputs: list[Row]) -> list[Row]:
        """The M rows behind the rollouts of all processes, in the loader's order."""
        processes, size = self.accelerator.num_processes, self.num_generations
        if len(inputs) * processes != self.args.generation_batch_size:
            raise StateError(
                f"batch: expected {self.args.generation_batch_size} rows over {processes} processes, got {len(inputs)} "
                "on this one. Leave TRL's data loader and sampler as they are (no split_batches, no sampler of yours)."
            )
        start = -self.accelerator.process_index * len(inputs) % size  # groups may straddle two processes
        rows: list[Row] = gather_object(copy.deepcopy(inputs[start::size]))  # reward functions may change their row
        return rows

    def _opened(self, rows: list[Row]) -> Step:
        ids = [self._prompt_id(row) for row in rows]
        features = {name: [row[name] for row in rows] for name in self.feature_columns}
        for name, values in features.items():
            compatibility.check_gaps(name, values, "the newest batch")
        watch = {name: [row[name] for row in rows] for name in self.watch_columns}
        return self.allocator.step(ids, features, waves=self.waves, watch=watch)

    def _report(self, step: Step, rows: list[Row]) -> None:
        """Say what the allocator's alarm found in a step that is over, with examples; log what is known by now."""
        for finding in step.findings if self.accelerator.is_main_process else ():
            examples = "; ".join(repr(rows[position].get("prompt"))[:200] for position in finding.prompts)
            logger.warning("%s Prompts: %s.", finding.text, examples)
        for name, number in (self.allocator.alarm.metrics() | self.allocator.influence.metrics()).items():
            self._metrics["train"][name].append(number)

    def _prompt_id(self, row: Row) -> str:
        compatibility.check_columns(row, self.id_column, self.feature_columns, self.watch_columns)
        extra = {
            name: _plain(row[name]) for name in ("image", "images", self.id_column) if name is not None and name in row
        }
        return prompt_id(row.get("prompt"), extra=extra or None)

    def _deal(self, plan: Plan, rows: list[Row], inputs: list[Row]) -> tuple[Ints, list[Row]]:
        """Which prompt each rollout of all processes belongs to, and this process's rows.

        Every rollout is a job of its own, dealt at random (paper, section 4.2), the same number to each process; within
        a process the rollouts of a prompt stay together, so that engines can share their prefix.
        """
        if np.all(plan.rollouts == self.num_generations):
            return np.repeat(np.arange(len(rows)), plan.rollouts), inputs
        seed = self.allocator.seed + self.state.global_step
        jobs = dispatch.shuffled_jobs(plan.rollouts, self.accelerator.num_processes, seed)
        groups = np.concatenate([np.sort(part) for part in jobs])
        return groups, [copy.deepcopy(rows[group]) for group in groups[self._local(len(inputs))]]

    def _local(self, count: int) -> slice:
        """This process's part of a vector over the rollouts of all processes."""
        start = self.accelerator.process_index * count
        return slice(start, start + count)

    # Generate

    def _generate_at_once(self, step: Step, judge: Judge, rows: list[Row], inputs: list[Row]) -> _Generation:
        plan = step.ask()
        groups, dealt = self._deal(plan, rows, inputs)
        even = dealt is inputs
        started = time.perf_counter()
        self._groups = groups
        try:
            output = self._generate_groups(dealt, group_size=self.num_generations if even else 1)
        finally:
            self._groups = None
        self._generation_seconds += time.perf_counter() - started
        step.tell(*self._outcomes(judge, groups))
        return _Generation(output, plan, groups, even, waves=1)

    def _generate_in_waves(self, step: Step, judge: Judge, rows: list[Row]) -> _Generation:
        """Plan, generate and reward until nothing remains, telling the step what each wave brought.

        TRL's collectives need as many rows in every process. Where a wave cannot be shared out evenly, its last few
        rollouts are generated with the next one; the step as a whole can be, so that the last wave leaves none over.
        """
        processes = self.accelerator.num_processes
        seed = self.allocator.seed + self.state.global_step
        late = np.zeros(len(rows), dtype=np.int64)
        plans, waves, deals = [], [], []
        while step.remaining:
            plans.append(step.ask())
            jobs = dispatch.shuffled_jobs(late + plans[-1].rollouts, processes, seed)
            share = min(len(part) for part in jobs)
            late = np.bincount(np.concatenate([part[share:] for part in jobs]), minlength=len(rows))
            outcomes = (np.zeros(len(rows), dtype=np.int64),) * 4
            if share:
                deal = np.stack([np.sort(part[:share]) for part in jobs])
                mine = [copy.deepcopy(rows[group]) for group in deal[self.accelerator.process_index]]
                started = time.perf_counter()
                waves.append(self._play(mine))
                self._generation_seconds += time.perf_counter() - started
                deals.append(deal)
                outcomes = self._outcomes(judge, deal.ravel())
            step.tell(*outcomes)
        started = time.perf_counter()
        output = self._replay(waves)
        self._generation_seconds += time.perf_counter() - started
        rollouts = np.sum([plan.rollouts for plan in plans], axis=0)
        whole = Plan(rollouts, plans[-1].value, sum(plan.fallback for plan in plans))
        return _Generation(output, whole, np.concatenate(deals, axis=1).ravel(), even=False, waves=len(waves))

    # Score

    @property
    def _normalises(self) -> bool:
        """Whether advantages have no unit, because a deviation divides them."""
        raise NotImplementedError

    def _exact_advantages(self, rewards: Floats, groups: Ints) -> core.Advantages:
        """What TRL's advantages would be over groups of any size, from the rewards of each function."""
        raise NotImplementedError

    def _total(self, rewards: Floats) -> Floats:
        """What advantages are made from: the weighted sum over the functions; NaN where none gave a reward."""
        return core.total_rewards(rewards, self.reward_weights.cpu().double().numpy())

    def _newest_rewards(self) -> Floats:
        """Rewards of the newest rollouts of all processes, shape (rollouts, reward functions)."""
        return self._rewards_per_func.cpu().double().numpy()  # in this order: not every device has float64

    def _advantages(self, rewards: Floats, done: _Generation) -> core.Advantages:
        """Advantages of the rollouts of all processes: those TRL has just computed, unless it saw groups of one."""
        exact = self._exact_advantages(rewards, done.groups)
        if done.even:
            computed = np.array(self._logs["advantages"])[-len(done.groups) :]
            return exact._replace(values=np.where(exact.idle, 0.0, computed))
        self._metrics["train"]["frac_reward_zero_std"][-1] = exact.zero_std
        return exact

    def _deciding(self, rewards: Floats) -> Floats:
        """The reward that decides success of each rollout, NaN where there is none."""
        if self.success_reward is None:
            return core.total_rewards(rewards, self.reward_weights.cpu().double().numpy())  # not clipped, as RLOO's are
        return rewards[:, self.reward_func_names.index(self.success_reward)]

    def _newest_lengths(
        self, groups: Ints, prompts: int, chosen: NDArray[np.bool_] | slice = slice(None)
    ) -> tuple[Ints, Ints]:
        """Of each prompt's newest rollouts, or of some of these: their completion tokens, and how many were cut off."""
        lengths = self._lengths_per_rollout.cpu().numpy()[chosen]
        tokens, truncated = (np.bincount(groups[chosen], column, prompts).astype(np.int64) for column in lengths.T)
        return tokens, truncated

    def _outcomes(self, judge: Judge, groups: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """What `Step.tell` takes of the newest rollouts: successes, those that could be judged, tokens, truncated."""
        deciding = self._deciding(self._newest_rewards())
        won, tried = judge.count(deciding, groups)
        return won, tried, *self._newest_lengths(groups, len(tried), ~np.isnan(deciding))

    def _record(self, prompts: _Prompts, done: _Generation, rewards: Floats, judge: Judge) -> StepRecord:
        total = core.total_rewards(rewards, self.reward_weights.cpu().double().numpy())
        known = ~np.isnan(total)
        with np.errstate(invalid="ignore"):
            count = len(prompts.rows)  # the last of them may sit out
            rewarded = np.bincount(done.groups, known, count)
            means = np.bincount(done.groups, np.where(known, total, 0.0), count) / rewarded
        tokens, _ = self._newest_lengths(done.groups, len(prompts.rows))
        return StepRecord(prompts.rows, done.plan, judge.successes, judge.scored, means, tokens, prompts.belief)

    def _watch_rewards(
        self, judge: Judge, rewards: Floats, exact: core.Advantages, done: _Generation
    ) -> dict[str, float]:
        """Say once where the threshold or the bound of advantages does not fit the rewards; returns metrics."""
        live = np.bincount(done.groups[~exact.idle], minlength=len(judge.scored)) > 0
        share, about_bound = self._clip_watch.observe(exact.values)
        for sentence in (self._threshold_watch.observe(judge, self._deciding(rewards), live), about_bound):
            if sentence is not None and self.accelerator.is_main_process:
                logger.warning("%s", sentence)
        return {} if self.advantage_clip is None else {"advantage_clipped": share}

    def _masked(self, done: _Generation, advantages: Floats) -> dict[str, float]:
        """What `mask_truncated_completions` took from the loss."""
        if not self.mask_truncated_completions:
            return {}
        kept = self.accelerator.gather(loss_mask(done.output).any(dim=1)).cpu().numpy()
        return {
            "masked_rollouts": float((~kept).mean()),
            "masked_rollouts/with_advantage": float((~kept & (advantages != 0.0)).mean()),
        }

    def _log_step(
        self,
        record: StepRecord,
        advantages: Floats,
        done: _Generation,
        prompts: _Prompts,
        more: dict[str, float],
    ) -> None:
        live = np.bincount(done.groups[advantages != 0.0], minlength=len(record.rows))
        found = metrics.step_metrics(
            record.plan.rollouts,
            record.successes,
            scored=record.scored,
            live=live,
            rewards=record.rewards,
            visited=prompts.visited,
            belief=prompts.belief,
            fallback=record.plan.fallback,
            waves=done.waves,
            costs=record.tokens,
            expected_costs=prompts.expected_tokens,
        )
        for name, number in (found | more).items():
            self._metrics["train"][name].append(float(number))

    # Resume

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        sampler = super()._get_train_sampler(dataset)
        if not isinstance(sampler, RepeatSampler):
            return sampler
        return EpochOrder(sampler, epoch=lambda: int(self.state.epoch or 0))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:  # before TRL writes trainer_state.json, the last file of a complete checkpoint
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            self.allocator.save(folder / STATE_FILE)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = Path(checkpoint, STATE_FILE)
        if state.exists():
            self.allocator.load(state)
        else:
            warnings.warn(
                f"{checkpoint} has no {STATE_FILE}: plain {self.plain.__name__} wrote it. The allocator keeps the "
                "beliefs that it came with; a new one counts every prompt as never visited.",
                stacklevel=2,
            )
        progress = json.loads(Path(checkpoint, "trainer_state.json").read_text(encoding="utf-8"))
        streamed = isinstance(self.train_dataset, IterableDataset)
        if streamed and progress["epoch"] >= 1.0:
            warnings.warn(
                f"{checkpoint} lies in a later pass over an iterable data set, whose place Trainer cannot find again: "
                "prompts come in another order than they would have. For an exact resume use a data set with a length.",
                stacklevel=2,
            )
        prompts = None if streamed else len(self.train_dataset)
        if compatibility.inside_window(self.args, progress["global_step"], prompts):
            warnings.warn(
                f"{checkpoint} lies inside a generation window, where TRL cannot resume exactly: the window's rollouts "
                f"are lost and generated anew. For an exact resume {compatibility.exact_resume(self.args)}.",
                stacklevel=2,
            )


class KnapsackGRPOTrainer(KnapsackTrainer, GRPOTrainer):
    """TRL's GRPOTrainer with a group size per prompt, decided step by step by a `BudgetAllocator`.

    Takes what GRPOTrainer takes and the arguments of `KnapsackTrainer`. Advantages are those of TRL over the groups as
    they are (`scale_rewards`, `multi_objective_aggregation`), with the paper's epsilon of 1e-6 where groups are uneven.
    """

    plain = GRPOTrainer

    @staticmethod
    def _default_args() -> Any:
        return GRPOConfig(output_dir="knapsack-grpo")

    @property
    def _divisor(self) -> str | None:
        return DIVISORS.get(self.loss_type)

    def _completions(self, generated: tuple[Any, ...]) -> tuple[list[Any], Any, list[Any], dict[str, Any]]:
        _, completion_ids, tool_mask, completions, _, extra_fields, *_ = generated
        return completion_ids, tool_mask, completions, extra_fields

    @property
    def _normalises(self) -> bool:
        return self.scale_rewards != "none" or self.multi_objective_aggregation == "normalize_then_sum"

    def _exact_advantages(self, rewards: Floats, groups: Ints) -> core.Advantages:
        return core.group_advantages(
            rewards,
            groups,
            self.reward_weights.cpu().double().numpy(),
            scale_rewards=self.scale_rewards,
            multi_objective_aggregation=self.multi_objective_aggregation,
        )


class KnapsackRLOOTrainer(KnapsackTrainer, RLOOTrainer):
    """TRL's RLOOTrainer with a group size per prompt, decided step by step by a `BudgetAllocator`.

    Takes what RLOOTrainer takes and the arguments of `KnapsackTrainer`. Advantages are leave-one-out over the groups as
    they are (`reward_clip_range`, `normalize_advantages`). `args.beta` must be 0: TRL puts the KL term into the reward,
    so that the gradient of a group would not vanish where its rewards are equal.
    """

    plain = RLOOTrainer

    @staticmethod
    def _default_args() -> Any:
        return RLOOConfig(output_dir="knapsack-rloo", beta=0.0)

    @property
    def _divisor(self) -> str | None:
        return "rows"

    def _completions(self, generated: tuple[Any, ...]) -> tuple[list[Any], Any, list[Any], dict[str, Any]]:
        _, completion_ids, completions = generated
        return completion_ids, None, completions, {}

    @property
    def _normalises(self) -> bool:
        return bool(self.normalize_advantages)

    def _total(self, rewards: Floats) -> Floats:
        total = super()._total(rewards)
        return np.clip(total, *self.reward_clip_range) if self.reward_clip_range else total

    def _exact_advantages(self, rewards: Floats, groups: Ints) -> core.Advantages:
        return core.leave_one_out_advantages(self._total(rewards), groups, normalize=self.normalize_advantages)


def _plain(value: Any) -> Any:
    """A tensor, as data sets with a format give them, as the numbers that it holds."""
    return value.tolist() if isinstance(value, torch.Tensor) else value
