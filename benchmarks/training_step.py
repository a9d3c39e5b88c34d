"""What a training step costs with the adapter and without: plain GRPOTrainer against KnapsackGRPOTrainer, in pairs.

    python benchmarks/training_step.py              # what the adapter adds: every rollout is trained on
    python benchmarks/training_step.py --skip-idle  # what it saves: rollouts without gradient are not
    python benchmarks/training_step.py --memory     # what that does to the peak of the resident memory
    python benchmarks/training_step.py --influence  # what measuring the worth of gradients adds to the adapter

Both train the same small transformer on the same number of rollouts, forced to one length, so that any difference is
the adapter's. They take turns in one process; the ratio is taken pair by pair, so that it holds while the machine's
speed drifts. Seconds are those of the one processor that they run on, which other processes cannot lengthen. Memory is
that of fresh processes, one for each number.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from statistics import median, quantiles
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from knapsack_rl import BudgetAllocator
from knapsack_rl.trl import KnapsackGRPOTrainer


class Size(NamedTuple):
    """Of a model: a layer has 16 width^2 parameters."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    vocabulary: int = 64


SMALL = Size()


def tokenizer(vocabulary: int = 64) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", *(f"w{i}" for i in range(vocabulary - 2))]
    tool = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tool.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tool, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def ease(prompts: list[str], completion_ids: list[list[int]], **_: object) -> list[float]:
    """Success rates spread over the prompts and independent of the policy, so that plans stay uneven."""
    share = [int(prompt.split()[0][1:]) / 61 for prompt in prompts]
    draw = [sum((7 * k + 3) * token for k, token in enumerate(ids)) % 101 / 101 for ids in completion_ids]
    return [float(d < s) for d, s in zip(draw, share, strict=True)]


def mixed(ratio: float) -> Callable[..., list[float]]:
    """Rewards that leave this share of the groups of 8 with a gradient."""

    def half_of_some_groups(prompts: list[str], **_: object) -> list[float]:
        live = round(ratio * len(prompts) / 8)
        return [float(i // 8 < live and i % 2) for i in range(len(prompts))]

    return half_of_some_groups


class Timed(GRPOTrainer):  # type: ignore[misc]  # which is not typed
    """Notes how long it generates and scores in each step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.generation_seconds: list[float] = []

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        started = now(self)
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self.generation_seconds.append(now(self) - started)
        return output


class Ours(Timed, KnapsackGRPOTrainer):
    """The adapter's."""


def build(
    kind: type[GRPOTrainer],
    prompts: int,
    length: int,
    folder: str,
    accumulation: int = 1,
    reward: Callable[..., list[float]] = ease,
    size: Size = SMALL,
    use_cpu: bool = True,
    dtype: torch.dtype = torch.float32,
    **own: Any,
) -> GRPOTrainer:
    set_seed(0)
    words = tokenizer(size.vocabulary)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words),
            hidden_size=size.width,
            intermediate_size=4 * size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            head_dim=size.width // size.heads,
            pad_token_id=words.pad_token_id,
            eos_token_id=words.eos_token_id,
        )
    ).to(dtype)
    args = GRPOConfig(
        output_dir=folder,
        num_generations=8,
        per_device_train_batch_size=prompts * 8 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_completion_length=length,
        generation_kwargs={"min_new_tokens": length},
        max_steps=prompts,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=use_cpu,
        report_to="none",
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
    )
    data = Dataset.from_dict({"prompt": [f"w{i % 62} w{i % 7} w{i // 62}" for i in range(prompts)]})
    trainer = kind(model=model, reward_funcs=reward, args=args, train_dataset=data, processing_class=words, **own)
    trainer.remove_callback(PrinterCallback)
    trainer.create_optimizer()
    return trainer


def now(trainer: GRPOTrainer) -> float:
    """Seconds of the processor; with a GPU of the clock, when it has done what it was told to."""
    if trainer.accelerator.device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def accumulate(trainer: GRPOTrainer, rows: list[dict[str, str]]) -> None:
    """A step as Trainer makes it, up to its gradients: generation, scoring, forward, backward."""
    trainer.model.train()
    batches = trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    for batch in range(batches):
        trainer.accelerator.gradient_state._set_sync_gradients(batch == batches - 1)
        trainer.training_step(trainer.model, rows, None)


def seconds_of_a_step(trainer: GRPOTrainer, rows: list[dict[str, str]]) -> float:
    """One whole step."""
    started = now(trainer)
    accumulate(trainer, rows)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return now(trainer) - started


def in_pairs(first: GRPOTrainer, second: GRPOTrainer, pairs: int, until: float = math.inf) -> list[tuple[float, float]]:
    """Seconds of steps of both in turns, after one to warm up: at least two, none after `until` (monotonic)."""
    rows = rows_of(first)
    taken: list[tuple[float, float]] = []
    while len(taken) <= pairs and (len(taken) < 3 or time.monotonic() < until):
        order = [first, second] if len(taken) % 2 else [second, first]
        seconds = {trainer: seconds_of_a_step(trainer, rows) for trainer in order}
        taken.append((seconds[first], seconds[second]))
    return taken[1:]


def training_seconds(trainer: Timed, steps: Sequence[float]) -> list[float]:
    """What is left of the newest steps, so many seconds each, without generation."""
    return [whole - part for whole, part in zip(steps, trainer.generation_seconds[-len(steps) :], strict=True)]


def rows_of(trainer: GRPOTrainer) -> list[dict[str, str]]:
    return [dict(row) for row in trainer.train_dataset for _ in range(8)]


def overhead(prompts: int, length: int, pairs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plain_trainer = build(GRPOTrainer, prompts, length, folder)
        ours = build(
            KnapsackGRPOTrainer,
            prompts,
            length,
            folder,
            allocator=BudgetAllocator("knapsack", group_size=8),
            skip_idle=False,
        )
        trainers, rows = [plain_trainer, ours], rows_of(plain_trainer)
        ratios, plain, allocation = [], [], []
        for pair in range(pairs + 3):
            order = trainers if pair % 2 else trainers[::-1]
            taken = {type(trainer): seconds_of_a_step(trainer, rows) for trainer in order}
            if pair >= 3:  # the first steps warm up, and the very first plan is uniform
                plain.append(taken[GRPOTrainer])
                ratios.append(taken[KnapsackGRPOTrainer] / taken[GRPOTrainer])
                allocation.append(ours._metrics["train"]["allocation_seconds"][-1])
        plan = ours.last_step.plan.rollouts
    low, _, high = quantiles(ratios, n=4)
    print(f"{prompts} prompts x 8 rollouts of {length} tokens; last plan: {plan.min()} to {plan.max()}")
    print(f"plain step            {median(plain) * 1e3:9.1f} ms (median of {pairs})")
    print(f"allocation in a step  {median(allocation) * 1e3:9.1f} ms")
    print(f"with / without        {median(ratios):9.3f} (median; quartiles {low:.3f} to {high:.3f})")


def saving(prompts: int, length: int, pairs: int, ratio: float, accumulation: int) -> str:
    """A line of the table: even groups, so that the two differ in nothing but the rollouts that are trained on."""
    with tempfile.TemporaryDirectory() as folder:
        common = (prompts, length, folder, accumulation, mixed(ratio))
        plain = build(Timed, *common)
        ours = build(KnapsackGRPOTrainer, *common, allocator=BudgetAllocator("uniform", group_size=8))
        taken = in_pairs(plain, ours, pairs)
        live = ours._metrics["train"]["effective_gradient_ratio"][-1]
    low, middle, high = quantiles([with_it / without for without, with_it in taken], n=4)
    seconds = [without for without, _ in taken]
    share = median(part / whole for part, whole in zip(training_seconds(plain, seconds), seconds, strict=True))
    figures = f"{live:5.2f} {median(seconds) * 1e3:10.0f} {share:9.2f} {middle:14.2f}"
    return f"{length:6d} {accumulation:12d} {figures} ({low:.2f} to {high:.2f})"


def measuring(prompts: int, length: int, pairs: int, ratio: float, accumulation: int) -> str:
    """A line of the table: the adapter with even groups, with `measure_influence` and without."""
    with tempfile.TemporaryDirectory() as folder:
        common = (KnapsackGRPOTrainer, prompts, length, folder, accumulation, mixed(ratio))
        without, with_it = (
            build(*common, allocator=BudgetAllocator("uniform", group_size=8), measure_influence=on)
            for on in (False, True)
        )
        taken = in_pairs(without, with_it, pairs)
    low, middle, high = quantiles([more / less for less, more in taken], n=4)
    plain = median(less for less, _ in taken) * 1e3
    return f"{length:6d} {accumulation:12d} {ratio:5.2f} {plain:10.0f} {middle:14.3f} ({low:.3f} to {high:.3f})"


def resident() -> float:
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def peak_of_steps(plain: bool, prompts: int, length: int, ratio: float, accumulation: int) -> float:
    """MiB by which three steps raise the peak of a process that has built its trainer; plain TRL's, or ours.

    For a process of its own: a peak never falls.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        common = (prompts, length, folder, accumulation, mixed(ratio))
        if plain:
            trainer = build(GRPOTrainer, *common)
        else:
            trainer = build(KnapsackGRPOTrainer, *common, allocator=BudgetAllocator("uniform", group_size=8))
        before = resident()
        for _ in range(3):
            seconds_of_a_step(trainer, rows_of(trainer))
    return resident() - before


def memory(prompts: int, length: int, pairs: int, ratio: float, accumulation: int) -> str:
    """A line of the table: plain TRL and ours with `skip_idle`, each in fresh processes with the same seed."""
    spawn = multiprocessing.get_context("spawn")
    peaks: dict[bool, list[float]] = {True: [], False: []}
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        for _ in range(pairs):
            for plain, found in peaks.items():
                found.append(processes.submit(peak_of_steps, plain, prompts, length, ratio, accumulation).result())
    cells = (f"{median(found):.0f} ({min(found):.0f} to {max(found):.0f})" for found in peaks.values())
    return f"{length:6d} {accumulation:12d} {ratio:5.2f} " + " ".join(f"{cell:>22}" for cell in cells)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--prompts", type=int, default=64, help="prompts a step, 8 rollouts each")
    options.add_argument("--pairs", type=int, default=100)
    options.add_argument("--skip-idle", action="store_true", help="what skipping rollouts without gradient saves")
    options.add_argument("--memory", action="store_true", help="peaks of the resident memory, plain and with skipping")
    options.add_argument("--influence", action="store_true", help="what measuring the worth of gradients adds")
    options.add_argument("--lengths", type=int, nargs="+", default=[8], help="tokens a rollout")
    options.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.3, 0.4, 0.6], help="with gradient")
    options.add_argument("--accumulation", type=int, nargs="+", default=[1, 4], help="micro-batches an update")
    chosen = options.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if not (chosen.skip_idle or chosen.memory or chosen.influence):
        for length in chosen.lengths:
            overhead(chosen.prompts, length, chosen.pairs)
        return
    print(f"{chosen.prompts} prompts x 8 rollouts, `uniform`; median of {chosen.pairs} pairs, with quartiles or range")
    if chosen.memory:
        print("tokens accumulation ratio             plain, MiB     with skip_idle, MiB")
    elif chosen.influence:
        print("tokens accumulation ratio   step, ms  with / without")
    else:
        print("tokens accumulation ratio  plain, ms  training  with / without")
    line = memory if chosen.memory else measuring if chosen.influence else saving
    for length in chosen.lengths:
        for accumulation in chosen.accumulation:
            for ratio in chosen.ratios:
                print(line(chosen.prompts, length, chosen.pairs, ratio, accumulation), flush=True)


if __name__ == "__main__":
    main()
