from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="the report extra is not installed")

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit.asked import Asked
from knapsack_rl.experiments.audit.columns import Columns, understand
from knapsack_rl.experiments.audit.readers import Look

TRL = ["step", "prompt", "completion", "accuracy_reward", "format_reward", "advantage"]
VERL = ["input", "output", "gts", "score", "step", "acc", "data_source"]


def guessed(names: list[str], numeric: set[str], rows: list[dict[str, Any]] | None = None, **asked: str) -> Columns:
    return understand("log.jsonl", Look(names, frozenset(numeric), rows or []), Asked(**asked))


def test_the_columns_of_verls_dumps_are_known() -> None:
    rows = [{"input": "a", "gts": "1", "score": 1.0 - acc, "step": 1, "acc": bool(acc)} for acc in (0, 1)]
    found = guessed(VERL, {"score", "step", "acc"}, rows)
    assert (found.text, found.trained, found.success, found.step) == ("input", ("score",), ("acc",), "step")
    assert (found.category, found.completion, found.reference) == ("data_source", "output", "gts")


def test_a_verdict_is_a_column_of_right_and_wrong_and_no_share() -> None:
    rows = [{"prompt": "a", "reward": 1.0, "acc": share} for share in (0.5, 1.0)]
    found = guessed(["prompt", "reward", "acc"], {"reward", "acc"}, rows)
    assert (found.trained, found.success) == (("reward",), ("reward",))


def test_a_success_that_is_always_true_beside_rewards_that_differ_is_no_verdict() -> None:
    rows = [{"prompt": "a", "reward": reward, "success": True} for reward in (0.0, 1.0)]
    assert guessed(["prompt", "reward", "success"], {"reward", "success"}, rows).success == ("reward",)


def test_what_training_saw_stays_when_another_column_is_named_for_being_right() -> None:
    found = guessed(VERL, {"score", "step", "acc"}, reward="acc")
    assert (found.trained, found.success) == (("score",), ("acc",))
    assert "acc decides on what is a success, and the column score on what had a gradient" in found.remarks[-1]
    plain = guessed(["prompt", "reward", "shaped"], {"reward", "shaped"}, reward="shaped", success="reward")
    assert (plain.trained, plain.success) == (("shaped",), ("reward",))
    assert guessed(["prompt", "reward", "x"], {"reward", "x"}, reward="x").trained == ("x",)


def test_an_advantage_is_taken_from_whatever_column_is_named() -> None:
    names = ["prompt", "reward", "adv"]
    assert guessed(names, {"reward", "adv"}).advantage is None
    assert guessed(names, {"reward", "adv"}, advantage="adv").advantage == "adv"
    assert guessed(TRL, set(TRL[3:])).advantage == "advantage"


def test_a_single_reward_function_of_trl_is_found_whatever_its_name() -> None:
    found = guessed(["step", "prompt", "completion", "luck", "advantage"], {"step", "luck", "advantage"})
    assert (found.success, found.trained) == (("luck",), ("luck",))
    assert not found.remarks


def test_of_several_reward_functions_the_one_about_being_right_is_taken_and_said() -> None:
    found = guessed(TRL, {"accuracy_reward", "format_reward", "advantage", "step"})
    assert found.success == ("accuracy_reward",)
    assert found.trained == ("accuracy_reward", "format_reward")
    assert "accuracy_reward decides" in found.remarks[0]
    assert "--success" in found.remarks[0]


def test_metrics_between_the_rewards_of_trl_are_not_trained_on() -> None:
    names = ["step", "prompt", "completion", "reward_func", "metric_turns", "num_guesses", "answer", "advantage"]
    found = guessed(names, {"step", "reward_func", "metric_turns", "num_guesses", "advantage"})
    assert (found.success, found.trained, found.advantage) == (("reward_func",), ("reward_func",), "advantage")


def test_reward_functions_that_nothing_tells_apart_are_added_up_and_said() -> None:
    names = ["prompt", "reward_a", "reward_b"]
    found = guessed(names, {"reward_a", "reward_b"})
    assert found.success == ("reward_a", "reward_b")
    assert "unweighted sum" in found.remarks[0]


def test_all_functions_of_trl_are_read_whatever_they_are_called() -> None:
    names = ["step", "prompt", "completion", "correct", "fmt", "completion_length", "advantage"]
    numeric = {"correct", "fmt", "completion_length", "advantage", "step"}
    found = guessed(names, numeric)
    assert (found.success, found.trained, found.length) == (("correct",), ("correct", "fmt"), "completion_length")
    named = guessed(names, numeric, reward="fmt")
    assert (named.success, named.trained) == (("fmt",), ("correct", "fmt"))
    assert named.remarks


def test_a_column_that_is_just_called_reward_is_the_total_of_its_parts() -> None:
    found = guessed(["prompt", "reward", "format_reward"], {"reward", "format_reward"})
    assert (found.success, found.trained, found.remarks) == (("reward",), ("reward",), ())


def test_a_total_is_not_added_to_its_parts() -> None:
    found = guessed(["group_idx", "total_reward", "final_reward"], {"total_reward", "final_reward"})
    assert found.trained == ("total_reward",)


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"log\.jsonl: expected columns with names of their own, got reward"):
        guessed(["prompt", "reward", "reward"], {"reward"})


def test_an_id_that_lasts_is_used_beside_the_text_and_the_prompt_is_shown() -> None:
    found = guessed(["prompt", "prompt_id", "reward"], {"reward"})
    assert (found.identity.ids, found.identity.texts, found.text) == (("prompt_id",), ("prompt",), "prompt")


def test_an_id_that_may_be_fresh_in_every_step_is_the_last_resort() -> None:
    assert guessed(["index", "prompt", "reward"], {"reward"}).identity.ids == ()
    alone = guessed(["index", "reward"], {"reward"}).identity
    assert (alone.ids, alone.fresh) == (("index",), True)
    assert not guessed(["index", "reward"], {"reward"}, id="index").identity.fresh
    assert guessed(["group_idx", "reward"], {"reward"}, id="group_idx").identity.fresh


def test_an_id_that_is_another_in_every_row_while_prompts_come_again_is_none() -> None:
    rows = [{"task_id": i, "prompt": f"p{i // 4}", "reward": 1.0} for i in range(8)]
    found = guessed(["task_id", "prompt", "reward"], {"reward", "task_id"}, rows)
    assert found.identity.ids == ()
    assert "the number of a row and no id" in found.remarks[0]


@pytest.mark.parametrize(
    ("references", "column", "apart"),
    [
        (["12"] * 4 + ["30"] * 4, "gts", True),
        (["12", "30"] * 4, "gts", True),
        (["12", "30", "30", "7", "8", "9", "1", "2"], "gts", False),
        (["12"] * 4 + ["30"] * 4, "answer", False),  # may be the model's own
    ],
)
def test_references_tell_prompts_of_one_text_apart_unless_they_differ_from_rollout_to_rollout(
    references: list[str], column: str, apart: bool
) -> None:
    rows = [{"input": "Find x.", column: one, "score": 1.0} for one in references]
    found = guessed(["input", column, "score"], {"score"}, rows)
    assert found.identity.beside == ((column,) if apart else ())
    assert any("tells no prompts apart" in remark for remark in found.remarks) != apart


@pytest.mark.parametrize("column", ["solution", "target", "gold"])
@pytest.mark.parametrize(
    ("rewards", "apart"),
    [
        ([1, 1, 0, 0, 1, 1, 0, 0], False),  # yes is right and no is wrong, in both groups
        ([1, 1, 0, 0, 0, 0, 0, 0], False),
        ([1, 1, 0, 0, 1, 0, 0, 0], True),
        ([1, 1, 1, 1, 0, 0, 0, 0], True),  # nothing speaks against two prompts, and it makes no difference
    ],
)
def test_a_short_answer_that_goes_by_the_reward_tells_no_prompts_apart(
    column: str, rewards: list[int], apart: bool
) -> None:
    answers = ["yes", "yes", "no", "no"] * 2
    rows = [
        {"prompt": "Find x.", "step": 1 + place // 4, column: answer, "reward": reward}
        for place, (answer, reward) in enumerate(zip(answers, rewards, strict=True))
    ]
    found = guessed(["prompt", "step", column, "reward"], {"reward", "step"}, rows)
    assert found.identity.beside == ((column,) if apart else ())
    assert any(f"name it with --id {column}" in remark for remark in found.remarks) != apart


def test_the_sample_in_verls_uid_tells_groups_apart() -> None:
    rows = [{"input": "Find x.", "uid": f"{sample}_{i}_0", "score": 1.0} for sample in "ab" for i in range(4)]
    assert guessed(["input", "uid", "score"], {"score"}, rows).identity.groups == ("uid",)
    alone = [row | {"uid": f"{i}"} for i, row in enumerate(rows)]
    assert guessed(["input", "uid", "score"], {"score"}, alone).identity.groups == ()


@pytest.mark.parametrize(
    ("held", "needle"),
    [
        ("PASS", "passed holds 'PASS', and a reward is a number"),
        (["a"], "passed holds lists"),
        ({"score": 1.0, "format": 0.0}, "passed holds objects with score, format, .* --reward passed.score"),
    ],
)
def test_rewards_that_are_no_numbers_are_refused_with_what_they_are(held: Any, needle: str) -> None:
    with pytest.raises(InvalidInputError, match=needle):
        guessed(["prompt", "passed"], set(), [{"prompt": "a", "passed": held}])


def test_names_are_compared_without_case_and_separators() -> None:
    found = guessed(["Problem ID", "Is-Correct", "Global.Step"], {"Is-Correct"})
    assert (found.identity.ids, found.success, found.step) == (("Problem ID",), ("Is-Correct",), "Global.Step")


def test_flags_beat_guesses_and_both_are_said() -> None:
    asked = Asked(prompt="text", reward="acc")
    look = Look(["prompt", "text", "reward", "acc"], frozenset({"reward", "acc"}), [])
    found = understand("log", look, asked)
    assert (found.identity.texts, found.success) == (("text",), ("acc",))
    assert found.said(asked) == {"prompt": "text (given)", "reward": "acc (given)"}


def test_a_length_must_be_a_number() -> None:
    assert guessed(["prompt", "reward", "length"], {"reward"}).length is None
    assert guessed(["prompt", "reward", "length"], {"reward", "length"}).length == "length"


def test_the_rows_of_run_directories_are_groups() -> None:
    names = ["step", "prompt", "rollouts", "scored", "successes"]
    found = guessed(names, {"step", "rollouts", "scored", "successes"})
    assert found.counts is not None
    assert sorted(found.needed()) == ["prompt", "scored", "step", "successes"]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"problem_id": 1, "num_correct": 3, "num_samples": 8}, ("num_samples", "num_correct")),
        ({"problem_id": 1, "avg_at_k": 0.375, "sample_count": 8, "correct": 1.0}, ("sample_count", "avg_at_k")),
        ({"problem_id": 1, "pass_rate": 0.33, "n": 3}, ("n", "pass_rate")),
        ({"problem_id": 1, "correct": 3, "total": 8}, ("total", "correct")),
        ({"problem_id": 1, "n_correct": 3, "n_incorrect": 5}, ("n_correct", "n_incorrect")),
        ({"problem_id": 1, "correct": True, "num_samples": 8}, None),  # a rollout, and how many there are
        ({"prompt": "a", "completion": "b", "reward": 1.0, "num_correct": 3, "num_samples": 8}, None),
        ({"problem_id": 1, "accuracy": 0.4, "n": 3}, None),  # not a whole number of them
    ],
)
def test_tables_of_counts_are_known_by_their_names_and_values(
    row: dict[str, Any], columns: tuple[str, ...] | None
) -> None:
    numeric = {name for name, held in row.items() if isinstance(held, (int, float))}
    found = guessed(list(row), numeric, [row, row | {"problem_id": 2, "prompt": "b"}])
    assert (found.counts and found.counts.columns()) == columns


@pytest.mark.parametrize(
    ("rows", "counted"),
    [
        ([{"problem_id": p, "n_samples": 8, "n_correct": n} for n in (8, 3, 0) for p in (1, 2)], True),
        ([{"problem_id": p, "total": 8, "correct": n} for n in (8, 3, 0) for p in (1, 2)], True),
        ([{"problem_id": p, "num_samples": 8, "pass_rate": n / 8} for n in (8, 3, 0) for p in (1, 2)], True),
        ([{"problem_id": 1, "total": 4, "correct": n} for n in (1, 0, 1, 0)], False),
        ([{"problem_id": 1, "n_samples": 4, "n_correct": 2, "is_correct": n} for n in (1, 0, 1, 0)], False),
    ],
)
def test_counts_of_prompts_that_come_again_are_counts_unless_each_row_has_its_own_verdict(
    rows: list[dict[str, Any]], counted: bool
) -> None:
    found = guessed(list(rows[0]), set(rows[0]), rows)
    assert (found.counts is not None) == counted


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
