"""The figures of a comparison, each drawn from one long table.

The baseline is grey everywhere; lines of references are dashed, and their means hollow. Up to four arms share a panel;
more get a small panel each, with the baseline in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from knapsack_rl.experiments.pages.drawing import (
    INK,
    MUTED,
    PAPER,
    RUN_COLOURS,
    WIDTH,
    grid,
    groups,
    label_ends,
    legend_above,
    names,
    styled,
    whole,
    wrapped,
)

_TOGETHER = 4
"""Arms that one panel can hold."""


@dataclass(frozen=True)
class Roles:
    """What the arms are to each other, which decides on how they look."""

    baseline: str
    references: Sequence[str] = ()

    def colours(self, arms: Sequence[str]) -> dict[str, str]:
        """Grey for the baseline; the others in turn, and so the same in every figure."""
        others = [arm for arm in arms if arm != self.baseline]
        colours = {arm: RUN_COLOURS[index % len(RUN_COLOURS)] for index, arm in enumerate(others)}
        return {self.baseline: MUTED, **colours}

    def dashes(self, arm: str) -> str:
        """The style of an arm's lines."""
        return "--" if arm in self.references else "-"

    def called(self, arm: str) -> str:
        """An arm's name, which may be broken at a plus."""
        return arm.replace("+", " + ") + (" (reference)" if arm in self.references else "")


@styled
def curves(table: pd.DataFrame, roles: Roles, value: str, label: str, cost: str) -> Figure:
    """Means over seeds with their intervals, against the cost.

    Columns: arm, cost, `value`, low, high; the last three in [0, 1], and `label` is what they are.
    """
    figure, panels = _panels(table, roles, f"{label} (%)", cost)
    ends = []
    for axes, arms in panels:
        for arm, rows, colour in arms:
            x, mean, low, high = (rows[column].to_numpy(float) for column in ("cost", value, "low", "high"))
            axes.fill_between(x, 100 * low, 100 * high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(x, 100 * mean, roles.dashes(arm), color=colour)
            ends.append(((float(x[-1]), 100 * float(mean[-1])), roles.called(arm), colour))
        axes.set_xlim(0.0, 1.02 * float(table["cost"].max()))
        axes.xaxis.set_major_locator(MaxNLocator(4 if len(panels) == 1 else 3))
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(y=0.06)
    _finish(panels, ends)
    return figure


@styled
def seeds(table: pd.DataFrame, roles: Roles, value: str, label: str, zero: bool = False) -> Figure:
    """Every seed as a dot, and the mean with its interval; a row for each arm.

    Columns: arm, seed, `value`, mean, low, high; the last four in [-1, 1]. With `zero` there is a line at zero.
    """
    arms = groups(table, "arm")
    colours = roles.colours(names(table, "arm"))
    figure = Figure(figsize=(WIDTH, 1.0 + 0.52 * max(len(arms), 2)), layout="constrained")
    axes = figure.subplots()
    if zero:
        axes.axvline(0.0, color=INK, linewidth=0.9)
    for row, (arm, rows) in enumerate(arms):
        colour, mean = colours[arm], 100 * float(rows["mean"].iloc[0])
        axes.plot(100 * rows[value], np.full(len(rows), row + 0.3), "o", color=colour, ms=4, alpha=0.6, mew=0)
        axes.plot(100 * rows[["low", "high"]].iloc[0], [row + 0.05] * 2, color=colour, linewidth=2.2)
        face = PAPER if arm in roles.references else colour
        axes.plot([mean], [row + 0.05], "D", color=colour, markerfacecolor=face, markersize=5.5, markeredgewidth=1.5)
        text = f"{mean:+.1f}" if zero else f"{mean:.1f}"
        axes.annotate(
            text,
            (mean, row),
            (0, 5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=colour,
            fontsize=9,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
        )
    axes.set_yticks(range(len(arms)), [wrapped(roles.called(arm), 18) for arm, _ in arms], fontsize=9)
    axes.set_ylim(len(arms) - 0.45, -0.65)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    axes.margins(x=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(label)
    return figure


@styled
def reach(table: pd.DataFrame, roles: Roles, cost: str) -> Figure:
    """Cost to reach a level, relative to the baseline: the median over seeds, and every seed as a dot.

    Columns: arm, seed, level (share), ratio (NaN: never reached), median (inf where half of the seeds or more never
    reached it).
    """
    others = table[table["arm"] != roles.baseline]
    known = others["ratio"].dropna()
    known = known[known > 0.0]
    low, high = min(0.5, 0.9 * known.min()), max(2.0, 1.1 * known.max())
    never = high * (high / low) ** 0.12
    figure, panels = _panels(others, roles, f"{cost} / {roles.baseline}'s", f"share of {roles.baseline}'s gain (%)", 1)
    for axes, arms in panels:
        axes.axhline(1.0, color=MUTED, linewidth=1.4)
        for arm, rows, colour in arms:
            missing = rows["ratio"].isna()
            aside = rows.groupby("level").cumcount() - (rows["seed"].nunique() - 1) / 2  # seeds beside each other
            place = 100 * rows["level"] + 0.8 * aside
            ratio = rows["ratio"].clip(lower=low)
            axes.plot(place[~missing], ratio[~missing], "o", color=colour, markersize=3.5, alpha=0.6, mew=0)
            if missing.any():  # an empty line that is not clipped would count as one in the figure's corner
                axes.plot(place[missing], np.full(missing.sum(), never), "x", color=colour, markersize=4, clip_on=False)
            median = rows.drop_duplicates("level").sort_values("level")
            median = median[np.isfinite(median["median"])]
            axes.plot(100 * median["level"], median["median"].clip(lower=low), roles.dashes(arm), color=colour)
        axes.set_yscale("log", base=2)
        axes.set_ylim(low / 1.05, never * (high / low) ** 0.05)
        steps = [tick for tick in 2.0 ** np.arange(-6, 7) if low <= tick <= high]
        axes.set_yticks([*steps, never], [*(whole(tick) for tick in steps), "never"])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xticks([100 * level for level in sorted(table["level"].unique())])
        axes.tick_params(axis="x", labelsize=8)
        axes.set_xlim(100 * table["level"].min() - 4, 100 * table["level"].max() + 4)
    _finish(panels)
    return figure


@styled
def profile(table: pd.DataFrame, roles: Roles) -> Figure:
    """The share of runs above each accuracy. Columns: arm, threshold, share; both in [0, 1]."""
    figure, panels = _panels(table, roles, "share of runs (%)", "accuracy (%)")
    for axes, arms in panels:
        for arm, rows, colour in arms:
            x, y = 100 * rows["threshold"], 100 * rows["share"]
            axes.step(x, y, linestyle=roles.dashes(arm), color=colour, where="post", label=roles.called(arm))
        axes.set_ylim(-4.0, 104.0)
        axes.set_yticks([0, 50, 100])
        axes.xaxis.set_major_locator(MaxNLocator(5 if len(panels) == 1 else 3))
    _finish(panels)
    if len(panels) == 1:  # all lines end at zero, where names would not tell them apart
        legend_above(figure, panels[0][0].get_lines())
    return figure


@styled
def settings(table: pd.DataFrame, roles: Roles, key: str, label: str) -> Figure:
    """Accuracy against a setting, on a logarithmic axis where all of its values are positive.

    Columns: arm, `key` (a number), accuracy in [0, 1]; and if there are, low and high (the mean's interval), seed and
    single (one row for each seed, with its own accuracy), chosen (points to mark).
    """
    figure, panels = _panels(table, roles, "held-out accuracy (%)", label)
    values = sorted(table[key].unique())
    logarithmic = values[0] > 0 and len(values) > 1
    ends = []
    for axes, arms in panels:
        for index, (arm, rows, colour) in enumerate(arms):
            means = rows.drop_duplicates(key).sort_values(key)
            # Arms stand beside each other at the same value.
            aside = (index - (len(arms) - 1) / 2) * 0.02
            x = means[key] * (values[-1] / values[0]) ** aside if logarithmic else means[key]
            at = dict(zip(means[key], x, strict=True))
            axes.plot(x, 100 * means["accuracy"], roles.dashes(arm), color=colour, marker="D", markersize=4)
            if "single" in rows:
                axes.plot(rows[key].map(at), 100 * rows["single"], "o", color=colour, ms=3.5, alpha=0.5, mew=0)
                axes.vlines(x, 100 * means["low"], 100 * means["high"], color=colour, linewidth=2.0, alpha=0.7)
            if "chosen" in means:
                best = means["chosen"].to_numpy(bool)
                axes.plot(x[best], 100 * means["accuracy"][best], "o", ms=11, mfc="none", color=colour)
            ends.append(((float(x.iloc[-1]), 100 * float(means["accuracy"].iloc[-1])), roles.called(arm), colour))
        if logarithmic:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_minor_formatter(NullFormatter())
        shown = values[:: -(-len(values) // (6 if len(panels) == 1 else 4))]
        axes.set_xticks(shown, [_short(value) for value in shown])
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.09, y=0.1)
    _finish(panels, ends)
    return figure


Panel = tuple[Axes, list[tuple[str, pd.DataFrame, str]]]


def _panels(table: pd.DataFrame, roles: Roles, y: str, x: str, together: int = _TOGETHER) -> tuple[Figure, list[Panel]]:
    """Axes with the (name, rows, colour) of the arms to draw in each: one for all, or one for each with the baseline.

    Args:
        table: has a column `arm`.
        roles: what the arms are.
        y: what the vertical axes show.
        x: what the horizontal axes show.
        together: how many arms one panel can hold.
    """
    colours = roles.colours(names(table, "arm"))
    arms = [(arm, rows, colours[arm]) for arm, rows in groups(table, "arm")]
    if len(arms) <= together:
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        return figure, [(axes, arms)]
    base = [arm for arm in arms if arm[0] == roles.baseline]
    others = [arm for arm in arms if arm[0] != roles.baseline]
    titles = [wrapped(roles.called(arm), 26) for arm, _, _ in others]
    lines = sum(max(text.count("\n") for text in titles[row : row + 2]) for row in range(0, len(titles), 2))
    figure, panels = grid(len(others), 2, 1.55, 0.5 + 0.15 * lines)
    figure.supxlabel(x, fontsize=10)
    figure.supylabel(y, fontsize=10)
    for axes, title, (_, _, colour) in zip(panels, titles, others, strict=True):
        axes.set_title(title, color=colour, fontsize=9)
        axes.tick_params(labelsize=9)
    return figure, [(axes, [*base, arm]) for axes, arm in zip(panels, others, strict=True)]


def _finish(panels: Sequence[Panel], ends: Sequence[tuple[tuple[float, float], str, str]] = ()) -> None:
    """Name the lines that share a panel by their `ends`; panels side by side share their vertical axis."""
    if len(panels) == 1:
        label_ends(panels[0][0], ends)
        return
    bounds = [axes.get_ylim() for axes, _ in panels]
    for index, (axes, _) in enumerate(panels):
        axes.set_ylim(min(low for low, _ in bounds), max(high for _, high in bounds))
        axes.tick_params(labelleft=index % 2 == 0)


def _thousands(value: float, _position: int | None = None) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _short(value: float) -> str:
    """A number in few characters: .001 and 5e-5."""
    return f"{value:g}".replace("e-0", "e-").removeprefix("0") if 0 < abs(value) < 1 else f"{value:g}"
