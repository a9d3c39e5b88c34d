"""Gradients by group, out of the backward pass that an update makes anyway; for any PyTorch loop and any model.

The gradient of a loss is a sum over its rollouts, and autograd keeps the sum only. At a normalisation layer it can be
taken apart: with a factor f of 1 on each channel of the layer's output y, dL/df is the sum of dL/dy * y over tokens,
and every token belongs to one group. A few layers spread over the model give a gradient of some thousand numbers for
each group, in the parameters f. They are there whether or not the layer itself is trained (LoRA), behind the first part
of the model that is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from knapsack_rl.errors import InvalidInputError

_LAYERS = 8


class GroupGradients:
    """Collects the gradient of each group's part of a loss, from the backward passes of an update.

        watch = GroupGradients(model)
        watch.begin(groups)
        for rows in micro_batches:
            watch.owners = groups_of[rows]
            loss(rows).backward()
        watch.gradients  # (groups, d), the sum over the passes since `begin`

    The hooks stay in the model, where they cost nothing while `owners` is None or no gradient is wanted. Gradient
    checkpointing and wrappers such as DDP and FSDP are no obstacle; with several processes each has its own rollouts'
    part, and the sum over processes is everything.

    Args:
        model: whose layers are watched.
        layers: at most so many of its normalisation layers of full width, evenly spread, the last included.

    Attributes:
        owners: which group each row belongs to, int64 of shape (rows,); or each token, of shape (rows, tokens), where a
            row holds several groups; None for passes that are not counted. Groups below 0 belong to nobody.
        gradients: shape (groups, d), float32, of d = layers x width numbers.

    Raises:
        InvalidInputError: the model has no normalisation layers.

    Cost: three passes over the activations of the watched layers.
    """

    def __init__(self, model: nn.Module, layers: int = _LAYERS) -> None:
        watched = _spread(_norms(model), layers)
        self.owners: Tensor | None = None
        self._width = max(layer.weight.numel() for layer in watched)  # type: ignore[operator]
        self._layers = len(watched)
        self.gradients = torch.zeros(0, self._layers * self._width)
        for position, layer in enumerate(watched):
            layer.register_forward_hook(self._hook(position))

    def begin(self, groups: int) -> None:
        """Count from 0, for an update with so many groups."""
        self.gradients = torch.zeros(groups, self._layers * self._width)

    def _hook(self, position: int) -> Any:
        columns = slice(position * self._width, (position + 1) * self._width)

        def watch(layer: nn.Module, arguments: Any, output: Tensor) -> None:
            if self.owners is None or not output.requires_grad:
                return
            owners, values = self.owners, output.detach()  # not the output itself, which would hold its own graph
            if owners.shape not in (values.shape[:1], values.shape[:2]):
                raise InvalidInputError(
                    f"owners: expected a group for each row or token of an output of shape {tuple(values.shape)}, got "
                    f"shape {tuple(owners.shape)}."
                )
            output.register_hook(lambda gradient: self._add(columns, owners, values, gradient))  # type: ignore[no-untyped-call]

        return watch

    def _add(self, columns: slice, owners: Tensor, values: Tensor, gradient: Tensor) -> None:
        parts = gradient.float() * values.float()
        parts = parts.sum(dim=1) if owners.ndim == 1 else parts.flatten(0, 1)
        owners = owners.flatten().to(parts.device)
        kept = owners >= 0
        self.gradients = self.gradients.to(parts.device)
        self.gradients[:, columns].index_add_(0, owners[kept], parts[kept])


def _norms(model: nn.Module) -> list[nn.Module]:
    """Normalisation layers of the model's full width, in their order."""
    found = [
        module
        for module in model.modules()
        if type(module).__name__.endswith("Norm") and getattr(getattr(module, "weight", None), "ndim", 0) == 1
    ]
    if not found:
        raise InvalidInputError(
            f"model: expected one with normalisation layers (LayerNorm, RMSNorm), got {type(model).__name__}."
        )
    width = max(layer.weight.numel() for layer in found)  # type: ignore[operator]
    return [layer for layer in found if layer.weight.numel() == width]  # type: ignore[operator]


def _spread(layers: list[nn.Module], most: int) -> list[nn.Module]:
    step = -(-len(layers) // most)
    return layers[::-1][::step][::-1]
