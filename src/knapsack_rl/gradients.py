"""Gradients by group, out of the backward pass that an update makes anyway; for any PyTorch loop and any model.

The gradient of a loss is a sum over its rollouts, and autograd keeps the sum only. At a linear layer it can be taken
apart: the gradient in its weights is the sum over tokens of dL/dy x^T, for the layer's input x and output y, and every
token belongs to one group. For some weights of a few layers that is a gradient of some thousand numbers for each group.
It is there whether or not the layer itself is trained (LoRA), behind the first part of the model that is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from knapsack_rl.errors import InvalidInputError

_LAYERS = 8
_SIDE = 32  # rows and columns of a layer's block
_DIMENSIONS = 3  # of activations: rows, tokens, width; experts and vision towers see tokens whose row is not known


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
        model: whose layers are watched: at most 8 of its linear layers, evenly spread, the last included; of each at
            most 32 x 32 weights, in evenly spaced rows and columns. A layer that sees tokens without their rows, as
            experts do, counts as 0.

    Raises:
        InvalidInputError: the model has no linear layers.

    Cost: for every token 32 x 32 products in each watched layer; 32 KiB a group.
    """

    def __init__(self, model: nn.Module) -> None:
        self.owners = None
        self._sizes: list[int] = []
        self._blocks: list[Tensor] = []  # one for each layer, (groups, weights)
        for number, layer in enumerate(_spread(_linear_layers(model))):
            inputs, outputs = (slice(None, None, -(-size // _SIDE)) for size in _shape(layer))
            layer.register_forward_hook(self._hook(number, inputs, outputs))
            self._sizes.append(
                math.prod(len(range(size)[part]) for size, part in zip(_shape(layer), (inputs, outputs), strict=True))
            )
        self.begin(0)

    @property
    def owners(self) -> Tensor | None:
        """Which group each row of the next passes belongs to; None where they are not counted.

        int64 of shape (rows,); or of each token, shape (rows, tokens), where a row holds several groups. Anything else
        is an InvalidInputError.
        """
        return None if self._rows is None else self._rows.owners

    @owners.setter
    def owners(self, owners: Tensor | None) -> None:
        self._rows = None if owners is None else _bundled(owners)

    def begin(self, groups: int) -> None:
        """Count from 0, for an update with so many groups."""
        self._blocks = [torch.zeros(groups, size) for size in self._sizes]

    @property
    def gradients(self) -> Tensor:
        """What was collected since `begin`: shape (groups, d), float32, of d numbers: at most 8,192."""
        device = self._blocks[-1].device  # a layer that got no gradient is where it began
        return torch.cat([block.to(device) for block in self._blocks], dim=1)

    def _hook(self, number: int, inputs: slice, outputs: slice) -> Any:
        def watch(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            rows = self._rows
            if rows is None or not output.requires_grad or output.ndim != _DIMENSIONS:
                return
            x = arguments[0].detach()[..., inputs].clone()  # a view would hold the whole of it
            if rows.owners.shape not in (x.shape[:1], x.shape[:2]):
                raise InvalidInputError(
                    f"owners: expected a group for each row or token of an input of shape {tuple(x.shape)}, got shape "
                    f"{tuple(rows.owners.shape)}."
                )
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: self._add(number, rows, x, gradient[..., outputs])
            )

        return watch

    def _add(self, number: int, rows: _Bundles, x: Tensor, gradient: Tensor) -> None:
        parts = (rows.packed(gradient).transpose(1, 2) @ rows.packed(x)).flatten(1)
        groups = rows.groups.to(parts.device)
        self._blocks[number] = self._blocks[number].to(parts.device).index_add_(0, groups, parts)


@dataclass(frozen=True)
class _Bundles:
    """Rows (or tokens) of a group side by side, so that one product serves several.

    A product of 32 x 32 numbers for every short row takes longer to write and to add up than to compute.
    """

    owners: Tensor
    size: int
    """Rows of a bundle; one that has fewer is filled up with zeros."""
    places: Tensor
    """Of each row among those of all bundles."""
    groups: Tensor
    """Of each bundle."""

    def packed(self, values: Tensor) -> Tensor:
        """Of shape (rows, tokens, width) -> (bundles, size * tokens of a row, width) in float32."""
        each = values.float().reshape(self.owners.numel(), -1)
        room = each.new_zeros(len(self.groups) * self.size, each.shape[1])
        room.index_copy_(0, self.places.to(each.device), each)
        return room.view(len(self.groups), -1, values.shape[-1])


def _bundled(owners: Tensor) -> _Bundles:
    """Bundles as large as a group is on average: with the zeros there are at most twice as many rows."""
    own = owners.flatten().cpu()
    if own.dtype != torch.int64 or not 1 <= owners.ndim <= 2 or (own < 0).any():
        raise InvalidInputError(
            f"owners: expected the number of a group for each row or token, int64 from 0, got {owners.dtype} of shape "
            f"{tuple(owners.shape)}{', some below 0' if (own < 0).any() else ''}."
        )
    counts = own.bincount()
    size = max(1, -(-len(own) // max(1, int(counts.count_nonzero()))))
    bundles = (counts + size - 1) // size
    order = own.argsort(stable=True)
    before = torch.arange(len(own)) - (counts.cumsum(0) - counts)[own[order]]  # rows of the same group
    places = torch.empty_like(own)
    places[order] = (bundles.cumsum(0) - bundles)[own[order]] * size + before
    groups = torch.arange(len(counts)).repeat_interleave(bundles)
    return _Bundles(owners, size, places.to(owners.device), groups.to(owners.device))


def _linear_layers(model: Any) -> list[nn.Module]:
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


def _spread(layers: list[nn.Module]) -> list[nn.Module]:
    step = -(-len(layers) // _LAYERS)
    return layers[::-1][::step][::-1]
