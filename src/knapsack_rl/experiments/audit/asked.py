"""Columns that the user of an audit named."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Asked:
    """Columns that the user named; None where the audit is to guess. `answer` is what a completion came down to."""

    id: str | None = None
    prompt: str | None = None
    reward: str | None = None
    success: str | None = None
    advantage: str | None = None
    step: str | None = None
    length: str | None = None
    category: str | None = None
    completion: str | None = None
    answer: str | None = None
    reference: str | None = None

    def given(self) -> tuple[str, ...]:
        """The names that were given."""
        return tuple(name for field in fields(self) if (name := getattr(self, field.name)) is not None)
