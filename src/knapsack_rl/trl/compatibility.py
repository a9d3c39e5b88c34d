"""What the adapter cannot work with, refused at construction in one sentence that says why and what to use."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import trl
from datasets import Dataset
from numpy.typing import NDArray
from packaging.specifiers import SpecifierSet
from trl import GRPOConfig, RLOOConfig

from knapsack_rl.advantages import ROLLOUT_WEIGHTS
from knapsack_rl.allocator import BudgetAllocator
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.rewards import GATES
from knapsack_rl.trl.comparing import compares
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
    if not isinstance(allocator, BudgetAllocator):
        raise InvalidInputError(
            f"allocator: expected a BudgetAllocator, got {allocator!r}. Pass knapsack_rl.BudgetAllocator("
            f"{allocator if isinstance(allocator, str) else 'uniform'!r}, group_size={args.num_generations})."
        )
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
    columns = getattr(train_dataset, "column_names", None)
    if isinstance(train_dataset, Dataset):
        if train_dataset.format["type"] is not None:  # columns may be made as rows are read
            columns = list(train_dataset[0])
        stored = train_dataset.with_format(None)
        for name in feature_columns:
            if name in stored.column_names:
                check_gaps(name, stored[name], "the data set")
    if isinstance(columns, list):  # a stream may not know its columns
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


def check_success(success_threshold: Any, graded_rewards: Any, outcome_gate: Any) -> None:
    """Refuse what decides nothing.

    Raises:
        InvalidInputError: a threshold that is no number, or a gate that is unknown or has no outcome to go by.
    """
    number = isinstance(success_threshold, int | float | np.number) and not isinstance(success_threshold, bool)
    if not number or not math.isfinite(success_threshold):
        raise InvalidInputError(
            f"success_threshold: expected a finite number, above which a reward is a success, got "
            f"{success_threshold!r}."
        )
    if not isinstance(graded_rewards, bool):
        raise InvalidInputError(f"graded_rewards: expected True or False, got {graded_rewards!r}.")
    one_of("outcome_gate", outcome_gate, GATES)
    if graded_rewards and outcome_gate != "none":
        raise InvalidInputError(
            f"outcome_gate: expected 'none' with graded_rewards=True, got {outcome_gate!r}. Graded rewards have no "
            "line between right and wrong, so that no group is without a success. Leave one of the two out."
        )


def check_success_reward(success_reward: str | None, names: list[str]) -> None:
    """Refuse a name that does not say which reward function decides.

    Raises:
        InvalidInputError: none has that name, or several have.
    """
    if success_reward is None:
        return
    if success_reward not in names:
        raise InvalidInputError(f"success_reward: expected one of {', '.join(names)}, got {success_reward!r}.")
    if names.count(success_reward) > 1:
        raise InvalidInputError(
            f"success_reward: {names.count(success_reward)} reward functions have the name {success_reward!r}. Give "
            "the one that decides a name of its own: set its __name__."
        )


def check_rewards(rewards: NDArray[np.float64], names: list[str], rollouts: int) -> None:
    """Refuse rewards that are not those of the rollouts, or would decide the advantages of a whole group.

    Args:
        rewards: shape (rollouts, reward functions), NaN where there is none.
        names: of the reward functions.
        rollouts: how many there are.

    Raises:
        InvalidInputError: a reward is infinite, or a subclass made something else of the rewards.
    """
    if rewards.shape != (rollouts, len(names)):
        raise InvalidInputError(
            f"_calculate_rewards: expected the rewards of all processes, of shape ({rollouts}, {len(names)}), rollouts "
            f"by reward functions, got {rewards.shape}. Return what super() returns, with other numbers at most."
        )
    for name, column in zip(names, rewards.T, strict=True):
        if np.isinf(column).any():
            raise InvalidInputError(
                f"reward_funcs: {name} returned {column[np.isinf(column)][0]} for {np.isinf(column).sum()} of "
                f"{len(column)} rollouts. Expected finite numbers, or None for no reward: one infinite reward would "
                "decide the advantages of its whole group."
            )


def check_gaps(name: str, values: Iterable[Any], where: str) -> None:
    """Refuse a column of numbers with gaps; among texts, None is a category of its own.

    Raises:
        InvalidInputError: some values are numbers, and one is None or NaN.
    """
    column = list(values)
    gaps = [row for row, value in enumerate(column) if value is None or _is_nan(value)]
    if gaps and not all(value is None or isinstance(value, str) for value in column):
        raise InvalidInputError(
            f"feature_columns: {name!r} has a gap in row {gaps[0]} of {where} ({len(gaps)} of {len(column)}): expected "
            f"a number, got {column[gaps[0]]}. Fill it in, or leave the column out."
        )


def _is_nan(value: Any) -> bool:
    return isinstance(value, float | np.floating) and math.isnan(value)


def check_clip(advantage_clip: Any) -> None:
    """Refuse a bound that is none.

    Raises:
        InvalidInputError: neither a positive number, nor None, nor "auto".
    """
    if advantage_clip is None or advantage_clip == "auto":
        return
    number = isinstance(advantage_clip, int | float) and not isinstance(advantage_clip, bool)
    if not number or not advantage_clip > 0.0:
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
        InvalidInputError: a strategy with several waves, and environments or a function that compares rollouts.
    """
    if allocator.in_waves:
        for name, function in zip(trainer.reward_func_names, trainer.reward_funcs, strict=True):
            if compares(function):
                raise InvalidInputError(
                    f"waves: {name} compares the rollouts of a prompt (compares_rollouts=True), and the strategy "
                    f"{allocator.strategy!r} has them generated and rewarded in several waves. Pass waves=False, which "
                    "plans a step in one shot, or a strategy with one wave."
                )
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
