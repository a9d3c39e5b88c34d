"""Files that are whole or not there, and folders that one process at a time works in."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from knapsack_rl.errors import InvalidInputError, StateError
from knapsack_rl.experiments.cleaning import cell

if TYPE_CHECKING:
    import pandas as pd

_HOLDER = re.compile(r"process \d+ on [\w.-]+")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what shall be `path`: it takes that place, whole, if the block ends without an error.

    A link is replaced, and what it leads to stays as it is. Two processes must not write one file at a time (`lock`).

    Raises:
        OSError: it cannot be written, or a folder or a device is in its place.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "something else than a file is there", str(path))
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)  # of a process that was killed; or a link, which would be followed
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8, see `replacing`; a lone surrogate becomes its escape, which in JSON stands for it."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_csv(table: pd.DataFrame, path: Path, **options: Any) -> None:
    """Write a table, see `replacing`, with texts as `cleaning.cell` makes them; `options` are those of `to_csv`."""
    safe = table.rename(columns=cell)
    for index, name in enumerate(safe.columns):
        column = safe.iloc[:, index]
        if column.dtype.kind not in "biufcmM":
            safe.isetitem(index, column.map(cell).rename(name))
    with replacing(path) as unfinished:
        safe.to_csv(unfinished, index=False, lineterminator="\n", **options)


def taken(folder: Path, what: str) -> InvalidInputError:
    """The refusal of a folder with something else in it than `what`, such as "a run"."""
    return InvalidInputError(
        f"--output: {folder} has files in it that are not of {what}. "
        "Choose another name=..., or another place with --output."
    )


def lock(path: Path, wait: bool = False) -> IO[str]:
    """An open file that keeps other processes out until it is closed, or this process ends, however it ends.

    Args:
        path: the file; it is made, is never deleted, and must be no link, so that nothing else is written to.
        wait: whether to wait for whoever holds it.

    Raises:
        StateError: another process holds it; the message says which.
        InvalidInputError: `path` is a symbolic link.
        OSError: the file cannot be opened.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InvalidInputError(f"{path} is a symbolic link, and a lock must be a file. Remove it.") from error
        raise
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        with file:
            holder = _HOLDER.match(file.read(200))
        by = f": {holder[0]}" if holder else ""
        raise StateError(
            f"{path.parent}: another process is at work there{by}. Wait for it, or choose another place."
        ) from None
    except BaseException:
        file.close()
        raise
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:  # not another name of somebody's file
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file
