"""GRPO for small models on a CPU, in one file: the example of how ask and tell go into a loop of your own.

A step, in `Loop.step`, is

    ask       the allocator splits the step's budget over its prompts           plan = step.ask()
    generate  each prompt is read once, its rollouts share the cache            policy.sample(...)
    score     the task's verifier: right or wrong                               task.reward(...)
    tell      the allocator learns what came back, or plans the next wave       step.tell(successes, scored, tokens)
    update    clipped policy gradient on the rollouts with an advantage         policy.update(...)

It trains what TRL's GRPOTrainer trains with the same recipe (the `dapo` loss without KL term, AdamW, the same order of
prompts), several times faster for models that fit in a processor's cache: sampling reads every prompt once, and no
rollout without an advantage is differentiated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

import knapsack_rl as kr
from knapsack_rl.alarm import Finding
from knapsack_rl.experiments.engines import ingredients, models
from knapsack_rl.experiments.engines.minimal import precision
from knapsack_rl.experiments.engines.schedule import Sampling
from knapsack_rl.experiments.recipe.schema import Recipe, Training
from knapsack_rl.gradients import GroupGradients
from knapsack_rl.step import Step
from knapsack_rl.tasks import Task

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Columns = dict[str, list[Any]]  # of a data set: `prompt`, `id`, and whatever the verifier needs


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
        successes = np.bincount(self.groups[kr.advantages.is_success(self.rewards)], minlength=prompts)
        return successes, np.bincount(self.groups[~np.isnan(self.rewards)], minlength=prompts)

    def costs(self, prompts: int, *, scored: bool = False) -> Floats:
        """Tokens that were generated for each of the step's prompts, or those of its scored rollouts alone."""
        chosen = ~np.isnan(self.rewards) if scored else slice(None)
        return np.bincount(self.groups[chosen], self.lengths.numpy()[chosen], prompts).astype(np.float64)

    def truncated(self, prompts: int, ends: Tensor) -> Ints:
        """How many scored rollouts of each of the step's prompts stopped without one of the tokens that end them."""
        last = self.tokens.gather(1, self.lengths[:, None] - 1)[:, 0]
        cut_off = ~torch.isin(last, ends).numpy() & ~np.isnan(self.rewards)
        return np.bincount(self.groups[cut_off], minlength=prompts)


@dataclass(frozen=True)
class Collected:
    """What was generated and scored of a step; lists and arrays have one entry per prompt, but for `rollouts`."""

    rows: list[int]
    rollouts: Rollouts
    planned: Ints
    visited: NDArray[np.bool_]
    belief: kr.Belief
    """About the prompts, from before the step."""
    expected_costs: Floats | None
    """Tokens of one rollout, from before the step; None where none were known."""
    fallback: int
    waves: int
    seconds: float
    """Spent on planning and on learning what came back."""
    findings: list[Finding]
    """What looks like a broken verifier."""
    step: Step
    """Which the allocator has learned from."""


class Loop:
    """One run: the policy, the problems, the allocator, and the random numbers of each purpose."""

    def __init__(self, recipe: Recipe, task: Task, policy: Policy) -> None:
        self.recipe, self.task, self.policy = recipe, task, policy
        self.allocator = ingredients.allocator(recipe)
        if self.allocator.measures or recipe.training.measure_influence:
            policy.watch = GroupGradients(policy.model)
        self.order = prompt_order(len(task.train), recipe.training.prompts_per_step, recipe.seed)
        self.random = torch.Generator().manual_seed(recipe.seed)
        self.columns: Columns = {name: list(task.train[name]) for name in task.train.column_names}
        self.features = ingredients.feature_columns(recipe, task)

    def step(self) -> tuple[Collected, float]:
        """One step of training: what was collected, and the loss."""
        collected = self.collect([next(self.order) for _ in range(self.recipe.training.prompts_per_step)])
        return collected, self.update(collected.rollouts, [collected.step])

    def collect(self, rows: list[int], known: dict[str, Any] | None = None) -> Collected:
        """Ask, generate, score and tell until the budget of these prompts is spent, in one wave or several.

        Args:
            rows: of the data set.
            known: what is known about the prompts beside the recipe's features, by column.
        """
        features = {name: [self.columns[name][row] for row in rows] for name in self.features}
        ids, parts, fallback, waves, generating = [self.columns["id"][row] for row in rows], [], 0, 0, 0.0
        started = time.perf_counter()
        step = self.allocator.step(ids, {**features, **(known or {})}, waves=self.recipe.allocator.waves)
        visited, belief, expected = step.visited, step.belief, step.expected_costs
        while step.remaining:
            plan = step.ask()
            begun = time.perf_counter()
            parts.append(self.generate(rows, plan.rollouts, self.random))
            generating += time.perf_counter() - begun
            step.tell(
                *parts[-1].counts(len(rows)),
                costs=parts[-1].costs(len(rows), scored=True),
                truncated=parts[-1].truncated(len(rows), self.policy.ends),
            )
            fallback, waves = fallback + plan.fallback, waves + 1
        rollouts = joined(parts, self.policy.tokenizer.pad_token_id)
        seconds = time.perf_counter() - started - generating
        return Collected(
            rows, rollouts, step.placed, visited, belief, expected, fallback, waves, seconds, step.findings, step
        )

    def update(self, rollouts: Rollouts, steps: list[Step]) -> float:
        """Update the policy on rollouts of these steps, whose groups are numbered through; returns the loss.

        Where gradients are measured, the steps are told of them.
        """
        prompts, watch, groups = [self.columns["prompt"][row] for row in rollouts.rows], self.policy.watch, 0
        if watch is not None:
            watch.begin(sum(map(len, steps)))
        exact, weights = self._exact(rollouts)
        loss = self.policy.update(prompts, rollouts, self._bounded(exact, weights), self.random)
        if watch is not None:
            watch.owners = None
            scored = np.where(np.isnan(rollouts.rewards), 0.0, weights)
            summed = watch.gradients.numpy()
            whole = np.bincount(rollouts.groups, scored, len(summed))
            gradients = summed / np.where(whole > 0.0, whole, 1.0)[:, None]
            divisors = kr.advantages.divisors(rollouts.rewards, exact, rollouts.groups, len(gradients))
            for step in steps if np.isfinite(gradients).all() else ():
                mine = slice(groups, groups + len(step))
                step.tell_gradients(gradients[mine], divisors=divisors[mine])
                groups += len(step)
        return loss

    def advantages(self, rollouts: Rollouts) -> Floats:
        """Of each rollout, over the groups as they are: clipped, and weighed as suits the strategy."""
        return self._bounded(*self._exact(rollouts))

    def _exact(self, rollouts: Rollouts) -> tuple[Floats, Floats]:
        """Advantages before they are clipped and weighed, and the weights."""
        kind = self.recipe.training.rollout_weights or self.allocator.rollout_weights
        weights = kr.advantages.rollout_weights(rollouts.groups, kind, self.recipe.training.group_size)
        return kr.advantages.group_advantages(rollouts.rewards, rollouts.groups).values, weights

    def _bounded(self, exact: Floats, weights: Floats) -> Floats:
        return kr.advantages.bounded(exact, self.recipe.training.advantage_clip, weights)

    def generate(self, rows: list[int], counts: Ints, random: torch.Generator) -> Rollouts:
        """`counts[i]` scored rollouts of the problem in row `rows[i]`."""
        some = np.flatnonzero(counts)
        problems = {name: [values[rows[position]] for position in some] for name, values in self.columns.items()}
        tokens, lengths, rewards = self.sampled(problems, counts[some], self.recipe.training, random)
        groups = np.repeat(np.arange(len(rows)), counts)
        return Rollouts(groups, np.asarray(rows)[groups], tokens, lengths, rewards)

    def sampled(
        self, problems: Columns, counts: Ints, how: Sampling | Training, random: torch.Generator
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


class Policy:
    """A language model that samples completions of a task's prompts and is updated on them."""

    def __init__(self, model: Any, tokenizer: Any, training: Training, autocast: bool = False) -> None:
        self.model = model.eval()  # without dropout: the policy that samples is the one that is updated
        self.tokenizer = tokenizer
        self.training = training
        self.autocast = autocast
        self.precision = model.dtype  # of probabilities, whatever the logits come in
        self.sampler = precision.sampler(model) if autocast else model
        self.watch: GroupGradients | None = None
        self.ends = torch.tensor(models.end_tokens(model, tokenizer, training.stop_strings))
        matrices = [weight for weight in model.parameters() if weight.ndim > 1]
        vectors = [weight for weight in model.parameters() if weight.ndim <= 1]  # norms and biases do not decay
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=training.learning_rate,
            betas=(training.adam_beta1, training.adam_beta2),
            fused=autocast,  # one pass over the weights in place of six
        )

    @torch.no_grad()
    def sample(
        self, prompts: list[str], counts: Ints, length: int, temperature: float, top_p: float, random: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """`counts[i]` completions of prompt i: tokens (rollouts, at most `length`) and how many of them count."""
        warpers = self.warpers(temperature, top_p)
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        output = self.read(inputs)
        # Every prompt was read once; its rollouts go on from copies of its cache.
        owner = torch.repeat_interleave(torch.arange(len(prompts)), torch.from_numpy(counts))
        cache = output.past_key_values
        cache.batch_select_indices(owner)
        logits, seen = output.logits[owner, -1], inputs["attention_mask"][owner]
        position = seen.sum(1) - 1
        alive = torch.ones(len(owner), dtype=torch.bool)
        lengths = torch.zeros(len(owner), dtype=torch.int64)
        written = []
        for _ in range(length):
            chances = warpers(inputs["input_ids"], logits).float().softmax(dim=-1)
            token = torch.multinomial(chances, 1, generator=random)[:, 0]
            token[~alive] = self.tokenizer.pad_token_id
            written.append(token)
            lengths += alive
            alive &= ~torch.isin(token, self.ends)
            if len(written) == length or not alive.any():
                break
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
            position = position + 1
            logits = self.forward(
                self.sampler,
                input_ids=token[:, None],
                attention_mask=seen,
                position_ids=position[:, None],
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
        return torch.stack(written, dim=1), lengths

    def warpers(self, temperature: float, top_p: float) -> LogitsProcessorList:
        """What turns logits into those that are sampled from."""
        warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)] if temperature != 1.0 else [])
        if top_p < 1.0:
            warpers.append(TopPLogitsWarper(top_p))
        return warpers

    def read(self, inputs: Any) -> Any:
        """Read every prompt once, padded on the left: the cache, and the logits of the first token."""
        seen = inputs["attention_mask"]
        return self.forward(
            self.sampler,
            input_ids=inputs["input_ids"],
            attention_mask=seen,
            position_ids=(seen.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )

    def forward(self, model: Any, **inputs: Any) -> Any:
        """A forward pass in the precision of the recipe."""
        with precision.autocast(self.autocast):
            return model(**inputs)

    def log_probabilities(self, prompts: list[str], rollouts: Rollouts) -> Tensor:
        """Of the completions' tokens under the sampling temperature, (rollouts, longest)."""
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        if self.watch is not None:
            self.watch.owners = torch.from_numpy(rollouts.groups)
        longest = rollouts.tokens.shape[1]
        ours = torch.arange(longest) < rollouts.lengths[:, None]
        seen = torch.cat([inputs["attention_mask"], ours.long()], dim=1)
        logits = self.forward(
            self.model,
            input_ids=torch.cat([inputs["input_ids"], rollouts.tokens], dim=1),
            attention_mask=seen,
            position_ids=(seen.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=longest + 1,
            use_cache=False,
        ).logits[:, :-1]
        logs = (logits.to(self.precision) / self.training.temperature).log_softmax(dim=-1)
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
            self.optimizer.zero_grad()
            passes = list(self.passes(prompts, part[advantages[part] != 0.0]))
            for chosen in passes:
                loss = self._loss(
                    [prompts[row] for row in chosen],
                    rollouts.of(chosen),
                    torch.from_numpy(advantages[chosen]).float(),
                    None if old is None else old[torch.from_numpy(chosen)],
                )
                (loss / tokens_per_update).backward()  # type: ignore[no-untyped-call]
                losses.append(loss.item() / tokens_per_update)
            for weight in self.optimizer.state if not passes else ():  # the momentum still counts, as in TRL
                weight.grad = torch.zeros_like(weight)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.max_grad_norm)
            self.optimizer.step()
            if self.autocast:
                precision.refresh(self.sampler, self.model)
        return sum(losses) / updates

    def passes(self, prompts: list[str], chosen: Ints) -> Iterator[Ints]:
        """The chosen rollouts as they go forward and backward together."""
        size = self.training.micro_batch_size
        return (chosen[start : start + size] for start in range(0, len(chosen), size))

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
