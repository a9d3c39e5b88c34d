"""Logs as current programs write them, from their source, and the ways in which such logs mislead."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="the report extra is not installed")
pytest.importorskip("matplotlib", reason="the report extra is not installed")
pytest.importorskip("scipy", reason="the report extra is not installed")

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit.asked import Asked
from knapsack_rl.experiments.audit.audit import Audit, Options, audit
from knapsack_rl.experiments.audit.findings import console_lines, remarks, summary
from knapsack_rl.experiments.audit.tables import without_gradient

Row = dict[str, Any]
MIXED, RIGHT, WRONG = (1.0, 0.0, 1.0, 0.0), (1.0,) * 4, (0.0,) * 4


def audited(*logs: Path | str, above: float | None = None, pooled: bool = False, **columns: str) -> Audit:
    return audit(logs, Options(columns=Asked(**columns), success_above=above, pooled=pooled))


def said(found: Audit) -> str:
    lines = [f"{label}  {text}" for label, text in console_lines(found)]
    return "\n".join([*lines, *remarks(found), *summary(found)]).replace("\N{NO-BREAK SPACE}", " ")


def figures(found: Audit) -> tuple[int, int, float]:
    """Rollouts, prompts and the share without gradient."""
    return int(found.log.rollouts.sum()), len(found.log.keys), pytest.approx(without_gradient(found.log))


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode())) if path.suffix == ".gz" else path.write_text(text, encoding="utf-8")
    return path


def rollouts(groups: Sequence[tuple[str, Sequence[float]]], **more: Any) -> list[Row]:
    return [{"prompt": prompt, "reward": reward} | more for prompt, rewards in groups for reward in rewards]


# ms-swift 4: GRPO of its own trainer and of its Megatron trainer append an object a generation batch.


@pytest.mark.parametrize("step", ["step", "gen_step"])
@pytest.mark.parametrize("name", ["completions.jsonl", "completions.jsonl.gz"])
def test_ms_swift_writes_an_object_of_lists_for_each_step(tmp_path: Path, step: str, name: str) -> None:
    def batch(number: int, rewards: Sequence[float], advantages: Sequence[float]) -> Row:
        chats = [[{"role": "user", "content": "2+2?"}], [{"role": "user", "content": "3+3?"}]]
        return {
            step: [str(number) if step == "step" else number] * 8,
            "prompt": [chat for chat in chats for _ in range(4)],
            "completion": [f"c{i}" for i in range(8)],
            "MathAccuracy": list(rewards),
            "Format": [1.0, 0.0] * 4,
            "advantages": list(advantages),
        }

    half = [0.5, -0.5, 0.5, -0.5]
    log = write(tmp_path / name, [batch(0, MIXED + WRONG, half + [0.0] * 4), batch(8, RIGHT + WRONG, [0.0] * 8)])
    found = audited(log)
    assert figures(found) == (16, 2, 0.75)
    assert found.log.successes.sum() == 6
    assert found.log.step.tolist() == [0, 0, 8, 8]
    assert "different rewards and yet no advantage" in said(found)  # Format has no weight, or was normalised away


# tinker-cookbook: a folder an iteration, with files of the training and of evaluations.


def test_tinkers_evaluations_are_left_out_and_its_groups_are_no_prompts(tmp_path: Path) -> None:
    for iteration in (0, 1):
        for split, groups in (("train", [MIXED, WRONG]), ("eval_gsm8k", [(1.0,), (0.0,)])):
            rows = [
                {
                    "schema_version": 1, "split": split.replace("_", "/"), "iteration": iteration, "group_idx": group,
                    "traj_idx": index, "tags": ["math"], "sampling_client_step": iteration, "total_reward": reward,
                    "final_reward": reward, "trajectory_metrics": {}, "final_ob_len": 9,
                    "steps": [{"step_idx": 0, "ob_len": 5, "ac_len": 4, "reward": 0.0, "episode_done": False}] * 2,
                }
                for group, rewards in enumerate(groups)
                for index, reward in enumerate(rewards)
            ]  # fmt: skip
            write(tmp_path / f"iteration_{iteration:06d}" / f"{split}_rollout_summaries.jsonl", rows)
        write(tmp_path / f"iteration_{iteration:06d}" / "train_logtree.json", [{"title": "x", "root": {}}])
    write(tmp_path / "config.json", [{"model": "m"}])
    (tmp_path / "config.json").unlink()
    found = audited(tmp_path)
    assert figures(found) == (16, 4, 0.5)  # two groups an iteration, and nothing says that they are of the same prompts
    assert "files of an evaluation, by their names: 2" in said(found)
    assert found.reading.problems.counts["files that are no rollout log"] == 2


# NeMo-RL: one value in a list where the writer iterates over a batch; what dynamic sampling filtered is said.


def test_nemo_rls_values_may_each_stand_in_a_list(tmp_path: Path) -> None:
    for step, groups in ((1, [MIXED, WRONG]), (2, [RIGHT, WRONG])):
        rows = [
            {"content": [f"{p}+{p}?", f"{p} {i}"], "rewards": [r], "filtered_rewards": [r], "input_lengths": [9],
             "idx": 4 * p + i}
            for p, rewards in enumerate(groups)
            for i, r in enumerate(rewards)
        ]  # fmt: skip
        write(tmp_path / "exp_001" / f"train_data_step{step}.jsonl", rows)
    found = audited(tmp_path / "exp_001")
    assert figures(found) == (16, 2, 0.75)
    assert found.log.step.tolist() == [1, 1, 2, 2]
    assert "survivors only" in said(found)


def test_a_system_prompt_that_all_conversations_share_is_not_the_prompt(tmp_path: Path) -> None:
    rows = [
        {"content": ["You are helpful.", f"{p}+{p}?", f"{p} {i}"], "rewards": reward, "idx": 4 * p + i}
        for p, rewards in enumerate([MIXED, WRONG])
        for i, reward in enumerate(rewards)
    ]
    assert figures(audited(write(tmp_path / "train_data_step7.jsonl", rows))) == (8, 2, 0.5)


# NeMo Gym: tasks are numbered anew in each collection.


def test_task_numbers_that_begin_anew_in_each_file_are_found_out(tmp_path: Path) -> None:
    for name, groups in (("math", [MIXED, WRONG]), ("code", [RIGHT, WRONG])):
        rows = [
            {
                "_ng_task_index": task, "_ng_rollout_index": index, "reward": reward,
                "responses_create_params": {"input": [{"role": "user", "content": f"{name} {task}"}]},
                "response": {"output": [], "usage": {"input_tokens": 3, "output_tokens": 10 * (task + 1)}},
            }
            for task, rewards in enumerate(groups)
            for index, reward in enumerate(rewards)
        ]  # fmt: skip
        write(tmp_path / f"{name}.jsonl", rows)
    found = audited(tmp_path)
    assert figures(found) == (16, 4, 0.75)
    assert "_ng_task_index is no id of prompts: one of its values stands for 2 different prompts" in said(found)
    assert found.log.tokens.sum() == 240


# SkyRL, verifiers, lm-evaluation-harness.


def test_skyrls_scores_of_tokens_are_added_up(tmp_path: Path) -> None:
    rows = [
        {
            "input_prompt": f"{p}+{p}?", "output_response": f"r{i}", "score": [0.0] * (5 + i) + [reward],
            "stop_reason": "stop", "env_class": "gsm8k", "env_extras": {}, "data_source": "gsm8k",
        }
        for p, rewards in enumerate([MIXED, WRONG])
        for i, reward in enumerate(rewards)
    ]  # fmt: skip
    found = audited(write(tmp_path / "global_step_12" / "gsm8k.jsonl", rows))
    assert figures(found) == (8, 2, 0.5)
    assert found.log.step.tolist() == [12, 12]


def test_the_results_of_verifiers_are_read_with_their_examples_as_ids(tmp_path: Path) -> None:
    rows = [
        {
            "example_id": p, "prompt": [{"role": "user", "content": f"{p}+{p}?"}], "answer": str(2 * p), "task": "x",
            "completion": [{"role": "assistant", "content": f"r{i}"}], "reward": reward, "generation_ms": 12.5,
            "metrics": {"correct_answer": reward, "format": 0.5}, "info": {},
        }
        for p, rewards in enumerate([MIXED, WRONG, RIGHT])
        for i, reward in enumerate(rewards)
    ]  # fmt: skip
    found = audited(write(tmp_path / "results.jsonl", rows))
    assert figures(found) == (12, 3, 2 / 3)
    assert "id: example_id" in said(found)


@pytest.mark.parametrize("arguments", [[["Q{}", {"until": []}]], {"gen_args_0": {"arg_0": "Q{}", "arg_1": {}}}])
def test_repeats_of_the_harness_are_a_group_where_they_are_said_to_be(tmp_path: Path, arguments: Any) -> None:
    rows = [
        {
            "doc_id": doc, "doc": {"question": f"q{doc}"}, "target": str(doc), "resps": [[f"r{repeat}"]],
            "arguments": json.loads(json.dumps(arguments).replace("{}", str(doc), 1)), "filter": "none",
            "metrics": ["score_of_task"], "score_of_task": float(repeat % 2 and doc),
        }
        for repeat in range(4)
        for doc in range(2)
    ]  # fmt: skip
    found = audited(write(tmp_path / "samples_x.jsonl", rows), pooled=True)
    assert figures(found) == (8, 2, 0.5)
    assert sorted(found.log.texts) == ["Q0", "Q1"]


# Shapes of files.


DOCUMENTS: dict[str, Callable[[list[Row]], str]] = {
    "an array": json.dumps,
    "an indented array": lambda rows: json.dumps(rows, indent=2),
    "indented objects": lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows),
    "an object with a list": lambda rows: json.dumps({"config": {"n": 4}, "results": {"samples": rows}}, indent=1),
    "pandas' columns": lambda rows: pd.DataFrame(rows).to_json(),
    "pandas' split": lambda rows: pd.DataFrame(rows).to_json(orient="split"),
    "an object of lists": lambda rows: json.dumps({name: [row[name] for row in rows] for name in rows[0]}),
    "a wandb table": lambda rows: json.dumps({"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}),
    "a list a prompt": lambda rows: json.dumps(
        [{"prompt": p, "step": 1, "rollouts": [row for row in rows if row["prompt"] == p]} for p in ("a", "b")]
    ),
    "lists in lists": lambda rows: json.dumps(
        {"step": 1, "groups": [
            {"prompt": p, "samples": [{"reward": row["reward"]} for row in rows if row["prompt"] == p]} for p in "ab"
        ]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".json.gz"])
def test_documents_of_json_mean_the_same_as_lines(tmp_path: Path, kind: str, suffix: str) -> None:
    text = DOCUMENTS[kind](rollouts([("a", MIXED), ("b", WRONG)], step=1)).encode()
    (tmp_path / f"log{suffix}").write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text)
    assert figures(audited(tmp_path / f"log{suffix}")) == (8, 2, 0.5)


@pytest.mark.parametrize(
    "row",
    [
        {"responses": ["r"] * 4, "rewards": [1.0, 0.0, None, 1.0]},
        {"completions": ["r"] * 4, "is_correct": [True, False, True, True]},
        {"outputs": ["r"] * 4, "scores": [1, 0, 1, 1], "gts": ["4", "four", "iv", "5"]},  # answers that are all right
        {"scores": [1, 0, 1, 1]},
        {"correct": [True, False, True, True]},
        {"rollouts": [{"text": "r", "correct": 1}, {"text": "r", "correct": 0}] * 2, "mean_reward": 0.5},
    ],
)
@pytest.mark.parametrize("name", ["log.jsonl", "log.parquet"])
def test_all_rollouts_of_a_prompt_may_stand_in_one_row(tmp_path: Path, row: Row, name: str) -> None:
    def of(prompt: str, change: Callable[[float], float]) -> Row:
        def changed(held: Any) -> Any:
            if isinstance(held, list):
                return [changed(part) for part in held]
            if isinstance(held, dict):
                return {key: changed(part) for key, part in held.items()}
            return type(held)(change(held)) if isinstance(held, (int, float)) else held

        return {"question": prompt} | {key: changed(part) for key, part in row.items()}

    rows = [of("a", lambda held: held), of("b", lambda held: 0)]
    log = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), log)
    else:
        write(log, rows)
    found = audited(log)
    missing = 2 if None in row.get("rewards", ()) else 0
    assert figures(found) == (8 - missing, 2, 0.5)


def test_numbers_that_are_texts_count_as_numbers(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": p,
            "completion": "c",
            "reward": str(r),
            "step": "3",
            "advantage": "0.0" if p == "b" else str(r - 0.5),
        }
        for p, rewards in (("a", MIXED), ("b", MIXED))
        for r in rewards
    ]
    found = audited(write(tmp_path / "log.jsonl", rows), advantage="advantage")
    assert figures(found) == (8, 2, 0.5)
    assert found.log.step.tolist() == [3, 3]


@pytest.mark.parametrize("late", [0, 300])
def test_a_reward_that_holds_nothing_leaves_gradients_to_the_verdict(tmp_path: Path, late: int) -> None:
    rows = rollouts([("a", MIXED), ("b", WRONG)], step=1)
    rows = [{"prompt": row["prompt"], "step": 1, "reward": None, "acc": row["reward"]} for row in rows]
    first = rollouts([("c", (1.0,) * late)], step=2)
    found = audited(write(tmp_path / "log.jsonl", [row | {"acc": 1.0} for row in first] + rows))
    assert figures(found) == (8 + late, 2 + (late > 0), pytest.approx((4 + late) / (8 + late)))


def test_counts_that_are_texts_count_as_numbers(tmp_path: Path) -> None:
    rows = [{"problem": p, "pass@1": share, "num_samples": "8"} for p, share in (("a", "0.5"), ("b", "0.0"))]
    assert figures(audited(write(tmp_path / "log.jsonl", rows))) == (16, 2, 0.5)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    assert figures(audited(tmp_path / "log.parquet")) == (16, 2, 0.5)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_other_separators_than_commas_are_named(tmp_path: Path, mark: str) -> None:
    (tmp_path / "log.csv").write_text("\n".join(["step,prompt,reward", "1,a,1"]).replace(",", mark))
    names = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
    with pytest.raises(InvalidInputError, match=f"columns are separated by {names[mark]}"):
        audited(tmp_path / "log.csv")


@pytest.mark.parametrize("name", ["log.jsonl", "log.parquet"])
@pytest.mark.parametrize("kind", ["one turn", "shots", "turns"])
def test_chats_that_hold_the_reply_are_cut_before_it(tmp_path: Path, name: str, kind: str) -> None:
    def talk(prompt: str, reply: str) -> list[dict[str, str]]:
        shots = ["1+1?", "2"] if kind == "shots" else []
        turns = [f"try {reply}", "no"] if kind == "turns" else []
        texts = [*shots, f"{prompt}+{prompt}?", *turns, reply]
        return [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)]

    rows = [
        {"messages": talk(prompt, f"r{i}"), "reward": reward, "step": 1}
        for prompt, rewards in (("a", MIXED), ("b", WRONG))
        for i, reward in enumerate(rewards)
    ]
    log = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), log)
    else:
        write(log, rows)
    found = audited(log)
    assert figures(found) == (8, 2, 0.5)
    assert "messages holds replies too" in said(found)


def test_a_step_may_be_an_object_with_a_list_of_rewards_for_each_prompt(tmp_path: Path) -> None:
    rows = [
        {"step": step, "prompts": ["a", "b"], "responses": [["r"] * 4] * 2, "rewards": [MIXED, WRONG]}
        for step in (1, 2)
    ]
    assert figures(audited(write(tmp_path / "log.jsonl", rows))) == (16, 2, 0.5)


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ([0, 1, 2], ["0", "1", "2"]),
        ([["x", "p"], ["x", "r"], ["s", ""]], ["x.p", "x.r", "s"]),
        ([None, True, 1.5], None),
    ],
)
def test_a_table_may_have_columns_that_are_no_texts(
    tmp_path: Path, columns: list[Any], names: list[str] | None
) -> None:
    data = [[row["prompt"], row["reward"], 1] for row in rollouts([("a", MIXED), ("b", WRONG)])]
    (tmp_path / "log.json").write_text(json.dumps({"columns": columns, "index": list(range(8)), "data": data}))
    with pytest.raises(InvalidInputError, match=r"no column was recognised as a prompt or an id\. Its columns are"):
        audited(tmp_path / "log.json")
    if names:
        prompt, reward, step = names
        assert figures(audited(tmp_path / "log.json", prompt=prompt, reward=reward, step=step)) == (8, 2, 0.5)


# Rows that hold whole groups, and lists beside lists.


@pytest.mark.parametrize(
    "of",
    [
        lambda rewards: {"responses": ["r"] * 4, "rewards": list(rewards)},
        lambda rewards: {"rollouts": [{"reward": reward} for reward in rewards]},
        lambda rewards: {"scored": 4, "successes": int(sum(rewards))},
        lambda rewards: {"n_samples": 4, "n_correct": int(sum(rewards))},
        lambda rewards: {"response": "r", "reward": rewards[0], "group_rewards": list(rewards)},
    ],
    ids=["lists", "objects", "our counts", "counts", "a selection"],
)
@pytest.mark.parametrize("name", ["log.jsonl", "log.json", "log.parquet"])
def test_each_row_that_is_a_whole_group_is_a_visit_of_its_own(
    tmp_path: Path, of: Callable[[Sequence[float]], Row], name: str
) -> None:
    rows = [{"prompt": prompt} | of(rewards) for prompt in "abc" for rewards in (RIGHT, WRONG, MIXED)]
    log = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), log)
    elif name.endswith("json"):
        log.write_text(json.dumps({"groups": rows} if "rollouts" in rows[0] else rows))
    else:
        write(log, rows)
    assert figures(audited(log)) == (36, 3, 2 / 3)
    assert audited(log).log.step.tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_whole_groups_of_one_prompt_in_two_files_are_two_visits(tmp_path: Path) -> None:
    for name, rewards in (("a", RIGHT), ("b", WRONG)):
        write(tmp_path / f"{name}.jsonl", [{"prompt": "p", "rollouts": [{"reward": reward} for reward in rewards]}])
    assert figures(audited(tmp_path)) == (8, 1, 1.0)


def test_rows_with_lists_of_one_entry_are_rollouts_of_one_group(tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "rewards": [reward]} for prompt in "ab" for reward in MIXED]
    assert figures(audited(write(tmp_path / "log.jsonl", rows))) == (8, 2, 0.0)


STEPS = {step: rollouts([("a", MIXED), ("b", WRONG if step % 2 else RIGHT)]) for step in range(1, 13)}
BY_STEP: dict[str, Callable[[int], str]] = {
    "numbers": str,
    "padded numbers": lambda step: f"{step:05d}",
    "a word and numbers": lambda step: f"step_{step}",
    "another word": lambda step: f"Iteration {step}",
}


@pytest.mark.parametrize("kind", BY_STEP)
@pytest.mark.parametrize("inside", ["lists", "lists below", "prompts", "rows"])
def test_the_names_of_an_object_may_be_steps(tmp_path: Path, kind: str, inside: str) -> None:
    held: dict[str, Any] = {
        BY_STEP[kind](step): (
            {prompt: [row for row in rows if row["prompt"] == prompt] for prompt in "ab"}
            if inside == "prompts"
            else rows
        )
        for step, rows in sorted(STEPS.items(), key=lambda pair: str(pair[0]))  # as json.dumps(sort_keys=True) has them
    }
    if inside == "rows":
        log = write(tmp_path / "log.jsonl", [{name: rows} for name, rows in held.items()])
    else:
        log = tmp_path / "log.json"
        log.write_text(json.dumps({"config": {"lr": 1}, "rollouts_of": held} if inside == "lists below" else held))
    found = audited(log)
    assert figures(found) == (96, 2, 0.5)
    assert sorted(set(found.log.step.tolist())) == list(range(1, 13))
    assert "were taken for steps" in said(found)
    assert "resumed" not in said(found)


def test_rollouts_that_have_steps_keep_them_whatever_their_lists_are_called(tmp_path: Path) -> None:
    rows = [row | {"step": step} for step in (1, 2) for row in STEPS[step]]
    by_prompt = {str(number): [row for row in rows if row["prompt"] == p] for number, p in enumerate("ab")}
    (tmp_path / "log.json").write_text(json.dumps(by_prompt))
    found = audited(tmp_path / "log.json")
    assert figures(found) == (16, 2, 0.5)
    assert sorted(set(found.log.step.tolist())) == [1, 2]


def test_right_and_wrong_rollouts_in_two_lists_are_one_group(tmp_path: Path) -> None:
    def row(prompt: str, right: int) -> Row:
        return {
            "prompt": prompt,
            "correct": [{"text": "a", "reward": 1}] * right,
            "incorrect": [{"text": "b", "reward": 0}] * (4 - right),
        }

    found = audited(write(tmp_path / "log.jsonl", [row("a", 2), row("b", 0), row("c", 4), row("d", 1)]))
    assert figures(found) == (16, 4, 0.5)
    assert "the lists in correct, incorrect" in said(found)
    assert figures(audited(write(tmp_path / "right.jsonl", [row("a", 4), row("b", 4)]))) == (8, 2, 1.0)


def test_an_object_may_hold_a_list_for_each_prompt(tmp_path: Path) -> None:
    rows = rollouts([("1.5 + 1?", MIXED), ("2 + 2?", WRONG), ("3 + 3?", RIGHT)], step=1)
    held = {prompt: [row for row in rows if row["prompt"] == prompt] for prompt in ("1.5 + 1?", "2 + 2?", "3 + 3?")}
    (tmp_path / "log.json").write_text(json.dumps(held))
    assert figures(audited(tmp_path / "log.json")) == (12, 3, 2 / 3)


@pytest.mark.parametrize(
    ("first", "second"), [("chosen", "rejected"), ("train", "eval"), ("model_a", "model_b"), ("rollouts", "best")]
)
def test_lists_of_rollouts_that_nothing_relates_are_refused_by_name(tmp_path: Path, first: str, second: str) -> None:
    rows = [
        {"prompt": prompt, first: [{"score": 1}] * 2, second: [{"score": 0}] * 2, "meta": {"n": 4}} for prompt in "ab"
    ]
    with pytest.raises(InvalidInputError, match=f"{first}, {second} hold lists of rollouts, and nothing says"):
        audited(write(tmp_path / "logs" / "log.jsonl", rows))
    write(tmp_path / "logs" / "good.jsonl", rollouts([("a", MIXED), ("b", WRONG)]))
    found = audited(tmp_path / "logs")
    assert figures(found) == (8, 2, 0.5)
    assert "files that are no rollout log: 1" in said(found)


def test_what_a_step_holds_in_a_list_of_steps_are_its_rollouts(tmp_path: Path) -> None:
    steps = [{"step": step, "rollouts": rows, "mean_reward": 0.5} for step, rows in STEPS.items()]
    (tmp_path / "log.json").write_text(json.dumps({"run": "x", "steps": steps}))
    found = audited(tmp_path / "log.json")
    assert figures(found) == (96, 2, 0.5)
    assert sorted(set(found.log.step.tolist())) == list(range(1, 13))


def test_the_steps_of_a_rollout_are_no_rollouts(tmp_path: Path) -> None:
    trace = {"steps": [{"action": "x", "reward": 0.5, "candidates": [{"score": 1}] * 3}] * 2}
    rows = [row | trace for row in rollouts([("a", MIXED), ("b", WRONG)], step=1)]
    assert figures(audited(write(tmp_path / "log.jsonl", rows))) == (8, 2, 0.5)


# Tables of counts.


@pytest.mark.parametrize(
    "rows",
    [
        [{"problem": "a", "n_correct": 4, "n_samples": 8}, {"problem": "b", "n_correct": 0, "n_samples": 8}],
        [
            {"problem": "a", "pass_rate": 0.5, "num_generations": 8},
            {"problem": "b", "pass_rate": 0, "num_generations": 8},
        ],
        [{"problem": "a", "success_count": 4, "failures": 4}, {"problem": "b", "success_count": 0, "failures": 8}],
        [{"problem": "a", "correct": 4, "total": 8}, {"problem": "b", "correct": 0, "total": 8}],
    ],
)
@pytest.mark.parametrize("name", ["table.csv", "table.jsonl", "table.parquet"])
def test_tables_of_counts_are_read_by_any_usual_name(tmp_path: Path, rows: list[Row], name: str) -> None:
    path = tmp_path / name
    if name.endswith("csv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write(path, rows)
    found = audited(path)
    assert figures(found) == (16, 2, 0.5)
    assert "each row is a group" in said(found)


# Ids that are none.


def test_ids_numbered_anew_in_each_step_do_not_join_prompts(tmp_path: Path) -> None:
    rows = [
        {"step": step, "problem_id": number, "prompt": prompt, "reward": reward}
        for step, prompts in ((1, "ab"), (2, "ba"), (3, "cd"))
        for number, prompt in enumerate(prompts)
        for reward in (MIXED if prompt == "a" else WRONG)
    ]
    found = audited(write(tmp_path / "log.jsonl", rows))
    assert figures(found) == (24, 4, 2 / 3)
    assert "problem_id is no id of prompts" in said(found)
    assert found.expectation is not None  # a and b came back, under another number


def test_ids_that_are_new_in_every_step_do_not_part_prompts(tmp_path: Path) -> None:
    rows = [
        {"step": step, "prompt_id": f"{step}-{prompt}", "prompt": prompt, "reward": reward}
        for step in (1, 2, 3)
        for prompt in "ab"
        for reward in (MIXED if prompt == "a" else WRONG)
    ]
    found = audited(write(tmp_path / "log.jsonl", rows))
    assert figures(found) == (24, 2, 0.5)
    assert "prompt_id is new in every step, while prompts come back" in said(found)


def test_ids_numbered_anew_in_each_data_set_are_told_apart_by_it(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "example_id": number, "data_source": source, "reward": reward}
        for source, groups in (("gsm8k", [RIGHT, WRONG]), ("math", [WRONG, RIGHT]))
        for number, rewards in enumerate(groups)
        for reward in rewards
    ]
    found = audited(write(tmp_path / "log.jsonl", rows))
    assert figures(found) == (16, 4, 1.0)
    assert "told apart by: data_source" in said(found)


def test_an_id_that_is_named_and_stands_for_several_texts_is_found_out(tmp_path: Path) -> None:
    rows = [row | {"kind": "sum"} for row in rollouts([("a", RIGHT), ("b", WRONG)], step=1)]
    found = audited(write(tmp_path / "log.jsonl", rows), id="kind")
    assert figures(found) == (8, 2, 1.0)
    assert "kind is no id of prompts: one of its values stands for 2 different prompts" in said(found)


@pytest.mark.parametrize("column", ["id", "uid", "index", "group_id", "problem_id"])
@pytest.mark.parametrize("of", ["aime_2024_{}", "gsm8k_{}_0", "{}_0_1"])
def test_ids_of_prompts_that_end_in_numbers_stay_whole(tmp_path: Path, column: str, of: str) -> None:
    rows = [
        {"step": step, column: of.format(number), "reward": reward}
        for step in (1, 2)
        for number, rewards in enumerate((RIGHT, WRONG, MIXED))
        for reward in rewards
    ]
    found = audited(write(tmp_path / "log.jsonl", rows))
    assert (len(found.log.step), without_gradient(found.log)) == (6, pytest.approx(2 / 3))


@pytest.mark.parametrize(("column", "gone", "share"), [("uid", 0, 2 / 3), ("uid", 1, 7 / 11), ("sample_id", 0, 2 / 3)])
def test_ids_of_rollouts_that_number_them_in_their_sample_are_those_of_their_groups(
    tmp_path: Path, column: str, gone: int, share: float
) -> None:
    rows = [
        {"step": 1, "prompt": "Solve it.", column: f"{sample}_{number}_0", "reward": reward}
        for sample, rewards in zip("abc", (RIGHT, WRONG, MIXED), strict=True)
        for number, reward in enumerate(rewards)
    ][gone:]
    found = audited(write(tmp_path / "log.jsonl", rows))
    assert (len(found.log.step), without_gradient(found.log)) == (3, pytest.approx(share))


def test_one_rollout_of_each_numbered_problem_is_no_group(tmp_path: Path) -> None:
    rows = [{"id": f"aime_2024_{number}", "reward": number % 2} for number in range(30)]
    found = audited(write(tmp_path / "log.jsonl", rows))
    assert found.all_single
    assert "no share is given" in said(found)


@pytest.mark.parametrize("column", ["images", "image_path", "ground_truth", "uid"])
def test_prompts_of_one_text_are_told_apart_by_what_belongs_to_them(tmp_path: Path, column: str) -> None:
    rows = [
        {"input": "Find x.", "output": f"o{i}", "score": reward, "step": 1, column: held(i)}
        for rewards, held in (
            (RIGHT, lambda i: ["1.png"] if column == "images" else f"aa_{i}_0" if column == "uid" else "12"),
            (WRONG, lambda i: ["2.png"] if column == "images" else f"bb_{i}_0" if column == "uid" else "30"),
        )
        for i, reward in enumerate(rewards)
    ]
    found = audited(write(tmp_path / "1.jsonl", rows))
    assert without_gradient(found.log) == 1.0
    assert len(found.log.step) == 2


# Time that goes back.


def attempt(steps: Sequence[int], prompts: str = "ab", first: Sequence[float] = MIXED) -> list[Row]:
    return [
        {"step": step, "prompt": f"{prompt}{step}", "reward": reward}
        for step in steps
        for prompt in prompts
        for reward in (first if prompt == prompts[0] else WRONG)
    ]


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
@pytest.mark.parametrize("cut", [0, 3, 6])
def test_of_steps_that_were_logged_again_the_last_attempt_counts(tmp_path: Path, name: str, cut: int) -> None:
    broken = attempt([1, 2, 3])
    broken = broken[: len(broken) - cut]
    found = audited(write(tmp_path / name, [*broken, *attempt([2, 3, 4], first=RIGHT)]))
    assert figures(found) == (32, 8, 0.875)
    assert f"Steps go back at row {len(broken) + 1} of {name}, to step 2" in said(found)
    assert f"of {len(broken) + 24} rollouts" in said(found)


@pytest.mark.parametrize("steps", [[2, 1], [3, 1, 2], [5, 4, 3, 2, 1]])
def test_steps_in_another_order_all_count(tmp_path: Path, steps: list[int]) -> None:
    found = audited(write(tmp_path / "log.jsonl", attempt(steps)))
    assert figures(found) == (8 * len(steps), 2 * len(steps), 0.5)
    assert "Steps go back" not in said(found)


def test_a_run_that_was_resumed_twice_counts_once(tmp_path: Path) -> None:
    rows = [*attempt([1, 2, 3]), *attempt([2, 3, 4]), *attempt([3, 4, 5], first=RIGHT)]
    found = audited(write(tmp_path / "log.jsonl", rows))
    assert figures(found) == (40, 10, 0.8)
    assert "and 1 other row" in said(found)


def test_a_run_that_began_again_from_the_start_counts_once(tmp_path: Path) -> None:
    found = audited(write(tmp_path / "log.jsonl", [*attempt([1, 2]), *attempt([1, 2, 3], first=RIGHT)]))
    assert figures(found) == (24, 6, 1.0)


def test_a_run_that_was_resumed_with_other_prompts_counts_once(tmp_path: Path) -> None:
    found = audited(
        write(tmp_path / "log.jsonl", [*attempt([1, 2, 3]), *attempt([2, 3, 4], prompts="xy", first=RIGHT)])
    )
    assert figures(found) == (32, 8, 0.875)


def test_a_step_that_was_logged_twice_in_a_row_is_said_to_be_doubled(tmp_path: Path) -> None:
    found = audited(write(tmp_path / "log.jsonl", [*attempt([1, 2, 3]), *attempt([3, 4, 5, 6])]))
    assert "all groups of 1 step, step 3 the first, had two or more times the usual 4 rollouts" in summary(found)[0]


def test_a_log_that_goes_on_in_another_file_from_an_earlier_step_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "log-1.jsonl", attempt([1, 2, 3]))
    write(tmp_path / "log-2.jsonl", attempt([2, 3, 4], first=RIGHT))
    found = audited(tmp_path)
    assert figures(found) == (32, 8, 0.875)
    assert "Steps go back at row 1 of log-2.jsonl, to step 2" in said(found)


def test_shards_and_writers_that_take_turns_are_parts_of_the_same_steps(tmp_path: Path) -> None:
    shards = [attempt([1, 2, 3], prompts="ab"), attempt([1, 2, 3], prompts="cd")]
    for rank, rows in enumerate(shards):
        write(tmp_path / "ranks" / f"rank{rank}.jsonl", rows)
    assert figures(audited(tmp_path / "ranks")) == (48, 12, 0.5)
    turns = [row for pair in zip(*shards, strict=True) for row in pair]
    late = turns[:20] + turns[21:30] + turns[20:21] + turns[30:]
    assert figures(audited(write(tmp_path / "turns.jsonl", late))) == (48, 12, 0.5)
    assert figures(audited(write(tmp_path / "one.jsonl", shards[0] + shards[1]))) == (48, 12, 0.5)


def by_prompt(row: Row) -> tuple[str, int]:
    return row["prompt"], row["step"]


@pytest.mark.parametrize("order", [None, by_prompt, lambda row: (row["reward"], row["step"])])
def test_logs_of_one_run_in_another_order_are_not_taken_for_a_resumed_run(tmp_path: Path, order: Any) -> None:
    rng = np.random.default_rng(3)
    groups = [(step, prompt) for step in range(1, 41) for prompt in rng.permutation(12)[: rng.integers(1, 5)].tolist()]
    rows = [
        {"step": step, "prompt": f"question {prompt}", "reward": float(i < won)}
        for step, prompt in groups
        for won in [rng.choice([0, 4, 8])]
        for i in range(8)
    ]
    in_time = audited(write(tmp_path / "time.jsonl", rows))
    late = np.argsort([row["step"] for row in rows] + np.repeat(rng.normal(0, 1, len(groups)), 8), kind="stable")
    moved = sorted(rows, key=order) if order else [rows[place] for place in late]
    found = audited(write(tmp_path / "log.jsonl", moved))
    assert figures(found) == figures(in_time)
    assert "resumed" not in said(found)


def test_a_rank_that_begins_later_than_another_holds_parts_of_its_groups(tmp_path: Path) -> None:
    parts = [attempt(range(1, 6), first=RIGHT), attempt(range(2, 6), first=WRONG)]
    for rank, rows in enumerate(parts):
        write(tmp_path / "ranks" / f"rank{rank}.jsonl", rows)
    found = audited(tmp_path / "ranks")
    assert figures(found) == (72, 10, (72 - 32) / 72)
    assert "Steps go back" not in said(found)


def test_a_resumed_run_of_several_ranks_counts_once(tmp_path: Path) -> None:
    for rank, prompts in enumerate(("ab", "cd")):
        rows = [*attempt([1, 2, 3], prompts=prompts), *attempt([2, 3, 4, 5], prompts=prompts, first=RIGHT)]
        write(tmp_path / f"rank{rank}.jsonl", rows)
    found = audited(tmp_path)
    assert figures(found) == (80, 20, 0.9)
    assert "the run was resumed" in said(found)


def test_where_all_groups_come_again_as_far_as_before_they_are_parts_and_that_is_said(tmp_path: Path) -> None:
    rows = [*attempt([1, 2, 3], first=RIGHT), *attempt([1, 2, 3], first=WRONG)]
    found = audited(write(tmp_path / "log.jsonl", rows))
    assert figures(found) == (48, 6, 0.5)
    assert "all steps come again with the same groups. They were taken for parts" in said(found)


def test_files_of_several_runs_with_the_same_steps_are_said_to_be_merged_before_the_headline(tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        write(tmp_path / "runs" / f"{name}.jsonl", attempt([1, 2, 3]))
        write(tmp_path / "shards" / f"{name}_rank{len(name)}.jsonl", attempt([1, 2, 3]))
    first = summary(audited(tmp_path / "runs"))[0]
    assert first.startswith("Look at the grouping first: 6 groups came from several files")
    assert "Look at the grouping" not in said(audited(tmp_path / "shards"))


def test_shards_that_are_named_one_by_one_are_no_reason_to_look_at_the_grouping(tmp_path: Path) -> None:
    ranks = [write(tmp_path / f"rank{rank}.jsonl", attempt([1, 2, 3], first=(RIGHT, WRONG)[rank])) for rank in (0, 1)]
    assert "Look at the grouping" not in said(audited(*ranks))
    runs = [write(tmp_path / run / "rank0.jsonl", attempt([1, 2, 3])) for run in ("base", "tuned")]
    assert "came from several of the LOGS" in summary(audited(*runs))[0]


def test_folders_of_ranks_hold_parts_of_each_step(tmp_path: Path) -> None:
    for rank, prompts in enumerate(("ab", "cd")):
        for step in (1, 2):
            rows = [{name: row[name] for name in ("prompt", "reward")} for row in attempt([step], prompts=prompts)]
            write(tmp_path / f"rank_{rank}" / f"{step}.jsonl", rows)
    found = audited(tmp_path)
    assert figures(found) == (32, 8, 0.5)
    assert sorted(set(found.log.step.tolist())) == [1, 2]


@pytest.mark.parametrize("runs", [("base", "tuned"), ("1", "2"), ("seed_1", "seed_2")])
def test_equal_numbers_in_folders_of_several_runs_are_refused(tmp_path: Path, runs: tuple[str, str]) -> None:
    for run in runs:
        for step in (1, 2):
            write(tmp_path / run / f"{step}.jsonl", rollouts([("a", MIXED), ("b", WRONG)]))
    with pytest.raises(InvalidInputError, match="both hold a file of the number 1"):
        audited(tmp_path)


@pytest.mark.parametrize(
    "names", [("step_5", "step_10"), ("global_step_5", "global_step_10"), ("v5", "v10"), ("5", "10")]
)
def test_steps_come_from_the_names_of_folders(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write(tmp_path / "run" / name / "rollouts.jsonl", rollouts([("a", MIXED), ("b", WRONG)]))
    found = audited(tmp_path / "run")
    assert figures(found) == (16, 2, 0.5)
    assert found.log.step.tolist() == [5, 5, 10, 10]
    assert "step: folder names (guessed)" in said(found)


def without_steps(rows: Sequence[Row]) -> list[Row]:
    return [{name: held for name, held in row.items() if name != "step"} for row in rows]


VISITS = rollouts([("a", RIGHT), ("b", WRONG), ("a", WRONG), ("b", RIGHT)])


@pytest.mark.parametrize(
    "name",
    [
        "exp/log.jsonl",
        "exp_v2/log.jsonl",
        "checkpoint-500/x/out.jsonl",
        "rollouts_1.jsonl",
        "step_5/log.jsonl",
        "7.jsonl",
    ],
)
def test_the_number_in_the_name_of_a_log_of_several_visits_is_no_step(tmp_path: Path, name: str) -> None:
    found = audited(write(tmp_path / name, VISITS))
    assert figures(found) == (16, 2, 1.0)
    assert found.reading.steps_from == "order"


def test_the_rows_of_one_step_stay_together_in_any_order(tmp_path: Path) -> None:
    rows = [row for pair in zip(*[rollouts([(prompt, MIXED)]) for prompt in "abc"], strict=True) for row in pair]
    found = audited(write(tmp_path / "rollouts" / "12.jsonl", rows))
    assert figures(found) == (12, 3, 0.0)
    assert found.log.step.tolist() == [12] * 3


def test_the_step_may_stand_beside_the_rank_in_the_names_of_files(tmp_path: Path) -> None:
    for rank, rewards in enumerate((RIGHT, WRONG)):
        for step in (1, 2, 3):
            rows = rollouts([(f"a{step}", rewards), (f"b{step}", WRONG)])
            write(tmp_path / "after" / f"rank{rank}_{step}.jsonl", rows)
            write(tmp_path / "before" / f"{step}_rank{rank}.jsonl", rows)
    for folder in ("after", "before"):
        found = audited(tmp_path / folder)
        assert figures(found) == (48, 6, 0.5)
        assert sorted(set(found.log.step.tolist())) == [1, 2, 3]


def test_ranks_without_steps_hold_parts_of_the_same_visits(tmp_path: Path) -> None:
    for rank, rewards in enumerate((RIGHT, WRONG)):
        write(tmp_path / f"rank{rank}.jsonl", rollouts([("a", rewards), ("b", WRONG), ("a", RIGHT), ("b", WRONG)]))
    found = audited(tmp_path)
    assert figures(found) == (32, 2, 0.75)
    assert "Prompts come equally often in the files of each of 2 writers" in said(found)
    assert "later visits of the same run" not in said(found)


def test_ranks_without_steps_that_hold_whole_groups_hold_other_visits(tmp_path: Path) -> None:
    visits = {0: "abca", 1: "dbcd"}
    for rank, prompts in visits.items():
        write(tmp_path / f"rank{rank}.jsonl", rollouts([(prompt, (RIGHT, WRONG)[rank]) for prompt in prompts]))
    found = audited(tmp_path)
    assert figures(found) == (32, 4, 1.0)
    assert sorted(found.log.step.tolist()) == [1, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("more", [{"completion": "c"}, {}])
def test_shards_that_all_hold_the_whole_batch_count_once(tmp_path: Path, more: Row) -> None:
    rows = [row | more for row in attempt([1, 2, 3])]
    for rank in range(3):
        write(tmp_path / f"rank{rank}.jsonl", [row | {"rank": rank} for row in rows])
    found = audited(tmp_path)
    assert figures(found) == (24, 6, 0.5)
    assert "files of a shard with the very rows of another (2; " in said(found)


def test_shards_whose_rollouts_all_did_alike_are_parts_and_that_is_said(tmp_path: Path) -> None:
    for rank in range(2):
        write(tmp_path / f"rank{rank}.jsonl", attempt([1, 2, 3], first=RIGHT))
    found = audited(tmp_path)
    assert figures(found) == (48, 6, 1.0)
    assert "rank1.jsonl hold the same rows. They were taken for parts of the same groups" in said(found)


def test_shards_that_differ_in_one_step_are_parts(tmp_path: Path) -> None:
    for rank, last in enumerate((MIXED, WRONG)):
        write(tmp_path / f"rank{rank}.jsonl", attempt([1, 2, 3]) + attempt([4], first=last))
    assert figures(audited(tmp_path)) == (64, 8, 0.5)


@pytest.mark.parametrize("name", ["10²3.jsonl", "²/1.jsonl", "x²"])
def test_digits_that_are_no_decimals_are_letters(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name if not name.endswith("jsonl") else (tmp_path / name).parent
    write(folder / "a.jsonl" if folder.name == "x²" else tmp_path / name, rollouts([("a", MIXED)], step=1))
    assert figures(audited(folder)) == (4, 1, 0.0)


# Columns that may all be the step.


def three_epochs(counted: str = "step", in_all: bool = False) -> list[Row]:
    """Three epochs of two steps with two prompts each; "a" is mixed in the first epoch only."""
    return [
        {"epoch": epoch, counted: step, "prompt": prompt, "reward": reward}
        | ({"global_step": 2 * epoch + step} if in_all else {})
        for epoch in range(3)
        for step, prompts in enumerate(("ab", "cd"))
        for prompt in prompts
        for reward in (MIXED if prompt == "a" and not epoch else WRONG)
    ]


ORDERS: dict[str, Callable[[Row], Any]] = {
    "time": lambda row: 0,
    "prompt": lambda row: row["prompt"],
    "none": lambda row: (5 * row["epoch"] + 3 * ord(row["prompt"])) % 7,
    "outcome": lambda row: row["reward"],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("counted", ["step", "iteration", "update"])
def test_a_step_that_begins_anew_in_every_epoch_is_counted_on(tmp_path: Path, counted: str, order: str) -> None:
    rows = sorted(three_epochs(counted), key=ORDERS[order])
    found = audited(write(tmp_path / "log.jsonl", rows))
    assert figures(found) == (48, 4, 44 / 48)
    assert sorted(set(found.log.step.tolist())) == list(range(6))
    assert f"step: epoch + {counted} (guessed)" in said(found)
    assert f"{counted} begins anew in each epoch: both together are the step" in said(found)
    named = audited(tmp_path / "log.jsonl", step=counted)
    assert sorted(set(named.log.step.tolist())) == [0, 1]


def test_a_step_within_the_epoch_gives_way_to_one_that_goes_on(tmp_path: Path) -> None:
    found = audited(write(tmp_path / "log.jsonl", three_epochs(in_all=True)))
    assert figures(found) == (48, 4, 44 / 48)
    assert "step begins anew while global_step goes on: global_step was taken for the step" in said(found)


@pytest.mark.parametrize(
    ("outer", "together"), [("global_step", True), ("global_step", False), ("training_step", True), ("iteration", True)]
)
def test_a_step_that_counts_turns_is_not_the_time_of_the_update(tmp_path: Path, outer: str, together: bool) -> None:
    rows = [
        {outer: time, "step": turn, "prompt": prompt, "reward": float(prompt == "a" and time % 2)}
        for time in range(1, 5)
        for prompt in "abc"
        for _ in range(4)
        for turn in range(3)
    ]
    if not together:
        rows.sort(key=lambda row: row["step"])
    found = audited(write(tmp_path / "log.jsonl", rows))
    assert figures(found) == (144, 3, 1.0)
    assert f"as turns of an episode do: {outer} was taken for the step" in said(found)


def test_an_iteration_with_steps_inside_counts_both(tmp_path: Path) -> None:
    rows = [
        row | {"iteration": iteration, "step": step}
        for iteration in range(1, 4)
        for step in range(2)
        for row in rollouts([(f"{step}{prompt}", RIGHT if iteration == 2 else WRONG) for prompt in "ab"])
    ]
    found = audited(write(tmp_path / "log.jsonl", rows))
    assert figures(found) == (48, 4, 1.0)
    assert len(set(found.log.step.tolist())) == 6


@pytest.mark.parametrize("other", [{"epoch": 0}, {"policy_version": 2}, {"rollout_id": 7}])
def test_a_step_that_says_when_all_else_was_is_taken_alone(tmp_path: Path, other: Row) -> None:
    rows = attempt(range(1, 7))
    held = {name: lambda row: row["step"] // 4 for name in other}
    found = audited(write(tmp_path / "log.jsonl", [row | {name: held[name](row) for name in other} for row in rows]))
    assert figures(found) == (48, 12, 0.5)
    assert "step: step (guessed)" in said(found)
    assert "--step" not in said(found)


def test_rollouts_of_several_policy_versions_in_one_step_stay_together(tmp_path: Path) -> None:
    rows = [
        row | {"policy_version": row["step"] - place % 2} for place, row in enumerate(attempt(range(1, 7), first=MIXED))
    ]
    found = audited(write(tmp_path / "log.jsonl", rows))
    assert figures(found) == (48, 12, 0.5)
    assert "step: step (guessed)" in said(found)


@pytest.mark.parametrize("sort", [lambda row: 0, by_prompt])
def test_the_number_of_a_rollout_in_its_group_is_no_step(tmp_path: Path, sort: Callable[[Row], Any]) -> None:
    rows = [row | {"rollout_id": place % 4, "iteration": 9 - place % 4} for place, row in enumerate(VISITS * 3)]
    rows = [row | {"step": place // 8} for place, row in enumerate(rows)]
    found = audited(write(tmp_path / "log.jsonl", sorted(rows, key=sort)))
    assert figures(found) == (48, 2, 1.0)
    assert sorted(set(found.log.step.tolist())) == list(range(6))


def test_a_run_that_was_resumed_in_its_first_epoch_again_is_recognised(tmp_path: Path) -> None:
    first = [row | {"epoch": row["step"] // 6} for row in attempt(range(1, 10))]
    again = [row | {"epoch": 0} for row in attempt(range(5, 14), first=RIGHT)]
    found = audited(write(tmp_path / "log.jsonl", first + again))
    assert int(found.log.rollouts.sum()) == 13 * 8
    assert "the run was resumed" in said(found)


def test_two_columns_of_which_nothing_says_which_is_the_step_are_both_named(tmp_path: Path) -> None:
    rows = [
        row | {"iteration": one, "update": other}
        for one, other in ((1, 2), (0, 1), (1, 0), (0, 2), (1, 1), (0, 0))
        for row in rollouts([("a", MIXED), ("b", WRONG)])
    ]
    told = said(audited(write(tmp_path / "log.jsonl", rows)))
    assert "iteration and update may both be the step: iteration was taken (--step update says otherwise)" in told


def test_epochs_that_are_fractions_are_no_steps(tmp_path: Path) -> None:
    def rows(more: Callable[[int], Row]) -> list[Row]:
        return [row | more(row.pop("step")) for row in attempt(range(1, 11))]

    found = audited(write(tmp_path / "log.jsonl", rows(lambda step: {"epoch": step / 10})))
    assert figures(found) == (80, 20, 0.5)
    assert found.reading.steps_from == "order"
    assert "epoch holds fractions, which are no steps" in said(found)
    found = audited(write(tmp_path / "log.jsonl", rows(lambda step: {"step": step / 10, "global_step": step})))
    assert figures(found) == (80, 20, 0.5)
    assert "step: global_step (guessed)" in said(found)


def test_a_step_without_a_value_is_none(tmp_path: Path) -> None:
    empty = [row | {"step": None} for row in attempt([1])]
    assert audited(write(tmp_path / "log.jsonl", empty)).reading.steps_from == "order"
    both = [row | {"step": None, "iteration": row["step"]} for row in attempt([1, 2])]
    found = audited(write(tmp_path / "log.jsonl", both))
    assert figures(found) == (16, 4, 0.5)
    assert found.log.step.tolist() == [1, 1, 2, 2]
    late = [row | {"step": None} for row in attempt(range(30))] + attempt([3, 4])
    assert set(audited(write(tmp_path / "late.jsonl", late)).log.step.tolist()) == {3, 4}


@pytest.mark.parametrize("written", ["step_{}", "global_step_{}", "Step{}", "iter={}"])
def test_steps_may_be_written_with_a_word(tmp_path: Path, written: str) -> None:
    rows = [row | {"step": written.format(row["step"])} for row in attempt([1, 2, 12])]
    found = audited(write(tmp_path / "log.jsonl", rows))
    assert figures(found) == (24, 6, 0.5)
    assert found.log.step.tolist() == [1, 1, 2, 2, 12, 12]


@pytest.mark.parametrize("held", ["1,000", "2026-01-01", "Jan 5", "warm-up"])
def test_steps_that_are_no_numbers_are_refused_with_the_option_that_names_others(tmp_path: Path, held: str) -> None:
    log = write(tmp_path / "log.jsonl", [row | {"step": held, "when": 3} for row in attempt([1])])
    with pytest.raises(InvalidInputError, match=f"step holds '{held}'; --step COLUMN names a column of whole numbers"):
        audited(log)
    assert figures(audited(log, step="when")) == (8, 2, 0.5)


# Several things in one log.


def test_files_of_an_evaluation_beside_those_of_the_training_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", rollouts([("a", MIXED), ("b", WRONG)], step=1))
    write(tmp_path / "eval.jsonl", rollouts([("c", (1.0,)), ("d", (0.0,))], step=1))
    found = audited(tmp_path)
    assert figures(found) == (8, 2, 0.5)
    assert "files of an evaluation, by their names: 1" in said(found)
    named = audited(tmp_path / "eval.jsonl", tmp_path / "train.jsonl")  # as where a shell has expanded a pattern
    assert figures(named) == (8, 2, 0.5)
    assert "files of an evaluation, by their names: 1" in said(named)
    (tmp_path / "train.jsonl").unlink()
    assert int(audited(tmp_path).log.rollouts.sum()) == 2  # nothing else is there


@pytest.mark.parametrize(
    ("column", "train", "evaluation"),
    [
        ("split", "train", "test"),
        ("mode", "train", "eval"),
        ("phase", "training", "validation"),
        ("is_eval", False, True),
        ("is_test", 0, 1),
        ("is_validation", "no", "yes"),
        ("is_train", True, False),
    ],
)
@pytest.mark.parametrize("evaluation_first", [False, True])
def test_rows_of_an_evaluation_are_left_out_and_said(
    tmp_path: Path, column: str, train: Any, evaluation: Any, evaluation_first: bool
) -> None:
    parts = [
        rollouts([("a", MIXED), ("b", WRONG)], step=1, **{column: train}),
        rollouts([("c", (1.0,)), ("a", (0.0,))], step=1, **{column: evaluation}),
    ]
    if evaluation_first:
        parts.reverse()
    found = audited(write(tmp_path / "log.jsonl", [row for part in parts for row in part]))
    assert figures(found) == (8, 2, 0.5)
    assert f"{column} has 2 values" in said(found)


@pytest.mark.parametrize("column", ["stage", "phase", "mode", "type", "kind", "set", "subset", "partition"])
@pytest.mark.parametrize("values", [(0, 1), (0, 1, 2), (False, True)])
def test_numbers_of_stages_and_the_like_are_no_evaluation(
    tmp_path: Path, column: str, values: tuple[int | bool, ...]
) -> None:
    rows = [
        row
        for step, value in enumerate(values)
        for row in rollouts([("a", MIXED), ("b", WRONG)], step=step, **{column: value})
    ]
    assert figures(audited(write(tmp_path / "log.jsonl", rows))) == (8 * len(values), 2, 0.5)


def test_files_that_are_pooled_are_said_to_be_one_run(tmp_path: Path) -> None:
    for model in "ab":
        rows = [{"task_id": f"T/{task}", "passed": task == 0} for _ in range(4) for task in range(2)]
        write(tmp_path / f"{model}.jsonl", rows)
    found = audited(tmp_path, pooled=True)
    assert figures(found) == (16, 2, 1.0)
    assert "2 prompts came in several of the 2 files and are one group each" in said(found)


@pytest.mark.parametrize(
    ("flags", "share", "successes"),
    [
        ({}, 0.5, 4),
        ({"reward": "acc"}, 0.5, 4),
        ({"success": "acc"}, 0.5, 4),
        ({"reward": "acc", "success": "acc"}, 1.0, 4),
    ],
)
def test_a_verdict_beside_a_shaped_reward_answers_another_question(
    tmp_path: Path, flags: dict[str, str], share: float, successes: int
) -> None:
    rows = [
        {"question": p, "response": "r", "reward": reward, "acc": p == "a", "step": 1}
        for p, rewards in (("a", (1.0, 0.7, 0.2, 1.0)), ("b", WRONG))
        for reward in rewards
    ]
    found = audited(write(tmp_path / "log.jsonl", rows), **flags)
    assert figures(found) == (8, 2, share)
    assert int(found.log.successes.sum()) == successes


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-32", "latin-1"])
@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_other_encodings_than_utf_8_are_a_sentence(tmp_path: Path, encoding: str, name: str) -> None:
    text = "prömpt,reward\nä,1\n" if name.endswith("csv") else '{"prompt": "ä", "reward": 1}\n'
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises(
        InvalidInputError, match=r"UTF-\d\d, and only UTF-8|not in UTF-8|lines that are not JSON|no line is"
    ):
        audited(tmp_path / name)
    write(tmp_path / "good.jsonl", rollouts([("a", MIXED), ("b", WRONG)]))
    assert figures(audited(tmp_path)) == (8, 2, 0.5)


@pytest.mark.parametrize("name", ["1.parquet", "1.csv", "1.jsonl", "1.json", "1.jsonl.gz"])
def test_pointers_of_git_lfs_are_called_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(InvalidInputError, match="a Git LFS pointer"):
        audited(tmp_path / name)


def test_rollouts_of_several_models_do_not_share_groups(tmp_path: Path) -> None:
    rows = rollouts([("a", RIGHT)], step=1, model="base") + rollouts([("a", WRONG)], step=1, model="tuned")
    found = audited(write(tmp_path / "log.jsonl", rows))
    assert figures(found) == (8, 1, 1.0)
    assert "model has 2 values, base, tuned" in said(found)


@pytest.mark.parametrize("column", ["grader", "metric", "filter"])
def test_a_response_that_several_graders_judged_counts_once(tmp_path: Path, column: str) -> None:
    rows = [
        {"step": 1, "prompt": p, "response": f"r{i}", "reward": reward if grader == "exact" else 1.0, column: grader}
        for p, rewards in (("a", MIXED), ("b", WRONG))
        for i, reward in enumerate(rewards)
        for grader in ("exact", "lenient")
    ]
    found = audited(write(tmp_path / "log.jsonl", rows))
    assert figures(found) == (8, 2, 0.5)
    assert f"{column} has 2 values, exact, lenient" in said(found)


# Groups that no trainer makes, and groups that somebody threw away.


def test_group_sizes_that_no_trainer_makes_come_before_the_headline(tmp_path: Path) -> None:
    rows = rollouts([("a", (1, 0, 1)), ("b", (0,) * 5), ("c", (1,) * 4), ("d", (0, 1) * 8), ("e", (0,) * 7)], step=1)
    first, second, *_ = summary(audited(write(tmp_path / "log.jsonl", rows)))
    assert first.startswith("Look at the grouping first: groups have 5 different sizes, 3 to 16")
    assert "had no gradient" in second
    (huge,) = [rollouts([("a", (0, 1) * 400)], step=1)]
    assert "groups of 800 rollouts are larger" in summary(audited(write(tmp_path / "huge.jsonl", huge)))[0]


def test_a_log_in_which_every_group_is_mixed_may_hold_survivors_only(tmp_path: Path) -> None:
    rows = rollouts([("a", MIXED), ("b", MIXED), ("c", MIXED)], step=1)
    assert "algorithm.filter_groups" in said(audited(write(tmp_path / "log.jsonl", rows)))
    rows += rollouts([("d", WRONG)], step=1)
    assert "algorithm.filter_groups" not in said(audited(write(tmp_path / "log.jsonl", rows)))


# What is right.


@pytest.mark.parametrize(
    ("rewards", "known"),
    [
        ((1.0, 0.0), True),
        ((1.0, -1.0), True),
        ((1.0, 0.0, -1.0), True),
        ((10.0, 0.0), True),
        ((0.0, -1.0), False),
        ((1.0, 0.5, 0.0), False),
        ((0.3, 0.7), False),
        ((-0.5, 0.5, 1.0), False),
    ],
)
def test_nothing_is_said_of_right_and_wrong_until_right_is_known(
    tmp_path: Path, rewards: tuple[float, ...], known: bool
) -> None:
    rows = [
        row
        for step in (1, 2)
        for row in rollouts([("a", rewards * 2), ("b", rewards[-1:] * 2 * len(rewards))], step=step)
    ]
    found = audited(write(tmp_path / "log.jsonl", rows))
    told = said(found)
    assert without_gradient(found.log) == 0.5
    assert ("never had" in told) == ("expected to" in told) == known == found.knows_right
    assert ("--success-above" in told) == (set(rewards) != {0.0, 1.0})
    assert ("Assumed: a reward above 0 is right" in told) == (known and set(rewards) != {0.0, 1.0})
    middle = (max(rewards) + sorted(rewards)[-2]) / 2
    assert audited(tmp_path / "log.jsonl", above=middle).knows_right


@pytest.mark.parametrize("noise", [0.1 + 0.2 - 0.3, 3e-8, 1e-7])
def test_what_adding_up_in_floats_leaves_is_no_gradient(tmp_path: Path, noise: float) -> None:
    rows = rollouts([("a", (1.0, 1.0 + noise)), ("b", (0.3, 0.3 + noise)), ("c", (0.3, 0.301))], step=1)
    assert without_gradient(audited(write(tmp_path / "log.jsonl", rows)).log) == pytest.approx(2 / 3)
