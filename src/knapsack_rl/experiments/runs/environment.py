"""What a run was made with: versions, machine, command and times."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import datetime, timezone

import torch

from knapsack_rl.experiments.recipe.schema import Recipe
from knapsack_rl.experiments.runs.run_directory import RunDirectory

_LIBRARIES = (
    "accelerate",
    "datasets",
    "knapsack-rl",
    "math-verify",
    "numpy",
    "peft",
    "ray",
    "reasoning-gym",
    "torch",
    "transformers",
    "trl",
    "verl",
    "vllm",
)


def record_start(directory: RunDirectory, recipe: Recipe, command: str) -> None:
    """Put on record what is about to train, or to go on training."""
    earlier, now = directory.read_environment(), _now()
    directory.write_environment(
        {
            "command": command,
            "seed": recipe.seed,
            "versions": {name: version for name in _LIBRARIES if (version := _version(name)) is not None},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": "CPU" if recipe.trainer == "minimal" else device(),
            "processes": world_size(),
            "threads": torch.get_num_threads(),
            "started": earlier.get("started", now),
            "resumed": [*earlier.get("resumed", []), now] if earlier else [],
            "finished": None,
        }
    )


def record_end(directory: RunDirectory) -> None:
    """Put on record that the run has come to its end, once all that it measured is on the disk."""
    directory.sync_metrics()
    directory.write_environment({**directory.read_environment(), "finished": _now()})


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def device() -> str:
    """What trains: the first GPU's name, or CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))
