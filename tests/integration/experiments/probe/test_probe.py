"""`knapsack-rl probe` on a tiny recipe, and its page in a real Chromium."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")
pytest.importorskip("matplotlib", reason="needs the extra 'train'")

import numpy as np
import pages

from knapsack_rl.cli import main
from knapsack_rl.experiments.engines.minimal.grpo import Collected, Loop
from knapsack_rl.experiments.probe.numbers import Visits, measured
from knapsack_rl.experiments.probe.report import write_report
from knapsack_rl.experiments.probe.verdict import verdict
from knapsack_rl.influence import Influence

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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of gradients that have a direction in common, which those of a tiny run may not have."""
    random, size = np.random.default_rng(0), 8
    rates = np.tile([0.05, 0.2, 0.4, 0.6, 0.8, 0.95], 8)
    kinds = {"kind": [f"kind {number % 5}" for number in range(48)]}
    visits, influence = Visits(), Influence()
    for step in range(20):
        won, gradients = random.binomial(size, rates), random.normal(size=(48, 20)) + rates[:, None]
        influence.observe(gradients, won, np.full(48, size), rates, kinds)
        visits.add([f"{step % 5}, {number}" for number in range(48)], won, np.full(48, size), rates, kinds)
    numbers = measured(visits, influence, size)
    folder = tmp_path_factory.mktemp("page")
    return write_report(numbers, verdict(numbers), visits, folder, "synthetic", "knapsack-rl probe")


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_reads_well_on_a_phone_and_on_a_screen(page: Path, tmp_path: Path, width: int) -> None:
    seen = pages.read_in_browser(page, tmp_path, width)
    pages.check_layout(seen, width)
    assert {figure["name"] for figure in seen["figures"]} == {"statuses", "gradients", "gains", "worth", "worth-1"}
    assert {table["name"] for table in seen["tables"]} == {"numbers", "gains-table", "worth-table", "worth-1-table"}
    assert all((page.parent / file).is_file() for file in seen["files"])


def test_a_probe_in_which_nothing_has_a_gradient_has_a_page_too(tmp_path: Path) -> None:
    visits, influence = Visits(), Influence()
    for _ in range(4):
        visits.add(["a", "b"], [0, 0], [8, 8], [0.5, 0.5], {"kind": ["x", "y"]})
        influence.observe(np.zeros((2, 3)), [0, 0], [8, 8], [0.5, 0.5], {"kind": ["x", "y"]})
    numbers = measured(visits, influence, 8)
    page = write_report(numbers, verdict(numbers), visits, tmp_path, "hopeless", "knapsack-rl probe")
    assert "not known" in page.read_text(encoding="utf-8")


def test_report_says_that_a_probe_has_a_page_of_its_own(probed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (probed / "report.html").read_bytes()
    assert main(["report", str(probed)]) == 2
    assert f"is a probe, which has a page of its own: {probed / 'report.html'}." in capsys.readouterr().err
    assert (probed / "report.html").read_bytes() == before


def test_report_says_how_a_probe_that_was_killed_comes_to_its_page(
    probed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = Path(shutil.copytree(probed, tmp_path / "killed"))
    (killed / "probe.json").unlink()
    assert main(["report", str(killed)]) == 2
    said = capsys.readouterr().err
    assert "a probe that was stopped before its page" in said
    assert f"Run it again: {json.loads((killed / 'environment.json').read_text())['command']}" in said


def test_a_probe_and_a_run_of_the_same_recipe_do_not_take_each_others_directory(
    recipe: Path, probed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = ["trainer=minimal", "training.steps=2", "training.measure_influence=true", "allocator.strategy=uniform"]
    commands = {
        "train": ["train", str(recipe), *same, "--output", str(tmp_path)],
        "probe": ["probe", str(recipe), "--steps", "2", "--output", str(tmp_path)],
    }
    for first, second in (("train", "probe"), ("probe", "train")):
        assert main(commands[first]) == 0
        left = {path: path.read_bytes() for path in (tmp_path / "tiny").rglob("*") if path.is_file()}
        assert main(commands[second]) == 2
        assert f"{tmp_path / 'tiny'} holds a " in capsys.readouterr().err
        del left[tmp_path / "tiny" / ".lock"]
        assert {path: path.read_bytes() for path in left} == left
        shutil.rmtree(tmp_path / "tiny")


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
