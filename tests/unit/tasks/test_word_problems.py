"""Small files in the sets' public schemas, made here."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
from pydantic import ValidationError

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.tasks import load_task, supervised_pairs
from knapsack_rl.tasks.math import DataSetConfig
from knapsack_rl.tasks.word_problems import (
    FILES,
    SOURCES,
    WordProblemsConfig,
    expression_verified,
    is_right,
    load,
    number_verified,
)

ASDIV = """<?xml version="1.0" encoding="UTF-8" ?>
<Machine-Reading-Corpus-File><ProblemSet>
<Problem ID="1" Grade="2" Source="s"><Body>Seven red apples and two green apples are in the basket.</Body>
 <Question>How many apples are in the basket?</Question><Solution-Type>Addition</Solution-Type>
 <Answer>9 (apples)</Answer><Formula>7+2=9</Formula></Problem>
<Problem ID="2" Grade="5" Source="s"><Body>Ann has 47 cookies for 6 bags.</Body>
 <Question>How many are left?</Question><Solution-Type>Surplus</Solution-Type>
 <Answer>5 (cookies)</Answer><Formula>47/6=7 r5</Formula></Problem>
<Problem ID="3" Grade="3" Source="s"><Body>Rug A is larger than rug B.</Body>
 <Question>Which one is smaller?</Question><Solution-Type>Comparison</Solution-Type>
 <Answer>Rug B</Answer><Formula>8&lt;9</Formula></Problem>
</ProblemSet></Machine-Reading-Corpus-File>"""
SVAMP = [
    {
        "ID": "chal-1",
        "Body": "Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on each pack",
        "Question": "How much do you have to pay to buy each pack?",
        "Equation": "( 76.0 - 25.0 )",
        "Answer": 51.0,
        "Type": "Subtraction",
    },
    {
        "ID": "chal-2",
        "Body": "Seven red apples and two green apples are in the basket .",  # ASDiv's, set otherwise
        "Question": "How many apples are in the basket ?",
        "Equation": "( 7.0 + 2.0 )",
        "Answer": 9.0,
        "Type": "Addition",
    },
]
ADD_SUB = [
    {
        "iIndex": 1,
        "lEquations": ["X = 70 - 27"],
        "lSolutions": ["43"],
        "sQuestion": "Joan found 70 shells . How many ?",
    },
    {"iIndex": 2, "lEquations": ["X - 9 = 4"], "lSolutions": ["13"], "sQuestion": "He spent 9 and has 4 . Before ?"},
]
MULTI_ARITH = [
    {
        "iIndex": 0,
        "lAlignments": [80, 120],
        "lEquations": ["X=((32.0+42.0)-35.0)"],
        "lSolutions": [39.0],
        "sQuestion": " They had 32 and 42 pieces and ate 35. How many are left? ",
    }
]
GSM8K = [
    {
        "question": "Weng earns $12 an hour. How much in 50 minutes?",
        "answer": "He earns 12/60 = $<<12/60=0.2>>0.2 a minute.\nThat is <<0.2*50=10>>10.\n#### 10",
    },
    {"question": "A car costs $1,000 and a bike 200. Together?", "answer": "<<1000+200=1200>>1200\n#### 1,200"},
]
CALC_X = [
    {
        "id": "m1",
        "question": "Tom has 3 boxes of 1.5 kg. How heavy are they?",
        "chain": "<gadget>3*1.5</gadget>",
        "result": "4.5",
        "result_float": 4.5,
        "equation": "x=3*1.5",
        "expression": "3*1.5",
    }
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("gsm8k", "svamp", "asdiv", "mawps"):
        (tmp_path / name).mkdir()
    (tmp_path / "asdiv/ASDiv.xml").write_text(ASDIV)
    (tmp_path / "svamp/SVAMP.json").write_text(json.dumps(SVAMP))
    (tmp_path / "mawps/AddSub.json").write_text(json.dumps(ADD_SUB))
    (tmp_path / "mawps/MultiArith.json").write_text(json.dumps(MULTI_ARITH))
    for name in ("train", "test"):
        (tmp_path / f"gsm8k/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GSM8K))
    return tmp_path


def config(folder: Path, **changes: Any) -> WordProblemsConfig:
    return WordProblemsConfig(folder=str(folder), **{"held_out": 0.0, "worked": 0.0, **changes})


def by_prompt(data: datasets.Dataset) -> dict[str, dict[str, Any]]:
    return {row["prompt"]: row for row in data}


def test_every_set_is_read_in_the_schema_of_its_own_repository(folder: Path) -> None:
    rows = by_prompt(load(config(folder, train=("gsm8k", "svamp", "asdiv", "mawps")), 0).train)
    seen = {
        prompt.removeprefix("Question: ").removesuffix("\nAnswer:"): (
            row["source"],
            row["type"],
            row["grade"],
            row["operations"],
            row["answer"],
        )
        for prompt, row in rows.items()
    }
    pack = SVAMP[0]
    assert seen == {
        GSM8K[0]["question"]: ("gsm8k", "gsm8k", "unknown", "unknown", "10"),
        GSM8K[1]["question"]: ("gsm8k", "gsm8k", "unknown", "unknown", "1200"),
        f"{pack['Body']}. {pack['Question']}": ("svamp", "Subtraction", "unknown", "1", "51"),
        "Seven red apples and two green apples are in the basket. How many apples are in the basket?": (
            "svamp",
            "Addition",
            "unknown",
            "1",
            "9",
        ),
        "Ann has 47 cookies for 6 bags. How many are left?": ("asdiv", "Surplus", "5", "unknown", "5"),
        "Joan found 70 shells. How many?": ("mawps", "AddSub", "unknown", "1", "43"),
        "He spent 9 and has 4. Before?": ("mawps", "AddSub", "unknown", "unknown", "13"),
        "They had 32 and 42 pieces and ate 35. How many are left?": ("mawps", "MultiArith", "unknown", "2", "39"),
    }


def test_the_schemas_of_the_hub_are_read_from_files_too(tmp_path: Path) -> None:
    rows = {
        "asdiv": [
            {
                "body": "Ann has 47 cookies.",
                "question": "She eats 2. And now?",
                "solution_type": "Subtraction",
                "answer": "45 (cookies)",
                "formula": "47-2=45",
            }
        ],
        "svamp": [{**SVAMP[0], "Answer": "51.0", "question_concat": "..."}],
        "mawps": CALC_X,
    }
    for name, content in rows.items():
        datasets.Dataset.from_list(content).to_parquet(tmp_path / f"{name}.parquet")
    sources = {name: DataSetConfig(path=str(tmp_path / f"{name}.parquet")) for name in rows}
    found = load(WordProblemsConfig(sources=sources, held_out=0.0, worked=0.0), 0).train
    assert {(row["source"], row["type"], row["operations"], row["answer"]) for row in found} == {
        ("asdiv", "Subtraction", "1", "45"),
        ("svamp", "Subtraction", "1", "51"),
        ("mawps", "mawps", "1", "4.5"),
    }


def test_a_question_that_several_sets_have_is_taken_once_from_the_first(folder: Path) -> None:
    for order in (("svamp", "asdiv"), ("asdiv", "svamp")):
        rows = [row for row in load(config(folder, train=order), 0).train if "apples" in row["prompt"]]
        assert [row["source"] for row in rows] == [order[0]]


def test_copies_that_disagree_about_the_answer_are_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "svamp/SVAMP.json").write_text(json.dumps([SVAMP[0], {**SVAMP[1], "Answer": 8.0}]))
    with caplog.at_level(logging.WARNING):
        rows = load(config(folder, train=("svamp", "asdiv")), 0).train
    assert not any("apples" in prompt for prompt in rows["prompt"])
    assert "left out 1 problems whose copies have different answers" in caplog.text


def many(folder: Path, count: int) -> None:
    rows = [
        {**SVAMP[0], "Body": f"Pack {number} costs {number + 30} dollars", "Equation": f"( {number + 30}.0 - 25.0 )"}
        for number in range(count)
    ]
    for number, row in enumerate(rows):
        row["Answer"] = float(number + 5)
    (folder / "svamp/SVAMP.json").write_text(json.dumps(rows))


def test_a_hash_of_the_question_splits_and_nothing_else_does(folder: Path) -> None:
    many(folder, 400)
    shares = {"train": ("svamp",), "held_out": 0.2, "worked": 0.3}
    task = load(config(folder, **shares), 0)
    train, held_out = set(task.train["prompt"]), set(task.evaluation["held-out"]["prompt"])
    worked = {prompt for prompt, _ in supervised_pairs(config(folder, **shares), 0, 1000)}
    assert len(train | held_out | worked) == len(train) + len(held_out) + len(worked) == 400
    assert len(held_out) == pytest.approx(80, abs=25)
    assert len(worked) == pytest.approx(120, abs=30)

    rows = json.loads((folder / "svamp/SVAMP.json").read_text())[::-1]  # another order, and a file the longer
    (folder / "svamp/SVAMP.json").write_text(json.dumps(rows))
    again = load(config(folder, **{**shares, "train": ("asdiv", "svamp")}), 1)
    assert held_out <= set(again.evaluation["held-out"]["prompt"])
    assert train <= set(again.train["prompt"])


def test_fewer_problems_to_train_on_are_the_same_ones_in_every_run(folder: Path) -> None:
    many(folder, 100)
    split = {"train": ("svamp",), "held_out": 0.2}
    whole, some, others = (load(config(folder, **split, train_problems=n), n or 0) for n in (None, 20, 30))
    assert [len(task.train) for task in (some, others)] == [20, 30]
    assert set(some.train["id"]) < set(others.train["id"]) < set(whole.train["id"])
    assert some.evaluation["held-out"]["id"] == whole.evaluation["held-out"]["id"]
    with pytest.raises(InvalidInputError, match=r"task.train_problems: expected at most the \d+ problems .* got 100\."):
        load(config(folder, **split, train_problems=100), 0)


def test_a_benchmark_has_no_question_that_the_training_sets_have(folder: Path) -> None:
    (folder / "gsm8k/test.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in (GSM8K[0], {**GSM8K[1], "question": "Another one?"}))
    )
    task = load(config(folder, train=("gsm8k",), benchmarks=("gsm8k-test",)), 0)
    assert task.evaluation["gsm8k-test"]["prompt"] == ["Question: Another one?\nAnswer:"]


def test_long_questions_are_left_out_where_the_recipe_says_so(folder: Path) -> None:
    rows = load(config(folder, train=("svamp", "mawps"), longest_question=8), 0).train
    assert sorted(rows["prompt"]) == [
        "Question: He spent 9 and has 4. Before?\nAnswer:",
        "Question: Joan found 70 shells. How many?\nAnswer:",
    ]


def test_worked_examples_are_formulas_with_their_results_in_shuffled_passes(folder: Path) -> None:
    everything = config(folder, train=("svamp", "asdiv", "mawps"), worked=0.999999)
    pairs = supervised_pairs(everything, 0, 8)
    answers = {" 76-25=51", " 7+2=9", " 70-27=43", " (32+42)-35=39"}  # no remainder, no equation to be solved
    assert {answer for _, answer in pairs[:4]} == {answer for _, answer in pairs[4:]} == answers
    assert pairs == supervised_pairs(everything, 0, 8) != supervised_pairs(everything, 1, 8)
    assert expression_verified([], [answer for _, answer in pairs], answer=[a.split("=")[1] for _, a in pairs]) == 8 * [
        1
    ]


def test_worked_examples_for_numbers_are_the_sets_own_solutions(folder: Path) -> None:
    pairs = supervised_pairs(config(folder, train=("gsm8k",), worked=0.999999, verifier="number"), 0, 2)
    answers = [" He earns 12/60 = $0.2 a minute.\nThat is 10.\n#### 10", " 1200\n#### 1,200"]
    assert sorted(answer for _, answer in pairs) == sorted(answers)
    with pytest.raises(InvalidInputError, match=r"task\.worked"):
        supervised_pairs(config(folder, train=("gsm8k",), worked=0.999999), 0, 2)


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        (" 84/12=", "7", True),
        (" 84/12=63", "7", True),  # the formula is right, the sum is not: that is what is tested
        (" 7=", "7", True),
        (" 1/3 =", "1/3", True),
        (" 0.333333333333=", "1/3", True),
        (" 0.59=", "0.59", True),
        (" 12/84=", "7", False),
        (" 84/12", "7", False),  # cut off, perhaps before "-3"
        ("84/12 apples=", "7", False),
        ("= 84/12", "7", False),
        ("", "7", False),
    ],
)
def test_an_expression_is_judged_by_what_stands_before_the_first_equals_sign(
    completion: str, answer: str, right: bool
) -> None:
    assert is_right(completion, answer) == right


def test_a_number_is_judged_as_in_the_task_math() -> None:
    pytest.importorskip("math_verify")
    completions = [" 84/12=7", " 84/12=63", "So 3 + 4 = 7.\n#### 7", "#### 8", "\\boxed{0.5}"]
    assert number_verified([], completions, answer=["7", "7", "7", "7", "1/2"]) == [1.0, 0.0, 1.0, 0.0, 1.0]


def test_all_columns_but_the_answer_may_be_features(folder: Path) -> None:
    row = load_task(config(folder), 0).train[0]
    assert row.keys() == {"prompt", "id", "category", "source", "type", "grade", "operations", "answer"}
    assert all(isinstance(value, str) for value in row.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ("gsm9k",)}, "no data set 'gsm9k'"),
        ({"held_out": 0.5, "worked": 0.5}, "less than 1"),
        ({"template": "Solve this:"}, "must contain {prompt}"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(folder, **changes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("svamp/SVAMP.json", '[{"text": "?", "label": 3}]', "svamp: found the columns text, label"),
        ("asdiv/ASDiv.xml", "<html></html>", "no element Problem"),
        ("asdiv/ASDiv.xml", "not found", "asdiv: cannot read"),
        ("mawps/AddSub.json", "[", "mawps: cannot read"),
    ],
)
def test_a_file_that_is_something_else_is_refused(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        load(config(folder), 0)


def test_a_folder_that_lacks_a_set_says_where_its_file_belongs(folder: Path) -> None:
    (folder / "svamp/SVAMP.json").unlink()
    with pytest.raises(InvalidInputError, match=r"no .*svamp/SVAMP\.json\..*task\.sources\.svamp\.path"):
        load(config(folder), 0)
    (folder / "mawps/AddSub.json").unlink()
    (folder / "mawps/MultiArith.json").unlink()
    with pytest.raises(InvalidInputError, match="mawps has no file"):
        load(config(folder, train=("mawps",)), 0)


def test_every_name_has_a_place_on_the_hub_and_in_a_folder() -> None:
    assert SOURCES.keys() == FILES.keys()
