"""When `cautious` left even groups, by seed, in the finished runs of a comparison.

    python docs/evidence/switched.py TABLE ... [--runs runs/arms]     TABLE: a folder here

A row is a table: for each seed the first step with more than one wave, or "never". For a table without `cautious` it is
the first step at which `cautious` would have left them in the run of `uniform`, by what had been seen before that step.
Until then both are the same run.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from finished import asked, runs_of

import knapsack_rl as kr
from knapsack_rl.experiments.audit.audit import Options, audit


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
    words = asked(__doc__)
    for table in words.tables:
        told, when, runs = "left", first_uneven, runs_of(table, "cautious", words.runs)
        if not runs:
            told, when, runs = "would have left", would_be_uneven, runs_of(table, "uniform", words.runs)
        print(f"{table}, {told}: {', '.join(f'{seed}: {when(run)}' for seed, run in runs)}")


if __name__ == "__main__":
    main()
