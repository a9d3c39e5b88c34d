"""What a run leaves on the disk, written so that a crash at any moment loses nothing that a resume needs."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import resource
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from knapsack_rl.belief import Belief
from knapsack_rl.errors import InvalidInputError, KnapsackError, StateError
from knapsack_rl.experiments import disk
from knapsack_rl.experiments.recipe.recipe_file import differences
from knapsack_rl.experiments.runs import manifest

_MEBIBYTE, _GIBIBYTE = 2**20, 2**30
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,15})")
_ALLOCATIONS = re.compile(r"step-(\d{1,15})\.parquet")
_SHOWN = 5  # steps that a remark names


class Resume(NamedTuple):
    """Where a run goes on.

    Attributes:
        checkpoint: the newest complete one; None where there is none.
        updates: optimiser updates before it.
        records: in metrics.jsonl before it.
        passed_over: sentences on newer ones, and what is wrong with them.
    """

    checkpoint: Path | None
    updates: int
    records: int
    passed_over: list[str]


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        directory: where it is.
        report: its report.html; None on processes that write nothing.
        stopped_by: the signal that ended it early, or None.
        already_finished: whether there was nothing left to train.
    """

    directory: RunDirectory
    report: Path | None
    stopped_by: int | None
    already_finished: bool


class RunDirectory:
    """One run: its recipe, environment, metrics, allocations and checkpoints.

    `allocations.parquet` is a folder with one file a step, which readers of Parquet open like a single file:
    a Parquet file cannot be appended to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.allocations = path / "allocations.parquet"
        self.checkpoints = path / "checkpoints"
        self.probe = path / "probe.json"  # of `knapsack-rl probe` alone
        self._lock: IO[str] | None = None

    def claim(self, recipe: str) -> None:
        """Make the directory, or check that it holds a run of this very recipe; keep other processes out from now on.

        Raises:
            InvalidInputError: the directory cannot be written to, or has another run or something else in it.
            StateError: another process is at work in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_others(recipe)
            self._lock = disk.lock(self.path / ".lock")
            self._check_or_write(recipe)
        except OSError as error:
            self.release()
            raise InvalidInputError(
                f"--output: cannot write to {self.path}: {error.strerror}. Choose another place with --output."
            ) from error
        except KnapsackError:
            self.release()
            raise

    @property
    def lock(self) -> int:
        """The descriptor that keeps others out; who inherits it does so too, as long as it lives.

        Raises:
            StateError: the directory is not claimed.
        """
        if self._lock is None:
            raise StateError(f"{self.path}: claim it before you pass its lock on.")
        return self._lock.fileno()

    def release(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def require_space(self, needed: int) -> None:
        """Refuse to start if the run, with what it has written so far, could not grow to `needed` bytes.

        Raises:
            InvalidInputError: with the path, what is needed and what there is.
        """
        free = shutil.disk_usage(self.path).free
        missing = needed - sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        if free < missing:
            raise InvalidInputError(
                f"--output: {self.path} needs about {_size(missing)} for checkpoints and the report, and {_size(free)} "
                "are free. Free some space, or choose another place with --output."
            )

    def why_it_failed(self, error: Exception) -> str | None:
        """What of the disk made a library fail, in a sentence: each has its own way to say it, or none."""
        said = str(error)
        if not self.path.is_dir():
            return f"{self.path}: the directory was removed while the run was at work in it."
        if shutil.disk_usage(self.path).free < _MEBIBYTE or os.strerror(errno.ENOSPC) in said:
            return f"{self.path}: the disk is full. Free some space."
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        files = (path for path in self.path.rglob("*") if path.is_file())
        if os.strerror(errno.EFBIG) in said or (
            limit != resource.RLIM_INFINITY and any(path.stat().st_size >= limit for path in files)
        ):
            return f"{self.path}: a file needs more bytes than files may have here. Raise the limit (ulimit -f)."
        return None

    @property
    def finished(self) -> bool:
        """Whether the run in it has come to its end."""
        return self.read_environment().get("finished") is not None

    def seal_checkpoint(self, updates: int, keep: int | None, best: str | None = None) -> None:
        """Declare the checkpoint after so many updates complete, and delete older ones.

        Args:
            updates: in the checkpoint's name.
            keep: how many complete ones stay, this one included; None or 0 for all.
            best: the path of one that stays in any case.
        """
        self.sync_metrics()
        folder, records = self.checkpoints / f"checkpoint-{updates}", len(self.read_metrics())
        manifest.seal(folder, updates=updates, run=self._identity, records=records)
        numbered = [(number, path) for number, path in self._numbered() if number <= updates]
        complete = [number for number, path in numbered if (path / manifest.MANIFEST).exists()]
        oldest = min(complete[:keep]) if keep and len(complete) > keep else 0
        for number, path in numbered:
            if number < oldest and str(path) != best:
                (path / manifest.MANIFEST).unlink(missing_ok=True)  # from now on it is not complete
                shutil.rmtree(path, ignore_errors=True)

    def newest_checkpoint(self) -> Resume:
        """Where to go on: every file of the checkpoint is what was written, by this very run.

        Cost: every byte of it is read.
        """
        passed_over: list[str] = []
        for updates, path in self._numbered():
            why = manifest.damage(path, updates=updates, run=self._identity)
            if why is None:
                return Resume(path, updates, manifest.fact(path, "records"), passed_over)
            passed_over.append(f"{path.name} is passed over: {why}.")
        return Resume(None, 0, 0, passed_over)

    def rewind(self, step: int) -> dict[str, Any] | None:
        """Forget what was recorded after `step`; return the last record that is left."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        disk.write_text(self.metrics, "".join(_line(record) for record in kept))
        for number, file in self._allocation_files():
            if number > step:
                file.unlink()
        return kept[-1] if kept else None

    def missing_records(self, step: int, records: int) -> list[str]:
        """Sentences on what is lost of the steps up to `step`, which had so many records; puts damaged files aside."""
        from pyarrow import ArrowException, parquet

        visits = set()
        for number, file in self._allocation_files():
            try:
                parquet.read_table(file, page_checksum_verification=True)
                visits.add(number)
            except (ArrowException, OSError):
                file.replace(file.with_name(f".{file.name}.damaged"))
        left = sum(record["step"] <= step for record in self.read_metrics())
        lost = {
            self.metrics.name: f"{records - left:,} of {records:,} records" if left < records else "",
            self.allocations.name: _steps([one for one in range(1, step + 1) if one not in visits]),
        }
        return [
            f"{name} has lost {what} up to step {step}: training is the same without, reports lack them."
            for name, what in lost.items()
            if what
        ]

    def read_metrics(self) -> list[dict[str, Any]]:
        """All records that are whole: a killed run may have left half a line, and a damaged disk anything."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_bytes().splitlines(keepends=True)
        return [record for line in lines if (record := _record(line)) is not None]

    def sync_metrics(self) -> None:
        """Return once all records are on the disk."""
        if self.metrics.exists():
            with self.metrics.open("rb") as file:
                os.fsync(file.fileno())

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one record; numbers that JSON lacks become null."""
        with open(self.metrics, "a", encoding="utf-8", opener=_no_link) as file:
            file.write(_line(record))

    def append_allocations(
        self,
        steps: ArrayLike,
        prompts: Sequence[str],
        rollouts: ArrayLike,
        scored: ArrayLike,
        successes: ArrayLike,
        belief: Belief,
    ) -> None:
        """Record one row per visit of a prompt; `steps` is the step of all of them, or that of each.

        `belief` is what was believed before the step.
        """
        import pyarrow as pa
        from pyarrow import parquet

        when = np.broadcast_to(np.asarray(steps), len(prompts))
        counts = {"rollouts": rollouts, "scored": scored, "successes": successes}
        columns = {
            "step": pa.array(when, pa.int32()),
            "prompt": pa.array([prompt.encode("utf-8", "backslashreplace") for prompt in prompts]).cast(pa.string()),
            **{name: pa.array(values, pa.int32()) for name, values in counts.items()},
            "belief_wins": pa.array(belief.wins, pa.float32()),
            "belief_losses": pa.array(belief.losses, pa.float32()),
        }
        self.allocations.mkdir(exist_ok=True)
        with disk.replacing(self.allocations / f"step-{when.max():06d}.parquet") as unfinished:
            parquet.write_table(pa.table(columns), unfinished, write_page_checksum=True)

    def read_environment(self) -> dict[str, Any]:
        """What the run was made with; nothing where that was never written, or is damaged."""
        return (_object(self.environment.read_bytes()) or {}) if self.environment.is_file() else {}

    @property
    def remarks(self) -> list[str]:
        """Sentences on what is damaged beside the checkpoints."""
        if not self._begun or self.read_environment():
            return []
        state = "is damaged" if self.environment.exists() else "is missing"
        return [f"{self.environment.name} {state}: when the run began is not known any more, so it is written anew."]

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Replace the record of what the run was made with."""
        disk.write_text(self.environment, json.dumps(environment, indent=2) + "\n")

    @property
    def _begun(self) -> bool:
        return self.environment.exists() or self.metrics.exists() or bool(self._numbered())

    @property
    def _identity(self) -> str:
        """The same for every process that works on this run, and another for any other run."""
        return hashlib.sha256(self.recipe.read_bytes()).hexdigest()[:16]

    def _numbered(self) -> list[tuple[int, Path]]:
        """Checkpoints by their updates, the newest first; whatever else is there is not ours."""
        names = ((_CHECKPOINT.fullmatch(path.name), path) for path in self.checkpoints.glob("checkpoint-*"))
        found = [(int(name[1]), path) for name, path in names if name is not None and path.is_dir()]
        return sorted(found, reverse=True)

    def _allocation_files(self) -> Iterator[tuple[int, Path]]:
        for path in sorted(self.allocations.glob("*.parquet")):
            if name := _ALLOCATIONS.fullmatch(path.name):
                yield int(name[1]), path

    def _refuse_others(self, recipe: str) -> None:
        """Refuse a directory with more in it than a run leaves that has not begun to train."""
        if self._begun and (self.recipe.is_file() or self.environment.is_file()):
            return
        claimed = (self.path / ".lock").exists()  # otherwise somebody else wrote the recipe
        if any(not self._may_be_there(path, recipe, claimed) for path in self.path.iterdir()):
            raise disk.taken(self.path, "a run")

    def _may_be_there(self, path: Path, recipe: str, claimed: bool) -> bool:
        """Whether a run may have left this before it began to train."""
        if path == self.recipe:
            return claimed or (path.is_file() and path.read_bytes() == recipe.encode())
        empty = path == self.checkpoints and path.is_dir() and not any(path.iterdir())
        return empty or path.name.startswith(".")

    def _check_or_write(self, recipe: str) -> None:
        if self._begun:
            differing = differences(_recipe_in(self.recipe), recipe, str(self.recipe))
            if differing:
                listed = "\n  ".join(differing)
                raise InvalidInputError(
                    f"{self.path} holds a run of another recipe:\n  {listed}\n"
                    "Choose another name=..., or another place with --output."
                )
        else:
            disk.write_text(self.recipe, recipe)


def _recipe_in(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        state = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise StateError(
            f"{path} is {state}, so nobody can tell of which run the rest is. Put the file back, or choose another "
            "name=..."
        ) from error


def _object(text: bytes) -> dict[str, Any] | None:
    """The JSON object in a text, None where there is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _record(line: bytes) -> dict[str, Any] | None:
    """The record on a line of metrics.jsonl, None where it is not whole."""
    found = _object(line) if line.endswith(b"\n") else None
    return found if found and isinstance(found.get("step"), int) else None


def _steps(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN])) + (" and others" if len(numbers) > _SHOWN else "")
    return f"{len(numbers):,} steps ({shown})" if numbers else ""


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _size(count: int) -> str:
    return f"{count / _GIBIBYTE:.1f} GiB" if count >= _GIBIBYTE else f"{count / _MEBIBYTE:.1f} MiB"


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
