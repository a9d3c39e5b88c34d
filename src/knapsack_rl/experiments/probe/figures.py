"""Figures of a probe. Every function takes a pandas table whose columns its docstring names."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from knapsack_rl.experiments.pages.drawing import BLUE, INK, MUTED, WIDTH, percent_axis, shortened, styled


@styled
def statuses(table: pd.DataFrame) -> Figure:
    """Shares of prompts by status, with their intervals. Columns: status, share, low, high; shares in [0, 1]."""
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    place, share = np.arange(len(table)), 100.0 * table["share"].to_numpy()
    reach = np.abs(100.0 * table[["low", "high"]].to_numpy().T - share)
    axes.bar(place, share, color=BLUE, width=0.7)
    axes.errorbar(place, share, yerr=reach, fmt="none", ecolor=INK, elinewidth=1.1, capsize=3)
    axes.set_xticks(place, [name.replace("extremely ", "extremely\n") for name in table["status"]])
    percent_axis(axes, "prompts (%)")
    return figure


@styled
def worth(table: pd.DataFrame) -> Figure:
    """Worth with two standard errors, a row for each. Columns: name, worth, error; both finite."""
    figure = Figure(figsize=(WIDTH, 1.0 + 0.3 * len(table)), layout="constrained")
    axes = figure.subplots()
    place = np.arange(len(table))[::-1]
    axes.axvline(0.0, color=INK, linewidth=0.9)
    axes.axvline(1.0, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.errorbar(
        table["worth"], place, xerr=2.0 * table["error"], fmt="o", color=BLUE, ecolor=BLUE, elinewidth=1.3, markersize=5
    )
    axes.set_yticks(place, [shortened(str(name), 24) for name in table["name"]])
    axes.set_ylim(-0.7, len(table) - 0.3)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("worth (mean: 1)")
    return figure
