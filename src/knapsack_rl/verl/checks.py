"""What is wrong with a configuration of verl, found before anything is started from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import verl
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.validation import nearest
from knapsack_rl.verl.options import SETTINGS, SIZE, read_options

OLDEST, TESTED = "0.9.1", SpecifierSet(">=0.9.1,<0.10")
"""Versions of verl: the first with what these modes need, and those that their tests have run with."""

MODES = {"knapsack": "sync", "knapsack_colocate_async": "colocate_async", "knapsack_separate_async": "separate_async"}
"""Values of `trainer.v1.trainer_mode` that this package adds, and verl's own mode that each is based on."""

MANAGER = "knapsack_rl.verl.agent_loop.KnapsackAgentLoopManager"
_OURS = (SETTINGS, "trainer.v1.knapsack_keeper")
"""Keys of the configuration that these modes read; the second one the trainer adds for the workers."""


def check(config: Any) -> None:
    """Refuse what a run could only find out later. Configurations without anything of knapsack-rl pass.

    Args:
        config: verl's, as Hydra composes it.

    Raises:
        InvalidInputError, InfeasibleBudgetError: such a setting, by its name in verl's configuration.
    """
    check_places(config)
    v1 = config.trainer.get("v1") or {}
    mode = v1.get("trainer_mode")
    if mode not in MODES and "knapsack" not in v1:
        return
    if not config.trainer.get("use_v1", True):
        raise InvalidInputError(
            "trainer.use_v1: expected True, since verl's older trainers know no trainer modes and would leave "
            f"{SETTINGS} unread, got False. Leave it out."
        )
    if mode in MODES.values():
        raise InvalidInputError(
            f"trainer.v1.trainer_mode: expected one of {', '.join(MODES)}, since there are settings under {SETTINGS}, "
            f"got {mode!r}, which does not read them. Set the mode, or leave them out."
        )
    check_verl_version(verl.__version__)
    check_options(config)
    options, size = read_options(config), int(config.actor_rollout_ref.rollout.n)
    allocator = options.allocator(size, str(config.algorithm.adv_estimator))
    if allocator.measures:
        raise InvalidInputError(
            f"{SETTINGS}.strategy: {allocator.strategy!r} goes by what gradients are worth, which nothing measures in "
            "verl yet, so that it would plan as adaptive does. Set strategy=adaptive."
        )
    if allocator.explain_even(2) is not None:
        raise InvalidInputError(
            f"{SIZE}: expected more than {SETTINGS}.min_rollouts={options.min_rollouts} and less than "
            f"max_rollouts={options.max_rollouts}, got {size}: every prompt would get {size} rollouts, and there is "
            f"nothing to allocate. Change {SIZE} or the bounds, or set strategy=uniform."
        )


def check_places(config: Any) -> None:
    """Refuse settings of knapsack-rl where nothing reads them.

    Raises:
        InvalidInputError: a key of verl's configuration that looks like `knapsack`, but is another or elsewhere.
    """
    for place, key in _keys(config):
        name = f"{place}{key}"
        if name in _OURS:
            continue
        if place == "trainer.v1." and key in MODES:
            raise InvalidInputError(
                f"{name}: nothing reads it. Settings of knapsack-rl are under {SETTINGS} in every mode, and those of "
                f"verl's mode under trainer.v1.{MODES[key]}."
            )
        if key.startswith("knapsack") or nearest(key, ["knapsack"], cutoff=0.8):
            raise InvalidInputError(f"{name}: nothing reads it. Did you mean {SETTINGS}?")


def _keys(config: Any) -> Iterator[tuple[str, str]]:
    """Keys where a setting may have landed by mistake, each with its place."""
    trainer = config.trainer
    for place, block in (("", config), ("trainer.", trainer), ("trainer.v1.", trainer.get("v1"))):
        for key in block if isinstance(block, Mapping) else ():
            yield place, str(key)


def check_verl_version(installed: str) -> str | None:
    """What to know of a version of verl that these modes were not tested with; None for one that they were.

    Raises:
        InvalidInputError: one that lacks what they need.
    """
    if Version(installed) < Version(OLDEST):
        raise InvalidInputError(
            f"verl: expected {OLDEST} or newer, which has what the trainer modes of knapsack-rl need, got {installed}. "
            f"Run: pip install 'verl>={OLDEST}'"
        )
    if TESTED.contains(installed, prereleases=True):
        return None
    return (
        f"verl {installed} is newer than what the trainer modes of knapsack-rl were tested with ({TESTED}). They "
        "override private methods of verl, which docs/verl.md lists; tests/unit/verl/test_relied_on.py says which of "
        "them have changed."
    )


def check_options(config: Any) -> None:
    """Refuse what cannot work with groups that are planned and scored as they are generated.

    Raises:
        InvalidInputError: such an option.
    """
    reward_model = config.reward.reward_model
    if reward_model.enable and not reward_model.enable_resource_pool:
        raise InvalidInputError(
            "reward.reward_model: a colocated reward model scores after generation, when nothing can be placed any "
            "more. Set reward.reward_model.enable_resource_pool=True, or use rule-based rewards."
        )
    sampler = config.trainer.v1.sampler.get("custom_sampler")
    if sampler is not None and sampler.get("path"):
        raise InvalidInputError(
            f"trainer.v1.sampler.custom_sampler: expected none, since groups that it drops or waits for could not be "
            f"accounted for, got {sampler.path!r}. Leave it out."
        )
    filtering = config.algorithm.get("filter_groups") or {}
    if filtering.get("enable") and read_options(config).min_rollouts == 0:
        raise InvalidInputError(
            f"{SETTINGS}.min_rollouts: with 0 some groups have no rollouts, and verl's "
            "algorithm.filter_groups stops at a group without a reward. Use 2, or leave the filter out."
        )
    if config.critic.enable:
        raise InvalidInputError(
            "critic.enable: the estimators that these trainer modes take have no critic. Leave it out."
        )
    strategy = read_options(config).strategy
    if config.algorithm.get("use_kl_in_reward") and strategy != "uniform":
        raise InvalidInputError(
            f"algorithm.use_kl_in_reward: expected False with {SETTINGS}.strategy={strategy}, got True. It takes the "
            "KL term from the reward, so that groups of equal rewards have a gradient too, and no allocation can spare "
            "them. Use actor_rollout_ref.actor.use_kl_loss, or strategy=uniform."
        )
    manager = config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class")
    if manager not in (None, MANAGER):
        raise InvalidInputError(
            f"actor_rollout_ref.rollout.agent.agent_loop_manager_class: expected none, since the trainer modes of "
            f"knapsack-rl bring their own ({MANAGER}), got {manager!r}. Derive yours from it and use its trainer."
        )
