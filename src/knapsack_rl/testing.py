"""What every strategy keeps to, as a function to run on one of your own.

    from knapsack_rl.testing import check_strategy
    check_strategy(my_strategy)

Each check is a sentence about behaviour that trainers rely on. It is tried on random cases: an allocator with a
history, a step of it, bounds and budgets. Everything is seeded, so that a failure comes again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.allocation import Plan
from knapsack_rl.allocator import BudgetAllocator
from knapsack_rl.errors import InvalidInputError, KnapsackError, StateError
from knapsack_rl.step import Step
from knapsack_rl.strategies import named
from knapsack_rl.strategies.base import AnyStrategy
from knapsack_rl.validation import as_integer

Ints = NDArray[np.int64]
Ids = list[str | int]
Features = Callable[[Ids], Any]

_PEOPLE: Ids = [*(f"prompt {i}" for i in range(10)), *range(4), ""]
_BAD_COUNTS: tuple[tuple[list[Any], list[Any]], ...] = (
    ([3, 1], [2, 1]),
    ([-1, 1], [2, 1]),
    ([0.5, 1], [2, 1]),
    ([np.nan, 1], [2, 1]),
    ([1], [2]),
)
_REMAINDERS = 2  # rollouts by which the order of equals may move one prompt: those that even shares leave over
_GROUP = 3  # the same where prompts may sit out: a smallest group, of whom one has the odd rollout


class ConformanceError(KnapsackError, AssertionError):
    """A strategy does something that a trainer cannot live with."""


def check_strategy(
    strategy: str | AnyStrategy, *, cases: int = 60, seed: int = 0, features: Features | None = None
) -> None:
    """Check that a strategy keeps to what every trainer relies on.

    In this order: budgets are spent exactly and within the bounds. Asking changes nothing. The same history gives the
    same plan, and the same outcomes the same waves. A copy goes its own way. A belief is about one prompt. Two hundred
    prompts and no maximum will do. A saved state gives the same plans, whatever happened since it was saved. A damaged
    state is refused. New prompts share evenly. The order of prompts decides ties only. Waves spend the budget, begin
    with the minimum and end. A step teaches its totals once, with its last `tell`. `place` and `report` spend the
    budget whatever comes back when. A tell without rollouts teaches nothing. Nobody sits out longer than `revisit`
    allows. Prompts that are all right or all wrong get a plan. Bad input is refused and changes nothing.

    In a fifth of the cases prompts may sit out (`min_rollouts=0`). A strategy that begins with even groups (`ready`) is
    checked from its beginning, and as if it were ready.

    Args:
        strategy: a name, or a `Strategy`.
        cases: random cases for each check, 1 or more.
        seed: of the cases.
        features: makes the features of some prompts, for a strategy that needs particular columns; by default a text, a
            number and a vector. It must give the same of a prompt every time.

    Raises:
        ConformanceError: the first check that fails: what was expected, what came, and the case.
        InvalidInputError: an argument is out of range, or there is no such strategy.

    Cost: a second or two for sixty cases.
    """
    chosen = named(strategy)
    as_integer("cases", cases, at_least=1)
    as_integer("seed", seed, at_least=0)
    if chosen.ready is not None:
        check_strategy(replace(chosen, ready=None), cases=cases, seed=seed, features=features)
    first: dict[int, Plan] = {}

    def _nothing_that_was_asked_in_between_changes_a_plan(case: _Case) -> None:
        _same(first.setdefault(case.number, case.ask(case.allocator)), case.ask(case.allocator), "it did.")

    for check in (
        _nothing_that_was_asked_in_between_changes_a_plan,
        *_CHECKS,
        _nothing_that_was_asked_in_between_changes_a_plan,
    ):
        for number in range(cases):
            case = _Case(chosen, seed, number, features or _features)
            try:
                check(case)
            except ConformanceError as failure:
                raise ConformanceError(f"{chosen.name}: {_sentence(check)}: {failure} ({case})") from None
            except Exception as error:  # whatever a rule or an estimator of somebody's own may raise
                raise ConformanceError(f"{chosen.name}: {_sentence(check)}: {error!r} was raised. ({case})") from error


class _Case:
    """An allocator that has been told a history, and a step that it is asked for."""

    def __init__(self, strategy: AnyStrategy, seed: int, number: int, features: Features) -> None:
        self.number = number
        self.random = draw = np.random.default_rng([seed, number])
        self.strategy, self.features = strategy, features
        self.low = int(draw.integers(0, 5))
        least = self.low or 2  # of a group
        self.high = least + int(draw.choice([0, 1, 5, 20, 120]))
        self.group = int(draw.integers(least, min(self.high, least + 9) + 1))
        self.revisit = None if self.low else [None, 0, 1, 4][int(draw.integers(0, 4))]
        self.algorithm = str(draw.choice(["grpo", "rloo", "reinforce"]))
        self.seed = int(draw.integers(0, 7))
        self.rates = dict(zip(_PEOPLE, draw.choice([0.0, 0.05, 0.3, 0.5, 0.9, 1.0], len(_PEOPLE)), strict=True))
        self.history = [self.visit(int(draw.integers(1, 13))) for _ in range(int(draw.integers(0, 5)))]
        self.ids = self.batch(int(draw.integers(0, 13)))
        self.budget = int(draw.integers(len(self.ids) * least, len(self.ids) * min(self.high, 40) + 1))
        self.budget -= (self.budget % 2) * (not self.low and self.high == 2)  # which nobody could place
        self.allocator = self.told()

    def __str__(self) -> str:
        return (
            f"case {self.number}: {len(self.ids)} prompts, budget {self.budget}, {self.low} to {self.high} rollouts "
            f"each, {len(self.history)} steps before, algorithm={self.algorithm}"
        )

    def batch(self, size: int) -> Ids:
        """Prompts, some of which may be there twice."""
        return [_PEOPLE[i] for i in self.random.integers(0, len(_PEOPLE), size)]

    def visit(self, size: int) -> tuple[Ids, Ints, Ints]:
        ids = self.batch(size)
        tried = self.random.integers(0, 12, size)
        return ids, self.outcomes(ids, tried), tried

    def outcomes(self, ids: Ids, rollouts: Ints) -> Ints:
        return self.random.binomial(rollouts, [self.rates[name] for name in ids])

    def new(self, cost_limit: float | None = None) -> BudgetAllocator:
        return BudgetAllocator(
            self.strategy,
            self.group,
            self.low,
            self.high,
            seed=self.seed,
            algorithm=self.algorithm,
            cost_limit=cost_limit,
            revisit=self.revisit,
        )

    def told(self) -> BudgetAllocator:
        """An allocator with this history."""
        allocator = self.new()
        for visit in self.history:
            self.tell(allocator, *visit)
        return allocator

    def tell(self, allocator: BudgetAllocator, ids: Ids, won: Ints, tried: Ints) -> None:
        allocator.tell(ids, won, tried, self.features(ids))

    def ask(self, allocator: BudgetAllocator, ids: Ids | None = None, budget: int | None = None) -> Plan:
        ids, budget = (self.ids, self.budget) if ids is None else (ids, budget)
        return allocator.ask(ids, self.features(ids), budget)

    def step(self, allocator: BudgetAllocator) -> Step:
        return allocator.step(self.ids, self.features(self.ids), self.budget)

    def resumed(self, state: Any) -> BudgetAllocator:
        allocator = self.new()
        allocator.load_state_dict(state)
        return allocator


def _budgets_are_spent_exactly_and_within_the_bounds(case: _Case) -> None:
    plan = case.ask(case.allocator)
    _within(case, plan.rollouts, case.budget)
    _expect(np.isfinite(plan.value) and plan.value >= 0.0, f"a plan's value is {plan.value}, which is no value.")
    even = case.ask(case.allocator, case.ids, None).rollouts
    _within(case, even, len(case.ids) * case.group)


def _asking_changes_nothing(case: _Case) -> None:
    before, plan = _snapshot(case.allocator), case.ask(case.allocator)
    others = case.batch(5)
    case.ask(case.allocator, others)
    case.allocator.belief(others, case.features(others))
    case.allocator.success_rates(others, case.features(others))
    if case.ids:
        given_up = case.step(case.allocator)
        _same(given_up.ask(), given_up.ask(), "a step that was asked twice planned twice.")
    _same(case.ask(case.allocator), plan, "asking again gave another plan.")
    _expect(_snapshot(case.allocator) == before, "asking, or a step that was given up, changed what is believed.")


def _the_same_history_gives_the_same_plan(case: _Case) -> None:
    _same(case.ask(case.told()), case.ask(case.allocator), "another allocator with the same history planned otherwise.")


def _the_same_outcomes_give_the_same_waves(case: _Case) -> None:
    outcomes = case.random.integers(0, 2**32, 2).tolist()
    for play in (_in_waves, _in_slots):
        first, again = (play(case, case.told(), outcomes) for _ in range(2))
        _expect(first == again, "with the same outcomes a step was placed otherwise the second time.")


def _a_copy_plans_alike_and_goes_its_own_way(case: _Case) -> None:
    before, plan = _snapshot(case.allocator), case.ask(case.allocator)
    twin = case.allocator.copy()
    _same(case.ask(twin), plan, "a copy of the allocator planned otherwise.")
    case.tell(twin, *case.visit(6))
    _expect(_snapshot(case.allocator) == before, "what a copy was told changed what the original believes.")


def _a_belief_is_about_a_prompt_whoever_stands_beside_it(case: _Case) -> None:
    together = case.allocator.belief(_PEOPLE, case.features(_PEOPLE))
    for position, name in enumerate(_PEOPLE[:4]):
        alone = case.allocator.belief([name], case.features([name]))
        close = np.isclose([alone.wins[0], alone.losses[0]], [together.wins[position], together.losses[position]])
        _expect(close.all(), f"what is believed of {name!r} depends on the other prompts of the call.")


def _many_prompts_and_no_bound_are_planned_too(case: _Case) -> None:
    if case.number > 1 or case.features is not _features:
        return
    allocator = BudgetAllocator(case.strategy, 4, 2, 2**31 - 1, seed=case.seed, algorithm=case.algorithm)
    ids: Ids = [f"one of many {i}" for i in range(200)]
    rates = case.random.random(len(ids))
    for _ in range(60):
        tried = case.random.integers(1, 9, len(ids))
        allocator.tell(ids, case.random.binomial(tried, rates), tried)
    plan = allocator.ask(ids).rollouts
    _expect(plan.sum() == 800 and plan.min() >= 2, f"of 800 rollouts for 200 prompts {plan.sum()} were placed.")
    resumed = BudgetAllocator(case.strategy, 4, 2, 2**31 - 1, seed=case.seed, algorithm=case.algorithm)
    resumed.load_state_dict(allocator.state_dict())
    _expect(resumed.ask(ids).rollouts.tolist() == plan.tolist(), "a long history is not all in the state.")


def _a_saved_state_gives_the_same_plans_whatever_happened_since(case: _Case) -> None:
    state, plan = case.allocator.state_dict(), case.ask(case.allocator)
    with tempfile.TemporaryDirectory() as folder:
        case.allocator.save(Path(folder) / "state.npz")
        from_file = case.new()
        from_file.load(Path(folder) / "state.npz")
    futures = [case.visit(6) for _ in range(2)]
    for allocator in (case.allocator, from_file):
        for visit in futures:
            case.tell(allocator, *visit)
    after = case.ask(case.allocator)
    _same(case.ask(from_file), after, "a resumed allocator went on otherwise.")
    _same(case.ask(case.resumed(state)), plan, "an older state gave another plan than when it was saved.")
    _same(case.ask(case.allocator), after, "another allocator that loaded a state changed this one's plan.")


def _a_damaged_state_is_refused_and_changes_nothing(case: _Case) -> None:
    state, before = case.told().state_dict(), _snapshot(case.allocator)
    for name, value in state["estimator"].items():
        others = {key: other for key, other in state["estimator"].items() if key != name}
        _refused(
            partial(case.allocator.load_state_dict, {**state, "estimator": others}),
            StateError,
            f"a state without {name}",
        )
        for kind, damage in _damages(value):
            damaged = {**state, "estimator": {**others, name: damage}}
            _refused(partial(case.allocator.load_state_dict, damaged), StateError, f"a state with {kind} for {name}")
    _expect(_snapshot(case.allocator) == before, "a damaged state was refused and changed what is believed.")


def _new_prompts_share_evenly(case: _Case) -> None:
    if case.features is not _features:
        return  # a strategy that needs particular columns may tell new prompts apart by them
    ids: Ids = [f"new {i}" for i in range(len(case.ids))]
    informed = case.new()
    informed.tell(["someone", "someone else"], [0, 3], [4, 4])  # without features, which would tell prompts apart
    for allocator in (case.new(), informed):
        plan = allocator.ask(ids).rollouts.tolist()
        _expect(plan == [case.group] * len(ids), f"prompts that nothing tells apart got {plan}, not {case.group} each.")
        plan = allocator.ask(ids, budget=case.budget).rollouts.tolist()
        even = max(plan, default=0) - min(plan, default=0) <= 1
        _expect(even, f"prompts that nothing tells apart got {plan} of {case.budget} rollouts.")


def _the_order_of_the_prompts_decides_ties_only(case: _Case) -> None:
    order = case.random.permutation(len(case.ids))
    permuted = [case.ids[i] for i in order]
    plan = case.ask(case.allocator).rollouts.tolist()
    other = case.ask(case.allocator, permuted, case.budget).rollouts.tolist()
    _expect(sorted(plan) == sorted(other), f"in another order prompts got {sorted(other)} in place of {sorted(plan)}.")
    for name in set(case.ids):
        first, second = (
            sorted(n for n, one in zip(rollouts, ids, strict=True) if one == name)
            for rollouts, ids in ((plan, case.ids), (other, permuted))
        )
        moved = max(abs(n - m) for n, m in zip(first, second, strict=True))
        _expect(
            moved <= (_REMAINDERS if case.low else _GROUP),
            f"the order of the prompts moved {moved} rollouts of {name!r}.",
        )


def _waves_spend_the_budget_begin_with_the_minimum_and_end(case: _Case) -> None:
    share = float(case.random.choice([1.0, 0.7, 0.0]))
    step, placed = case.step(case.allocator), np.zeros(len(case.ids), dtype=np.int64)
    while step.remaining:
        plan = step.ask().rollouts
        _expect(plan.sum() > 0, "a wave placed nothing while rollouts remain.")
        placed = placed + plan
        scored = case.random.binomial(plan, share)
        step.tell(case.outcomes(case.ids, scored), scored)
    _within(case, placed, case.budget)


def _a_step_teaches_its_totals_once_with_its_last_tell(case: _Case) -> None:
    at_once, before = case.resumed(case.allocator.state_dict()), _snapshot(case.allocator)
    step, won, tried = case.step(case.allocator), *np.zeros((2, len(case.ids)), dtype=np.int64)
    while step.remaining:
        _expect(_snapshot(case.allocator) == before, "a step taught something before its last tell.")
        plan = step.ask().rollouts
        right = case.outcomes(case.ids, plan)
        step.tell(right, plan)
        won, tried = won + right, tried + plan
    if case.ids:
        case.tell(at_once, case.ids, won, tried)
    _expect(_snapshot(case.allocator) == _snapshot(at_once), "a step taught something else than its totals.")


def _place_and_report_spend_the_budget_whatever_comes_back_when(case: _Case) -> None:
    slots, failing = int(case.random.integers(1, 50)), float(case.random.choice([0.0, 0.2, 1.0]))
    step, placed = case.step(case.allocator), np.zeros(len(case.ids), dtype=np.int64)
    while step.remaining:
        plan = step.place(slots - int(step.in_flight.sum())).rollouts
        placed = placed + plan
        _expect(plan.min() >= 0, "place took a rollout back.")
        each = np.repeat(np.arange(len(case.ids)), step.in_flight)
        _expect(len(each) <= slots, f"place started {len(each)} rollouts in {slots} slots.")
        _expect(len(each) > 0, "place started nothing while nothing was in flight, so that the step would never end.")
        ended = case.random.choice(each, int(case.random.integers(1, len(each) + 1)), replace=False)
        back = np.bincount(ended, minlength=len(case.ids))
        failed = case.random.binomial(back, failing)
        step.report(case.outcomes(case.ids, back - failed), back - failed, failed)
    _within(case, placed, case.budget)


def _a_tell_without_rollouts_teaches_nothing(case: _Case) -> None:
    before, nothing = _snapshot(case.allocator), np.zeros(len(case.ids), dtype=np.int64)
    case.tell(case.allocator, case.ids, nothing, nothing)
    _expect(_snapshot(case.allocator) == before, "a tell without rollouts changed what is believed.")


def _nobody_sits_out_longer_than_allowed(case: _Case) -> None:
    if case.revisit is None:
        return
    ids = list(dict.fromkeys(case.ids))
    absent = np.zeros(len(ids), dtype=np.int64)
    allocator = case.new()
    for _ in range(case.revisit + 3):
        step = allocator.step(ids, case.features(ids))
        while step.remaining:
            rollouts = step.ask().rollouts
            step.tell(case.outcomes(ids, rollouts), rollouts)
        absent = np.where(step.placed, 0, absent + 1)
        longest = int(absent.max(initial=0))
        _expect(longest <= case.revisit, f"a prompt sat out {longest} visits in a row, and revisit is {case.revisit}.")
        _expect(allocator.sitting_out(ids).tolist() == absent.tolist(), "it is not known who sat out.")


def _the_expected_cost_of_a_step_stays_within_its_limit(case: _Case) -> None:
    limit = float(case.random.choice([1.0, 1.2]))
    allocator = case.new(cost_limit=limit)
    for ids, won, tried in case.history:
        spent = tried * case.random.choice([1.0, 10.0, 100.0], len(ids))
        allocator.tell(ids, won, tried, case.features(ids), spent)
    costs = allocator.expected_costs(case.ids, case.features(case.ids))
    most = limit * case.budget * (costs.mean() if len(costs) else 0.0) * (1 + 1e-8)
    asked = case.ask(allocator).rollouts
    _within(case, asked, case.budget)
    _expect(bool(costs @ asked <= most), f"{costs @ asked} were to be spent, and the limit is {most}.")
    step = allocator.step(case.ids, case.features(case.ids), case.budget)
    while step.remaining:
        rollouts = step.ask().rollouts
        step.tell(case.outcomes(case.ids, rollouts), rollouts)
    _expect(bool(costs @ step.placed <= most), f"{costs @ step.placed} were spent in waves, and the limit is {most}.")


def _prompts_that_are_all_right_or_all_wrong_get_a_plan(case: _Case) -> None:
    right, tried = bool(case.random.integers(0, 2)), np.full(5, 40)
    for _ in range(int(case.random.integers(1, 40))):
        case.tell(case.allocator, _PEOPLE[:5], tried * right, tried)
    for ids in (_PEOPLE[:5], _PEOPLE[:9]):
        _within(case, case.ask(case.allocator, ids).rollouts, len(ids) * case.group)


def _bad_input_is_refused_and_changes_nothing(case: _Case) -> None:
    ids = _PEOPLE[:2]
    known, before = case.features(ids), _snapshot(case.allocator)
    for won, tried in _BAD_COUNTS:
        _refused(partial(case.allocator.tell, ids, won, tried, known), InvalidInputError, f"{won} right of {tried}")
    step = case.allocator.step(ids, known)
    asked = step.ask()
    _refused(partial(step.tell, [0, 0], asked.rollouts + 1), InvalidInputError, "more than was asked for")
    _same(step.ask(), asked, "a refused tell changed the plan.")
    _expect(_snapshot(case.allocator) == before, "refused input changed what is believed.")


_CHECKS: tuple[Callable[[_Case], None], ...] = (
    _budgets_are_spent_exactly_and_within_the_bounds,
    _asking_changes_nothing,
    _the_same_history_gives_the_same_plan,
    _the_same_outcomes_give_the_same_waves,
    _a_copy_plans_alike_and_goes_its_own_way,
    _a_belief_is_about_a_prompt_whoever_stands_beside_it,
    _many_prompts_and_no_bound_are_planned_too,
    _a_saved_state_gives_the_same_plans_whatever_happened_since,
    _a_damaged_state_is_refused_and_changes_nothing,
    _new_prompts_share_evenly,
    _the_order_of_the_prompts_decides_ties_only,
    _waves_spend_the_budget_begin_with_the_minimum_and_end,
    _a_step_teaches_its_totals_once_with_its_last_tell,
    _place_and_report_spend_the_budget_whatever_comes_back_when,
    _a_tell_without_rollouts_teaches_nothing,
    _nobody_sits_out_longer_than_allowed,
    _the_expected_cost_of_a_step_stays_within_its_limit,
    _prompts_that_are_all_right_or_all_wrong_get_a_plan,
    _bad_input_is_refused_and_changes_nothing,
)


def _in_waves(case: _Case, allocator: BudgetAllocator, outcomes: list[int]) -> list[list[int]]:
    """What each wave of a step placed."""
    step, random, plans = case.step(allocator), np.random.default_rng(outcomes), []
    while step.remaining:
        plans.append(step.ask().rollouts)
        step.tell(random.binomial(plans[-1], [case.rates[name] for name in case.ids]), plans[-1])
    return [plan.tolist() for plan in plans]


def _in_slots(case: _Case, allocator: BudgetAllocator, outcomes: list[int]) -> list[list[int]]:
    """What each call of `place` placed, a third of the budget being in flight at most."""
    step, random, plans = case.step(allocator), np.random.default_rng(outcomes), []
    while step.remaining:
        plans.append(step.place(max(1, step.budget // 3 - int(step.in_flight.sum()))).rollouts)
        back = random.binomial(step.in_flight, 0.5)
        if not back.any():
            back = step.in_flight
        step.report(random.binomial(back, [case.rates[name] for name in case.ids]), back)
    return [plan.tolist() for plan in plans]


def _damages(value: Any) -> list[tuple[str, Any]]:
    """What nobody should take for this entry of a state."""
    if not isinstance(value, np.ndarray):
        return [("a list of lists", [[value]])]
    found: list[tuple[str, Any]] = [("text", np.full(value.shape, "x"))] if value.size else []
    if value.ndim:
        found.append(("one more dimension", np.zeros((*value.shape, 2))))
    if value.size:
        found.append(("NaN", np.full(value.shape, np.nan)))
    return found


def _features(ids: Ids) -> dict[str, Any]:
    """Of all kinds, and always the same of a prompt."""
    of = [_PEOPLE.index(name) for name in ids]
    return {
        "topic": ["odd" if i % 2 else None if i % 4 else "even" for i in of],
        "length": [1e6 + i for i in of],
        "state": np.array([[np.sin(i), np.cos(i), 1.0] for i in of]).reshape(len(of), 3),
    }


def _snapshot(allocator: BudgetAllocator) -> dict[str, Any]:
    """The whole state as bytes, to compare bit for bit."""
    return {
        name: (item.tobytes(), item.shape) if isinstance(item, np.ndarray) else item
        for name, item in allocator.state_dict()["estimator"].items()
    }


def _sentence(check: Callable[[_Case], None]) -> str:
    return check.__name__.strip("_").replace("_", " ")


def _expect(holds: bool | np.bool_, otherwise: str) -> None:
    if not holds:
        raise ConformanceError(otherwise)


def _within(case: _Case, rollouts: Ints, budget: int) -> None:
    _expect(rollouts.sum() == budget, f"{rollouts.sum()} of {budget} rollouts were placed.")
    single = not case.low and case.algorithm != "reinforce"
    wrong = (rollouts < case.low) | (rollouts > case.high) | (single & (rollouts == 1))
    _expect(not wrong.any(), f"a prompt got {rollouts[wrong][:1].tolist()} rollouts, outside the bounds.")


def _same(plan: Plan, expected: Plan, otherwise: str) -> None:
    same = plan.rollouts.tobytes() == expected.rollouts.tobytes()
    _expect(same and (plan.value, plan.fallback) == (expected.value, expected.fallback), otherwise)


def _refused(call: Callable[[], object], error: type[Exception], what: str) -> None:
    try:
        call()
    except error:
        return
    raise ConformanceError(f"{what} passed, and {error.__name__} was expected.")
