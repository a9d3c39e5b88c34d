"""JSON: an object a line, and documents that are one array, one object, or several objects over many lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.json

from knapsack_rl.experiments.audit.readers.base import (
    BATCH_ROWS,
    COMPRESSED,
    DAMAGE,
    SAMPLE_ROWS,
    Look,
    Part,
    Problems,
    Raw,
    Text,
    Unreadable,
    first_bytes,
)
from knapsack_rl.experiments.audit.readers.depth import DEEPEST, TOO_DEEP, is_deep, may_be_deep
from knapsack_rl.experiments.audit.readers.parquet import is_numeric, of_rows
from knapsack_rl.experiments.audit.shapes import Row, columns_of, shapes_of, value
from knapsack_rl.experiments.audit.values import Ints, is_plain

BLOCK = 4 << 20
SAMPLE = 1 << 18  # bytes of a file that are enough to see its columns
_MARK = b"\xef\xbb\xbf"
_LARGEST_DOCUMENT = 1 << 29  # bytes of a document, which is read at once
_LARGEST_OF_COMPRESSED = 32 << 20, 20  # the same of a compressed one: bytes, and for each that is stored
_LONGEST_LINE = 16 << 20  # bytes; a row is in memory several times
_ENDLESS = 1 << 30  # bytes without a line break, after which a file is given up
_BETWEEN = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")  # objects of a document


def look(path: Path, wanted: tuple[str, ...]) -> Look:
    """See `Reader`."""
    missing = set(wanted)  # a column that was named may begin after any number of rows
    sample: list[Row] = []
    try:
        for rows in _samples(path):
            if len(sample) < SAMPLE_ROWS:
                sample += rows[: SAMPLE_ROWS - len(sample)]
            late = [row for row in rows if not missing.isdisjoint(row)] if missing else []
            sample += late[:SAMPLE_ROWS]
            missing.difference_update(*late)
            if len(sample) >= SAMPLE_ROWS and not missing:
                break
    except DAMAGE:
        if not sample:
            raise  # otherwise what stands before the damage is read
    if not sample and first_bytes(path, 1):
        raise Unreadable("no line is a JSON object")
    shapes, rows = shapes_of(sample, wanted)
    names = columns_of(rows)
    numeric = frozenset(name for name in names if is_numeric([value(row, name) for row in rows]))
    return Look(names, numeric, rows, shapes)


def parts(path: Path, found: Look, needed: list[str], problems: Problems) -> Iterator[Part]:
    """See `Reader`."""
    if _is_document(path):
        rows = _document(path)
        for start in range(0, len(rows), BATCH_ROWS):
            yield _of_document(path, start, rows[start : start + BATCH_ROWS], found, needed, problems)
        return
    for first, count, block in _blocks(path, BLOCK, problems):
        plain = None if found.shapes or may_be_deep(block) else _plain_columns(block, count, needed)
        if plain is not None:
            yield Part(np.arange(first, first + count), *plain)
        else:
            numbers, rows = _parsed(path, block, count, first, problems)
            yield of_rows(numbers.tolist(), rows, found, needed)


def _samples(path: Path) -> Iterator[list[Row]]:
    """Rows, some at a time, for a first look."""
    if _is_document(path):
        yield [row for row in _document(path) if isinstance(row, dict)]
        return
    for first, count, block in _blocks(path, SAMPLE):
        yield _parsed(path, block, count, first, Problems())[1]


def _is_document(path: Path) -> bool:
    """Whether the file is an array, or begins with an object that goes over several lines."""
    start = first_bytes(path, 1 << 12).removeprefix(_MARK).lstrip()
    if start.startswith(b"["):
        return not _first_line_is(path, list) or start.lstrip(b"[ \r\n\t").startswith(b"{")
    return start.rstrip(b"\r\n \t") == b"{" or (start.startswith(b"{") and start[1:].lstrip(b" \t")[:1] in b"\r\n")


def _first_line_is(path: Path, kind: type) -> bool:
    _, _, block = next(_blocks(path, SAMPLE), (1, 0, b""))
    try:
        return isinstance(orjson.loads(block.partition(b"\n")[0]), kind)
    except orjson.JSONDecodeError:
        return False


def _document(path: Path) -> list[Any]:
    """The entries of an array, or the objects of the file.

    Raises:
        Unreadable: it is no JSON, or too large to be read at once.
    """
    largest = _LARGEST_DOCUMENT
    if path.suffix.lower() in COMPRESSED:
        least, factor = _LARGEST_OF_COMPRESSED
        largest = min(largest, least + factor * path.stat().st_size)
    with pa.input_stream(str(path), compression="detect") as stream:
        text = bytes(stream.read(largest + 1)).removeprefix(_MARK)
    if len(text) > largest:
        raise Unreadable(
            f"it is one JSON document of more than {largest >> 20} MB: write an object a line, say with jq -c"
        )
    try:
        whole = [_loaded(text)]
    except ValueError:
        whole = _several(text)
    if is_deep(whole, DEEPEST + 2):
        raise Unreadable(TOO_DEEP)
    if len(whole) == 1 and isinstance(whole[0], list):
        return whole[0]
    return whole


def _several(text: bytes) -> list[Any]:
    """Objects one after the other, each over several lines."""
    decoder, whole = json.JSONDecoder(), text.decode("utf-8")
    found: list[Any] = []
    position = 0
    while (position := _BETWEEN.match(whole, position).end()) < len(whole):  # type: ignore[union-attr] # it always does
        try:
            one, position = decoder.raw_decode(whole, position)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"it is no JSON after {len(found):,} objects: {error}") from None
        found.append(one)
    return found


def _of_document(
    path: Path, start: int, entries: list[Any], found: Look, needed: list[str], problems: Problems
) -> Part:
    numbers, rows = [], []
    for number, entry in enumerate(entries, start=start + 1):
        if isinstance(entry, dict):
            numbers.append(number)
            rows.append(entry)
        else:
            problems.note("entries that are no JSON object", f"{path}, entry {number:,}: {str(entry)[:60]!r}")
    return of_rows(numbers, rows, found, needed)


def _blocks(path: Path, size: int, problems: Problems | None = None) -> Iterator[tuple[int, int, bytes]]:
    """Blocks of whole lines, of about `size` bytes: the number of the first line, how many there are, their bytes.

    Lines of more than _LONGEST_LINE bytes are left out.

    Raises:
        DAMAGE: the file is damaged; what stands before comes first.
    """
    pieces: list[bytes] = []  # of a line that is longer than what was read at once
    first, length = 1, 0
    with Text(path) as stream:
        while True:
            read = stream.read(size)
            if not read and stream.damage is not None:
                raise stream.damage
            if read and b"\n" not in read:
                length += len(read)
                if length > _ENDLESS:
                    raise Unreadable(f"line {first:,} goes on for more than {_ENDLESS >> 30} GiB")
                pieces = [*pieces, read] if length <= _LONGEST_LINE else []
                continue
            if length > _LONGEST_LINE:
                if problems is not None:
                    problems.note(f"lines of more than {_LONGEST_LINE >> 20} MiB", f"{path}, line {first:,}")
                read, first = read.partition(b"\n")[2], first + 1
            block = b"".join((*pieces, read))
            if first == 1:
                block = block.removeprefix(_MARK)
            if not block and not length:
                return
            whole, line_break, rest = block.rpartition(b"\n") if read else (block, b"\n", b"")
            pieces, length = ([rest] if rest else []), len(rest)
            if line_break:
                count = whole.count(b"\n") + 1
                yield first, count, whole
                first += count


def _plain_columns(block: bytes, count: int, needed: list[str]) -> tuple[Raw, tuple[str, ...]] | None:
    """The columns of `count` lines, read by arrow in a fraction of the time that Python objects take, and all names.

    None where a line is unsound or empty, or where a column holds lists, objects, values of several types, texts that
    arrow takes for times, or numbers that it may have rounded: `_parsed` reads those.
    """
    whole = pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    try:
        table = pa.json.read_json(pa.BufferReader(block), read_options=whole)
        table.validate(full=True)  # texts are UTF-8
    except pa.ArrowException:
        return None
    names = set(table.column_names)
    if any("." in name and name not in names for name in needed):
        return None  # a part of an object
    columns = {
        name: table.column(name).combine_chunks() if name in names else pa.nulls(table.num_rows) for name in needed
    }
    if table.num_rows != count or not all(map(is_plain, columns.values())):
        return None
    return columns, tuple(table.column_names)


def _parsed(path: Path, block: bytes, count: int, first: int, problems: Problems) -> tuple[Ints, list[Row]]:
    """The objects on `count` lines: all at once where every line is sound, otherwise one by one.

    JSON has no line breaks inside of texts, so that sound lines are a list once the breaks are commas.
    """
    try:
        rows = [] if may_be_deep(block) else orjson.loads(b"[" + block.replace(b"\n", b",") + b"]")
    except orjson.JSONDecodeError:
        rows = []
    if len(rows) == count and set(map(type, rows)) == {dict}:
        return np.arange(first, first + count), rows
    kept, rows = [], []
    for number, line in enumerate(block.split(b"\n"), start=first):
        if not line.strip():
            continue
        try:
            row = _loaded(line)
        except ValueError as error:
            problems.note("lines that are not JSON", f"{path}, line {number:,}: {error}")
            continue
        if not isinstance(row, dict):
            problems.note("lines that are no JSON object", f"{path}, line {number:,}: {line[:60]!r}")
            continue
        if is_deep(row):
            problems.note("lines that are nested too deeply", f"{path}, line {number:,}: {TOO_DEEP}")
            continue
        kept.append(number)
        rows.append(row)
    return np.array(kept, dtype=np.int64), rows


def _loaded(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            return json.loads(text)  # Python's own writes NaN and Infinity, which are no JSON
        except RecursionError:
            raise ValueError(TOO_DEEP) from None
