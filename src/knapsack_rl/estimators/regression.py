"""A learned belief: online logistic regression on a prompt's history and features, with intra-class correlation.

The success rate of prompt i at its next visit is believed to be

    p_i ~ Beta(mu_i kappa, (1 - mu_i) kappa),    mu_i = sigmoid(w . x_i),    kappa = 1 / rho - 1

where rho, the intra-class correlation, is how much prompts with the same x differ. x_i holds the outcome of the last
visit and a discounted memory of all before (what the prompt itself has shown), how long ago that was, the recent rate
of its categories, and numbers that the user knows about it. What these are worth, and where the policy is going, is
learned from everybody's outcomes: after a step with s_i successes and f_i failures, w and ln kappa are moved to the
maximum of

    sum_i ln [B(a_i + s_i, b_i + f_i) / B(a_i, b_i)]  -  1/2 (w - w_old)' P (w - w_old),    a_i, b_i as above,

by Newton's steps with Fisher's information (recursive Laplace approximation), P being the information so far. It fades
by exp(-visits / 1000), so that the weights follow a policy that changes. The likelihood of the outcomes, unlike their
mean, does not depend on why sampling stopped, so that visits placed in waves need no correction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from knapsack_rl.belief import Belief
from knapsack_rl.beta import digamma
from knapsack_rl.errors import InvalidInputError, StateError
from knapsack_rl.estimators.base import Estimator, Visits
from knapsack_rl.estimators.discounted import check_memory, discounted
from knapsack_rl.estimators.features import Features
from knapsack_rl.estimators.state import number, numbers, whole_number
from knapsack_rl.estimators.table import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

MEMORY = 1000.0
"""Visits after which the evidence behind the weights has faded to 1/e."""
_CATEGORY_MEMORY = 300.0  # the same for a category's rate, which moves faster
_CATEGORY_PRIOR = 4.0  # visits that the rate of everyone counts for in a category's
_DISCOUNT = 0.6  # of a prompt's older outcomes at each of its visits
_RIDGE = 1.0  # information of the prior on each weight, around 0
_NEWTON_STEPS = 2
_LONGEST_STEP = 4.0  # of any logit; a Newton step from where everyone is certain would overshoot by far
_LARGEST_WEIGHT = 1e6
_LARGEST_LOGIT = 9.0  # 1e-4: no prompt is given up for good
_HISTORY = 9  # columns of x that do not come from features
_KAPPA = (-2.0, 5.0)  # bounds of ln kappa: rho between .01 and .88


class Regression(Estimator):
    """The learned belief. It needs no setting, and knows something from the first outcomes of the first epoch on.

    Memory: 44 to 52 bytes a known prompt, half as much again after it has grown; the saved state is 36. A belief
    costs O(M d), an update O(M d^2 + d^3) for M prompts and d = 9 + categories + numbers.
    """

    def __init__(self, **columns: DTypeLike) -> None:
        super().__init__(wins=np.float32, losses=np.float32, visited=np.int64, **columns)
        self._categories = Table(rate=np.float64, weight=np.float64, visited=np.int64)
        self._everyone = np.array([1.0, 2.0])  # sum and weight of recent posterior means
        self._moments = np.zeros((3, 0))  # of the numbers: weight, mean, mean square
        self._columns: list[str] | None = None
        self.clock = 0  # visits so far
        self._weights, self._information = np.zeros(0), np.zeros((0, 0))
        self._log_kappa, self._kappa_information = 0.0, 1.0

    def belief(self, keys: Keys, features: Features) -> Belief:
        """Beta(a_i, b_i) of the success rates at the next visit."""
        if not len(keys):  # no column to check, and none to tell text from numbers by
            return _belief(np.zeros(0), self._log_kappa)
        self.check(features)
        x = self._design(keys, features)
        weights = self._weights if self._weights.size else np.zeros(x.shape[1])
        return _belief(x @ weights, self._log_kappa)

    def learn(self, visits: Visits) -> None:
        """Learn weights, the correlation and the categories' rates. O(V d^2 + d^3).

        A step shows the policy of its beginning: its outcomes are that old. Where a later step has been told of already
        they teach the weights nothing: what they followed is unknown.
        """
        self._learn_moments(visits.features.stacked(len(visits.keys)))
        x = self._design(visits.keys, visits.features)
        if self._columns is None:
            self._columns = _names(visits.features)
            self._weights, self._information = np.zeros(x.shape[1]), _RIDGE * np.eye(x.shape[1])
        if visits.newest.any():
            self._learn_weights(x[visits.newest], visits.won[visits.newest], visits.tried[visits.newest])
        posterior = _belief(x @ self._weights, self._log_kappa).given(visits.won, visits.tried).mean
        self._learn_categories(visits.features, posterior)

    def remember(self, rows: Ints, visits: Visits) -> None:
        """Take the visits into the discounted memory, late ones as the visit before the last. O(V)."""
        discounted(self.table, rows, visits, _DISCOUNT)
        # A step may outlive the loading of an older state.
        self.table["visited"][rows[visits.newest]] = min(visits.began.clock, self.clock) + len(rows)
        self.clock += len(rows)

    def _design(self, keys: Keys, features: Features) -> Floats:
        """x_i, shape (M, d)."""
        rows = self.table.find(keys)
        seen = (rows >= 0).astype(np.float64)
        history = ("won", "tried", "wins", "losses", "visited")
        won, tried, wins, losses, visited = (self.table.read(name, rows) for name in history)
        last = _logit((won + 0.5) / (tried + 1.0))
        memory = _logit((wins + 0.5) / (wins + losses + 1.0))
        # 0 after a whole epoch, so that where every prompt is visited once an epoch this column is idle.
        age = np.log1p((self.clock - visited) / max(len(self), 1)) - np.log(2.0)
        never_solved = wins == 0.0
        shown = (last, memory, won == 0.0, won == tried, never_solved, age, age * memory)
        everyone = self._everyone[0] / self._everyone[1]
        columns = [np.ones(len(keys)), seen, *(seen * column for column in shown)]
        for category in features.categories.values():
            rate = self._category_rates(category, everyone)
            columns.append(_logit(np.clip(rate, 0.005, 0.995)) - _logit(np.clip(everyone, 0.01, 0.99)))
        return np.concatenate([np.stack(columns, axis=1), self._standardised(features.stacked(len(keys)))], axis=1)

    def _learn_weights(self, x: Floats, won: Ints, tried: Ints) -> None:
        faded = np.exp(-len(x) / MEMORY)
        prior = faded * self._information + (1.0 - faded) * _RIDGE * np.eye(x.shape[1])
        centre = np.linalg.solve(prior, faded * self._information @ self._weights)
        kappa_prior, kappa_centre = faded * self._kappa_information + (1.0 - faded), self._log_kappa
        weights, log_kappa = self._weights, self._log_kappa
        for _ in range(_NEWTON_STEPS):
            belief = _belief(x @ weights, log_kappa)
            mean, kappa = belief.mean, np.exp(log_kappa)
            towards_wins = digamma(belief.wins + won) - digamma(belief.wins)
            towards_losses = digamma(belief.losses + (tried - won)) - digamma(belief.losses)
            total = digamma(kappa + tried.astype(np.float64)) - digamma(np.full(len(x), kappa))
            slope = mean * (1.0 - mean) * kappa * (towards_wins - towards_losses)  # d ln likelihood / d (w . x)
            effective = tried / (1.0 + (tried - 1.0) / (1.0 + kappa))  # rollouts, less what they have in common
            information = prior + (x * (effective * mean * (1.0 - mean))[:, None]).T @ x
            change = np.linalg.solve(information, x.T @ slope - prior @ (weights - centre))
            longest = float(np.abs(x @ change).max())
            weights = weights + (change if longest <= _LONGEST_STEP else change * (_LONGEST_STEP / longest))
            slopes = kappa * (mean * towards_wins + (1.0 - mean) * towards_losses - total)  # ... / d ln kappa
            kappa_information = kappa_prior + float(slopes @ slopes)
            step = (float(slopes.sum()) - kappa_prior * (log_kappa - kappa_centre)) / kappa_information
            log_kappa = float(np.clip(log_kappa + np.clip(step, -0.5, 0.5), *_KAPPA))
        self._weights, self._information = weights, information
        self._log_kappa, self._kappa_information = log_kappa, kappa_information

    def _learn_categories(self, features: Features, posterior: Floats) -> None:
        faded = np.exp(-len(posterior) / _CATEGORY_MEMORY)
        self._everyone = faded * self._everyone + [posterior.sum(), len(posterior)]
        for category in features.categories.values():
            values, part = np.unique(category, return_inverse=True)
            rows = self._categories.rows(values)
            table = self._categories
            left = np.exp(-(self.clock - table["visited"][rows]) / _CATEGORY_MEMORY)
            table["rate"][rows] = left * table["rate"][rows] + np.bincount(part, posterior)
            table["weight"][rows] = left * table["weight"][rows] + np.bincount(part)
            table["visited"][rows] = self.clock

    def _category_rates(self, category: Keys, everyone: float) -> Floats:
        rows = self._categories.find(category)
        rate, weight, visited = (self._categories.read(name, rows) for name in self._categories.columns)
        left = np.exp(-(self.clock - visited) / _CATEGORY_MEMORY)
        return np.asarray((left * rate + _CATEGORY_PRIOR * everyone) / (left * weight + _CATEGORY_PRIOR))

    def _learn_moments(self, numbers: Floats) -> None:
        """Weight, mean and summed squares of deviation of each number, by the pairwise update of Chan et al. (1979)."""
        if not self._moments.shape[1]:
            self._moments = np.zeros((3, numbers.shape[1]))
        weight, mean, squares = self._moments
        change = numbers.mean(axis=0) - mean
        total = weight + len(numbers)
        squares = (
            squares + ((numbers - numbers.mean(axis=0)) ** 2).sum(axis=0) + change**2 * weight * len(numbers) / total
        )
        self._moments = np.stack((total, mean + change * len(numbers) / total, squares))

    def _standardised(self, numbers: Floats) -> Floats:
        if not self._moments.shape[1]:
            return np.zeros_like(numbers)  # nothing is known of their scale yet
        weight, mean, squares = self._moments
        deviation = np.sqrt(squares / np.maximum(weight, 1.0))
        varies = deviation > 1e-9 * (1.0 + np.abs(mean))
        return np.where(varies, (numbers - mean) / np.where(varies, deviation, 1.0), 0.0)

    def check(self, features: Features) -> None:
        """Refuse other columns than those of the first call."""
        if self._columns is not None and _names(features) != self._columns:
            raise InvalidInputError(
                f"features: expected the columns of the first call, {self._columns or 'none'}, in every ask and tell, "
                f"got {_names(features) or 'none'}."
            )

    def state_dict(self) -> dict[str, Any]:
        """As in `Estimator`, and everything that was learned from everybody."""
        return {
            "columns": self._columns,
            "visits": self.clock,
            "log_kappa": self._log_kappa,
            "kappa_information": self._kappa_information,
            "everyone": self._everyone.copy(),
            "moments": self._moments.copy(),
            "weights": self._weights.copy(),
            "information": self._information.copy(),
            **super().state_dict(),
            **self._categories.state_dict("category_"),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As in `Estimator`."""
        prompts, categories = self._restored(state), self._categories.restored(state, "category_")
        visits, columns = whole_number(state, "visits"), _saved_names(state)
        texts, width = _shape(columns or [])
        size = 0 if columns is None else _HISTORY + texts + width
        shapes = {"everyone": (2,), "moments": (3, width), "weights": (size,), "information": (size, size)}
        everyone, moments, weights, information = (numbers(state, name, shape) for name, shape in shapes.items())
        log_kappa = number(state, "log_kappa", *_KAPPA)
        kappa_information = number(state, "kappa_information", 0.0, np.finfo(np.float64).max)
        if not (0.0 < everyone[0] < everyone[1] and np.all(moments[0] > 0.0) and np.all(moments[2] >= 0.0)):
            raise StateError("state: expected positive weights of everyone and of the moments.")
        if np.any(np.abs(weights) > _LARGEST_WEIGHT):
            raise StateError(f"state: expected weights between -{_LARGEST_WEIGHT:g} and {_LARGEST_WEIGHT:g}.")
        if kappa_information == 0.0 or not _positive_definite(information):
            raise StateError("state: expected positive information of everything learned.")
        for table in (prompts, categories):
            if not np.all((table["visited"] >= 0) & (table["visited"] <= visits)):
                raise StateError("state: expected visits that are not after the last.")
        if not np.all((categories["rate"] >= 0) & (categories["rate"] <= categories["weight"])):
            raise StateError("state: expected 0 <= rate <= weight of every category.")
        check_memory(prompts)
        self._take_over(prompts)
        self._categories = categories
        self._columns, self.clock = columns, visits
        self._log_kappa, self._kappa_information = log_kappa, kappa_information
        self._everyone, self._moments, self._weights, self._information = everyone, moments, weights, information


def _belief(logits: Floats, log_kappa: float) -> Belief:
    mean = 1.0 / (1.0 + np.exp(-np.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT)))
    kappa = np.exp(log_kappa)
    return Belief(mean * kappa, (1.0 - mean) * kappa)


def _positive_definite(matrix: Floats) -> bool:
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return bool(np.allclose(matrix, matrix.T))


def _logit(p: Any) -> Any:
    return np.log(p / (1.0 - p))


def _saved_names(state: Mapping[str, Any]) -> list[str] | None:
    """What `_names` gave when the state was saved, None before the first visit."""
    names = state.get("columns", ())
    kinds = re.compile(r".* \((text|numbers: \d{1,9})\)", re.DOTALL)
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) and kinds.fullmatch(name) for name in names)
    ):
        raise StateError(f"state: expected the names of columns in a list, or null, got {names!r}.")
    return names


def _shape(names: list[str]) -> tuple[int, int]:
    """How many columns of text, and how many numbers a prompt, `_names` speaks of."""
    widths = [int(found[1]) for name in names if (found := re.search(r" \(numbers: (\d{1,9})\)$", name))]
    return sum(name.endswith(" (text)") for name in names), sum(widths)


def _names(features: Features) -> list[str]:
    """Name and kind of every column, so that a change of either is noticed."""
    numbers = [f"{name} (numbers: {column.shape[1]})" for name, column in features.numbers.items()]
    return [*(f"{name} (text)" for name in features.categories), *numbers]
