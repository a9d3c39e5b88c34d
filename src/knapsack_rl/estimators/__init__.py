"""Estimators: what we believe a prompt's success rate is, and how sure we are."""

from knapsack_rl.estimators.base import Estimator
from knapsack_rl.estimators.discounted import DiscountedBeta
from knapsack_rl.estimators.gaining import Gaining
from knapsack_rl.estimators.recent import RecentRewards
from knapsack_rl.estimators.regression import Regression
from knapsack_rl.estimators.streaks import Streaks
from knapsack_rl.estimators.transitions import TransitionTable

__all__ = ["DiscountedBeta", "Estimator", "Gaining", "RecentRewards", "Regression", "Streaks", "TransitionTable"]
