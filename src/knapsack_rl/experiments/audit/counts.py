"""Tables of counts: a row is a group, with how many rollouts it had and how many of them were right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.experiments.audit.names import (
    CANDIDATES,
    LOSSES,
    POSSIBLE_WINS,
    RATES,
    TOTALS,
    WINS,
    find,
    is_reward,
    plain,
)
from knapsack_rl.experiments.audit.readers import Look
from knapsack_rl.experiments.audit.shapes import value
from knapsack_rl.experiments.audit.values import Floats, number, numbers

_ROUNDED = 0.005  # a share may have been rounded to two digits


@dataclass(frozen=True)
class Counts:
    """Columns of a row that is a group: two of them say how many rollouts it had and how many were right.

    Attributes:
        total: how many rollouts; None where `wins` and `losses` add up to it.
        wins: how many were right.
        losses: how many were wrong.
        rate: the share that was right.
    """

    total: str | None = None
    wins: str | None = None
    losses: str | None = None
    rate: str | None = None

    def columns(self) -> tuple[str, ...]:
        """Those that are read."""
        return tuple(name for name in (self.total, self.wins, self.losses, self.rate) if name is not None)

    def said(self) -> str:
        """What is read from which, in words."""
        if self.rate is not None:
            return f"{self.rate} x {self.total} (each row is a group)"
        return f"{self.wins} of {self.total or f'{self.wins} + {self.losses}'} (each row is a group)"

    def of(self, columns: Mapping[str, Any]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Rollouts and successes of each row, and where they are impossible."""
        held = {name: numbers(columns[name]) for name in self.columns()}
        if self.total is None:
            won = held[str(self.wins)]
            total = won + held[str(self.losses)]
        else:
            total = held[self.total]
            won = held[self.wins] if self.wins is not None else held[str(self.rate)] * total
        whole = np.round(won)
        near = np.abs(won - whole) <= (_ROUNDED * np.abs(total) + 1e-6 if self.rate is not None else 0.0)
        possible = near & (whole >= 0) & (whole <= total) & (total < 2**31) & (np.floor(total) == total)
        return np.nan_to_num(total), np.nan_to_num(whole), ~possible


def find_counts(look: Look, text: str | None) -> Counts | None:
    """The columns of counts, where rows are groups and not rollouts that say something of their group."""
    heads = [name for name in look.names if name in look.numeric]
    total, wins, losses, rate = (find(candidates, heads) for candidates in (TOTALS, WINS, LOSSES, RATES))
    tries: list[Counts] = []
    if total and wins:
        tries.append(Counts(total=total, wins=wins))
    if total and rate:
        tries.append(Counts(total=total, rate=rate))
    possible = wins or find(POSSIBLE_WINS, heads)
    if possible and losses:
        tries.append(Counts(wins=possible, losses=losses))
    if total and possible:
        tries.append(Counts(total=total, wins=possible))
    own = [one for one in tries if one.columns() == ("scored", "successes")]
    if own:
        return own[0]
    if _are_rollouts(look, text, {name for one in tries for name in one.columns()}):
        return None
    return next((one for one in tries if _makes_sense(look, one)), None)


def _are_rollouts(look: Look, text: str | None, counts: set[str]) -> bool:
    """Whether each row has a response or a reward of its own.

    Where prompts come several times in a step, another verdict than the counts is one, or a count of 0 or 1.
    """
    response = find(CANDIDATES["completion"], look.names)
    if response and any(isinstance(value(row, response), str) for row in look.rows):
        return True
    if find((*CANDIDATES["reward"], *CANDIDATES["advantage"]), look.names):
        return True
    key = text or find(CANDIDATES["id"], look.names)
    steps = find(CANDIDATES["step"], look.names)
    if key is None:
        return False
    seen = [repr((value(row, key), steps and value(row, steps))) for row in look.rows]
    if 2 * len(set(seen)) > len(seen):
        return False
    others = {name for name in look.numeric if is_reward(name) and name not in counts and plain(name) not in RATES}
    return bool(others) or any(_is_verdict(look, name) for name in look.numeric if is_reward(name))


def _is_verdict(look: Look, name: str) -> bool:
    """Whether a column holds nothing but 0 and 1, or truth values."""
    return all(number(value(row, name)) in (0.0, 1.0) for row in look.rows)


def _makes_sense(look: Look, found: Counts) -> bool:
    """Whether the first rows could be counts: whole numbers, some group with several rollouts, no truth values."""
    columns = {name: [value(row, name) for row in look.rows] for name in found.columns()}
    if any(isinstance(one, bool) for name in columns if plain(name) not in RATES for one in columns[name]):
        return False
    total, _, impossible = found.of({name: [number(one) for one in held] for name, held in columns.items()})
    return bool(np.mean(impossible) < 0.5 and total.max(initial=0.0) > 1)
