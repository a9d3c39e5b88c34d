"""Gradients by group, taken apart in one backward pass, are those of each group's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

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


def weights_of_norms(model: torch.nn.Module, names: list[str]) -> list[torch.nn.Parameter]:
    named = dict(model.named_parameters())
    return [named[name] for name in names]


def collected(model: torch.nn.Module, watch: GroupGradients, cuts: int = 1) -> torch.Tensor:
    watch.begin(3)
    tokens, weights = batch()
    for rows in torch.arange(6).chunk(cuts):
        watch.owners = GROUPS[rows]
        loss(model, tokens[rows], weights[rows]).backward()
    watch.owners = None
    return watch.gradients


def test_each_groups_gradient_is_that_of_its_own_loss() -> None:
    """With RMSNorm y = w n, the gradient in a factor on y is that in w, times w."""
    model = qwen()
    watch = GroupGradients(model, layers=3)
    found = collected(model, watch)
    names = ["model.layers.0.input_layernorm.weight", "model.norm.weight"]
    assert found.shape == (3, 3 * 16)
    tokens, weights = batch()
    for group in range(3):
        model.zero_grad()
        rows = group == GROUPS
        loss(model, tokens[rows], weights[rows]).backward()
        first, last = weights_of_norms(model, names)
        torch.testing.assert_close(found[group, :16], first.grad * first.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[group, 32:], last.grad * last.detach(), rtol=1e-4, atol=1e-5)


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


def test_frozen_norms_of_a_lora_model_are_watched_all_the_same() -> None:
    full = qwen()
    lora = get_peft_model(qwen(), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=True))
    assert not any(weight.requires_grad for name, weight in lora.named_parameters() if "norm" in name)
    expected = collected(full, GroupGradients(full, layers=3))
    found = collected(lora, GroupGradients(lora, layers=3))
    # LoRA begins as the model itself; the first norm has nothing that is trained before it.
    torch.testing.assert_close(found[:, 16:], expected[:, 16:], rtol=1e-4, atol=1e-5)


def test_layer_norms_with_a_bias_are_watched() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=16)).eval()
    found = collected(model, GroupGradients(model, layers=2))
    assert found.shape == (3, 2 * 16)
    assert (found.abs().sum(dim=1) > 0).all()


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
    watch.begin(3)
    watch.owners = torch.full((6, 7), -1)
    loss(model, tokens, weights).backward()
    assert not watch.gradients.any()


def test_owners_that_do_not_fit_are_refused() -> None:
    model = qwen()
    watch = GroupGradients(model)
    watch.owners = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(InvalidInputError, match=r"owners: expected a group for each row .* got shape \(5,\)"):
        loss(model, *batch())


def test_a_model_without_normalisation_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="normalisation layers"):
        GroupGradients(torch.nn.Linear(2, 2))


def test_layers_are_spread_over_the_model_and_the_last_is_among_them() -> None:
    model = qwen(layers=20)  # 41 norms
    found = collected(model, GroupGradients(model, layers=8))
    assert found.shape == (3, 7 * 16)  # every sixth
    model.zero_grad()
    loss(model, *batch()).backward()
    last = model.model.norm.weight
    np.testing.assert_allclose(found.sum(0)[-16:], (last.grad * last.detach()).numpy(), rtol=1e-3, atol=1e-5)
