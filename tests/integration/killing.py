"""Small runs, what they leave, and commands in processes that are killed as they touch a file."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

# What Python announces before it opens, renames, makes or removes something; libraries that write in C come between.
_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}
_PRELOADED = ["knapsack_rl.experiments.engines.trl.run", "knapsack_rl.experiments.engines.minimal.run"]


RECIPE = """
name: tiny
trainer: {trainer}
task: {{kind: chain-arithmetic, train_problems: 24, eval_problems: 6, operations: 1}}
model: {{kind: scratch, layers: 1, width: 32, heads: 2, warm_start: {{steps: 40, batch_size: 64}}}}
allocator: {{strategy: knapsack, max_rollouts: 16}}
training:
  steps: 5
  prompts_per_step: 8
  group_size: 4
  updates_per_step: {updates}
  micro_batch_size: 16
  learning_rate: 1e-3
  max_completion_length: 4
  checkpoint_every: 2
evaluation: {{every: 2, samples: 2}}
"""
TIMES = {"time", "training_seconds", "step_time", "allocation_seconds"}
# Besides what says when and where: the manifest lists these, and the report's tables of times.
UNLIKE = {"trainer_state.json", "training_args.bin", "manifest.json", "key-numbers.csv", "report.html"}


def recipe(folder: Path, trainer: str) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(trainer=trainer, updates=2 if trainer == "trl" else 1))
    return path


def outcome(run: Path) -> dict[str, Any]:
    """Everything that a run leaves, but for times and what libraries write of these."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {
        "metrics": [{key: value for key, value in line.items() if key not in TIMES} for line in lines],
        "allocations": pd.read_parquet(run / "allocations.parquet").to_dict("list"),
        "finished": json.loads((run / "environment.json").read_text())["finished"] is not None,
    }
    for folder in ("model", "checkpoints", "figures"):
        for path in sorted((run / folder).rglob("*")):
            if path.is_file() and path.name not in UNLIKE and not path.name.startswith("."):
                found[str(path.relative_to(run))] = path.read_bytes()
    return found


def run(arguments: Sequence[str], folder: Path, kill_at: int | None = None) -> tuple[int, int]:
    """Run a command; return its exit code, -9 if it was killed, and how often it touched a file in `folder`.

    Args:
        arguments: of `knapsack-rl`.
        folder: where touches count.
        kill_at: SIGKILL comes before the touch of this number, from 1 on; None for never.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)  # imported once, then a process starts in milliseconds
    receiver, sender = context.Pipe(duplex=False)
    log = folder.with_name(f"{folder.name}.log")
    process = context.Process(target=_work, args=(list(arguments), str(folder), kill_at, sender, str(log)))
    process.start()
    sender.close()
    process.join()
    touched = receiver.recv() if process.exitcode != -signal.SIGKILL else kill_at or 0
    receiver.close()
    assert process.exitcode in (0, -signal.SIGKILL), log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
    return int(process.exitcode or 0), int(touched)


def _work(arguments: list[str], folder: str, kill_at: int | None, sender: Any, log: str) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from knapsack_rl.cli import main

    torch.set_num_threads(1)
    touched = 0

    def watch(event: str, details: tuple[Any, ...]) -> None:
        nonlocal touched
        if event in _EVENTS and isinstance(details[0], str | os.PathLike) and os.fspath(details[0]).startswith(folder):
            touched += 1
            if touched == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    code = main(arguments)
    sender.send(touched)
    sys.exit(code)
