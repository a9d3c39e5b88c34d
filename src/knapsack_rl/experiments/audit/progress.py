"""What prompts gained from one visit to the next, in logs of even groups (docs/probe.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from knapsack_rl.experiments.audit.accounting import Log
from knapsack_rl.experiments.pages.wording import percent
from knapsack_rl.metrics import LearningProgress, learning_progress

_UNEVEN = 0.05  # share of the groups that are not of the usual size, from which sizes may go by outcomes
_SMALLEST = 4  # rollouts of a group that can be parted
_STEPS = 8  # with pairs of visits, below which an error from step to step is not to be trusted


@dataclass(frozen=True)
class Progress:
    """What prompts gained.

    Attributes:
        found: over all pairs of visits in a row whose first was of the usual size; None where that would mislead.
        why_not: the reason then, as the end of a sentence; otherwise empty.
    """

    found: LearningProgress | None
    why_not: str = ""


def progress(log: Log) -> Progress:
    """From the groups of a log.

    A group must have had its size before its first outcome, and be in the log whatever its outcomes were. Otherwise
    those that did well or badly by chance are chosen, and the next visit shows them fall back to the mean.

    Cost: O(G log G + G N) for G groups of N rollouts.
    """
    sizes, counts = np.unique(log.rollouts, return_counts=True)
    usual = int(sizes[np.argmax(counts)])
    uneven = float(1.0 - counts.max() / counts.sum())
    if uneven > _UNEVEN:
        return Progress(None, f"groups have different sizes ({percent(uneven)} are not of {usual:,} rollouts)")
    if usual < _SMALLEST:
        return Progress(None, f"groups of {usual:,} rollouts are too small to be parted")
    if log.mixed.all():
        return Progress(None, "groups without gradient are not in the log")
    by_prompt = np.lexsort((log.step, log.prompt))
    first, later = by_prompt[:-1], by_prompt[1:]
    pairs = (log.prompt[first] == log.prompt[later]) & (log.rollouts[first] == usual)
    first, later = first[pairs], later[pairs]
    if len(np.unique(log.step[first])) < _STEPS:
        return Progress(None, f"prompts come again after fewer than {_STEPS} steps")
    found = learning_progress(
        log.successes[first], log.rollouts[first], log.successes[later], log.rollouts[later], log.step[first]
    )
    return Progress(found)
