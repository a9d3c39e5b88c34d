"""Runs arms in processes of their own: in parallel, once each, and going on where a killed comparison was."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from knapsack_rl.errors import KnapsackError
from knapsack_rl.experiments.compare.comparison import ArmRun
from knapsack_rl.experiments.recipe.schema import Recipe
from knapsack_rl.experiments.runs.interruption import Interrupted
from knapsack_rl.experiments.runs.run_directory import RunDirectory

# Imported once by the server that arms are forked from; an arm then starts in milliseconds instead of seconds.
_PRELOADED = [
    "knapsack_rl.experiments.engines.minimal.run",
    # What that imports only when it makes the problems and the model.
    "datasets",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3",
]


@dataclass(frozen=True)
class Failure:
    """An arm that did not come to its end, or of whose finished run a part is lost.

    Attributes:
        arm: which.
        reason: a sentence.
        log: the file that has the rest.
        lost: whether its run is finished, so that the same command does not run it again by itself.
    """

    arm: ArmRun
    reason: str
    log: Path
    lost: bool = False


def is_finished(arm: ArmRun, pool: Path) -> bool:
    """Whether the run of `arm` is in `pool` already."""
    return RunDirectory(pool / arm.folder).finished


def run(
    arms: Iterable[ArmRun], pool: Path, jobs: int, on_end: Callable[[ArmRun, Failure | None], None]
) -> list[Failure]:
    """Run what is not finished yet, `jobs` at a time.

    Every arm has a process of its own, so that one that fails takes no other with it, and one thread. Should this
    process end in whatever way, the arms end too; another call goes on: finished runs are kept, TRL's go on from their
    last checkpoint, and those of the minimal trainer begin anew.

    Args:
        arms: what to run; arms with the same run are run once.
        pool: where the run directories are.
        jobs: processes at the same time, 1 or more.
        on_end: called after every arm.

    Returns:
        The arms that failed. The log of each is beside its run directory.
    """
    waiting = list({arm.folder: arm for arm in arms if not is_finished(arm, pool)}.values())
    pool.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    running: dict[int, tuple[ArmRun, ForkServerProcess]] = {}
    failures = []
    try:
        for stage in _stages(waiting):
            queue = list(stage)
            while queue or running:
                while queue and len(running) < jobs:
                    arm = queue.pop(0)
                    process = context.Process(target=_work, args=(arm.recipe.model_dump_json(), pool, _log(arm, pool)))
                    process.start()
                    running[process.sentinel] = (arm, process)
                for ended in wait(list(running)):
                    arm, process = running.pop(ended)  # type: ignore[arg-type] # a sentinel is an int here
                    process.join()
                    failure = None
                    if process.exitcode or not is_finished(arm, pool):
                        failure = Failure(arm, _reason(process.exitcode, _log(arm, pool)), _log(arm, pool))
                        failures.append(failure)
                    on_end(arm, failure)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()
    return failures


def _stages(arms: Sequence[ArmRun]) -> list[list[ArmRun]]:
    """First an arm for every warm start, so that no two train the same one at the same time; then the others."""
    first: dict[str, str] = {}
    for arm in arms:
        if arm.recipe.model.warm_start is not None:
            first.setdefault(arm.recipe.model_dump_json(include={"model", "task", "seed"}), arm.folder)
    makers = set(first.values())
    return [[arm for arm in arms if arm.folder in makers], [arm for arm in arms if arm.folder not in makers]]


def _log(arm: ArmRun, pool: Path) -> Path:
    return pool / f"{arm.folder}.log"


def _reason(exit_code: int | None, log: Path) -> str:
    if exit_code is not None and exit_code < 0:
        return f"ended by signal {-exit_code}"
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else f"ended with exit code {exit_code} and wrote nothing"


def _work(recipe_text: str, pool: Path, log: Path) -> None:
    """One arm, in its own process."""
    os.setpgrp()  # Ctrl-C on a terminal is for the comparison, which then stops every arm once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with log.open("a", encoding="utf-8") as file:  # another comparison may be at the same run
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch
    from rich.console import Console

    torch.set_num_threads(1)
    recipe = Recipe.model_validate_json(recipe_text)
    if recipe.trainer == "minimal":
        from knapsack_rl.experiments.engines.minimal.run import train
    else:
        from knapsack_rl.experiments.engines.trl.run import train
    try:
        train(recipe, pool, f"knapsack-rl train {pool / recipe.name / 'recipe.yaml'}", Console(width=100), alone=False)
    except KnapsackError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")  # the last line of the log is the reason that is told
        sys.exit(2)
    except Interrupted as stop:
        sys.exit(128 + stop.number)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
