"""Expressions against Python's own arithmetic on fractions."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.tasks import arithmetic


def tree(depth: int, draw: random.Random) -> tuple[str, Fraction | None, int]:
    """A random expression: its text, what it is worth (None: it divides by zero), and its operations."""
    if depth == 0 or draw.random() < 0.2:
        number = draw.choice(["0", "7", "12", "1,250", "2.5", ".5", "$3", "40%"])
        plain = number.replace(",", "").replace("$", "").replace("%", "")
        return number, Fraction(plain) / (100 if "%" in number else 1), 0
    left, right = tree(depth - 1, draw), tree(depth - 1, draw)
    sign = draw.choice("+-*/")
    value = None
    if left[1] is not None and right[1] is not None and not (sign == "/" and right[1] == 0):
        value = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "/": Fraction.__truediv__}[sign](
            left[1], right[1]
        )
    space = draw.choice(["", " "])
    return f"({left[0]}{space}{sign}{space}{right[0]})", value, left[2] + right[2] + 1


@given(st.integers(0, 2**32), st.integers(0, 4))
def test_nested_expressions_are_worth_what_fractions_say(seed: int, depth: int) -> None:
    text, value, operations = tree(depth, random.Random(seed))
    if len(text) > arithmetic.LONGEST:
        return
    read = arithmetic.read(text)
    assert read == (None if value is None else arithmetic.Expression(value, operations))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+3*4", "14"),
        ("8-3-2", "3"),
        ("48/4/3", "4"),
        ("-3+5", "2"),
        ("2*-3", "-6"),
        ("(12.5 - 3) * 4 ", "38"),
        ("3 x 4", "12"),
        ("3 \u00d7 4 \u00f7 6", "2"),
        ("1/3+1/3+1/3", "1"),
        ("50%*30", "15"),
        ("(20+30)%", "1/2"),
        ("12,345,678", "12345678"),
    ],
)
def test_signs_bind_as_in_school(text: str, value: str) -> None:
    read = arithmetic.read(text)
    assert read is not None
    assert read.value == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "+", "2+", "2 3", "(2", "2)", "()", "1/0", "1/(2-2)", "2**3", "2^3", "x", "1e9", "2..3", "1,23"),
        *("1,2345", "5 apples", "__import__('os')", "\u0663+1", "2\n\n3"),
        *("9" * 201, "(" * 21 + "1" + ")" * 21, "-" * 21 + "1"),
    ],
)
def test_anything_else_is_no_expression(text: str) -> None:
    assert arithmetic.read(text) is None


@given(st.text(max_size=300))
def test_no_text_raises(text: str) -> None:
    arithmetic.read(text)


@given(st.text(alphabet="0123456789+-*/().,%$ x", max_size=200))
def test_no_text_of_arithmetic_signs_raises(text: str) -> None:
    arithmetic.read(text)
