from __future__ import annotations

from collections.abc import Callable

import datasets
import pytest

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.tasks import Task, load_task
from knapsack_rl.tasks.chain_arithmetic import ChainArithmeticConfig, exact_match
from knapsack_rl.tasks.config import TaskSettings
from knapsack_rl.tasks.digit_lists import MultipleChoiceConfig, SortingConfig
from knapsack_rl.tasks.reasoning_gym import GeneratorConfig, ReasoningGymConfig
from knapsack_rl.tasks.string_operations import StringOperationsConfig
from knapsack_rl.tasks.wrong_answers import with_wrong_answers


def gcd(wrong_answers: float) -> ReasoningGymConfig:
    pytest.importorskip("reasoning_gym", reason="needs the extra 'reasoning-gym'")
    source = GeneratorConfig(name="gcd")
    return ReasoningGymConfig(sources=(source,), train_problems=200, eval_problems=20, wrong_answers=wrong_answers)


TASKS: dict[str, Callable[[float], TaskSettings]] = {
    "chain-arithmetic": lambda share: ChainArithmeticConfig(train_problems=400, eval_problems=20, wrong_answers=share),
    "string-operations": lambda share: StringOperationsConfig(
        train_problems=400, eval_problems=20, wrong_answers=share
    ),
    "sorting": lambda share: SortingConfig(train_problems=400, eval_problems=20, wrong_answers=share),
    "multiple-choice": lambda share: MultipleChoiceConfig(train_problems=400, eval_problems=20, wrong_answers=share),
    "reasoning-gym": gcd,
}


@pytest.mark.parametrize("name", TASKS)
def test_a_share_of_the_right_answers_fails_in_training_and_none_of_the_held_out(name: str) -> None:
    right, wrong = load_task(TASKS[name](0.0), 3), load_task(TASKS[name](0.25), 3)  # type: ignore[arg-type]
    assert wrong.train["id"] == right.train["id"]
    columns = {column: list(wrong.train[column]) for column in wrong.train.column_names if column != "prompt"}
    rewards = wrong.reward(prompts=list(wrong.train["prompt"]), completions=list(right.train["answer"]), **columns)
    assert 1 - sum(rewards) / len(rewards) == pytest.approx(0.25, abs=0.1)  # type: ignore[arg-type]
    for benchmark, problems in wrong.evaluation.items():
        assert problems.to_dict() == right.evaluation[benchmark].to_dict()


def test_the_seed_and_the_problem_decide_which_keys_are_wrong() -> None:
    def wrong(problems: int, seed: int) -> dict[str, bool]:
        numbers = [str(number) for number in range(problems)]
        data = datasets.Dataset.from_dict({"id": numbers, "prompt": numbers, "category": numbers, "answer": numbers})
        changed = with_wrong_answers(Task(data, {}, exact_match), 0.3, seed).train
        return {row["id"]: row["answer"] != row["id"] for row in changed}

    few = wrong(100, 0)
    assert few == wrong(100, 0) == {name: is_wrong for name, is_wrong in wrong(200, 0).items() if name in few}
    assert few != wrong(100, 1)


def test_keys_come_from_problems_of_the_same_category() -> None:
    names = [str(number) for number in range(60)]
    kinds = [("odd", "even")[number % 2] for number in range(60)]
    answers = [f"{kind} {number}" for kind, number in zip(kinds, names, strict=True)]
    data = datasets.Dataset.from_dict({"id": names, "prompt": names, "category": kinds, "answer": answers})
    changed = with_wrong_answers(Task(data, {}, exact_match), 0.5, 0).train
    assert all(row["answer"].startswith(row["category"]) for row in changed)
    assert 15 < sum(row["answer"] != answer for row, answer in zip(changed, answers, strict=True)) < 45


def test_where_all_answers_are_the_same_none_can_be_wrong() -> None:
    data = datasets.Dataset.from_dict(
        {"id": ["a", "b"], "prompt": ["a", "b"], "category": ["", ""], "answer": ["7", "7"]}
    )
    with pytest.raises(InvalidInputError, match=r"task\.wrong_answers: all problems have the answer '7'"):
        with_wrong_answers(Task(data, {}, exact_match), 0.9, 0)
