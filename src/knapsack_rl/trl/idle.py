"""Rollouts without gradient are left out of TRL's forward and backward passes, and the update stays the same.

A rollout is *live* when its advantage is not 0 and some of its tokens count in the loss; all others are *idle*: their
term of the loss is exactly 0, and so is its gradient. TRL cuts a generation batch into micro-batches, and an optimiser
update adds up several of them over all processes. Within an update the order of rollouts does not matter, so live ones
are dealt evenly over processes, packed into as few micro-batches as they fill, and idle ones dropped. What does matter
is what the loss is divided by. TRL's `_compute_loss` computes it from the micro-batch that it is given, so the
advantages are scaled by the ratio of that number to the one of the micro-batch that the rollout came from: all losses
here are proportional to the advantage, up to its sign.

Packed micro-batches stand last in an update, since processes exchange gradients in its last one only.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import ProcessorMixin
from trl.models.utils import disable_gradient_checkpointing

from knapsack_rl.trl.measuring import MeasuringTrainer
from knapsack_rl.trl.waves import Row

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
Ints = NDArray[np.int64]

DIVISORS = {
    "grpo": "rows",
    "sapo": "rows",
    "dr_grpo": "rows",
    "luspo": "rows",
    "bnpo": "tokens",
    "dapo": "nothing",
    "cispo": "nothing",
    "vespo": "nothing",
}
"""What each loss type divides by that changes when a micro-batch loses its idle rollouts: its rows, its tokens, or
nothing, because the tokens of the whole generation batch are counted before."""

LIVE = "live_rollouts"
"""Key of a micro-batch: its live rollouts, over all processes."""

FILL = {"tool_mask": 1, "importance_sampling_ratio": 1.0}
"""What pads a tensor of tokens, where that is not 0."""


class IdleTrainer(MeasuringTrainer):
    """Can leave idle rollouts out of an update without changing it."""

    plain: ClassVar[type[Any]]
    """TRL's trainer, which this one is but for the adapter."""
    skip_idle: bool = False
    """Whether it does."""
    _buffered_inputs: list[Batch] | None
    _deferring = False

    @property
    def _divisor(self) -> str | None:
        """What the loss divides by, as in `DIVISORS`; None where it is not known."""
        raise NotImplementedError

    def _can_skip_idle(self) -> bool:
        """Whether the update would stay the same; if not, says why."""
        reason = obstacle(self)
        if reason is not None and self.accelerator.is_main_process:
            logger.warning("skip_idle is off, and every rollout is trained on: %s.", reason)
        return reason is None

    def _generate_groups(self, rows: list[Row], group_size: int) -> Batch:
        # With vLLM's correction TRL needs the log probabilities at once, and logs them over all rollouts.
        self._deferring = self.skip_idle and not _corrects_sampling(self)
        try:
            return super()._generate_groups(rows, group_size)
        finally:
            self._deferring = False

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *more: Any,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        if self._deferring:  # advantages are not known yet; `_fill_old_logps` computes what is needed
            return torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device), None, None
        found: tuple[Any, ...] = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *more, **kwargs
        )
        return found

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        before = self._buffered_inputs
        inputs: Batch = super()._prepare_inputs(generation_batch)
        buffered = self._buffered_inputs
        if not self.skip_idle or not self.model.training or buffered is None or buffered is before:
            return inputs
        self._buffered_inputs = self._packed(buffered)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """TRL's loss, or without any computation the constant 0 where no process has a live rollout.

        The last micro-batch of an update is always computed: processes exchange gradients in its backward pass, and an
        optimiser whose gradients are 0 makes another step than one that has none.
        """
        if LIVE not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not inputs[LIVE] and not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        logged, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        try:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            found, self._metrics["train"] = self._metrics["train"], logged
            for name, values in found.items() if inputs[LIVE] else ():
                logged[f"live/{name}"].extend(values)

    def _packed(self, batches: Sequence[Batch]) -> list[Batch]:
        """This process's micro-batches of a generation batch, with live rollouts only."""
        rows = self._gathered(batches)
        mask = loss_mask(rows)
        shape = (self.accelerator.num_processes, len(batches), len(batches[0]["advantages"]))
        live = ((rows["advantages"] != 0.0) & mask.any(dim=1)).view(shape)
        lengths = (rows["prompt_mask"].sum(dim=1) + rows["completion_mask"].sum(dim=1)).view(shape)
        span = math.gcd(len(batches), self.args.gradient_accumulation_steps)  # updates begin and end between spans
        deals = pack(live.cpu().numpy(), lengths.cpu().numpy(), span)
        if self._divisor == "tokens":
            divisors = mask.sum(dim=1).view(shape).sum(dim=2, keepdim=True).clamp(min=1).expand(shape).flatten()
        else:
            divisors = torch.full_like(lengths, shape[2]).flatten()
        packed = []
        for j, deal in enumerate(deals[self.accelerator.process_index]):
            counts = [len(process[j]) for process in deals]
            batch = self._micro_batch(rows, deal, max(1, *counts), divisors)
            batch |= {name: value for name, value in batches[j].items() if value.ndim == 0}
            packed.append(batch | {LIVE: sum(counts)})
        self._fill_old_logps(packed)
        return packed

    def _micro_batch(self, rows: Batch, deal: Ints, count: int, divisors: torch.Tensor) -> Batch:
        """The dealt rows, each with the weight in the loss that it had among the rows that it came from.

        TRL gathers a number for each row, so every process has as many: a spare one is a short row of which no token
        counts.
        """
        spare = int(rows["prompt_mask"].sum(dim=1).argmin())
        index = torch.tensor([*deal, *[spare] * (count - len(deal))], device=divisors.device)
        batch = {name: value[index] for name, value in rows.items()}
        for name in ("completion_mask", "advantages"):
            batch[name][len(deal) :] = 0
        divisor = self._divisor
        if divisor != "nothing":
            now = count if divisor == "rows" else loss_mask(batch).sum().clamp(min=1)
            batch["advantages"] = batch["advantages"] * (now / divisors[index])
        return trimmed(batch, self.pad_to_multiple_of or 1)

    def _gathered(self, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """The rows of all micro-batches of all processes: process by process, micro-batch by micro-batch."""
        fill = FILL | dict.fromkeys(("prompt_ids", "completion_ids"), self._tokenizer.pad_token_id)
        rows = {}
        for name in (name for name, value in batches[0].items() if value.ndim > 0):
            local = torch.cat([batch[name] for batch in batches])
            padded = self.accelerator.pad_across_processes(
                local, dim=1, pad_index=fill.get(name, 0), pad_first=name.startswith("prompt_")
            )
            rows[name] = self.accelerator.gather(padded)
        return rows

    def _fill_old_logps(self, batches: Sequence[Batch]) -> None:
        """Compute what `_get_per_token_logps_and_entropies` put off, in step on every process."""
        if _corrects_sampling(self) or not {"old_per_token_logps", "old_logps"} & set(batches[0]):
            return
        checkpointing = disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)
        with torch.no_grad(), checkpointing:
            for batch in batches:
                if batch[LIVE]:
                    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
                    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
                    kept = batch["completion_ids"].shape[1]
                    logps, *_ = self._get_per_token_logps_and_entropies(self.model, ids, attention, kept)
                    if "old_logps" in batch:  # RLOOTrainer's, of whole completions
                        batch["old_logps"] = (logps * batch["completion_mask"]).sum(dim=1)
                    else:
                        batch["old_per_token_logps"] = logps


def loss_mask(rows: Batch) -> torch.Tensor:
    """Which tokens of the completions count in the loss, shape (rows, tokens)."""
    mask: torch.Tensor = rows["completion_mask"]
    return mask * rows["tool_mask"] if "tool_mask" in rows else mask


def pack(live: NDArray[np.bool_], lengths: Ints, span: int) -> list[list[Ints]]:
    """Deal live rows evenly over processes, into as few micro-batches as they fill, the last ones of every span.

    The longest come first, so that the rows of a micro-batch are of similar length and no process has more to do than
    another. A span without an idle row stays as it is.

    Args:
        live: which rows are live, shape (processes, micro-batches, rows of one).
        lengths: tokens of the rows, in the same shape.
        span: consecutive micro-batches that always belong to the same update.

    Returns:
        For each process and micro-batch, which of all rows (numbered in the order of `live`) it computes.
    """
    processes, batches, size = live.shape
    rows = np.arange(live.size).reshape(live.shape)
    dealt: list[list[Ints]] = [[] for _ in range(processes)]
    for start in range(0, batches, span):
        block = slice(start, start + span)
        if live[:, block].all():
            for process in range(processes):
                dealt[process].extend(rows[process, block])
            continue
        found = rows[:, block][live[:, block]]
        found = found[np.argsort(-lengths.ravel()[found], kind="stable")]
        needed = -(-len(found) // (processes * size))
        for process in range(processes):
            dealt[process].extend([found[:0]] * (span - needed))
            if needed:
                dealt[process].extend(np.array_split(found[process::processes], needed))
    return dealt


def trimmed(batch: Batch, multiple: int) -> Batch:
    """A micro-batch without the columns that are padding in all of its rows.

    Args:
        batch: its tensors; those of prompts are padded on the left, those of completions on the right.
        multiple: of which the widths of prompts and completions stay multiples.
    """
    prompts, completions = batch["prompt_mask"], batch["completion_mask"]
    first = int(prompts.any(dim=0).int().argmax())
    first = max(0, prompts.shape[1] - _up(prompts.shape[1] - first, multiple))
    used = completions.any(dim=0).nonzero()
    width = _up(int(used.max()) + 1 if len(used) else 1, multiple)
    return {
        name: value if value.ndim == 1 else value[:, first:] if name.startswith("prompt_") else value[:, :width]
        for name, value in batch.items()
    }


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _corrects_sampling(trainer: Any) -> bool:
    return bool(trainer.use_vllm and getattr(trainer, "vllm_importance_sampling_correction", False))


def obstacle(trainer: Any) -> str | None:
    """Why idle rollouts must be trained on all the same, None where leaving them out does not change the update."""
    methods = type(trainer)
    own_loss = (methods._compute_loss, methods.compute_loss) != (methods.plain._compute_loss, IdleTrainer.compute_loss)
    obstacles = {
        f"args.beta={trainer.beta} pulls every rollout towards the reference policy": trainer.beta != 0.0,
        "args.entropy_coef rewards the entropy of every rollout": getattr(trainer, "_entropy_bonus_enabled", False),
        "args.top_entropy_quantile compares the tokens of all rollouts": (
            getattr(trainer, "top_entropy_quantile", 1.0) < 1.0
        ),
        "the router's loss balances experts over all rollouts": trainer.aux_loss_enabled,
        "the loss of args.loss_type is not known to be proportional to the advantage": trainer._divisor is None,
        f"{methods.__name__} computes a loss of its own": own_loss,
        "args.use_liger_kernel was not tried": trainer.args.use_liger_kernel,
        "DeepSpeed counts micro-batches itself": trainer.is_deepspeed_enabled,
        "parallelism within a rollout was not tried": _splits_rollouts(trainer),
        "the model takes images, whose tensors have no row for each rollout": (
            isinstance(trainer.processing_class, ProcessorMixin)  # as TRL tells it
        ),
        "the model's log probabilities may depend on padding, as its positions are not plain rotary ones": (
            not _is_plain_rotary(trainer.model.config.get_text_config())
        ),
    }
    return next((reason for reason, holds in obstacles.items() if holds), None)


def _splits_rollouts(trainer: Any) -> bool:
    """Whether several processes share a row: tensor, context or sequence parallelism."""
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    return any(getattr(parallel, size, 1) > 1 for size in ("tp_size", "cp_size", "sp_size"))


def _is_plain_rotary(config: Any) -> bool:
    """Whether positions count only relative to each other, whatever the length that a row is padded to."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters] if "rope_type" in parameters else [kind for kind in parameters.values() if kind]
    return bool(kinds) and all(kind["rope_type"] not in ("dynamic", "longrope") for kind in kinds)
