"""Checks at the public entry points, with messages that say what was expected and what came."""

from __future__ import annotations

import difflib
import numbers
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl.errors import InvalidInputError


def as_floats(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """`values` as a float64 array, or an InvalidInputError that names the argument."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biufO":  # numpy would read text as numbers and drop imaginary parts
            raise TypeError(f"{array.dtype} is not a real number")
        return array.astype(np.float64, copy=False)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        hint = " Pass a tensor as .detach().float().cpu()." if hasattr(values, "detach") else ""
        raise InvalidInputError(f"{name}: expected numbers, got {_shown(values)}.{hint}") from error


def as_rates(name: str, values: ArrayLike, *, allow_nan: bool = False) -> NDArray[np.float64]:
    """`values` as float64 success rates in [0, 1]; NaN (never visited) only where the caller has a meaning for it."""
    rates = as_floats(name, values)
    if rates.size and not (rates.min() >= 0.0 and rates.max() <= 1.0):  # NaN makes both comparisons false
        unknown = np.isnan(rates)
        if not (allow_nan or not unknown.any()):
            raise InvalidInputError(
                f"{name}: expected probabilities between 0 and 1, got NaN at position {_first(unknown)}. "
                "Leave never-visited prompts out."
            )
        outside = ~unknown & ~((rates >= 0.0) & (rates <= 1.0))
        if outside.any():
            position = _first(outside)
            raise InvalidInputError(
                f"{name}: expected probabilities between 0 and 1, got {rates.flat[position]} at position {position}."
            )
    return rates


MOST_ROLLOUTS = 2**31 - 1
"""Rollouts of a prompt that can come back at once: their sums stay far below 2^53, up to which floats are exact."""
_COSTS = (1e-100, 1e100)
"""The least and the largest cost, besides 0; quotients and sums of such costs neither overflow nor vanish."""
_TOLD = (1e-30, 1e30)
"""The same of costs that are told: a million prompts' are kept as float32, which holds sums and shares of these."""


def as_counts(name: str, values: ArrayLike) -> NDArray[np.int64]:
    """`values` as int64 counts, none negative; floats pass only when they are whole numbers."""
    array = np.asarray(values) if not is_ragged(values) else as_floats(name, values)
    if array.dtype.kind in "iu":
        if array.size and array.max() >= 2**63:
            raise InvalidInputError(f"{name}: expected counts below 2^63, got {array.max()}.")
        counts = array.astype(np.int64)
    else:
        floats = as_floats(name, values)
        if not np.array_equal(floats, np.floor(floats)) or np.any(np.abs(floats) >= 2.0**63):
            raise InvalidInputError(f"{name}: expected whole numbers, got {_shown(values)}.")
        counts = floats.astype(np.int64)
    if counts.size and counts.min() < 0:
        position = _first(counts < 0)
        raise InvalidInputError(
            f"{name}: expected counts of 0 or more, got {counts.flat[position]} at position {position}."
        )
    return counts


def as_successes(successes: ArrayLike, rollouts: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both arguments as int64 vectors of one length with successes <= rollouts <= MOST_ROLLOUTS."""
    won, tried = as_counts("successes", successes), as_counts("rollouts", rollouts)
    if won.ndim != 1 or won.shape != tried.shape:
        raise InvalidInputError(
            "successes, rollouts: expected two vectors of the same length, one number per prompt, "
            f"got shapes {won.shape} and {tried.shape}."
        )
    if (tried > MOST_ROLLOUTS).any():
        position = _first(tried > MOST_ROLLOUTS)
        raise InvalidInputError(
            f"rollouts: expected at most {MOST_ROLLOUTS} of a prompt, got {tried[position]} at position {position}."
        )
    if (won > tried).any():
        position = _first(won > tried)
        raise InvalidInputError(
            f"successes: expected at most rollouts, got {won[position]} successes of {tried[position]} rollouts "
            f"at position {position}."
        )
    return won, tried


def as_integer(name: str, value: Any, *, at_least: int) -> int:
    """`value` as an int that is not below `at_least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidInputError(f"{name}: expected an integer of at least {at_least}, got {value!r}.") from None
    if number < at_least:
        raise InvalidInputError(f"{name}: expected an integer of at least {at_least}, got {number}.")
    return number


def as_flag(name: str, value: Any) -> bool:
    """`value` as a bool; nothing else is taken for one."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidInputError(f"{name}: expected True or False, got {value!r:.80}.")
    return bool(value)


def as_positive(name: str, value: Any) -> float:
    """`value` as a float in `_COSTS`."""
    if not isinstance(value, numbers.Real) or not _COSTS[0] <= _as_float(value) <= _COSTS[1]:
        raise InvalidInputError(
            f"{name}: expected a finite number above 0, got {value!r}. It has to lie between {_COSTS[0]} and "
            f"{_COSTS[1]}."
        )
    return float(value)


def as_costs(name: str, values: ArrayLike, prompts: int, *, told: bool = False) -> NDArray[np.float64]:
    """`values` as a float64 vector of costs in `_COSTS` (`told`: in `_TOLD`, or 0), one for each of the prompts."""
    costs = as_floats(name, values)
    if costs.shape != (prompts,):
        raise InvalidInputError(
            f"{name}: expected one number for each of the {prompts} prompts, got shape {costs.shape}."
        )
    low, high = _TOLD if told else _COSTS
    wrong = ~(((costs >= low) & (costs <= high)) | (told & (costs == 0.0)))
    if wrong.any():
        position, least = _first(wrong), "of 0 or more" if told else "above 0"
        raise InvalidInputError(
            f"{name}: expected finite numbers {least}, got {costs[position]} at position {position}. It has to lie "
            f"between {low} and {high}{', or be 0. Tell costs in another unit' if told else ''}."
        )
    return costs


def as_truncated(values: ArrayLike, rollouts: NDArray[np.int64], costs: ArrayLike | None) -> NDArray[np.int64]:
    """`values` as how many rollouts of each prompt were cut off, at most all; refused without their costs."""
    truncated = as_counts("truncated", values)
    if costs is None:
        raise InvalidInputError("truncated: expected it together with the costs of the rollouts, got no costs.")
    if truncated.shape != rollouts.shape:
        raise InvalidInputError(
            f"truncated: expected one number for each of the {len(rollouts)} prompts, got shape {truncated.shape}."
        )
    if (truncated > rollouts).any():
        position = _first(truncated > rollouts)
        raise InvalidInputError(
            f"truncated: expected at most the {rollouts[position]} rollouts that came back, got {truncated[position]} "
            f"at position {position}."
        )
    return truncated


def as_confidence(value: Any) -> float:
    """`value` as a float strictly between 0 and 1."""
    if not isinstance(value, numbers.Real) or not 0.0 < _as_float(value) < 1.0:
        raise InvalidInputError(f"confidence: expected a probability strictly between 0 and 1, got {value!r}.")
    return float(value)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """`value` if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        close = nearest(value, choices) if isinstance(value, str) else None
        hint = f" Did you mean {close}?" if close else ""
        raise InvalidInputError(f"{name}: expected one of {', '.join(choices)}, got {value!r}.{hint}")
    return value


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The choice that `word` is most likely a misspelling of."""
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def _as_float(value: numbers.Real) -> float:
    """The number as a float; infinite for an integer too large for one."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def is_ragged(values: ArrayLike) -> bool:
    """Whether numpy can make no array of it."""
    try:
        np.asarray(values)
    except (TypeError, ValueError, RuntimeError):  # the other two from tensors that it cannot read
        return True
    return False


def _first(mask: NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(mask)[0])


def _shown(values: Any) -> str:
    text = repr(values)
    return text if len(text) <= 80 else text[:77] + "..."
