"""Gradients are measured in TRL's own backward passes: those of the groups add up to the update."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from measuring_trainer import trained

from knapsack_rl import BudgetAllocator
from knapsack_rl.trl import KnapsackGRPOTrainer, KnapsackRLOOTrainer

ACCUMULATED = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}


@pytest.mark.parametrize("strategy", ["uniform", "measured"])
@pytest.mark.parametrize("options", [{"loss_type": "bnpo"}, {"loss_type": "dr_grpo"} | ACCUMULATED])
@pytest.mark.parametrize("skip_idle", [True, False])
def test_the_gradients_of_the_groups_add_up_to_the_updates(strategy, options, skip_idle) -> None:
    trainer = trained(strategy, options, skip_idle=skip_idle)
    assert trainer.skip_idle == skip_idle
    assert len(trainer.sums) == 5
    assert trainer.error < 1e-5


def test_measuring_does_not_change_the_run(make) -> None:
    runs = []
    for on in (False, True):
        runs.append(make(allocator=BudgetAllocator("adaptive", group_size=4), measure_influence=on))
        runs[-1].train()
    for one, two in zip(*(trainer.model.parameters() for trainer in runs), strict=True):
        assert torch.equal(one, two)
    assert [trainer.allocator.influence.steps > 0 for trainer in runs] == [False, True]


def test_groups_without_a_gradient_are_told_as_zero_and_the_others_are_not() -> None:
    trainer = trained("uniform")
    record, told = trainer.last_step, trainer.told[-1]
    live = (record.successes > 0) & (record.successes < record.scored)
    np.testing.assert_array_equal(told.abs().sum(dim=1).numpy() > 0, live)


def test_the_policy_that_sampled_is_measured_and_not_its_later_iterations() -> None:
    once = trained("uniform", {"max_steps": 1})
    repeated = trained("uniform", {"max_steps": 4, "steps_per_generation": 1, "num_iterations": 4})
    assert len(once.told) == len(repeated.told) == 1
    torch.testing.assert_close(once.told[0], repeated.told[0])


def test_several_updates_on_a_batch_are_told_together() -> None:
    options = {"per_device_train_batch_size": 4, "steps_per_generation": 4, "max_steps": 8}
    assert [told.shape[0] for told in trained("uniform", options).told] == [4, 4]


def test_a_strategy_that_goes_by_measured_worth_measures_by_itself(make) -> None:
    trainer = make({"max_steps": 20}, allocator=BudgetAllocator("measured", group_size=4))
    trainer.train()
    assert trainer.allocator.influence.steps > 0
    assert any("noise_scale" in record for record in trainer.state.log_history)
    assert make(allocator=BudgetAllocator("adaptive", group_size=4))._watch is None


@pytest.mark.parametrize("kind", [KnapsackGRPOTrainer, KnapsackRLOOTrainer])
def test_a_step_is_told_what_the_trainer_divided_distances_from_the_mean_by(kind, make) -> None:
    algorithm = "rloo" if kind is KnapsackRLOOTrainer else "grpo"
    trainer = make(kind=kind, allocator=BudgetAllocator("measured", group_size=4, algorithm=algorithm))
    told, tell = [], trainer._tell_gradients
    trainer._tell_gradients = lambda *what: (told.append((what[1], what[-1])), tell(*what))
    trainer.train()
    assert trainer.allocator.influence.steps > 0
    for step, divided in told:
        won, tried = step.successes, step.scored
        share = won / tried
        expected = (tried - 1) / tried if algorithm == "rloo" else np.sqrt(share * (1 - share) * tried / (tried - 1))
        live = (won > 0) & (won < tried)
        np.testing.assert_allclose(divided, np.where(live, expected, 0.0), rtol=3e-4)  # TRL adds 1e-4 to deviations


def test_what_was_measured_goes_on_after_a_resume(make) -> None:
    options = {"save_strategy": "steps", "save_steps": 3}
    whole = make(options, allocator=BudgetAllocator("measured", group_size=4))
    whole.train()
    resumed = make(options, allocator=BudgetAllocator("measured", group_size=4))
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-3"))
    assert resumed.allocator.influence.state_dict() == whole.allocator.influence.state_dict()


@pytest.mark.slow
def test_two_processes_measure_the_whole_step_and_know_the_same(tmp_path) -> None:
    script = Path(__file__).with_name("measuring_trainer.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for name, run in first.items():
        assert run["steps"] == 5, name
        assert run["error"] < 1e-5, name
        assert run["state"] == second[name]["state"], name
