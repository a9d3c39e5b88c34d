"""The paper's theory on a page: figures 3, 4 and 10, and table 3."""

from __future__ import annotations

import numpy as np
import pandas as pd

from knapsack_rl.experiments.pages.page import Chart, DataTable, Part
from knapsack_rl.experiments.simulate import figures, theory
from knapsack_rl.values import information_gain, value

_BINS = 32


def parts() -> list[Part]:
    """All of it, computed anew."""
    return [_figure_3(), _figure_4(), _figure_10(), _table_3()]


def _figure_3() -> Chart:
    rates, means, sufficient = theory.first_gradients()
    bins = pd.DataFrame({"rate": rates, "on average": means, "in 90 % of cases": sufficient})
    bins = bins.groupby((rates * _BINS).astype(int)).mean()
    line = np.linspace(0.004, 0.996, 249)
    tables = []
    for what, expected in zip(list(bins)[1:], theory.first_gradients_by_theorem(line), strict=True):
        measured = pd.DataFrame({"source": "measured", "success_rate": bins["rate"], "rollouts": bins[what]})
        theorem = pd.DataFrame({"source": "theorem 1", "success_rate": line, "rollouts": expected})
        tables += [part.assign(what=what)[["what", *part]] for part in (theorem, measured)]
    return Chart(
        "theory-figure-3",
        "Rollouts until a gradient (figure 3)",
        f"Line: theorem 1. Dots: simulated success rates of {len(rates):,} prompts with 256 sampled responses each, "
        f"put into 100 random orders, in bins of 1/{_BINS}. Near 0 and 1 the dots lie below the line because 256 "
        "responses cannot show a longer wait; near 1/2 those for 90 % lie above it because the theorem drops the "
        "smaller of its two powers.",
        "computed by experiments/simulate/theory.py",
        figures.marked(figures.first_gradients, "simulated success rates"),
        pd.concat(tables, ignore_index=True),
    )


def _figure_4() -> Chart:
    rates, rollouts, values = theory.value_grid()
    grid = pd.DataFrame(
        {
            "success_rate": np.tile(rates, len(rollouts)),
            "rollouts": np.repeat(rollouts, len(rates)),
            "value": values.ravel(),
            "highlighted": False,
        }
    )
    points = pd.DataFrame(theory.HIGHLIGHTED, columns=["success_rate", "rollouts"])
    points["value"] = value(points["rollouts"].to_numpy(), points["success_rate"].to_numpy())
    return Chart(
        "theory-figure-4",
        "Lines of equal value (figure 4)",
        "Value(N, p) = (1 - p^N - (1 - p)^N) p (1 - p)^2. The three points that the paper highlights are worth about "
        f"the same, {points['value'].min():.3f} to {points['value'].max():.3f}.",
        "computed by knapsack_rl.value",
        figures.value_contours,
        pd.concat([grid, points.assign(highlighted=True)], ignore_index=True),
    )


def _figure_10() -> Chart:
    rates = np.linspace(0.001, 0.999, 250)
    exact, small = theory.exact_information_gain(rates), theory.exact_information_gain(rates, 0.1) / 0.1
    curves = {"p (1 - p)²": information_gain(rates), "exact, η = 1": exact, "exact, η = 0.1, times 10": small}
    ratio = exact / curves["p (1 - p)²"]
    hard, worst = float(np.interp(0.1, rates, ratio)), float((exact - curves["p (1 - p)²"]).max())
    return Chart(
        "theory-figure-10",
        "Information gain, exact and approximate (figure 10)",
        "What one update on a sampled success adds to the success rate of a softmax over 100 actions. With the paper's "
        f"learning rate of 1 the approximation is close above p = 1/2 and low below: the exact gain peaks at "
        f"p = {rates[exact.argmax()]:.2f} with {exact.max():.3f} (approximate: 1/3 and 0.148), is {hard:.2f} times the "
        f"approximate one at p = 0.1, and differs by at most {worst:.3f}. With a small learning rate the two agree.",
        "computed by experiments/simulate/theory.py",
        figures.information_gains,
        pd.concat(
            [pd.DataFrame({"curve": name, "success_rate": rates, "gain": gain}) for name, gain in curves.items()],
            ignore_index=True,
        ),
    )


def _table_3() -> DataTable:
    found = theory.table_3()
    data = pd.DataFrame(
        {
            "prompt": [str(index) for index in range(1, len(found["cost"]) + 1)],
            "success rate": found["success_rate"],
            "cost": found["cost"],
            "with fallback": found["with_fallback"],
            "without fallback": found["without_fallback"],
        }
    )
    return DataTable(
        "theory-table-3",
        "Assignments with and without the fallback (table 3)",
        f"{theory.TABLE_3_BUDGET} rollouts over 8 prompts.",
        data,
        {"success rate": lambda rate: f"{rate:.1f}", "cost": lambda cost: "∞" if np.isinf(cost) else f"{cost:.0f}"},
        "knapsack_rl.allocate",
    )
