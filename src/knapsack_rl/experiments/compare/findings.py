"""What can be said of a comparison, in sentences that its numbers carry, and what a reader has to be told with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from knapsack_rl.experiments.compare.arms import Failure
from knapsack_rl.experiments.compare.charts import UNITS, ComparisonTables, numeric_keys, short_name, value_in
from knapsack_rl.experiments.compare.comparison import Comparison
from knapsack_rl.experiments.pages.wording import percent, plural

Environments = Sequence[Mapping[str, Any]]

ENOUGH_SEEDS = 5
_SIGNIFICANCE = 0.05


def sentences(comparison: Comparison, tables: ComparisonTables) -> list[str]:
    """What was done, and every arm against the baseline, a paragraph each; references last."""
    said = [_setup(comparison, tables)]
    for variation, rows in tables["summary"].groupby("variation", sort=False):
        where = f"{variation}, " if variation else ""
        base = rows[rows["arm"] == comparison.baseline]
        if base.empty:
            said.append(f"{variation}: no run of {comparison.baseline} came to its end, so nothing is compared.")
            continue
        others = rows[rows["arm"] != comparison.baseline].sort_values("reference", kind="stable")
        mean = float(base["accuracy"].iloc[0])
        if others.empty:
            said.append(f"{where}{comparison.baseline}: {percent(mean)}.")
        said += [where + _against(row, mean, comparison) for row in others.to_dict("records")]
    return said


def notes(
    comparison: Comparison, tables: ComparisonTables, failures: Sequence[Failure], environments: Environments
) -> list[str]:
    """What a careful reader has to know; what speaks against trusting the numbers comes first."""
    careful = [
        *_few_seeds(comparison),
        *_missing(comparison, tables["summary"], failures),
        *_no_gain(comparison, tables),
        *_edges(comparison, tables),
        *_versions(environments),
    ]
    return [*(f"Careful: {text}" for text in careful), *_background(comparison, tables["summary"])]


def _setup(comparison: Comparison, tables: ComparisonTables) -> str:
    runs, curves = tables["runs"], tables["curves"]
    names = [str(name) for name in curves["benchmark"].unique() if name != "mean"]
    accuracy = f"Accuracy is on {names[0]}" if len(names) == 1 else f"Accuracy is the mean over {len(names)} benchmarks"
    spent = runs.groupby("variation", sort=False)["common_cost"].mean()
    cost = " or ".join(f"{amount:,.0f}" for amount in dict.fromkeys(spent.round()))
    seeds = runs["seed"].nunique()
    return (
        f"{plural(runs['arm'].nunique(), 'arm')} on {plural(seeds, 'seed')}: {plural(len(runs), 'run')}. {accuracy}, "
        f"at {'about ' if comparison.equal == 'seconds' else ''}{cost} {UNITS[comparison.equal]}, "
        "which all arms but references have reached; a difference is the mean over the seeds that both arms have, with "
        "its 95 % bootstrap interval."
    )


def _against(row: Mapping[Any, Any], base: float, comparison: Comparison) -> str:
    """An arm against the baseline, in a few sentences."""
    reference = " (a reference)" if row["reference"] else ""
    cost = f"equal {comparison.equal}" if abs(row["cost"] - 1) < 0.01 else f"{row['cost']:.3g}x the {comparison.equal}"
    both = f"{percent(row['accuracy'])} against {comparison.baseline}'s {percent(base)}"
    begin = f"{row['arm']}{reference}: {both} at {cost}"
    pairs = row.get("pairs", 0)
    if pd.isna(row.get("difference")):
        return f"{begin}; no seed has both, so nothing can be said."
    low, high = row["difference_low"], row["difference_high"]
    interval = "" if pd.isna(low) else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return (
        f"{begin}, a difference of {100 * row['difference']:+.1f} points{interval} over {plural(int(pairs), 'seed')}, "
        f"{row['wins']:.0f} of {pairs:.0f} above. {_verdict(row, comparison)}"
    )


def _verdict(row: Mapping[Any, Any], comparison: Comparison) -> str:
    """What the interval and the paired test allow to say."""
    low, high, p = row["difference_low"], row["difference_high"], row["difference_p"]
    if row["pairs"] < 3:
        return "So few seeds allow no claim."
    tested = "" if pd.isna(p) else f" (paired t-test: p = {p:.2g})"
    if low <= 0.0 <= high:
        return f"The interval includes zero: no difference can be claimed{tested}."
    if p >= _SIGNIFICANCE:
        return f"The interval leaves zero out, a paired t-test does not (p = {p:.2g}): no difference can be claimed."
    return f"It did {'better' if low > 0 else 'worse'} than {comparison.baseline}{tested}."


def _few_seeds(comparison: Comparison) -> list[str]:
    count = len(comparison.seeds)
    if count >= ENOUGH_SEEDS:
        return []
    few = plural(count, "seed")
    return [f"{few} can show little; bootstrap intervals of fewer than {ENOUGH_SEEDS} are too narrow."]


def _missing(comparison: Comparison, summary: pd.DataFrame, failures: Sequence[Failure]) -> list[str]:
    said = []
    if failures:
        said.append(f"{plural(len(failures), 'run')} failed (listed below), and what is shown leaves them out.")
    counts = summary.groupby("arm")["seeds"].sum()
    whole = len(comparison.seeds) * summary["variation"].nunique()
    lacking = [f"{arm} ({counts.get(arm, 0)} of {whole})" for arm in comparison.arms if counts.get(arm, 0) < whole]
    if lacking:
        said.append(f"not all runs of these arms are there: {', '.join(lacking)}.")
    return said


def _no_gain(comparison: Comparison, tables: ComparisonTables) -> list[str]:
    """Seeds on which the baseline learned nothing, so that nobody can be said to have reached it sooner."""
    base = tables["runs"][tables["runs"]["arm"] == comparison.baseline]
    count = int((base["accuracy"] <= base["start"]).sum())
    if not count:
        return []
    where = f"{count} of {plural(len(base), 'run')}"
    return [f"{comparison.baseline} gained nothing in {where}, which the cost to reach leaves out."]


def _edges(comparison: Comparison, tables: ComparisonTables) -> list[str]:
    """Arms whose best point has the least or the largest value of its key."""
    if comparison.tuning is None or "tuning" not in tables:
        return []
    chosen = tables["tuning"][tables["tuning"]["chosen"]]
    found = []
    for key in numeric_keys(comparison.tuning.grid):
        values, name = comparison.tuning.grid[key], short_name(key)
        for row in chosen.to_dict("records"):
            value = value_in(row["choice"], name)
            if value is not None and float(value) in (min(values), max(values)):
                found.append(f"{', '.join(filter(None, (row['variation'], row['arm'])))} ({name}={value})")
    if not found:
        return []
    return [f"the best choice lies at the edge of the grid, which may be too narrow, for {'; '.join(found)}."]


def _versions(environments: Environments) -> list[str]:
    said = []
    found: dict[str, set[str]] = {}
    for environment in environments:
        for name, version in {**environment.get("versions", {}), "python": environment.get("python")}.items():
            found.setdefault(str(name), set()).add(str(version))
    differing = [f"{name} ({', '.join(sorted(versions))})" for name, versions in found.items() if len(versions) > 1]
    if differing:
        said.append(f"the runs were made with different versions of {', '.join(differing)}.")
    devices = sorted({str(environment.get("device")) for environment in environments})
    if len(devices) > 1:
        said.append(f"the runs were made on different devices: {', '.join(devices)}.")
    return said


def _background(comparison: Comparison, summary: pd.DataFrame) -> list[str]:
    said = []
    if comparison.tuning is None:
        said.append("No arm was tuned for this comparison: all have the settings below.")
    else:
        tuned, seeds = (", ".join(map(str, seeds)) for seeds in (comparison.tuning.seeds, comparison.seeds))
        said.append(
            f"Every arm had the same tuning grid and kept its best point on seeds {tuned}; the numbers here are of "
            f"seeds {seeds}, on which nothing was chosen."
        )
    references = summary.loc[summary["reference"], "arm"].unique()
    if len(references):
        said.append(
            f"References ({', '.join(references)}) are no competitors: they cost more, or know what nobody can know."
        )
    others = summary.loc[summary["difference_p"].notna(), "arm"] if "difference_p" in summary else ()
    if len(others) > 1:
        said.append(f"The p values are not corrected for testing {len(others)} differences.")
    if len(comparison.seeds) >= ENOUGH_SEEDS:
        said.append("Bootstrap intervals of a handful of seeds are somewhat too narrow: look at the single seeds too.")
    return said
