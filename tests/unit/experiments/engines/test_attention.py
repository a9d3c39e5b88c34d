"""Our attention against that of transformers' `sdpa`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.engines.minimal.attention import attention

WIDTH = 4


def heads(number: int, sharing: int, rows: int, tokens: int, seen: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value in float64, with gradients."""
    random = torch.Generator().manual_seed(number + 10 * sharing + 100 * rows)
    shapes = (rows, number, tokens, WIDTH), *2 * ((rows, number // sharing, seen, WIDTH),)
    q, k, v = (torch.randn(s, generator=random, dtype=torch.float64).requires_grad_() for s in shapes)
    return q, k, v


def seen_before(rows: int, tokens: int, seen: int) -> Tensor:
    """Causal, and in each row the first few are padding, whose own rows see themselves only."""
    causal = torch.ones(rows, 1, tokens, seen, dtype=torch.bool).tril(seen - tokens)
    for row in range(rows):
        causal[row, :, :, :row] = False
    return causal | torch.eye(tokens, seen, dtype=torch.bool) if tokens == seen else causal


def theirs(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None = None) -> Tensor:
    module = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], is_causal=True, training=False)
    return sdpa_attention_forward(module, q, k, v, mask, scaling=scaling, is_causal=mask is None)[0]


@pytest.mark.parametrize(("number", "sharing"), [(4, 1), (6, 3), (6, 6)])
@pytest.mark.parametrize(("tokens", "seen"), [(7, 7), (1, 7), (3, 7)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_values_and_gradients_are_those_of_transformers(number, sharing, tokens, seen, scaling) -> None:
    rows = 3
    q, k, v = heads(number, sharing, rows, tokens, seen)
    for mask in (seen_before(rows, tokens, seen), seen_before(1, tokens, seen)):
        ours, expected = attention(None, q, k, v, mask, scaling)[0], theirs(q, k, v, mask, scaling)
        assert ours.shape == (rows, tokens, number, WIDTH)
        torch.testing.assert_close(ours, expected)
        upstream = torch.randn_like(ours)
        mine, others = (torch.autograd.grad(values, (q, k, v), upstream) for values in (ours, expected))
        torch.testing.assert_close(mine, others)


def test_without_a_mask_every_token_sees_those_before_it() -> None:
    q, k, v = heads(6, 3, 2, 5, 5)
    torch.testing.assert_close(attention(None, q, k, v, None)[0], theirs(q, k, v, None))
    last = attention(None, q[:, :, -2:], k, v, None)[0]
    torch.testing.assert_close(last, theirs(q, k, v, None)[:, -2:])


def test_parts_of_a_packed_sequence_attend_within_themselves() -> None:
    spans = [3, 1, 4]
    q, k, v = heads(6, 3, 1, 8, 8)
    part = torch.repeat_interleave(torch.arange(3), torch.tensor(spans))
    mask = torch.ones(8, 8, dtype=torch.bool).tril() & (part[:, None] == part)
    together = attention(None, q, k, v, mask[None, None], spans=spans)[0]
    torch.testing.assert_close(together, theirs(q, k, v, mask[None, None]))


def test_what_it_does_not_compute_is_refused() -> None:
    q, k, v = heads(4, 1, 1, 2, 2)
    attention(None, q, k, v, None, sliding_window=None, dropout=0.0, softcap=None)
    with pytest.raises(InvalidInputError, match=r"needs softcap.*attn_implementation=eager"):
        attention(None, q, k, v, None, softcap=30.0)
