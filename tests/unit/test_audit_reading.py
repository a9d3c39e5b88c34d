from __future__ import annotations

import bz2
import csv
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="the report extra is not installed")

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit import reading as reading_module
from knapsack_rl.experiments.audit.accounting import Accounts, Log
from knapsack_rl.experiments.audit.columns import Asked
from knapsack_rl.experiments.audit.reading import Reading, find_files

Row = dict[str, Any]
ROWS: list[Row] = [
    {"prompt": f"What is {p} + {s}?", "reward": float((p * s + g) % 3 == 0), "step": s, "length": 10 * p + g}
    for s in range(1, 5)
    for p in range(6)
    for g in range(4)
]


def write(path: Path, rows: Sequence[Row]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(*logs: Path | str, above: float = 0.0, **asked: str) -> tuple[Log, Reading]:
    reading = Reading(find_files(logs), Asked(**asked))
    accounts = Accounts(above)
    for batch in reading.batches():
        accounts.add(batch)
    return accounts.log(), reading


def counted(rows: Iterable[Row]) -> dict[tuple[int, str], tuple[int, int, int]]:
    """Rollouts, successes and tokens by step and prompt, in plain Python."""
    tried, won, tokens = Counter(), Counter(), Counter()
    for row in rows:
        key = (row["step"], row["prompt"])
        tried[key] += 1
        won[key] += row["reward"] > 0
        tokens[key] += row.get("length") or 0
    return {key: (tried[key], won[key], tokens[key]) for key in tried}


def groups(log: Log) -> dict[tuple[int, str], tuple[int, int, int]]:
    return {
        (step, log.texts[prompt]): (rollouts, successes, int(tokens))
        for step, prompt, rollouts, successes, tokens in zip(
            log.step.tolist(),
            log.prompt.tolist(),
            log.rollouts.tolist(),
            log.successes.tolist(),
            log.tokens,
            strict=True,
        )
    }


@pytest.mark.parametrize("name", ["log.jsonl", "log.csv", "log.parquet"])
def test_every_format_gives_the_counts_of_plain_python(tmp_path: Path, name: str) -> None:
    log, reading = read(write(tmp_path / name, ROWS))
    assert groups(log) == counted(ROWS)
    assert reading.rows == len(ROWS)
    assert not reading.problems.counts


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
@pytest.mark.parametrize("name", ["log.jsonl", "log.csv"])
def test_compressed_text_reads_the_same(tmp_path: Path, name: str, compress: Any) -> None:
    plain = write(tmp_path / name, ROWS)
    suffix = ".gz" if compress is gzip.compress else ".bz2"
    packed = plain.with_name(name + suffix)
    packed.write_bytes(compress(plain.read_bytes()))
    assert groups(read(packed)[0]) == counted(ROWS)


# One table for all examples: the property is about how rows are spread, and must hold whatever the batches are.
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_how_rows_are_ordered_and_split_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("log")
    rows = data.draw(st.permutations(ROWS))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows) - 1), max_size=4)))
    names = [data.draw(st.sampled_from(["jsonl", "csv", "parquet"])) for _ in range(len(cuts) + 1)]
    for index, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True)):
        write(folder / f"part-{index}.{names[index]}", rows[start:end])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading_module, "_BATCH_ROWS", data.draw(st.integers(1, 50)))
        patch.setattr(reading_module, "_BLOCK", data.draw(st.integers(1, 300)))
        assert groups(read(folder)[0]) == counted(ROWS)


def test_bad_lines_of_json_are_counted_and_shown_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", ROWS)
    with path.open("ab") as file:
        file.write(b'{"prompt": "cut o\n[1, 2]\n{"prompt": "\xff\xfe", "reward": 1}\n\n')
        file.write(b'{"prompt": "p", "reward": NaN, "step": 1}\n{"prompt": "p", "reward": null, "step": 1}\n')
        file.write(
            b'{"reward": 1, "step": 1}\n{"prompt": "p", "reward": 1}\n{"prompt": "p", "reward": 1e999, "step": 1}'
        )
    log, reading = read(path)
    assert groups(log) == counted(ROWS)
    assert reading.problems.counts == {
        "lines that are not JSON": 2,
        "lines that are no JSON object": 1,
        "rows without a reward": 2,
        "rows without a prompt": 1,
        "rows without a step": 1,
        "rows with an infinite reward": 1,
    }
    assert f"{path}, line {len(ROWS) + 1}:" in reading.problems.examples["lines that are not JSON"][0]
    assert reading.problems.examples["rows without a prompt"] == [f"{path}, row {len(ROWS) + 7}"]


def test_bad_rows_of_csv_are_counted_and_shown_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", ROWS)
    with path.open("ab") as file:
        file.write(b"p,1.0,2,3,4\np,,2,3\n,1.0,2,3\np,high,2,3\np,1.0,,3\n")
    log, reading = read(path)
    assert groups(log) == counted(ROWS)
    assert reading.problems.counts == {
        "rows with too few or too many columns": 1,
        "rows without a reward": 2,
        "rows without a prompt": 1,
        "rows without a step": 1,
    }
    assert "'p,1.0,2,3,4'" in reading.problems.examples["rows with too few or too many columns"][0]


def test_csv_with_line_breaks_truth_values_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b'prompt,correct,step\n"two\nlines",True,1\n"two\nlines",False,1\n\xff\xfe,true,1\n')
    log, reading = read(path)
    assert sorted(zip(log.rollouts.tolist(), log.successes.tolist(), strict=True)) == [(1, 1), (2, 1)]
    assert "two\nlines" in log.texts
    assert not reading.problems.counts


def test_rows_of_parquet_without_values_are_counted(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a", None, "a", "a"], "reward": [1.0, 1.0, None, float("nan")], "step": [1, 1, 1, 1]})
    pq.write_table(table, tmp_path / "log.parquet")
    log, reading = read(tmp_path / "log.parquet")
    assert log.rollouts.tolist() == [1]
    assert reading.problems.counts == {"rows without a prompt": 1, "rows without a reward": 2}


def test_files_that_are_damaged_or_empty_are_counted_and_the_others_are_read(tmp_path: Path) -> None:
    write(tmp_path / "1.jsonl", ROWS)
    (tmp_path / "2.jsonl").write_text("")
    (tmp_path / "3.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "4.csv").write_text("")
    packed = gzip.compress((tmp_path / "1.jsonl").read_bytes())
    (tmp_path / "5.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    log, reading = read(tmp_path)
    assert reading.problems.counts["files without rows"] == 2
    assert reading.problems.counts["files that cannot be read"] + reading.problems.counts["files that break off"] == 2
    assert set(counted(ROWS)) <= set(groups(log))


def test_chats_are_one_prompt_in_parquet_and_in_json(tmp_path: Path) -> None:
    chats = [
        [{"role": "user", "content": "2 + 2?"}],
        [{"role": "user", "content": "2 + 2?"}],
        [{"role": "system", "content": "Think."}, {"role": "user", "content": "2 + 2?"}],
    ]
    rows = [{"prompt": chat, "reward": 1.0, "step": 1} for chat in chats]
    for name in ("log.parquet", "log.jsonl"):
        log, _ = read(write(tmp_path / name, rows))
        assert dict(zip(log.texts, log.rollouts.tolist(), strict=True)) == {
            "user: 2 + 2?": 2,
            "system: Think.\nuser: 2 + 2?": 1,
        }


def test_chats_with_more_than_roles_and_contents_are_told_apart_by_all_of_it(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": "go", "name": name}], "reward": 1.0, "step": 1} for name in ("a", "b")
    ]
    log, _ = read(write(tmp_path / "log.parquet", rows))
    assert len(log.keys) == 2


def test_steps_come_from_the_names_of_files_where_no_column_has_them(tmp_path: Path) -> None:
    for step in (2, 10):
        write(tmp_path / f"{step}.jsonl", [{"prompt": "p", "score": 1}])
    log, reading = read(tmp_path)
    assert log.step.tolist() == [2, 10]
    assert reading.steps_from == "file name"


def test_without_any_step_a_run_of_rows_of_one_prompt_is_a_visit_also_across_files(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"prompt": p, "score": 1} for p in "xxyy"])
    write(tmp_path / "b.jsonl", [{"prompt": p, "score": 1} for p in "yxx"])
    log, reading = read(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert groups(log) == {(1, "x"): (2, 2, 0), (1, "y"): (3, 3, 0), (2, "x"): (2, 2, 0)}
    assert reading.steps_from == "order"


def test_files_come_by_number_and_folders_of_frameworks_are_known(tmp_path: Path) -> None:
    for name in ("10.jsonl", "9.jsonl", "notes.txt"):
        (tmp_path / name).write_text("{}")
    assert [path.name for path in find_files([tmp_path])] == ["9.jsonl", "10.jsonl"]
    assert [path.name for path in find_files([str(tmp_path / "*.jsonl")])] == ["9.jsonl", "10.jsonl"]
    completions = tmp_path / "completions"
    completions.mkdir()
    write(completions / "completions_00001.parquet", ROWS)
    assert find_files([tmp_path]) == [completions / "completions_00001.parquet"]


@pytest.mark.parametrize(("name", "needle"), [("none.jsonl", "is no file"), ("log.txt", r"\.jsonl"), (".", "holds no")])
def test_what_is_no_log_is_refused(tmp_path: Path, name: str, needle: str) -> None:
    (tmp_path / "log.txt").write_text("prompt reward")
    with pytest.raises(InvalidInputError, match=needle):
        find_files([tmp_path / name])


def test_several_rewards_are_added_up_and_a_missing_one_counts_as_nothing(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "step": 1, "reward_a": 1.0, "reward_b": None},
        {"prompt": "p", "step": 1, "reward_a": None, "reward_b": None},
        {"prompt": "p", "step": 1, "reward_a": 1.0, "reward_b": -1.0},
    ]
    log, reading = read(write(tmp_path / "log.jsonl", rows))
    assert (log.rollouts.tolist(), log.successes.tolist()) == ([2], [1])
    assert reading.problems.counts == {"rows without a reward": 1}


def test_the_threshold_decides_what_a_success_is_but_not_what_has_a_gradient(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", [{"prompt": "p", "step": 1, "reward": r} for r in (0.2, 0.4, 0.4)])
    strict, _ = read(path, above=0.5)
    assert strict.successes.tolist() == [0]
    assert not strict.without_gradient.any()
    assert read(path, above=0.3)[0].successes.tolist() == [2]


def test_the_parquet_of_run_directories_has_a_group_in_a_row(tmp_path: Path) -> None:
    table = {
        "step": [1, 1, 2],
        "prompt": ["a", "b", "a"],
        "rollouts": [4, 4, 8],
        "scored": [4, 0, 7],
        "successes": [4, 0, 3],
    }
    pq.write_table(pa.table(table), tmp_path / "allocations.parquet")
    log, reading = read(tmp_path)
    assert (log.rollouts.tolist(), log.successes.tolist()) == ([4, 7], [4, 3])
    assert log.without_gradient.tolist() == [True, False]
    assert reading.problems.counts == {"groups of which no rollout was scored": 1}


def test_a_generation_batch_that_is_logged_at_every_update_counts_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    batch = [{"prompt": f"p{i % 3}", "completion": str(rng.integers(1e9)), "reward": i % 2} for i in range(12)]
    other = [row | {"completion": row["completion"] + "!"} for row in batch]
    for step, rows in enumerate((batch, batch[::-1], other, batch), start=1):
        write(tmp_path / f"{step}.jsonl", [row | {"step": step} for row in rows])
    log, _ = read(tmp_path)
    assert log.repeated_steps == [2]
    assert np.unique(log.step).tolist() == [1, 3, 4]
    assert log.seen.tolist() == [16, 16, 16]
