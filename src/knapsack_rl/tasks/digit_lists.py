"""Lists of digits: two kinds of task, one whose skill carries over from short lists to long ones, one to be guessed at.

`sorting` asks for the same digits in ascending order, `multiple-choice` for the remainder of their sum on division by
the number of choices, here five:

    3 1 4 1 5 =    ->    1 1 3 4 5
    3 1 4 1 5 =    ->    4

The warm start sees mostly short lists, all of them with right answers, so problems are the harder the longer their
list. Sorting is one skill, and a bit more of it is of use on every length. Of the sum nothing short of all digits
says anything: all choices are equally likely until the last digit is known, and who knows less is right by luck.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from knapsack_rl.tasks.base import Task, by_category
from knapsack_rl.tasks.chain_arithmetic import exact_match, word_tokenizer
from knapsack_rl.tasks.config import TaskSettings, check_shares

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BLOCK = 4096  # random numbers drawn at once, for speed


class _DigitListConfig(TaskSettings):
    train_problems: int = Field(default=1024, ge=1)
    """Problems to train on, as many of every length."""
    eval_problems: int = Field(default=256, ge=1)
    """Held-out problems, likewise."""
    shortest: int = Field(default=3, ge=2, le=8)
    """Digits of the shortest lists."""
    supervised_shares: tuple[float, ...] = Field(default=(0.6, 0.25, 0.1, 0.05), min_length=1, max_length=8)
    """Of the warm start's examples, the share with the shortest lists, with one digit more, and so on; as many numbers
    as there are lengths. They sum to 1."""

    @model_validator(mode="after")
    def _check_that_problems_suffice(self) -> _DigitListConfig:
        check_shares("supervised_shares", self.supervised_shares)
        wanted = self.train_problems + self.eval_problems
        # As many of every length, and half of the shortest lists, the scarcest, are left to the warm start.
        available = len(self.supervised_shares) * 10**self.shortest // 2
        if wanted > available:
            raise ValueError(
                f"train_problems + eval_problems: expected at most {available} with {len(self.supervised_shares)} "
                f"lengths from {self.shortest} digits, got {wanted}; ask for fewer, or for longer lists"
            )
        return self


class SortingConfig(_DigitListConfig):
    """How many lists there are, how long, and what the warm start says about them."""

    kind: Literal["sorting"] = "sorting"

    def answer(self, digits: list[int]) -> list[int]:
        """The digits in ascending order."""
        return sorted(digits)


class MultipleChoiceConfig(_DigitListConfig):
    """How many lists and choices there are, and what the warm start says about them."""

    kind: Literal["multiple-choice"] = "multiple-choice"
    choices: Literal[2, 5, 10] = 5
    """Possible answers: a divisor of 10, so that all of them are equally often right."""

    def answer(self, digits: list[int]) -> list[int]:
        """The choice that is right."""
        return [sum(digits) % self.choices]


def load(config: SortingConfig | MultipleChoiceConfig, seed: int) -> Task:
    """Lists of every length in turn, none of them twice; one benchmark for each length."""
    problems = [
        {
            "prompt": _prompt(digits),
            "id": _text(digits),
            "answer": _text(config.answer(digits)),
            "category": f"{len(digits)} digits",
        }
        for digits in _problems(config, seed)
    ]
    return by_category(problems, config.train_problems, exact_match)


def supervised_pairs(config: SortingConfig | MultipleChoiceConfig, seed: int, count: int) -> list[tuple[str, str]]:
    """Random lists with right answers, none of them a problem of the task, in the shares that `config` names."""
    kept_out = set(map(tuple, _problems(config, seed)))
    random = np.random.default_rng([seed, 1])
    lengths = config.shortest + np.arange(len(config.supervised_shares))
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        for digits in _drawn(random.choice(lengths, size=_BLOCK, p=config.supervised_shares), random):
            if tuple(digits) not in kept_out:
                pairs.append((_prompt(digits), _text(config.answer(digits))))
    return pairs[:count]


def tokenizer(config: SortingConfig | MultipleChoiceConfig) -> PreTrainedTokenizerFast:
    """One token per digit, and for `=`: 13 with the two special ones."""
    return word_tokenizer(["=", *map(str, range(10))])


def _problems(config: _DigitListConfig, seed: int) -> Iterator[list[int]]:
    """The lists of all problems, training ones first; the lengths take turns."""
    random = np.random.default_rng([seed, 0])
    lengths = len(config.supervised_shares)
    drawn = [_distinct(config.shortest + more, random) for more in range(lengths)]
    for number in range(config.train_problems + config.eval_problems):
        yield next(drawn[number % lengths])


def _distinct(length: int, random: np.random.Generator) -> Iterator[list[int]]:
    known: set[tuple[int, ...]] = set()
    while True:
        for digits in _drawn(np.full(_BLOCK, length), random):
            if tuple(digits) not in known:
                known.add(tuple(digits))
                yield digits


def _drawn(lengths: np.ndarray, random: np.random.Generator) -> Iterator[list[int]]:
    """A list for each length."""
    digits = random.integers(10, size=(len(lengths), max(lengths)))
    for length, row in zip(lengths, digits.tolist(), strict=True):
        yield row[:length]


def _prompt(digits: list[int]) -> str:
    return f"{_text(digits)} ="


def _text(digits: list[int]) -> str:
    return " ".join(map(str, digits))
