"""Files of logs: what their rows hold, and all of it in parts. A kind of file is an entry of `READERS`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit.readers import delimited, json_text, parquet
from knapsack_rl.experiments.audit.readers.base import (
    COMPRESSED,
    DAMAGE,
    Look,
    Part,
    Problems,
    Reader,
    Unreadable,
    first_bytes,
)

__all__ = ["COMPRESSED", "DAMAGE", "READERS", "Look", "Part", "Problems", "Unreadable", "look", "parts", "suffix"]

_JSON = Reader(json_text.look, json_text.parts)
READERS = {
    ".parquet": Reader(parquet.look, parquet.parts),
    ".pq": Reader(parquet.look, parquet.parts),
    ".csv": Reader(delimited.look, delimited.parts),
    ".tsv": Reader(delimited.look, delimited.parts),
    ".jsonl": _JSON,
    ".ndjson": _JSON,
    ".json": _JSON,
}
"""By the ending of a file's name, without that of its compression."""

_POINTERS = {
    b"version https://git-lfs": "a Git LFS pointer and not the file itself: run git lfs pull",
    b"/annex/objects/": "a git-annex pointer and not the file itself: run git annex get",
}
_LONGEST_MARK = max(map(len, _POINTERS))
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def suffix(path: Path) -> str:
    """The ending that says what kind of file it is, such as ".jsonl" of log.jsonl.gz."""
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return plain.suffix.lower()


def check_kind(path: Path) -> None:
    """Refuse a file of a kind that has no reader.

    Raises:
        InvalidInputError: it is one.
    """
    kind = suffix(path)
    if kind not in READERS or (kind in (".parquet", ".pq") and path.suffix.lower() in COMPRESSED):
        raise InvalidInputError(
            f"LOGS: {path} is of a kind that is not read. Known are {', '.join(READERS)}, "
            f"and those of text followed by {', '.join(COMPRESSED)}."
        )


def look(path: Path, wanted: tuple[str, ...]) -> Look:
    """What a file holds.

    Args:
        path: the file.
        wanted: names of columns that the user gave.

    Raises:
        Unreadable: it is something else than its name says; the message is a sentence.
        DAMAGE: the library that reads it gave up.
    """
    with path.open("rb") as file:
        stored = file.read(_LONGEST_MARK)
    for mark, meaning in _POINTERS.items():
        if stored.startswith(mark):
            no_line = "no line is a JSON object: " if READERS[suffix(path)] is _JSON else ""
            raise Unreadable(f"{no_line}it is {meaning}")
    if suffix(path) not in (".parquet", ".pq"):
        _check_encoding(first_bytes(path))
    return READERS[suffix(path)].look(path, wanted)


def parts(path: Path, found: Look, needed: list[str], problems: Problems) -> Iterator[Part]:
    """All rows of a file, some at a time."""
    return READERS[suffix(path)].parts(path, found, needed, problems)


def _check_encoding(start: bytes) -> None:
    encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
    if encoding is None and len(start) >= 4 and start[:64].count(0) * 3 > len(start[:64]):
        encoding = "UTF-16"
    if encoding is not None:
        raise Unreadable(f"its text is in {encoding}, and only UTF-8 is read: convert it, say with iconv -f {encoding}")
