"""Where rows without gradient may be left out of verl's updates, by verl's own configuration."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest

pytest.importorskip("verl", reason="verl is installed in an environment of its own")

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from knapsack_rl.verl.idle import divisor, obstacle, stages


@functools.cache
def defaults(name: str) -> Any:
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(name)


def config(*settings: tuple[str, Any], name: str = "ppo_trainer") -> Any:
    """verl's defaults, but for these settings."""
    found = copy.deepcopy(defaults(name))
    for key, value in settings:
        OmegaConf.update(found, key, value)
    return found


ACTOR = "actor_rollout_ref.actor"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (f"{ACTOR}.use_kl_loss", True, "actor.use_kl_loss"),
        (f"{ACTOR}.entropy_coeff", 0.001, "actor.entropy_coeff=0.001"),
        (f"{ACTOR}.policy_loss.loss_mode", "geo_mean", "loss_mode=geo_mean"),
        (f"{ACTOR}.policy_loss.loss_mode", "bypass_mode", "loss_mode=bypass_mode"),
        (f"{ACTOR}.loss_agg_mode", "seq-mean-token-sum-norm", "actor.loss_scale_factor"),
        (f"{ACTOR}.shuffle", True, "actor.shuffle"),
        (f"{ACTOR}.strategy", "megatron", "actor.strategy=megatron was not tried"),
        ("actor_rollout_ref.model.mtp.enable", True, "model.mtp"),
        ("distillation.enabled", True, "distillation"),
    ],
)
def test_what_needs_every_rollout_is_named(key: str, value: Any, reason: str) -> None:
    assert reason in (obstacle(config((f"{ACTOR}.strategy", "fsdp2"), (key, value))) or "")


@pytest.mark.parametrize("mode", ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean"])
def test_verls_defaults_need_live_rows_only(mode: str) -> None:
    assert obstacle(config((f"{ACTOR}.loss_agg_mode", mode), (f"{ACTOR}.strategy", "fsdp2"))) is None


def test_a_loss_that_is_not_proportional_to_advantages_is_not_scaled_and_sapo_has_a_mode_of_its_own() -> None:
    assert divisor(config()) == "tokens"
    assert divisor(config((f"{ACTOR}.loss_agg_mode", "seq-mean-token-sum"))) == "rows"
    assert divisor(config((f"{ACTOR}.policy_loss.loss_mode", "sapo"))) == "rows"
    assert divisor(config((f"{ACTOR}.policy_loss.loss_mode", "dro"))) == "nothing"


def test_virtual_pipeline_parallelism_gets_micro_batches_by_the_group() -> None:
    four = (f"{ACTOR}.megatron.pipeline_model_parallel_size", 4)
    assert stages(config(four, name="ppo_megatron_trainer").actor_rollout_ref.actor) == 1
    virtual = (f"{ACTOR}.megatron.virtual_pipeline_model_parallel_size", 2)
    assert stages(config(four, virtual, name="ppo_megatron_trainer").actor_rollout_ref.actor) == 4
