"""The page of an audit, opened in a real Chromium."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="the report extra is not installed")
pytest.importorskip("matplotlib", reason="the report extra is not installed")
pytest.importorskip("scipy", reason="the report extra is not installed")

import pages

from knapsack_rl.experiments.audit.audit import Options, audit
from knapsack_rl.experiments.audit.report import write_report

FIGURES = {"gradient-shares", "gains", "expected-gradients", "concentration"}
TABLES = {
    "gains-table",
    "plans-by-belief",
    "plans-by-window",
    "hungriest-prompts",
    "unsolved-categories",
    "suspicious-prompts",
    "group-sizes",
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a log that has something to show everywhere, with names that could break a page."""
    folder = tmp_path_factory.mktemp("audit")
    rng = np.random.default_rng(0)
    kinds = ["algebra", "geometry", "<b>counting</b>", "a rather long name of a kind of problems", "matrix"]
    with (folder / "log.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, 41):
            for prompt in rng.permutation(60)[:20].tolist():
                kind = kinds[prompt % 5]
                right = rng.random(8) < (0.0 if kind == "matrix" else (prompt + step) / 110)
                for success in right.tolist():
                    row = {
                        "prompt": f"Problem {prompt}: <script>alert({prompt})</script> " + "and so on " * (prompt % 9),
                        "completion": f"\\boxed{{{prompt}}}" if success or kind == "matrix" else "\\boxed{-1}",
                        "reference": str(prompt),
                        "reward": float(success),
                        "step": step,
                        "category": kind,
                        "length": int(rng.integers(50, 500)),
                    }
                    file.write(json.dumps(row) + "\n")
        file.write('{"prompt": "cut o\n')
    return write_report(audit([folder / "log.jsonl"], Options()), folder / "page", "knapsack-rl audit log.jsonl")


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_reads_well_on_a_phone_and_on_a_screen(page: Path, tmp_path: Path, width: int) -> None:
    seen = pages.read_in_browser(page, tmp_path, width)
    pages.check_layout(seen, width)
    assert {figure["name"] for figure in seen["figures"]} == FIGURES
    assert {table["name"] for table in seen["tables"]} == TABLES
    assert not seen["repeatedIds"]
    assert not seen["deadLinks"]
    assert all((page.parent / file).is_file() for file in seen["files"])


def test_what_a_log_holds_is_text_on_the_page_and_nothing_else(page: Path, tmp_path: Path) -> None:
    seen = pages.read_in_browser(page, tmp_path)
    rows = {table["name"]: table["rows"] for table in seen["tables"]}
    assert any("<script>alert" in row[0] for row in rows["hungriest-prompts"])
    assert [row[0] for row in rows["unsolved-categories"]] == ["matrix"]
    assert seen["scripts"] == 1  # the one that sorts tables


def test_the_page_says_what_was_read_and_what_was_not_used(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for needle in ("reward (guessed)", "Lines that are not JSON", "line 6,401", "It does not cover", "matrix"):
        assert needle in text
