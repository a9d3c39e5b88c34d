"""The page of a comparison: what can be said, the tables, the figures, and how all of it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from knapsack_rl.experiments.compare import charts, findings
from knapsack_rl.experiments.compare.arms import Failure
from knapsack_rl.experiments.compare.charts import ComparisonTables
from knapsack_rl.experiments.compare.comparison import Comparison, ComparisonRuns
from knapsack_rl.experiments.compare.findings import Environments
from knapsack_rl.experiments.pages.page import DataTable, Facts, Listing, Part, Section, write_page
from knapsack_rl.experiments.pages.wording import percent
from knapsack_rl.experiments.recipe import yaml_text

Formats = dict[str, Callable[[Any], str]]


def write_report(
    planned: ComparisonRuns,
    tables: ComparisonTables,
    failures: Sequence[Failure],
    environments: Environments,
    folder: Path,
    command: str,
) -> Path:
    """Write `report.html` into `folder` and return its path.

    Args:
        planned: what was compared.
        tables: summary, runs, curves, steps, cost_to_reach, and tuning where there was any; see `results`.
        failures: the runs that did not come to their end.
        environments: of the runs that did: what each was made with.
        folder: where to write.
        command: what makes this page again.
    """
    comparison = planned.comparison
    sections = []
    across = charts.across(comparison, tables["runs"])
    if across:
        sections.append(Section("Across settings", across))
    for variation in planned.variations:
        part = {name: table[table["variation"] == variation] for name, table in tables.items()}
        if part["summary"].empty:
            continue
        where = f" ({variation})" if variation else ""
        sections.append(Section(f"Arms{where}", _summary_tables(comparison, part["summary"], variation)))
        sections.append(Section(f"Figures{where}", charts.of_variation(comparison, part, variation)))
    sections.append(Section("Every run", [_runs_table(comparison, tables["runs"])]))
    if failures:
        sections.append(Section("Runs that failed", [_failures_table(failures)]))
    sections.append(Section("How the runs were made", _made(comparison, environments)))
    return write_page(
        folder / "report.html",
        kind="comparison",
        title=comparison.name,
        summary=findings.sentences(comparison, tables),
        notes=findings.notes(comparison, tables, failures, environments),
        sections=sections,
        command=command,
    )


def _summary_tables(comparison: Comparison, summary: pd.DataFrame, variation: str) -> list[Part]:
    """What was reached, and what it took."""
    base, cost = comparison.baseline, comparison.equal
    arms = [f"{row.arm} (reference)" if row.reference else row.arm for row in summary.itertuples()]
    said = summary.assign(
        interval=_intervals(summary["accuracy_low"], summary["accuracy_high"], ".1f"),
        tuned=summary["choice"].str.replace(r"\b[a-z_]+=", "", regex=True),
    )
    if "difference" in summary:
        said["difference_interval"] = _intervals(summary["difference_low"], summary["difference_high"], "+.1f")
        said["above"] = [
            "" if pd.isna(pairs) else f"{wins:.0f} of {pairs:.0f}"
            for wins, pairs in zip(summary["wins"], summary["pairs"], strict=True)
        ]
    reached = _columns(
        said,
        {
            **({"tuned": ("Tuned to", str)} if comparison.tuning else {}),
            "cost": ("Cost, multiple", _ratio),
            "accuracy": ("Accuracy, %", _hundredfold),
            "interval": ("95 % interval", str),
            "solved": ("Solved, %", _hundredfold),
            "difference": (f"Minus {base}'s, points", _signed),
            "difference_interval": ("95 % interval of that", str),
            "above": ("Seeds above", str),
            "difference_p": ("p (paired t)", _three),
        },
    )
    took = _columns(
        summary,
        {
            "reach_50": ("Cost to 50 %", _ratio),
            "reach_75": ("Cost to 75 %", _ratio),
            "reach_90": ("Cost to 90 %", _ratio),
            "reach_100": ("Cost to 100 %", _ratio),
            "reached_100": ("Seeds that got there", _count),
            "effective_gradient_ratio": ("EGR", _three),
            "effective_prompts": ("Effective prompts", _one),
            "never_solved": ("Never solved", _count),
            "rollouts": ("Rollouts", _count),
            "tokens": ("Tokens", _count),
            "seconds": ("Training, s", _count),
            "allocation_share": ("Allocation", percent),
        },
    )
    return [
        DataTable(
            charts.identifier("arms", variation),
            "Accuracy",
            f"Accuracy at equal {cost} (references: at their own end), mean over seeds with its bootstrap interval. "
            "Solved: problems with a success among their k samples (pass@k). "
            f"Differences to {base} are paired by seed.",
            reached[0].assign(Arm=arms)[["Arm", *reached[0].columns]],
            reached[1],
            "summary.csv",
        ),
        DataTable(
            charts.identifier("costs", variation),
            "Cost and signal",
            f"Cost to 50 % and so on: the median over seeds of an arm's {cost} at which it gets a share of {base}'s "
            f"gain, relative to {base}'s; ∞ where half of the seeds never get there. Effective prompts: groups with a "
            "gradient per update. Never solved: training prompts without a success in the run. Training leaves "
            "evaluations and the oracle's extra sampling out; other programs may have run beside. "
            "Allocation: its share.",
            took[0].assign(Arm=arms)[["Arm", *took[0].columns]],
            took[1],
            "summary.csv",
        ),
    ]


def _columns(
    summary: pd.DataFrame, wanted: Mapping[str, tuple[str, Callable[[Any], str]]]
) -> tuple[pd.DataFrame, Formats]:
    """The wanted columns that there are, under their headings, and how to write them."""
    present = {column: heading for column, heading in wanted.items() if column in summary}
    table = pd.DataFrame({heading: summary[column].to_numpy() for column, (heading, _) in present.items()})
    return table, dict(present.values())


def _runs_table(comparison: Comparison, runs: pd.DataFrame) -> DataTable:
    wanted = {
        "arm": "Arm",
        "variation": "Setting",
        "choice": "Tuned to",
        "seed": "Seed",
        "start": "Start",
        "accuracy": "Accuracy",
        "steps": "Steps",
        "rollouts": "Rollouts",
        "tokens": "Tokens",
        "seconds": "Seconds",
        "effective_gradient_ratio": "EGR",
        "effective_prompts": "Effective prompts",
        "never_solved": "Never solved",
        "folder": "Run directory",
    }
    shown = runs[[column for column in wanted if column != "variation" or comparison.vary]].rename(columns=wanted)
    formats: Formats = {
        "Seed": str,
        "Accuracy": _three,
        "Start": _three,
        "EGR": _three,
        "Rollouts": _count,
        "Tokens": _count,
    }
    return DataTable("runs", "Runs", "", shown, formats, "runs.csv")


def _failures_table(failures: Sequence[Failure]) -> DataTable:
    rows = [
        {"Arm": f.arm.name, "Setting": f.arm.variation, "Tuning": f.arm.choice, "Seed": f.arm.seed, "Reason": f.reason}
        for f in failures
    ]
    return DataTable("failures", "Failures", "The log of each is beside its run directory.", pd.DataFrame(rows))


def _made(comparison: Comparison, environments: Sequence[Mapping[str, Any]]) -> list[Part]:
    facts: dict[str, set[str]] = {}
    for environment in environments:
        for key in ("python", "platform", "device", "threads"):
            facts.setdefault(key, set()).add(str(environment.get(key)))
        for library, version in (environment.get("versions") or {}).items():
            facts.setdefault(library, set()).add(str(version))
    return [
        Facts("Versions and machine", {key: ", ".join(sorted(values)) for key, values in facts.items()}),
        Listing("The comparison", yaml_text.render(comparison.model_dump(mode="json"))),
    ]


def _intervals(lows: pd.Series, highs: pd.Series, digits: str) -> list[str]:
    pairs = zip(lows, highs, strict=True)
    texts = ("" if pd.isna(low) else f"{100 * low:{digits}} to {100 * high:{digits}}" for low, high in pairs)
    return [text.replace(" ", "\N{NO-BREAK SPACE}") for text in texts]


def _hundredfold(value: float) -> str:
    return f"{100 * value:.1f}"


def _three(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "∞"


def _one(value: float) -> str:
    return f"{value:.1f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"
