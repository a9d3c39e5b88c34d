"""A table of keys: a row of numbers for each prompt (or category) that was ever seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from knapsack_rl.errors import StateError

Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

_EMPTY = -1
_FEWEST_SLOTS = 64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio


class Table:
    """Named columns over 64-bit keys, all zero in a new row. A read costs O(keys asked for), an append O(1) amortised.

    Rows are found by open addressing (Knuth, volume 3, section 6.4, algorithm L), for all keys of a call together: slot
    h(key), or the first after it, holds the row of the key.

    Memory: 8 to 16 bytes of slots a key, and the key and the columns, of which up to a third is room to grow.
    """

    def __init__(self, **columns: DTypeLike) -> None:
        self._size = 0
        self._keys = np.zeros(0, dtype=np.uint64)
        self._columns = {name: np.zeros(0, dtype=dtype) for name, dtype in columns.items()}
        self._slots = np.full(_FEWEST_SLOTS, _EMPTY, dtype=np.int32)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A column over all known keys, in order of their first visit; a view to read and to assign to."""
        return self._columns[name][: len(self)]

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._columns)

    def find(self, keys: Keys) -> Ints:
        """Row of each key, -1 for one that is not known."""
        found = np.full(len(keys), _EMPTY, dtype=np.int64)
        sought, slots = np.arange(len(keys)), self._home(keys)
        while len(sought) and len(self):
            rows = self._slots[slots]
            taken = rows != _EMPTY
            here = taken & (self._keys[rows] == keys[sought])
            found[sought[here]] = rows[here]
            passed = taken & ~here
            sought, slots = sought[passed], self._next(slots[passed])
        return found

    def rows(self, keys: Keys) -> Ints:
        """Row of each key, new ones appended in order of their first position."""
        found = self.find(keys)
        missing = np.flatnonzero(found == _EMPTY)
        if not len(missing):
            return found
        _, first = np.unique(keys[missing], return_index=True)
        self._append(keys[missing[np.sort(first)]])
        return self.find(keys)

    def _append(self, keys: Keys) -> None:
        """Rows for keys that are not known."""
        new = np.arange(self._size, self._size + len(keys))
        self._size += len(keys)
        self._keys = _with_room(self._keys, self._size)
        for name, column in self._columns.items():  # one by one, so that only one is there twice
            self._columns[name] = _with_room(column, self._size)
        self._keys[new] = keys
        self._enter(new)

    def _enter(self, rows: Ints) -> None:
        """Put rows into the slots of their keys; of several that want a slot one gets it. If slots grow, all rows."""
        if 2 * self._size > len(self._slots):
            self._slots = np.full(1 << (2 * self._size).bit_length(), _EMPTY, dtype=np.int32)
            rows = np.arange(self._size)
        slots = self._home(self._keys[rows])
        while len(rows):
            free = self._slots[slots] == _EMPTY
            self._slots[slots[free]] = rows[free]
            left = self._slots[slots] != rows
            rows, slots = rows[left], self._next(slots[left])

    def _home(self, keys: Keys) -> Ints:
        """The first slot of each key: the highest bits of its product with 2^64 / golden ratio (section 6.4)."""
        bits = len(self._slots).bit_length() - 1
        return ((keys * _GOLDEN) >> np.uint64(64 - bits)).astype(np.int64)

    def _next(self, slots: Ints) -> Ints:
        return (slots + 1) & (len(self._slots) - 1)

    def read(self, name: str, rows: Ints) -> NDArray[np.float64]:
        """A column in these rows as float64, 0 where the row is -1."""
        if not len(self):
            return np.zeros(len(rows))
        return np.where(rows >= 0, self._columns[name][rows], 0).astype(np.float64)

    def state_dict(self, prefix: str = "") -> dict[str, Any]:
        """Keys and columns as arrays."""
        columns = {f"{prefix}{name}": self[name].copy() for name in self._columns}
        return {f"{prefix}keys": self._keys[: len(self)].copy(), **columns}

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
        in_order = np.sort(keys)
        if np.any(in_order[1:] == in_order[:-1]):
            raise StateError("state: expected each prompt key once, got duplicates.")
        table._size, table._keys = len(keys), keys.astype(np.uint64)
        table._enter(np.arange(len(keys)))
        return table


def _with_room(column: NDArray[Any], size: int) -> NDArray[Any]:
    """The column with at least `size` rows; grown by half, so that a row costs O(1) however many follow."""
    missing = size - len(column)
    if missing <= 0:
        return column
    return np.concatenate((column, np.zeros(max(missing, len(column) // 2), dtype=column.dtype)))
