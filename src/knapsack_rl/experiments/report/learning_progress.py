"""What goes into `metrics.learning_progress`, what follows from it, and how pages show it."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from knapsack_rl.experiments.pages.drawing import BLUE, INK, WIDTH, styled
from knapsack_rl.experiments.pages.page import Chart, DataTable, Part
from knapsack_rl.metrics import EARLY, EASY, HARD, PROGRESS, LearningProgress

CLEARLY = 2.0
"""Standard errors by which numbers differ clearly."""
_TITLE = "From visit to visit"
_TEXT = (
    "Rise of the success rate from one visit to the next, by how well half of the group did at the first. The other "
    "half tells the rate that it is compared with, so that nothing falls back to the mean by chance."
)


def early_visits(prompt: ArrayLike, step: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which visits are among the first `metrics.EARLY` of their prompt, and which one is its next; -1 where none is.

    Args:
        prompt: shape (V,), who was visited.
        step: shape (V,), when; in any order, no prompt twice in a step.

    Cost: O(V log V).
    """
    who = np.unique(prompt, return_inverse=True)[1]
    order = np.lexsort((np.asarray(step), who))
    in_order, again = who[order], np.diff(who[order]) == 0
    early, following = np.empty(len(who), dtype=bool), np.full(len(who), -1)
    early[order] = np.arange(len(who)) - np.searchsorted(in_order, in_order) < EARLY
    following[order[:-1][again]] = order[1:][again]
    return early, following


def favoured(found: LearningProgress) -> Literal["hard", "even", "unclear"]:
    """Who should get more rollouts: hard prompts, since they clearly gain most; nobody, since they clearly do not."""
    most, not_most = found.lean
    return "hard" if most > CLEARLY else "even" if not_most > CLEARLY else "unclear"


def sentence(found: LearningProgress) -> str:
    """What hard prompts gained, and easy ones, with intervals of two standard errors."""
    hard, easy = (
        f"{100.0 * (rise - CLEARLY * error):+.1f} to {100.0 * (rise + CLEARLY * error):+.1f} points"
        if math.isfinite(rise) and math.isfinite(error)
        else "what is not known"
        for rise, error in ((float(found.rise[kind]), float(found.error[kind])) for kind in (HARD, EASY))
    )
    return (
        f"From one visit to the next a prompt with less than half right gains {hard}, and one with more than half "
        f"right, but not all, {easy}."
    )


def table(found: LearningProgress) -> pd.DataFrame:
    """Columns name, pairs, rise and error, as in `LearningProgress`; a row for each of `PROGRESS`."""
    return pd.DataFrame({"name": PROGRESS, **found._asdict()})


def parts(found: LearningProgress, source: str) -> list[Part]:
    """The figure, of the classes in which something is known, and its table.

    Args:
        found: what to show.
        source: file that the numbers are from.
    """
    data = table(found)
    known = data[np.isfinite(data["rise"]) & np.isfinite(data["error"])]
    named = data.rename(columns={"name": "of that half", "pairs": "pairs of visits", "error": "standard error"})
    numbers = named.replace(math.inf, math.nan)
    if not len(known):
        return [DataTable("gains-table", _TITLE, _TEXT, numbers, source=source)]
    return [
        Chart("gains", _TITLE, f"{_TEXT} Bars: two standard errors.", source, _figure, known),
        DataTable("gains-table", _TITLE, "The figure in numbers.", numbers, source=source),
    ]


@styled
def _figure(table: pd.DataFrame) -> Figure:
    """What prompts gain from visit to visit, with two standard errors. Columns: name, rise, error; all finite."""
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    place, rise, reach = np.arange(len(table)), 100.0 * table["rise"], 200.0 * table["error"]
    axes.axhline(0.0, color=INK, linewidth=0.9)
    axes.errorbar(place, rise, yerr=reach, fmt="o", color=BLUE, elinewidth=1.3, markersize=5)
    broken = (" than ", " than\n"), (" right", "\nright")
    axes.set_xticks(place, [name.replace(*broken["than" not in name]) for name in table["name"]])
    axes.set_xlim(-0.6, len(table) - 0.4)
    axes.set_ylabel("rise (points)")
    return figure
