"""The block `model` of a recipe: a model made from scratch in seconds, or a pretrained one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from knapsack_rl.tasks.config import Config


class WarmStartConfig(Config):
    """Supervised learning before reinforcement learning, with a rate that rises shortly and then falls to zero."""

    steps: int = Field(default=2000, ge=1)
    """Optimiser updates."""
    batch_size: int = Field(default=64, ge=1)
    """Pairs of prompt and completion per update, none of them used twice."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """The highest rate."""


class ScratchModelConfig(Config):
    """A small transformer with random weights, and its warm start."""

    kind: Literal["scratch"]
    architecture: Literal["qwen3", "llama"] = "qwen3"
    """Whose layers to use, as transformers builds them."""
    layers: int = Field(default=2, ge=1)
    """Transformer layers."""
    width: int = Field(default=64, ge=2)
    """Size of the hidden state; the feed-forward layers have three times as many units."""
    heads: int = Field(default=4, ge=1)
    """Attention heads, each of `width / heads` dimensions."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """How the model learns to read the task before reinforcement learning starts."""

    @model_validator(mode="after")
    def _check_heads(self) -> ScratchModelConfig:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width: expected a multiple of twice the heads (rotary embeddings pair up dimensions), "
                f"got width {self.width} and {self.heads} heads"
            )
        return self


class LoraAdapterConfig(Config):
    """Low-rank adapters instead of all weights."""

    rank: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(default=32, ge=1)
    """Their scale is `alpha / rank`."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers that get one, or "all-linear"."""


class PretrainedModelConfig(Config):
    """A causal language model from a directory, a GGUF file or the Hugging Face hub."""

    kind: Literal["pretrained"]
    path: str = Field(min_length=1)
    """A directory, a file that ends in .gguf, or the model's name on the hub. A GGUF file is dequantised and converted
    once, into a directory of the user's cache; it needs the package `gguf`."""
    dtype: Literal["bfloat16", "float16", "float32"] = "float32"
    """Type of the weights during training. A step of 1e-6 rounds away in 16 bits; to compute in bfloat16 all the
    same, leave it at float32 and `trl.bf16` as TRL has it on a GPU."""
    autocast: bool = False
    """Whether to compute in bfloat16 over weights that stay in `dtype` (mixed precision), in the warm start and with
    `trainer: minimal`, too. With `trainer: trl` it sets `trl.bf16`, which is on for a GPU anyway."""
    attn_implementation: str | None = None
    """How transformers computes attention, such as `sdpa`, `eager` or `flash_attention_2`; None leaves it to them."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None is the default branch."""
    lora: LoraAdapterConfig | None = None
    """Train adapters only; None trains all weights."""
    warm_start: WarmStartConfig | None = None
    """Supervised learning on the task's worked examples before reinforcement learning, of all weights; done once and
    kept for all runs with this seed. None goes without."""


ModelConfig = Annotated[ScratchModelConfig | PretrainedModelConfig, Field(discriminator="kind")]
