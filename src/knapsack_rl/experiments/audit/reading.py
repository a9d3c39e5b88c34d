"""Rollout logs as a stream of batches: parquet, CSV and JSONL, also compressed; bad rows are counted and left out."""

from __future__ import annotations

import glob
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from numpy.typing import NDArray

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit.columns import Asked, Columns, understand

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

_KINDS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv",
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
}  # fmt: skip
_COMPRESSED = (".gz", ".zst", ".bz2", ".lz4")
_JSON_BLOCK = 4 << 20
_JSON_SAMPLE = 1 << 18  # bytes of a file that are enough to see its columns
_CSV_BLOCK = 4 << 20  # a row of CSV must be smaller
_BATCH_ROWS = 1 << 15
_BATCH_BYTES = 16 << 20
_SAMPLE_ROWS = 200
_NUMBERED = re.compile(r"(?:(?:completions|step|global_step|iteration|iter)[_-]?)?(\d{1,15})", re.IGNORECASE)
_EXACT = 2**53  # from here on, different whole numbers are the same float
_TRUTH = {"true": 1.0, "false": 0.0}
_EXAMPLES_OF_A_KIND = 3
_DAMAGE = (pa.ArrowException, OSError, EOFError)  # what pyarrow raises for files that are cut off or no such files

Raw = dict[str, Any]  # columns by name: arrow arrays, or lists of what JSON held


@dataclass(frozen=True)
class Found:
    """A file of a log.

    Attributes:
        path: where it is.
        argument: position of the argument that led to it.
        named: whether the argument was its very name, and not that of a folder or a pattern.
    """

    path: Path
    argument: int = 0
    named: bool = True


@dataclass(frozen=True)
class Encoded:
    """A column of texts: each distinct one once, and for every row the position of its text, -1 where there is none."""

    values: list[str]
    codes: Ints

    def keys(self) -> Keys:
        """64-bit hash of each distinct text, the same on every machine."""
        return cast(Keys, pd.util.hash_array(_object_array(self.values), categorize=False))

    def rows(self, kept: NDArray[np.bool_]) -> Encoded:
        """Only the rows in `kept`."""
        return Encoded(self.values, self.codes[kept])

    def at(self, positions: Ints) -> Encoded:
        """The rows at `positions`."""
        return Encoded(self.values, self.codes[positions])


@dataclass(frozen=True)
class Batch:
    """Some rows of a log, all of them good.

    Attributes:
        step: None where neither a column nor the file's name tells it.
        reward: of a row that is one rollout, and decides on its success; NaN where a row is a whole group.
        trained: sum of all rewards that training saw, which decides on gradients.
        rollouts: of a row that is a whole group; None otherwise.
        successes: the same.
        tokens: length of the completion; NaN where it is not known.
        relogged: whether TRL wrote the log, so that a step may hold the rollouts of the step before.
        argument: position of the argument that led to the file.
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
    relogged: bool = False
    argument: int = 0


@dataclass
class Problems:
    """What could not be used: counts by kind, and where the first few of each kind are."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, where: str, count: int = 1) -> None:
        """`count` rows (or a file) of a kind, the first of them at `where`."""
        self.counts[kind] += count
        shown = self.examples.setdefault(kind, [])
        if len(shown) < _EXAMPLES_OF_A_KIND:
            shown.append(where if len(where) <= 200 else where[:197] + "...")


@dataclass
class Reading:
    """A log while it is read; complete once `batches` is exhausted."""

    files: list[Found]
    asked: Asked
    problems: Problems = field(default_factory=Problems)
    columns: dict[Columns, str] = field(default_factory=dict)
    """How files were understood, and the first file of each kind."""
    rows: int = 0
    """Rows seen, good or bad."""
    steps_from: str = ""
    """The "column", the "file name" or the "order" of rows; empty until something is read."""

    def batches(self) -> Iterator[Batch]:
        """All good rows.

        Raises:
            InvalidInputError: a file has none of the columns that are needed, has two of one name, or its steps come
                from elsewhere than those of the files before it. Of files that were not named but found, one must be
                understood.
        """
        known: dict[tuple[str, ...], Columns] = {}
        refusal: InvalidInputError | None = None
        for found in self.files:
            path = found.path
            try:
                opened = _opened(path, self.asked)
            except _DAMAGE as error:
                self.problems.note("files that cannot be read", f"{path}: {_first_line(error)}")
                continue
            if not opened.names:
                self.problems.note("files without rows", str(path))
                continue
            signature = (*opened.names, "|", *sorted(opened.numeric))
            try:
                if signature not in known:
                    known[signature] = understand(str(path), opened.names, opened.numeric, self.asked)
                    self.columns.setdefault(known[signature], str(path))
            except InvalidInputError as error:
                if found.named:
                    raise
                self.problems.note("files that are no rollout log", str(path))
                refusal = refusal or error
                continue
            yield from self._of_file(found, opened, known[signature])
        if refusal is not None and not self.columns:
            raise refusal

    def _of_file(self, found: Found, opened: _Opened, columns: Columns) -> Iterator[Batch]:
        path = found.path
        number = _numbered(path)
        steps_from = "column" if columns.step is not None else "order" if number is None else "file name"
        if self.steps_from not in ("", steps_from):
            raise InvalidInputError(
                f"LOGS: {path} takes its steps from the {steps_from}, the files before it from the {self.steps_from}; "
                "expected the same of all. Audit them apart, or name the column with --step COLUMN."
            )
        self.steps_from = steps_from
        parts = opened.parts(columns.needed(), self.problems)
        while True:
            try:
                part = next(parts, None)
            except _DAMAGE as error:
                self.problems.note("files that break off", f"{path}: {_first_line(error)}")
                return
            if part is None:
                return
            positions, raw = part
            self.rows += len(positions)
            yield self._batch(found, columns, number, positions, raw)

    def _batch(self, file: Found, columns: Columns, number: int | None, positions: Ints, raw: Raw) -> Batch:
        """The good rows of what was read at once."""
        prompt = _encoded(raw[columns.key])
        blank = prompt.values.index("") if "" in prompt.values else -1
        rewards = {name: _numbers(raw[name]) for name in columns.trained}
        trained = _total(list(rewards.values()), len(positions))
        reward = _total([rewards[name] for name in columns.reward], len(positions))
        reward = np.where(np.isnan(reward), trained, reward)  # a row of a task that another function rewards
        good = np.ones(len(positions), dtype=bool)

        def refuse(kind: str, bad: NDArray[np.bool_]) -> None:
            found = np.flatnonzero(bad & good)
            if found.size:
                self.problems.note(kind, f"{file.path}, row {positions[found[0]]:,}", found.size)
                good[found] = False

        refuse("rows without a prompt", (prompt.codes < 0) | (prompt.codes == blank))
        refuse("rows whose id is a number too large to be exact", _inexact(raw[columns.key]))
        step: Floats | None = None
        if columns.step is not None:
            step = _numbers(raw[columns.step])
            refuse("rows without a step", ~np.isfinite(step))
            refuse("rows whose step is no whole number", (np.floor(step) != step) | (np.abs(step) >= _EXACT))
        counts: dict[str, Ints] = {}
        if columns.counted:
            scored, won = _numbers(raw["scored"]), _numbers(raw["successes"])
            refuse("rows with impossible counts", ~((won >= 0) & (won <= scored) & (scored < 2**31)))
            refuse("groups of which no rollout was scored", scored == 0)
            counts = {"rollouts": scored[good].astype(np.int64), "successes": won[good].astype(np.int64)}
        else:
            refuse("rows without a reward", np.isnan(reward))
            refuse("rows with an infinite reward", np.isinf(reward) | np.isinf(trained))
        if step is not None:
            steps: Ints | None = step[good].astype(np.int64)
        else:
            steps = None if number is None else np.full(int(good.sum()), number)

        def texts(name: str | None) -> Encoded | None:
            return None if name is None else _encoded(raw[name]).rows(good)

        return Batch(
            step=steps,
            prompt=prompt.rows(good),
            text=(prompt if columns.text in (None, columns.key) else _encoded(raw[columns.text])).rows(good),
            reward=reward[good],
            trained=trained[good],
            tokens=None if columns.length is None else _numbers(raw[columns.length])[good],
            category=texts(columns.category),
            completion=texts(columns.completion),
            answer=texts(columns.answer),
            reference=texts(columns.reference),
            relogged=columns.relogged,
            argument=file.argument,
            **counts,
        )


def find_files(logs: Sequence[str | Path]) -> list[Found]:
    """The files that `logs` name: files, folders and patterns, in the order given and inside folders by number.

    Of a folder that ``knapsack-rl train`` wrote, `allocations.parquet` is taken; of a folder that has a folder
    `completions`, that one, which is where TRL puts them.

    Raises:
        InvalidInputError: nothing is there, or a file is of a kind that is not known.
    """
    found: dict[Path, Found] = {}
    for argument, log in enumerate(logs):
        path = Path(log)
        if path.is_dir():
            files = _of_folder(path)
        elif path.is_file():
            files = [path]
        else:
            matches = sorted((Path(match) for match in glob.glob(str(log), recursive=True)), key=natural_order)
            files = [match for match in matches if match.is_file()]
            if not files:
                raise InvalidInputError(f"LOGS: {log} is no file, no folder, and no pattern that matches a file.")
        for file in files:
            _kind(file)
            found.setdefault(file, Found(file, argument, named=file == path))
    return list(found.values())


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Sorts 2.jsonl before 10.jsonl."""
    pieces = re.split(r"(\d+)", str(path))
    return [(1, int(piece), "") if piece.isdigit() else (0, 0, piece) for piece in pieces]


def _of_folder(folder: Path) -> list[Path]:
    for inside in ("allocations.parquet", "completions"):
        if (folder / inside).exists():
            folder = folder / inside
            break
    if folder.is_file():
        return [folder]
    files = [path for path in folder.iterdir() if path.is_file() and _suffix(path) in _KINDS]
    if not files:
        raise InvalidInputError(
            f"LOGS: {folder} holds no {', '.join(_KINDS)} file. Give the folder that the rollouts were written to, "
            "such as TRL's OUTPUT_DIR/completions or verl's trainer.rollout_data_dir."
        )
    return sorted(files, key=natural_order)


def _suffix(path: Path) -> str:
    plain = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
    return plain.suffix.lower()


def _kind(path: Path) -> str:
    kind = _KINDS.get(_suffix(path))
    if kind is None or (kind == "parquet" and path.suffix.lower() in _COMPRESSED):
        raise InvalidInputError(
            f"LOGS: {path} is of a kind that is not read. Known are {', '.join(_KINDS)}, "
            f"and those of text followed by {', '.join(_COMPRESSED)}."
        )
    return kind


def _numbered(path: Path) -> int | None:
    """The step in names like 12.jsonl and completions_00012.parquet."""
    name = path.name.removesuffix(path.suffix) if path.suffix.lower() in _COMPRESSED else path.name
    match = _NUMBERED.fullmatch(Path(name).stem)
    return None if match is None else int(match[1])


# Formats. Opening a file says which columns it has; its parts are row numbers (from 1) and the columns asked for.


@dataclass(frozen=True)
class _Opened:
    names: list[str]
    numeric: set[str]
    parts: Callable[[list[str], Problems], Iterator[tuple[Ints, Raw]]]


def _opened(path: Path, asked: Asked) -> _Opened:
    kind = _kind(path)
    if kind == "json":
        return _open_json(path, asked)
    return _open_parquet(path) if kind == "parquet" else _open_csv(path)


def _open_parquet(path: Path) -> _Opened:
    file = pa.parquet.ParquetFile(path)
    schema = file.schema_arrow

    def parts(needed: list[str], problems: Problems) -> Iterator[tuple[Ints, Raw]]:
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        size = sum(group.total_byte_size for group in groups) / max(1, file.metadata.num_rows)
        rows = int(np.clip(_BATCH_BYTES / max(size, 1.0), 256, _BATCH_ROWS))
        first = 1
        for batch in file.iter_batches(batch_size=rows, columns=needed, use_threads=False):
            yield np.arange(first, first + batch.num_rows), {name: batch.column(name) for name in needed}
            first += batch.num_rows

    return _Opened(schema.names if file.metadata.num_rows else [], _numeric(schema), parts)


def _numeric(schema: pa.Schema) -> set[str]:
    kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
    return {column.name for column in schema if any(is_of(column.type) for is_of in kinds)}


def _open_csv(path: Path) -> _Opened:
    def stream(invalid: Callable[[Any], str], columns: list[str] | None = None) -> Any:
        convert = pa.csv.ConvertOptions(check_utf8=False)
        if columns is not None:
            # As bytes, so that no value of a row can stop the file.
            convert.include_columns = columns
            convert.column_types = dict.fromkeys(columns, pa.binary())
        return pa.csv.open_csv(
            pa.input_stream(str(path), compression="detect"),
            read_options=pa.csv.ReadOptions(block_size=_CSV_BLOCK, use_threads=False),
            parse_options=pa.csv.ParseOptions(
                delimiter="\t" if _suffix(path) == ".tsv" else ",",
                newlines_in_values=True,
                invalid_row_handler=invalid,
            ),
            convert_options=convert,
        )

    def parts(needed: list[str], problems: Problems) -> Iterator[tuple[Ints, Raw]]:
        def invalid(row: Any) -> str:
            where = f"{path}, row {row.number:,}" if row.number is not None else str(path)
            lines = row.text.rstrip("\n").count("\n") + 1
            if lines > 1:
                where += f" and {lines - 1:,} more lines, perhaps after a quote that is not closed"
            problems.note("rows with too few or too many columns", f"{where}: {row.text!r}", lines)
            return "skip"

        first = 1
        for batch in stream(invalid, needed):
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                some = batch.slice(start, _BATCH_ROWS)
                yield np.arange(first, first + some.num_rows), {name: _filled(some.column(name)) for name in needed}
                first += some.num_rows

    if not pa.input_stream(str(path), compression="detect").read(1):
        return _Opened([], set(), parts)
    schema = stream(lambda row: "skip").schema
    return _Opened(schema.names, _numeric(schema), parts)


def _filled(column: pa.Array) -> pa.Array:
    """CSV writes what is missing as nothing."""
    return pc.if_else(pc.equal(pc.binary_length(column), 0), None, column)


def _open_json(path: Path, asked: Asked) -> _Opened:
    missing = set(vars(asked).values()) - {None}  # a column that was named may begin after any number of rows
    sample: list[dict[str, Any]] = []
    for first, count, block in _json_blocks(path, _JSON_SAMPLE):
        _, rows = _parsed(path, block, count, first, Problems())
        sample += rows[: max(0, _SAMPLE_ROWS - len(sample))]
        late = [row for row in rows if not missing.isdisjoint(row)] if missing else []
        sample += late[:_SAMPLE_ROWS]
        missing.difference_update(*late)
        if len(sample) >= _SAMPLE_ROWS and not missing:
            break
    names = list(dict.fromkeys(name for row in sample for name in row))
    if not names and _is_array(path):
        raise pa.ArrowInvalid("expected one JSON object a line (found a JSON array)")

    def is_numeric(name: str) -> bool:
        values = [row[name] for row in sample if row.get(name) is not None]
        return bool(values) and all(isinstance(value, (int, float)) for value in values)

    def parts(needed: list[str], problems: Problems) -> Iterator[tuple[Ints, Raw]]:
        for first, count, block in _json_blocks(path, _JSON_BLOCK):
            plain = _plain_columns(block, count, needed)
            if plain is not None:
                yield np.arange(first, first + count), plain
                continue
            positions, rows = _parsed(path, block, count, first, problems)
            yield positions, {name: [row.get(name) for row in rows] for name in needed}

    return _Opened(names, {name for name in names if is_numeric(name)}, parts)


def _is_array(path: Path) -> bool:
    with pa.input_stream(str(path), compression="detect") as stream:
        return bool(stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["))


def _json_blocks(path: Path, size: int) -> Iterator[tuple[int, int, bytes]]:
    """Blocks of whole lines, of about `size` bytes: the number of the first line, how many there are, their bytes."""
    rest, first = b"", 1
    with pa.input_stream(str(path), compression="detect") as stream:
        while True:
            read = stream.read(size)
            block = rest + read
            if first == 1:
                block = block.removeprefix(b"\xef\xbb\xbf")
            if not block:
                return
            whole, line_break, rest = block.rpartition(b"\n") if read else (block, b"", b"")
            if not line_break and read:
                continue  # a line longer than a block
            count = whole.count(b"\n") + 1
            yield first, count, whole
            first += count


def _plain_columns(block: bytes, count: int, needed: list[str]) -> Raw | None:
    """The columns of `count` lines, read by arrow in a fraction of the time that Python objects take.

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
    columns = {
        name: table.column(name).combine_chunks() if name in names else pa.nulls(table.num_rows) for name in needed
    }
    return columns if table.num_rows == count and all(map(_is_plain, columns.values())) else None


def _is_plain(column: pa.Array) -> bool:
    if pa.types.is_floating(column.type):
        return not np.any(np.abs(column.to_numpy(zero_copy_only=False)) >= _EXACT)
    kinds = (pa.types.is_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    return any(is_of(column.type) for is_of in kinds)


def _parsed(path: Path, block: bytes, count: int, first: int, problems: Problems) -> tuple[Ints, list[dict[str, Any]]]:
    """The objects on `count` lines: all at once where every line is sound, otherwise one by one.

    JSON has no line breaks inside of texts, so that sound lines are a list once the breaks are commas.
    """
    try:
        rows = orjson.loads(b"[" + block.replace(b"\n", b",") + b"]")
    except orjson.JSONDecodeError:
        rows = []
    if len(rows) == count and set(map(type, rows)) == {dict}:
        return np.arange(first, first + count), rows
    kept, rows = [], []
    for number, line in enumerate(block.split(b"\n"), start=first):
        if not line.strip():
            continue
        try:
            row = _parsed_line(line)
        except ValueError as error:
            problems.note("lines that are not JSON", f"{path}, line {number:,}: {error}")
            continue
        if not isinstance(row, dict):
            problems.note("lines that are no JSON object", f"{path}, line {number:,}: {line[:60]!r}")
            continue
        kept.append(number)
        rows.append(row)
    return np.array(kept, dtype=np.int64), rows


def _parsed_line(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line)  # Python's own writes NaN and Infinity, which are no JSON


# Columns as numbers and texts.


def _numbers(column: Any) -> Floats:
    """float64, NaN where there is no number."""
    if isinstance(column, pa.Array):
        if pa.types.is_binary(column.type):
            try:
                column = column.cast(pa.string()).cast(pa.float64())
            except pa.ArrowInvalid:
                return np.array([_number(value) for value in _values(column)], dtype=np.float64)
        if not pa.types.is_floating(column.type):
            try:
                column = column.cast(pa.float64())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                return np.array([_number(value) for value in _values(column)], dtype=np.float64)
        return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    try:
        numbers = np.array(column, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty((0, 0))
    if numbers.shape != (len(column),):
        numbers = np.array([_number(value) for value in column], dtype=np.float64)
    return numbers


def _number(value: Any) -> float:
    """A number, or a text of one or of a truth value; NaN for everything else."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return _TRUTH.get(value.strip().lower(), np.nan) if isinstance(value, str) else np.nan


def _total(rewards: Sequence[Floats], rows: int) -> Floats:
    """Sum of the reward columns; what is missing in one of them counts as nothing, as in TRL."""
    if len(rewards) <= 1:
        return rewards[0] if rewards else np.full(rows, np.nan)
    stacked = np.stack(rewards)
    return np.where(np.isnan(stacked).all(axis=0), np.nan, np.nansum(stacked, axis=0))


def _encoded(column: Any) -> Encoded:
    if isinstance(column, pa.Array):
        column = _as_texts(column)
    if isinstance(column, pa.Array):
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        values = [_text(value) for value in _values(encoded.dictionary)]
        return Encoded(values, encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64))
    texts = column
    if set(map(type, column)) != {str}:
        texts = [None if value is None or value != value else _text(value) for value in column]  # NaN is missing
    codes, values = pd.factorize(_object_array(texts))
    return Encoded(_sound(list(values)), codes.astype(np.int64))


def _values(column: pa.Array) -> list[Any]:
    """Python's values; bytes where texts are not UTF-8, which parquet does not check."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column.cast(pa.large_binary()).to_pylist()


def _inexact(column: Any) -> NDArray[np.bool_]:
    """Where a float is so large that other whole numbers would have become the same one."""
    if isinstance(column, pa.Array):
        floats = pa.types.is_floating(column.type)
    else:
        floats = float in set(map(type, column))
        column = [value if isinstance(value, float) else None for value in column] if floats else column
    return np.abs(_numbers(column)) >= _EXACT if floats else np.zeros(len(column), dtype=bool)


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


def _text(value: Any) -> str:
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


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
