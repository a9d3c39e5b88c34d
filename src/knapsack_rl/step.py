"""One step of training, whose budget is placed in waves or rollout by rollout."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl import metrics
from knapsack_rl.alarm import Alarm, Finding
from knapsack_rl.allocation import Plan
from knapsack_rl.belief import Belief
from knapsack_rl.errors import InvalidInputError, StateError
from knapsack_rl.estimators.base import Began, Estimator
from knapsack_rl.estimators.sitting import SittingOut
from knapsack_rl.strategies.base import AnyStrategy, Prompts, Settings, View, one_wave
from knapsack_rl.strategies.placement import InWaves, Placement, placement
from knapsack_rl.validation import as_costs, as_counts, as_integer, as_successes, as_truncated

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
OnStep = Callable[[dict[str, float]], object]

_SO_FAR = ("visited", "successes", "scored", "placed", "spent", "_failed", "_counted", "_truncated", "_closed")
"""What a step knows of each of its prompts."""
_BELIEVED = ("belief", "rates", "costs", "learned_costs", "sat_out", "correction")
"""What `Prompts` reads once and keeps."""


class Watch(NamedTuple):
    """What looks at a step's outcomes once it is over, and by which columns; see `Alarm.observe`."""

    alarm: Alarm
    categories: Mapping[str, Sequence[str | None]]


class Step:
    """One step of training, placed in waves: ask, generate, tell, until nothing remains.

    `BudgetAllocator.step` opens one.

    With an engine that generates asynchronously, `place` and `report` do without waves' waiting:

        while step.remaining:
            plan = step.place(free_slots)  # start these, which may be none
            step.report(*wait_for_some())  # whatever has come back since

    A step goes one of the two ways. All its rollouts come from the same policy. Beliefs stay as they were when it first
    planned until its last `tell` or `report`, which makes one visit of it. A step that is given up before has taught
    nothing and leaves no trace. Several steps may be open at a time and end in any order; what a step teaches is as old
    as the step. Every method may be called from any thread.

    Attributes:
        budget: rollouts of the whole step.
        remaining: rollouts of the budget that have not been placed and told of (or reported) yet.
        visited: shape (M,), whether each prompt was visited before the step began.
        successes: shape (M,), right ones so far.
        scored: shape (M,), those that came back so far.
        placed: shape (M,), rollouts so far.
        spent: shape (M,), what those that came back have cost, where it was told.
        findings: what the allocator's `alarm` found in this step, once it is over.
    """

    def __init__(
        self,
        prompts: Prompts[Any],
        budget: int,
        strategy: AnyStrategy,
        settings: Settings,
        waves: bool,
        lock: threading.RLock,
        on_step: OnStep | None,
        watch: Watch,
    ) -> None:
        self.budget = self.remaining = budget
        self._prompts, self._settings, self._lock, self._on_step = prompts, settings, lock, on_step
        self._whole = strategy if waves else replace(strategy, wave_size=one_wave, exponents=None)
        self._strategy = self._whole.now(prompts.estimator)
        self._began = prompts.estimator.begin()
        self.visited = prompts.estimator.known(prompts.keys)
        self.successes, self.scored, self.placed, self._failed = np.zeros((4, len(prompts.keys)), dtype=np.int64)
        self._closed = np.zeros(len(prompts.keys), dtype=bool)
        self.spent = np.zeros(len(prompts.keys))
        self._counted, self._truncated = np.zeros((2, len(prompts.keys)), dtype=np.int64)
        self.findings: list[Finding] = []
        self._watch = watch
        self._measured = False
        self._wave = self._fallback = 0
        self._asked: Plan | None = None
        self._placement: Placement | None = None

    def __len__(self) -> int:
        """Prompts of the step."""
        return len(self._prompts.keys)

    @property
    def belief(self) -> Belief:
        """What was believed about the prompts' success rates before the step."""
        with self._lock:
            return self._prompts.belief

    @property
    def expected_costs(self) -> Floats | None:
        """What one rollout of each prompt was expected to cost before the step; None before any cost was told."""
        with self._lock:
            return self._prompts.learned_costs

    @property
    def in_flight(self) -> Ints:
        """Rollouts of each prompt that were placed and not reported yet, shape (M,); for `place` and `report`."""
        with self._lock:
            return self.placed - self.scored - self._failed

    def forecast(self) -> Plan:
        """The whole budget planned in one shot: what each prompt can expect to get. It changes nothing."""
        with self._lock:
            return self._strategy.plan(View.before(self._prompts, self._settings), self.budget)

    def ask(self) -> Plan:
        """Rollouts to add now, per prompt. Asking again before `tell` gives the same plan.

        Raises:
            StateError: nothing remains, or the step was begun with `place`.
        """
        with self._lock:
            self._refuse_to_mix("ask", begun=self._placement is not None)
            if not self.remaining:
                raise StateError("step: ask came after the whole budget was placed. Loop `while step.remaining:`.")
            if self._asked is None:
                view = self._view(np.zeros_like(self.placed))
                self._asked = self._strategy.wave(self._wave, view, self.remaining)
            return self._asked

    def tell(
        self,
        successes: ArrayLike,
        rollouts: ArrayLike,
        costs: ArrayLike | None = None,
        truncated: ArrayLike | None = None,
    ) -> None:
        """What came back of this wave, per prompt; fewer rollouts than asked for are legal (some may have failed).

        `costs` and `truncated` as in `BudgetAllocator.tell`.

        Raises:
            StateError: nothing was asked.
            InvalidInputError: as `BudgetAllocator.tell`, or more came back than was asked for.
        """
        with self._lock:
            self._refuse_to_mix("tell", begun=self._placement is not None)
            if self._asked is None:
                raise StateError("step: tell came before ask. Ask for a plan, generate, then tell what came back.")
            won, tried = self._counts(successes, rollouts)
            most = self.placed + self._asked.rollouts - self.scored  # late ones of earlier waves may come with this one
            _refuse_more("rollouts", tried, most, "were asked for so far and have not come back")
            spent = self._with(costs, truncated, tried)
            placed = self.placed + self._asked.rollouts
            self._learn(won, tried, spent, placed, self.remaining - int(self._asked.rollouts.sum()))
            self.placed = placed
            self._fallback += self._asked.fallback
            self._asked, self._wave = None, self._wave + 1
            found = self._metrics()
        self._say(found)

    def place(self, most: int) -> Plan:
        """Rollouts to start now, per prompt: at most `most`, and none where it is better to wait for a report.

        They count as placed from then on; calling again gives more. If nothing is in flight, `most` is 1 or more and
        the budget is not spent, there are some. Strategies of one wave place everything at once, if `most` allows.

        Raises:
            InvalidInputError: `most` is no integer of 0 or more.
            StateError: the step was begun with `ask`.

        Cost: O(M + most).
        """
        with self._lock:
            most = min(as_integer("most", most, at_least=0), self.remaining)
            self._refuse_to_mix("place", begun=self._wave > 0 or self._asked is not None)
            pending = self.in_flight
            view = self._view(pending)
            if self._placement is None:
                self._placement = placement(self._strategy, view)
            plan = view.plan(self._placement.place(view, most, self.remaining - int(pending.sum())))
            self.placed = self.placed + plan.rollouts
            return plan

    def close(self) -> NDArray[np.bool_]:
        """Decide early which prompts get no more rollouts of this step, for whoever trains on groups as they finish.

        With strategies of one wave these are all. With `adaptive` they are also groups that have a gradient, their
        minimum and nothing in flight, as far as others can take what is left of the budget, which `place` keeps to.
        With other strategies they are known once the last wave is planned. Prompts at `max_rollouts` get no more.

        Returns:
            Shape (M,). A prompt that is closed stays so.

        Raises:
            StateError: the step was not begun with `place`.

        Cost: O(M log M).
        """
        with self._lock:
            begun, pending = self._begun("close"), self.in_flight
            self._closed = begun.close(self._view(pending), self.remaining - int(pending.sum()))
            return self._closed.copy()

    def report(
        self,
        successes: ArrayLike,
        rollouts: ArrayLike,
        failed: ArrayLike = 0,
        costs: ArrayLike | None = None,
        truncated: ArrayLike | None = None,
    ) -> None:
        """What has come back since the last report, per prompt: any part of what was placed, in any order.

        Args:
            successes: right ones.
            rollouts: those that came back with a reward.
            failed: those that never will; they are spent. 0 for none.
            costs: what all of these, failed ones included, have cost; as in `BudgetAllocator.tell`.
            truncated: how many of these, failed ones included, were cut off; as there.

        Raises:
            StateError: the step was not begun with `place`.
            InvalidInputError: as `BudgetAllocator.tell`, or more came back than was in flight.
        """
        with self._lock:
            self._begun("report")
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
            spent = self._with(costs, truncated, back)
            if not back.any():
                return  # what is empty must not end the step a second time
            self._learn(won, tried, spent, self.placed, self.remaining - int(back.sum()))
            self._failed = self._failed + lost
            found = self._metrics()
        self._say(found)

    def tell_gradients(self, gradients: ArrayLike, *, divisors: ArrayLike | None = None) -> None:
        """What the update showed of the step's gradients, once the step is over: `BudgetAllocator.influence` learns it.

        Args:
            gradients: shape (M, d), a row for each prompt: the mean over its scored rollouts of advantage times the
                gradient of the log-probability, before rollout weights, in any fixed d parameters;
                `gradients.GroupGradients` collects them. 0 for prompts without a gradient.
            divisors: shape (M,), what the distances of each prompt's rewards from their mean were divided by to give
                advantages (`advantages.divisors`); None: by the deviation of a sample, as GRPO does in TRL and verl.

        Raises:
            StateError: the step is not over, or its gradients were told already.
            InvalidInputError: there is not a row for each prompt, a number is not finite, or a divisor is below 0.

        Cost: O(M d).
        """
        with self._lock:
            if self.remaining:
                raise StateError("step: tell_gradients came before the step was over. Tell the outcomes of all waves.")
            if self._measured:
                raise StateError("step: tell_gradients came a second time. Add up those of a step and tell them once.")
            rates = np.where(self.visited, self._prompts.belief.mean, np.nan)
            columns = {
                name: ["" if value is None else value for value in c] for name, c in self._watch.categories.items()
            }
            self._prompts.influence.observe(gradients, self.successes, self.scored, rates, columns, divisors=divisors)
            self._measured = True

    def teach(self, estimator: Estimator, sitting: SittingOut, chosen: Ints) -> None:
        """Tell what came back so far of the prompts at these positions, as a visit as old as this step.

        The estimator and who sits out must be those of a copy of the allocator: `BudgetAllocator.copy` makes one.
        """
        keys, features = self._prompts.keys[chosen], self._prompts.features.of(chosen)
        estimator.update(keys, self.successes[chosen], self.scored[chosen], features, self._began)
        if not self._settings.min_rollouts:
            sitting.update(keys, self.placed[chosen])

    def state_dict(self) -> dict[str, Any]:
        """What a step that was begun with `place` needs to go on in another process, as JSON and arrays by name.

        Who its prompts are, and what else is known about them, is not in it.
        """
        with self._lock:
            if self._placement is None:
                raise StateError("step: only one that was begun with place can be saved. Place its first rollouts.")
            believed = {name: value for name, value in vars(self._prompts).items() if name in _BELIEVED}
            belief = believed.pop("belief")
            found = {
                "budget": self.budget,
                "remaining": self.remaining,
                "even": self._strategy is not self._whole,
                "began": list(self._began),
                "wins": belief.wins.copy(),
                "losses": belief.losses.copy(),
                "believed": [name for name, value in believed.items() if value is None],
                **{f"believed.{name}": value.copy() for name, value in believed.items() if value is not None},
                **{name.lstrip("_"): getattr(self, name).copy() for name in _SO_FAR},
            }
            if isinstance(self._placement, InWaves):
                waves = self._placement
                found |= {"wave": waves.wave, "planned": waves.planned.copy(), "fallback": waves.fallback}
            return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the step that was saved had come to: a step of the same prompts, of which nothing was placed.

        The allocator must be in the state that it had when the step was saved, with `Estimator.numbering`.

        Raises:
            StateError: the state is not what `state_dict` returned for such a step.
        """
        with self._lock:
            self._refuse_to_mix("load_state_dict", begun=self._placement is not None or self._asked is not None)
            try:
                self.budget, self.remaining = int(state["budget"]), int(state["remaining"])
                self._strategy = self._whole.even() if state["even"] else self._whole
                self._began = Began(*(int(number) for number in state["began"]))
                believed: dict[str, Any] = dict.fromkeys(state["believed"])
                believed |= {name: state[f"believed.{name}"] for name in _BELIEVED if f"believed.{name}" in state}
                believed["belief"] = Belief(state["wins"], state["losses"])
                vars(self._prompts).update(believed)  # which cached properties read
                for name in _SO_FAR:
                    saved = state[name.lstrip("_")]
                    if saved.shape != (len(self),):
                        raise ValueError(f"{name.lstrip('_')} of shape {saved.shape} for {len(self)} prompts")
                    setattr(self, name, saved.copy())
                self._placement = placement(self._strategy, self._view(self.in_flight))
                if isinstance(self._placement, InWaves):
                    self._placement.wave, self._placement.planned = int(state["wave"]), state["planned"].copy()
                    self._placement.fallback = int(state["fallback"])
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise StateError(f"state: expected that of a step, as state_dict returns it, got {error!r}.") from error

    def _view(self, pending: Ints) -> View[Any]:
        return View(self._prompts, self._settings, self.placed, self.scored, self.successes, pending, self._closed)

    def _refuse_to_mix(self, call: str, begun: bool) -> None:
        if begun:
            raise StateError(
                f"step: {call} came in a step that was begun the other way. Use ask and tell, or place and report."
            )

    def _begun(self, call: str) -> Placement:
        if self._placement is None:
            raise StateError(f"step: {call} came before place. Place rollouts, generate, then report what came back.")
        return self._placement

    def _counts(self, successes: ArrayLike, rollouts: ArrayLike) -> tuple[Ints, Ints]:
        won, tried = as_successes(successes, rollouts)
        if len(won) != len(self):
            raise InvalidInputError(
                f"successes, rollouts: expected one number for each of the {len(self)} prompts of the step, "
                f"got {len(won)}."
            )
        return won, tried

    def _with(self, costs: ArrayLike | None, truncated: ArrayLike | None, rollouts: Ints) -> tuple[Floats, Ints, Ints]:
        """What was spent with what these rollouts have cost, for how many, and how many of them were cut off."""
        cut = np.zeros_like(rollouts) if truncated is None else as_truncated(truncated, rollouts, costs)
        if costs is None:
            return self.spent, self._counted, self._truncated
        more = as_costs("costs", costs, len(self), told=True)
        return self.spent + more, self._counted + rollouts, self._truncated + cut

    def _learn(self, won: Ints, tried: Ints, spent: tuple[Floats, Ints, Ints], placed: Ints, remaining: int) -> None:
        """Add up what came back; if nothing remains, that was a visit of the step's prompts."""
        won, tried = self.successes + won, self.scored + tried
        if not remaining:  # first of all, since it may refuse the features
            estimator, features = self._prompts.estimator, self._prompts.features
            belief = self._prompts.belief  # as it was before the step
            if self._on_step is not None:
                _ = self._prompts.learned_costs
            estimator.update(self._prompts.keys, won, tried, features, self._began)
            costs, counted, truncated = spent
            self._prompts.spending.update(self._prompts.keys, costs, counted, features, truncated)
            if not self._settings.min_rollouts:
                self._prompts.sitting.update(self._prompts.keys, placed)
            alarm, categories = self._watch
            self.findings = alarm.observe(won, tried, categories, visited=self.visited, belief=belief)
        self.successes, self.scored, self.remaining = won, tried, remaining
        self.spent, self._counted, self._truncated = spent

    def _metrics(self) -> dict[str, float] | None:
        """Those of the step, if it is over and somebody wants them."""
        if self._on_step is None or self.remaining:
            return None
        return metrics.step_metrics(
            self.placed,
            self.successes,
            scored=self.scored,
            visited=self.visited,
            belief=self._prompts.belief,
            fallback=self._fallback if self._placement is None else self._placement.fallback,
            waves=self._wave if self._placement is None else None,
            costs=self.spent if self._counted.any() else None,
            expected_costs=self._prompts.learned_costs,
        )

    def _say(self, found: dict[str, float] | None) -> None:
        """Hand them on; without the lock, so that a slow tracker holds up nobody else."""
        if found is not None and self._on_step is not None:
            self._on_step(found)


def _refuse_more(arguments: str, came: Ints, most: Ints, which: str) -> None:
    """Refuse results of rollouts that were never placed."""
    if (came > most).any():
        position = int(np.flatnonzero(came > most)[0])
        raise InvalidInputError(
            f"{arguments}: expected at most the {most[position]} that {which}, "
            f"got {came[position]} at position {position}."
        )
