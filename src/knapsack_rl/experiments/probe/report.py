"""The page of a probe, and the file of its numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from knapsack_rl.experiments.disk import write_text
from knapsack_rl.experiments.pages.page import Chart, DataTable, Note, Part, Section, alone, write_page
from knapsack_rl.experiments.pages.wording import percent, plain, plural
from knapsack_rl.experiments.probe import figures
from knapsack_rl.experiments.probe.numbers import Estimate, Numbers, Visits
from knapsack_rl.experiments.probe.verdict import Verdict
from knapsack_rl.experiments.report import learning_progress, run_figures

FILE = "probe.json"
_SHOWN = 20  # categories in a figure
_WINDOW = 5  # steps in a running mean


def write_report(numbers: Numbers, verdict: Verdict, visits: Visits, folder: Path, name: str, command: str) -> Path:
    """Write `probe.json` and `report.html` with its figures into `folder`, and return the page's path.

    Args:
        numbers: what was measured.
        verdict: what follows.
        visits: from which the numbers are.
        folder: is made where it is missing.
        name: of the run that was probed.
        command: what makes the page again.

    Raises:
        InvalidInputError: the folder cannot be written.
    """
    with alone(folder):
        measured = asdict(numbers) | {"gains": learning_progress.table(numbers.gains).to_dict("records")}
        content = {"name": name, "command": command, "verdict": asdict(verdict), "numbers": measured}
        write_text(folder / FILE, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")
        return write_page(
            folder / "report.html",
            kind="probe",
            title=f"Probe of {name}",
            summary=[verdict.headline, *verdict.advice],
            notes=[
                f"{plural(numbers.steps, 'step')} of {numbers.prompts_per_step:,} x {numbers.group_size} rollouts at "
                f"even groups, on {numbers.prompts:,} different prompts; one seed."
            ],
            sections=[
                Section("Why", [Note(sentence) for sentence in verdict.reasons]),
                Section("Success rates", [_statuses(numbers), _gradients(visits)]),
                Section("What prompts gain", learning_progress.parts(numbers.gains, FILE)),
                Section("Learning and noise", [_key_numbers(numbers)]),
                Section("What gradients are worth", _worth(numbers)),
            ],
            command=command,
        )


def _statuses(numbers: Numbers) -> Chart:
    return Chart(
        "statuses",
        "How success rates lie",
        f"Share of the {numbers.prompts:,} prompts by the {numbers.group_size} rollouts of their last visit: none "
        "right, up to a fifth, in between, from four fifths, all right. Bars: intervals of 95 %.",
        FILE,
        figures.statuses,
        pd.DataFrame(
            [
                {"status": name, "share": share.value, "low": share.low, "high": share.high}
                for name, share in numbers.statuses.items()
            ]
        ),
    )


def _gradients(visits: Visits) -> Chart:
    table = visits.table
    won, tried = table["successes"], table["scored"]
    shares = {
        "effective gradients": (won > 0) & (won < tried),
        "all correct": (won == tried) & (tried > 0),
        "all wrong": (won == 0) & (tried > 0),
    }
    curves = []
    for quantity, holds in shares.items():
        value = holds.groupby(table["step"]).mean()
        smooth = value.rolling(_WINDOW, min_periods=1).mean()
        curves.append(pd.DataFrame({"quantity": quantity, "step": value.index, "value": value, "running_mean": smooth}))
    return Chart(
        "gradients",
        "Groups with and without gradient",
        f"Share of a step's groups. Light: each step; bold: mean of the last {_WINDOW}.",
        "metrics.jsonl",
        run_figures.gradient_ratios,
        pd.concat(curves, ignore_index=True).assign(run="probe"),
    )


def _key_numbers(numbers: Numbers) -> DataTable:
    noise, rollouts = vars(numbers.noise_scale).values(), numbers.group_size
    rows = {
        "Rollouts with a gradient (EGR)": _row(numbers.effective_gradient_ratio, percent),
        "Groups that were all right": _row(numbers.all_right, percent),
        "Groups that were all wrong": _row(numbers.all_wrong, percent),
        "Rise of a prompt's success rate": _row(numbers.learned, percent),
        "Noise scale, prompts": [_shown(scale, plain) for scale in noise],
        "Noise scale, rollouts": [_shown(scale * rollouts, plain) for scale in noise],
        "A step, prompts": [plain(numbers.prompts_per_step), "", ""],
        "A step, rollouts": [plain(numbers.prompts_per_step * rollouts), "", ""],
        "Share of a gradient that is common": _row(numbers.common, "{:.4f}".format),
    }
    data = pd.DataFrame([[name, *row] for name, row in rows.items()], columns=["quantity", "value", "from", "to"])
    return DataTable(
        "numbers",
        "Numbers",
        "From and to: the interval of 95 %. The rise is from a prompt's first visit to its last. The noise scale is "
        "the number of prompts in a step from which more of them stop paying. What is common is the mean "
        "influence of a group, in units of what its gradient has in common with itself: the unit of the worth below.",
        data,
        source=FILE,
        row_formats=dict.fromkeys(data["quantity"], str),
    )


def _row(estimate: Estimate, write: Callable[[Any], str]) -> list[str]:
    return [_shown(number, write) for number in vars(estimate).values()]


def _shown(number: float, write: Callable[[Any], str]) -> str:
    return "unknown" if math.isnan(number) else "no limit" if math.isinf(number) else write(number)


def _worth(numbers: Numbers) -> list[Part]:
    """A figure where there is something to draw, and a table, of the bands and of each column of categories."""
    bands = {"believed success rate": [*numbers.bands, numbers.hard, numbers.middle]}
    some = bands | {column: kinds for column, kinds in numbers.categories.items() if kinds}
    charts: list[Part] = []
    tables: list[Part] = []
    for number, (what, worths) in enumerate(some.items()):
        data = pd.DataFrame([vars(one) for one in worths], columns=["name", "groups", "worth", "error"])
        name = f"worth-{number}" if number else "worth"
        known = data[np.isfinite(data["worth"]) & np.isfinite(data["error"])]
        if 0 < len(known) <= _SHOWN:
            drawn = known[["name", "worth", "error"]].assign(run="probe")
            charts.append(Chart(name, f"By {what}", _WORTH, FILE, run_figures.worth, drawn))
        data["error"] = data["error"].replace(math.inf, math.nan)
        named = data.rename(columns={"name": what, "error": "standard error"})
        tables.append(DataTable(f"{name}-table", f"By {what}", _GROUPS, named, source=FILE))
    return [*charts, *tables]


_GROUPS = (
    "Groups: those with a gradient; by success rate without those of a prompt's first visit, where nothing is believed."
)
_WORTH = (
    "How far a group with a gradient pulls the success rates of its step's other prompts up, in units of the mean; "
    "bars of two standard errors. Below 0 it pulls them down."
)


def _finite(value: Any) -> Any:
    """With null for numbers that JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
