"""What the configurations of tasks have in common with every other block of a recipe."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Keys and values that a recipe sets: no others, finite numbers, and fixed once they are read.

    The sentence below a field is what an editor shows beside the key (`knapsack-rl schema`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
