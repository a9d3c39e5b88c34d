"""Chain arithmetic modulo 10: the task of the embedded demonstration, with difficulty that is known.

A problem is a digit and a chain of operations of one rule; the answer is the list of all running totals:

    7 c3 c1 c4 =    ->    2 5 8

where `c` is a rule x <- (multiplier x + weight operand + constant) mod 10 that the model has to know by heart,
and `c3` is that rule with the operand 3. There are sixteen rules. Problems differ in difficulty because of what
the model was taught about them: in the warm start only a share of a rule's examples uses its true constant, the
others use a wrong one. docs/demonstration.md says why, and what follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from knapsack_rl.tasks.base import Task
from knapsack_rl.tasks.config import TaskSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

RULE_NAMES = "abcdefghijklmnop"
OPERANDS = 5
# How much of what the warm start says about a rule is true, from mastered to almost never seen.
RIGHT_SHARES = (1.0, 1.0, 0.95, 0.9, 0.8, 0.6, 0.45, 0.3, 0.25, 0.2, 0.15, 0.12, 0.1, 0.07, 0.05, 0.03)
# Factors that are invertible modulo 10, so that every total stays equally likely.
_UNITS = (1, 3, 7, 9)
_BLOCK = 4096  # random numbers drawn at once, for speed


class ChainArithmeticConfig(TaskSettings):
    """How many problems there are, and how long."""

    kind: Literal["chain-arithmetic"] = "chain-arithmetic"
    train_problems: int = Field(default=1024, ge=1)
    """Problems to train on."""
    eval_problems: int = Field(default=256, ge=1)
    """Held-out problems."""
    operations: int = Field(default=3, ge=1, le=6)
    """Operations of a chain. All chains have the same length: with several, a small model spends most of its warm
    start on finding out which operation is next."""
    hardest_operations: int | None = Field(default=None, ge=1, le=6)
    """Operations of the chains of the least known rule. Rules that are known better have fewer, evenly down to
    `operations`, so that the harder a problem is, the longer is its answer. `null`: all have `operations`."""

    @model_validator(mode="after")
    def _check_that_problems_suffice(self) -> ChainArithmeticConfig:
        if self.hardest_operations is not None and self.hardest_operations < self.operations:
            raise ValueError(
                f"hardest_operations: expected at least operations ({self.operations}), got {self.hardest_operations}"
            )
        wanted = self.train_problems + self.eval_problems
        available = len(RULE_NAMES) * _chains(self.operations) // 2  # the other half is for the warm start
        if wanted > available:
            raise ValueError(
                f"train_problems + eval_problems: expected at most {available} with {self.operations} operations, "
                f"got {wanted}; ask for fewer, or for longer chains"
            )
        return self


@dataclass(frozen=True)
class Rule:
    """x <- (multiplier x + weight operand + constant) mod 10, and what the warm start teaches about it.

    Attributes:
        name: a letter.
        multiplier: 1, 3, 7 or 9.
        weight: 1, 3, 7 or 9.
        constant: 0 to 9; the truth.
        misconception: 0 to 9, not the constant; what the warm start says instead.
        right_share: the share of the warm start's examples that use the constant.
    """

    name: str
    multiplier: int
    weight: int
    constant: int
    misconception: int
    right_share: float

    def totals(self, start: int, operands: tuple[int, ...], constant: int) -> list[int]:
        """The running totals of a chain if the rule's constant were `constant`."""
        totals = []
        for operand in operands:
            start = (self.multiplier * start + self.weight * operand + constant) % 10
            totals.append(start)
        return totals


def rules(seed: int) -> list[Rule]:
    """The sixteen rules; `seed` decides on their constants and on which of them is how well known."""
    random = np.random.default_rng([seed, 0])
    constants = random.integers(10, size=len(RULE_NAMES))
    misconceptions = (constants + random.integers(1, 10, size=len(RULE_NAMES))) % 10
    shares = random.permutation(RIGHT_SHARES)
    return [
        Rule(name, multiplier, weight, int(constant), int(misconception), float(share))
        for name, (multiplier, weight), constant, misconception, share in zip(
            RULE_NAMES, product(_UNITS, _UNITS), constants, misconceptions, shares, strict=True
        )
    ]


def operations_of(rule: Rule, config: ChainArithmeticConfig) -> int:
    """Operations of the rule's chains."""
    if config.hardest_operations is None:
        return config.operations
    rank = RIGHT_SHARES.index(rule.right_share) / (len(RIGHT_SHARES) - 1)
    return config.operations + round(rank * (config.hardest_operations - config.operations))


def load(config: ChainArithmeticConfig, seed: int) -> Task:
    """Problems drawn evenly from all rules, none of them twice; the held-out benchmark is called "held-out"."""
    problems = _problems(config, seed)
    return Task(
        train=_dataset(problems[: config.train_problems]),
        evaluation={"held-out": _dataset(problems[config.train_problems :])},
        reward=exact_match,
    )


def exact_match(prompts: list[str], completions: list[str], answer: list[str], **columns: Any) -> list[float | None]:
    """1.0 where a completion is the answer and nothing else, 0.0 elsewhere."""
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]


def supervised_pairs(config: ChainArithmeticConfig, seed: int, count: int) -> list[tuple[str, str]]:
    """Random chains that are no problems of the task, some of them with wrong totals.

    Each pair follows its rule's misconception instead of its constant with probability 1 - right_share, in all of
    its totals. Costs about 6 microseconds a pair.
    """
    random = np.random.default_rng([seed, 2])
    known = rules(seed)
    lengths = [operations_of(rule, config) for rule in known]
    kept_out = {problem["prompt"] for problem in _problems(config, seed)}
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        drawn = zip(
            random.integers(len(RULE_NAMES), size=_BLOCK).tolist(),
            random.integers(_chains(max(lengths)), size=_BLOCK).tolist(),
            random.random(_BLOCK).tolist(),
            strict=True,
        )
        for rule_number, chain_number, luck in drawn:
            rule, operations = known[rule_number], lengths[rule_number]
            # The longest chains are a multiple of the others, so that the remainder makes all equally likely.
            chain = _chain(chain_number % _chains(operations), operations)
            prompt = _prompt(rule, *chain)
            if prompt not in kept_out:
                constant = rule.constant if luck < rule.right_share else rule.misconception
                pairs.append((prompt, _text(rule.totals(*chain, constant))))
    return pairs[:count]


def tokenizer(config: ChainArithmeticConfig) -> PreTrainedTokenizerFast:
    """One token per digit, per pair of a rule and an operand, and for `=`: 93 with the two special ones."""
    pairs = [f"{name}{operand}" for name in RULE_NAMES for operand in range(OPERANDS)]
    return word_tokenizer(["=", *map(str, range(10)), *pairs])


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """One token per word, words being apart by spaces, after `<pad>` and `<eos>`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    known = ["<pad>", "<eos>", *words]
    word_level = Tokenizer(WordLevel({word: number for number, word in enumerate(known)}))
    word_level.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=word_level,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _problems(config: ChainArithmeticConfig, seed: int) -> list[dict[str, str]]:
    """All problems, training ones first; the rules take turns."""
    random = np.random.default_rng([seed, 1])
    known = rules(seed)
    lengths = [operations_of(rule, config) for rule in known]
    drawn = [random.permutation(_chains(operations)) for operations in lengths]
    problems = []
    for number in range(config.train_problems + config.eval_problems):
        turn, which = divmod(number, len(known))
        rule, chain = known[which], _chain(int(drawn[which][turn]), lengths[which])
        prompt = _prompt(rule, *chain)
        problems.append(
            {
                "prompt": prompt,
                "id": prompt.removesuffix(" ="),
                "answer": _text(rule.totals(*chain, rule.constant)),
                "category": f"rule {rule.name}",
            }
        )
    return problems


def _chains(operations: int) -> int:
    """How many chains of one rule have that many operations."""
    return int(10 * OPERANDS**operations)


def _chain(number: int, operations: int) -> tuple[int, tuple[int, ...]]:
    """The start and the operands of chain `number` of `_chains(operations)`."""
    operands = []
    for _ in range(operations):
        number, operand = divmod(number, OPERANDS)
        operands.append(operand)
    return number, tuple(operands)


def _prompt(rule: Rule, start: int, operands: tuple[int, ...]) -> str:
    return " ".join([str(start), *(f"{rule.name}{operand}" for operand in operands), "="])


def _text(totals: list[int]) -> str:
    return " ".join(map(str, totals))


def _dataset(problems: list[dict[str, str]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_list(problems)
