"""The statistics of a comparison, against numbers worked out by hand or by another route."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy", reason="the report extra is not installed")
pytest.importorskip("pydantic", reason="the train extra is not installed")

from knapsack_rl.belief import Belief
from knapsack_rl.experiments.compare import results
from knapsack_rl.experiments.compare.comparison import ArmRun, Comparison
from knapsack_rl.experiments.compare.summary_table import markdown
from knapsack_rl.experiments.recipe import recipe_file
from knapsack_rl.experiments.runs.run_directory import RunDirectory

COMPARISON = Comparison(
    name="hand-made", arms={"uniform": None, "knapsack": None, "oracle": None}, seeds=[1, 2, 3], equal="rollouts"
)


def tables(accuracies: dict[tuple[str, int], list[float]], step: float = 100.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs and curves with an evaluation every `step` rollouts, from 0 on; 10 tokens and 0.1 s a rollout."""
    runs, curves = [], []
    for (arm, seed), values in accuracies.items():
        labels = {"variation": "", "arm": arm, "choice": "", "seed": seed}
        spent = step * np.arange(len(values))
        end = {"rollouts": spent[-1], "tokens": 10 * spent[-1], "seconds": 0.1 * spent[-1]}
        rest = dict.fromkeys(
            ("effective_gradient_ratio", "effective_prompts", "never_solved", "allocation_share", "steps"), 1.0
        )
        runs.append({**labels, **end, **rest})
        curves.append(
            pd.DataFrame({"rollouts": spent, "tokens": 10 * spent, "seconds": 0.1 * spent, "accuracy": values}).assign(
                **labels, benchmark="mean", solved=np.sqrt(values)
            )
        )
    return pd.DataFrame(runs), pd.concat(curves, ignore_index=True)


def test_accuracy_is_taken_at_the_cost_that_all_competitors_reached() -> None:
    runs, curves = tables({("uniform", 1): [0.0, 0.2, 0.4], ("knapsack", 1): [0.0, 0.3, 0.5, 0.9]})
    taken = results.at_equal_cost(runs, curves, COMPARISON).set_index("arm")
    assert taken["cost"].tolist() == [200.0, 200.0]
    assert taken["accuracy"].tolist() == [0.4, 0.5]
    assert taken["solved"].tolist() == pytest.approx([0.4**0.5, 0.5**0.5])


def test_accuracy_between_two_evaluations_is_interpolated() -> None:
    runs, curves = tables({("uniform", 1): [0.0, 0.2, 0.4]})
    other_runs, other_curves = tables({("knapsack", 1): [0.0, 0.6]}, step=150.0)
    taken = results.at_equal_cost(
        pd.concat([runs, other_runs]), pd.concat([curves, other_curves]), COMPARISON
    ).set_index("arm")
    assert taken.loc["uniform", "accuracy"] == pytest.approx(0.3)  # halfway between 100 and 200 rollouts
    assert taken.loc["knapsack", "accuracy"] == 0.6


def test_references_are_taken_at_their_own_end_and_limit_nobody() -> None:
    runs, curves = tables({("uniform", 1): [0.0, 0.2, 0.4], ("oracle", 1): [0.0, 0.3]})
    taken = results.at_equal_cost(runs, curves, COMPARISON).set_index("arm")
    assert taken.loc["uniform", "accuracy"] == 0.4
    assert taken.loc["oracle", ["cost", "common_cost", "accuracy"]].tolist() == [100.0, 200.0, 0.3]


def test_equal_tokens_are_another_axis_of_the_same_runs() -> None:
    runs, curves = tables({("uniform", 1): [0.0, 0.2, 0.4], ("knapsack", 1): [0.0, 0.3, 0.5]})
    half = curves["arm"] == "knapsack"
    curves.loc[half, "tokens"] /= 2  # shorter completions: half the tokens for the same rollouts
    runs.loc[runs["arm"] == "knapsack", "tokens"] /= 2
    taken = results.at_equal_cost(runs, curves, COMPARISON.model_copy(update={"equal": "tokens"})).set_index("arm")
    assert taken["accuracy"].tolist() == pytest.approx([0.2, 0.5])


def test_a_choice_with_short_completions_does_not_cut_the_tuning_of_others() -> None:
    runs, curves = tables({("uniform", 1): [0.0, 0.2, 0.4], ("knapsack", 1): [0.0, 0.3, 0.5]})
    collapsed_runs, collapsed_curves = (
        table[table["arm"] == "knapsack"].assign(choice="collapsed") for table in (runs, curves)
    )
    collapsed_runs = collapsed_runs.assign(tokens=collapsed_runs["tokens"] / 4)
    collapsed_curves = collapsed_curves.assign(tokens=collapsed_curves["tokens"] / 4, accuracy=0.1)
    taken = results.at_equal_cost(
        pd.concat([runs, collapsed_runs]),
        pd.concat([curves, collapsed_curves]),
        COMPARISON.model_copy(update={"equal": "tokens"}),
    )
    assert taken["accuracy"].tolist() == pytest.approx([0.4, 0.5, 0.1])


def test_seeds_on_which_the_baseline_gained_nothing_have_no_cost_to_reach() -> None:
    runs, curves = tables(
        {
            ("uniform", 1): [0.3, 0.3],
            ("uniform", 2): [0.1, 0.3],
            ("knapsack", 1): [0.3, 0.8],
            ("knapsack", 2): [0.1, 0.5],
        }
    )
    taken = results.at_equal_cost(runs, curves, COMPARISON)
    reach = results.cost_to_reach(taken, curves, COMPARISON)
    assert set(reach["seed"]) == {2}
    summary = results.summary(taken, reach, COMPARISON)
    assert summary.set_index("arm").loc["knapsack", ["reached_100", "reach_seeds"]].tolist() == [1, 1]
    assert "0.50x (1 of 1)" in markdown(summary)


def test_cost_to_reach_is_relative_to_the_baseline_of_the_same_seed() -> None:
    runs, curves = tables({("uniform", 1): [0.0, 0.2, 0.4], ("knapsack", 1): [0.0, 0.4, 0.4]})
    taken = results.at_equal_cost(runs, curves, COMPARISON)
    reach = results.cost_to_reach(taken, curves, COMPARISON).set_index(["arm", "level"])["ratio"]
    assert reach["uniform"].tolist() == [1.0] * len(results.LEVELS)
    assert reach["knapsack", 0.5] == 0.5  # .2 after 50 instead of 100 rollouts
    assert reach["knapsack", 1.0] == 0.5


def test_a_level_that_was_never_reached_is_infinitely_dear_in_the_summary() -> None:
    runs, curves = tables({("uniform", seed): [0.0, 0.4] for seed in (1, 2, 3)})
    others = tables({("knapsack", 1): [0.0, 0.1], ("knapsack", 2): [0.0, 0.1], ("knapsack", 3): [0.0, 0.5]})
    runs, curves = pd.concat([runs, others[0]]), pd.concat([curves, others[1]])
    taken = results.at_equal_cost(runs, curves, COMPARISON)
    summary = results.summary(taken, results.cost_to_reach(taken, curves, COMPARISON), COMPARISON).set_index("arm")
    assert summary.loc["knapsack", "reach_100"] == np.inf
    assert summary.loc["knapsack", "reached_100"] == 1
    assert "never (1 of 3)" in markdown(summary.reset_index())


def test_differences_are_paired_by_seed() -> None:
    runs, curves = tables(
        {("uniform", s): [0.0, a] for s, a in ((1, 0.2), (2, 0.5), (3, 0.8))}
        | {("knapsack", s): [0.0, a] for s, a in ((3, 0.9), (1, 0.3), (2, 0.4))}
    )
    taken = results.at_equal_cost(runs, curves, COMPARISON)
    row = results.summary(taken, results.cost_to_reach(taken, curves, COMPARISON), COMPARISON).set_index("arm")
    assert row.loc["knapsack", "difference"] == pytest.approx(0.1 / 3)  # +.1, -.1, +.1
    assert row.loc["knapsack", "wins"] == 2
    # t = mean / (sd / sqrt 3) = .5 with two degrees of freedom, for which the two-sided p is 1 - t / sqrt(t^2 + 2).
    assert row.loc["knapsack", "difference_p"] == pytest.approx(1 - 0.5 / np.sqrt(2.25))


def test_a_seed_that_failed_is_left_out_of_the_pairs() -> None:
    runs, curves = tables({("uniform", 1): [0.0, 0.2], ("uniform", 2): [0.0, 0.2], ("knapsack", 2): [0.0, 0.5]})
    taken = results.at_equal_cost(runs, curves, COMPARISON)
    row = results.summary(taken, results.cost_to_reach(taken, curves, COMPARISON), COMPARISON).set_index("arm")
    assert row.loc["knapsack", "difference"] == pytest.approx(0.3)
    assert row.loc["knapsack", "seeds"] == 1
    assert np.isnan(row.loc["knapsack", "accuracy_low"])


def test_the_best_point_of_the_grid_has_the_best_mean_over_all_tuning_seeds() -> None:
    rows = [("a", "lr=1", 1, 0.5), ("a", "lr=1", 2, 0.6), ("a", "lr=2", 1, 0.9), ("b", "lr=1", 1, 0.1)]
    rows += [("b", "lr=1", 2, 0.1), ("b", "lr=2", 1, 0.3), ("b", "lr=2", 2, 0.2)]
    taken = pd.DataFrame(rows, columns=["arm", "choice", "seed", "accuracy"]).assign(variation="")
    best = results.best_choices(taken)
    chosen = best[best["chosen"]].set_index("arm")["choice"].to_dict()
    assert chosen == {"a": "lr=1", "b": "lr=2"}, "the point at which a run failed must not win"


def test_the_interval_of_the_mean_covers_about_what_its_documentation_says() -> None:
    random = np.random.default_rng(0)
    hits = [low <= 0.0 <= high for low, high in (results.interval(random.normal(size=5)) for _ in range(400))]
    assert np.mean(hits) == pytest.approx(0.83, abs=0.05)


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=8))
def test_an_interval_holds_the_mean_and_stays_within_the_values(values: list[float]) -> None:
    low, high = results.interval(values)
    assert min(values) - 1e-12 <= low <= np.mean(values) + 1e-12
    assert np.mean(values) - 1e-12 <= high <= max(values) + 1e-12


def test_mean_curves_end_where_the_first_seed_ends() -> None:
    _, curves = tables({("uniform", 1): [0.0, 0.2, 0.4], ("uniform", 2): [0.2, 0.4]})
    mean = results.mean_curves(curves, "rollouts", points=3)
    assert mean["cost"].tolist() == [0.0, 50.0, 100.0]
    assert mean["accuracy"].tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_a_performance_profile_is_one_minus_the_distribution_of_accuracies() -> None:
    runs, curves = tables({("uniform", s): [0.0, a] for s, a in ((1, 0.2), (2, 0.5), (3, 0.8))})
    profile = results.performance_profile(results.at_equal_cost(runs, curves, COMPARISON)).set_index("threshold")
    assert profile["share"].is_monotonic_decreasing
    assert profile.loc[0.6, "share"].item() == pytest.approx(1 / 3)


def finished_run(pool: Path, spent: Sequence[int]) -> ArmRun:
    """An arm with a budget of 12 x 64 rollouts and an evaluation every 4 x 64; `spent` after each of its own steps."""
    size = ["training.prompts_per_step=16", "training.group_size=4", "training.micro_batch_size=64"]
    recipe = recipe_file.read(None, [*size, "training.steps=12", "evaluation.every=4", "name=run"])
    arm = ArmRun("", "uniform", "", recipe)
    run = RunDirectory(pool / arm.folder)
    run.claim(recipe_file.render(arm.recipe))
    measured = {"effective_gradient_ratio": 0.5, "effective_prompts": 0.5, "completions/mean_length": 3.0}
    for step, (before, after) in enumerate(zip((0, 0, *spent), (0, *spent), strict=False)):
        record = {"step": step, "rollouts": after, "time": step, "training_seconds": step}
        if step:
            run.append_metrics({**record, **measured, "allocation_seconds": 0.1})
            run.append_allocations(step, ["p"], [after - before], [after - before], [1], Belief(np.ones(1), np.ones(1)))
        if after // 256 > before // 256 or step in (0, len(spent)):
            run.append_metrics({**record, "evaluation": {"held-out": 0.1 * step}, "solved": {"held-out": 1.0}})
    run.write_environment({"finished": "2026-01-01T00:00:00+00:00"})
    run.release()
    return arm


SPENT = st.sampled_from([tuple(range(64, 769, 64)), (300, 640, 768), (768,), (200, 256, 700, 704, 768)])


@given(SPENT, st.data())
@settings(max_examples=60, deadline=None)
def test_a_finished_run_is_read_if_every_line_of_its_log_is_there_and_told_otherwise(
    spent: tuple[int, ...], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        arm = finished_run(Path(folder), spent)
        runs, _, _, lost = results.read([arm], Path(folder))
        assert (runs["rollouts"].tolist(), lost) == ([768.0], [])
        log = Path(folder) / arm.folder / "metrics.jsonl"
        lines = log.read_text().splitlines(keepends=True)
        gone = data.draw(st.sets(st.integers(0, len(lines) - 1), min_size=1))
        log.write_text("".join(line for number, line in enumerate(lines) if number not in gone))
        runs, curves, steps, lost = results.read([arm], Path(folder))
    assert all(table.empty for table in (runs, curves, steps))
    ((which, why),) = lost
    assert which is arm
    assert str(log.parent) in why
    assert str(log) in why


LOST = {
    "metrics.jsonl has no steps": lambda run: run.metrics.unlink(),
    "metrics.jsonl ends after 640 of 768 rollouts": lambda run: cut(run.metrics, 13),
    "metrics.jsonl has no evaluation after step 12": lambda run: cut(run.metrics, 15),
    "line 1 of ": lambda run: run.metrics.write_text("{\n{}\n"),
    "allocations.parquet has no step 7": lambda run: (run.allocations / "step-000007.parquet").unlink(),
    "cannot be read as a parquet table": lambda run: (run.allocations / "step-000007.parquet").write_bytes(b"PAR"),
    "has no recipe.yaml": lambda run: run.recipe.unlink(),
}


def cut(log: Path, lines: int) -> None:
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:lines]))


@pytest.mark.parametrize("what", LOST)
def test_what_is_lost_of_a_finished_run_is_said(what: str, tmp_path: Path) -> None:
    arm = finished_run(tmp_path, range(64, 769, 64))
    LOST[what](RunDirectory(tmp_path / arm.folder))
    *_, ((_, why),) = results.read([arm], tmp_path)
    assert what in why
    assert "remove that folder: the same command then runs the arm again" in why
