"""knapsack-rl decides how many rollouts each prompt gets when a language model is trained by reinforcement learning."""

from knapsack_rl import advantages, dispatch, metrics
from knapsack_rl.allocation import Plan, allocate
from knapsack_rl.allocator import BudgetAllocator, strategies
from knapsack_rl.belief import Belief
from knapsack_rl.errors import (
    InfeasibleBudgetError,
    InvalidInputError,
    KnapsackError,
    MissingExtraError,
    StateError,
)
from knapsack_rl.estimators.base import Estimator, Visits
from knapsack_rl.expected_value import expected_gains
from knapsack_rl.identity import prompt_id
from knapsack_rl.step import Step
from knapsack_rl.strategies.base import Settings, Strategy, View
from knapsack_rl.values import (
    expected_rollouts,
    information_gain,
    nonzero_gradient_probability,
    rollouts_for_confidence,
    value,
)

__version__ = "0.1.0"

__all__ = [
    "Belief",
    "BudgetAllocator",
    "Estimator",
    "InfeasibleBudgetError",
    "InvalidInputError",
    "KnapsackError",
    "MissingExtraError",
    "Plan",
    "Settings",
    "StateError",
    "Step",
    "Strategy",
    "View",
    "Visits",
    "advantages",
    "allocate",
    "dispatch",
    "expected_gains",
    "expected_rollouts",
    "information_gain",
    "metrics",
    "nonzero_gradient_probability",
    "prompt_id",
    "rollouts_for_confidence",
    "strategies",
    "value",
]
