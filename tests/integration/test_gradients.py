"""Gradients by group, taken apart in one backward pass, are those of each group's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.gradients import GroupGradients

GROUPS = torch.tensor([0, 0, 1, 2, 2, 2])


def qwen(layers: int = 3) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "head_dim": 8, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=30, tie_word_embeddings=True, **size, **heads))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(30, (6, 7), generator=generator), torch.randn(6, generator=generator)


def loss(model: torch.nn.Module, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    logs = model(input_ids=tokens, use_cache=False).logits[:, :-1].float().log_softmax(dim=-1)
    return (weights[:, None] * logs.gather(2, tokens[:, 1:, None])[:, :, 0]).sum()


def collected(model: torch.nn.Module, watch: GroupGradients, cuts: int = 1) -> torch.Tensor:
    watch.begin(3)
    tokens, weights = batch()
    for rows in torch.arange(6).chunk(cuts):
        watch.owners = GROUPS[rows]
        loss(model, tokens[rows], weights[rows]).backward()
    watch.owners = None
    return watch.gradients


def test_each_groups_gradient_is_that_of_its_own_loss_in_all_weights_of_small_layers() -> None:
    """Layers of this model are at most 32 wide, so that a block is a whole layer; every third of 21 is watched."""
    model = qwen()
    found = collected(model, GroupGradients(model))
    layers = [module for module in model.model.modules() if isinstance(module, torch.nn.Linear)][2::3]
    tokens, weights = batch()
    for group in range(3):
        model.zero_grad()
        rows = group == GROUPS
        loss(model, tokens[rows], weights[rows]).backward()
        expected = torch.cat([layer.weight.grad.flatten() for layer in layers])
        torch.testing.assert_close(found[group], expected, rtol=1e-4, atol=1e-5)


def test_of_a_large_layer_evenly_spaced_rows_and_columns_are_watched() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(100, 80), torch.nn.Linear(80, 40))
    watch = GroupGradients(model)
    watch.begin(2)
    watch.owners = torch.tensor([0, 1])
    model(torch.randn(2, 3, 100)).square().sum().backward()
    first, second = model[0].weight.grad[::3, ::4].flatten(), model[1].weight.grad[::2, ::3].flatten()
    torch.testing.assert_close(watch.gradients.sum(dim=0), torch.cat([first, second]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cuts", [2, 3, 6])
def test_micro_batches_add_up(cuts: int) -> None:
    model = qwen()
    watch = GroupGradients(model)
    whole = collected(model, watch).clone()
    torch.testing.assert_close(collected(model, watch, cuts), whole, rtol=1e-4, atol=1e-5)


def test_the_update_is_not_touched() -> None:
    plain, watched = qwen(), qwen()
    collected(watched, GroupGradients(watched))
    loss(plain, *batch()).backward()
    for (name, one), two in zip(plain.named_parameters(), watched.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad), name


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_nothing(reentrant: bool) -> None:
    plain, checkpointed = qwen(), qwen()
    checkpointed.train()
    checkpointed.activation_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed.enable_input_require_grads()
    expected = collected(plain, GroupGradients(plain))
    torch.testing.assert_close(collected(checkpointed, GroupGradients(checkpointed)), expected, rtol=1e-4, atol=1e-5)


def test_frozen_layers_of_a_lora_model_are_watched_all_the_same() -> None:
    lora = get_peft_model(qwen(), LoraConfig(target_modules=["q_proj"], init_lora_weights=True))
    last = lora.base_model.model.model.layers[-1].mlp.down_proj
    assert not last.weight.requires_grad
    found = collected(lora, GroupGradients(lora))[:, -last.weight.numel() :]
    plain = qwen()  # which LoRA begins as
    expected = collected(plain, GroupGradients(plain))[:, -last.weight.numel() :]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_transposed_layers_of_gpt2_are_watched() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=2, n_positions=16)).eval()
    found = collected(model, GroupGradients(model))
    tokens, weights = batch()
    model.zero_grad()
    loss(model, tokens, weights).backward()
    expected = model.transformer.h[0].mlp.c_proj.weight.grad.T.flatten()
    torch.testing.assert_close(found.sum(0)[-expected.numel() :], expected, rtol=1e-4, atol=1e-5)


def test_passes_that_are_not_counted_leave_nothing() -> None:
    model = qwen()
    watch = GroupGradients(model)
    watch.begin(3)
    loss(model, *batch()).backward()  # nobody's
    with torch.no_grad():
        watch.owners = GROUPS
        loss(model, *batch())  # no gradient wanted
    assert not watch.gradients.any()


def test_a_token_can_have_an_owner_of_its_own() -> None:
    model = qwen()
    watch = GroupGradients(model)
    by_rows = collected(model, watch).clone()
    watch.begin(3)
    tokens, weights = batch()
    watch.owners = GROUPS[:, None].expand(6, 7)
    loss(model, tokens, weights).backward()
    torch.testing.assert_close(watch.gradients, by_rows)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_groups_of_any_size_get_what_their_own_tokens_say(
    seed: int, rows: int, length: int, groups: int, by_token: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(3, 2, dtype=torch.float64)
    watch = GroupGradients(layer)
    watch.begin(groups)
    owners = torch.randint(groups, (rows, length) if by_token else (rows,), generator=generator)
    x, wanted = (torch.randn(rows, length, width, dtype=torch.float64, generator=generator) for width in (3, 2))
    watch.owners = owners
    (layer(x) * wanted).sum().backward()
    of_token = owners if by_token else owners[:, None].expand(rows, length)
    expected = torch.stack(
        [torch.einsum("rto,rti->oi", wanted * (of_token == group)[..., None], x).flatten() for group in range(groups)]
    )
    torch.testing.assert_close(watch.gradients, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "owners",
    [torch.tensor([0, -1]), torch.tensor([0.0, 1.0]), torch.tensor(1), torch.zeros(1, 1, 1, dtype=torch.int64)],
)
def test_owners_that_are_no_groups_are_refused_and_the_former_stay(owners: torch.Tensor) -> None:
    watch = GroupGradients(qwen())
    watch.owners = GROUPS
    with pytest.raises(InvalidInputError, match="owners: expected the number of a group for each row or token"):
        watch.owners = owners
    assert watch.owners is GROUPS


def test_owners_that_do_not_fit_are_refused() -> None:
    model = qwen()
    watch = GroupGradients(model)
    watch.owners = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(InvalidInputError, match=r"owners: expected a group for each row .* got shape \(5,\)"):
        loss(model, *batch())


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="linear layers, got Embedding"):
        GroupGradients(torch.nn.Embedding(2, 2))


def test_experts_whose_tokens_have_no_rows_count_as_zero_and_the_others_as_ever() -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 1}
    shared = {"shared_expert_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    model = Qwen2MoeForCausalLM(Qwen2MoeConfig(vocab_size=30, **size, **shared, **heads))
    watch = GroupGradients(model)
    found = collected(model, watch)
    model.zero_grad()
    loss(model, *batch()).backward()
    first = model.model.layers[0].self_attn.q_proj.weight.grad.flatten()
    torch.testing.assert_close(found.sum(0)[: first.numel()], first, rtol=1e-3, atol=1e-5)


def test_the_inputs_of_layers_are_not_kept_alive() -> None:
    """The hook of a backward pass keeps a copy of the watched columns, not a view of all."""
    layer = torch.nn.Linear(4096, 64)
    watch = GroupGradients(layer)
    watch.begin(1)
    watch.owners = torch.zeros(1, dtype=torch.int64)
    kept: list[torch.Tensor] = []
    watch._add = lambda number, owners, x, gradient: kept.append(x)
    layer(torch.randn(1, 3, 4096)).sum().backward()
    assert kept[0].untyped_storage().nbytes() == kept[0].numel() * 4


def test_layers_are_spread_over_the_model_and_the_last_is_among_them() -> None:
    model = qwen(layers=10)  # 70 linear layers, every fifth
    found = collected(model, GroupGradients(model))
    model.zero_grad()
    loss(model, *batch()).backward()
    last = model.model.layers[-1].mlp.down_proj.weight.grad.flatten()
    torch.testing.assert_close(found.sum(0)[-last.numel() :], last, rtol=1e-3, atol=1e-5)
    assert found.shape[1] < 16 * 32 * 32


def test_the_layer_of_the_logits_is_not_watched_whatever_its_width() -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "head_dim": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=16, tie_word_embeddings=False, **size, **heads))
    watch = GroupGradients(model)
    watch.begin(1)
    assert watch.gradients.shape == (1, 4 * 16 * 16 + 3 * 16 * 32)
