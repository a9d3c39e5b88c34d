"""Arithmetic in text: what an expression such as `(12.5 - 3) * 4` is worth, exactly, and how many operations it has.

    sum      = product (("+" | "-") product)*
    product  = factor (("*" | "x" | "/") factor)*
    factor   = ("+" | "-") factor | (number | "(" sum ")") "%"*

A number is 1250, 1,250, 12.5 or .5, with a dollar sign before it or not. Nothing is evaluated by Python, and no text of
a language model can make it slow: longer texts and deeper brackets than anybody writes are no expressions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 200  # characters
DEEPEST = 20  # brackets and signs within each other

_TOKEN = re.compile(
    r"\s*(?:\$?(\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])|\d+(?:\.\d*)?|\.\d+)|([-+*/()%x\u00d7\u00f7]))", re.ASCII
)
_SYNONYMS = {"x": "*", "\u00d7": "*", "\u00f7": "/"}  # and the printed signs


@dataclass(frozen=True)
class Expression:
    """An expression that was read: its value, and how often it adds, subtracts, multiplies or divides."""

    value: Fraction
    operations: int


def read(text: str) -> Expression | None:
    """The whole of `text` as an expression; None where it is none, or divides by zero. Microseconds a character."""
    if len(text) > LONGEST:
        return None
    tokens = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            return None
        number, sign = found.groups()
        tokens.append(number.replace(",", "") if number else _SYNONYMS.get(sign, sign))
        position = found.end()
    try:
        return _Reader(tokens).whole()
    except (_NoExpression, ZeroDivisionError):
        return None


class _NoExpression(Exception):
    """What was read is none."""


class _Reader:
    """Recursive descent, a method for each line of the grammar."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = [*tokens, ""]  # the end
        self._next = 0
        self._depth = 0
        self._operations = 0

    def whole(self) -> Expression:
        value = self._sum()
        if self._tokens[self._next]:
            raise _NoExpression
        return Expression(value, self._operations)

    def _sum(self) -> Fraction:
        value = self._product()
        while sign := self._taken("+", "-"):
            other = self._product()
            value = value + other if sign == "+" else value - other
            self._operations += 1
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while sign := self._taken("*", "/"):
            other = self._factor()
            value = value * other if sign == "*" else value / other
            self._operations += 1
        return value

    def _factor(self) -> Fraction:
        self._depth += 1
        if self._depth > DEEPEST:
            raise _NoExpression
        if sign := self._taken("+", "-"):
            value = self._factor()
            value = value if sign == "+" else -value
        elif self._taken("("):
            value = self._sum()
            if not self._taken(")"):
                raise _NoExpression
        else:
            value = self._number()
        self._depth -= 1
        while self._taken("%"):
            value /= 100
        return value

    def _number(self) -> Fraction:
        token = self._tokens[self._next]
        if not token[:1].isdigit() and not token.startswith("."):
            raise _NoExpression
        self._next += 1
        return Fraction(token)

    def _taken(self, *signs: str) -> str:
        """The next token if it is one of `signs`, and goes past it; otherwise nothing."""
        token = self._tokens[self._next]
        if token not in signs:
            return ""
        self._next += 1
        return token
