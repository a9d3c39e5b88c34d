from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pandas", reason="the report extra is not installed")

import pandas as pd

from knapsack_rl.errors import InvalidInputError, StateError
from knapsack_rl.experiments import disk
from knapsack_rl.experiments.cleaning import cleaned


def test_a_file_is_replaced_at_once_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    disk.write_text(tmp_path / "a", "old")
    with disk.replacing(tmp_path / "a") as unfinished:
        unfinished.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new"
    with pytest.raises(AttributeError), disk.replacing(tmp_path / "a") as unfinished:
        unfinished.write_text("half").fail()  # type: ignore[attr-defined]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new"}


def test_links_are_replaced_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("mine")
    for name in ("a", ".a.unfinished"):
        (tmp_path / name).symlink_to(tmp_path / "thesis")
    disk.write_text(tmp_path / "a", "ours")
    assert (tmp_path / "thesis").read_text() == "mine"
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "a").read_text() == "ours"


@pytest.mark.parametrize("path", ["/dev/full", "/dev/null", "/tmp"])
def test_devices_and_folders_are_left_alone(path: str) -> None:
    with pytest.raises(FileExistsError):
        disk.write_text(Path(path), "x")


def test_a_lock_keeps_others_out_until_its_process_ends_however_it_ends(tmp_path: Path) -> None:
    hold = "import sys; from knapsack_rl.experiments import disk; import pathlib, time\n"
    hold += "held = disk.lock(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "l")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(StateError, match=f"at work there: process {process.pid} on "):
        disk.lock(tmp_path / "l")
    process.kill()
    process.wait()
    process.stdout.close()
    disk.lock(tmp_path / "l", wait=True).close()


def test_a_lock_follows_no_link_and_empties_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("mine")
    (tmp_path / "soft").symlink_to(tmp_path / "thesis")
    with pytest.raises(InvalidInputError, match="is a symbolic link"):
        disk.lock(tmp_path / "soft")
    os.link(tmp_path / "thesis", tmp_path / "hard")
    disk.lock(tmp_path / "hard").close()
    assert (tmp_path / "thesis").read_text() == "mine"


def test_who_holds_a_lock_is_said_in_clean_words_only(tmp_path: Path) -> None:
    with disk.lock(tmp_path / "l"):
        (tmp_path / "l").write_bytes(b"\x1b[31mprocess 3 on me")
        with pytest.raises(StateError, match=r"at work there\. Wait"):
            disk.lock(tmp_path / "l")


def test_cells_that_a_spreadsheet_would_run_begin_with_an_apostrophe(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "=name": ["=1+1", "+cmd|' /C calc'!A0", "@sum(1)", "-2+3", "\tx", "fine", "-2.5", None],
            "number": [-1.5, 2, 3, 4, 5, 6, 7, float("nan")],
        }
    )
    disk.write_csv(table, tmp_path / "t.csv")
    read = pd.read_csv(tmp_path / "t.csv")
    assert read.columns.tolist() == ["'=name", "number"]
    assert read["'=name"].tolist()[:7] == ["'=1+1", "'+cmd|' /C calc'!A0", "'@sum(1)", "'-2+3", "'\tx", "fine", "-2.5"]
    assert read["number"].tolist()[:7] == [-1.5, 2, 3, 4, 5, 6, 7]
    assert table["=name"][0] == "=1+1", "the table itself was changed"


def test_categories_are_cleaned_too(tmp_path: Path) -> None:
    disk.write_csv(pd.DataFrame({"a": pd.Categorical(["=x", "=x", "y"])}), tmp_path / "t.csv")
    assert pd.read_csv(tmp_path / "t.csv")["a"].tolist() == ["'=x", "'=x", "y"]


def test_nothing_that_a_terminal_obeys_is_left_of_a_text() -> None:
    everything = "".join(map(chr, range(0x3000))) + "\ud800\udfff \u4e2d \U0001f600"
    found = cleaned(everything)
    assert len(found) == len(everything)
    found.encode()
    assert {one for one in found if ord(one) < 32} == {"\t", "\n"}
    assert not any(0x7F <= ord(one) < 0xA0 for one in found)
    assert "\u202e" not in found
    assert cleaned("\u4e2d \U0001f600 \xe9 \t\n") == "\u4e2d \U0001f600 \xe9 \t\n"


def test_a_full_disk_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_text(tmp_path / "a", "old")

    def full(self: Path, *_: object, **__: object) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            disk.write_text(tmp_path / "a", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}
