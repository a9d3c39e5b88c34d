"""Steps that come again: a run that was resumed and went on writing into the same log, or parts of one step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.experiments.audit.values import Ints, Keys

MOST = 255  # attempts that are told apart
_ALIKE = 0.5  # share of the groups of repeated steps that are the same prompts, from which it is a repetition
_WHOLE = 0.8  # share of a usual step's rollouts from which a step is a whole one


@dataclass(frozen=True)
class Descent:
    """A row at which steps go back.

    Attributes:
        path: its file.
        row: its number in the file.
        step: the step that it goes back to.
        inside: whether the rows before it are in the same file.
    """

    path: Path
    row: int
    step: int
    inside: bool


@dataclass(frozen=True)
class Resumption:
    """What became of steps that were logged again."""

    descents: tuple[Descent, ...]
    all_rollouts: int
    all_without_gradient: float


class Attempts:
    """Numbers the attempts at a run: one more whenever steps go back; none where they do so all the time."""

    def __init__(self) -> None:
        self.descents: list[Descent] = []
        self._last: int | None = None
        self._file: tuple[Path, int] | None = None

    def of(self, step: Ints, path: Path, argument: int, rows: Ints) -> Ints:
        """The attempt of each row; calls go on where the last one ended."""
        before = np.concatenate(([step[0] if self._last is None else self._last], step[:-1]))
        down = np.flatnonzero(step < before)
        inside = self._file == (path, argument)
        first = len(self.descents)
        for place in down[: MOST + 1 - first].tolist():
            self.descents.append(Descent(path, int(rows[place]), int(step[place]), inside or place > 0))
        self._last, self._file = int(step[-1]), (path, argument)
        attempt = np.zeros(len(step), dtype=np.int64)
        attempt[down] = 1
        return np.minimum(first + np.cumsum(attempt), MOST)

    @property
    def ordered(self) -> bool:
        """Whether steps went back so rarely that it means something."""
        return len(self.descents) <= MOST


def superseded(attempts: Attempts, step: Ints, attempt: Ints, prompt: Keys, rollouts: Ints) -> NDArray[np.bool_]:
    """Which groups were made once more by a later attempt, so that the last one counts.

    Args:
        attempts: where steps went back.
        step: of each group.
        attempt: of each group.
        prompt: key of each group's prompt.
        rollouts: of each group.
    """
    gone = np.zeros(len(step), dtype=bool)
    if not attempts.ordered or len(attempts.descents) > len(np.unique(step)):
        return gone  # rows in no order
    usual = _usual(step, attempt, rollouts)
    for number, descent in enumerate(attempts.descents, start=1):
        later = attempt == number
        earlier = (attempt < number) & ~gone & (step >= descent.step)
        if not later.any() or not earlier.any():
            continue
        from_the_start = descent.step <= step[attempt < number].min()
        if not descent.inside and from_the_start:
            continue  # another shard of the same steps, or another run
        onward = descent.inside and not from_the_start and step[later].max() >= step[earlier].max()
        whole = min(rollouts[(step == descent.step) & part].sum() for part in (earlier, later)) >= _WHOLE * usual
        if _again(step, prompt, rollouts, earlier, later) or (onward and whole):
            gone |= earlier
    return gone


def _usual(step: Ints, attempt: Ints, rollouts: Ints) -> float:
    """How many rollouts a step has that came in one attempt only; infinite where no step did."""
    steps, of_group = np.unique(step, return_inverse=True)
    first, last = (np.full(len(steps), start) for start in (MOST, 0))
    np.minimum.at(first, of_group, attempt)
    np.maximum.at(last, of_group, attempt)
    alone = np.bincount(of_group, rollouts)[first == last]
    return float(np.median(alone)) if len(alone) else np.inf


def _again(step: Ints, prompt: Keys, rollouts: Ints, earlier: NDArray[np.bool_], later: NDArray[np.bool_]) -> bool:
    """Whether two attempts have the same groups in most of the steps that both have.

    A group is the same if it has as many rollouts; in the last step of the earlier attempt, which may have broken off,
    if the later one has as many as is usual.
    """
    both = np.isin(step, np.intersect1d(step[earlier], step[later]))
    usual, last = np.median(rollouts), step[earlier].max()
    old, new = (
        dict(zip(zip(step[part].tolist(), prompt[part].tolist(), strict=True), rollouts[part].tolist(), strict=True))
        for part in (earlier & both, later & both)
    )
    same = sum(
        new.get(group) == size or (group[0] == last and new.get(group, 0) >= max(usual, size))
        for group, size in old.items()
    )
    groups = set(zip(step[both].tolist(), prompt[both].tolist(), strict=True))
    return bool(groups) and same >= _ALIKE * len(groups)
