"""The adapter for TRL: variable group sizes in its own GRPOTrainer and RLOOTrainer."""

from __future__ import annotations

from knapsack_rl.errors import MissingExtraError

try:
    import trl as _trl  # noqa: F401
except ImportError as error:
    raise MissingExtraError(
        "knapsack_rl.trl needs TRL, which is not installed. Run: pip install 'knapsack-rl[trl]'"
    ) from error

from knapsack_rl.trl.trainer import KnapsackGRPOTrainer, KnapsackRLOOTrainer, StepRecord

__all__ = ["KnapsackGRPOTrainer", "KnapsackRLOOTrainer", "StepRecord"]
