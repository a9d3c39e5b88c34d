"""An audit from the files to the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit.accounting import Accounts, Log
from knapsack_rl.experiments.audit.columns import Asked
from knapsack_rl.experiments.audit.expectation import Expectation, expect
from knapsack_rl.experiments.audit.reading import Reading, find_files
from knapsack_rl.experiments.audit.replay import Replay, planner, replay

DEFAULT_OUTPUT = Path("runs", "audit")


@dataclass(frozen=True)
class Options:
    """What an audit may be told.

    Attributes:
        columns: names of columns; those not given are guessed.
        success_above: a rollout is a success if its reward is larger.
        strategy: one of `knapsack_rl.strategies.ours()`, for the plans.
        min_rollouts: fewest rollouts that a plan gives a prompt.
        max_rollouts: most rollouts that a plan gives a prompt.
    """

    columns: Asked = field(default_factory=Asked)
    success_above: float = 0.0
    strategy: str = "knapsack"
    min_rollouts: int = 2
    max_rollouts: int = 128


@dataclass(frozen=True)
class Audit:
    """What an audit found; `plans` and `expectation` are None where no prompt came twice, or no group was mixed."""

    reading: Reading
    log: Log
    options: Options
    plans: Replay | None
    expectation: Expectation | None


def audit(logs: Sequence[str | Path], options: Options, on_rows: Callable[[int], None] | None = None) -> Audit:
    """Read logs and work out everything that the page shows.

    Args:
        logs: files, folders and patterns.
        options: see there.
        on_rows: called with the rows read so far, for a display.

    Raises:
        InvalidInputError: there is no file, a file has none of the columns that are needed, no row can be used, or an
            option is out of range.

    Cost: a few microseconds a row; memory for groups (a prompt in a step), not for rows.
    """
    if np.isnan(options.success_above):
        raise InvalidInputError("--success-above: expected a number, got nan.")
    bounds = (options.strategy, options.min_rollouts, options.max_rollouts)
    planner(*bounds)  # whatever is wrong with these should not come up after minutes of reading
    reading = Reading(find_files(logs), options.columns)
    accounts = Accounts(options.success_above)
    for batch in reading.batches():
        accounts.add(batch)
        if on_rows is not None:
            on_rows(reading.rows)
    log = accounts.log()
    if not len(log.step):
        raise InvalidInputError(_no_rows(reading))
    plans = expectation = None
    if len(log.step) > len(log.keys) and log.mixed.any():
        plans = replay(log, *bounds)
        expectation = expect(log, plans)
    return Audit(reading, log, options, plans, expectation)


def default_output(logs: Sequence[str | Path]) -> Path:
    """``runs/audit/NAME``, after the first log, or after its parent where frameworks call it the same everywhere."""
    path = Path(logs[0]).resolve()
    if path.name in ("completions", "allocations.parquet", "rollouts"):
        path = path.parent
    name = path.name.partition(".")[0] or "log"
    return DEFAULT_OUTPUT / (name.replace("*", "") or "log")


def _no_rows(reading: Reading) -> str:
    problems = [
        f"{kind} ({count:,}), first {reading.problems.examples[kind][0]}"
        for kind, count in reading.problems.counts.items()
    ]
    found = "; ".join(problems) or "they are empty"
    return f"LOGS: no row of {len(reading.files):,} file(s) could be used: {found}."
