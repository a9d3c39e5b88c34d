"""Prompts without rollouts in a run: its record, its report and its end are those of any other."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("trl", reason="needs the extra 'trl'")

from knapsack_rl.cli import main

RECIPE = """
name: tiny
trainer: minimal
task: {kind: chain-arithmetic, train_problems: 16, eval_problems: 4, operations: 1}
model: {kind: scratch, layers: 1, width: 32, heads: 2, warm_start: {steps: 60, batch_size: 64}}
allocator: {strategy: knapsack, min_rollouts: 0, revisit: 1, max_rollouts: 16}
training:
  steps: 12
  prompts_per_step: 8
  group_size: 4
  micro_batch_size: 8
  learning_rate: 1e-2
  max_completion_length: 4
evaluation: {every: 12, samples: 4}
"""

pytestmark = pytest.mark.usefixtures("offline_with_a_cache_of_its_own")


@pytest.mark.parametrize("strategy", ["adaptive", "oracle"])
def test_a_run_with_prompts_that_sit_out_is_recorded_and_reported(
    recipe_path: Path, tmp_path: Path, strategy: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        command = ["train", str(recipe_path), f"allocator.strategy={strategy}", "--output", str(tmp_path)]
        assert main(command) == 0
    run = tmp_path / "tiny"
    assert (run / "report.html").stat().st_size > 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "evaluation" not in line}
    allocations = pd.read_parquet(run / "allocations.parquet")
    absent = dict.fromkeys(allocations["prompt"], 0)
    for step, rows in allocations.groupby("step"):
        assert rows["rollouts"].sum() == 32
        assert not (rows["rollouts"] == 1).any()
        assert steps[step]["sitting_out"] == (rows["rollouts"] == 0).mean()
        for prompt, rollouts in zip(rows["prompt"], rows["rollouts"], strict=True):
            absent[prompt] = 0 if rollouts else absent[prompt] + 1
        assert max(absent.values()) <= 1
    assert (allocations["rollouts"] == 0).any()
