"""What a reader of the documentation has and a test has not: a model, data, a reward, and the logs of a run."""

from __future__ import annotations

import functools
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def a_small_trl(*models: str) -> Any:
    """Put a tiny model where each of these names is looked for, let TRL train it on the CPU, and return its data set.

    A name such as `Qwen/Qwen3-4B-Base` is then a folder of the working directory, which comes before the hub. The data
    set has prompts of every difficulty; `reward` decides by its column.
    """
    pytest.importorskip("trl", reason="needs the extra 'trl'")
    import small
    import trl

    import knapsack_rl.trl  # noqa: F401 # which keeps the real configurations

    for name in models:
        small.model().save_pretrained(name)
        small.tokenizer().save_pretrained(name)
    for name in ("GRPOConfig", "RLOOConfig"):
        kind = getattr(trl, name)
        on_the_cpu = functools.partial(
            getattr(kind, "func", kind),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            max_completion_length=8,
        )
        setattr(trl, name, on_the_cpu)
    return small.rows(32)


def reward(completion_ids: list[list[int]], ease: list[float], **columns: Any) -> list[float]:
    """1 or 0, by the completion and by how easy the prompt is."""
    import small

    return small.luck(completion_ids, ease, **columns)


def leave_logs(folder: Path, seed: int = 0) -> None:
    """Rollout logs of small runs: TRL's, verl's, and two tables."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for step in range(1, 9):
        for problem in rng.permutation(24)[:16]:
            right = rng.random(4) < problem / 23
            answers = [str(2 * problem if ok else rng.integers(100)) for ok in right]
            rows += [
                {"step": step, "problem": int(problem), "right": bool(ok), "answer": answer, "tokens": int(length)}
                for ok, answer, length in zip(right, answers, rng.integers(5, 50, 4), strict=True)
            ]
    table = pd.DataFrame(rows)
    asked = "What is " + table["problem"].astype(str) + " + " + table["problem"].astype(str) + "?"
    said = "It is \\boxed{" + table["answer"] + "}"
    subject = np.where(table["problem"] % 2, "odd", "even")

    trl = pd.DataFrame({"step": table["step"], "prompt": asked, "completion": said})
    right = table["right"].astype(float)
    mean = right.groupby([table["step"], table["problem"]]).transform("mean")
    trl = trl.assign(accuracy=right, advantage=right - mean)
    verl = pd.DataFrame({"input": asked, "output": said, "gts": (2 * table["problem"]).astype(str)})
    verl = verl.assign(score=np.where(table["right"], 1.0, -1.0), step=table["step"], data_source=subject)
    verl = verl.assign(response_length=table["tokens"])
    for name in ("outputs/completions", "rollouts", "logs", "dapo"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for step, part in trl.groupby("step"):
        part.to_parquet(folder / f"outputs/completions/completions_{step:05}.parquet")
    for step, part in verl.groupby("step"):
        part.to_json(folder / f"rollouts/{step}.jsonl", orient="records", lines=True)
    for step, part in verl.assign(acc=table["right"], score=right - table["tokens"] / 100.0).groupby("step"):
        part.to_json(folder / f"dapo/{step}.jsonl", orient="records", lines=True)
    passes = pd.DataFrame({"task_id": asked, "passed": table["right"]}).sort_values("task_id", kind="stable")
    passes.to_json(folder / "samples.jsonl", orient="records", lines=True)
    named = pd.DataFrame({"problem": asked, "passed": table["right"].astype(int), "iteration": table["step"]})
    named.to_csv(folder / "log.csv", index=False)
    for rank in (0, 1):
        half = table[table["problem"] % 2 == rank]
        lines = half.assign(prompt=asked[half.index], reward=half["right"].astype(int), n_tokens=half["tokens"])
        lines = lines.assign(subject=subject[half.index])[["prompt", "reward", "step", "n_tokens", "subject"]]
        with gzip.open(folder / f"logs/rank{rank}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines.to_dict("records"))


TINY_RUN = (
    "trainer=minimal",
    "task.train_problems=24",
    "task.eval_problems=10",
    "task.operations=1",
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "model.warm_start.steps=60",
    "training.steps=6",
    "training.prompts_per_step=8",
    "training.group_size=4",
    "training.micro_batch_size=32",
    "evaluation.every=3",
    "evaluation.samples=4",
)


def leave_runs(folder: Path) -> None:
    """The directories of two small runs, `runs/demo` and `runs/demo-uniform`."""
    from knapsack_rl.cli import main

    for name, strategy in (("demo", "knapsack"), ("demo-uniform", "uniform")):
        words = [f"name={name}", f"allocator.strategy={strategy}", *TINY_RUN]
        assert main(["train", *words, "--output", str(folder / "runs")]) == 0


def leave_repository(folder: Path, root: Path) -> None:
    """Links to what a reader sees in a checkout."""
    for name in ("benchmarks", "docs", "examples", "recipes", "tests"):
        os.symlink(root / name, folder / name)


SETUPS = {
    "README.md": """
import stand_ins
dataset, reward = stand_ins.a_small_trl("Qwen/Qwen2.5-Math-7B", "Qwen/Qwen3-0.6B"), stand_ins.reward
batches = [["easy", "hard", "harder"]] * 3
generate = lambda prompt, count: [prompt] * count
is_correct = lambda response: response == "easy"
update = lambda *step: None
""",
    "docs/allocation.md": """
import numpy as np
import knapsack_rl as kr
batches = [["easy", "hard"]] * 3
train_on = lambda prompts, rollouts: (np.minimum(rollouts, 3), rollouts)
""",
    "docs/beliefs.md": """
import numpy as np
import knapsack_rl as kr
ids = ["a sum", "a triangle"]
generate_and_score = lambda plan: (np.minimum(plan.rollouts, 1), plan.rollouts)
advantages, rollouts = np.ones(2), np.array([2, 14])
""",
    "docs/probe.md": """
import stand_ins
prompts, accuracy = stand_ins.a_small_trl("Qwen/Qwen3-4B-Base"), stand_ins.reward
""",
    "docs/trl.md": """
import stand_ins
prompts, accuracy = stand_ins.a_small_trl("Qwen/Qwen3-4B-Base"), stand_ins.reward
partial_credit = accuracy
""",
    "docs/waves.md": """
import knapsack_rl as kr
allocator = kr.BudgetAllocator("uniform", group_size=8)
prompt_ids, free_slots = ["a sum", "a triangle"], 16
successes, rollouts, failed = [3, 0], [8, 7], [0, 1]
""",
}
"""What comes before the first block of a page that has no setup of its own."""
