"""Two real processes over gloo: one plan, one set of beliefs, the same weights, the same number of rollouts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest


def torchrun(folder: Path, *more: str) -> None:
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, str(folder), *more], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


CASES = [("grpo", "knapsack"), ("grpo", "adaptive"), pytest.param(("rloo", "adaptive"), marks=pytest.mark.long)]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("two")
    torchrun(folder, *request.param)
    torchrun(folder, *request.param, str(folder / "checkpoint-8"))
    return {
        name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]
        for name in ("whole", "resumed")
    }


def test_both_processes_hold_the_same_beliefs_and_weights(runs):
    first, second = runs["whole"]
    assert first["beliefs"] == second["beliefs"]
    assert first["weights"] == second["weights"]


def test_every_batch_has_exactly_the_budget_split_evenly_though_groups_straddle_processes_and_updates(runs):
    first, second = runs["whole"]
    assert len(first["batches"]) == 8
    assert any(len(set(batch["plan"].values())) > 1 for batch in first["batches"])
    for mine, other in zip(first["batches"], second["batches"], strict=True):
        assert mine["local"] == other["local"] == 6
        assert mine["plan"] == other["plan"]
        assert Counter(mine["prompts"]) == Counter(mine["plan"])


def test_advantages_reach_the_process_whose_rollouts_they_belong_to(runs):
    for batch in runs["whole"][0]["batches"]:
        assert batch["advantages"] == pytest.approx(batch["logged"], abs=1e-6)
        for prompt, successes, rollouts in zip(batch["plan"], batch["successes"], batch["plan"].values(), strict=True):
            group = [a for a, p in zip(batch["advantages"], batch["prompts"], strict=True) if p == prompt]
            assert sum(a > 0 for a in group) == (successes if 0 < successes < rollouts else 0)


def test_a_function_that_compares_rollouts_sees_those_of_both_processes(runs):
    if runs["whole"][0]["strategy"] != "knapsack":
        pytest.skip("in waves such functions are refused")
    for mine, other in zip(*(run["batches"] for run in runs["whole"]), strict=True):
        assert mine["compared"] == other["compared"] == [mine["plan"][prompt] for prompt in mine["prompts"]]


def test_the_tokens_of_a_prompt_are_counted_over_both_processes(runs):
    for batch in runs["whole"][0]["batches"]:
        tokens = Counter()
        for prompt, count in zip(batch["prompts"], batch["tokens"], strict=True):
            tokens[prompt] += count
        assert batch["told"] == [tokens[prompt] for prompt in batch["plan"]]


def test_a_resumed_run_is_the_uninterrupted_run(runs):
    whole, resumed = runs["whole"], runs["resumed"]
    for rank in range(2):
        assert resumed[rank]["batches"] == whole[rank]["batches"][4:]
        assert resumed[rank]["beliefs"] == whole[rank]["beliefs"]
        assert resumed[rank]["weights"] == whole[rank]["weights"]
