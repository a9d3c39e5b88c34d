"""Strategies: the one place that knows them all, by name."""

from __future__ import annotations

from knapsack_rl.strategies import ours, rivals

STRATEGIES = {**ours.STRATEGIES, **rivals.STRATEGIES}
"""Name -> strategy."""
