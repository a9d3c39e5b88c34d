"""Mixed precision on a CPU: matrices multiply in bfloat16, weights and what is added up stay in float32."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def autocast(enabled: bool) -> torch.autocast:
    """Within it linear layers and attention compute in bfloat16."""
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def sampler(model: Any) -> Any:
    """The same model for sampling under `autocast`: its linear layers have bfloat16 weights already.

    `autocast` would convert them for every token. All other parameters are those of `model`, so both compute the same,
    bit for bit. `refresh` after every update.
    """
    shared = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for layer in _linear_layers(shared):
        layer.weight = nn.Parameter(layer.weight.detach().bfloat16(), requires_grad=False)
    return shared


@torch.no_grad()
def refresh(sampler: Any, model: Any) -> None:
    """Give `sampler` the weights that `model` has now."""
    for layer, source in zip(_linear_layers(sampler), _linear_layers(model), strict=True):
        layer.weight.copy_(source.weight)


def _linear_layers(model: Any) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]
