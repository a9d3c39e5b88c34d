"""What readers share: the first look at a file, its parts, and what could not be used of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from knapsack_rl.experiments.audit.shapes import Row, Shape
from knapsack_rl.experiments.audit.values import Ints, Keys

COMPRESSED = (".gz", ".zst", ".bz2", ".lz4")
BATCH_ROWS = 1 << 15
SAMPLE_ROWS = 200
_EXAMPLES_OF_A_KIND = 3
_EXAMPLE_WIDTH = 240

Raw = dict[str, Any]  # columns by name: arrow arrays, or lists of what JSON held


class Unreadable(Exception):
    """A file is something else than its name says, or is written in a way that is not read; the message says which."""


DAMAGE = (pa.ArrowException, OSError, EOFError, UnicodeError, Unreadable)
"""What reading raises for files that are cut off, no such files, or not in UTF-8."""


@dataclass(frozen=True)
class Look:
    """A first look at a file.

    Attributes:
        names: its columns, in order; none where the file has no rows. Parts of objects are `object.part`.
        numeric: those of them that hold numbers or truth values.
        rows: its first rollouts.
        shapes: what its rows went through to become rollouts.
    """

    names: list[str]
    numeric: frozenset[str]
    rows: list[Row]
    shapes: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class Part:
    """Some rows of a file.

    Attributes:
        rows: numbers of the rows, from 1; repeated where a row holds several rollouts.
        columns: those that were asked for.
        holders: of each rollout the key of the row, or of the part of it, that held it and others; 0 where it stood
            alone, and None where each row is a rollout.
        names: all columns that these rows have, as far as the reader knows.
    """

    rows: Ints
    columns: Raw
    names: tuple[str, ...] = ()
    holders: Keys | None = None


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
            shown.append(where if len(where) <= _EXAMPLE_WIDTH else where[: _EXAMPLE_WIDTH - 3] + "...")


@dataclass(frozen=True)
class Reader:
    """How files of a kind are read."""

    look: Callable[[Path, tuple[str, ...]], Look]
    parts: Callable[[Path, Look, list[str], Problems], Iterator[Part]]


class Text:
    """The bytes of a file of text, of a compressed one what is inside, as far as they can be read.

    Where a file is damaged, say cut off, what stands before is handed over up to the last line break, as if the file
    ended there. Cost: what was read is read twice more then.

    Attributes:
        damage: what the library said of it; None as long as nothing is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.damage: Exception | None = None
        self._path = path
        self._stream = pa.input_stream(str(path), compression="detect")
        self._position = 0

    def __enter__(self) -> Text:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether the file is closed, which arrow asks."""
        return bool(self._stream.closed)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def read(self, size: int) -> bytes:
        """The next bytes; none at the end, and where damage is."""
        if self.damage is not None:
            return b""
        try:
            found = bytes(self._stream.read(size))
        except DAMAGE as error:
            self.damage = error
            whole, line_break, _ = self._before_damage(size).rpartition(b"\n")
            found = whole + line_break
        self._position += len(found)
        return found

    def _before_damage(self, size: int) -> bytes:
        """What can still be read, in ever smaller pieces, since a read that meets the damage gives nothing."""
        found = b""
        for piece in (max(1, size >> 12), 1):
            with pa.input_stream(str(self._path), compression="detect") as again:
                try:
                    left = self._position + len(found)
                    while left:
                        left -= len(again.read(min(left, 1 << 20)))
                    while more := again.read(piece):
                        found += more
                except DAMAGE:
                    continue
        return found


def first_bytes(path: Path, count: int = 256) -> bytes:
    """The beginning of a file, of a compressed one what is inside.

    Raises:
        DAMAGE: not even a line of it can be read.
    """
    with Text(path) as text:
        found = text.read(count)
    if not found and text.damage is not None:
        raise text.damage
    return found


def first_line(error: BaseException) -> str:
    """What an error says, without what a library adds below."""
    if isinstance(error, UnicodeError):
        return f"its text is not in UTF-8: convert it, say with iconv ({error})"
    return str(error).partition("\n")[0]
