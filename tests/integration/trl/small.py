"""The real GRPOTrainer on a model small enough for a test: one layer, two dozen tokens, rewards that vary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed
from trl import GRPOConfig, RLOOConfig

TARGET = {f"w{i}": i for i in range(16)}


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", *TARGET, "user", "assistant", ":", "a", "b"]
    tool = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tool.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tool, pad_token="<pad>", eos_token="<eos>", padding_side="left")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant :{% endif %}"
    )
    return fast


def model(seed: int = 0) -> Qwen3ForCausalLM:
    set_seed(seed)
    words = tokenizer()
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config).eval().to(torch.float32)


def rows(count: int = 12) -> Dataset:
    """Prompt i succeeds with probability about i / count, whatever the policy, so that beliefs spread quickly."""
    return Dataset.from_dict(
        {"prompt": [f"w{i % 16} w{i // 16}" for i in range(count)], "ease": [i / (count - 1) for i in range(count)]}
    )


def luck(completion_ids: list[list[int]], ease: list[float], **_: Any) -> list[float]:
    """1 where the completion's content falls under the prompt's ease: a function of the tokens, so reproducible."""
    vocabulary = 23
    draws = [
        (sum((7 * k + 3) * token for k, token in enumerate(ids)) % vocabulary) / vocabulary for ids in completion_ids
    ]
    return [float(draw < share) for draw, share in zip(draws, ease, strict=True)]


def config(folder: Path, kind: type[GRPOConfig] | type[RLOOConfig] = GRPOConfig, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_generations": 4,
        "per_device_train_batch_size": 16,
        "max_completion_length": 4,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 7,
    }
    return kind(**settings | options)
