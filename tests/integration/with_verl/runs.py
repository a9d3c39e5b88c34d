"""Short runs of the real verl on a CPU: a tiny model, easy prompts, and `python -m verl.trainer.main_ppo`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import knapsack_rl

HERE = Path(__file__).parent
SECONDS = 600  # a run takes one or two minutes, most of them to start Ray

REWARD = '''
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **more):
    """1 if the response begins with one of the letters of the ground truth: the longer that is, the easier."""
    return float(ground_truth == "anything" or solution_str[:1] in list(ground_truth))
'''


def make_model(path: Path, letters: Iterable[str] = "abcdefghijklmnop", dtype: str = "float32", **size: int) -> None:
    """A language model of a few thousand random weights, or of another `size`, whose tokens are these letters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

    words = ["<pad>", "<eos>", "\n", " ", *letters]
    characters = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=" "))
    characters.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    characters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<pad>", eos_token="<eos>", unk_token=" "
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}"
    tokenizer.save_pretrained(path)
    set_seed(0)
    tiny = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
    }
    config = Qwen3Config(
        **tiny | size, vocab_size=len(words), eos_token_id=1, pad_token_id=0, tie_word_embeddings=False
    )
    Qwen3ForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(path)


def make_data(path: Path, prompts: int = 16) -> None:
    """Prompts whose success rates go from exactly 0 to exactly 1."""
    import pandas as pd

    letters = "abcdefghijklmnop"
    answers = ["0", *(letters[: number + 1] for number in range(1, 15)), "anything"]
    rows = [
        {
            "data_source": "letters",
            "prompt": [{"role": "user", "content": letters[number % 16] + letters[number // 16]}],
            "ability": "letters",
            "reward_model": {"style": "rule", "ground_truth": answers[number % 16]},
            "extra_info": {"index": number},
            "level": f"level {number % 16 // 4}",
        }
        for number in range(prompts)
    ]
    pd.DataFrame(rows).to_parquet(path)


ON_A_CPU = (
    "data.dataloader_num_workers=0",
    "reward.num_workers=1",
    "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
    "actor_rollout_ref.model.use_remove_padding=False",
    "actor_rollout_ref.model.enable_gradient_checkpointing=False",
    *(
        f"+actor_rollout_ref.actor.fsdp_config.mixed_precision.{kind}_dtype=fp32"
        for kind in ("param", "reduce", "buffer")
    ),
    "actor_rollout_ref.actor.use_torch_compile=False",
    "actor_rollout_ref.rollout.name=cpu",
    "actor_rollout_ref.rollout.agent.num_workers=2",
    "trainer.device=cpu",
    "trainer.n_gpus_per_node=1",
    "trainer.logger=[file]",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    "+ray_kwargs.ray_init.address=local",  # never somebody else's cluster
    "+ray_kwargs.ray_init.num_gpus=4",
    "ray_kwargs.ray_init.num_cpus=32",
    "+ray_kwargs.ray_init.include_dashboard=False",
)
"""Overrides for the engine in cpu_backend.py."""


def environment(folder: Path) -> dict[str, str]:
    """What verl's processes need to find that engine, which may write to `folder`."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(Path(knapsack_rl.__file__).parents[1])]),  # what the tests import
        "VERL_USE_EXTERNAL_MODULES": "cpu_backend",
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",  # the FSDP engine knows no other name; the platform says what it is
        "CPU_BACKEND_FOLDER": str(folder),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_DEDUP_LOGS": "0",
    }


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Run:
    """What a finished process left."""

    code: int
    output: str
    metrics: list[dict[str, Any]]

    def of(self, name: str) -> list[float]:
        """One metric, step by step."""
        return [step["data"][name] for step in self.metrics if name in step["data"]]


def run(folder: Path, *overrides: str, mode: str = "knapsack", steps: int = 3) -> Run:
    """Train in `folder` (which holds model, data and earlier checkpoints) and return what was logged."""
    command, variables = prepared(folder, *overrides, mode=mode, steps=steps)
    finished = subprocess.run(
        command, env=variables, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    return Run(finished.returncode, finished.stdout + finished.stderr, logged(folder))


def logged(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of verl's own log file, which the next run in the same folder writes anew."""
    log = folder / name
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def prepared(folder: Path, *overrides: str, mode: str, steps: int) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of a run of 8 prompts x 4 rollouts a step."""
    if not (folder / "model").exists():
        make_model(folder / "model")
        (folder / "reward.py").write_text(REWARD)
    if not (folder / "train.parquet").exists():
        make_data(folder / "train.parquet")
    settings = [
        f"data.train_files={folder / 'train.parquet'}",
        f"data.val_files={folder / 'train.parquet'}",
        "data.train_batch_size=8",
        "data.max_prompt_length=8",
        "data.max_response_length=4",
        f"reward.custom_reward_function.path={folder / 'reward.py'}",
        f"actor_rollout_ref.model.path={folder / 'model'}",
        "actor_rollout_ref.actor.strategy=fsdp2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=32",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        "actor_rollout_ref.actor.use_kl_loss=False",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=32",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "algorithm.adv_estimator=grpo",
        "algorithm.use_kl_in_reward=False",
        "trainer.nnodes=1",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.total_epochs=1000",
        f"trainer.total_training_steps={steps}",
        f"trainer.default_local_dir={folder / 'checkpoints'}",
        f"trainer.v1.trainer_mode={mode}",
        f"+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH={folder / 'metrics.jsonl'}",
        *ON_A_CPU,
        *overrides,
    ]
    return [sys.executable, "-m", "verl.trainer.main_ppo", *settings], environment(folder)
