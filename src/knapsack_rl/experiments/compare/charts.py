"""The figures of a comparison's page: what each shows, what its caption says, and the table that it is drawn from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from knapsack_rl.experiments.compare import figures, results
from knapsack_rl.experiments.compare.comparison import Comparison
from knapsack_rl.experiments.compare.figures import Roles
from knapsack_rl.experiments.pages.page import Chart

ComparisonTables = Mapping[str, pd.DataFrame]

UNITS = {"rollouts": "rollouts", "tokens": "generated tokens", "seconds": "seconds of training"}
_BAND = "Mean over seeds; the band is its 95 % bootstrap interval."
_LIMITS = "The vertical axis does not start at zero."


def of_variation(comparison: Comparison, tables: ComparisonTables, variation: str) -> list[Chart]:
    """The figures of the arms of one variation.

    Args:
        comparison: what was compared.
        tables: runs, curves, cost_to_reach, steps, and tuning if there was any, of this variation alone.
        variation: its label, which the names of the figures need.
    """
    charts = [
        *_learning(comparison, tables["curves"]),
        *_accuracies(comparison, tables["runs"]),
        *_reach(comparison, tables["cost_to_reach"]),
        *_gradients(comparison, tables["steps"]),
        *_profile(comparison, tables["runs"]),
        *(_tuning(comparison, tables["tuning"]) if "tuning" in tables else ()),
        *_benchmarks(comparison, tables["curves"]),
    ]
    named = [Chart(**{**vars(chart), "name": identifier(chart.name, variation)}) for chart in charts]
    return [chart for chart in named if len(chart.data)]


def across(comparison: Comparison, runs: pd.DataFrame) -> list[Chart]:
    """Accuracy against the varied setting (figure 9), where exactly one varies and is a number."""
    numeric = numeric_keys(comparison.vary)
    if len(comparison.vary) != 1 or not numeric:
        return []
    key = short_name(numeric[0])
    data = runs.assign(**{key: runs["variation"].map(partial(value_in, key=key)).astype(float)})
    data = _with_interval(data.rename(columns={"accuracy": "single"}), ["arm", key], "single")
    data = data.rename(columns={"mean": "accuracy"})
    name = key.replace("_", " ")
    figure_9 = " (figure 9 of the paper)" if key == "group_size" else ""
    return [
        Chart(
            "across-settings",
            f"Accuracy against {name}",
            f"Held-out accuracy at equal {comparison.equal} within each {name}{figure_9}. Diamonds: "
            "means with their 95 % bootstrap intervals; small dots: single seeds. What a run costs may differ "
            f"between values of {name}. {_look(comparison)}",
            "runs.csv",
            partial(figures.settings, roles=_roles(comparison), key=key, label=name),
            data,
        )
    ]


def identifier(part: str, variation: str) -> str:
    """A name for a figure's or table's files."""
    return re.sub(r"[^a-z0-9]+", "-", f"{part}-{variation}".lower()).strip("-")


def numeric_keys(values: Mapping[str, list[object]]) -> list[str]:
    """The keys with several values that are all numbers."""
    return [
        key
        for key, several in values.items()
        if len(several) > 1 and all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in several)
    ]


def short_name(key: str) -> str:
    """The last part of a dotted key, which labels of variations and choices have."""
    return key.rpartition(".")[2]


def value_in(label: str, key: str) -> str | None:
    """The value of `key` in a label such as `learning_rate=0.001, group_size=8`."""
    found = re.search(rf"(?:^|, ){re.escape(key)}=([^,]+)", label)
    return None if found is None else found[1]


def _learning(comparison: Comparison, curves: pd.DataFrame) -> Iterator[Chart]:
    """Accuracy against every kind of cost, the common one first."""
    count = curves.loc[curves["benchmark"] != "mean", "benchmark"].nunique()
    of_what = f"Mean over {count} benchmarks. " if count > 1 else ""
    mean = curves[curves["benchmark"] == "mean"]
    for cost in sorted(results.COSTS, key=lambda cost: cost != comparison.equal):
        note = "Evaluation is not counted; other programs may have run beside. " if cost == "seconds" else ""
        yield Chart(
            f"accuracy-by-{cost}",
            f"Held-out accuracy against {UNITS[cost]}",
            f"{of_what}{_BAND} A line ends where the first of its seeds does. {note}{_LIMITS} {_look(comparison)}",
            "curves.csv",
            _curves(comparison, "accuracy", "held-out accuracy", cost),
            results.mean_curves(mean, cost),
        )


def _benchmarks(comparison: Comparison, curves: pd.DataFrame) -> Iterator[Chart]:
    """A learning curve for each of several benchmarks (figures 12 to 15)."""
    benchmarks = [str(name) for name in curves["benchmark"].unique() if name != "mean"]
    if len(benchmarks) < 2:
        return
    for index, benchmark in enumerate(benchmarks, start=1):
        yield Chart(
            f"benchmark-{index}",
            f"Accuracy on {benchmark}",
            f"{_BAND} {_LIMITS} {_look(comparison)}",
            "curves.csv",
            _curves(comparison, "accuracy", "accuracy", comparison.equal),
            results.mean_curves(curves[curves["benchmark"] == benchmark], comparison.equal),
        )


def _accuracies(comparison: Comparison, runs: pd.DataFrame) -> Iterator[Chart]:
    """What every seed reached, and its difference to the baseline."""
    roles, base = _roles(comparison), comparison.baseline
    yield Chart(
        "accuracy",
        f"Accuracy at equal {comparison.equal}",
        "Small dots: single seeds; diamonds: means, with their 95 % bootstrap intervals. Seeds differ from each other "
        "more than arms may: the next figure pairs them."
        + (" References (hollow) are taken at their own end." if roles.references else ""),
        "runs.csv",
        partial(figures.seeds, roles=roles, value="accuracy", label="held-out accuracy (%)"),
        _with_interval(runs, ["arm"], "accuracy"),
    )
    baseline = runs[runs["arm"] == base].set_index("seed")["accuracy"]
    paired = runs[runs["arm"] != base]
    paired = paired.assign(difference=paired["accuracy"] - paired["seed"].map(baseline)).dropna(subset=["difference"])
    yield Chart(
        "differences",
        f"Differences to {base}, seed by seed",
        f"Small dots: an arm's accuracy minus that of {base} with the same seed (the same warm start and prompts); "
        "diamonds: means, with their 95 % bootstrap intervals. An interval over the line claims nothing.",
        "runs.csv",
        partial(figures.seeds, roles=roles, value="difference", label=f"accuracy minus {base}'s (points)", zero=True),
        _with_interval(paired, ["arm"], "difference"),
    )


def _reach(comparison: Comparison, reach: pd.DataFrame) -> Iterator[Chart]:
    base, cost = comparison.baseline, comparison.equal
    keys = ["arm", "level"]
    medians = reach.fillna({"ratio": np.inf}).groupby(keys)["ratio"].median().rename("median")
    data = reach.join(medians, on=keys)[["arm", "seed", "level", "ratio", "median"]]
    others = data.loc[data["arm"] != base, "ratio"]
    yield Chart(
        "cost-to-reach",
        f"Cost to reach what {base} reached",
        f"The {UNITS[cost]} at which an arm first reaches a share of what {base} gained with the same seed, relative "
        f"to {base}'s; below 1 is cheaper. Line: median over seeds, ending where half of them or more never got there; "
        "dots: single seeds; crosses: seeds that never did.",
        "cost_to_reach.csv",
        partial(figures.reach, roles=_roles(comparison), cost=cost),
        data if (others > 0.0).any() else data.iloc[:0],
    )


def _gradients(comparison: Comparison, steps: pd.DataFrame) -> Iterator[Chart]:
    """What of the budget carried a gradient."""
    for metric, title, label in (
        ("effective_gradient_ratio", "Effective gradient ratio", "share of rollouts with a gradient"),
        ("effective_prompts", "Effective prompts", "share of prompts with a gradient"),
    ):
        yield Chart(
            metric.replace("_", "-"),
            title,
            f"{label.capitalize()} in a step, as a running mean over a twentieth of the run. {_BAND} "
            f"{_look(comparison)}",
            "steps.csv",
            _curves(comparison, "value", label, "rollouts"),
            results.step_curves(steps, metric),
        )


def _profile(comparison: Comparison, runs: pd.DataFrame) -> Iterator[Chart]:
    profile = results.performance_profile(runs, points=201)
    low, high = float(runs["accuracy"].min()), float(runs["accuracy"].max())
    yield Chart(
        "performance-profile",
        "Performance profile",
        f"Share of an arm's runs whose accuracy at equal {comparison.equal} is above a threshold (Agarwal et al., "
        f"2021): further to the right is better. {_look(comparison)}",
        "runs.csv",
        partial(figures.profile, roles=_roles(comparison)),
        profile[profile["threshold"].between(low - 0.03, high + 0.03)],
    )


def _tuning(comparison: Comparison, tuning: pd.DataFrame) -> Iterator[Chart]:
    """Accuracy against the grid's first numeric key, with the best of the others."""
    grid = comparison.tuning.grid if comparison.tuning else {}
    numeric = numeric_keys(grid)
    if not numeric:
        return
    key = short_name(numeric[0])
    data = tuning.assign(**{key: tuning["choice"].map(partial(value_in, key=key)).astype(float)})
    data = data.groupby(["arm", key], sort=False, as_index=False).agg(
        accuracy=("accuracy", "max"), chosen=("chosen", "any")
    )
    name = key.replace("_", " ")
    rest = " (the best over the other keys of the grid)" if len(grid) > 1 else ""
    yield Chart(
        "tuning",
        f"Tuning: accuracy against {name}",
        f"Mean accuracy over the tuning seeds, which the rest of the page does not use, at every {name} of the "
        f"grid{rest}. Circles: what each arm kept. {_look(comparison)}",
        "tuning.csv",
        partial(figures.settings, roles=_roles(comparison), key=key, label=name),
        data,
    )


def _roles(comparison: Comparison) -> Roles:
    return Roles(comparison.baseline, tuple(filter(comparison.is_reference, comparison.arms)))


def _look(comparison: Comparison) -> str:
    dashed = "; dashed: references" if _roles(comparison).references else ""
    return f"Grey: {comparison.baseline}{dashed}."


def _curves(comparison: Comparison, value: str, label: str, cost: str) -> Callable[[pd.DataFrame], Figure]:
    return partial(figures.curves, roles=_roles(comparison), value=value, label=label, cost=UNITS[cost])


def _with_interval(table: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """`keys`, seed and `value` of every row, and the mean of its group with its interval."""
    parts = []
    for _, rows in table.groupby(keys, sort=False):
        low, high = results.interval(rows[value].to_numpy())
        parts.append(rows[[*keys, "seed", value]].assign(mean=rows[value].mean(), low=low, high=high))
    return pd.concat(parts, ignore_index=True) if parts else table.iloc[:0]
