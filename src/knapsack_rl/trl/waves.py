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

from knapsack_rl.trl import compatibility

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
    lengths: torch.Tensor
    """Of all processes, in the same order: (rollouts, 2), tokens that were generated, and whether it was cut off."""
    metrics: dict[str, float]
    """What `_generate` logged, over all processes."""
    logged: dict[str, list[float]]
    """What reward functions of this process gave to `log_metric`."""
    extras: dict[str, list[Any]]
    """What they gave to `log_extra`: for each column a value a row."""


class _Rewarded(Exception):
    """Leaves TRL's method: a wave has its rewards, and everything after them is for the whole step."""

    def __init__(self, generated: tuple[Any, ...], rewards: torch.Tensor) -> None:
        self.generated = generated
        self.rewards = rewards


class WavesTrainer(Mixin):
    """A step may be generated and rewarded in parts."""

    num_generations: int
    _rewards_per_func = torch.empty(0)  # of the newest batch, all processes: (rollouts, reward functions)
    _lengths_per_rollout = torch.empty(0, 2, dtype=torch.int64)  # of the newest batch, as in `Wave`
    _playing: list[Row] | None = None
    _replayed: tuple[Any, ...] | None = None
    _calculate_rewards: Any

    def _play(self, rows: list[Row]) -> Wave:
        """Generate and reward one rollout for each row; every process must bring the same number, one or more."""
        logged = self._metrics["train"]
        self._metrics["train"] = defaultdict(list)
        self._playing = rows
        try:
            self._generate_groups(rows, group_size=1)
        except _Rewarded as end:
            metrics = {name: values[-1] for name, values in self._metrics["train"].items()}
            said = dict(self._pending_metrics), dict(self._pending_extra_logs)
            return Wave(rows, end.generated, end.rewards, self._lengths_per_rollout, metrics, *said)
        finally:
            self._metrics["train"] = logged
            self._playing = None
            self._pending_metrics.clear()
            self._pending_extra_logs.clear()
        raise RuntimeError("TRL's _generate_and_score_completions did not call _generate.")

    def _replay(self, waves: Sequence[Wave]) -> dict[str, Any]:
        """TRL's output for all rows of the step: process by process, and within a process wave by wave."""
        self._replayed = merge_generated([wave.generated for wave in waves], [len(wave.rows) for wave in waves])
        processes = self.accelerator.num_processes
        self._rewards_per_func = merge_gathered([wave.rewards for wave in waves], processes)
        self._lengths_per_rollout = merge_gathered([wave.lengths for wave in waves], processes)
        sizes = [len(wave.rewards) for wave in waves]
        for name, number in merge_metrics([wave.metrics for wave in waves], sizes).items():
            if name == "num_tokens":  # a running total, of which TRL keeps the newest
                self._metrics["train"][name] = [number]
            else:
                self._metrics["train"][name].append(number)
        self._pending_metrics.update(merge_logged([wave.logged for wave in waves], sizes))
        self._pending_extra_logs.update(merge_extras([wave.extras for wave in waves], [len(w.rows) for w in waves]))
        try:
            return self._generate_groups([row for wave in waves for row in wave.rows], group_size=1)
        finally:
            self._replayed = None

    def _generate_groups(self, rows: list[Row], group_size: int) -> dict[str, Any]:
        """TRL's generation and scoring, with `group_size` adjacent rows to a group."""
        configured, self.num_generations = self.num_generations, group_size
        own = vars(self).get("_calculate_rewards")
        calculate = self._calculate_rewards  # a subclass's, whose rewards are those that count

        def once(*args: Any, **kwargs: Any) -> torch.Tensor:
            if self._replayed is None:
                rewards = calculate(*args, **kwargs)
                rollouts = len(rows) * self.accelerator.num_processes
                compatibility.check_rewards(rewards.cpu().double().numpy(), self.reward_func_names, rollouts)
                self._rewards_per_func = rewards
            return self._rewards_per_func

        self._calculate_rewards = once
        try:
            return super()._generate_and_score_completions(rows)
        finally:
            self.num_generations = configured
            del self._calculate_rewards
            if own is not None:
                self._calculate_rewards = own

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        if self._replayed is not None:
            return self._replayed
        generated: tuple[Any, ...] = super()._generate(prompts)
        completion_ids, tool_mask, completions, extra_fields = self._completions(generated)
        counted = [len(ids) for ids in completion_ids] if tool_mask is None else [sum(mask) for mask in tool_mask]
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        cut_off = [ids[-1] not in ends for ids in completion_ids]  # as TRL tells it
        lengths = torch.tensor([*zip(counted, cut_off, strict=True)], device=self.accelerator.device)
        self._lengths_per_rollout = self.accelerator.gather(lengths)
        if self._playing is None:
            return generated
        for i, row in enumerate(self._playing):  # as TRL does for reward functions
            for name, values in extra_fields.items():
                if not isinstance(values, list):
                    row[name] = values
                elif i < len(values):
                    row[name] = values[i]
        raise _Rewarded(generated, self._calculate_rewards(self._playing, prompts, completions, completion_ids))

    def _completions(self, generated: tuple[Any, ...]) -> tuple[list[Any], Any, list[Any], dict[str, Any]]:
        """Of what TRL's `_generate` returns: the completions' tokens, which of them no tool wrote (None: all), the
        completions, and a rollout function's extra fields.
        """  # noqa: D205
        raise NotImplementedError


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


def merge_gathered(waves: Sequence[torch.Tensor], processes: int) -> torch.Tensor:
    """What there is of each rollout of a step, process by process, from the same of its waves, each process by process.

    Args:
        waves: tensors whose first dimension is the rollouts.
        processes: how many there are; each has the same number of rollouts in a wave.
    """
    parts = [wave.reshape(processes, -1, *wave.shape[1:]) for wave in waves]
    return torch.cat(parts, dim=1).flatten(0, 1)


def merge_logged(waves: Sequence[dict[str, list[float]]], sizes: Sequence[int]) -> dict[str, list[float]]:
    """What reward functions would have given to `log_metric`, so that its mean is that over all rollouts.

    TRL takes the mean over calls, and in a step of its own each call is about as many rollouts. Those of a wave are
    about as many as it has, so each of its values stands there so often.

    Args:
        waves: what they gave for each wave.
        sizes: rollouts of each wave, over all processes.
    """
    merged: defaultdict[str, list[float]] = defaultdict(list)
    for wave, size in zip(waves, sizes, strict=True):
        for name, values in wave.items():
            merged[name] += values * size
    return merged


def merge_extras(waves: Sequence[dict[str, list[Any]]], sizes: Sequence[int]) -> dict[str, list[Any]]:
    """What they would have given to `log_extra`: a value for each row of a process, None where a wave has none.

    Args:
        waves: what they gave for each wave.
        sizes: rows of each wave.
    """
    names = {name for wave in waves for name in wave}
    return {
        name: [value for wave, size in zip(waves, sizes, strict=True) for value in wave.get(name, [None] * size)]
        for name in names
    }


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
