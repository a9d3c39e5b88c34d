"""TRL's real vLLM code with the engine behind it replaced: a row never gets another prompt's completion.

vLLM needs a GPU. What could go wrong here is the pairing of prompts and completions, which is TRL's code and ours.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from trl.generation import vllm_generation

from knapsack_rl import BudgetAllocator


class EchoServer:
    """A vLLM server whose completions repeat their prompt, so that a wrong pairing shows."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, int]] = []

    def generate(self, prompts: list[list[int]], n: int = 1, **_: Any) -> dict[str, Any]:
        self.requests.append((len(prompts), n))
        completions = [ids for ids in prompts for _ in range(n)]
        return {
            "prompt_ids": prompts,
            "completion_ids": completions,
            "logprobs": [[[-1.0] for _ in ids] for ids in completions],
        }


class EchoEngine:
    """vLLM in the same process, with the same habit."""

    def generate(self, prompts: list[dict[str, Any]], sampling_params: Any, use_tqdm: bool) -> list[Any]:
        assert sampling_params["n"] == 1
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                outputs=[SimpleNamespace(token_ids=prompt["prompt_token_ids"], logprobs=None)],
            )
            for prompt in prompts
        ]


def with_engine(trainer, **engine):
    """Switch a built trainer to vLLM without starting one."""
    generation = object.__new__(vllm_generation.VLLMGeneration)
    settings = {
        "accelerator": trainer.accelerator,
        "model": trainer.model,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.0,
        "max_completion_length": 4,
        "logprobs": 0,
        "structured_outputs_regex": None,
        "generation_kwargs": {},
        "enable_sleep_mode": False,
        "tensor_parallel_size": 1,
        "sync_weights": lambda: None,
    }
    for name, value in (settings | engine).items():
        setattr(generation, name, value)
    trainer.use_vllm = True
    trainer.vllm_importance_sampling_correction = False
    trainer._last_loaded_step = -1
    trainer.vllm_generation = generation
    return trainer


def echoes(prompts, completions, **_):
    assert all(completion == prompt for prompt, completion in zip(prompts, completions, strict=True))
    return [float(j in (0, 9, 10)) for j in range(len(prompts))]


def test_server_mode_never_hands_a_row_another_prompts_completion(make):
    server = EchoServer()
    trainer = make({"max_steps": 9}, reward_funcs=echoes)
    with_engine(trainer, mode="server", vllm_client=server).train()
    assert len(set(trainer.last_step.plan.rollouts)) > 1
    assert server.requests[0] == (4, 4)  # an even plan is one request a prompt, as in TRL
    assert (16, 1) in server.requests  # an uneven one is one request a rollout


def test_server_mode_answers_every_wave_of_a_step_and_only_once(make):
    server = EchoServer()
    trainer = make({"max_steps": 3}, reward_funcs=echoes, allocator=BudgetAllocator("pilot-spread", group_size=4))
    with_engine(trainer, mode="server", vllm_client=server).train()
    assert server.requests == [(8, 1)] * 6  # two for everyone, and the rest, in each of three steps


@pytest.mark.parametrize("strategy", ["knapsack", "adaptive"])
def test_colocated_mode_pairs_prompts_and_completions(make, monkeypatch, strategy):
    monkeypatch.setattr(vllm_generation, "SamplingParams", dict, raising=False)
    monkeypatch.setattr(vllm_generation, "extract_logprobs", lambda outputs: ([[[-1.0]] * 4 for _ in outputs], None))
    trainer = make({"max_steps": 9}, reward_funcs=echoes, allocator=BudgetAllocator(strategy, group_size=4))
    with_engine(trainer, mode="colocate", llm=EchoEngine()).train()
    assert len(set(trainer.last_step.plan.rollouts)) > 1


def test_the_plain_pairing_would_have_failed(make):
    """What the adapter protects from: TRL's own call with a group size of four and groups of other sizes."""
    trainer = make()
    generation = with_engine(trainer, mode="server", vllm_client=EchoServer()).vllm_generation
    prompts = [[word] for word, count in ((2, 2), (3, 7), (4, 3), (5, 4)) for _ in range(count)]
    _, completions, _, _ = generation.generate(prompts, None, 4, nullcontext())
    assert sum(a != b for a, b in zip(prompts, completions, strict=True)) == 5
