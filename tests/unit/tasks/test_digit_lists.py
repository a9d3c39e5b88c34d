from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from pydantic import TypeAdapter, ValidationError

from knapsack_rl.tasks import TaskConfig, load_task, supervised_pairs, tokenizer
from knapsack_rl.tasks.digit_lists import MultipleChoiceConfig, SortingConfig

SORTING = SortingConfig(train_problems=60, eval_problems=24)
CHOICES = MultipleChoiceConfig(train_problems=60, eval_problems=24, choices=5)
BOTH = pytest.mark.parametrize("config", [SORTING, CHOICES], ids=lambda config: config.kind)


def digits_of(prompt: str) -> list[int]:
    *words, equals = prompt.split()
    assert equals == "="
    return [int(word) for word in words]


def pairs_of(config: SortingConfig | MultipleChoiceConfig) -> list[tuple[str, str]]:
    """Problems to train on, held-out ones and worked examples."""
    task = load_task(config, seed=3)
    problems = [*task.train, *(problem for held_out in task.evaluation.values() for problem in held_out)]
    return [*((problem["prompt"], problem["answer"]) for problem in problems), *supervised_pairs(config, 3, 500)]


def test_sorting_asks_for_the_digits_in_ascending_order() -> None:
    for prompt, answer in pairs_of(SORTING):
        assert answer == " ".join(sorted(prompt.removesuffix(" =").split()))


@pytest.mark.parametrize("choices", [2, 5, 10])
def test_multiple_choice_asks_for_the_remainder_of_the_sum(choices: int) -> None:
    config = MultipleChoiceConfig.model_validate({"train_problems": 60, "eval_problems": 24, "choices": choices})
    for prompt, answer in pairs_of(config):
        left = sum(digits_of(prompt))
        while left >= choices:
            left -= choices
        assert answer == str(left)


@pytest.mark.parametrize("choices", [2, 5, 10])
def test_all_but_one_digit_say_nothing_about_the_choice(choices: int) -> None:
    config = MultipleChoiceConfig.model_validate({"choices": choices})
    for hidden, first, second in product(range(3), range(10), range(10)):
        lists = [[first, second] for _ in range(10)]
        for digit, digits in enumerate(lists):
            digits.insert(hidden, digit)
        answers = Counter(config.answer(digits)[0] for digits in lists)
        assert answers == dict.fromkeys(range(choices), 10 // choices)


@BOTH
def test_lengths_are_equally_frequent_and_each_is_a_benchmark(config: SortingConfig | MultipleChoiceConfig) -> None:
    task = load_task(config, seed=3)
    lengths = ["3 digits", "4 digits", "5 digits", "6 digits"]
    assert Counter(task.train["category"]) == dict.fromkeys(lengths, 15)
    assert {name: len(problems) for name, problems in task.evaluation.items()} == dict.fromkeys(lengths, 6)
    for problem in task.train:
        assert problem["category"] == f"{len(digits_of(problem['prompt']))} digits"


@BOTH
def test_no_problem_comes_twice_in_training_benchmarks_or_warm_start(
    config: SortingConfig | MultipleChoiceConfig,
) -> None:
    scarce = config.model_copy(update={"train_problems": 160, "eval_problems": 40, "shortest": 2})
    task = load_task(scarce, seed=5)
    problems = [
        *task.train["prompt"],
        *(prompt for held_out in task.evaluation.values() for prompt in held_out["prompt"]),
    ]
    assert len(set(problems)) == len(problems) == 200  # of two digits half of the hundred there are
    assert not set(problems) & {prompt for prompt, _ in supervised_pairs(scarce, 5, 5000)}


def test_warm_start_holds_the_shares_that_were_asked_for() -> None:
    config = SortingConfig(supervised_shares=(0.5, 0.0, 0.3, 0.2), train_problems=4, eval_problems=4)
    lengths = Counter(len(digits_of(prompt)) for prompt, _ in supervised_pairs(config, 1, 4000))
    assert set(lengths) == {3, 5, 6}
    for length, share in ((3, 0.5), (5, 0.3), (6, 0.2)):
        assert lengths[length] / 4000 == pytest.approx(share, abs=0.03)


@BOTH
def test_same_seed_gives_the_same_problems_and_another_seed_others(
    config: SortingConfig | MultipleChoiceConfig,
) -> None:
    first, again, other = (list(load_task(config, seed).train["prompt"]) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert supervised_pairs(config, 1, 50) == supervised_pairs(config, 1, 50)


@BOTH
def test_tokenizer_reads_prompts_and_answers_word_by_word(config: SortingConfig | MultipleChoiceConfig) -> None:
    reads = tokenizer(config)
    for text in (text for pair in pairs_of(config) for text in pair):
        assert reads.decode(reads(text)["input_ids"]) == text
    assert len(reads) == 13


@BOTH
def test_reward_is_one_for_exactly_the_right_answer(config: SortingConfig | MultipleChoiceConfig) -> None:
    task = load_task(config, seed=3)
    right = task.train["answer"][0]
    completions = [right, right + " 9", right[:-1], ""]
    assert task.reward(prompts=[""] * 4, completions=completions, answer=[right] * 4) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"supervised_shares": (0.5, 0.4)}, "supervised_shares: expected numbers from 0 that sum to 1, got"),
        ({"supervised_shares": (1.5, -0.5)}, "supervised_shares: expected numbers from 0 that sum to 1, got"),
        ({"shortest": 2}, "train_problems \\+ eval_problems: expected at most 200 with 4 lengths from 2 digits"),
        ({"shortest": 1}, "shortest"),
        ({"letters": 3}, "letters"),
    ],
)
def test_impossible_settings_are_refused_by_name(wrong: dict[str, object], message: str) -> None:
    for config in (SortingConfig, MultipleChoiceConfig):
        with pytest.raises(ValidationError, match=message):
            config.model_validate(wrong)


def test_choices_that_would_not_be_equally_often_right_are_refused() -> None:
    with pytest.raises(ValidationError, match="choices"):
        MultipleChoiceConfig.model_validate({"choices": 4})


def test_recipes_call_them_sorting_and_multiple_choice() -> None:
    read = TypeAdapter(TaskConfig).validate_python
    assert read({"kind": "sorting", "shortest": 4}) == SortingConfig(shortest=4)
    assert read({"kind": "multiple-choice", "choices": 2}) == MultipleChoiceConfig(choices=2)
