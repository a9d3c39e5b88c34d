r"""Word problems of primary school: GSM8K, SVAMP, ASDiv and MAWPS in their public schemas, judged in one of two ways.

`verifier: number` judges the last number of a completion with math-verify, as the task `math` does. `verifier:
expression` judges what a completion writes before its first "=":

    Question: Tom has 84 apples and packs them into boxes of 12. How many boxes does he need?
    Answer: 84/12=

and the verifier does the arithmetic. So it tests whether a model chooses the right formula, and not whether it can
compute; the bare answer followed by "=" is right, too. Small models find formulas long before they divide.

Sets repeat each other's problems. What has the same words is taken once, before anything is split, and a hash of the
words says whether a problem is held out, set aside as a worked example for a warm start, or trained on.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from xml.etree import ElementTree

from pydantic import Field, field_validator, model_validator

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.tasks import arithmetic, math
from knapsack_rl.tasks.base import Task
from knapsack_rl.tasks.config import TaskSettings
from knapsack_rl.tasks.math import DataSetConfig

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SOURCES: dict[str, DataSetConfig] = {
    "gsm8k": DataSetConfig(path="openai/gsm8k", subset="main"),
    "gsm8k-test": DataSetConfig(path="openai/gsm8k", subset="main", split="test"),
    "svamp": DataSetConfig(path="ChilleD/SVAMP", split="train+test"),
    "asdiv": DataSetConfig(path="EleutherAI/asdiv", split="validation"),
    "mawps": DataSetConfig(path="MU-NLPC/Calc-mawps", split="train+validation+test"),
}
"""Public data sets by name, on the hub."""

FILES: dict[str, str] = {
    "gsm8k": "gsm8k/train.jsonl",
    "gsm8k-test": "gsm8k/test.jsonl",
    "svamp": "svamp/SVAMP.json",
    "asdiv": "asdiv/ASDiv.xml",
    "mawps": "mawps",
}
"""The same in a folder (`task.folder`), under the names that their own repositories give them."""

_FINEST = 10**6  # 0.333333333333 stands for a third: the nearest fraction with a denominator up to this is meant
_SUFFIXES = (".json", ".jsonl", ".parquet", ".xml")
_UNKNOWN = "unknown"

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class WordProblemsConfig(TaskSettings):
    r"""Which sets, how they are split, and how a problem is put and judged."""

    kind: Literal["word-problems"] = "word-problems"
    train: tuple[str, ...] = Field(default=("svamp", "asdiv", "mawps"), min_length=1)
    """Names of the data sets that are split into problems to train on, worked examples and held-out problems."""
    benchmarks: tuple[str, ...] = ()
    """Names of data sets that are held out as a whole, such as `gsm8k-test`."""
    folder: str | None = None
    """A folder with the sets' own files in place of the hub: `svamp/SVAMP.json`, `asdiv/ASDiv.xml`, `mawps/*.json`,
    `gsm8k/train.jsonl`, `gsm8k/test.jsonl`."""
    sources: dict[str, DataSetConfig] = Field(default_factory=dict)
    """Other places for known names (a mirror, a file, a folder of files), or new names."""
    verifier: Literal["expression", "number"] = "expression"
    """Whether the expression before the first "=" is judged, or the number at the end."""
    held_out: Share = 0.1
    """Share of the questions that are held out."""
    worked: Share = 0.15
    """Share of the questions that are set aside as worked examples for `model.warm_start`."""
    train_problems: Annotated[int, Field(ge=1)] | None = None
    """How many of the other questions are trained on, the same in every run; None takes all. A strategy that goes by
    earlier visits needs a run that comes back to its prompts."""
    longest_question: Annotated[int, Field(ge=1)] | None = None
    """Words of the longest question that is taken; None takes all."""
    template: str = "Question: {prompt}\nAnswer:"
    """The prompt, with `{prompt}` where the question goes."""

    @field_validator("template")
    @classmethod
    def _has_place(cls, template: str) -> str:
        if "{prompt}" not in template:
            raise ValueError("must contain {prompt}, the place of the question")
        return template

    @model_validator(mode="after")
    def _fits_together(self) -> WordProblemsConfig:
        known = {*SOURCES, *self.sources}
        for key, names in (("train", self.train), ("benchmarks", self.benchmarks)):
            for name in names:
                if name not in known:
                    raise ValueError(f"{key}: no data set {name!r}; known are {', '.join(sorted(known))}")
        if self.held_out + self.worked >= 1.0:
            raise ValueError(
                f"held_out + worked: expected less than 1, so that something is left to train on, got "
                f"{self.held_out} + {self.worked}"
            )
        return self


@dataclass(frozen=True)
class Problem:
    """A word problem.

    Attributes:
        source: name of its data set.
        question: the whole text, with the spaces of a printed one.
        answer: the right number.
        type: what the set calls its kind: ASDiv's solution type, SVAMP's type, the part of MAWPS; else the set's name.
        grade: ASDiv's, where the files have it; else "unknown".
        formula: an expression that gives the answer, None where the set has none that does.
        solution: a worked solution in words, None where the set has none.
    """

    source: str
    question: str
    answer: Fraction
    type: str
    grade: str
    formula: str | None
    solution: str | None

    @property
    def words(self) -> str:
        """What is the same for a question that somebody has only set otherwise."""
        return " ".join(re.findall(r"[a-z0-9]+(?:\.[0-9]+)?", self.question.lower()))

    @property
    def place(self) -> float:
        """From 0 to 1, by the words alone: which part of a split the problem belongs to."""
        return int(hashlib.sha256(self.words.encode()).hexdigest()[:16], 16) / 16**16

    @property
    def operations(self) -> str:
        """How many operations its formula has: "1", "2", "3 or more", or "unknown"."""
        read = arithmetic.read(self.formula) if self.formula else None
        if read is None:
            return _UNKNOWN
        return str(read.operations) if read.operations < 3 else "3 or more"


def load(config: WordProblemsConfig, seed: int) -> Task:
    """Read the data sets and split them; the first use of one from the hub downloads it.

    Columns: `prompt`, `id` (data set and hash of the words: the same in every run), `category` (data set and number of
    operations), `source`, `type`, `grade`, `operations` (see `Problem`; texts, all fit for `allocator.features`),
    and `answer`. Rows are sorted by id. `seed` changes nothing: every run has the same problems held out.

    The benchmark "held-out" is the held-out share of all sets in `train`; every name in `benchmarks` is one of its own,
    without the questions that `train` has.

    Raises:
        InvalidInputError: a data set cannot be read, its columns fit none of the schemas, or nothing is left to
            train on.
        MissingExtraError: `verifier` is "number", and math-verify is not installed.
    """
    problems = _problems(config, config.train)
    train = [problem for problem in problems.values() if problem.place >= config.held_out + config.worked]
    if not train:
        raise InvalidInputError(
            f"task.train: nothing to train on is left of the {len(problems)} problems that were read."
        )
    held_out = {"held-out": [problem for problem in problems.values() if problem.place < config.held_out]}
    for name in config.benchmarks:
        held_out[name] = [one for words, one in _problems(config, (name,)).items() if words not in problems]
    wanted = len(train) if config.train_problems is None else config.train_problems
    if wanted > len(train):
        raise InvalidInputError(
            f"task.train_problems: expected at most the {len(train)} problems that are left to train on, got {wanted}."
        )
    return Task(
        train=_dataset(config, sorted(train, key=lambda problem: problem.place)[:wanted]),
        evaluation={name: _dataset(config, held) for name, held in held_out.items() if held},
        reward={"expression": expression_verified, "number": number_verified}[config.verifier],
    )


def supervised_pairs(config: WordProblemsConfig, seed: int, count: int) -> list[tuple[str, str]]:
    """`count` pairs of a prompt and a worked answer, from the questions set aside for it, in shuffled passes.

    With `verifier: expression` the answers are formulas with their results (" 84/12=7"); with `number`, the set's own
    solution in words where there is one. Raises like `load`, and where no question that was set aside has a formula.
    """
    pool = [
        (config.template.replace("{prompt}", problem.question), answer)
        for problem in sorted(_problems(config, config.train).values(), key=lambda problem: problem.words)
        if config.held_out <= problem.place < config.held_out + config.worked
        if (answer := _worked(config, problem))
    ]
    if not pool:
        raise InvalidInputError(
            "task.worked: none of the questions that are set aside has a worked answer of the kind that is judged. "
            "Raise the share, name more data sets in task.train, or leave out model.warm_start."
        )
    shuffle = random.Random(f"worked {seed}").shuffle
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        shuffle(pool)
        pairs += pool
    return pairs[:count]


def expression_verified(
    prompts: Sequence[Any], completions: Sequence[str], *, answer: Sequence[str], **_: Any
) -> list[float | None]:
    """1.0 where what stands before the first "=" of a completion is an expression worth `answer`, else 0.0."""
    return [float(is_right(text, gold)) for text, gold in zip(completions, answer, strict=True)]


def number_verified(
    prompts: Sequence[Any], completions: Sequence[str], *, answer: Sequence[str], **_: Any
) -> list[float | None]:
    """1.0 where math-verify finds the last number of a completion equal to `answer`, else 0.0."""
    return math.math_verified(prompts, completions, answer=answer, answer_type=["expression"] * len(answer))


def is_right(completion: str, answer: str) -> bool:
    """Whether the expression before the first "=" is worth `answer`; without "=" it was not finished, and is not."""
    written, finished, _ = completion.partition("=")
    read = arithmetic.read(written) if finished else None
    return read is not None and read.value.limit_denominator(_FINEST) == Fraction(answer)


def _worked(config: WordProblemsConfig, problem: Problem) -> str | None:
    if config.verifier == "number" and problem.solution:
        return f" {problem.solution}"
    return f" {problem.formula}={_text(problem.answer)}" if problem.formula else None


def _dataset(config: WordProblemsConfig, problems: list[Problem]) -> Dataset:
    from datasets import Dataset

    rows = [
        {
            "prompt": config.template.replace("{prompt}", problem.question),
            "id": f"{problem.source}-{hashlib.sha256(problem.words.encode()).hexdigest()[:16]}",
            "category": f"{problem.source}, operations: {problem.operations}",
            "source": problem.source,
            "type": problem.type,
            "grade": problem.grade,
            "operations": problem.operations,
            "answer": _text(problem.answer),
        }
        for problem in problems
    ]
    return Dataset.from_list(sorted(rows, key=lambda row: row["id"]))


def _problems(config: WordProblemsConfig, names: Sequence[str]) -> dict[str, Problem]:
    """The problems of these sets by their words, each taken from the first set that has it."""
    found: dict[str, Problem] = {}
    disputed: set[str] = set()
    unread = 0
    for name in names:
        for problem in _read(config, name):
            if problem is None:
                unread += 1
            elif found.setdefault(problem.words, problem).answer != problem.answer:
                disputed.add(problem.words)
    logger.info("%s: left out %d problems whose answer is not one number", ", ".join(names), unread)
    if disputed:
        logger.warning("%s: left out %d problems whose copies have different answers", ", ".join(names), len(disputed))
    return {
        words: problem
        for words, problem in found.items()
        if words not in disputed
        if config.longest_question is None or len(problem.question.split()) <= config.longest_question
    }


def _read(config: WordProblemsConfig, name: str) -> Iterator[Problem | None]:
    """The problems of a set as its file or files have them; None for those whose answer is not one number."""
    for source in _places(config, name):
        part = Path(source.path).stem
        if source.path.lower().endswith(".xml"):
            rows: Iterator[dict[str, Any]] = _xml_rows(name, source.path)
        else:
            rows = iter(math.read(name, source))
        for row in rows:
            yield _problem(name, part, {key.lower().replace("-", "_"): value for key, value in row.items()})


def _places(config: WordProblemsConfig, name: str) -> list[DataSetConfig]:
    source = config.sources.get(name)
    if source is None and config.folder is not None and name in FILES:
        source = DataSetConfig(path=str(Path(config.folder) / FILES[name]))
    source = source or SOURCES[name]
    path = Path(source.path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
        if not files:
            raise InvalidInputError(f"{name}: {path} has no file that ends in {', '.join(_SUFFIXES)}.")
        return [DataSetConfig(path=str(file)) for file in files]
    if config.folder is not None and name not in config.sources and not path.exists():
        raise InvalidInputError(
            f"{name}: no {path}. Put the set's own file there, or name its place as task.sources.{name}.path."
        )
    return [source]


def _xml_rows(name: str, path: str) -> Iterator[dict[str, Any]]:
    """ASDiv's own file: a `Problem` with its fields as elements, and its grade as an attribute."""
    try:
        problems = list(ElementTree.parse(path).iter("Problem"))
    except (OSError, ElementTree.ParseError) as error:
        raise InvalidInputError(f"{name}: cannot read {path!r}: {error}") from error
    if not problems:
        raise InvalidInputError(
            f"{name}: {path!r} has no element Problem; expected ASDiv.xml as its authors publish it."
        )
    for problem in problems:
        yield {**problem.attrib, **{field.tag: field.text for field in problem}}


def _problem(name: str, part: str, row: dict[str, Any]) -> Problem | None:
    """A row in one of the schemas, its keys in lower case."""
    columns = row.keys()
    solution = None
    type_, grade = row.get("type") or row.get("solution_type"), row.get("grade")
    if {"squestion", "lequations", "lsolutions"} <= columns:  # MAWPS, as in its own files
        question, answer, formula = row["squestion"], row["lsolutions"][0], row["lequations"][0]
        type_ = part
    elif {"body", "question", "answer"} <= columns:  # SVAMP, ASDiv
        body = row["body"].strip()
        question = f"{body}{'' if body[-1:] in string.punctuation else '.'} {row['question']}"
        answer, formula = row["answer"], row.get("equation") or row.get("formula")
    elif {"question", "result", "expression"} <= columns:  # Calc-X, which has MAWPS on the hub
        question, answer, formula = row["question"], row["result"], row["expression"]
    elif {"question", "answer"} <= columns:  # GSM8K
        question, formula = row["question"], None
        worked, mark, answer = str(row["answer"]).rpartition("####")
        if not mark:
            raise InvalidInputError(
                f"{name}: expected an answer that ends in '#### NUMBER', as GSM8K has it, got {row['answer']!r:.200}"
            )
        solution = f"{re.sub('<<.*?>>', '', worked).strip()}\n#### {answer.strip()}"
    else:
        raise InvalidInputError(
            f"{name}: found the columns {', '.join(columns)}; expected question and answer (GSM8K), Body, Question and "
            "Answer (SVAMP, ASDiv), sQuestion, lEquations and lSolutions (MAWPS), or question, result and expression."
        )
    number = _number(answer)
    if number is None:
        return None
    return Problem(
        source=name,
        question=re.sub(r"\s+([.,?!;:])", r"\1", " ".join(str(question).split())),
        answer=number,
        type=str(type_ or name),
        grade=str(grade or _UNKNOWN),
        formula=_formula(formula, number),
        solution=solution,
    )


def _number(answer: Any) -> Fraction | None:
    """The number of an answer: 51.0, "1,250", "9 (apples)", "1/3"; None for anything else."""
    text = re.sub(r"\s*\([^()]*\)$", "", str(answer).strip())  # ASDiv's units
    read = arithmetic.read(text.rstrip("."))
    return None if read is None or read.operations > 1 else read.value.limit_denominator(_FINEST)


def _formula(equation: Any, answer: Fraction) -> str | None:
    """The side of "7+2=9", "X = 70 - 27" or "(76.0 - 25.0)" that is an expression worth the answer, written short."""
    for side in str(equation or "").split("="):
        short = re.sub(r"(\d)\.0+(?!\d)", r"\1", "".join(side.split()))
        read = arithmetic.read(short)
        if read is not None and read.operations and read.value.limit_denominator(_FINEST) == answer:
            bare = arithmetic.read(short[1:-1]) if short.startswith("(") and short.endswith(")") else None
            return short[1:-1] if bare is not None and bare == read else short
    return None


def _text(number: Fraction) -> str:
    """As people write it: 7, 0.59, or 1/3 where no decimal number is exact."""
    decimal = f"{float(number):.12f}".rstrip("0").rstrip(".")
    return decimal if Fraction(decimal) == number else str(number)
