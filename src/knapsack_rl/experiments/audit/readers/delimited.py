"""CSV and TSV files."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from knapsack_rl.experiments.audit.readers.base import (
    BATCH_ROWS,
    SAMPLE_ROWS,
    Look,
    Part,
    Problems,
    Text,
    Unreadable,
    first_bytes,
)
from knapsack_rl.experiments.audit.readers.parquet import numeric_of

_BLOCK = 4 << 20  # a row must be smaller
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ",": "commas"}


def look(path: Path, wanted: tuple[str, ...]) -> Look:
    """See `Reader`."""
    if not first_bytes(path, 1):
        return Look([], frozenset(), [])
    schema = _stream(path, lambda row: "skip").schema
    if len(schema.names) == 1:
        _check_separator(path, schema.names[0])
    typed = list(dict.fromkeys(schema.names))
    with _stream(path, lambda row: "skip", typed if len(typed) == len(schema.names) else None) as stream:
        first = next(iter(stream), None)
    columns = {} if first is None else {name: _texts(first.column(i)) for i, name in enumerate(first.schema.names)}
    rows = [dict(zip(columns, held, strict=True)) for held in zip(*columns.values(), strict=True)]
    return Look(schema.names, numeric_of(schema), rows)


def parts(path: Path, found: Look, needed: list[str], problems: Problems) -> Iterator[Part]:
    """See `Reader`."""

    def invalid(row: Any) -> str:
        where = f"{path}, row {row.number:,}" if row.number is not None else str(path)
        lines = row.text.rstrip("\n").count("\n") + 1
        if lines > 1:
            where += f" and {lines - 1:,} more lines, perhaps after a quote that is not closed"
        problems.note("rows with too few or too many columns", f"{where}: {row.text!r}", lines)
        return "skip"

    first, text = 1, Text(path)
    for batch in _stream(path, invalid, needed, text):
        for start in range(0, batch.num_rows, BATCH_ROWS):
            some = batch.slice(start, BATCH_ROWS)
            columns = {name: _filled(some.column(name)) for name in needed}
            yield Part(np.arange(first, first + some.num_rows), columns, tuple(found.names))
            first += some.num_rows
    if text.damage is not None:
        raise text.damage


def _stream(
    path: Path, invalid: Callable[[Any], str], columns: list[str] | None = None, text: Text | None = None
) -> Any:
    convert = pa.csv.ConvertOptions(check_utf8=False)
    if columns is not None:
        # As bytes, so that no value of a row can stop the file.
        convert.include_columns = columns
        convert.column_types = dict.fromkeys(columns, pa.binary())
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def sound(block: Any) -> bytes:
        """As UTF-8, without which arrow cannot hand over an invalid row; the last block is empty."""
        return decoder.decode(bytes(block), not len(block)).encode()

    return pa.csv.open_csv(
        pa.TransformInputStream(pa.PythonFile(text or Text(path), "r"), sound),
        read_options=pa.csv.ReadOptions(block_size=_BLOCK, use_threads=False),
        parse_options=pa.csv.ParseOptions(
            delimiter=_separator(path), newlines_in_values=True, invalid_row_handler=invalid
        ),
        convert_options=convert,
    )


def _separator(path: Path) -> str:
    return "\t" if ".tsv" in path.suffixes[-2:] else ","


def _check_separator(path: Path, head: str) -> None:
    """A header that is one column may be several, apart by something else."""
    count, mark = max((head.count(mark), mark) for mark in _SEPARATORS if mark != _separator(path))
    if count:
        own = _SEPARATORS[_separator(path)]
        raise Unreadable(
            f"its columns are separated by {_SEPARATORS[mark]}, and {own} were expected: its first line is "
            f"{head[:80]!r}. Write it with {own}"
        )


def _filled(column: pa.Array) -> pa.Array:
    """CSV writes what is missing as nothing."""
    return pc.if_else(pc.equal(pc.binary_length(column), 0), None, column)


def _texts(column: pa.Array) -> list[str | None]:
    """The first values as texts."""
    some = column.slice(0, SAMPLE_ROWS).to_pylist()
    return [
        (one.decode("utf-8", "replace") if isinstance(one, bytes) else None if one is None else str(one)) or None
        for one in some
    ]
