"""How much of a step, a log or a run taught something (paper, sections 3.1 and 5.2).

A group is the rollouts of one prompt in one step. Prompts without any rollout are left out of every share; shares of
nothing are NaN.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl.belief import Belief
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.step_means import StepMeans
from knapsack_rl.validation import as_counts, as_floats, as_rates, as_successes

STATUSES = ("extremely hard", "hard", "medium", "easy", "extremely easy")


class ZeroGradientRatios(NamedTuple):
    """Shares of prompts whose rewards were all equal."""

    all_positive: float
    all_negative: float


def effective_gradient_ratio(successes: ArrayLike, rollouts: ArrayLike) -> float:
    """Share of rollouts with a non-zero advantage (paper, equation 4).

    For 0/1 rewards these are the rollouts of all groups that have both a success and a failure.

    Args:
        successes: shape (groups,), counts.
        rollouts: shape (groups,), counts of at least `successes`.

    Raises:
        InvalidInputError: lengths differ, or a count is out of range.
    """
    won, tried = as_successes(successes, rollouts)
    return _share(tried[(won > 0) & (won < tried)].sum(), tried.sum())


def effective_prompts(successes: ArrayLike, rollouts: ArrayLike) -> float:
    """Share of prompts whose group has both a success and a failure. Arguments as `effective_gradient_ratio`."""
    won, tried = as_successes(successes, rollouts)
    return _share(np.count_nonzero((won > 0) & (won < tried)), np.count_nonzero(tried))


def zero_gradient_ratios(successes: ArrayLike, rollouts: ArrayLike) -> ZeroGradientRatios:
    """Shares of prompts with (all positive, all negative) rewards (paper, section 3.1).

    Arguments as `effective_gradient_ratio`.
    """
    won, tried = as_successes(successes, rollouts)
    groups = np.count_nonzero(tried)
    return ZeroGradientRatios(
        _share(np.count_nonzero((won == tried) & (tried > 0)), groups),
        _share(np.count_nonzero((won == 0) & (tried > 0)), groups),
    )


def status(success_rates: ArrayLike) -> NDArray[np.int64]:
    """How hard prompts are (paper, section 5.2).

    0 extremely hard, p = 0; 1 hard, 0 < p <= .2; 2 medium, .2 < p < .8; 3 easy, .8 <= p < 1; 4 extremely easy, p = 1.

    Raises:
        InvalidInputError: a rate is NaN or outside [0, 1]; leave never-visited prompts out.
    """
    p = as_rates("success_rates", success_rates)
    return np.asarray(np.sum([p > 0.0, p > 0.2, p >= 0.8, p == 1.0], axis=0, dtype=np.int64))


def transition_matrix(before: ArrayLike, after: ArrayLike) -> NDArray[np.float64]:
    """How prompts moved between statuses (paper, figure 7).

    Args:
        before: shape (prompts,), success rates (floats) or statuses as `status` gives them (integers).
        after: the same prompts later, in the same order.

    Returns:
        float64, shape (5, 5): of the prompts that began in status i, the share that ended in status j. Rows sum to 1; a
        status in which no prompt began stays where it is.

    Raises:
        InvalidInputError: lengths differ, or a rate or status is out of range.
    """
    begin, end = _as_status("before", before), _as_status("after", after)
    if begin.ndim != 1 or begin.shape != end.shape:
        raise InvalidInputError(
            f"before, after: expected two vectors of the same length, got shapes {begin.shape} and {end.shape}."
        )
    counts = np.zeros((len(STATUSES), len(STATUSES)))
    np.add.at(counts, (begin, end), 1.0)
    empty = np.flatnonzero(counts.sum(axis=1) == 0)
    counts[empty, empty] = 1.0
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


class LearningProgress(NamedTuple):
    """How far success rates rise from one visit to the next, by how well prompts did at the first.

    Arrays have shape (5,), an entry for each of `PROGRESS`.

    Attributes:
        pairs: of visits; no whole numbers, since a group counts as each of its parts would.
        rise: of the success rate, mean; NaN where there are no pairs.
        error: its standard error, from the differences between steps; infinite with fewer than eight effective ones
            (Kish: fewer than there are where their numbers of pairs differ), since it is not to be trusted then.
    """

    pairs: NDArray[np.float64]
    rise: NDArray[np.float64]
    error: NDArray[np.float64]

    @property
    def lean(self) -> tuple[float, float]:
        """By how many standard errors it is clear that *hard* prompts gain most, and that they do not.

        Hard is "less than half right", easy "more than half right", and most is more than `FAVOURED` times as much.
        That somebody gains at all has to be clear as well: hard ones for the first, easy ones for the second. 0 where
        one of the rises is not known.
        """
        rise, error = (values.tolist() for values in (self.rise, self.error))
        above = _errors_above(rise[HARD], error[HARD], FAVOURED * rise[EASY], FAVOURED * error[EASY])
        hard, easy = (_errors_above(rise[kind], error[kind], 0.0, 0.0) for kind in (HARD, EASY))
        return min(above, hard), min(-above, easy)

    @property
    def told(self) -> bool:
        """Whether the rises of hard and of easy prompts have errors."""
        return bool(np.isfinite(self.error[[HARD, EASY]]).all())


def _errors_above(value: float, error: float, other: float, other_error: float) -> float:
    """By how many standard errors a value is above another that is independent of it; 0 where either is not known."""
    seen, wide = value - other, math.hypot(error, other_error)
    if not (math.isfinite(seen) and math.isfinite(wide)):
        return 0.0
    return seen / wide if wide else math.copysign(math.inf, seen) if seen else 0.0


FAVOURED = 1.5
"""What prompts with less than half right gain, in gains of those with more, from which on an allocation that favours
hard prompts can be expected to help (docs/probe.md). With as many prompts of every success rate a gain of p (1 - p) is
1, the paper's p (1 - p)^2 is 1.7, and p^(1/2) (1 - p)^2, which `adaptive` assumes, is 2.3. The limit is in the middle
of the first and the last, by ratio."""
EARLY = 3
"""Pairs of a prompt's visits, from its first visit on, that say what a task is like. As a run converges, easy prompts
stop gaining on every task, so that over more visits hard ones seem to gain most everywhere (docs/evidence/measured.md).
"""
PROGRESS = ("none right", "less than half right", "half right", "more than half right", "all right")
"""Classes of `learning_progress`."""
HARD, EASY = PROGRESS.index("less than half right"), PROGRESS.index("more than half right")
_STEPS = 8.0  # effective ones, from which a standard error is worth three of it
_LARGEST = 4096  # rollouts of a group, beyond which its halves say no more than its whole
_TELLING = 3  # rollouts of the smallest part that is less than half right, half right or more, and neither none nor all


def learning_progress(
    successes: ArrayLike,
    rollouts: ArrayLike,
    later_successes: ArrayLike,
    later_rollouts: ArrayLike,
    steps: ArrayLike | None = None,
) -> LearningProgress:
    """What prompts gain from one visit to the next: the measured counterpart of an assumed worth of gradients.

    Who is sorted by a group and compared with the same group falls back to the mean by chance alone. So one part of a
    group, m = max(N // 2, 3) of its N rollouts, tells the class, and the others tell the success rate that the later
    visit is compared with. The means are over all such parts: with k successes, a of them in the part,

        P(a) = C(k, a) C(N - k, m - a) / C(N, m),    rise = later rate - (k - a) / (N - m).

    It is unbiased where the size of a group was settled before its first outcome, as with even groups. All pairs count
    that are given; to judge a task give those of the first visits alone (`EARLY`).

    Args:
        successes: shape (pairs,), of a visit.
        rollouts: shape (pairs,), scored ones of that visit; groups of fewer than 4 and more than 4,096 are left out.
        later_successes: shape (pairs,), of the same prompt's next visit.
        later_rollouts: shape (pairs,); pairs without any are left out.
        steps: shape (pairs,), of the first visits. Pairs of a step may depend on each other, and errors come from the
            differences between steps. None: every pair stands for itself.

    Raises:
        InvalidInputError: lengths differ, or a count is out of range.

    Cost: O(pairs x largest group).
    """
    won, tried = as_successes(successes, rollouts)
    later_won, later_tried = as_successes(later_successes, later_rollouts)
    step = np.arange(len(won)) if steps is None else np.asarray(steps)
    if not won.shape == later_won.shape == step.shape:
        raise InvalidInputError(
            f"successes, later_successes, steps: expected an entry for each pair of visits, got shapes {won.shape}, "
            f"{later_won.shape} and {step.shape}."
        )
    weight, total = rises(won, tried, later_won, later_tried)
    of_step = np.unique(step, return_inverse=True)[1]
    means = progress_means()
    means.add(*(np.stack([np.bincount(of_step, kind) for kind in values], axis=1) for values in (total, weight)))
    return progress_of(means)


def progress_means() -> StepMeans:
    """Where rises are added up step by step, before any."""
    return StepMeans(len(PROGRESS), kept=1.0, least=_STEPS)


def progress_of(means: StepMeans) -> LearningProgress:
    """What was added up."""
    rise, variance = np.transpose([means.of(slice(kind, kind + 1)) for kind in range(len(PROGRESS))])
    return LearningProgress(means.sums[1].copy(), rise, np.sqrt(variance))


def rises(
    won: NDArray[np.int64], tried: NDArray[np.int64], later_won: NDArray[np.int64], later_tried: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much each pair of visits counts in each class of `PROGRESS`, and that times its rise; both shape (5, pairs).

    Args:
        won: shape (pairs,), successes of a visit.
        tried: shape (pairs,), its scored rollouts, at least `won`; groups of fewer than 4 or more than 4,096 count not.
        later_won: as `won`, of the next visit.
        later_tried: its scored rollouts; pairs without any do not count.

    Cost: O(pairs x largest group).
    """
    use = np.flatnonzero((tried > _TELLING) & (tried <= _LARGEST) & (later_tried > 0))
    weight, total = np.zeros((2, len(PROGRESS), len(won)))
    won, tried, after = won[use], tried[use], later_won[use] / later_tried[use]
    part = np.maximum(tried // 2, _TELLING)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, int(tried.max(initial=0)) + 1)))])  # of factorials
    for right in range(int(part.max(initial=-1)) + 1):
        chance = _hypergeometric(right, part, won, tried, logs)
        kind = int(right > 0) + np.sum([2 * right >= part, 2 * right > part, right >= part], axis=0)
        weight[kind, use] += chance
        total[kind, use] += chance * (after - (won - right) / (tried - part))
    return weight, total


def _hypergeometric(
    right: int,
    part: NDArray[np.int64],
    won: NDArray[np.int64],
    tried: NDArray[np.int64],
    logs: NDArray[np.float64],
) -> Any:
    """P(`right` of a random part are right), for groups with `won` of `tried`, by the logarithms of factorials."""

    def log_choose(n: NDArray[np.int64], k: NDArray[np.int64] | int) -> Any:
        return logs[n] - logs[k] - logs[n - k]

    wrong, lost = part - right, tried - won
    fits = (right <= won) & (wrong >= 0) & (wrong <= lost)
    a, b = np.where(fits, right, 0), np.where(fits, wrong, 0)
    return np.where(fits, np.exp(log_choose(won, a) + log_choose(lost, b) - log_choose(tried, part)), 0.0)


def step_metrics(
    rollouts: ArrayLike,
    successes: ArrayLike,
    *,
    scored: ArrayLike | None = None,
    live: ArrayLike | None = None,
    rewards: ArrayLike | None = None,
    visited: ArrayLike | None = None,
    belief: Belief | None = None,
    fallback: int | None = None,
    waves: int | None = None,
    costs: ArrayLike | None = None,
    expected_costs: ArrayLike | None = None,
) -> dict[str, float]:
    """What every trainer logs of a step, by the names that they all use. Arrays have shape (M,), an entry per prompt.

    N is one thing throughout: the rollouts that were spent on a prompt, whether or not they came back with a reward.

    Args:
        rollouts: N_i.
        successes: those that were right.
        scored: those that came back with the reward that decides; by default all.
        live: those with a non-zero advantage; by default the scored ones of a prompt with both outcomes.
        rewards: mean reward, NaN where there is none.
        visited: whether a prompt was visited before the step.
        belief: about the success rates, from before the step.
        fallback: rollouts that the fallback moved.
        waves: waves of the step.
        costs: what the rollouts of each prompt have cost together, in tokens or whatever the caller counts.
        expected_costs: what one rollout of each prompt was expected to cost before the step.

    Returns:
        `effective_gradient_ratio` (equation 4), `effective_prompts`, `zero_gradient_ratio/all_positive` and
        `/all_negative`, `rollouts/sum`, `/min`, `/q25`, `/median`, `/q75`, `/max`, `sitting_out` (the share of prompts
        without rollouts), `prompt_success` (the mean success rate over the others); and `prompt_reward`,
        `never_visited`, `belief/log_score` (nats a prompt), `fallback_rollouts`, `waves`, `cost/real` (sum of `costs`),
        `cost/expected` (of these rollouts) and `cost/even` (expected of even groups of as many rollouts), where these
        were given. Means of nothing are NaN.

    Raises:
        InvalidInputError: lengths differ, or a count is out of range.
    """
    count = as_counts("rollouts", rollouts)
    won, tried = as_successes(successes, count if scored is None else scored)
    mixed = (won > 0) & (won < tried)
    alive = np.where(mixed, tried, 0) if live is None else as_counts("live", live)
    beliefs = None if belief is None else belief.wins
    for name, values in (
        ("rollouts", count),
        ("live", alive),
        ("rewards", rewards),
        ("visited", visited),
        ("belief", beliefs),
        ("costs", costs),
        ("expected_costs", expected_costs),
    ):
        if values is not None and np.shape(values) != won.shape:
            raise InvalidInputError(
                f"{name}: expected one entry for each of {len(won)} prompts, got shape {np.shape(values)}."
            )
    for name, values in (("scored", tried), ("live", alive)):
        if (values > count).any():
            raise InvalidInputError(f"{name}: expected at most the rollouts of each prompt, got more.")
    there, judged, idle = count > 0, tried > 0, alive == 0
    quartiles = np.quantile(count, [0.0, 0.25, 0.5, 0.75, 1.0]) if len(count) else np.full(5, np.nan)
    found: dict[str, Any] = {
        "effective_gradient_ratio": _share(alive.sum(), count.sum()),
        "effective_prompts": _share(np.count_nonzero(alive), np.count_nonzero(there)),
        "zero_gradient_ratio/all_positive": _share(((won == tried) & judged & idle).sum(), there.sum()),
        "zero_gradient_ratio/all_negative": _share(((won == 0) & judged & idle).sum(), there.sum()),
        "sitting_out": _mean(~there),
        "prompt_success": _mean(won[judged] / tried[judged]),
        "rollouts/sum": count.sum(),
        **dict(zip((f"rollouts/{name}" for name in ("min", "q25", "median", "q75", "max")), quartiles, strict=True)),
    }
    if rewards is not None:
        known = as_floats("rewards", rewards)
        found["prompt_reward"] = _mean(known[~np.isnan(known)])
    if visited is not None:
        found["never_visited"] = _mean(~np.asarray(visited, dtype=bool))
    if belief is not None:
        found["belief/log_score"] = _mean(belief.log_likelihood(won, tried)[judged])
    if costs is not None:
        found["cost/real"] = as_floats("costs", costs).sum()
    if expected_costs is not None:
        expected = as_floats("expected_costs", expected_costs)
        found |= {"cost/expected": expected @ count, "cost/even": _mean(expected) * count.sum()}
    found |= {name: n for name, n in (("fallback_rollouts", fallback), ("waves", waves)) if n is not None}
    return {name: float(number) for name, number in found.items()}


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else float("nan")


def _as_status(name: str, values: ArrayLike) -> NDArray[np.int64]:
    rates = as_floats(name, values)
    if np.asarray(values).dtype.kind not in "iu":
        return status(as_rates(name, rates))
    statuses = as_counts(name, values)
    if statuses.size and statuses.max() >= len(STATUSES):
        raise InvalidInputError(f"{name}: expected statuses 0 to {len(STATUSES) - 1}, got {statuses.max()}.")
    return statuses


def _share(part: int | np.integer, whole: int | np.integer) -> float:
    return float(part / whole) if whole else float("nan")
