"""Small files that would become large: each ends in a sentence, within 200 MB over what the libraries take."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="the report extra is not installed")
pytest.importorskip("matplotlib", reason="the report extra is not installed")
pytest.importorskip("pydantic", reason="needs the extra 'train'")

import knapsack_rl as kr
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit.asked import Asked
from knapsack_rl.experiments.audit.files import find_files
from knapsack_rl.experiments.audit.reading import Reading
from knapsack_rl.experiments.recipe import recipe_file

GOOD = '{"prompt": "p", "reward": 1, "step": 1}\n'
MOST = 200  # MB
# A child for each file, forked from one process that has the libraries, says what it was told and the MB that it took.
MEASURED = """
import json, os, resource, sys
from pathlib import Path
import knapsack_rl as kr
from knapsack_rl.errors import KnapsackError
from knapsack_rl.experiments.audit.asked import Asked
from knapsack_rl.experiments.audit.files import find_files
from knapsack_rl.experiments.audit.reading import Reading
from knapsack_rl.experiments.recipe import recipe_file

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

def told(path):
    if path.suffix == ".yaml":
        recipe_file.read(path)
    elif path.suffix == ".npz":
        kr.BudgetAllocator().load(path)
    else:
        reading = Reading(find_files([path]), Asked())
        return f"{sum(len(batch.reward) for batch in reading.batches())} {dict(reading.problems.examples)}"

for path in map(Path, sys.argv[1:]):
    sys.stdout.flush()
    if os.fork():
        assert os.wait()[1] == 0
        continue
    before = peak()
    try:
        said = told(path)
    except KnapsackError as error:
        said = str(error)[:500]
    print(json.dumps([path.name, said, peak() - before]), flush=True)
    os._exit(0)
"""


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, levels)]
    return "\n".join(lines)


def merges(levels: int) -> str:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}]}}" for level in range(1, levels)]
    return "\n".join(lines)


def spaces(start: str, megabytes: int, end: str = "") -> bytes:
    """Some megabytes of spaces in gz."""
    packed = io.BytesIO()
    with gzip.open(packed, "wb", compresslevel=1) as file:
        file.write(start.encode())
        for _ in range(megabytes):
            file.write(b" " * (1 << 20))
        file.write(end.encode())
    return packed.getvalue()


def claims(compressed: bool) -> bytes:
    """An .npz file whose array is of gigabytes of zeros: packed, or not there at all."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as file:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (1 << 29,)})
        with file.open("header.npy", "w", force_zip64=True) as member:
            np.save(member, np.array(json.dumps({"version": 3})))
        with file.open("keys.npy", "w", force_zip64=True) as member:
            member.write(head.getvalue())
            for _ in range(300 if compressed else 1):
                member.write(bytes(1 << 20))
    return packed.getvalue()


BOMBS = {
    "laughs.yaml": (laughs(9).encode(), "expected at most 100,000 values, got more, by aliases of aliases"),
    "merges.yaml": (merges(9).encode(), "expected at most 100,000 values"),
    "deep.yaml": (b"[" * 100_000, "levels, got hundreds"),
    "one-line.yaml": (b"name: " + b"x" * (40 << 20), "expected at most 1,048,576 characters"),
    "endless.jsonl.gz": (spaces(GOOD, 600, f"\n{GOOD}"), "2 {'lines of more than 16 MiB'"),
    "document.json.gz": (spaces("[{", 600), "it is one JSON document of more than"),
    "packed.npz": (claims(compressed=True), "expected a file that BudgetAllocator.save wrote"),
    "absent.npz": (claims(compressed=False), "expected a file that BudgetAllocator.save wrote"),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """By bomb what was said, and the MB that it took."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, (content, _) in BOMBS.items():
        assert len(content) < 9e6 or name == "one-line.yaml"
        (folder / name).write_bytes(content)
    command = [sys.executable, "-c", MEASURED, *(str(folder / name) for name in BOMBS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: (said, megabytes) for name, said, megabytes in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_in_a_sentence_and_within_200_megabytes(name: str, told: dict[str, tuple[str, int]]) -> None:
    said, megabytes = told[name]
    assert BOMBS[name][1] in said
    assert megabytes < MOST


@pytest.mark.parametrize("deep", ["[" * 100_000 + "]" * 100_000, "[" * 100_000, '{"a":' * 500 + "1" + "}" * 500])
def test_a_row_nested_without_end_costs_that_row_only(deep: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(GOOD + f'{{"prompt": "p", "reward": 1, "step": 1, "x": {deep}}}\n' + GOOD)
    reading = Reading(find_files([tmp_path / "log.jsonl"]), Asked())
    assert sum(len(batch.reward) for batch in reading.batches()) == 2
    assert sum(reading.problems.counts.values()) == 1
    assert "line 2" in str(reading.problems.examples)


def test_brackets_in_texts_are_no_levels(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "[0, 1) " * 300, "reward": 1, "step": 1, "x": [[1]]})
    (tmp_path / "log.jsonl").write_text(f"{row}\n{row}\n")
    reading = Reading(find_files([tmp_path / "log.jsonl"]), Asked())
    assert sum(len(batch.reward) for batch in reading.batches()) == 2
    assert not reading.problems.counts


def test_a_deep_document_costs_that_file_only(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(f'[{{"prompt": "p", "reward": 1, "x": {"[" * 300}{"]" * 300}}}]')
    (tmp_path / "2.json").write_text('[{"prompt": "p", "reward": 1}]')
    reading = Reading(find_files([tmp_path]), Asked())
    assert sum(len(batch.reward) for batch in reading.batches()) == 1
    assert "nested in more than 100 levels" in str(reading.problems.examples)


def test_objects_after_one_another_are_read_in_linear_time_and_whole(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text('{\n"prompt": "p", "reward": 1},  ' * 30_000)
    reading = Reading(find_files([tmp_path / "log.json"]), Asked())
    assert sum(len(batch.reward) for batch in reading.batches()) == 30_000


def test_aliases_that_stand_for_little_are_fine(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, y: 2}\n")
    found = recipe_file.mapping(tmp_path / "r.yaml")
    assert found == {"a": {"x": 1}, "b": [{"x": 1}, {"x": 1}], "c": {"x": 1, "y": 2}}


def test_a_block_that_contains_itself_is_still_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("a: &a [*a]\n")
    with pytest.raises(InvalidInputError, match="a block that contains itself"):
        recipe_file.read(tmp_path / "r.yaml")


def test_a_state_that_numpy_packed_is_refused_and_says_so(tmp_path: Path) -> None:
    allocator = kr.BudgetAllocator()
    allocator.tell(range(1000), [1] * 1000, [4] * 1000)
    allocator.save(tmp_path / "state.npz")
    with np.load(tmp_path / "state.npz") as file:
        np.savez_compressed(tmp_path / "packed.npz", **file)
    with pytest.raises(kr.StateError, match="members of"):
        kr.BudgetAllocator().load(tmp_path / "packed.npz")
