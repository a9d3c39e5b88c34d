"""The minimal trainer against TRL's own, and against plain forward passes of the model."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

pytest.importorskip("trl", reason="needs the extra 'trl'")

from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Phi3Config
from trl.trainer.utils import RepeatSampler

import knapsack_rl as kr
from knapsack_rl.cli import main
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.engines import ingredients
from knapsack_rl.experiments.engines.minimal import dynamic_sampling, precision
from knapsack_rl.experiments.engines.minimal import run as minimal
from knapsack_rl.experiments.engines.minimal.grpo import Collected, Loop, Policy, Rollouts, prompt_order
from knapsack_rl.experiments.engines.minimal.oracle import Oracle
from knapsack_rl.experiments.engines.minimal.packing import can_share
from knapsack_rl.experiments.engines.minimal.shared_prompts import SharedPromptPolicy
from knapsack_rl.experiments.engines.trl import run as train
from knapsack_rl.experiments.engines.trl.evaluation import EvaluatedTrainer
from knapsack_rl.experiments.engines.trl.grpo_config import grpo_config
from knapsack_rl.experiments.engines.warm_start import warm_started
from knapsack_rl.experiments.recipe import recipe_file
from knapsack_rl.experiments.recipe.schema import Recipe
from knapsack_rl.experiments.report import run_charts, run_data
from knapsack_rl.experiments.runs.run_directory import RunDirectory
from knapsack_rl.tasks import Task, load_task
from knapsack_rl.trl import KnapsackGRPOTrainer
from knapsack_rl.trl.sampler import EpochOrder

STEPS = 12
# 26 problems, 8 a step: an epoch is three steps, and two problems of it are left out.
RECIPE = f"""
name: tiny
trainer: minimal
task: {{kind: chain-arithmetic, train_problems: 26, eval_problems: 10, operations: 1}}
model: {{kind: scratch, layers: 1, width: 32, heads: 2, warm_start: {{steps: 60, batch_size: 64}}}}
allocator: {{strategy: knapsack, max_rollouts: 16}}
training:
  steps: {STEPS}
  prompts_per_step: 8
  group_size: 4
  updates_per_step: 2
  micro_batch_size: 8
  learning_rate: 1e-2
  weight_decay: 0.1
  adam_beta2: 0.9
  max_completion_length: 4
evaluation: {{every: 5, samples: 4}}
"""
TIMES = {"time", "training_seconds", "allocation_seconds"}


pytestmark = pytest.mark.usefixtures("offline_with_a_cache_of_its_own")


def run(recipe_path: Path, output: Path, *changes: str, alone: bool = False) -> Path:
    recipe = recipe_file.read(recipe_path, changes)
    trainer = minimal if recipe.trainer == "minimal" else train
    trainer.train(recipe, output, "a test", Console(quiet=True), alone=alone)
    return output / recipe.name


def metrics(directory: Path) -> list[dict[str, Any]]:
    records = RunDirectory(directory).read_metrics()
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def allocations(directory: Path) -> pd.DataFrame:
    return pd.read_parquet(directory / "allocations.parquet")


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model" / "model.safetensors")


def assert_same_training(directory: Path, other: Path) -> None:
    assert weights(directory).keys() == weights(other).keys()
    assert all(torch.equal(weight, weights(other)[name]) for name, weight in weights(directory).items())
    pd.testing.assert_frame_equal(allocations(directory), allocations(other))


def policy_of(recipe: Recipe, dtype: torch.dtype = torch.float32, kind: type[Policy] = Policy) -> Policy:
    model, tokenizer = warm_started(recipe.model, recipe.task, recipe.seed)
    return kind(model.to(dtype), tokenizer, recipe.training)


both_policies = pytest.mark.parametrize("kind", [Policy, SharedPromptPolicy], ids=["plain", "shared prompts"])


# Advantages


def test_advantages_of_even_groups_are_those_of_trl(recipe_path: Path, tmp_path: Path) -> None:
    trainer = observed_training(recipe_file.read(recipe_path, ["allocator.strategy=uniform"]), tmp_path)
    assert len(trainer.outputs) == STEPS
    for output in trainer.outputs:
        ours = kr.advantages.group_advantages(output["rewards"], np.repeat(np.arange(8), 4)).values
        # TRL adds 1e-4 to the deviation, which is 0.5 or more here, and we 1e-6.
        assert output["advantages"] == pytest.approx(ours, rel=3e-4, abs=1e-9)


# Loss, gradient and optimiser


class ObservedTrainer(KnapsackGRPOTrainer):
    """Keeps every generation batch, and the gradients of every pass before they are clipped."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outputs: list[dict[str, Any]] = []
        self.batches: list[list[dict[str, torch.Tensor]]] = []
        self.gradients: list[list[torch.Tensor]] = []

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        rewards = self._rewards_per_func[:, 0].double().numpy().copy()
        self.outputs.append({"rewards": rewards, "advantages": output["advantages"].double().numpy().copy()})
        return output

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = super()._prepare_inputs(generation_batch)
        if self._step % self.args.steps_per_generation == 0:
            self.batches.append(self._buffered_inputs)
        return inputs

    def training_step(self, *args: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args)
        self.gradients.append([weight.grad.clone() for weight in self.model.parameters()])
        return loss


def luck(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward for a third of all completions, scattered so that a policy does not find them soon."""
    return [float(sum(31**place * token for place, token in enumerate(ids)) % 97 < 32) for ids in completion_ids]


def observed_training(recipe: Recipe, folder: Path, dtype: torch.dtype = torch.float32) -> ObservedTrainer:
    policy = policy_of(recipe, dtype)
    trainer = ObservedTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=luck,
        args=grpo_config(recipe, folder),
        train_dataset=load_task(recipe.task, recipe.seed).train,
        allocator=ingredients.allocator(recipe),
        advantage_clip=recipe.training.advantage_clip,
        id_column="id",
        skip_idle=False,  # whole batches, as TRL cuts them, are what is handed to the other trainer
    )
    trainer.train()
    return trainer


def rollouts_of(batch: Sequence[dict[str, torch.Tensor]], policy: Policy) -> tuple[list[str], Rollouts, np.ndarray]:
    """A generation batch of TRL's: prompts, rollouts and advantages, in the order in which TRL takes them."""
    prompt_ids, prompt_mask, tokens, mask, advantages = (
        torch.cat([part[key] for part in batch])
        for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")
    )
    prompts = [policy.tokenizer.decode(ids[seen.bool()]) for ids, seen in zip(prompt_ids, prompt_mask, strict=True)]
    nobody = np.zeros(len(prompts), dtype=np.int64)
    return prompts, Rollouts(nobody, nobody, tokens, mask.sum(1), nobody.astype(float)), advantages.double().numpy()


ONE_PASS = ["updates_per_step=1", "micro_batch_size=32", "max_grad_norm=1e9"]
EIGHT_PASSES = ["updates_per_step=2", "micro_batch_size=4", "max_grad_norm=0.05", "temperature=0.7"]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Policy, ONE_PASS),
        (Policy, ["updates_per_step=1", "micro_batch_size=8", "max_grad_norm=0.05"]),
        (Policy, ["updates_per_step=2", "micro_batch_size=16", "max_grad_norm=1e9"]),
        (Policy, EIGHT_PASSES),
        (SharedPromptPolicy, ONE_PASS),
        (SharedPromptPolicy, EIGHT_PASSES),
    ],
    ids=[
        "one pass",
        "four passes, clipped",
        "two updates",
        "two updates, eight passes, clipped, cooler",
        "shared prompts, one pass",
        "shared prompts, two updates, eight passes, clipped, cooler",
    ],
)
def test_the_rollouts_of_trl_give_the_losses_gradients_and_weights_of_trl(
    kind: type[Policy], changes: list[str], recipe_path: Path, tmp_path: Path
) -> None:
    steps = 6
    changes = [f"training.{change}" for change in (*changes, f"steps={steps}")]
    recipe = recipe_file.read(recipe_path, [*changes, "task.operations=2"])
    updates = recipe.training.updates_per_step
    # In float64, so that rounding does not hide anything: Adam's first steps look at the sign of a gradient.
    trainer = observed_training(recipe, tmp_path, torch.float64)
    policy = policy_of(recipe, torch.float64, kind)
    gradients: list[list[torch.Tensor]] = []
    policy.optimizer.register_step_pre_hook(
        lambda *_: gradients.append([weight.grad.clone() for weight in policy.model.parameters()])
    )
    losses = []
    for number, batch in enumerate(trainer.batches):
        prompts, rollouts, advantages = rollouts_of(batch, policy)
        back = np.arange(len(rollouts))
        if updates > 1:  # the policy shuffles: hand them over so that they come out in TRL's order
            order = torch.randperm(len(rollouts), generator=torch.Generator().manual_seed(number))
            back = order.argsort().numpy()
        losses.append(
            policy.update(
                [prompts[row] for row in back],
                rollouts.of(back),
                advantages[back],
                torch.Generator().manual_seed(number),
            )
        )

    log = trainer.state.log_history[:steps]
    assert losses == pytest.approx([entry["loss"] for entry in log], abs=1e-6)
    passes = len(trainer.gradients) // len(gradients)
    for ours, theirs in zip(gradients, trainer.gradients[passes - 1 :: passes], strict=True):
        norm = torch.sqrt(sum((gradient**2).sum() for gradient in theirs)).item()
        shrunk = min(1.0, recipe.training.max_grad_norm / (norm + 1e-6))  # as torch has it
        for own, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(own, shrunk * other, rtol=1e-4, atol=1e-5)
    for own, other in zip(policy.model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=0.0, atol=1e-4)  # after steps of 1e-2

    # Otherwise the test would show nothing.
    assert len(set(trainer.last_step.plan.rollouts)) > 1
    assert sum(0 < np.count_nonzero(output["advantages"]) < 32 for output in trainer.outputs) > 1
    assert updates == 1 or sum(entry["clip_ratio/region_mean"] > 0.01 for entry in log) > 3


def test_weights_that_trl_does_not_decay_are_not_decayed(recipe_path: Path, tmp_path: Path) -> None:
    for architecture in ("qwen3", "llama"):
        recipe = recipe_file.read(recipe_path, [f"model.architecture={architecture}", "training.steps=1"])
        trainer = observed_training(recipe, tmp_path / architecture)
        policy = policy_of(recipe)
        by_decay = [
            {group["weight_decay"]: {names[weight] for weight in group["params"]} for group in optimizer.param_groups}
            for optimizer, names in (
                (policy.optimizer, {weight: name for name, weight in policy.model.named_parameters()}),
                (trainer.optimizer.optimizer, {weight: name for name, weight in trainer.model.named_parameters()}),
            )
        ]
        assert by_decay[0] == by_decay[1]
        assert by_decay[0].keys() == {0.1, 0.0}


def test_leaving_out_rollouts_without_an_advantage_does_not_change_the_gradient(recipe_path: Path) -> None:
    recipe = recipe_file.read(recipe_path, ["training.updates_per_step=1", "training.max_grad_norm=1e9"])
    loop = Loop(recipe, load_task(recipe.task, recipe.seed), policy_of(recipe, torch.float64))
    policy = loop.policy
    rollouts = loop.generate(list(range(8)), np.full(8, 4), loop.random)
    advantages = np.where(np.arange(32) % 3 == 0, 0.0, np.linspace(-2.0, 2.0, 32))
    prompts = [loop.columns["prompt"][row] for row in rollouts.rows]
    everything = policy._loss(prompts, rollouts, torch.from_numpy(advantages), None) / rollouts.lengths.sum()
    expected = torch.autograd.grad(everything, list(policy.model.parameters()))
    gradients: list[list[torch.Tensor]] = []
    policy.optimizer.register_step_pre_hook(
        lambda *_: gradients.append([weight.grad.clone() for weight in policy.model.parameters()])
    )
    assert policy.update(prompts, rollouts, advantages, loop.random) == pytest.approx(everything.item(), abs=1e-7)
    for own, other in zip(gradients[0], expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7)


# Gradients by group


@both_policies
def test_measured_gradients_are_those_of_each_groups_own_loss_also_where_two_have_the_same_prompt(
    kind: type[Policy], recipe_path: Path
) -> None:
    recipe = recipe_file.read(recipe_path, ["training.updates_per_step=1", "training.measure_influence=true"])
    loop = Loop(recipe, load_task(recipe.task, recipe.seed), policy_of(recipe, kind=kind))
    policy, watch = loop.policy, loop.policy.watch
    rows = [0, 1, 0, 2]  # the same problem twice
    rollouts = loop.generate(rows, np.array([4, 2, 3, 5]), loop.random)
    advantages = np.linspace(-2.0, 2.0, 14)
    prompts = [loop.columns["prompt"][row] for row in rollouts.rows]
    query = policy.model.model.layers[0].self_attn.q_proj.weight  # 32 x 32: watched whole, and first
    expected = []
    for group in range(4):
        own = np.where(rollouts.groups == group, advantages, 0.0)
        watch.begin(4)
        loss = policy._loss(prompts, rollouts, torch.from_numpy(own).float(), None) / rollouts.lengths.sum()
        expected.append(torch.autograd.grad(loss, query)[0].flatten())
    watch.begin(4)
    policy.update(prompts, rollouts, advantages, loop.random)
    torch.testing.assert_close(watch.gradients[:, : query.numel()], torch.stack(expected), rtol=1e-3, atol=1e-6)


def test_a_run_that_measures_is_the_same_run_and_says_what_it_measured(
    recipe_path: Path, finished: Path, tmp_path: Path
) -> None:
    measured = run(recipe_path, tmp_path, "training.measure_influence=true")
    assert_same_training(finished, measured)
    assert any("noise_scale" in record for record in metrics(measured))
    assert not any("noise_scale" in record for record in metrics(finished))
    drawn = [
        [chart.name for chart in run_charts.influence([run_data.read_run(f, "run")])] for f in (measured, finished)
    ]
    assert "noise-scale" in drawn[0]
    assert drawn[1] == []


def test_dynamic_sampling_tells_every_round_of_its_gradients(
    recipe_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["training.dynamic_sampling=true", "training.measure_influence=true", "allocator.strategy=uniform"]
    recipe = recipe_file.read(recipe_path, changes)
    loop = Loop(recipe, load_task(recipe.task, recipe.seed), policy_of(recipe))
    collected, kept = dynamic_sampling.collect(loop, 96)
    told: list[np.ndarray] = []
    for done in collected:
        tell = done.step.tell_gradients
        monkeypatch.setattr(
            done.step,
            "tell_gradients",
            lambda u, divisors, tell=tell: (told.append(divisors), tell(u, divisors=divisors)),
        )
    loop.update(kept, [done.step for done in collected])
    assert len(collected) > 1
    for done, divided in zip(collected, told, strict=True):
        won, tried = done.step.successes, done.step.scored
        share, live = won / tried, (won > 0) & (won < tried)
        sample = np.sqrt(share * (1 - share) * tried / (tried - 1))
        np.testing.assert_allclose(divided, np.where(live, sample, 0.0), rtol=1e-5)
    mixed = [np.count_nonzero((d.step.successes > 0) & (d.step.successes < d.step.scored)) for d in collected]
    assert loop.allocator.influence.steps == sum(count > 1 for count in mixed)


# Sampling

PROMPTS = ["3 b1 =", "7 c2 c4 c1 =", "0 a0 a1 a2 a3 a4 ="]  # 3, 5 and 7 tokens


def plain_logits(policy: Policy, prompt: str, tokens: Sequence[int] = ()) -> torch.Tensor:
    """Logits of the tokens and of the one after them: one forward pass of this sequence alone, without a cache.

    With the attention of transformers that is written out, whatever the policy has.
    """
    ids, attention = policy.tokenizer(prompt)["input_ids"], policy.model.config._attn_implementation
    policy.model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([[*ids, *tokens]]), use_cache=False).logits[0, len(ids) - 1 :]
    policy.model.set_attn_implementation(attention)
    return logits


def heads_that_share_keys(policy: Policy) -> Policy:
    """The same policy with a model of fresh weights whose four heads share two keys."""
    config = policy.model.config
    small = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(type(config).from_dict(config.to_dict() | small))
    return type(policy)(model, policy.tokenizer, policy.training)


@both_policies
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
@pytest.mark.parametrize("made", [lambda policy: policy, heads_that_share_keys], ids=["", "shared keys"])
def test_log_probabilities_are_those_of_every_sequence_alone(
    made: Callable[[Policy], Policy], architecture: str, kind: type[Policy], recipe_path: Path
) -> None:
    changes = ["training.temperature=0.7", f"model.architecture={architecture}"]
    policy = made(policy_of(recipe_file.read(recipe_path, changes), kind=kind))
    tokens, lengths = policy.sample(PROMPTS, np.array([4, 6, 5]), 24, 1.5, 1.0, torch.Generator().manual_seed(0))
    prompts = [prompt for prompt, count in zip(PROMPTS, (4, 6, 5), strict=True) for _ in range(count)]
    assert len(set(lengths.tolist())) > 1, "the test would show nothing"
    nobody = np.zeros(15, dtype=np.int64)
    with torch.no_grad():
        logs = policy.log_probabilities(prompts, Rollouts(nobody, nobody, tokens, lengths, nobody.astype(float)))
    for prompt, row, length, ours in zip(prompts, tokens, lengths.tolist(), logs, strict=True):
        alone = (plain_logits(policy, prompt, row[:length].tolist())[:-1] / 0.7).log_softmax(dim=-1)
        torch.testing.assert_close(ours[:length], alone[torch.arange(length), row[:length]], rtol=0.0, atol=1e-5)


@both_policies
@pytest.mark.parametrize("made", [lambda policy: policy, heads_that_share_keys], ids=["", "shared keys"])
def test_what_is_sampled_with_a_shared_cache_follows_the_sequence_so_far(
    made: Callable[[Policy], Policy], kind: type[Policy], recipe_path: Path
) -> None:
    policy = made(policy_of(recipe_file.read(recipe_path), kind=kind))
    counts = np.array([1, 19, 2])
    # So cold that the likeliest token is all but certain.
    tokens, lengths = policy.sample(PROMPTS, counts, 6, 1e-4, 1.0, torch.Generator().manual_seed(0))
    for prompt, row, length in zip(np.repeat(PROMPTS, counts), tokens.tolist(), lengths.tolist(), strict=True):
        likeliest = plain_logits(policy, prompt, row[:length])[:-1].argmax(dim=-1).tolist()
        assert row[:length] == likeliest


@both_policies
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.7), (1.3, 0.8)])
def test_completions_are_as_frequent_as_the_model_says(
    temperature: float, top_p: float, kind: type[Policy], recipe_path: Path
) -> None:
    policy = policy_of(recipe_file.read(recipe_path), kind=kind)
    count, length = 6000, 2
    tokens, lengths = policy.sample(
        PROMPTS, np.full(3, count), length, temperature, top_p, torch.Generator().manual_seed(1)
    )
    assert len(tokens) == 3 * count
    for position, prompt in enumerate(PROMPTS):
        part = slice(position * count, (position + 1) * count)
        seen = Counter(
            tuple(row[:size]) for row, size in zip(tokens[part].tolist(), lengths[part].tolist(), strict=True)
        )
        expected = completion_probabilities(policy, prompt, temperature, top_p)
        assert sum(expected.values()) == pytest.approx(1.0, abs=1e-5)
        assert seen.keys() <= {completion for completion, chance in expected.items() if chance > 0.0}
        common = [completion for completion, chance in expected.items() if chance * count >= 5.0]
        observed = [*(seen[completion] for completion in common)]
        wanted = [*(expected[completion] * count for completion in common)]
        observed.append(count - sum(observed))
        wanted.append(count - sum(wanted))
        if wanted[-1] < 5.0:  # too few rare ones for a class of their own
            observed[-2:], wanted[-2:] = [sum(observed[-2:])], [sum(wanted[-2:])]
        assert len(common) > 5, "the test would show nothing"
        scaled = np.array(wanted) * (count / sum(wanted))
        assert stats.chisquare(observed, scaled).pvalue > 1e-3


def completion_probabilities(
    policy: Policy, prompt: str, temperature: float, top_p: float
) -> dict[tuple[int, ...], float]:
    """The chance of every completion of at most two tokens."""

    def chances(logits: torch.Tensor) -> np.ndarray:
        plain = np.exp(logits.double().numpy() / temperature)
        plain /= plain.sum()
        descending = np.argsort(-plain)
        before = np.cumsum(plain[descending]) - plain[descending]
        kept = np.zeros_like(plain)
        kept[descending[before < top_p]] = plain[descending[before < top_p]]  # the smallest set with top_p or more
        return kept / kept.sum()

    first = chances(plain_logits(policy, prompt)[-1])
    found: dict[tuple[int, ...], float] = {}
    for token in np.flatnonzero(first).tolist():
        if token == policy.tokenizer.eos_token_id:
            found[(token,)] = first[token]
        else:
            second = chances(plain_logits(policy, prompt, [token])[-1])
            found |= {(token, after): first[token] * second[after] for after in np.flatnonzero(second).tolist()}
    return found


@both_policies
def test_completions_end_with_their_first_end_token_and_are_filled_up_with_padding(
    kind: type[Policy], recipe_path: Path
) -> None:
    policy = policy_of(recipe_file.read(recipe_path), kind=kind)
    eos, pad = policy.tokenizer.eos_token_id, policy.tokenizer.pad_token_id
    tokens, lengths = policy.sample(PROMPTS, np.array([50, 0, 50]), 5, 2.0, 1.0, torch.Generator().manual_seed(0))
    assert tokens.shape == (100, 5)
    for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        expected = row.index(eos) + 1 if eos in row else 5
        assert length == expected
        assert row[length:] == (5 - length) * [pad]
    assert {2, 5} <= set(lengths.tolist()), "the test would show nothing"


@both_policies
def test_completions_end_with_the_first_token_that_has_a_stop_string(kind: type[Policy], recipe_path: Path) -> None:
    policy = policy_of(recipe_file.read(recipe_path, ["training.stop_strings=['7', b]"]), kind=kind)
    tokens, lengths = policy.sample(PROMPTS, np.array([60, 1, 60]), 5, 3.0, 1.0, torch.Generator().manual_seed(0))
    ended = 0
    for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        texts = policy.tokenizer.batch_decode([[token] for token in row[:length]])
        ends = [text == "<eos>" or "7" in text or "b" in text for text in texts]
        assert not any(ends[:-1])
        assert ends[-1] or length == 5
        ended += texts[-1] == "7" or "b" in texts[-1]
    assert ended > 20, "the test would show nothing"


def test_trl_ends_completions_where_the_minimal_trainer_does(recipe_path: Path, tmp_path: Path) -> None:
    every_token = [*"=0123456789", *(chr(letter) for letter in range(ord("a"), ord("q")))]
    stop = f"training.stop_strings=[{', '.join(repr(text) for text in every_token)}]"
    for trainer in ("minimal", "trl"):
        directory = run(recipe_path, tmp_path / trainer, f"trainer={trainer}", stop, "training.steps=1")
        assert [line["completions/mean_length"] for line in metrics(directory) if "loss" in line] == [1.0]


def test_a_stop_string_that_no_token_has_is_refused(recipe_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"training\.stop_strings: .*'###'"):
        policy_of(recipe_file.read(recipe_path, ["training.stop_strings=['###']"]))


# Pretrained models


@pytest.fixture
def start(recipe_path: Path, tmp_path: Path) -> Path:
    """A directory with a pretrained model: the warm start of the module's recipe."""
    recipe = recipe_file.read(recipe_path)
    model, tokenizer = warm_started(recipe.model, recipe.task, recipe.seed)
    model.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def test_in_mixed_precision_the_model_that_samples_computes_what_the_trained_one_does(start: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    sampler = precision.sampler(model)
    tokens = torch.arange(2, 14)[None]
    for _ in range(2):
        with torch.no_grad():
            plain = model(tokens).logits
            with precision.autocast(True):
                ours, theirs = sampler(tokens).logits, model(tokens).logits
        assert torch.equal(ours, theirs)
        assert not torch.equal(theirs.float(), plain), "the test would show nothing"
        torch.testing.assert_close(theirs.float(), plain, rtol=0.02, atol=0.05)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.1)
        precision.refresh(sampler, model)


@both_policies
def test_in_mixed_precision_the_gradient_is_that_of_float32_but_for_rounding(
    kind: type[Policy], recipe_path: Path
) -> None:
    recipe = recipe_file.read(recipe_path, ["training.updates_per_step=1", "training.max_grad_norm=1e9"])
    gradients = []
    for autocast in (False, True):
        model, tokenizer = warm_started(recipe.model, recipe.task, recipe.seed)
        policy = kind(model, tokenizer, recipe.training, autocast)
        policy.optimizer.register_step_pre_hook(
            lambda *_, model=model: gradients.append(torch.cat([w.grad.flatten() for w in model.parameters()]))
        )
        random = torch.Generator().manual_seed(0)
        tokens = torch.randint(2, 13, (16, 4), generator=random)
        rollouts = Rollouts(*2 * [np.zeros(16, dtype=np.int64)], tokens, torch.full((16,), 4), np.zeros(16))
        policy.update(16 * PROMPTS[:1], rollouts, np.linspace(-1.0, 1.0, 16), random)
    exact, rounded = gradients
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.999
    assert not torch.equal(exact, rounded), "the test would show nothing"


def test_a_run_of_a_pretrained_model_in_mixed_precision_can_be_repeated_and_keeps_float32_weights(
    recipe_path: Path, start: Path, tmp_path: Path
) -> None:
    model = f"model={{kind: pretrained, path: {start}, autocast: true}}"
    directory = run(recipe_path, tmp_path, model, alone=True)
    before = load_file(start / "model.safetensors")
    assert {weight.dtype for weight in weights(directory).values()} == {torch.float32}
    assert not any(torch.equal(weight, before[name]) for name, weight in weights(directory).items())
    assert_same_training(directory, run(recipe_path, tmp_path / "again", model, alone=True))


def test_a_comparison_keeps_no_copy_of_a_pretrained_model_for_each_run(
    recipe_path: Path, start: Path, tmp_path: Path
) -> None:
    assert not (run(recipe_path, tmp_path, f"model={{kind: pretrained, path: {start}}}") / "model").exists()
    assert (run(recipe_path, tmp_path, "name=scratch") / "model").is_dir()


def test_a_model_whose_tokens_see_a_window_only_shares_nothing() -> None:
    tiny = {
        "vocab_size": 16,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    tiny |= {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    for window, shares in ((None, True), (4, False)):  # Phi-3 names its layers by no type
        assert can_share(AutoModelForCausalLM.from_config(Phi3Config(**tiny, sliding_window=window))) is shares


def test_a_model_whose_attention_is_not_plain_is_trained_without_sharing(start: Path, recipe_path: Path) -> None:
    plain = f"{{kind: pretrained, path: {start}"
    for model, kind in ((f"{plain}}}", SharedPromptPolicy), (f"{plain}, attn_implementation: eager}}", Policy)):
        recipe = recipe_file.read(recipe_path, [f"model={model}"])
        assert type(minimal.policy(recipe, *warm_started(recipe.model, recipe.task, 0))) is kind


def test_an_evaluation_takes_only_as_many_rollouts_at_once_as_memory_has_room_for(
    recipe_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_file.read(recipe_path)
    loop = Loop(recipe, load_task(recipe.task, recipe.seed), policy_of(recipe))
    sampled: list[int] = []
    sample = loop.policy.sample
    monkeypatch.setattr(
        loop.policy, "sample", lambda prompts, *more: sampled.append(len(prompts)) or sample(prompts, *more)
    )
    minimal.evaluate(loop, last=False)
    a_row = minimal.bytes_of_a_row(loop.policy.model.config, 3 + 4)  # tokens of a prompt and of a completion
    monkeypatch.setattr(minimal, "_BYTES_AT_ONCE", 3 * 4 * a_row)  # three problems, four samples each
    minimal.evaluate(loop, last=False)
    assert sampled == [10, 3, 3, 3, 1]


# Order of prompts


def test_prompts_come_in_the_order_of_trl_over_three_epochs_with_an_incomplete_last_batch() -> None:
    problems, a_step, seed = 26, 8, 7
    epochs = itertools.count()
    sampler = RepeatSampler(range(problems), mini_repeat_count=4, batch_size=a_step, shuffle=True, seed=seed)
    adapted = EpochOrder(
        RepeatSampler(range(problems), mini_repeat_count=4, batch_size=a_step, shuffle=True, seed=seed),
        epoch=lambda: next(epochs),
    )
    ours = list(itertools.islice(prompt_order(problems, a_step, seed), 72))
    assert ours == [row for _ in range(3) for row in list(sampler)[::4]]
    assert ours == [row for _ in range(3) for row in list(adapted)[::4]]
    assert len(set(ours[:24])) == 24


def test_a_run_visits_the_prompts_that_trl_visits(recipe_path: Path, finished: Path, tmp_path: Path) -> None:
    theirs = run(recipe_path, tmp_path, "trainer=trl")
    pd.testing.assert_frame_equal(allocations(theirs)[["step", "prompt"]], allocations(finished)[["step", "prompt"]])


# Whole runs


def test_a_run_leaves_what_a_run_of_trl_leaves_but_checkpoints(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"recipe.yaml", "environment.json", "metrics.jsonl", "allocations.parquet", "report.html", "model"} <= names
    assert "checkpoints" not in names
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["finished"] is not None
    assert environment["device"] == "CPU"
    records = metrics(finished)
    trained = [record for record in records if "evaluation" not in record]
    assert [record["step"] for record in trained] == list(range(1, STEPS + 1))
    assert [record["rollouts"] for record in trained] == list(range(32, 32 * STEPS + 1, 32))
    assert [record["step"] for record in records if "evaluation" in record] == [0, 5, 10, 12]
    times = [record["training_seconds"] for record in RunDirectory(finished).read_metrics()]
    assert times == sorted(times)


def test_allocations_hold_every_rollout_and_agree_with_the_metrics(finished: Path) -> None:
    table = allocations(finished)
    assert table.groupby("step")["rollouts"].sum().tolist() == [32] * STEPS
    assert table["scored"].tolist() == table["rollouts"].tolist()
    assert (table["successes"] <= table["scored"]).all()
    assert table["rollouts"].nunique() > 1, "no step was uneven"
    trained = [record for record in metrics(finished) if "evaluation" not in record]
    for record, (_, step) in zip(trained, table.groupby("step"), strict=True):
        mixed = (step["successes"] > 0) & (step["successes"] < step["scored"])
        assert record["effective_prompts"] == pytest.approx(mixed.mean())
        assert record["effective_gradient_ratio"] == pytest.approx(step["rollouts"][mixed].sum() / 32)
        assert record["prompt_reward"] == pytest.approx((step["successes"] / step["scored"]).mean())
        assert record["zero_gradient_ratio/all_negative"] == pytest.approx((step["successes"] == 0).mean())
        assert record["cost/real"] == pytest.approx(32 * record["completions/mean_length"])


def test_the_same_recipe_gives_the_same_run_bit_for_bit(recipe_path: Path, finished: Path, tmp_path: Path) -> None:
    again = run(recipe_path, tmp_path)
    assert_same_training(again, finished)
    assert metrics(again) == metrics(finished)


def test_a_finished_run_is_not_trained_again(
    recipe_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "metrics.jsonl").stat().st_mtime_ns
    assert main(["train", str(recipe_path), "--output", str(finished.parent)]) == 0
    assert "finished already" in capsys.readouterr().out
    assert (finished / "metrics.jsonl").stat().st_mtime_ns == before


def test_evaluations_do_not_change_what_is_trained(recipe_path: Path, finished: Path, tmp_path: Path) -> None:
    changes = ["evaluation.every=1", "evaluation.samples=3", "evaluation.temperature=0.5", "evaluation.max_problems=7"]
    changes += ["evaluation.top_p=0.9", "evaluation.max_completion_length=9", "evaluation.final={samples: 2}"]
    other = run(recipe_path, tmp_path, *changes)
    assert_same_training(other, finished)
    evaluations = [record["evaluation"]["held-out"] for record in metrics(other) if "evaluation" in record]
    assert len(evaluations) == STEPS + 1
    assert evaluations[1] * 7 * 3 == pytest.approx(round(evaluations[1] * 7 * 3))
    assert evaluations[-1] * 10 * 2 == pytest.approx(round(evaluations[-1] * 10 * 2))


def test_an_interrupted_run_begins_anew_and_ends_the_same(
    recipe_path: Path,
    finished: Path,
    tmp_path: Path,
    stopped_after_step_3: Callable[[Path], str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    stopped_after_step_3(tmp_path)
    assert "Traceback" not in capfd.readouterr().err
    assert json.loads((tmp_path / "tiny" / "environment.json").read_text())["finished"] is None

    run(recipe_path, tmp_path)
    assert_same_training(tmp_path / "tiny", finished)
    assert metrics(tmp_path / "tiny") == metrics(finished)


def test_a_model_on_the_disk_is_trained_like_one_made_from_scratch(
    recipe_path: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Eager attention, so that the same policy samples: the other one draws with other random numbers.
    plain = f"model={{kind: pretrained, path: {finished / 'model'}, attn_implementation: eager}}"
    trained = run(recipe_path, tmp_path, plain)
    assert metrics(trained)[0]["evaluation"] == metrics(finished)[-1]["evaluation"]
    missing = f"model={{kind: pretrained, path: {tmp_path / 'nothing'}}}"
    assert main(["train", str(recipe_path), missing, "--output", str(tmp_path / "other")]) == 2
    assert f"model.path: cannot load '{tmp_path / 'nothing'}'" in capsys.readouterr().err


def test_more_prompts_a_step_than_problems_are_refused_and_the_name_stays_free(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe_path), "training.prompts_per_step=32", "--output", str(tmp_path)]) == 2
    assert "at most the 26 problems" in capsys.readouterr().err
    run(recipe_path, tmp_path, "training.steps=1")


def test_a_full_disk_is_told_apart_from_other_failures(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: RunDirectory, *_: Any) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunDirectory, "append_allocations", full)
    assert main(["train", str(recipe_path), "--output", str(tmp_path)]) == 2
    assert f"{tmp_path / 'tiny'}: the disk is full. Free some space" in capsys.readouterr().err


def test_a_dry_run_tells_what_would_run(recipe_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe_path), "allocator.strategy=oracle", "--dry-run"]) == 0
    assert "oracle, 2 to 16 rollouts per prompt" in capsys.readouterr().out


@pytest.mark.parametrize("strategy", [*kr.strategies(), "oracle"])
def test_every_strategy_trains(strategy: str, recipe_path: Path, tmp_path: Path) -> None:
    directory = run(recipe_path, tmp_path, f"allocator.strategy={strategy}", "training.steps=5", "evaluation.every=5")
    table = allocations(directory)
    assert table.groupby("step")["rollouts"].sum().tolist() == [32] * 5
    assert table["rollouts"].between(2, 16).all()
    assert (table["rollouts"].nunique() > 1) == (strategy not in ("uniform", "cautious"))  # which has seen nothing yet


def test_a_strategy_of_ones_own_is_named_by_its_module(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_rule.py").write_text(
        "import knapsack_rl as kr\nfrom knapsack_rl.estimators import DiscountedBeta\n"
        "def hardest(view, amount):\n"
        "    mean = view.belief.mean\n    return view.plan(view.even(amount, mean < mean.mean()))\n"
        "MINE = kr.Strategy(DiscountedBeta, hardest)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    directory = run(recipe_path, tmp_path, "allocator.strategy=own_rule:MINE", "training.steps=5")
    assert allocations(directory)["rollouts"].nunique() > 1


def test_plans_that_cannot_differ_are_said_before_the_run(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["allocator.min_rollouts=4", "training.steps=1"]
    assert main(["train", str(recipe_path), *changes, "--output", str(tmp_path)]) == 0
    assert "the same number of rollouts whatever the strategy. Lower min_rollouts." in capsys.readouterr().out


# Dynamic sampling


def steps_of(recipe: Recipe) -> Iterator[Collected]:
    loop = Loop(recipe, load_task(recipe.task, recipe.seed), policy_of(recipe))
    for _ in range(recipe.training.steps):
        yield loop.step()[0]


@pytest.mark.parametrize("strategy", ["uniform", "knapsack"])
def test_dynamic_sampling_spends_the_budget_exactly_and_keeps_mixed_groups_only(
    strategy: str, recipe_path: Path
) -> None:
    recipe = recipe_file.read(recipe_path, ["training.dynamic_sampling=true", f"allocator.strategy={strategy}"])
    loop = Loop(recipe, load_task(recipe.task, recipe.seed), policy_of(recipe))
    left, several = STEPS * 32, 0
    while left:
        rounds, kept = dynamic_sampling.collect(loop, left)
        loop.update(kept, [done.step for done in rounds])
        left -= sum(int(done.planned.sum()) for done in rounds)
        assert left >= 0
        assert 1 <= len(rounds) <= dynamic_sampling.MOST_ROUNDS
        several += len(rounds) > 1
        counts = [done.rollouts.counts(len(done.rows)) for done in rounds]
        successes, scored = (np.concatenate(column) for column in zip(*counts, strict=True))
        mixed = np.flatnonzero((successes > 0) & (successes < scored))
        assert np.unique(kept.groups).tolist() == mixed.tolist()
        assert len(mixed) <= 8
        for group in mixed:
            ours = kept.rewards[kept.groups == group]
            assert (ours.sum(), len(ours)) == (successes[group], scored[group])
    assert several, "the test would show nothing"


@pytest.mark.parametrize("groups", [1, 5, 7])
def test_the_last_step_of_dynamic_sampling_spends_what_is_left_of_the_budget(groups: int, recipe_path: Path) -> None:
    recipe = recipe_file.read(recipe_path, ["training.dynamic_sampling=true"])
    loop = Loop(recipe, load_task(recipe.task, recipe.seed), policy_of(recipe))
    rounds, _ = dynamic_sampling.collect(loop, 4 * groups)
    assert sum(int(done.planned.sum()) for done in rounds) == 4 * groups


def test_dynamic_sampling_gives_up_on_a_step_after_some_rounds_when_no_group_is_ever_mixed(
    recipe_path: Path, tmp_path: Path
) -> None:
    # A model that was shown one batch solves no chain of three.
    changes = ["training.dynamic_sampling=true", "task.operations=3", "model.warm_start.steps=1"]
    hopeless = run(recipe_path, tmp_path, *changes)
    table = allocations(hopeless)
    assert table["rollouts"].sum() == STEPS * 32
    assert table["successes"].sum() == 0
    assert table.groupby("step").size().tolist() == [
        8 * dynamic_sampling.MOST_ROUNDS,
        8 * (STEPS - dynamic_sampling.MOST_ROUNDS),
    ]
    assert [record["loss"] for record in metrics(hopeless) if "evaluation" not in record] == [0.0, 0.0]


def test_allocations_of_dynamic_sampling_hold_dropped_rollouts_too(recipe_path: Path, tmp_path: Path) -> None:
    directory = run(recipe_path, tmp_path, "training.dynamic_sampling=true")
    table = allocations(directory)
    assert table["rollouts"].sum() == table["scored"].sum() == STEPS * 32
    trained = [record for record in metrics(directory) if "evaluation" not in record]
    assert [record["rollouts"] for record in trained] == table.groupby("step")["rollouts"].sum().cumsum().tolist()
    evaluated = [record["rollouts"] for record in metrics(directory) if "evaluation" in record]
    assert (evaluated[0], evaluated[-1]) == (0, STEPS * 32)
    assert len(evaluated) == len({rollouts // (5 * 32) for rollouts in evaluated}) + (STEPS % 5 > 0)


# Waves and weights


def test_a_step_in_waves_spends_its_budget_exactly_and_scores_each_rollout_once(recipe_path: Path) -> None:
    recipe = recipe_file.read(recipe_path, ["allocator.strategy=adaptive"])
    waves = set()
    for step in steps_of(recipe):
        rollouts = step.rollouts
        assert step.planned.sum() == len(rollouts) == 32
        assert np.bincount(rollouts.groups, minlength=8).tolist() == step.planned.tolist()
        assert (np.bincount(rollouts.groups, rollouts.rewards, 8) / step.planned).tolist() == minimal.mean_rewards(
            step
        ).tolist()
        waves.add(step.waves)
    assert max(waves) == 3


@pytest.mark.parametrize("strategy", ["knapsack", "adaptive", "oracle"])
def test_a_step_is_told_its_tokens_and_expected_to_take_no_more_than_the_limit(
    strategy: str, recipe_path: Path
) -> None:
    recipe = recipe_file.read(recipe_path, [f"allocator.strategy={strategy}", "allocator.cost_limit=1.0"])
    loop = Loop(recipe, load_task(recipe.task, recipe.seed), policy_of(recipe))
    oracle = Oracle(loop) if strategy == "oracle" else None
    twin = kr.BudgetAllocator("uniform", group_size=4)  # is told what the tokens say
    for number in range(8):
        rows = [next(loop.order) for _ in range(8)]
        step = loop.collect(rows, oracle.look(rows) if oracle else None)
        ids, known = ([loop.columns[name][row] for row in rows] for name in ("id", "category"))
        if number:
            assert step.expected_costs == pytest.approx(twin.expected_costs(ids, {"category": known}))
            assert step.expected_costs @ step.planned <= step.expected_costs.mean() * 32 * (1 + 1e-8)
        written = (step.rollouts.tokens != loop.policy.tokenizer.pad_token_id).sum(dim=1).numpy()
        spent = np.bincount(step.rollouts.groups, written, 8)
        assert step.rollouts.costs(8).tolist() == spent.tolist()
        twin.tell(ids, *step.rollouts.counts(8), {"category": known}, costs=spent)
    assert len(set(twin.expected_costs(ids))) > 1, "the test would show nothing"


def test_later_waves_add_nothing_to_groups_that_are_mixed_already(recipe_path: Path) -> None:
    recipe = recipe_file.read(recipe_path, ["allocator.strategy=adaptive", "allocator.max_rollouts=32"])
    stopped = 0
    for step in steps_of(recipe):
        rollouts = step.rollouts
        for prompt in range(8):
            first = rollouts.rewards[rollouts.groups == prompt][:2]
            if 0 < first.sum() < 2:
                assert step.planned[prompt] == 2
                stopped += 1
    assert stopped, "the test would show nothing"


def test_without_waves_a_step_is_planned_in_one_shot(recipe_path: Path) -> None:
    recipe = recipe_file.read(recipe_path, ["allocator.strategy=adaptive", "allocator.waves=false"])
    assert {step.waves for step in steps_of(recipe)} == {1}


def test_a_run_in_waves_is_the_same_bit_for_bit_when_it_is_run_again(recipe_path: Path, tmp_path: Path) -> None:
    runs = [run(recipe_path, tmp_path / name, "allocator.strategy=adaptive") for name in "ab"]
    assert_same_training(*runs)
    assert metrics(runs[0]) == metrics(runs[1])


def test_categories_reach_the_allocator_and_unknown_columns_are_refused(recipe_path: Path, tmp_path: Path) -> None:
    with_categories = run(recipe_path, tmp_path / "a", "allocator.strategy=adaptive")
    without = run(recipe_path, tmp_path / "b", "allocator.strategy=adaptive", "allocator.features=[]")
    believed = [allocations(directory)["belief_wins"].to_numpy() for directory in (with_categories, without)]
    assert not np.array_equal(*believed)
    with pytest.raises(kr.InvalidInputError, match=r"allocator\.features: expected columns .*, got 'topic'"):
        run(recipe_path, tmp_path / "c", "allocator.strategy=adaptive", "allocator.features=[topic]")


def test_weights_multiply_the_advantages_of_a_group_by_the_root_of_the_mean_size_over_its_size(
    recipe_path: Path,
) -> None:
    plain, weighted = (
        Loop(recipe, load_task(recipe.task, recipe.seed), policy_of(recipe))
        for recipe in (
            recipe_file.read(recipe_path, ["allocator.strategy=adaptive", *weights])
            for weights in (["training.rollout_weights=none"], [])
        )
    )
    groups = np.array([0, 1, 1, 0, 1, 1, 1, 1])
    rewards = np.array([1.0, 0, 0, 0, 1, 0, 0, 0])
    rollouts = Rollouts(groups, groups, torch.zeros(8, 1), torch.ones(8), rewards)
    factors = plain.advantages(rollouts) / weighted.advantages(rollouts)
    assert factors == pytest.approx(np.sqrt(np.array([2, 6]) / 4)[groups])


# The oracle


def test_the_oracle_plans_with_the_rates_that_it_sampled_and_nobody_is_charged(recipe_path: Path) -> None:
    recipe = recipe_file.read(recipe_path, ["allocator.strategy=oracle", "allocator.oracle_samples=32"])
    task = load_task(recipe.task, recipe.seed)
    loop, twin = (Loop(recipe, task, policy_of(recipe)) for _ in range(2))
    rows = list(itertools.islice(prompt_order(26, 8, recipe.seed), 8))
    successes, scored = Oracle(twin).look(rows).values()
    rates = successes / scored
    step = loop.collect(rows, Oracle(loop).look(rows))
    assert step.planned.tolist() == kr.allocate(rates, 32, 2, 16).rollouts.tolist()
    assert len(set(step.planned.tolist())) > 1, "the test would show nothing"
    assert step.planned.sum() == 32
    many = np.full(8, 512)
    often = twin.generate(rows, many, torch.Generator().manual_seed(9)).counts(8)[0] / 512
    assert np.abs(rates - often).max() < 4.5 * np.sqrt(0.25 / 32 + 0.25 / 512)


def test_looking_at_true_rates_does_not_change_what_is_sampled(recipe_path: Path, tmp_path: Path) -> None:
    # With these bounds every plan is even, whoever makes it.
    bounds = ["allocator.min_rollouts=4", "allocator.max_rollouts=4", "training.steps=4"]
    uniform = run(recipe_path, tmp_path / "a", *bounds, "allocator.strategy=uniform")
    oracle = run(recipe_path, tmp_path / "b", *bounds, "allocator.strategy=oracle")
    assert_same_training(uniform, oracle)
    assert metrics(uniform) == metrics(oracle)


# Learning curves


def copying(task: Task) -> Task:
    """The same problems with the start digit as the answer: what a small model learns in a few dozen steps."""

    def first_digit(row: dict[str, str]) -> dict[str, str]:
        return {"answer": row["prompt"][0]}

    return Task(
        task.train.map(first_digit),
        {name: rows.map(first_digit) for name, rows in task.evaluation.items()},
        task.reward,
    )


@pytest.mark.slow
def test_learning_curves_are_those_of_trl_within_noise(recipe_path: Path, tmp_path: Path) -> None:
    changes = ["training.prompts_per_step=16", "training.group_size=8", "training.updates_per_step=1"]
    changes += ["training.micro_batch_size=128", "training.learning_rate=3e-3", "training.weight_decay=0"]
    changes += ["training.adam_beta2=0.99", "training.steps=30", "training.max_completion_length=3"]
    changes += ["task.train_problems=128", "task.eval_problems=128", "evaluation.samples=8"]
    starts, ours, theirs = [], [], []
    for seed in range(1, 7):
        recipe = recipe_file.read(recipe_path, [*changes, f"seed={seed}"])
        task = copying(load_task(recipe.task, seed))
        loop = Loop(recipe, task, policy_of(recipe))
        starts.append(minimal.evaluate(loop, last=False)["held-out"].accuracy)
        for _ in range(recipe.training.steps):
            loop.step()
        ours.append(minimal.evaluate(loop, last=True)["held-out"].accuracy)

        policy = policy_of(recipe)
        accuracies: list[float] = []
        trainer = EvaluatedTrainer(
            recipe=recipe,
            benchmarks=task.evaluation,
            on_evaluation=lambda _, found, to=accuracies: to.append(found["held-out"].accuracy),
            model=policy.model,
            processing_class=policy.tokenizer,
            reward_funcs=task.reward,
            args=grpo_config(recipe, tmp_path / str(seed)),
            train_dataset=task.train,
            allocator=ingredients.allocator(recipe),
            advantage_clip=recipe.training.advantage_clip,
            id_column="id",
        )
        trainer.train()
        trainer.evaluate()
        theirs += accuracies[-1:]
    rise = np.mean(theirs) - np.mean(starts)
    differences = np.array(ours) - np.array(theirs)
    # Five standard errors of the mean over six seeds: chance exceeds them once in 250 times.
    tolerance = 5.0 * differences.std(ddof=1) / np.sqrt(len(differences))
    assert rise > 0.3, "nothing was learned"
    assert tolerance < 0.7 * rise, "the test would show nothing"
    assert abs(differences.mean()) < tolerance
