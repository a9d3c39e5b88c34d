"""What of verl the trainer modes override, wrap, or count on being called as it is; most of it is private.

A method that a newer verl does not call any more would be overridden in vain, and nobody would notice: advantages would
not be clipped, or groups not accounted for. So a version without one of these is refused at start, and a test compares
their source with the one that they were written for.
"""

from __future__ import annotations

import importlib
from typing import Any

import verl

from knapsack_rl.errors import InvalidInputError

RELIED_ON = {
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer": (
        "__init__",
        "_init_dataloader",
        "_build_replay_buffer",
        "_step_once",
        "_balance_batch",
        "_get_required_batch_multiple",
        "_compute_advantage",
        "_update_actor",
        "_save_checkpoint",
        "_load_checkpoint",
    ),
    "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer": (
        "sample",
        "_wait_for_next_poll",
        "_clear_groups",
        "_select_prompt_uids",
    ),
    "verl.trainer.ppo.v1.replay_buffer:ReplayBufferAsync": ("sample", "wait_for_sampleable"),
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ": (
        "__init__",
        "_run_prompt",
        "_run_agent_loop",
        "_agent_loop_postprocess",
        "_compute_score",
    ),
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopManagerTQ": ("__init__", "generate_sequences"),
    "verl.utils.config": ("validate_config",),
}
"""`module:Class` or module, and its members."""


def find(place: str) -> Any:
    """The class or module of that name; of one that Ray made an actor of, the class that it was before.

    Raises:
        ImportError, AttributeError: there is none.
    """
    module, _, name = place.partition(":")
    found = importlib.import_module(module)
    for part in name.split(".") if name else ():
        found = getattr(found, part)
    metadata = getattr(found, "__ray_metadata__", None)
    return found if metadata is None else metadata.modified_class


def check_relied_on() -> None:
    """Refuse a version of verl that lacks any of it.

    Raises:
        InvalidInputError: it names what is missing.
    """
    missing = [f"{place}.{name}" for place, names in RELIED_ON.items() for name in names if not _has(place, name)]
    if missing:
        raise InvalidInputError(
            f"verl: the trainer modes of knapsack-rl override what the installed {verl.__version__} does not have: "
            f"{', '.join(missing)}. Install a version that docs/verl.md names as tested."
        )


def _has(place: str, name: str) -> bool:
    try:
        return hasattr(find(place), name)
    except (ImportError, AttributeError):
        return False
