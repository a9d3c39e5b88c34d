"""String operations: a task whose skills carry over from one problem to another.

A problem is a chain of operations and a string, the answer is the string after all of them:

    R L b d a c =    ->    a d b c

where `R` reverses and `L` moves the first letter to the end. The warm start sees mostly single operations and only
a few longer chains, so problems are the harder the longer their chain; and since no operation is taught wrongly,
whatever is learned about a chain holds for every string and helps with the chains that contain it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from knapsack_rl.tasks.base import Task, by_category
from knapsack_rl.tasks.chain_arithmetic import exact_match, word_tokenizer
from knapsack_rl.tasks.config import TaskSettings, check_shares

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ALPHABET = "abcdef"
OPERATIONS: dict[str, Callable[[str], str]] = {
    "R": lambda text: text[::-1],
    "L": lambda text: text[1:] + text[:1],
    "S": lambda text: text[1::-1] + text[2:],
    "X": lambda text: text[-1:] + text[1:-1] + text[:1],
    "U": lambda text: "".join(ALPHABET[(ALPHABET.index(letter) + 1) % len(ALPHABET)] for letter in text),
}
"""Reverse, rotate to the left, swap the first two, exchange the ends, next letter of the alphabet."""
_BLOCK = 4096  # random numbers drawn at once, for speed


class StringOperationsConfig(TaskSettings):
    """How many problems there are, how long, and what the warm start says about them."""

    kind: Literal["string-operations"] = "string-operations"
    train_problems: int = Field(default=1024, ge=1)
    """Problems to train on, as many of every number of operations."""
    eval_problems: int = Field(default=256, ge=1)
    """Held-out problems, likewise."""
    letters: int = Field(default=4, ge=3, le=8)
    """Length of the strings."""
    supervised_shares: tuple[float, ...] = Field(default=(0.8, 0.15, 0.05), min_length=1, max_length=6)
    """Of the warm start's examples, the share with one operation, two, and so on; as many numbers as the longest
    chain has operations. They sum to 1."""

    @model_validator(mode="after")
    def _check_that_problems_suffice(self) -> StringOperationsConfig:
        check_shares("supervised_shares", self.supervised_shares)
        wanted = self.train_problems + self.eval_problems
        shortest = len(OPERATIONS) * len(ALPHABET) ** self.letters  # problems of one operation, the scarcest
        available = len(self.supervised_shares) * shortest // 2  # the other half is for the warm start
        if wanted > available:
            raise ValueError(
                f"train_problems + eval_problems: expected at most {available} with {self.letters} letters and up to "
                f"{len(self.supervised_shares)} operations, got {wanted}; ask for fewer, or for longer strings"
            )
        return self


def load(config: StringOperationsConfig, seed: int) -> Task:
    """Problems of every number of operations in turn, none of them twice; one benchmark for each number."""
    problems = _problems(config, seed)
    return by_category(problems, config.train_problems, exact_match)


def supervised_pairs(config: StringOperationsConfig, seed: int, count: int) -> list[tuple[str, str]]:
    """Random problems with right answers, none of them a problem of the task, in the shares that `config` names."""
    kept_out = {problem["prompt"] for problem in _problems(config, seed)}
    random = np.random.default_rng([seed, 1])
    lengths = 1 + np.arange(len(config.supervised_shares))
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        for prompt, answer in _drawn(config, random.choice(lengths, size=_BLOCK, p=config.supervised_shares), random):
            if prompt not in kept_out:
                pairs.append((prompt, answer))
    return pairs[:count]


def tokenizer(config: StringOperationsConfig) -> PreTrainedTokenizerFast:
    """One token per letter and per operation, and for `=`: 14 with the two special ones."""
    return word_tokenizer(["=", *ALPHABET, *OPERATIONS])


def answered(operations: str, text: str) -> str:
    """The string after the operations, the first of them first."""
    for name in operations:
        text = OPERATIONS[name](text)
    return text


def _problems(config: StringOperationsConfig, seed: int) -> list[dict[str, str]]:
    """All problems, training ones first; the numbers of operations take turns."""
    random = np.random.default_rng([seed, 0])
    wanted = config.train_problems + config.eval_problems
    longest = len(config.supervised_shares)
    drawn = [_distinct(config, length, random) for length in range(1, longest + 1)]
    problems = []
    for number in range(wanted):
        prompt, answer = next(drawn[number % longest])
        operations = 1 + number % longest
        problems.append(
            {
                "prompt": prompt,
                "id": prompt.removesuffix(" ="),
                "answer": answer,
                "category": f"{operations} operation{'s'[: operations - 1]}",
            }
        )
    return problems


def _distinct(config: StringOperationsConfig, length: int, random: np.random.Generator) -> Iterator[tuple[str, str]]:
    known: set[str] = set()
    while True:
        for prompt, answer in _drawn(config, np.full(_BLOCK, length), random):
            if prompt not in known:
                known.add(prompt)
                yield prompt, answer


def _drawn(
    config: StringOperationsConfig, lengths: np.ndarray, random: np.random.Generator
) -> Iterator[tuple[str, str]]:
    """A prompt and its answer for each number of operations."""
    names = np.array(list(OPERATIONS))[random.integers(len(OPERATIONS), size=(len(lengths), max(lengths)))]
    letters = np.array(list(ALPHABET))[random.integers(len(ALPHABET), size=(len(lengths), config.letters))]
    for length, chain, string in zip(lengths, names.tolist(), letters.tolist(), strict=True):
        operations = chain[:length]
        yield " ".join([*operations, *string, "="]), " ".join(answered("".join(operations), "".join(string)))
