from __future__ import annotations

import json
import logging
import random
import threading
from pathlib import Path
from typing import Any

import datasets
import pytest
from pydantic import ValidationError

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.tasks.math import BENCHMARKS, SOURCES, DataSetConfig, MathConfig, is_right, load, math_verified

pytest.importorskip("math_verify")

DAPO_PROMPT = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\nRemember to put your answer on its "
    'own line after "Answer:".'
)


def dapo_row(number: int, answer: str | None = None) -> dict[str, Any]:
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": DAPO_PROMPT.format(f"What is {number} + 1?"), "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer or str(number + 1), "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": f"0000-{number}"},
    }


GPQA_ROWS = [
    {
        "Record ID": f"rec{number}",
        "Question": f"Which is the number {number}?\n",
        "Correct Answer": f"It is {number}.",
        "Incorrect Answer 1": f"{number + 1}\n",
        "Incorrect Answer 2": f"{number + 2}",
        "Incorrect Answer 3": f"{number + 3}",
        "High-level domain": "Physics",
        "Subdomain": "Counting",
    }
    for number in range(24)
]

# Rows in the columns that the public data sets have, and the answer that the task should hold.
BENCHMARK_ROWS: dict[str, list[dict[str, Any]]] = {
    "aime-2024": [{"id": 60, "problem": "P24", "solution": "...", "answer": "204", "url": "u", "year": "2024"}],
    "aime-2025": [{"problem": "P25", "answer": "70", "id": "0"}],
    "amc": [{"id": 0, "problem": "Pamc", "answer": 142.0, "url": "u"}],
    "math-500": [
        {
            "problem": "Pmath",
            "solution": "\\boxed{\\frac{1}{2}}",
            "answer": "\\frac{1}{2}",
            "subject": "Algebra",
            "level": 2,
            "unique_id": "test/algebra/1.json",
        }
    ],
    "minerva": [{"question": "Pminerva", "answer": "4.5e33"}],
    "olympiad-bench": [
        {
            "id": 1606,
            "question": "Polympiad",
            "solution": ["..."],
            "final_answer": ["$2$", "$3$"],
            "context": "Let $x$ be a number.",
            "subfield": "Algebra",
            "is_multiple_answer": True,
        }
    ],
    "gpqa-diamond": GPQA_ROWS,
}
ANSWERS = {"aime": ["204", "70"], "amc": ["142"], "math": ["\\frac{1}{2}"], "olympiad": ["2, 3"]}


@pytest.fixture(autouse=True)
def cache_in_a_temporary_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write(path: Path, rows: list[dict[str, Any]]) -> DataSetConfig:
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return DataSetConfig(path=str(path))


def train_rows(path: Path, rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    config = MathConfig(train="dapo-math-17k", benchmarks=(), sources={"dapo-math-17k": write(path, rows)}, **settings)
    return load(config, seed=0).train.to_list()


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json"])
def test_dapo_is_read_without_its_repetitions_and_keeps_its_chat_lists(tmp_path: Path, suffix: str) -> None:
    rows = [dapo_row(number) for _ in range(5) for number in range(40)]
    read = train_rows(tmp_path / f"dapo{suffix}", rows)
    assert len(read) == 40
    assert sorted(row["answer"] for row in read) == sorted(str(number + 1) for number in range(40))
    for row in read:
        number = int(row["answer"]) - 1
        assert row["prompt"] == dapo_row(number)["prompt"]
        assert row["category"] == "math_dapo"
        assert row["answer_type"] == "expression"


def test_ids_and_their_order_are_those_of_the_content_however_the_file_is_shuffled(tmp_path: Path) -> None:
    rows = [dapo_row(number) for number in range(40)]
    shuffled = random.Random(1).sample(rows * 3, k=120)
    for number, row in enumerate(shuffled):
        shuffled[number] = {**row, "extra_info": {"index": "0"}}  # indices that collide must not matter
    assert train_rows(tmp_path / "a.parquet", rows) == train_rows(tmp_path / "b.jsonl", shuffled)


def test_a_problem_whose_copies_disagree_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [dapo_row(1), dapo_row(2), dapo_row(2, answer="4")]
    with caplog.at_level(logging.WARNING):
        assert [row["answer"] for row in train_rows(tmp_path / "dapo.parquet", rows)] == ["2"]
    assert "left out 1 problems" in caplog.text


def test_every_benchmark_is_read_from_the_columns_of_its_public_data_set(tmp_path: Path) -> None:
    sources = {name: write(tmp_path / f"{name}.parquet", rows) for name, rows in BENCHMARK_ROWS.items()}
    sources["dapo-math-17k"] = write(tmp_path / "dapo.parquet", [dapo_row(1)])
    task = load(MathConfig(sources=sources), seed=0)
    assert list(task.evaluation) == ["aime", "amc", "math", "minerva", "olympiad", "gpqa"]
    for name, answers in ANSWERS.items():
        assert sorted(task.evaluation[name]["answer"]) == sorted(answers)
    for data in [task.train, *task.evaluation.values()]:
        assert {"prompt", "id", "category", "answer", "answer_type"} == set(data.column_names)
        assert len(set(data["id"])) == len(data)
        assert data["id"][:] == sorted(data["id"])
    assert task.evaluation["math"]["category"][:] == ["Algebra"]
    assert task.evaluation["math"]["prompt"][0] == [
        {
            "role": "user",
            "content": "Pmath\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
        }
    ]
    assert task.evaluation["olympiad"]["prompt"][0][0]["content"].startswith("Let $x$ be a number.\n\nPolympiad\n\n")
    assert {row["id"].split("-")[1] for row in task.evaluation["aime"]} == {"2024", "2025"}


def test_the_options_of_gpqa_are_shuffled_by_the_question_alone(tmp_path: Path) -> None:
    def read(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        sources = {"gpqa": write(path, rows), "dapo-math-17k": write(tmp_path / "dapo.parquet", [dapo_row(1)])}
        return (
            load(MathConfig(benchmarks=("gpqa",), sources={**sources, "gpqa-diamond": sources["gpqa"]}), 0)
            .evaluation["gpqa"]
            .to_list()
        )

    rows = read(tmp_path / "a.parquet", GPQA_ROWS)
    assert rows == read(tmp_path / "b.jsonl", GPQA_ROWS[::-1])
    assert {row["answer"] for row in rows} == set("ABCD")
    for row in rows:
        content = row["prompt"][0]["content"]
        number = content.split("number ")[1].split("?")[0]
        assert f"\n{row['answer']}. It is {number}.\n" in content
        assert row["answer_type"] == "choice"
        assert row["category"] == "Physics"
        assert content.endswith("put the letter of your choice within \\boxed{}.")


def test_a_template_makes_plain_strings_for_models_without_a_chat_template(tmp_path: Path) -> None:
    rows = train_rows(
        tmp_path / "own.jsonl",
        [{"question": "1 + 1? ", "answer": 2}],
        template="Q: {prompt}\nA:",
        instruction="Box it.",
    )
    assert rows[0]["prompt"] == "Q: 1 + 1?\n\nBox it.\nA:"
    with pytest.raises(ValidationError, match=r"must contain \{prompt\}"):
        MathConfig(template="Question:")


def test_a_solution_serves_as_the_answer_where_there_is_no_other_and_must_be_boxed(tmp_path: Path) -> None:
    rows = train_rows(tmp_path / "a.jsonl", [{"problem": "P", "solution": "So $1+1=\\boxed{2}$."}])
    assert math_verified(
        [], ["\\boxed{2}", "\\boxed{1}"], answer=[rows[0]["answer"]] * 2, answer_type=["expression"] * 2
    ) == [
        1.0,
        0.0,
    ]
    with pytest.raises(InvalidInputError, match=r"must contain \\boxed"):
        train_rows(tmp_path / "b.jsonl", [{"problem": "P", "solution": "So it is 2."}])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "P", "label": "1"},
            "has the columns text, label; expected prompt and reward_model, or one of problem",
        ),
        ({**dapo_row(1), "reward_model": {"style": "rule"}}, "reward_model has: style"),
        ({**dapo_row(1), "prompt": "What is 1 + 1?"}, "expected prompt to be a chat list"),
        ({"problem": "P", "answer": None}, "a problem has no answer"),
        ({"problem": "P", "answer": " "}, "a problem has no answer"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        train_rows(tmp_path / "file.jsonl", [row])


def test_a_data_set_in_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"no problems in .*file.jsonl"):
        train_rows(tmp_path / "file.jsonl", [dapo_row(1), dapo_row(1, answer="3")])


def test_a_file_that_is_not_there_is_named_with_the_key_to_set(tmp_path: Path) -> None:
    config = MathConfig(sources={"dapo-math-17k": DataSetConfig(path=str(tmp_path / "none.parquet"))})
    with pytest.raises(InvalidInputError, match=r"cannot read .*none.parquet.*task.sources.dapo-math-17k.path"):
        load(config, seed=0)


def test_unknown_names_are_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(ValidationError, match="no benchmark 'aimee'; known are aime,"):
        MathConfig(benchmarks=("aimee",))
    with pytest.raises(ValidationError, match="no data set 'dapo'"):
        MathConfig(train="dapo")
    assert MathConfig(train="mine", sources={"mine": DataSetConfig(path="mine.jsonl")}).train == "mine"
    assert {name for names in BENCHMARKS.values() for name in names} <= SOURCES.keys()


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("so \\boxed{\\frac{1}{2}}.", "0.5", True),
        ("so \\boxed{0.5}", "\\frac{1}{2}", True),
        ("\\boxed{\\dfrac{2}{4}}", "\\frac{1}{2}", True),
        ("the solutions are \\boxed{\\{2, 1\\}}", "\\{1,2\\}", True),
        ("\\boxed{3, 2}", "2, 3", True),
        ("\\boxed{4.5 \\times 10^{33}}", "4.5 \\times 10^{33}", True),
        ("thus\nAnswer: 34", "34", True),
        (
            "It seems to be \\boxed{2}.\n\nBut wait: the second case gives another value. So the answer is \\boxed{3}",
            "3",
            True,
        ),
        ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}", True),
        ("\\boxed{\\frac{1}{3}}", "0.5", False),
        ("\\boxed{-1}", "1", False),
        (
            "It seems to be \\boxed{3}.\n\nBut wait: the second case gives another value. So the answer is \\boxed{2}",
            "3",
            False,
        ),
        ("\\boxed{x^2 + 1", "3", False),
        ("I do not know", "3", False),
        ("", "3", False),
        ("\\boxed{\\frac{}{}}", "3", False),
    ],
)
def test_an_answer_is_right_if_it_means_the_same(completion: str, answer: str, right: bool) -> None:
    assert is_right(completion, answer) is right


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("\\boxed{C}", True),
        ("\\boxed{\\text{(C)}}", True),
        ("A thought about B.\n\nAnswer: C", True),
        ("\\boxed{B}", False),
        ("", False),
    ],
)
def test_a_choice_is_a_letter(completion: str, right: bool) -> None:
    assert is_right(completion, "C", choice=True) is right


def test_an_answer_that_takes_too_long_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knapsack_rl.tasks.math._TIMEOUT", 1)
    assert not is_right("\\boxed{9^{9^{9^{9}}}}", "5")


def test_the_reward_takes_strings_and_chats_and_works_outside_the_main_thread() -> None:
    completions = ["\\boxed{2}", [{"role": "assistant", "content": "\\boxed{B}"}], ""]
    columns = {"answer": ["2", "B", "1"], "answer_type": ["expression", "choice", "expression"], "id": list("abc")}
    expected = [1.0, 1.0, 0.0]
    assert math_verified([], completions, **columns) == expected
    elsewhere: list[Any] = []
    thread = threading.Thread(target=lambda: elsewhere.append(math_verified([], completions, **columns)))
    thread.start()
    thread.join()
    assert elsewhere == [expected]
