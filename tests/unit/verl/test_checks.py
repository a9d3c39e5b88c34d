"""What is refused at the start of a run, by verl's own configuration, and in the words of whoever wrote it."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest

pytest.importorskip("verl", reason="verl is installed in an environment of its own")

import verl
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import knapsack_rl as kr
from knapsack_rl.verl.checks import TESTED, check, check_verl_version


@functools.cache
def defaults() -> Any:
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer")


def config(settings: dict[str, Any]) -> Any:
    """verl's defaults with GRPO and groups of 8, but for these settings; a command line has a + before new ones."""
    found = copy.deepcopy(defaults())
    usual = {"algorithm.adv_estimator": "grpo", "actor_rollout_ref.rollout.n": 8, "trainer.v1.trainer_mode": "knapsack"}
    for key, value in (usual | settings).items():
        OmegaConf.update(found, key, value, force_add=True)
    return found


def test_verls_defaults_in_every_mode_pass() -> None:
    for mode in ("knapsack", "knapsack_colocate_async", "knapsack_separate_async"):
        check(config({"trainer.v1.trainer_mode": mode}))
        check(config({"trainer.v1.trainer_mode": mode, "trainer.v1.knapsack.strategy": "adaptive"}))


def test_a_run_without_anything_of_knapsack_rl_is_none_of_our_business() -> None:
    check(config({"trainer.v1.trainer_mode": "sync", "actor_rollout_ref.rollout.n": 1, "critic.enable": True}))
    check(config({"trainer.v1.trainer_mode": "sync", "trainer.use_v1": False, "algorithm.adv_estimator": "gae"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"trainer.v1.trainer_mode": "sync", "trainer.v1.knapsack.strategy": "adaptive"},
            r"trainer\.v1\.trainer_mode: expected one of knapsack, .*since there are settings .*got 'sync'",
        ),
        ({"trainer.use_v1": False}, r"trainer\.use_v1: expected True, .*got False"),
        (
            {"trainer.use_v1": False, "trainer.v1.trainer_mode": "sync", "trainer.v1.knapsack.seed": 1},
            r"trainer\.use_v1: expected True",
        ),
        ({"trainer.v1.knapsack.strategie": "adaptive"}, r"trainer\.v1\.knapsack: .*Did you mean strategy"),
        ({"trainer.v1.knapsack.strategy.name": "adaptive"}, r"knapsack\.strategy: expected a name, got \{'name'"),
        ({"trainer.v1.knapsack": "adaptive"}, r"trainer\.v1\.knapsack: expected settings, .*got 'adaptive'"),
        (
            {"trainer.v1.knapsak.seed": 1},
            r"trainer\.v1\.knapsak: nothing reads it\. Did you mean trainer\.v1\.knapsack",
        ),
        ({"trainer.knapsack.seed": 1}, r"^trainer\.knapsack: nothing reads it\. Did you mean trainer\.v1\.knapsack\?"),
        ({"knapsack.seed": 1}, r"^knapsack: nothing reads it"),
        (
            {"trainer.v1.knapsack_colocate_async.num_warmup_batches": 2},
            r"knapsack_colocate_async: nothing reads it.* under trainer\.v1\.knapsack in .*trainer\.v1\.colocate_async",
        ),
        (
            {"trainer.v1.knapsack.max_rollouts": 4},
            r"actor_rollout_ref\.rollout\.n: expected a value between min_rollouts=2 and max_rollouts=4, got 8",
        ),
        ({"actor_rollout_ref.rollout.n": 1}, r"actor_rollout_ref\.rollout\.n: expected a value between .*, got 1"),
        (
            {"actor_rollout_ref.rollout.n": 2, "trainer.v1.knapsack.strategy": "knapsack"},
            r"actor_rollout_ref\.rollout\.n: expected more than trainer\.v1\.knapsack\.min_rollouts=2 .*got 2: every "
            r"prompt would get 2 .*nothing to allocate",
        ),
        (
            {"trainer.v1.knapsack.max_rollouts": 8, "trainer.v1.knapsack.strategy": "knapsack"},
            r"less than max_rollouts=8, got 8",
        ),
        (
            {"trainer.v1.knapsack.strategy": "measured"},
            r"knapsack\.strategy: 'measured' goes by .* nothing measures in verl yet.* Set strategy=adaptive",
        ),
        ({"trainer.v1.knapsack.strategy": "adaptiv"}, r"trainer\.v1\.knapsack\.strategy: .*Did you mean adaptive"),
        (
            {"trainer.v1.knapsack.cost_limit": 0.5},
            r"trainer\.v1\.knapsack\.cost_limit: .*Lower actor_rollout_ref\.rollout\.n to spend less",
        ),
        ({"algorithm.adv_estimator": "remax"}, r"algorithm\.adv_estimator: expected one .*got 'remax'"),
        (
            {"algorithm.use_kl_in_reward": True, "trainer.v1.knapsack.strategy": "cautious"},
            r"algorithm\.use_kl_in_reward: expected False with .*strategy=cautious, got True.* or strategy=uniform",
        ),
        ({"critic.enable": True}, r"critic\.enable"),
        ({"reward.reward_model.enable": True}, r"reward\.reward_model: a colocated reward model"),
        ({"trainer.v1.sampler.custom_sampler.path": "mine.py"}, r"custom_sampler: expected none"),
        (
            {"actor_rollout_ref.rollout.agent.agent_loop_manager_class": "mine.Manager"},
            r"agent_loop_manager_class: expected none",
        ),
    ],
)
def test_what_could_only_be_found_out_later_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(kr.KnapsackError, match=message):
        check(config(settings))


def test_even_groups_have_nothing_to_allocate_and_may_be_of_any_size() -> None:
    check(config({"actor_rollout_ref.rollout.n": 2, "trainer.v1.knapsack.strategy": "uniform"}))


def test_uniform_takes_a_kl_term_in_the_reward_as_verl_does() -> None:
    check(config({"algorithm.use_kl_in_reward": True}))


def test_the_installed_verl_is_a_tested_one_a_newer_one_is_warned_of_and_an_older_one_refused() -> None:
    assert check_verl_version(verl.__version__) is None, f"tested are {TESTED}"
    for newer in ("0.10.0.dev20261101", "0.10.0", "1.0"):
        assert f"verl {newer} is newer" in (check_verl_version(newer) or "")
    with pytest.raises(kr.InvalidInputError, match=r"verl: expected 0\.9\.1 or newer, .*got 0\.9\.0"):
        check_verl_version("0.9.0")
