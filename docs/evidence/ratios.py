"""What hard prompts gain from visit to visit, over what easy ones do, in uniform's runs of a comparison.

    python docs/evidence/ratios.py TABLE ... [--runs runs/arms]     TABLE: a folder here

A row is a table: the ratio over all visits up to some steps, mean over seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knapsack_rl import metrics
from knapsack_rl.experiments.audit.audit import Options, audit

HERE = Path(__file__).parent
STEPS = (40, 80, 120, 200)


def ratios(run: Path) -> NDArray[np.float64]:
    """The ratio up to each of `STEPS`; NaN beyond the end of the run."""
    log = audit([run], Options()).log
    visits = pd.DataFrame({"step": log.step, "prompt": log.prompt, "won": log.successes, "tried": log.rollouts})
    visits[["next", "of"]] = visits.groupby("prompt")[["won", "tried"]].shift(-1)
    visits["at"] = visits.groupby("prompt")["step"].shift(-1)
    found = []
    for step in STEPS:
        pairs = visits[visits["at"] <= step].astype(np.int64)
        rise = metrics.learning_progress(*(pairs[name] for name in ("won", "tried", "next", "of", "step"))).rise
        found.append(rise[1] / rise[3] if step <= log.step.max() else np.nan)
    return np.array(found)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+")
    parser.add_argument("--runs", type=Path, default=Path("runs/arms"))
    words = parser.parse_args()
    for table in words.tables:
        runs = pd.read_csv(HERE / table / "runs.csv")
        means = np.mean([ratios(words.runs / folder) for folder in runs[runs["arm"] == "uniform"]["folder"]], axis=0)
        told = (f"step {step}: {mean:.1f}" for step, mean in zip(STEPS, means, strict=True) if np.isfinite(mean))
        print(f"{table}: {', '.join(told)}")


if __name__ == "__main__":
    main()
