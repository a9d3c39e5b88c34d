"""The budget keeper's memory of itself: a state, and what has happened since, in a folder beside the run's checkpoints.

    state-3.npz       everything that the keeper knew at some time (`estimators.state.write`), once it was long ago
    events-3.jsonl    what happened from then on, one event a line, after a line that names the run

A line is written before anybody hears of what it says, by one system call and without waiting for the disk: it outlives
the process that wrote it, though not the machine. A killed process may leave a part of a line, which nobody heard of.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from knapsack_rl.errors import StateError
from knapsack_rl.estimators import state

logger = logging.getLogger(__name__)

_LONG = 4 << 20  # bytes of events after which a state replaces them: seconds to replay
_FILE = re.compile(r"(state|events)-(\d+)\.(npz|jsonl)(\.partial)?")


class Journal:
    """What is in the folder of a run; it is begun where there is nothing yet.

    Args:
        folder: nobody else writes there; it is made.
        run: a name that no other run has.

    Attributes:
        new: whether there was nothing of this run.
        long: whether it is time for a `begin_anew`.

    Raises:
        OSError: the folder cannot be written.
        StateError: a file of this run is damaged.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._folder, self._run = folder, run
        folder.mkdir(parents=True, exist_ok=True)
        self._writing: threading.Thread | None = None
        self._failed: Exception | None = None
        numbers = sorted(number for kind, number in self._files() if kind == "events")
        self.new = not numbers or _first_line(self._events(numbers[0])) != self._title()
        if self.new:
            self._remove(before=None)
            numbers = [0]
        self._open(numbers[-1])

    def recovered(self) -> tuple[tuple[dict[str, Any], dict[str, NDArray[Any]]] | None, Iterator[list[Any]]]:
        """The newest whole state as JSON and arrays, None before the first; and the events since, oldest first."""
        saved = max((number for kind, number in self._files() if kind == "state"), default=None)
        found = None if saved is None else state.read(self._state(saved), "the budget keeper")
        first = 0 if saved is None else saved
        return found, (event for number in range(first, self._number + 1) for event in self._read(number))

    def append(self, event: list[Any]) -> None:
        """Write what happened. Numbers and texts of numpy become those of JSON.

        Raises:
            OSError: it cannot be written.
        """
        line = json.dumps(event, separators=(",", ":"), default=plain).encode() + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError(f"{self._events(self._number)}: could not be written in full. Is the disk full?")
        self._bytes += len(line)

    @property
    def long(self) -> bool:
        """Whether there are so many events that a state should replace them, and the one before is on disk."""
        return self._bytes > _LONG and (self._writing is None or not self._writing.is_alive())

    def begin_anew(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Let this state stand for all events so far. Returns at once; a thread writes, and then removes the old files.

        Until it has, the old files and the events from now on say the same.
        """
        self._joined()
        os.close(self._file)
        self._open(self._number + 1)
        self._writing = threading.Thread(target=self._write, args=(self._number, header, arrays))
        self._writing.start()

    def wait(self) -> None:
        """Wait until the newest state is on disk.

        Raises:
            Exception: it could not be written.
        """
        self._joined()
        if self._failed is not None:
            raise self._failed

    def _joined(self) -> None:
        if self._writing is not None:
            self._writing.join()

    def _write(self, number: int, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        try:
            state.write(self._state(number), header, arrays)
            self._failed = None
        except Exception as error:  # nothing is lost, the events of before are still there; `wait` raises it
            logger.exception("%s: the budget keeper's state could not be written", self._state(number))
            self._failed = error
        else:
            self._remove(before=number)

    def _open(self, number: int) -> None:
        """Append to the events of this number from now on, without a part of a line that may be their last."""
        self._number, path = number, self._events(number)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._bytes = path.read_bytes().rfind(b"\n") + 1
        os.ftruncate(self._file, self._bytes)
        if not self._bytes:
            self.append(self._title())

    def _read(self, number: int) -> Iterator[list[Any]]:
        path = self._events(number)
        try:
            with path.open("rb") as file:
                title, *events = (json.loads(line) for line in file)
        except (OSError, ValueError) as error:
            raise StateError(f"{path}: expected the budget keeper's events, one a line, got {error!r}.") from error
        if title != self._title():
            raise StateError(f"{path}: expected events of {self._run}, got {title!r:.80}.")
        yield from events

    def _title(self) -> list[Any]:
        return ["run", self._run]

    def _state(self, number: int) -> Path:
        return self._folder / f"state-{number}.npz"

    def _events(self, number: int) -> Path:
        return self._folder / f"events-{number}.jsonl"

    def _files(self) -> list[tuple[str, int]]:
        """Kind and number of the whole files."""
        found = (_FILE.fullmatch(path.name) for path in self._folder.iterdir())
        return [(match[1], int(match[2])) for match in found if match and not match[4]]

    def _remove(self, before: int | None) -> None:
        """Remove our files with smaller numbers, or all."""
        for path in list(self._folder.iterdir()):
            match = _FILE.fullmatch(path.name)
            if match and (before is None or int(match[2]) < before):
                path.unlink(missing_ok=True)


def _first_line(path: Path) -> Any:
    with path.open("rb") as file:
        line = file.readline()
    try:
        return json.loads(line)
    except ValueError:  # of a process that was killed as it began
        return None


def plain(value: Any) -> Any:
    """What `json` makes of numbers and arrays of numpy and torch."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r} is no JSON")
