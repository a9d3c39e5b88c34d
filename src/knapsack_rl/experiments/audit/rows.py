"""Rows that were read at once: which of them are good, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.experiments.audit.columns import Columns
from knapsack_rl.experiments.audit.names import is_reward, listed
from knapsack_rl.experiments.audit.prompts import sample_of
from knapsack_rl.experiments.audit.readers import Part, Problems
from knapsack_rl.experiments.audit.times import step_numbers
from knapsack_rl.experiments.audit.values import (
    Encoded,
    Floats,
    Ints,
    Keys,
    described,
    encoded,
    inexact,
    is_missing,
    joined,
    missing,
    no_whole_numbers,
    numbers,
    value_at,
)


@dataclass(frozen=True)
class Batch:
    """Some rows of a log, all of them good.

    Attributes:
        step: None where neither a column nor the file's name tells it.
        prompt: what tells prompts apart; an id, or the prompt's text.
        text: shows a prompt to people.
        reward: of a row that is one rollout, and decides on its success; NaN where a row is a whole group.
        trained: sum of all rewards that training saw, which decides on gradients where no advantage does.
        advantage: decides on gradients; NaN where it is not known.
        rollouts: of a row that is a whole group; None otherwise.
        successes: the same.
        tokens: length of the completion; NaN where it is not known.
        texts: key of all that a prompt says and shows; None where `prompt` is all.
        ids: key of the prompt's id; None where there is none beside its text.
        groups: tells groups of a prompt in a step apart.
        relogged: whether TRL wrote the log, so that a step may hold the rollouts of the step before.
        argument: position of the argument that led to the file.
        file: position of the file.
        path: the file.
        writer: which of several writers at the same time the file is of.
        rows: numbers of the rows in the file.
        holders: key of the row, or of the part of it, that is or held a whole group, 0 where it held one rollout; None
            where rows are rollouts.
        timed: whether steps keep rows of different files apart.
    """

    step: Ints | None
    prompt: Encoded
    text: Encoded
    reward: Floats
    trained: Floats
    tokens: Floats | None = None
    category: Encoded | None = None
    completion: Encoded | None = None
    answer: Encoded | None = None
    reference: Encoded | None = None
    rollouts: Ints | None = None
    successes: Ints | None = None
    advantage: Floats | None = None
    texts: Keys | None = None
    ids: Keys | None = None
    groups: Keys | None = None
    relogged: bool = False
    argument: int = 0
    file: int = 0
    path: Path = Path()
    writer: str = ""
    rows: Ints | None = None
    holders: Keys | None = None
    timed: bool = True


class Rows:
    """Rows of a file, and which of them are good so far."""

    def __init__(self, columns: Columns, part: Part, path: Path, problems: Problems) -> None:
        self._columns = columns
        self._part = part
        self._path = path
        self._problems = problems
        self._good = np.ones(len(part.rows), dtype=bool)

    def values(self, name: str) -> list[str]:
        """The different values of a column of the identity."""
        return self._encodings[name].values

    def leave_out(self, values: Mapping[str, Sequence[str]]) -> None:
        """Rows that are of an evaluation, or of a second grading: those with some values in some columns."""
        for name in (self._columns.split, self._columns.grading):
            if name is not None and name in values:
                found = encoded(self._part.columns[name])
                out = np.append(np.isin(found.values, values[name]), False)[found.codes]
                if out.any():
                    kind = f"rows of other values of {name}"
                    self._problems.note(kind, listed(list(values[name]), 5), int(out.sum()))
                self._good &= ~out

    def batch(self, step_of_file: int | None, with_steps: bool) -> Batch:
        """The good rows.

        Args:
            step_of_file: of all rows, where no column has steps.
            with_steps: whether a column of steps counts.
        """
        columns, raw = self._columns, self._part.columns
        self._check_key()
        step = self._steps(step_of_file, with_steps)
        scored, won = self._counts()
        reward, trained = self._rewards()
        good = self._good
        steps = _whole(step, good)
        keys, ids, groups = self._identity(steps)

        def texts(name: str | None) -> Encoded | None:
            return None if name is None else encoded(raw[name]).rows(good)

        return Batch(
            step=steps,
            prompt=self._key.rows(good),
            text=self._encodings[columns.text].rows(good),
            reward=reward[good],
            trained=trained[good],
            advantage=None if columns.advantage is None else np.abs(numbers(raw[columns.advantage]))[good],
            tokens=None if columns.length is None else numbers(raw[columns.length])[good],
            category=texts(columns.category),
            completion=texts(columns.completion),
            answer=texts(columns.answer),
            reference=texts(columns.reference),
            relogged=columns.relogged,
            rows=self._part.rows[good],
            holders=self._holders(),
            rollouts=_whole(scored, good),
            successes=_whole(won, good),
            texts=keys,
            ids=ids,
            groups=groups,
        )

    @cached_property
    def _encodings(self) -> dict[str, Encoded]:
        """The columns that tell prompts apart or show them; of ids of rollouts the part that is the group's."""
        identity = self._columns.identity
        found = {name: encoded(self._part.columns[name]) for name in (*identity.columns(), self._columns.text)}
        for name in identity.numbered:
            found[name] = Encoded([sample_of(one) for one in found[name].values], found[name].codes)
        return found

    @property
    def _key_column(self) -> str:
        """Every row must have a value of it."""
        return (*self._columns.identity.ids, *self._columns.identity.texts)[0]

    @property
    def _key(self) -> Encoded:
        return self._encodings[self._key_column]

    def _refuse(self, kind: str, bad: NDArray[np.bool_], why: str = "") -> None:
        found = np.flatnonzero(bad & self._good)
        if found.size:
            where = f"{self._path}, row {self._part.rows[found[0]]:,}"
            self._problems.note(kind, f"{where}{f': {why}' if why else ''}", found.size)
            self._good[found] = False

    def _check_key(self) -> None:
        key = self._key
        blank = key.values.index("") if "" in key.values else -1
        self._refuse("rows without a prompt", (key.codes < 0) | (key.codes == blank))
        large = inexact(self._part.columns[self._key_column])
        self._refuse("rows whose id is a number too large to be exact", large)

    def _steps(self, step_of_file: int | None, with_steps: bool) -> NDArray[Any] | None:
        name = self._columns.step
        if name is None or not with_steps:
            return None if step_of_file is None else np.full(len(self._good), step_of_file)
        step, epochs = step_numbers(self._part.columns[name]), self._columns.epochs
        self._refuse_without_number("step", (name,), ~np.isfinite(step))
        if epochs is not None:
            epoch = step_numbers(self._part.columns[epochs.column])
            self._refuse_without_number("step", (epochs.column,), ~np.isfinite(epoch))
            step = epochs.count_on(step, epoch)
        self._refuse("rows whose step is no whole number", no_whole_numbers(step))
        return step

    def _counts(self) -> tuple[Floats | None, Floats | None]:
        """Rollouts and successes of rows that are groups."""
        if self._columns.counts is None:
            return None, None
        scored, won, impossible = self._columns.counts.of(self._part.columns)
        self._refuse("rows with impossible counts", impossible)
        self._refuse("groups of which no rollout was scored", scored == 0)
        return scored, won

    def _rewards(self) -> tuple[Floats, Floats]:
        """What decides on successes, and what training saw; of rows that are groups neither."""
        columns = self._columns
        named = tuple(dict.fromkeys((*columns.success, *columns.trained)))
        rewards = {name: numbers(self._part.columns[name]) for name in named}
        trained = _total([rewards[name] for name in columns.trained], len(self._good))
        reward = _total([rewards[name] for name in columns.success], len(self._good))
        reward = np.where(np.isnan(reward), trained, reward)  # a row of a task that another function rewards
        trained = np.where(np.isnan(trained), reward, trained)
        if columns.counts is None:
            self._refuse_without_number("reward", named, np.isnan(reward))
            self._refuse("rows with an infinite reward", np.isinf(reward) | np.isinf(trained))
        return reward, trained

    def _refuse_without_number(self, role: str, names: tuple[str, ...], bad: NDArray[np.bool_]) -> None:
        """Rows without a reward or a step, apart from those that have something else, of which the first is shown."""
        bad = bad & self._good
        if not bad.any():
            return
        raw = self._part.columns
        nothing = bad & np.logical_and.reduce([missing(raw[name]) for name in names])
        others = [name for name in self._part.names if role == "reward" and is_reward(name) and name not in names]
        self._refuse(f"rows without a {role}", nothing, f"the file also has {listed(others, 5)}" if others else "")
        something = bad & ~nothing
        if something.any():
            first = int(np.flatnonzero(something)[0])
            held = {name: one for name in names if not is_missing(one := value_at(raw[name], first))}
            said = ", ".join(f"{name} holds {described(one)}" for name, one in held.items())
            said += "; --step COLUMN names a column of whole numbers" if role == "step" else ""
            self._refuse(f"rows whose {role} is no number", something, said)

    def _holders(self) -> Keys | None:
        """The keys of rows that are, or hold, whole groups."""
        held = self._part.rows.astype(np.uint64) if self._columns.counts is not None else self._part.holders
        return None if held is None else held[self._good]

    def _identity(self, steps: Ints | None) -> tuple[Keys | None, Keys | None, Keys | None]:
        """The keys of texts, ids and groups, where the prompt's column alone does not say."""
        identity = self._columns.identity

        def keys(*names: str) -> Keys | None:
            return joined([self._encodings[name].row_keys()[self._good] for name in names]) if names else None

        groups = keys(*identity.groups, *identity.runs)
        if identity.texts:
            several = identity.ids or len(identity.texts) + len(identity.beside) > 1
            texts = keys(*identity.texts, *identity.beside) if several else None
            return texts, keys(*identity.ids), groups
        ids = keys(*identity.ids, *identity.beside)
        if ids is not None and identity.fresh and steps is not None:
            ids = joined([ids, steps.view(np.uint64)])
        return ids, None, groups


def _whole(values: NDArray[Any] | None, good: NDArray[np.bool_]) -> Ints | None:
    return None if values is None else values[good].astype(np.int64)


def _total(rewards: list[Floats], rows: int) -> Floats:
    """Sum of the reward columns; what is missing in one of them counts as nothing, as in TRL."""
    if len(rewards) <= 1:
        return rewards[0] if rewards else np.full(rows, np.nan)
    stacked = np.stack(rewards)
    return np.where(np.isnan(stacked).all(axis=0), np.nan, np.nansum(stacked, axis=0))
