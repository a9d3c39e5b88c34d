from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="the report extra is not installed")
pytest.importorskip("scipy", reason="the report extra is not installed")

from knapsack_rl.experiments.audit import answers as answers_module
from knapsack_rl.experiments.audit.accounting import Accounts, Log
from knapsack_rl.experiments.audit.answers import final_answer, same_answer
from knapsack_rl.experiments.audit.graders import changed_categories, suspicious_prompts, unsolved_categories
from knapsack_rl.experiments.audit.rows import Batch
from knapsack_rl.experiments.audit.values import Encoded


def encoded(texts: list[str | None]) -> Encoded:
    values = list(dict.fromkeys(text for text in texts if text is not None))
    return Encoded(values, np.array([values.index(text) if text is not None else -1 for text in texts], dtype=np.int64))


def log_of(rows: list[dict[str, Any]], size: int = 1000) -> Log:
    """Rows of prompt, reward and whatever columns of text there are; `size` rows at a time."""
    accounts = Accounts(0.0)
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        texts = {
            name: encoded([row.get(name) for row in some])
            for name in ("category", "completion", "answer", "reference")
            if name in rows[0]
        }
        prompt = encoded([row["prompt"] for row in some])
        reward = np.array([float(row["reward"]) for row in some])
        step = np.array([row.get("step", 1) for row in some])
        accounts.add(Batch(step, prompt, prompt, reward, reward, relogged=True, **texts))
    return accounts.log()


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"so \boxed{3} or rather \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("<think>9</think><answer> 42 </answer>", "42"),
        ("adds up\n#### 1,200", "1,200"),
        ("  7  ", "7"),
        ("A long explanation that comes to no end. " * 4, None),
        ("two\nlines", None),
        (r"\boxed{never closed", None),
        (r"\boxed{}", None),
        ("", None),
    ],
)
def test_the_answer_is_found_where_it_was_asked_for(completion: str, answer: str | None) -> None:
    assert final_answer(completion) == answer


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("12.", "12", True),
        (" $12$ ", r"\boxed{12}", True),
        (r"\text{Yes}", "Yes", True),
        (r"x \, +  1 ", "x + 1", True),
        ("two\nwords .", "two words", True),
        ("12", "so 10 + 2 gives #### 12", True),
        ("12", "12.0", False),
        ("1 2", "12", False),
        (r"1\,2", "12", False),
        ("now here", "nowhere", False),
        ("Yes", "yes", False),
        ("0.5", r"\frac{1}{2}", False),
        ("", "", False),
    ],
)
def test_answers_are_the_same_only_if_nothing_but_their_wrapping_differs(
    answer: str, reference: str, same: bool
) -> None:
    assert same_answer(answer, reference) is same


def categories(rates: dict[str, float], prompts: int = 20, size: int = 10) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{name}-{index}", "category": name, "reward": (index * size + g) % 100 < 100 * rate}
        for name, rate in rates.items()
        for index in range(prompts)
        for g in range(size)
    ]


def test_a_category_without_a_success_among_others_that_have_some_is_found_with_its_chance() -> None:
    found = unsolved_categories(log_of(categories({"a": 0.5, "b": 0.4, "c": 0.6, "d": 0.5, "broken": 0.0})))
    assert found["category"].tolist() == ["broken"]
    assert found["rollouts"].tolist() == [200]
    assert found["chance"].iloc[0] < 1e-6


def test_among_hard_categories_no_success_is_less_of_a_surprise() -> None:
    easy = unsolved_categories(log_of(categories({"a": 0.5, "b": 0.4, "c": 0.6, "x": 0.0})))
    hard = unsolved_categories(log_of(categories({"a": 0.01, "b": 0.3, "c": 0.02, "x": 0.0})))
    assert easy["chance"].iloc[0] < hard["chance"].iloc[0]
    assert hard["chance"].iloc[0] > 0.001


def test_with_too_few_other_categories_no_chance_is_given() -> None:
    found = unsolved_categories(log_of(categories({"a": 0.5, "x": 0.0})))
    assert found["category"].tolist() == ["x"]
    assert np.isnan(found["chance"].iloc[0])


def test_a_category_with_few_prompts_or_rollouts_is_not_mentioned() -> None:
    rows = categories({"a": 0.5}) + categories({"few": 0.0}, prompts=4) + categories({"thin": 0.0}, size=1)
    assert unsolved_categories(log_of(rows)).empty


def prompt_rows(prompt: str, texts: list[tuple[str, int]], **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "completion": text, "reward": reward} | more for text, reward in texts]


@pytest.mark.parametrize("size", [1000, 3])
def test_each_kind_of_evidence_is_found_and_nothing_else(size: int) -> None:
    rows = [
        *prompt_rows("agreeing", [(r"\boxed{5}", 0)] * 7 + [(r"\boxed{6}", 0)] * 3, reference="8"),
        *prompt_rows("scattered", [(rf"\boxed{{{i}}}", 0) for i in range(10)], reference="77"),
        *prompt_rows("matching", [(r"\boxed{9.}", 0)] * 2 + [(f"no idea {i}", 0) for i in range(8)], reference="9"),
        *prompt_rows("both ways", [("the same text", 1), ("the same text", 0), ("another", 0)], reference="x"),
        *prompt_rows("solved", [(r"\boxed{1}", 1)] * 9 + [(r"\boxed{2}", 0)], reference="1"),
    ]
    log = log_of(rows, size)
    found = suspicious_prompts(log)
    by_name = {log.texts[row["prompt"]]: row for row in found.to_dict("records")}
    assert set(by_name) == {"agreeing", "matching", "both ways"}
    assert by_name["agreeing"]["same answer"] == pytest.approx(0.7)
    assert by_name["agreeing"]["answer"] == "5"
    assert by_name["matching"]["reference answer"] == 2
    assert by_name["both ways"]["scored both ways"] == 2
    assert log.texts[found["prompt"].iloc[0]] == "matching"


def test_an_answer_column_is_used_instead_of_looking_in_completions() -> None:
    rows = prompt_rows("p", [("long " * 40, 0)] * 9, answer="4", reference="4")
    found = suspicious_prompts(log_of(rows))
    assert found["reference answer"].tolist() == [9]


def test_without_completions_nothing_is_suspected() -> None:
    assert suspicious_prompts(log_of([{"prompt": "p", "reward": 0}] * 20)).empty


def test_repeated_steps_do_not_make_answers_agree_more() -> None:
    texts = [(r"\boxed{5}", 0)] * 4 + [(rf"\boxed{{{i}}}", 0) for i in range(6, 10)]
    rows = [row | {"step": step} for step in (1, 2, 3) for row in prompt_rows("p", texts)]
    log = log_of(rows)
    assert log.repeated_steps == [2, 3]
    assert suspicious_prompts(log)["same answer"].tolist() == [0.5]


def test_what_is_kept_of_completions_is_bounded_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "_MOST_PAIRS", 50)
    rows = [row for index in range(40) for row in prompt_rows(f"p{index}", [(f"{index} {i}", 0) for i in range(8)])]
    rows += prompt_rows("agreeing", [(r"\boxed{5}", 0)] * 10)
    log = log_of(rows, 64)
    assert log.answers.lossy
    assert [log.texts[prompt] for prompt in suspicious_prompts(log)["prompt"]] == ["agreeing"]


def test_instructions_that_all_prompts_begin_with_are_not_shown() -> None:
    instructions = "Solve the following problem and put the final answer in a box.\n\n"
    log = log_of([{"prompt": f"{instructions}{question}", "reward": 1} for question in ("2 + 2?", "2 + 3?")])
    assert sorted(log.texts) == ["2 + 2?", "2 + 3?"]


def half_way(rate: float) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    return [
        {
            "prompt": f"{name}-{step}-{index}",
            "category": name,
            "step": step,
            "reward": generator.random() < (rate if name == "b" and step >= 20 else 0.4),
        }
        for step in range(40)
        for name in "abc"
        for index in range(4)
        for _ in range(8)
    ]


@pytest.mark.parametrize(("rate", "found"), [(0.0, "stopped succeeding"), (1.0, "stopped failing")])
def test_a_category_whose_grader_broke_half_way_is_found_with_its_step(rate: float, found: str) -> None:
    [row] = changed_categories(log_of(half_way(rate))).itertuples()
    assert (row.category, row.found) == ("b", found)
    assert 20 <= row.step <= 25


def test_no_category_is_said_to_have_changed_where_none_did() -> None:
    assert changed_categories(log_of(half_way(0.4))).empty
    assert changed_categories(log_of([{"prompt": "p", "reward": 0}] * 20)).empty
