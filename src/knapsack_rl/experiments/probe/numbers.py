"""What a probe measures: its visits, and every number that its page shows and its verdict goes by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from knapsack_rl import metrics
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.report.learning_progress import early_visits
from knapsack_rl.influence import EDGES, Influence

HARD_BELOW, SOLVED_ABOVE = 0.25, 0.9
"""Believed success rates of hard prompts and of nearly solved ones; the middle is between them. Both in `EDGES`."""
_NORMAL = 1.96  # standard errors in an interval of 95 %


@dataclass(frozen=True)
class Estimate:
    """A number and its interval of about 95 %; NaN where nothing is known."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Worth:
    """What a group with a gradient is worth to the other prompts of its step (docs/probe.md).

    Attributes:
        name: of the band of believed success rates, or of the category.
        groups: how many such groups there were.
        worth: mean influence, in units of the mean over all bands; NaN where nothing is known.
        error: its standard error; infinite where too little is known.
    """

    name: str
    groups: int
    worth: float
    error: float


@dataclass(frozen=True)
class Numbers:
    """Everything that a verdict goes by.

    Attributes:
        steps: that were made.
        prompts_per_step: prompts of a step.
        group_size: rollouts of each.
        prompts: different ones that were visited.
        statuses: name of a status (`metrics.STATUSES`) -> share of the prompts, by the rollouts of their last visit.
        effective_gradient_ratio: share of all rollouts with an advantage.
        all_right: share of all groups without a failure.
        all_wrong: share of all groups without a success.
        learned: how far the success rate of a prompt rose from its first visit to its last, mean over prompts.
        gains: how far prompts rose from one visit to the next.
        noise_scale: prompts of a step from which more of them stop paying (`Influence.noise_scale`).
        common: mean influence of a group, in units of what its gradient has in common with itself; the unit of every
            worth.
        hard: worth of groups of prompts believed to succeed in less than `HARD_BELOW`,
        middle: from there to `SOLVED_ABOVE`,
        solved: and above.
        bands: of every band.
        categories: name of a column -> of each of its categories.
    """

    steps: int
    prompts_per_step: int
    group_size: int
    prompts: int
    statuses: Mapping[str, Estimate]
    effective_gradient_ratio: Estimate
    all_right: Estimate
    all_wrong: Estimate
    learned: Estimate
    gains: metrics.LearningProgress
    noise_scale: Estimate
    common: Estimate
    hard: Worth
    middle: Worth
    solved: Worth
    bands: Sequence[Worth]
    categories: Mapping[str, Sequence[Worth]]


class Visits:
    """The groups of a probe, step by step."""

    def __init__(self) -> None:
        self._steps: list[pd.DataFrame] = []
        self._seen: set[str] = set()

    def __len__(self) -> int:
        """Steps so far."""
        return len(self._steps)

    def add(
        self,
        prompts: Sequence[str],
        successes: ArrayLike,
        scored: ArrayLike,
        believed: ArrayLike,
        categories: Mapping[str, Sequence[object]],
    ) -> None:
        """One step: its prompts, what came back, the success rates believed before it, and columns of categories."""
        known = [prompt in self._seen for prompt in prompts]
        self._seen.update(prompts)
        step = {
            "step": len(self) + 1,
            "prompt": prompts,
            "successes": successes,
            "scored": scored,
            "believed": np.where(known, believed, np.nan),
        }
        self._steps.append(pd.DataFrame(step | {f"category {name}": list(of) for name, of in categories.items()}))

    @property
    def table(self) -> pd.DataFrame:
        """A row for each group: step, prompt, successes, scored, believed (NaN at a first visit), `category COLUMN`.

        Raises:
            InvalidInputError: no step was made.
        """
        if not self._steps:
            raise InvalidInputError("--steps: the probe was stopped before its first step was over. Run it again.")
        return pd.concat(self._steps, ignore_index=True)


def measured(visits: Visits, influence: Influence, group_size: int) -> Numbers:
    """The numbers of a probe.

    Args:
        visits: its groups.
        influence: what their gradients have shown.
        group_size: rollouts of each.

    Raises:
        InvalidInputError: no step was made.
    """
    table = visits.table
    table = table[table["scored"] > 0]
    live = table[(table["successes"] > 0) & (table["successes"] < table["scored"])]
    last = table.drop_duplicates("prompt", keep="last")
    status = metrics.status(last["successes"] / last["scored"])
    right, wrong = metrics.zero_gradient_ratios(table["successes"], table["scored"])
    live_rollouts = metrics.effective_gradient_ratio(table["successes"], table["scored"])
    common, error = influence.of()
    return Numbers(
        steps=len(visits),
        prompts_per_step=len(visits.table) // len(visits),
        group_size=group_size,
        prompts=len(last),
        statuses={
            name: share_of(np.count_nonzero(status == number) / max(len(last), 1), len(last))
            for number, name in enumerate(metrics.STATUSES)
        },
        effective_gradient_ratio=share_of(live_rollouts, len(table)),
        all_right=share_of(right, len(table)),
        all_wrong=share_of(wrong, len(table)),
        learned=_learned(table),
        gains=_gains(table),
        noise_scale=Estimate(influence.noise_scale, *influence.noise_interval),
        common=Estimate(common, common - _NORMAL * error, common + _NORMAL * error),
        hard=_between(influence, live, 0.0, HARD_BELOW, "all hard, "),
        middle=_between(influence, live, HARD_BELOW, SOLVED_ABOVE, "the middle, "),
        solved=_between(influence, live, SOLVED_ABOVE, 1.0),
        bands=[_between(influence, live, low, high) for low, high in pairwise(EDGES)],
        categories={name: _by_category(influence, live, name) for name in _columns(table)},
    )


def share_of(share: float, count: int) -> Estimate:
    """A share of so many, with Wilson's interval."""
    if not count:
        return Estimate(math.nan, math.nan, math.nan)
    squared = _NORMAL**2 / count
    middle = (share + squared / 2.0) / (1.0 + squared)
    half = math.sqrt(share * (1.0 - share) * squared + squared**2 / 4.0) / (1.0 + squared)
    return Estimate(share, max(middle - half, 0.0), min(middle + half, 1.0))


def _learned(table: pd.DataFrame) -> Estimate:
    rates = (table["successes"] / table["scored"]).groupby(table["prompt"])
    rise = (rates.last() - rates.first())[rates.size() > 1]
    mean, error = float(rise.mean()), _NORMAL * float(rise.sem())
    return Estimate(mean, mean - error, mean + error)


def _gains(table: pd.DataFrame) -> metrics.LearningProgress:
    visits = table.groupby(["step", "prompt"], as_index=False)[["successes", "scored"]].sum()
    early, following = early_visits(visits["prompt"], visits["step"])
    first = np.flatnonzero(early & (following >= 0))
    won, tried = visits["successes"].to_numpy(), visits["scored"].to_numpy()
    later, steps = following[first], visits["step"].to_numpy()[first]
    return metrics.learning_progress(won[first], tried[first], won[later], tried[later], steps)


def _columns(table: pd.DataFrame) -> list[str]:
    return [name.removeprefix("category ") for name in table.columns if name.startswith("category ")]


def _believed_in(live: pd.DataFrame, low: float, high: float) -> pd.DataFrame:
    return live[(live["believed"] >= low) & (live["believed"] < (high if high < 1.0 else math.inf))]


def _between(influence: Influence, live: pd.DataFrame, low: float, high: float, label: str = "") -> Worth:
    name, groups = f"{label}{low:g}-{high:g}", len(_believed_in(live, low, high))
    return Worth(name, groups, *influence.worth_between(low, high))


def _by_category(influence: Influence, live: pd.DataFrame, column: str) -> list[Worth]:
    counts = live[f"category {column}"].astype(str).value_counts()
    groups = {name: int(counts.get(name, 0)) for name in influence.worth_by_category(column)}
    if not influence.of()[0] > 0.0:
        return [_unknown(name, count) for name, count in groups.items()]
    found = [Worth(name, groups[name], *worth) for name, worth in influence.worth_by_category(column).items()]
    return sorted(found, key=lambda one: -one.worth)


def _unknown(name: str, groups: int) -> Worth:
    """Where the mean influence is not above 0 there is no direction for a group to pull in."""
    return Worth(name, groups, math.nan, math.inf)
