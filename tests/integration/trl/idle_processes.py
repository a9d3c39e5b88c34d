"""One of two processes that torchrun starts: the same runs in plain TRL and without idle rollouts, compared."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import small
import torch
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
    },
}


def reward(case: str):
    """What makes rows live: chance everywhere, in one process only, or nowhere."""

    def rewards(completion_ids, ease, **_):
        rank = torch.distributed.get_rank()
        if case == "never" or (case == "one lucky process" and rank == 1):
            return [1.0] * len(ease)
        return small.luck(completion_ids, ease)

    return rewards


class Watched(KnapsackGRPOTrainer):
    """Keeps how many live rows this process has in each update of a generation batch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.live_rows = []

    def _packed(self, batches):
        packed = super()._packed(batches)
        live = [int((batch["advantages"] != 0.0).sum()) for batch in packed]
        span = self.args.gradient_accumulation_steps
        self.live_rows.extend(sum(live[start : start + span]) for start in range(0, len(live), span))
        return packed


def trained(kind, case: str, options: dict, **more):
    with tempfile.TemporaryDirectory() as folder:
        settings = {"max_steps": 4, "optim": "sgd", "learning_rate": 0.1, "ddp_find_unused_parameters": False}
        trainer = kind(
            model=small.model(),
            reward_funcs=reward(case),
            args=small.config(Path(folder), **settings | options),
            train_dataset=small.rows(),
            processing_class=small.tokenizer(),
            **more,
        )
        trainer.train()
        return trainer


def weights_of(trainer) -> list[torch.Tensor]:
    return [weight.detach() for weight in trainer.accelerator.unwrap_model(trainer.model).parameters()]


def main(folder: Path, case: str) -> None:
    report = {}
    for cut, options in CUTS.items():
        plain = weights_of(trained(GRPOTrainer, case, options))
        allocator = BudgetAllocator("uniform", group_size=4)
        trainer = trained(Watched, case, options, allocator=allocator, advantage_clip=None)
        assert trainer.skip_idle
        ours = weights_of(trainer)
        report[cut] = {
            "difference": max(float((a - b).norm() / b.norm()) for a, b in zip(ours, plain, strict=True)),
            "moved": any(not torch.equal(a, b) for a, b in zip(plain, small.model().parameters(), strict=True)),
            "weights": hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in ours)).hexdigest(),
            "live rows": trainer.live_rows,
        }
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    gc.collect()  # the model's hold on the process group
    torch.distributed.destroy_process_group()  # left to the interpreter's exit, its threads may abort the process
