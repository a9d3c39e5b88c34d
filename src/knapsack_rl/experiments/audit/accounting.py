"""What a log spent, as counts for each group (a prompt in a step), in memory that depends on groups and not on rows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from knapsack_rl.experiments.audit.answers import Agreement, final_answer, same_answer
from knapsack_rl.experiments.audit.reading import Batch, Encoded

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

_PENDING = 1 << 18  # rows that a table lets pile up before it sorts and adds them up
_MOST_ANSWERS = 200_000  # whose text is kept to be shown
_SHOWN = 160  # characters of a prompt that are kept
_PREAMBLE = 40  # characters from which a common beginning is left out
_COUNT = (np.add, np.uint32)


class Table:
    """Values by two integer keys; rows that agree in both are combined.

    Args:
        first: type of the first key; the second is uint64.
        values: for each value the ufunc that combines it and its type.
    """

    def __init__(self, first: Any = np.int64, **values: tuple[np.ufunc, Any]) -> None:
        self._first = first
        self._values = values
        self._chunks: list[list[NDArray[Any]]] = []
        self._pending = 0
        self._limit = _PENDING

    @property
    def rows(self) -> int:
        """Rows in memory; some may still belong together."""
        return sum(len(chunk[0]) for chunk in self._chunks)

    def add(self, first: NDArray[Any], second: NDArray[Any], **values: NDArray[Any]) -> None:
        """Rows to combine with all others. O(rows), amortised O(rows log groups)."""
        if not len(first):
            return
        typed = [values[name].astype(dtype, copy=False) for name, (_, dtype) in self._values.items()]
        self._chunks.append(self._combine([first, second, *typed]))
        self._pending += len(self._chunks[-1][0])
        if self._pending > self._limit:
            self.columns()

    def columns(self) -> list[NDArray[Any]]:
        """First key, second key and the values, sorted by the keys, each pair of keys once."""
        if len(self._chunks) != 1 or self._pending:
            whole = (
                [np.concatenate(parts) for parts in zip(*self._chunks, strict=True)] if self._chunks else self._none()
            )
            self._chunks = []
            order = np.lexsort((whole[1], whole[0]))
            self._chunks = [self._combine([column[order] for column in whole])]
            self._pending = 0
            self._limit = max(_PENDING, len(self._chunks[0][0]) // 2)
        return self._chunks[0]

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Drop all other rows of `columns()`."""
        self._chunks = [[column[rows] for column in self.columns()]]

    def _combine(self, columns: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Neighbours that agree in both keys become one row."""
        first, second = columns[:2]
        if not len(first):
            return columns
        starts = np.flatnonzero(np.concatenate(([True], (first[1:] != first[:-1]) | (second[1:] != second[:-1]))))
        combined = [
            ufunc.reduceat(column, starts, dtype=dtype)
            for column, (ufunc, dtype) in zip(columns[2:], self._values.values(), strict=True)
        ]
        return [first[starts], second[starts], *combined]

    def _none(self) -> list[NDArray[Any]]:
        dtypes = [self._first, np.uint64, *(dtype for _, dtype in self._values.values())]
        return [np.empty(0, dtype=dtype) for dtype in dtypes]


class Labels:
    """The first text that came with each key, cut short; of the first `most` keys only, where that is given."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._keys: Keys = np.empty(0, dtype=np.uint64)
        self._texts: pa.Array = pa.array([], pa.large_string())
        self._new: list[tuple[Keys, list[str]]] = []
        self._pending = 0

    def add(self, keys: Keys, texts: Encoded) -> None:
        """Row i of a batch has the key `keys[i]` and the text `texts`."""
        if self._most is not None and len(self._keys) + self._pending >= self._most:
            return
        distinct, rows = np.unique(keys, return_index=True)
        place = np.minimum(np.searchsorted(self._keys, distinct), max(len(self._keys) - 1, 0))
        new = self._keys[place] != distinct if len(self._keys) else np.ones(len(distinct), dtype=bool)
        codes = texts.codes[rows[new]]
        known = codes >= 0
        shown = [texts.values[code][:_SHOWN] for code in codes[known].tolist()]
        if shown:
            self._new.append((distinct[new][known], shown))
            self._pending += len(shown)
        if self._pending > max(_PENDING, len(self._keys) // 2):
            self._merge()

    def of(self, keys: Keys) -> list[str]:
        """The text of each key, empty where none came."""
        self._merge()
        if not len(self._keys):
            return [""] * len(keys)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        texts = self._texts.take(pa.array(place)).to_pylist()
        return [text if found else "" for text, found in zip(texts, self._keys[place] == keys, strict=True)]

    def _merge(self) -> None:
        if not self._new:
            return
        keys = np.concatenate([self._keys, *(keys for keys, _ in self._new)])
        texts = pa.concat_arrays([self._texts, *(pa.array(some, pa.large_string()) for _, some in self._new)])
        self._new, self._pending = [], 0
        self._keys, rows = np.unique(keys, return_index=True)
        self._texts = texts.take(pa.array(rows))


class Visits:
    """Steps for logs that have none: the how-manieth uninterrupted run of rows of its prompt a row belongs to."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._last: int | None = None

    def steps(self, keys: Keys) -> Ints:
        """Visit of each row, counted from 1; calls go on where the last one ended."""
        if not len(keys):
            return np.empty(0, dtype=np.int64)
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        visits = []
        for index, key in enumerate(keys[starts].tolist()):
            if index or key != self._last:
                self._seen[key] = self._seen.get(key, 0) + 1
            visits.append(self._seen[key])
        self._last = int(keys[-1])
        return np.repeat(np.array(visits), np.diff(np.append(starts, len(keys))))


class Places:
    """Where in its step a row stands."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._rows = 0

    def of(self, step: Ints) -> Keys:
        """Rows of the same step right before each row; calls go on where the last one ended."""
        starts = np.flatnonzero(np.concatenate(([True], step[1:] != step[:-1])))
        lengths = np.diff(np.append(starts, len(step)))
        starts[0] = -self._rows if step[0] == self._step else 0
        place = np.arange(len(step)) - np.repeat(starts, lengths)
        self._step, self._rows = int(step[-1]), int(place[-1]) + 1
        return place.astype(np.uint64)


@dataclass
class Rewards:
    """What values rewards took."""

    zeros: int = 0
    ones: int = 0
    minus_ones: int = 0
    others: int = 0
    low: float = np.inf
    high: float = -np.inf

    def add(self, reward: Floats) -> None:
        """Count some more."""
        if not len(reward):
            return
        counts = [int(np.count_nonzero(reward == value)) for value in (0.0, 1.0, -1.0)]
        self.zeros, self.ones, self.minus_ones = (
            self.zeros + counts[0],
            self.ones + counts[1],
            self.minus_ones + counts[2],
        )
        self.others += len(reward) - sum(counts)
        self.low, self.high = min(self.low, float(reward.min())), max(self.high, float(reward.max()))


@dataclass(frozen=True)
class Log:
    """A log as groups, sorted by step; one entry a group unless said otherwise.

    Attributes:
        step: when.
        prompt: who, as a position in what is kept by prompt.
        rollouts: how many were scored.
        successes: how many of them were right.
        without_gradient: whether all rewards of the group were equal.
        tokens: sum of lengths.
        measured: rollouts whose length was logged.
        matched: rollouts whose answer reads like the reference and that failed.
        keys: by prompt, its key.
        seen: by prompt, its rollouts, those of repeated steps included.
        texts: by prompt, its first characters.
        categories: by prompt; empty where none was logged.
        several_arguments: whether rows of the group came from files that different arguments named.
        repeated_steps: steps left out, since they hold the same rollouts as the step before them.
    """

    step: Ints
    prompt: Ints
    rollouts: Ints
    successes: Ints
    without_gradient: NDArray[np.bool_]
    tokens: Floats
    measured: Ints
    matched: Ints
    several_arguments: NDArray[np.bool_]
    keys: Keys
    seen: Ints
    texts: list[str]
    categories: list[str]
    rewards: Rewards
    repeated_steps: list[int]
    answers: Agreement = field(repr=False)
    completions: Agreement = field(repr=False)

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """Whether a group has both a success and a failure."""
        return (self.successes > 0) & (self.successes < self.rollouts)


class Accounts:
    """Adds up batches; `success_above` is the reward that a success exceeds."""

    def __init__(self, success_above: float) -> None:
        self._above = success_above
        self._groups = Table(
            rollouts=_COUNT, successes=_COUNT, low=(np.minimum, np.float64), high=(np.maximum, np.float64),
            tokens=(np.add, np.float64), measured=_COUNT, matched=_COUNT, arguments=(np.bitwise_or, np.uint8),
        )  # fmt: skip
        self._steps = Table(rollouts=_COUNT, checksum=(np.add, np.uint64), varied=(np.maximum, np.uint8))
        self._places = Places()
        self._texts, self._categories = Labels(), Labels()
        self._rewards = Rewards()
        self._visits = Visits()
        self._preamble: str | None = None
        self.answers = Agreement(Table(first=np.uint64, rollouts=_COUNT, successes=_COUNT), Labels(_MOST_ANSWERS))
        self.completions = Agreement(Table(first=np.uint64, rollouts=_COUNT, successes=_COUNT), Labels(_MOST_ANSWERS))

    def add(self, batch: Batch) -> None:
        """Take in a batch."""
        rows = len(batch.prompt.codes)
        if not rows:
            return
        key = batch.prompt.keys()[batch.prompt.codes]
        step = batch.step if batch.step is not None else self._visits.steps(key)
        self._texts.add(key, self._without_preamble(batch.text))
        if batch.category is not None:
            self._categories.add(key, batch.category)
        if batch.rollouts is not None and batch.successes is not None:
            rollouts, successes = batch.rollouts, batch.successes
            low, high = (successes == rollouts).astype(np.float64), (successes > 0).astype(np.float64)
            matched = np.zeros(rows, dtype=np.int64)
        else:
            self._rewards.add(batch.reward)
            rollouts, successes = np.ones(rows, dtype=np.int64), (batch.reward > self._above).astype(np.int64)
            low = high = batch.trained
            matched = self._compare(batch, step, key, successes)
        measured = np.zeros(rows, dtype=bool) if batch.tokens is None else np.isfinite(batch.tokens)
        tokens = np.zeros(rows) if batch.tokens is None else np.where(measured, batch.tokens, 0.0)
        self._groups.add(
            step, key, rollouts=rollouts, successes=successes, low=low, high=high, tokens=tokens, measured=measured,
            matched=matched, arguments=np.full(rows, 1 << batch.argument % 8),  # a bit each, shared from the ninth on
        )  # fmt: skip

    def _without_preamble(self, texts: Encoded) -> Encoded:
        """Texts to show: without the instructions that all prompts of the first batch begin with."""
        if self._preamble is None and len(texts.values) > 1:
            first, last = min(texts.values), max(texts.values)  # what these share, all in between share too
            differs = (index for index, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1])
            sentences = re.match(r".*(\n|[.:!?]\s)", first[: next(differs, len(first))], re.DOTALL)
            self._preamble = sentences[0] if sentences and len(sentences[0]) >= _PREAMBLE else ""
        return Encoded([text.removeprefix(self._preamble or "") for text in texts.values], texts.codes)

    def _compare(self, batch: Batch, step: Ints, key: Keys, successes: Ints) -> Ints:
        """Keep what completions and answers tell of the grader; returns which failures read like the reference."""
        answer = batch.answer
        if batch.completion is not None:
            if batch.relogged and batch.step is not None:
                self._fingerprint(batch.completion, step, key, successes)
            self.completions.add(key, batch.completion, successes)
            if answer is None:
                answer = _answers(batch.completion)
        if answer is None:
            return np.zeros_like(successes)
        self.answers.add(key, answer, successes)
        if batch.reference is None:
            return np.zeros_like(successes)
        return _matched(answer, batch.reference) & (successes == 0)

    def _fingerprint(self, completion: Encoded, step: Ints, key: Keys, successes: Ints) -> None:
        """Keep of each step what only a step with the same rollouts in the same order has."""
        hashes = np.append(completion.keys(), np.uint64(0))[completion.codes]
        with np.errstate(over="ignore"):
            content = (hashes * np.uint64(3) + key) * np.uint64(2) + successes.astype(np.uint64)
            content = _mixed(content) + self._places.of(step)
        varied = np.append(False, (hashes[1:] != hashes[:-1]) & (key[1:] == key[:-1]))
        self._steps.add(step, np.zeros_like(key), rollouts=np.ones_like(key), checksum=_mixed(content), varied=varied)

    def log(self) -> Log:
        """Everything so far, as groups."""
        step, key, rollouts, successes, low, high, tokens, measured, matched, arguments = self._groups.columns()
        repeated = self._repeated()
        kept = ~np.isin(step, repeated)
        keys, of_all = np.unique(key, return_inverse=True)
        prompt = of_all[kept]  # whoever came only in repeated steps came in the step before them too
        return Log(
            step=step[kept],
            prompt=prompt.astype(np.int64),
            rollouts=rollouts[kept].astype(np.int64),
            successes=successes[kept].astype(np.int64),
            without_gradient=low[kept] == high[kept],
            tokens=tokens[kept],
            measured=measured[kept].astype(np.int64),
            matched=matched[kept].astype(np.int64),
            several_arguments=(arguments & (arguments - np.uint8(1)))[kept] != 0,  # more than one bit
            keys=keys,
            seen=np.bincount(of_all, rollouts, minlength=len(keys)).astype(np.int64),
            texts=self._texts.of(keys),
            categories=self._categories.of(keys),
            rewards=self._rewards,
            repeated_steps=repeated,
            answers=self.answers,
            completions=self.completions,
        )

    def _repeated(self) -> list[int]:
        """Steps with the very rollouts of the step before, as TRL logs a generation batch at every update from it.

        Where each prompt has but one completion in a step, as models give that are sure, equal steps may be chance.
        """
        step, _, rollouts, checksum, varied = self._steps.columns()
        same = (rollouts[1:] == rollouts[:-1]) & (checksum[1:] == checksum[:-1]) & (varied[1:] > 0)
        return [int(number) for number in step[1:][same]]


def _answers(completions: Encoded) -> Encoded:
    """What each completion came down to."""
    found = [final_answer(text) for text in completions.values]
    known = np.append(np.array([text is not None for text in found], dtype=bool), False)
    return Encoded([text or "" for text in found], np.where(known[completions.codes], completions.codes, -1))


def _matched(answers: Encoded, references: Encoded) -> Ints:
    """1 where answer and reference read alike, otherwise 0."""
    matched = np.zeros(len(answers.codes), dtype=np.int64)
    both = np.flatnonzero((answers.codes >= 0) & (references.codes >= 0))
    width = len(references.values)
    distinct, pair = np.unique(answers.codes[both] * width + references.codes[both], return_inverse=True)
    equal = [same_answer(answers.values[code // width], references.values[code % width]) for code in distinct.tolist()]
    matched[both] = np.array(equal, dtype=np.int64)[pair]
    return matched


def _mixed(values: Keys) -> Keys:
    """Bits spread out, so that sums of different rows differ (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
