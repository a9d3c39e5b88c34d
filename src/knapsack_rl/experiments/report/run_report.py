"""The report of a run, or of several laid over each other, from their run directories.

Everything is recomputed from what `run_data` reads in the run directories, so a report can be made again long after its
run, and a run that was interrupted gets a report of what it did until then.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from knapsack_rl.errors import InvalidInputError, MissingExtraError

try:
    import pandas as pd

    from knapsack_rl.experiments.pages.drawing import RUN_COLOURS
    from knapsack_rl.experiments.pages.page import (
        Command,
        DataTable,
        Facts,
        Listing,
        Part,
        Section,
        alone,
        refuse_others,
        write_page,
    )
    from knapsack_rl.experiments.pages.wording import duration, percent, plain, plural
    from knapsack_rl.experiments.report import run_charts, run_data
    from knapsack_rl.experiments.report.run_data import Run, Visits
except ImportError as error:
    raise MissingExtraError(
        f"A report needs {error.name}, which is not installed. Run: pip install 'knapsack-rl[report]'"
    ) from error

_TOP_PROMPTS = 20
_LOG_SCORE = "Log score of predictions, mean (nats)"
_SOLVED = "Problems solved in at least one sample"
_COSTS = {
    "Tokens per step, mean": "cost/real",
    "Tokens per step as expected, mean": "cost/expected",
    "Tokens per step expected of even groups, mean": "cost/even",
}


def write_report(run_dirs: Sequence[Path], output: Path | None = None) -> Path:
    """Write the report of one run, or of several laid over each other, and return the path of the page.

    Args:
        run_dirs: one to five run directories, as `knapsack-rl train` writes them; finished or not.
        output: the page to write. By default `report.html` inside the directory of a single run, and
            `A-vs-B/report.html` beside the directories of several.

    A folder `figures` beside the page gets its figures and tables as files (`page.write_page`).

    Raises:
        InvalidInputError: no directory or more than five, or one twice; a directory that is not a run (the message
            names what is missing) or holds a damaged file; an output that cannot be written, or beside which figures
            of others would give way.
    """
    folders = [Path(folder) for folder in run_dirs]
    if not 1 <= len(folders) <= len(RUN_COLOURS):
        raise InvalidInputError(f"run_dirs: expected 1 to {len(RUN_COLOURS)} run directories, got {len(folders)}.")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InvalidInputError(f"run_dirs: expected each directory once, got {', '.join(map(str, folders))}.")
    names = _distinct_names(folders)
    runs = [run_data.read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    command = ["knapsack-rl", "report", *map(str, folders), *([] if output is None else ["--output", str(output)])]
    named = output is not None
    if output is None:
        roots = [folder.resolve() for folder in folders]
        beside = folders[0] if len(runs) == 1 else roots[0].parent / "-vs-".join(root.name for root in roots)
        output = beside / "report.html"
    if output.parent not in folders:
        refuse_others(output.parent, *([] if named else [output.name]))
    visits = {run.name: run_data.visits(run) for run in runs}
    with alone(output.parent):
        return _write(runs, visits, output, shlex.join(command))


def _write(runs: Sequence[Run], visits: dict[str, Visits | None], output: Path, command: str) -> Path:
    return write_page(
        output,
        kind="training report",
        title=" against ".join(run.name for run in runs),
        summary=[_summary(run, visits[run.name]) for run in runs],
        notes=[
            "Runs with one seed each do not show that a strategy is better; repeat them with several seeds."
            if len(runs) > 1
            else "One run with one seed shows what happened, not that a strategy is better than another.",
            *_alarms(runs),
            *_absent(runs, visits),
        ],
        sections=[
            Section("Key numbers", [_key_numbers(runs, visits)]),
            Section(
                "Learning",
                [
                    *run_charts.gradients(runs),
                    *run_charts.rewards(runs),
                    *run_charts.accuracies(runs),
                    *_accuracy_table(runs),
                ],
            ),
            Section("Budgets", [*run_charts.budgets(runs), *run_charts.costs(runs), *_top_prompts(runs)]),
            Section("Predictions", run_charts.predictions(runs)),
            *([Section("Worth of gradients", worth)] if (worth := run_charts.influence(runs)) else []),
            Section("Prompts", [*run_charts.statuses(runs, visits), *run_charts.single_prompts(runs)]),
            Section("How the runs were made" if len(runs) > 1 else "How the run was made", _how_made(runs)),
        ],
        command=command,
    )


def _distinct_names(folders: Sequence[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _summary(run: Run, visits: Visits | None) -> str:
    """What happened, in a paragraph, from the data alone."""
    strategy = run.setting("allocator", "strategy") or "unnamed"
    if not len(run.steps):
        return f"{run.name} ({strategy} allocation) has not finished a training step yet." + _accuracy_sentence(run)
    spent = int(run.steps["rollouts"].iloc[-1])
    planned = run.planned_steps
    steps = plural(run.last_step, "step")
    if planned is not None and run.last_step < planned:
        # A finished run has fewer steps than planned where it dropped rollouts (dynamic sampling), which count too.
        why = "the rollouts it dropped count too" if run.finished else "it is not finished"
        steps = f"{run.last_step:,} of {plural(planned, 'step')} ({why})"
    parts = [
        f"{run.name} trained with {strategy} allocation for {steps}, and spent "
        f"{plural(spent, 'rollout')} in {duration(run.seconds)}."
    ]
    ratio = run.mean("effective_gradient_ratio")
    if ratio is not None:
        wasted = {quantity: run.mean(run_charts.RATIOS[quantity]) for quantity in ("all correct", "all wrong")}
        told = " and ".join(f"{percent(value)} ({name})" for name, value in wasted.items() if value is not None)
        parts.append(
            f"On average {percent(ratio)} of the rollouts carried a gradient"
            + (f"; of the prompts of a step, {told} gave none." if told else ".")
        )
    budgets = run.allocations["rollouts"]
    if len(budgets):
        if budgets.min() == budgets.max():
            parts.append(f"Every prompt got {plural(int(budgets.min()), 'rollout')} at every visit.")
        else:
            parts.append(
                f"A prompt got between {budgets.min():,} and {budgets.max():,} rollouts a step, and "
                f"{budgets.mean():.3g} on average."
            )
    if visits is not None:
        before, after = int((visits.first == 0).sum()), int((visits.last == 0).sum())
        parts.append(
            f"Of the {plural(len(visits.first), 'prompt')} visited, {before:,} had no success at their first visit "
            f"and {after:,} had none at their last."
        )
    return " ".join(parts) + _accuracy_sentence(run)


def _accuracy_sentence(run: Run) -> str:
    if run.evaluations.empty:
        return " Held-out accuracy has not been measured yet."
    means = run_data.mean_accuracies(run)
    if means.empty:  # no evaluation measured all benchmarks
        return ""
    benchmarks = run.evaluations["benchmark"].nunique()
    of_what = f" (mean of {benchmarks} benchmarks)" if benchmarks > 1 else ""
    first, last = means["accuracy"].iloc[0], means["accuracy"].iloc[-1]
    if len(means) == 1:
        step = int(means["step"].iloc[0])
        when = "before training" if step == 0 else f"after {plural(step, 'step')}"
        return f" Held-out accuracy{of_what} was {percent(first)} {when}."
    return f" Held-out accuracy{of_what} went from {percent(first)} to {percent(last)}."


def _key_numbers(runs: Sequence[Run], visits: dict[str, Visits | None]) -> DataTable:
    """A row for each quantity, a column for each run."""
    benchmarks = _benchmarks(runs)
    accuracy = "Held-out accuracy, mean over benchmarks" if len(benchmarks) > 1 else "Held-out accuracy"
    if len(benchmarks) == 1:
        accuracy = f"Accuracy on {benchmarks[0]}"

    def of_visits(count: Callable[[Visits], int]) -> tuple[Callable[[Any], str], Callable[[Run], Any]]:
        return plain, lambda run: None if (seen := visits[run.name]) is None else count(seen)

    quantities: dict[str, tuple[Callable[[Any], str], Callable[[Run], Any]]] = {
        "Strategy": (str, lambda run: run.setting("allocator", "strategy")),
        "Steps": (plain, lambda run: run.last_step),
        "Steps planned": (plain, lambda run: run.planned_steps),
        "Rollouts": (plain, lambda run: int(run.steps["rollouts"].iloc[-1]) if len(run.steps) else 0),
        f"{accuracy}, first": (percent, lambda run: _first_and_last(run_data.mean_accuracies(run))[0]),
        f"{accuracy}, last": (percent, lambda run: _first_and_last(run_data.mean_accuracies(run))[1]),
        f"{_SOLVED}, first": (percent, lambda run: _first_and_last(run_data.mean_accuracies(run), "solved")[0]),
        f"{_SOLVED}, last": (percent, lambda run: _first_and_last(run_data.mean_accuracies(run), "solved")[1]),
        "Effective gradient ratio, mean": (percent, lambda run: run.mean("effective_gradient_ratio")),
        "Prompts per step, mean": (lambda mean: f"{mean:.4g}", lambda run: run_data.groups_per_step(run)[0]),
        "Effective prompts per step, mean": (lambda mean: f"{mean:.1f}", lambda run: run_data.groups_per_step(run)[1]),
        **{name: (plain, partial(Run.mean, key=key)) for name, key in _COSTS.items()},
        _LOG_SCORE: (lambda mean: f"{mean:.3f}", lambda run: run.mean(run_charts.LOG_SCORE)),
        "Prompts visited": of_visits(lambda seen: len(seen.first)),
        "Prompts without a success at the first visit": of_visits(lambda seen: int((seen.first == 0).sum())),
        "Prompts without a success at the last visit": of_visits(lambda seen: int((seen.last == 0).sum())),
        "Prompts never solved in the run": of_visits(lambda seen: seen.never_solved),
        "Wall-clock of training and evaluation": (duration, lambda run: run.seconds or None),
        "Share of it in allocation": (_small_percent, _allocation_share),
    }
    rows = {quantity: [read(run) for run in runs] for quantity, (_, read) in quantities.items()}
    if rows["Steps planned"] == rows["Steps"]:
        del rows["Steps planned"]
    for quantity in (f"{_SOLVED}, first", f"{_SOLVED}, last", *_COSTS, _LOG_SCORE):
        if not any(rows[quantity]):  # nobody solved any, no costs were told, or an earlier version made the run
            del rows[quantity]
    values = pd.DataFrame.from_dict(rows, orient="index", columns=[run.name for run in runs], dtype=object)
    return DataTable(
        name="key-numbers",
        title="The runs side by side" if len(runs) > 1 else "The run in numbers",
        caption="Means are over steps. In the CSV, shares go from 0 to 1 and times are in seconds.",
        data=values.rename_axis("Quantity").reset_index(),
        row_formats={quantity: quantities[quantity][0] for quantity in rows},
        source="metrics.jsonl, allocations.parquet",
    )


def _accuracy_table(runs: Sequence[Run]) -> list[DataTable]:
    """A row for each benchmark of each run; with a single benchmark, the key numbers say it all."""
    if len(_benchmarks(runs)) < 2:
        return []
    rows = []
    for run in runs:
        for benchmark, evaluations in run.evaluations.groupby("benchmark", sort=False):
            first, last = _first_and_last(evaluations)
            rows.append(
                {
                    "Benchmark": benchmark,
                    "Run": run.name,
                    "Evaluations": len(evaluations),
                    "First": first,
                    "Last": last,
                    "Change": None if first is None or last is None else last - first,
                }
            )
    table = pd.DataFrame(rows)
    return [
        DataTable(
            name="accuracy",
            title="Held-out accuracy",
            caption=f"Accuracy on problems that are not trained on, {run_charts.samples(runs)}, at the first and at "
            "the last evaluation, and the change in percentage points.",
            data=table if len(runs) > 1 else table.drop(columns="Run"),
            formats={"First": percent, "Last": percent, "Change": lambda change: f"{100.0 * change:+.1f}"},
            source="metrics.jsonl",
        )
    ]


def _benchmarks(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.evaluations["benchmark"]))


def _first_and_last(evaluations: pd.DataFrame, column: str = "accuracy") -> tuple[float | None, float | None]:
    """The accuracies of a table, by rising step; None for what there is not."""
    accuracies = evaluations[column].dropna().tolist()
    return (accuracies[0] if accuracies else None), (accuracies[-1] if len(accuracies) > 1 else None)


def _top_prompts(runs: Sequence[Run]) -> list[DataTable]:
    """The prompts with most rollouts, a table for each run that gave some visits more than others."""
    shares = ["Share of budget", "First success rate", "Last success rate"]
    columns = ["Prompt", "Visits", "Rollouts", shares[0], "Successes", *shares[1:]]
    tables = []
    for index, run in enumerate(runs):
        if run.allocations["rollouts"].nunique() < 2:
            continue
        data = run_data.top_prompts(run, _TOP_PROMPTS).set_axis(columns, axis=1)
        share = float(data["Share of budget"].sum())
        tables.append(
            DataTable(
                name="top-prompts" if len(runs) == 1 else f"top-prompts-{index + 1}",
                title="Prompts with most of the budget" + (f": {run.name}" if len(runs) > 1 else ""),
                caption=f"The {plural(len(data), 'prompt')} with most rollouts, {percent(share)} of the run's. "
                "A success rate is what was observed of the rollouts of one visit.",
                data=data,
                formats=dict.fromkeys(shares, percent),
                source="allocations.parquet",
            )
        )
    return tables


def _allocation_share(run: Run) -> float | None:
    if "allocation_seconds" not in run.steps or run.seconds <= 0.0:
        return None
    return float(run.steps["allocation_seconds"].sum()) / run.seconds


def _absent(runs: Sequence[Run], visits: dict[str, Visits | None]) -> list[str]:
    """Sentences on what a run that has not finished cannot show."""
    sentences = []
    for run in runs:
        if not len(run.steps):
            sentences.append(f"{run.name} has no finished training step, so there are no curves.")
        if not len(run.allocations):
            sentences.append(f"{run.name} has no recorded allocations yet, so budgets and statuses are not shown.")
        if (seen := visits[run.name]) and seen.seen_once == len(seen.first):
            sentences.append(
                f"{run.name} has visited no prompt twice yet, so status transitions and single prompts are not shown."
            )
        if run_data.measures(run).any() and run_data.worth(run).empty:
            sentences.append(
                f"{run.name}: what gradients were worth could not be told after the last step. Either few prompts had "
                "been visited before, or the groups pulled each other up no more than down."
            )
        if not len(run.evaluations):
            sentences.append(f"{run.name} has not been evaluated yet, so held-out accuracy is not shown.")
    return sentences


def _alarms(runs: Sequence[Run]) -> list[str]:
    """Where the alarm for graders was raised, and which categories were all wrong or all right then."""
    said = []
    for run in runs:
        raised = run.steps[run.steps["alarms"] > 0.0] if "alarms" in run.steps else run.steps[:0]
        if raised.empty:
            continue
        first = raised.iloc[0]
        rates = {name: first[name] for name in raised if name.startswith("category/") and name.endswith("/success")}
        alike = [
            name.removeprefix("category/").removesuffix("/success") for name, p in rates.items() if p in (0.0, 1.0)
        ]
        where = f" ({', '.join(alike)} had all rollouts wrong, or all right)" if alike else ""
        said.append(
            f"{run.name}: at step {int(first['step']):,} the alarm for broken graders was raised{where}. Read a few "
            "completions beside their rewards."
        )
    return said


def _how_made(runs: Sequence[Run]) -> list[Part]:
    parts: list[Part] = []
    for run in runs:
        environment = run.environment
        versions = environment.get("versions")
        facts = {
            key.capitalize(): ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            for key, value in {"seed": run.recipe.get("seed"), **environment}.items()
            if key not in ("command", "versions") and value not in (None, [])
        }
        facts |= {name: str(version) for name, version in (versions if isinstance(versions, dict) else {}).items()}
        parts += [
            Facts(run.name, facts),
            Command("Trained with:", str(environment.get("command", "unknown"))),
            Listing("The recipe, with every default filled in", run.recipe_text),
        ]
    return parts


def _small_percent(share: float) -> str:
    return "under 0.01\N{NO-BREAK SPACE}%" if 0.0 < share < 1e-4 else f"{100.0 * share:.2f}\N{NO-BREAK SPACE}%"
