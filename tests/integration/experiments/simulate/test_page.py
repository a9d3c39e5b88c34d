"""The page of simulations, opened in a real Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the report extra is not installed")
pytest.importorskip("matplotlib", reason="the report extra is not installed")

import pages

from knapsack_rl.experiments.simulate import results
from knapsack_rl.experiments.simulate.report import write_report
from knapsack_rl.experiments.simulate.results import Grid


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tables = results.run(Grid(optimizers=("adam", "sgd"), steps=150))
    return write_report(tables, tmp_path_factory.mktemp("simulate") / "report.html", "knapsack-rl simulate")


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_reads_well_on_a_phone_and_on_a_screen(page: Path, tmp_path: Path, width: int) -> None:
    seen = pages.read_in_browser(page, tmp_path, width)
    pages.check_layout(seen, width)
    assert len(seen["figures"]) == 2 * 9 + 3
    assert {table["name"] for table in seen["tables"]} == {"against-paper", "results", "beliefs", "theory-table-3"}
    assert all((page.parent / file).is_file() for file in seen["files"])
