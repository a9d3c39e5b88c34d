from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the report extra is not installed")
pytest.importorskip("pyarrow", reason="the report extra is not installed")

import pandas as pd
from pandas.testing import assert_frame_equal

from knapsack_rl.cli import main
from knapsack_rl.experiments.simulate import charts, results, theory_charts
from knapsack_rl.experiments.simulate.report import write_report
from knapsack_rl.experiments.simulate.results import CONTROL, Grid, SimulationTables
from knapsack_rl.experiments.simulate.worlds import WORLDS


@pytest.fixture(scope="module")
def tables() -> SimulationTables:
    return results.run(Grid(worlds=("small",), optimizers=("adam", "sgd"), seeds=(0, 1), steps=20))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["simulate", *arguments]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--world", "papper"), "world: expected one of paper, fast"),
        (("--strategy", "knapsak"), "Did you mean knapsack?"),
        (("--optimizer", "adamw"), "optimizer: expected one of adam, sgd, got 'adamw'. Did you mean adam?"),
        (("--seed", "-1"), "seed: expected an integer of at least 0, got -1."),
        (("--seed", "1", "1"), "seed: expected each once, got 1, 1."),
        (("--steps", "0"), "steps: expected an integer of at least 1, got 0."),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert said in refused(capsys, *arguments, "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_help_names_every_world(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["simulate", "--help"])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said and world.purpose in said for name, world in WORLDS.items())


def test_a_command_leaves_a_page_and_all_of_its_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["simulate", "--world", "small", "--steps", "12", "--output", str(tmp_path / "out")]) == 0
    assert "report" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"knapsack-rl simulate --world small --steps 12 --output {tmp_path / 'out'}" in page
    settings = json.loads((tmp_path / "out" / "settings.json").read_text(encoding="utf-8"))
    assert settings["worlds"]["small"]["prompts"] == 2000
    assert settings["steps"] == 12
    assert list(pd.read_csv(tmp_path / "out" / "results.csv")["run"]) == ["uniform", "knapsack", "oracle", CONTROL]


@pytest.mark.parametrize("name", ["results.csv", "settings.json", "report.html", "figures/theory-figure-3.png"])
@pytest.mark.parametrize("what", [["--world", "small"], ["--theory"]])
def test_files_of_others_do_not_give_way(
    what: list[str], name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    if what == ["--theory"] and name in ("results.csv", "settings.json"):
        assert main(["simulate", *what, "--output", str(tmp_path)]) == 0
    else:
        assert f"{tmp_path / name} is of no page of this program" in refused(capsys, *what, "--output", str(tmp_path))
    assert (tmp_path / name).read_text() == "mine"


def test_other_files_beside_a_page_stay_and_the_page_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "my-data.csv").write_text("mine")
    for _ in ("at once", "and again"):
        assert main(["simulate", "--theory", "--output", str(tmp_path)]) == 0
        (tmp_path / "figures" / "mine.png").write_text("mine")
    assert (tmp_path / "my-data.csv").read_text() == (tmp_path / "figures" / "mine.png").read_text() == "mine"


def test_theory_comes_without_a_simulation(tmp_path: Path) -> None:
    assert main(["simulate", "--theory", "--output", str(tmp_path)]) == 0
    assert sorted(path.stem for path in (tmp_path / "figures").glob("*.csv")) == [
        "theory-figure-10",
        "theory-figure-3",
        "theory-figure-4",
        "theory-table-3",
    ]
    assert not (tmp_path / "results.csv").exists()


def test_what_was_written_is_read_back(tables: SimulationTables, tmp_path: Path) -> None:
    results.write(tables, tmp_path)
    again = results.read(tmp_path)
    for name in ("results", "steps", "budgets"):
        assert_frame_equal(getattr(again, name), getattr(tables, name))
    assert_frame_equal(again.statuses.fillna("never"), tables.statuses.fillna("never"), check_dtype=False)
    assert again.settings == json.loads(json.dumps(tables.settings))


@pytest.mark.slow
def test_the_page_can_be_drawn_again_from_the_files_alone(tmp_path: Path) -> None:
    written = results.run(Grid(worlds=("small",), steps=12))
    results.write(written, tmp_path)
    again = results.read(tmp_path)
    pages = [write_report(some, tmp_path / name / "report.html", "x") for name, some in (("a", written), ("b", again))]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_what_was_not_written_by_a_simulation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(results.InvalidInputError, match=r"expected what `knapsack-rl simulate` wrote"):
        results.read(tmp_path)


def test_uniform_and_oracle_are_the_ends_of_every_gap(tables: SimulationTables) -> None:
    shares = tables.results.filter(like="gap_closed").assign(run=tables.results["run"])
    assert (shares.loc[shares["run"] == "uniform"].drop(columns="run").abs() < 1e-9).all(axis=None)
    assert ((shares.loc[shares["run"] == "oracle"].drop(columns="run") - 1.0).abs() < 1e-9).all(axis=None)
    control = shares[shares["run"] == CONTROL]
    assert control["value_gap_closed"].isna().all()
    assert control["success_rate_gap_closed"].notna().all()


def test_arms_spend_the_same_and_the_control_twice_as_much(tables: SimulationTables) -> None:
    spent = tables.results.groupby("run")["rollouts"].unique().map(list).to_dict()
    assert spent == {"uniform": [40960], "knapsack": [40960], "oracle": [40960], CONTROL: [81920]}


def test_every_figure_of_a_simulation_says_so(tables: SimulationTables) -> None:
    drawn = [part for part in charts.of_world(tables, "small", "sgd", every=True) if isinstance(part, charts.Chart)]
    assert len(drawn) == 9
    for chart in drawn:
        assert chart.title.startswith("Simulated: ")
        assert chart.draw(chart.data).get_suptitle() == "simulated: world small, SGD, seed 0"


def with_more_runs(tables: SimulationTables, names: list[str]) -> SimulationTables:
    """The tables with copies of knapsack under other names."""
    wider = {
        part: pd.concat([table, *(table[table["run"] == "knapsack"].assign(run=name) for name in names)])
        for part, table in vars(tables).items()
        if part != "settings"
    }
    return SimulationTables(**wider, settings=tables.settings)


def test_runs_without_a_colour_are_named_as_left_out(tables: SimulationTables) -> None:
    wider = with_more_runs(tables, [f"other-{number}" for number in range(1, 9)])
    parts = charts.of_world(wider, "small", "adam", every=True)
    notes = [part.text for part in parts if isinstance(part, charts.Note)]
    assert notes == ["A figure holds 10 runs; in the table only: other-7; other-8."]
    shown = {part.name.removeprefix("small-adam-"): part for part in parts if isinstance(part, charts.Chart)}
    assert set(shown["success"].data["run"]) == {
        "uniform",
        "knapsack",
        *(f"other-{number}" for number in range(1, 7)),
        "oracle",
        CONTROL,
    }
    assert "oracle" not in set(shown["beliefs"].data["run"])
    assert shown["figure-7"].data["run"].nunique() == 5
    assert shown["figure-7"].caption.endswith("Not shown: other-4; other-5; other-6.")


def test_beliefs_of_every_run_but_the_oracles_are_in_the_results(tables: SimulationTables) -> None:
    known = tables.results.groupby("run")[["belief_rmse", "log_score"]].agg(lambda values: values.notna().all())
    assert known.all(axis=1).to_dict() == {"uniform": True, "knapsack": True, "oracle": False, CONTROL: True}
    of_knapsack = tables.steps.query("run == 'knapsack' and optimizer == 'sgd' and seed == 1")
    row = tables.results.query("run == 'knapsack' and optimizer == 'sgd' and seed == 1").iloc[0]
    assert row["belief_rmse"] == pytest.approx(of_knapsack["belief_rmse"].sum() / 20)
    assert row["log_score"] == pytest.approx(of_knapsack["log_score"].sum() / 20)


def test_a_strategy_that_is_told_features_is_named_like_any_other() -> None:
    arms = Grid(strategies=("adaptive", "adaptive, told features")).arms
    assert [(arm.name, arm.strategy, arm.told) for arm in arms] == [
        ("uniform", "uniform", False),
        ("adaptive", "adaptive", False),
        ("adaptive, told features", "adaptive", True),
        ("oracle", "oracle", False),
        (CONTROL, "uniform", False),
    ]


def test_figures_of_theory_say_what_their_axes_show() -> None:
    for part in theory_charts.parts():
        if isinstance(part, charts.Chart):
            axes = part.draw(part.data).axes[0]
            assert axes.get_xlabel()
            assert axes.get_ylabel()
