"""What the scripts that look into finished runs share: their words, and the runs of a table."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent


def asked(description: str | None) -> argparse.Namespace:
    """The words of the command: `tables`, folders here, and `runs`, where `knapsack-rl compare` left the runs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+")
    parser.add_argument("--runs", type=Path, default=Path("runs/arms"))
    return parser.parse_args()


def runs_of(table: str, arm: str, runs: Path) -> list[tuple[int, Path]]:
    """Seed and folder of each run of an arm; empty where the table does not have it."""
    every = pd.read_csv(HERE / table / "runs.csv")
    return [(int(seed), runs / folder) for seed, folder in every[every["arm"] == arm][["seed", "folder"]].values]
