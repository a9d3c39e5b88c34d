"""verl's own actor update on a CPU, without Ray: one process per rank, started with torch's variables (RANK, ...).

    python updates.py MODEL FILE [ARM]...     # ARM: which updates to make, "verl", "all" or "live"

An update of 21 rows has 3 optimizer steps, in the second of which no row has a gradient. `verl` makes it of the real
rows, mini-batch by mini-batch; `all` and `live` as `knapsack_rl.verl.idle.deal` hands them to verl, after padding. What
the weights moved by goes to FILE, one array for each way to divide losses and to cut micro-batches.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import (
    FSDPActorConfig,
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    PolicyLossConfig,
    TrainingWorkerConfig,
)
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.losses import ppo_loss

from knapsack_rl.verl import idle

REAL, BATCHES = 21, 3
LOSSES = [("vanilla", mode) for mode in idle.DIVISORS] + [("sapo", "token-mean"), ("gspo", "seq-mean-token-mean")]
TERMS = [("with terms", mode) for mode in idle.DIVISORS]
"""Vanilla with the KL and the entropy of every row, which no advantage scales."""


def make_rows(padding: int) -> list[dict[str, torch.Tensor]]:
    """Rows of random lengths, of which a third has a gradient; then such as verl pads with."""
    random, rows = torch.Generator().manual_seed(0), []
    for number in range(REAL + padding):
        real = number < REAL
        prompt, response = torch.randint(1, 8, (2,), generator=random).tolist() if real else (5, 1)
        tokens = torch.randint(4, 20, (prompt + response,), generator=random)
        mask = (torch.rand(response, generator=random) < 0.8).long() if real else torch.zeros(1, dtype=torch.long)
        live = real and number % 3 == 0 and number * BATCHES // REAL != 1
        advantage = torch.randn(1, generator=random) if live else torch.zeros(1)
        rows.append(
            {
                "prompts": tokens[:prompt],
                "responses": tokens[prompt:],
                "input_ids": tokens,
                "position_ids": torch.arange(prompt + response),
                "response_mask": mask,
                "loss_mask": mask,
                "advantages": advantage * mask,
                "old_log_probs": -3 + 0.5 * torch.randn(response, generator=random),
                "ref_log_prob": -3 + 0.5 * torch.randn(response, generator=random),
            }
        )
    return rows


def batch_of(
    rows: list[dict[str, torch.Tensor]], scales: np.ndarray, size: int, micro: int | None, real: float | None = None
) -> TensorDict:
    columns = {
        name: torch.nested.as_nested_tensor([row[name] for row in rows], layout=torch.jagged) for name in rows[0]
    }
    scaled = [row["advantages"] * float(scale) for row, scale in zip(rows, scales, strict=True)]
    columns["advantages"] = torch.nested.as_nested_tensor(scaled, layout=torch.jagged)
    batch = TensorDict(columns, batch_size=len(rows))
    cut = {"max_token_len_per_gpu": 40} if micro is None else {"micro_batch_size_per_gpu": micro}
    return tu.assign_non_tensor(
        batch,
        calculate_entropy=True,
        compute_loss=True,
        mini_batch_size=size,
        global_batch_size=size if real is None else real,
        epochs=1,
        seed=0,
        dataloader_kwargs={"shuffle": False},
        temperature=1.0,
        use_dynamic_bsz=micro is None,
        **cut,
    )


class Actor:
    """verl's worker, and SGD with momentum, which moves weights by what gradients are, and where they are 0."""

    def __init__(self, model: str) -> None:
        engine = FSDPEngineConfig(
            strategy="fsdp2",
            mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32"},
            use_torch_compile=False,
        )
        optimizer = FSDPOptimizerConfig(
            lr=0.1,
            clip_grad=1e9,  # which would hide what the loss is divided by
            optimizer="SGD",
            weight_decay=0.0,
            override_optimizer_config={"momentum": 0.5},
        )
        self.worker = TrainingWorker(
            TrainingWorkerConfig(
                model_type="language_model",
                model_config=HFModelConfig(
                    path=model,
                    use_remove_padding=False,
                    enable_gradient_checkpointing=False,
                    override_config={"attn_implementation": "sdpa"},
                ),
                engine_config=engine,
                optimizer_config=optimizer,
                checkpoint_config=CheckpointConfig(),
            )
        )
        self.worker.reset()
        self.rank, self.ranks = self.worker.rank, self.worker.world_size
        self.before = self.weights()

    def weights(self) -> torch.Tensor:
        return torch.cat([values.full_tensor().detach().flatten() for values in self.worker.engine.module.parameters()])

    def moved(self, loss: tuple[str, str], batches: list[TensorDict]) -> np.ndarray:
        """What an update moves the weights by, which are put back."""
        config = FSDPActorConfig(
            strategy="fsdp2",
            rollout_n=1,
            use_dynamic_bsz=True,
            loss_agg_mode=loss[1],
            loss_scale_factor=8,
            policy_loss=PolicyLossConfig(loss_mode="vanilla" if loss[0] == "with terms" else loss[0]),
            use_kl_loss=loss[0] == "with terms",
            kl_loss_coef=0.5,
            entropy_coeff=0.5 if loss[0] == "with terms" else 0.0,
        )
        self.worker.set_loss_fn(partial(ppo_loss, config=config))
        for batch in batches:
            self.worker.train_mini_batch(batch)
        found = (self.weights() - self.before).numpy()
        self.worker.reset()
        return found


def dealt(actor: Actor, loss: tuple[str, str], skip_idle: bool, micro: int | None) -> TensorDict:
    """This rank's part of what the trainer mode hands to verl; padding is anywhere."""
    layout = idle.Layout(actor.ranks, BATCHES, micro, 1)
    whole = idle.padded(REAL, layout, 4)
    order = np.arange(whole).reshape(actor.ranks, -1).T.ravel()
    places = np.sort(np.random.default_rng(0).choice(whole, REAL, replace=False))
    numbers = np.zeros(whole, dtype=int)  # of the rows, by their position in verl's batch
    numbers[order] = np.insert(np.arange(REAL, whole), places - np.arange(REAL), np.arange(REAL))
    rows = [make_rows(whole - REAL)[number] for number in numbers]
    found = idle.deal(
        idle.Rows(
            live=np.array([bool((row["advantages"] * row["response_mask"]).any()) for row in rows]),
            padding=numbers >= REAL,
            lengths=np.array([len(row["input_ids"]) for row in rows]),
            tokens=np.array([int(row["loss_mask"].sum()) for row in rows]),
        ),
        layout,
        "rows" if loss[0] == "sapo" else idle.DIVISORS[loss[1]],
        skip_idle,
    )
    mine = slice(actor.rank * len(found.rows) // actor.ranks, (actor.rank + 1) * len(found.rows) // actor.ranks)
    chosen = [rows[number] for number in found.rows[mine]]
    return batch_of(chosen, found.scales[mine], found.batch, None if micro is None else found.micro, found.real)


def main() -> None:
    model, file, *arms = sys.argv[1:]
    actor = Actor(model)
    found: dict[str, Any] = {}
    for loss in [*LOSSES, *TERMS]:
        for arm in arms:
            if loss in TERMS and arm == "live":
                continue  # what `obstacle` does not allow
            if arm == "verl":
                parts = np.array_split(np.arange(REAL), BATCHES)
                whole = make_rows(0)
                batches = [batch_of([whole[i] for i in part], np.ones(len(part)), len(part), None) for part in parts]
                found["/".join([*loss, arm])] = actor.moved(loss, batches)
                continue
            for micro in (None, 2):
                batch = dealt(actor, loss, arm == "live", micro)
                found["/".join([*loss, arm, str(micro)])] = actor.moved(loss, [batch])
    if actor.rank == 0:
        np.savez(file, **found)


if __name__ == "__main__":
    main()
