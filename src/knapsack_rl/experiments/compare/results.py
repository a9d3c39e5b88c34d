"""What the runs of a comparison came to, and what can be said of it.

Everything is recomputed from the run directories. Costs are rollouts, generated tokens, or seconds of training
(evaluations not counted), cumulative; accuracy is the mean over benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from knapsack_rl.errors import KnapsackError, StateError
from knapsack_rl.experiments.compare.comparison import ArmRun, Comparison
from knapsack_rl.experiments.recipe.schema import Recipe
from knapsack_rl.experiments.report import run_data
from knapsack_rl.experiments.runs.run_directory import RunDirectory

Floats = NDArray[np.float64]

COSTS = ("rollouts", "tokens", "seconds")
LEVELS = (0.5, 0.75, 0.9, 1.0)
"""Shares of the baseline's gain in accuracy at which the cost to reach it is measured."""
CONFIDENCE = 0.95
_RESAMPLES = 4999


STEP_METRICS = ("effective_gradient_ratio", "effective_prompts")


def read(
    arms: Iterable[ArmRun], pool: Path
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, list[tuple[ArmRun, str]]]:
    """Tables of finished runs.

    Returns:
        Three tables, and the arms that are in none of them, with sentences on what of their runs is lost. `runs`, one
        row per arm: variation, arm, choice, seed, folder, rollouts, tokens, seconds (totals), steps,
        effective_gradient_ratio (mean over steps), effective_prompts (prompts with a gradient per update),
        zero_all_positive, zero_all_negative (mean shares of prompts), never_solved (training prompts seen and never
        solved), prompts (seen), allocation_share (of the seconds). `curves`, one row per evaluation and benchmark:
        variation, arm, choice, seed, benchmark, step, rollouts, tokens, seconds, accuracy, solved; the benchmark "mean"
        is the mean over all of them. `steps`, one row per training step: variation, arm, seed, step, rollouts
        (cumulative), and `STEP_METRICS` as running means over a twentieth of the run.
    """
    runs, curves, steps, lost = [], [], [], []
    for arm in arms:
        try:
            run = run_data.read_run(pool / arm.folder, arm.folder)
            _check_whole(run, arm.recipe)
        except KnapsackError as error:
            lost.append((arm, _lost(pool / arm.folder, error)))
            continue
        labels = {"variation": arm.variation, "arm": arm.name, "choice": arm.choice, "seed": arm.seed}
        costs = _costs(run)
        seen = run_data.visits(run)
        groups = run.allocations
        mixed = (groups["successes"] > 0) & (groups["successes"] < groups["scored"])
        runs.append(
            {
                **labels,
                "folder": arm.folder,
                **{cost: float(costs[cost].iloc[-1]) for cost in COSTS},
                "steps": run.last_step,
                "effective_gradient_ratio": run.mean("effective_gradient_ratio"),
                "effective_prompts": float(mixed.sum()) / max(run.last_step, 1),
                "zero_all_positive": run.mean("zero_gradient_ratio/all_positive"),
                "zero_all_negative": run.mean("zero_gradient_ratio/all_negative"),
                "never_solved": seen.never_solved if seen else np.nan,
                "prompts": len(seen.first) if seen else 0,
                "allocation_share": float(run.steps["allocation_seconds"].sum() / costs["seconds"].iloc[-1]),
            }
        )
        at = costs.set_index("step")
        means = run_data.mean_accuracies(run).assign(benchmark="mean")
        evaluations = pd.concat([run.evaluations, means])[["step", "benchmark", "accuracy", "solved"]]
        for cost in COSTS:
            evaluations[cost] = at[cost].reindex(evaluations["step"]).to_numpy()
        curves.append(evaluations.assign(**labels))
        smooth = run.steps[[*STEP_METRICS]].astype(float).rolling(run.window, min_periods=1).mean()
        steps.append(run.steps[["step", "rollouts"]].join(smooth).assign(**labels))
    joined = (pd.concat(parts, ignore_index=True) if parts else pd.DataFrame() for parts in (curves, steps))
    return pd.DataFrame(runs), *joined, lost


def _lost(folder: Path, error: KnapsackError) -> str:
    what = str(error).removeprefix("run_dirs: ").rstrip(".")
    return (
        f"the run in {folder} is finished, but a part of it is lost: {what}. "
        "Put back what it was, or remove that folder: the same command then runs the arm again."
    )


def _check_whole(run: run_data.Run, recipe: Recipe) -> None:
    """Check that every step and evaluation of a finished run is on record.

    Steps are counted from 1 until the budget is spent, which with dynamic sampling is after any number of them.

    Raises:
        StateError: with what is missing.
    """
    log = run.folder / "metrics.jsonl"
    if not len(run.steps):
        raise StateError(f"{log} has no steps.")
    spent, budget = int(run.steps["rollouts"].iloc[-1]), recipe.training.budget
    if spent < budget:
        raise StateError(f"{log} ends after {spent:,} of {budget:,} rollouts.")
    for what, found in (("metrics.jsonl", run.steps), ("allocations.parquet", run.allocations)):
        missing = set(range(1, run.last_step + 1)).difference(found["step"])
        if missing:
            raise StateError(f"{run.folder / what} has no step {min(missing):,}.")
    passed = run.steps["rollouts"] // (recipe.evaluation.every * recipe.training.rollouts_per_step)
    due = {0, run.last_step, *run.steps.loc[passed.diff().fillna(passed) > 0, "step"]}
    missing = due.difference(one["step"] for one in RunDirectory(run.folder).read_metrics() if "evaluation" in one)
    if missing:
        raise StateError(f"{log} has no evaluation after step {min(missing):,}.")


def _costs(run: run_data.Run) -> pd.DataFrame:
    """Cumulative costs after each step, step 0 first."""
    steps = run.steps
    spent = np.diff(steps["rollouts"].to_numpy(dtype=float), prepend=0.0)
    table = pd.DataFrame(
        {
            "step": steps["step"],
            "rollouts": steps["rollouts"].astype(float),
            "tokens": np.cumsum(steps["completions/mean_length"].to_numpy() * spent),
            "seconds": steps["training_seconds"].astype(float),
        }
    )
    return pd.concat([pd.DataFrame({"step": [0], **{cost: [0.0] for cost in COSTS}}), table], ignore_index=True)


def at_equal_cost(runs: pd.DataFrame, curves: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """Accuracy of every run at the cost that all arms of its variation and seed have reached.

    That cost is the least final one among the arms that are no references, each with the choice that went furthest, so
    that a choice whose completions became short does not cut all others; between evaluations accuracy is interpolated.
    References, and choices that ended earlier, are taken at their own end.

    Returns:
        `runs` with the columns cost (at which it was taken), common_cost, accuracy, solved (share of problems with a
        success among the samples), and start (accuracy before training).
    """
    cost = comparison.equal
    competing = runs[~runs["arm"].map(comparison.is_reference)]
    common = competing.groupby(["variation", "seed", "arm"])[cost].max().groupby(level=["variation", "seed"]).min()
    rows = []
    for run in runs.to_dict("records"):
        shared = float(common.get((run["variation"], run["seed"]), run[cost]))
        curve = _curve(curves, run, cost)
        taken = run[cost] if comparison.is_reference(run["arm"]) else min(shared, run[cost])
        rows.append(
            {
                **run,
                "common_cost": shared,
                "cost": taken,
                "start": float(curve["accuracy"].iloc[0]),
                "accuracy": float(np.interp(taken, curve[cost], curve["accuracy"])),
                "solved": float(np.interp(taken, curve[cost], curve["solved"])),
            }
        )
    return pd.DataFrame(rows)


def best_choices(taken: pd.DataFrame) -> pd.DataFrame:
    """The point of the grid with the best mean accuracy over the tuning seeds, for every variation and arm.

    Args:
        taken: what `at_equal_cost` says of the tuning runs. A point at which a seed is missing (it failed) is out.

    Returns:
        One row per variation, arm and choice: variation, arm, choice, accuracy (mean), seeds, chosen (bool). Of equals
        the first is chosen.
    """
    means = taken.groupby(["variation", "arm", "choice"], sort=False).agg(
        accuracy=("accuracy", "mean"), seeds=("seed", "nunique")
    )
    means = means.reset_index()
    complete = means[means["seeds"] == means["seeds"].max()]
    best = complete.loc[complete.groupby(["variation", "arm"], sort=False)["accuracy"].idxmax()].index
    return means.assign(chosen=means.index.isin(best))


def cost_to_reach(taken: pd.DataFrame, curves: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """What it costs every run to reach what the baseline of the same seed reached, relative to the baseline.

    Levels are shares of the baseline's way from its start to its accuracy at equal cost. A curve has reached a level
    when it first crosses it, linearly between evaluations. Seeds without a baseline, or on which it gained nothing,
    have no such cost and are left out.

    Returns:
        One row per run and level: variation, arm, seed, level, ratio (NaN where the run never got there).
    """
    cost, rows = comparison.equal, []
    baselines = taken[taken["arm"] == comparison.baseline].set_index(["variation", "seed"])
    for run in taken.to_dict("records"):
        if (run["variation"], run["seed"]) not in baselines.index:
            continue
        base = baselines.loc[(run["variation"], run["seed"])]
        if base["accuracy"] <= base["start"]:
            continue
        base_curve = _curve(curves, {**base.to_dict(), "variation": run["variation"], "seed": run["seed"]}, cost)
        curve = _curve(curves, run, cost)
        for level in LEVELS:
            target = base["start"] + level * (base["accuracy"] - base["start"])
            own, reference = (_first_crossing(c[cost], c["accuracy"], target) for c in (curve, base_curve))
            rows.append(
                {
                    "variation": run["variation"],
                    "arm": run["arm"],
                    "seed": run["seed"],
                    "level": level,
                    "ratio": own / reference,
                }
            )
    return pd.DataFrame(rows, columns=["variation", "arm", "seed", "level", "ratio"])


def _first_crossing(cost: pd.Series, accuracy: pd.Series, target: float) -> float:
    """Cost at which a curve first reaches `target`; NaN where it never does."""
    x, y = cost.to_numpy(dtype=float), accuracy.to_numpy(dtype=float)
    reached = np.flatnonzero(y >= target - 1e-12)
    if not reached.size:
        return float("nan")
    first = int(reached[0])
    if first == 0:
        return float(x[0])
    return float(np.interp(target, y[first - 1 : first + 1], x[first - 1 : first + 1]))


def interval(values: Sequence[float] | Floats) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over seeds; NaN where there are fewer than two.

    With five seeds such an interval is too narrow: it covers about 83 % instead of 95 % for normal data. Read it with
    the single seeds, which every table and figure shows.
    """
    low, high = _intervals(np.asarray(values, dtype=float)[:, None])
    return float(low[0]), float(high[0])


def _intervals(values: Floats) -> tuple[Floats, Floats]:
    """`interval` of every column of (seeds, columns)."""
    unknown = np.full(values.shape[1], np.nan)
    if len(values) < 2:
        return unknown, unknown
    with np.errstate(invalid="ignore"):
        found = stats.bootstrap(
            (values,), np.mean, n_resamples=_RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=0, axis=0
        ).confidence_interval
    return np.asarray(found.low), np.asarray(found.high)


def summary(taken: pd.DataFrame, reach: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """One row per variation and arm, over the seeds of the report.

    Columns: variation, arm, reference, choice, seeds, cost (multiple of the common one), accuracy, accuracy_sd,
    accuracy_low, accuracy_high, solved; difference to the baseline of the same seed (mean), difference_low,
    difference_high, difference_p (two-sided paired t-test, NaN below three pairs), pairs (seeds that both have), wins
    (of those, above the baseline); reach_50 ... reach_100 (median over the seeds of the cost ratio at each level;
    infinite where half of the seeds never got there) and reached_50 ... (seeds that did, of reach_seeds);
    effective_gradient_ratio, effective_prompts, never_solved, rollouts, tokens, seconds, allocation_share (means).
    """
    rows = []
    baseline = taken[taken["arm"] == comparison.baseline].set_index(["variation", "seed"])["accuracy"]
    for (variation, arm), group in taken.groupby(["variation", "arm"], sort=False):
        accuracy = group["accuracy"].to_numpy()
        paired = group.set_index(["variation", "seed"])["accuracy"].sub(baseline).dropna().to_numpy()
        low, high = interval(accuracy)
        row = {
            "variation": variation,
            "arm": arm,
            "reference": comparison.is_reference(str(arm)),
            "choice": group["choice"].iloc[0],
            "seeds": len(group),
            "cost": float((group["cost"] / group["common_cost"]).mean()),
            "accuracy": accuracy.mean(),
            "accuracy_sd": accuracy.std(ddof=1) if len(accuracy) > 1 else np.nan,
            "accuracy_low": low,
            "accuracy_high": high,
            "solved": group["solved"].mean(),
        }
        if arm != comparison.baseline and len(paired):
            low, high = interval(paired)
            row |= {"difference": paired.mean(), "difference_low": low, "difference_high": high}
            row["difference_p"] = _paired_p(paired)
            row |= {"pairs": len(paired), "wins": int((paired > 0).sum())}
        own = reach[(reach["variation"] == variation) & (reach["arm"] == arm)]
        for level, ratios in own.groupby("level")["ratio"]:
            key = f"{100 * float(str(level)):.0f}"
            row[f"reach_{key}"] = float(np.median(ratios.fillna(np.inf)))
            row[f"reached_{key}"] = int(ratios.notna().sum())
            row["reach_seeds"] = len(ratios)
        for column in ("effective_gradient_ratio", "effective_prompts", "never_solved", *COSTS, "allocation_share"):
            row[column] = float(group[column].mean())
        rows.append(row)
    return pd.DataFrame(rows)


def _paired_p(differences: Floats) -> float:
    if len(differences) < 3 or np.ptp(differences) == 0.0:
        return float("nan")
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def mean_curves(curves: pd.DataFrame, cost: str, points: int = 41) -> pd.DataFrame:
    """Mean learning curves over seeds, each interpolated on a common grid of costs, as far as all seeds got.

    Returns:
        variation, arm, benchmark, cost, accuracy, low, high (bootstrap interval of the mean), seeds.
    """
    keys = ["variation", "arm", "benchmark"]
    parts = [
        _mean_curve(group, cost, "accuracy", points).assign(**dict(zip(keys, names, strict=True)))
        for names, group in curves.groupby(keys, sort=False)
    ]
    return pd.concat(parts, ignore_index=True)[[*keys, "cost", "accuracy", "low", "high", "seeds"]]


def step_curves(steps: pd.DataFrame, metric: str, points: int = 41) -> pd.DataFrame:
    """One of `STEP_METRICS` against the rollouts spent, averaged over seeds.

    Returns:
        variation, arm, cost (rollouts), value, low, high, seeds.
    """
    keys = ["variation", "arm"]
    means = [
        _mean_curve(group.rename(columns={metric: "value"}), "rollouts", "value", points).assign(
            **dict(zip(keys, names, strict=True))
        )
        for names, group in steps.groupby(keys, sort=False)
    ]
    return pd.concat(means, ignore_index=True)[[*keys, "cost", "value", "low", "high", "seeds"]]


def _mean_curve(group: pd.DataFrame, cost: str, value: str, points: int) -> pd.DataFrame:
    by_seed = [rows.sort_values(cost) for _, rows in group.groupby("seed")]
    first = max(float(curve[cost].iloc[0]) for curve in by_seed)
    grid = np.linspace(first, min(float(curve[cost].iloc[-1]) for curve in by_seed), points)
    values = np.stack([np.interp(grid, curve[cost], curve[value]) for curve in by_seed])
    low, high = _intervals(values)
    return pd.DataFrame({"cost": grid, value: values.mean(axis=0), "low": low, "high": high, "seeds": len(by_seed)})


def performance_profile(taken: pd.DataFrame, points: int = 101) -> pd.DataFrame:
    """Share of runs whose accuracy at equal cost is above each threshold (Agarwal et al., 2021, figure 7).

    Returns:
        variation, arm, threshold, share.
    """
    thresholds = np.linspace(0.0, 1.0, points)
    rows = [
        (variation, arm, threshold, float((group["accuracy"].to_numpy() > threshold).mean()))
        for (variation, arm), group in taken.groupby(["variation", "arm"], sort=False)
        for threshold in thresholds
    ]
    return pd.DataFrame(rows, columns=["variation", "arm", "threshold", "share"])


def _curve(curves: pd.DataFrame, run: dict[str, object], cost: str) -> pd.DataFrame:
    """The mean accuracy over benchmarks of one run, by cost."""
    same = curves["benchmark"] == "mean"
    for key in ("variation", "arm", "choice", "seed"):
        same &= curves[key] == run[key]
    return curves[same].sort_values(cost)
