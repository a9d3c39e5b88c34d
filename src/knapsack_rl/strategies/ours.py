"""The strategies of this library: uniform, the paper's, its rule under better beliefs, adaptive and measured.

`rivals` has those of other papers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl import allocation
from knapsack_rl.allocation import Plan
from knapsack_rl.estimators import DiscountedBeta, Gaining, RecentRewards, Regression, TransitionTable
from knapsack_rl.expected_value import PAPER
from knapsack_rl.influence import ASSUMED
from knapsack_rl.strategies.base import Settings, Strategy, View, uniform

Ints = NDArray[np.int64]

LEARNABILITY = (1.0, 1.0)
"""Of p (1 - p), which others sample prompts by: it holds an easy prompt for worth as much as a hard one."""


def knapsack(view: View[Any], amount: int) -> Plan:
    """The paper's rule (section 4.2)."""
    settings = view.settings
    return allocation.allocate(
        view.rates,
        amount,
        min_rollouts=view.least,
        max_rollouts=settings.max_rollouts,
        algorithm=settings.algorithm,
        fallback=settings.fallback,
        confidence=settings.confidence,
        greedy_agreement=view.greedy_agreement,
        costs=None if settings.cost_limit is None else view.costs,
        cost_budget=view.cost_budget(amount) if amount else None,  # a budget of 0 is none to the rule
    )


def expected_knapsack(view: View[Any], amount: int) -> Plan:
    """The paper's value (equation 5), in expectation under the belief; without fallback, which doubt makes needless."""
    return _by_gains(view, amount, PAPER)


def adaptive(view: View[Any], amount: int) -> Plan:
    """E[P(non-zero gradient) p^(1/2) (1 - p)^2] under the belief and what the step has shown so far."""
    return _by_gains(view, amount, ASSUMED)


def learnability(view: View[Any], amount: int) -> Plan:
    """As `adaptive`, with p (1 - p), the variance of a reward, as the worth of a gradient."""
    return _by_gains(view, amount, LEARNABILITY)


def measured(view: View[Any], amount: int) -> Plan:
    """As `adaptive`, half way to what gradients are measured to be worth (`Influence.correction`)."""
    return _by_gains(view, amount, ASSUMED, measured=True)


def pilot_spread(view: View[Any], amount: int) -> Plan:
    """Evenly over the prompts without a success so far in this step."""
    return view.plan(view.even(amount, view.successes == 0))


def pilot_and_two_waves(number: int, prompts: int, remaining: int, settings: Settings) -> int:
    """The minimum for everyone (or as many rollouts as smallest groups would take), half of what is left, the rest."""
    return (prompts * settings.first_group, (remaining + 1) // 2)[number] if number < 2 else remaining


def pilot_and_one_wave(number: int, prompts: int, remaining: int, settings: Settings) -> int:
    """The minimum for everyone (or as many rollouts as smallest groups would take), and the rest."""
    return prompts * settings.first_group if number == 0 else remaining


def _by_gains(view: View[Any], amount: int, exponents: tuple[float, float], measured: bool = False) -> Plan:
    return view.plan(view.largest(view.expected_gains(exponents, measured), amount, ~view.mixed))


def last_visit() -> RecentRewards:
    """The paper's estimator: the success rate of the last visit (section 4.2)."""
    return RecentRewards(0)


UNIFORM = Strategy(last_visit, uniform, name="uniform")
KNAPSACK = Strategy(last_visit, knapsack, name="knapsack")
ADAPTIVE = Strategy(Regression, adaptive, pilot_and_two_waves, ASSUMED, rollout_weights="sqrt", name="adaptive")
MEASURED = replace(ADAPTIVE, rule=measured, measured=True, name="measured")
CAUTIOUS = replace(ADAPTIVE, estimator=Gaining, ready=lambda known: known.hard_gain, name="cautious")
VARIANTS = (
    Strategy(lambda: RecentRewards(16), knapsack, name="knapsack-window"),
    Strategy(DiscountedBeta, expected_knapsack, name="knapsack-discounted"),
    Strategy(TransitionTable, expected_knapsack, name="knapsack-transitions"),
    Strategy(Regression, expected_knapsack, name="knapsack-regression"),
    replace(ADAPTIVE, rule=learnability, exponents=LEARNABILITY, name="adaptive-learnability"),
    Strategy(last_visit, pilot_spread, pilot_and_one_wave, name="pilot-spread"),
)
"""What shows which part of `knapsack` and `adaptive` does what."""
