"""The language models that a recipe asks for: made from scratch in seconds, or pretrained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.engines import gguf_files
from knapsack_rl.experiments.recipe.model_schema import LoraAdapterConfig, PretrainedModelConfig, ScratchModelConfig
from knapsack_rl.experiments.runs.manifest import checksum

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
    """The model and its tokenizer, which pads on the left as generation needs it.

    Raises:
        InvalidInputError: there is no such model, or transformers cannot read it.
        MissingExtraError: it is a GGUF file, and the package gguf is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = place(config)
    attention = {} if config.attn_implementation is None else {"attn_implementation": config.attn_implementation}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            where, revision=config.revision, dtype=getattr(torch, config.dtype), **attention
        )
        tokenizer = AutoTokenizer.from_pretrained(where, revision=config.revision, padding_side="left")
    except (OSError, ValueError) as error:
        raise _cannot_load(config, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def place(config: PretrainedModelConfig) -> Path | str:
    """Where transformers finds the model: a directory, for GGUF the converted one, or the name on the hub.

    Raises:
        InvalidInputError: a GGUF file that is not there, or that transformers cannot read.
        MissingExtraError: it is a GGUF file, and the package gguf is not installed.
    """
    return gguf_files.converted(Path(config.path)) if config.path.lower().endswith(".gguf") else config.path


def fingerprint(config: PretrainedModelConfig) -> str:
    """What tells the weights from others: checksums of a directory's files, or the commit on the hub."""
    where = Path(place(config))
    if where.is_dir():
        return " ".join(checksum(path) for path in sorted(where.iterdir()) if path.is_file())
    from transformers import AutoConfig

    try:
        return f"{config.path} {AutoConfig.from_pretrained(config.path, revision=config.revision)._commit_hash}"
    except (OSError, ValueError) as error:
        raise _cannot_load(config, error) from error


def end_tokens(model: Any, tokenizer: Any, stop_strings: Sequence[str]) -> list[int]:
    """Tokens that end a completion: those that the model and its tokenizer say, and all with a stop string in them.

    Raises:
        InvalidInputError: no token contains one of the stop strings.
    """
    configured = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
    if stop_strings:
        texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        for string in stop_strings:
            found = {token for token, text in enumerate(texts) if string in text}
            if not found:
                raise InvalidInputError(
                    f"training.stop_strings: expected text that a single token of the model has, got {string!r}."
                )
            ends |= found
    return sorted(ends)


def _cannot_load(config: PretrainedModelConfig, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"model.path: cannot load {config.path!r}: {error}\n"
        "Without network, name a directory or a GGUF file that is there: model.path=PATH."
    )


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
