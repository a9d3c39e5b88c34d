"""Problems and verifiers. Each module is one kind of task, or two alike; this one finds the one that a recipe names."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.tasks.base import Task
from knapsack_rl.tasks.chain_arithmetic import ChainArithmeticConfig
from knapsack_rl.tasks.digit_lists import MultipleChoiceConfig, SortingConfig
from knapsack_rl.tasks.math import MathConfig
from knapsack_rl.tasks.reasoning_gym import ReasoningGymConfig
from knapsack_rl.tasks.string_operations import StringOperationsConfig
from knapsack_rl.tasks.word_problems import WordProblemsConfig
from knapsack_rl.tasks.wrong_answers import with_wrong_answers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Task", "TaskConfig", "load_task", "supervised_pairs", "tokenizer"]

TaskConfig = Annotated[
    ChainArithmeticConfig
    | StringOperationsConfig
    | SortingConfig
    | MultipleChoiceConfig
    | ReasoningGymConfig
    | WordProblemsConfig
    | MathConfig,
    Field(discriminator="kind"),
]

_MODULES = {
    "chain-arithmetic": "knapsack_rl.tasks.chain_arithmetic",
    "string-operations": "knapsack_rl.tasks.string_operations",
    "sorting": "knapsack_rl.tasks.digit_lists",
    "multiple-choice": "knapsack_rl.tasks.digit_lists",
    "reasoning-gym": "knapsack_rl.tasks.reasoning_gym",
    "word-problems": "knapsack_rl.tasks.word_problems",
    "math": "knapsack_rl.tasks.math",
}


def load_task(config: TaskConfig, seed: int) -> Task:
    """The problems and the verifier that `config` describes; the same `seed` gives the same problems.

    Raises:
        InvalidInputError: what the task reads or generates does not fit `config`.
        MissingExtraError: the task needs a package of the extra `train` that is not installed.
    """
    task: Task = import_module(_MODULES[config.kind]).load(config, seed)
    return with_wrong_answers(task, config.wrong_answers, seed) if config.wrong_answers else task


def tokenizer(config: TaskConfig) -> PreTrainedTokenizerBase:
    """A tokenizer for a model made from scratch: it knows every token of the task's prompts and answers.

    Raises:
        InvalidInputError: the task needs a pretrained model, which brings its own tokenizer.
        MissingExtraError: the task needs a package of the extra `train` that is not installed.
    """
    made: PreTrainedTokenizerBase = _module_with(config, "tokenizer").tokenizer(config)
    return made


def supervised_pairs(config: TaskConfig, seed: int, count: int) -> list[tuple[str, str]]:
    """`count` pairs (prompt, completion) for a warm start; the same `seed` gives the same pairs.

    Raises:
        InvalidInputError: the task has no worked examples.
        MissingExtraError: the task needs a package of the extra `train` that is not installed.
    """
    pairs: list[tuple[str, str]] = _module_with(config, "supervised_pairs").supervised_pairs(config, seed, count)
    return pairs


def _module_with(config: TaskConfig, function: str) -> ModuleType:
    module = import_module(_MODULES[config.kind])
    if not hasattr(module, function):
        raise InvalidInputError(
            f"task: {config.kind!r} has nothing that a model could learn to read it from. Use a pretrained model "
            "without a warm start, `model: {kind: pretrained, path: ...}`, or another task."
        )
    return module
