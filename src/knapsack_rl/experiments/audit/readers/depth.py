"""How deeply JSON is nested: what works on rows is recursive, and arrow's parser crashes on what is very deep."""

from __future__ import annotations

from typing import Any

import numpy as np

DEEPEST = 100
"""Levels of lists and objects that a row may have."""
TOO_DEEP = f"it is nested in more than {DEEPEST} levels"
_LEVELS = np.zeros(256, dtype=np.int8)
_LEVELS[list(b"[{")], _LEVELS[list(b"]}")] = 1, -1
_OTHERS = bytes(set(range(256)) - set(b"[]{}\n"))


def may_be_deep(lines: bytes) -> bool:
    """Whether a line may be too deep, before it is parsed: brackets inside of texts count too. O(bytes)."""
    brackets = np.frombuffer(b"\n" + lines.translate(None, _OTHERS), dtype=np.uint8)
    starts = np.flatnonzero(brackets == ord("\n"))
    level = np.cumsum(_LEVELS[brackets], dtype=np.int32)
    return bool((np.maximum.reduceat(level, starts) - level[starts] > DEEPEST).any())


def is_deep(value: Any, levels: int = DEEPEST) -> bool:
    """Whether lists and objects are nested in more than so many levels."""
    inside = [value]
    for _ in range(levels + 1):
        inside = [one for one in inside if isinstance(one, (dict, list))]
        if not inside:
            return False
        inside = [part for one in inside for part in (one.values() if isinstance(one, dict) else one)]
    return True
