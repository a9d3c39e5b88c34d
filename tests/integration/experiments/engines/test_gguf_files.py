"""A tiny model written with the package gguf, as llama.cpp lays it out, and what becomes of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from knapsack_rl.errors import InvalidInputError, MissingExtraError
from knapsack_rl.experiments.engines import gguf_files, models
from knapsack_rl.experiments.engines.kept import cache_dir
from knapsack_rl.experiments.recipe.model_schema import PretrainedModelConfig

WIDTH, HEADS, KEY_HEADS, LAYERS, INNER = 32, 4, 2, 2, 48

needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the package gguf")


def byte_symbols() -> list[str]:
    """The symbols of GPT-2's byte-level alphabet."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in plain] + [chr(256 + number) for number in range(256 - len(plain))]


def as_in_llama_cpp(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in the order of llama.cpp, whose rotary embeddings pair up neighbours where transformers pairs up halves."""
    return weight.view(heads, 2, len(weight) // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


def write_model(path: Path, without: str = "") -> dict[str, torch.Tensor]:
    """A GGUF file of a model with random weights; returns those weights by the names of transformers."""
    import gguf

    tokens = [*byte_symbols(), "<|end|>", "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([*256 * [gguf.TokenType.NORMAL], gguf.TokenType.CONTROL, gguf.TokenType.NORMAL])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(256)
    writer.add_pad_token_id(256)

    random = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens": (len(tokens), WIDTH), "model.norm": (WIDTH,), "lm_head": (len(tokens), WIDTH)}
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    keys = WIDTH // HEADS * KEY_HEADS
    for layer in range(LAYERS):
        for name, theirs, shape in (
            ("self_attn.q_proj", "attn_q", (WIDTH, WIDTH)),
            ("self_attn.k_proj", "attn_k", (keys, WIDTH)),
            ("self_attn.v_proj", "attn_v", (keys, WIDTH)),
            ("self_attn.o_proj", "attn_output", (WIDTH, WIDTH)),
            ("mlp.gate_proj", "ffn_gate", (INNER, WIDTH)),
            ("mlp.up_proj", "ffn_up", (INNER, WIDTH)),
            ("mlp.down_proj", "ffn_down", (WIDTH, INNER)),
            ("input_layernorm", "attn_norm", (WIDTH,)),
            ("post_attention_layernorm", "ffn_norm", (WIDTH,)),
        ):
            shapes[f"model.layers.{layer}.{name}"] = shape
            names[f"model.layers.{layer}.{name}"] = f"blk.{layer}.{theirs}"
    weights = {f"{name}.weight": torch.randn(shape, generator=random) for name, shape in shapes.items()}
    for name, theirs in names.items():
        weight = weights[f"{name}.weight"]
        if theirs.endswith("attn_q"):
            weight = as_in_llama_cpp(weight, HEADS)
        if theirs.endswith("attn_k"):
            weight = as_in_llama_cpp(weight, KEY_HEADS)
        if theirs != without:
            writer.add_tensor(f"{theirs}.weight", weight.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def pretrained(path: Path) -> PretrainedModelConfig:
    return PretrainedModelConfig(kind="pretrained", path=str(path))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@needs_gguf
def test_weights_and_tokenizer_of_a_gguf_file_are_those_that_were_written(tmp_path: Path) -> None:
    weights = write_model(tmp_path / "tiny.gguf")
    model, tokenizer = models.pretrained(pretrained(tmp_path / "tiny.gguf"))
    assert model.dtype == torch.float32
    loaded = model.state_dict()
    assert loaded.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(loaded[name], weight, rtol=0.0, atol=0.0, msg=name)
    assert tokenizer("abc")["input_ids"] == [257, byte_symbols().index("c")]
    assert (tokenizer.eos_token, tokenizer.padding_side) == ("<|end|>", "left")


@needs_gguf
def test_a_file_is_converted_once_by_its_content_and_again_where_the_copy_is_damaged(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny.gguf")
    first = gguf_files.converted(tmp_path / "tiny.gguf")
    (tmp_path / "tiny.gguf").rename(tmp_path / "moved.GGUF")
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert gguf_files.converted(tmp_path / "moved.GGUF") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made

    content = (first / "model.safetensors").read_bytes()
    (first / "model.safetensors").write_bytes(content[:-1] + b"?")
    assert gguf_files.converted(tmp_path / "moved.GGUF") == first
    assert (first / "model.safetensors").read_bytes() == content
    assert list(cache_dir("converted").iterdir()) == [first]


@needs_gguf
def test_a_file_that_lacks_a_weight_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    write_model(tmp_path / "part.gguf", without="blk.1.ffn_up")
    with pytest.raises(InvalidInputError, match=r"part\.gguf has no model\.layers\.1\.mlp\.up_proj\.weight"):
        gguf_files.converted(tmp_path / "part.gguf")
    assert list(cache_dir("converted").iterdir()) == []


@needs_gguf
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    with pytest.raises(InvalidInputError, match=r"cannot read .*page\.gguf"):
        gguf_files.converted(tmp_path / "page.gguf")


def test_without_the_package_a_gguf_file_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'knapsack-rl\[train\]'"):
        gguf_files.converted(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("path", ["not/there.gguf", "not/there", "nobody/no-such-model"])
def test_a_model_that_is_nowhere_says_what_may_be_named(path: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"model\.path: .*{path}(.|\n)*a directory"):
        models.pretrained(PretrainedModelConfig(kind="pretrained", path=path))


def test_attention_is_computed_as_the_recipe_says(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=4, **shape)).save_pretrained(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0})), eos_token="a").save_pretrained(
        tmp_path / "model"
    )
    for name in ("eager", "sdpa"):
        config = PretrainedModelConfig(kind="pretrained", path=str(tmp_path / "model"), attn_implementation=name)
        assert models.pretrained(config)[0].config._attn_implementation == name
