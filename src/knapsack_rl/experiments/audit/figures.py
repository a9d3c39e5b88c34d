"""The figures of an audit's page, each drawn from one table of `tables`."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from knapsack_rl.experiments.pages.drawing import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    VERMILLION,
    WIDTH,
    groups,
    label_ends,
    legend_above,
    percent_axis,
    smoothed_line,
    step_axis,
    styled,
)

_KIND_COLOURS = {"with gradient": BLUE, "all correct": VERMILLION, "all wrong": GREEN, "without gradient": VERMILLION}
_SERIES = {
    "planned": ("planned, expected", BLUE, "-"),
    "spent": ("spent, expected", MUTED, "--"),
    "observed": ("spent, observed", INK, "-"),
}


@styled
def gradient_shares(table: pd.DataFrame) -> Figure:
    """Shares of rollouts over steps; columns quantity, step, value, running_mean."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    ends = [
        (smoothed_line(axes, rows, _KIND_COLOURS[quantity], 100.0), quantity, _KIND_COLOURS[quantity])
        for quantity, rows in groups(table, "quantity")
    ]
    percent_axis(axes, "share of rollouts (%)")
    step_axis(axes)
    label_ends(axes, ends)
    return figure


@styled
def concentration(table: pd.DataFrame) -> Figure:
    """Cumulative shares of rollouts by prompt; columns quantity, prompts, rollouts."""
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    colours = {"without gradient": VERMILLION, "all": INK}
    labels = {"without gradient": "rollouts without gradient", "all": "all rollouts"}
    lines = [
        axes.plot(100.0 * rows["prompts"], 100.0 * rows["rollouts"], color=colours[name], label=labels[name])[0]
        for name, rows in groups(table, "quantity")
    ]
    axes.set_xlim(0.0, 100.0)
    axes.set_xlabel("prompts, those that took most first (%)")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    percent_axis(axes, "share of the rollouts (%)")
    legend_above(figure, lines)
    return figure


@styled
def expected_shares(table: pd.DataFrame, what: str) -> Figure:
    """Shares of rollouts, of what was spent and what was planned; columns series, step, value, low, high."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    ends = []
    for series, rows in groups(table, "series"):
        name, colour, dashes = _SERIES[series]
        step, value = rows["step"].to_numpy(), 100.0 * rows["value"].to_numpy()
        marker = "o" if len(rows) == 1 else ""
        axes.plot(step, value, color=colour, linestyle=dashes, marker=marker)
        if series == "planned":
            low, high = 100.0 * rows["low"].to_numpy(), 100.0 * rows["high"].to_numpy()
            axes.fill_between(step, low, high, color=colour, alpha=0.18, linewidth=0)
        ends.append(((float(step[-1]), float(value[-1])), name, colour))
    percent_axis(axes, f"rollouts {what} (%)")
    step_axis(axes)
    label_ends(axes, ends)
    return figure
