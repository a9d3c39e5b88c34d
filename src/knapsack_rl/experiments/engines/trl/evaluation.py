"""Held-out accuracy in TRL's own evaluation loop, with its own sampling, and without a trace in the training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from datasets import Dataset

from knapsack_rl.experiments.engines.schedule import Sampling, Score, sampling
from knapsack_rl.experiments.engines.trl.grpo_config import evaluation_rows
from knapsack_rl.experiments.recipe.schema import Recipe
from knapsack_rl.trl import KnapsackGRPOTrainer


class EvaluatedTrainer(KnapsackGRPOTrainer):
    """KnapsackGRPOTrainer with the recipe's evaluations.

    An evaluation leaves every random state as it was, so that it does not change what is trained. (vLLM keeps a
    random state of its own, which cannot be put back.)

    Args:
        recipe: says how to evaluate.
        benchmarks: held-out problems by name.
        on_evaluation: called on every process with the step and what it found on every benchmark.
        arguments: as KnapsackGRPOTrainer takes them, with one reward function.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        benchmarks: Mapping[str, Dataset],
        on_evaluation: Callable[[int, dict[str, Score]], None],
        **arguments: Any,
    ) -> None:
        self._recipe = recipe
        self._benchmarks = benchmarks
        self._on_evaluation = on_evaluation
        self._rewards: list[torch.Tensor] | None = None  # of an evaluation under way
        super().__init__(**arguments)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Accuracy per benchmark: the mean over problems of the mean over samples, unscored ones left out."""
        step = self.state.global_step // self._recipe.training.updates_per_step
        how = sampling(self._recipe, last=step >= self._recipe.training.steps)
        scores = {}
        with _random_state_kept(), _put_in_place(self._settings(how)):
            set_seed(self.args.seed, device_specific=True)
            for name, problems in self._benchmarks.items():
                problems = how.kept(problems)
                self._rewards = []
                try:
                    super().evaluate(problems)
                    rewards = torch.cat(self._rewards)
                finally:
                    self._rewards = None
                # Several processes: the last batch was filled up with the first rows.
                groups = rewards[: len(problems) * how.samples].double().view(-1, how.samples)
                scores[name] = Score.of(groups.numpy())
            found = {f"eval_accuracy/{name}": score.accuracy for name, score in scores.items()}
            self.log(found | {f"eval_solved/{name}": score.solved for name, score in scores.items()})
        self._on_evaluation(step, scores)
        return found

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """Generate and score one batch. TRL would compute the loss as well, which nobody looks at."""
        self._prepare_inputs(inputs)
        return torch.zeros((), device=self.accelerator.device), None, None

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        rewards: torch.Tensor = super()._calculate_rewards(*args, **kwargs)  # (rollouts of all processes, 1)
        if self._rewards is not None:
            self._rewards.append(rewards[:, 0].cpu())
        return rewards

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if self._rewards is not None:  # an evaluation has no use for probabilities, only for completions
            return torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device), None, None
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )

    def _settings(self, how: Sampling) -> list[tuple[Any, str, Any]]:
        """(owner, attribute, value) of everything in TRL that decides how completions are sampled."""
        common = {
            "temperature": how.temperature,
            "top_p": how.top_p,
            "max_completion_length": how.max_completion_length,
        }
        settings = [(self, name, value) for name, value in common.items()]
        settings += [
            (self, "num_generations_eval", how.samples),
            (
                self.args,
                "per_device_eval_batch_size",
                evaluation_rows(self._recipe, how.samples, self.accelerator.num_processes),
            ),
        ]
        if self.use_vllm:
            return settings + [(self.vllm_generation, name, value) for name, value in common.items()]
        generation = {
            "temperature": how.temperature,
            "top_p": how.top_p,
            "max_new_tokens": how.max_completion_length,
        }
        settings += [(self.generation_config, name, value) for name, value in generation.items()]
        return [*settings, (self, "generation_kwargs", {**self.generation_kwargs, **generation})]


@contextmanager
def _put_in_place(settings: list[tuple[Any, str, Any]]) -> Iterator[None]:
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    for owner, name, value in settings:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    python, legacy_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():  # the CPU and all GPUs
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy_numpy)
