"""A comparison's summary outside of its page: on the terminal, and as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.table import Table


def table(summary: pd.DataFrame) -> Table:
    """The summary of `results.summary` in a few columns, for a terminal of 80 characters."""
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", caption_justify="left")
    rows = [_cells(row) for row in summary.to_dict("records")]
    for heading in _headings(summary):
        shown.add_column(heading, no_wrap=heading not in ("setting", "arm"), overflow="fold")
    for row in rows:
        shown.add_row(*(row[heading] for heading in _headings(summary)))
    if summary["reference"].any():
        shown.caption = "* reference: costs more, or knows what nobody can know"
    return shown


def markdown(summary: pd.DataFrame) -> str:
    """The same as a Markdown table, with what it costs to reach what the baseline reached."""
    more = ["seeds above", "cost to reach 100 %", "EGR", "effective prompts", "never solved"]
    headings = [*_headings(summary), *more]
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    for row in summary.to_dict("records"):
        cells = _cells(row)
        cells["cost to reach 100 %"] = _cost_to_reach(row)
        cells["effective prompts"] = f"{row['effective_prompts']:.1f}"
        cells["never solved"] = f"{row['never_solved']:.0f}"
        lines.append("| " + " | ".join(cells[heading] for heading in headings) + " |")
    return "\n".join(lines) + "\n"


def _headings(summary: pd.DataFrame) -> list[str]:
    setting = ["setting"] if summary["variation"].nunique() > 1 else []
    return [*setting, "arm", "tuned to", "accuracy, %", "against baseline"]


def _cells(row: Mapping[Any, Any]) -> dict[str, str]:
    reference = f"* {row['cost']:.3g}x" if row["cost"] > 1.01 else "*"
    own, difference = row["accuracy"], row.get("difference", float("nan"))
    return {
        "setting": str(row["variation"]),
        "arm": f"{row['arm']}{reference if row['reference'] else ''}",
        "tuned to": str(row["choice"]).replace("learning_rate=", ""),
        "accuracy, %": f"{100 * own:.1f}{_interval(row['accuracy_low'], row['accuracy_high'], '.1f')}",
        "against baseline": ""
        if pd.isna(difference)
        else f"{100 * difference:+.1f}{_interval(row['difference_low'], row['difference_high'], '+.1f')}",
        "seeds above": "" if pd.isna(difference) else f"{row['wins']:.0f} of {row['pairs']:.0f}",
        "EGR": f"{row['effective_gradient_ratio']:.2f}",
    }


def _interval(low: float, high: float, digits: str) -> str:
    return "" if pd.isna(low) else f" [{100 * low:{digits}}, {100 * high:{digits}}]"


def _cost_to_reach(row: Mapping[Any, Any]) -> str:
    ratio, reached, seeds = (row.get(key) for key in ("reach_100", "reached_100", "reach_seeds"))
    if ratio is None or reached is None or pd.isna(ratio):
        return ""
    text = "never" if ratio == float("inf") else f"{ratio:.2f}x"
    return f"{text} ({reached:.0f} of {seeds:.0f})"
