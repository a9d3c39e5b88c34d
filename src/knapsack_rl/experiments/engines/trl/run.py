"""One run: a recipe becomes a trained model and a run directory."""

from __future__ import annotations

import gc
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import datasets
import torch
import transformers
from accelerate.utils import broadcast_object_list
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOConfig

from knapsack_rl.errors import InvalidInputError, KnapsackError, MissingExtraError, StateError
from knapsack_rl.experiments.engines import ingredients, models
from knapsack_rl.experiments.engines.trl.evaluation import EvaluatedTrainer
from knapsack_rl.experiments.engines.trl.grpo_config import grpo_config
from knapsack_rl.experiments.engines.trl.recorder import Recorder
from knapsack_rl.experiments.recipe import recipe_file
from knapsack_rl.experiments.recipe.schema import Recipe
from knapsack_rl.experiments.report.run_report import write_report
from knapsack_rl.experiments.runs.environment import device, record_end, record_start, world_size
from knapsack_rl.experiments.runs.interruption import Interruption
from knapsack_rl.experiments.runs.progress import Display
from knapsack_rl.experiments.runs.run_directory import Outcome, Resume, RunDirectory

# Weights and Adam's two moments, all of the trained parameters' size.
_COPIES_IN_CHECKPOINT = 3
_BESIDES_CHECKPOINTS = 16 * 2**20  # bytes: allocations, metrics and the report


def train(recipe: Recipe, output: Path, command: str, console: Console, alone: bool = True) -> Outcome:
    """Train what `recipe` says in `output/name`, from the last complete checkpoint there if there is one.

    Under torchrun every process calls this; the first one writes and shows.

    Args:
        recipe: what to train.
        output: the folder of run directories.
        command: what to put on record as the command that made the run.
        console: where to show progress.
        alone: whether the run stands for itself, so that its report is written; a comparison's does not.

    Raises:
        InvalidInputError: the recipe does not suit the machine, or the directory cannot take the run.
        StateError: another process is at work in the directory, or the disk became full.
        MissingExtraError: the recipe needs a package that is not installed.
        Interrupted: a signal came before training, or a second one during it.
    """
    directory = RunDirectory(output / recipe.name)
    with _quiet_libraries():
        config = grpo_config(recipe, directory.checkpoints, world_size())
        _check_machine(recipe)
        leads = config.process_index == 0
        if leads:
            directory.claim(recipe_file.render(recipe))
        try:
            if leads:
                directory.require_space(_BESIDES_CHECKPOINTS)
            shown_on = console if leads else Console(quiet=True, force_terminal=False)
            outcome = _train(recipe, directory, config, command, shown_on, alone)
        except Exception as error:  # every library says it in its own way
            why = directory.why_it_failed(error) if leads and not isinstance(error, KnapsackError) else None
            if why is None:
                raise
            raise StateError(f"{why} The same command goes on from the last complete checkpoint.") from error
        finally:
            directory.release()
    if torch.distributed.is_initialized():
        # Left to the interpreter's exit, a gloo thread that still frees a tensor aborts the process. The model, which
        # is in reference cycles, holds on to the group.
        gc.collect()
        torch.distributed.destroy_process_group()
    return outcome


def dry_run(recipe: Recipe, output: Path) -> list[tuple[str, str]]:
    """Build what needs neither weights nor data, and tell in a few (label, text) rows what a run would do.

    Raises:
        InvalidInputError: something in the recipe cannot be built.
    """
    with _quiet_libraries():
        config = grpo_config(recipe, output / recipe.name / "checkpoints", world_size())
        remarks = ingredients.remarks(recipe)
    allocator, training, evaluation = recipe.allocator, recipe.training, recipe.evaluation
    model = recipe.model.path if recipe.model.kind == "pretrained" else f"{recipe.model.architecture} from scratch"
    return [
        ("recipe", f"{recipe.name}, seed {recipe.seed}"),
        ("task", recipe.task.kind),
        ("model", model),
        (
            "allocator",
            f"{allocator.strategy}, {allocator.min_rollouts} to {allocator.max_rollouts} rollouts per prompt",
        ),
        *remarks,
        (
            "training",
            f"{training.steps} steps x {training.prompts_per_step} prompts x {training.group_size} rollouts "
            f"= {training.steps * training.rollouts_per_step:,} rollouts",
        ),
        (
            "updates",
            f"{training.updates_per_step} per step, {config.gradient_accumulation_steps} passes of "
            f"{config.per_device_train_batch_size} rollouts each on {world_size()} device(s)",
        ),
        ("evaluation", f"every {evaluation.every} steps, {evaluation.samples} samples per problem"),
        ("generation", recipe.engine.kind),
        ("run directory", str(output / recipe.name)),
    ]


def _train(
    recipe: Recipe, directory: RunDirectory, config: GRPOConfig, command: str, console: Console, alone: bool
) -> Outcome:
    leads, steps, updates = config.process_index == 0, recipe.training.steps, recipe.training.updates_per_step
    alone = alone and leads
    if directory.finished:
        return Outcome(directory, write_report([directory.path]) if alone else None, None, True)
    title = f"[bold]{recipe.name}[/] · {recipe.allocator.strategy} · seed {recipe.seed} · {device()}"
    with Display(console, title, steps) as display:
        interruption = Interruption(display.stopping)
        with interruption.listening():
            resume = _position(directory, leads)
            done = resume.updates // updates
            lost = directory.missing_records(done, resume.records) if leads else []
            for remark in (*directory.remarks, *resume.passed_over, *lost):
                display.note(remark)
            if leads and done == steps:
                directory.rewind(done)  # leaves out what is damaged
            if done < steps:
                # TRL would delete older checkpoints before the new one is complete.
                keep, config.save_total_limit = config.save_total_limit, None
                recorder = Recorder(recipe, directory, display, interruption, leads, keep)
                config.eval_on_start = done == 0
                trainer = _trainer(recipe, config, recorder, display)
                if leads:
                    directory.require_space(_BESIDES_CHECKPOINTS + _checkpoint_bytes(trainer, config, keep))
                    record_start(directory, recipe, command)
                recorder.start(trainer, done)
                interruption.can_wait = True
                trainer.train(resume_from_checkpoint=resume.checkpoint and str(resume.checkpoint))
                interruption.can_wait = False
                done = trainer.state.global_step // updates
        stopped_by = interruption.number if done < steps else None
        if leads and stopped_by is None:
            record_end(directory)
        if not alone:
            return Outcome(directory, None, stopped_by, False)
        display.phase("writing the report")
        return Outcome(directory, write_report([directory.path]), stopped_by, False)


def _position(directory: RunDirectory, leads: bool) -> Resume:
    """Where all processes go on, as the first one finds it."""
    found = [directory.newest_checkpoint() if leads else None]
    return cast(Resume, broadcast_object_list(found)[0])


def _trainer(recipe: Recipe, config: GRPOConfig, recorder: Recorder, display: Display) -> EvaluatedTrainer:
    with config.main_process_first(local=False):
        task, model, tokenizer = ingredients.problems_and_model(recipe, display)
    lora = recipe.model.lora if recipe.model.kind == "pretrained" else None
    trainer = EvaluatedTrainer(
        recipe=recipe,
        benchmarks=task.evaluation,
        on_evaluation=recorder.evaluated,
        model=model,
        processing_class=tokenizer,
        reward_funcs=task.reward,
        args=config,
        train_dataset=task.train,
        callbacks=[recorder],
        peft_config=models.peft_config(lora) if lora else None,
        allocator=ingredients.allocator(recipe),
        skip_idle=recipe.training.skip_idle,
        measure_influence=recipe.training.measure_influence,
        advantage_clip=recipe.training.advantage_clip,
        rollout_weights=recipe.training.rollout_weights,
        waves=recipe.allocator.waves,
        feature_columns=ingredients.feature_columns(recipe, task),
        id_column="id",
    )
    if recipe.training.stop_strings:
        # TRL has no way to say this: it takes these ids for its mask, and generates with copies made before.
        trainer.eos_token_ids = trainer.generation_config.eos_token_id = models.end_tokens(
            model, tokenizer, recipe.training.stop_strings
        )
        trainer.generation_kwargs["eos_token_id"] = trainer.eos_token_ids
    for chatter in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(chatter)
    return trainer


def _check_machine(recipe: Recipe) -> None:
    if recipe.engine.kind == "vllm":
        if find_spec("vllm") is None:
            raise MissingExtraError(
                "engine.kind: vllm is not installed. Run: pip install vllm, or set engine.kind=transformers."
            )
        if not torch.cuda.is_available():
            raise InvalidInputError("engine.kind: vllm needs a GPU, and there is none. Set engine.kind=transformers.")
    if recipe.model.kind == "pretrained" and recipe.model.lora is not None and find_spec("peft") is None:
        raise MissingExtraError("model.lora: peft is not installed. Run: pip install 'knapsack-rl[train]'.")


def _checkpoint_bytes(trainer: EvaluatedTrainer, config: GRPOConfig, keep: int | None) -> int:
    trained = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    kept = keep or math.ceil(config.max_steps / config.save_steps)
    return int(trained * _COPIES_IN_CHECKPOINT * (kept + 1))  # an old one goes only when a new one is complete


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep what libraries say about themselves out of the display; errors and our own warnings still show."""
    loud = transformers.logging.get_verbosity()
    names = ("accelerate", "trl")
    levels = [logging.getLogger(name).level for name in names]
    bars = transformers.logging.is_progress_bar_enabled(), datasets.utils.are_progress_bars_disabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(accelerate|datasets|peft|torch|transformers|trl|vllm)(\.|$)")
            yield
    finally:
        transformers.logging.set_verbosity(loud)
        if bars[0]:
            transformers.logging.enable_progress_bar()
        if not bars[1]:
            datasets.enable_progress_bars()
        for name, level in zip(names, levels, strict=True):
            logging.getLogger(name).setLevel(level)
