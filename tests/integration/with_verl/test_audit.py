"""What verl's own writers of rollout dumps write, as the audit reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("verl.trainer.ppo.v1", reason="verl is installed in an environment of its own")
pytest.importorskip("pyarrow", reason="the report extra is not installed")
pytest.importorskip("pandas", reason="the report extra is not installed")
pytest.importorskip("orjson", reason="the report extra is not installed")

from verl.trainer.ppo.ray_trainer import RayPPOTrainer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from knapsack_rl.experiments.audit.accounting import Accounts, Log
from knapsack_rl.experiments.audit.asked import Asked
from knapsack_rl.experiments.audit.files import find_files
from knapsack_rl.experiments.audit.reading import Reading

WRITERS = {"v1": PPOTrainer._write_generations, "legacy": RayPPOTrainer._write_generations}


def read(folder: Path) -> tuple[Log, Reading]:
    reading = Reading(find_files([folder]), Asked())
    accounts = Accounts(0.0)
    for batch in reading.batches():
        accounts.add(batch)
    return accounts.log(), reading


def dump(writer: str, folder: Path, step: int, groups: list[tuple[str, str, list[float]]], **extra: Any) -> None:
    """A step as the trainer hands it to its writer: lists over rollouts, scores as tensors and arrays give them."""
    rows = [(text, gold, score) for text, gold, scores in groups for score in scores]
    WRITERS[writer](
        inputs=[f"user\n{text}\nassistant\n" for text, _, _ in rows],
        outputs=[f"It is {number}" for number in range(len(rows))],
        gts=[gold for _, gold, _ in rows],
        scores=[score for _, _, score in rows],
        reward_extra_infos_dict=extra,
        dump_path=str(folder),
        global_steps=step,
    )


@pytest.mark.parametrize("writer", WRITERS)
def test_a_dump_of_verl_is_read_with_its_steps_scores_and_verdicts(tmp_path: Path, writer: str) -> None:
    shaped = [1.0, -0.2, 0.0, 1.0]  # right, but two of them too long
    for step in (1, 2):
        dump(
            writer, tmp_path, step, [("2+2?", "4", shaped), ("3+3?", "6", [-1.0] * 4)],
            acc=np.array([True] * 4 + [False] * 4), score_of_format=[np.float32(1.0)] * 8,
        )  # fmt: skip
    log, reading = read(tmp_path)
    assert not reading.problems.counts
    assert log.step.tolist() == [1, 1, 2, 2]
    assert len(log.keys) == 2
    assert (
        sorted(zip(log.successes.tolist(), log.without_gradient.tolist(), strict=True))
        == [(0, True)] * 2 + [(4, False)] * 2
    )
    columns = next(iter(reading.columns))
    assert (columns.trained, columns.success) == (("score",), ("acc",))


@pytest.mark.parametrize("references", [("12", "30"), ("12", "12"), (None, None)])
def test_problems_that_differ_in_their_image_alone_are_told_apart_by_the_sample_in_uid(
    tmp_path: Path, references: tuple[str | None, str | None]
) -> None:
    groups = [("Find x.", gold, scores) for gold, scores in zip(references, ([1.0] * 4, [0.0] * 4), strict=True)]
    uids = [f"{sample}_{rollout}_0" for sample in ("0b1f", "9c2e") for rollout in range(4)]
    dump("v1", tmp_path, 7, groups, uid=uids)
    log, _ = read(tmp_path)
    assert log.rollouts.tolist() == [4, 4]
    assert log.without_gradient.all()


def test_what_filter_groups_lets_through_has_no_group_without_gradient(tmp_path: Path) -> None:
    groups = [("a", "1", [1.0, 0.0]), ("b", "1", [0.0, 0.0]), ("c", "1", [1.0, 1.0]), ("d", "1", [0.0, 1.0])]
    survivors = [group for group in groups if np.std(group[2]) != 0.0]  # verl's own criterion
    dump("v1", tmp_path, 1, survivors)
    log, _ = read(tmp_path)
    assert len(log.step) == 2
    assert not log.without_gradient.any()
