"""What an evaluation comes to."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.experiments.engines.schedule import Score, recorded

REWARDS = st.sampled_from([0.0, 1.0, math.nan])


@given(st.integers(1, 8).flatmap(lambda k: st.lists(st.lists(REWARDS, min_size=k, max_size=k), min_size=1)))
def test_accuracy_is_the_mean_of_means_and_solved_the_share_with_a_success(rewards: list[list[float]]) -> None:
    scored = [row for row in ([reward for reward in row if reward == reward] for row in rewards) if row]
    score = Score.of(np.array(rewards))
    if not scored:
        assert math.isnan(score.accuracy)
        assert math.isnan(score.solved)
        return
    assert math.isclose(score.accuracy, sum(sum(row) / len(row) for row in scored) / len(scored), abs_tol=1e-12)
    assert math.isclose(score.solved, sum(any(row) for row in scored) / len(scored), abs_tol=1e-12)


def test_a_record_has_both_by_benchmark() -> None:
    assert recorded({"held-out": Score(0.25, 0.5)}) == {"evaluation": {"held-out": 0.25}, "solved": {"held-out": 0.5}}
