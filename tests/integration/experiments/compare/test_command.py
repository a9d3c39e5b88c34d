"""`knapsack-rl compare` with real runs in real processes, on a recipe of a second or two."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

from knapsack_rl.cli import main
from knapsack_rl.experiments.compare import comparison
from knapsack_rl.experiments.compare.arms import Failure
from knapsack_rl.experiments.compare.comparison import ArmRun

RECIPE = """
name: tiny
trainer: minimal
task: {kind: chain-arithmetic, train_problems: 26, eval_problems: 10, operations: 1}
model: {kind: scratch, layers: 1, width: 32, heads: 2, warm_start: {steps: 60, batch_size: 64}}
allocator: {strategy: knapsack, max_rollouts: 16}
training:
  steps: 6
  prompts_per_step: 8
  group_size: 4
  micro_batch_size: 32
  learning_rate: 1e-3
  max_completion_length: 4
evaluation: {every: 2, samples: 4}
"""
COMPARISON = """
name: small
recipe: tiny.yaml
arms: [uniform, knapsack]
seeds: [1, 2]
tuning:
  grid: {training.learning_rate: [1e-3, 3e-3]}
  seeds: [8]
"""
RUNS = 4 + 4  # of the tuning and of the report
TIMES = ["seconds", "allocation_share"]


pytestmark = pytest.mark.usefixtures("offline_with_a_cache_of_its_own")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "tiny.yaml").write_text(RECIPE)
    (folder / "small.yaml").write_text(COMPARISON)
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def done(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished comparison."""
    output = tmp_path_factory.mktemp("runs")
    assert main(["compare", str(file), "--output", str(output), "--jobs", "2"]) == 0
    return output


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Path:
    """A copy of the finished comparison."""
    return Path(shutil.copytree(done, tmp_path / "runs"))


def environments(output: Path) -> dict[str, str]:
    """When and how each run was made."""
    return {path.parent.name: path.read_text() for path in (output / "arms").glob("*/environment.json")}


def table(output: Path, name: str, of: str = "small") -> pd.DataFrame:
    return pd.read_csv(output / of / f"{name}.csv")


def assert_same_results(output: Path, other: Path, of: str = "small") -> None:
    for name in ("summary", "runs", "curves", "cost_to_reach"):
        ours, theirs = (table(folder, name, of).drop(columns=TIMES, errors="ignore") for folder in (output, other))
        pd.testing.assert_frame_equal(ours, theirs)


def test_a_comparison_leaves_its_tables_its_page_and_every_run(file: Path, done: Path) -> None:
    left = {path.name for path in (done / "small").iterdir()}
    assert {"comparison.yaml", "summary.csv", "runs.csv", "curves.csv", "tuning.csv", "report.html"} <= left
    assert len(environments(done)) == RUNS
    runs, summary, tuning = (table(done, name) for name in ("runs", "summary", "tuning"))
    assert sorted(zip(runs["arm"], runs["seed"], strict=True)) == [
        ("knapsack", 1),
        ("knapsack", 2),
        ("uniform", 1),
        ("uniform", 2),
    ]
    assert summary["arm"].tolist() == ["uniform", "knapsack"]
    assert (runs["rollouts"] == 6 * 32).all()
    assert len(tuning) == 4
    best = tuning.loc[tuning.groupby("arm")["accuracy"].idxmax()].set_index("arm")["choice"]
    assert summary.set_index("arm")["choice"].to_dict() == best.to_dict()
    for run in runs.to_dict("records"):
        recipe = (done / "arms" / run["folder"] / "recipe.yaml").read_text()
        assert f"learning_rate: {run['choice'].partition('=')[2]}\n" in recipe
        assert json.loads(environments(done)[run["folder"]])["threads"] == 1


def test_arms_of_a_seed_have_the_same_warm_start_problems_and_order_of_prompts(done: Path) -> None:
    runs, curves = table(done, "runs"), table(done, "curves")
    begun = curves[(curves["step"] == 0) & (curves["benchmark"] == "mean")]
    assert (begun.groupby("seed")["accuracy"].nunique() == 1).all()
    for _, of_seed in runs.groupby("seed"):
        visits = [pd.read_parquet(done / "arms" / folder / "allocations.parquet") for folder in of_seed["folder"]]
        assert len(visits) == 2
        assert visits[0][["step", "prompt"]].equals(visits[1][["step", "prompt"]])
        assert not visits[0]["rollouts"].equals(visits[1]["rollouts"])


def test_the_comparison_on_record_is_the_same_comparison(file: Path, done: Path) -> None:
    original, recorded = comparison.read(file), comparison.read(done / "small" / "comparison.yaml")
    assert recorded.tuning() == original.tuning()
    chosen = {(arm.variation, arm.name): arm.choice for arm in original.tuning()}
    assert recorded.reported(chosen) == original.reported(chosen)


def test_a_second_call_runs_nothing_and_writes_the_same_tables(file: Path, again: Path) -> None:
    before = environments(again)
    times = {path: path.stat().st_mtime_ns for path in (again / "arms").rglob("*")}
    tables = {path.name: path.read_bytes() for path in (again / "small").glob("*.csv")}
    for path in (again / "small").glob("*.csv"):
        path.unlink()
    assert main(["compare", str(file), "--output", str(again)]) == 0
    assert environments(again) == before
    assert {path: path.stat().st_mtime_ns for path in (again / "arms").rglob("*")} == times
    assert {path.name: path.read_bytes() for path in (again / "small").glob("*.csv")} == tables


def test_a_folder_of_runs_is_not_taken_for_a_comparison(file: Path, done: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", str(file), "name=arms", "--output", str(done)]) == 2
    assert "where the runs of all comparisons are already" in capsys.readouterr().err
    run = next((done / "arms").glob("uniform-*/")).name
    assert main(["compare", str(file), f"name={run}", "--output", str(done / "arms")]) == 2
    assert "where a run is already" in capsys.readouterr().err


def test_tables_of_an_earlier_state_of_a_comparison_do_not_stay(file: Path, again: Path) -> None:
    figures = again / "small" / "figures"
    earlier = {path.name for path in figures.iterdir()}
    assert (again / "small" / "tuning.csv").exists()
    assert main(["compare", str(file), "tuning=null", "training.learning_rate=1e-3", "--output", str(again)]) == 0
    assert not (again / "small" / "tuning.csv").exists()
    assert earlier - {path.name for path in figures.iterdir()} == {"tuning.svg", "tuning.png", "tuning.csv"}


def test_files_of_others_in_the_folder_of_a_comparison_stay(file: Path, again: Path) -> None:
    mine = [again / "small" / name for name in ("my-data.csv", "figures/mine.png", "figures/sub/tuning.png")]
    (again / "small" / "figures" / "sub").mkdir()
    for path in mine:
        path.write_text("mine")
    assert main(["compare", str(file), "tuning=null", "training.learning_rate=1e-3", "--output", str(again)]) == 0
    assert [path.read_text() for path in mine] == ["mine"] * 3


OTHERS = {
    "a table": {"my-data.csv": "1,2\n", "figures/mine.png": "mine"},
    "a folder": {"sub/thesis.tex": "mine"},
    "a comparison that somebody wrote": {"comparison.yaml": COMPARISON},
    "tables of the same names": {"summary.csv": "mine", "report.html": "mine"},
    "a comparison of another program": {"comparison.yaml": "- 1\n", "runs.csv": ""},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_folder_with_other_things_in_it_is_refused_before_anything_runs(
    what: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in OTHERS[what].items():
        (tmp_path / "small" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "small" / name).write_text(text)
    for more in ([], ["--dry-run"]):
        assert main(["compare", str(file), "--output", str(tmp_path), *more]) == 2
        assert f"--output: {tmp_path / 'small'} has files in it that are not of a comparison" in capsys.readouterr().err
    left = {str(path.relative_to(tmp_path / "small")): path.read_text() for path in (tmp_path / "small").rglob("*.*")}
    assert left == OTHERS[what]
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_comparison_that_was_cut_off_before_its_page_goes_on(file: Path, done: Path, again: Path) -> None:
    for path in (again / "small").iterdir():
        if path.name not in ("comparison.yaml", "summary.csv", ".lock"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(["compare", str(file), "--output", str(again)]) == 0
    assert_same_results(again, done)


def without_last_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


LOST = {
    "metrics.jsonl has no steps": lambda run: (run / "metrics.jsonl").unlink(),
    "metrics.jsonl has no evaluation after step 6": lambda run: without_last_line(run / "metrics.jsonl"),
    "has no recipe.yaml": lambda run: (run / "recipe.yaml").unlink(),
}


@pytest.mark.parametrize("what", LOST)
def test_a_finished_run_of_which_a_part_is_lost_is_told_and_the_others_are_compared(
    what: str, file: Path, done: Path, again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = table(again, "runs")
    folder = again / "arms" / runs["folder"].iloc[-1]
    LOST[what](folder)
    for _ in ("at once", "and again"):
        assert main(["compare", str(file), "--output", str(again)]) == 1
        said = capsys.readouterr().out
        assert (
            f"failed: knapsack, {runs['choice'].iloc[-1]}, seed 2: the run in {folder} is finished, but a part" in said
        )
        assert what in said
        assert "remove that folder: the same command then runs the arm again" in said
        assert "tries them again" not in said
        left = table(again, "runs").drop(columns=TIMES)
        assert left.equals(table(done, "runs").drop(columns=TIMES).iloc[:-1])
    shutil.rmtree(folder)
    assert main(["compare", str(file), "--output", str(again)]) == 0
    assert_same_results(again, done)


def test_what_was_lost_of_the_baseline_is_told_where_nothing_can_be_compared(
    file: Path, again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (again / "small" / "summary.csv").read_bytes()
    runs = table(again, "runs")
    for folder in runs.loc[runs["arm"] == "uniform", "folder"]:
        (again / "arms" / folder / "metrics.jsonl").unlink()
    assert main(["compare", str(file), "--output", str(again)]) == 2
    said = capsys.readouterr().err
    assert "no arm of the baseline came to its end" in said
    assert "metrics.jsonl has no steps" in said
    assert (again / "small" / "summary.csv").read_bytes() == before


def test_an_arm_that_another_comparison_finished_meanwhile_has_not_failed(
    file: Path, done: Path, again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = again / "arms" / table(again, "runs")["folder"].iloc[-1] / "environment.json"
    text = environment.read_text()
    environment.write_text(json.dumps(json.loads(text) | {"finished": None}))

    def refused(arms: list[ArmRun], pool: Path, *_: object) -> list[Failure]:
        environment.write_text(text)
        (arm,) = (arm for arm in arms if pool / arm.folder == environment.parent)
        return [Failure(arm, "another process is at work there", Path())]

    monkeypatch.setattr("knapsack_rl.experiments.compare.arms.run", refused)
    assert main(["compare", str(file), "--output", str(again)]) == 0
    assert_same_results(again, done)


def test_a_point_of_the_grid_of_whose_run_a_part_is_lost_is_out(file: Path, again: Path) -> None:
    chosen = table(again, "summary").set_index("arm")["choice"]
    (trial,) = (
        arm.folder for arm in comparison.read(file).tuning() if (arm.name, arm.choice) == ("uniform", chosen["uniform"])
    )
    without_last_line(again / "arms" / trial / "metrics.jsonl")
    assert main(["compare", str(file), "--output", str(again)]) == 1
    assert len(table(again, "tuning")) == 3
    assert table(again, "summary").set_index("arm")["choice"]["uniform"] != chosen["uniform"]


def test_dynamic_sampling_ends_with_its_budget_and_not_with_a_step(file: Path, tmp_path: Path) -> None:
    changes = ["arms=[uniform, dynamic-sampling]", "tuning=null", "seeds=[1, 2]", "--output", str(tmp_path)]
    assert main(["compare", str(file), *changes]) == 0
    runs = table(tmp_path, "runs")
    assert (runs["rollouts"] == 6 * 32).all()
    assert (runs.loc[runs["arm"] == "dynamic-sampling", "steps"] < 6).any()


def test_another_comparison_takes_the_runs_that_are_there(file: Path, again: Path) -> None:
    before = environments(again)
    changes = ["name=other", "arms={knapsack: , the usual: {allocator.strategy: uniform}}", "baseline=the usual"]
    assert main(["compare", str(file), *changes, "--output", str(again)]) == 0
    assert environments(again) == before
    assert table(again, "runs", "other")["folder"].nunique() == 4


def test_only_what_is_missing_is_run(file: Path, done: Path, again: Path) -> None:
    before = environments(again)
    missing = table(again, "runs")["folder"].iloc[-1]
    shutil.rmtree(again / "arms" / missing)
    assert main(["compare", str(file), "--output", str(again)]) == 0
    after = environments(again)
    assert {name for name in after if after[name] != before.get(name)} <= {missing}
    assert after.keys() == before.keys()
    assert_same_results(again, done)


@pytest.mark.parametrize("cost", ["tokens", "seconds"])
def test_arms_can_be_taken_at_equal_tokens_or_seconds(cost: str, file: Path, again: Path) -> None:
    before = environments(again)
    # Without tuning, of which the choice may depend on what is equal.
    changes = [f"equal={cost}", f"name=by-{cost}", "tuning=null", "training.learning_rate=1e-3"]
    assert main(["compare", str(file), *changes, "seeds=[8]", "--output", str(again)]) == 0
    assert environments(again) == before
    runs = table(again, "runs", f"by-{cost}")
    least = runs.groupby("seed")[cost].transform("min")
    assert runs["cost"].tolist() == pytest.approx(least.tolist())
    curves = table(again, "curves", f"by-{cost}")
    for run in runs.to_dict("records"):
        own = curves[(curves["arm"] == run["arm"]) & (curves["seed"] == run["seed"]) & (curves["benchmark"] == "mean")]
        before_it, after_it = own[own[cost] <= run["cost"] * 1.0001], own[own[cost] >= run["cost"] * 0.9999]
        ends = sorted([before_it["accuracy"].iloc[-1], after_it["accuracy"].iloc[0]])
        assert ends[0] - 1e-5 <= run["accuracy"] <= ends[1] + 1e-5


def test_arms_that_fail_are_reported_with_their_reasons_and_the_others_go_on(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = "uniform: , wrong: {trainer: trl, trl.colour: red}, greedy: {training.prompts_per_step: 32}"
    changes = [f"arms={{{arms}, knapsack: }}", "tuning=null", "seeds=[1]"]
    assert main(["compare", str(file), *changes, "--output", str(tmp_path / "runs"), "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert "failed: wrong, seed 1: the recipe's trl block is not valid: trl.colour: no field of TRL's" in said
    assert "failed: greedy, seed 1: training.prompts_per_step: expected at most the 26 problems" in said
    assert "2 run(s) failed; the same command tries them again" in said
    for line in said.splitlines():
        if line.startswith("failed: "):
            log = Path(line.rpartition("(see ")[2].rstrip(")"))
            assert log.read_text().strip().splitlines()[-1] in line
    assert table(tmp_path / "runs", "summary")["arm"].tolist() == ["uniform", "knapsack"]
    assert (tmp_path / "runs" / "small" / "report.html").exists()


def test_without_a_run_of_the_baseline_nothing_is_compared_and_the_reason_is_told(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["arms={uniform: {training.prompts_per_step: 32}, knapsack: }", "tuning=null", "seeds=[1]"]
    assert main(["compare", str(file), *changes, "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "no arm of the baseline came to its end" in said
    assert "failed: uniform, seed 1: training.prompts_per_step: expected at most the 26 problems" in said
    assert not (tmp_path / "small" / "summary.csv").exists()


def test_a_dry_run_tells_what_would_run_and_runs_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(file), "--dry-run", "--output", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "training.learning_rate in [0.001, 0.003], on seeds 8: 4 runs, 4 of them to do" in said
    assert "4 runs" in said
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_cannot_be_written_to_is_refused(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["compare", str(file), "--output", str(tmp_path / "file")]) == 2
    assert f"--output: cannot write to {tmp_path / 'file' / 'small'}" in capsys.readouterr().err


def test_both_trainers_run_in_one_comparison(file: Path, tmp_path: Path) -> None:
    changes = ["arms={uniform: , by TRL: {allocator.strategy: uniform, trainer: trl}}", "tuning=null", "seeds=[1]"]
    assert main(["compare", str(file), *changes, "--output", str(tmp_path)]) == 0
    runs = table(tmp_path, "runs").set_index("arm")
    assert runs["start"].nunique() <= 2
    assert runs["rollouts"].tolist() == [6 * 32] * 2
    assert (runs["seconds"] > 0).all()


LONG = 400
INTERRUPTED = [
    f"arms={{uniform: , brief: {{training.steps: 1}}, long: {{training.steps: {LONG}}}}}",
    "tuning=null",
    "seeds=[1]",
]


@pytest.fixture(scope="module")
def uninterrupted(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    assert main(["compare", str(file), *INTERRUPTED, "--output", str(output), "--jobs", "2"]) == 0
    return output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_no_arm_outlives_a_comparison_and_the_same_command_goes_on_to_the_same_results(
    number: signal.Signals, file: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    arguments = ["compare", str(file), *INTERRUPTED, "--output", str(tmp_path), "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "knapsack_rl.cli", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("comparing: brief"):  # and the long one is under way
            if number == signal.SIGINT:
                os.killpg(process.pid, number)  # as a terminal does it
            else:
                process.send_signal(number)
            break
    said += process.stdout.read()
    process.stdout.close()
    assert process.wait() == (-number if number == signal.SIGKILL else 128 + number), said
    assert ("To go on:\n  knapsack-rl compare" in said) == (number != signal.SIGKILL)

    (long,) = (arm.folder for arm in comparison.read(file, INTERRUPTED).reported({}) if arm.name == "long")
    if (tmp_path / "arms" / long).exists():
        with (tmp_path / "arms" / long / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # an arm holds it as long as it lives
    interrupted = environments(tmp_path)
    finished = {name for name, text in interrupted.items() if json.loads(text)["finished"] is not None}
    assert long not in finished
    assert len(finished) == 2

    assert main(arguments) == 0
    assert {name: environments(tmp_path)[name] for name in finished} == {name: interrupted[name] for name in finished}
    assert_same_results(tmp_path, uninterrupted)
