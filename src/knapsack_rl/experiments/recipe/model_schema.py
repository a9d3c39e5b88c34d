"""The block `model` of a recipe: a model made from scratch in seconds, or a pretrained one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


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
        heads: Attention heads, each of `width / heads` dimensions.
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
        alpha: Their scale is `alpha / rank`.
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
