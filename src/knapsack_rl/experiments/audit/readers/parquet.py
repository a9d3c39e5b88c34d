"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from knapsack_rl.experiments.audit.readers.base import BATCH_ROWS, SAMPLE_ROWS, Look, Part, Problems
from knapsack_rl.experiments.audit.shapes import Row, columns_of, hold_groups, shapes_of, unfolded_by_holder, value
from knapsack_rl.experiments.audit.values import joined, number

_BATCH_BYTES = 16 << 20


def look(path: Path, wanted: tuple[str, ...]) -> Look:
    """See `Reader`."""
    with pa.parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        if not file.metadata.num_rows:
            return Look([], frozenset(), [])
        first = next(file.iter_batches(batch_size=SAMPLE_ROWS, use_threads=False))
    numeric = numeric_of(schema)
    nested = any(pa.types.is_nested(schema.field(index).type) for index in range(len(schema)))
    rows = _rows(first)
    if not nested:
        texts = {name for name in schema.names if name not in numeric and is_numeric([row[name] for row in rows])}
        return Look(schema.names, numeric | texts, rows)
    shapes, rows = shapes_of(rows, wanted)
    inner = {
        name: [value(row, name) for row in rows] for name in columns_of(rows) if name not in schema.names or shapes
    }
    numbers = {name for name, held in inner.items() if is_numeric(held)}
    known = schema.names if not shapes else []
    names = list(dict.fromkeys((*known, *columns_of(rows))))
    return Look(names, frozenset(numbers) if shapes else numeric | numbers, rows, shapes)


def parts(path: Path, found: Look, needed: list[str], problems: Problems) -> Iterator[Part]:
    """See `Reader`."""
    with pa.parquet.ParquetFile(path) as file:
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        size = sum(group.total_byte_size for group in groups) / max(1, file.metadata.num_rows)
        rows = int(np.clip(_BATCH_BYTES / max(size, 1.0), 256, BATCH_ROWS))
        plain = not found.shapes and all(name in file.schema_arrow.names for name in needed)
        first = 1
        for batch in file.iter_batches(batch_size=rows, columns=needed if plain else None, use_threads=False):
            numbers = np.arange(first, first + batch.num_rows)
            if plain:
                yield Part(numbers, {name: batch.column(name) for name in needed}, tuple(found.names))
            else:
                yield of_rows(numbers.tolist(), _rows(batch), found, needed)
            first += batch.num_rows


def of_rows(numbers: list[int], rows: list[Row], found: Look, needed: list[str]) -> Part:
    """A part from rows as Python has them."""
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    holders = None
    if found.shapes:
        held = [
            (number, place, part)
            for number, row in zip(numbers, rows, strict=True)
            for place, part in enumerate(unfolded_by_holder(row, found.shapes))
        ]
        sizes = [len(part) for _, _, part in held]
        numbers = np.repeat([number for number, _, _ in held], sizes).tolist()
        rows = [rollout for _, _, part in held for rollout in part]
        if hold_groups(found.shapes):
            keys = joined([np.array([one[index] for one in held], dtype=np.uint64) for index in (0, 1)])
            holders = np.repeat(np.where(np.array(sizes) > 1, keys, np.uint64(0)), sizes)
    columns = {name: [value(row, name) for row in rows] for name in needed}
    return Part(np.array(numbers, dtype=np.int64), columns, names, holders)


def numeric_of(schema: pa.Schema) -> frozenset[str]:
    """Columns of numbers or truth values."""
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return frozenset(
        schema.names[index] for index in range(len(schema)) if any(is_of(schema.field(index).type) for is_of in kinds)
    )


def is_numeric(held: list[Any]) -> bool:
    """Whether there are values, and all are numbers, or texts of numbers."""
    there = [one for one in held if one is not None]
    return bool(there) and all(isinstance(one, (int, float, str)) and _is_number(one) for one in there)


def _is_number(one: float | str) -> bool:
    return not isinstance(one, str) or number(one) == number(one)


def _rows(batch: Any) -> list[Row]:
    names = batch.schema.names
    columns = []
    for index in range(len(names)):
        column = batch.column(index)
        try:
            columns.append(column.to_pylist())
        except UnicodeDecodeError:  # parquet does not check that texts are UTF-8
            columns.append(column.cast(pa.large_binary()).to_pylist())
    return [dict(zip(names, held, strict=True)) for held in zip(*columns, strict=True)]
