"""The language models that a recipe asks for: made from scratch in seconds, or pretrained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from knapsack_rl.experiments.recipe.model_schema import LoraAdapterConfig, PretrainedModelConfig, ScratchModelConfig

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Rotary embeddings need no table, so room for long sequences costs nothing.
_LONGEST_SEQUENCE = 4096


def from_scratch(config: ScratchModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A float32 model with random weights from torch's global generator, for the tokenizer's vocabulary."""
    import transformers

    config_class, model_class = {
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }[config.architecture]
    model: PreTrainedModel = model_class(
        config_class(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=3 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            head_dim=config.width // config.heads,
            max_position_embeddings=_LONGEST_SEQUENCE,
            tie_word_embeddings=True,
            # The libraries' 0.02 suits large models; at a width of 64 it would cost hundreds of warm-start steps.
            initializer_range=config.width**-0.5,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    return model


def pretrained(config: PretrainedModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and its tokenizer, which pads on the left as generation needs it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        config.path, revision=config.revision, dtype=getattr(torch, config.dtype)
    )
    tokenizer = AutoTokenizer.from_pretrained(config.path, revision=config.revision, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def peft_config(config: LoraAdapterConfig) -> LoraConfig:
    """What TRL's trainers take as `peft_config`."""
    from peft import LoraConfig

    targets = config.target_modules
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
