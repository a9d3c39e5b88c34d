"""Several generations in a step: TRL sees one batch, every rollout is made once, and the budget is exact."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch

from knapsack_rl import BudgetAllocator, InvalidInputError
from knapsack_rl.trl.compatibility import HOMOGENEOUS_LOSSES
from knapsack_rl.trl.waves import merge_gathered, merge_generated, merge_metrics


def adaptive(**options: Any) -> BudgetAllocator:
    return BudgetAllocator("adaptive", group_size=4, max_rollouts=10, **options)


def test_a_step_in_waves_spends_its_budget_and_makes_and_rewards_each_rollout_once(make, observed):
    rewarded: list[tuple[int, ...]] = []

    def luck(completion_ids: list[list[int]], ease: list[float], **columns: Any) -> list[float]:
        rewarded.extend(map(tuple, completion_ids))
        return small.luck(completion_ids, ease, **columns)

    trainer = make(kind=observed, allocator=adaptive(), reward_funcs=luck)
    trainer.train()
    assert len(trainer.batches) == 6
    assert len(rewarded) == 6 * 16
    waves = [batch["metrics"]["waves"] for batch in trainer.batches]
    assert max(waves) == 3
    for batch in trainer.batches:
        record = batch["record"]
        assert batch["rows"] == batch["delivered"] == record.plan.rollouts.sum() == record.scored.sum() == 16
        planned = {row["prompt"]: n for row, n in zip(record.rows, record.plan.rollouts, strict=True)}
        assert Counter(batch["prompts"]) == planned
        won = Counter()
        for prompt, reward in zip(batch["prompts"], batch["rewards"][:, 0], strict=True):
            won[prompt] += int(reward)
        assert [won[row["prompt"]] for row in record.rows] == record.successes.tolist()


def test_advantages_are_over_all_rollouts_of_a_prompt_in_the_step(make, observed):
    trainer = make(kind=observed, allocator=adaptive(), rollout_weights="none")
    trainer.train()
    mixed = 0
    for batch in trainer.batches:
        groups = defaultdict(list)
        for prompt, reward, advantage in zip(
            batch["prompts"], batch["rewards"][:, 0], batch["advantages"], strict=True
        ):
            groups[prompt].append((reward, advantage))
        for rows in groups.values():
            rewards, advantages = np.array(rows).T
            spread = rewards.std(ddof=1)
            expected = np.clip((rewards - rewards.mean()) / (spread + 1e-6), -5, 5) if spread else 0.0 * rewards
            assert advantages == pytest.approx(expected, abs=1e-5)
            mixed += spread > 0
    assert mixed, "the test would show nothing"


def test_what_trl_makes_of_waves_is_what_it_makes_of_the_same_rollouts_in_one_batch(make, observed):
    """Masks, token counts and padding, recomputed from the completions."""
    trainer = make(kind=observed, allocator=adaptive())
    outputs = []
    generate = type(trainer)._generate_and_score_completions

    def keep(inputs: Any) -> Any:
        outputs.append(generate(trainer, inputs))
        return outputs[-1]

    trainer._generate_and_score_completions = keep
    trainer.train()
    words = small.tokenizer()
    for output, batch in zip(outputs, trainer.batches, strict=True):
        mask = output["completion_mask"].bool()
        lengths = mask.sum(1)
        assert output["num_items_in_batch"] == lengths.sum()
        assert output["completion_ids"].shape == mask.shape
        assert mask.shape[1] == lengths.max()
        assert torch.all(output["completion_ids"][~mask] == words.pad_token_id)
        assert words.batch_decode(output["prompt_ids"], skip_special_tokens=True) == batch["prompts"]
        again = small.luck(
            [ids[keep].tolist() for ids, keep in zip(output["completion_ids"], mask, strict=True)],
            [row["ease"] for row in map({r["prompt"]: r for r in small.rows()}.get, batch["prompts"])],
        )
        assert again == batch["rewards"][:, 0].tolist()


def test_logged_completions_and_metrics_count_every_rollout_of_every_wave_once(make, tmp_path):
    trainer = make({"max_steps": 4, "log_completions": True, "num_completions_to_print": 0}, allocator=adaptive())
    trainer.train()
    steps = [step for step in trainer.state.log_history if "effective_gradient_ratio" in step]
    assert len(steps) == 4
    tokens = 0.0
    for step in steps:
        table = pd.read_parquet(tmp_path / "completions" / f"completions_{step['step']:05d}.parquet")
        assert len(table) == 16
        assert step["reward"] == pytest.approx(table["luck"].mean())
        groups = table.groupby("prompt")["luck"]
        assert step["rollouts/max"] == groups.size().max()
        assert step["prompt_reward"] == pytest.approx(groups.mean().mean())
        assert step["num_tokens"] - tokens == pytest.approx(16 * (2 + step["completions/mean_length"]), abs=0.1)
        tokens = step["num_tokens"]


def test_metrics_of_waves_are_those_of_all_their_rollouts_together():
    waves = [([3, 4, 4, 4], [True, False, False, False]), ([4, 4], [False, False]), ([1, 4, 2], [True, False, True])]

    def logged(lengths: list[int], ended: list[bool]) -> dict[str, float]:
        terminated = [length for length, end in zip(lengths, ended, strict=True) if end] or [0]
        named = {"": lengths, "_terminated": terminated}
        metrics = {f"completions/mean{name}_length": float(np.mean(values)) for name, values in named.items()}
        metrics |= {f"completions/min{name}_length": float(min(values)) for name, values in named.items()}
        metrics |= {f"completions/max{name}_length": float(max(values)) for name, values in named.items()}
        return metrics | {"completions/clipped_ratio": 1.0 - float(np.mean(ended))}

    together = logged([n for lengths, _ in waves for n in lengths], [end for _, ended in waves for end in ended])
    merged = merge_metrics([logged(*wave) for wave in waves], [len(lengths) for lengths, _ in waves])
    assert merged == pytest.approx(together)
    never = [logged([4, 4], [False, False])] * 2
    assert merge_metrics(never, [2, 2]) == never[0]


def test_parts_of_waves_are_joined_process_by_process_and_fill_in_what_a_wave_does_not_have():
    first, second = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0], [4.0], [5.0]])
    assert merge_gathered([first, second], processes=2).flatten().tolist() == [0, 2, 3, 1, 4, 5]
    waves = [([[1], [2]], None, {"score": [5, 6], "model": "m"}, None), ([[3]], None, {"model": "m"}, ["image"])]
    expected = ([[1], [2], [3]], None, {"model": "m", "score": [5, 6, None]}, [None, None, "image"])
    assert merge_generated(waves, [2, 1]) == expected


def test_without_waves_a_step_is_generated_once(make, observed):
    trainer = make(kind=observed, allocator=adaptive(), waves=False)
    trainer.train()
    assert {batch["metrics"]["waves"] for batch in trainer.batches} == {1.0}
    assert all(batch["rows"] == 16 for batch in trainer.batches)


def test_a_resumed_run_in_waves_is_the_uninterrupted_run_bit_for_bit(make, tmp_path):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 5}
    whole = make(options, allocator=adaptive(), feature_columns=["ease"], id_column="ease")
    whole.train()
    resumed = make(options, allocator=adaptive(), feature_columns=["ease"], id_column="ease")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    for (name, weight), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    for name, array in whole.allocator.state_dict()["estimator"].items():
        assert np.array_equal(array, resumed.allocator.state_dict()["estimator"][name]), name


def test_evaluations_are_untouched_by_waves(make, observed):
    trainer = make(
        {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 8, "num_generations_eval": 2},
        kind=observed,
        allocator=adaptive(),
        eval_dataset=small.rows(4),
    )
    trainer.train()
    evaluated = [batch for batch in trainer.batches if not batch["training"]]
    assert [batch["rows"] for batch in evaluated] == [8, 8]
    assert sum(batch["training"] for batch in trainer.batches) == 6


# Features, weights


def test_features_reach_the_allocator_and_missing_ones_are_refused(make):
    trainer = make({"remove_unused_columns": False}, allocator=adaptive(), feature_columns=["ease"])
    trainer.train()
    assert trainer.allocator.state_dict()["estimator"]["columns"] == ["ease (numbers: 1)"]
    with pytest.raises(InvalidInputError, match="feature_columns: 'topic' is not a column of the data set"):
        make(allocator=adaptive(), feature_columns=["topic"])


def test_weights_multiply_clipped_advantages_by_the_root_of_the_mean_size_over_the_groups(make, observed):
    trainer = make(kind=observed, allocator=adaptive(), advantage_clip=1.0)
    trainer.train()
    uneven = 0
    for batch in trainer.batches:
        sizes = Counter(batch["prompts"])
        for prompt, advantage in zip(batch["prompts"], batch["advantages"], strict=True):
            assert abs(advantage) <= np.sqrt(4 / sizes[prompt]) + 1e-6
            uneven += advantage != 0 and sizes[prompt] != 4
    assert uneven, "the test would show nothing"


@pytest.mark.parametrize("loss", HOMOGENEOUS_LOSSES)
def test_a_weight_on_the_advantage_is_a_weight_on_the_loss(make, loss):
    trainer = make({"loss_type": loss}, rollout_weights="sqrt")
    trainer.train()
    inputs = trainer._generate_and_score_completions([dict(row) for row in small.rows(4) for _ in range(4)])
    inputs = {name: value for name, value in inputs.items() if value is not None}
    inputs["advantages"] = torch.linspace(-2, 2, len(inputs["advantages"]))
    trainer.model.eval()

    def of(weights: torch.Tensor) -> float:
        weighted = inputs | {"advantages": inputs["advantages"] * weights}
        return trainer.compute_loss(trainer.model, weighted).item()

    single = torch.eye(len(inputs["advantages"]))
    weights = torch.rand(len(single)) + 0.5
    terms = torch.tensor([of(row) for row in single])  # each rollout's own part of the loss
    assert of(weights) == pytest.approx(float(terms @ weights), abs=1e-5)


def test_weights_are_those_that_suit_the_strategy_unless_named(make):
    assert make(allocator=adaptive()).rollout_weights == "sqrt"
    assert make(allocator=adaptive(), rollout_weights="none").rollout_weights == "none"
    assert make().rollout_weights == "none"


def test_weights_are_refused_where_the_loss_is_not_known_to_be_proportional(make):
    with pytest.raises(InvalidInputError, match=r"rollout_weights: .*args.loss_type='another'"):
        make({"loss_type": "another"}, allocator=adaptive())
    make({"loss_type": "another"}, allocator=adaptive(), rollout_weights="none")
