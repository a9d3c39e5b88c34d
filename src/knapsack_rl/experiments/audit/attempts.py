"""Steps that come again: a run that was resumed and went on writing into the same log, or parts of one step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.experiments.audit.files import are_shards
from knapsack_rl.experiments.audit.values import Ints, Keys

MOST = 255  # attempts that are told apart
_ALIKE = 0.5  # share of the groups of repeated steps that are the same prompts, from which it is a repetition
_WHOLE = 0.8  # share of a usual step's rollouts from which steps are whole ones
_STEPS_OF_AN_ATTEMPT = 2  # at least, on average; where steps go back more often, rows are in no order

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Descent:
    """A row at which steps go back.

    Attributes:
        path: its file.
        row: its number in the file.
        step: the step that it goes back to.
        inside: whether the rows before it are in the same file.
        shard: whether they are in a file that holds another part of every step, as the names say.
    """

    path: Path
    row: int
    step: int
    inside: bool
    shard: bool = False


@dataclass(frozen=True)
class Resumption:
    """What became of steps that were logged again."""

    descents: tuple[Descent, ...]
    all_rollouts: int
    all_without_gradient: float


@dataclass(frozen=True)
class Repeats:
    """Which groups were made again.

    Attributes:
        gone: groups that a later attempt made once more, so that they do not count.
        in_doubt: where the same groups come again from the first step to the last one, as after a second start and as
            in parts of the same groups; they count as parts.
    """

    gone: Mask
    in_doubt: tuple[Descent, ...] = ()


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
        same_file = self._file == (path, argument)
        first = len(self.descents)
        for place in down[: MOST + 1 - first].tolist():
            inside = same_file or place > 0
            shard = not inside and self._file is not None and are_shards((self._file[0], path))
            self.descents.append(Descent(path, int(rows[place]), int(step[place]), inside, shard))
        self._last, self._file = int(step[-1]), (path, argument)
        attempt = np.zeros(len(step), dtype=np.int64)
        attempt[down] = 1
        return np.minimum(first + np.cumsum(attempt), MOST)

    @property
    def ordered(self) -> bool:
        """Whether steps went back so rarely that it means something."""
        return len(self.descents) <= MOST


@dataclass(frozen=True)
class _Groups:
    """The groups of a run or of a part of it, one entry each."""

    step: Ints
    attempt: Ints
    prompt: Keys
    rollouts: Ints

    def of(self, rows: Mask) -> _Groups:
        return _Groups(self.step[rows], self.attempt[rows], self.prompt[rows], self.rollouts[rows])

    def per_step(self) -> dict[int, int]:
        """Rollouts of each step."""
        steps, of_group = np.unique(self.step, return_inverse=True)
        return dict(zip(steps.tolist(), np.bincount(of_group, self.rollouts).astype(int).tolist(), strict=True))

    def sizes(self) -> dict[tuple[int, int], int]:
        """Rollouts of each prompt in a step."""
        keys = zip(self.step.tolist(), self.prompt.tolist(), strict=True)
        return dict(zip(keys, self.rollouts.tolist(), strict=True))


def superseded(attempts: Attempts, step: Ints, attempt: Ints, prompt: Keys, rollouts: Ints) -> Repeats:
    """Which groups were made once more by a later attempt, so that the last one counts.

    A later attempt has every step that an earlier one has from where it begins, up to where one of them ends; and both
    have these steps as whole as steps are that came once. If the groups are the same ones, that is enough. If they are
    others, it must also be in the same file, begin after the first step and get further than the earlier attempt.
    Anything else is taken for parts of the same steps: logs sorted by prompt or category, shards, asynchronous writers.

    Args:
        attempts: where steps went back.
        step: of each group.
        attempt: of each group.
        prompt: key of each group's prompt.
        rollouts: of each group.

    Cost: O(groups x descents) where steps go back rarely, otherwise O(groups log groups).
    """
    groups, gone = _Groups(step, attempt, prompt, rollouts), np.zeros(len(step), dtype=bool)
    if not attempts.ordered:
        return Repeats(gone)
    in_doubt: list[Descent] = []
    starts = [0, *_runs(attempts, step, attempt), len(attempts.descents) + 1]
    for start, end in pairwise(starts):
        part = (attempt >= start) & (attempt < end)
        descents = {number: attempts.descents[number - 1] for number in range(start + 1, end)}
        found = _of_one_run(groups.of(part), descents)
        gone[part] = found.gone
        in_doubt += found.in_doubt
    return Repeats(gone, tuple(in_doubt))


def _runs(attempts: Attempts, step: Ints, attempt: Ints) -> list[int]:
    """The attempts that begin another shard, or another run or part in a file of its own."""
    return [
        number
        for number, descent in enumerate(attempts.descents, start=1)
        if descent.shard or (not descent.inside and descent.step <= step[attempt < number].min(initial=descent.step))
    ]


def _of_one_run(groups: _Groups, descents: dict[int, Descent], with_others: bool = True) -> Repeats:
    """The same for a single run; `with_others` says whether other groups than the first time may be a repetition."""
    step, attempt = groups.step, groups.attempt
    gone, in_doubt, resumed = np.zeros(len(step), dtype=bool), [], 0
    if _STEPS_OF_AN_ATTEMPT * len(descents) > len(np.unique(step)):
        return Repeats(gone)  # rows in no order
    usual = _usual(groups)
    for number, descent in descents.items():
        before, after = (attempt < number) & ~gone & (step >= descent.step), attempt == number
        if not before.any() or not after.any():
            continue
        earlier, later = groups.of(before), groups.of(after)
        further = int(step[after].max()) > int(step[before].max())
        from_the_start = descent.step <= step[attempt < number].min()
        same = _same_groups(earlier, later)
        if same and from_the_start and not further:
            in_doubt.append(descent)
            continue
        others = with_others and descent.inside and further and not from_the_start
        if (same or others) and _made_again(earlier, later, usual):
            gone |= before
            resumed += 1
    if with_others and 2 * resumed < len(descents):  # by chance, in a log that is slightly out of order
        return _of_one_run(groups, descents, with_others=False)
    return Repeats(gone, tuple(in_doubt))


def _usual(groups: _Groups) -> float:
    """How many rollouts a step has that came in one attempt only; infinite where no step did."""
    steps, of_group = np.unique(groups.step, return_inverse=True)
    first, last = (np.full(len(steps), start) for start in (MOST, 0))
    np.minimum.at(first, of_group, groups.attempt)
    np.maximum.at(last, of_group, groups.attempt)
    alone = np.bincount(of_group, groups.rollouts)[first == last]
    return float(np.median(alone)) if len(alone) else np.inf


def _made_again(before: _Groups, after: _Groups, usual: float) -> bool:
    """Whether one attempt has the steps of the other up to where one ends, and both have them whole.

    The last step of each may have broken off. All steps together have to be whole, since steps may differ in size.
    """
    earlier, later = before.per_step(), after.per_step()
    end = min(max(earlier), max(later))
    common = {step for step in earlier if step <= end}
    if common != {step for step in later if step <= end}:
        return False
    for rollouts in (earlier, later):
        certain = [rollouts[step] for step in common if step < max(rollouts)]
        if certain and np.mean(certain) < _WHOLE * usual:
            return False
    return True


def _same_groups(earlier: _Groups, later: _Groups) -> bool:
    """Whether two attempts have the same groups in most of the steps that both have.

    A group is the same if it has as many rollouts; in the last step of the earlier attempt, which may have broken off,
    if the later one has as many as is usual.
    """
    steps = np.intersect1d(earlier.step, later.step)
    usual, last = np.median(np.concatenate((earlier.rollouts, later.rollouts))), int(earlier.step.max())
    old, new = (part.of(np.isin(part.step, steps)).sizes() for part in (earlier, later))
    same = sum(
        new.get(group) == size or (group[0] == last and new.get(group, 0) >= max(usual, size))
        for group, size in old.items()
    )
    groups = old.keys() | new.keys()
    return bool(groups) and same >= _ALIKE * len(groups)
