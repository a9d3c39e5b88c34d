"""Kill it anywhere, resume, and get the same run."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import small
import torch

from knapsack_rl import BudgetAllocator, StateError
from knapsack_rl.allocator import STATE_FILE

SCHEDULE = {"max_steps": 10, "save_strategy": "steps"}


def state_of(trainer):
    weights = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    beliefs = trainer.allocator.state_dict()["estimator"]
    plans = [
        (step["rollouts/max"], step["prompt_reward"]) for step in trainer.state.log_history if "prompt_reward" in step
    ]
    return weights, beliefs, plans


@pytest.mark.parametrize(
    ("step", "options"),
    [
        pytest.param(2, {}, id="in the first epoch"),
        pytest.param(3, {}, id="between two epochs"),
        pytest.param(7, {}, id="in a later epoch"),
        pytest.param(8, {"per_device_train_batch_size": 8, "steps_per_generation": 2}, id="two updates a batch"),
        pytest.param(8, {"num_iterations": 2}, id="two passes over a batch"),
        pytest.param(7, {"dataloader_num_workers": 1}, id="with a loader worker"),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(make, tmp_path: Path, step, options):
    options = SCHEDULE | {"save_steps": step} | options
    whole = make(options)
    whole.train()
    expected = state_of(whole)

    resumed = make(options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    weights, beliefs, plans = state_of(resumed)
    assert plans == expected[2]
    for name, weight in expected[0].items():
        assert torch.equal(weight, weights[name]), name
    for name, array in expected[1].items():
        assert np.array_equal(array, beliefs[name]), name


@pytest.mark.parametrize("save_steps", [3, 0.75])
def test_a_checkpoint_inside_a_generation_window_is_warned_about_when_it_is_planned_and_when_it_is_used(
    make, tmp_path, save_steps
):
    options = SCHEDULE | {"num_iterations": 2, "save_steps": save_steps, "max_steps": 4}
    with pytest.warns(
        UserWarning, match=rf"save_steps={save_steps} .* inside a generation window.* multiple of 2"
    ) as planned:
        make(options).train()
    (warning,) = (warning for warning in planned if "save_steps" in str(warning.message))
    assert warning.filename.endswith("conftest.py")  # where the trainer was built
    with pytest.warns(UserWarning, match="inside a generation window") as seen:
        make(options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert any("checkpoint-3 lies inside" in str(warning.message) for warning in seen)


@pytest.mark.parametrize(("step", "inside"), [(6, False), (8, True), (10, False)])
def test_windows_are_found_where_the_last_update_of_an_epoch_is_a_short_one(make, tmp_path, step, inside):
    """Epochs of 16 batches in windows of 4 and updates of 3, so that the sixth update has a single batch."""
    cuts = {"per_device_train_batch_size": 4, "steps_per_generation": 4, "gradient_accumulation_steps": 3}
    options = {"max_steps": 11, "save_strategy": "steps", "save_steps": step, **cuts}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the plan, where only a first epoch is looked at
        whole, resumed = make(options, train_dataset=small.rows(16)), make(options, train_dataset=small.rows(16))
    whole.train()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    messages = [str(warning.message) for warning in seen]
    assert any("make args.gradient_accumulation_steps a divisor of 4" in message for message in messages) == inside
    assert (state_of(resumed)[2] == state_of(whole)[2]) != inside


@pytest.mark.parametrize(("step", "later"), [(2, False), (3, False), (4, True)])
def test_a_later_pass_over_an_iterable_data_set_is_warned_about(make, tmp_path, step, later):
    options = SCHEDULE | {"save_steps": step, "max_steps": 6}
    whole, resumed = (make(options, train_dataset=small.rows().to_iterable_dataset()) for _ in range(2))
    whole.train()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert any("later pass over an iterable data set" in str(warning.message) for warning in seen) == later
    assert (state_of(resumed)[2] == state_of(whole)[2]) != later


def test_a_checkpoint_of_plain_trl_can_be_continued_and_says_that_nothing_is_known(make, tmp_path):
    from trl import GRPOTrainer

    options = SCHEDULE | {"save_steps": 2, "max_steps": 4}
    make(options, kind=GRPOTrainer).train()
    trainer = make(options)
    with pytest.warns(UserWarning, match="a new one counts every prompt as never visited"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.allocator.metrics()["known_prompts"] == 8  # of steps 3 and 4


def test_damaged_beliefs_stop_a_resume_with_the_name_of_the_file(make, tmp_path):
    options = SCHEDULE | {"save_steps": 2, "max_steps": 4}
    make(options).train()
    state = tmp_path / "checkpoint-2" / STATE_FILE
    state.write_bytes(state.read_bytes()[:50])
    with pytest.raises(StateError, match=STATE_FILE):
        make(options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_beliefs_in_a_checkpoint_can_be_read_without_the_trainer(make, tmp_path):
    trainer = make(SCHEDULE | {"save_steps": 4, "max_steps": 4})
    trainer.train()
    allocator = BudgetAllocator("knapsack", group_size=4)
    allocator.load(tmp_path / "checkpoint-4" / STATE_FILE)
    assert allocator.metrics() == trainer.allocator.metrics()
    assert len(small.rows()) == allocator.metrics()["known_prompts"]
