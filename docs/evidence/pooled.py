"""The difference of two arms over the seeds of several tables, which were all run at one learning rate.

    python docs/evidence/pooled.py ARM BASELINE TABLE ...     TABLE: a folder here, FOLDER:VARIATION, or FOLDER+FOLDER

FOLDER+FOLDER are two comparisons with the same settings and seeds, of which one has ARM and the other BASELINE.

A row is a table: seeds, mean difference in points of accuracy, seeds above; then all seeds together, with the 95 %
bootstrap interval of the mean and p of a paired t-test. Seeds that two tables share count once. With `--of solved` the
difference is in the share of held-out problems with a success among their samples, pass@8 where there are eight.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from scipy import stats

from knapsack_rl.experiments.compare.results import interval

HERE = Path(__file__).parent


def differences(table: str, arm: str, baseline: str, column: str) -> pd.Series:
    """Points of accuracy, or of another column, by which `arm` is above `baseline`, by seed."""
    folders, _, variation = table.partition(":")
    runs = pd.concat(pd.read_csv(HERE / folder / "runs.csv", keep_default_na=False) for folder in folders.split("+"))
    runs = runs[runs["variation"] == variation].drop_duplicates(["arm", "seed", column])
    if runs.duplicated(["arm", "seed"]).any():
        raise SystemExit(f"{table}: the same arm and seed has two values of {column}. Make both comparisons again.")
    values = runs.pivot_table(index="seed", columns="arm", values=column)
    return (100.0 * (values[arm] - values[baseline])).dropna()


def main(arm: str, baseline: str, tables: list[str], column: str) -> None:
    """Print the rows."""
    found = [differences(table, arm, baseline, column) for table in tables]
    for table, difference in zip(tables, found, strict=True):
        print(f"{table}: {len(difference)} seeds, {difference.mean():+.1f}, {(difference > 0).sum()} above")
    every = pd.concat(found)
    every = every[~every.index.duplicated()]
    low, high = interval(every.to_numpy())
    p, above = stats.ttest_1samp(every, 0.0).pvalue, (every > 0).sum()
    print(f"all: {len(every)} seeds, {every.mean():+.1f} [{low:+.1f}, {high:+.1f}], {above} above, p = {p:.2g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("arm", "baseline"):
        parser.add_argument(name)
    parser.add_argument("tables", nargs="+")
    parser.add_argument("--of", choices=("accuracy", "solved"), default="accuracy")
    words = parser.parse_args()
    main(words.arm, words.baseline, words.tables, words.of)
