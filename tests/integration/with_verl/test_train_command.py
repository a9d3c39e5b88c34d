"""`knapsack-rl train --engine verl`: a recipe becomes verl's own run, on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is installed in an environment of its own")

import pandas as pd
import runs

import knapsack_rl as kr
from knapsack_rl.identity import prompt_id

RECIPES = Path(__file__).parents[3] / "recipes"
OF_THE_PAPER = ("deepseek-r1-distill-qwen-1.5b", "qwen2.5-math-7b", "qwen3-4b-base", "qwen3-4b-instruct-2507")

RECIPE = """
name: sums
task:
  kind: math
  train: sums
  benchmarks: [held-out]
  sources: {{sums: {{path: "{folder}/sums.jsonl"}}, held-out: {{path: "{folder}/held-out.jsonl"}}}}
  instruction: ""
model: {{kind: pretrained, path: "{folder}/model"}}
allocator: {{strategy: adaptive}}
training:
  steps: 2
  prompts_per_step: 8
  group_size: 4
  micro_batch_size: 32
  learning_rate: 1.0e-3
  max_completion_length: 1
  checkpoint_every: 2
evaluation: {{every: 2, samples: 2, final: {{samples: 4}}}}
engine: {{kind: vllm}}
verl: {{data: {{max_prompt_length: 16}}}}
"""


def knapsack_rl(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "knapsack_rl.cli", "train", "--engine", "verl", "--output", str(folder), *words]
    return subprocess.run(
        command, env=runs.environment(folder), capture_output=True, text=True, timeout=runs.SECONDS, check=False
    )


def test_a_recipe_trains_evaluates_and_leaves_beliefs_that_the_adapter_for_trl_would_go_on_with(tmp_path: Path) -> None:
    runs.make_model(tmp_path / "model", "0123456789+")
    for name, numbers in (("sums", range(12)), ("held-out", range(12, 16))):
        rows = [{"problem": f"{n % 4}+{n // 4}", "answer": str(n % 4 + n // 4)} for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
    words = [str(tmp_path / "recipe.yaml"), *(f"verl.{override}" for override in runs.ON_A_CPU)]

    finished = knapsack_rl(tmp_path, *words)
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-5000:]
    assert "-m verl.trainer.main_ppo" in finished.stdout
    run = tmp_path / "sums"
    logged = [line["data"] for line in runs.logged(run, "verl-1.jsonl")]
    assert [line["knapsack/rollouts/sum"] for line in logged if "knapsack/rollouts/sum" in line] == [32, 32]
    assert any(name.startswith("val-core/held-out/") for line in logged for name in line)
    assert any("mean@4" in name for line in runs.logged(run, "verl-final-1.jsonl") for name in line["data"])

    allocator = kr.BudgetAllocator("adaptive", 4)
    allocator.load(run / "checkpoints" / "global_step_2" / "knapsack_allocator.npz")
    problems = pd.read_parquet(run / "data" / "train.parquet")
    ids = [prompt_id(row.prompt, extra={"id": row.id}) for row in problems.itertuples()]
    assert allocator.visited(ids).sum() >= 8

    again = knapsack_rl(tmp_path, *words)
    assert again.returncode == 0
    assert "is finished already" in again.stdout


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_verl_takes_every_key_of_the_recipes_of_the_paper_on_one_node_and_on_several(name: str, tmp_path: Path) -> None:
    for nodes in (1, 4):
        finished = knapsack_rl(tmp_path, str(RECIPES / f"{name}.yaml"), "--dry-run", f"verl.trainer.nnodes={nodes}")
        assert finished.returncode == 0, finished.stderr[-3000:]
        assert f"trainer.nnodes={nodes}" in finished.stdout
        assert "data.train_batch_size=256" in finished.stdout


def test_a_key_that_verl_does_not_have_is_refused(tmp_path: Path) -> None:
    recipe = str(RECIPES / "qwen3-4b-base.yaml")
    finished = knapsack_rl(tmp_path, recipe, "--dry-run", "verl.trainer.nodes=4")
    assert finished.returncode == 2
    assert "verl refuses this recipe" in finished.stderr
    assert "nodes" in finished.stderr
