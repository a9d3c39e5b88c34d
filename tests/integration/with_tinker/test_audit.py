"""What tinker-cookbook's own store of a training run writes, as the audit reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tinker_cookbook", reason="tinker-cookbook is installed in an environment of its own")
pytest.importorskip("pyarrow", reason="the report extra is not installed")
pytest.importorskip("pandas", reason="the report extra is not installed")
pytest.importorskip("orjson", reason="the report extra is not installed")

import tinker
from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.rl.rollout_logging import serialize_rollout_summaries
from tinker_cookbook.rl.types import Trajectory, TrajectoryGroup, Transition
from tinker_cookbook.stores.storage import LocalStorage
from tinker_cookbook.stores.training_store import TrainingRunStore

from knapsack_rl.experiments.audit.accounting import Accounts
from knapsack_rl.experiments.audit.asked import Asked
from knapsack_rl.experiments.audit.files import find_files
from knapsack_rl.experiments.audit.reading import Reading


def group(rewards: list[float]) -> TrajectoryGroup:
    """Rollouts of two turns, of which the last is rewarded."""
    start = tinker.ModelInput.from_ints([1, 2, 3])
    action = TokensWithLogprobs(tokens=[4, 5], maybe_logprobs=[-0.5, -0.5])
    rollouts = [
        Trajectory([Transition(start, action, 0.0, False), Transition(start, action, reward, True)], start)
        for reward in rewards
    ]
    return TrajectoryGroup(rollouts, [0.0] * len(rewards), [{} for _ in rewards])


def test_the_rollouts_that_a_training_run_stores_are_read_by_iteration_and_group(tmp_path: Path) -> None:
    store = TrainingRunStore(LocalStorage(tmp_path))
    for iteration in (0, 1):
        for split, groups in (("train", [[1.0, 0.0], [0.0, 0.0]]), ("eval/gsm8k", [[1.0], [1.0]])):
            records = serialize_rollout_summaries(
                split=split,
                iteration=iteration,
                trajectory_groups_P=[group(rewards) for rewards in groups],
                taglist_P=[["math"] for _ in groups],
            )
            store.write_rollouts(iteration, records, base_name=split.replace("/", "_"))
    reading = Reading(find_files([tmp_path]), Asked())
    accounts = Accounts(0.0)
    for batch in reading.batches():
        accounts.add(batch)
    log = accounts.log()
    assert log.step.tolist() == [0, 0, 1, 1]
    assert log.rollouts.tolist() == [2] * 4
    assert sorted(log.without_gradient.tolist()) == [False, False, True, True]
    assert reading.problems.counts == {"files of an evaluation, by their names": 2}
    assert next(iter(reading.columns)).trained == ("total_reward",)
