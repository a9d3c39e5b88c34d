"""Ask and tell: a strategy is an estimator of success rates and a rule that turns them into rollouts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl import identity
from knapsack_rl.allocation import Plan, check_budget
from knapsack_rl.belief import Belief
from knapsack_rl.errors import InfeasibleBudgetError, InvalidInputError, StateError
from knapsack_rl.estimators.features import Features, as_features
from knapsack_rl.strategies import STRATEGIES
from knapsack_rl.strategies.base import Prompts, Settings, View, one_wave
from knapsack_rl.strategies.placement import Placement, placement
from knapsack_rl.validation import as_confidence, as_counts, as_integer, as_successes, one_of
from knapsack_rl.values import ALGORITHMS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

STATE_VERSION = 2
STATE_FILE = "knapsack_allocator.npz"
"""What the adapters call the allocator's state in a checkpoint, so that a run can move from one to the other."""
_LARGEST_GROUP = 2**31 - 1


def strategies() -> tuple[str, ...]:
    """The names that `BudgetAllocator(strategy=...)` accepts."""
    return tuple(STRATEGIES)


class BudgetAllocator:
    """Decides how many rollouts each prompt of a step gets, and learns from what came back.

    `ask` is pure and deterministic; only `tell` changes beliefs. In between, any number of steps may be in flight.

    Strategies: `uniform` (every prompt the same, the baseline), `knapsack` (the paper's: success rate of the last
    visit, uniform on the first, fallback for the never-solved), `knapsack-window` (the same with the mean of the last
    16 rewards, as in the paper's reference code), `adaptive` (a learned belief and three waves in a step),
    `knapsack-discounted`, `knapsack-transitions` and `knapsack-regression` (the paper's value in expectation under
    other beliefs, in one shot), `pilot-spread` (everything beyond the minimum evenly over prompts without a success so
    far in the step), and those of other papers in `rivals`. docs/beliefs.md has more on them.

    Args:
        strategy: one of `strategies()`.
        group_size: mean rollouts per prompt; a step of M prompts has the budget M * group_size.
        min_rollouts: fewest rollouts a prompt gets, 1 or more.
        max_rollouts: most rollouts a prompt gets; 2^31 - 1 and more is no bound.
        seed: for whatever is drawn at random around a plan, such as `dispatch.shuffled_jobs`, and in those of the
            rivals that draw. A plan is a function of the seed, the ids and what was told.
        algorithm: `grpo`, `rloo` or `reinforce`; decides when a gradient is non-zero (paper, appendix B).
        fallback: whether never-solved prompts get the surplus (paper, section 4.2).
        confidence: chance of a non-zero gradient that a prompt's cost aims at (paper, theorem 1).

    Raises:
        InvalidInputError: an argument is out of range, or `algorithm="remax"`, whose greedy rewards an allocator does
            not see (`knapsack_rl.allocate` takes them).
        InfeasibleBudgetError: `group_size` is outside the bounds, so that no step could be allocated.
    """

    def __init__(
        self,
        strategy: str = "knapsack",
        group_size: int = 8,
        min_rollouts: int = 2,
        max_rollouts: int = 128,
        seed: int = 0,
        *,
        algorithm: str = "grpo",
        fallback: bool = True,
        confidence: float = 0.9,
    ) -> None:
        self.strategy = one_of("strategy", strategy, strategies())
        self.seed = as_integer("seed", seed, at_least=0)
        if one_of("algorithm", algorithm, ALGORITHMS) == "remax":
            raise InvalidInputError(
                "algorithm: 'remax' needs to know whether the greedy response succeeded, which an allocator is not "
                "told. Call knapsack_rl.allocate(..., algorithm='remax', greedy_agreement=...) in the training loop."
            )
        if as_integer("group_size", group_size, at_least=1) > _LARGEST_GROUP:
            raise InvalidInputError(f"group_size: expected at most {_LARGEST_GROUP} rollouts, got {group_size}.")
        try:
            check_budget(1, group_size, min_rollouts, max_rollouts)
        except InfeasibleBudgetError:
            raise InfeasibleBudgetError(
                f"group_size: expected a value between min_rollouts={min_rollouts} and max_rollouts={max_rollouts}, "
                f"got {group_size}. Change group_size or the bounds."
            ) from None
        self.settings = Settings(
            int(group_size),
            int(min_rollouts),
            min(int(max_rollouts), _LARGEST_GROUP),  # so that room for all prompts together can be counted
            algorithm,
            bool(fallback),
            as_confidence(confidence),
            self.seed,
        )
        self._strategy = STRATEGIES[strategy]
        self._estimator = self._strategy.estimator()

    @property
    def rollout_weights(self) -> str:
        """What suits the strategy's uneven groups: `sqrt` for advantages times sqrt(group_size / N_i), or `none`.

        A trainer multiplies; the adapters do so unless told otherwise.
        """
        return self._strategy.rollout_weights

    def ask(self, prompt_ids: Iterable[str | int], features: Any = None) -> Plan:
        """Plan a whole step in one shot: `len(prompt_ids) * group_size` rollouts over these prompts.

        Args:
            prompt_ids: strings or integers; a prompt that appears twice gets two plans.
            features: what is known about the prompts besides their outcomes, for strategies that learn from it: a
                mapping of column names to columns with one entry per prompt, which hold text (a category) or numbers (a
                length; of shape (M, width) for a vector such as a hidden state), or one array of numbers. `tell` needs
                the same.

        Returns:
            The plan, with one number of rollouts per id, in the order of the ids. Asking again gives the same plan.

        Raises:
            InvalidInputError: an id is neither a string nor an integer, or a column of `features` does not fit.

        Cost: O(M + budget), whatever the number of known prompts; for `adaptive` with d features O(M d) more.
        """
        keys = identity.keys(prompt_ids)
        prompts = Prompts(keys, as_features(features, len(keys)), self._estimator)
        nothing = np.zeros(len(keys), dtype=np.int64)
        view = View(prompts, self.settings, nothing, nothing, nothing, nothing)
        return self._strategy.rule(view, len(keys) * self.settings.group_size)

    def tell(
        self, prompt_ids: Iterable[str | int], successes: ArrayLike, rollouts: ArrayLike, features: Any = None
    ) -> None:
        """Learn what came back: `successes[i]` of `rollouts[i]` scored rollouts of prompt i were right.

        Batches may be late, partial, repeated or overlapping; each call is a visit of its prompts. A prompt that
        appears twice in a call has its counts added up; one with no scored rollouts is not counted as visited.

        Raises:
            InvalidInputError: lengths differ, a count is negative or no whole number, successes exceed rollouts, or a
                column of `features` (see `ask`) does not fit. Nothing has been learned then.

        Cost: O(M), whatever the number of known prompts; for `adaptive` with d features O(M d^2 + d^3).
        """
        keys = identity.keys(prompt_ids)
        won, tried = as_successes(successes, rollouts)
        if len(keys) != len(won):
            raise InvalidInputError(
                f"prompt_ids, successes, rollouts: expected one length, got {len(keys)} ids and {len(won)} counts."
            )
        self._estimator.update(keys, won, tried, as_features(features, len(keys)))

    def step(self, prompt_ids: Iterable[str | int], features: Any = None, *, waves: bool = True) -> Step:
        """Open a step that may place its budget in several waves; `features` as in `ask`.

        Without `waves` the first one places everything, as `ask` does, whatever the strategy.
        """
        ids = identity.as_ids(prompt_ids)
        return Step(self, ids, as_features(features, len(ids)), waves)

    def visited(self, prompt_ids: Iterable[str | int]) -> NDArray[np.bool_]:
        """Whether anything was told about each of these prompts, in the order of the ids."""
        return self._estimator.known(identity.keys(prompt_ids))

    def success_rates(self, prompt_ids: Iterable[str | int], features: Any = None) -> Floats:
        """Believed success rates of these prompts, float64 in the order of the ids, NaN where never visited."""
        keys = identity.keys(prompt_ids)
        return self._estimator.rates(keys, as_features(features, len(keys)))

    def belief(self, prompt_ids: Iterable[str | int], features: Any = None) -> Belief:
        """What is believed about these prompts' success rates, as Beta distributions; never visited ones included."""
        keys = identity.keys(prompt_ids)
        return self._estimator.belief(keys, as_features(features, len(keys)))

    def metrics(self) -> dict[str, float]:
        """What is believed about all known prompts. O(known prompts).

        Returns:
            `known_prompts`; and over these `mean_success_rate`, `never_solved` and `always_solved` (shares, by the
            estimate); the latter three are left out while nothing is known.
        """
        rates = self._estimator.all_rates()
        if not rates.size:
            return {"known_prompts": 0.0}
        return {
            "known_prompts": float(rates.size),
            "mean_success_rate": float(rates.mean()),
            "never_solved": float((rates == 0.0).mean()),
            "always_solved": float((rates == 1.0).mean()),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that was learned, as numbers and numpy arrays (21 to 36 bytes a known prompt)."""
        return {"version": STATE_VERSION, "estimator": self._estimator.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what was learned. The next plan is then bit for bit that of the allocator that was saved.

        Raises:
            StateError: the state has another version, belongs to another estimator or is damaged. Nothing has changed.
        """
        try:
            version, estimator = state["version"], state["estimator"]
        except (KeyError, TypeError) as error:
            raise StateError(f"state: expected what state_dict returned, got {error!r}.") from error
        if version != STATE_VERSION:
            raise StateError(f"state: expected version {STATE_VERSION}, got {version!r}.")
        self._estimator.load_state_dict(estimator)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to an .npz file without pickle; an existing file is replaced only once all is on disk."""
        target = Path(path)
        estimator = self._estimator.state_dict()
        arrays = {name: array for name, array in estimator.items() if isinstance(array, np.ndarray)}
        numbers = {name: number for name, number in estimator.items() if name not in arrays}
        header = json.dumps({"version": STATE_VERSION, "estimator": numbers})
        partial = target.with_name(target.name + ".partial")
        with partial.open("wb") as file:
            np.savez(file, header=np.array(header), **arrays)  # type: ignore[arg-type] # taken for allow_pickle
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            StateError: the file is damaged or does not fit; see `load_state_dict`.
        """
        try:
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                state = json.loads(str(file["header"]))
                state["estimator"] |= {name: file[name] for name in file.files if name != "header"}
        except FileNotFoundError:
            raise
        except Exception as error:  # zipfile, numpy and json each have their own ways to say that a file is damaged
            raise StateError(
                f"{os.fspath(path)}: expected a file that BudgetAllocator.save wrote, got {error!r}."
            ) from error
        self.load_state_dict(state)


class Step:
    """One step of training, placed in waves: ask, generate, tell, until nothing remains.

    With an engine that generates asynchronously, `place` and `report` do without waves' waiting:

        while step.remaining:
            plan = step.place(free_slots)  # start these, which may be none
            step.report(*wait_for_some())  # whatever has come back since

    A step goes one of the two ways. All its rollouts come from the same policy. Beliefs stay as they were when it first
    planned until its last `tell` or `report`, which makes one visit of it; a step that is given up before has
    taught nothing. Several steps may be open at a time and end in any order; what a step teaches is as old as the step.

    Attributes:
        prompt_ids: the ids of the step.
        remaining: rollouts of the budget that have not been placed and told of (or reported) yet.
        successes: shape (M,), right ones so far.
        scored: shape (M,), those that came back so far.
        placed: shape (M,), rollouts so far.
    """

    def __init__(
        self, allocator: BudgetAllocator, prompt_ids: list[str | int], features: Features, waves: bool
    ) -> None:
        self.prompt_ids = prompt_ids
        self.remaining = len(prompt_ids) * allocator.settings.group_size
        self._allocator = allocator
        self._strategy = allocator._strategy if waves else replace(allocator._strategy, waves=one_wave, exponents=None)
        self._prompts = Prompts(identity.keys(prompt_ids), features, allocator._estimator)
        self._began = allocator._estimator.begin()
        self.successes, self.scored, self.placed, self._failed = np.zeros((4, len(prompt_ids)), dtype=np.int64)
        self._wave = 0
        self._asked: Plan | None = None
        self._placement: Placement | None = None

    @property
    def belief(self) -> Belief:
        """What was believed about the prompts' success rates before the step."""
        return self._prompts.belief

    @property
    def in_flight(self) -> Ints:
        """Rollouts of each prompt that were placed and not reported yet, shape (M,); for `place` and `report`."""
        return self.placed - self.scored - self._failed

    def ask(self) -> Plan:
        """Rollouts to add now, per prompt. Asking again before `tell` gives the same plan.

        Raises:
            StateError: nothing remains, or the step was begun with `place`.
        """
        self._refuse_to_mix("ask", begun=self._placement is not None)
        if not self.remaining:
            raise StateError("step: ask came after the whole budget was placed. Loop `while step.remaining:`.")
        if self._asked is None:
            view = self._view(np.zeros_like(self.placed))
            self._asked = self._strategy.wave(self._wave, view, self.remaining)
        return self._asked

    def tell(self, successes: ArrayLike, rollouts: ArrayLike) -> None:
        """What came back of this wave, per prompt; fewer rollouts than asked for are legal (some may have failed).

        Raises:
            StateError: nothing was asked.
            InvalidInputError: as `BudgetAllocator.tell`, or more came back than was asked for.
        """
        self._refuse_to_mix("tell", begun=self._placement is not None)
        if self._asked is None:
            raise StateError("step: tell came before ask. Ask for a plan, generate, then tell what came back.")
        won, tried = self._counts(successes, rollouts)
        most = self.placed + self._asked.rollouts - self.scored  # late ones of earlier waves may come with this one
        _refuse_more("rollouts", tried, most, "were asked for so far and have not come back")
        self._learn(won, tried, self.remaining - int(self._asked.rollouts.sum()))
        self.placed = self.placed + self._asked.rollouts
        self._asked, self._wave = None, self._wave + 1

    def place(self, most: int) -> Plan:
        """Rollouts to start now, per prompt: at most `most`, and none where it is better to wait for a report.

        They count as placed from then on; calling again gives more. If nothing is in flight, `most` is 1 or more and
        the budget is not spent, there are some. Strategies of one wave place everything at once, if `most` allows.

        Raises:
            InvalidInputError: `most` is no integer of 0 or more.
            StateError: the step was begun with `ask`.

        Cost: O(M + most); until all minimums are back, for `adaptive`, O(M max_rollouts).
        """
        most = min(as_integer("most", most, at_least=0), self.remaining)
        self._refuse_to_mix("place", begun=self._wave > 0 or self._asked is not None)
        pending = self.in_flight
        view = self._view(pending)
        if self._placement is None:
            self._placement = placement(self._strategy, view)
        plan = view.plan(self._placement.place(view, most, self.remaining - int(pending.sum())))
        self.placed = self.placed + plan.rollouts
        return plan

    def report(self, successes: ArrayLike, rollouts: ArrayLike, failed: ArrayLike = 0) -> None:
        """What has come back since the last report, per prompt: any part of what was placed, in any order.

        Args:
            successes: right ones.
            rollouts: those that came back with a reward.
            failed: those that never will; they are spent. 0 for none.

        Raises:
            StateError: the step was not begun with `place`.
            InvalidInputError: as `BudgetAllocator.tell`, or more came back than was in flight.
        """
        if self._placement is None:
            raise StateError("step: report came before place. Place rollouts, generate, then report what came back.")
        won, tried = self._counts(successes, rollouts)
        lost = as_counts("failed", failed)
        if lost.shape != tried.shape and (lost.ndim or lost):
            raise InvalidInputError(
                f"failed: expected 0 or one number for each of the {len(tried)} prompts of the step, "
                f"got shape {lost.shape}."
            )
        lost = np.broadcast_to(lost, tried.shape)
        for name, came in (("rollouts", tried), ("failed", lost)):  # whose sum might overflow
            _refuse_more(name, came, self.in_flight, "are in flight")
        back = tried + lost
        _refuse_more("rollouts, failed", back, self.in_flight, "are in flight")
        if back.any():  # what is empty must not end the step a second time
            self._learn(won, tried, self.remaining - int(back.sum()))
            self._failed = self._failed + lost

    def _view(self, pending: Ints) -> View:
        return View(self._prompts, self._allocator.settings, self.placed, self.scored, self.successes, pending)

    def _refuse_to_mix(self, call: str, begun: bool) -> None:
        if begun:
            raise StateError(
                f"step: {call} came in a step that was begun the other way. Use ask and tell, or place and report."
            )

    def _counts(self, successes: ArrayLike, rollouts: ArrayLike) -> tuple[Ints, Ints]:
        won, tried = as_successes(successes, rollouts)
        if len(won) != len(self.prompt_ids):
            raise InvalidInputError(
                f"successes, rollouts: expected one number for each of the {len(self.prompt_ids)} prompts of the step, "
                f"got {len(won)}."
            )
        return won, tried

    def tell_another(self, allocator: BudgetAllocator, chosen: Ints) -> None:
        """Tell an allocator what came back so far of the prompts at these positions, as a visit as old as this step."""
        keys, features = self._prompts.keys[chosen], self._prompts.features.of(chosen)
        allocator._estimator.update(keys, self.successes[chosen], self.scored[chosen], features, self._began)

    def _learn(self, won: Ints, tried: Ints, remaining: int) -> None:
        """Add up what came back; if nothing remains, that was a visit of the step's prompts."""
        won, tried = self.successes + won, self.scored + tried
        if not remaining:  # first of all, since it may refuse the features
            self._allocator._estimator.update(self._prompts.keys, won, tried, self._prompts.features, self._began)
        self.successes, self.scored, self.remaining = won, tried, remaining


def _refuse_more(arguments: str, came: Ints, most: Ints, which: str) -> None:
    """Refuse results of rollouts that were never placed."""
    if (came > most).any():
        position = int(np.flatnonzero(came > most)[0])
        raise InvalidInputError(
            f"{arguments}: expected at most the {most[position]} that {which}, "
            f"got {came[position]} at position {position}."
        )
