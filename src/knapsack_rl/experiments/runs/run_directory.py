"""What a run leaves on the disk, written so that a crash at any moment loses nothing that a resume needs."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike

from knapsack_rl.belief import Belief
from knapsack_rl.errors import InvalidInputError, StateError
from knapsack_rl.experiments.recipe.recipe_file import differences

_MEBIBYTE, _GIBIBYTE = 2**20, 2**30


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
        self._lock: IO[str] | None = None

    def claim(self, recipe: str) -> None:
        """Make the directory, or check that it holds a run of this very recipe; keep other processes out from now on.

        Raises:
            InvalidInputError: the directory cannot be written to, or has another run or something else in it.
            StateError: another process is at work in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise InvalidInputError(
                f"--output: cannot write to {self.path}: {error.strerror}. Choose another place with --output."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise StateError(
                f"{self.path}: another process is at work on this run. Wait for it, or choose another name=..."
            ) from error
        try:
            self._check_or_write(recipe)
        except OSError as error:
            self.release()
            raise InvalidInputError(
                f"--output: cannot write to {self.path}: {error.strerror}. Choose another place with --output."
            ) from error
        except InvalidInputError:
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

    @property
    def disk_is_full(self) -> bool:
        """Whether there is next to no space left on its disk."""
        return shutil.disk_usage(self.path).free < _MEBIBYTE

    @property
    def finished(self) -> bool:
        """Whether the run in it has come to its end."""
        return self.environment.exists() and self.read_environment().get("finished") is not None

    def latest_checkpoint(self) -> tuple[Path, int] | None:
        """The newest complete checkpoint and the optimiser updates before it."""
        numbered = [(int(path.name.rpartition("-")[2]), path) for path in self.checkpoints.glob("checkpoint-*")]
        for updates, path in sorted(numbered, reverse=True):
            if _is_complete(path):
                return path, updates
        return None

    def rewind(self, step: int) -> dict[str, Any] | None:
        """Forget what was recorded after `step`; return the last record that is left."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        _replace(self.metrics, "".join(_line(record) for record in kept))
        for file in self.allocations.glob("*.parquet"):
            if int(file.stem.rpartition("-")[2]) > step:
                file.unlink()
        return kept[-1] if kept else None

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete records."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one record; numbers that JSON lacks become null."""
        with self.metrics.open("a", encoding="utf-8") as file:
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
            "prompt": pa.array(prompts, pa.string()),
            **{name: pa.array(values, pa.int32()) for name, values in counts.items()},
            "belief_wins": pa.array(belief.wins, pa.float32()),
            "belief_losses": pa.array(belief.losses, pa.float32()),
        }
        self.allocations.mkdir(exist_ok=True)
        unfinished = self.allocations / ".unfinished"
        parquet.write_table(pa.table(columns), unfinished)
        unfinished.replace(self.allocations / f"step-{when.max():06d}.parquet")

    def read_environment(self) -> dict[str, Any]:
        """What the run was made with."""
        environment: dict[str, Any] = json.loads(self.environment.read_text(encoding="utf-8"))
        return environment

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Replace the record of what the run was made with."""
        _replace(self.environment, json.dumps(environment, indent=2) + "\n")

    def _check_or_write(self, recipe: str) -> None:
        if self.environment.exists():  # training has begun
            differing = differences(self.recipe.read_text(encoding="utf-8"), recipe)
            if differing:
                listed = "\n  ".join(differing)
                raise InvalidInputError(
                    f"{self.path} holds a run of another recipe:\n  {listed}\n"
                    "Choose another name=..., or another place with --output."
                )
        elif any(path != self.recipe and not path.name.startswith(".") for path in self.path.iterdir()):
            raise InvalidInputError(
                f"--output: {self.path} has files in it that are not of a run. "
                "Choose another name=..., or another place with --output."
            )
        else:
            _replace(self.recipe, recipe)


def _is_complete(checkpoint: Path) -> bool:
    """Whether the last file of a checkpoint is there; on a full disk it may be cut off."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


def _size(count: int) -> str:
    return f"{count / _GIBIBYTE:.1f} GiB" if count >= _GIBIBYTE else f"{count / _MEBIBYTE:.1f} MiB"


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
