"""Figures of a probe. Every function takes a pandas table whose columns its docstring names."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from knapsack_rl.experiments.pages.drawing import BLUE, INK, WIDTH, percent_axis, styled


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
