"""Which rollouts are successes, where rewards are 0 and 1, and where they are not.

An allocator counts successes. With 0/1 rewards, and whenever a threshold tells right from wrong, they are the rewards
above it. Graded rewards (partial credit, a reward model) have no such line: what matters for a gradient is whether the
rewards of a group differ, and there a success is a rollout that the group's advantages reinforce, one above its group's
mean. With 0/1 rewards both say the same.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl.advantages import is_success
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.validation import as_counts, as_floats, as_integer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

_GROUPS = 64  # looked at before anything is said about the threshold
_BLIND = 0.5  # share of the groups with different rewards that a threshold takes for all alike, from which it is said
_BINS = 6  # of the histogram, where rewards take more values


class Judge:
    """Decides which rollouts of one step are successes, wave by wave or one by one, as they come.

    Args:
        prompts: of the step, M.
        threshold: a reward is a success when it is above.
        graded: whether a reward is compared with the rewards of its group so far instead: it is a success above their
            mean. While these are all equal, the threshold decides. Of a group whose rewards differ, some rollouts
            always count as successes and some do not, so that it is known to have a gradient.

    Attributes:
        successes: shape (M,), so far.
        scored: shape (M,), rollouts with a reward so far.
        low, high: shape (M,), least and largest reward so far; infinite where there is none.
    """

    def __init__(self, prompts: int, threshold: float = 0.0, graded: bool = False) -> None:
        count = as_integer("prompts", prompts, at_least=0)
        self.threshold, self.graded = threshold, graded
        self.successes, self.scored = np.zeros((2, count), dtype=np.int64)
        self.low, self.high, self._sum = np.full(count, np.inf), np.full(count, -np.inf), np.zeros(count)

    @property
    def varied(self) -> Mask:
        """Groups whose rewards differ, shape (M,)."""
        return self.low < self.high

    @property
    def mixed(self) -> Mask:
        """Groups with both successes and others, shape (M,)."""
        return (self.successes > 0) & (self.successes < self.scored)

    def count(self, rewards: ArrayLike, groups: ArrayLike) -> tuple[Ints, Ints]:
        """Take in rollouts; returns the successes among them and how many had a reward, shape (M,) each.

        Args:
            rewards: shape (rollouts,), NaN where there is none.
            groups: shape (rollouts,), position of the prompt that each is a rollout of.

        Raises:
            InvalidInputError: shapes differ, a group is none of the step's, or a reward is infinite.
        """
        values, of = as_floats("rewards", rewards), as_counts("groups", groups)
        if values.shape != of.shape or values.ndim != 1 or of.max(initial=-1) >= len(self.scored):
            raise InvalidInputError(
                f"rewards, groups: expected a reward for each rollout and a group below {len(self.scored)}, "
                f"got shapes {values.shape} and {of.shape}, and groups up to {of.max(initial=-1)}."
            )
        if np.isinf(values).any():
            raise InvalidInputError("rewards: expected finite numbers, or NaN for none, got infinity.")
        there = ~np.isnan(values)
        values, of = values[there], of[there]
        tried = np.bincount(of, minlength=len(self.scored))
        np.minimum.at(self.low, of, values)
        np.maximum.at(self.high, of, values)
        self._sum += np.bincount(of, values, minlength=len(self.scored))
        won = np.bincount(of[self._successes(values, of, tried)], minlength=len(self.scored))
        if self.graded:  # what came earlier may all have been on the side that the new ones are on now
            total, back = self.successes + won, self.scored + tried
            all_won, all_lost = (self.varied & (total == side) for side in (back, np.zeros_like(back)))
            won = np.where(all_won, 0, np.where(all_lost, tried, won))
        self.successes, self.scored = self.successes + won, self.scored + tried
        return won, tried

    def _successes(self, values: Floats, of: Ints, tried: Ints) -> Mask:
        above = is_success(values, self.threshold)
        if not self.graded:
            return above
        mean = self._sum / np.maximum(self.scored + tried, 1)
        return np.where(self.varied[of], values > mean[of], above)


class ThresholdWatch:
    """Notices a threshold that does not say which groups have a gradient, and says so once.

    Either it separates nothing although the rewards of groups differ, or the reward that it is held against has no part
    in what is trained on, so that groups that it separates have no gradient. Looked at are as many groups at a time as
    make a share of them meaningful.
    """

    def __init__(self) -> None:
        self._varied = self._blind = self._mixed = self._idle = 0
        self._seen: deque[Floats] = deque(maxlen=_GROUPS)
        self._said = False

    def observe(self, judge: Judge, rewards: ArrayLike, live: Mask | None = None) -> str | None:
        """Take in a step, or a group that is complete; returns what there is to say, once.

        Args:
            judge: of the step, after its last rollout.
            rewards: of its rollouts, for the histogram.
            live: which groups have a gradient by all that is rewarded, shape (M,), where that is known.
        """
        if self._said:
            return None
        if not judge.graded:
            self._varied += int(judge.varied.sum())
            self._blind += int((judge.varied & ~judge.mixed).sum())
        if live is not None:
            self._mixed += int(judge.mixed.sum())
            self._idle += int((judge.mixed & ~live).sum())
        self._seen.append(np.asarray(rewards, dtype=np.float64))
        sentence = self._sentence(judge)
        self._said = sentence is not None
        return sentence

    def _sentence(self, judge: Judge) -> str | None:
        if self._varied >= _GROUPS:
            if self._blind >= _BLIND * self._varied:
                return (
                    f"success_threshold={judge.threshold:g}: of {self._varied} groups whose rewards differ, "
                    f"{self._blind} are all successes or all failures by it. They have gradients, and the allocator "
                    f"takes them for solved or hopeless. Rewards: {self._histogram()}. Set "
                    "success_threshold between right and wrong, name the reward that decides, or, where rewards are "
                    "graded, set graded_rewards=True."
                )
            self._varied = self._blind = 0
        if self._mixed >= _GROUPS:
            if self._idle >= _BLIND * self._mixed:
                return (
                    f"success_threshold={judge.threshold:g}: of {self._mixed} groups with both successes and failures, "
                    f"{self._idle} have no gradient. What decides success has no part in what is trained on, and the "
                    f"allocator places rollouts where nothing is learned. Rewards: {self._histogram()}. Give the "
                    "reward that decides a weight, or let another one decide."
                )
            self._mixed = self._idle = 0
        return None

    def _histogram(self) -> str:
        return histogram(np.concatenate(self._seen))


def histogram(rewards: ArrayLike) -> str:
    """How rewards lie, in a line: each value with its share, or six equal intervals where there are more values."""
    values = as_floats("rewards", rewards).ravel()
    values = values[~np.isnan(values)]
    if not len(values):
        return "none"
    different, counts = np.unique(values.round(6), return_counts=True)
    if len(different) <= _BINS:
        return ", ".join(
            f"{value:g} ({share:.0%})" for value, share in zip(different, counts / len(values), strict=True)
        )
    counts, edges = np.histogram(values, _BINS)
    parts = zip(edges[:-1], edges[1:], counts / len(values), strict=True)
    return ", ".join(f"{low:.3g} to {high:.3g} ({share:.0%})" for low, high, share in parts)


def gated(advantages: Floats, groups: ArrayLike, judge: Judge, gate: str) -> Floats:
    """Advantages without those of groups that the outcome says teach nothing.

    Shaped rewards give a group of failures advantages all the same: the least wrong of them is reinforced. Without such
    gradients a model is not drawn to what only looks right; with them it may find its way to the first success.

    Args:
        advantages: shape (rollouts,).
        groups: shape (rollouts,), position of each one's prompt.
        judge: of the step, after its last rollout, by the reward that decides.
        gate: `none`; `success` for 0 in groups without a success; `both` for 0 also in groups without a failure.
    """
    keep = {
        "none": np.ones_like(judge.mixed),
        "success": judge.successes > 0,
        "both": judge.mixed,
    }[gate]
    return np.where(keep[np.asarray(groups)], advantages, 0.0)


GATES = ("none", "success", "both")
"""What `outcome_gate` may be."""
