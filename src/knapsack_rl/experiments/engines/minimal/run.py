"""A run of the minimal trainer: its steps, its evaluations, and what it writes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from rich.console import Console

import knapsack_rl as kr
from knapsack_rl.errors import InvalidInputError, KnapsackError, StateError
from knapsack_rl.experiments.engines import ingredients
from knapsack_rl.experiments.engines.minimal import dynamic_sampling
from knapsack_rl.experiments.engines.minimal.grpo import Collected, Floats, Loop, Policy
from knapsack_rl.experiments.engines.minimal.oracle import Oracle
from knapsack_rl.experiments.engines.minimal.packing import can_share
from knapsack_rl.experiments.engines.minimal.shared_prompts import SharedPromptPolicy
from knapsack_rl.experiments.engines.schedule import Score, recorded, sampling
from knapsack_rl.experiments.recipe import recipe_file
from knapsack_rl.experiments.recipe.schema import ORACLE, Recipe
from knapsack_rl.experiments.report.run_report import write_report
from knapsack_rl.experiments.runs import manifest
from knapsack_rl.experiments.runs.environment import record_end, record_start
from knapsack_rl.experiments.runs.interruption import Interruption
from knapsack_rl.experiments.runs.progress import Display
from knapsack_rl.experiments.runs.run_directory import Outcome, RunDirectory

_ROWS_AT_ONCE = 4096  # completions that are generated together in an evaluation, unless they need more than
_BYTES_AT_ONCE = 2**30  # this much memory
_SPACE = 16 * 2**20  # bytes on the disk: a small model, allocations, metrics and the report; a larger one besides


def train(recipe: Recipe, output: Path, command: str, console: Console, alone: bool = True) -> Outcome:
    """Train what `recipe` says in `output/name`; a run that was cut off begins anew, and ends the same.

    Arguments, errors and what is written are those of `engines.trl.run.train`, with the trained model in `model/` (but
    for a pretrained one in a comparison) and no checkpoints before the end.
    """
    directory = RunDirectory(output / recipe.name)
    directory.claim(recipe_file.render(recipe))
    try:
        if directory.probe.exists():
            raise InvalidInputError(
                f"--output: {directory.path} holds a probe. Choose another name=..., or another place with --output."
            )
        already_finished = directory.finished
        if not already_finished:
            directory.require_space(_SPACE)
            _train(recipe, directory, command, console, alone)
        page = write_report([directory.path]) if alone else None
    except Exception as error:  # every library says it in its own way
        why = None if isinstance(error, KnapsackError) else directory.why_it_failed(error)
        if why is None:
            raise
        raise StateError(f"{why} The same command begins the run anew.") from error
    finally:
        directory.release()
    return Outcome(directory, page, None, already_finished)


def _train(recipe: Recipe, directory: RunDirectory, command: str, console: Console, alone: bool) -> None:
    title = f"[bold]{recipe.name}[/] · {recipe.allocator.strategy} · seed {recipe.seed} · CPU"
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for remark in (*(text for _, text in ingredients.remarks(recipe)), *directory.remarks):
        console.print(remark, markup=False, highlight=False, soft_wrap=True)
    with Display(console, title, recipe.training.steps) as display, Interruption(display.stopping).listening():
        task, model, tokenizer = ingredients.problems_and_model(recipe, display)
        keeps = alone or recipe.model.kind == "scratch"  # a comparison of large models would fill the disk
        weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        directory.require_space(_SPACE + keeps * weights)
        loop = Loop(recipe, task, policy(recipe, model, tokenizer))
        record_start(directory, recipe, command)
        directory.rewind(-1)
        display.start(0, [])
        _loop(loop, directory, display)
        if keeps:
            model_folder = directory.path / "model"
            loop.policy.model.save_pretrained(model_folder)
            loop.policy.tokenizer.save_pretrained(model_folder)
            manifest.seal(model_folder)
        record_end(directory)


def policy(recipe: Recipe, model: Any, tokenizer: Any) -> Policy:
    """Groups of a pretrained model share their prompts; one from scratch is too small for that to pay."""
    if recipe.model.kind == "scratch":
        return Policy(model, tokenizer, recipe.training)
    shares = SharedPromptPolicy if can_share(model) else Policy
    return shares(model, tokenizer, recipe.training, recipe.model.autocast)


def _loop(loop: Loop, directory: RunDirectory, display: Display) -> None:
    training, every = loop.recipe.training, loop.recipe.evaluation.every * loop.recipe.training.rollouts_per_step
    oracle = Oracle(loop) if loop.recipe.allocator.strategy == ORACLE else None
    spent = number = 0
    started, not_training = time.monotonic(), 0.0
    unsaved: list[tuple[int, Collected]] = []  # what was collected, by step, and is not on the disk yet

    def write(content: dict[str, Any]) -> None:
        elapsed = time.monotonic() - started
        times = {"time": round(elapsed, 3), "training_seconds": round(elapsed - not_training, 3)}
        record = {"step": number, "rollouts": spent, **times, **content}
        directory.append_metrics(record)
        display.record(record)

    def evaluated() -> None:
        nonlocal not_training
        began = time.monotonic()
        scores = evaluate(loop, last=spent >= training.budget)
        not_training += time.monotonic() - began
        write(recorded(scores))
        if unsaved:
            _append_allocations(directory, unsaved, loop.columns["id"])
            unsaved.clear()

    evaluated()
    while spent < training.budget:
        if training.dynamic_sampling:
            collected, kept = dynamic_sampling.collect(loop, training.budget - spent)
            loss = loop.update(kept, [done.step for done in collected]) if len(kept) else 0.0
        elif oracle is not None:
            rows = [next(loop.order) for _ in range(training.prompts_per_step)]
            began = time.monotonic()
            seen = oracle.look(rows)
            not_training += time.monotonic() - began
            collected = [loop.collect(rows, seen)]
            loss = loop.update(collected[0].rollouts, [collected[0].step])
        else:
            done, loss = loop.step()
            collected = [done]
        before, spent, number = spent, spent + sum(int(done.planned.sum()) for done in collected), number + 1
        write(step_record(collected, loss) | loop.allocator.alarm.metrics() | loop.allocator.influence.metrics())
        for finding in (found for done in collected for found in done.findings):
            display.note(finding.text)
        unsaved += [(number, done) for done in collected]
        if spent // every > before // every or spent >= training.budget:
            evaluated()


def evaluate(loop: Loop, last: bool) -> dict[str, Score]:
    """What the held-out problems of each benchmark show; `last` after the last step."""
    how = sampling(loop.recipe, last)
    scores = {}
    for name, benchmark in loop.task.evaluation.items():
        problems = how.kept(benchmark)
        columns = {column: list(problems[column]) for column in problems.column_names}
        longest = max(map(len, loop.policy.tokenizer(columns["prompt"])["input_ids"])) + how.max_completion_length
        rows = min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // bytes_of_a_row(loop.policy.model.config, longest))
        at_once = max(1, rows // how.samples)
        random = torch.Generator().manual_seed(loop.recipe.seed)  # not the loop's, which training samples with
        parts: list[Floats] = []
        for start in range(0, len(problems), at_once):
            part = {column: values[start : start + at_once] for column, values in columns.items()}
            counts = np.full(len(part["prompt"]), how.samples)
            *_, rewards = loop.sampled(part, counts, how, random)
            parts.append(rewards.reshape(-1, how.samples))
        scores[name] = Score.of(np.concatenate(parts))
    return scores


def bytes_of_a_row(config: Any, tokens: int) -> int:
    """Memory that the sampling of one completion takes at most: its cache, and four arrays over the vocabulary."""
    config = config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 4 * (2 * config.num_hidden_layers * heads * width * tokens + 4 * int(config.vocab_size))


def step_record(collected: list[Collected], loss: float) -> dict[str, float]:
    """What the record of a step holds, by the names that the TRL trainer logs."""
    counts = [done.rollouts.counts(len(done.rows)) for done in collected]
    successes, scored = (np.concatenate(column) for column in zip(*counts, strict=True))
    planned = np.concatenate([done.planned for done in collected])
    expected = [done.expected_costs for done in collected if done.expected_costs is not None]
    found = kr.metrics.step_metrics(
        planned,
        successes,
        scored=scored,
        rewards=np.concatenate([mean_rewards(done) for done in collected]),
        visited=np.concatenate([done.visited for done in collected]),
        belief=_beliefs(collected),
        fallback=sum(done.fallback for done in collected),
        waves=sum(done.waves for done in collected),
        costs=np.concatenate([done.rollouts.costs(len(done.rows)) for done in collected]),
        expected_costs=np.concatenate(expected) if len(expected) == len(collected) else None,
    )
    length = sum(int(done.rollouts.lengths.sum()) for done in collected) / planned.sum()
    seconds = sum(done.seconds for done in collected)
    return {"loss": loss, **found, "completions/mean_length": length, "allocation_seconds": seconds}


def mean_rewards(done: Collected) -> Floats:
    """Mean reward of each prompt, NaN where there is none."""
    _, scored = done.rollouts.counts(len(done.rows))
    with np.errstate(invalid="ignore"):
        total = np.bincount(done.rollouts.groups, np.nan_to_num(done.rollouts.rewards), len(done.rows))
        return np.asarray(total / scored)


def _beliefs(collected: list[Collected]) -> kr.Belief:
    """About all prompts that were collected."""
    return kr.Belief(
        np.concatenate([done.belief.wins for done in collected]),
        np.concatenate([done.belief.losses for done in collected]),
    )


def _append_allocations(directory: RunDirectory, unsaved: list[tuple[int, Collected]], ids: list[str]) -> None:
    """Record the visits of several steps in one file."""
    collected = [done for _, done in unsaved]
    counts = [done.rollouts.counts(len(done.rows)) for done in collected]
    directory.append_allocations(
        np.repeat([number for number, _ in unsaved], [len(done.rows) for done in collected]),
        [ids[row] for done in collected for row in done.rows],
        np.concatenate([done.planned for done in collected]),
        np.concatenate([scored for _, scored in counts]),
        np.concatenate([successes for successes, _ in counts]),
        _beliefs(collected),
    )
