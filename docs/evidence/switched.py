"""When `cautious` left even groups, by seed, in the finished runs of a comparison.

    python docs/evidence/switched.py TABLE ... [--runs runs/arms]     TABLE: a folder here

A row is a table: for each seed the first step with more than one wave, or "never". For a table without `cautious` it is
the first step at which `cautious` would have left them in the run of `uniform`, by what had been seen before that step.
Until then both are the same run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

import knapsack_rl as kr
from knapsack_rl.experiments.audit.audit import Options, audit

HERE = Path(__file__).parent


def first_uneven(run: Path) -> str:
    """The first step of a run that took several waves."""
    records = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return next((str(record["step"]) for record in records if record.get("waves", 1) > 1), "never")


def would_be_uneven(run: Path) -> str:
    """The first step of an even run that `cautious` would have planned otherwise."""
    log, allocator = audit([run], Options()).log, kr.BudgetAllocator("cautious")
    for step in np.unique(log.step).tolist():
        if allocator.estimator.hard_gain:
            return str(step)
        here = log.step == step
        allocator.tell(log.prompt[here].tolist(), log.successes[here], log.rollouts[here])
    return "never"


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+")
    parser.add_argument("--runs", type=Path, default=Path("runs/arms"))
    words = parser.parse_args()
    for table in words.tables:
        runs = pd.read_csv(HERE / table / "runs.csv")
        ran = "cautious" in set(runs["arm"])
        told, when = ("left", first_uneven) if ran else ("would have left", would_be_uneven)
        rows = runs[runs["arm"] == ("cautious" if ran else "uniform")]
        steps = [f"{seed}: {when(words.runs / folder)}" for seed, folder in rows[["seed", "folder"]].values]
        print(f"{table}, {told}: {', '.join(steps)}")


if __name__ == "__main__":
    main()
