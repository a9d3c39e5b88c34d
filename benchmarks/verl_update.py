"""What leaving out rollouts without gradient saves of verl's actor update, on a CPU: verl's worker, engine and losses.

    python benchmarks/verl_update.py [--pairs 10]     # in the environment with verl

Both arms train the same small transformer on the same 128 rows in 2 optimizer steps, in micro-batches of 8. One is
given all rows, the other those that `knapsack_rl.verl.idle.deal` leaves. They take turns in one process; the ratio is
taken pair by pair, so that it holds while the machine's speed drifts. Seconds are those of the one processor that they
run on, which other processes cannot lengthen. Generation and the old log probabilities, which verl computes of all
rows, are not in it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
import torch

from knapsack_rl.verl import idle

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "integration" / "with_verl"))
import runs

ROWS, PROMPT, LAYOUT = 128, 16, idle.Layout(ranks=1, batches=2, micro=8, stages=1)


def make_model(path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

    runs.make_model(path)  # for its tokenizer
    set_seed(0)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        eos_token_id=1,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)


def make_rows(ratio: float, tokens: int) -> list[dict[str, torch.Tensor]]:
    """Rows of one length, of which this share has a gradient, in groups of 8."""
    random, rows = torch.Generator().manual_seed(0), []
    groups = np.random.default_rng(0).permutation(ROWS // 8) < round(ratio * ROWS / 8)
    for number in range(ROWS):
        ids, mask = torch.randint(4, 64, (PROMPT + tokens,), generator=random), torch.ones(tokens, dtype=torch.long)
        rows.append(
            {
                "prompts": ids[:PROMPT],
                "responses": ids[PROMPT:],
                "input_ids": ids,
                "position_ids": torch.arange(len(ids)),
                "response_mask": mask,
                "loss_mask": mask,
                "advantages": (2.0 * (number % 2) - 1.0) * mask if groups[number // 8] else 0.0 * mask,
                "old_log_probs": torch.full((tokens,), -4.0),
                "ref_log_prob": torch.full((tokens,), -4.0),
            }
        )
    return rows


def seconds_of(actor: Any, rows: list[dict[str, torch.Tensor]], dealt: idle.Deal) -> float:
    from updates import batch_of

    batch = batch_of([rows[number] for number in dealt.rows], dealt.scales, dealt.batch, dealt.micro, dealt.real)
    began = time.process_time()
    actor.worker.train_mini_batch(batch)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model)
        alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(runs.free_port())}
        os.environ.update(runs.environment(Path(folder)) | alone)  # before verl is imported
        measure(str(model), asked.pairs)


def measure(model: str, pairs: int) -> None:
    from updates import Actor
    from verl.workers.config import FSDPActorConfig
    from verl.workers.utils.losses import ppo_loss

    actor = Actor(model)
    config = FSDPActorConfig(strategy="fsdp2", rollout_n=1, use_dynamic_bsz=True)
    actor.worker.set_loss_fn(partial(ppo_loss, config=config))
    for tokens in (8, 64, 256):
        for ratio in (0.2, 0.4, 0.6):
            rows = make_rows(ratio, tokens)
            live = np.array([bool(row["advantages"].any()) for row in rows])
            lengths = np.full(ROWS, PROMPT + tokens)
            seen = idle.Rows(live, np.zeros(ROWS, dtype=bool), lengths, np.full(ROWS, tokens))
            arms = [idle.deal(seen, LAYOUT, "tokens", skip) for skip in (False, True)]
            measured = [[seconds_of(actor, rows, arm) for arm in arms] for _ in range(pairs + 1)][1:]
            low, median, high = quantiles([skipping / every for every, skipping in measured], n=4)
            print(
                f"{tokens} tokens, {live.mean():.2f} live, {len(arms[1].rows)} of {ROWS} rows: "
                f"{median:.2f} ({low:.2f} to {high:.2f}) of {np.median([every for every, _ in measured]):.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
