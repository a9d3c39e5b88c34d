"""SIGKILL at moments that a seed draws, in the writing of checkpoints too: the same command ends as if undisturbed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

import killing
import pandas as pd

MANY = 6

pytestmark = pytest.mark.usefixtures("offline_with_a_cache_of_its_own")


def moments(touches: int, count: int, seed: int) -> Iterator[int]:
    rng = random.Random(seed)
    return iter(rng.sample(range(1, touches + 1), min(count, touches)))


@pytest.fixture(scope="module", params=["trl", "minimal"])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """A recipe, the directory of its run, and how often that touched a file in it."""
    folder = tmp_path_factory.mktemp(request.param)
    path = killing.recipe(folder, request.param)
    output = folder / "runs"
    _, touches = killing.run(["train", str(path), "--output", str(output)], output)
    return path, output / "tiny", touches


def check_train(undisturbed: tuple[Path, Path, int], tmp_path: Path, kills: int, seed: int) -> None:
    """A run killed again and again, each time that it goes on, and at last left alone."""
    path, expected, touches = undisturbed
    killed = 0
    for moment in moments(touches, kills, seed):
        code, _ = killing.run(["train", str(path), "--output", str(tmp_path / "runs")], tmp_path / "runs", moment)
        killed += code != 0
    killing.run(["train", str(path), "--output", str(tmp_path / "runs")], tmp_path / "runs")
    assert killed, "nothing was killed"
    assert killing.outcome(tmp_path / "runs" / "tiny") == killing.outcome(expected)


def test_a_run_killed_while_it_writes_ends_as_the_undisturbed_run(
    undisturbed: tuple[Path, Path, int], tmp_path: Path
) -> None:
    check_train(undisturbed, tmp_path, kills=1, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(MANY))
def test_a_run_killed_several_times_ends_as_the_undisturbed_run(
    seed: int, undisturbed: tuple[Path, Path, int], tmp_path: Path
) -> None:
    check_train(undisturbed, tmp_path, kills=3, seed=100 + seed)


def check_audit(tmp_path: Path, kills: int, seed: int) -> None:
    log = tmp_path / "log.jsonl"
    rng = random.Random(0)
    log.write_text(
        "".join(
            json.dumps({"prompt": f"p{prompt}", "reward": float(rng.random() < prompt / 6), "step": step}) + "\n"
            for step in range(6)
            for prompt in range(6)
            for _ in range(4)
        )
    )
    arguments = ["audit", str(log), "--output", str(tmp_path / "page")]
    _, touches = killing.run(arguments, tmp_path / "page")

    def files() -> dict[str, bytes]:
        every = (path for path in (tmp_path / "page").rglob("*") if path.is_file())
        return {path.name: path.read_bytes() for path in every if path.name != ".lock"}

    expected = files()
    shutil.rmtree(tmp_path / "page")
    killed = 0
    for moment in moments(touches, kills, seed):
        code, _ = killing.run(arguments, tmp_path / "page", moment)
        killed += code != 0
        for name, content in files().items():
            assert name.endswith(".unfinished") or content == expected[name], f"half of {name}"
    killing.run(arguments, tmp_path / "page")
    assert killed, "nothing was killed"
    assert {name: content for name, content in files().items() if not name.endswith(".unfinished")} == expected


def test_an_audit_killed_while_it_writes_leaves_whole_files_and_ends_the_same(tmp_path: Path) -> None:
    check_audit(tmp_path, kills=1, seed=2)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(MANY))
def test_an_audit_killed_many_times_ends_the_same(seed: int, tmp_path: Path) -> None:
    check_audit(tmp_path, kills=4, seed=200 + seed)


COMPARISON = "{name: small, recipe: tiny.yaml, arms: [uniform, knapsack], seeds: [1], tuning: null}"
TABLES = ("summary", "runs", "curves", "cost_to_reach")


@pytest.mark.long
def test_a_comparison_killed_many_times_ends_the_same(tmp_path: Path) -> None:
    killing.recipe(tmp_path, "minimal")
    (tmp_path / "small.yaml").write_text(COMPARISON)
    arguments = ["compare", str(tmp_path / "small.yaml"), "--jobs", "2", "--output"]
    _, touches = killing.run([*arguments, str(tmp_path / "runs")], tmp_path / "runs")

    def tables(output: Path) -> dict[str, dict[str, list[Any]]]:
        timed = ["seconds", "allocation_share"]
        read = {name: pd.read_csv(output / "small" / f"{name}.csv") for name in TABLES}
        return {name: table.drop(columns=timed, errors="ignore").to_dict("list") for name, table in read.items()}

    expected = tables(tmp_path / "runs")
    killed = 0
    for number, moment in enumerate(moments(touches, 4, seed=3)):
        output = tmp_path / f"runs-{number}"
        code, _ = killing.run([*arguments, str(output)], output, moment)
        killed += code != 0
        killing.run([*arguments, str(output)], output)
        pd.testing.assert_frame_equal(pd.DataFrame([tables(output)]), pd.DataFrame([expected]))
    assert killed, "nothing was killed"
