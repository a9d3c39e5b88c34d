"""Competition mathematics: public training sets and benchmarks, judged by math-verify.

A data set is named, and its name stands for a place on the Hugging Face hub or a local file (`SOURCES`, or the
recipe's `sources`). What is read there is recognised by its columns, so mirrors and local files work alike:

- verl's schema: `prompt` (a chat list, kept as it is) and `reward_model.ground_truth` (DAPO-Math-17K);
- problem and answer: one column of `PROBLEM_COLUMNS` and one of `ANSWER_COLUMNS` (AIME, AMC, MATH, Minerva,
  OlympiadBench);
- GPQA: `Question`, `Correct Answer`, `Incorrect Answer 1` to `3`, asked as a choice of four letters.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from knapsack_rl.errors import InvalidInputError, MissingExtraError
from knapsack_rl.tasks.base import Task
from knapsack_rl.tasks.config import Config, TaskSettings

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

PROBLEM_COLUMNS = ("problem", "Problem", "question", "Question")
ANSWER_COLUMNS = ("answer", "Answer", "final_answer", "solution")
GPQA_COLUMNS = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
CATEGORY_COLUMNS = ("subject", "subfield", "type", "High-level domain", "data_source")

LETTERS = "ABCD"
_TIMEOUT = 5  # seconds for one parse or comparison, math-verify's own default

_SCIENTIFIC = re.compile(r"^(-?\d+(?:\.\d+)?)[eE]([+-]?\d+)$")

Message = dict[str, str]


class DataSetConfig(Config):
    """Where a data set is."""

    path: str
    """A hub id, or a local .parquet, .json or .jsonl file."""
    subset: str | None = None
    """The configuration of a hub data set that has several."""
    split: str = "train"
    """The split on the hub; a local file is one split."""


SOURCES: dict[str, DataSetConfig] = {
    "dapo-math-17k": DataSetConfig(path="BytedTsinghua-SIA/DAPO-Math-17k"),
    "aime-2024": DataSetConfig(path="HuggingFaceH4/aime_2024"),
    "aime-2025": DataSetConfig(path="math-ai/aime25", split="test"),
    "amc": DataSetConfig(path="AI-MO/aimo-validation-amc"),
    "math-500": DataSetConfig(path="HuggingFaceH4/MATH-500", split="test"),
    "minerva": DataSetConfig(path="math-ai/minervamath", split="test"),
    "olympiad-bench": DataSetConfig(path="Hothan/OlympiadBench", subset="OE_TO_maths_en_COMP"),
    "gpqa-diamond": DataSetConfig(path="Idavidrein/gpqa", subset="gpqa_diamond"),
}
"""Public data sets by name. GPQA is gated: the hub asks for an account that accepted its terms."""

BENCHMARKS: dict[str, tuple[str, ...]] = {
    "aime": ("aime-2024", "aime-2025"),
    "amc": ("amc",),
    "math": ("math-500",),
    "minerva": ("minerva",),
    "olympiad": ("olympiad-bench",),
    "gpqa": ("gpqa-diamond",),
}
"""Benchmarks of the paper (section 5.1) and the data sets that each consists of."""


class MathConfig(TaskSettings):
    r"""Training data and benchmarks by name, and how a problem is put to the model."""

    kind: Literal["math"] = "math"
    train: str = "dapo-math-17k"
    """Name of a data set."""
    benchmarks: tuple[str, ...] = tuple(BENCHMARKS)
    """Names of `BENCHMARKS`, or of single data sets."""
    sources: dict[str, DataSetConfig] = Field(default_factory=dict)
    """Other places for known names (a mirror, a local file), or new names."""
    instruction: str = "Please reason step by step, and put your final answer within \\boxed{}."
    """Follows a problem after an empty line, where the data set brings only the bare problem."""
    choice_instruction: str = "Please reason step by step, and put the letter of your choice within \\boxed{}."
    """The same for multiple choice."""
    template: str | None = None
    """None: prompts are chat lists, for the tokenizer's chat template. Otherwise prompts are strings: this text
    with `{prompt}` replaced, for base models without a chat template."""

    @field_validator("template")
    @classmethod
    def _has_place(cls, template: str | None) -> str | None:
        if template is not None and "{prompt}" not in template:
            raise ValueError("must contain {prompt}, the place of the problem")
        return template

    @model_validator(mode="after")
    def _names_are_known(self) -> MathConfig:
        known = {*SOURCES, *self.sources}
        if self.train not in known:
            raise ValueError(f"train: no data set {self.train!r}; known are {', '.join(sorted(known))}; add to sources")
        for name in self.benchmarks:
            if name not in known | BENCHMARKS.keys():
                raise ValueError(
                    f"benchmarks: no benchmark {name!r}; known are {', '.join(sorted(known | BENCHMARKS.keys()))}"
                )
        return self


def load(config: MathConfig, seed: int) -> Task:
    """Read the data sets; the first use of one from the hub downloads it.

    Columns: `prompt` (chat list, or string with `config.template`), `id` (data set and content hash, the same in
    every run and for every order of the file), `category` (subject where the data set has one, else its name),
    `answer` and `answer_type` ("expression" or "choice"), which the reward needs. Rows are sorted by id. Problems
    that repeat are taken once; problems whose copies disagree about the answer are left out, with a warning.

    `seed` changes nothing here: the data are fixed, and sub-samples are the caller's.

    The reward is 1.0 where math-verify finds the last answer of the completion equal to the right one, else 0.0;
    also where it cannot parse the completion or takes more than 5 seconds, which a hostile power tower can.

    Raises:
        InvalidInputError: a data set cannot be read, or its columns fit none of the known schemas.
        MissingExtraError: math-verify is not installed.
    """
    _math_verify()
    return Task(
        train=_dataset(config, (config.train,)),
        evaluation={name: _dataset(config, BENCHMARKS.get(name, (name,))) for name in config.benchmarks},
        reward=math_verified,
    )


def math_verified(
    prompts: Sequence[Any], completions: Sequence[Any], *, answer: Sequence[str], answer_type: Sequence[str], **_: Any
) -> list[float | None]:
    """1.0 or 0.0 per completion (a string or a chat list), by comparison with `answer`; never raises on its text."""
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [
        1.0 if is_right(text, gold, choice=kind == "choice") else 0.0
        for text, gold, kind in zip(texts, answer, answer_type, strict=True)
    ]


def is_right(completion: str, answer: str, *, choice: bool = False) -> bool:
    r"""Whether the answer that math-verify finds in `completion` equals `answer`.

    `answer` is LaTeX or a number, or with `choice` a letter from A to D. In the completion, what stands in the last
    \boxed{} (or in several that are listed together) goes before "the answer is", and that before the last formula
    or number.

    math-verify keeps its time limit by a signal, which only the main thread can receive: in other threads there is
    no limit, and whoever calls from one has to watch over it.
    """
    math_verify = _math_verify()
    timeout = _timeout()
    extraction: tuple[Any, ...] = (math_verify.LatexExtractionConfig(),)
    if choice:
        extraction += (math_verify.StringExtractionConfig(strings=tuple(LETTERS)),)
    else:
        extraction += (math_verify.ExprExtractionConfig(),)
    try:
        found = math_verify.parse(completion, extraction, parsing_timeout=timeout)
        return bool(math_verify.verify(_gold(answer), found, timeout_seconds=timeout))
    except (Exception, _timeout_exception()):  # sympy raises what it likes on odd input; the answer is not right then
        logger.debug("could not judge a completion against %r", answer, exc_info=True)
        return False


@lru_cache(maxsize=65_536)
def _gold(answer: str) -> list[Any]:
    text = answer if "\\boxed" in answer else f"\\boxed{{{answer}}}"
    math_verify = _math_verify()
    parsed: list[Any] = math_verify.parse(text, (math_verify.LatexExtractionConfig(),), parsing_timeout=_timeout())
    return parsed


def _timeout() -> int | None:
    return _TIMEOUT if threading.current_thread() is threading.main_thread() else None


@lru_cache(maxsize=1)
def _math_verify() -> Any:
    try:
        import math_verify
    except ImportError as error:
        raise MissingExtraError(
            'the math task needs the package math-verify: pip install "knapsack-rl[train]"'
        ) from error
    return math_verify


def _timeout_exception() -> type[BaseException]:
    from math_verify.errors import TimeoutException  # a BaseException: `except Exception` alone lets it through

    exception: type[BaseException] = TimeoutException
    return exception


@dataclass(frozen=True)
class _Problem:
    messages: tuple[tuple[str, str], ...]  # (role, content)
    answer: str
    answer_type: str
    category: str

    def identity(self, source: str) -> str:
        text = json.dumps(self.messages, ensure_ascii=False)
        return f"{source}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _dataset(config: MathConfig, names: Sequence[str]) -> Dataset:
    from datasets import Dataset

    rows = [row for name in names for row in _rows(config, name)]
    if not rows:
        raise InvalidInputError(
            f"{', '.join(names)}: no problems in {'; '.join(_source(config, n).path for n in names)}"
        )
    return Dataset.from_list(sorted(rows, key=lambda row: str(row["id"])))


def _source(config: MathConfig, name: str) -> DataSetConfig:
    return config.sources.get(name) or SOURCES[name]


def _rows(config: MathConfig, name: str) -> Iterator[dict[str, Any]]:
    problems: dict[str, _Problem] = {}
    disputed: set[str] = set()
    for problem in _problems(config, name):
        identity = problem.identity(name)
        if problems.setdefault(identity, problem).answer != problem.answer:
            disputed.add(identity)
    if disputed:
        logger.warning("%s: left out %d problems whose copies have different answers", name, len(disputed))
    for identity, problem in problems.items():
        if identity not in disputed:
            yield {
                "prompt": _prompt(problem, config.template),
                "id": identity,
                "category": problem.category,
                "answer": problem.answer,
                "answer_type": problem.answer_type,
            }


def _prompt(problem: _Problem, template: str | None) -> str | list[Message]:
    if template is None:
        return [{"role": role, "content": content} for role, content in problem.messages]
    return template.replace("{prompt}", "\n\n".join(content for _, content in problem.messages))


def _problems(config: MathConfig, name: str) -> Iterator[_Problem]:
    source = _source(config, name)
    table = read(name, source)
    reader = _reader(name, source, table.column_names)
    for batch in table.iter(batch_size=10_000):
        columns = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield reader(config, name, dict(zip(columns, values, strict=True)))


def read(name: str, source: DataSetConfig) -> Dataset:
    """The data set `name` from its file or from the hub.

    Raises:
        InvalidInputError: it cannot be read.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    builder = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}.get(Path(source.path).suffix)
    try:
        if builder is not None:
            return load_dataset(builder, data_files=source.path, split="train")
        return load_dataset(source.path, source.subset, split=source.split)
    except (OSError, ValueError, DatasetsError) as error:
        raise InvalidInputError(
            f"{name}: cannot read {source.path!r} (subset {source.subset}, split {source.split}): {error}. Without "
            f"network, name a local .parquet, .json or .jsonl file as task.sources.{name}.path"
        ) from error


_Reader = Callable[[MathConfig, str, dict[str, Any]], _Problem]


def _reader(name: str, source: DataSetConfig, columns: Sequence[str]) -> _Reader:
    if {"prompt", "reward_model"} <= set(columns):
        return _read_verl
    if set(GPQA_COLUMNS) <= set(columns):
        return _read_gpqa
    if any(column in columns for column in PROBLEM_COLUMNS) and any(column in columns for column in ANSWER_COLUMNS):
        return _read_problem
    raise InvalidInputError(
        f"{name}: {source.path!r} has the columns {', '.join(columns)}; expected prompt and reward_model, or one of "
        f"{', '.join(PROBLEM_COLUMNS)} with one of {', '.join(ANSWER_COLUMNS)}, or {', '.join(GPQA_COLUMNS)}"
    )


def _read_verl(config: MathConfig, name: str, row: dict[str, Any]) -> _Problem:
    prompt, reward_model = row["prompt"], row["reward_model"]
    if not isinstance(reward_model, dict) or reward_model.get("ground_truth") is None:
        found = ", ".join(reward_model) if isinstance(reward_model, dict) else type(reward_model).__name__
        raise InvalidInputError(f"{name}: expected reward_model.ground_truth, but reward_model has: {found}")
    if not isinstance(prompt, list) or not all({"role", "content"} <= set(message) for message in prompt):
        raise InvalidInputError(f"{name}: expected prompt to be a chat list of role and content, got {prompt!r:.200}")
    return _Problem(
        messages=tuple((message["role"], message["content"]) for message in prompt),
        answer=_answer(name, reward_model["ground_truth"]),
        answer_type="expression",
        category=_category(name, row),
    )


def _read_problem(config: MathConfig, name: str, row: dict[str, Any]) -> _Problem:
    problem = next(row[column] for column in PROBLEM_COLUMNS if column in row)
    column = next(column for column in ANSWER_COLUMNS if column in row)
    answer = _answer(name, row[column])
    if column == "solution" and "\\boxed" not in answer:
        raise InvalidInputError(
            f"{name}: the columns are {', '.join(row)}; without a column answer or final_answer the solution must "
            f"contain \\boxed, but one is {answer!r:.200}"
        )
    context = f"{row['context'].strip()}\n\n" if row.get("context") else ""  # OlympiadBench: shared premises
    return _Problem(
        messages=(("user", f"{context}{problem.strip()}\n\n{config.instruction}"),),
        answer=answer,
        answer_type="expression",
        category=_category(name, row),
    )


def _read_gpqa(config: MathConfig, name: str, row: dict[str, Any]) -> _Problem:
    question = row["Question"].strip()
    options = sorted(row[column].strip() for column in GPQA_COLUMNS[1:])
    # The order depends on the question alone: the same in every run, but not the same letter for every question.
    random.Random(hashlib.sha256(question.encode()).digest()).shuffle(options)
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
    return _Problem(
        messages=(("user", f"{question}\n\n{listed}\n\n{config.choice_instruction}"),),
        answer=LETTERS[options.index(row["Correct Answer"].strip())],
        answer_type="choice",
        category=_category(name, row),
    )


def _answer(name: str, value: Any) -> str:
    r"""The right answer as LaTeX: lists joined (several answers), 27.0 as 27 (AMC stores floats), no outer $.

    Minerva writes 4.5e33, which LaTeX reads as 4.5 e 33: it becomes 4.5 \times 10^{33}.
    """
    if isinstance(value, list):
        return ", ".join(_answer(name, item) for item in value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip() if value is not None else ""
    if text.startswith("$") and text.endswith("$") and text.count("$") == 2:
        text = text[1:-1].strip()
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    if not text:
        raise InvalidInputError(f"{name}: a problem has no answer ({value!r})")
    return text


def _category(name: str, row: dict[str, Any]) -> str:
    return str(next((row[column] for column in CATEGORY_COLUMNS if row.get(column)), name))
