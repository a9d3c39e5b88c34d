"""A recipe in TRL's words."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pydantic
import torch
from trl import GRPOConfig

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.recipe.schema import Recipe
from knapsack_rl.validation import nearest

# GRPOConfig's fields that a recipe sets under a name of its own: `trl:` must not set them a second time.
_OWN_NAMES = {
    "adam_beta1": "training.adam_beta1",
    "adam_beta2": "training.adam_beta2",
    "epsilon": "training.clip_low",
    "epsilon_high": "training.clip_high",
    "generation_batch_size": "training.prompts_per_step and training.group_size",
    "gradient_accumulation_steps": "training.updates_per_step",
    "learning_rate": "training.learning_rate",
    "max_completion_length": "training.max_completion_length",
    "max_grad_norm": "training.max_grad_norm",
    "max_steps": "training.steps",
    "num_generations": "training.group_size",
    "num_train_epochs": "training.steps",
    "per_device_train_batch_size": "training.micro_batch_size",
    "save_steps": "training.checkpoint_every",
    "steps_per_generation": "training.updates_per_step",
    "temperature": "training.temperature",
    "top_p": "training.top_p",
    "weight_decay": "training.weight_decay",
    "eval_steps": "evaluation.every",
    "num_generations_eval": "evaluation.samples",
    "use_vllm": "engine.kind",
    "vllm_enable_sleep_mode": "engine.enable_sleep_mode",
    "vllm_gpu_memory_utilization": "engine.gpu_memory_utilization",
    "vllm_max_model_length": "engine.max_model_length",
    "vllm_mode": "engine.mode",
    "vllm_server_base_url": "engine.server_base_url",
    "vllm_server_host": "engine.server_host",
    "vllm_server_port": "engine.server_port",
    "vllm_server_timeout": "engine.server_timeout",
    "vllm_tensor_parallel_size": "engine.tensor_parallel_size",
    "data_seed": "seed",
    "seed": "seed",
    "model_init_kwargs": "model",
    "output_dir": "--output and name",
}
# Fields that the run directory and the display rely on.
_KEPT = frozenset(
    {
        "disable_tqdm",
        "eval_on_start",
        "eval_strategy",
        "ignore_data_skip",
        "logging_first_step",
        "logging_steps",
        "logging_strategy",
        "num_iterations",
        "per_device_eval_batch_size",
        "remove_unused_columns",
        "resume_from_checkpoint",
        "save_only_model",
        "save_strategy",
    }
)


def grpo_config(recipe: Recipe, checkpoints: Path, world_size: int = 1) -> GRPOConfig:
    """What `recipe` says, as TRL's configuration of a training on `world_size` devices.

    TRL counts optimiser updates where we count steps, so every interval is a whole number of steps here: logs are
    means over a step, and no checkpoint lies between the updates of one step, where TRL could not resume exactly.

    Raises:
        InvalidInputError: the rollouts of a step cannot be dealt evenly to `world_size` devices, or an entry of
            `trl:` is unknown, of the wrong type, set elsewhere in the recipe, or refused by TRL.
    """
    training, updates = recipe.training, recipe.training.updates_per_step
    per_update = training.rollouts_per_step // updates
    per_pass = training.micro_batch_size * world_size
    if per_update % per_pass:
        raise InvalidInputError(
            f"training.micro_batch_size: expected micro_batch_size x {world_size} devices to divide the {per_update} "
            f"rollouts of an update (prompts_per_step x group_size / updates_per_step), got "
            f"{training.micro_batch_size} x {world_size} = {per_pass}."
        )
    gpu = torch.cuda.is_available()
    real_model_on_gpu = gpu and recipe.model.kind == "pretrained"
    defaults: dict[str, Any] = {
        "beta": 0.0,
        "bf16": real_model_on_gpu or (recipe.model.kind == "pretrained" and recipe.model.autocast),
        "dataloader_pin_memory": gpu,
        "gradient_checkpointing": real_model_on_gpu,
        "loss_type": "dapo",
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "save_total_limit": 2,
        "scale_rewards": "group",
        "shuffle_dataset": True,
        "use_cpu": not gpu,
        "warmup_steps": 0,
    }
    settings: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "seed": recipe.seed,
        "max_steps": training.steps * updates,
        "num_generations": training.group_size,
        "per_device_train_batch_size": training.micro_batch_size,
        "steps_per_generation": training.rollouts_per_step // per_pass,
        "gradient_accumulation_steps": per_update // per_pass,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "max_grad_norm": training.max_grad_norm,
        "epsilon": training.clip_low,
        "epsilon_high": training.clip_high,
        "temperature": training.temperature,
        "top_p": training.top_p,
        "max_completion_length": training.max_completion_length,
        "num_generations_eval": recipe.evaluation.samples,
        "per_device_eval_batch_size": evaluation_rows(recipe, recipe.evaluation.samples, world_size),
        "eval_strategy": "no",  # train.py says when
        "logging_strategy": "steps",
        "logging_steps": updates,
        "save_strategy": "steps",
        "save_steps": training.checkpoint_every * updates,
        "disable_tqdm": True,
        **_engine(recipe),
    }
    _check_extras(recipe.trl)
    try:
        return GRPOConfig(**{**defaults, **recipe.trl, **settings})
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"trl: TRL's GRPOConfig refuses this recipe: {error}") from error


def evaluation_rows(recipe: Recipe, samples: int, world_size: int) -> int:
    """Completions that a device generates at once in an evaluation: whole groups, about as many as in training."""
    return max(1, recipe.training.rollouts_per_step // world_size // samples) * samples


def _engine(recipe: Recipe) -> dict[str, Any]:
    engine = recipe.engine
    if engine.kind == "transformers":
        return {"use_vllm": False}
    server = {
        "vllm_server_base_url": engine.server_base_url,
        "vllm_server_host": engine.server_host,
        "vllm_server_port": engine.server_port,
        "vllm_server_timeout": engine.server_timeout,
    }
    colocated = {
        "vllm_gpu_memory_utilization": engine.gpu_memory_utilization,
        "vllm_tensor_parallel_size": engine.tensor_parallel_size,
        "vllm_max_model_length": engine.max_model_length,
        "vllm_enable_sleep_mode": engine.enable_sleep_mode,
    }
    return {"use_vllm": True, "vllm_mode": engine.mode, **(server if engine.mode == "server" else colocated)}


def _check_extras(extras: dict[str, Any]) -> None:
    fields = {field.name for field in dataclasses.fields(GRPOConfig) if field.init}
    types = typing.get_type_hints(GRPOConfig)
    problems = []
    for name, value in extras.items():
        if name in _OWN_NAMES:
            problems.append(f"trl.{name}: set {_OWN_NAMES[name]} instead.")
        elif name in _KEPT:
            problems.append(f"trl.{name}: cannot be set, `knapsack-rl train` relies on its own value.")
        elif name not in fields:
            close = nearest(name, fields - _KEPT)
            hint = f" Did you mean trl.{close}?" if close else ""
            problems.append(f"trl.{name}: no field of TRL's GRPOConfig.{hint}")
        elif not _is_of(types[name], value):
            expected = str(getattr(types[name], "__name__", types[name])).replace("typing.", "")
            problems.append(f"trl.{name}: expected {expected}, got {value!r}.")
    if problems:
        raise InvalidInputError("the recipe's trl block is not valid:\n  " + "\n  ".join(problems))


def _is_of(annotation: Any, value: Any) -> bool:
    try:
        pydantic.TypeAdapter(annotation).validate_python(value)
    except pydantic.ValidationError:
        return False
    return True
