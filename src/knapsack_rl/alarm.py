"""An alarm for graders: categories whose outcomes change at once, or are the same for ever, while others' are not.

A group is *silent* when it holds no success, and *certain* when it holds no failure. Under what was known before, a
silent group of N rollouts has the chance

    B(a, b + N) / B(a, b)      the prompt was visited before, and p ~ Beta(a, b) is believed of it
    1 - s                      it is new; s is the share of groups with a success among the category's recent new ones

and the surprises, -ln of these chances, of consecutive silent groups of a category add up. Their sum is beyond
`SURPRISE` after a handful of groups if the grader broke, and hardly ever by chance. Certain groups likewise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl.belief import Belief
from knapsack_rl.beta import log_beta
from knapsack_rl.errors import InvalidInputError, StateError
from knapsack_rl.validation import as_counts, as_successes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

SURPRISE = 23.0
"""Nats of a run of groups from which the alarm is raised: a chance of 1e-10 under what was known."""
EVERYTHING = ""
"""Category of all prompts together, watched whatever other categories there are."""
_WEIGHT = 8.0  # rollouts that a belief about a prompt weighs at most: policies move, so that older outcomes fade
_FADING = 100.0  # groups after which the shares among a category's groups are forgotten to 1 / e
_KNOWN = 20  # new groups of a category from which their shares say something
_GROUPS, _ROLLOUTS = 40, 200  # of a category that was the same from the start, from which that is said
_OTHERS = 0.3  # share of the other categories' groups that were different, from which it is
_SHOWN = 20  # categories of a column in the metrics; with more there are none of it
_EXAMPLES = 3  # prompts of a finding
_MOST = 1000  # different values from which a column tells prompts apart and not kinds of prompts
_EARLY = 20  # steps of a category by which the share of the budget that it spends in vain is compared
_VAIN = 0.25  # share of a step's rollouts that a category spends without gradient, from which a doubling is said

Kind = Literal[
    "stopped succeeding", "stopped failing", "stopped varying", "never succeeds", "never fails", "spends in vain"
]


@dataclass(frozen=True)
class Finding:
    """A category whose outcomes look like its grader's rather than the model's.

    Attributes:
        column: where the category stands; empty for all prompts together.
        category: its value there.
        kind: what was found.
        text: the same in a sentence.
        prompts: positions in the step of some of the prompts that it shows in.
    """

    column: str
    category: str
    kind: Kind
    text: str
    prompts: tuple[int, ...]


@dataclass
class _Side:
    """How often a category's groups hold a success (or a failure, or different rewards), and since when none does."""

    share: float = 0.0
    """Discounted number of new groups that did."""
    groups: float = 0.0
    """Discounted number of new groups."""
    ever: int = 0
    """Groups that did, over the whole run."""
    run: int = 0
    """Groups in a row that did not."""
    unsaid: int = 0
    """Those of them that were new, which count for the share once the run has ended."""
    surprise: float = 0.0
    """Nats of the run."""
    raised: bool = False
    """Whether the alarm was raised in this run."""

    def take(self, holds: Mask, new: Mask, surprise: Floats) -> None:
        """Take in the groups of a step."""
        if holds.any():
            self.run = 0
            self.surprise = 0.0
            self.raised = False
            self._forget(int(new.sum()) + self.unsaid)
            self.share += int((holds & new).sum())
            self.groups += int(new.sum()) + self.unsaid
            self.unsaid = 0
            self.ever += int(holds.sum())
            return
        if self.ever:  # what never was cannot have stopped
            known = self.groups >= _KNOWN
            unlike = -math.log1p(-min(self.share + 0.5, self.groups + 0.5) / (self.groups + 1.0)) if known else 0.0
            self.surprise += float(np.where(new, unlike, surprise).sum())
        self.run += len(holds)
        self.unsaid += int(new.sum())

    def _forget(self, groups: int) -> None:
        kept = math.exp(-groups / _FADING)
        self.share, self.groups = kept * self.share, kept * self.groups


@dataclass
class _Category:
    """What is remembered of a category."""

    success: _Side = field(default_factory=_Side)
    failure: _Side = field(default_factory=_Side)
    spread: _Side = field(default_factory=_Side)
    groups: int = 0
    rollouts: int = 0
    steps: int = 0
    vain_early: float = 0.0
    """Mean share of a step's rollouts that went to it and had no gradient, over its first steps."""
    vain: float = 0.0
    """The same over its latest steps."""
    said: list[str] = field(default_factory=list)
    """Findings that are made once."""


class Alarm:
    """Watches outcomes by category, and says in words when a grader looks broken.

    It finds categories that stop succeeding or failing at once, that never did while others do, whose rewards stop
    differing, and which spend twice as much of the budget without gradient as they did at first. It does not find a
    grader that is wrong now and then. What it cannot know is whether a model has come to write what no grader can read:
    the sentence asks to look.

    Attributes:
        newest: metrics by category of the newest step.

    Cost: O(prompts + categories) a step, about 300 bytes a category.
    """

    def __init__(self) -> None:
        self._categories: dict[str, dict[str, _Category]] = {}
        self.newest: dict[str, float] = {}

    def observe(
        self,
        successes: ArrayLike,
        rollouts: ArrayLike,
        categories: Mapping[str, Sequence[str | None]] | None = None,
        *,
        visited: ArrayLike | None = None,
        belief: Belief | None = None,
        varied: ArrayLike | None = None,
        live: ArrayLike | None = None,
    ) -> list[Finding]:
        """Take in a step. Arrays have shape (M,), an entry for each prompt.

        Args:
            successes: right ones.
            rollouts: those that came back with a reward.
            categories: name of a column -> the category of each prompt, such as its data source.
            visited: whether a prompt was visited before the step; by default none was.
            belief: about the success rates, from before the step.
            varied: whether the rewards of a prompt differed, where they are graded; by default that is not watched.
            live: rollouts with a gradient; by default all of a prompt with both outcomes.

        Returns:
            What was found in this step and not said before.

        Raises:
            InvalidInputError: lengths differ, or a count is out of range.
        """
        won, tried = as_successes(successes, rollouts)
        mixed = (won > 0) & (won < tried)
        old = np.zeros(len(won), dtype=bool) if visited is None else np.asarray(visited, dtype=bool)
        spread = np.ones_like(mixed) if varied is None else np.asarray(varied, dtype=bool)
        alive = np.where(mixed, tried, 0) if live is None else as_counts("live", live)
        columns = {EVERYTHING: [""] * len(won), **(categories or {})}
        for name, column in {"visited": old, "varied": spread, "live": alive, **columns}.items():
            if len(column) != len(won):
                raise InvalidInputError(
                    f"{name}: expected one entry for each of the {len(won)} prompts, got {len(column)}."
                )
        if belief is None:
            belief = Belief(np.ones(len(won)), np.ones(len(won)))
            old = np.zeros_like(old)
        step = _Step(won, tried, ~old, spread, alive, *_surprises(belief, tried))
        found: list[Finding] = []
        self.newest = {}
        for name, column in columns.items():
            found += self._column(name, column, step)
        return found

    def metrics(self) -> dict[str, float]:
        """Of the newest step: for each category its `success`, `rollouts` (share of the step's) and
        `effective_gradient_ratio`, as `category/{column}/{value}/...`; and `alarms`, the categories that are on alarm.
        """  # noqa: D205
        raised = sum(
            category.success.raised or category.failure.raised or category.spread.raised
            for column in self._categories.values()
            for category in column.values()
        )
        return {**self.newest, "alarms": float(raised)}

    def _column(self, name: str, column: Sequence[str | None], step: _Step) -> list[Finding]:
        known = self._categories.setdefault(name, {})
        values, which = np.unique(np.array(["" if value is None else value for value in column]), return_inverse=True)
        if len(known.keys() | set(values.tolist())) > _MOST:
            return []
        found = []
        total = max(int(step.tried.sum()), 1)
        for number, value in enumerate(values.tolist()):
            of = np.flatnonzero((which == number) & (step.tried > 0))
            if not of.size:
                continue
            category = known.setdefault(value, _Category())
            part = step.of(of)
            if name and len(values) <= _SHOWN:
                count = int(part.tried.sum())
                self.newest |= {
                    f"category/{name}/{value}/success": float(part.won.sum() / count),
                    f"category/{name}/{value}/rollouts": count / total,
                    f"category/{name}/{value}/effective_gradient_ratio": float(part.live.sum() / count),
                }
            _take(category, part, total)
            others = [one for other, one in known.items() if other != value]
            found += _findings(name, value, category, others, of)
        return found

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, as JSON."""
        return {
            name: {value: asdict(category) for value, category in column.items()}
            for name, column in self._categories.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what is remembered.

        Raises:
            StateError: the state is not what `state_dict` writes. Nothing has changed then.
        """
        try:
            categories = {
                str(name): {str(value): _restored(saved) for value, saved in column.items()}
                for name, column in state.items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StateError(f"state: expected the alarm's as state_dict writes it, got {error!r}.") from error
        self._categories, self.newest = categories, {}


@dataclass(frozen=True)
class _Step:
    """The groups of a step, or some of them."""

    won: Ints
    tried: Ints
    new: Mask
    spread: Mask
    live: Ints
    silent: Floats
    """Surprise of a silent group, nats."""
    certain: Floats

    def of(self, positions: Ints) -> _Step:
        return _Step(*(getattr(self, part.name)[positions] for part in fields(self)))


def _surprises(belief: Belief, rollouts: Ints) -> tuple[Floats, Floats]:
    """-ln of the chances that no rollout of a prompt succeeds, and that all do."""
    weight = np.minimum(_WEIGHT / (belief.wins + belief.losses), 1.0)
    a, b = weight * belief.wins, weight * belief.losses
    return log_beta(a, b) - log_beta(a, b + rollouts), log_beta(a, b) - log_beta(a + rollouts, b)


def _take(category: _Category, step: _Step, total: int) -> None:
    """Take in the category's groups of a step with `total` rollouts."""
    category.groups += len(step.won)
    category.rollouts += int(step.tried.sum())
    category.steps += 1
    vain = int((step.tried - step.live).sum()) / total
    category.vain += (vain - category.vain) / min(category.steps, _EARLY)
    if category.steps <= _EARLY:
        category.vain_early = category.vain
    category.success.take(step.won > 0, step.new, step.silent)
    category.failure.take(step.won < step.tried, step.new, step.certain)
    category.spread.take(step.spread, np.ones_like(step.new), step.silent)


def _findings(column: str, value: str, category: _Category, others: list[_Category], of: Ints) -> list[Finding]:
    """What is new about a category after a step."""
    where = f"{column} {value!r}" if column else "all prompts"
    seen: list[tuple[Kind, str]] = []
    sides: tuple[tuple[_Side, Kind, str], ...] = (
        (category.success, "stopped succeeding", "none of its last {run} groups has a success"),
        (category.failure, "stopped failing", "none of its last {run} groups has a failure"),
        (category.spread, "stopped varying", "the rewards of a prompt differ in none of its last {run} groups"),
    )
    for side, kind, text in sides:
        if side.surprise > SURPRISE and not side.raised:
            side.raised = True
            if kind == "stopped varying" and (category.success.raised or category.failure.raised):
                continue  # the same thing, said better
            seen.append((kind, f"{text.format(run=side.run)}, and before {_share(side)} had"))
    enough = category.groups >= _GROUPS and category.rollouts >= _ROLLOUTS
    rest = sum(one.groups for one in others)
    for kind, ever, share in (
        ("never succeeds", category.success.ever, sum(one.success.ever for one in others)),
        ("never fails", category.failure.ever, sum(one.failure.ever for one in others)),
    ):
        if enough and not ever and rest and share >= _OTHERS * rest and kind not in category.said:
            category.said.append(kind)
            what = "success" if kind == "never succeeds" else "failure"
            text = (
                f"none of its {category.groups} groups so far has a {what}, and {share / rest:.0%} of the others' have"
            )
            seen.append((kind, text))
    wasteful = category.vain > max(_VAIN, 2.0 * category.vain_early)
    if column and rest and wasteful and "spends in vain" not in category.said:
        category.said.append("spends in vain")
        now, early = category.vain, category.vain_early
        seen.append(("spends in vain", f"{now:.0%} of the budget goes to it without a gradient, at first {early:.0%}"))
    look = (
        "Read a few of its completions beside their rewards: this is what a broken grader or a change of format "
        "looks like"
    )
    spent = "Its prompts are solved or hopeless by now, or graded wrongly"
    return [
        Finding(
            column,
            value,
            kind,
            f"{where}: {text}. {spent if kind == 'spends in vain' else look}.",
            tuple(of[:_EXAMPLES].tolist()),
        )
        for kind, text in seen
    ]


def _share(side: _Side) -> str:
    if side.groups < _KNOWN:
        return f"{side.ever} of its groups"
    return f"{side.share / side.groups:.0%} of its new groups"


def _restored(saved: Any) -> _Category:
    """A category from its part of a state; ValueError and the like where it is none."""
    success, failure, spread = (_Side(**saved[name]) for name in ("success", "failure", "spread"))
    for side in (success, failure, spread):
        numbers = asdict(side)
        if numbers.pop("raised") not in (True, False):
            raise ValueError(f"raised true or false, got {side.raised!r}")
        if not all(type(number) in (int, float) and 0.0 <= number < math.inf for number in numbers.values()):
            raise ValueError(f"numbers of 0 or more, got {numbers}")
    counts = [saved[name] for name in ("groups", "rollouts", "steps")]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"counts of 0 or more, got {counts}")
    vain = [float(saved[name]) for name in ("vain_early", "vain")]
    if not all(0.0 <= share <= 1.0 for share in vain):
        raise ValueError(f"shares in [0, 1], got {vain}")
    category = _Category(success, failure, spread, *counts, *vain)
    category.said += map(str, saved["said"])
    return category
