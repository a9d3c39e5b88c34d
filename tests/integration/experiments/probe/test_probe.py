"""`knapsack-rl probe` on a tiny recipe, and its page in a real Chromium."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")
pytest.importorskip("matplotlib", reason="needs the extra 'train'")

import pages

from knapsack_rl.cli import main
from knapsack_rl.experiments.engines.minimal.grpo import Collected, Loop

pytestmark = pytest.mark.usefixtures("offline_with_a_cache_of_its_own")

# 40 problems, 8 a step: a probe of 12 steps takes 24 of them, each four times.
RECIPE = """
name: tiny
task: {kind: chain-arithmetic, train_problems: 40, eval_problems: 10, operations: 1}
model: {kind: scratch, layers: 1, width: 32, heads: 2, warm_start: {steps: 60, batch_size: 64}}
training:
  steps: 500
  prompts_per_step: 8
  group_size: 8
  micro_batch_size: 64
  learning_rate: 3e-3
  max_completion_length: 4
evaluation: {every: 5, samples: 4}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def probed(recipe: Path, tmp_path_factory: pytest.TempPathFactory, offline_with_a_cache_of_its_own: None) -> Path:
    output = tmp_path_factory.mktemp("probe")
    assert main(["probe", str(recipe), "--steps", "12", "--output", str(output)]) == 0
    return output / "tiny"


def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "probe.json").read_text(encoding="utf-8"))


def test_a_probe_measures_every_group_of_its_steps(probed: Path) -> None:
    numbers = found(probed)["numbers"]
    assert (numbers["steps"], numbers["prompts_per_step"], numbers["group_size"]) == (12, 8, 8)
    assert numbers["prompts"] == 24
    live = round(numbers["effective_gradient_ratio"]["value"] * 12 * 8)
    assert 0 < sum(band["groups"] for band in numbers["bands"]) <= live
    assert sum(kind["groups"] for kind in numbers["categories"]["category"]) == live
    records = [json.loads(line) for line in (probed / "metrics.jsonl").read_text().splitlines()]
    assert [record["rollouts/max"] for record in records] == [8.0] * 12


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_reads_well_on_a_phone_and_on_a_screen(probed: Path, tmp_path: Path, width: int) -> None:
    seen = pages.read_in_browser(probed / "report.html", tmp_path, width)
    pages.check_layout(seen, width)
    assert {figure["name"] for figure in seen["figures"]} >= {"statuses", "gradients", "worth"}
    assert {table["name"] for table in seen["tables"]} == {"numbers", "worth-table", "worth-1-table"}
    assert all((probed / file).is_file() for file in seen["files"])


def test_the_same_command_again_gives_the_same_numbers_and_says_the_verdict(
    recipe: Path, probed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = found(probed)
    assert main(["probe", str(recipe), "--steps", "12", "--output", str(probed.parent)]) == 0
    assert found(probed) == before
    said = capsys.readouterr().out
    for sentence in (before["verdict"]["headline"], *before["verdict"]["advice"], *before["verdict"]["reasons"]):
        assert sentence in said


def test_a_signal_ends_a_probe_after_its_step_and_the_page_is_of_the_steps_until_then(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, made = Loop.step, []

    def interrupted(loop: Loop) -> tuple[Collected, float]:
        made.append(1)
        if len(made) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step(loop)

    monkeypatch.setattr(Loop, "step", interrupted)
    assert main(["probe", str(recipe), "--steps", "12", "--output", str(tmp_path)]) == 128 + signal.SIGINT
    assert found(tmp_path / "tiny")["numbers"]["steps"] == len(made) == 5
    assert "stopped early" in capsys.readouterr().out


def test_a_recipe_that_the_minimal_trainer_cannot_run_is_refused_with_the_way_out(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["model={kind: pretrained, path: some, lora: {rank: 4}}", "trl.report_to=none"]
    assert main(["probe", str(recipe), *changes, "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "model.lora: trainer=minimal trains all weights" in said
    assert "ProbeCallback" in said
    assert not any(tmp_path.iterdir())


def test_a_probe_without_steps_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--steps", "0"]) == 2
    assert "--steps: expected 1 or more, got 0" in capsys.readouterr().err
