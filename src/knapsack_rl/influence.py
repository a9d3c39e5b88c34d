"""What a group's gradient is worth to the other prompts of its step, measured from rollouts that are paid for anyway.

Let u_i be the gradient of group i, the mean over its scored rollouts of advantage times grad log pi, and

    o_j = D_j N_j / (N_j - 1) u_j,    D_j = what the distances of its rewards from their mean were divided by,

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
from knapsack_rl.step_means import StepMeans
from knapsack_rl.validation import as_floats, as_successes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Of the bands of believed success rates; a rate on an edge belongs to the band above it, and 1 to the last."""
BANDS = tuple(f"{low:g}-{high:g}" for low, high in pairwise(EDGES))
_CENTRES = np.array([(low + high) / 2.0 for low, high in pairwise(EDGES)])
_EACH = tuple(slice(place, place + 1) for place in range(len(BANDS)))
_MIDDLE = slice(2, 5)  # bands from .25 to .9, in which a gradient is seldom luck
ASSUMED = (0.5, 2.0)
"""Exponents of the worth that `adaptive` assumes: flatter than the paper's p (1 - p)^2 where p is small, so that it
keeps trying what is hard and needs no fallback (docs/beliefs.md)."""
_KEPT = 0.985  # of older steps at a new one: policies move
_PRIOR_DEVIATION = 0.5  # of a band's worth, in that of the middle, before anything is known about it
_LEAST = 0.05  # of the assumed worth is left to what is worth nothing, so that it goes on being measured
_STEPS = 2.5  # T from which a standard error means anything: three steps that fade, or more that are uneven
_LARGEST = 1e100  # divisor, up to which squares of influence stay finite
_SHOWN = 20  # categories of a column in the metrics; with more there are none of it
_MOST = 1000  # different values from which a column tells prompts apart and not kinds of prompts


class Influence:
    """Learns what gradients are worth, by believed success rate and by category, and how noisy they are.

    Attributes:
        steps: steps that had gradients to learn from.

    Cost: O(M d) a step for gradients of d numbers; 1.3 KB, and 48 bytes for every category.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._bands = _means(len(BANDS))
        self._categories: dict[str, dict[str, StepMeans]] = {}
        self._signal = _means(1)  # |E g|^2, over the trace of the covariance

    def observe(
        self,
        gradients: ArrayLike,
        successes: ArrayLike,
        rollouts: ArrayLike,
        rates: ArrayLike,
        categories: Mapping[str, Sequence[str]] | None = None,
        *,
        divisors: ArrayLike | None = None,
    ) -> None:
        """Take in a step's gradients. Arrays have M rows, one for each prompt.

        Args:
            gradients: shape (M, d): the mean over the prompt's scored rollouts of advantage times the gradient of the
                log-probability (or of minus that, for all alike), in any d parameters; 0 for a group without spread.
            successes: shape (M,), right rollouts.
            rollouts: shape (M,), scored ones.
            rates: shape (M,), believed success rates from before the step, NaN where nothing was known. Such prompts
                count in the influence of the others, and not in a band.
            categories: name of a column -> the category of each prompt.
            divisors: shape (M,), what the distances of each prompt's rewards from their mean were divided by to give
                advantages (`advantages.divisors`); None: by the deviation of a sample, as GRPO does in TRL and verl.

        Raises:
            InvalidInputError: shapes differ, a gradient is not finite, or a divisor is not between 0 and 1e100. Nothing
                has been learned then.
        """
        u = as_floats("gradients", gradients)
        won, tried = as_successes(successes, rollouts)
        believed = as_floats("rates", rates)
        divided = _sample_deviations(won, tried) if divisors is None else as_floats("divisors", divisors)
        columns = categories or {}
        if (
            u.ndim != 2
            or not len(u) == len(won)
            or not believed.shape == divided.shape == won.shape
            or any(len(c) != len(won) for c in columns.values())
        ):
            raise InvalidInputError(
                f"gradients, rates, divisors, categories: expected a row for each of {len(won)} prompts, got shapes "
                f"{u.shape}, {believed.shape}, {divided.shape} and lengths {[len(c) for c in columns.values()]}."
            )
        if not np.isfinite(_largest(u)):
            raise InvalidInputError("gradients: expected finite numbers, got some that are not. Leave such a step out.")
        wrong = ~((divided >= 0.0) & (divided <= _LARGEST))
        if wrong.any():
            raise InvalidInputError(f"divisors: expected numbers between 0 and {_LARGEST:g}, got {divided[wrong][0]}.")
        live = np.flatnonzero((won > 0) & (won < tried))
        groups = int(np.count_nonzero(tried > 1))  # of a prompt without one nothing is known in this step
        u, believed = u[live], believed[live]
        # By a power of two, which rounds nothing, so that squares neither overflow nor vanish.
        u = np.ldexp(u, -np.frexp(_largest(u))[1])
        length = float(np.vdot(u, u))
        if len(live) < 2 or length == 0.0:
            return  # a group has nobody to be compared with
        u *= math.sqrt(len(live) / length)
        size = np.sqrt(np.einsum("ij,ij->j", u, u) / len(live))  # of each parameter, as Adam divides by
        value = _influences(u, _success_weights(divided[live], tried[live]), size, groups) / size.sum()
        known = ~np.isnan(believed)
        self.steps += 1
        bands = np.searchsorted(EDGES[1:-1], believed[known], side="right")
        self._bands.add(np.bincount(bands, value[known], len(BANDS)), np.bincount(bands, minlength=len(BANDS)))
        for name, column in columns.items():
            kinds = [str(column[place]) for place in live.tolist()]
            self._observe_column(self._categories.setdefault(name, {}), kinds, value)
        self._signal.add(*_signal_and_noise(u, groups))

    @staticmethod
    def _observe_column(known: dict[str, StepMeans], column: list[str], value: Floats) -> None:
        new = set(column) - known.keys()
        if len(known) + len(new) > _MOST:
            return
        known |= {kind: _means(1) for kind in sorted(new)}
        sums = dict.fromkeys(known, (0.0, 0))  # those that are not here fade
        for kind, influence in zip(column, value.tolist(), strict=True):
            total, count = sums[kind]
            sums[kind] = total + influence, count + 1
        for kind, (total, count) in sums.items():
            known[kind].add([total], [count])

    @property
    def worth(self) -> tuple[Floats, Floats]:
        """Of a group in each of `BANDS` with a gradient: mean influence and its standard error.

        In units of the mean over all bands; NaN where nothing was seen, and all NaN where that mean is not above 0;
        infinite errors where too little was seen.
        """
        if not self._has_unit:
            return np.full(len(BANDS), np.nan), np.full(len(BANDS), np.inf)
        ratios, variances = np.transpose([self._bands.ratio(band, slice(None)) for band in _EACH])
        return ratios, np.sqrt(variances)

    def worth_between(self, low: float, high: float) -> tuple[float, float]:
        """As `worth`, for the bands from `low` to `high` as one, two of `EDGES`."""
        if not self._has_unit:
            return math.nan, math.inf
        ratio, variance = self._bands.ratio(_between(low, high), slice(None))
        return ratio, math.sqrt(variance)

    def of(self, low: float = 0.0, high: float = 1.0) -> tuple[float, float]:
        """Of a group with a gradient in the bands from `low` to `high`, two of `EDGES`: as `worth`, in another unit.

        Mean influence and its standard error, in units of what a gradient has in common with itself. Unlike `worth` it
        has a meaning where the mean over all bands is not above 0.
        """
        mean, variance = self._bands.of(_between(low, high))
        return mean, math.sqrt(variance)

    @property
    def _has_unit(self) -> bool:
        """Whether the mean influence of all groups is above 0; otherwise it is no unit."""
        return self._bands.of(slice(None))[0] > 0.0

    def worth_by_category(self, column: str) -> dict[str, tuple[float, float]]:
        """As `worth`, for each category of a column; the unit counts as exact in their errors."""
        unit = self._bands.of(slice(None))[0] if self._has_unit else math.nan
        found = {}
        for kind, means in self._categories.get(column, {}).items():
            mean, variance = means.of(slice(None))
            found[kind] = (mean / unit, math.sqrt(variance) / unit)
        return found

    @property
    def noise_scale(self) -> float:
        """Prompts of a step from which more of them stop paying (the simple noise scale, arXiv 1812.06162, eq. 2.9).

        The trace of the covariance of the prompts' gradients over the squared length of their mean, at the group sizes
        of the run. Far above the prompts of a step: noise is what limits it, and more rollouts make better steps.
        Below: more steps would do more. NaN before anything is known, infinite where no common direction is seen.
        """
        return _inverse(self._signal.of(slice(None))[0])

    @property
    def noise_interval(self) -> tuple[float, float]:
        """The noise scales within two standard errors, in prompts; infinite above where the steps agree on nothing."""
        mean, variance = self._signal.of(slice(None))
        if not math.isfinite(variance):
            return math.nan, math.nan
        error = 2.0 * math.sqrt(variance)
        return _inverse(mean + error), _inverse(mean - error)

    def correction(self, rates: ArrayLike) -> Floats:
        """By what the assumed value of a gradient is to be multiplied for prompts of these believed success rates.

        In each band sqrt(worth / assumed), both in units of the bands from .25 to .9 together: the value then is the
        geometric mean of what is assumed and what is measured. Worth is the posterior mean under a normal prior whose
        mean is what is assumed and whose deviation is 1/2, and at least .05 of the assumed. Between the middles of
        bands linear in the rate. 1 for all while the bands in the middle are not two standard errors above 0, and where
        a rate is NaN.

        Returns:
            float64 of .22 or more, of the shape of `rates`.

        Cost: O(M).
        """
        p = as_floats("rates", rates)
        middle, middle_variance = self._bands.of(_MIDDLE)
        if not middle > 2.0 * math.sqrt(middle_variance):
            return np.ones_like(p)
        measured, variance = np.transpose([self._bands.ratio(band, _MIDDLE) for band in _EACH])
        groups = self._bands.sums[1, _MIDDLE]
        assumed = _CENTRES ** ASSUMED[0] * (1.0 - _CENTRES) ** ASSUMED[1]
        assumed = assumed / (groups @ assumed[_MIDDLE] / groups.sum())
        trust = _PRIOR_DEVIATION**2 / (_PRIOR_DEVIATION**2 + variance)
        worth = assumed + np.where(np.isfinite(variance), trust * (measured - assumed), 0.0)
        factors = np.sqrt(np.maximum(worth / assumed, _LEAST))
        return np.where(np.isnan(p), 1.0, np.interp(p, _CENTRES, factors))

    def metrics(self) -> dict[str, float]:
        """`influence/BAND`, `influence/COLUMN/CATEGORY` (in units of the mean, as `worth`) and `noise_scale` (prompts).

        `influence_error/...` are the standard errors, `noise_scale_low` and `noise_scale_high` the noise scales within
        two of them. What is not known yet is left out.
        """
        worths = {"": dict(zip(BANDS, np.transpose(self.worth).tolist(), strict=True))}
        shown = [column for column, kinds in self._categories.items() if len(kinds) <= _SHOWN]
        worths |= {f"{column}/": self.worth_by_category(column) for column in shown}
        found: dict[str, float] = {}
        for prefix, kinds in worths.items():
            for kind, (worth, error) in kinds.items():
                found |= {f"influence/{prefix}{kind}": worth, f"influence_error/{prefix}{kind}": error}
        found["noise_scale"] = self.noise_scale
        found["noise_scale_low"], found["noise_scale_high"] = self.noise_interval
        return {name: number for name, number in found.items() if math.isfinite(number)}

    # Keep

    def state_dict(self) -> dict[str, Any]:
        """What was learned, as JSON."""
        return {
            "steps": self.steps,
            "bands": self._bands.state_dict(),
            "categories": {
                column: {kind: means.state_dict() for kind, means in kinds.items()}
                for column, kinds in self._categories.items()
            },
            "signal": self._signal.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what was learned.

        Raises:
            StateError: the state is not what `state_dict` writes. Nothing has changed then.
        """
        try:
            steps, signal = int(state["steps"]), _means(1, state["signal"])
            bands = _means(len(BANDS), state["bands"])
            categories = {
                str(column): {str(kind): _means(1, sums) for kind, sums in kinds.items()}
                for column, kinds in state["categories"].items()
            }
            if steps < 0:
                raise ValueError("a count below 0")
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise StateError(f"state: expected that of Influence as state_dict writes it, got {error!r}.") from error
        self.steps, self._bands, self._categories, self._signal = steps, bands, categories, signal


def _largest(u: Floats) -> Any:
    """Size of the largest number; NaN or infinite where one is."""
    return np.maximum(u.max(initial=0.0), -u.min(initial=0.0))


def _means(classes: int, state: Mapping[str, Any] | None = None) -> StepMeans:
    """Of nothing, or of a saved state."""
    means = StepMeans(classes, _KEPT, _STEPS)
    if state is not None:
        means.load_state_dict(state)
    return means


def _between(low: float, high: float) -> slice:
    """The bands between two of `EDGES`."""
    return slice(EDGES.index(low), EDGES.index(high))


def _sample_deviations(won: Ints, tried: Ints) -> Floats:
    """Of each prompt's successes and failures, with N - 1; 0 where there are fewer than two."""
    share = won / np.maximum(tried, 1)
    return np.asarray(np.sqrt(share * (1.0 - share) * tried / np.maximum(tried - 1, 1)))


def _success_weights(divisors: Floats, tried: Ints) -> Floats:
    """D_j N_j / (N_j - 1) for groups of 2 and more, where the baseline is their own mean: o_j is so many times u_j."""
    return np.asarray(divisors * tried / (tried - 1))


def _influences(u: Floats, weights: Floats, size: Floats, groups: int) -> Floats:
    """Mean over j != i of sum_c u_ic o_jc / s_c, for o_j of so many times u_j and s_c the `size` of parameter c.

    In a step of so many groups; those not among these rows have no gradient. Where s_c is 0, so is every u_ic.
    """
    per = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0.0)
    others = u @ (weights @ u * per) - weights * (np.square(u) @ per)
    return np.asarray(others / (groups - 1))


def _signal_and_noise(u: Floats, groups: int) -> tuple[list[float], list[float]]:
    """Unbiased estimates, from a step's gradients, of |E u|^2 and of the trace of their covariance; one each."""
    squares, total = float(np.vdot(u, u)), u.sum(axis=0)
    signal = (float(total @ total) - squares) / (groups * (groups - 1))
    return [signal], [max(squares / groups - signal, 0.0)]  # equal gradients leave less than 0 by rounding


def _inverse(signal: float) -> float:
    """The noise scale of a ratio of signal to noise."""
    return 1.0 / signal if signal > 0.0 else math.nan if math.isnan(signal) else math.inf
