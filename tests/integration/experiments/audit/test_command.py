"""`knapsack-rl audit` on what TRL and verl really write, from the command line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="the report extra is not installed")
pytest.importorskip("matplotlib", reason="the report extra is not installed")
pytest.importorskip("scipy", reason="the report extra is not installed")

import pandas as pd

import knapsack_rl as kr
from knapsack_rl.cli import main
from knapsack_rl.experiments.audit.advice import advice
from knapsack_rl.experiments.audit.asked import Asked
from knapsack_rl.experiments.audit.audit import Audit, Options, audit, default_output
from knapsack_rl.experiments.audit.findings import remarks, summary
from knapsack_rl.experiments.audit.report import write_report
from knapsack_rl.experiments.audit.tables import without_gradient

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def verl_dump(folder: Path, steps: int = 6, prompts: int = 12, size: int = 4, seed: int = 0) -> Path:
    """A folder as verl's `trainer.rollout_data_dir`: a file for each step, keys and spelling as verl writes them."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(1, steps + 1):
        chosen = rng.permutation(2 * prompts)[:prompts].repeat(size)
        right = rng.random(len(chosen)) < chosen / (2 * prompts)
        columns: dict[str, list[Any]] = {
            "input": [f"user\nWhat is {p} + {p}?\nassistant\n" for p in chosen],
            "output": [f"It is \\boxed{{{2 * p if ok else 99}}}" for p, ok in zip(chosen, right, strict=True)],
            "gts": [str(2 * p) for p in chosen],
            "score": np.where(right, 1.0, -1.0).tolist(),
            "step": [step] * len(chosen),
            "acc": right.tolist(),
        }
        lines = [
            json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False)
            for row in zip(*columns.values(), strict=True)
        ]
        (folder / f"{step}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["audit", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, " ".join(captured.out.split()), captured.err


def test_verls_dumps_are_audited_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = verl_dump(tmp_path / "rollouts")
    code, out, err = run(capsys, folder, "--output", tmp_path / "page")
    assert (code, err) == (0, "")
    frame = pd.concat([pd.read_json(path, lines=True) for path in folder.glob("*.jsonl")])
    counts = frame.groupby(["step", "input"])["score"].agg(rollouts="size", won=lambda score: (score > 0).sum())
    ratio = kr.metrics.effective_gradient_ratio(counts["won"].to_numpy(), counts["rollouts"].to_numpy())
    assert f"{len(frame):,} rollouts of {frame['input'].nunique()} prompts in 6 steps" in out
    assert f"{100 * (1 - ratio):.1f}\N{NO-BREAK SPACE}%".replace("\N{NO-BREAK SPACE}", " ") in out
    assert (
        "prompt: input (guessed), told apart by: gts (guessed), reward: score (guessed), success: acc (guessed)" in out
    )
    page = tmp_path / "page" / "report.html"
    assert page.is_file()
    assert (tmp_path / "page" / "figures" / "gradient-shares.csv").is_file()


def test_bad_rows_are_shown_and_do_not_stop_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = verl_dump(tmp_path / "rollouts")
    with (folder / "6.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"input": "cut o\n')
    code, out, _ = run(capsys, folder, "--output", tmp_path / "page")
    assert code == 0
    assert "not used lines that are not JSON: 1, first" in out
    assert "line 49" in out
    assert "line 49" in (tmp_path / "page" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        ('{"text": "a", "value": 1}\n', "Its columns are text, value. Looked for prompt, prompts, input"),
        ("", "no row of 1 file(s) could be used: files without rows (1)"),
        ("not json\n", "no row of 1 file(s) could be used: files that cannot be read (1), first"),
        ("not json\n", "log.jsonl: no line is a JSON object"),
        ('{"prompt": "a", "reward": null}\n', "rows without a reward (1)"),
    ],
)
def test_what_cannot_be_understood_is_refused_with_what_was_looked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, needle: str
) -> None:
    (tmp_path / "log.jsonl").write_text(content)
    code, out, err = run(capsys, tmp_path / "log.jsonl", "--output", tmp_path / "page")
    assert (code, out) == (2, "")
    assert needle in err
    assert "Traceback" not in err
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["--strategy", "knapsac"], "Did you mean knapsack?"),
        (["--min-rollouts", "9", "--max-rollouts", "8"], "expected min <= max"),
        (["--success-above", "nan"], "--success-above: expected a number"),
        (["--reward", "scor"], "Did you mean score?"),
    ],
)
def test_options_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], needle: str
) -> None:
    code, _, err = run(capsys, verl_dump(tmp_path / "rollouts"), *arguments)
    assert code == 2
    assert needle in err


def audited(*logs: Path, above: float | None = None, **columns: str) -> Audit:
    return audit(logs, Options(columns=Asked(**columns), success_above=above))


def test_the_same_log_gives_the_same_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = verl_dump(tmp_path / "rollouts")
    pages = []
    for _ in range(2):
        run(capsys, folder, "--output", tmp_path / "page")
        pages.append((tmp_path / "page" / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_a_log_in_which_no_prompt_comes_twice_says_that_nothing_could_be_planned(tmp_path: Path) -> None:
    found = audited(verl_dump(tmp_path / "rollouts", steps=1))
    assert found.plans is None
    assert "No prompt came twice" in " ".join(summary(found))


def test_rewards_that_are_neither_0_nor_1_are_said(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 3}", "reward": i / 12, "step": i // 6} for i in range(12)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = " ".join(remarks(audited(tmp_path / "log.jsonl", above=0.9)))
    assert "11 of 12 are neither 0, 1 nor -1. Above 0.9 counts as a success" in said
    assert "had different rewards but all on one side of the threshold" in said


def test_groups_of_one_rollout_are_questioned(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "reward": 1, "step": 1} for i in range(5)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = " ".join(summary(audited(tmp_path / "log.jsonl")))
    assert "every group is of one rollout" in said
    assert "no share is given" in said
    assert "had no gradient" not in said


@pytest.mark.parametrize(
    ("log", "name"),
    [
        ("out/completions", "out"),
        ("runs/demo/allocations.parquet", "demo"),
        ("a/log.csv.gz", "log"),
        ("x/*.jsonl", "log"),
    ],
)
def test_the_page_is_named_after_the_log(log: str, name: str) -> None:
    assert default_output([log]) == Path("runs", "audit", name)


def test_a_run_directory_of_this_program_is_audited(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        [
            {"step": step, "prompt": f"p{p}", "rollouts": 8, "scored": 8, "successes": int(rng.binomial(8, p / 10))}
            for step in range(1, 7)
            for p in range(10)
        ]
    )
    (tmp_path / "run" / "allocations.parquet").mkdir(parents=True)
    for step, rows in frame.groupby("step"):
        rows.to_parquet(tmp_path / "run" / "allocations.parquet" / f"{step:08d}.parquet")
    found = audited(tmp_path / "run")
    assert int(found.log.rollouts.sum()) == 480
    assert found.expectation is not None
    expected = kr.metrics.effective_gradient_ratio(frame["successes"].to_numpy(), frame["scored"].to_numpy())
    assert found.expectation.observed.value == pytest.approx(expected)


def logged(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rewarded(prompts: int = 12, steps: int = 4, size: int = 4, seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Rows of prompts of all success rates that all come in every step."""
    rng = np.random.default_rng(seed)
    return [
        {"step": step, "prompt": f"p{p}", "reward": float(rng.random() < (p + 0.5) / prompts)} | more
        for step in range(steps)
        for p in range(prompts)
        for _ in range(size)
    ]


def test_rewards_that_all_exceed_the_threshold_give_no_shares_of_right_and_wrong(tmp_path: Path) -> None:
    rows = [row | {"reward": row["reward"] + 1} for row in rewarded()]
    found = audited(logged(tmp_path / "log.jsonl", rows))
    spent, unknown, *others = summary(found)
    assert "Every reward is above 0, between 1 and 2" in unknown
    assert "--success-above X" in unknown
    assert "had no gradient" in spent
    said = " ".join([spent, *others])
    assert not any(words in said for words in ("all correct", "never had", "expected to", "grader"))
    assert found.expectation is None
    above = " ".join(summary(audited(tmp_path / "log.jsonl", above=1.5)))
    assert "all correct" in above
    assert "Every reward is above" not in above


@pytest.mark.parametrize(
    ("scale", "above", "tried"), [(1.0, 1.0, 0.5), (1.0, 7.0, 0.5), (0.25, 0.5, 0.125), (100.0, 100.0, 50.0)]
)
def test_a_threshold_that_no_reward_exceeds_is_not_believed(
    tmp_path: Path, scale: float, above: float, tried: float
) -> None:
    rows = [row | {"reward": scale * row["reward"]} for row in rewarded()]
    found = audited(logged(tmp_path / "log.jsonl", rows), above=above)
    said = " ".join(summary(found))
    assert f"No reward is above {above:g}; the largest is {scale:g}: try --success-above {tried:g}." in said
    advised = " ".join(advice(found))
    assert not any(words in said + advised for words in ("never had", "expected to", "Leave out", "all wrong"))
    assert "had no gradient" in said
    assert "all correct" in " ".join(summary(audited(tmp_path / "log.jsonl", above=tried)))


def test_a_threshold_above_many_values_or_a_single_one_is_not_believed_either(tmp_path: Path) -> None:
    many = [row | {"reward": row["reward"] * index / 1000} for index, row in enumerate(rewarded())]
    said = " ".join(summary(audited(logged(tmp_path / "many.jsonl", many), above=2.0)))
    assert "the largest is 0.1" in said
    assert "try a smaller one" in said
    right = [row | {"reward": 1.0} for row in rewarded()]
    said = " ".join(summary(audited(logged(tmp_path / "right.jsonl", right), above=1.0)))
    assert "No reward is above 1; the largest is 1: try --success-above 0.5." in said


def test_of_rewards_that_are_all_zero_none_is_above_the_threshold_and_that_is_believed(tmp_path: Path) -> None:
    rows = [row | {"reward": 0.0} for row in rewarded()]
    found = audited(logged(tmp_path / "log.jsonl", rows), above=0.5)
    assert "12 prompts never had a success" in " ".join(summary(found))
    counts = [{"step": s, "prompt": p, "scored": 4, "successes": 2} for s in (1, 2) for p in "ab"]
    assert audited(logged(tmp_path / "counts.jsonl", counts), above=1.0).knows_right


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_rewards_that_are_all_equal_are_a_reason_to_look_at_the_grader(tmp_path: Path, reward: float) -> None:
    rows = [row | {"reward": reward} for row in rewarded()]
    assert "look at the grader" in summary(audited(logged(tmp_path / "log.jsonl", rows)))[-1]
    counts = [{"step": s, "prompt": p, "scored": 4, "successes": int(4 * reward)} for s in (1, 2) for p in "ab"]
    assert "look at the grader" in summary(audited(logged(tmp_path / "counts.jsonl", counts)))[-1]


def test_where_gradients_are_not_only_of_successes_expectations_are_called_what_they_are(tmp_path: Path) -> None:
    rows = rewarded()
    plain = audited(logged(tmp_path / "plain.jsonl", rows))
    for index, row in enumerate(rows):
        row["reward"] -= 0.1 * (index % 2)
    shaped = audited(logged(tmp_path / "shaped.jsonl", rows), above=0.5)
    assert "would be expected to have a gradient" in " ".join(summary(plain))
    assert "would be expected to have both successes and failures" in " ".join(summary(shaped))
    page = write_report(shaped, tmp_path / "page", "command").read_text(encoding="utf-8")
    for heading in ("Rollouts in mixed groups, spent and planned", "in mixed groups, planned"):
        assert heading in page
    assert "with gradient, planned" not in page


def test_groups_whose_rewards_only_add_up_to_the_same_are_neither_right_nor_wrong(tmp_path: Path) -> None:
    rewards = [(1.0, 0.0), (0.0, 1.0)]
    rows = [{"step": 1, "prompt": "p", "accuracy_reward": a, "format_reward": b} for a, b in rewards]
    spent = summary(audited(logged(tmp_path / "log.jsonl", rows)))[0].replace("\N{NO-BREAK SPACE}", " ")
    assert "0.0 % all correct, 0.0 % all wrong, 100.0 % mixed with rewards that add up to the same" in spent


def test_what_needs_no_prior_is_said_as_the_low_end_of_its_interval(tmp_path: Path) -> None:
    found = audited(logged(tmp_path / "log.jsonl", rewarded()))
    assert found.expectation is not None
    low = f"{100 * found.expectation.without_prior.low:.1f}\N{NO-BREAK SPACE}%"
    assert f"Without a prior, at least {low}: the low end of its 95 % interval." in " ".join(summary(found))


def test_with_few_prompts_no_interval_is_given_and_the_reason_is(tmp_path: Path) -> None:
    found = audited(logged(tmp_path / "log.jsonl", rewarded(prompts=9)))
    said = " ".join(summary(found))
    assert "(no interval: too few prompts)" in said
    assert "95 % interval" not in said
    page = write_report(found, tmp_path / "page", "command").read_text(encoding="utf-8")
    assert "no interval: too few prompts" in page
    assert "nan" not in page.lower().replace("finance", "")


def test_uniform_plans_say_why_their_gain_has_no_interval(tmp_path: Path) -> None:
    found = audit([logged(tmp_path / "log.jsonl", rewarded())], Options(strategy="uniform"))
    assert "+0.0 points (no interval: every resample gives the same)" in " ".join(summary(found))


def test_without_steps_it_is_said_that_plans_pair_visits_and_not_times(tmp_path: Path) -> None:
    path = logged(tmp_path / "log.jsonl", rewarded())
    assert "from earlier steps alone" in " ".join(summary(audited(path)))
    rows = [{name: row[name] for name in ("prompt", "reward")} for row in rewarded()]
    found = audited(logged(path, rows))
    assert "from earlier steps alone" not in " ".join(summary(found))
    assert "the nth visits of all prompts as one step" in " ".join(summary(found))
    assert "Plans pair visits and not times" in " ".join(remarks(found))


def test_groups_of_several_times_the_usual_size_are_questioned(tmp_path: Path) -> None:
    rows = rewarded()
    assert "times the rollouts of the others" not in " ".join(summary(audited(logged(tmp_path / "log.jsonl", rows))))
    twice = [row for row in rows if (row["step"], row["prompt"]) in ((1, "p3"), (2, "p4"))]
    found = audited(logged(tmp_path / "log.jsonl", rows + twice))
    assert "2 groups had two or more times the rollouts of the others" in summary(found)[0]


def test_plans_that_differ_by_prompt_are_not_taken_for_merged_groups(tmp_path: Path) -> None:
    rows = rewarded()
    more = [row for row in rows if row["prompt"] == "p3"][::2] + [row for row in rows if row["prompt"] == "p4"]
    found = audited(logged(tmp_path / "log.jsonl", rows + more))
    assert "times the rollouts of the others" not in " ".join(summary(found))


def test_groups_that_come_from_several_runs_are_said_to_be_merged(tmp_path: Path) -> None:
    first, second = (logged(tmp_path / f"{name}.jsonl", rewarded(seed=seed)) for seed, name in enumerate("ab"))
    assert "48 groups came from several of the LOGS" in summary(audited(first, second))[0]
    assert "several of the LOGS" not in " ".join(summary(audited(first)))
    ranks = logged(tmp_path / "c.jsonl", [row | {"prompt": "!" + row["prompt"]} for row in rewarded()])
    assert "several of the LOGS" not in " ".join(summary(audited(first, ranks)))


def test_planned_and_spent_tokens_are_compared_over_the_same_groups(tmp_path: Path) -> None:
    rows = [row | {"length": 100 if index % 2 else None} for index, row in enumerate(rewarded())]
    found = audit([logged(tmp_path / "log.jsonl", rows)], Options(strategy="uniform"))
    assert "19,200 tokens" in summary(found)[-1]
    assert "The plans would have taken 19,200 tokens, +0.0 %" in summary(found)[-1]
    page = write_report(found, tmp_path / "page", "command").read_text(encoding="utf-8")
    assert "19,200 tokens, of 192 rollouts, 96 of them by the mean length of their group" in page


def test_failures_that_read_like_the_reference_are_said_to_do_just_that(tmp_path: Path) -> None:
    rows = rewarded(completion="\\boxed{7}", reference="7")
    said = " ".join(summary(audited(logged(tmp_path / "log.jsonl", rows))))
    assert "gave an answer that reads like the reference and failed nevertheless" in said


def test_figures_name_the_files_that_they_are_drawn_from(tmp_path: Path) -> None:
    pages = [
        write_report(audited(log), tmp_path / "page", "command").read_text(encoding="utf-8")
        for log in (logged(tmp_path / "log.jsonl", rewarded()), verl_dump(tmp_path / "rollouts"))
    ]
    assert "Data: log.jsonl" in pages[0]
    assert f"Data: 6 files of {tmp_path / 'rollouts'}" in pages[1]


@pytest.fixture
def trl_small() -> Any:
    pytest.importorskip("trl", reason="needs the extra 'trl'")
    sys.path.insert(0, str(Path(__file__).parents[2] / "trl"))
    import small

    return small


@pytest.mark.parametrize("chats", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_what_trl_logs_is_audited(tmp_path: Path, trl_small: Any, chats: bool, several: bool) -> None:
    from trl import GRPOTrainer

    rows = trl_small.rows(8)
    if chats:
        rows = rows.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})

    def luck(completion_ids: list[list[int]], ease: list[float], **_: Any) -> list[float]:
        return trl_small.luck(completion_ids, ease)

    def format_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [0.5] * len(completion_ids)

    def accuracy_reward(completion_ids: list[list[int]], ease: list[float], **_: Any) -> list[float]:
        return trl_small.luck(completion_ids, ease)

    trainer = GRPOTrainer(
        model=trl_small.model(),
        reward_funcs=[format_reward, accuracy_reward] if several else luck,
        args=trl_small.config(tmp_path, max_steps=4, log_completions=True, num_completions_to_print=0),
        train_dataset=rows,
        processing_class=trl_small.tokenizer(),
    )
    trainer.train()
    files = sorted((tmp_path / "completions").glob("*.parquet"))
    frame = pd.concat([pd.read_parquet(file) for file in files])
    reward = "accuracy_reward" if several else "luck"
    found = audited(tmp_path)
    assert found.reading.rows == len(frame) == 64
    assert not found.reading.problems.counts
    assert [columns.success for columns in found.reading.columns] == [(reward,)]
    counts = frame.assign(prompt=frame["prompt"].map(str)).groupby(["step", "prompt"])[reward].agg(["size", "sum"])
    assert sorted(zip(found.log.rollouts, found.log.successes, strict=True)) == sorted(
        zip(counts["size"], counts["sum"].astype(int), strict=True)
    )
    assert len(found.log.keys) == 8


def test_the_batches_that_trl_logs_at_several_updates_count_once(tmp_path: Path, trl_small: Any) -> None:
    from trl import GRPOTrainer

    trainer = GRPOTrainer(
        model=trl_small.model(),
        reward_funcs=trl_small.luck,
        args=trl_small.config(
            tmp_path, max_steps=4, num_iterations=2, log_completions=True, num_completions_to_print=0
        ),
        train_dataset=trl_small.rows(8),
        processing_class=trl_small.tokenizer(),
    )
    trainer.train()
    found = audited(tmp_path)
    assert found.reading.rows == 64
    assert found.log.repeated_steps == [2, 4]
    assert int(found.log.rollouts.sum()) == 32
    assert "2 steps held exactly the rollouts of the step before" in " ".join(remarks(found))


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_what_had_a_gradient_is_what_trl_says_had_one(tmp_path: Path, trl_small: Any, scale: str) -> None:
    from trl import GRPOTrainer

    def some(completion_ids: list[list[int]], ease: list[float], log_extra: Any, **_: Any) -> list[float]:
        """A part of the reward of what is right, and another of what is wrong: together .5 of everything."""
        log_extra("difficulty", [1.0 - share for share in ease])
        log_extra("words", ["w"] * len(ease))
        return [0.25 if index % 2 else 0.5 for index in range(len(ease))]

    def rest(completion_ids: list[list[int]], ease: list[float], **_: Any) -> list[float]:
        won = trl_small.luck(completion_ids, ease)
        return [one + (0.25 if index % 2 else 0.0) for index, one in enumerate(won)]

    def metric_length(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(len(ids) + index % 3) for index, ids in enumerate(completion_ids)]

    def accuracy(completion_ids: list[list[int]], ease: list[float], **_: Any) -> list[float]:
        return trl_small.luck(completion_ids, ease)

    trainer = GRPOTrainer(
        model=trl_small.model(),
        reward_funcs=[some, rest, metric_length, accuracy],
        args=trl_small.config(
            tmp_path, max_steps=4, log_completions=True, num_completions_to_print=0, scale_rewards=scale,
            reward_weights=[1.0, 1.0, 0.0, 0.0],
        ),
        train_dataset=trl_small.rows(8),
        processing_class=trl_small.tokenizer(),
    )  # fmt: skip
    trainer.train()
    found = audited(tmp_path)
    rewards = pd.concat([pd.read_parquet(file) for file in sorted((tmp_path / "completions").glob("*.parquet"))])
    won = rewards["accuracy"].to_numpy().reshape(-1, 4).sum(axis=1)
    share = float(((won == 0) | (won == 4)).mean())
    assert without_gradient(found.log) == share
    if scale != "batch":  # of a batch TRL says whether all of it is the same
        said = [entry["frac_reward_zero_std"] for entry in trainer.state.log_history if "frac_reward_zero_std" in entry]
        assert np.mean(said) == pytest.approx(share)
    assert [columns.success for columns in found.reading.columns] == [("accuracy",)]
    assert int(found.log.successes.sum()) == int(won.sum())


def test_all_figures_are_printed_as_json_for_scripts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = verl_dump(tmp_path / "rollouts")
    code = main(["audit", str(folder), "--json", "--output", str(tmp_path / "page")])
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (code, captured.err) == (0, "")
    assert found["spent"]["rollouts"] == 288
    assert len(found["spent"]["by_step"]) == 6
    assert 0.0 < found["spent"]["share_without_gradient"] < 1.0
    assert found["right_and_wrong"]["prompts_never_right"] >= 1
    assert set(found["plans"]["moved_by_strategy"]) >= {"knapsack", "adaptive"}
    assert found["gains"] is None  # six steps are too few
    assert [row["rollouts in a group"] for row in found["advice"]["group_sizes"]] == [2, 4, 8, 16, 32]
    assert sum(found["advice"]["waste"].values()) == pytest.approx(1.0)
    assert found == json.loads((tmp_path / "page" / "audit.json").read_text(encoding="utf-8"))
    assert found["report"] == str(tmp_path / "page" / "report.html")


def test_what_is_not_known_is_null_in_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "reward": i / 7, "step": 1} for i in range(5)]
    log = logged(tmp_path / "log.jsonl", rows)
    main(["audit", str(log), "--json", "--output", str(tmp_path / "page")])
    found = json.loads(capsys.readouterr().out)
    assert found["spent"]["share_without_gradient"] is None
    assert found["right_and_wrong"] is found["plans"] is found["graders"] is None


def test_the_page_of_other_logs_is_never_overwritten(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (logged(tmp_path / folder / "log.jsonl", rewarded(steps=1)) for folder in "ab")
    pages = []
    for log in (first, second, first, second):
        _, out, _ = run(capsys, log)
        pages.append(out.rpartition("report ")[2].strip())
    assert pages == ["runs/audit/log/report.html", "runs/audit/log-2/report.html"] * 2
    (tmp_path / "runs/audit/log/audit.json").unlink()  # whose page that is cannot be told any more
    assert default_output([first]) == Path("runs", "audit", "log-3")


def test_figures_of_an_earlier_audit_go_and_files_of_others_stay(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    figures = tmp_path / "page" / "figures"
    names = []
    for steps in (4, 1):
        run(capsys, logged(tmp_path / "log.jsonl", rewarded(steps=steps)), "--output", tmp_path / "page")
        names.append({path.name for path in figures.iterdir()})
        for other in ("mine.csv", "concentration.txt", "gains"):
            (figures / other).write_text("mine")
    assert {"plans-by-belief.csv", "expected-gradients.svg", "gradient-shares.png"} < names[0]
    assert names[1] - {"mine.csv", "concentration.txt", "gains"} == {
        name for name in names[0] if not name.startswith(("plans-", "expected-"))
    }
    assert {path.name for path in figures.iterdir()} >= {"mine.csv", "concentration.txt", "gains"}


@pytest.mark.parametrize("name", ["report.html", "audit.json", "figures/gains.png"])
def test_a_page_does_not_take_the_place_of_files_of_others(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mine = tmp_path / "page" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    code, _, said = run(capsys, logged(tmp_path / "log.jsonl", rewarded()), "--output", tmp_path / "page")
    assert code == 2
    assert f"--output: {mine} is of no page of this program. Choose another place with --output." in said
    assert mine.read_text() == "mine"


def test_the_advice_follows_from_the_figures(tmp_path: Path) -> None:
    page = write_report(audited(logged(tmp_path / "log.jsonl", rewarded())), tmp_path / "page", "command")
    text = page.read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    last = text[text.rindex("What to do about it") :]
    assert "Groups of other sizes" in last
    assert "Of the rollouts without gradient" in last
    assert "The plans of" in last
    assert "of the training time after generation" in last
    solved = rewarded() + [row | {"prompt": f"easy {i}", "reward": 1.0} for i in range(40) for row in rewarded()[:4]]
    said = " ".join(advice(audited(logged(tmp_path / "solved.jsonl", solved))))
    assert "Leave out prompts that are always solved" in said
    mixed = [row | {"reward": float(index % 2)} for index, row in enumerate(rewarded())]
    assert "Rollouts were not the bottleneck" in " ".join(advice(audited(logged(tmp_path / "mixed.jsonl", mixed))))
