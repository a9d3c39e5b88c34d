"""What hard prompts gain from visit to visit, over what easy ones do, in uniform's runs of a comparison.

    python docs/evidence/ratios.py TABLE ... [--runs runs/arms]     TABLE: a folder here

A row is a table: the ratio over all visits up to some steps, mean over seeds +- two standard errors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from finished import asked, runs_of
from numpy.typing import NDArray

from knapsack_rl import metrics
from knapsack_rl.experiments.audit.audit import Options, audit

STEPS = (40, 60, 80, 120, 200)


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
        found.append(rise[metrics.HARD] / rise[metrics.EASY] if step <= log.step.max() else np.nan)
    return np.array(found)


def main() -> None:
    """Print the rows."""
    words = asked(__doc__)
    for table in words.tables:
        found = np.array([ratios(run) for _, run in runs_of(table, "uniform", words.runs)])
        mean, error = found.mean(axis=0), found.std(axis=0, ddof=1) / np.sqrt(len(found))
        told = [
            f"step {step}: {mean[place]:.1f} +- {2.0 * error[place]:.1f}"
            for place, step in enumerate(STEPS)
            if np.isfinite(mean[place])
        ]
        print(f"{table}: {', '.join(told)}")


if __name__ == "__main__":
    main()
