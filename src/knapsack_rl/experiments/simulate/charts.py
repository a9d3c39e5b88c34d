"""The figures of simulations on a page: what each shows, what its caption says, and the table it is drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from knapsack_rl.experiments.pages.page import Chart, Note, Part
from knapsack_rl.experiments.report import run_figures
from knapsack_rl.experiments.simulate import figures
from knapsack_rl.experiments.simulate.results import CONTROL, UNIFORM, SimulationTables
from knapsack_rl.experiments.simulate.simulation import FRESH, ORACLE
from knapsack_rl.experiments.simulate.worlds import SHOWN
from knapsack_rl.metrics import STATUSES

FEW = 2
"""Combinations of world and optimiser up to which a page shows every figure of each."""
_RATIOS = {
    "effective gradients": "effective_gradient_ratio",
    "all correct": "all_correct",
    "all wrong": "all_wrong",
}
_CURVES = 10
"""Runs in a figure: each colour solid and dashed."""
_HEAT_MAPS = 5
"""Runs in the figure of transitions, whose panels are large."""
_BLOCK = 5  # steps in a point of a curve
_WINDOW = 50  # steps in a running mean
_SMOOTHING = f"Light: means of {_BLOCK} steps; bold: mean of the last {_WINDOW}."


def only(table: pd.DataFrame, **chosen: str | int) -> pd.DataFrame:
    """The rows that have these values in these columns."""
    for column, wanted in chosen.items():
        table = table[table[column] == wanted]
    return table


def prompts_at(statuses: pd.DataFrame, when: str, status: str) -> int:
    """How many prompts were in a status; `when` is a column of `SimulationTables.statuses`."""
    return int(statuses.loc[statuses[when] == status, "prompts"].sum())


def of_world(tables: SimulationTables, world: str, optimizer: str, *, every: bool) -> list[Part]:
    """The figures of one world and optimiser, of the first seed; `every` one or only the two that tell most."""
    seed = tables.settings["seeds"][0]
    runs = list(dict.fromkeys(only(tables.steps, world=world, optimizer=optimizer)["run"]))
    others = [run for run in runs if run not in (UNIFORM, ORACLE, CONTROL)]
    others = others[: _CURVES - 3]
    shown = [UNIFORM, *others, ORACLE, CONTROL]

    def rows(table: pd.DataFrame, some: Sequence[str]) -> dict[str, pd.DataFrame]:
        return {run: only(table, world=world, optimizer=optimizer, run=run, seed=seed) for run in some}

    compared = [UNIFORM, *others]
    parts: list[Part] = [
        _gradients(rows(tables.steps, [UNIFORM]), "figure-2", "Effective and zero gradients of uniform (figure 2)"),
        _gradients(rows(tables.steps, shown), "figure-6", "Effective and zero gradients (figure 6)"),
        _progress(rows(tables.steps, shown)),
        _histogram(rows(tables.budgets, [run for run in shown if run not in (UNIFORM, CONTROL)])),
        _quantiles(rows(tables.steps, others)),
        _beliefs(rows(tables.steps, compared)),
        _transitions(rows(tables.statuses, compared[:_HEAT_MAPS]), compared[_HEAT_MAPS:]),
        _status_counts(rows(tables.statuses, compared), "last"),
        _status_counts(rows(tables.statuses, shown), "after"),
    ]
    mark = f"simulated: world {world}, {SHOWN[optimizer]}, seed {seed}"
    charts = [chart for chart in parts if isinstance(chart, Chart) and len(chart.data)]
    kept = charts if every else [chart for chart in charts if chart.name in ("figure-6", "success")]
    left_out = [run for run in runs if run not in shown]
    notes = [Note(f"A figure holds {_CURVES} runs; in the table only: {'; '.join(left_out)}.")] if left_out else []
    return [*(_placed(chart, f"{world}-{optimizer}", mark) for chart in kept), *notes]


def _placed(chart: Chart, prefix: str, mark: str) -> Chart:
    return Chart(
        f"{prefix}-{chart.name}",
        f"Simulated: {chart.title[0].lower()}{chart.title[1:]}",
        chart.caption,
        chart.source,
        figures.marked(chart.draw, mark),
        chart.data,
    )


def _labelled(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    some = [part.assign(run=run)[["run", *(c for c in part.columns if c != "run")]] for run, part in parts.items()]
    return pd.concat(some, ignore_index=True) if some else pd.DataFrame()


def _gradients(steps: Mapping[str, pd.DataFrame], name: str, title: str) -> Chart:
    curves = {
        run: pd.concat(_curve(rows, key).assign(quantity=label) for label, key in _RATIOS.items())[
            ["quantity", "step", "value", "running_mean"]
        ]
        for run, rows in steps.items()
    }
    return Chart(
        name,
        title,
        "Share of rollouts with a non-zero advantage (effective gradient ratio, equation 4), and shares of prompts "
        f"whose rollouts were all correct or all wrong. {_SMOOTHING}",
        "steps.parquet",
        run_figures.gradient_ratios,
        _labelled(curves),
    )


def _curve(rows: pd.DataFrame, key: str) -> pd.DataFrame:
    """Means of blocks of steps, and their running mean."""
    block = ((rows["step"] - 1) // _BLOCK).to_numpy()
    table = rows[["step", key]].groupby(block).agg({"step": "last", key: "mean"}).rename(columns={key: "value"})
    return table.assign(running_mean=table["value"].rolling(max(1, _WINDOW // _BLOCK), min_periods=1).mean())


def _beliefs(steps: Mapping[str, pd.DataFrame]) -> Chart:
    return Chart(
        "beliefs",
        "How well success rates were predicted",
        "Root of the mean squared difference between what was believed before a step and the true success rate, which "
        "only a simulation knows, over the prompts of the step. All strategies meet the same prompts, but each trains "
        f"its own policy and sees as much of a prompt as it spends on it. Means of {_BLOCK} steps. Beliefs improve "
        "from epoch to epoch, as every prompt has then been seen once more. The vertical axis leaves out where the "
        "curves were in the first tenth.",
        "steps.parquet",
        figures.belief_errors,
        _labelled({run: _curve(rows, "belief_rmse")[["step", "value"]] for run, rows in steps.items()}),
    )


def _progress(steps: Mapping[str, pd.DataFrame]) -> Chart:
    curves = {}
    for run, rows in steps.items():
        spent = rows.assign(spent=rows["rollouts"].cumsum()).dropna(subset=["mean_success_rate"])
        curves[run] = pd.concat(
            pd.DataFrame({"prompts": label, "rollouts": spent["spent"], "value": spent[key]})
            for label, key in (("training", "mean_success_rate"), ("held-out", "held_out"))
        )
    return Chart(
        "success",
        "Mean success rate against cost",
        "True success rate, mean over all training prompts, and over prompts that are never trained on and profit from "
        "shared parameters alone. The oracle is told the true success rates, which no real run is; "
        f"{CONTROL!r} spends twice the rollouts in as many steps and says whether rollouts are the bottleneck. "
        "The vertical axes do not start at zero.",
        "steps.parquet",
        figures.success_rates,
        _labelled(curves),
    )


def _histogram(budgets: Mapping[str, pd.DataFrame]) -> Chart:
    return Chart(
        "figure-5",
        "How budgets were distributed (figure 5)",
        "How many visits (a prompt in a step) were given so many rollouts, over the whole run; the vertical axis is "
        "logarithmic. Uniform would be a single bar at the mean.",
        "budgets.csv",
        run_figures.budget_histogram,
        _labelled({run: rows[["rollouts", "count"]] for run, rows in budgets.items()}),
    )


def _quantiles(steps: Mapping[str, pd.DataFrame]) -> Chart:
    quantiles = {}
    for run, rows in steps.items():
        block = ((rows["step"] - 1) // _BLOCK).to_numpy()
        how = {"step": "last", "min": "min", "q25": "mean", "median": "mean", "q75": "mean", "max": "max"}
        quantiles[run] = rows[list(how)].groupby(block).agg(how)
    return Chart(
        "budget-quantiles",
        "Budgets over steps",
        f"Rollouts per prompt, {_BLOCK} steps together: from smallest to largest (light), the middle half (dark) and "
        "the median (line), on a logarithmic axis. Never-visited prompts get the mean, so a first epoch is uniform.",
        "steps.parquet",
        run_figures.budget_quantiles,
        _labelled(quantiles),
    )


def _transitions(statuses: Mapping[str, pd.DataFrame], left_out: Sequence[str]) -> Chart:
    cells = {}
    for run, rows in statuses.items():
        visited = rows.dropna(subset=["first"])
        first, last = (visited[when].map(STATUSES.index).to_numpy() for when in ("first", "last"))
        counts = np.zeros((len(STATUSES), len(STATUSES)), dtype=np.int64)
        np.add.at(counts, (first, last), visited["prompts"].to_numpy())
        begun = counts.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            share = counts / begun
        size = len(STATUSES)
        cells[run] = pd.DataFrame(
            {
                "first": np.repeat(STATUSES, size),
                "last": np.tile(STATUSES, size),
                "prompts": counts.ravel(),
                "share": share.ravel(),
            }
        )
    return Chart(
        "figure-7",
        "Status transitions (figure 7)",
        "Of the prompts that were in a row's status at their first visit, the percentage that was in a column's status "
        "at their last. A status is the success rate of one visit's rollouts, so a visit with few rollouts is coarse, "
        "and strategies differ for that alone. A blank row had no prompts."
        + (f" Not shown: {'; '.join(left_out)}." if left_out else ""),
        "statuses.csv",
        run_figures.transitions,
        _labelled(cells),
    )


def _status_counts(statuses: Mapping[str, pd.DataFrame], when: str) -> Chart:
    fresh = when == "after"
    earlier = "before" if fresh else "first"
    counts = {
        run: pd.DataFrame(
            [
                {"visit": visit, "status": status, "prompts": prompts_at(rows, column, status)}
                for visit, column in (("first", earlier), ("last", when))
                for status in STATUSES
            ]
        )
        for run, rows in statuses.items()
    }
    return Chart(
        "final-statuses" if fresh else "figure-8",
        f"Statuses in {FRESH} fresh rollouts after training" if fresh else "Statuses at the last visit (figure 8)",
        f"Training prompts by their success rate in {FRESH} new rollouts from the final policy, as many for every "
        "strategy: the comparison that the one of last visits is not."
        if fresh
        else "Training prompts by the success rate of their last visit's rollouts, as the paper counts them. "
        "Strategies give visits different numbers of rollouts, and statuses differ for that alone.",
        "statuses.csv",
        _fresh_counts if fresh else run_figures.status_counts,
        _labelled(counts),
    )


def _fresh_counts(table: pd.DataFrame) -> Figure:
    figure = run_figures.status_counts(table)
    figure.axes[0].set_xlabel(f"prompts, by status in {FRESH} fresh rollouts")
    return figure
