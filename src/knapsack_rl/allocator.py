"""Ask and tell: a strategy's estimator learns success rates, and its rule turns them into rollouts."""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl import identity, metrics
from knapsack_rl.alarm import Alarm
from knapsack_rl.allocation import Plan, check_budget
from knapsack_rl.belief import Belief
from knapsack_rl.errors import InfeasibleBudgetError, InvalidInputError, StateError
from knapsack_rl.estimators import state as state_files
from knapsack_rl.estimators.base import Estimator
from knapsack_rl.estimators.costs import RolloutCosts
from knapsack_rl.estimators.features import as_features, texts
from knapsack_rl.estimators.greedy import GreedyResponses
from knapsack_rl.estimators.sitting import MOST_VISITS, SittingOut
from knapsack_rl.influence import Influence
from knapsack_rl.step import OnStep, Step, Watch
from knapsack_rl.strategies import STRATEGIES, named
from knapsack_rl.strategies.base import AnyStrategy, Prompts, Settings, View
from knapsack_rl.validation import (
    as_confidence,
    as_costs,
    as_flag,
    as_floats,
    as_integer,
    as_positive,
    as_successes,
    as_truncated,
    one_of,
)
from knapsack_rl.values import ALGORITHMS, smallest_group

Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]

STATE_VERSION = 3
STATE_FILE = "knapsack_allocator.npz"
"""What the adapters call the allocator's state in a checkpoint, so that a run can move from one to the other."""
_PARTS = {"costs": "costs.", "greedy": "greedy.", "sitting_out": "sitting_out.", "estimator": ""}
"""Parts of a state that hold arrays, and what the names of these begin with in a file."""
_LARGEST_GROUP = 2**31 - 1
REVISIT = 4
"""Visits in a row that a prompt may sit out, unless told otherwise."""


def strategies() -> tuple[str, ...]:
    """The names that `BudgetAllocator(strategy=...)` accepts; the first six are those to consider."""
    return tuple(STRATEGIES)


class BudgetAllocator:
    """Decides how many rollouts each prompt of a step gets, and learns from what came back.

    `ask` is pure and deterministic; only `tell` changes beliefs. In between, any number of steps may be in flight.
    Every method may be called from any thread.

    Strategies to consider: `uniform` (every prompt the same, the baseline), `knapsack` (the paper's: success rate of
    the last visit, uniform on the first, fallback for the never-solved; it made no model better in docs/evidence),
    `adaptive` (a learned belief, a flatter value and three waves in a step), `cautious` (uniform until hard prompts
    are seen to gain most, then adaptive), `measured` (as `adaptive`, half way to what gradients are measured to be
    worth), `hora` (of another paper: the chance of a success in the rollouts after the first ones). The others are
    there to compare with; docs/beliefs.md and docs/rivals.md describe all.

    Args:
        strategy: one of `strategies()`, or a `Strategy`; `module:NAME` names one of your own. The default
            leaves the updates what they are without us; docs/how-to/decide.md says when to switch on which other.
        group_size: mean rollouts per prompt; a step of M prompts has the budget M * group_size, unless told otherwise.
        min_rollouts: fewest rollouts a prompt gets. With 0 it may sit out a step: it gets none, or 2 and more (with
            `reinforce` 1 and more).
        max_rollouts: most rollouts a prompt gets; 2^31 - 1 and more is no bound.
        seed: for whatever is drawn at random around a plan, such as `dispatch.shuffled_jobs`, and in those of the
            rivals that draw. A plan is a function of the seed, the ids and what was told.
        algorithm: `grpo`, `rloo`, `reinforce` or `remax`; decides when a gradient is non-zero (paper, appendix B). For
            `remax`, `tell` takes what the greedy responses earned, and steps are placed by `ask`, with a strategy that
            goes by point estimates (`uniform`, `knapsack`, `knapsack-window`).
        fallback: whether never-solved prompts get the surplus (paper, section 4.2).
        confidence: chance of a non-zero gradient that a prompt's cost aims at (paper, theorem 1).
        cost_limit: how many times what even groups would be expected to cost a step may be expected to cost, 1 or more;
            None for no limit. Costs are learned from `tell`; as long as none are told, all prompts cost the same.
        revisit: visits in a row that a prompt may sit out, 0 to 255; at the next one it gets a group. None for no such
            guarantee. A visit is a step (or a `tell`) that the prompt was in. With `min_rollouts` above 0 nobody sits
            out, and another number than the default is refused.
        on_step: called with `metrics.step_metrics` of every step when it ends (its last `tell` or `report`), and of
            every `tell` of the allocator; a tracker's `log` will do. The step has been learned from by then, so that
            an error that it raises loses nothing.

    Raises:
        InvalidInputError: an argument is out of range.
        InfeasibleBudgetError: `group_size` is outside the bounds, so that no step could be allocated.
    """

    def __init__(
        self,
        strategy: str | AnyStrategy = "uniform",
        group_size: int = 8,
        min_rollouts: int = 2,
        max_rollouts: int = 128,
        seed: int = 0,
        *,
        algorithm: str = "grpo",
        fallback: bool = True,
        confidence: float = 0.9,
        cost_limit: float | None = None,
        revisit: int | None = REVISIT,
        on_step: OnStep | None = None,
    ) -> None:
        self._strategy = named(strategy)
        self.seed = as_integer("seed", seed, at_least=0)
        if on_step is not None and not callable(on_step):
            raise InvalidInputError(f"on_step: expected a function of a dict of metrics, or None, got {on_step!r}.")
        self.on_step = on_step
        if callable(algorithm):
            raise InvalidInputError(
                "algorithm: an allocator knows the value of named algorithms under a belief, not that of a function. "
                "Write a knapsack_rl.Strategy whose rule calls knapsack_rl.allocate(..., algorithm=...) with it."
            )
        if one_of("algorithm", algorithm, ALGORITHMS) == "remax" and self.in_waves:
            raise InvalidInputError(
                f"algorithm: the strategy {self.strategy!r} places rollouts by the others of their group, and 'remax' "
                "compares them with the greedy response. Use the strategy 'knapsack'."
            )
        if as_integer("group_size", group_size, at_least=1) > _LARGEST_GROUP:
            raise InvalidInputError(f"group_size: expected at most {_LARGEST_GROUP} rollouts, got {group_size}.")
        if cost_limit is not None and as_positive("cost_limit", cost_limit) < 1.0:
            raise InvalidInputError(
                f"cost_limit: expected 1 or more, since even groups have to fit, got {cost_limit!r}. Lower group_size "
                "to spend less."
            )
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
            as_flag("fallback", fallback),
            as_confidence(confidence),
            self.seed,
            None if cost_limit is None else float(cost_limit),
            self._checked_revisit(revisit, min_rollouts, group_size, algorithm),
        )
        self.estimator: Estimator = self._strategy.new_estimator()
        self.sitting = SittingOut()
        self._spending = RolloutCosts()
        self._greedy = GreedyResponses()
        self.alarm = Alarm()
        self.influence = Influence()
        self._lock = threading.RLock()
        if algorithm == "remax":
            self._refuse_a_rule_without_remax()

    def _refuse_a_rule_without_remax(self) -> None:
        """Rules that go by expected gains refuse it, whatever the prompts: now, and not in the first step of a run."""
        try:
            self.ask([])
        except InvalidInputError as error:
            raise InvalidInputError(
                f"{str(error).removesuffix('.')} with the strategy {self.strategy!r}. Use the strategy 'knapsack'."
            ) from error

    @staticmethod
    def _checked_revisit(revisit: Any, min_rollouts: int, group_size: int, algorithm: str) -> int | None:
        if revisit is not None:
            as_integer("revisit", revisit, at_least=0)
        if min_rollouts > 0:
            if revisit in (REVISIT, None):
                return None
            raise InvalidInputError(
                f"revisit: nobody sits out with min_rollouts={min_rollouts}, got revisit={revisit!r}. Leave it out, or "
                "pass min_rollouts=0."
            )
        if revisit is None:
            return None
        if revisit > MOST_VISITS:
            raise InvalidInputError(
                f"revisit: expected at most {MOST_VISITS} visits, or None for no guarantee, got {revisit}."
            )
        if group_size < smallest_group(algorithm):
            raise InfeasibleBudgetError(
                f"revisit: a step of {group_size} rollouts a prompt cannot give all its prompts a group of "
                f"{smallest_group(algorithm)}, should all have sat out {revisit} visits. Raise group_size, or pass "
                "revisit=None."
            )
        return int(revisit)

    @property
    def strategy(self) -> str:
        """Name of the strategy."""
        return self._strategy.name

    @property
    def in_waves(self) -> bool:
        """Whether the strategy may place a step in several waves."""
        return self._strategy.in_waves

    @property
    def measures(self) -> bool:
        """Whether the strategy goes by what gradients are measured to be worth (`Step.tell_gradients`)."""
        return self._strategy.measured

    @property
    def rollout_weights(self) -> str:
        """What suits the strategy's uneven groups: `sqrt` for advantages times sqrt(group_size / N_i), or `none`.

        A trainer multiplies; the adapters do so unless told otherwise.
        """
        return self._strategy.rollout_weights

    def ask(self, prompt_ids: Iterable[str | int], features: Any = None, budget: int | None = None) -> Plan:
        """Plan a whole step in one shot.

        Args:
            prompt_ids: strings or integers; a prompt that appears twice gets two plans.
            features: what is known about the prompts besides their outcomes, for strategies that learn from it: a
                mapping of column names to columns with one entry per prompt, which hold text (a category) or numbers (a
                length; of shape (M, width) for a vector such as a hidden state), or one such column. `tell` needs the
                same.
            budget: rollouts of the step; None for `len(prompt_ids) * group_size`.

        Returns:
            The plan, with one number of rollouts per id, in the order of the ids. Asking again gives the same plan.

        Raises:
            InvalidInputError: an id is neither a string nor an integer, a column of `features` does not fit, or
                `budget` is no integer; or the rule of a strategy of your own does not place what it is asked to.
            InfeasibleBudgetError: the budget does not fit between `min_rollouts` and `max_rollouts` for every prompt,
                or `cost_limit` does not pay for the prompts that may not sit out again.

        Cost: O(M + budget), whatever the number of known prompts; for `adaptive` with d features O(M d) more.
        """
        with self._lock:
            prompts = self._prompts(prompt_ids, features)
            strategy = self._strategy.now(self.estimator)
            return strategy.plan(View.before(prompts, self.settings), self._budget(prompts, budget))

    def tell(
        self,
        prompt_ids: Iterable[str | int],
        successes: ArrayLike,
        rollouts: ArrayLike,
        features: Any = None,
        costs: ArrayLike | None = None,
        greedy: ArrayLike | None = None,
        truncated: ArrayLike | None = None,
    ) -> None:
        """Learn what came back: `successes[i]` of `rollouts[i]` scored rollouts of prompt i were right.

        A call may bring at most 2^31 - 1 rollouts of a prompt.

        `costs[i]`, 0 or 1e-30 to 1e30, is what these rollouts took together, in tokens, seconds or any other unit
        that stays the same; `expected_costs` and `cost_limit` go by it. `truncated[i]` is how many of them were cut off
        at the longest allowed length; None for none. They count with what they have cost: under the same limit that is
        what the next ones will cost. `truncation_rates` shows them.

        `greedy[i]`, for `algorithm="remax"` only: whether the greedy response to prompt i was right, 1 or 0, NaN where
        that is not known. What was told last decides the prompt's value. It is not among the rollouts, and counts as
        one more of them. (It is the policy's likeliest answer and no draw from it, so that it pulls the success rate of
        a visit towards 0 or 1, by at most 1 / (rollouts + 1). Without it a prompt that the greedy response alone solves
        would count as hopeless, and there every rollout has a gradient.)

        Batches may be late, partial, repeated or overlapping; each call is a visit of its prompts. A prompt that
        appears twice in a call has its counts added up; one with no scored rollouts is not counted as visited. With
        `min_rollouts=0` it is counted as having sat out.

        Raises:
            InvalidInputError: lengths differ, a count is negative, no whole number or too large, there are more
                successes or truncated rollouts than rollouts, or truncated ones without costs, or a column of
                `features` (see `ask`) does not fit. Nothing has been learned then.

        Cost: O(M), whatever the number of known prompts; for `adaptive` with d features O(M d^2 + d^3).
        """
        keys = identity.keys(prompt_ids)
        won, tried = as_successes(successes, rollouts)
        outcomes = None if greedy is None else self._checked_greedy(greedy, len(keys))
        if len(keys) != len(won):
            raise InvalidInputError(
                f"prompt_ids, successes, rollouts: expected one length, got {len(keys)} ids and {len(won)} counts."
            )
        given = as_features(features, len(keys))
        spent = None if costs is None else as_costs("costs", costs, len(keys), told=True)
        cut = None if truncated is None else as_truncated(truncated, tried, costs)
        with self._lock:
            listening = self.on_step is not None and bool(tried.any())
            prompts = Prompts(keys, given, self.estimator, self._spending, self._greedy, self.sitting, self.influence)
            before = (self.estimator.known(keys), prompts.belief, prompts.learned_costs) if listening else None
            if outcomes is None:
                self.estimator.update(keys, won, tried, given)
            else:
                self.estimator.update(keys, won + (outcomes == 1.0), tried + ~np.isnan(outcomes), given)
                self._greedy.update(keys, outcomes)
            if spent is not None:
                self._spending.update(keys, spent, tried, given, cut)
            if not self.settings.min_rollouts:
                self.sitting.update(keys, tried)
        if self.on_step is not None and before is not None:
            visited, belief, expected = before
            self.on_step(
                metrics.step_metrics(tried, won, visited=visited, belief=belief, costs=spent, expected_costs=expected)
            )

    def step(
        self,
        prompt_ids: Iterable[str | int],
        features: Any = None,
        budget: int | None = None,
        *,
        waves: bool = True,
        watch: Mapping[str, Sequence[str | None]] | None = None,
    ) -> Step:
        """Open a step that may place its budget in several waves; `features` and `budget` as in `ask`.

        Without `waves` the first one places everything, as `ask` does, whatever the strategy.

        When the step is over, `alarm` looks at its outcomes, by each feature that is text and by each column of
        `watch`: name -> the category of each prompt. `Step.findings` has what it found.

        Raises:
            InvalidInputError, InfeasibleBudgetError: as `ask`; or a column of `watch` has another length.
        """
        if self.settings.algorithm == "remax":
            raise InvalidInputError(
                "algorithm: 'remax' has to be told of greedy responses, which a step is not. Use the allocator's ask "
                "and tell."
            )
        prompts = self._prompts(prompt_ids, features)
        with self._lock:
            total = self._budget(prompts, budget)
            watched = Watch(
                self.alarm, {**texts(features, prompts.features), **self._checked(watch, len(prompts.keys))}
            )
            return Step(prompts, total, self._strategy, self.settings, waves, self._lock, self.on_step, watched)

    @staticmethod
    def _checked(watch: Mapping[str, Any] | None, prompts: int) -> dict[str, list[str | None]]:
        if watch is not None and not isinstance(watch, Mapping):
            raise InvalidInputError(
                f"watch: expected a mapping of column names to the category of each prompt, got {watch!r:.80}."
            )
        columns = {}
        for name, column in (watch or {}).items():
            ordered = isinstance(column, Iterable) and not isinstance(column, (str, bytes, Mapping, Set))
            columns[name] = list(column) if ordered else []
            if not (
                ordered
                and len(columns[name]) == prompts
                and all(value is None or isinstance(value, str) for value in columns[name])
            ):
                raise InvalidInputError(
                    f"watch[{name!r}]: expected a text or None for each of the {prompts} prompts, got {column!r:.80}."
                )
        return columns

    def explain_even(self, prompts: int, more_prompts: str = "Put more prompts into a step.") -> str | None:
        """Why no plan for a step of so many prompts can be uneven, in a sentence with the change to make.

        Args:
            prompts: prompts of a step.
            more_prompts: how to have more of them, in the words of whoever asks.

        Returns:
            None where plans can differ, and for the strategy `uniform`, whose plans are not meant to.
        """
        size, low, high = self.settings.group_size, self.settings.min_rollouts, self.settings.max_rollouts
        if self._strategy.rule is STRATEGIES["uniform"].rule:
            return None
        if as_integer("prompts", prompts, at_least=0) == 1:
            return f"A step has one prompt, which gets all its rollouts whatever the strategy. {more_prompts}"
        lower = "Lower min_rollouts." if low > 1 else "Raise the group size."
        for name, bound, change in (("min_rollouts", low, lower), ("max_rollouts", high, "Raise max_rollouts.")):
            if size == bound:
                return (
                    f"{name} and the mean group size are both {size}, so that every prompt gets the same number of "
                    f"rollouts whatever the strategy. {change}"
                )
        return None

    def _prompts(self, prompt_ids: Iterable[str | int], features: Any) -> Prompts[Any]:
        keys = identity.keys(prompt_ids)
        given = as_features(features, len(keys))
        return Prompts(keys, given, self.estimator, self._spending, self._greedy, self.sitting, self.influence)

    def _checked_greedy(self, greedy: ArrayLike, prompts: int) -> Floats:
        if self.settings.algorithm != "remax":
            raise InvalidInputError(
                f"greedy: only algorithm='remax' compares with greedy responses, got algorithm="
                f"{self.settings.algorithm!r}. Leave it out."
            )
        outcomes = as_floats("greedy", greedy)
        if outcomes.shape != (prompts,) or not (np.isnan(outcomes) | np.isin(outcomes, (0.0, 1.0))).all():
            raise InvalidInputError(
                f"greedy: expected 1 (right), 0 (wrong) or NaN (not known) for each of {prompts} prompts, got "
                f"{greedy!r:.80}."
            )
        return outcomes

    def _budget(self, prompts: Prompts[Any], budget: int | None) -> int:
        settings, count = self.settings, len(prompts.keys)
        if settings.min_rollouts:
            if budget is None:
                return count * settings.group_size
            return check_budget(count, budget, settings.min_rollouts, settings.max_rollouts)[0]
        total = count * settings.group_size if budget is None else budget
        view = View.before(prompts, settings)
        total = check_budget(count, total, view.least, settings.max_rollouts, settings.first_group)[0]
        if budget is not None and not view.pays_for(total):  # even groups of `group_size` always fit
            raise InfeasibleBudgetError(
                f"budget, cost_limit, revisit: {int(view.missing.sum())} of {total} rollouts go to prompts that have "
                f"sat out revisit={settings.revisit} visits. With them the step costs at least "
                f"{float(view.costs @ view.cheapest(total)):.6g}, and cost_limit={settings.cost_limit:g} allows "
                f"{view.cost_budget(total):.6g}. Raise the budget or cost_limit, or pass a larger revisit, or None."
            )
        return total

    def visited(self, prompt_ids: Iterable[str | int]) -> NDArray[np.bool_]:
        """Whether anything was told about each of these prompts, in the order of the ids."""
        with self._lock:
            return self.estimator.known(identity.keys(prompt_ids))

    def success_rates(self, prompt_ids: Iterable[str | int], features: Any = None) -> Floats:
        """Believed success rates of these prompts, float64 in the order of the ids, NaN where never visited."""
        with self._lock:
            return self._prompts(prompt_ids, features).rates

    def belief(self, prompt_ids: Iterable[str | int], features: Any = None) -> Belief:
        """What is believed about these prompts' success rates, as Beta distributions; never visited ones included."""
        with self._lock:
            return self._prompts(prompt_ids, features).belief

    def expected_costs(self, prompt_ids: Iterable[str | int], features: Any = None) -> Floats:
        """What one rollout of each of these prompts is expected to cost, float64; 1 before any cost was told."""
        with self._lock:
            return self._prompts(prompt_ids, features).costs

    def truncation_rates(self, prompt_ids: Iterable[str | int], features: Any = None) -> Floats:
        """Share of the rollouts of each of these prompts that is expected to be cut off, float64 in [0, 1].

        0 before any truncated rollout was told. Without a limit on their length, rollouts would cost about
        expected_costs / (1 - truncation_rates), if how much of one is left does not depend on how long it is already
        (exponential lengths). That is infinite where all rollouts of all prompts were cut off.
        """
        with self._lock:
            prompts = self._prompts(prompt_ids, features)
            return self._spending.truncation_rates(prompts.keys, prompts.features)

    def sitting_out(self, prompt_ids: Iterable[str | int]) -> NDArray[np.int64]:
        """At how many visits in a row, up to 255, each of these prompts has got no rollouts; 0 for those that did.

        Counted with `min_rollouts=0` only.
        """
        with self._lock:
            return self.sitting.visits(identity.keys(prompt_ids))

    def metrics(self) -> dict[str, float]:
        """What is believed about all known prompts. O(known prompts).

        Returns:
            `known_prompts`; `sitting_prompts`, those that got no rollouts at their last visit, with `min_rollouts=0`;
            and over the known ones `mean_success_rate`, `never_solved` and `always_solved` (shares, by the estimate);
            the latter three are left out while nothing is known.
        """
        with self._lock:
            rates, sitting = self.estimator.all_rates(), len(self.sitting)
        found = {"known_prompts": float(rates.size)}
        if not self.settings.min_rollouts:
            found["sitting_prompts"] = float(sitting)
        if not rates.size:
            return found
        return found | {
            "mean_success_rate": float(rates.mean()),
            "never_solved": float((rates == 0.0).mean()),
            "always_solved": float((rates == 1.0).mean()),
        }

    def copy(self) -> BudgetAllocator:
        """An allocator of its own in the same state, which tells no tracker of its steps. O(known prompts)."""
        twin = copy.copy(self)
        twin.on_step = None
        with self._lock:
            twin.estimator = copy.deepcopy(self.estimator)
            twin.sitting = copy.deepcopy(self.sitting)
            twin._spending = copy.deepcopy(self._spending)
            twin._greedy = copy.deepcopy(self._greedy)
            twin.alarm = copy.deepcopy(self.alarm)
            twin.influence = copy.deepcopy(self.influence)
        twin._lock = threading.RLock()
        return twin

    def state_dict(self) -> dict[str, Any]:
        """Everything that was learned, as numbers, texts and numpy arrays.

        These are 21 to 36 bytes a known prompt, and 16 more where costs were told.

        Who sits out takes 9 bytes more.

        It names the strategy and the settings of its estimator. Group size, bounds, seed and the other arguments are
        not in it: they may change from one run to the next, and what was learned stays true. A prompt whose greedy
        response was told takes 9 bytes more.
        """
        with self._lock:
            state = {**self._identity(), "estimator": self.estimator.state_dict()}
            if len(self._spending):
                state["costs"] = self._spending.state_dict()
            if len(self._greedy):
                state["greedy"] = self._greedy.state_dict()
            state["alarm"] = self.alarm.state_dict()
            if self.influence.steps:
                state["influence"] = self.influence.state_dict()
            if len(self.sitting):
                state["sitting_out"] = self.sitting.state_dict()
            return state

    def load_state_dict(self, state: Any) -> None:
        """Replace what was learned. The next plan is then bit for bit that of the allocator that was saved.

        Raises:
            StateError: the state has another version, belongs to another strategy or to other settings of its
                estimator, or is damaged; it says which. Nothing has changed.
        """
        if not isinstance(state, Mapping) or "version" not in state:
            raise StateError(f"state: expected what state_dict returned, got {state!r:.80}.")
        if not isinstance(state["version"], int) or state["version"] != STATE_VERSION:
            raise StateError(f"state: expected version {STATE_VERSION}, got {state['version']!r}.")
        for name in ("strategy", "settings", "estimator"):
            if name not in state:
                raise StateError(f"state: expected what state_dict returned, and there is no {name!r}.")
        expected = self._identity()
        for name, kind in (("strategy", str), ("settings", Mapping)):
            if not isinstance(state[name], kind):
                raise StateError(f"state: expected a {kind.__name__} for {name}, got {state[name]!r:.80}.")
        if state["strategy"] != expected["strategy"]:
            raise StateError(
                f"state: expected the state of strategy {expected['strategy']!r}, got the state of "
                f"{state['strategy']!r}. Make the allocator with that strategy, or begin without a state."
            )
        if state["settings"] != expected["settings"]:
            raise StateError(
                f"state: expected beliefs of an estimator with {expected['settings']}, got {state['settings']}. "
                "Make the strategy with the same settings, or begin without a state."
            )
        if not isinstance(state["estimator"], Mapping):
            raise StateError(f"state: expected the state of an estimator, got {state['estimator']!r:.80}.")
        spending, greedy, sitting = RolloutCosts(), GreedyResponses(), SittingOut()
        for name, part in (("costs", spending), ("greedy", greedy), ("sitting_out", sitting)):
            if not isinstance(state.get(name, {}), Mapping):
                raise StateError(f"state: expected the state of {name}, got {state[name]!r:.80}.")
            if name in state:
                part.load_state_dict(state[name])
        alarm = Alarm()
        alarm.load_state_dict(state.get("alarm", {}))
        influence = Influence()
        if "influence" in state:
            influence.load_state_dict(state["influence"])
        with self._lock:
            self.estimator.load_state_dict(state["estimator"])
            self.alarm.load_state_dict(alarm.state_dict())
            self.influence.load_state_dict(influence.state_dict())
            self._spending.load_state_dict(spending.state_dict())  # in place: open steps go on with it
            self._greedy = greedy
            self.sitting.load_state_dict(sitting.state_dict())

    def _identity(self) -> dict[str, Any]:
        settings = {"estimator": type(self.estimator).__name__, **self.estimator.settings}
        as_saved = json.loads(json.dumps(settings))  # where a tuple is a list
        return {"version": STATE_VERSION, "strategy": self.strategy, "settings": as_saved}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to an .npz file without pickle; an existing file is replaced only once all is on disk."""
        state_files.write(Path(path), *packed(self.state_dict()))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            StateError: the file is damaged or does not fit; see `load_state_dict`.

        Memory: that of the state. A file that claims to hold more than its bytes is refused before any is read.
        """
        self.load_state_dict(unpacked(*state_files.read(path, "BudgetAllocator.save")))


def packed(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What `state_dict` returned, as JSON and arrays by name."""
    arrays: dict[str, NDArray[Any]] = {}
    header = dict(state)
    for part, prefix in _PARTS.items():
        if part in state:
            found = {name: item for name, item in state[part].items() if isinstance(item, np.ndarray)}
            header[part] = {name: item for name, item in state[part].items() if name not in found}
            arrays |= {prefix + name: array for name, array in found.items()}
    return header, arrays


def unpacked(header: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The inverse of `packed`.

    Raises:
        StateError: there are arrays of a part that is not there.
    """
    for name, array in arrays.items():
        part = next(part for part, prefix in _PARTS.items() if name.startswith(prefix))
        if not isinstance(header.get(part), dict):
            raise StateError(f"state: expected the state of {part} beside its {name!r}, got {header.get(part)!r:.80}.")
        header[part][name.removeprefix(_PARTS[part])] = array
    return header
