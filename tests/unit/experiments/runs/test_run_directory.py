from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from knapsack_rl.belief import Belief
from knapsack_rl.errors import InvalidInputError, StateError
from knapsack_rl.experiments.runs.run_directory import RunDirectory

RECIPE = "name: a\nseed: 0\n"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "a")
    directory.claim(RECIPE)
    return directory


def test_two_processes_cannot_work_on_one_run(run: RunDirectory) -> None:
    with pytest.raises(StateError, match="another process"):
        RunDirectory(run.path).claim(RECIPE)
    run.release()
    other = RunDirectory(run.path)
    other.claim(RECIPE)
    other.release()


def test_another_recipe_is_refused_once_training_has_begun(run: RunDirectory) -> None:
    run.release()
    run.claim(RECIPE.replace("0", "1"))
    run.write_environment({"finished": None})
    run.release()
    with pytest.raises(InvalidInputError, match=r"another recipe:\n  seed: 1 there, 0 here"):
        run.claim(RECIPE)


def test_a_directory_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InvalidInputError, match="not of a run"):
        RunDirectory(tmp_path).claim(RECIPE)
    assert not (tmp_path / "recipe.yaml").exists()


def test_a_full_disk_is_found_with_its_path_and_both_numbers(run: RunDirectory) -> None:
    run.require_space(1)
    with pytest.raises(InvalidInputError, match=r"a needs about 931322.6 GiB .* are free"):
        run.require_space(10**15)
    run.release()


def test_what_a_run_has_written_already_needs_no_space_again(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.checkpoints.mkdir()
    (run.checkpoints / "weights").write_bytes(bytes(3 * 2**20))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    run.require_space(4 * 2**20)
    with pytest.raises(InvalidInputError, match=r"needs about 2\.0 MiB .*, and 1\.0 MiB are free"):
        run.require_space(5 * 2**20)
    run.release()


def test_only_complete_checkpoints_count(run: RunDirectory) -> None:
    assert run.latest_checkpoint() is None
    for updates in (8, 16, 100):
        (run.checkpoints / f"checkpoint-{updates}").mkdir(parents=True)
    assert run.latest_checkpoint() is None
    for updates in (8, 16):
        (run.checkpoints / f"checkpoint-{updates}" / "trainer_state.json").write_text("{}")
    (run.checkpoints / "checkpoint-100" / "trainer_state.json").write_text('{"global_')  # the disk was full
    assert run.latest_checkpoint() == (run.checkpoints / "checkpoint-16", 16)
    run.release()


def test_rewinding_forgets_later_steps_and_half_written_lines(run: RunDirectory) -> None:
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "loss": float("nan") if step == 1 else 0.5})
        run.append_allocations(step, ["p", "q"], [2, 6], [2, 5], [0, 5], Belief(np.ones(2), np.full(2, 3.0)))
    with run.metrics.open("a") as file:
        file.write('{"step": 4')
    assert run.rewind(2) == {"step": 2, "loss": 0.5}
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == [
        {"step": 1, "loss": None},
        {"step": 2, "loss": 0.5},
    ]
    table = pd.read_parquet(run.allocations)
    assert table["step"].tolist() == [1, 1, 2, 2]
    assert table[table["step"] == 2].drop(columns="step").to_dict("list") == {
        "prompt": ["p", "q"],
        "rollouts": [2, 6],
        "scored": [2, 5],
        "successes": [0, 5],
        "belief_wins": [1.0, 1.0],
        "belief_losses": [3.0, 3.0],
    }
    assert run.rewind(-1) is None
    run.release()


def test_an_environment_says_whether_the_run_is_finished(run: RunDirectory) -> None:
    assert not run.finished
    run.write_environment({"finished": None})
    assert not run.finished
    run.write_environment({"finished": "2026-01-01T00:00:00+00:00"})
    assert run.finished
    run.release()
