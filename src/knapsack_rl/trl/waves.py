"""Several generations in one step of TRL, which sees the step as if it had been generated at once.

TRL's `_generate_and_score_completions` prepares prompts, generates, pads, computes log probabilities, rewards and
advantages, and logs. Of a wave, `_play` has it prepare, generate and reward, and leaves it there; when all waves are
played, `_replay` has it do everything once, with what the waves brought in place of generation and rewards. Padding,
loss normalisation and logs are therefore TRL's own, over all rows of the step.

This holds for GRPOTrainer and for RLOOTrainer, and so does the rest of the adapter, but for the few methods of
`KnapsackGRPOTrainer` and `KnapsackRLOOTrainer`. All other classes are mixins: they stand before one of TRL's two among
the bases of these, and `super()` leads to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

Row = dict[str, Any]

Mixin: Any = object
"""The base of a class that stands before one of TRL's trainers, whose attributes it uses."""


@dataclass(frozen=True)
class Wave:
    """What one wave brought."""

    rows: list[Row]
    """Of this process."""
    generated: tuple[Any, ...]
    """What TRL's `_generate` returned for them."""
    rewards: torch.Tensor
    """Of all processes, in order of their rank: (rollouts, reward functions)."""
    metrics: dict[str, float]
    """What `_generate` logged, over all processes."""


class _Rewarded(Exception):
    """Leaves TRL's method: a wave has its rewards, and everything after them is for the whole step."""

    def __init__(self, generated: tuple[Any, ...], rewards: torch.Tensor) -> None:
        self.generated = generated
        self.rewards = rewards


class WavesTrainer(Mixin):
    """A step may be generated and rewarded in parts."""

    num_generations: int
    _rewards_per_func = torch.empty(0)  # of the newest batch, all processes: (rollouts, reward functions)
    _playing: list[Row] | None = None
    _replayed: tuple[Any, ...] | None = None

    def _play(self, rows: list[Row]) -> Wave:
        """Generate and reward one rollout for each row; every process must bring the same number, one or more."""
        logged = self._metrics["train"]
        self._metrics["train"] = defaultdict(list)
        self._playing = rows
        try:
            self._generate_groups(rows, group_size=1)
        except _Rewarded as end:
            metrics = {name: values[-1] for name, values in self._metrics["train"].items()}
            return Wave(rows, end.generated, end.rewards, metrics)
        finally:
            self._metrics["train"] = logged
            self._playing = None
        raise RuntimeError("TRL's _generate_and_score_completions did not call _generate.")

    def _replay(self, waves: Sequence[Wave]) -> dict[str, Any]:
        """TRL's output for all rows of the step: process by process, and within a process wave by wave."""
        self._replayed = merge_generated([wave.generated for wave in waves], [len(wave.rows) for wave in waves])
        self._rewards_per_func = merge_rewards([wave.rewards for wave in waves], self.accelerator.num_processes)
        sizes = [len(wave.rewards) for wave in waves]
        for name, number in merge_metrics([wave.metrics for wave in waves], sizes).items():
            if name == "num_tokens":  # a running total, of which TRL keeps the newest
                self._metrics["train"][name] = [number]
            else:
                self._metrics["train"][name].append(number)
        try:
            return self._generate_groups([row for wave in waves for row in wave.rows], group_size=1)
        finally:
            self._replayed = None

    def _generate_groups(self, rows: list[Row], group_size: int) -> dict[str, Any]:
        """TRL's generation and scoring, with `group_size` adjacent rows to a group."""
        configured, self.num_generations = self.num_generations, group_size
        try:
            return super()._generate_and_score_completions(rows)
        finally:
            self.num_generations = configured

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        if self._replayed is not None:
            return self._replayed
        generated: tuple[Any, ...] = super()._generate(prompts)
        if self._playing is None:
            return generated
        completion_ids, completions, extra_fields = self._completions(generated)
        for i, row in enumerate(self._playing):  # as TRL does for reward functions
            for name, values in extra_fields.items():
                if not isinstance(values, list):
                    row[name] = values
                elif i < len(values):
                    row[name] = values[i]
        raise _Rewarded(generated, self._calculate_rewards(self._playing, prompts, completions, completion_ids))

    def _completions(self, generated: tuple[Any, ...]) -> tuple[list[Any], list[Any], dict[str, Any]]:
        """Of what TRL's `_generate` returns: the completions' tokens, the completions, a rollout function's extras."""
        raise NotImplementedError

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._replayed is None:
            self._rewards_per_func = super()._calculate_rewards(*args, **kwargs)
        return self._rewards_per_func


def merge_generated(waves: Sequence[tuple[Any, ...]], sizes: Sequence[int]) -> tuple[Any, ...]:
    """What `_generate` would have returned for all rows of a process at once.

    Args:
        waves: what it returned for each wave: lists with one entry a row, None where there is nothing of a kind, and a
            mapping of a rollout function's extra fields, which are such lists or a single value for all rows.
        sizes: rows of each wave.
    """
    return tuple(_merged(parts, sizes) for parts in zip(*waves, strict=True))


def _merged(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    if any(isinstance(part, dict) for part in parts):
        names = sorted({name for part in parts for name in part})
        return {name: _merged([part.get(name) for part in parts], sizes) for name in names}
    if any(isinstance(part, list) for part in parts):
        filled = [[None] * size if part is None else part for part, size in zip(parts, sizes, strict=True)]
        return [entry for part in filled for entry in part]
    return parts[-1]


def merge_rewards(waves: Sequence[torch.Tensor], processes: int) -> torch.Tensor:
    """Rewards of a whole step, process by process, from those of its waves, each of them process by process."""
    return torch.cat([rewards.reshape(processes, -1, rewards.shape[1]) for rewards in waves], dim=1).flatten(0, 1)


def merge_metrics(waves: Sequence[dict[str, float]], sizes: Sequence[int]) -> dict[str, float]:
    """What `_generate` would have logged for all rollouts at once.

    Args:
        waves: what it logged for each wave.
        sizes: rollouts of each wave, over all processes.
    """
    ended = [size * (1.0 - wave.get("completions/clipped_ratio", 0.0)) for wave, size in zip(waves, sizes, strict=True)]
    calls = [size * wave.get("tools/call_frequency", 0.0) for wave, size in zip(waves, sizes, strict=True)]
    weights: defaultdict[str, list[float]] = defaultdict(lambda: [float(size) for size in sizes])
    weights |= {f"completions/{kind}_terminated_length": ended for kind in ("mean", "min", "max")}
    weights |= {"tools/failure_frequency": calls}
    merged = {}
    for name in waves[-1]:
        # Waves that nothing was counted in say 0, which no minimum or mean may take up.
        counted = [(wave[name], weight) for wave, weight in zip(waves, weights[name], strict=True) if weight > 0.0]
        numbers = [number for number, _ in counted]
        if name == "num_tokens":
            merged[name] = waves[-1][name]
        elif not counted:
            merged[name] = 0.0
        elif "/min_" in name:
            merged[name] = min(numbers)
        elif "/max_" in name:
            merged[name] = max(numbers)
        else:
            merged[name] = sum(number * weight for number, weight in counted) / sum(weight for _, weight in counted)
    return merged
