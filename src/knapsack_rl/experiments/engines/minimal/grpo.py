"""A whole GRPO loop for small models on a CPU, in one file: the `minimal` trainer, and how to use ask and tell.

Every part of a step is here in the open. `Loop` has the first four, in `_in_waves` and `_sampled`, and calls the last:

    ask       the allocator splits the step's budget over its prompts           plan = waves.ask()
    generate  each prompt is read once, its rollouts share the cache            tokens, lengths = policy.sample(...)
    score     the task's verifier: right or wrong                               rewards = task.reward(...)
    tell      the allocator learns what came back, or plans the next wave       waves.tell(successes, scored)
    update    clipped policy gradient on the rollouts with an advantage         loss = policy.update(...)

It trains what TRL's GRPOTrainer trains with the same recipe (the `dapo` loss without KL term, AdamW, the same order of
prompts), several times faster for models that fit in a processor's cache: sampling reads every prompt once, and no
rollout without an advantage is differentiated. Two things that TRL has no place for are here too: an oracle and dynamic
sampling.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

import knapsack_rl as kr
from knapsack_rl.belief import Belief
from knapsack_rl.errors import KnapsackError, StateError
from knapsack_rl.experiments.engines import ingredients
from knapsack_rl.experiments.engines.schedule import Sampling, sampling
from knapsack_rl.experiments.recipe import recipe_file
from knapsack_rl.experiments.recipe.schema import ORACLE, Recipe, Training
from knapsack_rl.experiments.report.run_report import write_report
from knapsack_rl.experiments.runs.environment import record_end, record_start
from knapsack_rl.experiments.runs.interruption import Interruption
from knapsack_rl.experiments.runs.progress import Display
from knapsack_rl.experiments.runs.run_directory import Outcome, RunDirectory
from knapsack_rl.tasks import Task

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Columns = dict[str, list[Any]]
"""Of a data set: ``prompt``, ``id``, and whatever the verifier needs."""

EPSILON = 1e-6  # beside equation 3 of the paper
MOST_ROUNDS = 10  # of dynamic sampling in a step, as in DAPO's own code
_ROWS_AT_ONCE = 4096  # completions that are generated together in an evaluation
_SPACE = 16 * 2**20  # bytes on the disk: a small model, allocations, metrics and the report


@dataclass(frozen=True)
class Rollouts:
    """Sampled completions; the arrays have one entry (or row) per rollout."""

    groups: Ints
    """Position of the rollout's prompt among the prompts of the step."""
    rows: Ints
    """Row of the prompt in the data set."""
    tokens: Tensor
    """(rollouts, longest), int64, filled up with padding after the end-of-sequence token."""
    lengths: Tensor
    """Tokens, the end-of-sequence token included."""
    rewards: Floats
    """NaN where the verifier gave none."""

    def __len__(self) -> int:
        return len(self.groups)

    def of(self, chosen: NDArray[Any]) -> Rollouts:
        """Some of the rollouts."""
        where = torch.from_numpy(chosen)
        return Rollouts(
            self.groups[chosen], self.rows[chosen], self.tokens[where], self.lengths[where], self.rewards[chosen]
        )

    def counts(self, prompts: int) -> tuple[Ints, Ints]:
        """Successes and scored rollouts of each of the step's prompts."""
        successes = np.bincount(self.groups[self.rewards > 0.0], minlength=prompts)
        return successes, np.bincount(self.groups[~np.isnan(self.rewards)], minlength=prompts)


def fixed_baseline_advantages(rewards: Floats, expected: Floats, clip: float | None) -> Floats:
    """(r - m) / sqrt(m (1 - m)), where m is what was believed before the step; 0 where there is no reward."""
    advantages = np.where(np.isnan(rewards), 0.0, rewards - expected) / np.sqrt(expected * (1.0 - expected))
    return advantages if clip is None else np.clip(advantages, -clip, clip)


def group_advantages(rewards: Floats, groups: Ints, clip: float | None) -> Floats:
    """Reward minus the group's mean, over its deviation (N - 1, as in TRL and verl): equation 3 of the paper.

    Exactly 0 where all rewards of a group are equal, and where there is no reward.
    """
    scored = ~np.isnan(rewards)
    count = np.bincount(groups, scored)
    mean = (np.bincount(groups, np.where(scored, rewards, 0.0)) / np.maximum(count, 1))[groups]
    variance = np.bincount(groups, np.where(scored, (rewards - mean) ** 2, 0.0)) / np.maximum(count - 1, 1)
    advantages = np.where(scored, rewards - mean, 0.0) / (np.sqrt(variance)[groups] + EPSILON)
    low, high = np.full(len(count), np.inf), np.full(len(count), -np.inf)
    np.fmin.at(low, groups, rewards)
    np.fmax.at(high, groups, rewards)
    advantages[(low >= high)[groups]] = 0.0
    return advantages if clip is None else np.clip(advantages, -clip, clip)


class Policy:
    """A language model that samples completions of a task's prompts and is updated on them."""

    def __init__(self, model: Any, tokenizer: Any, training: Training) -> None:
        self.model = model.eval()  # without dropout: the policy that samples is the one that is updated
        self.tokenizer = tokenizer
        self.training = training
        matrices = [weight for weight in model.parameters() if weight.ndim > 1]
        vectors = [weight for weight in model.parameters() if weight.ndim <= 1]  # norms and biases do not decay
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=training.learning_rate,
            betas=(training.adam_beta1, training.adam_beta2),
        )

    @torch.no_grad()
    def sample(
        self, prompts: list[str], counts: Ints, length: int, temperature: float, top_p: float, random: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """`counts[i]` completions of prompt i: tokens (rollouts, at most `length`) and how many of them count."""
        warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)] if temperature != 1.0 else [])
        if top_p < 1.0:
            warpers.append(TopPLogitsWarper(top_p))
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        seen = inputs["attention_mask"]
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        output = self.model(
            input_ids=inputs["input_ids"], attention_mask=seen, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        # Every prompt was read once; its rollouts go on from copies of its cache.
        owner = torch.repeat_interleave(torch.arange(len(prompts)), torch.from_numpy(counts))
        cache = output.past_key_values
        cache.batch_select_indices(owner)
        logits, seen, position = output.logits[owner, -1], seen[owner], positions[owner, -1]
        alive = torch.ones(len(owner), dtype=torch.bool)
        lengths = torch.zeros(len(owner), dtype=torch.int64)
        written = []
        for _ in range(length):
            chances = warpers(inputs["input_ids"], logits).float().softmax(dim=-1)
            token = torch.multinomial(chances, 1, generator=random)[:, 0]
            token[~alive] = self.tokenizer.pad_token_id
            written.append(token)
            lengths += alive
            alive &= token != self.tokenizer.eos_token_id
            if len(written) == length or not alive.any():
                break
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
            position = position + 1
            logits = self.model(
                input_ids=token[:, None],
                attention_mask=seen,
                position_ids=position[:, None],
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
        return torch.stack(written, dim=1), lengths

    def log_probabilities(self, prompts: list[str], rollouts: Rollouts) -> Tensor:
        """Of the completions' tokens under the sampling temperature, (rollouts, longest)."""
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        longest = rollouts.tokens.shape[1]
        ours = torch.arange(longest) < rollouts.lengths[:, None]
        seen = torch.cat([inputs["attention_mask"], ours.long()], dim=1)
        logits = self.model(
            input_ids=torch.cat([inputs["input_ids"], rollouts.tokens], dim=1),
            attention_mask=seen,
            position_ids=(seen.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=longest + 1,
            use_cache=False,
        ).logits[:, :-1]
        logs = (logits / self.training.temperature).log_softmax(dim=-1)
        return logs.gather(2, rollouts.tokens[:, :, None])[:, :, 0]

    def update(self, prompts: list[str], rollouts: Rollouts, advantages: Floats, shuffle: torch.Generator) -> float:
        """`updates_per_step` updates on the step's rollouts; returns the mean loss.

        The loss is a mean over all tokens of the step (TRL's `dapo`). Rollouts without an advantage have no gradient:
        they count in that mean, and are not computed.
        """
        updates, losses = self.training.updates_per_step, []
        tokens_per_update = float(rollouts.lengths.sum()) / updates
        order = torch.randperm(len(rollouts), generator=shuffle).numpy() if updates > 1 else np.arange(len(rollouts))
        old = self._before_updates(prompts, rollouts) if updates > 1 else None
        for part in np.array_split(order, updates):
            useful = part[advantages[part] != 0.0]
            self.optimizer.zero_grad(set_to_none=False)  # without gradients the momentum still counts, as in TRL
            for start in range(0, len(useful), self.training.micro_batch_size):
                chosen = useful[start : start + self.training.micro_batch_size]
                loss = self._loss(
                    [prompts[row] for row in chosen],
                    rollouts.of(chosen),
                    torch.from_numpy(advantages[chosen]).float(),
                    None if old is None else old[torch.from_numpy(chosen)],
                )
                (loss / tokens_per_update).backward()  # type: ignore[no-untyped-call]
                losses.append(loss.item() / tokens_per_update)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.max_grad_norm)
            self.optimizer.step()
        return sum(losses) / updates

    def _loss(self, prompts: list[str], rollouts: Rollouts, advantages: Tensor, old: Tensor | None) -> Tensor:
        """The clipped surrogate, summed over tokens."""
        logs = self.log_probabilities(prompts, rollouts)
        ratio = (logs - (logs.detach() if old is None else old)).exp()
        clipped = ratio.clamp(1.0 - self.training.clip_low, 1.0 + self.training.clip_high)
        surrogate = torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None])
        return -(surrogate * (torch.arange(logs.shape[1]) < rollouts.lengths[:, None])).sum()

    @torch.no_grad()
    def _before_updates(self, prompts: list[str], rollouts: Rollouts) -> Tensor:
        size = self.training.micro_batch_size
        parts = [np.arange(start, min(start + size, len(rollouts))) for start in range(0, len(rollouts), size)]
        return torch.cat([self.log_probabilities([prompts[row] for row in part], rollouts.of(part)) for part in parts])


def prompt_order(problems: int, prompts_per_step: int, seed: int) -> Iterator[int]:
    """Rows of the data set in the order of TRL's sampler: a permutation an epoch, incomplete last batches left out."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(problems, generator=generator).tolist()
        yield from order[: problems - problems % prompts_per_step]


@dataclass
class Step:
    """What a step did; the lists have one entry per prompt that was generated for, dropped ones included."""

    rows: list[int] = field(default_factory=list)
    planned: list[int] = field(default_factory=list)
    successes: list[int] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    unvisited: list[bool] = field(default_factory=list)
    wins: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    kept: list[Rollouts] = field(default_factory=list)
    tokens: int = 0
    fallback: int = 0
    waves: int = 0
    seconds: float = 0.0
    """Spent on planning and on learning what came back."""
    uncharged: float = 0.0
    """Seconds that an oracle sampled."""

    @property
    def belief(self) -> Belief:
        """What was believed about the prompts before the step."""
        return Belief(np.array(self.wins), np.array(self.losses))


class Loop:
    """One run: the policy, the problems, the allocator, and the random numbers of each purpose."""

    def __init__(self, recipe: Recipe, task: Task, policy: Policy) -> None:
        self.recipe, self.task, self.policy = recipe, task, policy
        self.allocator = ingredients.allocator(recipe)
        self.order = prompt_order(len(task.train), recipe.training.prompts_per_step, recipe.seed)
        # Apart from each other, so that neither evaluations nor an oracle change what training samples.
        self.random = torch.Generator().manual_seed(recipe.seed)
        self.oracle_random = torch.Generator().manual_seed(recipe.seed + 1)
        self.columns: Columns = {name: list(task.train[name]) for name in task.train.column_names}
        self.features = ingredients.feature_columns(recipe, task)

    def step(self, budget: int) -> tuple[Step, float]:
        """Generate for a step with at most `budget` rollouts, and update on them; returns the step and the loss."""
        training, step = self.recipe.training, Step()
        wanted = training.prompts_per_step
        for _ in range(MOST_ROUNDS if training.dynamic_sampling else 1):
            affordable = (budget - sum(step.planned)) // training.group_size  # a multiple, as the whole budget is
            missing = min(wanted - sum(len(np.unique(part.groups)) for part in step.kept), affordable)
            if missing == 0:
                break
            self._round(step, [next(self.order) for _ in range(missing)])
        rollouts = joined(step.kept, self.policy.tokenizer.pad_token_id)
        advantages = self._advantages(step, rollouts)
        prompts = [self.columns["prompt"][row] for row in rollouts.rows]
        return step, self.policy.update(prompts, rollouts, advantages, self.random) if len(rollouts) else 0.0

    def _advantages(self, step: Step, rollouts: Rollouts) -> Floats:
        training, groups = self.recipe.training, rollouts.groups
        if training.baseline == "belief":
            advantages = fixed_baseline_advantages(rollouts.rewards, step.belief.mean[groups], training.advantage_clip)
        else:
            advantages = group_advantages(rollouts.rewards, groups, training.advantage_clip)
        if (training.rollout_weights or self.allocator.rollout_weights) == "sqrt":
            advantages *= np.sqrt(training.group_size / np.bincount(groups))[groups]
        return advantages

    def _round(self, step: Step, rows: list[int]) -> None:
        """Plan, generate, score and tell for these prompts; keep what the update will use."""
        ids = [self.columns["id"][row] for row in rows]
        features = {name: [self.columns[name][row] for row in rows] for name in self.features}
        started = time.perf_counter()
        rates = self._true_rates(rows) if self.recipe.allocator.strategy == ORACLE else None
        step.uncharged += time.perf_counter() - started

        started = time.perf_counter()
        waves = self.allocator.step(ids, features, waves=self.recipe.allocator.waves)
        step.unvisited += (~self.allocator.visited(ids)).tolist()
        step.wins += waves.belief.wins.tolist()
        step.losses += waves.belief.losses.tolist()
        step.seconds += time.perf_counter() - started

        if rates is None:
            planned, rollouts = self._in_waves(step, waves, rows)
        else:
            plan = self._oracle_plan(rates)
            planned, rollouts = plan.rollouts, self._generate(rows, plan.rollouts, self.random)
            self.allocator.tell(ids, *rollouts.counts(len(rows)), features)
            step.fallback += plan.fallback
            step.waves += 1

        successes, scored = rollouts.counts(len(rows))
        with np.errstate(invalid="ignore"):
            rewards = np.bincount(rollouts.groups, np.nan_to_num(rollouts.rewards), len(rows)) / scored
        step.rewards += rewards.tolist()
        step.tokens += int(rollouts.lengths.sum())
        if self.recipe.training.dynamic_sampling:
            mixed = (successes > 0) & (successes < scored)
            rollouts = rollouts.of(np.flatnonzero(mixed[rollouts.groups]))
        step.kept.append(
            Rollouts(
                rollouts.groups + len(step.rows), rollouts.rows, rollouts.tokens, rollouts.lengths, rollouts.rewards
            )
        )
        step.rows += rows
        step.planned += planned.tolist()
        step.successes += successes.tolist()
        step.scored += scored.tolist()

    def _in_waves(self, step: Step, waves: kr.Step, rows: list[int]) -> tuple[Ints, Rollouts]:
        """Ask, generate, score and tell until the budget is spent; one wave for strategies that need no second look."""
        placed, parts = np.zeros(len(rows), dtype=np.int64), []
        while waves.remaining:
            started = time.perf_counter()
            plan = waves.ask()
            step.seconds += time.perf_counter() - started
            parts.append(self._generate(rows, plan.rollouts, self.random))
            started = time.perf_counter()
            waves.tell(*parts[-1].counts(len(rows)))
            step.seconds += time.perf_counter() - started
            placed += plan.rollouts
            step.fallback += plan.fallback
            step.waves += 1
        return placed, joined(parts, self.policy.tokenizer.pad_token_id)

    def _generate(self, rows: list[int], counts: Ints, random: torch.Generator) -> Rollouts:
        """`counts[i]` scored rollouts of the problem in row `rows[i]`."""
        training = self.recipe.training
        how = Sampling(
            samples=training.group_size,
            temperature=training.temperature,
            top_p=training.top_p,
            max_completion_length=training.max_completion_length,
            max_problems=None,
        )
        some = np.flatnonzero(counts)
        problems = {name: [values[rows[position]] for position in some] for name, values in self.columns.items()}
        tokens, lengths, rewards = self._sampled(problems, counts[some], how, random)
        groups = np.repeat(np.arange(len(rows)), counts)
        return Rollouts(groups, np.asarray(rows)[groups], tokens, lengths, rewards)

    def _sampled(
        self, problems: Columns, counts: Ints, how: Sampling, random: torch.Generator
    ) -> tuple[Tensor, Tensor, Floats]:
        """Completions of these problems, `counts[i]` of the i-th: tokens, lengths and rewards."""
        tokens, lengths = self.policy.sample(
            problems["prompt"], counts, how.max_completion_length, how.temperature, how.top_p, random
        )
        texts = self.policy.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        repeated = {
            name: [value for value, count in zip(values, counts, strict=True) for _ in range(count)]
            for name, values in problems.items()
        }
        prompts = repeated.pop("prompt")
        rewards = self.task.reward(prompts=prompts, completions=texts, **repeated)
        return tokens, lengths, np.array(rewards, dtype=np.float64)

    def _true_rates(self, rows: list[int]) -> Floats:
        """Success rates from extra rollouts, which nobody is charged for."""
        samples = np.full(len(rows), self.recipe.allocator.oracle_samples)
        successes, scored = self._generate(rows, samples, self.oracle_random).counts(len(rows))
        return successes / scored

    def _oracle_plan(self, rates: Floats) -> kr.Plan:
        settings = self.recipe.allocator
        return kr.allocate(
            rates,
            len(rates) * self.recipe.training.group_size,
            settings.min_rollouts,
            settings.max_rollouts,
            fallback=settings.fallback,
            confidence=settings.confidence,
        )

    def evaluate(self, last: bool) -> dict[str, float]:
        """Accuracy per benchmark: the mean over problems of the mean over samples; `last` after the last step."""
        how = sampling(self.recipe, last)
        at_once = max(1, _ROWS_AT_ONCE // how.samples)
        accuracies = {}
        for name, benchmark in self.task.evaluation.items():
            problems = how.kept(benchmark)
            columns = {column: list(problems[column]) for column in problems.column_names}
            random = torch.Generator().manual_seed(self.recipe.seed)
            rates: list[float] = []
            for start in range(0, len(problems), at_once):
                part = {column: values[start : start + at_once] for column, values in columns.items()}
                counts = np.full(len(part["prompt"]), how.samples)
                *_, rewards = self._sampled(part, counts, how, random)
                rates += np.nanmean(rewards.reshape(-1, how.samples), axis=1).tolist()
            accuracies[name] = float(np.nanmean(rates))
        return accuracies


def joined(parts: list[Rollouts], padding: int) -> Rollouts:
    """Rollouts of several rounds as one."""
    longest = max(part.tokens.shape[1] for part in parts)
    tokens = [
        torch.nn.functional.pad(part.tokens, (0, longest - part.tokens.shape[1]), value=padding) for part in parts
    ]
    return Rollouts(
        np.concatenate([part.groups for part in parts]),
        np.concatenate([part.rows for part in parts]),
        torch.cat(tokens),
        torch.cat([part.lengths for part in parts]),
        np.concatenate([part.rewards for part in parts]),
    )


def step_metrics(step: Step, loss: float) -> dict[str, float]:
    """What a step's record holds, by the names that the TRL trainer logs."""
    zero = kr.metrics.zero_gradient_ratios(step.successes, step.scored)
    low, q25, median, q75, high = np.quantile(step.planned, [0.0, 0.25, 0.5, 0.75, 1.0]).tolist()
    rewards = np.array(step.rewards)
    return {
        "loss": loss,
        "effective_gradient_ratio": kr.metrics.effective_gradient_ratio(step.successes, step.scored),
        "effective_prompts": kr.metrics.effective_prompts(step.successes, step.scored),
        "zero_gradient_ratio/all_positive": zero.all_positive,
        "zero_gradient_ratio/all_negative": zero.all_negative,
        "prompt_reward": float(np.nanmean(rewards)) if not np.isnan(rewards).all() else float("nan"),
        "completions/mean_length": step.tokens / sum(step.planned),
        "rollouts/min": low,
        "rollouts/q25": q25,
        "rollouts/median": median,
        "rollouts/q75": q75,
        "rollouts/max": high,
        "never_visited": float(np.mean(step.unvisited)),
        "belief/log_score": float(step.belief.log_likelihood(*map(np.array, (step.successes, step.scored))).mean()),
        "waves": float(step.waves),
        "fallback_rollouts": float(step.fallback),
        "allocation_seconds": step.seconds,
    }


def train(recipe: Recipe, output: Path, command: str, console: Console, report: bool = True) -> Outcome:
    """Train what `recipe` says in ``output/name``; a run that was cut off begins anew, and ends the same.

    Arguments, errors and what is written are those of `train.train`, with the trained model in ``model/`` and no
    checkpoints before the end.
    """
    directory = RunDirectory(output / recipe.name)
    directory.claim(recipe_file.render(recipe))
    try:
        already_finished = directory.finished
        if not already_finished:
            directory.require_space(_SPACE)
            _train(recipe, directory, command, console)
        page = write_report([directory.path]) if report else None
    except Exception as error:  # every library says it in its own way
        if not isinstance(error, KnapsackError) and directory.disk_is_full:
            raise StateError(
                f"{directory.path}: the disk is full. Free some space; the same command begins the run anew."
            ) from error
        raise
    finally:
        directory.release()
    return Outcome(directory, page, None, already_finished)


def _train(recipe: Recipe, directory: RunDirectory, command: str, console: Console) -> None:
    title = f"[bold]{recipe.name}[/] · {recipe.allocator.strategy} · seed {recipe.seed} · CPU"
    transformers.logging.disable_progress_bar()
    with Display(console, title, recipe.training.steps) as display, Interruption(display.stopping).listening():
        task, model, tokenizer = ingredients.problems_and_model(recipe, display)
        loop = Loop(recipe, task, Policy(model, tokenizer, recipe.training))
        record_start(directory, recipe, command)
        directory.rewind(-1)
        display.start(0, [])
        _loop(loop, directory, display)
        loop.policy.model.save_pretrained(directory.path / "model")
        loop.policy.tokenizer.save_pretrained(directory.path / "model")
        record_end(directory)


def _loop(loop: Loop, directory: RunDirectory, display: Display) -> None:
    training, every = loop.recipe.training, loop.recipe.evaluation.every * loop.recipe.training.rollouts_per_step
    spent = number = 0
    started, not_training = time.monotonic(), 0.0
    steps: list[Step] = []  # not on the disk yet

    def write(content: dict[str, Any]) -> None:
        elapsed = time.monotonic() - started
        times = {"time": round(elapsed, 3), "training_seconds": round(elapsed - not_training, 3)}
        record = {"step": number, "rollouts": spent, **times, **content}
        directory.append_metrics(record)
        display.record(record)

    def evaluate() -> None:
        nonlocal not_training
        began = time.monotonic()
        accuracies = loop.evaluate(last=spent >= training.budget)
        not_training += time.monotonic() - began
        write({"evaluation": accuracies})
        if steps:
            _append_allocations(directory, range(number - len(steps) + 1, number + 1), steps, loop.columns["id"])
            steps.clear()

    evaluate()
    while spent < training.budget:
        step, loss = loop.step(training.budget - spent)
        before, spent, number = spent, spent + sum(step.planned), number + 1
        not_training += step.uncharged
        write(step_metrics(step, loss))
        steps.append(step)
        if spent // every > before // every or spent >= training.budget:
            evaluate()


def _append_allocations(directory: RunDirectory, numbers: range, steps: list[Step], ids: list[str]) -> None:
    """Record the visits of several steps in one file."""
    directory.append_allocations(
        np.repeat(numbers, [len(step.rows) for step in steps]),
        [ids[row] for step in steps for row in step.rows],
        np.concatenate([step.planned for step in steps]),
        np.concatenate([step.scored for step in steps]),
        np.concatenate([step.successes for step in steps]),
        Belief(*(np.concatenate([getattr(step, name) for step in steps]) for name in ("wins", "losses"))),
    )
