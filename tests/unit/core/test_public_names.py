"""What `import knapsack_rl` offers, and the errors that its callers catch."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest

import knapsack_rl as kr
from knapsack_rl import errors

CONTRACT = {
    "allocate", "BudgetAllocator", "strategies", "nonzero_gradient_probability", "information_gain", "value",
    "rollouts_for_confidence", "expected_rollouts", "metrics", "dispatch",
    "KnapsackError", "InfeasibleBudgetError", "InvalidInputError", "StateError", "MissingExtraError",
}  # fmt: skip


def test_the_contract_is_there() -> None:
    assert set(kr.__all__) >= CONTRACT
    assert all(hasattr(kr, name) for name in kr.__all__)
    assert sorted(kr.__all__) == kr.__all__


def test_allocate_has_the_signature_of_the_contract() -> None:
    parameters = inspect.signature(kr.allocate).parameters
    assert list(parameters)[:4] == ["success_rates", "budget", "min_rollouts", "max_rollouts"]
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    expected = {"min_rollouts": 2, "max_rollouts": 128, "algorithm": "grpo", "fallback": True, "confidence": 0.9}
    assert expected.items() <= defaults.items()


def test_budget_allocator_has_the_defaults_of_the_contract_and_leaves_groups_even_unless_told() -> None:
    parameters = inspect.signature(kr.BudgetAllocator).parameters
    expected = {"strategy": "uniform", "group_size": 8, "min_rollouts": 2, "max_rollouts": 128, "seed": 0}
    assert expected.items() <= {name: parameter.default for name, parameter in parameters.items()}.items()


@pytest.mark.parametrize(
    ("error", "standard"),
    [
        (kr.InvalidInputError, ValueError),
        (kr.InfeasibleBudgetError, ValueError),
        (kr.StateError, ValueError),
        (kr.MissingExtraError, ImportError),
    ],
)
def test_every_error_is_a_knapsack_error_and_the_standard_one(error: type, standard: type) -> None:
    assert issubclass(error, kr.KnapsackError)
    assert issubclass(error, standard)


def test_all_kinds_of_error_are_public() -> None:
    kinds = {name for name, item in vars(errors).items() if inspect.isclass(item)}
    assert kinds <= set(kr.__all__)


def test_the_core_imports_numpy_and_the_standard_library_only() -> None:
    code = (
        "import sys, numpy; before = set(sys.modules); import knapsack_rl; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'knapsack_rl', 'numpy'}))"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
