"""The page of a comparison, opened in a real Chromium. The runs are made up; the way from them to the page is real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("scipy", reason="the report extra is not installed")
pytest.importorskip("pydantic", reason="the train extra is not installed")

import pages

from knapsack_rl.experiments.compare import comparison, results
from knapsack_rl.experiments.compare.arms import Failure
from knapsack_rl.experiments.compare.comparison import ArmRun, ComparisonRuns
from knapsack_rl.experiments.compare.report import write_report

MANY_ARMS = """
name: many-arms
settings: {trainer: minimal}
arms: [uniform, knapsack, oracle, uniform-twice-the-group, dynamic-sampling, knapsack+dynamic-sampling]
seeds: [21, 22, 23, 24, 25]
tuning: {grid: {training.learning_rate: [5.0e-4, 1.0e-3]}, seeds: [101, 102]}
"""
SIZES = """
name: sizes
settings: {trainer: minimal, training.micro_batch_size: 256}
arms: {uniform: null, knapsack: null, "a name of thirty letters or so": {allocator.fallback: false}}
vary: {training.group_size: [4, 8, 16]}
seeds: [1, 2]
"""
ENVIRONMENT = {"python": "3.11.7", "platform": "Linux", "device": "cpu", "threads": 1, "versions": {"torch": "2.13.0"}}


def made_up(arms: list[ArmRun], benchmarks: tuple[str, ...]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """What `results.read` would say: 200 steps, an evaluation every 20, and better arms the later they are listed."""
    runs, curves, steps = [], [], []
    for position, arm in enumerate(arms):
        rng = np.random.default_rng(position)
        size = arm.recipe.training.group_size
        labels = {"variation": arm.variation, "arm": arm.name, "choice": arm.choice, "seed": arm.seed}
        step = np.arange(0, 201, 20)
        evaluations = []
        for number, benchmark in enumerate(benchmarks):
            accuracy = 0.2 + (0.4 + 0.002 * position - 0.1 * number) * (1 - np.exp(-step / 60)) + rng.normal(0, 0.02)
            evaluations.append(
                pd.DataFrame({"step": step, "accuracy": accuracy.clip(0, 1), "benchmark": benchmark, "solved": 1.0})
            )
        table = pd.concat(evaluations)
        mean = table.groupby("step", as_index=False)[["accuracy", "solved"]].mean().assign(benchmark="mean")
        table = pd.concat([table, mean]).assign(**labels)
        for cost, factor in (("rollouts", 64 * size), ("tokens", 128 * size), ("seconds", 0.05)):
            table[cost] = table["step"] * float(factor)
        curves.append(table)
        each = np.arange(1, 201)
        ratio = 0.3 + 0.3 * np.exp(-each / 80) + 0.01 * position
        steps.append(
            pd.DataFrame({"step": each, "rollouts": each * 64 * size, "effective_gradient_ratio": ratio.clip(0, 1)})
            .assign(effective_prompts=ratio.clip(0, 1) / 2)
            .assign(**labels)
        )
        end = table.iloc[-1][list(results.COSTS)].to_dict()
        runs.append(
            {**labels, **end, "folder": arm.folder, "steps": 200, "effective_gradient_ratio": 0.4}
            | {"effective_prompts": 25.0, "never_solved": 7.0, "prompts": 500, "allocation_share": 0.001}
        )
    return pd.DataFrame(runs), pd.concat(curves, ignore_index=True), pd.concat(steps, ignore_index=True)


def write(grid: ComparisonRuns, folder: Path, benchmarks: tuple[str, ...], failures: list[Failure]) -> Path:
    compared = grid.comparison
    tuned = None
    if compared.tuning is not None:
        runs, curves, _ = made_up(grid.tuning(), benchmarks)
        tuned = results.best_choices(results.at_equal_cost(runs, curves, compared))
    chosen = {} if tuned is None else {("", row.arm): row.choice for row in tuned[tuned["chosen"]].itertuples()}
    failed = {failure.arm.folder for failure in failures}
    done = [arm for arm in grid.reported(chosen) if arm.folder not in failed]
    runs, curves, steps = made_up(done, benchmarks)
    taken = results.at_equal_cost(runs, curves, compared)
    reach = results.cost_to_reach(taken, curves, compared)
    tables = {"summary": results.summary(taken, reach, compared), "runs": taken, "curves": curves, "steps": steps}
    tables |= {"cost_to_reach": reach, **({} if tuned is None else {"tuning": tuned})}
    environments = [ENVIRONMENT] * len(done)
    return write_report(grid, tables, failures, environments, folder, f"knapsack-rl compare {compared.name}.yaml")


def grid_of(text: str, folder: Path) -> ComparisonRuns:
    (folder / "comparison.yaml").write_text(text, encoding="utf-8")
    return comparison.read(folder / "comparison.yaml")


@pytest.fixture(scope="module")
def many_arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many-arms")
    return write(grid_of(MANY_ARMS, folder), folder, ("short", "long & <b>hard</b>"), [])


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    grid = grid_of(SIZES, folder)
    failures = [
        Failure(arm, "CUDA <out> of memory", folder / "arm.log")
        for arm in grid.reported({})
        if (arm.variation, arm.name, arm.seed) == ("group_size=8", "knapsack", 2)
    ]
    return write(grid, folder, ("held-out",), failures)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_reads_well_on_a_phone_and_on_a_screen(many_arms: Path, tmp_path: Path, width: int) -> None:
    seen = pages.read_in_browser(many_arms, tmp_path, width)
    pages.check_layout(seen, width)
    assert [figure["name"] for figure in seen["figures"]] == [
        "accuracy-by-rollouts",
        "accuracy-by-tokens",
        "accuracy-by-seconds",
        "accuracy",
        "differences",
        "cost-to-reach",
        "effective-gradient-ratio",
        "effective-prompts",
        "performance-profile",
        "tuning",
        "benchmark-1",
        "benchmark-2",
    ]
    assert {table["name"] for table in seen["tables"]} == {"arms", "costs", "runs"}
    assert not seen["repeatedIds"]
    assert not seen["deadLinks"]
    assert all((many_arms.parent / file).is_file() for file in seen["files"])


@pytest.mark.parametrize("width", [390, 1280])
def test_every_variation_has_its_figures_and_failures_are_listed(sizes: Path, tmp_path: Path, width: int) -> None:
    seen = pages.read_in_browser(sizes, tmp_path, width)
    pages.check_layout(seen, width)
    names = [figure["name"] for figure in seen["figures"]]
    assert names[0] == "across-settings"
    assert [name for name in names if name.startswith("differences")] == [
        f"differences-group-size-{size}" for size in (4, 8, 16)
    ]
    failures = next(table for table in seen["tables"] if table["name"] == "failures")
    assert failures["rows"] == [["knapsack", "group_size=8", "", "2", "CUDA <out> of memory"]]


def test_tables_are_sorted_from_the_keyboard_in_the_dark(many_arms: Path, tmp_path: Path) -> None:
    with pages.opened(many_arms, tmp_path, dark=True) as page:
        page.evaluate("document.querySelector('#runs thead th:nth-child(3) button').focus()")
        page.press("Enter")
        seeds = page.evaluate("[...document.querySelectorAll('#runs tbody tr')].map(row => +row.cells[2].textContent)")
    assert seeds == sorted(seeds)
    assert len(set(seeds)) == 5
