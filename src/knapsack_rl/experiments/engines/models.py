"""The language models of a recipe: made from scratch in seconds, or pretrained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WarmStartConfig(_Config):
    """Supervised learning before reinforcement learning, with a rate that rises shortly and then falls to zero.

    Attributes:
        steps: Optimiser updates.
        batch_size: Pairs of prompt and completion per update, none of them used twice.
        learning_rate: The highest rate.
    """

    steps: int = Field(default=2000, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=5e-3, gt=0)


class ScratchModelConfig(_Config):
    """A small transformer with random weights, and its warm start.

    Attributes:
        architecture: Whose layers to use, as transformers builds them.
        layers: Transformer layers.
        width: Size of the hidden state; the feed-forward layers have three times as many units.
        heads: Attention heads, each of ``width / heads`` dimensions.
        warm_start: How the model learns to read the task before reinforcement learning starts.
    """

    kind: Literal["scratch"]
    architecture: Literal["qwen3", "llama"] = "qwen3"
    layers: int = Field(default=2, ge=1)
    width: int = Field(default=64, ge=2)
    heads: int = Field(default=4, ge=1)
    warm_start: WarmStartConfig = WarmStartConfig()

    @model_validator(mode="after")
    def _check_heads(self) -> ScratchModelConfig:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width: expected a multiple of twice the heads (rotary embeddings pair up dimensions), "
                f"got width {self.width} and {self.heads} heads"
            )
        return self


class LoraAdapterConfig(_Config):
    """Low-rank adapters instead of all weights.

    Attributes:
        rank: Rank of the adapters.
        alpha: Their scale is ``alpha / rank``.
        target_modules: Names of the layers that get one, or "all-linear".
    """

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class PretrainedModelConfig(_Config):
    """A causal language model from a directory or from the Hugging Face hub.

    Attributes:
        path: A directory, or the model's name on the hub.
        dtype: Type of the weights during training. A step of 1e-6 rounds away in 16 bits; to compute in bfloat16 all
            the same, leave it at float32 and `trl.bf16` as TRL has it on a GPU.
        revision: Branch, tag or commit on the hub; None is the default branch.
        lora: Train adapters only; None trains all weights.
    """

    kind: Literal["pretrained"]
    path: str = Field(min_length=1)
    dtype: Literal["bfloat16", "float16", "float32"] = "float32"
    revision: str | None = None
    lora: LoraAdapterConfig | None = None


ModelConfig = Annotated[ScratchModelConfig | PretrainedModelConfig, Field(discriminator="kind")]

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
    """What TRL's trainers take as ``peft_config``."""
    from peft import LoraConfig

    targets = config.target_modules
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
