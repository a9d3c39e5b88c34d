"""The figures of a run's report, each drawn from one long table that is saved beside it as CSV.

Every function takes a pandas table whose columns its docstring names and returns a matplotlib `Figure`. The numbers
in brackets are the figures of the paper that are drawn alike.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from knapsack_rl.experiments.pages.drawing import (
    BLUE,
    GREEN,
    GRID,
    INK,
    MUTED,
    PALETTE,
    RUN_COLOURS,
    VERMILLION,
    WIDTH,
    Dashes,
    grid,
    groups,
    label_ends,
    legend_above,
    legend_height,
    name_lines,
    names,
    percent_axis,
    run_styles,
    shortened,
    smoothed_line,
    step_axis,
    styled,
    whole,
    wrapped,
)
from knapsack_rl.metrics import STATUSES

STATUS_RANGES = ("p = 0", "0 < p ≤ 0.2", "0.2 < p < 0.8", "0.8 ≤ p < 1", "p = 1")

_LARGEST_POINT = 80.0  # square points
_QUANTITY_COLOURS = {"effective gradients": BLUE, "all correct": VERMILLION, "all wrong": GREEN}
_COST_LINES: dict[str, tuple[str, Dashes]] = {
    "even groups": (MUTED, "-"),
    "real": (BLUE, "-"),
    "expected": (VERMILLION, "--"),  # on the real one, which it should cover
}


@styled
def gradient_ratios(table: pd.DataFrame) -> Figure:
    """Effective gradient ratio and the two zero-gradient ratios over steps (figures 2 and 6).

    Columns: run, quantity ("effective gradients", "all correct", "all wrong"), step, value, running_mean;
    value and running_mean in [0, 1]. One run gives one panel; several give a panel for each quantity.
    """
    runs = names(table, "run")
    if len(runs) == 1:
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        ends = [
            (
                smoothed_line(axes, rows, _QUANTITY_COLOURS[quantity], 100.0),
                quantity,
                _QUANTITY_COLOURS[quantity],
            )
            for quantity, rows in groups(table, "quantity")
        ]
        percent_axis(axes, "share (%)")
        label_ends(axes, ends)
        step_axis(axes)
        return figure
    quantities, styles, ends_of = names(table, "quantity"), run_styles(runs), {}
    height = 1.0 + 1.9 * len(quantities) + legend_height(styles)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(quantities), sharex=True))
    for axes, quantity in zip(panels, quantities, strict=True):
        rows_of_quantity = table[table["quantity"] == quantity]
        ends_of[axes] = [
            (smoothed_line(axes, rows, colour, 100.0, dashes), run, colour)
            for run, rows in groups(rows_of_quantity, "run")
            for colour, dashes in [styles[run]]
        ]
        of_what = "rollouts" if quantity == "effective gradients" else "prompts"
        axes.set_title(f"{quantity} (share of {of_what})")
        percent_axis(axes, "share (%)")
    name_lines(figure, ends_of, styles)
    step_axis(panels[-1])
    return figure


@styled
def prompt_reward(table: pd.DataFrame) -> Figure:
    """Mean reward over the prompts of a step. Columns: run, step, value, running_mean."""
    return _over_steps(table, "mean reward of a prompt")


@styled
def log_score(table: pd.DataFrame) -> Figure:
    """Mean log probability of the outcomes of a step's prompts. Columns: run, step, value, running_mean."""
    return _over_steps(table, "log score (nats per prompt)")


@styled
def calibration(table: pd.DataFrame) -> Figure:
    """Believed success rates against observed ones.

    Columns: run, believed, observed, error (a standard error of the difference); all in [0, 1].
    """
    runs = names(table, "run")
    figure = Figure(figsize=(WIDTH, 3.7 + 0.2 * (len(runs) - 1)), layout="constrained")
    axes = figure.subplots()
    axes.axline((0.0, 0.0), slope=1.0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    for (_, rows), colour in zip(groups(table, "run"), RUN_COLOURS, strict=False):
        believed, observed = 100.0 * rows["believed"], 100.0 * rows["observed"]
        axes.errorbar(believed, observed, yerr=200.0 * rows["error"], fmt="none", ecolor=colour, elinewidth=1.1)
        axes.plot(believed, observed, color=colour, linewidth=1.2, marker="o", markersize=4.5)
    axes.set_xlim(0.0, 100.0)
    percent_axis(axes, "observed success rate (%)")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("believed success rate (%)")
    if len(runs) > 1:
        handles = zip(runs, RUN_COLOURS, strict=False)
        legend_above(figure, [Line2D([], [], color=colour, marker="o", label=run) for run, colour in handles])
    return figure


def _over_steps(table: pd.DataFrame, label: str) -> Figure:
    """A metric of each run by step. Columns: run, step, value, running_mean."""
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    axes = figure.subplots()
    ends = [
        (smoothed_line(axes, rows, colour, 1.0), run, colour)
        for (run, rows), colour in zip(groups(table, "run"), RUN_COLOURS, strict=False)
    ]
    axes.set_ylabel(label)
    axes.margins(y=0.12)
    if len(ends) > 1:
        label_ends(axes, ends)
    step_axis(axes)
    return figure


@styled
def budget_histogram(table: pd.DataFrame) -> Figure:
    """How often a prompt was given so many rollouts (figure 5). Columns: run, rollouts, count.

    `count` is the number of visits, a visit being one prompt in one step; its axis is logarithmic.
    """
    runs = names(table, "run")
    figure = Figure(figsize=(WIDTH, 1.2 + 1.8 * len(runs)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(runs), sharex=True, sharey=True))
    styles = run_styles(runs)
    for axes, (run, rows) in zip(panels, groups(table, "run"), strict=True):
        colour = styles[run][0]
        rollouts, count = rows["rollouts"].to_numpy(), rows["count"].to_numpy()
        axes.bar(rollouts, count, width=0.86, bottom=0.0, color=colour, linewidth=0)
        axes.set_yscale("log")
        axes.set_ylim(0.7, count.max() * 3.0)
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(whole))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylabel("visits of prompts")
        mean = float(np.average(rollouts, weights=count))
        axes.axvline(mean, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(
            f"mean {mean:.3g}",
            (mean, 0.97),
            xycoords=("data", "axes fraction"),
            xytext=(5, 0),
            textcoords="offset points",
            va="top",
            color=MUTED,
            fontsize=9,
        )
        if rollouts.max() > 2.0 * mean:
            below = count[rollouts > 0.75 * rollouts.max()].max()  # the text reaches to the left, over higher bars
            room = rollouts.max() < 0.6 * table["rollouts"].max()  # beside the last bar
            axes.annotate(
                f"largest {rollouts.max()}",
                (float(rollouts.max()), 1.0 if room else float(below)),
                xytext=(5, 0) if room else (0, 5),
                textcoords="offset points",
                ha="left" if room else "right",
                va="bottom",
                color=colour,
                fontsize=9,
            )
        if len(runs) > 1:
            axes.set_title(run, color=colour)
    for axes in panels:
        # A uniform run has a single bar; half a dozen units on either side keep it from filling the panel.
        axes.set_xlim(min(0.0, table["rollouts"].min() - 1.0), max(table["rollouts"].max() * 1.04, 12.0))
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    panels[-1].set_xlabel("rollouts given to a prompt in a step")
    return figure


@styled
def budget_quantiles(table: pd.DataFrame) -> Figure:
    """Rollouts per prompt over steps. Columns: run, step, and min, q25, median, q75, max (rollouts)."""
    runs = names(table, "run")
    figure = Figure(figsize=(WIDTH, 1.0 + 2.1 * len(runs)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(runs), sharex=True, sharey=True))
    top = float(max(table["max"].max(), 2.0))
    styles = run_styles(runs)
    for axes, (run, rows) in zip(panels, groups(table, "run"), strict=True):
        colour = styles[run][0]
        step = rows["step"].to_numpy()
        marker = "o" if len(step) == 1 else ""
        axes.fill_between(step, rows["min"], rows["max"], color=colour, alpha=0.16, linewidth=0)
        axes.fill_between(step, rows["q25"], rows["q75"], color=colour, alpha=0.34, linewidth=0)
        axes.plot(step, rows["max"], color=colour, linewidth=0.8, alpha=0.7, marker=marker)
        axes.plot(step, rows["median"], color=colour, marker=marker)
        axes.set_yscale("log", base=2)
        axes.set_ylim(max(float(table["min"].min()), 0.5) / 1.3, top * 1.35)
        axes.yaxis.set_major_formatter(FuncFormatter(whole))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel("rollouts per prompt")
        last = rows.iloc[-1]
        labels = [("smallest", "min", MUTED), ("median", "median", colour), ("largest", "max", colour)]
        if last["min"] == last["max"]:
            labels = [("every\nprompt", "max", colour)]
        label_ends(axes, [((float(step[-1]), float(last[key])), text, shade) for text, key, shade in labels])
        if len(runs) > 1:
            axes.set_title(run, color=colour)
    step_axis(panels[-1])
    return figure


@styled
def costs(table: pd.DataFrame) -> Figure:
    """Tokens of each step, a panel for each run.

    Columns: run, quantity ("real", "expected", "even groups"), step, value, running_mean.
    """
    runs = names(table, "run")
    figure = Figure(figsize=(WIDTH, 1.0 + 2.1 * len(runs)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(runs), sharex=True, sharey=True))
    ends_of = {}
    for axes, (run, of_run) in zip(panels, groups(table, "run"), strict=True):
        ends_of[axes] = [
            (smoothed_line(axes, rows, colour, 1.0, dashes), quantity, colour)
            for quantity, rows in groups(of_run, "quantity")
            for colour, dashes in [_COST_LINES[quantity]]
        ]
        axes.set_ylabel("tokens of a step")
        axes.margins(y=0.12)
        if len(runs) > 1:
            axes.set_title(run)
    for axes, ends in ends_of.items():  # last of all, since the panels share their limits
        label_ends(axes, ends)
    step_axis(panels[-1])
    return figure


@styled
def worth(table: pd.DataFrame) -> Figure:
    """What gradients are worth, with two standard errors, a row for each name. Columns: run, name, worth, error.

    Several runs stand under each other in each row. Worth and errors are finite.
    """
    runs, rows = names(table, "run"), names(table, "name")
    figure = Figure(figsize=(WIDTH, 1.0 + (0.2 + 0.13 * len(runs)) * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0.0, color=INK, linewidth=0.9)
    axes.axvline(1.0, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    styles = run_styles(runs)
    for index, (run, of_run) in enumerate(groups(table, "run")):
        place = np.array([rows.index(name) for name in of_run["name"]]) + 0.7 * ((index + 0.5) / len(runs) - 0.5)
        axes.errorbar(
            of_run["worth"],
            -place,
            xerr=2.0 * of_run["error"],
            fmt="o",
            color=styles[run][0],
            elinewidth=1.3,
            markersize=5 if len(runs) == 1 else 4,
        )
    axes.set_yticks(-np.arange(len(rows)), [shortened(name, 24) for name in rows])
    axes.set_ylim(0.7 - len(rows), 0.7)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("worth (mean: 1)")
    if len(runs) > 1:
        legend_above(figure, [Line2D([], [], color=styles[run][0], marker="o", label=run) for run in runs])
    return figure


@styled
def noise_scale(table: pd.DataFrame) -> Figure:
    """The noise scale over steps with its interval, on a logarithmic axis. Columns: run, step, value, low, high.

    Where `value` is NaN the line is broken; where `high` is infinite the interval ends at the edge.
    """
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    axes = figure.subplots()
    ends, styles = [], run_styles(names(table, "run"))
    top = 10.0 * float(np.nanmax(table[["value", "low"]].to_numpy()))
    for run, rows in groups(table, "run"):
        colour, step, value = styles[run][0], rows["step"].to_numpy(), rows["value"].to_numpy()
        high = np.minimum(rows["high"], top)
        axes.fill_between(step, rows["low"], high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(step, value, color=colour, marker="o" if len(step) == 1 else "")
        shown = np.flatnonzero(~np.isnan(value))
        end = shown[-1] if len(shown) else len(step) - 1
        ends.append(((float(step[end]), float(value[end] if len(shown) else rows["low"].iloc[end])), run, colour))
    axes.set_yscale("log")
    axes.set_ylim(float(table["low"].min()) / 1.5, top)
    axes.yaxis.set_major_formatter(FuncFormatter(whole))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("noise scale (prompts)")
    if len(ends) > 1:
        label_ends(axes, ends)
    step_axis(axes)
    return figure


@styled
def transitions(table: pd.DataFrame) -> Figure:
    """Heat map of each prompt's status at its first visit against its last (figure 7).

    Columns: run, first, last (status names), prompts (count), share (of the row, in [0, 1]; NaN where no
    prompt started). A row without prompts is left blank.
    """
    runs = names(table, "run")
    figure = Figure(figsize=(WIDTH, 4.0 * len(runs)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(runs)))
    for axes, (run, rows) in zip(panels, groups(table, "run"), strict=True):
        cells = rows.set_index(["first", "last"])
        for row, first in enumerate(STATUSES):
            for column, last in enumerate(STATUSES):
                share = float(cells.loc[(first, last), "share"])
                if np.isnan(share):
                    continue
                # One hue whose opacity is the share: the page's dark scheme then needs no second colour map.
                axes.add_patch(
                    Rectangle(
                        (column - 0.5, row - 0.5), 1, 1, facecolor=PALETTE["heat"][0], alpha=0.75 * share, linewidth=0
                    )
                )
                axes.text(column, row, f"{100 * share:.1f}", ha="center", va="center")
        narrow_names = [status.replace(" ", "\n") for status in STATUSES]
        totals = [int(rows.loc[rows["first"] == status, "prompts"].sum()) for status in STATUSES]
        axes.set_xticks(range(5), narrow_names, fontsize=9)
        axes.set_yticks(
            range(5),
            [f"{name}\nn = {n:,}" for name, n in zip(narrow_names, totals, strict=True)],
            fontsize=9,
        )
        axes.set_xlim(-0.5, 4.5)
        axes.set_ylim(4.5, -0.5)
        axes.grid(False)
        for edge in np.arange(-0.5, 5.0):
            axes.axhline(edge, color=GRID, linewidth=0.7, clip_on=False)
            axes.axvline(edge, color=GRID, linewidth=0.7, clip_on=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("status at the last visit (% of the row)")
        axes.set_ylabel("status at the first visit")
        if len(runs) > 1:
            axes.set_title(run)
    return figure


@styled
def status_counts(table: pd.DataFrame) -> Figure:
    """Prompts in each status (figure 8). Columns: run, visit ("first", "last"), status, prompts.

    One run shows its first and its last visits; several runs show their last visits side by side.
    """
    runs = names(table, "run")
    if len(runs) == 1:
        shades = (MUTED, RUN_COLOURS[0])
        series = [
            (f"{visit} visit", rows, shade) for (visit, rows), shade in zip(groups(table, "visit"), shades, strict=True)
        ]
    else:
        at_last = table[table["visit"] == "last"]
        styles = run_styles(runs)
        series = [(run, rows, styles[run][0]) for run, rows in groups(at_last, "run")]
    figure = Figure(figsize=(WIDTH, 1.7 + 0.95 * len(series)), layout="constrained")
    axes = figure.subplots()
    thickness = 0.8 / len(series)
    for index, (name, rows, colour) in enumerate(series):
        counts = rows.set_index("status")["prompts"].reindex(STATUSES).to_numpy()
        centres = np.arange(5) + (index - (len(series) - 1) / 2) * thickness
        # The sixth and later have the colours of the first again, and lighter bars.
        alpha = 1.0 if index < len(RUN_COLOURS) else 0.5
        bars = axes.barh(centres, counts, height=thickness * 0.9, color=colour, alpha=alpha, linewidth=0)
        axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3, fontsize=9, color=colour)
        # Their names stand above, in the bars' order and colours: beside long bars there is no room for them.
        lines_above = len(series) - 1 - index
        axes.annotate(
            name,
            (0.0, 1.0),
            xycoords="axes fraction",
            xytext=(3, 3 + 13 * lines_above),
            textcoords="offset points",
            va="bottom",
            color=colour,
            fontsize=9,
        )
    axes.set_yticks(
        range(5),
        [f"{status}\n{range_}" for status, range_ in zip(STATUSES, STATUS_RANGES, strict=True)],
        fontsize=9,
    )
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    axes.set_xlabel("prompts" if len(runs) == 1 else "prompts, by status at the last visit")
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(whole))
    axes.margins(x=0.22)
    return figure


@styled
def held_out_accuracy(table: pd.DataFrame) -> Figure:
    """Held-out accuracy against rollouts spent.

    Columns: run, benchmark, rollouts, step, accuracy in [0, 1]. One run shows a line for each benchmark;
    several runs show the mean over their benchmarks.
    """
    runs = names(table, "run")
    if len(runs) == 1:
        lines = groups(table, "benchmark")
        axis = "held-out accuracy (%)"
    else:
        # An evaluation that lacks a benchmark would have a mean of its own kind.
        measured = table.groupby(["run", "rollouts"])["benchmark"].transform("nunique")
        complete = table[measured == table.groupby("run")["benchmark"].transform("nunique")]
        means = complete.groupby(["run", "rollouts"], sort=False, as_index=False)["accuracy"].mean()
        lines = groups(means, "run")
        axis = "held-out accuracy (%)" if table["benchmark"].nunique() == 1 else "mean held-out accuracy (%)"
    figure = Figure(figsize=(WIDTH, 3.2 + 0.15 * max(0, len(lines) - 4)), layout="constrained")
    axes = figure.subplots()
    ends = []
    for index, (name, rows) in enumerate(lines):
        colour = RUN_COLOURS[index % len(RUN_COLOURS)]
        spent, accuracy = rows["rollouts"].to_numpy(), 100.0 * rows["accuracy"].to_numpy()
        dashes = "-" if index < len(RUN_COLOURS) else "--"
        axes.plot(spent, accuracy, color=colour, marker="o", markersize=4, linestyle=dashes)
        text = f"{accuracy[-1]:.1f}" if len(lines) == 1 else f"{wrapped(name)} {accuracy[-1]:.1f}"
        ends.append(((float(spent[-1]), float(accuracy[-1])), text, colour))
    axes.margins(y=0.18)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0) if high - low > 1.0 else low, high)
    axes.set_xlim(left=0.0)
    if axes.get_xlim()[1] <= 1.0:
        axes.set_xlim(-0.5, 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(whole))
    axes.set_xlabel("rollouts spent in training")
    axes.set_ylabel(axis)
    label_ends(axes, ends)
    return figure


@styled
def benchmark_accuracy(table: pd.DataFrame) -> Figure:
    """Held-out accuracy against rollouts spent, a panel for each benchmark (figures 12 to 15).

    Columns: run, benchmark, rollouts, accuracy in [0, 1].
    """
    runs = names(table, "run")
    colours = dict(zip(runs, RUN_COLOURS, strict=False))
    benchmarks = groups(table, "benchmark")
    figure, panels = grid(len(benchmarks), columns=2, panel_height=1.55, margin=0.5 + 0.2 * (len(runs) - 1))
    for axes, (benchmark, rows) in zip(panels, benchmarks, strict=True):
        for run, curve in groups(rows, "run"):
            axes.plot(curve["rollouts"], 100.0 * curve["accuracy"], color=colours[run], marker="o", markersize=3.5)
        axes.set_title(wrapped(benchmark, 22), fontsize=9)
        axes.margins(y=0.15)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelsize=9)
    spent = float(table["rollouts"].max())
    panels[0].set_xlim(-0.04 * spent, 1.04 * spent) if spent else panels[0].set_xlim(-0.5, 1.0)
    panels[0].xaxis.set_major_locator(MaxNLocator(2, integer=True))
    panels[0].xaxis.set_major_formatter(FuncFormatter(whole))
    figure.supxlabel("rollouts spent in training", fontsize=10)
    figure.supylabel("held-out accuracy (%)", fontsize=10)
    if len(runs) > 1:
        legend_above(figure, [Line2D([], [], color=colours[run], marker="o", markersize=4, label=run) for run in runs])
    return figure


@styled
def single_prompts(table: pd.DataFrame) -> Figure:
    """Success rate observed at each visit of a few prompts, a panel for each (figure 11).

    Columns: prompt, run, step, rollouts, rate in [0, 1]. The area of a point is in proportion to its rollouts.
    """
    runs = names(table, "run")
    colours = dict(zip(runs, RUN_COLOURS, strict=False))
    prompts = groups(table, "prompt")
    fewest, most = int(table["rollouts"].min()), int(table["rollouts"].max())
    figure, panels = grid(len(prompts), columns=3, panel_height=1.2, margin=0.8 + 0.2 * (len(runs) - 1))
    for index, (axes, (prompt, rows)) in enumerate(zip(panels, prompts, strict=True)):
        for run, visits in groups(rows, "run"):
            rate = 100.0 * visits["rate"]
            axes.plot(visits["step"], rate, color=colours[run], linewidth=0.9, alpha=0.6)
            sizes = _LARGEST_POINT * visits["rollouts"] / most
            axes.scatter(visits["step"], rate, sizes, color=colours[run], alpha=0.65, linewidth=0, clip_on=False)
        axes.set_title(shortened(prompt), fontsize=9)
        axes.set_ylim(-6.0, 106.0)
        axes.set_yticks([0, 50, 100], ["0", "50", "100"] if index % 3 == 0 else ["", "", ""])
        axes.tick_params(labelsize=9)
    panels[0].xaxis.set_major_locator(MaxNLocator(2, integer=True))
    figure.supxlabel("step", fontsize=10)
    figure.supylabel("success rate observed (%)", fontsize=10)
    lines = [Line2D([], [], color=colours[run], linewidth=1.5, label=run) for run in runs] if len(runs) > 1 else []
    points = [
        Line2D(
            [],
            [],
            color=MUTED,
            linewidth=0,
            marker="o",
            markeredgewidth=0,
            markersize=(_LARGEST_POINT * rollouts / most) ** 0.5,
            label=f"{rollouts:,} rollouts",
        )
        for rollouts in dict.fromkeys([fewest, most])
    ]
    legend_above(figure, [*lines, *points])
    return figure
