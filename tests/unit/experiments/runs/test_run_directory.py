from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from knapsack_rl.belief import Belief
from knapsack_rl.errors import InvalidInputError, KnapsackError, StateError
from knapsack_rl.experiments.runs import manifest
from knapsack_rl.experiments.runs.run_directory import RunDirectory

RECIPE = "name: a\nseed: 0\n"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "a")
    directory.claim(RECIPE)
    return directory


def test_two_processes_cannot_work_on_one_run(run: RunDirectory) -> None:
    with pytest.raises(StateError, match=rf"another process is at work there: process {os.getpid()} on "):
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


def checkpoint(run: RunDirectory, updates: int, keep: int | None = None) -> Path:
    """A complete checkpoint."""
    folder = run.checkpoints / f"checkpoint-{updates}"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
        (folder / name).write_bytes(name.encode() * updates)
    run.seal_checkpoint(updates, keep)
    return folder


def test_the_newest_checkpoint_is_one_that_was_sealed_whatever_else_lies_there(run: RunDirectory) -> None:
    assert run.newest_checkpoint() == (None, 0, 0, [])
    checkpoint(run, 8)
    newest = checkpoint(run, 16)
    for stray in ("checkpoint-best", "checkpoint-17.bak", "checkpoint-", "checkpoint-9x"):
        (run.checkpoints / stray).mkdir()
    (run.checkpoints / "checkpoint-40").write_text("a file")
    assert run.newest_checkpoint() == (newest, 16, 0, [])
    (run.checkpoints / "checkpoint-100").mkdir()  # killed while saving
    assert run.newest_checkpoint() == (
        newest,
        16,
        0,
        ["checkpoint-100 is passed over: it has no manifest.json, so it was not finished."],
    )
    run.release()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "{} is missing"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "{} has "),
    "one bit of it flipped": (flip, "{} holds other bytes than were written"),
    "empty": (lambda path: path.write_bytes(b""), "{} has 0 bytes instead of "),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "{} is missing"),
}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_the_file_and_what_is_wrong(
    run: RunDirectory, how: str, name: str
) -> None:
    older, newest = checkpoint(run, 8), checkpoint(run, 16)
    harm, said = DAMAGE[how]
    harm(newest / name)
    found = run.newest_checkpoint()
    assert (found.checkpoint, found.updates) == (older, 8)
    assert found.passed_over[0].startswith(f"checkpoint-16 is passed over: {said.format(name)}")
    run.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": 3}', b"\xff\xfe", b"[" * 10**5, None])
def test_a_damaged_manifest_is_no_manifest(run: RunDirectory, content: bytes | None) -> None:
    newest = checkpoint(run, 16)
    if content is None:
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_bytes(content)
    found = run.newest_checkpoint()
    assert found.checkpoint is None
    assert "manifest.json" in found.passed_over[0]
    run.release()


def test_a_checkpoint_of_another_run_or_under_another_number_is_passed_over(run: RunDirectory, tmp_path: Path) -> None:
    other = RunDirectory(tmp_path / "b")
    other.claim(RECIPE.replace("seed: 0", "seed: 1"))
    shutil.copytree(checkpoint(other, 24), run.checkpoints / "checkpoint-24")
    shutil.copytree(checkpoint(run, 8), run.checkpoints / "checkpoint-16")
    found = run.newest_checkpoint()
    assert (found.updates, found.passed_over) == (
        8,
        [
            "checkpoint-24 is passed over: it is of another run.",
            "checkpoint-16 is passed over: it is of another updates.",
        ],
    )
    run.release()
    other.release()


@pytest.mark.parametrize(
    ("keep", "left"), [(None, [4, 8, 12, 16]), (0, [4, 8, 12, 16]), (1, [16]), (2, [12, 16]), (9, [4, 8, 12, 16])]
)
def test_so_many_complete_checkpoints_are_kept(run: RunDirectory, keep: int | None, left: list[int]) -> None:
    for updates in (4, 8, 12, 16):
        checkpoint(run, updates, keep)
    assert sorted(int(path.name[11:]) for path in run.checkpoints.iterdir()) == left
    run.release()


def test_neither_strays_nor_the_last_complete_checkpoint_give_way_to_a_new_one(run: RunDirectory) -> None:
    checkpoint(run, 8)
    for name in ("checkpoint-12", "checkpoint-20", "checkpoint-7.bak", "checkpoint-best"):
        (run.checkpoints / name).mkdir()
    checkpoint(run, 16, keep=2)
    assert {path.name for path in run.checkpoints.iterdir()} == {
        "checkpoint-8", "checkpoint-12", "checkpoint-16", "checkpoint-20", "checkpoint-7.bak", "checkpoint-best",
    }  # fmt: skip
    checkpoint(run, 18, keep=1)
    assert not (run.checkpoints / "checkpoint-16").exists()
    assert (run.checkpoints / "checkpoint-7.bak").exists()
    run.release()


def test_what_is_lost_of_the_records_is_said_and_put_aside(run: RunDirectory) -> None:
    for step in (1, 2, 3, 4):
        run.append_metrics({"step": step})
        run.append_allocations(step, ["p"], [2], [2], [0], Belief(np.ones(1), np.ones(1)))
    run.append_metrics({"step": 4, "evaluation": {}})
    checkpoint(run, 8)
    assert run.newest_checkpoint().records == 5
    assert run.missing_records(4, 5) == []
    lines = run.metrics.read_bytes().splitlines(keepends=True)
    run.metrics.write_bytes(lines[0] + b'{"step": \x00\n' + lines[2] + lines[3])
    values = bytearray((run.allocations / "step-000003.parquet").read_bytes())
    column = parquet.read_metadata(run.allocations / "step-000003.parquet").row_group(0).column(2)
    values[column.dictionary_page_offset + column.total_compressed_size - 1] ^= 1  # of a value; pages have checksums
    (run.allocations / "step-000003.parquet").write_bytes(values)
    (run.allocations / "step-000004.parquet").unlink()
    assert run.missing_records(4, 5) == [
        "metrics.jsonl has lost 2 of 5 records up to step 4: training is the same without, reports lack them.",
        "allocations.parquet has lost 2 steps (3, 4) up to step 4: training is the same without, reports lack them.",
    ]
    assert pd.read_parquet(run.allocations)["step"].tolist() == [1, 2]
    assert run.rewind(3) == {"step": 3}
    assert [record["step"] for record in run.read_metrics()] == [1, 3]
    run.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[3]", b"\xff\xfe{\x00", b"[" * 10**5])
def test_a_damaged_environment_is_said_and_the_run_goes_on(run: RunDirectory, content: bytes) -> None:
    run.environment.write_bytes(content)
    run.release()
    run.claim(RECIPE)
    assert not run.finished
    assert run.remarks == [
        "environment.json is damaged: when the run began is not known any more, so it is written anew."
    ]
    with pytest.raises(InvalidInputError, match="another recipe"):
        RunDirectory(shutil.copytree(run.path, run.path.parent / "copy")).claim("name: b\n")
    run.release()


def test_a_missing_environment_beside_checkpoints_is_said_and_the_run_goes_on(run: RunDirectory) -> None:
    checkpoint(run, 8)
    run.release()
    run.claim(RECIPE)
    assert "environment.json is missing" in run.remarks[0]
    run.release()


@pytest.mark.parametrize(
    "harm", [Path.unlink, lambda path: path.write_bytes(b"\xff\xfe"), lambda path: path.write_text("[")]
)
def test_a_damaged_recipe_is_refused_by_its_name(run: RunDirectory, harm: Callable[[Path], object]) -> None:
    run.write_environment({"finished": None})
    run.release()
    harm(run.recipe)
    with pytest.raises(KnapsackError, match=re.escape(str(run.recipe))):
        run.claim(RECIPE)


def test_prompts_that_utf_8_cannot_hold_are_recorded_with_escapes(run: RunDirectory) -> None:
    run.append_allocations(1, ["a\ud800", "b\x1b"], [2, 2], [2, 2], [0, 0], Belief(np.ones(2), np.ones(2)))
    assert pd.read_parquet(run.allocations)["prompt"].tolist() == ["a\\ud800", "b\x1b"]
    run.release()


def test_an_append_does_not_follow_a_link(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    run.metrics.symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(OSError, match="symbolic links"):
        run.append_metrics({"step": 1})
    run.rewind(0)
    run.append_metrics({"step": 1})
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    assert not run.metrics.is_symlink()
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


def test_all_that_was_measured_is_on_the_disk_before_a_run_is_recorded_as_finished(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(file: int) -> None:
        synced.append(Path(f"/proc/self/fd/{file}").readlink().name)
        fsync(file)

    pytest.importorskip("torch", reason="needs the extra 'train'")
    from knapsack_rl.experiments.runs.environment import record_end

    monkeypatch.setattr(os, "fsync", watched)
    run.append_metrics({"step": 1})
    record_end(run)
    assert run.finished
    assert synced == ["metrics.jsonl", ".environment.json.unfinished"]
    run.release()


def test_all_that_was_measured_is_on_the_disk_before_a_checkpoint_says_so(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(RunDirectory, "sync_metrics", lambda self: synced.append(self.metrics))
    monkeypatch.setattr(manifest, "seal", lambda *args, **facts: synced.append(args[0]))
    folder = checkpoint(run, 8)
    assert synced == [run.metrics, folder]
    run.release()


@pytest.mark.parametrize("text", ["# mine\nname: a\n", "name: b\n", "\xff"])
def test_a_recipe_that_somebody_keeps_in_the_directory_is_left_alone(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text, encoding="latin-1")
    for _ in ("at once", "and again"):
        with pytest.raises(InvalidInputError, match="not of a run"):
            RunDirectory(tmp_path).claim(RECIPE)
    assert (tmp_path / "recipe.yaml").read_text(encoding="latin-1") == text
    assert len(list(tmp_path.iterdir())) == 1


def test_the_very_recipe_may_be_there_already(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    directory = RunDirectory(tmp_path)
    directory.claim(RECIPE)
    directory.release()
