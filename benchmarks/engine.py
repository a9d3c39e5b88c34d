"""What `dealing.py` simulates, on a real engine: continuous batching of transformers on the CPU.

    python benchmarks/engine.py

A small transformer made on the spot generates the rollouts of a step, each forced to the length that it was drawn.
Workers are engines of their own that take turns on one processor; a step lasts as long as the one that took longest.
All ways of dealing generate the same rollouts, and the ratio to the first one is taken step by step.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import deque
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import ContinuousBatchingConfig, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from dealing import WAYS, World, dealt, draw

WORKERS, SLOTS, PROMPTS, PAGE = 2, 16, 32, 16
SHORTER = 64  # than the simulated ones, which have a median of 1,000 tokens


class Engine:
    """A transformer behind a queue; counts the tokens that go through it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=64,
                hidden_size=128,
                intermediate_size=512,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=32,
            )
        ).eval()
        self.steps = self.tokens = 0
        self.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: torch.nn.Module, arguments: tuple[object, ...], named: dict[str, torch.Tensor]) -> None:
        self.steps += 1
        self.tokens += named["input_ids"].numel()

    def generate(self, requests: Iterable[tuple[list[int], int]]) -> float:
        """Seconds of the processor that these prompts, each with so many tokens to generate, take in this order."""
        manager = self.model.init_continuous_batching(
            GenerationConfig(max_new_tokens=1, do_sample=True, eos_token_id=-1),
            ContinuousBatchingConfig(
                max_requests_per_batch=SLOTS, max_batch_tokens=256, page_size=PAGE, num_blocks=1024
            ),
        )
        waiting = {manager.add_request(prompt, max_new_tokens=length): length for prompt, length in requests}
        started = time.process_time()
        manager.start()
        while waiting:
            result = manager.get_result(timeout=60.0)
            if result is None or len(result.generated_tokens) != waiting.pop(result.request_id):
                raise RuntimeError(f"the engine stopped, or returned another length than was asked for: {result}")
        taken = time.process_time() - started
        manager.stop(block=True)
        return taken


def step(engine: Engine, queues: list[deque[int]], world: World, prompts: NDArray[np.int64]) -> tuple[float, int, int]:
    """Seconds and forward passes of the worker that takes most of them, and tokens that all of them computed."""
    engine.tokens, seconds, passes = 0, [], []
    for queue in queues:
        engine.steps = 0
        jobs = [(prompts[world.prompts[job]].tolist(), int(world.lengths[job] // SHORTER + 1)) for job in queue]
        seconds.append(engine.generate(jobs))
        passes.append(engine.steps)
    return max(seconds), max(passes), engine.tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=100, help="first seed")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    chosen = parser.parse_args()
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    engine, ways = Engine(), [way for way in WAYS if not way.startswith("one queue")]
    ratios: dict[str, list[NDArray[np.float64]]] = {way: [] for way in ways}
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        world = draw(seed, PROMPTS, between=0.75)
        prompts = np.random.default_rng((seed, 2)).integers(2, 64, (PROMPTS, chosen.prompt_tokens))
        found = {
            way: np.array(step(engine, dealt(way, world, world.expected["one visit"], WORKERS, seed), world, prompts))
            for way in ways
        }
        for way in ways:
            ratios[way].append(found[way] / found[ways[0]])
    print("| dealt | seconds | forward passes | tokens computed |")
    print("| --- | ---: | ---: | ---: |")
    for way in ways:
        median, least, most = (summary(ratios[way], axis=0) for summary in (np.median, np.min, np.max))
        cells = [f"{m:.2f} ({low:.2f} to {high:.2f})" for m, low, high in zip(median, least, most, strict=True)]
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
