"""The page of simulations, and of the theory beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from knapsack_rl.experiments.pages.page import DataTable, Listing, Part, Section, write_page
from knapsack_rl.experiments.pages.wording import percent
from knapsack_rl.experiments.simulate import charts, theory_charts
from knapsack_rl.experiments.simulate.charts import FEW, only, prompts_at
from knapsack_rl.experiments.simulate.results import CONTROL, UNIFORM, SimulationTables
from knapsack_rl.experiments.simulate.simulation import FRESH, ORACLE
from knapsack_rl.experiments.simulate.worlds import DEFAULT_WORLD, SHOWN, WORLDS
from knapsack_rl.metrics import STATUSES

_SIMULATED = "Simulated: a policy of equations in place of a language model."


def write_report(tables: SimulationTables | None, output: Path, command: str) -> Path:
    """Write the page; without tables it holds the theory alone.

    Args:
        tables: what `results.run` made or `results.read` read.
        output: the HTML file.
        command: what makes it again.

    Raises:
        InvalidInputError: `output` cannot be written.
    """
    if tables is None:
        title, summary, sections = "Theory", [_THEORY], []
    else:
        worlds = list(tables.settings["worlds"])
        title = "Simulated training: " + (", ".join(worlds) if len(worlds) <= FEW else f"{len(worlds)} worlds")
        summary, sections = _summary(tables), _simulations(tables)
    return write_page(
        output,
        kind="simulation",
        title=title,
        summary=summary,
        notes=[_SIMULATED + " It shows what follows from the equations, not what a model will do."] if tables else [],
        sections=[*sections, Section("Theory", theory_charts.parts())],
        command=command,
    )


_THEORY = (
    "The paper's figures 3, 4 and 10 and its table 3, computed anew from this library's own functions. No training is "
    "simulated for them."
)


def _simulations(tables: SimulationTables) -> list[Section]:
    pairs = list(dict.fromkeys(zip(tables.results["world"], tables.results["optimizer"], strict=True)))
    sections = [
        Section("Against the paper", _against_paper(tables)),
        Section("Results", [_results_table(tables), _beliefs_table(tables)]),
    ]
    for world, optimizer in pairs:
        drawn = charts.of_world(tables, world, optimizer, every=len(pairs) <= FEW)
        sections.append(Section(f"World {world}, {SHOWN[optimizer]}", drawn))
    worlds = "\n".join(f"{name}: {WORLDS[name].purpose}\n{_numbers(name)}" for name in tables.settings["worlds"])
    return [*sections, Section("Worlds", [Listing("What was simulated, in numbers", worlds)])]


def _numbers(name: str) -> str:
    numbers = ", ".join(f"{key} {number}" for key, number in vars(WORLDS[name]).items() if key != "purpose")
    return textwrap.fill(numbers, 76, initial_indent="    ", subsequent_indent="    ")


def _summary(tables: SimulationTables) -> list[str]:
    """What happened to the strategies in the first worlds, in sentences."""
    paragraphs: list[str] = []
    for (world, optimizer), rows in list(tables.results.groupby(["world", "optimizer"], sort=False))[:FEW]:
        mean = rows.groupby("run", sort=False).mean(numeric_only=True)
        uniform = mean.loc[UNIFORM]
        found = [
            f"{run} reached {percent(row['success_rate'])}, with an effective gradient ratio of "
            f"{percent(row['effective_gradient_ratio'])} and budgets of up to {row['largest_budget']:.0f} rollouts"
            for run, row in mean.iterrows()
            if run not in (UNIFORM, ORACLE, CONTROL)
        ]
        paragraphs.append(
            f"World {world} under {SHOWN[str(optimizer)]}, mean success rate of all prompts at the end: uniform "
            f"{percent(uniform['success_rate'])}, with an effective gradient ratio of "
            f"{percent(uniform['effective_gradient_ratio'])}; {'; '.join([*found, ''])}oracle "
            f"{percent(mean.loc[ORACLE, 'success_rate'])}; uniform at twice the rollouts "
            f"{percent(mean.loc[CONTROL, 'success_rate'])}."
        )
    return paragraphs


def _results_table(tables: SimulationTables) -> DataTable:
    columns = {
        "success_rate": "success rate",
        "success_rate_gap_closed": "gap: success",
        "held_out_success_rate": "held out",
        "effective_gradient_ratio": "EGR",
        "egr_gap_closed": "gap: EGR",
        "value_gap_closed": "gap: value",
        "unsolved": "unsolved",
        "largest_budget": "largest budget",
    }
    data = _means_by_run(tables, columns)
    shares = ["success rate", "held out", "EGR", *(name for name in data if "gap" in name)]
    formats: dict[str, Callable[[Any], str]] = dict.fromkeys(shares, percent)
    formats |= {"unsolved": lambda count: f"{count:,.0f}", "largest budget": lambda count: f"{count:,.0f}"}
    seeds = len(tables.settings["seeds"])
    return DataTable(
        "results",
        "Every world, optimiser and strategy" + (f", mean of {seeds} seeds" if seeds > 1 else ", one seed"),
        f"{_SIMULATED} Success rates are true ones after the last step, over all training prompts and over prompts "
        "never trained on. EGR: effective gradient ratio, mean over the steps. Gap: the share of the way from uniform "
        "to the oracle that a strategy went; in value and EGR it compares the plans that the three would have made at "
        f"the same success rates. Unsolved: expected prompts without a success in {FRESH} rollouts at the end. Where "
        "uniform at twice the rollouts is no better than uniform, rollouts are not the bottleneck.",
        data,
        formats,
        "results.csv",
    )


def _beliefs_table(tables: SimulationTables) -> DataTable:
    columns = {"belief_rmse": "error of the mean", "log_score": "log score"}
    return DataTable(
        "beliefs",
        "How well success rates were predicted",
        f"{_SIMULATED} Means over all steps, the first epoch included. Error: root mean squared difference between the "
        "believed success rate of a prompt before a step and the true one. Log score: log probability (nats) that the "
        "belief gave to a prompt's outcomes, mean over prompts; strategies that spend differently have different "
        "outcomes to predict, so beliefs of different strategies compare by the error.",
        _means_by_run(tables, columns).dropna(ignore_index=True),  # the oracle knows, and believes nothing
        {"error of the mean": "{:.3f}".format, "log score": "{:.2f}".format},
        "results.csv",
    )


def _means_by_run(tables: SimulationTables, columns: dict[str, str]) -> pd.DataFrame:
    """Means over seeds of these columns of the results, renamed, after a column that names the runs."""
    means = tables.results.groupby(["world", "optimizer", "run"], sort=False)[[*columns]].mean().reset_index()
    names = means["world"] + ",\N{NO-BREAK SPACE}" + means["optimizer"].map(SHOWN) + ": " + means["run"]
    return pd.DataFrame({"world, optimiser: run": names}).join(means[[*columns]].rename(columns=columns))


def _against_paper(tables: SimulationTables) -> list[Part]:
    """The paper's numbers for Qwen2.5-Math-7B beside those of the default world."""
    results = tables.results
    if DEFAULT_WORLD not in set(results["world"]) or "knapsack" not in set(results["run"]):
        return []
    seed, steps = tables.settings["seeds"][0], tables.settings["steps"]
    columns = {}
    for optimizer in tables.settings["optimizers"]:
        for run in (UNIFORM, "knapsack"):
            columns[f"{run}, {SHOWN[optimizer]}"] = _as_in_paper(tables, optimizer, run, seed, steps)
    paper = {
        UNIFORM: ["below 60 %", "about 20 %", "about 95 %", "40 %", "about 20 %", "8", "47.1 %", "3,793", "8,676"],
        "knapsack": ["—", "+20 to 40 %", "—", "—", "—", "93", "43.4 %", "3,596", "9,274"],
    }
    data = pd.DataFrame({"quantity": list(next(iter(columns.values())))})
    for name, texts in paper.items():
        data[f"paper, {name}"] = texts
    for name, found in columns.items():
        data[name] = list(found.values())
    return [
        DataTable(
            "against-paper",
            f"Simulated world '{DEFAULT_WORLD}' beside the paper's Qwen2.5-Math-7B",
            f"{_SIMULATED} The world was tuned until uniform looked like the paper's; knapsack was not. Under uniform "
            "the effective gradient ratio and the two zero-gradient ratios add up to 100 %, which the paper's three "
            "late numbers do not; the world aims at its final statuses (figure 8). The last three rows take a prompt's "
            "status from the rollouts of its own visits, as the paper does, so that a strategy that gives a solved "
            f"prompt 2 rollouts sees it as always solved more often. In {FRESH} fresh rollouts of every prompt: "
            f"{_fresh(tables, seed)}.",
            data,
            source="steps.parquet, statuses.csv",
            row_formats=dict.fromkeys(data["quantity"], str),
        )
    ]


def _as_in_paper(tables: SimulationTables, optimizer: str, run: str, seed: int, steps: int) -> dict[str, str]:
    rows, statuses = (
        only(table, world=DEFAULT_WORLD, optimizer=optimizer, run=run, seed=seed)
        for table in (tables.steps, tables.statuses)
    )
    late = rows[rows["step"] > 0.95 * steps]
    smooth = rows["effective_gradient_ratio"].rolling(min(20, len(rows))).mean()
    visited = statuses.dropna(subset=["first"])
    begun = visited[visited["first"] == STATUSES[0]]
    stayed = begun.loc[begun["last"] == STATUSES[0], "prompts"].sum() / max(begun["prompts"].sum(), 1)
    return {
        "EGR, highest mean of 20 steps (figure 2)": percent(float(smooth.max())),
        "EGR, last 5 % of the steps (figure 6)": percent(float(late["effective_gradient_ratio"].mean())),
        "All wrong, highest": percent(float(rows["all_wrong"].max())),
        "All correct, last 5 %": percent(float(late["all_correct"].mean())),
        "All wrong, last 5 %": percent(float(late["all_wrong"].mean())),
        "Largest budget (figure 5)": f"{rows['max'].max():.0f}",
        "Extremely hard that stay so (figure 7)": percent(float(stayed)),
        "Extremely hard at the last visit (figure 8)": f"{prompts_at(visited, 'last', STATUSES[0]):,}",
        "Extremely easy at the last visit (figure 8)": f"{prompts_at(visited, 'last', STATUSES[4]):,}",
    }


def _fresh(tables: SimulationTables, seed: int) -> str:
    texts = []
    for optimizer in tables.settings["optimizers"]:
        for run in (UNIFORM, "knapsack"):
            rows = only(tables.statuses, world=DEFAULT_WORLD, optimizer=optimizer, run=run, seed=seed)
            hard, easy = prompts_at(rows, "after", STATUSES[0]), prompts_at(rows, "after", STATUSES[4])
            texts.append(f"{run} under {SHOWN[optimizer]} {hard:,} extremely hard and {easy:,} extremely easy")
    return ", ".join(texts)
