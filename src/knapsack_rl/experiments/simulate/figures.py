"""Figures of simulations and theory that a run of a language model has no counterpart for.

Every function takes a pandas table whose columns its docstring names and returns a matplotlib `Figure`. The numbers
in brackets are the figures of the paper that are drawn alike.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter, MaxNLocator

from knapsack_rl.experiments.pages.drawing import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    PAPER,
    VERMILLION,
    WIDTH,
    groups,
    legend_height,
    name_lines,
    names,
    run_styles,
    step_axis,
    styled,
    whole,
)


def marked(draw: Callable[[pd.DataFrame], Figure], text: str) -> Callable[[pd.DataFrame], Figure]:
    """`draw`, with `text` above the drawing: a figure that leaves its page still says that it is simulated."""

    @styled
    def with_mark(table: pd.DataFrame) -> Figure:
        figure = draw(table)
        if figure.legends:  # stands where the title would
            figure.legends[0].set_title(text, prop=FontProperties(size=9))
            figure.legends[0].get_title().set_color(MUTED)
            figure.legends[0].set_alignment("left")
        else:
            figure.suptitle(text, x=0.01, ha="left", fontsize=9, color=MUTED)
        return figure

    return with_mark


@styled
def success_rates(table: pd.DataFrame) -> Figure:
    """Mean true success rate against rollouts spent. Columns: run, prompts (one panel each), rollouts, value.

    The vertical axis leaves out where the curves were in the first twentieth.
    """
    kinds, styles, ends_of = names(table, "prompts"), run_styles(names(table, "run")), {}
    figure = Figure(figsize=(WIDTH, 0.9 + 2.2 * len(kinds) + legend_height(styles)), layout="constrained")
    panels = figure.subplots(len(kinds), sharex=True, squeeze=False)[:, 0]
    for axes, (kind, rows) in zip(panels, groups(table, "prompts"), strict=True):
        ends = []
        for run, line in groups(rows, "run"):
            colour, dashes = styles[run]
            spent, value = line["rollouts"].to_numpy() / 1e6, 100.0 * line["value"].to_numpy()
            axes.plot(spent, value, color=colour, linestyle=dashes, marker="o" if len(spent) == 1 else "")
            ends.append(((float(spent[-1]), float(value[-1])), f"{run} {value[-1]:.1f}", colour))
        axes.set_title(f"{kind} prompts")
        axes.set_ylabel("mean success rate (%)")
        axes.set_ylim(bottom=100.0 * float(rows.loc[rows["rollouts"] >= 0.05 * rows["rollouts"].max(), "value"].min()))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        ends_of[axes] = ends
    name_lines(figure, ends_of, styles)
    panels[-1].set_xlabel("million rollouts spent")
    return figure


@styled
def belief_errors(table: pd.DataFrame) -> Figure:
    """Root mean squared error of believed success rates over steps. Columns: run, step, value.

    The vertical axis leaves out where the curves were in the first tenth, when nothing could be known.
    """
    styles = run_styles(names(table, "run"))
    figure = Figure(figsize=(WIDTH, 3.4 + legend_height(styles)), layout="constrained")
    axes = figure.subplots()
    ends = []
    for run, rows in groups(table, "run"):
        colour, dashes = styles[run]
        step, value = rows["step"].to_numpy(), 100.0 * rows["value"].to_numpy()
        axes.plot(step, value, color=colour, linestyle=dashes, linewidth=1.4, marker="o" if len(step) == 1 else "")
        ends.append(((float(step[-1]), float(value[-1])), f"{run} {value[-1]:.1f}", colour))
    late = table[table["step"] >= 0.1 * table["step"].max()]
    axes.set_ylim(0.0, 105.0 * float(late["value"].max()))
    axes.set_ylabel("error of beliefs (percentage points)")
    name_lines(figure, {axes: ends}, styles)
    step_axis(axes)
    return figure


@styled
def first_gradients(table: pd.DataFrame) -> Figure:
    """Rollouts until a group has a gradient, by success rate (figure 3).

    Columns: what ("on average", "in 90 % of cases"), source ("theorem 1", "measured"), success_rate, rollouts.
    """
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    for (what, rows), colour in zip(groups(table, "what"), (BLUE, VERMILLION), strict=True):
        line, points = rows[rows["source"] == "theorem 1"], rows[rows["source"] == "measured"]
        axes.plot(line["success_rate"], line["rollouts"], color=colour)
        axes.plot(points["success_rate"], points["rollouts"], "o", color=colour, markersize=4)
        height = 0.96 if what == "on average" else 0.89
        axes.text(0.5, height, what, color=colour, transform=axes.transAxes, ha="center", va="top")
    axes.set_yscale("log", base=2)
    axes.set_ylim(1.7, 800.0)
    for size in (8, 32):
        axes.axhline(size, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(f"N = {size}", (0.5, size), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=9)
    axes.yaxis.set_major_formatter(FuncFormatter(whole))
    axes.set_xlim(0.0, 1.0)
    axes.set_xlabel("success rate p (line: theorem 1, dots: measured)")
    axes.set_ylabel("rollouts N")
    return figure


@styled
def value_contours(table: pd.DataFrame) -> Figure:
    """Lines of equal value over success rate and rollouts (figure 4).

    Columns: success_rate, rollouts, value, highlighted (whether it is one of the points to mark). The rows that are not
    highlighted are a complete grid.
    """
    grid = table[~table["highlighted"]].pivot(index="rollouts", columns="success_rate", values="value")
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    levels = [0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14]
    lines = axes.contour(grid.columns, grid.index, grid.to_numpy(), levels=levels, colors=BLUE, linewidths=1.2)
    high = int(0.85 * len(grid))  # the row in which the lines are labelled, each where it falls to its level
    places = [
        (float(grid.columns[grid.iloc[high].to_numpy() >= level].max()), float(grid.index[high])) for level in levels
    ]
    axes.clabel(lines, fmt="%.2f", fontsize=9, colors=BLUE, manual=places)
    for _, point in table[table["highlighted"]].iterrows():
        place = float(point["success_rate"]), float(point["rollouts"])
        axes.plot(*place, "o", color=VERMILLION, markersize=6)
        axes.annotate(
            f"p = {place[0]:g}, N = {place[1]:g}",
            place,
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=VERMILLION,
            fontsize=9,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.0},
        )
    axes.set_xlabel("success rate p")
    axes.set_ylabel("rollouts N")
    axes.grid(False)
    return figure


@styled
def information_gains(table: pd.DataFrame) -> Figure:
    """Information gain by success rate (figure 10). Columns: curve, success_rate, gain."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    styles = ((BLUE, "-"), (VERMILLION, "-"), (GREEN, "--"))
    for index, ((curve, rows), (colour, dashes)) in enumerate(zip(groups(table, "curve"), styles, strict=False)):
        axes.plot(rows["success_rate"], rows["gain"], color=colour, linestyle=dashes)
        axes.text(0.98, 0.96 - 0.09 * index, curve, color=colour, transform=axes.transAxes, ha="right", va="top")
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("success rate p")
    axes.set_ylabel("information gain")
    return figure
