from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.tasks import TaskConfig, load_task, supervised_pairs, tokenizer
from knapsack_rl.tasks.chain_arithmetic import RIGHT_SHARES, ChainArithmeticConfig, exact_match, rules
from knapsack_rl.tasks.math import MathConfig

CONFIG = ChainArithmeticConfig()
SMALL = ChainArithmeticConfig(train_problems=60, eval_problems=20)


def solved(prompt: str, seed: int) -> str:
    """The answer by the definition of the task, from the prompt's text alone."""
    start, *chain, equals = prompt.split()
    assert equals == "="
    known = {rule.name: rule for rule in rules(seed)}
    total, totals = int(start), []
    for operation in chain:
        rule, operand = known[operation[0]], int(operation[1:])
        total = (rule.multiplier * total + rule.weight * operand + rule.constant) % 10
        totals.append(str(total))
    return " ".join(totals)


@pytest.mark.parametrize("operations", [1, 3, 5])
def test_answers_are_all_running_totals_of_the_true_rule(operations: int) -> None:
    task = load_task(SMALL.model_copy(update={"operations": operations}), seed=5)
    for problem in [*task.train, *task.evaluation["held-out"]]:
        assert problem["answer"] == solved(problem["prompt"], seed=5)
        assert len(problem["answer"].split()) == operations


def test_no_problem_occurs_twice_and_ids_are_unique() -> None:
    task = load_task(CONFIG, seed=0)
    train, held_out = list(task.train["prompt"]), list(task.evaluation["held-out"]["prompt"])
    assert (len(train), len(held_out)) == (1024, 256)
    assert len({*train, *held_out}) == 1280
    assert len({*task.train["id"], *task.evaluation["held-out"]["id"]}) == 1280


def test_training_and_held_out_problems_cover_every_rule_evenly() -> None:
    task = load_task(CONFIG, seed=0)
    for problems, each in ((task.train, 64), (task.evaluation["held-out"], 16)):
        _, counts = np.unique(problems["category"], return_counts=True)
        assert counts.tolist() == [each] * 16


def test_the_same_seed_gives_the_same_task_and_another_seed_another() -> None:
    assert load_task(SMALL, seed=3).train.to_list() == load_task(SMALL, seed=3).train.to_list()
    assert load_task(SMALL, seed=3).train.to_list() != load_task(SMALL, seed=4).train.to_list()
    assert supervised_pairs(SMALL, 3, 50) == supervised_pairs(SMALL, 3, 50)
    assert supervised_pairs(SMALL, 3, 50) != supervised_pairs(SMALL, 4, 50)
    assert rules(3) != rules(4)


def test_more_supervised_pairs_begin_with_the_same_pairs() -> None:
    assert supervised_pairs(SMALL, 0, 9000)[:70] == supervised_pairs(SMALL, 0, 70)


def test_the_warm_start_sees_no_problem_of_the_task() -> None:
    task = load_task(CONFIG, seed=1)
    problems = {*task.train["prompt"], *task.evaluation["held-out"]["prompt"]}
    assert not problems & {prompt for prompt, _ in supervised_pairs(CONFIG, 1, 30_000)}


def test_each_rule_is_taught_rightly_in_its_share_of_the_pairs_and_otherwise_by_its_misconception() -> None:
    seed = 2
    known = {rule.name: rule for rule in rules(seed)}
    right: dict[str, list[bool]] = {name: [] for name in known}
    for prompt, completion in supervised_pairs(CONFIG, seed, 32_000):
        start, *chain, _ = prompt.split()
        rule = known[chain[0][0]]
        operands = tuple(int(operation[1:]) for operation in chain)
        right[rule.name].append(completion == solved(prompt, seed))
        constant = rule.constant if right[rule.name][-1] else rule.misconception
        assert completion == " ".join(map(str, rule.totals(int(start), operands, constant)))
    assert sorted(rule.right_share for rule in known.values()) == sorted(RIGHT_SHARES)
    for name, outcomes in right.items():
        # 2,000 draws: five standard deviations are at most .056
        assert np.mean(outcomes) == pytest.approx(known[name].right_share, abs=0.056)


def test_with_longest_chains_answers_grow_with_difficulty_and_pairs_are_of_the_same_lengths() -> None:
    config = SMALL.model_copy(update={"operations": 2, "hardest_operations": 6})
    task = load_task(config, seed=4)
    by_difficulty = sorted(rules(4), key=lambda rule: -rule.right_share)
    lengths = {
        category.removeprefix("rule "): len(answer.split())
        for category, answer in zip(task.train["category"], task.train["answer"], strict=True)
    }
    ordered = [lengths[rule.name] for rule in by_difficulty]
    assert ordered == sorted(ordered)
    assert (ordered[0], ordered[-1], set(ordered)) == (2, 6, {2, 3, 4, 5, 6})
    for problem in task.train:
        assert problem["answer"] == solved(problem["prompt"], 4)
    for prompt, completion in supervised_pairs(config, 4, 500):
        assert len(completion.split()) == len(prompt.split()) - 2 == lengths[prompt.split()[1][0]]


def test_a_misconception_is_never_the_truth() -> None:
    assert all(rule.misconception != rule.constant for seed in range(50) for rule in rules(seed))


def test_reward_is_one_for_the_answer_and_zero_for_anything_else() -> None:
    completions = ["1 2 3", "1 2", "1 2 3 4", "", "1 2 4"]
    assert exact_match(["p"] * 5, completions, answer=["1 2 3"] * 5, id=["x"] * 5) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_tokenizer_knows_all_words_pads_left_and_decodes_to_what_the_reward_compares() -> None:
    words = tokenizer(CONFIG)
    assert len(words) == 93
    problems = load_task(CONFIG, seed=0).train
    for prompt, answer in zip(problems["prompt"], problems["answer"], strict=True):
        assert len(words(prompt)["input_ids"]) == len(prompt.split())
        completion = [*words(answer)["input_ids"], words.eos_token_id, words.pad_token_id]
        assert words.decode(completion, skip_special_tokens=True) == answer
    padded = words(["1 a0 =", "1 a0 a1 a2 ="], padding=True)["input_ids"]
    assert padded[0][:2] == [words.pad_token_id] * 2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"operations": 0}, "operations"),
        ({"operations": 1, "train_problems": 1024}, "at most 400 with 1 operations"),
        ({"train_problems": 0}, "train_problems"),
        ({"operations": 4, "hardest_operations": 3}, "hardest_operations: expected at least operations"),
        ({"difficulty": 3}, "difficulty"),
    ],
)
def test_a_config_that_cannot_work_is_refused(wrong: dict[str, int], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ChainArithmeticConfig(**wrong)


def test_a_recipe_picks_the_task_by_its_kind() -> None:
    config = TypeAdapter(TaskConfig).validate_python({"kind": "chain-arithmetic", "train_problems": 10})
    assert config == ChainArithmeticConfig(train_problems=10)


def test_tasks_without_supervised_pairs_say_that_they_need_a_pretrained_model() -> None:
    config = MathConfig.model_construct(kind="math")
    with pytest.raises(InvalidInputError, match="kind: pretrained"):
        supervised_pairs(config, 0, 1)
    with pytest.raises(InvalidInputError, match="kind: pretrained"):
        tokenizer(config)
