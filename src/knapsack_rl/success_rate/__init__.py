"""Estimators: what we believe a prompt's success rate is, and how sure we are."""

from knapsack_rl.success_rate.discounted import DiscountedBeta
from knapsack_rl.success_rate.estimator import Estimator
from knapsack_rl.success_rate.recent import RecentRewards
from knapsack_rl.success_rate.regression import Regression
from knapsack_rl.success_rate.streaks import Streaks
from knapsack_rl.success_rate.transitions import TransitionTable

__all__ = ["DiscountedBeta", "Estimator", "RecentRewards", "Regression", "Streaks", "TransitionTable"]
