"""What `skip_idle` and waves cost and save in TRL on a GPU, checked against float64 on the CPU; writes one JSON.

    bash benchmarks/gpu/trl.sh [--output gpu-trl.json] [--dry]

Models of 21M to 201M parameters in bf16 and a tokenizer are made on the spot. Cases come in order of what they say
most. Each gets its part of what is left of the seven minutes, and those that find no time are listed. The file is
written after every case. Its fields, where a spread is {"median", "low", "high"}, the last two being quartiles:

    environment     device, versions of python, torch, trl, transformers and knapsack_rl, whether it was a dry run
    seconds         that the whole run took
    checks          advantages: largest_error against their formula in float64, of uneven groups; limit; passed
                    updates: for each precision the error of plain TRL's gradient (plain) and of ours with skip_idle
                    (ours) against plain TRL's in float64 on the CPU, over the same rollouts: norm of the difference
                    over the norm; limit of ours, which is twice plain TRL's error and 1e-5; passed
    skip_idle       a list: model, parameters, tokens a rollout, rollouts a step, micro-batches an update
                    (accumulation), wanted and real share of rollouts with gradient (wanted, live), pairs; plain_ms and
                    ours_ms of a step, spreads; quotient of the two, and training_quotient without generation, spreads;
                    training, generation not counted, as part of plain TRL's step; plain_mib and ours_mib, peaks
    waves           a list: as above, for the strategy `adaptive`: one_shot_ms, waves_ms, quotient, one_shot_mib,
                    waves_mib, waves (how many)
    left_out        a list: case, why

A peak is torch's largest allocated memory in a step, less what was allocated before it. On the CPU it is the largest
resident memory of the process so far (`training_step.py --memory` has fresh processes). Exits with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import numpy as np
import torch
from trl import GRPOTrainer

import knapsack_rl
from knapsack_rl import BudgetAllocator
from knapsack_rl.trl import KnapsackGRPOTrainer

from training_step import (
    SMALL,
    Ours,
    Size,
    Timed,
    accumulate,
    build,
    ease,
    in_pairs,
    mixed,
    resident,
    rows_of,
    seconds_of_a_step,
    training_seconds,
)

SIZES = {
    "21M": Size(layers=3, width=512, heads=8, vocabulary=8192),
    "79M": Size(layers=7, width=768, heads=12, vocabulary=8192),
    "201M": Size(layers=11, width=1024, heads=16, vocabulary=8192),
}
MINUTES = 7.0


class Case(NamedTuple):
    """One line of the results."""

    kind: str
    model: str
    tokens: int
    prompts: int
    accumulation: int
    wanted: float | None = None

    @property
    def name(self) -> str:
        """What it is called where it is left out."""
        share = "" if self.wanted is None else f", ratio {self.wanted}"
        return f"{self.kind}: {self.model}, {self.tokens} tokens, accumulation {self.accumulation}{share}"


def cases(dry: bool) -> list[Case]:
    if dry:
        return [Case("skip_idle", "tiny", 4, 4, 2, 0.4), Case("waves", "tiny", 4, 4, 1)]
    shares = (0.4, 0.2, 0.6)
    return [
        *(Case("skip_idle", "79M", 64, 32, 4, share) for share in shares),
        Case("waves", "79M", 64, 32, 4),
        *(Case("skip_idle", "201M", 64, 32, 4, share) for share in shares),
        *(Case("skip_idle", "79M", 64, 32, 1, share) for share in shares),
        *(Case("skip_idle", "21M", 64, 32, 4, share) for share in shares),
        Case("waves", "201M", 64, 32, 4),
        Case("skip_idle", "79M", 256, 32, 4, 0.4),
    ]


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def peak(trainer: GRPOTrainer) -> float:
    """Largest memory that torch allocates in a step, less what it had before, MiB; on the CPU the process's so far."""
    if trainer.accelerator.device.type != "cuda":
        return resident()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds_of_a_step(trainer, rows_of(trainer))
    return (torch.cuda.max_memory_allocated() - before) / 2**20


class Kept(KnapsackGRPOTrainer):
    """Keeps what a generation brought."""

    def _advantages(self, rewards: Any, done: Any) -> Any:
        self.rewards, self.groups = rewards[:, 0], done.groups
        return super()._advantages(rewards, done)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.kept = super()._generate_and_score_completions(inputs)
        return self.kept


class Replayed(GRPOTrainer):  # type: ignore[misc]  # which is not typed
    """Plain TRL, but with the rollouts of another trainer."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        exact = self.model.dtype == torch.float64
        found = {name: value.to(self.accelerator.device) for name, value in self.replay.items()}
        return {name: value.double() if exact and value.is_floating_point() else value for name, value in found.items()}


def gradient(trainer: GRPOTrainer) -> torch.Tensor:
    accumulate(trainer, rows_of(trainer))
    return torch.cat([parameter.grad.flatten().double().cpu() for parameter in trainer.model.parameters()])


def checks(size: Size, folder: str, cuda: bool) -> dict[str, Any]:
    """Uneven groups: advantages and gradients on this device against float64 on the CPU, over the same rollouts."""
    common: dict[str, Any] = {"prompts": 8, "length": 16, "folder": folder, "accumulation": 2, "size": size}
    advantages, updates = [], []
    for dtype in (torch.float32, torch.bfloat16):
        here = common | {"dtype": dtype, "use_cpu": not cuda}
        ours = build(Kept, **here, allocator=BudgetAllocator("knapsack", group_size=8))
        seconds_of_a_step(ours, rows_of(ours))  # the first plan is even
        weights = {name: value.clone() for name, value in ours.model.state_dict().items()}
        found = {"ours": gradient(ours)}
        for name, where in (("plain", here), ("exact", common | {"dtype": torch.float64})):
            other = build(Replayed, **where)
            other.model.load_state_dict(weights)
            other.replay = ours.kept
            found[name] = gradient(other)
        advantages.append(error_of_advantages(ours))
        size_of = found["exact"].norm()
        errors = {name: float((found[name] - found["exact"]).norm() / size_of) for name in ("plain", "ours")}
        limit = 2.0 * errors["plain"] + 1e-5
        precision = str(dtype).removeprefix("torch.")
        updates.append({"precision": precision, **errors, "limit": limit, "passed": errors["ours"] <= limit})
    largest, limit = max(advantages), 1e-5
    return {
        "advantages": {"largest_error": largest, "limit": limit, "passed": largest <= limit},
        "updates": updates,
    }


def error_of_advantages(trainer: Kept) -> float:
    """Largest error of a clipped (reward - mean) / (deviation + 1e-6), equation 3 of the paper."""
    if trainer.last_step is None or len(set(trainer.last_step.plan.rollouts.tolist())) == 1:
        raise RuntimeError("expected uneven groups")
    exact = np.zeros(len(trainer.groups))
    for group in np.unique(trainer.groups):
        rewards = trainer.rewards[trainer.groups == group]
        if rewards.min() < rewards.max():
            exact[trainer.groups == group] = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
    found = trainer.kept["advantages"].double().cpu().numpy()
    return float(np.abs(found - np.clip(exact, -5.0, 5.0)).max())


def measured(case: Case, sizes: dict[str, Size], folder: str, cuda: bool, pairs: int, until: float) -> dict[str, Any]:
    """Both trainers of a case, step by step in turns; then a step of each for its peak of memory."""
    where: dict[str, Any] = {
        "size": sizes[case.model],
        "use_cpu": not cuda,
        "dtype": torch.bfloat16 if cuda else torch.float32,
        "reward": ease if case.wanted is None else mixed(case.wanted),
    }
    common = (case.prompts, case.tokens, folder, case.accumulation)
    if case.kind == "skip_idle":
        names = ("plain", "ours")
        first = build(Timed, *common, **where)
        second = build(Ours, *common, **where, allocator=BudgetAllocator("uniform", group_size=8))
    else:
        names = ("one_shot", "waves")
        first, second = (
            build(Ours, *common, **where, allocator=BudgetAllocator("adaptive", group_size=8), waves=waves)
            for waves in (False, True)
        )
    taken = in_pairs(first, second, pairs, until)
    whole = tuple(zip(*taken, strict=True))
    found: dict[str, Any] = {
        "model": case.model,
        "parameters": sum(parameter.numel() for parameter in first.model.parameters()),
        "tokens": case.tokens,
        "rollouts": 8 * case.prompts,
        "accumulation": case.accumulation,
        "pairs": len(taken),
        "quotient": spread([two / one for one, two in taken]),
    }
    if case.kind == "skip_idle":
        found |= {"wanted": case.wanted, "live": second._metrics["train"]["effective_gradient_ratio"][-1]}
        training = training_seconds(first, whole[0]), training_seconds(second, whole[1])
        found["training"] = median(part / step for part, step in zip(training[0], whole[0], strict=True))
        found["training_quotient"] = spread([two / one for one, two in zip(*training, strict=True)])
    else:
        found["waves"] = second._metrics["train"]["waves"][-1]
    for name, steps, trainer in zip(names, whole, (first, second), strict=True):
        found[f"{name}_ms"] = spread([1e3 * seconds for seconds in steps])
        found[f"{name}_mib"] = peak(trainer)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu-trl.json"))
    parser.add_argument("--dry", action="store_true", help="a tiny model and two pairs, on the CPU")
    chosen = parser.parse_args()
    started = time.monotonic()
    if not chosen.dry and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --dry runs on the CPU")
    warnings.simplefilter("ignore")
    cuda, sizes = not chosen.dry, {"tiny": SMALL} if chosen.dry else SIZES
    results: dict[str, Any] = {
        "environment": {
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "trl", "transformers")},
            "knapsack_rl": knapsack_rl.__version__,
            "dry": chosen.dry,
        },
        "skip_idle": [],
        "waves": [],
        "left_out": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        results["checks"] = checks(next(iter(sizes.values())), folder, cuda)
        waiting = cases(chosen.dry)
        for position, case in enumerate(waiting):
            now = time.monotonic()
            left = started + 60.0 * MINUTES - now
            if left <= 0.0:
                results["left_out"].append({"case": case.name, "why": "no time"})
            else:
                until = now + left / (len(waiting) - position)
                try:
                    results[case.kind].append(measured(case, sizes, folder, cuda, 2 if chosen.dry else 20, until))
                except torch.OutOfMemoryError:
                    results["left_out"].append({"case": case.name, "why": "out of memory"})
                gc.collect()  # trainers refer to themselves
            results["seconds"] = time.monotonic() - started
            chosen.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    passed = [results["checks"]["advantages"], *results["checks"]["updates"]]
    sys.exit(0 if all(check["passed"] for check in passed) else "a check failed: see checks in the JSON")


if __name__ == "__main__":
    main()
