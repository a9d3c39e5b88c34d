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
from knapsack_rl.experiments.audit.accounting import Accounts, Log
from knapsack_rl.experiments.audit.asked import Asked
from knapsack_rl.experiments.audit.files import Found, find_files
from knapsack_rl.experiments.audit.readers import delimited, json_text, parquet
from knapsack_rl.experiments.audit.reading import Reading

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
        for module in (delimited, parquet, json_text):
            patch.setattr(module, "BATCH_ROWS", data.draw(st.integers(1, 50)))
        patch.setattr(json_text, "BLOCK", data.draw(st.integers(1, 300)))
        patch.setattr(json_text, "SAMPLE", data.draw(st.integers(1, 300)))
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
        "rows without a reward": 1,
        "rows whose reward is no number": 1,
        "rows without a prompt": 1,
        "rows without a step": 1,
    }
    assert reading.problems.examples["rows whose reward is no number"] == [
        f"{path}, row {len(ROWS) + 3}: reward holds 'high'"
    ]
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


@pytest.mark.parametrize("name", ["log.jsonl", "log.csv"])
@pytest.mark.parametrize("block", [100, 5000, None])
@pytest.mark.parametrize("gone", [1, 8, 60])
def test_of_a_compressed_file_that_is_cut_off_the_rows_before_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int | None, gone: int
) -> None:
    if block is not None:
        monkeypatch.setattr(json_text, "BLOCK", block)
        monkeypatch.setattr(json_text, "SAMPLE", block)
    rng = np.random.default_rng(0)
    rows = [row | {"prompt": f"{row['prompt']} {rng.bytes(9).hex()}"} for row in ROWS]
    plain = write(tmp_path / name, rows)
    packed = plain.with_name(name + ".gz")
    packed.write_bytes(gzip.compress(plain.read_bytes())[:-gone])
    log, reading = read(packed)
    kept = int(log.rollouts.sum())
    assert groups(log) == counted(rows[:kept])
    assert kept == len(rows) if gone <= 8 else len(rows) - 10 < kept < len(rows)
    assert reading.problems.counts == {"files that break off": 1}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0.0, 1.0), name=st.sampled_from(["log.jsonl.gz", "log.csv.gz"]))
def test_wherever_a_compressed_file_is_cut_off_its_first_rows_are_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, cut: float, name: str
) -> None:
    folder = tmp_path_factory.mktemp("log")
    packed = gzip.compress(write(folder / name.removesuffix(".gz"), ROWS).read_bytes(), mtime=0)
    (folder / name).write_bytes(packed[: int(cut * len(packed))])
    log, reading = read(folder / name)
    assert groups(log) == counted(ROWS[: int(log.rollouts.sum())])
    assert sum(reading.problems.counts.values()) == (cut < 1.0)


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
    assert reading.steps_from == "file names"


def test_without_any_step_a_run_of_rows_of_one_prompt_is_a_visit_also_across_files(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"prompt": p, "score": 1} for p in "xxyy"])
    write(tmp_path / "b.jsonl", [{"prompt": p, "score": 1} for p in "yxx"])
    log, reading = read(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert groups(log) == {(1, "x"): (2, 2, 0), (1, "y"): (3, 3, 0), (2, "x"): (2, 2, 0)}
    assert reading.steps_from == "order"


def test_files_come_by_number_and_folders_of_frameworks_are_known(tmp_path: Path) -> None:
    for name in ("10.jsonl", "9.jsonl", "notes.txt"):
        (tmp_path / name).write_text("{}")
    assert [found.path.name for found in find_files([tmp_path]).found] == ["9.jsonl", "10.jsonl"]
    assert [found.path.name for found in find_files([str(tmp_path / "*.jsonl")]).found] == ["9.jsonl", "10.jsonl"]
    completions = tmp_path / "completions"
    completions.mkdir()
    write(completions / "completions_00001.parquet", ROWS)
    assert find_files([tmp_path]).found == [Found(completions / "completions_00001.parquet", 0, named=False)]


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


def trl_steps(folder: Path, *steps: Sequence[Row]) -> tuple[Log, Reading]:
    """What the audit makes of these as the steps of TRL, each of them a file, with an advantage if they have none."""
    for step, rows in enumerate(steps, start=1):
        logged = [{"step": step} | row | {"advantage": row.get("advantage", 0.0)} for row in rows]
        write(folder / f"completions_{step:05d}.parquet", logged)
    return read(folder)


def test_a_generation_batch_that_is_logged_at_every_update_counts_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    batch = [{"prompt": f"p{i // 4}", "completion": str(rng.integers(1e9)), "reward": float(i % 2)} for i in range(12)]
    other = [row | {"completion": row["completion"] + "!"} for row in batch]
    log, _ = trl_steps(tmp_path, batch, batch, other, batch)
    assert log.repeated_steps == [2]
    assert np.unique(log.step).tolist() == [1, 3, 4]
    assert log.seen.tolist() == [16, 16, 16]


def test_the_same_rollouts_in_another_order_are_another_batch(tmp_path: Path) -> None:
    batch = [{"prompt": f"p{i // 4}", "completion": f"{i % 2}", "reward": float(i % 2)} for i in range(12)]
    log, _ = trl_steps(tmp_path, batch, batch[4:] + batch[:4], batch)
    assert log.repeated_steps == []
    assert int(log.rollouts.sum()) == 36


def test_a_repeated_batch_is_recognised_however_its_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 1)
    rng = np.random.default_rng(0)
    batch = [{"prompt": f"p{i // 8}", "completion": str(rng.integers(4)), "reward": 1.0} for i in range(800)]
    moved = [*batch[400:], *batch[:400]]
    assert trl_steps(tmp_path, batch, batch, moved)[0].repeated_steps == [2]


def test_steps_in_which_each_prompt_has_one_answer_are_not_taken_for_repeats(tmp_path: Path) -> None:
    batch = [{"prompt": f"p{i // 4}", "completion": f"{i // 4}", "reward": 1.0} for i in range(12)]
    log, _ = trl_steps(tmp_path, *[batch] * 5)
    assert log.repeated_steps == []
    assert int(log.rollouts.sum()) == 60


@pytest.mark.parametrize("column", ["step", "advantage"])
def test_equal_steps_of_logs_without_advantages_or_without_steps_are_all_counted(tmp_path: Path, column: str) -> None:
    rows = [
        {"prompt": p, "completion": "yes" if won else "no", "reward": float(won), column: step}
        for step in range(10)
        for p in "ab"
        for won in (1, 0, 1)
    ]
    log, _ = read(write(tmp_path / "log.jsonl", rows))
    assert log.repeated_steps == []
    assert int(log.rollouts.sum()) == 60


def test_gradients_come_from_advantages_and_successes_from_one_reward_function(tmp_path: Path) -> None:
    def rows(prompt: str, triples: list[tuple[float, float, float]]) -> list[Row]:
        return [
            {"prompt": prompt, "completion": f"{i}", "correct": a, "fmt": b, "advantage": c}
            for i, (a, b, c) in enumerate(triples)
        ]

    batch = rows("a", [(0, 0.5, 0.7), (0, 0, -0.7)]) + rows("b", [(1, 0, 0), (0, 1, 0)]) + rows("c", [(1, 1, 0)] * 2)
    log, reading = trl_steps(tmp_path, batch)
    by_name = dict(
        zip([log.texts[p] for p in log.prompt], zip(log.successes, log.without_gradient, strict=True), strict=True)
    )
    assert by_name == {"a": (0, False), "b": (1, True), "c": (2, True)}
    assert "correct decides on what is a success, and the column advantage on" in next(iter(reading.columns)).remarks[0]


def test_without_advantages_the_sum_of_all_rewards_decides_on_gradients(tmp_path: Path) -> None:
    rows = [
        {"prompt": prompt, "step": 1, "accuracy_reward": a, "format_reward": b}
        for prompt, pairs in {"a": [(0, 0.5), (0, 0)], "b": [(1, 0), (0, 1)], "c": [(1, 1), (1, 1)]}.items()
        for a, b in pairs
    ]
    log, reading = read(write(tmp_path / "log.jsonl", rows))
    by_name = dict(
        zip([log.texts[p] for p in log.prompt], zip(log.successes, log.without_gradient, strict=True), strict=True)
    )
    assert by_name == {"a": (0, False), "b": (1, True), "c": (2, True)}
    assert "the unweighted sum of accuracy_reward, format_reward on" in next(iter(reading.columns)).remarks[0]


def test_a_rollout_that_the_chosen_function_does_not_judge_counts_by_the_others(tmp_path: Path) -> None:
    batch = [
        {"prompt": "sum", "completion": "1", "math_reward": 1.0, "code_reward": None},
        {"prompt": "sort", "completion": "2", "math_reward": None, "code_reward": 1.0},
        {"prompt": "sort", "completion": "3", "math_reward": None, "code_reward": 0.0},
        {"prompt": "none", "completion": "4", "math_reward": None, "code_reward": None},
    ]
    log, reading = trl_steps(tmp_path, batch)
    by_name = dict(zip([log.texts[p] for p in log.prompt], zip(log.rollouts, log.successes, strict=True), strict=True))
    assert by_name == {"sum": (1, 1), "sort": (2, 1)}
    assert reading.problems.counts == {"rows without a reward": 1}


def test_large_rewards_are_told_apart(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "step": 1, "reward": reward} for reward in (1e9, 1e9 + 10)]
    assert not read(write(tmp_path / "log.csv", rows))[0].without_gradient.any()


@pytest.mark.parametrize("name", ["log.jsonl", "log.csv", "log.parquet"])
def test_steps_that_are_no_exact_whole_numbers_are_refused_and_not_rounded(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": "p", "reward": 1.0, "step": step} for step in (1.0, 1.5, 2.0**53, -1e30, 2.0)]
    log, reading = read(write(tmp_path / name, rows))
    assert log.step.tolist() == [1, 2]
    assert reading.problems.counts == {"rows whose step is no whole number": 3}


def test_a_date_with_a_time_in_a_files_name_is_a_step_and_longer_digits_are_none(tmp_path: Path) -> None:
    row = [{"prompt": "p", "score": 1}]
    assert read(write(tmp_path / "20250102030405.jsonl", row))[0].step.tolist() == [20250102030405]
    assert read(write(tmp_path / f"{10**20}.jsonl", row))[1].steps_from == "order"


@pytest.mark.parametrize("name", ["log.jsonl", "log.parquet"])
def test_ids_that_are_empty_or_not_a_number_are_missing(tmp_path: Path, name: str) -> None:
    rows = [{"prompt_id": value, "reward": 1.0, "step": 1} for value in (1.0, float("nan"), 2.0)]
    log, reading = read(write(tmp_path / name, rows))
    assert sorted(log.texts) == ["1", "2"]
    assert reading.problems.counts == {"rows without a prompt": 1}
    log, reading = read(write(tmp_path / name, [{"prompt": p, "reward": 1.0, "step": 1} for p in ("a", "")]))
    assert log.texts == ["a"]
    assert reading.problems.counts == {"rows without a prompt": 1}


def test_ids_that_have_lost_digits_are_refused_and_not_merged(tmp_path: Path) -> None:
    rows = [{"prompt_id": value, "reward": 1.0, "step": 1} for value in (10**25, 10**25 + 1, 2**63, 7)]
    log, reading = read(write(tmp_path / "log.jsonl", rows))
    assert sorted(log.texts) == ["7", str(2**63)]
    assert reading.problems.counts == {"rows whose id is a number too large to be exact": 2}
    pq.write_table(pa.table({"prompt_id": [2.0**53, 7.0], "reward": [1.0, 1.0]}), tmp_path / "log.parquet")
    assert read(tmp_path / "log.parquet")[0].texts == ["7"]


@pytest.mark.parametrize(
    "prompts",
    [
        ["two", "three", "two"],
        [7, 8, 7],
        [7, 7.5, 8.0],
        [2**53 + 1, 0.5, 2**53],
        ["7", 7, None],
        ["2026-01-01", "2026-01-02 10:00", "2026-01-01"],
        [True, False, None],
        [[{"role": "user", "content": "a"}], [{"role": "user", "content": "a", "name": "b"}], None],
        ["\ud800", "b", ""],
        [None, None, None, "a"],
    ],
    ids=str,
)
def test_json_means_the_same_by_the_fast_way_and_by_the_careful_one(
    prompts: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"prompt": prompt, "reward": 1, "step": 1}) for prompt in prompts]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    fast, fast_reading = read(tmp_path / "log.jsonl")
    monkeypatch.setattr(json_text, "_plain_columns", lambda *_: None)
    careful, careful_reading = read(tmp_path / "log.jsonl")
    assert sorted(fast.texts) == sorted(careful.texts)
    assert sorted(fast.keys) == sorted(careful.keys)
    assert fast.rollouts.sum() == careful.rollouts.sum()
    assert fast_reading.problems.counts == careful_reading.problems.counts


@pytest.mark.parametrize("name", ["log.jsonl", "log.csv", "log.parquet"])
def test_rows_that_are_groups_need_no_column_rollouts(tmp_path: Path, name: str) -> None:
    log, _ = read(write(tmp_path / name, [{"step": 1, "prompt": "a", "scored": 4, "successes": 3}]))
    assert (log.rollouts.tolist(), log.successes.tolist()) == ([4], [3])


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array([1.0]), pa.array([0.0])], ["prompt", "reward", "reward"])
    if name == "log.csv":
        (tmp_path / name).write_text("prompt,reward,reward\na,1,0\n")
    else:
        pq.write_table(table, tmp_path / name)
    with pytest.raises(InvalidInputError, match="got reward more than once"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
@pytest.mark.parametrize("more", [["", ""], ["note", "note"], ["", "", "note", "note"]])
def test_columns_without_a_name_or_with_one_in_common_are_left_alone_where_they_are_not_needed(
    tmp_path: Path, name: str, more: list[str]
) -> None:
    if name == "log.csv":
        lines = [["step", "prompt", "reward", *more], *([1, "p", reward, *more] for reward in (1, 0, 0))]
        (tmp_path / name).write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    else:
        columns = [[1] * 3, ["p"] * 3, [1.0, 0.0, 0.0], *[["x"] * 3] * len(more)]
        table = pa.Table.from_arrays(list(map(pa.array, columns)), ["step", "prompt", "reward", *more])
        pq.write_table(table, tmp_path / name)
    log, reading = read(tmp_path / name)
    assert (log.rollouts.tolist(), log.successes.tolist()) == ([3], [1])
    assert not reading.problems.counts


def test_parquet_whose_texts_are_not_utf_8_is_read(tmp_path: Path) -> None:
    binary = pa.array([b"\xff\xfe", b"b", b"b"])
    texts = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    rewards = pa.Array.from_buffers(pa.string(), 3, pa.array([b"1", b"\xff", b"true"]).buffers())
    pq.write_table(pa.table({"prompt": texts, "reward": rewards}), tmp_path / "log.parquet")
    log, reading = read(tmp_path / "log.parquet")
    assert sorted(log.texts) == ["b", "\N{REPLACEMENT CHARACTER}" * 2]
    assert reading.problems.counts == {"rows whose reward is no number": 1}


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_is_read_as_rows(tmp_path: Path, indent: int | None) -> None:
    (tmp_path / "log.json").write_text(json.dumps(ROWS, indent=indent))
    log, reading = read(tmp_path / "log.json")
    assert groups(log) == counted(ROWS)
    assert reading.rows == len(ROWS)


def test_rows_that_an_unclosed_quote_swallows_are_all_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", ROWS)
    lines = path.read_text().splitlines()
    lines[11] = '"' + lines[11]
    path.write_text("\n".join(lines) + "\n")
    _, reading = read(path)
    assert reading.rows == 10
    assert reading.problems.counts == {"rows with too few or too many columns": len(ROWS) - 10}
    example = reading.problems.examples["rows with too few or too many columns"][0]
    assert f"row 12 and {len(ROWS) - 11} more lines, perhaps after a quote that is not closed" in example


def test_files_whose_steps_come_from_different_places_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", ROWS)
    write(tmp_path / "b.jsonl", [{"prompt": "p", "reward": 1.0}])
    with pytest.raises(InvalidInputError, match=r"b\.jsonl takes its steps from the order, .*a\.csv from the column"):
        read(tmp_path)


def test_files_of_a_folder_that_are_no_logs_are_counted_and_skipped(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", ROWS)
    (tmp_path / "config.json").write_text('{"a": 1}')
    log, reading = read(tmp_path)
    assert groups(log) == counted(ROWS)
    assert reading.problems.examples == {"files that are no rollout log": [str(tmp_path / "config.json")]}
    with pytest.raises(InvalidInputError, match="no column was recognised as a prompt"):
        read(tmp_path / "log.jsonl", tmp_path / "config.json")
    (tmp_path / "log.jsonl").unlink()
    with pytest.raises(InvalidInputError, match="no column was recognised as a prompt"):
        read(tmp_path)


def test_a_column_that_is_named_may_begin_late_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "SAMPLE_ROWS", 5)
    monkeypatch.setattr(json_text, "SAMPLE", 300)
    rows = [row if i < 60 else row | {"size": i} for i, row in enumerate(ROWS)]
    log, _ = read(write(tmp_path / "log.jsonl", rows), length="size")
    assert (int(log.measured.sum()), int(log.tokens.sum())) == (len(ROWS) - 60, sum(range(60, len(ROWS))))
    with pytest.raises(InvalidInputError, match="has no column 'sizes'"):
        read(tmp_path / "log.jsonl", length="sizes")


def test_a_csv_row_with_too_many_columns_and_bytes_that_are_no_utf_8_costs_that_row_only(tmp_path: Path) -> None:
    good = b"caf\xe9,1,1\n"
    (tmp_path / "log.csv").write_bytes(b"prompt,reward,step\n" + good + b"caf\xe9,1,1,9,\xff\n" + good)
    log, reading = read(tmp_path / "log.csv")
    assert log.rollouts.sum() == 2
    assert reading.problems.counts == {"rows with too few or too many columns": 1}
