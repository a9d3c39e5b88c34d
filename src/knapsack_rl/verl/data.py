"""Whether the first prompt of the data set has what the settings name, before anything is started."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from verl.experimental.reward_loop import RewardLoopWorker
from verl.protocol import DataProto

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.estimators.features import as_features
from knapsack_rl.identity import prompt_id
from knapsack_rl.verl.options import SETTINGS, KnapsackOptions

SCORED_BY_REWARD_LOOP = ("single_turn_agent", "tool_agent")
"""verl's own agent loops, which leave the reward to its reward loop; others may bring theirs."""

logger = logging.getLogger(__name__)


def check_first_prompt(config: Any, options: KnapsackOptions, row: Mapping[str, Any]) -> None:
    """Check that columns exist and can be used, and that rewards have the success field.

    Args:
        config: verl's.
        options: the settings.
        row: of the training data, as verl's data set returns it.

    Raises:
        InvalidInputError: which name leads nowhere.

    Cost: with a success field one reward, of an empty answer.
    """
    named = {"id_field": [options.id_field or "data_source"], "feature_fields": options.feature_fields}
    for setting, columns in named.items():
        for column in columns:
            if column not in row:
                raise InvalidInputError(
                    f"{SETTINGS}.{setting}: expected a column of the data set, which has {', '.join(sorted(row))}, "
                    f"got {column!r}."
                )
    with _said_of("feature_fields"):
        as_features({name: [row[name]] for name in options.feature_fields}, 1)
    with _said_of("id_field"):
        prompt_id(row["raw_prompt"], extra={name: row[name] for name in named["id_field"]})
    entries = None if options.success_field is None else entries_of_reward(config, row)
    if entries is not None and options.success_field not in entries:
        raise InvalidInputError(
            f"{SETTINGS}.success_field: expected an entry of reward_extra_info, which has "
            f"{', '.join(sorted(entries)) or 'none'} for an empty answer to the first prompt, got "
            f"{options.success_field!r}."
        )


@contextmanager
def _said_of(setting: str) -> Iterator[None]:
    try:
        yield
    except InvalidInputError as error:
        raise InvalidInputError(f"{SETTINGS}.{setting}: {error}") from error


def entries_of_reward(config: Any, row: Mapping[str, Any]) -> list[str] | None:
    """Names in `reward_extra_info` for an empty answer; None where only a run can tell.

    That is where a reward model has to be asked, an agent loop may score on its own, or an empty answer has no reward.
    """
    loop = row.get("agent_name", config.actor_rollout_ref.rollout.agent.default_agent_loop)
    if config.reward.reward_model.enable or str(loop) not in SCORED_BY_REWARD_LOOP:
        return None
    try:
        found = asyncio.run(_reward_of_nothing(config, row))
    except Exception:  # of the user's reward function, which may fail without stopping a run
        logger.exception("%s.success_field: not checked, since an empty answer has no reward", SETTINGS)
        return None
    return list(found["reward_extra_info"])


async def _reward_of_nothing(config: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    worker = RewardLoopWorker(config)
    end = torch.tensor([[worker.input_tokenizer.eos_token_id]])
    tensors = {"prompts": end, "responses": end, "input_ids": end.repeat(1, 2)}
    tensors |= {"attention_mask": torch.ones(1, 2, dtype=torch.long), "position_ids": torch.arange(2)[None]}
    columns = {}
    for name, value in (*row.items(), ("__num_turns__", 2), ("tool_extra_fields", {})):
        columns[name] = np.empty(1, dtype=object)
        columns[name][0] = value
    return await worker.compute_score(DataProto(TensorDict(tensors, batch_size=1), columns))
