"""What cannot work is refused at construction, with the reason and what to use instead."""

from __future__ import annotations

import pytest
import small
import trl
from trl.experimental.sdpo import SDPOTrainer

from knapsack_rl import BudgetAllocator, InvalidInputError
from knapsack_rl.trl import KnapsackGRPOTrainer
from knapsack_rl.trl.compatibility import check_waves


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        (
            {},
            {"allocator": BudgetAllocator(group_size=8)},
            r"allocator: its group_size is 8 but args.num_generations is 4",
        ),
        (
            {},
            {"allocator": BudgetAllocator(group_size=4, algorithm="reinforce")},
            r"allocator: the gradient of GRPO and RLOO vanishes",
        ),
        ({}, {"train_dataset": None}, r"train_dataset: without one every prompt looks the same"),
        ({"generation_kwargs": {"seed": 1}}, {}, r"args.generation_kwargs: a fixed 'seed'"),
        ({}, {"id_column": "task"}, r"id_column: 'task' is not a column of the data set, which has ease, prompt"),
        ({}, {"train_dataset": small.rows().remove_columns("prompt")}, r"train_dataset: without a column 'prompt'"),
        ({}, {"train_dataset": small.rows(3)}, r"train_dataset: expected at least the 4 prompts .* got 3"),
        ({"accelerator_config": {"split_batches": True}}, {}, r"args.accelerator_config: split_batches and dispatch_b"),
        ({"remove_unused_columns": True}, {"id_column": "task"}, r"id_column: args.remove_unused_columns=True"),
        ({}, {"feature_columns": "ease"}, r"feature_columns: expected a sequence of .*names, got 'ease'"),
        (
            {"remove_unused_columns": True},
            {"feature_columns": ["ease"]},
            r"feature_columns: args.remove_unused_columns",
        ),
        ({}, {"rollout_weights": "root"}, r"rollout_weights: "),
        ({}, {"advantage_clip": 0.0}, r"advantage_clip: expected a positive number, None for no bound.*got 0.0"),
        ({}, {"advantage_clip": "5"}, r"advantage_clip: expected a positive number, None for no bound.*got '5'"),
        ({}, {"allocator": "adaptive"}, r"allocator: expected a BudgetA.*BudgetAllocator\('adaptive', group_size=4\)"),
        ({}, {"success_threshold": None}, r"success_threshold: expected a finite number, .*got None"),
        ({}, {"success_threshold": "0.5"}, r"success_threshold: expected a finite number, .*got '0.5'"),
        ({}, {"graded_rewards": "yes"}, r"graded_rewards: expected True or False, got 'yes'"),
        ({}, {"outcome_gate": "sucess"}, r"outcome_gate: expected one of none, success, both.* got 'sucess'"),
        ({}, {"outcome_gate": "both", "graded_rewards": True}, r"outcome_gate: expected 'none' with graded_rewards"),
        (
            {},
            {"reward_funcs": [small.luck, small.luck], "success_reward": "luck"},
            r"success_reward: 2 reward functions have the name 'luck'",
        ),
        ({}, {"success_reward": "lukc"}, r"success_reward: expected one of luck, got 'lukc'"),
    ],
)
def test_an_option_that_cannot_work_is_refused_in_one_sentence(make, options, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        make(options, **arguments)


@pytest.mark.parametrize("version", ["1.13.0", "1.15.0", "1.17.0", "2.0.0"])
def test_a_trl_version_that_was_not_tried_is_refused_with_the_command_to_run(make, monkeypatch, version):
    monkeypatch.setattr(trl, "__version__", version)
    with pytest.raises(InvalidInputError, match=rf"not with the installed {version}. Run: pip install 'trl.*>=1.14"):
        make()


def test_trainers_with_groups_of_one_size_are_refused(make):
    class Mixed(KnapsackGRPOTrainer, SDPOTrainer):
        pass

    with pytest.raises(InvalidInputError, match="SDPOTrainer generates and scores groups of one size"):
        make(kind=Mixed)


def test_environments_are_refused_where_a_step_would_reset_them_several_times(make):
    trainer = make()
    trainer.environment_factories = {None: object}
    check_waves(trainer, BudgetAllocator("knapsack", group_size=4))
    with pytest.raises(InvalidInputError, match=r"waves: the strategy 'adaptive' .* Pass waves=False"):
        check_waves(trainer, BudgetAllocator("adaptive", group_size=4))


def test_a_batch_of_another_size_than_trl_promised_is_noticed(make):
    trainer = make({"max_steps": 1})
    trainer.model.train()
    with pytest.raises(ValueError, match="expected 16 rows over 1 processes, got 5"):
        trainer._generate_and_score_completions([{"prompt": "w1", "ease": 0.5}] * 5)
