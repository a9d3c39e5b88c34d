"""Effective gradients to expect from rollouts that were never drawn, with an interval.

A group's success rate p is unknown; its step drew n rollouts of which k succeeded. The chance that N fresh rollouts at
the same p are mixed, 1 - p^N - (1 - p)^N, has an unbiased estimate from k and n only for N <= n. For larger N something
must be assumed: here a beta prior for p, fitted to all groups of the same part of the log whose prompts were believed
to be alike when the step was planned. Plans depend on those beliefs, so a prior that mixed them would favour or punish
the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, gammaln

from knapsack_rl.experiments.audit.accounting import Log
from knapsack_rl.experiments.audit.replay import BELIEFS, Replay

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WINDOWS = 20  # parts of the log that are shown
_ERAS = 5  # parts of the log with priors of their own: the policy changes
_FEW_GROUPS = 200  # fewer share the prior of their belief over the whole log
_BUCKETS = 1000  # prompts beyond are resampled in bundles
_REPLICATES = 400
FEW_PROMPTS = 10  # resampling fewer says nothing
_ALIKE = 1e-9  # samples that differ by less do so by rounding
_AT_ONCE = 256  # candidates of a prior that are tried together, which bounds memory
_SERIES = ("observed", "spent", "planned")

# Candidates of the prior: mean by concentration.
_MEANS = 1.0 / (1.0 + np.exp(-np.linspace(-7.0, 7.0, 57)))
_CONCENTRATIONS = np.exp(np.linspace(np.log(0.05), np.log(200.0), 34))
_A = np.outer(_MEANS, _CONCENTRATIONS).ravel()
_B = np.outer(1.0 - _MEANS, _CONCENTRATIONS).ravel()


def unbiased_mixed(rollouts: Ints, successes: Ints, drawn: Ints) -> Floats:
    """Share of the subsets of `rollouts` out of `drawn` with both a success and a failure: unbiased for fresh ones.

    Only for rollouts <= drawn.
    """
    same = sum(_ratio_of_binomials(part, drawn, rollouts) for part in (successes, drawn - successes))
    return np.where(rollouts < 2, 0.0, np.clip(1.0 - same, 0.0, 1.0))


def predicted_mixed(rollouts: Ints, a: Floats, b: Floats) -> Floats:
    """Chance that fresh rollouts are mixed where p ~ Beta(a, b): 1 - [B(a + N, b) + B(a, b + N)] / B(a, b)."""
    whole = betaln(a, b)
    same = np.exp(betaln(a + rollouts, b) - whole) + np.exp(betaln(a, b + rollouts) - whole)
    return np.where(rollouts < 2, 0.0, np.clip(1.0 - same, 0.0, 1.0))


def fit_prior(successes: Ints, drawn: Ints, weights: Floats) -> Ints:
    """Most likely beta prior of beta-binomial counts, as positions among the candidates.

    Args:
        successes: shape (D,).
        drawn: shape (D,), at least `successes`.
        weights: shape (R, D): how often each count occurs, in each of R samples.

    Returns:
        Shape (R,): positions in what `candidate` takes.
    """
    k, n = successes[:, None], drawn[:, None]
    best, place = np.full(len(weights), -np.inf), np.zeros(len(weights), dtype=np.int64)
    for start in range(0, len(_A), _AT_ONCE):
        a, b = _A[start : start + _AT_ONCE], _B[start : start + _AT_ONCE]
        likelihood = weights @ (betaln(a + k, b + (n - k)) - betaln(a, b))
        better = likelihood.max(axis=1) > best
        best[better] = likelihood.max(axis=1)[better]
        place[better] = start + np.argmax(likelihood, axis=1)[better]
    return place


def candidate(position: int) -> tuple[float, float]:
    """Its a and b."""
    return float(_A[position]), float(_B[position])


@dataclass(frozen=True)
class Estimate:
    """A ratio and its 95 % interval, NaN where there are too few prompts to tell or all samples are alike."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Expectation:
    """Effective gradient ratios of what was spent and of what would have been planned.

    Attributes:
        observed: what the log says.
        spent: expected of fresh rollouts in the numbers that were spent; close to `observed` if the priors fit.
        planned: expected of the plan.
        gain: `planned` minus `spent`.
        without_prior: at least expected of the plan: each N beyond what was drawn is counted as what was drawn, for
            which no prior is needed.
        covered: share of planned rollouts on groups with N <= n.
        by_window: for each of `_SERIES` an array of shape (3, windows): value, low, high, as in an `Estimate`.
        window: for each group, its window.
        window_steps: shape (2, windows): first and last step.
        effective_planned: for each group, expected rollouts with gradient, of the plan.
        effective_spent: the same of what was spent.
        clusters: bundles of prompts that were resampled.
    """

    observed: Estimate
    spent: Estimate
    planned: Estimate
    gain: Estimate
    without_prior: Estimate
    covered: float
    by_window: dict[str, Floats]
    window: Ints
    window_steps: Ints
    effective_planned: Floats
    effective_spent: Floats
    clusters: int


def expect(log: Log, plans: Replay, seed: int = 0) -> Expectation:
    """Expected effective gradients of the plans and of what was spent.

    The interval resamples prompts (with all their steps) and fits the priors anew in each of 400 samples.

    Cost: O(groups), and for each of at most 30 priors what its few dozen resampled fits take.
    """
    window, steps = _windows(log.step)
    era = window * _ERAS // (window.max() + 1)
    weights, bucket_of_prompt = resampled(len(log.keys), seed)
    clusters, bucket = weights.shape[1], bucket_of_prompt[log.prompt]
    cell = _cells(era, plans.belief)
    slots = (int(window.max()) + 1, clusters)
    slot = window * clusters + bucket
    totals = {name: np.zeros((len(weights), slots[0])) for name in _SERIES}
    effective = {name: np.zeros(len(log.step)) for name in ("spent", "planned")}
    numbers = {"spent": log.rollouts, "planned": plans.planned}
    for group in (np.flatnonzero(cell == number) for number in np.unique(cell)):
        fits = _fits(log.successes[group], log.rollouts[group], bucket[group], weights)
        for name, rollouts in numbers.items():
            for fit in np.unique(fits):
                expected = rollouts[group] * _posterior(rollouts[group], log.successes[group], log.rollouts[group], fit)
                if fit == fits[0]:
                    effective[name][group] = expected
                sums = np.bincount(slot[group], expected, minlength=slots[0] * slots[1]).reshape(slots)
                mine = fits == fit
                totals[name][mine] += weights[mine] @ sums.T
    for_slots = np.bincount(slot, log.rollouts * log.mixed, minlength=slots[0] * slots[1]).reshape(slots)
    totals["observed"] = weights @ for_slots.T
    budget = weights @ np.bincount(slot, log.rollouts, minlength=slots[0] * slots[1]).reshape(slots).T
    planned_budget = weights @ np.bincount(slot, plans.planned, minlength=slots[0] * slots[1]).reshape(slots).T
    shares = {name: (totals[name], planned_budget if name == "planned" else budget) for name in _SERIES}
    whole = {name: part.sum(axis=1) / all_.sum(axis=1) for name, (part, all_) in shares.items()}
    least = plans.planned * unbiased_mixed(np.minimum(plans.planned, log.rollouts), log.successes, log.rollouts)
    at_least = weights @ np.bincount(bucket, least, minlength=clusters)
    return Expectation(
        observed=_estimate(whole["observed"], clusters),
        spent=_estimate(whole["spent"], clusters),
        planned=_estimate(whole["planned"], clusters),
        gain=_estimate(whole["planned"] - whole["spent"], clusters),
        without_prior=_estimate(at_least / planned_budget.sum(axis=1), clusters),
        covered=float(plans.planned[plans.planned <= log.rollouts].sum() / plans.planned.sum()),
        by_window={name: _intervals(part, all_, clusters) for name, (part, all_) in shares.items()},
        window=window,
        window_steps=steps,
        effective_planned=effective["planned"],
        effective_spent=effective["spent"],
        clusters=clusters,
    )


def resampled(prompts: int, seed: int) -> tuple[Floats, Ints]:
    """How often each bundle of prompts occurs in every resample, the first of which is what there is, and the bundles.

    Returns:
        Shapes (1 + resamples, bundles) and (prompts,).
    """
    rng = np.random.default_rng(seed)
    clusters = min(prompts, _BUCKETS)
    bucket = rng.permutation(prompts) % clusters
    drawn = rng.multinomial(clusters, np.full(clusters, 1.0 / clusters), _REPLICATES)
    return np.concatenate([np.ones((1, clusters)), drawn]), bucket


def _windows(step: Ints) -> tuple[Ints, Ints]:
    """The window of each group, and the first and last step of each window."""
    steps, of_group = np.unique(step, return_inverse=True)
    count = min(WINDOWS, len(steps))
    window = np.arange(len(steps)) * count // len(steps)
    first = np.searchsorted(window, np.arange(count))
    last = np.append(first[1:], len(steps)) - 1
    return window[of_group], np.stack((steps[first], steps[last]))


def _cells(era: Ints, belief: Ints) -> Ints:
    """Groups that share a prior: those of an era and a belief, or of a belief where an era has few of them."""
    cell = (1 + era) * len(BELIEFS) + belief
    return np.where(np.bincount(cell)[cell] < _FEW_GROUPS, belief, cell)


def _fits(successes: Ints, drawn: Ints, bucket: Ints, weights: Floats) -> Ints:
    """The prior of the groups of a cell, in every sample of buckets."""
    base = int(drawn.max()) + 1
    distinct, which = np.unique(drawn * base + successes, return_inverse=True)
    counts = np.bincount(bucket * len(distinct) + which, minlength=weights.shape[1] * len(distinct))
    return fit_prior(distinct % base, distinct // base, weights @ counts.reshape(weights.shape[1], len(distinct)))


def _posterior(rollouts: Ints, successes: Ints, drawn: Ints, fit: int) -> Floats:
    """Chance that `rollouts` fresh ones are mixed, after `successes` of `drawn`; equal counts are worked out once."""
    a, b = candidate(fit)
    base = int(max(rollouts.max(), drawn.max())) + 1
    distinct, which = np.unique((drawn * base + successes) * base + rollouts, return_inverse=True)
    k, n = distinct // base % base, distinct // base**2
    return predicted_mixed(distinct % base, a + k, b + (n - k))[which]


def _ratio_of_binomials(part: Ints, whole: Ints, chosen: Ints) -> Floats:
    """C(part, chosen) / C(whole, chosen) for part <= whole and chosen <= whole."""
    inside = np.maximum(part, chosen)  # whatever is cut off here is zero below
    log_ratio = gammaln(inside + 1) - gammaln(inside - chosen + 1) - gammaln(whole + 1) + gammaln(whole - chosen + 1)
    return np.where(part < chosen, 0.0, np.exp(log_ratio))


def _estimate(samples: Floats, clusters: int) -> Estimate:
    value, low, high = _intervals(samples[:, None], np.ones((len(samples), 1)), clusters)[:, 0].tolist()
    return Estimate(value, low, high)


def _intervals(part: NDArray[Any], whole: NDArray[Any], clusters: int) -> Floats:
    """Value, low and high of each column; the first sample is the value itself."""
    with np.errstate(invalid="ignore", divide="ignore"):  # a sample may hold none of a window's prompts
        shares = part / whole
    low, high = np.nanquantile(shares[1:], (0.025, 0.975), axis=0)
    unknown = (high - low < _ALIKE) | (clusters < FEW_PROMPTS)
    return np.stack((shares[0], np.where(unknown, np.nan, low), np.where(unknown, np.nan, high)))
