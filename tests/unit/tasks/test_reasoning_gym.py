from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.tasks.reasoning_gym import (
    PAYLOADS,
    GeneratorConfig,
    ReasoningGymConfig,
    load,
    supervised_pairs,
    tokenizer,
)

reasoning_gym = pytest.importorskip("reasoning_gym")
TIMES = "\N{MULTIPLICATION SIGN}"

CONFIG = ReasoningGymConfig(
    sources=(
        GeneratorConfig(
            name="chain_sum", parameters={"max_terms": 3, "max_digits": 2}, weight=2, supervised_examples=50
        ),
        GeneratorConfig(name="gcd", parameters={"max_value": 60}, supervised_examples=30),
        GeneratorConfig(name="letter_counting", parameters={"min_words": 1, "max_words": 3}, supervised_examples=20),
        GeneratorConfig(name="spell_backward", supervised_examples=20),
    ),
    train_problems=60,
    eval_problems=20,
)


def problems(config: ReasoningGymConfig, seed: int) -> set[str]:
    task = load(config, seed)
    return set(task.train["id"]).union(*(held_out["id"] for held_out in task.evaluation.values()))


def test_sizes_follow_the_weights() -> None:
    task = load(CONFIG, seed=0)
    assert len(task.train) == 60
    assert {name: len(held_out) for name, held_out in task.evaluation.items()} == {
        "chain_sum": 8,
        "gcd": 4,
        "letter_counting": 4,
        "spell_backward": 4,
    }
    assert task.train["category"][:].count("chain_sum") == 24


def test_the_same_seed_gives_the_same_problems_in_the_same_order() -> None:
    assert load(CONFIG, seed=3).train.to_list() == load(CONFIG, seed=3).train.to_list()
    assert supervised_pairs(CONFIG, seed=3, count=200) == supervised_pairs(CONFIG, seed=3, count=200)


def test_neighbouring_seeds_give_different_problems() -> None:
    shared = problems(CONFIG, 0) & problems(CONFIG, 1)
    assert len(shared) < 20  # chance repeats of short problems only


def test_a_problem_has_the_same_id_whatever_surrounds_it() -> None:
    alone = CONFIG.model_copy(update={"sources": CONFIG.sources[1:2], "train_problems": 100, "eval_problems": 2})
    by_itself = {row["prompt"]: row["id"] for row in load(alone, seed=0).train}
    in_mix = {row["prompt"]: row["id"] for row in load(CONFIG, seed=0).train if row["category"] == "gcd"}
    shared = in_mix.keys() & by_itself.keys()
    assert shared
    assert all(in_mix[prompt] == by_itself[prompt] for prompt in shared)


def test_training_held_out_and_worked_examples_share_no_prompt() -> None:
    task = load(CONFIG, seed=0)
    train = task.train["prompt"][:]
    held_out = [prompt for data in task.evaluation.values() for prompt in data["prompt"]]
    worked = {prompt for prompt, _ in supervised_pairs(CONFIG, seed=0, count=120)}
    assert len({*train, *held_out}) == len(train) + len(held_out)
    assert len(worked) == 120
    assert not worked & {*train, *held_out}


def test_worked_examples_repeat_only_after_all_were_used() -> None:
    pairs = supervised_pairs(CONFIG, seed=0, count=250)
    assert set(pairs[:120]) == set(pairs[120:240])
    assert pairs[:120] != pairs[120:240]


def test_the_right_answer_of_a_worked_example_earns_the_reward() -> None:
    task = load(CONFIG, seed=0)
    generators = {
        source.name: reasoning_gym.create_dataset(source.name, seed=0, size=1, **source.parameters)
        for source in CONFIG.sources
    }
    answers = {}
    for name, generator in generators.items():
        for index in range(40):
            entry = generator[index]
            answers[PAYLOADS[name](entry["metadata"])] = entry["answer"]
    rows = [row for row in task.train if row["prompt"] in answers]
    assert {row["category"] for row in rows} == set(generators)
    right = [answers[row["prompt"]] for row in rows]
    ids = [row["id"] for row in rows]
    assert task.reward([], right, judged_by=ids) == [1.0] * len(rows)
    assert task.reward([], [f" {text}\n" for text in right], judged_by=ids) == [1.0] * len(rows)
    assert task.reward([], [f"{text}9" for text in right], judged_by=ids) == [0.0] * len(rows)
    assert task.reward([], ["" for _ in right], judged_by=ids) == [0.0] * len(rows)


def test_an_unreadable_answer_earns_nothing_where_the_verifier_itself_would_raise() -> None:
    config = ReasoningGymConfig(
        sources=(GeneratorConfig(name="prime_factorization"),), train_problems=4, eval_problems=1
    )
    task = load(config, seed=0)
    row = task.train[0]
    number = int(row["prompt"].split("factorization of ")[1].split(".")[0])
    assert task.reward([], [f"two {TIMES} 3", f"{number} {TIMES} 1"], judged_by=[row["id"]] * 2) == [0.0, 0.0]


def test_a_row_of_another_task_is_refused_by_the_reward() -> None:
    with pytest.raises(InvalidInputError, match="not a problem of this task"):
        load(CONFIG, seed=0).reward([], ["1"], judged_by=["gcd-0000"])


def test_a_data_set_without_a_payload_keeps_its_question() -> None:
    config = ReasoningGymConfig(sources=(GeneratorConfig(name="leg_counting"),), train_problems=4, eval_problems=1)
    assert load(config, seed=0).train[0]["prompt"].startswith("Your task is to count how many legs")


@pytest.mark.parametrize("name", sorted(PAYLOADS))
def test_payloads_name_everything_that_the_answer_depends_on(name: str) -> None:
    generator = reasoning_gym.create_dataset(name, seed=5, size=1)
    answers: dict[str, str] = {}
    for index in range(300):
        entry = generator[index]
        prompt = PAYLOADS[name](entry["metadata"])
        assert len(prompt) < len(entry["question"])
        assert answers.setdefault(prompt, entry["answer"]) == entry["answer"]


def test_the_tokenizer_reads_and_writes_every_prompt_and_answer() -> None:
    characters = tokenizer(CONFIG)
    for prompt, answer in supervised_pairs(CONFIG, seed=0, count=120):
        for text in (prompt, answer):
            ids = characters(text)["input_ids"]
            assert len(ids) == len(text)
            assert characters.unk_token_id not in ids
            assert characters.decode(ids) == text


def test_the_tokenizer_pads_on_the_left_and_survives_saving(tmp_path: Path) -> None:
    characters = tokenizer(CONFIG)
    characters.save_pretrained(tmp_path)
    loaded = type(characters).from_pretrained(tmp_path)
    for tokens in (characters, loaded):
        assert tokens(["1", "123"], padding=True)["attention_mask"] == [[0, 0, 1], [1, 1, 1]]
        assert tokens.eos_token_id != tokens.pad_token_id
    assert loaded("gcd 1 2=")["input_ids"] == characters("gcd 1 2=")["input_ids"]


def test_an_unknown_data_set_is_refused_with_all_names_and_the_nearest() -> None:
    config = ReasoningGymConfig(sources=(GeneratorConfig(name="gdc"),))
    with pytest.raises(InvalidInputError, match=r"task.sources: expected one of .*, got 'gdc'. Did you mean gcd"):
        load(config, seed=0)


@pytest.mark.parametrize("parameters", [{"max_valu": 3}, {"max_value": -1}])
def test_parameters_that_the_generator_does_not_take_are_refused(parameters: dict[str, int]) -> None:
    config = ReasoningGymConfig(sources=(GeneratorConfig(name="gcd", parameters=parameters),))
    with pytest.raises(InvalidInputError, match="parameters of gcd do not fit"):
        load(config, seed=0)


def test_more_problems_than_the_generator_has_are_refused() -> None:
    config = ReasoningGymConfig(
        sources=(GeneratorConfig(name="gcd", parameters={"max_value": 5}),), train_problems=30, eval_problems=5
    )
    with pytest.raises(InvalidInputError, match="gcd with these parameters ran out of distinct problems"):
        load(config, seed=0)


def test_seed_size_and_repeated_data_sets_are_refused() -> None:
    with pytest.raises(ValidationError, match="seed follow"):
        GeneratorConfig(name="gcd", parameters={"seed": 1})
    with pytest.raises(ValidationError, match="these repeat: gcd"):
        ReasoningGymConfig(sources=(GeneratorConfig(name="gcd"), GeneratorConfig(name="gcd", weight=2)))
