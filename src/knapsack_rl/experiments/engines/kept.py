"""Directories that are made once and kept: complete or not there, and made anew where a file of them is damaged."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.runs import manifest


def cache_dir(purpose: str) -> Path:
    """`knapsack-rl/purpose` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "knapsack-rl" / purpose


def kept(directory: Path, make: Callable[[Path], None]) -> Path:
    """`directory`, which `make` fills where it is not there yet or is not what it was.

    `make` works in a temporary directory beside it, so that an interrupted one leaves nothing. Every call reads all
    files, about a second a gigabyte.

    Raises:
        InvalidInputError: its parent cannot be written to; said before `make` is called.
    """
    if directory.exists() and manifest.damage(directory) is not None:
        shutil.rmtree(directory)
    if not directory.exists():
        with _unfinished(directory.parent) as beside:
            content = beside / "content"
            content.mkdir()
            make(content)
            manifest.seal(content)
            _publish(content, directory)
    return directory


@contextmanager
def _unfinished(parent: Path) -> Iterator[Path]:
    """A temporary directory on the same file system, made before the work so that nothing is lost after it."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        directory = tempfile.TemporaryDirectory(dir=parent, prefix="unfinished-")
    except OSError as error:
        raise InvalidInputError(
            f"cache_dir: cannot write to {parent} ({error.strerror}). "
            "Choose another directory, or set XDG_CACHE_HOME to one that is writable."
        ) from error
    with directory as path:
        yield Path(path)


def _publish(complete: Path, finished: Path) -> None:
    try:
        complete.rename(finished)
    except OSError:
        if not finished.exists():  # otherwise another process was faster, with the same result
            raise
