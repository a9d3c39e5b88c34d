"""The shipped recipe for SmolLM2 with a stand-in of a few thousand parameters and files of a few dozen problems."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="needs the extra 'trl'")

from safetensors.torch import load_file

from knapsack_rl.cli import main
from knapsack_rl.experiments.engines.kept import cache_dir
from knapsack_rl.experiments.runs.run_directory import RunDirectory
from small_problems import write_model, write_problems

RECIPE = Path(__file__).parents[4] / "recipes/smollm2-word-problems.yaml"

pytestmark = pytest.mark.usefixtures("offline_with_a_cache_of_its_own")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three sets."""
    folder = tmp_path_factory.mktemp("data")
    write_problems(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


@pytest.mark.parametrize("trainer", ["minimal", "trl"])
def test_the_recipe_runs_on_files_without_the_hub(trainer: str, model: Path, data: Path, tmp_path: Path) -> None:
    command = ["train", str(RECIPE), "--output", str(tmp_path), f"trainer={trainer}", f"model.path={model}"]
    command += [f"task.folder={data}", "task.held_out=0.2", "training.steps=2", "training.prompts_per_step=4"]
    command += ["training.micro_batch_size=16", "model.warm_start.steps=4", "evaluation.samples=4"]
    command += ["task.train_problems=32"]
    assert main(command) == 0
    directory = RunDirectory(tmp_path / "smollm2-word-problems")
    records = directory.read_metrics()
    assert [list(line["evaluation"]) for line in records if "evaluation" in line] == 2 * [["held-out"]]
    assert all(line["solved"]["held-out"] >= line["evaluation"]["held-out"] for line in records if "solved" in line)
    assert [line["step"] for line in records if "loss" in line] == [1, 2]
    assert len(list(cache_dir("warm-starts").iterdir())) == 1, "the trainers share the warm start"
    if trainer == "minimal":
        weights = load_file(directory.path / "model/model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_a_model_and_data_that_are_not_there_say_what_to_name(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(RECIPE), "--output", str(tmp_path), "task.train_problems=32"]
    assert main([*command, f"task.folder={data}", "training.prompts_per_step=4", "training.micro_batch_size=16"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "model.path: cannot load 'HuggingFaceTB/SmolLM2-135M-Instruct'" in said
    assert "Without network, name a directory or a GGUF file that is there: model.path=PATH." in said
    assert main([*command, f"model.path={model}", f"task.folder={tmp_path}"]) == 2
    assert "Put the set's own file there" in " ".join(capsys.readouterr().err.split())


def test_the_comparison_for_gpus_is_one_that_can_begin() -> None:
    script = RECIPE.parents[1] / "benchmarks/gpu/comparison.sh"
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(["bash", script, "--dry-run"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "uniform-twice-the-steps" in done.stdout


@pytest.mark.slow
def test_the_comparison_for_gpus_runs_dry(tmp_path: Path) -> None:
    output = tmp_path / "runs"
    done = subprocess.run(
        ["bash", RECIPE.parents[1] / "benchmarks/gpu/comparison.sh", "--dry", "--output", output],
        env=os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (output / "smollm2-word-problems/summary.md").read_text()
    assert [line.split("|")[1].strip() for line in summary.splitlines()[2:]] == ["uniform", "measured"]
    assert len(list((output / "arms").glob("*/metrics.jsonl"))) == 2 + 2 * 3  # at three rates on the tuning seed
