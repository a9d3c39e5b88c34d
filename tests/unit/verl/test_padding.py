"""verl's own advantages and metrics of real rows, with rows of padding among them; a dictionary is verl's queue."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("verl.trainer.ppo.v1", reason="verl is installed in an environment of its own")

import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorStack
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import trainer_base

from knapsack_rl.verl import trainer as ours


class Queue:
    """What is stored of each row, by its key."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        found: dict[str, Any] = {}
        for name in select_fields:
            if all(name in self.rows[key] for key in keys):
                values = [self.rows[key][name] for key in keys]
                stack = isinstance(values[0], str)
                found[name] = (
                    NonTensorStack(*values) if stack else torch.nested.as_nested_tensor(values, layout=torch.jagged)
                )
        return TensorDict(found, batch_size=len(keys))

    def kv_batch_put(self, keys: list[str], partition_id: str, fields: TensorDict) -> KVBatchMeta:
        for name, values in fields.items():
            for key, value in zip(keys, values.unbind(), strict=True):
                self.rows[key][name] = value
        names = sorted(set.intersection(*(set(self.rows[key]) for key in keys)))
        return KVBatchMeta(keys=list(keys), tags=[{} for _ in keys], partition_id=partition_id, fields=names)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    made = Queue()
    for module in (trainer_base, ours):
        monkeypatch.setattr(module, "tq", made)
    return made


def batch_in(queue: Queue, padding: int) -> KVBatchMeta:
    """Two groups of three rollouts of one to four tokens, and rows of padding as verl makes them, among them."""
    random = torch.Generator().manual_seed(0)
    tags: dict[str, dict[str, Any]] = {}
    for position in range(6):
        length = 1 + position % 4
        key, mask = f"group{position // 3}_{position % 3}_0", torch.ones(length, dtype=torch.int64)
        scores = torch.zeros(length)
        scores[-1] = float(position in (0, 4, 5))
        logs = -torch.rand(2, length, generator=random)
        values = {"response_mask": mask, "rm_scores": scores, "rollout_log_probs": logs[0], "old_log_probs": logs[1]}
        queue.rows[key] = {"uid": f"group{position // 3}", **values}
        tags[key] = {}
        if position < padding:
            key, none = f"pad_{position}_0", torch.zeros(1)
            queue.rows[key] = {"uid": "pad", "response_mask": none.long(), "rm_scores": none.clone()}
            queue.rows[key] |= {"rollout_log_probs": none.clone(), "old_log_probs": torch.full((1,), -3.0)}
            tags[key] = {"is_padding": True}
    return KVBatchMeta(keys=list(tags), tags=list(tags.values()), partition_id="train", fields=["uid"])


@pytest.mark.parametrize("estimator", ["grpo", "reinforce_plus_plus", "rloo"])
def test_advantages_and_the_metrics_of_rollout_correction_are_those_without_padding(
    estimator: str, queue: Queue
) -> None:
    trainer = object.__new__(ours.KnapsackTrainerSync)
    correction = {"rollout_is": "sequence", "rollout_is_threshold": 2.0, "rollout_rs": "seq_mean_k1"}
    correction |= {"rollout_rs_threshold": "0.5_2.0"}
    algorithm = {"adv_estimator": estimator, "use_kl_in_reward": False, "gamma": 1.0, "lam": 1.0}
    rollout = {"actor_rollout_ref": {"rollout": {"n": 3}}}
    trainer.config = OmegaConf.create(rollout | {"algorithm": algorithm | {"rollout_correction": correction}})
    found = []
    for padding in (0, 4):
        queue.rows.clear()
        metrics: dict[str, Any] = {}
        batch = batch_in(queue, padding)
        result = trainer._advantages_of_real_rows(batch, metrics)
        assert result.keys == batch.keys
        assert {"advantages", "returns", "rollout_is_weights"} <= set(result.fields)
        assert all(set(result.fields) <= set(row) for row in queue.rows.values())
        real = {key: row for key, row in queue.rows.items() if row["uid"] != "pad"}
        assert not any(row["advantages"].any() for key, row in queue.rows.items() if key not in real)
        names = ("advantages", "returns", "rollout_is_weights", "response_mask")
        found.append((metrics, {(key, name): row[name].tolist() for key, row in real.items() for name in names}))
    assert found[0] == found[1]
    assert any(name.startswith("rollout_corr/") for name in found[0][0])
