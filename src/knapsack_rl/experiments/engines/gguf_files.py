"""Models in GGUF files, the format of llama.cpp, as directories that transformers loads like any other."""

from __future__ import annotations

import hashlib
import importlib.metadata
from importlib.util import find_spec
from pathlib import Path

from knapsack_rl.errors import InvalidInputError, MissingExtraError
from knapsack_rl.experiments.engines.kept import cache_dir, kept
from knapsack_rl.experiments.runs.manifest import checksum


def converted(file: Path, cache: Path | None = None) -> Path:
    """The directory with the model and the tokenizer of a GGUF file: weights dequantised to float32, as safetensors.

    Made on first use and kept in `cache` (None: `knapsack-rl/converted` in the user's cache) by the file's content.
    Training goes on from the dequantised weights: four bits a weight on the disk are no four bits here. Converting
    takes some 20 seconds and 1.2 GB of memory for 135 million parameters; later calls read the file to recognise it.

    Raises:
        InvalidInputError: no such file, or transformers cannot read it as a whole model.
        MissingExtraError: the package gguf is not installed.
    """
    if not file.is_file():
        raise InvalidInputError(f"model.path: no file {file}. Name a GGUF file, a directory, or a model on the hub.")
    versions = [importlib.metadata.version("transformers")]
    key = hashlib.sha256("\n".join([checksum(file), *versions]).encode()).hexdigest()[:24]
    return kept((cache_dir("converted") if cache is None else cache) / key, lambda folder: _convert(file, folder))


def _convert(file: Path, folder: Path) -> None:
    if find_spec("gguf") is None:
        raise MissingExtraError("model.path: the package gguf is not installed. Run: pip install 'knapsack-rl[train]'.")
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    unpacked = {}
    if hasattr(transformers, "GgufConfig"):  # newer versions may keep the blocks, older ones cannot
        unpacked["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype="float32", output_loading_info=True, **unpacked
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # its parser raises what it likes on a damaged file
        raise InvalidInputError(f"model.path: transformers cannot read {file} as a GGUF model: {error}") from error
    absent = sorted(found["missing_keys"])
    if absent:  # transformers would make them up
        raise InvalidInputError(
            f"model.path: {file} has no {', '.join(absent[:3])} ({len(absent)} weights are missing). "
            "Expected a whole model: join the parts of a split file first (llama-gguf-split --merge)."
        )
    # A model that came from a GGUF file counts as quantised, and refuses to be saved, although its weights are not.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
