"""What is added up by key while rows stream by, in memory that depends on keys and not on rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from knapsack_rl.experiments.audit.values import Encoded, Keys

SHOWN = 300
"""Characters of a text that are kept."""
_PENDING = 1 << 18  # rows that pile up before they are sorted and added up


class Sums:
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

    @property
    def names(self) -> list[str]:
        """Of the values."""
        return list(self._values)

    def like(self) -> Sums:
        """An empty table of the same values."""
        return Sums(self._first, **self._values)

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

    def __init__(self, most: int | None = None, width: int = SHOWN) -> None:
        self._most = most
        self._width = width
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
        shown = [texts.values[code][: self._width] for code in codes[known].tolist()]
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
