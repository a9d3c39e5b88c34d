"""What a step of verl takes on a GPU with the trainer mode `knapsack` and without; writes one JSON.

    bash benchmarks/gpu/verl.sh [--output gpu-verl.json] [--dry]

A model of 60M parameters in bf16 and a tokenizer are made on the spot. Each arm is a run of verl of its own, on one
GPU, with 64 prompts x 8 rollouts a step. Its first steps are left out. An arm gets its part of what is left of the
seven minutes; what it logged by then counts. Rewards depend on the first letters of an answer, so that the success
rates of prompts go from 0 to 1. The file is written after every arm. Its fields, where a spread is {"median", "low",
"high"}, the last two being quartiles:

    environment     device, versions of python, torch, verl, transformers, the engine and knapsack_rl; whether a dry run
    seconds         that the whole script took
    arms            a list: mode, strategy (null for verl's own mode), steps; step, generation and update in seconds,
                    spreads (verl's timing_s/step, /gen, /update_actor); rollouts and trained_rows of a step, means
                    (trained_rows is rollouts where nothing is left out); gpu_gib, the largest memory that torch
                    allocated in the actor (perf/max_memory_allocated_gb); host_gib, memory in use on the machine at
                    most (perf/cpu_memory_used_gb); over_sync, median step over that of `sync`
    left_out        a list: arm, why

On the CPU (`--dry`) the engine is the one of the tests. Its times say nothing about a GPU. Exits with 1 if an arm that
ran failed, or if its budget was not met.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any, NamedTuple

import torch

import knapsack_rl

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "integration" / "with_verl"))
import runs

MINUTES = 7.0
WARM_UP = 3  # steps of an arm that are not counted: kernels are compiled, the first plan is even
REWARD = '''
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **more):
    """1 for a share of all first words that is the ground truth in sixteenths."""
    return float(sum(map(ord, solution_str[:8])) % 16 < int(ground_truth))
'''


class Arm(NamedTuple):
    """A run of verl."""

    mode: str
    strategy: str | None = None

    @property
    def name(self) -> str:
        """What it is called where it is left out."""
        return self.mode if self.strategy is None else f"{self.mode}, {self.strategy}"


ARMS = (Arm("sync"), Arm("knapsack", "uniform"), Arm("knapsack", "adaptive"))


def make_model(path: Path) -> None:
    """60M random weights, half of them in embeddings, whose tokens are letters and 8,000 made-up words."""
    runs.make_model(
        path,
        letters=[*"abcdefghijklmnop", *(f"<{number}>" for number in range(8000))],
        dtype="bfloat16",
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=1024,
    )


def make_data(path: Path) -> None:
    """256 prompts, as many of each success rate."""
    import pandas as pd

    letters = "abcdefghijklmnop"
    rows = [
        {
            "data_source": "words",
            "prompt": [{"role": "user", "content": letters[number // 16] + letters[number % 16]}],
            "ability": "words",
            "reward_model": {"style": "rule", "ground_truth": str(number % 17)},
            "extra_info": {"index": number},
        }
        for number in range(256)
    ]
    pd.DataFrame(rows).to_parquet(path)


def on_a_gpu(folder: Path, arm: Arm, engine: str, steps: int) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a run."""
    if not (folder / "model").exists():
        make_model(folder / "model")
        make_data(folder / "train.parquet")
        (folder / "reward.py").write_text(REWARD)
    settings = [
        f"data.train_files={folder / 'train.parquet'}",
        f"data.val_files={folder / 'train.parquet'}",
        "data.train_batch_size=64",
        "data.max_prompt_length=16",
        "data.max_response_length=256",
        f"reward.custom_reward_function.path={folder / 'reward.py'}",
        f"actor_rollout_ref.model.path={folder / 'model'}",
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.actor.strategy=fsdp2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=64",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=64",
        "actor_rollout_ref.actor.use_kl_loss=False",
        "actor_rollout_ref.actor.use_torch_compile=False",
        f"actor_rollout_ref.rollout.name={engine}",
        "actor_rollout_ref.rollout.n=8",
        "actor_rollout_ref.rollout.gpu_memory_utilization=0.4",
        "actor_rollout_ref.rollout.enforce_eager=True",  # seconds of start-up in place of a minute
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=64",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "algorithm.adv_estimator=grpo",
        "algorithm.use_kl_in_reward=False",
        "trainer.nnodes=1",
        "trainer.n_gpus_per_node=1",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.total_epochs=1000",
        f"trainer.total_training_steps={steps}",
        f"trainer.default_local_dir={folder / 'checkpoints'}",
        "trainer.logger=[file]",
        f"trainer.v1.trainer_mode={arm.mode}",
        "+ray_kwargs.ray_init.address=local",
        "+ray_kwargs.ray_init.include_dashboard=False",
        f"+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH={folder / 'metrics.jsonl'}",
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(knapsack_rl.__file__).parents[1])}
    return [sys.executable, "-m", "verl.trainer.main_ppo", *settings], environment


def run(folder: Path, arm: Arm, engine: str, seconds: float) -> tuple[int | None, str]:
    """The exit code (None for one that was out of time) and the last lines of a run, whose metrics are in `folder`."""
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    dry = engine == "cpu"
    if dry:
        command, environment = runs.prepared(folder, mode=arm.mode, steps=2)
    else:
        command, environment = on_a_gpu(folder, arm, engine, steps=30)
    if arm.strategy is not None:
        command.append(f"+trainer.v1.knapsack.strategy={arm.strategy}")
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()  # Ray's processes end with their driver
            process.wait()
            code = None
        return code, (folder / "output").read_text(errors="replace")[-3000:]


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "low": low, "high": high}


def summary(arm: Arm, steps: list[dict[str, Any]], budget: int) -> dict[str, Any]:
    """One entry of `arms`."""

    def of(name: str) -> list[float]:
        """A metric step by step, also where it is one of the actor."""
        found = [step["data"].get(name, step["data"].get(f"actor/{name}")) for step in steps]
        return [value for value in found if value is not None]

    return {
        "mode": arm.mode,
        "strategy": arm.strategy,
        "steps": len(steps),
        "step": spread(of("timing_s/step")),
        "generation": spread(of("timing_s/gen")),
        "update": spread(of("timing_s/update_actor")),
        "rollouts": fmean(of("knapsack/rollouts/sum") or [budget]),
        "trained_rows": fmean(of("knapsack/trained_rows/sum") or [budget]),
        "gpu_gib": max(of("perf/max_memory_allocated_gb"), default=None),
        "host_gib": max(of("perf/cpu_memory_used_gb"), default=None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu-verl.json"))
    parser.add_argument("--dry", action="store_true", help="a tiny model and two steps, on the CPU")
    chosen = parser.parse_args()
    started = time.monotonic()
    engines = [name for name in ("vllm", "sglang") if importlib.util.find_spec(name) is not None]
    if not chosen.dry and not (torch.cuda.is_available() and engines):
        parser.error("expected a GPU that torch sees, and vllm or sglang; --dry runs on the CPU without them")
    engine, arms, warm_up, budget = (
        ("cpu", (ARMS[0], ARMS[2]), 0, 32) if chosen.dry else (engines[0], ARMS, WARM_UP, 64 * 8)
    )
    packages = ["torch", "verl", "transformers", *([] if chosen.dry else [engine])]
    results: dict[str, Any] = {
        "environment": {
            "device": "cpu" if chosen.dry else torch.cuda.get_device_name(),
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            "knapsack_rl": knapsack_rl.__version__,
            "dry": chosen.dry,
        },
        "arms": [],
        "left_out": [],
    }
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for position, arm in enumerate(arms):
            left = started + 60.0 * MINUTES - time.monotonic()
            code, output = run(folder, arm, engine, left / (len(arms) - position))
            steps = [step for step in runs.logged(folder) if "timing_s/step" in step["data"]][warm_up:]
            if steps and code in (0, None):
                found = summary(arm, steps, budget)
                sync = next((other for other in (*results["arms"], found) if other["mode"] == "sync"), None)
                found["over_sync"] = sync and found["step"]["median"] / sync["step"]["median"]
                results["arms"].append(found)
                failed |= found["rollouts"] != budget
            else:
                failed |= code not in (0, None)
                why = "no time" if code is None else f"exit code {code}: {output}"
                results["left_out"].append({"arm": arm.name, "why": why})
            results["seconds"] = time.monotonic() - started
            chosen.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sys.exit("an arm failed, or did not meet its budget: see the JSON" if failed else 0)


if __name__ == "__main__":
    main()
