"""Rollouts of a few prompts in one sequence, each prompt once: what an update has to compute, and nothing twice.

    prompt A | rollout 1 | rollout 2 | prompt B | rollout 3 | rollout 4 | rollout 5

A mask lets every token see its own prompt and what its own rollout wrote before it, and position ids say where it
would stand alone. So each token gets the logits of a plain forward pass, but for rounding. A rollout's last token is
left out: nothing is predicted from it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from knapsack_rl.experiments.engines.minimal import attention

_PROMPT = -1


@dataclass(frozen=True)
class Packed:
    """A sequence of `length` tokens that holds all tokens from which the `targets` are predicted."""

    tokens: Tensor
    """(1, length)."""
    positions: Tensor
    """(1, length), from 0 in every prompt."""
    mask: Tensor
    """(1, 1, length, length): whether a token (row) sees another (column)."""
    groups: Tensor
    """(1, length): which of the prompts a token belongs to."""
    spans: list[int]
    """Tokens of each prompt and its rollouts."""
    sources: Tensor
    """Of every token of every rollout, in their order: where in the sequence stands the token before it."""


def packed(prompts: Sequence[Sequence[int]], owners: Sequence[int], rollouts: Sequence[Sequence[int]]) -> Packed:
    """Prompts and rollouts as token ids; rollout i, of at least one token, belongs to prompt `owners[i]`."""
    tokens: list[int] = []
    positions: list[int] = []
    groups: list[int] = []
    writers: list[int] = []
    sources: dict[int, list[int]] = {}
    for group, prompt in enumerate(prompts):
        last = len(tokens) + len(prompt) - 1
        pieces = [(_PROMPT, 0, prompt)]
        pieces += [(number, len(prompt), rollouts[number][:-1]) for number, own in enumerate(owners) if own == group]
        for writer, begin, piece in pieces:
            if writer != _PROMPT:
                sources[writer] = [last, *range(len(tokens), len(tokens) + len(piece))]
            tokens += piece
            positions += range(begin, begin + len(piece))
            groups += len(piece) * [group]
            writers += len(piece) * [writer]
    place, group_of, writer_of = torch.tensor(positions), torch.tensor(groups), torch.tensor(writers)
    same_group = group_of[:, None] == group_of
    readable = (writer_of == _PROMPT) | (writer_of[:, None] == writer_of)
    return Packed(
        tokens=torch.tensor([tokens]),
        positions=place[None],
        mask=(same_group & readable & (place <= place[:, None]))[None, None],
        groups=group_of[None],
        spans=torch.bincount(group_of, minlength=len(prompts)).tolist(),
        sources=torch.tensor([source for number in range(len(owners)) for source in sources[number]]),
    )


def can_share(model: Any) -> bool:
    """Whether a model takes our attention and a mask of our own: plain attention in every layer, without a window."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    plain = layers == {"full_attention"} and window is None and getattr(config, "attn_logit_softcapping", None) is None
    passes_on = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(model.forward).parameters.values())
    ours = config._attn_implementation in ("sdpa", attention.NAME)
    return plain and passes_on and ours and bool(model._can_set_attn_implementation())
