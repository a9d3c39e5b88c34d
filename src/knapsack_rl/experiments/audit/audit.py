"""An audit from the files to the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit import graders
from knapsack_rl.experiments.audit.accounting import Accounts, Log
from knapsack_rl.experiments.audit.asked import Asked
from knapsack_rl.experiments.audit.expectation import Expectation, expect
from knapsack_rl.experiments.audit.files import find_files
from knapsack_rl.experiments.audit.group_sizes import GroupSizes, group_sizes
from knapsack_rl.experiments.audit.progress import Progress, progress
from knapsack_rl.experiments.audit.reading import Reading
from knapsack_rl.experiments.audit.replay import Replay, planner, replay

DEFAULT_OUTPUT = Path("runs", "audit")
FIGURES = "audit.json"
_OTHERS = ("knapsack", "adaptive", "hora", "greso")  # strategies whose plans are compared with what was spent
_GROUPS_OF_OTHERS = 20_000  # at the end of the log, which bounds what they cost


@dataclass(frozen=True)
class Options:
    """What an audit may be told.

    Attributes:
        columns: names of columns; those not given are guessed.
        success_above: a rollout is a success if its reward is larger; None for 0, where that is known to mean right.
        pooled: all rows of a prompt are one group, whatever their order and steps, as in files of pass@k.
        strategy: one of `knapsack_rl.strategies.ours()`, for the plans.
        min_rollouts: fewest rollouts that a plan gives a prompt.
        max_rollouts: most rollouts that a plan gives a prompt.
    """

    columns: Asked = field(default_factory=Asked)
    success_above: float | None = None
    pooled: bool = False
    strategy: str = "knapsack"
    min_rollouts: int = 2
    max_rollouts: int = 128


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        logs: files, folders and patterns, as they were given.
        reading: how the log was understood.
        log: what was spent.
        options: what the audit was told.
        plans: None where no prompt came twice, no group was mixed, or right is not known from wrong.
        expectation: of the plans; None with them.
        sizes: what groups of other sizes would have given; None where right is not known from wrong.
        progress: what prompts gained from visit to visit; None where right is not known from wrong.
        others: by strategy, the share of the rollouts that its plans would have put elsewhere.
    """

    logs: Sequence[str | Path]
    reading: Reading
    log: Log
    options: Options
    plans: Replay | None
    expectation: Expectation | None
    sizes: GroupSizes | None = None
    progress: Progress | None = None
    others: dict[str, float] = field(default_factory=dict)

    @property
    def knows_right(self) -> bool:
        """Whether it is known which rollouts are right: the user said so, or the values of the rewards do.

        A threshold that all rewards that differ are above, or that no reward is above, says nothing.
        """
        rewards, above = self.log.rewards, self.options.success_above
        if above is None:
            return rewards.tells_right
        return not (above < rewards.low < rewards.high or rewards.none_above(above))

    @cached_property
    def changed_categories(self) -> pd.DataFrame:
        """`graders.changed_categories` of the log, which goes through it step by step."""
        return graders.changed_categories(self.log)

    @property
    def all_single(self) -> bool:
        """Whether every group is of one rollout, so that equal rewards say nothing."""
        return bool((self.log.rollouts == 1).all()) and not self.log.with_advantages


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
    above = 0.0 if options.success_above is None else options.success_above
    if np.isnan(above):
        raise InvalidInputError("--success-above: expected a number, got nan.")
    bounds = (options.strategy, options.min_rollouts, options.max_rollouts)
    planner(*bounds)  # whatever is wrong with these should not come up after minutes of reading
    reading = Reading(find_files(logs), options.columns, options.pooled)
    accounts = Accounts(above)
    for batch in reading.batches():
        accounts.add(batch)
        if on_rows is not None:
            on_rows(reading.rows)
    log = accounts.log()
    if not len(log.step):
        raise InvalidInputError(_no_rows(reading))
    found = Audit(logs, reading, log, options, None, None)
    if not found.knows_right:
        return found
    runs = max((len(values) for values in reading.runs.values()), default=1)
    found = replace(found, sizes=group_sizes(log), progress=progress(log, runs))
    if len(log.step) > len(log.keys) and log.mixed.any():
        plans = replay(log, *bounds)
        expectation = expect(log, plans)
        found = replace(found, plans=plans, expectation=expectation, others=moved_by_others(log, options))
    return found


def moved_by_others(log: Log, options: Options) -> dict[str, float]:
    """By strategy, the share of the rollouts that its plans would have put elsewhere, over the last part of the log."""
    part = log.last(_GROUPS_OF_OTHERS)
    bounds = (options.min_rollouts, options.max_rollouts)
    return {
        name: float(np.abs(replay(part, name, *bounds).planned - part.rollouts).sum() / (2.0 * part.rollouts.sum()))
        for name in dict.fromkeys((options.strategy, *_OTHERS))
    }


def default_output(logs: Sequence[str | Path]) -> Path:
    """`runs/audit/NAME`, after the first log, or after its parent where frameworks call it the same everywhere.

    Where the page of other logs is there already, `NAME-2` and so on.
    """
    path = Path(logs[0]).resolve()
    if path.name in ("completions", "allocations.parquet", "rollouts"):
        path = path.parent
    name = path.name.partition(".")[0].replace("*", "") or "log"
    tries = (DEFAULT_OUTPUT / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(folder for folder in tries if logs_of(folder) in (None, sources(logs)))


def sources(logs: Sequence[str | Path]) -> list[str]:
    """Where logs are, however they were written."""
    return [str(Path(log).resolve()) for log in logs]


def logs_of(folder: Path) -> list[str] | None:
    """The logs whose page is in a folder; None if there is none, empty if it does not say of what it is."""
    if not (folder / "report.html").exists():
        return None
    try:
        found = json.loads((folder / FIGURES).read_text(encoding="utf-8"))["logs"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(one) for one in found] if isinstance(found, list) else []


def _no_rows(reading: Reading) -> str:
    problems = [
        f"{kind} ({count:,}), first {reading.problems.examples[kind][0]}"
        for kind, count in reading.problems.counts.items()
    ]
    found = "; ".join(problems) or "they are empty"
    return f"LOGS: no row of {len(reading.files.found):,} file(s) could be used: {found}."
