from __future__ import annotations

import pytest

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit.columns import Asked, Columns, understand

TRL = ["step", "prompt", "completion", "accuracy_reward", "format_reward", "advantage"]
VERL = ["input", "output", "gts", "score", "step", "acc", "data_source"]


def guessed(names: list[str], numeric: set[str], **asked: str) -> Columns:
    return understand("log.jsonl", names, numeric, Asked(**asked))


def test_the_columns_of_verls_dumps_are_known() -> None:
    found = guessed(VERL, {"score", "step", "acc"})
    assert (found.key, found.reward, found.step) == ("input", ("score",), "step")
    assert (found.category, found.completion, found.reference) == ("data_source", "output", "gts")


def test_a_single_reward_function_of_trl_is_found_whatever_its_name() -> None:
    found = guessed(["step", "prompt", "completion", "luck", "advantage"], {"step", "luck", "advantage"})
    assert found.reward == ("luck",)
    assert not found.remarks


def test_of_several_reward_functions_the_one_about_being_right_is_taken_and_said() -> None:
    found = guessed(TRL, {"accuracy_reward", "format_reward", "advantage", "step"})
    assert found.reward == ("accuracy_reward",)
    assert found.trained == ("accuracy_reward", "format_reward")
    assert "accuracy_reward, format_reward" in found.remarks[0]
    assert "--reward" in found.remarks[0]


def test_reward_functions_that_nothing_tells_apart_are_added_up_and_said() -> None:
    names = ["prompt", "reward_a", "reward_b"]
    found = guessed(names, {"reward_a", "reward_b"})
    assert found.reward == ("reward_a", "reward_b")
    assert "unweighted sum" in found.remarks[0]


def test_all_functions_of_trl_decide_on_gradients_whatever_they_are_called() -> None:
    names = ["step", "prompt", "completion", "correct", "fmt", "completion_length", "advantage"]
    numeric = {"correct", "fmt", "completion_length", "advantage", "step"}
    found = guessed(names, numeric)
    assert (found.reward, found.trained, found.length) == (("correct",), ("correct", "fmt"), "completion_length")
    assert "correct, fmt" in found.remarks[0]
    named = guessed(names, numeric, reward="fmt")
    assert (named.reward, named.trained) == (("fmt",), ("correct", "fmt"))
    assert named.remarks


def test_a_column_that_is_just_called_reward_is_the_total_of_its_parts() -> None:
    found = guessed(["prompt", "reward", "format_reward"], {"reward", "format_reward"})
    assert (found.reward, found.trained, found.remarks) == (("reward",), ("reward",), ())


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"log\.jsonl: expected columns with names of their own, got reward"):
        guessed(["prompt", "reward", "reward"], {"reward"})


def test_an_id_that_lasts_is_preferred_and_the_prompt_is_shown() -> None:
    found = guessed(["prompt", "prompt_id", "reward"], {"reward"})
    assert (found.key, found.text) == ("prompt_id", "prompt")


def test_an_id_that_may_be_fresh_in_every_step_is_the_last_resort() -> None:
    assert guessed(["uid", "prompt", "reward"], {"reward"}).key == "prompt"
    assert guessed(["uid", "reward"], {"reward"}).key == "uid"


def test_names_are_compared_without_case_and_separators() -> None:
    found = guessed(["Problem ID", "Is-Correct", "Global.Step"], {"Is-Correct"})
    assert (found.key, found.reward, found.step) == ("Problem ID", ("Is-Correct",), "Global.Step")


def test_flags_beat_guesses_and_both_are_said() -> None:
    asked = Asked(prompt="text", reward="acc")
    found = understand("log", ["prompt", "text", "reward", "acc"], {"reward", "acc"}, asked)
    assert (found.key, found.reward) == ("text", ("acc",))
    assert found.said(asked) == {"prompt": "text (given)", "reward": "acc (given)"}


def test_a_length_must_be_a_number() -> None:
    assert guessed(["prompt", "reward", "length"], {"reward"}).length is None
    assert guessed(["prompt", "reward", "length"], {"reward", "length"}).length == "length"


def test_the_rows_of_run_directories_are_groups() -> None:
    found = guessed(["step", "prompt", "rollouts", "scored", "successes"], set())
    assert found.counted
    assert found.needed() == ["prompt", "step", "scored", "successes"]


@pytest.mark.parametrize(
    ("names", "needle"),
    [
        (
            ["a", "reward"],
            "no column was recognised as a prompt or an id. Its columns are a, reward. Looked for prompt",
        ),
        (["prompt", "b"], "no column was recognised as a reward. Its columns are prompt, b. Looked for reward"),
    ],
)
def test_a_file_that_cannot_be_understood_names_its_columns_and_what_was_looked_for(
    names: list[str], needle: str
) -> None:
    with pytest.raises(InvalidInputError, match=r"--(prompt|reward) COLUMN") as refusal:
        guessed(names, set())
    assert needle in str(refusal.value)


def test_a_flag_that_names_no_column_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInputError, match=r"--reward: log\.jsonl has no column 'scor'\. Did you mean score\?"):
        guessed(["prompt", "score"], {"score"}, reward="scor")
