"""Draws the two figures of docs/concepts.md that `knapsack-rl simulate --theory` does not make.

python docs/images/concepts.py [FOLDER]     FOLDER: where they go; this one by default
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import knapsack_rl as kr
from knapsack_rl.belief import Belief
from knapsack_rl.expected_value import expected_gains
from knapsack_rl.experiments.pages.drawing import INK, MUTED, RUN_COLOURS, WIDTH, styled

RATES = (0.05, 0.15, 1 / 3, 0.6, 0.9)
BUDGET = 40  # of these five prompts


@styled
def marginal_gains() -> Figure:
    """What each further rollout adds to the value, and the line above which the exact plan takes everything."""
    plan = kr.allocate(RATES, BUDGET, fallback=False)
    counts = np.arange(2, 27)
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    for rate, taken, colour in zip(RATES, plan.rollouts, RUN_COLOURS, strict=True):
        gains = kr.value(counts, rate) - kr.value(counts - 1, rate)
        axes.plot(counts, gains, color=colour, alpha=0.5)
        axes.plot(counts[counts <= taken], gains[counts <= taken], ".", color=colour, markersize=7)
        axes.plot([], [], ".-", color=colour, label=f"p = {rate:.2g}: {taken} rollouts")
    last = min(
        float(kr.value(taken, rate) - kr.value(taken - 1, rate))
        for rate, taken in zip(RATES, plan.rollouts, strict=True)
        if taken > 2
    )
    axes.axhline(last, color=INK, linewidth=1.0, linestyle="--")
    axes.annotate("the last gain taken", (26, last), (0, 3), textcoords="offset points", ha="right", color=MUTED)
    axes.set(yscale="log", ylim=(2e-5, 0.1), xlabel="rollout N of a prompt", ylabel="gain in value of that rollout")
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    return figure


@styled
def expected_gain() -> Figure:
    """What a further rollout of a prompt is expected to gain, under a belief and under a point estimate."""
    further = np.arange(32)
    none, eight = np.zeros(1, dtype=np.int64), np.full(1, 8)
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    for (wins, losses), colour in zip(((0.5, 0.5), (0.2, 1.8)), RUN_COLOURS, strict=False):
        belief = Belief(np.full(1, wins), np.full(1, losses))
        gains = expected_gains(belief, none, eight, none)(none, 0, len(further))[0]
        label = f"belief before: Beta({wins:g}, {losses:g})"
        axes.plot(further + 9, gains, color=colour, label=label)
    axes.plot(further + 9, np.zeros(len(further)), color=MUTED, linestyle="--", label="point estimate: p = 0")
    axes.set(xlabel="rollout N, after 8 failures", ylabel="expected gain in value")
    axes.legend(frameon=False, fontsize=9)
    return figure


def main(folder: Path) -> None:
    """Write both figures."""
    for draw in (marginal_gains, expected_gain):
        path = folder / f"concepts-{draw.__name__.replace('_', '-')}.png"
        draw().savefig(path, dpi=200, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
