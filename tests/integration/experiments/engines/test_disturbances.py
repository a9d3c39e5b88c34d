"""What may happen to a run's directory while the run is at work, and two processes at one directory."""

from __future__ import annotations

import json
import resource
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

from knapsack_rl.belief import Belief
from knapsack_rl.cli import main
from knapsack_rl.experiments import disk
from knapsack_rl.experiments.pages.page import alone
from knapsack_rl.experiments.runs.progress import Display
from knapsack_rl.experiments.runs.run_directory import RunDirectory

RECIPE = """
name: tiny
trainer: minimal
task: {kind: chain-arithmetic, train_problems: 24, eval_problems: 6, operations: 1}
model: {kind: scratch, layers: 1, width: 32, heads: 2, warm_start: {steps: 20, batch_size: 32}}
training:
  {steps: 2, prompts_per_step: 8, group_size: 4, micro_batch_size: 32, learning_rate: 1e-3, max_completion_length: 4}
evaluation: {every: 1, samples: 2}
"""
STRANGE = "\x1b[31mred\x07\ud800 =1+1 \u202e</script>"

pytestmark = pytest.mark.usefixtures("offline_with_a_cache_of_its_own")


def at_step_1(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    shown = Display.record

    def record(display: Display, line: dict[str, Any]) -> None:
        shown(display, line)
        if line["step"] == 1 and "evaluation" not in line:
            happens()

    monkeypatch.setattr(Display, "record", record)


def test_a_directory_that_is_removed_during_the_run_is_said(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_step_1(monkeypatch, lambda: shutil.rmtree(tmp_path / "tiny"))
    assert main(["train", str(recipe_path), "--output", str(tmp_path)]) == 2
    assert "the directory was removed while the run was at work in it" in capsys.readouterr().err


def test_a_limit_on_the_size_of_files_is_said_and_once_raised_the_run_ends_the_same(
    recipe_path: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        at_step_1(patch, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limits[1])))
        try:
            assert main(["train", str(recipe_path), "--output", str(tmp_path)]) == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "(ulimit -f)" in capsys.readouterr().err
    assert main(["train", str(recipe_path), "--output", str(tmp_path)]) == 0
    model = Path("model", "model.safetensors")
    assert (tmp_path / "tiny" / model).read_bytes() == (finished / model).read_bytes()


def test_a_second_run_in_one_directory_is_refused_with_the_process_that_holds_it(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny").mkdir()
    with disk.lock(tmp_path / "tiny" / ".lock"):
        assert main(["train", str(recipe_path), "--output", str(tmp_path)]) == 2
    assert "another process is at work there: process " in capsys.readouterr().err


def test_a_second_comparison_of_one_name_is_refused(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny-comparison").mkdir()
    with disk.lock(tmp_path / "tiny-comparison" / ".lock"):
        assert main(["compare", str(recipe_path), "--output", str(tmp_path)]) == 2
    assert f"{tmp_path / 'tiny-comparison'}: another process is at work there" in capsys.readouterr().err
    assert not any((tmp_path / "arms").iterdir())


@pytest.mark.parametrize("command", ["report", "audit", "simulate"])
def test_pages_for_one_folder_are_written_one_after_the_other(command: str, finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "page" / "report.html"
    arguments = {
        "report": ["report", str(finished), "--output", str(page)],
        "audit": ["audit", str(finished), "--output", str(page.parent)],
        "simulate": ["simulate", "--theory", "--output", str(page.parent)],
    }
    second = threading.Thread(target=main, args=(arguments[command],))
    with alone(page.parent):
        second.start()
        second.join(timeout=0.3)
        assert second.is_alive()
        assert not page.exists()
    second.join()
    assert page.exists()


def test_texts_that_a_terminal_or_a_spreadsheet_would_obey_are_shown_in_reports(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(Path(shutil.copytree(finished, tmp_path / "tiny")))
    shutil.rmtree(run.allocations)
    for step, won in ((1, 0), (2, 2)):
        belief = Belief(*(pd.Series([1.0, 1.0]).to_numpy() for _ in range(2)))
        run.append_allocations(step, [STRANGE, "=1+1"], [2, 6], [2, 6], [won, 1], belief)
    (run.path / "environment.json").write_text(json.dumps({**run.read_environment(), "command": STRANGE}))
    assert main(["report", str(run.path)]) == 0
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert not set(page) & set("\x1b\x07\u202e")
    assert "[31mred" in page
    for path in (run.path / "figures").glob("*.csv"):
        text = path.read_text(encoding="utf-8")
        assert "\x1b" not in text
        for cell in pd.read_csv(path, dtype=str, keep_default_na=False).to_numpy().ravel():
            assert cell[:1] not in ("=", "@")
    capsys.readouterr()


def test_an_audit_shows_texts_that_a_terminal_would_obey(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": f"{STRANGE}{p}", "reward": float(g == p), "step": s} for s in (1, 2) for p in (0, 1) for g in (0, 1)
    ]
    rows.append({"prompt": "p", "reward": STRANGE, "step": 1})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["audit", str(tmp_path / "log.jsonl"), "--output", str(tmp_path / "page")]) == 0
    shown = capsys.readouterr()
    written = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "page").rglob("*.[hjc][ts][movl]*"))
    assert "[31mred" in written
    for text in (shown.out, shown.err, written):
        assert not set(text) & set("\x1b\x07\ud800\u202e")
    assert main(["audit", str(tmp_path / "log.jsonl"), "--json", "--output", str(tmp_path / "page")]) == 0
    assert json.loads(capsys.readouterr().out)["read"]["rows"] == len(rows)
