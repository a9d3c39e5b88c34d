"""A table of keys: a row of numbers for each prompt (or category) that was ever seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from knapsack_rl.errors import StateError

Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]


class Table:
    """Named columns over 64-bit keys, all zero in a new row. A read costs O(keys asked for), an append O(1) amortised.

    Memory: the columns, and Python's dict of keys.
    """

    def __init__(self, **columns: DTypeLike) -> None:
        self._row_of: dict[int, int] = {}
        self._columns = {name: np.zeros(0, dtype=dtype) for name, dtype in columns.items()}

    def __len__(self) -> int:
        return len(self._row_of)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A column over all known keys, in order of their first visit; a view to read and to assign to."""
        return self._columns[name][: len(self)]

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._columns)

    def find(self, keys: Keys) -> Ints:
        """Row of each key, -1 for one that is not known."""
        row_of = self._row_of.get
        return np.array([row_of(key, -1) for key in keys.tolist()], dtype=np.int64)

    def rows(self, keys: Keys) -> Ints:
        """Row of each key, new ones appended."""
        found = [self._row_of.setdefault(key, len(self._row_of)) for key in keys.tolist()]
        for name, column in self._columns.items():
            missing = len(self) - len(column)
            if missing > 0:  # grow by half, so that a key costs O(1) however many follow
                grown = np.zeros(max(missing, len(column) // 2), dtype=column.dtype)
                self._columns[name] = np.concatenate((column, grown))
        return np.array(found, dtype=np.int64)

    def read(self, name: str, rows: Ints) -> NDArray[np.float64]:
        """A column in these rows as float64, 0 where the row is -1."""
        if not len(self):
            return np.zeros(len(rows))
        return np.where(rows >= 0, self._columns[name][rows], 0).astype(np.float64)

    def state_dict(self, prefix: str = "") -> dict[str, Any]:
        """Keys and columns as arrays."""
        keys = np.fromiter(self._row_of, dtype=np.uint64, count=len(self))
        return {f"{prefix}keys": keys, **{f"{prefix}{name}": self[name].copy() for name in self._columns}}

    def restored(self, state: Mapping[str, Any], prefix: str = "") -> Table:
        """A table like this one with the content that `state_dict` gave.

        Raises:
            StateError: a column is missing, of another length, or holds what its type cannot hold, or a key is there
                twice.
        """
        expected = ", ".join(f"{prefix}{name}" for name in ("keys", *self._columns))
        table = Table(**{name: column.dtype for name, column in self._columns.items()})
        try:
            keys = np.asarray(state[f"{prefix}keys"])
            if keys.size and (keys.dtype.kind not in "iu" or keys.min() < 0):
                raise ValueError("a key that is no integer of 0 or more")
            for name, column in self._columns.items():
                values = np.asarray(state[f"{prefix}{name}"])
                if values.dtype.kind not in "iuf" or not np.all(np.isfinite(values)):
                    raise ValueError(f"{prefix}{name} that holds something else than finite numbers")
                with np.errstate(over="ignore", invalid="ignore"):
                    held = values.astype(column.dtype)
                if not np.all(held == values if held.dtype.kind in "iu" else np.isfinite(held)):
                    raise ValueError(f"{prefix}{name} that {held.dtype} cannot hold")
                table._columns[name] = held
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StateError(f"state: expected {expected} of an estimator, got {error!r}.") from error
        if keys.ndim != 1 or any(keys.shape != column.shape for column in table._columns.values()):
            raise StateError(f"state: expected equally long vectors {expected}.")
        table._row_of = {key: row for row, key in enumerate(keys.astype(np.uint64).tolist())}
        if len(table._row_of) != len(keys):
            raise StateError("state: expected each prompt key once, got duplicates.")
        return table


def whole_number(state: Mapping[str, Any], name: str) -> int:
    """An integer of a saved state.

    Raises:
        StateError: it is missing, or something else.
    """
    try:
        number = int(state[name])
        if number != state[name]:
            raise ValueError(f"{state[name]!r} for {name}")
        return number
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StateError(f"state: expected the whole number {name} of an estimator, got {error!r}.") from error


def one_visit(keys: Keys, successes: Ints, rollouts: Ints) -> tuple[Keys, Ints, Ints, Ints]:
    """The rows of each prompt added up: keys, successes, rollouts, and the position of a row of each; empty ones go."""
    seen = np.flatnonzero(rollouts > 0)
    visited, first, part = np.unique(keys[seen], return_index=True, return_inverse=True)
    won = np.bincount(part, successes[seen], len(visited)).astype(np.int64)
    tried = np.bincount(part, rollouts[seen], len(visited)).astype(np.int64)
    return visited, won, tried, seen[first]
