"""The figures of a run's report: what each shows, what its caption says, and the tables that it is drawn from.

Every function takes the runs of the page and returns the figures for which at least one of them has data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from knapsack_rl.experiments.pages.page import Chart
from knapsack_rl.experiments.report import run_data, run_figures
from knapsack_rl.experiments.report.run_data import Run, Visits

RATIOS = {
    "effective gradients": "effective_gradient_ratio",
    "all correct": "zero_gradient_ratio/all_positive",
    "all wrong": "zero_gradient_ratio/all_negative",
}
COSTS = {"even groups": "cost/even", "real": "cost/real", "expected": "cost/expected"}
LOG_SCORE = "belief/log_score"
_GRID = 9  # prompts in the figure of single prompts, three in a row


def gradients(runs: Sequence[Run]) -> list[Chart]:
    """How much of the rollouts carried a gradient."""
    return _chart(
        runs,
        "gradient-ratios",
        run_figures.gradient_ratios,
        [run_data.curve(run, key, quantity=quantity) for run in runs for quantity, key in RATIOS.items()],
        title="Effective and zero gradients",
        caption="Share of rollouts with a non-zero advantage (effective gradient ratio), and shares of prompts whose "
        f"rollouts were all correct or all wrong and so gave no gradient. {_smoothing(runs)}",
        source="metrics.jsonl",
    )


def rewards(runs: Sequence[Run]) -> list[Chart]:
    """What the prompts earned in training."""
    return _chart(
        runs,
        "prompt-reward",
        run_figures.prompt_reward,
        [run_data.curve(run, "prompt_reward") for run in runs],
        title="Mean reward over prompts",
        caption="Every prompt of a step counts once, however many rollouts it got: the mean over rollouts would move "
        f"with the allocation itself. {_smoothing(runs)}",
        source="metrics.jsonl",
    )


def accuracies(runs: Sequence[Run]) -> list[Chart]:
    """Accuracy on problems that are not trained on, and its curve for each benchmark where there are several."""
    several = len(runs) > 1
    tables = [run_data.accuracies(run) for run in runs]
    charts = _chart(
        runs,
        "held-out-accuracy",
        run_figures.held_out_accuracy,
        tables,
        title="Held-out accuracy against cost",
        caption=f"Accuracy on problems that are not trained on, {samples(runs)}, against the rollouts spent in "
        f"training until then (evaluation not counted). {'' if several else 'The number is the last value. '}"
        "The vertical axis does not start at zero.",
        source="metrics.jsonl",
    )
    if pd.concat(tables)["benchmark"].nunique() > 1:
        charts += _chart(
            runs,
            "benchmark-accuracy",
            run_figures.benchmark_accuracy,
            [run_data.benchmark_accuracies(run) for run in runs],
            title="Every benchmark against cost",
            caption="The same accuracies, a panel for each benchmark, and their mean at the evaluations that measured "
            "all benchmarks of the run. Every panel has a vertical axis of its own, which does not start at zero.",
            source="metrics.jsonl",
        )
    return charts


def budgets(runs: Sequence[Run]) -> list[Chart]:
    """How many rollouts prompts were given."""
    windows = _windows(runs)
    return [
        *_chart(
            runs,
            "budget-histogram",
            run_figures.budget_histogram,
            [run_data.budget_counts(run) for run in runs],
            title="How budgets were distributed",
            caption="How many visits (a prompt in a step) were given so many rollouts, over the whole run; the "
            "vertical axis is logarithmic. Uniform allocation is a single bar at the mean.",
            source="allocations.parquet",
        ),
        *_chart(
            runs,
            "budget-quantiles",
            run_figures.budget_quantiles,
            [run_data.budget_quantiles(run) for run in runs],
            title="Budgets over steps",
            caption=f"Rollouts per prompt{_recently(windows)}: from smallest to largest (light), the middle half "
            "(dark) and the median (line), on a logarithmic axis. Never-visited prompts get the mean, so a first "
            "epoch is uniform.",
            source="allocations.parquet",
        ),
    ]


def costs(runs: Sequence[Run]) -> list[Chart]:
    """What the steps cost, beside what was expected."""
    return _chart(
        runs,
        "costs",
        run_figures.costs,
        [run_data.curve(run, key, quantity=quantity) for run in runs for quantity, key in COSTS.items()],
        title="What steps cost",
        caption="Completion tokens of a step: what its rollouts took, what they were expected to take after the "
        "lengths of earlier ones, and what even groups of as many rollouts would have been expected to take. "
        f"`cost_limit` bounds the second by the third. {_smoothing(runs)} The vertical axis does not start at zero.",
        source="metrics.jsonl",
    )


def predictions(runs: Sequence[Run]) -> list[Chart]:
    """How well the prompts' success rates were known before their rollouts."""
    return [
        *_chart(
            runs,
            "calibration",
            run_figures.calibration,
            [run_data.calibration(run) for run in runs],
            title="How well success rates were predicted",
            caption="What was believed of a prompt before a step against what came out, over all visits, in "
            f"{run_data.BINS} bins of the believed success rate; bars: two standard errors. A belief that is right "
            "lies on the dashed line; above it prompts do better than believed. A visit counts by how far its rollouts "
            "move the belief, n / (n + wins + losses) for n rollouts and a belief of so many wins and losses. Where n "
            "was fixed beforehand, this is the most precise mean of success rates. Where a group's own outcomes decide "
            "when it gets no more rollouts (steps in waves), a plain mean would leave the line even for a belief that "
            "is right, and this one does not.",
            source="allocations.parquet",
        ),
        *_chart(
            runs,
            "log-score",
            run_figures.log_score,
            [run_data.curve(run, LOG_SCORE) for run in runs],
            title="Log score of the predictions",
            caption="Log probability (nats) that the belief gave to a prompt's outcomes before they were seen, mean "
            "over the prompts of a step: higher is better, and 0 would be certainty that came true. More rollouts, and "
            "success rates near one half, are harder to predict, so this compares beliefs at one allocation and not "
            f"runs that allocate differently. {_smoothing(runs)}",
            source="metrics.jsonl",
        ),
    ]


def influence(runs: Sequence[Run]) -> list[Chart]:
    """What gradients were worth to other prompts, and how noisy they were, where the runs measured it."""
    tables = [run_data.worth(run) for run in runs]
    bands, kinds = ([table[table["what"] == what] for table in tables] for what in ("band", "category"))
    caption = (
        "How far a group with a gradient pulls the success rates of its step's other prompts up, in units of the mean "
        "(docs/influence.md); bars: two standard errors. Below 0 it pulls them down. As it was measured after the last "
        "step, with older steps counting less."
    )
    worths = [
        chart
        for name, by, part in (
            ("worth", "by believed success rate", bands),
            ("worth-by-category", "by category", kinds),
        )
        for chart in _chart(
            runs,
            name,
            run_figures.worth,
            part,
            title=f"What a gradient was worth, {by}",
            caption=caption,
            source="metrics.jsonl",
        )
    ]
    return [
        *worths,
        *_chart(
            runs,
            "noise-scale",
            run_figures.noise_scale,
            [run_data.noise_scale(run) for run in runs],
            title="More rollouts, or more steps?",
            caption="The gradient noise scale: prompts of a step from which more of them stop paying. Far above the "
            "prompts of a step, noise limits the run, and more rollouts make better steps; below, more steps would do "
            "more. Shaded: within two standard errors, up to the edge where there is no limit. The line is broken "
            "where the groups had no direction in common.",
            source="metrics.jsonl",
        ),
    ]


def statuses(runs: Sequence[Run], visits: Mapping[str, Visits | None]) -> list[Chart]:
    """What became of the training prompts; `visits` by the names of the runs."""
    several = len(runs) > 1
    once = sum(visit.seen_once for visit in visits.values() if visit)
    unmoved = f"{once:,} prompts were visited once and cannot have moved. " if once else ""
    uneven = (
        " Strategies give visits different numbers of rollouts, and statuses differ for that alone." if several else ""
    )
    return [
        *_chart(
            runs,
            "transitions",
            run_figures.transitions,
            [run_data.transitions(run, visits[run.name]) for run in runs],
            title="Status transitions",
            caption="Of the prompts that were in a row's status at their first visit, the percentage that was in a "
            "column's status at their last. A status is the success rate of one visit's rollouts, so a visit with few "
            f"rollouts is coarse. {unmoved}A blank row had no prompts.{uneven}",
            source="allocations.parquet",
        ),
        *_chart(
            runs,
            "status-counts",
            run_figures.status_counts,
            [run_data.status_counts(run, visits[run.name]) for run in runs],
            title="Prompts in each status",
            caption="Training prompts by the success rate p of their rollouts at their "
            f"{'last visit' if several else 'first visit and at their last'}.{uneven}",
            source="allocations.parquet",
        ),
    ]


def single_prompts(runs: Sequence[Run]) -> list[Chart]:
    """What became of a few prompts, chosen by a rule that does not look at it."""
    several = len(runs) > 1
    visited, together = (" in every run", " (of all runs together)") if several else ("", "")
    return _chart(
        runs,
        "single-prompts",
        run_figures.single_prompts,
        [run_data.trajectories(runs, _GRID)],
        title="Learning of single prompts",
        caption="The success rate observed at each visit; the larger a point, the more rollouts the visit was given. "
        f"The prompts were chosen by where they began: among those visited at least twice{visited}, "
        f"for each of {_GRID} success rates spaced evenly from 0 to 100 % the prompt that was nearest to it at its "
        f"first visit{together}, and of several equally near ones the one whose id has the "
        "smallest SHA-256.",
        source="allocations.parquet",
    )


def _chart(
    runs: Sequence[Run],
    name: str,
    draw: Callable[[pd.DataFrame], Figure],
    tables: Sequence[pd.DataFrame],
    *,
    title: str,
    caption: str,
    source: str,
) -> list[Chart]:
    """The chart of all `tables` that have rows, with a word on the runs that have none; nothing if none has."""
    filled = [table for table in tables if len(table)]
    if not filled:
        return []
    data = pd.concat(filled, ignore_index=True)
    shown = data["run"].unique()
    if len(shown) < len(runs):
        caption = f"{caption} Only {', '.join(shown)}: the others have no such data yet."
    return [Chart(name, title, caption, source, draw, data)]


def _windows(runs: Sequence[Run]) -> list[int]:
    return sorted({run.window for run in runs})


def _smoothing(runs: Sequence[Run]) -> str:
    windows = _windows(runs)
    return "One point per step." if windows == [1] else f"Light: each step; bold: mean{_recently(windows)}."


def _recently(windows: Sequence[int]) -> str:
    return "" if list(windows) == [1] else f" over the last {' or '.join(map(str, windows))} steps"


def samples(runs: Sequence[Run]) -> str:
    """How the held-out accuracy of the runs was measured, as their recipes say."""
    counts = {run.setting("evaluation", "samples") for run in runs}
    known = sorted(count for count in counts if count is not None)
    if not known:
        return "number of samples not recorded"
    numbers = " or ".join(str(count) for count in known)
    text = f"mean over {numbers} sample{'' if known == [1] else 's'} per problem"
    final = [run.setting("evaluation", "final") for run in runs]
    if not any(isinstance(block, dict) for block in final):
        return text
    changes = dict.fromkeys(
        f"{key.replace('_', ' ')} {value}"
        for block in final
        if isinstance(block, dict)
        for key, value in ({"max_problems": "unlimited"} | {k: v for k, v in block.items() if v is not None}).items()
    )
    return f"{text} (in the evaluation after the last step: {', '.join(changes)})"
