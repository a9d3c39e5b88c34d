"""What a group's gradient is worth to the other prompts of its step, measured from rollouts that are paid for anyway.

Let u_i be the gradient of group i, the mean over its rollouts of advantage times grad log pi, and

    o_j = sigma_j N_j / (N_j - 1) u_j,    sigma_j = the deviation that its advantages were divided by,

which is an unbiased estimate of grad p_j (and 0 for a group without spread). Adam moves parameter c by about
u_ic / s_c, where s_c^2 is the mean square of its gradient. Such a step changes the success rate of prompt j by its
product with grad p_j, so that

    influence of group i = mean over j != i of sum_c u_ic o_jc / s_c

estimates how far group i pulls the mean success rate of its step up. The other prompts of a step are a sample of those
that accuracy is measured on: it takes no held-out set and no further rollout.

The sum may go over any fixed set of parameters (`gradients.GroupGradients`), and s_c^2 is the mean over the step's
groups with a gradient. Influences are divided by sum_c s_c, the mean of sum_c u_ic^2 / s_c, so that steps can be added
up. docs/influence.md has what this can and cannot say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl.errors import InvalidInputError, StateError
from knapsack_rl.validation import as_floats, as_successes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Of the bands of believed success rates; a rate on an edge belongs to the band above it, and 1 to the last."""
BANDS = tuple(f"{low:g}-{high:g}" for low, high in pairwise(EDGES))
_CENTRES = tuple((low + high) / 2.0 for low, high in pairwise(EDGES))
_MIDDLE = slice(2, 5)  # bands from .25 to .9, in which a gradient is seldom luck
_KEPT = 0.985  # of older steps at a new one: policies move
_PRIOR_DEVIATION = 0.5  # of a band's worth, in that of the middle, before anything is known about it
_LEAST = 0.05  # brake of what is worth nothing, so that it goes on being measured
_STEPS = 3  # from which a standard error means anything
_SHOWN = 20  # categories of a column in the metrics; with more there are none of it
_MOST = 1000  # different values from which a column tells prompts apart and not kinds of prompts


class _Means:
    """Means of values in several classes over the steps of a run, older steps fading, with their standard errors.

    Values of one step may depend on each other, so the errors come from the differences between steps: for the ratio
    m = sum x_t / sum n_t of a class's sums x_t and counts n_t, var(m) = sum (x_t - m n_t)^2 / (sum n_t)^2.
    """

    def __init__(self, sums: Floats) -> None:
        self.sums = sums
        """Shape (6, classes): of x, n, x^2, x n, n^2 and of steps with n > 0."""

    def observe(self, values: Floats, classes: NDArray[np.int64]) -> None:
        """Take in a step's values, each of one of the classes."""
        number = self.sums.shape[1]
        x = np.bincount(classes, values, number).astype(np.float64)
        self.add(x, np.bincount(classes, minlength=number).astype(np.float64))

    def add(self, x: Floats, n: Floats) -> None:
        """Take in a step's sums and counts (or whatever else they are to be divided by), shape (classes,)."""
        self.sums = _KEPT * self.sums + [x, n, x * x, x * n, n * n, n > 0]

    def of_each(self) -> tuple[Floats, Floats]:
        """Means and variances of their errors, shape (classes,); NaN and infinite where too little is known."""
        x, n, xx, xn, nn, steps = self.sums
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = x / n
            spread = np.maximum(xx - 2.0 * mean * xn + mean**2 * nn, 0.0) / n**2 * steps / (steps - 1.0)
        return mean, np.where(steps >= _STEPS, spread, np.inf)

    def of_all(self, classes: slice = slice(None)) -> tuple[float, float]:
        """As `of_each`, for these classes as one; within a step they count as independent."""
        x, n, xx, xn, nn, steps = self.sums[:, classes]
        if not steps.max() >= _STEPS:
            return math.nan, math.inf
        mean = float(x.sum() / n.sum())
        return mean, max(float((xx - 2.0 * mean * xn + mean**2 * nn).sum()), 0.0) / float(n.sum()) ** 2


class Influence:
    """Learns what gradients are worth, by believed success rate and by category, and how noisy they are.

    Attributes:
        steps: steps that had gradients to learn from.

    Cost: O(M d) a step for gradients of d numbers; 300 bytes, and as much for every category.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._bands = _Means(np.zeros((6, len(BANDS))))
        self._categories: dict[str, dict[str, _Means]] = {}
        self._signal = _Means(np.zeros((6, 1)))  # |E g|^2, over the trace of the covariance

    def observe(
        self,
        gradients: ArrayLike,
        successes: ArrayLike,
        rollouts: ArrayLike,
        rates: ArrayLike,
        categories: Mapping[str, Sequence[str]] | None = None,
        *,
        normalised: bool = True,
    ) -> None:
        """Take in a step's gradients. Arrays have M rows, one for each prompt.

        Args:
            gradients: shape (M, d): the mean over the prompt's rollouts of advantage times the gradient of the
                log-probability (or of minus that, for all alike), in any d parameters; 0 for a group without spread.
            successes: shape (M,), right rollouts.
            rollouts: shape (M,), scored ones.
            rates: shape (M,), believed success rates from before the step, NaN where nothing was known. Such prompts
                count in the influence of the others, and not in a band.
            categories: name of a column -> the category of each prompt.
            normalised: whether advantages were divided by their group's deviation.

        Raises:
            InvalidInputError: shapes differ, or a gradient is not finite. Nothing has been learned then.
        """
        u = as_floats("gradients", gradients)
        won, tried = as_successes(successes, rollouts)
        believed = as_floats("rates", rates)
        columns = categories or {}
        if u.ndim != 2 or not len(u) == len(won) == len(believed) or any(len(c) != len(won) for c in columns.values()):
            raise InvalidInputError(
                f"gradients, rates, categories: expected a row for each of {len(won)} prompts, got gradients of shape "
                f"{u.shape}, rates of shape {believed.shape} and categories of {[len(c) for c in columns.values()]}."
            )
        if not np.isfinite(u).all():
            raise InvalidInputError("gradients: expected finite numbers, got some that are not. Leave such a step out.")
        live = np.flatnonzero((won > 0) & (won < tried))
        groups = int(np.count_nonzero(tried > 1))  # of a prompt without one nothing is known in this step
        u, believed = u[live], believed[live]
        length = float(np.square(u).sum())
        if len(live) < 2 or length == 0.0:
            return  # a group has nobody to be compared with
        u = u * math.sqrt(len(live) / length)
        size = np.sqrt(np.square(u).mean(axis=0))  # of each parameter, as Adam divides by
        pull = np.divide(u, size, out=np.zeros_like(u), where=size > 0.0)
        value = _influences(pull, _success_gradients(u, won[live], tried[live], normalised), groups) / size.sum()
        known = ~np.isnan(believed)
        self.steps += 1
        self._bands.observe(value[known], np.searchsorted(EDGES[1:-1], believed[known], side="right"))
        for name, column in columns.items():
            self._observe_column(self._categories.setdefault(name, {}), np.array(column, dtype=str)[live], value)
        self._signal.add(*_signal_and_noise(u, groups))

    @staticmethod
    def _observe_column(known: dict[str, _Means], column: NDArray[np.str_], value: Floats) -> None:
        new = set(column.tolist()) - known.keys()
        if len(known) + len(new) > _MOST:
            return
        known |= {kind: _Means(np.zeros((6, 1))) for kind in sorted(new)}
        for kind, means in known.items():  # the others fade
            here = value[column == kind]
            means.observe(here, np.zeros(len(here), dtype=np.int64))

    @property
    def worth(self) -> tuple[Floats, Floats]:
        """Of a group in each of `BANDS` with a gradient: mean influence and its standard error.

        In units of the mean over all bands; NaN where nothing was seen, and all NaN where that mean is not above 0;
        infinite errors where too little was seen.
        """
        (mean, variance), unit = self._bands.of_each(), self._unit
        return mean / unit, np.sqrt(variance) / unit

    def of(self, low: float = 0.0, high: float = 1.0) -> tuple[float, float]:
        """Of a group with a gradient in the bands from `low` to `high`, two of `EDGES`: as `worth`, in another unit.

        Mean influence and its standard error, in units of what a gradient has in common with itself. Unlike `worth` it
        has a meaning where the mean over all bands is not above 0.
        """
        mean, variance = self._bands.of_all(slice(EDGES.index(low), EDGES.index(high)))
        return mean, math.sqrt(variance)

    @property
    def _unit(self) -> float:
        """The mean influence of all groups; NaN where it is not above 0, as it is no unit then."""
        mean, _ = self._bands.of_all()
        return mean if mean > 0.0 else math.nan

    def worth_by_category(self, column: str) -> dict[str, tuple[float, float]]:
        """As `worth`, for each category of a column."""
        found = {}
        for kind, means in self._categories.get(column, {}).items():
            mean, variance = means.of_each()
            found[kind] = (float(mean[0] / self._unit), float(np.sqrt(variance[0]) / self._unit))
        return found

    @property
    def noise_scale(self) -> float:
        """Prompts of a step from which more of them stop paying (the simple noise scale, arXiv 1812.06162, eq. 2.9).

        The trace of the covariance of the prompts' gradients over the squared length of their mean, at the group sizes
        of the run. Far above the prompts of a step: noise is what limits it, and more rollouts make better steps.
        Below: more steps would do more. NaN before anything is known, infinite where no common direction is seen.
        """
        return _inverse(self._signal.of_each()[0].item())

    @property
    def noise_interval(self) -> tuple[float, float]:
        """The noise scales within two standard errors, in prompts; infinite above where the steps agree on nothing."""
        mean, variance = (values.item() for values in self._signal.of_each())
        if not math.isfinite(variance):
            return math.nan, math.nan
        error = 2.0 * math.sqrt(variance)
        return _inverse(mean + error), _inverse(mean - error)

    def brake(self, rates: ArrayLike) -> Floats:
        """By what the assumed value of a gradient is to be multiplied for prompts of these believed success rates.

        In each band: its measured worth over that of the bands from .25 to .9 together, drawn towards 1 as far as that
        is uncertain (the posterior mean under a normal prior of mean 1 and deviation 1/2), and never above 1. Between
        the middles of bands linear in the rate. 1 for all while the bands in the middle are not two standard errors
        above 0, and where a rate is NaN.

        Returns:
            float64 in [0.05, 1], of the shape of `rates`.

        Cost: O(M).
        """
        p = as_floats("rates", rates)
        middle, middle_variance = self._bands.of_all(_MIDDLE)
        if not middle > 2.0 * math.sqrt(middle_variance):
            return np.ones_like(p)
        mean, variance = self._bands.of_each()
        ratio = np.where(np.isfinite(variance), mean / middle, 1.0)
        uncertain = (variance + ratio**2 * middle_variance) / middle**2
        trust = _PRIOR_DEVIATION**2 / (_PRIOR_DEVIATION**2 + uncertain)
        factors = np.clip(1.0 + trust * (ratio - 1.0), _LEAST, 1.0)
        return np.where(np.isnan(p), 1.0, np.interp(p, _CENTRES, factors))

    def metrics(self) -> dict[str, float]:
        """`influence/BAND`, `influence/COLUMN/CATEGORY` (in units of the mean, as `worth`) and `noise_scale` (prompts).

        What is not known yet is left out.
        """
        found = dict(zip((f"influence/{band}" for band in BANDS), self.worth[0].tolist(), strict=True))
        for column, kinds in self._categories.items():
            if len(kinds) <= _SHOWN:
                found |= {f"influence/{column}/{kind}": w for kind, (w, _) in self.worth_by_category(column).items()}
        found["noise_scale"] = self.noise_scale
        return {name: number for name, number in found.items() if math.isfinite(number)}

    # Keep

    def state_dict(self) -> dict[str, Any]:
        """What was learned, as JSON."""
        return {
            "steps": self.steps,
            "bands": self._bands.sums.tolist(),
            "categories": {
                column: {kind: means.sums.tolist() for kind, means in kinds.items()}
                for column, kinds in self._categories.items()
            },
            "signal": self._signal.sums.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what was learned.

        Raises:
            StateError: the state is not what `state_dict` writes. Nothing has changed then.
        """
        try:
            steps, signal = int(state["steps"]), _Means(_numbers(state["signal"], (6, 1)))
            bands = _Means(_numbers(state["bands"], (6, len(BANDS))))
            categories = {
                str(column): {str(kind): _Means(_numbers(sums, (6, 1))) for kind, sums in kinds.items()}
                for column, kinds in state["categories"].items()
            }
            if steps < 0:
                raise ValueError("a count below 0")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StateError(f"state: expected that of Influence as state_dict writes it, got {error!r}.") from error
        self.steps, self._bands, self._categories, self._signal = steps, bands, categories, signal


def _success_gradients(u: Floats, won: Ints, tried: Ints, normalised: bool) -> Floats:
    """o_j = sigma_j N_j / (N_j - 1) u_j for groups of 2 and more, where the baseline is their own mean."""
    share = won / tried
    deviation = np.sqrt(share * (1.0 - share)) if normalised else np.ones_like(share)
    return np.asarray((deviation * tried / (tried - 1))[:, None] * u)


def _influences(u: Floats, o: Floats, groups: int) -> Floats:
    """Mean over j != i of <u_i, o_j> in a step of so many groups, those not among these rows without a gradient."""
    others = u @ o.sum(axis=0) - (u * o).sum(axis=1)
    return np.asarray(others / (groups - 1))


def _signal_and_noise(u: Floats, groups: int) -> tuple[Floats, Floats]:
    """Unbiased estimates, from a step's gradients, of |E u|^2 and of the trace of their covariance; shape (1,)."""
    squares, total = float(np.square(u).sum()), u.sum(axis=0)
    signal = (float(total @ total) - squares) / (groups * (groups - 1))
    return np.array([signal]), np.array([squares / groups - signal])


def _inverse(signal: float) -> float:
    """The noise scale of a ratio of signal to noise."""
    return 1.0 / signal if signal > 0.0 else math.nan if math.isnan(signal) else math.inf


def _numbers(values: Any, shape: tuple[int, ...]) -> Floats:
    numbers = np.array(values, dtype=np.float64)
    if numbers.shape != shape or not np.isfinite(numbers).all():
        raise ValueError(f"expected finite numbers of shape {shape}, got shape {numbers.shape}")
    return numbers
