"""A recipe in verl's words: overrides of its configuration, as `python -m verl.trainer.main_ppo` takes them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.cleaning import is_number
from knapsack_rl.experiments.engines.schedule import sampling
from knapsack_rl.experiments.recipe.schema import Recipe

REWARD = "pkg://knapsack_rl.experiments.engines.verl.reward"

_DTYPES = {"float32": "fp32", "bfloat16": "bfloat16", "float16": "float16"}
_PLAIN = re.compile(r"[A-Za-z0-9_./:@-]+")
_WORDS = ("true", "false", "null", "nan", "inf")  # what Hydra takes for something else than text

_DEFAULTS = {
    "algorithm.adv_estimator": "grpo",
    "algorithm.use_kl_in_reward": False,
    "actor_rollout_ref.actor.use_kl_loss": False,
    "actor_rollout_ref.actor.entropy_coeff": 0,
    "actor_rollout_ref.actor.loss_agg_mode": "token-mean",
    "actor_rollout_ref.actor.strategy": "fsdp2",
    "actor_rollout_ref.rollout.name": "vllm",
    "data.max_prompt_length": 2048,
    "data.filter_overlong_prompts": True,
    "trainer.v1.trainer_mode": "knapsack",
    "trainer.project_name": "knapsack-rl",
    "trainer.logger": ["console", "file"],
    "trainer.max_actor_ckpt_to_keep": 2,
    "trainer.total_epochs": 1_000_000,  # the number of steps ends the run
    "trainer.nnodes": 1,
    "trainer.n_gpus_per_node": 8,
}
"""What suits the recipes, unless their `verl` block says otherwise."""


def overrides(recipe: Recipe, directory: Path, final: bool = False) -> dict[str, Any]:
    """Dotted key of verl's configuration -> value, for a run in `directory`.

    The recipe's `verl` block is among them, and may change the defaults below, but nothing that has a key of its own.

    Args:
        recipe: one with trainer=verl.
        directory: where `verl_engine` has put the data.
        final: for the evaluation after the last step, which is a process of its own and trains nothing.

    Raises:
        InvalidInputError: the `verl` block sets what a key of the recipe sets.
    """
    settings = {**_settings(recipe, directory), **_evaluation(recipe, directory, final)}
    more = dict(flattened(recipe.verl))
    for key in more:
        if key.lstrip("+~") in (name.lstrip("+") for name in settings):
            raise InvalidInputError(f"verl.{key}: the recipe has keys of its own for this. docs/verl.md lists them.")
    return {**_DEFAULTS, **more, **settings}


def arguments(chosen: Mapping[str, Any]) -> list[str]:
    """The overrides as Hydra's command line has them."""
    return [f"{key}={written(value)}" for key, value in chosen.items()]


def written(value: Any) -> str:
    """A value in Hydra's grammar; text that is not plain is quoted."""
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{written(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, str) and (not _PLAIN.fullmatch(value) or value.lower() in _WORDS or is_number(value)):
        # Hydra takes a backslash as one character, except where a quote follows: there two stand for one.
        escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
        trailing = len(value) - len(value.rstrip("\\"))
        return f"'{escaped}{trailing * chr(92)}'"
    return str(value)


def flattened(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested blocks as dotted keys."""
    for name, value in block.items():
        if isinstance(value, dict) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _settings(recipe: Recipe, directory: Path) -> dict[str, Any]:
    """What keys of the recipe decide."""
    training, allocator = recipe.training, recipe.allocator
    actor, rollout, knapsack = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "+trainer.v1.knapsack"
    return {
        "data.train_files": str(directory / "data" / "train.parquet"),
        "data.train_batch_size": training.prompts_per_step,
        "data.seed": recipe.seed,
        f"{actor}.ppo_mini_batch_size": training.prompts_per_step // training.updates_per_step,
        f"{actor}.ppo_micro_batch_size_per_gpu": training.micro_batch_size,
        f"{actor}.optim.lr": training.learning_rate,
        f"{actor}.optim.weight_decay": training.weight_decay,
        f"{actor}.optim.betas": [training.adam_beta1, training.adam_beta2],
        f"{actor}.optim.clip_grad": training.max_grad_norm,
        f"{actor}.clip_ratio_low": training.clip_low,
        f"{actor}.clip_ratio_high": training.clip_high,
        f"{actor}.data_loader_seed": recipe.seed,
        **_model(recipe),
        f"{rollout}.n": training.group_size,
        f"{rollout}.temperature": training.temperature,
        f"{rollout}.top_p": training.top_p,
        f"{rollout}.seed": recipe.seed,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": training.micro_batch_size,
        **_engine(recipe),
        "reward.custom_reward_function.path": REWARD,
        "reward.custom_reward_function.name": "compute_score",
        "trainer.total_training_steps": training.steps,
        "trainer.save_freq": training.checkpoint_every,
        "trainer.test_freq": recipe.evaluation.every,
        "trainer.default_local_dir": str(directory / "checkpoints"),
        "trainer.experiment_name": recipe.name,
        f"{knapsack}.strategy": allocator.strategy,
        f"{knapsack}.min_rollouts": allocator.min_rollouts,
        f"{knapsack}.max_rollouts": allocator.max_rollouts,
        f"{knapsack}.revisit": allocator.revisit,
        f"{knapsack}.fallback": allocator.fallback,
        f"{knapsack}.confidence": allocator.confidence,
        f"{knapsack}.cost_limit": allocator.cost_limit,
        f"{knapsack}.seed": recipe.seed,
        f"{knapsack}.waves": allocator.waves,
        f"{knapsack}.id_field": "id",
        f"{knapsack}.feature_fields": ["category"] if allocator.features is None else allocator.features,
        f"{knapsack}.advantage_clip": training.advantage_clip,
        f"{knapsack}.rollout_weights": training.rollout_weights,
        f"{knapsack}.skip_idle": training.skip_idle,
    }


def _model(recipe: Recipe) -> dict[str, Any]:
    model = recipe.model
    if model.kind != "pretrained":
        raise InvalidInputError("model.kind: trainer=verl takes pretrained models only.")
    block = "actor_rollout_ref.model"
    lora = model.lora
    adapters = (
        {}
        if lora is None
        else {
            f"{block}.lora_rank": lora.rank,
            f"{block}.lora_alpha": lora.alpha,
            f"{block}.target_modules": lora.target_modules,
        }
    )
    dtype = _DTYPES[model.dtype]
    return {f"{block}.path": model.path, "actor_rollout_ref.actor.fsdp_config.model_dtype": dtype, **adapters}


def _engine(recipe: Recipe) -> dict[str, Any]:
    engine, rollout = recipe.engine, "actor_rollout_ref.rollout"
    if engine.kind != "vllm":
        raise InvalidInputError("engine.kind: trainer=verl takes vllm only.")
    return {
        f"{rollout}.tensor_model_parallel_size": engine.tensor_parallel_size,
        f"{rollout}.gpu_memory_utilization": engine.gpu_memory_utilization,
        f"{rollout}.max_model_len": engine.max_model_length,
        f"{rollout}.free_cache_engine": engine.enable_sleep_mode,
    }


def _evaluation(recipe: Recipe, directory: Path, final: bool) -> dict[str, Any]:
    how = sampling(recipe, last=final)
    values = "actor_rollout_ref.rollout.val_kwargs"
    return {
        "data.val_files": [str(path) for path in evaluation_files(recipe, directory, final)],
        "data.max_response_length": how.max_completion_length,
        f"{values}.n": how.samples,
        f"{values}.temperature": how.temperature,
        f"{values}.top_p": how.top_p,
        f"{values}.do_sample": True,
        "trainer.val_only": final,
        "trainer.val_before_train": True,
    }


def evaluation_files(recipe: Recipe, directory: Path, final: bool) -> list[Path]:
    """One file a benchmark."""
    if recipe.task.kind != "math":
        raise InvalidInputError(f"task.kind: trainer=verl takes math, got {recipe.task.kind}.")
    folder = directory / "data" / ("final" if final else "evaluation")
    return [folder / f"{name}.parquet" for name in recipe.task.benchmarks]
