"""Means over the steps of a run, with errors that hold although the values of a step depend on each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class StepMeans:
    """Means of values in several classes over the steps of a run, older steps fading, with their standard errors.

    Values of one step may depend on each other, within a class and across, so the errors come from the differences
    between steps. Some classes together have in step t the sum x_t of n_t values; the step has the weight w_t. For
    m = sum w_t x_t / sum w_t n_t,

        var(m) = sum w_t^2 (x_t - m n_t)^2 / (sum w_t n_t)^2 / (1 - 1/T),    T = (sum w_t n_t)^2 / sum w_t^2 n_t^2,

    where T is the effective number of steps (Kish): as many as there are where all weigh the same.

    Args:
        classes: how many.
        kept: of the weight of older steps at a new one, in (0, 1].
        least: T from which there is a variance.

    Attributes:
        sums: shape (2, classes): sum of w_t times x_t, and times n_t.
        products: shape (2 classes, 2 classes): sum of w_t^2 v_t v_t', where v_t is x_t and n_t of all classes in a row.
    """

    def __init__(self, classes: int, kept: float, least: float) -> None:
        self._kept, self._least = kept, least
        self.sums: Floats = np.zeros((2, classes))
        self.products: Floats = np.zeros((2 * classes, 2 * classes))

    def add(self, x: ArrayLike, n: ArrayLike) -> None:
        """Take in a step's sums and counts (or whatever else they are to be divided by).

        Args:
            x: shape (classes,); or (steps, classes) for several steps, the last one last.
            n: of the same shape.
        """
        steps = np.concatenate([np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (x, n)], axis=1)
        weighed = steps * self._kept ** np.arange(len(steps))[::-1, None]
        old = self._kept ** len(steps)
        self.sums = old * self.sums + weighed.sum(axis=0).reshape(2, -1)
        self.products = old**2 * self.products + weighed.T @ weighed

    def of(self, classes: slice) -> tuple[float, float]:
        """Mean of these classes as one, and the variance of its error.

        The mean is NaN where nothing was seen, the variance infinite where too little was.
        """
        mean, residual, left = self._mean(classes)
        return mean, self._square(residual) / left if left else math.inf

    def ratio(self, classes: slice, unit: slice) -> tuple[float, float]:
        """Mean of some classes over that of others, and the variance of its error, which both errors enter together.

        NaN where nothing was seen of either, and an infinite variance where too little was.
        """
        (mean, residual, left), (under, under_residual, under_left) = self._mean(classes), self._mean(unit)
        if math.isnan(mean) or math.isnan(under) or under == 0.0:
            return math.nan, math.inf
        ratio = mean / under
        if not (left and under_left):
            return ratio, math.inf
        return ratio, self._square((residual - ratio * under_residual) / under) / min(left, under_left)

    def _mean(self, classes: slice) -> tuple[float, Floats, float]:
        """A mean; what its error is made of, as weights of v_t; and 1 - 1/T, or 0 where T is too small."""
        number = self.sums.shape[1]
        total, count = self.sums[:, classes].sum(axis=1).tolist()
        weights = np.zeros((2, number))
        if count == 0.0:
            return math.nan, weights.ravel(), 0.0
        mean = total / count
        weights[:, classes] = [[1.0 / count], [-mean / count]]
        share = float(self.products[number:, number:][classes, classes].sum()) / count**2  # 1/T
        return mean, weights.ravel(), 1.0 - share if share * self._least <= 1.0 else 0.0

    def _square(self, weights: Floats) -> float:
        return max(float(weights @ self.products @ weights), 0.0)

    def state_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"sums": self.sums.tolist(), "products": self.products.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what was added.

        Raises:
            KeyError, TypeError, ValueError: the state is not what `state_dict` writes.
        """
        sums, products = (np.array(state[name], dtype=np.float64) for name in ("sums", "products"))
        for found, expected in ((sums, self.sums), (products, self.products)):
            if found.shape != expected.shape or not np.isfinite(found).all():
                raise ValueError(f"expected finite numbers of shape {expected.shape}, got shape {found.shape}")
        count, squares = sums[1], np.diag(products)
        if np.any(count < 0.0) or np.any(squares < 0.0) or np.any((count > 0.0) & (squares[len(count) :] == 0.0)):
            raise ValueError("expected counts and squares of 0 or more, and a square wherever there is a count")
        self.sums, self.products = sums, products
