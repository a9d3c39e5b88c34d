from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
from pydantic import TypeAdapter, ValidationError

from knapsack_rl.tasks import TaskConfig, load_task, supervised_pairs, tokenizer
from knapsack_rl.tasks.string_operations import ALPHABET, OPERATIONS, StringOperationsConfig, answered

CONFIG = StringOperationsConfig(train_problems=60, eval_problems=24)


@pytest.mark.parametrize(
    ("operations", "text", "answer"),
    [
        ("R", "abcd", "dcba"),
        ("L", "abcd", "bcda"),
        ("S", "abcd", "bacd"),
        ("X", "abcd", "dbca"),
        ("U", "abef", "bcfa"),
        ("RL", "bdac", "adbc"),
        ("LR", "bdac", "bcad"),
    ],
)
def test_operations_are_applied_from_the_left(operations: str, text: str, answer: str) -> None:
    assert answered(operations, text) == answer


def test_every_rearrangement_of_the_letters_can_be_reached() -> None:
    reached = {"abcd"}
    while len(more := reached | {answered(name, text) for text in reached for name in "RLSX"}) > len(reached):
        reached = more
    assert reached == {"".join(letters) for letters in permutations("abcd")}


def test_every_answer_is_that_of_the_prompts_operations() -> None:
    for problem in load_task(CONFIG, seed=3).train:
        *words, equals = problem["prompt"].split()
        operations = "".join(word for word in words if word in OPERATIONS)
        letters = "".join(word for word in words if word in ALPHABET)
        assert equals == "="
        assert problem["answer"].replace(" ", "") == answered(operations, letters)
        assert problem["category"][0] == str(len(operations))


def test_numbers_of_operations_are_equally_frequent_and_each_is_a_benchmark() -> None:
    task = load_task(CONFIG, seed=3)
    assert Counter(task.train["category"]) == {"1 operation": 20, "2 operations": 20, "3 operations": 20}
    assert {name: len(problems) for name, problems in task.evaluation.items()} == dict.fromkeys(
        ("1 operation", "2 operations", "3 operations"), 8
    )


def test_no_problem_comes_twice_in_training_benchmarks_or_warm_start() -> None:
    config = StringOperationsConfig(letters=3)  # the fewest different problems
    task = load_task(config, seed=5)
    problems = [
        *task.train["prompt"],
        *(prompt for held_out in task.evaluation.values() for prompt in held_out["prompt"]),
    ]
    assert len(set(problems)) == len(problems) == 1280
    assert not set(problems) & {prompt for prompt, _ in supervised_pairs(config, 5, 5000)}


def test_warm_start_is_right_and_holds_the_shares_that_were_asked_for() -> None:
    config = StringOperationsConfig(supervised_shares=(0.5, 0.0, 0.5))
    lengths: Counter[int] = Counter()
    for prompt, answer in supervised_pairs(config, 1, 4000):
        operations = "".join(word for word in prompt.split() if word in OPERATIONS)
        letters = "".join(word for word in prompt.split() if word in ALPHABET)
        assert answer.replace(" ", "") == answered(operations, letters)
        lengths[len(operations)] += 1
    assert lengths[2] == 0
    # Single operations have few different strings, so those kept out as problems cost them a few percent.
    assert lengths[1] / 4000 == pytest.approx(0.5, abs=0.05)


def test_same_seed_gives_the_same_problems_and_another_seed_others() -> None:
    first, again, other = (list(load_task(CONFIG, seed).train["prompt"]) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert supervised_pairs(CONFIG, 1, 50) == supervised_pairs(CONFIG, 1, 50)


def test_tokenizer_reads_prompts_and_answers_word_by_word() -> None:
    reads = tokenizer(CONFIG)
    for problem in load_task(CONFIG, seed=3).train:
        for text in (problem["prompt"], problem["answer"]):
            assert reads.decode(reads(text)["input_ids"]) == text
    assert len(reads) == 14


def test_reward_is_one_for_exactly_the_right_string() -> None:
    task = load_task(CONFIG, seed=3)
    right = task.train["answer"][0]
    wrong = [right[::-1] if right != right[::-1] else right[2:], right + " a", ""]
    completions = [right, *wrong]
    assert task.reward(prompts=[""] * 4, completions=completions, answer=[right] * 4) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"supervised_shares": (0.5, 0.4)}, "supervised_shares: expected numbers from 0 that sum to 1, got"),
        ({"supervised_shares": (1.5, -0.5)}, "supervised_shares: expected numbers from 0 that sum to 1, got"),
        (
            {"letters": 3, "train_problems": 2000},
            "train_problems \\+ eval_problems: expected at most 1620 with 3 letters",
        ),
        ({"letters": 2}, "letters"),
        ({"operations": 3}, "operations"),
    ],
)
def test_impossible_settings_are_refused_by_name(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StringOperationsConfig(**wrong)  # type: ignore[arg-type]


def test_recipes_call_it_string_operations() -> None:
    config = TypeAdapter(TaskConfig).validate_python({"kind": "string-operations", "letters": 5})
    assert config == StringOperationsConfig(letters=5)
