from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from knapsack_rl.cli import main
from knapsack_rl.experiments.runs.run_directory import RunDirectory

RECIPES = sorted((Path(__file__).parents[4] / "recipes").glob("*.yaml"))
STEPS = 12
# 24 problems, 8 a step: an epoch is three steps. Two updates a step, in passes of 8 of its 32 rollouts.
RECIPE = f"""
name: tiny
task: {{kind: chain-arithmetic, train_problems: 24, eval_problems: 10, operations: 1}}
model: {{kind: scratch, layers: 1, width: 32, heads: 2, warm_start: {{steps: 60, batch_size: 64}}}}
allocator: {{strategy: knapsack, max_rollouts: 16}}
training:
  steps: {STEPS}
  prompts_per_step: 8
  group_size: 4
  updates_per_step: 2
  micro_batch_size: 8
  learning_rate: 1e-3
  max_completion_length: 4
  checkpoint_every: 4
evaluation: {{every: 5, samples: 4}}
"""
TIMES = {"time", "training_seconds", "step_time", "allocation_seconds"}


pytestmark = pytest.mark.usefixtures("offline_with_a_cache_of_its_own")


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to go on from."""
    return Path(shutil.copytree(finished, tmp_path / "tiny"))


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"checkpoint-{2 * STEPS}" / "model.safetensors")


def assert_same_training(run: Path, other: Path) -> None:
    assert weights(run).keys() == weights(other).keys()
    assert all(torch.equal(weight, weights(other)[name]) for name, weight in weights(run).items())
    pd.testing.assert_frame_equal(
        pd.read_parquet(run / "allocations.parquet"), pd.read_parquet(other / "allocations.parquet")
    )


def test_a_run_leaves_everything_that_a_report_needs(finished: Path) -> None:
    assert {"recipe.yaml", "environment.json", "metrics.jsonl", "report.html"} <= {
        path.name for path in finished.iterdir()
    }
    assert json.loads((finished / "environment.json").read_text())["finished"] is not None
    records = metrics(finished)
    trained = [record for record in records if "evaluation" not in record]
    assert [record["step"] for record in trained] == list(range(1, STEPS + 1))
    assert [record["rollouts"] for record in trained] == list(range(32, 32 * STEPS + 1, 32))
    assert [record["step"] for record in records if "evaluation" in record] == [0, 5, 10, 12]
    assert any(record["effective_gradient_ratio"] > 0 for record in trained), "the test would show nothing"


def test_allocations_hold_every_rollout_of_every_step(finished: Path) -> None:
    table = pd.read_parquet(finished / "allocations.parquet")
    assert list(table.columns) == ["step", "prompt", "rollouts", "scored", "successes", "belief_wins", "belief_losses"]
    assert table.groupby("step")["rollouts"].sum().tolist() == [32] * STEPS
    assert table.groupby("step")["scored"].sum().tolist() == [32] * STEPS
    assert (table["successes"] <= table["scored"]).all()
    assert table["prompt"].nunique() == 24
    assert table["rollouts"].nunique() > 1, "no step was uneven"


def test_accuracy_counts_every_sample_once_although_the_last_batch_is_smaller(finished: Path) -> None:
    for record in metrics(finished):
        if "evaluation" in record:
            right = record["evaluation"]["held-out"] * 10 * 4
            assert right == pytest.approx(round(right))


def test_the_same_command_again_says_that_the_run_is_finished_and_writes_the_report_again(
    recipe_path: Path, again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = metrics(again)
    (again / "report.html").unlink()
    assert main(["train", str(recipe_path), "--output", str(again.parent)]) == 0
    assert "finished already" in capsys.readouterr().out
    assert (again / "report.html").exists()
    assert metrics(again) == before


def test_a_run_stopped_by_sigterm_goes_on_to_the_same_weights_and_metrics(
    recipe_path: Path,
    finished: Path,
    tmp_path: Path,
    stopped_after_step_3: Callable[[Path], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped_after_step_3(tmp_path)
    assert (tmp_path / "tiny" / "report.html").exists()
    stopped = metrics(tmp_path / "tiny")[-1]["step"]
    assert 3 <= stopped < STEPS
    assert (tmp_path / "tiny" / "checkpoints" / f"checkpoint-{2 * stopped}").exists()

    assert main(["train", str(recipe_path), "--output", str(tmp_path)]) == 0
    assert f"resuming after step {stopped} of {STEPS}" in capsys.readouterr().out
    assert_same_training(tmp_path / "tiny", finished)
    assert metrics(tmp_path / "tiny") == metrics(finished)


def test_two_processes_of_a_launcher_make_one_run(recipe_path: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["train", str(recipe_path), "training.steps=4", "--output", str(tmp_path)]
    command = [*launcher, "-m", "knapsack_rl.cli", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout
    run = tmp_path / "tiny"
    trained = [record["step"] for record in metrics(run) if "evaluation" not in record]
    evaluated = [record["step"] for record in metrics(run) if "evaluation" in record]
    assert (trained, evaluated) == ([1, 2, 3, 4], [0, 4])
    assert pd.read_parquet(run / "allocations.parquet").groupby("step")["scored"].sum().tolist() == [32] * 4
    environment = json.loads((run / "environment.json").read_text())
    assert environment["processes"] == 2
    assert "torch.distributed.run" in environment["command"]


def test_a_run_that_crashed_goes_on_from_its_last_complete_checkpoint(
    recipe_path: Path, finished: Path, again: Path
) -> None:
    (again / "checkpoints" / f"checkpoint-{2 * STEPS}" / "trainer_state.json").unlink()  # killed while saving
    environment = json.loads((again / "environment.json").read_text())
    (again / "environment.json").write_text(json.dumps({**environment, "finished": None}))
    with (again / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "rol')  # killed while writing
    assert main(["train", str(recipe_path), "--output", str(again.parent)]) == 0
    assert_same_training(again, finished)
    assert metrics(again) == metrics(finished)


def test_a_run_killed_before_its_end_was_noted_only_lacks_its_report(
    recipe_path: Path, finished: Path, again: Path
) -> None:
    environment = json.loads((again / "environment.json").read_text())
    (again / "environment.json").write_text(json.dumps({**environment, "finished": None}))
    (again / "report.html").unlink()
    assert main(["train", str(recipe_path), "--output", str(again.parent)]) == 0
    assert (again / "report.html").exists()
    assert metrics(again) == metrics(finished)


def test_a_bit_of_the_newest_checkpoint_that_flipped_costs_the_steps_since_the_one_before(
    recipe_path: Path, finished: Path, again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (again / "environment.json").write_text("{")  # damaged too, so that the run does not count as finished
    optimizer = again / "checkpoints" / f"checkpoint-{2 * STEPS}" / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    for stray in ("checkpoint-best", "checkpoint-99.bak"):
        (again / "checkpoints" / stray).mkdir()
    assert main(["train", str(recipe_path), "--output", str(again.parent)]) == 0
    said = capsys.readouterr().out
    assert "environment.json is damaged" in said
    assert f"checkpoint-{2 * STEPS} is passed over: optimizer.pt holds other bytes than were written." in said
    assert f"resuming after step 8 of {STEPS}; 4 steps after it are trained again" in said
    assert_same_training(again, finished)
    assert metrics(again) == metrics(finished)
    assert json.loads((again / "environment.json").read_text())["finished"] is not None
    assert (again / "checkpoints" / "checkpoint-99.bak").exists()


def test_a_model_of_a_damaged_checkpoint_is_refused(
    recipe_path: Path, again: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = again / "checkpoints" / f"checkpoint-{2 * STEPS}"
    (path / "config.json").write_text("{}")
    changes = [f"model={{kind: pretrained, path: {path}, dtype: float32}}", "--output", str(tmp_path / "other")]
    assert main(["train", str(recipe_path), *changes]) == 2
    assert f"model.path: {path} is damaged: config.json has 2 bytes" in capsys.readouterr().err


def test_other_evaluation_settings_train_the_same_weights(recipe_path: Path, finished: Path, tmp_path: Path) -> None:
    changes = ["evaluation.every=1", "evaluation.samples=3", "evaluation.temperature=0.5", "evaluation.max_problems=7"]
    changes += ["evaluation.top_p=0.9", "evaluation.max_completion_length=9", "evaluation.final={samples: 2}"]
    assert main(["train", str(recipe_path), *changes, "--output", str(tmp_path)]) == 0
    assert_same_training(tmp_path / "tiny", finished)
    evaluations = [record["evaluation"]["held-out"] for record in metrics(tmp_path / "tiny") if "evaluation" in record]
    assert len(evaluations) == STEPS + 1
    assert evaluations[1] * 7 * 3 == pytest.approx(round(evaluations[1] * 7 * 3))
    assert evaluations[-1] * 10 * 2 == pytest.approx(round(evaluations[-1] * 10 * 2))


def test_a_directory_with_another_recipe_is_refused_and_the_differing_keys_are_shown(
    recipe_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = metrics(finished)
    arguments = ["train", str(recipe_path), "training.steps=13", "seed=4", "--output", str(finished.parent)]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "training.steps: 12 there, 13 here" in said
    assert "seed: 0 there, 4 here" in said
    assert "name=" in said
    assert metrics(finished) == before


def test_an_unwritable_directory_is_found_before_anything_is_made(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["train", str(recipe_path), "--output", str(tmp_path / "file")]) == 2
    captured = capsys.readouterr()
    assert f"cannot write to {tmp_path / 'file' / 'tiny'}" in captured.err
    assert "making" not in captured.out


def test_a_full_disk_is_found_before_anything_is_made(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    assert main(["train", str(recipe_path), "--output", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "1.0 MiB are free" in captured.err
    assert "making" not in captured.out


def test_a_disk_that_fills_up_during_a_run_is_told_in_a_sentence(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunDirectory, "append_allocations", full)
    assert main(["train", str(recipe_path), "--output", str(tmp_path)]) == 2
    assert f"{tmp_path / 'tiny'}: the disk is full. Free some space" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_is_refused_by_its_key(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"{{kind: pretrained, path: {tmp_path}}}"
    assert main(["train", str(recipe_path), f"model={model}", "--output", str(tmp_path / "runs")]) == 2
    assert f"model.path: cannot load '{tmp_path}': " in capsys.readouterr().err


@pytest.mark.parametrize("lora", ["null", "{rank: 2}"])
def test_a_model_on_the_disk_is_trained_like_one_from_the_hub(
    lora: str, recipe_path: Path, finished: Path, tmp_path: Path
) -> None:
    path = finished / "checkpoints" / f"checkpoint-{2 * STEPS}"
    model = f"{{kind: pretrained, path: {path}, dtype: float32, lora: {lora}}}"
    changes = [f"model={model}", "training.steps=2", "training.checkpoint_every=1"]
    assert main(["train", str(recipe_path), *changes, "--output", str(tmp_path)]) == 0
    assert [record["step"] for record in metrics(tmp_path / "tiny") if "evaluation" not in record] == [1, 2]
    adapters = list((tmp_path / "tiny" / "checkpoints").glob("*/adapter_model.safetensors"))
    assert bool(adapters) == (lora != "null")


def test_more_prompts_a_step_than_problems_are_refused_and_the_name_stays_free(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe_path), "training.prompts_per_step=32", "--output", str(tmp_path)]) == 2
    assert "at most the 24 problems" in capsys.readouterr().err
    assert main(["train", str(recipe_path), "training.steps=1", "--output", str(tmp_path)]) == 0


@pytest.mark.parametrize("path", [None, *RECIPES], ids=lambda path: path.stem if path else "embedded")
def test_every_recipe_passes_a_dry_run(path: Path | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(path)] if path else []
    assert main(["train", *words, "--dry-run", "--output", str(tmp_path / "runs")]) == 0
    assert "rollouts" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
