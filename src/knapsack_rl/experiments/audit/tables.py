"""The tables behind the charts of an audit's page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knapsack_rl.experiments.audit.accounting import Log, common_length
from knapsack_rl.experiments.audit.expectation import Expectation
from knapsack_rl.experiments.audit.graders import by_prompt
from knapsack_rl.experiments.audit.replay import BELIEFS, Replay

Floats = NDArray[np.float64]

BLOCKS = ("with gradient", "all correct", "all wrong")
_ROOM = 12  # characters of a shown text that must be its own
_TELLING = 0.01  # share of the rollouts from which it matters that successes are not all there is to gradients


def gradient_shares(log: Log, knows_right: bool = True) -> pd.DataFrame:
    """Share of each step's rollouts by what their group was; columns quantity, step, value, running_mean.

    Args:
        log: the log.
        knows_right: whether groups without gradient are told apart by being right or wrong.
    """
    steps, of_group = np.unique(log.step, return_inverse=True)
    total = np.bincount(of_group, log.rollouts)
    width = max(1, round(len(steps) / 20))
    parts = []
    blocks = zip(BLOCKS, kinds(log), strict=True) if knows_right else _gradient_or_not(log)
    for quantity, groups in blocks:
        share = pd.Series(np.bincount(of_group, log.rollouts * groups) / total)
        mean = share.rolling(width, min_periods=1).mean()
        parts.append(pd.DataFrame({"quantity": quantity, "step": steps, "value": share, "running_mean": mean}))
    return pd.concat(parts, ignore_index=True)


def without_gradient(log: Log) -> float:
    """Share of the rollouts in groups without gradient."""
    return float(log.rollouts[log.without_gradient].sum() / log.rollouts.sum())


def kinds(log: Log) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Which groups are of which of `BLOCKS`; mixed ones whose rewards add up to the same are of none."""
    correct, wrong = log.successes == log.rollouts, log.successes == 0
    return ~log.without_gradient, log.without_gradient & correct, log.without_gradient & wrong


def _gradient_or_not(log: Log) -> list[tuple[str, NDArray[np.bool_]]]:
    return [("with gradient", ~log.without_gradient), ("without gradient", log.without_gradient)]


def only_successes(log: Log) -> bool:
    """Whether expectations, which only know successes, are of something else than the log's gradients."""
    return float(log.rollouts[log.mixed == log.without_gradient].sum()) > _TELLING * float(log.rollouts.sum())


def expected(log: Log) -> str:
    """What expectations are of, in two or three words."""
    return "in mixed groups" if only_successes(log) else "with gradient"


def concentration(log: Log, points: int = 200) -> pd.DataFrame:
    """How much the prompts that took most took together; columns quantity, prompts, rollouts: shares in [0, 1]."""
    parts = []
    for quantity, of_group in (("without gradient", log.rollouts * log.without_gradient), ("all", log.rollouts)):
        taken = np.sort(np.bincount(log.prompt, of_group, minlength=len(log.keys)))[::-1]
        if not taken.sum():
            continue
        at = np.unique(np.linspace(0, len(taken), points + 1).round().astype(np.int64))
        share = np.concatenate(([0.0], np.cumsum(taken) / taken.sum()))[at]
        parts.append(pd.DataFrame({"quantity": quantity, "prompts": at / len(taken), "rollouts": share}))
    return pd.concat(parts, ignore_index=True)


def hungriest_prompts(log: Log, most: int = 30) -> pd.DataFrame:
    """The prompts with most rollouts without gradient; columns as the page shows them."""
    count = len(log.keys)
    rollouts, successes = by_prompt(log)
    wasted = np.bincount(log.prompt, log.rollouts * log.without_gradient, minlength=count).astype(np.int64)
    top = np.lexsort((log.keys, -wasted))[:most]
    top = top[wasted[top] > 0]
    table = pd.DataFrame(
        {
            "prompt": [log.texts[index] for index in top.tolist()],
            "category": [log.categories[index] or None for index in top.tolist()],
            "visits": np.bincount(log.prompt, minlength=count)[top],
            "rollouts": rollouts[top],
            "without gradient": wasted[top],
            "successes": successes[top],
        }
    )
    if log.measured.any():
        table["tokens without gradient"] = np.bincount(log.prompt, log.tokens * log.without_gradient, count)[top]
    return table if any(log.categories) else table.drop(columns="category")


def apart(texts: Sequence[str], width: int) -> list[str]:
    """Texts of one table, each in a line; of those that begin alike for long, the part in common is cut.

    What is left of the beginning is half of the width, so that texts with other beginnings stay different.
    """
    lines = [" ".join(text.split()) for text in texts]
    order = sorted(set(lines))
    shared = dict.fromkeys(order, 0)
    for one, other in pairwise(order):
        alike = common_length(one, other)
        shared[one], shared[other] = max(shared[one], alike), max(shared[other], alike)
    shown = []
    for line in lines:
        start = line.rfind(" ", 0, shared[line] + 1) + 1
        head = line[: width // 2]
        shown.append(f"{head}… {line[start:]}" if shared[line] > width - _ROOM and start > len(head) else line)
    return shown


def expected_shares(expectation: Expectation) -> pd.DataFrame:
    """Effective gradient ratios by window; columns series, first step, last step, step, value, low, high."""
    first, last = expectation.window_steps
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "series": series,
                    "first step": first,
                    "last step": last,
                    "step": (first + last) / 2,
                    "value": value,
                    "low": low,
                    "high": high,
                }
            )
            for series, (value, low, high) in expectation.by_window.items()
        ],
        ignore_index=True,
    )


def by_belief(log: Log, plans: Replay, expectation: Expectation) -> pd.DataFrame:
    """What prompts got, by what was known of them before the step; columns as the page shows them."""

    def total(values: NDArray[Any]) -> Floats:
        return np.bincount(plans.belief, values, minlength=len(BELIEFS)).astype(np.float64)

    table = pd.DataFrame(
        {
            "before the step": BELIEFS,
            "groups": np.bincount(plans.belief, minlength=len(BELIEFS)),
            "rollouts spent": total(log.rollouts).astype(np.int64),
            "rollouts planned": total(plans.planned).astype(np.int64),
            f"{expected(log)}, spent": total(expectation.effective_spent),
            f"{expected(log)}, planned": total(expectation.effective_planned),
        }
    )
    return table[table["groups"] > 0]


def token_totals(log: Log, plans: Replay | None, expectation: Expectation | None) -> dict[str, float]:
    """Tokens spent and without gradient, and those of the plans, all by the mean length of each group.

    Groups without lengths are left out.
    """
    known = log.measured > 0
    length = np.divide(log.tokens, log.measured, out=np.zeros_like(log.tokens), where=known)
    totals = {
        "spent": float((log.rollouts * length).sum()),
        "without gradient": float((log.rollouts * length)[log.without_gradient].sum()),
        "rollouts": float(log.rollouts[known].sum()),
        "rollouts measured": float(log.measured.sum()),
    }
    if plans is not None and expectation is not None:
        totals["planned"] = float((plans.planned * length).sum())
        totals["effective, spent"] = float((expectation.effective_spent * length).sum())
        totals["effective, planned"] = float((expectation.effective_planned * length).sum())
    return totals
