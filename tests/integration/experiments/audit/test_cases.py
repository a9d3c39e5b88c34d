"""Invented logs in shapes seen in public repositories: each gives its share and prompts, and says what it must."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the report extra is not installed")
pytest.importorskip("matplotlib", reason="the report extra is not installed")
pytest.importorskip("scipy", reason="the report extra is not installed")

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit.asked import Asked
from knapsack_rl.experiments.audit.audit import Audit, Options, audit
from knapsack_rl.experiments.audit.findings import console_lines, remarks, summary
from knapsack_rl.experiments.audit.graders import by_prompt
from knapsack_rl.experiments.audit.tables import without_gradient

CASES = Path(__file__).parent / "cases"
LM_EVAL = "samples_gsm8k_2026-01-01T00-00-00.000000.jsonl"
TINKER = "tinker/iteration_000003/train_rollout_summaries.jsonl"


def audited(log: str, above: float | None = None, pooled: bool = False, **columns: str) -> Audit:
    return audit([str(CASES / log)], Options(columns=Asked(**columns), success_above=above, pooled=pooled))


def said(found: Audit) -> str:
    lines = [f"{label}  {text}" for label, text in console_lines(found)]
    return "\n".join([*lines, *remarks(found), *summary(found)]).replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("log", "options", "rollouts", "prompts", "share", "needles"),
    [
        ("trl-metric-functions.parquet", {}, 16, 4, 1.0, ["all advantages of their group were zero"]),
        ("trl-metric-functions.parquet", {"reward": "reward_func"}, 16, 4, 1.0, ["50.0 % all correct"]),
        ("float-noise.parquet", {}, 4, 1, 1.0, []),
        (
            "resumed.jsonl", {}, 16, 8, 0.75,
            ["Steps go back at row 13", "75.0 % of its 16 rollouts", "it is 83.3 % of 24 rollouts"],
        ),
        ("verl-images", {}, 8, 2, 1.0, ["told apart by: gts"]),
        ("verl-images", {"id": "gts"}, 8, 2, 1.0, []),
        ("version-folders/*/*.jsonl", {}, 8, 2, 1.0, ["step: folder names (guessed)"]),
        ("version-folders/1", {}, 4, 2, 1.0, ["step: file names (guessed)", "may be the prompts' and no steps"]),
        ("overlong.jsonl", {}, 8, 2, 0.5, ["1 prompt never had a success", "1 prompt never had a failure"]),
        ("overlong.jsonl", {"reward": "acc"}, 8, 2, 0.5, ["reward: score (guessed), success: acc (given)"]),
        ("overlong.jsonl", {"success": "acc"}, 8, 2, 0.5, ["1 prompt never had a success"]),
        ("minus-one-zero.jsonl", {}, 12, 3, 2 / 3, ["say --success-above -0.5", "nothing is said of right and wrong"]),
        (
            "minus-one-zero.jsonl", {"above": -0.5}, 12, 3, 2 / 3,
            ["1 prompt never had a success", "1 prompt never had a failure"],
        ),
        (LM_EVAL, {"reward": "exact_match"}, 3, 3, None, ["filter has 2 values, strict-match, flexible-extract"]),
        (LM_EVAL, {}, 3, 3, None, ["reward: exact_match (guessed)", "prompt: prompt (guessed)"]),
        ("mixed-train-eval.jsonl", {}, 8, 2, 0.5, ["split has 2 values, train, eval", "only train counts"]),
        ("models-in-one-folder", {}, 6, 3, None, ["3 prompts came in several of the 2 files", "several models or"]),
        ("nemo-rl", {}, 8, 2, 0.5, ["step: file names (guessed)", "first entry of content"]),
        ("ms-swift-lists.jsonl", {}, 12, 2, 2 / 3, ["success: MathAccuracy", "advantage: advantages"]),
        ("lists-per-prompt.jsonl", {}, 8, 2, 0.5, ["rewards is a list of their rewards"]),
        ("aggregated.jsonl", {}, 32, 4, 0.5, ["avg_at_k x sample_count"]),
        ("sample-major.jsonl", {}, 12, 3, None, ["no share is given", "--pass-at-k"]),
        ("sample-major.jsonl", {"pooled": True}, 12, 3, 2 / 3, []),
        ("reward-True.csv", {}, 8, 2, 0.5, []),
        ("token-level-score.jsonl", {}, 4, 2, 0.5, ["score holds lists", "their sum was taken"]),
        ("token-level-score.jsonl", {"prompt": "input_prompt"}, 4, 2, 0.5, ["score holds lists"]),
        ("completions_1_0123abcd.table.json", {}, 4, 2, 0.5, ["advantage: advantage"]),
        ("one-object.json", {}, 2, 1, 0.0, ["lists in rollouts"]),
        ("array.json", {}, 2, 1, 0.0, []),
        ("folder-with-utf16", {}, 2, 1, 0.0, ["files that cannot be read: 1", "UTF-16"]),
        ("nemo-gym.jsonl", {}, 4, 2, 0.5, ["id: _ng_task_index", "length: response.usage.output_tokens", "24 of 48"]),
        ("tinker", {}, 4, 2, 0.5, ["reward: total_reward (guessed)", "numbers the groups of a step"]),
        (TINKER, {"id": "group_idx"}, 4, 2, 0.5, ["numbers the groups of a step"]),
        ("step-folders", {}, 8, 2, 0.5, ["its sub-folders hold 2 such files", "step: folder names (guessed)"]),
        ("renamed-reward.jsonl", {}, 2, 1, 0.0, ["rows without a reward: 4", "the file also has reward_total"]),
        ("selected-samples.jsonl", {}, 8, 2, 0.0, ["a selection of the rollouts", "group_rewards"]),
        ("one-prompt-a-file", {}, 8, 4, 1.0, ["By the rewards 50.0 % of the rollouts had no gradient"]),
        ("pandas-index.csv", {}, 4, 1, 0.0, []),
        ("shards", {}, 8, 1, 0.0, []),
        ("trl-chat", {}, 24, 2, 0.5, ["success: accuracy_reward"]),
        ("trl-blocks.parquet", {}, 4, 1, 0.0, []),
        ("verl-uid", {}, 4, 2, 0.5, []),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_the_share_and_the_prompts_are_right_and_what_was_assumed_is_said(
    log: str, options: dict[str, str], rollouts: int, prompts: int, share: float | None, needles: list[str]
) -> None:
    found = audited(log, **options)  # type: ignore[arg-type]
    assert (int(found.log.rollouts.sum()), len(found.log.keys)) == (rollouts, prompts)
    told = said(found)
    if share is None:
        assert "had no gradient" not in told.partition("no share is given")[0]
    else:
        assert without_gradient(found.log) == pytest.approx(share)
        assert f"{100 * share:.1f} % of the rollouts had no gradient" in told
    for needle in needles:
        assert needle in told


@pytest.mark.parametrize(
    ("log", "needle"),
    [
        ("reward-yes.csv", "passed holds 'yes'"),
        ("reward-PASS.csv", "passed holds 'PASS'"),
        ("reward-correct.csv", "passed holds 'correct'"),
        ("reward-object.jsonl", "reward holds objects with score, format"),
        ("lfs-pointer.jsonl", "no line is a JSON object: it is a Git LFS pointer"),
        ("utf16.csv", "files that cannot be read .* its text is in UTF-16"),
        ("semicolon.csv", "its columns are separated by semicolons"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_it_is(log: str, needle: str) -> None:
    with pytest.raises(InvalidInputError, match=needle):
        audited(log)


def test_a_part_of_an_object_can_be_named() -> None:
    found = audited("reward-object.jsonl", reward="reward.score")
    assert (int(found.log.successes.sum()), without_gradient(found.log)) == (1, 0.0)


def test_what_all_prompts_begin_with_is_left_out_over_all_files() -> None:
    found = audited("one-prompt-a-file")
    assert sorted(text.partition("?")[0] for text in found.log.texts) == [f"What is {n}+{n}" for n in range(1, 5)]


def test_right_but_overlong_answers_are_successes() -> None:
    found = audited("overlong.jsonl")
    rollouts, successes = by_prompt(found.log)
    assert sorted(zip(rollouts.tolist(), successes.tolist(), strict=True)) == [(4, 0), (4, 4)]
