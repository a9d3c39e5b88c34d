"""What the tests of both trainers share: a recipe of their own, a finished run of it, and one that a signal stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from knapsack_rl.cli import main

# The signal comes from within, right after a step, so that it never depends on how fast the run is.
STOPPED = """
import os, signal, sys
from knapsack_rl.cli import main
from knapsack_rl.experiments.runs.progress import Display

step, shown = int(sys.argv[1]), Display.record

def record(display, line):
    shown(display, line)
    if line["step"] == step and "evaluation" not in line:
        os.kill(os.getpid(), signal.SIGTERM)

Display.record = record
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def recipe_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module's RECIPE, whose name is tiny."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(request.module.RECIPE)
    return path


@pytest.fixture(scope="module")
def finished(recipe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an uninterrupted run."""
    output = tmp_path_factory.mktemp("runs")
    assert main(["train", str(recipe_path), "--output", str(output)]) == 0
    return output / "tiny"


@pytest.fixture
def stopped_after_step_3(recipe_path: Path) -> Callable[[Path], str]:
    """Trains into a folder until SIGTERM comes after the third step; returns what the command said."""

    def stopped(output: Path) -> str:
        command = [sys.executable, "-c", STOPPED, "3", "train", str(recipe_path), "--output", str(output)]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ, check=False)
        assert process.returncode == 128 + signal.SIGTERM, process.stdout
        assert f"knapsack-rl train {recipe_path} --output {output}" in process.stdout
        return process.stdout

    return stopped
