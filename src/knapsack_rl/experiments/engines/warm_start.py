"""Supervised learning, done once and cached, so that reinforcement learning has a start."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from knapsack_rl import tasks
from knapsack_rl.experiments.engines import models
from knapsack_rl.experiments.engines.kept import cache_dir as default
from knapsack_rl.experiments.engines.kept import kept
from knapsack_rl.experiments.recipe.model_schema import PretrainedModelConfig, ScratchModelConfig, WarmStartConfig
from knapsack_rl.tasks import TaskConfig

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OnStep = Callable[[int, int, float], None]

# What decides on the weights besides the configuration and our own sources.
_LIBRARIES = ("numpy", "reasoning-gym", "tokenizers", "torch", "transformers")
_WARMUP_STEPS = 20
_IGNORED = -100


def default_cache_dir() -> Path:
    """`knapsack-rl/warm-starts` in XDG_CACHE_HOME, or in ~/.cache."""
    return default("warm-starts")


def warm_started(
    model_config: ScratchModelConfig | PretrainedModelConfig,
    task_config: TaskConfig,
    seed: int,
    cache_dir: Path | None = None,
    on_step: OnStep | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that has learned to read the task, and its tokenizer: from the cache, or trained now.

    A pretrained model whose configuration has no warm start is returned as it is.

    The same arguments give the same weights on the same machine with the same number of threads, cached or not, and
    torch's global random state is left as it was. Training runs on the CPU, so that a GPU changes nothing.

    Args:
        model_config: the model and its supervised learning.
        task_config: where the pairs of prompt and completion come from.
        seed: of the task, of the first weights and of the pairs.
        cache_dir: where finished models are kept, a directory for each configuration, seed and set of library
            versions, which appears only when it is complete; one that was damaged since is made anew. None is
            `default_cache_dir()`.
        on_step: called after every update with the number of updates so far, of updates in all, and the loss in
            nats per token. Not called if the cache has the model.

    Raises:
        InvalidInputError: `cache_dir` cannot be written to, the task has no supervised pairs, or there is no such
            pretrained model.
        MissingExtraError: the task or the model needs a package that is not installed.
    """
    import torch

    schedule = model_config.warm_start
    if schedule is None:
        return models.pretrained(model_config)  # type: ignore[arg-type]  # only such a one needs no warm start
    autocast = model_config.kind == "pretrained" and model_config.autocast

    def make(folder: Path) -> None:
        torch.manual_seed(seed)
        model, tokenizer = _untaught(model_config, task_config)
        pairs = tasks.supervised_pairs(task_config, seed, schedule.steps * schedule.batch_size)
        learn(model, tokenizer, pairs, schedule, on_step, autocast)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    cache_dir = default_cache_dir() if cache_dir is None else cache_dir
    with torch.random.fork_rng(devices=[]):
        finished = str(kept(cache_dir / _key(model_config, task_config, seed), make))
        # Loaded in either case, so that a first run and a later one cannot differ.
        if model_config.kind == "pretrained":
            return models.pretrained(model_config.model_copy(update={"path": finished}))
        return models.pretrained(PretrainedModelConfig(kind="pretrained", path=finished))


def _untaught(
    model_config: ScratchModelConfig | PretrainedModelConfig, task_config: TaskConfig
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if model_config.kind == "pretrained":
        return models.pretrained(model_config.model_copy(update={"dtype": "float32"}))
    tokenizer = tasks.tokenizer(task_config)
    return models.from_scratch(model_config, tokenizer), tokenizer


def learn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[tuple[str, str]],
    config: WarmStartConfig,
    on_step: OnStep | None = None,
    autocast: bool = False,
) -> None:
    """Train `model` in place on `pairs` in their order, once, with the loss on the completions' tokens."""
    import torch

    prompts = tokenizer([prompt for prompt, _ in pairs], add_special_tokens=False)["input_ids"]
    completions = tokenizer([completion for _, completion in pairs], add_special_tokens=False)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for step in range(config.steps):
        rows = slice(step * config.batch_size, (step + 1) * config.batch_size)
        tokens, labels = _batch(prompts[rows], completions[rows], tokenizer.eos_token_id, tokenizer.pad_token_id)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate(step, config.steps)
        # No attention mask: the padding is on the right, where a causal model does not look.
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):  # anew every step: it keeps converted weights
            logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        logits = logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, config.steps, loss.item())
    model.eval()


def _rate(step: int, steps: int) -> float:
    """A short linear rise, then half a cosine down to zero."""
    return min(1.0, (step + 1) / _WARMUP_STEPS) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _batch(prompts: list[list[int]], completions: list[list[int]], eos: int, pad: int) -> tuple[Tensor, Tensor]:
    """Tokens and labels, both (rows, longest), padded on the right; prompts and padding have no labels."""
    import torch

    rows = [[*prompt, *completion, eos] for prompt, completion in zip(prompts, completions, strict=True)]
    tokens = torch.full((len(rows), max(map(len, rows))), pad)
    labels = torch.full_like(tokens, _IGNORED)
    for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        tokens[number, : len(row)] = torch.tensor(row)
        labels[number, len(prompt) : len(row)] = tokens[number, len(prompt) : len(row)]
    return tokens, labels


def _key(model_config: ScratchModelConfig | PretrainedModelConfig, task_config: TaskConfig, seed: int) -> str:
    """A hash of everything that decides on the weights."""
    sources = [Path(inspect.getfile(part)) for part in (type(task_config), models, learn)]
    model = model_config.model_dump(mode="json")
    if model_config.kind == "pretrained":  # what is loaded counts, not from where, nor what is done with it later
        model = {name: model[name] for name in ("autocast", "warm_start")} | {"start": models.fingerprint(model_config)}
    content = {
        "model": model,
        "task": task_config.model_dump(mode="json", exclude={"wrong_answers"}),  # worked examples are right
        "seed": seed,
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "sources": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
