"""The strategies of other papers, each within the same budget and bounds as everyone else (docs/rivals.md).

The papers choose among prompts, or generate more when they need to; here a step has its prompts and its budget, every
prompt gets `min_rollouts`, and a rule says who gets what is left. That much is simplified in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.allocation import Plan
from knapsack_rl.beta import log_beta
from knapsack_rl.estimators import DiscountedBeta, RecentRewards, Streaks
from knapsack_rl.estimators.base import Visits
from knapsack_rl.estimators.state import number, whole_number
from knapsack_rl.expected_value import expected_gains
from knapsack_rl.strategies.base import Settings, Strategy, View
from knapsack_rl.strategies.ours import last_visit, pilot_and_one_wave

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

_KAPPA = 11.0  # CoBA-RL: alpha + beta
_SMOOTHING = 0.01  # CoBA-RL: distance that pass rates keep from 0 and 1
_TAU = (3.0, 12.0)  # CoBA-RL: saturation when all pass rates are equal, and when they vary as much as _MOST_VARIANCE
_MOST_VARIANCE = 1.0 / 6.0
_OPEN = (0.05, 0.99)  # CoBA-RL: pass rates of the prompts that its value is for
_SHARE = (0.6, 0.8)  # CoBA-RL: of the budget beyond the minimum for them, when none and when half or more are open
_WORTH_IT = (0.125, 0.75)  # Pilot-Commit: pass rates of the pilot between which a prompt is kept
_ROUNDS = 4  # Reinforce-Ada


class PassRates(RecentRewards):
    """Success rates of the last visits, and the mean failure rate of the prompts in the last update."""

    def __init__(self) -> None:
        super().__init__(0)
        self.failure = 0.5

    def learn(self, visits: Visits) -> None:
        """Learn how many fail. O(V)."""
        self.failure = float(1.0 - (visits.won / visits.tried).mean())

    def state_dict(self) -> dict[str, Any]:
        """As in `RecentRewards`, and `failure`."""
        return {"failure": self.failure, **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As in `RecentRewards`."""
        failure = number(state, "failure", 0.0, 1.0)
        super().load_state_dict(state)
        self.failure = failure


class CountedBeta(DiscountedBeta):
    """A discounted Beta with a fixed prior, Beta(1, 1), and a count of updates, by which random draws change."""

    def __init__(self) -> None:
        super().__init__(discount=0.5, prior=(1.0, 1.0))
        self.updates = 0

    def learn(self, visits: Visits) -> None:
        """As in `DiscountedBeta`."""
        super().learn(visits)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """As in `DiscountedBeta`, and `updates`."""
        return {"updates": self.updates, **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As in `DiscountedBeta`."""
        updates = whole_number(state, "updates")
        super().load_state_dict(state)
        self.updates = updates


def neyman(view: View[Any], amount: int) -> Plan:
    """Minimise the sum of E[p (1 - p)] / N, the variance of the gradient; the gain is E[p (1 - p)] / (N (N + 1)).

    Source: VIP, arXiv 2602.01601. Simplified: its belief is a Gaussian process over prompt embeddings, here it is a
    discounted Beta; it solves the continuous relaxation and rounds, here the integer optimum is exact; its variances
    are p (1 - p) / (N - 1) for RLOO and p (1 - p) (N - 1) / N^2 for GRPO without deviations (a review of the paper, and
    the authors' code, which adds a term in ln p), here it is p (1 - p) / N for all.
    """
    belief = view.belief
    a, b = belief.wins, belief.losses
    spread = a * b / ((a + b) * (a + b + 1.0))
    have = view.placed + view.missing

    def gains(items: Ints, start: int, width: int) -> Floats:
        n = have[items, None] + start + np.arange(width, dtype=np.float64)
        each = spread[items, None] / (np.maximum(n, 1.0) * (n + 1.0))
        return np.where(n > 0.0, each, 0.0) if view.settings.first_group > 1 else each

    return view.plan(view.largest(gains, amount))


def hora(view: View[Any], amount: int) -> Plan:
    """Maximise the sum of chances that the extra rollouts have a hit: 1 - B(a, b + n) / B(a, b) for n of them.

    The n-th extra rollout adds E[p (1 - p)^(n - 1)], which falls in n, so that the greedy solution is exact.

    Source: HORA, arXiv 2605.07114 (hit utility). Defaults: prior Beta(1, 1), all outcomes of a prompt count alike,
    those of this step's first rollouts too. Simplified: the minimum is the first allocation; the paper's size of it
    could not be found.
    """
    nothing = np.zeros_like(view.placed)
    after = view.belief.given(view.successes, view.scored)
    gains = expected_gains(after, nothing, nothing, nothing, (0.0, 0.0), "reinforce")
    return view.plan(view.largest(gains, amount))


def coba(view: View[PassRates], amount: int) -> Plan:
    """Most goes to the open prompts, .05 <= p <= .99, where the value is largest; the rest to the hard ones below.

    Maximise the sum of (1 - exp(-N p (1 - p) / tau)) times the density of Beta(alpha, beta) at p over the open prompts;
    concave in N. alpha = 1 + (kappa - 2) f and beta = kappa - alpha, so that many failures (f near 1) favour easy
    prompts and few favour hard ones; f is the mean failure rate of the last update, put through
    1 / (1 + exp(-10 (f - 1/2))) where it is at most 1/2. tau rises from 3 to 12 with the variance of their pass rates.
    They share .6 to .8 of what is beyond the minimum, more where more prompts are open; what is set aside goes to the
    hard in proportion to 1 - p, and what these have no room for to the open and then to the easy ones likewise.

    Source: CoBA-RL, arXiv 2602.03048, and the authors' allocator. Defaults: kappa 11 and a window of one update (their
    script; the class has 7 and 3), pass rates kept .01 from 0 and 1, 1/2 for a prompt never visited, uniform for a
    step of such prompts only. Simplified: proportions are exact up to rounding, where their loop gives earlier prompts
    more; f is that of the last update told, however small.
    """
    if np.isnan(view.rates).all():
        return view.plan(view.even(amount))
    rates = np.where(np.isnan(view.rates), 0.5, view.rates)
    hard, easy = rates < _OPEN[0], rates > _OPEN[1]
    opened = ~hard & ~easy
    p = np.clip(rates, _SMOOTHING, 1.0 - _SMOOTHING)
    failure = view.estimator.failure
    if failure <= 0.5:
        failure = float(1.0 / (1.0 + np.exp(-10.0 * (failure - 0.5))))
    alpha = 1.0 + (_KAPPA - 2.0) * failure
    beta = _KAPPA - alpha
    density = np.exp(
        (alpha - 1.0) * np.log(p) + (beta - 1.0) * np.log1p(-p) - log_beta(np.array(alpha), np.array(beta))
    )
    variance = float(p[opened].var()) if opened.any() else 0.0
    tau = _TAU[0] + (_TAU[1] - _TAU[0]) * min(variance / _MOST_VARIANCE, 1.0)
    pace = p * (1.0 - p) / tau
    first = density * -np.expm1(-pace)  # gain of a rollout when there is none
    have = view.placed + view.missing

    def gains(items: Ints, start: int, width: int) -> Floats:
        n = have[items, None] + start + np.arange(width, dtype=np.float64)
        return np.asarray(first[items, None] * np.exp(-pace[items, None] * n))

    def in_proportion(items: Ints, start: int, width: int) -> Floats:
        """Quotients whose largest make numbers proportional to 1 - p."""
        weights = 1.0 - np.clip(rates[items, None], 1e-6, 1.0 - 1e-6)
        return np.asarray(weights / (start + 1.0 + np.arange(width, dtype=np.float64)))

    required = int(view.missing.sum())
    share = _SHARE[0] + (_SHARE[1] - _SHARE[0]) * min(2.0 * float(opened.mean()), 1.0)
    total = view.filled(view.missing, required + int(share * (amount - required)), opened, gains)
    for receivers in (hard, opened, easy):
        total = view.filled(total, amount, receivers, in_proportion)
    return view.plan(view.completed(total, amount))


def pilot_commit(view: View[Any], amount: int) -> Plan:
    """A pilot for everyone; then everything evenly over the prompts whose pilot had 1/8 <= p <= 3/4.

    Source: Pilot-Commit, arXiv 2605.26606. Defaults: 16 pilot rollouts of 64, hence a quarter of the group size here,
    at least the minimum. Simplified: prompts that the paper evicts (p above) or defers (p below) get no more in this
    step and come back with the data; a prompt whose pilot failed to arrive is deferred. If nobody is kept, or the kept
    are full, everyone shares. Asked in one shot, it is uniform.
    """
    rates = view.successes / np.maximum(view.scored, 1)
    kept = (view.scored > 0) & (rates >= _WORTH_IT[0]) & (rates <= _WORTH_IT[1])
    return view.plan(view.even(amount, kept))


def pilot_then_commit(number: int, prompts: int, remaining: int, settings: Settings) -> int:
    """A quarter of the group size for everyone, and the rest."""
    return prompts * max(settings.first_group, settings.group_size // 4) if number == 0 else remaining


def reinforce_ada(view: View[Any], amount: int) -> Plan:
    """Evenly over the prompts whose group has no gradient yet (both rewards; for reinforce: a success).

    Source: Reinforce-Ada, arXiv 2510.04996 (sequential sampling, successive elimination). Defaults: four rounds, of a
    quarter of the budget each; the paper's numbers could not be found for a given budget. Simplified: the paper's
    balanced variant asks for half a group of each reward before it stops, and cuts groups to one size afterwards (in
    their code: 4 of at most 4 x 8); here one of each is enough, and what is generated is trained on. When every group
    has both, everyone shares the rest.
    """
    return view.plan(view.even(amount, ~view.mixed))


def rounds(number: int, prompts: int, remaining: int, settings: Settings) -> int:
    """A quarter of the group size for each prompt, at least the minimum, and in the last round whatever remains."""
    return prompts * max(settings.first_group, settings.group_size // _ROUNDS) if number < _ROUNDS - 1 else remaining


def greso(view: View[Streaks], amount: int) -> Plan:
    """Skip a prompt with probability 1 - w^z after z visits in a row without a gradient; evenly over the others.

    Source: GRESO, arXiv 2506.02177, and the authors' trainer. Defaults: w starts at .5 for easy and for hard prompts,
    moves by .01 within [.05, .95], and aims at a quarter of zero-variance prompts, of which a third easy. Simplified:
    their probability of being kept never falls below .01; a skipped prompt gets the minimum, and its streak goes on by
    what that shows; skipped prompts are not replaced by others of the data set. If all are skipped, everyone shares.
    """
    streaks = view.estimator
    draws = (stream.random() for stream in _streams(view, streaks.updates))
    kept = np.fromiter(draws, dtype=np.float64, count=len(view.placed)) < streaks.keep(view.keys)
    return view.plan(view.even(amount, kept))


def mopps(view: View[CountedBeta], amount: int) -> Plan:
    """Draw each success rate from its belief; the half of the prompts whose draws are nearest 1/2 share the rollouts.

    Source: MoPPS, arXiv 2507.04632, and the authors' recipe: prior Beta(1, 1), old counts times a decay at each visit,
    target 1/2, the nearest win. The decay of .5 is that of two of its scripts; its default is none. Simplified: the
    paper picks a batch out of more candidates; here half of the step's prompts (the larger half) take the rollouts
    beyond the minimum. A step whose prompts are all new is uniform.
    """
    count = len(view.placed)
    if np.isnan(view.rates).all():
        return view.plan(view.even(amount))
    streams = _streams(view, view.estimator.updates)
    beliefs = zip(view.belief.wins.tolist(), view.belief.losses.tolist(), streams, strict=True)
    draws = np.fromiter((stream.beta(a, b) for a, b, stream in beliefs), dtype=np.float64, count=count)
    chosen = np.zeros(count, dtype=bool)
    chosen[np.argsort(np.abs(draws - 0.5), kind="stable")[: (count + 1) // 2]] = True
    return view.plan(view.even(amount, chosen))


def _streams(view: View[Any], updates: int) -> Iterator[np.random.Generator]:
    """A random stream for each prompt, which depends on the seed, its key and the number of updates only.

    So `ask` stays pure, an allocator that was resumed draws the same, and the order of the prompts plays no part. Each
    stream lasts until the next is taken: one bit generator is set back and forth, since making one is slow.
    """
    bits = np.random.Philox(key=np.array([view.settings.seed % 2**64, 0], dtype=np.uint64), counter=[0, updates, 0, 0])
    stream, state = np.random.Generator(bits), bits.state
    for key in view.keys:
        state["state"]["key"][1] = key
        bits.state = state
        yield stream


HORA = Strategy(lambda: DiscountedBeta(discount=1.0, prior=(1.0, 1.0)), hora, pilot_and_one_wave, name="hora")
RIVALS = (
    Strategy(DiscountedBeta, neyman, name="neyman"),
    Strategy(PassRates, coba, name="coba"),
    Strategy(last_visit, pilot_commit, pilot_then_commit, name="pilot-commit"),
    Strategy(last_visit, reinforce_ada, rounds, name="reinforce-ada"),
    Strategy(Streaks, greso, name="greso"),
    Strategy(CountedBeta, mopps, name="mopps"),
)
"""The others."""
