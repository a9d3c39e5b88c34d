"""Gradients by group, out of the backward pass that an update makes anyway; for any PyTorch loop and any model.

The gradient of a loss is a sum over its rollouts, and autograd keeps the sum only. At a linear layer it can be taken
apart: the gradient in its weights is the sum over tokens of dL/dy x^T, for the layer's input x and output y, and every
token belongs to one group. For a random block of the weights of a few layers that is a gradient of some thousand
numbers for each group. It is there whether or not the layer itself is trained (LoRA), behind the first part of the
model that is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from knapsack_rl.errors import InvalidInputError

_LAYERS = 16
_SIDE = 32  # rows and columns of a layer's block
_SEED = 0  # of the choice of blocks


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
        model: whose layers are watched: at most 16 of its linear layers, evenly spread, the last included; of each a
            block of at most 32 x 32 weights, the same in every run.

    Attributes:
        owners: which group each row belongs to, int64 of shape (rows,); or each token, of shape (rows, tokens), where a
            row holds several groups; None for passes that are not counted. Groups below 0 belong to nobody.
        gradients: shape (groups, d), float32, of d numbers: at most 16,384.

    Raises:
        InvalidInputError: the model has no linear layers.

    Cost: two passes over the activations of the watched layers; 64 KiB a group.
    """

    def __init__(self, model: nn.Module) -> None:
        random = torch.Generator().manual_seed(_SEED)
        self.owners: Tensor | None = None
        self._numbers = 0
        for layer in _spread(_linear_layers(model)):
            inputs, outputs = (_chosen(size, random) for size in _shape(layer))
            block = slice(self._numbers, self._numbers + len(inputs) * len(outputs))
            layer.register_forward_hook(self._hook(block, inputs, outputs))
            self._numbers = block.stop
        self.gradients = torch.zeros(0, self._numbers)

    def begin(self, groups: int) -> None:
        """Count from 0, for an update with so many groups."""
        self.gradients = torch.zeros(groups, self._numbers)

    def _hook(self, block: slice, inputs: Tensor, outputs: Tensor) -> Any:
        def watch(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            if self.owners is None or not output.requires_grad:
                return
            owners, x = self.owners, arguments[0].detach()[..., inputs.to(output.device)]
            if owners.shape not in (x.shape[:1], x.shape[:2]):
                raise InvalidInputError(
                    f"owners: expected a group for each row or token of an input of shape {tuple(x.shape)}, got shape "
                    f"{tuple(owners.shape)}."
                )
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: self._add(block, owners, x, gradient[..., outputs.to(gradient.device)])
            )

        return watch

    def _add(self, block: slice, owners: Tensor, x: Tensor, gradient: Tensor) -> None:
        if owners.ndim == 2:  # every token for itself
            x, gradient, owners = x.flatten(0, 1)[:, None], gradient.flatten(0, 1)[:, None], owners.flatten()
        parts = (gradient.float().transpose(1, 2) @ x.float()).flatten(1)
        owners = owners.to(parts.device)
        kept = owners >= 0
        self.gradients = self.gradients.to(parts.device)
        self.gradients[:, block].index_add_(0, owners[kept], parts[kept])


def _linear_layers(model: nn.Module) -> list[nn.Module]:
    """Linear layers of the model in their order, but for the one that gives the logits."""
    last = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found = [
        module
        for module in model.modules()
        if module is not last and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
    ]
    if not found:
        raise InvalidInputError(f"model: expected one with linear layers, got {type(model).__name__}.")
    return found


def _shape(layer: Any) -> tuple[int, int]:
    """Numbers that a linear layer takes and gives for a token."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return tuple(layer.weight.shape)  # GPT-2's


def _chosen(size: int, random: torch.Generator) -> Tensor:
    return torch.randperm(size, generator=random)[:_SIDE].sort().values


def _spread(layers: list[nn.Module]) -> list[nn.Module]:
    step = -(-len(layers) // _LAYERS)
    return layers[::-1][::step][::-1]
