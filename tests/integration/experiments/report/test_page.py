"""The report page, made from small synthetic run directories and opened in a real Chromium."""

from __future__ import annotations

import csv
import html
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the report extra is not installed")
pytest.importorskip("pyarrow", reason="the report extra is not installed")
pytest.importorskip("pydantic", reason="the train extra, whose run directories are read here, is not installed")

import pages
import pyarrow as pa
import pyarrow.parquet as pq

import knapsack_rl as kr
from knapsack_rl.belief import Belief
from knapsack_rl.experiments.report.run_report import write_report
from knapsack_rl.experiments.runs.run_directory import RunDirectory

FIGURES = {
    "gradient-ratios",
    "held-out-accuracy",
    "budget-histogram",
    "budget-quantiles",
    "transitions",
    "status-counts",
    "prompt-reward",
    "single-prompts",
    "calibration",
    "log-score",
}


def write_run(
    folder: Path,
    *,
    strategy: str = "knapsack",
    steps: int = 40,
    planned: int = 40,
    evaluate_every: int = 10,
    benchmarks: tuple[str, ...] = ("held-out",),
    prompts: int = 96,
    per_step: int = 32,
    seed: int = 0,
    beliefs: bool = True,
    cost_limit: float | None = None,
) -> Path:
    """A run directory whose rewards are drawn from success rates that rise while a real allocator plans."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1.0, 4.0, size=prompts)
    allocator = kr.BudgetAllocator(strategy, 8, max_rollouts=64, seed=seed, cost_limit=cost_limit)
    records: list[dict[str, object]] = []
    plans: list[tuple[int, list[str], list[int], list[int], Belief | None]] = []
    ids = [f"prompt-{index:03d}" for index in range(prompts)]
    order = np.arange(prompts)

    def evaluate(step: int) -> None:
        solved = float(np.mean(1 / (1 + np.exp(-logit))))
        scores = {name: round(solved * 0.9**index, 4) for index, name in enumerate(benchmarks)}
        records.append({"step": step, "rollouts": step * per_step * 8, "time": step * 1.4, "evaluation": scores})

    if evaluate_every:
        evaluate(0)
    for step in range(1, steps + 1):
        if (step - 1) * per_step % prompts == 0:
            rng.shuffle(order)
        start = (step - 1) * per_step % prompts
        batch = order[start : start + per_step]
        belief = allocator.belief([ids[index] for index in batch])
        plan = allocator.ask([ids[index] for index in batch])
        successes = rng.binomial(plan.rollouts, 1 / (1 + np.exp(-logit[batch])))
        spent: dict[str, float] = {}
        if cost_limit is None:
            allocator.tell([ids[index] for index in batch], successes, plan.rollouts)
        else:  # hard prompts have long answers
            tokens = plan.rollouts * (4 + (logit[batch] < 0.0) * 8)
            expected = allocator.expected_costs([ids[index] for index in batch]) if step > 1 else None
            allocator.tell([ids[index] for index in batch], successes, plan.rollouts, costs=tokens)
            found = kr.metrics.step_metrics(plan.rollouts, successes, costs=tokens, expected_costs=expected)
            spent = {name: number for name, number in found.items() if name.startswith("cost/")}
        mixed = (successes > 0) & (successes < plan.rollouts)
        logit[batch] += 0.8 * mixed + rng.normal(0.05, 0.1, size=per_step)
        zero = kr.metrics.zero_gradient_ratios(successes, plan.rollouts)
        records.append(
            {
                "step": step,
                "rollouts": step * per_step * 8,
                "time": step * 1.4,
                "effective_gradient_ratio": kr.metrics.effective_gradient_ratio(successes, plan.rollouts),
                "zero_gradient_ratio/all_positive": zero.all_positive,
                "zero_gradient_ratio/all_negative": zero.all_negative,
                "prompt_reward": float(np.mean(successes / plan.rollouts)),
                "allocation_seconds": 0.0004,
                **spent,
            }
            | ({"belief/log_score": float(belief.log_likelihood(successes, plan.rollouts).mean())} if beliefs else {})
        )
        names = [ids[index] for index in batch]
        plans.append((step, names, plan.rollouts.tolist(), successes.tolist(), belief))
        if evaluate_every and step % evaluate_every == 0:
            evaluate(step)
    directory = RunDirectory(folder)
    directory.claim(
        f"name: {folder.name}\nseed: {seed}\nallocator:\n  strategy: {strategy}\ntraining:\n  steps: {planned}\n"
        "  prompts_per_step: 32\n  group_size: 8\nevaluation:\n  samples: 16\n"
    )
    environment = {
        "command": f"knapsack-rl train name={folder.name}",
        "seed": seed,
        "python": "3.11.9",
        "platform": "Linux-6.1-x86_64",
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00" if steps == planned else None,
        "versions": {"knapsack-rl": "0.1.0", "torch": "2.13.0", "trl": "1.16.0"},
    }
    directory.write_environment(environment)
    for record in records:
        directory.append_metrics(record)
    for step, names, rollouts, successes, believed in plans:
        directory.append_allocations(step, names, rollouts, rollouts, successes, believed)
    directory.release()
    return folder


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "demo")
    write_report([run])
    return run


@pytest.mark.parametrize("width", [390, 1280])
def test_page_shows_every_figure_without_sideways_scrolling(finished_run: Path, tmp_path: Path, width: int) -> None:
    seen = pages.read_in_browser(finished_run / "report.html", tmp_path, width)

    pages.check_layout(seen, width)
    assert {figure["name"] for figure in seen["figures"]} == FIGURES
    assert [table["name"] for table in seen["tables"]] == ["key-numbers", "top-prompts"]
    shown = ["Key numbers", "Learning", "Budgets", "Predictions", "Prompts"]
    assert seen["headings"] == ["demo", *shown, "How the run was made", "How this page was made"]


def test_page_names_no_address(finished_run: Path) -> None:
    page = (finished_run / "report.html").read_text(encoding="utf-8")

    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page


def test_several_runs_share_a_page_that_fits_a_phone(finished_run: Path, tmp_path: Path) -> None:
    uniform = write_run(tmp_path / "uniform", strategy="uniform")

    page = write_report([uniform, finished_run])

    assert page == tmp_path / "uniform-vs-demo" / "report.html"
    seen = pages.read_in_browser(page, tmp_path, 390)
    pages.check_layout(seen, 390)
    assert {figure["name"] for figure in seen["figures"]} == FIGURES
    assert seen["headings"][0] == "uniform against demo"


def test_figure_of_only_some_runs_says_so(finished_run: Path, tmp_path: Path) -> None:
    unmeasured = write_run(tmp_path / "unmeasured", steps=1, evaluate_every=0)

    page = write_report([finished_run, unmeasured], tmp_path / "page.html").read_text(encoding="utf-8")

    found = re.findall(r'<figure id="(.*?)">.*?<figcaption>(.*?)<', page, re.DOTALL)
    partial = {name for name, caption in found if "Only demo: the others have no such data yet." in caption}
    assert partial == {"held-out-accuracy", "transitions"}
    assert "single-prompts" not in {name for name, _ in found}  # no prompt was visited twice in both


def test_run_that_recorded_no_beliefs_has_a_page_without_predictions(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", beliefs=False)
    shutil.rmtree(run / "allocations.parquet")
    visit = {"step": [1, 2], "prompt": ["a", "a"], "rollouts": [8, 8], "scored": [8, 8], "successes": [0, 4]}
    pq.write_table(pa.table(visit), run / "allocations.parquet")  # as earlier versions wrote it

    page = write_report([run])

    figures = {path.stem for path in (run / "figures").glob("*.svg")}
    assert figures == FIGURES - {"calibration", "log-score"}
    assert "Predictions" not in page.read_text(encoding="utf-8")
    assert not any("Log score" in quantity for quantity in table_cells(page))


def test_run_that_was_told_costs_shows_real_ones_beside_expected_ones(tmp_path: Path) -> None:
    run = write_run(tmp_path / "priced", steps=12, planned=12, cost_limit=1.0)

    page = write_report([run])

    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in logged if "evaluation" not in line]
    with (run / "figures" / "costs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for quantity, key in {"real": "cost/real", "expected": "cost/expected", "even groups": "cost/even"}.items():
        drawn = {int(row["step"]): float(row["value"]) for row in rows if row["quantity"] == quantity}
        assert drawn == {step["step"]: step[key] for step in steps if key in step}
    assert sum("cost/expected" in step for step in steps) == len(steps) - 1  # nothing is known before the first
    assert all(step["cost/expected"] <= step["cost/even"] * (1 + 1e-8) for step in steps[1:])
    mean = np.mean([step["cost/real"] for step in steps])
    assert table_cells(page)["Tokens per step, mean"] == f"{mean:,.0f}"


def test_an_alarm_is_said_with_its_step_and_category(tmp_path: Path) -> None:
    run = write_run(tmp_path / "broken", steps=4, planned=4)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "evaluation" not in line:
            late = line["step"] >= 3
            line |= {"alarms": float(late), "category/source/a/success": 0.0 if late else 0.5}
            line |= {"category/source/b/success": 0.5}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    page = write_report([run]).read_text(encoding="utf-8")

    assert "broken: at step 3 the alarm for broken graders was raised (source/a had all rollouts wrong" in page


def test_every_figure_lies_beside_the_page_as_svg_png_and_csv(finished_run: Path) -> None:
    files = {path.name for path in (finished_run / "figures").iterdir()} - {".lock"}

    tables = {"key-numbers.csv", "top-prompts.csv"}
    assert files == {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png", "csv")} | tables


def test_same_run_gives_the_same_bytes(finished_run: Path) -> None:
    def contents() -> dict[str, bytes]:
        paths = [finished_run / "report.html", *sorted((finished_run / "figures").iterdir())]
        return {path.name: path.read_bytes() for path in paths}

    before = contents()
    write_report([finished_run])

    assert contents() == before


def test_key_numbers_are_those_of_the_data(finished_run: Path) -> None:
    allocations = pq.read_table(finished_run / "allocations.parquet").to_pylist()
    rates: dict[str, list[float]] = {}
    for row in allocations:
        rates.setdefault(row["prompt"], []).append(row["successes"] / row["scored"])
    unsolved = [sum(visits[at] == 0 for visits in rates.values()) for at in (0, -1)]
    never = sum(max(visits) == 0 for visits in rates.values())
    mixed = sum(0 < row["successes"] < row["scored"] for row in allocations)
    logged = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    ratio = np.mean([line["effective_gradient_ratio"] for line in logged if "evaluation" not in line])
    accuracy = [line["evaluation"]["held-out"] for line in logged if "evaluation" in line]

    cells = table_cells(finished_run / "report.html")

    assert cells["Steps"] == "40"
    assert cells["Rollouts"] == "10,240"
    assert cells["Accuracy on held-out, first"] == f"{100 * accuracy[0]:.1f} %"
    assert cells["Accuracy on held-out, last"] == f"{100 * accuracy[-1]:.1f} %"
    assert cells["Effective gradient ratio, mean"] == f"{100 * ratio:.1f} %"
    assert cells["Prompts per step, mean"] == "32"
    assert cells["Effective prompts per step, mean"] == f"{mixed / 40:.1f}"
    scores = [  # ln B(wins + s, losses + f) - ln B(wins, losses)
        sum(
            sign * math.lgamma(x)
            for sign, x in ((1, a + s), (1, b + n - s), (-1, a + b + n), (-1, a), (-1, b), (1, a + b))
        )
        for a, b, s, n in (
            (row["belief_wins"], row["belief_losses"], row["successes"], row["scored"]) for row in allocations
        )
    ]
    assert cells["Log score of predictions, mean (nats)"] == f"{np.mean(scores):.3f}"
    assert cells["Prompts visited"] == "96"
    assert cells["Prompts without a success at the first visit"] == str(unsolved[0])
    assert cells["Prompts without a success at the last visit"] == str(unsolved[1])
    assert cells["Prompts never solved in the run"] == str(never)
    assert cells["Wall-clock of training and evaluation"] == "56.0 s"
    assert cells["Share of it in allocation"] == "0.03 %"


def test_key_numbers_beside_the_page_have_every_digit(finished_run: Path) -> None:
    with (finished_run / "figures" / "key-numbers.csv").open(encoding="utf-8", newline="") as file:
        numbers = dict(csv.reader(file))
    logged = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]

    ratio = np.mean([line["effective_gradient_ratio"] for line in logged if "evaluation" not in line])
    assert float(numbers["Effective gradient ratio, mean"]) == ratio
    assert float(numbers["Wall-clock of training and evaluation"]) == 56.0


def test_prompts_with_most_of_the_budget_are_listed(finished_run: Path) -> None:
    spent: dict[str, int] = {}
    solved: dict[str, int] = {}
    for row in pq.read_table(finished_run / "allocations.parquet").to_pylist():
        spent[row["prompt"]] = spent.get(row["prompt"], 0) + row["rollouts"]
        solved[row["prompt"]] = solved.get(row["prompt"], 0) + row["successes"]
    most = sorted(spent, key=lambda prompt: (-spent[prompt], prompt))[:20]

    with (finished_run / "figures" / "top-prompts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    assert [row["Prompt"] for row in rows] == most
    assert [int(row["Rollouts"]) for row in rows] == [spent[prompt] for prompt in most]
    assert [int(row["Successes"]) for row in rows] == [solved[prompt] for prompt in most]
    assert float(rows[0]["Share of budget"]) == pytest.approx(spent[most[0]] / 10_240)


def test_several_benchmarks_get_a_panel_each_and_a_table(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name, strategy=name, benchmarks=("AMC", "MATH")) for name in ("uniform", "knapsack")
    ]

    page = write_report(folders, tmp_path / "page" / "page.html")

    seen = pages.read_in_browser(page, tmp_path, 390)
    pages.check_layout(seen, 390)
    assert {figure["name"] for figure in seen["figures"]} == FIGURES | {"benchmark-accuracy"}
    accuracy = next(table for table in seen["tables"] if table["name"] == "accuracy")
    assert [row[:2] for row in accuracy["rows"]] == [
        [benchmark, run] for run in ("uniform", "knapsack") for benchmark in ("AMC", "MATH")
    ]
    with (page.parent / "figures" / "benchmark-accuracy.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["benchmark"] for row in rows} == {"AMC", "MATH", "mean of benchmarks"}
    # Uniform allocation has no prompts that got more than others.
    assert [table["name"] for table in seen["tables"]] == ["key-numbers", "accuracy", "top-prompts-2"]


def test_transition_table_counts_every_prompt_and_leaves_rows_without_prompts_blank(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=2, prompts=32)  # every prompt is visited at both steps
    shutil.rmtree(run / "allocations.parquet")
    table = pa.table(
        {
            "step": [1, 1, 2, 2],
            "prompt": ["a", "b", "a", "b"],
            "rollouts": [8] * 4,
            "scored": [8] * 4,
            "successes": [0, 4, 8, 7],
        }
    )
    pq.write_table(table, run / "allocations.parquet")

    write_report([run])

    lines = (run / "figures" / "transitions.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "run,first,last,prompts,share"
    assert "run,extremely hard,extremely easy,1,1.0" in lines
    assert "run,medium,easy,1,1.0" in lines
    assert [line for line in lines if line.startswith("run,easy,")] == [
        f"run,easy,{last},0," for last in ("extremely hard", "hard", "medium", "easy", "extremely easy")
    ]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"steps": 0, "evaluate_every": 0}, "has not finished a training step yet"),
        ({"steps": 0, "evaluate_every": 10}, "before training"),
        ({"steps": 1, "evaluate_every": 0}, "Held-out accuracy has not been measured yet"),
        ({"steps": 2, "evaluate_every": 10}, "has visited no prompt twice yet"),
        ({"steps": 23, "evaluate_every": 10}, "23 of 40 steps (it is not finished)"),
    ],
)
def test_interrupted_run_gets_a_report_of_what_it_did(tmp_path: Path, made: dict, said: str) -> None:
    page = write_report([write_run(tmp_path / "run", **made)])

    assert said in page.read_text(encoding="utf-8")


def test_run_that_reached_its_end_in_fewer_steps_than_planned_is_not_called_unfinished(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=23)
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    environment["finished"] = "2026-01-01T00:01:00+00:00"
    (run / "environment.json").write_text(json.dumps(environment), encoding="utf-8")

    assert "23 of 40 steps (the rollouts it dropped count too)" in write_report([run]).read_text(encoding="utf-8")


def test_half_a_line_that_a_killed_run_left_is_passed_over(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"step": 41, "rollo')

    assert table_cells(write_report([run]))["Steps"] == "40"


def test_steps_logged_again_after_resuming_count_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    log = run / "metrics.jsonl"
    log.write_text(log.read_text(encoding="utf-8") * 2, encoding="utf-8")

    write_report([run])

    reward = (run / "figures" / "prompt-reward.csv").read_text(encoding="utf-8").splitlines()
    assert len(reward) == 1 + 40


def test_caption_says_how_the_last_evaluation_differs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=10, planned=10)
    with (run / "recipe.yaml").open("a", encoding="utf-8") as recipe:  # the recipe ends in its evaluation block
        recipe.write("  final:\n    samples: null\n    max_completion_length: 8192\n    max_problems: null\n")

    page = write_report([run]).read_text(encoding="utf-8")

    assert "mean over 16 samples per problem (in the evaluation after the last step: " in page
    assert "max problems unlimited, max completion length 8192)" in page


def test_text_of_a_recipe_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", benchmarks=("<b>A & B</b> $x$",))
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8") + "note: <script>alert(1)</script>\n", encoding="utf-8")

    page = write_report([run]).read_text(encoding="utf-8")

    assert page.count("<script") == 1  # the page's own
    assert "<b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Accuracy on &lt;b&gt;A &amp; B&lt;/b&gt; $x$, first" in page


@pytest.mark.parametrize("missing", ["recipe.yaml", "environment.json"])
def test_directory_that_is_not_a_run_is_refused_by_what_it_lacks(tmp_path: Path, missing: str) -> None:
    run = write_run(tmp_path / "run", steps=1)
    (run / missing).unlink()

    with pytest.raises(kr.InvalidInputError, match=f"is not a run directory, since it has no {missing}"):
        write_report([run])


def test_a_run_of_verl_is_refused_with_where_to_look(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("trainer: verl\n")
    (tmp_path / "environment.json").write_text("{}")
    with pytest.raises(kr.InvalidInputError, match=r"was trained by verl, .*knapsack-rl audit FOLDER"):
        write_report([tmp_path])


def test_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(kr.InvalidInputError, match="is not a directory"):
        write_report([tmp_path / "nowhere"])


def test_a_directory_given_twice_is_refused(finished_run: Path) -> None:
    with pytest.raises(kr.InvalidInputError, match="expected each directory once"):
        write_report([finished_run, finished_run.parent / "." / finished_run.name])


def test_a_page_that_cannot_be_written_is_refused(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(kr.InvalidInputError, match=f"output: cannot write {tmp_path}: "):
        write_report([finished_run], tmp_path)


def test_figures_of_others_beside_a_page_do_not_give_way(finished_run: Path, tmp_path: Path) -> None:
    for page in (tmp_path / "page.html", None):
        runs = [finished_run, Path(shutil.copytree(finished_run, tmp_path / "b", dirs_exist_ok=True))]
        folder = tmp_path if page else finished_run.parent / f"{finished_run.name}-vs-b"
        (folder / "figures").mkdir(parents=True)
        (folder / "figures" / "transitions.png").write_text("mine")
        with pytest.raises(kr.InvalidInputError, match=r"transitions\.png is of no page of this program"):
            write_report(runs, page)
        assert (folder / "figures" / "transitions.png").read_text() == "mine"
        shutil.rmtree(folder / "figures")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=2)
    (run / "allocations.parquet" / "step-000002.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(kr.InvalidInputError, match=r"allocations\.parquet cannot be read"):
        write_report([run])

    (run / "metrics.jsonl").write_text('not json\n{"step": 1, "rollouts": 1, "time": 1}\n', encoding="utf-8")
    with pytest.raises(kr.InvalidInputError, match=r"line 1 of .*metrics\.jsonl is not a JSON object"):
        write_report([run])

    (run / "environment.json").write_text("{", encoding="utf-8")
    with pytest.raises(kr.InvalidInputError, match=r"environment\.json .* is damaged"):
        write_report([run])


@pytest.mark.parametrize("count", [0, 6])
def test_number_of_runs_on_a_page_is_limited(tmp_path: Path, count: int) -> None:
    with pytest.raises(kr.InvalidInputError, match=f"expected 1 to 5 run directories, got {count}"):
        write_report([tmp_path] * count)


def table_cells(page: Path) -> dict[str, str]:
    """The key numbers of a single run, as read on the page."""
    rows = re.findall(
        r'<th scope="row">([^<]*)</th><td class="number">([^<]*)</td></tr>', page.read_text(encoding="utf-8")
    )
    return {html.unescape(what): html.unescape(text).replace("\N{NO-BREAK SPACE}", " ") for what, text in rows}
