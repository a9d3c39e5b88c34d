from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pandas", reason="the report extra is not installed")
pytest.importorskip("yaml", reason="the report extra is not installed")

import pandas as pd

from knapsack_rl.experiments.report import run_data
from knapsack_rl.experiments.report.run_data import Run

EVALUATIONS = ["step", "rollouts", "time", "benchmark", "accuracy", "solved"]


def run_of(
    *visits: tuple[int, str, int, int],
    name: str = "run",
    evaluations: Sequence[tuple[int, int, float, str, float, float]] = (),
) -> Run:
    """A run with visits (step, prompt, rollouts, successes), all rollouts scored, and evaluations."""
    allocations = pd.DataFrame(visits, columns=["step", "prompt", "rollouts", "successes"])
    return Run(
        name=name,
        folder=Path(name),
        recipe={},
        recipe_text="",
        environment={},
        steps=pd.DataFrame(),
        evaluations=pd.DataFrame(evaluations, columns=EVALUATIONS),
        allocations=allocations.assign(scored=allocations["rollouts"]),
    )


def visited_twice(first: dict[str, int], later: int = 8) -> list[tuple[int, str, int, int]]:
    """Every prompt with so many successes of 8 rollouts at step 1, and with `later` at step 2."""
    return [(1, prompt, 8, successes) for prompt, successes in first.items()] + [
        (2, prompt, 8, later) for prompt in first
    ]


def chosen(*runs: Run, count: int = 9) -> list[str]:
    return run_data.trajectories(runs, count)["prompt"].unique().tolist()


def test_single_prompts_are_spread_over_the_rates_at_which_they_began() -> None:
    solved = {f"solved-{index}": 8 for index in range(200)}
    others = {f"began-at-{successes}": successes for successes in range(8)}

    prompts = chosen(run_of(*visited_twice(solved | others)))

    assert prompts[:8] == [f"began-at-{successes}" for successes in range(8)]
    assert prompts[8] in solved
    assert len(prompts) == 9


def test_choice_of_single_prompts_does_not_look_at_what_became_of_them() -> None:
    first = {f"prompt-{index}": index % 9 for index in range(100)}

    assert chosen(run_of(*visited_twice(first, later=0))) == chosen(run_of(*visited_twice(first, later=8)))


def test_choice_of_single_prompts_does_not_depend_on_the_order_of_rows_or_runs() -> None:
    first = {f"prompt-{index}": index * 7 % 9 for index in range(100)}
    visits = visited_twice(first)
    other = run_of(*visited_twice({prompt: 8 - successes for prompt, successes in first.items()}), name="other")

    assert chosen(run_of(*visits), other) == chosen(other, run_of(*reversed(visits)))


def test_only_prompts_that_every_run_visited_twice_are_shown() -> None:
    one = run_of((1, "a", 8, 0), (2, "a", 8, 4), (1, "b", 8, 8), (2, "b", 8, 8), name="one")
    other = run_of((1, "a", 2, 0), (2, "a", 64, 9), (1, "b", 8, 8), name="other")

    table = run_data.trajectories([one, other], 9)

    assert table.to_dict("list") == {
        "prompt": ["a"] * 4,
        "run": ["one", "one", "other", "other"],
        "step": [1, 2, 1, 2],
        "rollouts": [8, 8, 2, 64],
        "successes": [0, 4, 0, 9],
        "rate": [0.0, 0.5, 0.0, 9 / 64],
    }


def test_without_a_prompt_visited_twice_there_are_no_trajectories() -> None:
    assert run_data.trajectories([run_of((1, "a", 8, 0), (2, "b", 8, 0))], 9).empty
    assert run_data.trajectories([run_of()], 9).empty


def test_a_prompt_that_comes_twice_in_a_step_is_visited_once() -> None:
    run = run_of((1, "a", 8, 0), (1, "a", 8, 4), (2, "a", 2, 2))

    seen = run_data.success_rates(run)

    assert seen.to_dict("list") == {
        "prompt": ["a", "a"],
        "step": [1, 2],
        "scored": [16, 2],
        "successes": [4, 2],
        "rate": [0.25, 1.0],
    }


def test_prompts_with_most_rollouts_come_first_and_ties_are_in_the_order_of_ids() -> None:
    run = run_of((1, "b", 8, 0), (1, "c", 8, 8), (1, "a", 8, 2), (2, "c", 40, 4), (2, "d", 2, 0))

    table = run_data.top_prompts(run, 3)

    assert table["prompt"].tolist() == ["c", "a", "b"]
    assert table["visits"].tolist() == [2, 1, 1]
    assert table["rollouts"].tolist() == [48, 8, 8]
    assert table["successes"].tolist() == [12, 2, 0]
    assert table["share"].tolist() == pytest.approx([48 / 66, 8 / 66, 8 / 66])
    assert table["first"].tolist() == [1.0, 0.25, 0.0]
    assert table["last"].tolist() == [0.1, 0.25, 0.0]


def test_a_prompt_whose_rollouts_were_never_scored_has_no_success_rate() -> None:
    run = run_of((1, "a", 8, 0), (1, "b", 4, 1))
    run.allocations.loc[run.allocations["prompt"] == "a", "scored"] = 0

    table = run_data.top_prompts(run, 5)

    assert table["prompt"].tolist() == ["a", "b"]
    assert np.isnan(table["first"][0])
    assert table["first"][1] == 0.25


def believing(wins: float, losses: float, successes: np.ndarray, rollouts: np.ndarray) -> Run:
    """A run with one belief about all of its prompts, one visit each."""
    run = run_of(
        *((1, f"prompt-{index}", *counts) for index, counts in enumerate(zip(rollouts, successes, strict=True)))
    )
    run.allocations["belief_wins"], run.allocations["belief_losses"] = np.float32(wins), np.float32(losses)
    return run


def test_observed_success_rate_is_the_share_of_successes_where_every_group_has_one_size() -> None:
    run = believing(1.5, 0.5, np.array([0, 3, 4, 4]), np.full(4, 4))
    run.allocations.loc[3, ["belief_wins", "belief_losses"]] = 0.2, 1.8
    run.allocations.loc[2, ["scored", "successes"]] = 0  # never scored, so nothing was observed

    table = run_data.calibration(run)

    assert table["run"].tolist() == ["run", "run"]
    assert table["believed"].tolist() == pytest.approx([0.1, 0.75])
    assert table["observed"].tolist() == pytest.approx([1.0, 3 / 8])
    assert table["visits"].tolist() == [1, 2]


def until_the_first_success(p: np.ndarray, most: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Successes and rollouts of groups that sample until a success, or `most` times."""
    rewards = rng.random((len(p), most)) < p[:, None]
    rollouts = np.where(rewards.any(axis=1), rewards.argmax(axis=1) + 1, most)
    return rewards.any(axis=1).astype(np.int64), rollouts


def test_a_right_belief_is_on_the_line_even_where_groups_stop_by_their_own_outcomes() -> None:
    rng = np.random.default_rng(0)
    successes, rollouts = until_the_first_success(rng.beta(0.6, 0.9, 20_000), 32, rng)

    row = run_data.calibration(believing(0.6, 0.9, successes, rollouts)).iloc[0]

    assert row["believed"] == pytest.approx(0.4, abs=1e-6)
    assert abs(row["observed"] - row["believed"]) < 3.0 * row["error"] < 0.02
    assert (successes / rollouts).mean() > 0.5  # what a plain mean would have called the success rate


@pytest.mark.parametrize("sampled", ["beforehand", "until the first success"])
def test_a_wrong_belief_is_off_the_line_on_the_side_of_the_truth(sampled: str) -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(1.4, 0.6, 5000)  # 0.7 in the mean
    successes, rollouts = until_the_first_success(p, 32, rng)
    if sampled == "beforehand":
        rollouts = rng.integers(2, 32, len(p))
        successes = rng.binomial(rollouts, p)

    row = run_data.calibration(believing(0.8, 1.2, successes, rollouts)).iloc[0]

    assert row["observed"] - row["believed"] > 10.0 * row["error"]
    if sampled == "beforehand":
        assert row["observed"] == pytest.approx(0.7, abs=0.01)


def test_without_recorded_beliefs_nothing_is_said_of_them() -> None:
    run = run_of((1, "a", 8, 4))

    assert run_data.calibration(run).empty
    assert run_data.calibration(run_of()).empty
    unknown = believing(np.nan, np.nan, np.array([1]), np.array([2]))
    assert run_data.calibration(unknown).empty


def test_mean_over_benchmarks_leaves_out_evaluations_that_lack_one() -> None:
    run = run_of(
        evaluations=[
            (0, 0, 0.0, "AMC", 0.2, 0.5),
            (0, 0, 0.0, "MATH", 0.4, 0.8),
            (5, 320, 1.0, "AMC", 0.9, 0.9),
            (9, 640, 2.0, "AMC", 0.5, 0.7),
            (9, 640, 2.0, "MATH", 0.7, 0.9),
        ]
    )

    means = run_data.mean_accuracies(run)

    assert means["step"].tolist() == [0, 9]
    assert means["rollouts"].tolist() == [0, 640]
    assert means["accuracy"].tolist() == pytest.approx([0.3, 0.6])
    assert means["solved"].tolist() == pytest.approx([0.65, 0.8])


def test_prompts_of_a_step_and_those_with_mixed_rewards_are_counted() -> None:
    run = run_of((1, "a", 8, 0), (1, "b", 8, 4), (2, "a", 8, 8), (2, "b", 8, 1))

    assert run_data.groups_per_step(run) == (2.0, 1.0)
    assert run_data.groups_per_step(run_of()) == (None, None)


def measured_run(*steps: dict[str, float]) -> Run:
    numbered = [{"step": number + 1} | step for number, step in enumerate(steps)]
    return replace(run_of(), steps=pd.DataFrame(numbered))


def test_worth_is_what_was_known_after_the_last_step_that_measured() -> None:
    early = {"influence/0-0.1": 9.0, "influence_error/0-0.1": 0.1, "noise_scale": 5.0}
    late = {"influence/0.9-1": 2.0, "influence_error/0.9-1": 0.5, "influence/0-0.1": 0.2, "influence_error/0-0.1": 0.3}
    kinds = {"influence/kind/0-0.1": 1.5, "influence_error/kind/0-0.1": 0.1, "influence/kind/new": 0.4}  # no error yet
    table = run_data.worth(measured_run(early, late | kinds, {"loss": 0.1}))
    assert table[["what", "name", "worth", "error"]].to_numpy().tolist() == [
        ["band", "0-0.1", 0.2, 0.3],
        ["band", "0.9-1", 2.0, 0.5],
        ["category", "kind/0-0.1", 1.5, 0.1],
    ]
    assert run_data.worth(measured_run({"loss": 0.1})).empty


def test_where_the_groups_do_not_pull_each_other_up_in_the_end_no_earlier_worth_is_shown() -> None:
    early = {"influence/0-0.1": 9.0, "influence_error/0-0.1": 0.1, "noise_scale": 5.0}
    run = measured_run(early, {"noise_scale_low": 80.0})
    assert run_data.worth(run).empty
    assert run_data.measures(run).tolist() == [True, True]


def test_the_noise_scale_has_no_upper_end_where_none_was_recorded() -> None:
    run = measured_run(
        {"noise_scale": 50.0},  # from less than three steps: without an interval
        {"noise_scale_low": 20.0},  # no direction in common
        {"noise_scale": 30.0, "noise_scale_low": 25.0, "noise_scale_high": 60.0},
    )
    table = run_data.noise_scale(run)
    found = table[["step", "value", "low", "high"]].to_numpy()
    np.testing.assert_array_equal(found, [[2, np.nan, 20, np.inf], [3, 30, 25, 60]])
    assert run_data.noise_scale(measured_run({"loss": 0.1})).empty
