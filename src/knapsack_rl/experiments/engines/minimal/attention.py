"""What transformers calls an attention implementation: that of `sdpa`, without what is computed twice there.

Heads that share keys are computed together, so that no key is copied for each of them. In a packed sequence
(packing.py) every group attends within itself, so that the work grows with the sum of their squares and not with the
square of their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from knapsack_rl.errors import InvalidInputError

NAME = "knapsack-rl-shared"
_CHANGING = ("position_bias", "softcap", "s_aux", "sliding_window")


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    spans: Sequence[int] | None = None,
    **further: Any,
) -> tuple[Tensor, None]:
    """softmax(query key' scaling) value, where the mask allows it.

    Args:
        module: the layer; unused.
        query: (rows, heads, tokens, width).
        key: (rows, key heads, tokens that are seen, width); so is `value`.
        value: see `key`.
        attention_mask: boolean, (rows or 1, 1, tokens, tokens that are seen); None where every token sees those before
            it.
        scaling: by default 1 / sqrt(width).
        spans: lengths of the parts of a packed sequence, none of which sees another; None for a single one.
        further: what models hand to every attention; those of `_CHANGING` must be absent.

    Returns:
        (rows, tokens, heads, width), and None in place of weights.

    Raises:
        InvalidInputError: the model wants more than this computes (`packing.can_share` says so beforehand).
    """
    for name in _CHANGING:
        if further.get(name) is not None and further[name] is not False:
            raise InvalidInputError(
                f"model: its attention needs {name}, which knapsack-rl's does not compute. Set "
                "model.attn_implementation=eager; prompts are then not shared."
            )
    tokens, seen = query.shape[2], key.shape[2]
    if attention_mask is None:
        attention_mask = torch.ones(1, 1, tokens, seen, dtype=torch.bool).tril(seen - tokens)
    found, start = [], 0
    for length in [tokens] if spans is None else spans:
        mine = slice(start, start + length)
        theirs = slice(None) if spans is None else mine
        mask = attention_mask[:, :, mine, theirs]
        found.append(_heads_together(query[:, :, mine], key[:, :, theirs], value[:, :, theirs], mask, scaling))
        start += length
    return torch.cat(found, dim=2).transpose(1, 2).contiguous(), None


def _heads_together(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """(rows, heads, tokens, width): the tokens of all heads that share keys as the tokens of one."""
    rows, heads, tokens, width = query.shape
    sharing = heads // key.shape[1]
    together = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(rows, key.shape[1], sharing * tokens, width),
        key,
        value,
        attn_mask=mask.repeat(1, 1, sharing, 1),
        scale=scaling,
    )
    return together.reshape(rows, heads, tokens, value.shape[3])


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
