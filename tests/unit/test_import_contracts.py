"""What `lint-imports` cannot see for itself: whether the lists in its contracts are complete."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

grimp = pytest.importorskip("grimp")
api = pytest.importorskip("importlinter.api")

ROOT = Path(__file__).parents[2]
BESIDE_THE_CORE = {"cli", "experiments", "gradients", "tasks", "trl", "verl"}


@pytest.fixture(scope="module")
def graph() -> Any:
    return grimp.build_graph("knapsack_rl", include_external_packages=True)


@pytest.fixture(scope="module")
def contract() -> dict[str, Any]:
    contracts = api.read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    (found,) = (contract for contract in contracts if contract["type"] == "forbidden")
    return dict(found)


def test_the_contract_of_the_core_covers_every_module_of_the_core(graph: Any, contract: dict[str, Any]) -> None:
    children = {name.rpartition(".")[2] for name in graph.find_children("knapsack_rl")}
    assert {name.rpartition(".")[2] for name in contract["source_modules"]} == children - BESIDE_THE_CORE


def test_the_contract_of_the_core_forbids_all_that_anything_imports_but_numpy(
    graph: Any, contract: dict[str, Any]
) -> None:
    others = {name for name in graph.modules if not name.startswith("knapsack_rl")} - sys.stdlib_module_names
    assert others <= {*contract["forbidden_modules"], "numpy"}
