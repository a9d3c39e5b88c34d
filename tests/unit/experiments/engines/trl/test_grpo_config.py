from __future__ import annotations

from pathlib import Path

from knapsack_rl.experiments.engines.trl.grpo_config import evaluation_rows, grpo_config
from knapsack_rl.experiments.recipe import recipe_file
from knapsack_rl.experiments.recipe.schema import Recipe

PAPER = ["training.prompts_per_step=256", "training.updates_per_step=8", "training.micro_batch_size=4"]


def read(*overrides: str) -> Recipe:
    return recipe_file.read(None, overrides)


def test_a_step_of_the_paper_is_eight_updates_of_whole_passes(tmp_path: Path) -> None:
    config = grpo_config(read(*PAPER, "training.steps=1000", "training.checkpoint_every=50"), tmp_path)
    assert config.generation_batch_size == 2048
    assert config.num_generations == 8
    assert config.steps_per_generation == 2048 // 4
    assert config.gradient_accumulation_steps == 2048 // 8 // 4
    assert config.max_steps == 8 * 1000
    assert config.logging_steps == 8
    assert config.save_steps == 8 * 50


def test_devices_share_the_rollouts_of_an_update(tmp_path: Path) -> None:
    config = grpo_config(read(*PAPER), tmp_path, world_size=8)
    assert config.per_device_train_batch_size == 4
    assert config.gradient_accumulation_steps == 2048 // 8 // 4 // 8
    assert config.steps_per_generation == 2048 // 4 // 8


def test_the_paper_s_loss_is_the_default_and_trl_entries_can_change_the_rest(tmp_path: Path) -> None:
    config = grpo_config(read("trl={lr_scheduler_type: cosine, save_total_limit: 5}"), tmp_path)
    assert (config.epsilon, config.epsilon_high, config.beta, config.entropy_coef) == (0.2, 0.28, 0.0, 0.0)
    assert config.lr_scheduler_type == "cosine"
    assert config.save_total_limit == 5
    assert config.num_iterations == 1


def test_evaluation_batches_hold_whole_groups() -> None:
    recipe = read()  # 512 rollouts a step
    assert evaluation_rows(recipe, samples=16, world_size=1) == 512
    assert evaluation_rows(recipe, samples=3, world_size=1) == 510
    assert evaluation_rows(recipe, samples=16, world_size=64) == 16
