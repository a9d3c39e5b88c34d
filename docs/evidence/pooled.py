"""The difference of two arms over the seeds of several tables, which were all run at one learning rate.

    python docs/evidence/pooled.py ARM BASELINE TABLE ...     TABLE: a folder here, or FOLDER:VARIATION

A row is a table: seeds, mean difference in points of accuracy, seeds above; then all seeds together, with the 95 %
bootstrap interval of the mean and p of a paired t-test. Seeds that two tables share count once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from scipy import stats

from knapsack_rl.experiments.compare.results import interval

HERE = Path(__file__).parent


def differences(table: str, arm: str, baseline: str) -> pd.Series:
    """Points of accuracy by which `arm` is above `baseline`, by seed."""
    folder, _, variation = table.partition(":")
    runs = pd.read_csv(HERE / folder / "runs.csv", keep_default_na=False)
    runs = runs[runs["variation"] == variation]
    accuracy = runs.pivot_table(index="seed", columns="arm", values="accuracy")
    return (100.0 * (accuracy[arm] - accuracy[baseline])).dropna()


def main(arm: str, baseline: str, tables: list[str]) -> None:
    """Print the rows."""
    found = [differences(table, arm, baseline) for table in tables]
    for table, difference in zip(tables, found, strict=True):
        print(f"{table}: {len(difference)} seeds, {difference.mean():+.1f}, {(difference > 0).sum()} above")
    every = pd.concat(found)
    every = every[~every.index.duplicated()]
    low, high = interval(every.to_numpy())
    p, above = stats.ttest_1samp(every, 0.0).pvalue, (every > 0).sum()
    print(f"all: {len(every)} seeds, {every.mean():+.1f} [{low:+.1f}, {high:+.1f}], {above} above, p = {p:.2g}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
