"""What a process that imports verl pays for the plug-in, and what it brings when it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is installed in an environment of its own")

import knapsack_rl

PROCESS = """
import json, runpy, sys
import verl
before = set(sys.modules)
import knapsack_rl.verl.plugin  # as the entry point does
found = {"brought": sorted(set(sys.modules) - before)}
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
found["modes"] = [name for name, trainer in TRAINER_REGISTRY.items() if trainer.__module__.startswith("knapsack_rl")]
print(json.dumps(found))
sys.argv = ["main_ppo", "trainer.v1.trainer_mode=sync", "+trainer.v1.knapsack.strategy=adaptive"]
runpy.run_module("verl.trainer.main_ppo", run_name="__main__")
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """A fresh one that imports verl, then the plug-in, then verl's trainers, and ends with verl's command."""
    paths = os.pathsep.join([str(Path(knapsack_rl.__file__).parents[1]), *filter(None, sys.path)])
    variables = os.environ | {"VERL_USE_EXTERNAL_PLUGINS": "none", "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, "-c", PROCESS],
        env=variables,
        cwd=tmp_path_factory.mktemp("verl"),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_plug_in_is_the_entry_point() -> None:
    assert "knapsack_rl.verl.plugin" in [point.value for point in entry_points(group="verl.plugins")]


def test_the_plug_in_imports_the_core_of_this_package_and_nothing_of_verl_or_torch(
    process: subprocess.CompletedProcess[str],
) -> None:
    brought = json.loads(process.stdout.splitlines()[0])["brought"]
    others = {name for name in brought if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name for name in others if name.split(".")[0] not in ("knapsack_rl", "numpy")} == set()
    assert {name for name in others if name.startswith("knapsack_rl.verl")} == {
        "knapsack_rl.verl",
        "knapsack_rl.verl.plugin",
    }


def test_the_modes_are_there_once_verls_trainers_are_imported(process: subprocess.CompletedProcess[str]) -> None:
    modes = json.loads(process.stdout.splitlines()[0])["modes"]
    assert modes == ["knapsack", "knapsack_colocate_async", "knapsack_separate_async"]


def test_verls_command_refuses_settings_that_its_mode_does_not_read_before_ray_starts(
    process: subprocess.CompletedProcess[str],
) -> None:
    assert process.returncode != 0
    assert "trainer.v1.trainer_mode: expected one of knapsack" in process.stderr
    assert "ray init kwargs" not in process.stdout
