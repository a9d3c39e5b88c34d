"""Features as people give them: what counts as text, what as numbers, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import knapsack_rl as kr
from knapsack_rl.estimators.features import LARGEST, MOST_NUMBERS, NONE, as_features


def test_no_features_are_no_columns() -> None:
    assert as_features(None, 3) is NONE
    assert as_features({}, 3) == NONE
    assert as_features(None, 3).stacked(3).shape == (3, 0)


def test_columns_come_in_order_of_their_names_whatever_the_order_of_the_mapping() -> None:
    found = as_features({"b": [1, 2], "a": [[3.0, 4.0], [5.0, 6.0]]}, 2)
    assert found.stacked(2).tolist() == [[3.0, 4.0, 1.0], [5.0, 6.0, 2.0]]


def test_equal_texts_are_one_category_and_none_is_one_of_its_own() -> None:
    keys = as_features({"topic": ["x", None, "x", "None", None, ""]}, 6).categories["topic"].tolist()
    assert keys[0] == keys[2]
    assert keys[1] == keys[4]
    assert len(set(keys)) == 4


def test_equal_texts_in_two_columns_are_two_categories() -> None:
    found = as_features({"topic": ["x"], "level": ["x"]}, 1).categories
    assert found["topic"] != found["level"]


@pytest.mark.parametrize(
    "column", [["x", "y"], ("x", "y"), np.array(["x", "y"]), np.array(["x", "y"], dtype=object), np.array(["x", "yy"])]
)
def test_text_may_come_in_any_container(column) -> None:
    first = as_features({"topic": column}, 2).categories["topic"]
    assert first[0] == as_features({"topic": ["x"]}, 1).categories["topic"][0]


@pytest.mark.parametrize("column", [[1, 0], [1.0, 0.0], [True, False], np.array([1, 0], dtype=np.int8), (1, 0)])
def test_numbers_may_be_of_any_kind(column) -> None:
    assert as_features({"x": column}, 2).numbers["x"].tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("features", [[[1.0, 2.0], [3.0, 4.0]], np.array([[1.0, 2.0], [3.0, 4.0]])])
def test_one_array_needs_no_name(features) -> None:
    assert as_features(features, 2).numbers["features"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_keys_of_categories_never_change_silently() -> None:
    """A state file of today must be found by the code of tomorrow."""
    found = as_features({"topic": ["algebra", None]}, 2).categories["topic"].tolist()
    assert found == [3914261050945258768, 6059378086522578414]


def test_the_widest_features_are_accepted_and_wider_ones_are_told_what_to_do() -> None:
    assert as_features(np.zeros((1, MOST_NUMBERS)), 1).stacked(1).shape == (1, MOST_NUMBERS)
    with pytest.raises(kr.InvalidInputError, match=r"at most 256 numbers for each prompt, got 257\. Project"):
        as_features(np.zeros((1, MOST_NUMBERS + 1)), 1)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 10 * LARGEST, -10 * LARGEST])
def test_numbers_that_no_sum_could_hold_are_refused(number: float) -> None:
    as_features({"x": [LARGEST, -LARGEST]}, 2)
    with pytest.raises(kr.InvalidInputError, match=r"features\['x'\]: expected text, or finite numbers.*NaN, infinity"):
        as_features({"x": [1.0, number]}, 2)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (3, "features: expected a column of 2 values, got 3"),
        ("ab", "features: expected a column of 2 values in order, got a str"),
        ({"x": {"a": 1, "b": 2}}, r"features\['x'\]: expected a column of 2 values in order, got a dict"),
        ({"x": {"a", "b"}}, r"features\['x'\]: expected a column of 2 values in order"),
        ({"x": None}, r"features\['x'\]: expected a column of 2 values, got None"),
        ({"x": [1]}, r"features\['x'\]: expected one value for each of the 2 prompts, got 1"),
        ({"x": ["a", 1]}, r"features\['x'\]: expected numbers"),
        ({"x": [1, None]}, r"features\['x'\]: expected text, or finite numbers"),
        ({"x": [[1], [1, 2]]}, r"features\['x'\]: expected numbers"),
        ({"x": [1j, 2]}, r"features\['x'\]: expected numbers"),
        ({"x": np.zeros((2, 1, 1))}, r"features\['x'\]: expected text, or .*got shape \(2, 1, 1\)\."),
    ],
)
def test_what_fits_no_kind_of_column_is_refused_by_name(features, message: str) -> None:
    with pytest.raises(kr.InvalidInputError, match=message):
        as_features(features, 2)
