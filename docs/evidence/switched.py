"""When `cautious` left even groups, by seed, in the finished runs of a comparison.

    python docs/evidence/switched.py TABLE ... [--runs runs/arms]     TABLE: a folder here

A row is a table: for each seed the first step with more than one wave, or "never".
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent


def first_uneven(run: Path) -> str:
    """The first step of a run that took several waves."""
    records = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return next((str(record["step"]) for record in records if record.get("waves", 1) > 1), "never")


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+")
    parser.add_argument("--runs", type=Path, default=Path("runs/arms"))
    words = parser.parse_args()
    for table in words.tables:
        runs = pd.read_csv(HERE / table / "runs.csv")
        cautious = runs[runs["arm"] == "cautious"]
        steps = [f"{seed}: {first_uneven(words.runs / folder)}" for seed, folder in cautious[["seed", "folder"]].values]
        print(f"{table}: {', '.join(steps)}")


if __name__ == "__main__":
    main()
