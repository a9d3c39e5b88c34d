"""What a training step costs with the adapter and without: plain GRPOTrainer against KnapsackGRPOTrainer, in pairs.

    python benchmarks/training_step.py              # what the adapter adds: every rollout is trained on
    python benchmarks/training_step.py --skip-idle  # what it saves: rollouts without gradient are not

Both train the same small transformer on the same number of rollouts, forced to one length, so that any difference is
the adapter's. They take turns in one process; the ratio is taken pair by pair, so that it holds while the machine's
speed drifts. Seconds are those of the one processor that they run on, which other processes cannot lengthen.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from knapsack_rl import BudgetAllocator
from knapsack_rl.trl import KnapsackGRPOTrainer


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", *(f"w{i}" for i in range(62))]
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


class Plain(GRPOTrainer):
    """TRL's, which notes how long it generates and scores."""

    generation_seconds = 0.0

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        started = time.process_time()
        output = super()._generate_and_score_completions(inputs)
        self.generation_seconds = time.process_time() - started
        return output


def build(
    kind: type[GRPOTrainer],
    prompts: int,
    length: int,
    folder: str,
    accumulation: int = 1,
    reward: Callable[..., list[float]] = ease,
    **own: Any,
) -> GRPOTrainer:
    set_seed(0)
    words = tokenizer()
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=16,
            pad_token_id=words.pad_token_id,
            eos_token_id=words.eos_token_id,
        )
    )
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
        use_cpu=True,
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


def seconds_of_a_step(trainer: GRPOTrainer, rows: list[dict[str, str]]) -> float:
    """One whole step as Trainer makes it: generation, scoring, forward, backward, update."""
    started = time.process_time()
    trainer.model.train()
    batches = trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    for batch in range(batches):
        trainer.accelerator.gradient_state._set_sync_gradients(batch == batches - 1)
        trainer.training_step(trainer.model, rows, None)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return time.process_time() - started


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
            allocator=BudgetAllocator(group_size=8),
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
        plain = build(Plain, *common)
        ours = build(KnapsackGRPOTrainer, *common, allocator=BudgetAllocator("uniform", group_size=8))
        rows, seconds, ratios, shares = rows_of(plain), [], [], []
        for pair in range(pairs + 1):
            order = [plain, ours] if pair % 2 else [ours, plain]
            taken = {trainer: seconds_of_a_step(trainer, rows) for trainer in order}
            if pair:  # the first steps warm up
                seconds.append(taken[plain])
                ratios.append(taken[ours] / taken[plain])
                shares.append(1.0 - plain.generation_seconds / taken[plain])
        live = ours._metrics["train"]["effective_gradient_ratio"][-1]
    low, _, high = quantiles(ratios, n=4)
    figures = f"{live:5.2f} {median(seconds) * 1e3:10.0f} {median(shares):9.2f} {median(ratios):14.2f}"
    return f"{length:6d} {accumulation:12d} {figures} ({low:.2f} to {high:.2f})"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--prompts", type=int, default=64, help="prompts a step, 8 rollouts each")
    options.add_argument("--pairs", type=int, default=100)
    options.add_argument("--skip-idle", action="store_true", help="what skipping rollouts without gradient saves")
    options.add_argument("--lengths", type=int, nargs="+", default=[8], help="tokens a rollout")
    options.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.3, 0.4, 0.6], help="with --skip-idle")
    options.add_argument("--accumulation", type=int, nargs="+", default=[1, 4], help="with --skip-idle")
    chosen = options.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if not chosen.skip_idle:
        for length in chosen.lengths:
            overhead(chosen.prompts, length, chosen.pairs)
        return
    print(f"{chosen.prompts} prompts x 8 rollouts, `uniform`; median of {chosen.pairs} pairs, with quartiles")
    print("tokens accumulation ratio  plain, ms  training  with / without")
    for length in chosen.lengths:
        for accumulation in chosen.accumulation:
            for ratio in chosen.ratios:
                print(saving(chosen.prompts, length, chosen.pairs, ratio, accumulation), flush=True)


if __name__ == "__main__":
    main()
