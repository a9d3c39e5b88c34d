"""Which state a run of verl goes on from, and whether it can, before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("verl.trainer.ppo.v1", reason="verl is installed in an environment of its own")

from omegaconf import OmegaConf

import knapsack_rl as kr
from knapsack_rl.verl.trainer import check_resumed, saved_state

STATE = "knapsack_allocator.npz"


def config(folder: Path, mode: str = "auto", path: Path | None = None) -> object:
    keys = {"default_local_dir": str(folder), "resume_mode": mode, "resume_from_path": path and str(path)}
    return OmegaConf.create({"trainer": keys})


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Two of them, of which verl names the second as the last."""
    for step, strategy in ((2, "adaptive"), (4, "knapsack")):
        (tmp_path / f"global_step_{step}").mkdir()
        kr.BudgetAllocator(strategy, 4).save(tmp_path / f"global_step_{step}" / STATE)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("4")
    return tmp_path


def test_a_run_goes_on_from_the_checkpoint_that_verl_takes(checkpoints: Path, tmp_path: Path) -> None:
    second = checkpoints / "global_step_2"
    assert saved_state(config(checkpoints)) == checkpoints / "global_step_4" / STATE
    assert saved_state(config(checkpoints, "resume_path", second)) == second / STATE
    assert saved_state(config(checkpoints, "disable")) is None
    assert saved_state(config(tmp_path / "nothing")) is None


def test_a_checkpoint_of_another_strategy_is_refused_and_one_of_the_same_passes(checkpoints: Path) -> None:
    check_resumed(kr.BudgetAllocator("knapsack", 4), config(checkpoints))
    with pytest.raises(kr.StateError, match=r"go on from .*global_step_4, .*'adaptive', got the state of 'knapsack'"):
        check_resumed(kr.BudgetAllocator("adaptive", 4), config(checkpoints))


def test_a_checkpoint_of_another_mode_has_no_state_to_refuse(checkpoints: Path) -> None:
    (checkpoints / "global_step_4" / STATE).unlink()
    check_resumed(kr.BudgetAllocator("adaptive", 4), config(checkpoints))
