"""A comparison from beginning to end: tune, choose, run, report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from knapsack_rl.errors import InvalidInputError, StateError
from knapsack_rl.experiments import disk
from knapsack_rl.experiments.compare import arms as running
from knapsack_rl.experiments.compare import results
from knapsack_rl.experiments.compare.arms import Failure
from knapsack_rl.experiments.compare.comparison import ArmRun, Comparison, ComparisonRuns
from knapsack_rl.experiments.compare.report import write_report
from knapsack_rl.experiments.compare.summary_table import markdown
from knapsack_rl.experiments.pages.page import figures_of
from knapsack_rl.experiments.recipe import yaml_text
from knapsack_rl.experiments.runs.interruption import Interruption
from knapsack_rl.experiments.runs.run_directory import RunDirectory

POOL = "arms"
"""Below the output folder: the run directories of all comparisons, so that none is run twice."""
_FILE = "comparison.yaml"
_TABLES = ("summary", "runs", "curves", "cost_to_reach", "steps", "tuning")


@dataclass(frozen=True)
class ComparisonOutcome:
    """What became of a comparison."""

    report: Path
    summary: pd.DataFrame
    failures: list[Failure]


def compare(planned: ComparisonRuns, output: Path, jobs: int, command: str, console: Console) -> ComparisonOutcome:
    """Run everything that is missing, and write `output/NAME/report.html` and its tables.

    Args:
        planned: what to compare.
        output: the folder of run directories; runs go to `arms` in it.
        jobs: runs at the same time.
        command: what to put on record as the command that made the comparison.
        console: where to show progress.

    Raises:
        InvalidInputError: the output folder cannot be written to, or has something else in it.
        StateError: another process is at work on this comparison, or so many arms failed that nothing can be compared;
            the message has their reasons.
        Interrupted: a signal came. Running arms were stopped; the same call goes on.
    """
    folder, pool = _folder(planned, output), output / POOL
    for needed in (folder, pool):
        try:
            needed.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(
                f"--output: cannot write to {needed}: {error.strerror}. Choose another place with --output."
            ) from error
    with disk.lock(folder / ".lock"):
        if not (folder / _FILE).exists():  # what else comes into the folder is a comparison's from now on
            disk.write_text(folder / _FILE, _rendered(planned, folder))
        return _compare(planned, folder, pool, jobs, command, console)


def _compare(
    planned: ComparisonRuns, folder: Path, pool: Path, jobs: int, command: str, console: Console
) -> ComparisonOutcome:
    with Interruption(lambda: None).listening():
        trials = planned.tuning()
        failures = _run("tuning", trials, pool, jobs, console)
        tuned, lost = _tuned(planned, trials, pool, console)
        chosen = {} if tuned is None else _chosen(tuned)
        final = planned.reported(chosen)
        failures += lost + _run("comparing", final, pool, jobs, console)
    found, done, lost = _read(final, pool, console)
    failures += lost
    if not any(arm.name == planned.comparison.baseline for arm in done):
        raise StateError(f"{folder}: no arm of the baseline came to its end.\n" + "\n".join(map(_told, failures)))
    tables = _compared(planned, *found)
    if tuned is not None:
        tables["tuning"] = tuned
    earlier = figures_of(folder / "report.html")
    _save(tables, folder)
    disk.write_text(folder / _FILE, _rendered(planned, folder))
    page = write_report(planned, tables, failures, _environments(done, pool), folder, command)
    for stale in {folder / f"{name}.csv" for name in _TABLES if name not in tables} | (earlier - figures_of(page)):
        stale.unlink(missing_ok=True)
    return ComparisonOutcome(page, tables["summary"], failures)


def _folder(planned: ComparisonRuns, output: Path) -> Path:
    """Where the comparison goes: a folder that is not there, or has nothing in it but an earlier one."""
    name = planned.comparison.name
    folder = output / name
    if name == POOL or (folder / "environment.json").exists():
        holds = "the runs of all comparisons are" if name == POOL else "a run is"
        raise InvalidInputError(f"name: {folder} is where {holds} already; choose another with name=...")
    if folder.is_dir() and not _is_comparison(folder) and any(path.name[0] != "." for path in folder.iterdir()):
        raise disk.taken(folder, "a comparison")
    return folder


def _is_comparison(folder: Path) -> bool:
    """Whether its comparison.yaml is one that this program wrote, with every key and without a comment."""
    try:
        text = (folder / _FILE).read_text(encoding="utf-8")
        found = yaml_text.parse(text, _FILE)
    except (OSError, ValueError):
        return False
    return (
        isinstance(found, dict) and found.keys() >= Comparison.model_fields.keys() and yaml_text.render(found) == text
    )


def _rendered(planned: ComparisonRuns, folder: Path) -> str:
    """The comparison as YAML that makes the same one where it is read from `folder`."""
    recipe = None if planned.recipe_path is None else os.path.relpath(planned.recipe_path, folder)
    return yaml_text.render({**planned.comparison.model_dump(mode="json"), "recipe": recipe})


def plan(planned: ComparisonRuns, output: Path) -> list[tuple[str, str]]:
    """What `compare` would do, in a few (label, text) rows."""
    comparison, pool = planned.comparison, output / POOL
    _folder(planned, output)
    trials = planned.tuning()
    rows = [
        ("comparison", comparison.name),
        ("arms", ", ".join(comparison.arms)),
        ("baseline", comparison.baseline),
        ("equal", comparison.equal),
        ("seeds", ", ".join(map(str, comparison.seeds))),
    ]
    if comparison.tuning is not None:
        points = "; ".join(f"{key} in {values}" for key, values in comparison.tuning.grid.items())
        seeds = ", ".join(map(str, comparison.tuning.seeds))
        rows.append(("tuning", f"{points}, on seeds {seeds}: {_to_do(trials, pool)}"))
        final = len(planned.variations) * len(comparison.arms) * len(comparison.seeds)
        rows.append(("then", f"{final} runs with what each arm kept"))
    else:
        rows.append(("runs", _to_do(planned.reported({}), pool)))
    return [*rows, ("report", str(output / comparison.name / "report.html"))]


def _to_do(arms: Sequence[ArmRun], pool: Path) -> str:
    different = {arm.folder: arm for arm in arms}
    waiting = sum(not running.is_finished(arm, pool) for arm in different.values())
    return f"{len(different)} runs, {waiting} of them to do"


def _run(what: str, arms: Sequence[ArmRun], pool: Path, jobs: int, console: Console) -> list[Failure]:
    different = {arm.folder: arm for arm in arms}
    waiting = sum(not running.is_finished(arm, pool) for arm in different.values())
    if not waiting:
        return []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(what, total=len(different), completed=len(different) - waiting)

        def on_end(arm: ArmRun, failure: Failure | None) -> None:
            progress.advance(bar)
            if failure is not None:
                progress.console.print(_told(failure), markup=False, highlight=False, soft_wrap=True)
            elif not console.is_terminal:
                progress.console.print(f"{what}: {_named(arm)}", markup=False, highlight=False, soft_wrap=True)

        failures = running.run(arms, pool, jobs, on_end)
    # One that another comparison was at work on may be finished by now.
    return [failure for failure in failures if not running.is_finished(failure.arm, pool)]


def _read(
    arms: Sequence[ArmRun], pool: Path, console: Console
) -> tuple[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame], list[ArmRun], list[Failure]]:
    """Tables of the finished runs, of which arms they are, and the arms of whose runs a part is lost."""
    finished = [arm for arm in arms if running.is_finished(arm, pool)]
    runs, curves, steps, lost = results.read(finished, pool)
    failures = [Failure(arm, why, pool / arm.folder / "metrics.jsonl", lost=True) for arm, why in lost]
    for failure in failures:
        console.print(_told(failure), markup=False, highlight=False, soft_wrap=True)
    without = [arm for arm, _ in lost]
    return (runs, curves, steps), [arm for arm in finished if arm not in without], failures


def _tuned(
    planned: ComparisonRuns, trials: Sequence[ArmRun], pool: Path, console: Console
) -> tuple[pd.DataFrame | None, list[Failure]]:
    """What every point of the grid reached and which one each arm keeps; the arms of whose runs a part is lost."""
    if planned.comparison.tuning is None:
        return None, []
    (runs, curves, _), done, lost = _read(trials, pool, console)
    if not done:
        raise StateError("tuning: every run failed; see the reasons above.")
    return results.best_choices(results.at_equal_cost(runs, curves, planned.comparison)), lost


def _chosen(tuned: pd.DataFrame) -> dict[tuple[str, str], str]:
    return {(row["variation"], row["arm"]): row["choice"] for row in tuned[tuned["chosen"]].to_dict("records")}


def _compared(
    planned: ComparisonRuns, runs: pd.DataFrame, curves: pd.DataFrame, steps: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    taken = results.at_equal_cost(runs, curves, planned.comparison)
    reach = results.cost_to_reach(taken, curves, planned.comparison)
    summary = results.summary(taken, reach, planned.comparison)
    return {"summary": summary, "runs": taken, "curves": curves, "cost_to_reach": reach, "steps": steps}


def _save(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    for name, table in tables.items():
        disk.write_csv(table, folder / f"{name}.csv", float_format="%.6g")
    disk.write_text(folder / "summary.md", markdown(tables["summary"]))


def _environments(arms: Sequence[ArmRun], pool: Path) -> list[dict[str, Any]]:
    return [RunDirectory(pool / arm.folder).read_environment() for arm in arms]


def _named(arm: ArmRun) -> str:
    parts = (arm.variation, arm.name, arm.choice, f"seed {arm.seed}")
    return ", ".join(part for part in parts if part)


def _told(failure: Failure) -> str:
    return f"failed: {_named(failure.arm)}: {failure.reason} (see {failure.log})"
