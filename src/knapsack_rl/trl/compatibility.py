"""What the adapter cannot work with, refused at construction in one sentence that says why and what to use."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import trl
from datasets import Dataset
from packaging.specifiers import SpecifierSet
from trl import GRPOConfig, RLOOConfig

from knapsack_rl.advantages import ROLLOUT_WEIGHTS
from knapsack_rl.allocator import BudgetAllocator
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.validation import one_of

TESTED = SpecifierSet(">=1.14.2,<1.17,!=1.15.*")  # 1.15 itself needs Triton, which a CPU does not have

HOMOGENEOUS_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
"""Loss types of GRPOTrainer whose term of a rollout grows in proportion to the size of its advantage: min(c A, c' A),
and where a temperature or weight depends on A, on its sign alone. That of RLOOTrainer's only loss does so too."""


def check_trl_version() -> None:
    """Refuse TRL versions whose private methods were not tried.

    Raises:
        InvalidInputError: the installed TRL is outside the tested range.
    """
    if trl.__version__ not in TESTED:
        raise InvalidInputError(
            "trl: knapsack_rl.trl overrides private methods of TRL and was tried with some versions only, not with "
            f"the installed {trl.__version__}. Run: pip install 'trl{TESTED}'"
        )


def check_trainer(trainer: Any) -> None:
    """Refuse a mix with TRL trainers that generate and score in their own way, over groups of one size.

    Raises:
        InvalidInputError: such a trainer is among the bases.
    """
    for base in trainer.__mro__:
        own_way = "_generate_and_score_completions" in vars(base) or not issubclass(base, trainer.plain)
        if own_way and base.__module__.startswith("trl.") and base not in trainer.plain.__mro__:
            raise InvalidInputError(
                f"trainer: {base.__name__} generates and scores groups of one size in its own way and cannot be "
                f"combined with variable group sizes. Derive from Knapsack{trainer.plain.__name__} alone."
            )


def check_options(
    args: GRPOConfig | RLOOConfig,
    allocator: BudgetAllocator,
    id_column: str | None,
    feature_columns: Sequence[str],
    watch_columns: Sequence[str],
    train_dataset: Any,
) -> None:
    """Refuse options that would make allocation wrong; warn where no plan can differ, and where no resume is exact.

    Raises:
        InvalidInputError: an option cannot work.
    """
    settings = allocator.settings
    if settings.group_size != args.num_generations:
        raise InvalidInputError(
            f"allocator: its group_size is {settings.group_size} but args.num_generations is {args.num_generations}; "
            "the budget of a step is one of them times the number of prompts, so make them equal."
        )
    if settings.algorithm not in ("grpo", "rloo"):
        raise InvalidInputError(
            "allocator: the gradient of GRPO and RLOO vanishes when all rewards of a group are equal, got algorithm="
            f"{settings.algorithm!r}. Use BudgetAllocator(algorithm='grpo'), or 'rloo', which is the same to it."
        )
    if isinstance(args, RLOOConfig) and args.beta != 0.0:
        raise InvalidInputError(
            f"args.beta: expected 0, got {args.beta}. RLOOTrainer takes the KL term from the reward, so that groups of "
            "equal rewards have a gradient too and no allocation can spare them. Set beta=0.0, or use "
            "KnapsackGRPOTrainer, whose KL term is beside the reward."
        )
    if train_dataset is None:
        raise InvalidInputError(
            "train_dataset: without one every prompt looks the same and no success rate can be kept. Put the "
            "environment's tasks into a data set with a prompt and pass id_column."
        )
    if "seed" in (args.generation_kwargs or {}):
        raise InvalidInputError(
            "args.generation_kwargs: a fixed 'seed' makes all rollouts of a prompt the same, because each is its own "
            "request here. Remove it; args.seed seeds the run."
        )
    for argument, names in (
        ("id_column", [id_column] if id_column is not None else []),
        ("feature_columns", feature_columns),
        ("watch_columns", watch_columns),
    ):
        if isinstance(names, str):
            raise InvalidInputError(
                f"{argument}: expected a sequence of column names, got {names!r}. Put it in a list."
            )
        if names and args.remove_unused_columns:
            raise InvalidInputError(
                f"{argument}: args.remove_unused_columns=True removes the column {names[0]!r} before the trainer "
                "sees it. Set it to False."
            )
    if args.accelerator_config.split_batches or args.accelerator_config.dispatch_batches:
        raise InvalidInputError(
            "args.accelerator_config: split_batches and dispatch_batches change which rows a process gets, and this "
            "adapter deals them. Leave both off, as TRL has them."
        )
    prompts = args.generation_batch_size // args.num_generations
    if isinstance(train_dataset, Dataset) and len(train_dataset) < prompts:
        raise InvalidInputError(
            f"train_dataset: expected at least the {prompts} prompts of one generation batch, got "
            f"{len(train_dataset)}; TRL would train no step. Add prompts or lower args.generation_batch_size."
        )
    if even := allocator.explain_even(
        prompts,
        "Raise args.per_device_train_batch_size or args.gradient_accumulation_steps: a generation batch holds "
        "their product over all devices, divided by args.num_generations.",
    ):
        warnings.warn(f"allocator: no plan can be uneven. {even}", stacklevel=3)
    if isinstance(columns := getattr(train_dataset, "column_names", None), list):  # a stream may not know its columns
        check_columns(columns, id_column, feature_columns, watch_columns)
    # Below 1 it is a share of all updates, whose number only max_steps tells beforehand.
    first = args.save_steps if args.save_steps >= 1 else math.ceil(args.save_steps * max(args.max_steps, 0))
    if args.save_strategy == "steps" and inside_window(args, first):
        warnings.warn(
            f"args.save_steps={args.save_steps} puts checkpoints inside a generation window, where TRL cannot "
            "resume exactly: the rollouts of the window are lost and generated anew. For an exact "
            f"resume {exact_resume(args)}.",
            stacklevel=3,
        )


def check_clip(advantage_clip: Any) -> None:
    """Refuse a bound that is none.

    Raises:
        InvalidInputError: neither a positive number, nor None, nor "auto".
    """
    if advantage_clip is None or advantage_clip == "auto":
        return
    if not isinstance(advantage_clip, int | float) or not advantage_clip > 0.0:
        raise InvalidInputError(
            f"advantage_clip: expected a positive number, None for no bound, or 'auto', got {advantage_clip!r}."
        )


def check_weights(args: GRPOConfig | RLOOConfig, rollout_weights: str) -> None:
    """Refuse weights that would not weigh the loss.

    Raises:
        InvalidInputError: unknown weights, or a loss that is not known to be proportional to advantages.
    """
    known = isinstance(args, RLOOConfig) or args.loss_type in HOMOGENEOUS_LOSSES
    if one_of("rollout_weights", rollout_weights, ROLLOUT_WEIGHTS) != "none" and not known:
        raise InvalidInputError(
            "rollout_weights: a weight on the advantage is one on the loss only where the loss is proportional to it, "
            f"which is not known of args.loss_type={args.loss_type!r}. Use one of {', '.join(HOMOGENEOUS_LOSSES)}, or "
            "rollout_weights='none'."
        )


def check_waves(trainer: Any, allocator: BudgetAllocator) -> None:
    """Refuse several generations in a step where the prompts of a step have a state that each of them would reset.

    Raises:
        InvalidInputError: a strategy with several waves, and environments.
    """
    if allocator.in_waves and getattr(trainer, "environment_factories", None) is not None:
        raise InvalidInputError(
            f"waves: the strategy {allocator.strategy!r} generates several times in a step, and TRL resets the "
            "environments of environment_factory each time. Pass waves=False, which plans a step in one shot, or a "
            "strategy with one wave."
        )


def check_columns(
    columns: Collection[str],
    id_column: str | None,
    feature_columns: Sequence[str] = (),
    watch_columns: Sequence[str] = (),
) -> None:
    """Refuse a data set whose rows do not say who their prompt is, or lack what is to be known about it.

    Raises:
        InvalidInputError: there is no column `id_column`, or neither that nor a prompt, or a feature is missing.
    """
    for argument, names in (("feature_columns", feature_columns), ("watch_columns", watch_columns)):
        for name in names:
            if name not in columns:
                raise InvalidInputError(
                    f"{argument}: {name!r} is not a column of the data set, which has {', '.join(sorted(columns))}."
                )
    if id_column is not None and id_column not in columns:
        raise InvalidInputError(
            f"id_column: {id_column!r} is not a column of the data set, which has {', '.join(sorted(columns))}."
        )
    if id_column is None and "prompt" not in columns:
        raise InvalidInputError(
            "train_dataset: without a column 'prompt' every row looks the same and no success rate can be kept, and "
            f"there are only {', '.join(sorted(columns))}. Add one, or where an environment owns the prompts pass "
            "id_column."
        )


def inside_window(args: GRPOConfig | RLOOConfig, update: float, prompts: int | None = None) -> bool:
    """Whether the generation batch in use at this optimiser update would still be used by the next one.

    Args:
        args: options of the run.
        update: optimiser updates made so far.
        prompts: rows of the data set, where known. An epoch ends with a window, and its last update takes the batches
            that are left, so that updates do not stay in step with windows where neither divides the other.
    """
    window, batches = args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps
    if prompts is not None:
        windows = prompts // (args.generation_batch_size // args.num_generations)
        update %= max(1, math.ceil(windows * window / batches))
    return int(update) * batches % window != 0


def exact_resume(args: GRPOConfig | RLOOConfig) -> str:
    """What to change so that no checkpoint lies inside a generation window."""
    window, batches = args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps
    if window % batches:
        return f"make args.gradient_accumulation_steps a divisor of {window}, the batches in a window"
    return f"save at a multiple of {window // batches} updates"
