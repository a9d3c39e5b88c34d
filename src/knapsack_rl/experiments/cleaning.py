"""Texts that others wrote, made safe to show."""

from __future__ import annotations

import re

# Control characters but tab and line feed, separators of lines, what turns the direction of writing, lone surrogates.
_UNSAFE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_RUN_BY_SPREADSHEETS = ("=", "+", "-", "@", "\t")


def cleaned(text: str) -> str:
    """The text with a replacement character for each one that a terminal or a page would obey instead of show."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)


def cell(value: object) -> object:
    """What a CSV holds: a text is cleaned, and one that a spreadsheet would run begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    text = cleaned(value)
    return f"'{text}" if text.startswith(_RUN_BY_SPREADSHEETS) and not is_number(text) else text


def is_number(text: str) -> bool:
    """Whether the text is a number as Python writes it."""
    try:
        float(text)
    except ValueError:
        return False
    return True
