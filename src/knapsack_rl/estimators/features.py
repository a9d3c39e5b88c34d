"""What is known about a prompt besides its outcomes: categories, and numbers such as its length."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.validation import as_floats

Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]

MOST_NUMBERS = 256
"""Numbers a prompt may have in all; a hidden state that is wider needs a projection first."""
LARGEST = 1e100
"""Magnitude of a number up to which sums of squares stay finite."""


@dataclass(frozen=True)
class Features:
    """Checked features of M prompts, columns in order of their names.

    Attributes:
        categories: name -> shape (M,), a 64-bit key of the column's name and the prompt's value.
        numbers: name -> shape (M, width).
    """

    categories: dict[str, Keys]
    numbers: dict[str, Floats]

    def of(self, positions: NDArray[np.int64]) -> Features:
        """Those of some of the prompts."""
        return Features(
            {name: column[positions] for name, column in self.categories.items()},
            {name: column[positions] for name, column in self.numbers.items()},
        )

    def stacked(self, prompts: int) -> Floats:
        """All numbers of each of the prompts, shape (prompts, numbers)."""
        return np.concatenate([np.zeros((prompts, 0)), *self.numbers.values()], axis=1)


NONE = Features({}, {})


def as_features(features: Any, prompts: int) -> Features:
    """Features as the user gives them, checked.

    Args:
        features: a mapping of column names to columns of `prompts` strings (a category; None counts as one) or numbers,
            or of shape (prompts, width); or one such column without a name; or None.
        prompts: how many there must be.

    Raises:
        InvalidInputError: a column has another length, is neither text nor finite numbers, or there are more than
            `MOST_NUMBERS` numbers a prompt.
    """
    if features is None:
        return NONE
    columns = _by_name(features)
    categories, numbers = {}, {}
    for name in sorted(columns, key=str):
        column, where = columns[name], f"features[{name!r}]" if isinstance(features, Mapping) else "features"
        try:
            length = len(column)
        except TypeError:
            raise InvalidInputError(f"{where}: expected a column of {prompts} values, got {column!r}.") from None
        if isinstance(column, (str, bytes, Mapping, Set)):
            raise InvalidInputError(
                f"{where}: expected a column of {prompts} values in order, got a {type(column).__name__}."
            )
        if length != prompts:
            raise InvalidInputError(f"{where}: expected one value for each of the {prompts} prompts, got {length}.")
        if _is_text(column):
            categories[str(name)] = _keys(str(name), column)
            continue
        values = as_floats(where, column)
        moderate = bool(np.all(np.abs(values) <= LARGEST))  # false with NaN too
        if values.ndim not in (1, 2) or not moderate:
            raise InvalidInputError(
                f"{where}: expected text, or finite numbers of shape ({prompts},) or ({prompts}, width), "
                f"got shape {values.shape}{'' if moderate else f' with NaN, infinity or numbers beyond {LARGEST:g}'}."
            )
        numbers[str(name)] = values.reshape(prompts, -1) if prompts else values.reshape(0, 1)
    width = sum(column.shape[1] for column in numbers.values())
    if width > MOST_NUMBERS:
        raise InvalidInputError(
            f"features: expected at most {MOST_NUMBERS} numbers for each prompt, got {width}. "
            "Project a wide hidden state to fewer dimensions first."
        )
    return Features(categories, numbers)


def texts(features: Any, checked: Features) -> dict[str, list[str | None]]:
    """The categories of each prompt in words, by column; `checked` is what `as_features` made of the `features`."""
    return {
        str(name): [_in_words(value) for value in column]
        for name, column in (_by_name(features).items() if checked.categories else ())
        if str(name) in checked.categories
    }


def _by_name(features: Any) -> Mapping[Any, Any]:
    """The columns, of which a single one may come without a name."""
    return features if isinstance(features, Mapping) else {"features": features}


def _in_words(value: Any) -> str | None:
    return None if value is None else str(value)


def _is_text(column: Any) -> bool:
    kind = getattr(getattr(column, "dtype", None), "kind", None)
    if kind is not None and kind != "O":
        return bool(kind in "UTS")
    return len(column) > 0 and all(value is None or isinstance(value, str) for value in column)


def _keys(name: str, column: Any) -> Keys:
    """64-bit keys of a column's values; equal texts in two columns are two categories."""
    made: dict[Any, int] = {}
    for value in column:
        if value not in made:
            text = repr((name, _in_words(value))).encode("utf-8", "surrogatepass")
            made[value] = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return np.fromiter((made[value] for value in column), dtype=np.uint64, count=len(column))
