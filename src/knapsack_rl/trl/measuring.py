"""What gradients are worth, measured in the backward passes that TRL makes anyway (`influence`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from knapsack_rl.advantages import divisors
from knapsack_rl.gradients import GroupGradients
from knapsack_rl.step import Step
from knapsack_rl.trl.waves import WavesTrainer

Floats = NDArray[np.float64]

GROUPS = "groups"
"""Key of a micro-batch: which prompt of the step each of its rollouts belongs to."""


class MeasuringTrainer(WavesTrainer):
    """Can tell a step of its gradients, once all its rollouts were trained on for the first time."""

    _watch: GroupGradients | None = None
    """None where nothing is measured."""
    _measured: tuple[Step, Floats, Floats] | None = None
    """The step whose rollouts are being trained on; of each of its groups the sum of the weights of scored rollouts,
    and what its rewards' distances from their mean were divided by."""

    def _measure(
        self, step: Step, groups: NDArray[np.int64], rewards: Floats, advantages: Floats, weights: Floats, local: slice
    ) -> dict[str, Any]:
        """Expect the update on this step; returns what its generation batch needs for that.

        Args:
            step: that is over.
            groups: which prompt each rollout of all processes belongs to.
            rewards: of each of them in all; NaN where there is none.
            advantages: of each, before they are clipped or weighed.
            weights: what their advantages were multiplied by.
            local: which of them are this process's.
        """
        if self._watch is None:
            return {}
        whole = np.bincount(groups, np.where(np.isnan(rewards), 0.0, weights), len(step)).astype(np.float64)
        self._measured = step, whole, divisors(rewards, advantages, groups, len(step))
        self._watch.begin(len(step))
        return {GROUPS: torch.from_numpy(groups[local]).to(self.accelerator.device)}

    @property
    def _batches_passed(self) -> int:
        """Micro-batches of the newest generation batch that were trained on, over all its iterations."""
        return int(self._step % (self.args.steps_per_generation * self.num_iterations))

    @property
    def measures_influence(self) -> bool:
        """Whether the allocator's `influence` is told of gradients."""
        return self._watch is not None

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """TRL's; gradients are collected in the first iteration on a batch, when this policy has sampled."""
        if self._watch is not None:
            first = self._batches_passed < self.args.steps_per_generation
            self._watch.owners = inputs.get(GROUPS) if first else None
        loss: torch.Tensor = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's; after the last micro-batch of the first iteration the step is told of its gradients."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self._watch is not None:
            self._watch.owners = None  # whatever else goes through the model
            if self._measured is not None and self._batches_passed % self.args.steps_per_generation == 0:
                self._tell_gradients(self._watch, *self._measured)
                self._measured = None
        return loss

    def _tell_gradients(self, watch: GroupGradients, step: Step, weights: Floats, divided: Floats) -> None:
        device = self.accelerator.device
        gradients = self.accelerator.reduce(watch.gradients.to(device), "sum").cpu().numpy()
        if np.isfinite(gradients).all():  # otherwise loss scaling (fp16) has overflowed, and there is no update either
            step.tell_gradients(gradients / np.where(weights > 0.0, weights, 1.0)[:, None], divisors=divided)
