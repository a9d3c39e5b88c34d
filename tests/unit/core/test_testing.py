"""The conformance suite: every strategy of the library passes it, and every kind of broken one is named."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import knapsack_rl as kr
from knapsack_rl.estimators import DiscountedBeta, RecentRewards
from knapsack_rl.strategies import STRATEGIES
from knapsack_rl.testing import ConformanceError, check_strategy


def last_visit() -> RecentRewards:
    return RecentRewards(0)


def even(view: kr.View[Any], amount: int) -> kr.Plan:
    return view.plan(view.even(amount))


@pytest.mark.parametrize("strategy", kr.strategies())
def test_every_strategy_of_the_library_passes(strategy: str) -> None:
    check_strategy(strategy, cases=12)


def test_a_strategy_in_a_few_lines_passes() -> None:
    def by_variance(view: kr.View[Any], amount: int) -> kr.Plan:
        spread = view.belief.mean * (1.0 - view.belief.mean)
        have = np.maximum(view.placed + view.missing, 1)

        def gains(items: Any, start: int, width: int) -> Any:
            n = have[items, None] + start + np.arange(width)
            return spread[items, None] / (n * (n + 1.0))

        return view.plan(view.largest(gains, amount))

    mine = kr.Strategy(DiscountedBeta, by_variance)
    check_strategy(mine)
    allocator = kr.BudgetAllocator(mine)
    assert allocator.strategy == "by-variance"
    allocator.tell(["a", "b"], [0, 4], [8, 8])
    assert allocator.ask(["a", "b"]).rollouts.tolist() != [8, 8]


def test_an_estimator_of_ones_own_needs_a_belief_and_nothing_else() -> None:
    class LastVisit(kr.Estimator):
        def belief(self, keys: Any, features: Any) -> kr.Belief:
            won, tried = self.read("won", keys), self.read("tried", keys)
            return kr.Belief(won + 1.0, tried - won + 1.0)

    check_strategy(kr.Strategy(LastVisit, STRATEGIES["knapsack-discounted"].rule, name="laplace"))


def test_an_estimator_may_keep_columns_and_numbers_of_its_own() -> None:
    class Best(kr.Estimator):
        """The largest rate that a prompt ever had."""

        def __init__(self) -> None:
            super().__init__(best=np.float32)
            self.visits = 0

        def belief(self, keys: Any, features: Any) -> kr.Belief:
            best = self.read("best", keys)
            return kr.Belief(8.0 * best + 0.5, 8.0 * (1.0 - best) + 0.5)

        def learn(self, visits: kr.Visits) -> None:
            self.visits += len(visits.keys)

        def remember(self, rows: Any, visits: kr.Visits) -> None:
            best = self.table["best"]
            best[rows] = np.maximum(best[rows], visits.won / visits.tried)

        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "visits": self.visits}

        def load_state_dict(self, state: Any) -> None:
            if not isinstance(state.get("visits"), int):
                raise kr.StateError("state: expected visits.")
            super().load_state_dict(state)
            self.visits = state["visits"]

    check_strategy(kr.Strategy(Best, STRATEGIES["hora"].rule, STRATEGIES["hora"].wave_size, name="best"))


def one_too_few(view: kr.View[Any], amount: int) -> kr.Plan:
    return view.plan(view.even(amount) - (np.arange(len(view.placed)) == 0))


def everything_to_one(view: kr.View[Any], amount: int) -> kr.Plan:
    rollouts = np.zeros_like(view.placed)
    rollouts[:1] = amount
    return view.plan(rollouts)


def first_come_first_served(view: kr.View[Any], amount: int) -> kr.Plan:
    return view.plan(view.largest(lambda items, start, width: -np.tile(items[:, None] + 0.0, (1, width)), amount))


def by_chance(view: kr.View[Any], amount: int) -> kr.Plan:
    return view.plan(view.even(amount, np.random.default_rng().random(len(view.placed)) < 0.5))


class Counting:
    """A rule that remembers how often it was asked."""

    def __init__(self) -> None:
        self.calls = itertools.count()

    def __call__(self, view: kr.View[Any], amount: int) -> kr.Plan:
        return view.plan(view.even(amount, view.keys % 7 < next(self.calls) % 7))


class Learning:
    """A rule that keeps what it saw to itself instead of in its estimator."""

    def __init__(self) -> None:
        self.largest = 0.0

    def __call__(self, view: kr.View[Any], amount: int) -> kr.Plan:
        self.largest = max(self.largest, float(np.nansum(view.rates)))
        return view.plan(view.even(amount, view.keys % 11 < 2 * self.largest))


def meddling(view: kr.View[RecentRewards], amount: int) -> kr.Plan:
    view.estimator.update(view.keys, np.zeros_like(view.placed), np.ones_like(view.placed))
    return view.plan(view.even(amount))


def failing(view: kr.View[Any], amount: int) -> kr.Plan:
    if len(view.placed) == 3:
        raise ZeroDivisionError("three")
    return view.plan(view.even(amount))


def as_floats(view: kr.View[Any], amount: int) -> kr.Plan:
    return kr.Plan(view.even(amount).astype(float), 0.0)  # type: ignore[arg-type]


class Forgetful(RecentRewards):
    """Saves half of what it learned."""

    def state_dict(self) -> dict[str, Any]:
        return {name: value[::2] for name, value in super().state_dict().items()}


class Trusting(DiscountedBeta):
    """Loads whatever it is given."""

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict({**self.state_dict(), **state})


def pilot(number: int, prompts: int, remaining: int, settings: kr.Settings) -> int:
    return 0 if number == 0 else remaining


def later_by_chance(view: kr.View[Any], amount: int) -> kr.Plan:
    chosen = np.random.default_rng().random(len(view.placed)) < 0.5
    return view.plan(view.even(amount, chosen if view.placed.any() else None))


def eager(view: kr.View[Any], amount: int) -> kr.Plan:
    """Even where the budget is a multiple of the prompts, and to the first of all otherwise."""
    if amount % max(len(view.placed), 1) == 0:
        return view.plan(view.even(amount))
    return view.plan(
        view.largest(lambda items, start, width: -np.tile(view.keys[items, None] / 1.0, (1, width)), amount)
    )


class Relative(RecentRewards):
    """Believes of a prompt what its companions are like."""

    def __init__(self) -> None:
        super().__init__(0)

    def belief(self, keys: Any, features: Any) -> kr.Belief:
        belief = super().belief(keys, features)
        return kr.Belief(belief.wins / belief.wins.mean(), belief.losses) if len(keys) else belief


class Unsure(RecentRewards):
    """Believes nothing of some prompts."""

    def __init__(self) -> None:
        super().__init__(0)

    def belief(self, keys: Any, features: Any) -> kr.Belief:
        belief = super().belief(keys, features)
        return kr.Belief(np.where(keys % 2, np.nan, belief.wins), belief.losses)


class Elsewhere(DiscountedBeta):
    """Keeps a count beside its state that matters after a while."""

    def __init__(self) -> None:
        super().__init__()
        self.updates = 0

    def learn(self, visits: kr.Visits) -> None:
        super().learn(visits)
        self.updates += 1

    def belief(self, keys: Any, features: Any) -> kr.Belief:
        belief = super().belief(keys, features)
        return belief if self.updates < 45 else kr.Belief(belief.losses, belief.wins)


class Careless(RecentRewards):
    """Takes any scale that a state brings."""

    def __init__(self) -> None:
        super().__init__(0)
        self.scale: Any = 1.0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "scale": self.scale}

    def load_state_dict(self, state: Any) -> None:
        if "scale" not in state:
            raise kr.StateError("state: expected a scale.")
        super().load_state_dict(state)
        self.scale = state["scale"]


BROKEN = {
    "too few rollouts": (kr.Strategy(last_visit, one_too_few), "and it placed"),
    "outside the bounds": (
        kr.Strategy(last_visit, everything_to_one),
        "leave every prompt",
    ),
    "floats": (kr.Strategy(last_visit, as_floats), "int64"),
    "a rule that raises": (kr.Strategy(last_visit, failing), "ZeroDivisionError.* was raised"),
    "chance": (kr.Strategy(last_visit, by_chance), "asking changes nothing: |asked in between changes a plan: "),
    "a rule that counts": (
        kr.Strategy(last_visit, Counting()),
        "asking changes nothing: |asked in between changes a plan: ",
    ),
    "a rule that learns": (
        kr.Strategy(last_visit, Learning()),
        "planned otherwise|another plan|asked in between changes a plan",
    ),
    "a rule that meddles": (
        kr.Strategy(last_visit, meddling),
        "asking changes nothing: |asked in between changes a plan: ",
    ),
    "chance in a later wave": (
        kr.Strategy(last_visit, later_by_chance, pilot),
        "the same outcomes give the same waves",
    ),
    "an uneven start": (kr.Strategy(last_visit, eager), "new prompts share evenly"),
    "companions": (kr.Strategy(Relative, even, name="relative"), "whoever stands beside it"),
    "no number": (kr.Strategy(Unsure, even, name="unsure"), "2 positive wins and losses|positive wins"),
    "a short memory in the state": (
        kr.Strategy(Elsewhere, STRATEGIES["knapsack-discounted"].rule, name="elsewhere"),
        "not all in the state",
    ),
    "values that are not checked": (kr.Strategy(Careless, even, name="careless"), "a list of lists for scale passed"),
    "half a state": (
        kr.Strategy(lambda: Forgetful(0), STRATEGIES["knapsack"].rule, name="forgetful"),
        "a saved state gives the same plans|not all in the state",
    ),
    "a state that is not checked": (
        kr.Strategy(Trusting, STRATEGIES["knapsack-discounted"].rule, name="trusting"),
        "a damaged state is refused .* passed, and StateError was expected",
    ),
    "order": (kr.Strategy(last_visit, first_come_first_served), "new prompts share evenly"),
}


@pytest.mark.parametrize(("strategy", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_strategy_is_named_with_what_it_broke_and_the_case(strategy: kr.Strategy[Any], message: str) -> None:
    with pytest.raises(ConformanceError, match=f"(?s)^{strategy.name}: .*({message}).*prompts, budget") as failure:
        check_strategy(strategy)
    assert isinstance(failure.value, AssertionError)
    assert isinstance(failure.value, kr.KnapsackError)


def test_a_rule_that_needs_particular_features_is_checked_with_them() -> None:
    def by_length(view: kr.View[Any], amount: int) -> kr.Plan:
        return view.plan(view.even(amount, view.features.numbers["length"][:, 0] > 5.0))

    strategy = kr.Strategy(last_visit, by_length)
    check_strategy(strategy, features=lambda ids: {"length": [float(len(str(name))) for name in ids]})
    with pytest.raises(ConformanceError, match="KeyError"):
        check_strategy(strategy, features=lambda ids: {"other": [0.0 for _ in ids]})


@pytest.mark.parametrize("argument", ["cases", "seed"])
def test_bad_arguments_are_refused_by_name(argument: str) -> None:
    with pytest.raises(kr.InvalidInputError, match=f"{argument}: expected an integer"):
        check_strategy("uniform", **{argument: -1})


class TestAStrategyOfOnesOwn:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"estimator": None, "rule": even}, "estimator: expected a function or a class, got None"),
            ({"estimator": last_visit, "rule": "even"}, "rule: expected a function or a class, got 'even'"),
            ({"estimator": last_visit, "rule": even, "wave_size": 2}, "wave_size: expected a function"),
            ({"estimator": last_visit, "rule": even, "rollout_weights": "half"}, "rollout_weights: expected one of"),
            ({"estimator": last_visit, "rule": even, "exponents": (np.nan, 2.0)}, "exponents: expected two numbers"),
            (
                {"estimator": last_visit, "rule": lambda view, amount: None},
                "name: expected a text .* no name of its own",
            ),
        ],
    )
    def test_of_the_wrong_kind_is_refused_by_name(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(kr.InvalidInputError, match=message):
            kr.Strategy(**arguments)

    def test_without_an_estimator_is_refused(self) -> None:
        with pytest.raises(kr.InvalidInputError, match=r"the estimator of 'even' is a dict. Derive it from"):
            kr.BudgetAllocator(kr.Strategy(dict, even))  # type: ignore[type-var]

    @pytest.mark.parametrize(
        ("rule", "message"),
        [
            (one_too_few, "the rule of 'one-too-few' to place 16 rollouts, and it placed 15"),
            (everything_to_one, "the prompt at position 1 has 0, of which it placed 0"),
            (as_floats, r"return view.plan\(rollouts\) with 2 integers"),
        ],
    )
    def test_that_places_what_it_should_not_is_named_when_it_does(self, rule: Any, message: str) -> None:
        allocator = kr.BudgetAllocator(kr.Strategy(last_visit, rule))
        with pytest.raises(kr.InvalidInputError, match=message):
            allocator.ask(["a", "b"])
        with pytest.raises(kr.InvalidInputError, match=message):
            allocator.step(["a", "b"]).ask()

    def test_can_be_named_by_its_module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_rules.py").write_text(
            "import knapsack_rl as kr\nfrom knapsack_rl.strategies import STRATEGIES\n"
            "mine = kr.Strategy(STRATEGIES['hora'].estimator, STRATEGIES['neyman'].rule, name='mine')\nnot_one = 3\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        assert kr.BudgetAllocator("my_rules:mine").strategy == "mine"
        for path, message in (
            ("my_rules:not_one", "to be a knapsack_rl.Strategy, got 3"),
            ("my_rules:missing", "cannot import 'my_rules:missing'"),
            ("no_such_module:mine", "must be installed, or its folder be in PYTHONPATH"),
        ):
            with pytest.raises(kr.InvalidInputError, match=message):
                kr.BudgetAllocator(path)
