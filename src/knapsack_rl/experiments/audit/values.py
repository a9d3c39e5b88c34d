"""Columns of a log as numbers and texts, whichever way a file held them: arrow arrays, or lists of what JSON held."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

_EXACT = 2**53  # from here on, different whole numbers are the same float
_TRUTH = {"true": 1.0, "false": 0.0}
_SHOWN = 40  # characters of a value in a message


@dataclass(frozen=True)
class Encoded:
    """A column of texts: each distinct one once, and for every row the position of its text, -1 where there is none."""

    values: list[str]
    codes: Ints

    def keys(self) -> Keys:
        """64-bit hash of each distinct text, the same on every machine."""
        return cast(Keys, pd.util.hash_array(_object_array(self.values), categorize=False))

    def row_keys(self) -> Keys:
        """The key of each row's text, 0 where there is none."""
        return np.append(self.keys(), np.uint64(0))[self.codes]

    def rows(self, kept: NDArray[np.bool_]) -> Encoded:
        """Only the rows in `kept`."""
        return Encoded(self.values, self.codes[kept])

    def at(self, positions: Ints) -> Encoded:
        """The rows at `positions`."""
        return Encoded(self.values, self.codes[positions])


def numbers(column: Any) -> Floats:
    """float64, NaN where there is no number."""
    if isinstance(column, pa.Array):
        if pa.types.is_binary(column.type):
            try:
                column = column.cast(pa.string()).cast(pa.float64())
            except pa.ArrowInvalid:
                return np.array([number(value) for value in _python(column)], dtype=np.float64)
        if not pa.types.is_floating(column.type):
            try:
                column = column.cast(pa.float64())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                return np.array([number(value) for value in _python(column)], dtype=np.float64)
        return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    try:
        found = np.array(column, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        found = np.empty((0, 0))
    if found.shape != (len(column),):
        found = np.array([number(value) for value in column], dtype=np.float64)
    return found


def number(value: Any) -> float:
    """A number, or a text of one or of a truth value; NaN for everything else."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return _TRUTH.get(value.strip().lower(), np.nan) if isinstance(value, str) else np.nan


def value_at(column: Any, row: int) -> Any:
    """One value of a column, as Python has it; bytes of CSV as text."""
    value = _python(column.slice(row, 1))[0] if isinstance(column, pa.Array) else column[row]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def is_missing(value: Any) -> bool:
    """Whether a value says nothing: null, NaN or an empty text."""
    return value is None or value == "" or (isinstance(value, float) and value != value)


def missing(column: Any) -> NDArray[np.bool_]:
    """Which values say nothing."""
    if not isinstance(column, pa.Array):
        return np.array([is_missing(value) for value in column], dtype=bool)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    elif pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        column = pc.if_else(pc.equal(pc.binary_length(column), 0), None, column)
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=bool)


def described(value: Any) -> str:
    """What a value is, for a message: "'PASS'", "lists", "objects with score, format"."""
    if isinstance(value, list):
        return "lists"
    if isinstance(value, Mapping):
        return f"objects with {', '.join(map(str, value))}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def encoded(column: Any) -> Encoded:
    """Each distinct text once. Chats become texts with a message a line, other values JSON."""
    if isinstance(column, pa.Array):
        column = _as_texts(column)
    if isinstance(column, pa.Array):
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        whole = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        values = [as_text(value) for value in _python(whole.dictionary)]
        return Encoded(values, whole.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64))
    texts = column
    if set(map(type, column)) != {str}:
        texts = [None if value is None or value != value else as_text(value) for value in column]  # NaN is missing
    codes, distinct = pd.factorize(_object_array(texts))
    return Encoded(_sound(list(distinct)), codes.astype(np.int64))


def as_text(value: Any) -> str:
    """A value as the text that stands for it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = [{name: part for name, part in item.items() if part is not None} for item in value]
        if all(item.keys() == {"role", "content"} and isinstance(item["content"], str) for item in value):
            return "\n".join(f"{item['role']}: {item['content']}" for item in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def inexact(column: Any) -> NDArray[np.bool_]:
    """Where a float is so large that other whole numbers would have become the same one."""
    if isinstance(column, pa.Array):
        floats = pa.types.is_floating(column.type)
    else:
        floats = float in set(map(type, column))
        column = [value if isinstance(value, float) else None for value in column] if floats else column
    return np.abs(numbers(column)) >= _EXACT if floats else np.zeros(len(column), dtype=bool)


def is_plain(column: pa.Array) -> bool:
    """Whether arrow's reading of a JSON column is sure to be what Python's would be."""
    if pa.types.is_floating(column.type):
        return not np.any(np.abs(column.to_numpy(zero_copy_only=False)) >= _EXACT)
    kinds = (pa.types.is_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    return any(is_of(column.type) for is_of in kinds)


def no_whole_numbers(values: Floats) -> NDArray[np.bool_]:
    """Which numbers are no whole ones, or too large to be exact."""
    return (np.floor(values) != values) | (np.abs(values) >= _EXACT)


def mixed(values: Keys) -> Keys:
    """Bits spread out, so that sums of different rows differ (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def joined(keys: Sequence[Keys]) -> Keys:
    """One key for the keys in several columns; the key itself where there is one column."""
    whole = keys[0]
    for more in keys[1:]:
        with np.errstate(over="ignore"):
            whole = mixed(whole * np.uint64(3) + more)
    return whole


def _python(column: pa.Array) -> list[Any]:
    """Python's values; bytes where texts are not UTF-8, which parquet does not check."""
    try:
        return cast(list[Any], column.to_pylist())
    except UnicodeDecodeError:
        return cast(list[Any], column.cast(pa.large_binary()).to_pylist())


def _as_texts(column: pa.Array) -> Any:
    """Chats as texts, a message a line: as an arrow array where messages are roles and contents, else as a list."""
    if not pa.types.is_nested(column.type):
        return column
    if pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type):
        messages = column.flatten()
        parts = [messages.type.field(index) for index in range(messages.type.num_fields)]
        if {part.name for part in parts} == {"role", "content"} and all(pa.types.is_string(p.type) for p in parts):
            lines = pc.binary_join_element_wise(
                pc.struct_field(messages, "role"), pc.struct_field(messages, "content"), ": ",
                null_handling="replace", null_replacement="",
            )  # fmt: skip
            lengths = pc.list_value_length(column)
            offsets = np.concatenate(([0], np.cumsum(lengths.fill_null(0).to_numpy(zero_copy_only=False))))
            lists = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), lines)
            return pc.if_else(pc.is_null(lengths), None, pc.binary_join(lists, "\n"))
    return column.to_pylist()


def _sound(values: list[str]) -> list[str]:
    """Without lone surrogates, which JSON can hold and UTF-8 cannot."""
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return [value.encode("utf-8", "replace").decode() for value in values]
    return values


def _object_array(values: Sequence[Any]) -> NDArray[np.object_]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
