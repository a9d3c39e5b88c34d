"""One of two processes that torchrun starts: trains, and writes down what this process believes and has learned."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from pathlib import Path

import small
import torch
from accelerate.utils import gather_object
from trl import GRPOConfig, RLOOConfig

from knapsack_rl import BudgetAllocator
from knapsack_rl.trl import KnapsackGRPOTrainer, KnapsackRLOOTrainer


class Observing:
    """Collects what both processes got."""

    batches: list = []  # noqa: RUF012

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        record = self.last_step
        prompts = self.processing_class.batch_decode(output["prompt_ids"], skip_special_tokens=True)
        self.batches.append(
            {
                "prompts": gather_object(prompts),
                "local": len(inputs),
                "advantages": gather_object(output["advantages"].tolist()),
                "logged": list(self._logs["advantages"]),
                "plan": {r["prompt"]: int(n) for r, n in zip(record.rows, record.plan.rollouts, strict=True)},
                "successes": record.successes.tolist(),
                "told": record.tokens.tolist(),
                "tokens": gather_object(output["completion_mask"].sum(dim=1).tolist()),
                "compared": self._rewards_per_func[:, -1].tolist(),
                "waves": self._metrics["train"]["waves"][-1],
            }
        )
        return output


def size(prompts: list[str], **_: object) -> list[float]:
    """How many rollouts of its prompt each one is compared with, itself among them."""
    return [float(prompts.count(prompt)) for prompt in prompts]


size.compares_rollouts = True  # type: ignore[attr-defined]


class ObservedGRPO(Observing, KnapsackGRPOTrainer):
    pass


class ObservedRLOO(Observing, KnapsackRLOOTrainer):
    pass


def main(folder: Path, algorithm: str, strategy: str, resume: str | None) -> None:
    rloo, one_wave = algorithm == "rloo", strategy == "knapsack"
    args = small.config(
        folder,
        RLOOConfig if rloo else GRPOConfig,
        beta=0.0,
        max_steps=16,
        per_device_train_batch_size=3,
        num_generations=4,
        generation_batch_size=12,
        save_strategy="steps",
        save_steps=8,
        ddp_find_unused_parameters=False,
        reward_weights=[1.0, 0.0] if one_wave else None,
    )
    trainer = (ObservedRLOO if rloo else ObservedGRPO)(
        model=small.model(),
        reward_funcs=[small.luck, size] if one_wave else small.luck,
        args=args,
        train_dataset=small.rows(),
        processing_class=small.tokenizer(),
        allocator=BudgetAllocator(strategy, group_size=4, max_rollouts=8),
    )
    trainer.train(resume_from_checkpoint=resume)
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = b"".join(weight.detach().numpy().tobytes() for weight in model.parameters())
    state = trainer.allocator.state_dict()
    learned = [*state["estimator"].values(), *state["costs"].values()]
    beliefs = b"".join(array.tobytes() for array in learned if hasattr(array, "tobytes"))
    report = {
        "strategy": strategy,
        "batches": trainer.batches,
        "weights": hashlib.sha256(weights).hexdigest(),
        "beliefs": hashlib.sha256(beliefs).hexdigest(),
    }
    name = f"{'resumed' if resume else 'whole'}-{trainer.accelerator.process_index}.json"
    (folder / name).write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else None)
    gc.collect()  # the model's hold on the process group
    torch.distributed.destroy_process_group()  # left to the interpreter's exit, its threads may abort the process
