"""Which column is the time of the update, where several may be, or where the first that may be holds no steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knapsack_rl.experiments.audit.names import CANDIDATES, find, listed, plain
from knapsack_rl.experiments.audit.readers import Look
from knapsack_rl.experiments.audit.shapes import value
from knapsack_rl.experiments.audit.values import (
    Floats,
    Ints,
    Keys,
    encoded,
    is_missing,
    missing,
    no_whole_numbers,
    number,
    numbers,
)

_NUMBERED = re.compile(r"[^\W\d_][^\W\d]*[\-=:/]?(\d{1,15})")  # step_12, global_step=12
_FRACTIONS = 0.5  # for each whole number of a column, beyond which they are no mistake
_RARE = 0.1  # share of the groups that may be an exception
_EPOCHS = ("epoch",)
_GLOBAL = ("global_step", "global_steps", "training_step", "train_step")
_NOTHING = -(2**62)  # where a row has no whole number
_PENDING = 1 << 18  # rows that pile up before they are sorted and counted


@dataclass(frozen=True)
class Epochs:
    """A column in each of whose values the step begins anew.

    Attributes:
        column: its name.
        first: its least value.
        steps: how many steps each of its values has at most.
    """

    column: str
    first: int
    steps: int

    def count_on(self, step: Floats, epoch: Floats) -> Floats:
        """The steps of all epochs as one sequence."""
        return (epoch - self.first) * self.steps + step


@dataclass(frozen=True)
class Time:
    """What the step is read from: a column, alone or with the one that it begins anew in; None where none will do."""

    step: str | None
    epochs: Epochs | None = None
    remarks: tuple[str, ...] = ()


def candidates(columns: Sequence[str]) -> list[str]:
    """The columns that are called like a step, the likeliest first."""
    found = (find((name,), columns) for name in CANDIDATES["step"])
    return [name for name in found if name is not None]


def is_certain(look: Look, named: Sequence[str]) -> bool:
    """Whether the first rows leave no doubt that the first of the columns called like a step is the step."""
    if len(named) != 1 or plain(named[0]) in _EPOCHS:
        return not named
    held = [number(one) for row in look.rows if not is_missing(one := value(row, named[0]))]
    return not look.rows or (bool(held) and all(one.is_integer() for one in held))


def step_numbers(column: Any) -> Floats:
    """float64, also of texts such as "step_12"; NaN where there is no number."""
    found = numbers(column)
    if not np.isnan(found).any():
        return found
    texts = encoded(column)
    matches = [_NUMBERED.fullmatch(text.strip()) for text in texts.values]
    numbered = np.array([np.nan if match is None else float(match[1]) for match in matches] + [np.nan])
    return np.where(np.isnan(found), numbered[texts.codes], found)


class Seen:
    """What the columns hold that may be the step, in memory that depends on groups and not on rows."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.rows = 0
        self.whole, self.fractions, self.texts, self.descents = (np.zeros(len(names), dtype=np.int64) for _ in range(4))
        self._last = np.full(len(names), np.nan)
        self._chunks: list[Ints] = []
        self._pending = 0

    def add(self, columns: Sequence[Any], keys: Keys) -> None:
        """Rows in order: the columns' values, and what tells prompts apart."""
        self.rows += len(keys)
        table = [keys.view(np.int64)]
        for index, column in enumerate(columns):
            found = step_numbers(column)
            known = np.isfinite(found)
            whole = known & ~no_whole_numbers(found)
            self.whole[index] += np.count_nonzero(whole)
            self.fractions[index] += np.count_nonzero(known & (np.floor(found) != found))
            self.texts[index] += np.count_nonzero(~known & ~missing(column))
            if known.any():
                self.descents[index] += np.count_nonzero(np.diff(found[known], prepend=self._last[index]) < 0)
                self._last[index] = found[known][-1]
            table.append(np.where(whole, found, _NOTHING).astype(np.int64))
        self._chunks.append(np.unique(np.column_stack(table), axis=0))
        self._pending += len(self._chunks[-1])
        if self._pending > _PENDING:
            self._merge()

    def _merge(self) -> None:
        self._chunks = [np.unique(np.concatenate(self._chunks), axis=0)]
        self._pending = 0

    def table(self, *names: str) -> Ints:
        """The different rows of some columns and the prompt's key, which comes first."""
        self._merge()
        found = np.unique(self._chunks[0][:, [0, *(self.names.index(name) + 1 for name in names)]], axis=0)
        return found[(found[:, 1:] != _NOTHING).all(axis=1)]

    def descents_of(self, name: str) -> int:
        """How often a column's value is less than in the row before."""
        return int(self.descents[self.names.index(name)])


def choose(seen: Seen) -> Time:
    """The time of the update, and a sentence where it is not simply the first of the columns.

    Of columns that vary and hold whole numbers the first is taken. Another one is, if the first begins anew in each of
    its values: alone if one prompt goes through the values of the first, as through turns, and otherwise with it.
    """
    usable, remarks = _usable(seen)
    if not usable:
        of_texts = [name for name, texts in zip(seen.names, seen.texts, strict=True) if texts]
        return Time(of_texts[0] if of_texts else None, remarks=remarks)  # a step of texts is refused with advice
    varying = [name for name in usable if len(np.unique(seen.table(name)[:, 1])) > 1] or usable[:1]
    time = Time(varying[0])
    for other in varying[1:]:
        if time.epochs is None and time.step is not None:
            found = _of_two(seen, time.step, other)
            time = Time(found.step, found.epochs, (*time.remarks, *found.remarks))
    return Time(time.step, time.epochs, (*remarks, *time.remarks))


def _usable(seen: Seen) -> tuple[list[str], tuple[str, ...]]:
    """The columns that hold steps, if any does in most of the rows; and a sentence on one that holds fractions."""
    counts = list(zip(seen.names, seen.whole.tolist(), seen.fractions.tolist(), strict=True))
    fractions = [name for name, whole, parts in counts if parts > _FRACTIONS * whole]
    some = [name for name, whole, _ in counts if whole and name not in fractions]
    most = [name for name, whole, _ in counts if 2 * whole > seen.rows and name in some]
    said = f"{listed(fractions)} holds fractions, which are no steps (--step COLUMN names another column)."
    return most or some, (said,) if fractions else ()


def _of_two(seen: Seen, time: str, other: str) -> Time:
    """Which of two columns is the time, or whether both together are."""
    pairs = np.unique(seen.table(time, other)[:, 1:], axis=0)
    if not len(pairs) or len(np.unique(pairs[:, 0])) == len(pairs):
        return Time(time)  # as a step that says which epoch it is in
    if len(np.unique(pairs[:, 1])) == len(pairs):
        if (np.diff(pairs[np.argsort(pairs[:, 1]), 0]) >= 0).all():
            return Time(time)  # as a step of several minibatches
        if _is_outer(seen, other, time):
            said = f"{time} begins anew while {other} goes on: {other} was taken for the step"
            return Time(other, remarks=(f"{said} (--step {time} says otherwise).",))
        numbers_rows = 2 * len(pairs) > seen.rows
        return Time(time, remarks=() if numbers_rows else (_doubt(time, other),))
    if not _begins_anew(pairs) or _is_outer(seen, time, other):
        return Time(time)
    if not _is_outer(seen, other, time) or _a_prompt_each(seen, other):
        return Time(time, remarks=(_doubt(time, other),))
    if _are_turns(seen, other, time):
        said = f"One prompt takes several values of {time} in one of {other}, as turns of an episode do"
        said += f": {other} was taken for the step, and each row for a rollout"
        return Time(other, remarks=(f"{said} (--step {time} says otherwise).",))
    low, high = int(pairs[:, 0].min()), int(pairs[:, 0].max())
    said = f"{time} begins anew in each {other}: both together are the step, counted on from one {other} to the next"
    epochs = Epochs(other, int(pairs[:, 1].min()), high - low + 1)
    return Time(time, epochs, (f"{said} (--step COLUMN takes one of them).",))


def _begins_anew(pairs: Ints) -> bool:
    """Whether the first column is at its least value in most of the values of the second."""
    order = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    least = order[np.unique(order[:, 1], return_index=True)[1], 0]
    return len(least) > 1 and 2 * int(np.count_nonzero(least == pairs[:, 0].min())) > len(least)


def _is_outer(seen: Seen, one: str, other: str) -> bool:
    """Whether one column goes on while the other begins anew, by names that say so, or else by the order of rows."""
    for names in (_EPOCHS, _GLOBAL):
        if (plain(one) in names) != (plain(other) in names):
            return plain(one) in names
    return 2 * seen.descents_of(one) < seen.descents_of(other)


def _a_prompt_each(seen: Seen, outer: str) -> bool:
    """Whether each value of a column has a single prompt, so that it may number rollouts."""
    table = seen.table(outer)
    return len(table) == len(np.unique(table[:, 1])) and plain(outer) not in _EPOCHS


def _are_turns(seen: Seen, outer: str, inner: str) -> bool:
    """Whether groups of one prompt in `outer` go through the values of `inner`.

    Prompts that come again within an epoch by chance do so anywhere in it, and not from its first step on.
    """
    table = seen.table(outer, inner)
    _, first, counts = np.unique(table[:, :2], axis=0, return_index=True, return_counts=True)
    several = counts > 1
    if np.count_nonzero(several) <= _RARE * len(several):
        return False
    from_the_start = table[first[several], 2] == table[:, 2].min()
    return plain(outer) not in _EPOCHS or bool(np.mean(from_the_start) > 1.0 - _RARE)


def _doubt(time: str, other: str) -> str:
    return f"{time} and {other} may both be the step: {time} was taken (--step {other} says otherwise)."
