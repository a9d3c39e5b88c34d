"""`knapsack-rl train --engine verl`: a recipe's problems in verl's schema, and verl's own command, run as it stands."""

from __future__ import annotations

import importlib.util
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from knapsack_rl.errors import InvalidInputError, MissingExtraError, StateError
from knapsack_rl.experiments.engines import ingredients
from knapsack_rl.experiments.engines.schedule import sampling
from knapsack_rl.experiments.engines.verl.overrides import arguments, evaluation_files, overrides, written
from knapsack_rl.experiments.recipe import recipe_file
from knapsack_rl.experiments.recipe.schema import Recipe
from knapsack_rl.experiments.runs.environment import record_end, record_start
from knapsack_rl.experiments.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from datasets import Dataset

# In the environment of verl's processes, wherever in a cluster they run.
_LOG = "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH"


def train(recipe: Recipe, output: Path, command: str, say: Callable[[str], None]) -> int:
    """Train what `recipe` says in `output/name`, from verl's last checkpoint there if there is one.

    On several nodes, start Ray on all of them and call this on one; `output` must be a folder that all nodes share.

    Args:
        recipe: one with trainer=verl.
        output: the folder of run directories.
        command: what to put on record as the command that made the run.
        say: shows a line: verl's command.

    Returns:
        verl's exit code.

    Raises:
        InvalidInputError: the directory cannot take the run, or the data cannot be read.
        MissingExtraError: verl, or what the task needs, is not installed.
        StateError: another process is at work in the directory, or a file in it is damaged.
    """
    if importlib.util.find_spec("verl") is None:
        raise MissingExtraError(
            "--engine verl: verl is not installed. In a checkout run: pip install -c constraints-verl.txt '.[verl]' "
            "'verl[vllm]'"
        )
    directory = RunDirectory((output / recipe.name).absolute())
    commands = {final: _command(recipe, directory.path, final) for final in _processes(recipe)}
    directory.claim(recipe_file.render(recipe))
    try:
        if directory.finished:
            say(f"{directory.path} is finished already; choose another name=... for another run")
            return 0
        record_start(directory, recipe, command)
        _write_data(recipe, directory.path)
        for final, verl in commands.items():
            if not final and _trained_steps(directory) >= recipe.training.steps:
                continue
            whole = [*verl, f"{_LOG}={written(str(_new_log(directory.path, final)))}"]
            say(f"{shlex.join(whole)}\n")
            code = _run(whole, directory.lock)
            if code:
                return code
        record_end(directory)
        return 0
    finally:
        directory.release()


def dry_run(recipe: Recipe, output: Path) -> list[tuple[str, str]]:
    """What a run would do, in (label, text) rows: verl's commands; where verl is installed, it has checked every key.

    Raises:
        InvalidInputError: verl refuses a key of the recipe's `verl` block.
    """
    directory = (output / recipe.name).absolute()
    rows = [("recipe", f"{recipe.name}, seed {recipe.seed}"), ("run directory", str(directory))]
    rows += ingredients.remarks(recipe)
    for final in _processes(recipe):
        _check(overrides(recipe, directory, final))
        rows.append(("evaluation" if final else "training", shlex.join(_command(recipe, directory, final))))
    return rows


def _trained_steps(directory: RunDirectory) -> int:
    """Steps up to verl's last complete checkpoint."""
    latest = directory.checkpoints / "latest_checkpointed_iteration.txt"
    if not latest.exists():
        return 0
    text = latest.read_text(encoding="utf-8", errors="replace").strip()
    if not text.isdecimal():
        raise StateError(
            f"{latest} is damaged: expected the step of verl's last checkpoint, got {text[:40]!r}. Write that number "
            "into it: the folders beside it are called global_step_<number>."
        )
    return int(text)


def _new_log(directory: Path, final: bool) -> Path:
    """Where verl's metrics of this process go. verl begins a file anew, so that each process gets one of its own."""
    name = "verl-final" if final else "verl"
    return directory / f"{name}-{len(list(directory.glob(f'{name}-[0-9]*.jsonl'))) + 1}.jsonl"


def _processes(recipe: Recipe) -> tuple[bool, ...]:
    """Training, and the final evaluation where it is another than the usual one."""
    return (False,) if recipe.evaluation.final is None else (False, True)


def _command(recipe: Recipe, directory: Path, final: bool) -> list[str]:
    chosen = overrides(recipe, directory, final) | {"hydra.run.dir": str(directory / "hydra")}
    return [sys.executable, "-m", "verl.trainer.main_ppo", *arguments(chosen)]


def _check(chosen: dict[str, object]) -> None:
    """Let Hydra compose verl's configuration from the overrides, which refuses unknown keys, and check what it says."""
    if importlib.util.find_spec("verl") is None:
        return
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException

    from knapsack_rl.verl.checks import check

    with initialize_config_module("verl.trainer.config", version_base=None):
        try:
            config = compose("ppo_trainer", overrides=arguments(chosen))
        except HydraException as error:
            raise InvalidInputError(f"verl: verl refuses this recipe: {error}") from error
    check(config)


def _write_data(recipe: Recipe, directory: Path) -> None:
    """The problems as parquet files in verl's schema, with the columns that the allocator is told of."""
    task = ingredients.problems(recipe)
    ingredients.feature_columns(recipe, task)
    _write(task.train, "train", directory / "data" / "train.parquet")
    for final in _processes(recipe):
        how = sampling(recipe, last=final)
        for (name, problems), path in zip(
            task.evaluation.items(), evaluation_files(recipe, directory, final), strict=True
        ):
            _write(how.kept(problems), name, path)


def _write(problems: Dataset, source: str, path: Path) -> None:
    def in_verls_schema(row: dict[str, object], index: int) -> dict[str, object]:
        return {
            "data_source": source,
            "ability": row["category"],
            "reward_model": {"style": "rule", "ground_truth": row["answer"]},
            "extra_info": {"index": index, "answer_type": row["answer_type"]},
        }  # beside the columns that the problems have, of which the allocator may be told

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    problems.map(in_verls_schema, with_indices=True).to_parquet(str(partial))
    partial.replace(path)


def _run(command: list[str], lock: int) -> int:
    """Run verl, which gets the signals that we get, and return its exit code, or 128 + the signal that ended it.

    verl keeps the run directory's lock for as long as it lives, whatever becomes of this process.
    """
    received: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _: object) -> None:
        received.append(number)
        for child in children:
            child.send_signal(number)

    earlier = {number: signal.signal(number, forward) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(command, start_new_session=True, pass_fds=(lock,))
        children.append(process)
        if received:  # before there was a child
            process.send_signal(received[-1])
        code = process.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if code and received:
        return 128 + received[0]
    return 128 - code if code < 0 else code
