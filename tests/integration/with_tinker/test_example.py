"""The example for tinker-cookbook with its real types and its own rollouts; only the service that samples is ours."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tinker_cookbook", reason="tinker-cookbook is installed in an environment of its own")

import tinker
from tinker_cookbook.completers import TokenCompleter, TokensWithLogprobs
from tinker_cookbook.rl.data_processing import compute_advantages
from tinker_cookbook.rl.problem_env import ProblemGroupBuilder
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, RLDataset, StepResult

import knapsack_rl as kr

RATES = [0.0, 0.1, 0.3, 0.5, 0.9, 1.0, 0.05, 0.7]


def example() -> Any:
    path = Path(__file__).parents[3] / "examples" / "allocated_tinker.py"
    spec = importlib.util.spec_from_file_location("allocated_tinker", path)
    module = sys.modules["allocated_tinker"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Coin(Env):
    """A problem whose question is its number; token 1 is the right answer."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get_question(self) -> str:
        return f"problem {self.number}"

    async def initial_observation(self) -> tuple[Any, list[str]]:
        return tinker.ModelInput.from_ints([self.number]), []

    async def step(self, action: list[int], *, extra: Any = None) -> StepResult:
        right = float(action[0] == 1)
        return StepResult(right, True, tinker.ModelInput.empty(), [], metrics={"correct": right})


class Coins(RLDataset):
    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        return [ProblemGroupBuilder(lambda number=number: Coin(number), num_envs=8) for number in range(len(RATES))]

    def __len__(self) -> int:
        return 3


class Policy(TokenCompleter):
    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    async def __call__(self, model_input: Any, stop: Any, *, max_tokens: int | None = None) -> TokensWithLogprobs:
        rate = RATES[model_input.to_ints()[0]]
        return TokensWithLogprobs(tokens=[int(self.random.random() < rate)], maybe_logprobs=[0.0], stop_reason="stop")


def test_batches_keep_their_budget_and_beliefs_are_what_the_rollouts_showed() -> None:
    allocator = kr.BudgetAllocator("knapsack", group_size=8)
    dataset, policy = example().AllocatedDataset(Coins(), allocator, example().question_of), Policy()
    prompts = [f"problem {number}" for number in range(len(RATES))]
    for index in range(len(dataset)):
        planned = allocator.ask(prompts).rollouts.tolist()
        groups = [asyncio.run(do_group_rollout(builder, policy)) for builder in dataset.get_batch(index)]
        rewards = [np.array(group.get_total_rewards()) for group in groups]
        assert [len(rewards_of_group) for rewards_of_group in rewards] == planned
        assert sum(planned) == 8 * len(RATES)
        assert allocator.success_rates(prompts).tolist() == pytest.approx([group.mean() for group in rewards])
        for advantages, rewards_of_group in zip(compute_advantages(groups), rewards, strict=True):
            assert advantages.tolist() == pytest.approx(rewards_of_group - rewards_of_group.mean(), abs=1e-6)
    assert max(planned) > 8 > min(planned)
