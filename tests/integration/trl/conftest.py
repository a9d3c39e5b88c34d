"""Fixtures of the adapter's tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'trl'")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import small
from trl import GRPOConfig, RLOOConfig, RLOOTrainer

from knapsack_rl import BudgetAllocator
from knapsack_rl.trl import KnapsackGRPOTrainer, KnapsackRLOOTrainer
from knapsack_rl.trl.trainer import KnapsackTrainer


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Any]:
    """Build a trainer; `options` are its config's, everything else the trainer's."""

    def build(options: dict[str, Any] | None = None, kind: type[Any] = KnapsackGRPOTrainer, **more: Any) -> Any:
        rloo = issubclass(kind, RLOOTrainer)
        settings = ({"beta": 0.0} if rloo else {}) | (options or {})
        args = small.config(tmp_path, RLOOConfig if rloo else GRPOConfig, **settings)
        if issubclass(kind, KnapsackTrainer) and "allocator" not in more:
            more["allocator"] = BudgetAllocator("knapsack", args.num_generations, max_rollouts=64)
        arguments = {
            "model": small.model(),
            "reward_funcs": small.luck,
            "args": args,
            "train_dataset": small.rows(),
            "processing_class": small.tokenizer(),
        }
        return kind(**arguments | more)

    return build


class Observing:
    """Keeps what every generation batch looked like from outside the adapter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches: list[dict[str, Any]] = []

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        self.batches.append(
            {
                "training": self.model.training,
                "rows": len(output["prompt_ids"]),
                "delivered": len(inputs),
                "prompts": list(self._logs["prompt"])[-len(inputs) :],
                "rewards": self._rewards_per_func.double().numpy().copy(),
                "advantages": output["advantages"].double().numpy().copy(),
                "logged": list(self._logs["advantages"])[-len(inputs) :],
                "tokens": output["completion_mask"].sum(dim=1).numpy(),
                "record": self.last_step,
                "metrics": {name: values[-1] for name, values in self._metrics["train"].items()},
            }
        )
        return output


class Observed(Observing, KnapsackGRPOTrainer):
    pass


@pytest.fixture
def observed() -> type[KnapsackGRPOTrainer]:
    """A KnapsackGRPOTrainer class whose `batches` hold what every generation batch looked like."""
    return Observed


class ObservedRLOO(Observing, KnapsackRLOOTrainer):
    pass


@pytest.fixture
def observed_rloo() -> type[KnapsackRLOOTrainer]:
    """The same of a KnapsackRLOOTrainer."""
    return ObservedRLOO
