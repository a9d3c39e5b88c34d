"""Numbers in words, the same on every page."""

from __future__ import annotations

from typing import Any


def plain(value: Any) -> str:
    """A whole number with thousands separators, another with three significant digits, anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000.0:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def percent(share: float) -> str:
    """A share in [0, 1] as percent with one digit."""
    return f"{100.0 * share:.1f}\N{NO-BREAK SPACE}%"


def plural(count: int, noun: str) -> str:
    """The count and the noun: 1 step, 2,000 steps."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds below a minute, minutes and seconds below an hour, hours and minutes above."""
    whole_minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(whole_minutes, 60)
    if seconds < 60.0:
        text = f"{seconds:.1f} s"
    elif hours == 0:
        text = f"{minutes} min {rest} s"
    else:
        text = f"{hours} h {minutes} min"
    return text.replace(" ", "\N{NO-BREAK SPACE}")
