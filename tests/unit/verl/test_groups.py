from __future__ import annotations

import numpy as np
import pytest

from knapsack_rl import InvalidInputError
from knapsack_rl.rewards import ThresholdWatch
from knapsack_rl.verl.groups import Group, Outcome


def rewarded(group: Group, rewards: dict[int, float]) -> Group:
    group.rewards.update(rewards)
    group.tokens.update({session: [1, 2] for session in rewards})
    return group


def test_rollouts_that_raised_or_have_no_reward_have_failed() -> None:
    group = rewarded(Group(0.0, graded=False), {0: 1.0, 1: 0.0, 2: 1.0, 3: np.nan})
    assert group.outcome({0: False, 1: False, 2: True}) == Outcome(1, 2, failed=1, tokens=9)
    assert group.outcome({3: False, 4: False}) == Outcome(0, 0, failed=2, tokens=3)


def test_a_group_survives_with_the_minimum_of_rollouts_that_have_rows_or_with_all_if_it_is_smaller() -> None:
    group = rewarded(Group(0.0, graded=False), {0: 1.0, 1: 0.0, 3: 1.0})
    assert group.survives(2)  # it sits out
    group.outcome({0: False})
    assert group.survives(2)
    group.outcome({1: True, 2: False})  # the latter has no output
    assert not group.survives(2)
    assert group.survives(1)
    group.outcome({3: False})
    assert group.survives(2)
    assert not group.survives(3)
    assert group.rows("a") == ["a_0_0", "a_0_1", "a_3_0", "a_3_1"]


def test_graded_rewards_are_held_against_the_group_so_far() -> None:
    group = rewarded(Group(0.0, graded=True), {0: 0.2, 1: 0.4, 2: 0.9, 3: 0.1})
    assert group.outcome({0: False, 1: False}).successes == 1
    assert group.outcome({2: False, 3: False}).successes == 1
    assert bool(group.judge.mixed[0])


def test_an_infinite_reward_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="rewards: expected finite numbers"):
        rewarded(Group(0.0, graded=False), {0: -np.inf}).outcome({0: False})


@pytest.mark.parametrize(("threshold", "graded", "said"), [(0.0, False, 1), (0.5, False, 0), (0.0, True, 0)])
def test_a_reward_of_a_tenth_for_a_wrong_answer_is_noticed_once_where_the_threshold_is_0(
    threshold: float, graded: bool, said: int
) -> None:
    """What verl's own geo3k example rewards: .9 for the answer, .1 for the format."""
    watch, generator, sentences = ThresholdWatch(), np.random.default_rng(0), []
    for _ in range(300):
        rewards = dict(enumerate(generator.choice([0.1, 1.0], 8)))
        group = rewarded(Group(threshold, graded), rewards)
        group.outcome(dict.fromkeys(rewards, False))
        sentences.append(watch.observe(group.judge, group.judged))
    found = [sentence for sentence in sentences if sentence is not None]
    assert len(found) == said
    assert all(
        "0.1 (" in sentence and "Set success_threshold between right and wrong" in sentence for sentence in found
    )
