"""What prompts gained from one visit to the next, in logs of even groups (docs/audit.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.experiments.audit.accounting import Log
from knapsack_rl.experiments.pages.wording import percent
from knapsack_rl.experiments.report.learning_progress import early_visits
from knapsack_rl.metrics import LearningProgress, learning_progress

_UNEVEN = 0.05  # share of the groups that are not of the usual size, from which sizes may go by outcomes
_ALL_MIXED = 0.95  # share of the groups from which the others may have been left out
_SMALLEST = 4  # rollouts of a group that can be parted
_CHOSEN = 4.0  # standard errors

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Progress:
    """What prompts gained.

    Attributes:
        found: over the first `metrics.EARLY` pairs of visits of each prompt, those whose first group was of the usual
            size; None where that would mislead.
        why_not: the reason then, as a part of a sentence; otherwise empty.
    """

    found: LearningProgress | None
    why_not: str = ""


def progress(log: Log, runs: int = 1) -> Progress:
    """From the groups of a log.

    A group must have had its size before its first outcome, be in the log whatever its outcomes were, and come again
    whatever they were. Otherwise those that did well or badly by chance are chosen, and the other visit shows them fall
    back to the mean.

    Args:
        log: the groups.
        runs: that the log holds.

    Cost: O(G log G + G N) for G groups of N rollouts.
    """
    if runs > 1:
        return Progress(None, f"the log holds {runs:,} runs")
    sizes, counts = np.unique(log.rollouts, return_counts=True)
    usual = int(sizes[np.argmax(counts)])
    uneven = float(1.0 - counts.max() / counts.sum())
    if uneven > _UNEVEN:
        return Progress(None, f"groups have different sizes ({percent(uneven)} are not of {usual:,} rollouts)")
    if usual < _SMALLEST:
        return Progress(None, f"groups of {usual:,} rollouts are too small to be parted")
    early, following = early_visits(log.prompt, log.step)
    early &= log.rollouts == usual
    first = np.flatnonzero(early & (following >= 0))
    later = following[first]
    if not len(first):
        return Progress(None, "no prompt comes again")
    if reason := _left_out(log) or _chosen(log, early, first):
        return Progress(None, reason)
    found = learning_progress(
        log.successes[first], log.rollouts[first], log.successes[later], log.rollouts[later], log.step[first]
    )
    if not found.told:
        return Progress(None, "too few steps have prompts that come again after they were partly right")
    return Progress(found)


def _left_out(log: Log) -> str:
    """What looks as if it were left out of the log for its outcomes."""
    if log.mixed.mean() > _ALL_MIXED:
        return "nearly all groups are mixed, as where the others were left out"
    right, wrong = log.successes == log.rollouts, log.successes == 0
    return "" if right.any() and wrong.any() else f"no group is all {'wrong' if right.any() else 'right'}"


def _chosen(log: Log, early: NDArray[np.bool_], first: Ints) -> str:
    """Whether mixed groups come again by how well they did, or by how far from half right, against those of their step.

    By whether a group is mixed they may: each of its halves is mixed as well where it tells anything.
    """
    comes = np.zeros(len(log.step))
    comes[first] = 1.0
    use = log.mixed & early
    if not use.any():
        return ""
    steps, of_step = np.unique(log.step[use], return_inverse=True)
    rate, again = log.successes[use] / log.rollouts[use], comes[use]
    again = again - (np.bincount(of_step, again) / np.bincount(of_step))[of_step]
    for what in (rate, np.abs(rate - 0.5)):
        by_step = np.bincount(of_step, (what - what.mean()) * again, len(steps))
        if abs(by_step.sum()) > _CHOSEN * math.sqrt(float(np.square(by_step).sum())):
            return "who comes again goes by how well prompts did"
    return ""
