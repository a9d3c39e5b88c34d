"""A trainer that compares the groups' gradients with that of the update; as a script, in each of two processes."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path

import small
import torch

from knapsack_rl import BudgetAllocator
from knapsack_rl.trl import KnapsackGRPOTrainer


class Compared(KnapsackGRPOTrainer):
    """Keeps, of every step, the sum over groups and the gradient of the update, in the last layer that is watched.

    In a step of one update its gradient is there when the groups' are told. Processes have exchanged it by then, and
    DDP has divided it by their number.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sums, self.updates, self.told = [], [], []

    def _tell_gradients(self, watch, step, weights, divided):
        last = self.accelerator.unwrap_model(self.model).model.layers[-1].mlp.down_proj.weight.grad.flatten()
        groups = self.accelerator.reduce(watch.gradients, "sum")[:, -last.numel() :]  # small enough to be watched whole
        self.sums.append(groups.sum(dim=0))
        self.updates.append(self.accelerator.num_processes * last)
        self.told.append(watch.gradients.clone())
        super()._tell_gradients(watch, step, weights, divided)

    @property
    def error(self) -> float:
        """The largest relative difference of a step."""
        return max(
            float((mine - whole).norm() / whole.norm()) for mine, whole in zip(self.sums, self.updates, strict=True)
        )


def trained(strategy: str = "adaptive", options: dict | None = None, **more) -> Compared:
    with tempfile.TemporaryDirectory() as folder:
        settings = {"max_steps": 5, "optim": "sgd", "learning_rate": 0.1, "ddp_find_unused_parameters": False}
        trainer = Compared(
            model=small.model(),
            reward_funcs=small.luck,
            args=small.config(Path(folder), **settings | (options or {})),
            train_dataset=small.rows(),
            processing_class=small.tokenizer(),
            allocator=BudgetAllocator(strategy, group_size=4),
            measure_influence=True,
            **more,
        )
        trainer.train()
        return trainer


def main(folder: Path) -> None:
    report = {}
    for name, cut in {
        "one": {"per_device_train_batch_size": 8},
        "four": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    }.items():
        trainer = trained("adaptive", cut)
        state = trainer.allocator.influence.state_dict()
        report[name] = {"steps": len(trainer.sums), "error": trainer.error, "state": state}
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    gc.collect()  # the model's hold on the process group
    torch.distributed.destroy_process_group()  # left to the interpreter's exit, its threads may abort the process
