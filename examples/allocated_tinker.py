"""Group sizes per prompt in tinker-cookbook: a data set that asks for a plan and builders that tell what came back.

tinker-cookbook trains on whatever number of environments a group builder makes. `AllocatedDataset` wraps a data set of
its `ProblemGroupBuilder`s: each batch gets the rollouts that it would have had, distributed by the allocator.

    dataset = AllocatedDataset(dataset, kr.BudgetAllocator("knapsack", group_size=8), question_of)

The plan of a batch is made when the training loop fetches it, and outcomes are told group by group, when a group is
scored. Builders that are sent to another process (`set_rollout_executor`) cannot tell this one; there, tell the
allocator from the `TrajectoryGroup`s that come back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tinker_cookbook.rl.problem_env import ProblemGroupBuilder
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, Metrics, RLDataset, Trajectory

import knapsack_rl as kr


@dataclass(frozen=True)
class AllocatedGroup(EnvGroupBuilder):
    """A group as large as the plan says, which tells what became of it."""

    problem: ProblemGroupBuilder
    prompt: str
    allocator: kr.BudgetAllocator

    async def make_envs(self) -> Sequence[Env]:
        """As many environments as the plan says."""
        return await self.problem.make_envs()

    async def compute_group_rewards(
        self, trajectory_group: list[Trajectory], env_group: Sequence[Env]
    ) -> list[tuple[float, Metrics]]:
        """The problem's own; a rollout is a success when its last step was correct."""
        correct = [trajectory.transitions[-1].metrics["correct"] for trajectory in trajectory_group]
        self.allocator.tell([self.prompt], [sum(value > 0 for value in correct)], [len(correct)])
        return await self.problem.compute_group_rewards(trajectory_group, env_group)

    def logging_tags(self) -> list[str]:
        """Those of the problem."""
        return self.problem.logging_tags()


class AllocatedDataset(RLDataset):
    """A data set whose batches have group sizes that the allocator decides.

    Args:
        dataset: batches of `ProblemGroupBuilder`s; their own `num_envs` is replaced.
        allocator: its `group_size` is the mean.
        prompt_of: what names a problem, the same in every epoch; `question_of` asks its environment.
    """

    def __init__(
        self, dataset: RLDataset, allocator: kr.BudgetAllocator, prompt_of: Callable[[ProblemGroupBuilder], str]
    ) -> None:
        self.dataset, self.allocator, self.prompt_of = dataset, allocator, prompt_of

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """The batch with its plan."""
        problems = self.dataset.get_batch(index)
        prompts = [self.prompt_of(problem) for problem in problems]
        plan = self.allocator.ask(prompts)
        return [
            AllocatedGroup(replace(problem, num_envs=int(count)), prompt, self.allocator)
            for problem, prompt, count in zip(problems, prompts, plan.rollouts, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.dataset)


def question_of(problem: ProblemGroupBuilder) -> str:
    """The question that a problem's environments ask."""
    return problem.env_thunk().get_question()
