"""The exact integer solve: spend a budget on the largest marginal gains.

Value is concave in N for N >= 1: the gain of each further rollout on a prompt is at most the gain of the one before it.
The optimum under one budget then takes the largest of all gains (Fox, 1966; the paper's reference 15), and since a
prompt's gains fall, it always takes the first so many of each prompt. Gains are computed only while they can still be
among the largest, so time and memory are O(M + budget); the usual dynamic programme needs O(M * budget * max_rollouts).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Gains = Callable[[Ints, int, int], Floats]
"""gains(items, start, width) -> (len(items), width): each item's gains of its units start .. start + width - 1."""

_LOOK_AHEAD = 4  # units shown beyond the mean in the first round; fewer cost rounds, more cost gains computed in vain


def largest_gains(gains: Gains, room: Ints, budget: int) -> Ints:
    """Units per item that maximise the sum of gains, spending exactly `budget`.

    Every item shows its first gains and the largest `budget` of them are kept; items that could keep all they had shown
    show as many again. The least gain kept can only rise, so whatever falls below it is out for good.

    Args:
        gains: the marginal gains, non-increasing within every item, units counted from 0.
        room: shape (M,), the most units that an item may get, 0 or more.
        budget: units to spend, between 0 and `room.sum()`.

    Returns:
        int64, shape (M,), summing to `budget`; equal gains go to the earlier item.

    Cost: O(M + budget) time and memory in O(log(largest plan / mean plan)) rounds.
    """
    if budget in (0, room.sum()):
        return room.copy() if budget else np.zeros_like(room)

    items = np.flatnonzero(room)
    shown, width = 0, min(budget // len(items) + _LOOK_AHEAD, int(room.max()))
    kept, owners, least = np.empty(0), np.empty(0, dtype=np.int64), -np.inf
    while items.size:
        offered = gains(items, shown, width)
        full = np.flatnonzero(room[items] < shown + width)
        if len(full):
            if not offered.flags.owndata:
                offered = offered.copy()  # a view of something that the caller keeps
            offered[full] = np.where(np.arange(shown, shown + width) < room[items[full], None], offered[full], -np.inf)
        flat = offered.ravel()
        if flat.size > budget and not kept.size:  # the first round is the big one: filter before anything is copied
            least = np.partition(flat, flat.size - budget)[flat.size - budget]
        chosen = np.flatnonzero((flat >= least) & (flat > -np.inf))
        kept, owners = np.concatenate((kept, flat[chosen])), np.concatenate((owners, items[chosen // width]))
        del offered, flat, chosen
        if kept.size > budget:
            least = np.partition(kept, kept.size - budget)[kept.size - budget]
            enough = np.flatnonzero(kept >= least)
            if enough.size > budget:  # more than one gain equals the least: the latest items give way
                ties = np.flatnonzero(kept[enough] == least)
                order = np.argsort(owners[enough[ties]], kind="stable")
                enough = np.delete(enough, ties[order[budget - enough.size :]])
            kept, owners = kept[enough], owners[enough]
        units = np.bincount(owners, minlength=len(room))
        shown += width
        items = items[(units[items] == shown) & (room[items] > shown)]
        width = shown
    return units
