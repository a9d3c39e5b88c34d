"""Random damage, counted: `pytest tests/integration/fuzz -m long -s` prints the cases and how they ended.

Every case ends in a sentence or in a whole result; anything else, a traceback above all, fails the test.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

import killing
import pandas as pd

import knapsack_rl as kr
from knapsack_rl.cli import main
from knapsack_rl.errors import KnapsackError
from knapsack_rl.experiments.audit.audit import Options, audit

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("offline_with_a_cache_of_its_own")]
STATES, LOGS, DIRECTORIES = 5000, 60, 30
IDS = [f"p{number}" for number in range(12)]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with a bit flipped, a part cut, doubled, zeroed or replaced by noise."""
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice([1, 4, 64, 4096]))
    part = content[start:end]
    return [
        content[:start],
        content[:start] + content[end:],
        content[:end] + part + content[end:],
        content[:start] + bytes(len(part)) + content[end:],
        content[:start] + rng.randbytes(len(part)) + content[end:],
        content[:start] + bytes(byte ^ (1 << rng.randrange(8)) for byte in part[:1]) + part[1:] + content[end:],
    ][rng.randrange(6)]


def trained(strategy: str, rng: random.Random) -> kr.BudgetAllocator:
    allocator = kr.BudgetAllocator(strategy)
    for _ in range(4):
        tried = [rng.randrange(1, 40) for _ in IDS]
        allocator.tell(IDS, [rng.randint(0, n) for n in tried], tried, costs=[rng.random() * n for n in tried])
    return allocator


def rewritten(content: bytes, rng: random.Random) -> bytes:
    """A state file with valid checksums in which one array or the header holds something else."""
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name] for name in file.files}
    name = rng.choice(sorted(arrays))
    if name == "header":
        text = damaged(str(arrays[name]).encode(), rng).decode("utf-8", "replace").replace("\0", "0")
        arrays[name] = np.array(text)
    else:
        array = arrays[name].copy()
        strange: list[Any] = [
            0,
            1,
            -1,
            2**31,
            2**53,
            2**63,
            1e300,
            np.nan,
            np.inf,
            0.5,
            rng.random(),
            rng.randrange(99),
        ]
        if rng.random() < 0.2:
            array = rng.choice([array[:-1], array.reshape(-1, 1), array.astype(np.float64), np.append(array, array)])
        elif array.size:
            with np.errstate(all="ignore"):
                array = array.astype(np.float64) if rng.random() < 0.2 else array
                array.flat[rng.randrange(array.size)] = np.array(rng.choice(strange)).astype(array.dtype)
        arrays[name] = array
    saved = io.BytesIO()
    np.savez(saved, **arrays)
    return saved.getvalue()


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_a_mutated_state_file_is_refused_and_changes_nothing_or_holds_the_same_state(tmp_path: Path) -> None:
    rng, ends = random.Random(0), Counter[str]()
    whole, saved = {}, {}
    for strategy in kr.strategies():
        first = trained(strategy, rng)
        first.save(tmp_path / "whole.npz")
        saved[strategy] = first.state_dict()
        whole[strategy] = (tmp_path / "whole.npz").read_bytes(), trained(strategy, rng)
    for case in range(STATES):
        strategy = kr.strategies()[case % len(kr.strategies())]
        content, other = whole[strategy]
        mutate, kind = ((damaged, "bytes"), (rewritten, "contents"))[rng.randrange(2)]
        (tmp_path / "state.npz").write_bytes(mutate(content, rng))
        allocator = other.copy()
        try:
            allocator.load(tmp_path / "state.npz")
        except kr.StateError:
            ends[f"{kind}: refused"] += 1
            np.testing.assert_equal(allocator.state_dict(), other.state_dict())
        else:
            ends[f"{kind}: the same state"] += 1
            np.testing.assert_equal(allocator.state_dict(), saved[strategy])
    print(f"\n{STATES:,} mutated state files: {dict(ends)}")
    assert ends["bytes: refused"] > 0.4 * STATES


def log_of(kind: str) -> bytes:
    rows = [
        {"prompt": f"What is {p} + {s}?", "reward": float((p * s + g) % 3 == 0), "step": s, "length": 10 * p + g}
        for s in range(1, 5)
        for p in range(6)
        for g in range(4)
    ]
    if kind == "csv":
        return pd.DataFrame(rows).to_csv(index=False).encode()
    if kind == "parquet":
        return pd.DataFrame(rows).to_parquet()
    if kind == "json":
        return json.dumps(rows, indent=1).encode()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


MALFORMED: list[Callable[[bytes, random.Random], bytes]] = [
    damaged,
    lambda content, rng: damaged(damaged(damaged(content, rng), rng), rng),
    lambda content, rng: content.decode("latin-1").encode("utf-16"),
    lambda content, rng: content.replace(b"What", b"\xe9\x93W\xff"),
    lambda content, rng: content.replace(b"What", b"\\ud800\\u001b[31m"),
    lambda content, rng: content.replace(b"1.0", rng.choice([b"1e999", b"NaN", b"[[1]]", b'"x"', b"null", b"{}"])),
    lambda content, rng: content.replace(b"\n", rng.choice([b"", b"\r", b"\n\n\0", b"\n" + b"[" * 5000 + b"\n"])),
    lambda content, rng: rng.randbytes(2000),
]


def test_a_malformed_log_is_audited_or_refused(tmp_path: Path) -> None:
    rng, ends = random.Random(1), Counter[str]()
    for case in range(LOGS):
        kind = ("jsonl", "csv", "json", "parquet")[case % 4]
        path = tmp_path / f"log-{case}.{kind}"
        path.write_bytes(MALFORMED[case // 4 % len(MALFORMED)](log_of(kind), rng))
        try:
            found = audit([path], Options())
        except KnapsackError:
            ends["refused"] += 1
        else:
            ends["audited"] += 1
            assert 0 < found.log.rollouts.sum() <= 10_000
            if case % 10 == 0:
                assert main(["audit", str(path), "--output", str(tmp_path / "page")]) == 0
    print(f"\n{LOGS} malformed logs: {dict(ends)}")


def test_a_damaged_run_directory_goes_on_to_the_same_weights_or_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, ends = random.Random(2), Counter[str]()
    recipe = killing.recipe(tmp_path, "trl")
    assert main(["train", str(recipe), "--output", str(tmp_path / "whole")]) == 0
    whole = tmp_path / "whole" / "tiny"
    expected = killing.outcome(whole)
    for case in range(DIRECTORIES):
        run = Path(shutil.copytree(whole, tmp_path / str(case) / "tiny"))
        environment = json.loads((run / "environment.json").read_text())
        (run / "environment.json").write_text(json.dumps({**environment, "finished": None}))
        files = sorted(path for path in run.rglob("*") if path.is_file() and "figures" not in path.parts)
        for path in rng.sample(files, rng.choice([1, 1, 2, 3])):
            if rng.random() < 0.25:
                path.unlink()
            else:
                path.write_bytes(damaged(path.read_bytes() or b"\0", rng))
        capsys.readouterr()
        code = main(["train", str(recipe), "--output", str(run.parent)])
        said = capsys.readouterr()
        assert code in (0, 2), said
        assert "Traceback" not in said.err
        ends["refused" if code else "gone on"] += 1
        if not code:
            found = killing.outcome(run)
            last = "checkpoints/checkpoint-10/model.safetensors"
            assert found[last] == expected[last]
            same = found["metrics"] == expected["metrics"] and found["allocations"] == expected["allocations"]
            assert same or "has lost" in said.out, "records were lost silently"
        shutil.rmtree(run.parent)
    with capsys.disabled():
        print(f"\n{DIRECTORIES} damaged run directories: {dict(ends)}")
