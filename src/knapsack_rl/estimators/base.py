"""What every estimator is: a table of known prompts, a belief about each prompt, and a state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from knapsack_rl.belief import Belief
from knapsack_rl.errors import InvalidInputError, StateError
from knapsack_rl.estimators.features import NONE, Features
from knapsack_rl.estimators.state import MOST_ROLLOUTS
from knapsack_rl.estimators.table import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]


class Began(NamedTuple):
    """When a step began.

    Attributes:
        clock: the estimator's clock at that time.
        number: of the step, in the order in which they began.
    """

    clock: int
    number: int


class Visits(NamedTuple):
    """What a step showed of its prompts: each prompt once, with one rollout or more. Arrays have shape (V,).

    Attributes:
        keys: who the prompts are.
        won: rollouts that were right.
        tried: rollouts that were scored, 1 or more.
        features: what else is known about the prompts.
        known: whether a prompt was visited before.
        newest: whether no visit of a later step has been told of a prompt. A late visit is not its last one.
        began: when the step began.
    """

    keys: Keys
    won: Ints
    tried: Ints
    features: Features
    known: NDArray[np.bool_]
    newest: NDArray[np.bool_]
    began: Began


class Estimator(ABC):
    """What turns the outcomes of prompts into beliefs about their success rates. Derive from it for one of your own.

    `belief` is all that has to be written. The base class keeps the counts of each prompt's last visit (`won`,
    `tried`), saves them and loads them. An estimator that keeps more names further columns of its table, fills them in
    `remember`, and learns what prompts share in `learn`; if that is more than the table holds, it extends `state_dict`
    and `load_state_dict`.

    Prompts are named by 64-bit keys, shape (M,). `update` and `load_state_dict` alone change anything.

    Args:
        columns: name and type of the further columns; all are zero for a new prompt.
    """

    counts: ClassVar[tuple[str, str]] = ("won", "tried")
    """Columns of the successes and the rollouts that observed success rates come from."""
    clock: int = 0
    """Time in the estimator's own unit, for estimators to which the age of evidence matters."""

    table: Table
    """A row for each known prompt: its columns to read and, in `remember`, to assign to."""

    def __init__(self, **columns: DTypeLike) -> None:
        if taken := {"keys", "step", "header", "file"} & columns.keys():
            raise InvalidInputError(f"columns: {', '.join(sorted(taken))} is taken by what every estimator saves.")
        counts = {name: columns.get(name, np.float32) for name in self.counts}
        # The column `step` has the number of the newest step that visited the prompt.
        self.table = Table(**{**counts, **columns, "step": np.uint32})
        self._begun = 0

    def __len__(self) -> int:
        """Known prompts."""
        return len(self.table)

    @property
    def settings(self) -> dict[str, Any]:
        """What the meaning of a state depends on, as plain numbers and texts; a state of other ones is refused."""
        return {}

    # Believe

    @abstractmethod
    def belief(self, keys: Keys, features: Features) -> Belief:
        """A distribution of each prompt's success rate at its next visit, for unknown prompts too."""

    def read(self, column: str, keys: Keys) -> Floats:
        """A column of these prompts, 0 where a prompt is not known. O(M)."""
        return self.table.read(column, self.table.find(keys))

    def known(self, keys: Keys) -> NDArray[np.bool_]:
        """Whether each prompt was ever visited. O(M)."""
        return self.table.find(keys) >= 0

    def rates(self, keys: Keys, features: Features = NONE) -> Floats:
        """Point estimates, shape (M,), NaN where never visited."""
        return self.point(keys, self.belief(keys, features))

    def point(self, keys: Keys, belief: Belief) -> Floats:
        """The point estimates for prompts about which this is believed, NaN where never visited. O(M)."""
        return np.where(self.known(keys), belief.mean, np.nan)

    def all_rates(self) -> Floats:
        """Success rates of all known prompts, as observed last, in order of their first visit. O(known prompts)."""
        won, tried = (self.table[name] for name in self.counts)
        return np.asarray(won / tried, dtype=np.float64)

    # Learn

    def begin(self) -> Began:
        """Say when a step begins that begins now: after all that began before."""
        self._begun += 1
        return Began(self.clock, self._begun)

    def update(
        self, keys: Keys, successes: Ints, rollouts: Ints, features: Features = NONE, began: Began | None = None
    ) -> None:
        """Take in one visit a prompt. O(M) beside `learn` and `remember`, amortised.

        Args:
            keys: who the prompts are; rows of one prompt are parts of one visit.
            successes: shape (M,), right rollouts.
            rollouts: shape (M,), scored rollouts; a row without any is no visit.
            features: what else is known about the prompts.
            began: what `begin` said when the step of these rollouts began; None for one that begins now. A visit that
                is told late, after one of the same prompt whose step began later, does not pass for its last.

        Raises:
            InvalidInputError: the estimator cannot learn from such features. Nothing has been learned then.
        """
        if len(keys):
            self.check(features)
        began = began or self.begin()
        seen = np.flatnonzero(rollouts > 0)
        if not len(seen):
            return
        different, first, part = np.unique(keys[seen], return_index=True, return_inverse=True)
        won = np.bincount(part, successes[seen], len(different)).astype(np.int64)
        tried = np.bincount(part, rollouts[seen], len(different)).astype(np.int64)
        rows = self.table.find(different)
        newest = self.table.read("step", rows) <= began.number
        visits = Visits(different, won, tried, features.of(seen[first]), rows >= 0, newest, began)
        self.learn(visits)
        if not visits.known.all():
            rows = self.table.rows(different)
        self.remember(rows, visits)
        for column, values in zip(Estimator.counts, (won, tried), strict=True):
            if column in self.table.columns:
                self.table[column][rows[newest]] = values[newest]
        self.table["step"][rows[newest]] = began.number

    def check(self, features: Features) -> None:  # noqa: B027 # a hook
        """Refuse features that beliefs cannot come from; raises InvalidInputError. By default all will do."""

    def learn(self, visits: Visits) -> None:  # noqa: B027 # a hook
        """Learn what prompts share, with the table as it was before these visits. By default nothing."""

    def remember(self, rows: Ints, visits: Visits) -> None:  # noqa: B027 # a hook
        """Fill the further columns of the visited prompts, whose rows these are. By default nothing.

        `won` and `tried` still hold the visit before; the base class replaces them, where the visit is the newest.
        """

    # Keep

    def state_dict(self) -> dict[str, Any]:
        """What was learned: numbers, texts and arrays. O(known prompts).

        Steps are numbered anew from 1 in the order in which they began, so that a step that taught nothing, because it
        was given up or is still open, leaves no trace.
        """
        state = self.table.state_dict()
        return {**state, "step": _ranked(state["step"])}

    def numbering(self) -> dict[str, Any]:
        """The numbers of steps, which `state_dict` leaves out: what a state needs besides for open steps to go on."""
        return {"begun": self._begun, "step": self.table["step"].copy()}

    def renumber(self, numbering: Mapping[str, Any]) -> None:
        """Put them back after `load_state_dict`.

        Raises:
            StateError: they are not of as many prompts as the state is.
        """
        steps = numbering["step"]
        if steps.shape != (len(self),):
            raise StateError(f"state: expected the steps of {len(self)} prompts, got shape {steps.shape}.")
        self.table["step"][:] = steps
        self._begun = int(numbering["begun"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what was learned.

        Raises:
            StateError: the state is not what `state_dict` writes. Nothing has changed then.
        """
        self._take_over(self._restored(state))

    def _restored(self, state: Mapping[str, Any]) -> Table:
        """The table of a saved state, whose counts make sense."""
        prompts = self.table.restored(state)
        right, scored = self.counts
        won, tried = prompts[right], prompts[scored]
        whole = (won == np.floor(won)) & (tried == np.floor(tried))
        if not np.all(whole & (won >= 0) & (won <= tried) & (tried > 0) & (tried < MOST_ROLLOUTS)):
            raise StateError(
                f"state: expected whole numbers 0 <= {right} <= {scored}, and {scored} between 1 and {MOST_ROLLOUTS:g}."
            )
        prompts["step"][:] = _ranked(prompts["step"])
        return prompts

    def _take_over(self, prompts: Table) -> None:
        """Replace the table by that of a saved state; steps that begin from now on are newer than all in it."""
        self.table = prompts
        self._begun = max(self._begun, int(prompts["step"].max(initial=0)))


def _ranked(steps: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Numbers of steps from 1 on, in the same order."""
    return (np.unique(steps, return_inverse=True)[1] + 1).astype(np.uint32)


class ObservedRates(Estimator):
    """An estimator whose point estimates are the observed rates themselves, exact zeros and ones included."""

    def point(self, keys: Keys, belief: Belief) -> Floats:
        """The observed rates, NaN where never visited; what is believed of them plays no part. O(M)."""
        won, tried = self._observed(keys)
        with np.errstate(invalid="ignore"):
            return won / tried

    def belief(self, keys: Keys, features: Features) -> Belief:
        """The rewards that count, on Jeffreys' prior Beta(1/2, 1/2); features play no part."""
        won, tried = self._observed(keys)
        return Belief(won + 0.5, tried - won + 0.5)

    def _observed(self, keys: Keys) -> tuple[Floats, Floats]:
        rows = self.table.find(keys)
        won, tried = (self.table.read(name, rows) for name in self.counts)
        return won, tried
