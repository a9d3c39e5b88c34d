"""One of two processes that torchrun starts: the same runs with and without idle rollouts, compared."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import small
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from trl import GRPOTrainer

from knapsack_rl import BudgetAllocator
from knapsack_rl.trl import KnapsackGRPOTrainer

CUTS = {
    "one batch": {"per_device_train_batch_size": 8},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "loss_type": "bnpo"},
    "everything at once": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "loss_type": "grpo",
        "max_steps": 12,
    },
    "few live rows": {  # an update over parts of batches, so that a micro-batch before its last may have a single one
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "steps_per_generation": 4,
        "mask_truncated_completions": True,
        "max_steps": 12,
    },
    "uneven groups": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 12},
    "waves": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 12},
}
STRATEGIES = {"uneven groups": "knapsack", "waves": "adaptive"}  # all others: uniform, as plain TRL


def reward():
    """Batches take turns: rows are live nowhere, by chance everywhere, or by chance in one process only."""
    batches = []  # the first update of each

    def rewards(completion_ids, ease, trainer_state, **_):
        if trainer_state.global_step not in batches:
            batches.append(trainer_state.global_step)
        turn = (len(batches) - 1) % 3
        if turn == 0 or (turn == 2 and torch.distributed.get_rank() == 1):
            return [1.0] * len(ease)
        return small.luck(completion_ids, ease)

    return rewards


class Watched(KnapsackGRPOTrainer):
    """Keeps how many live rows this process has in each micro-batch, and how many of these it computes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.live_rows, self.computed = [], 0

    def _packed(self, batches):
        packed = super()._packed(batches)
        self.live_rows.extend(int((batch["advantages"] != 0.0).sum()) for batch in packed)
        return packed

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self.computed += torch.is_grad_enabled()
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)


def trained(kind, options: dict, **more):
    settings = {"max_steps": 4, "optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.1, "max_grad_norm": 0.3}
    with tempfile.TemporaryDirectory() as folder:
        args = small.config(Path(folder), ddp_find_unused_parameters=False, **settings | options)
        if args.fsdp:  # accelerate turns it on for a list of accelerators only, though its code runs on a CPU too
            PartialState().distributed_type = DistributedType.MULTI_GPU
        trainer = kind(
            model=small.model(),
            reward_funcs=reward(),
            args=args,
            train_dataset=small.rows(),
            processing_class=small.tokenizer(),
            **more,
        )
        trainer.train()
        assert trainer.accelerator.is_fsdp2 == bool(args.fsdp)
        assert all(isinstance(weight, DTensor) == bool(args.fsdp) for weight in trainer.model.parameters())
        return trainer


def ours(strategy: str, options: dict, skip_idle: bool) -> Watched:
    allocator = BudgetAllocator(strategy, group_size=4, max_rollouts=8)
    trainer = trained(Watched, options, allocator=allocator, advantage_clip=None, skip_idle=skip_idle)
    assert trainer.skip_idle == skip_idle
    return trainer


def weights_of(trainer) -> list[torch.Tensor]:
    weights = [weight.detach() for weight in trainer.accelerator.unwrap_model(trainer.model).parameters()]
    return [weight.full_tensor() if isinstance(weight, DTensor) else weight for weight in weights]


def main(folder: Path, kind: str) -> None:
    report = {}
    for cut, options in CUTS.items():
        options = options | {"fsdp": kind == "fsdp"}
        strategy = STRATEGIES.get(cut)
        whole = trained(GRPOTrainer, options) if strategy is None else ours(strategy, options, skip_idle=False)
        expected = weights_of(whole)  # before the next one is built, since building seeds the generators
        trainer = ours(strategy or "uniform", options, skip_idle=True)
        found = weights_of(trainer)
        report[cut] = {
            "difference": max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)),
            "gradient": max(step.get("grad_norm", 0.0) for step in whole.state.log_history),
            "weights": hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in found)).hexdigest(),
            "updates": np.reshape(trainer.live_rows, (-1, trainer.args.gradient_accumulation_steps)).tolist(),
            "computed": trainer.computed / trainer.num_iterations,
            "largest group": max(step.get("rollouts/max", 0) for step in trainer.state.log_history),
        }
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
    gc.collect()  # the model's hold on the process group
    torch.distributed.destroy_process_group()  # left to the interpreter's exit, its threads may abort the process
