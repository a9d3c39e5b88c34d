"""What the configurations of tasks have in common with every other block of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """Keys and values that a recipe sets: no others, finite numbers, and fixed once they are read.

    The sentence below a field is what an editor shows beside the key (`knapsack-rl schema`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class TaskSettings(Config):
    """What every task can do."""

    wrong_answers: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the training problems that get another problem's answer as their key, to see what wrong keys do. By the
    problem and the seed; held-out problems keep theirs."""


def check_shares(name: str, shares: Sequence[float]) -> None:
    """Refuse shares of a whole that are below 0 or do not sum to 1; raises ValueError, as pydantic's validators do."""
    if min(shares) < 0.0 or abs(sum(shares) - 1.0) > 1e-9:
        raise ValueError(f"{name}: expected numbers from 0 that sum to 1, got {list(shares)}")
