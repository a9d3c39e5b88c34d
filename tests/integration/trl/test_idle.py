"""Rollouts without gradient are not trained on, and the weights are those of the run that trains on all of them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from peft import LoraConfig
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl import GRPOTrainer

from knapsack_rl import BudgetAllocator
from knapsack_rl.trl import KnapsackGRPOTrainer
from knapsack_rl.trl.idle import DIVISORS, _is_plain_rotary, pack, trimmed

# Adam divides by the size of a gradient, also where it is nothing but rounding; SGD shows the gradient as it is.
STEEP = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 4}
CUTS = {
    "one batch": {},
    "accumulation of 2": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
    "accumulation of 4": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    "two updates a batch": {"per_device_train_batch_size": 8, "steps_per_generation": 2},
    "two batches an update": {"steps_per_generation": 1, "gradient_accumulation_steps": 2},
    "an update over parts of batches": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "steps_per_generation": 4,
    },
    "everything at once": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
    },
}


class Watched(KnapsackGRPOTrainer):
    """Keeps the shapes of the micro-batches that were run forward and backward."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.computed, self.scored = [], []

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, **kwargs):
        found = super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, logits_to_keep, **kwargs)
        if not self._deferring:
            into = self.computed if torch.is_grad_enabled() else self.scored
            into.append((attention_mask.clone(), logits_to_keep))
        return found


def weights_of(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def assert_same(ours, theirs, tolerance=1e-6):
    """Relative to the size of a matrix: single numbers in it may be nearly 0."""
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert torch.linalg.norm(ours[name] - weight) <= tolerance * torch.linalg.norm(weight), name


def uniform():
    return BudgetAllocator("uniform", group_size=4)


def both(make, options, **more):
    """The same run in plain TRL and here, and that it moved."""
    plain = make(STEEP | options, kind=GRPOTrainer, **more)
    start = weights_of(plain)
    plain.train()  # before the next one is built, since building seeds the generators
    ours = make(STEEP | options, kind=Watched, allocator=uniform(), **more)
    assert ours.skip_idle
    ours.train()
    assert any(not torch.equal(weight, start[name]) for name, weight in weights_of(plain).items())
    return plain, ours


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_the_default_makes_the_update_of_plain_trl_where_successes_are_rare_too(make, scale):
    def once(completion_ids, **_):
        return [float(row == 3) for row in range(len(completion_ids))]

    def run(kind, **more):
        options = {"num_generations": 32, "per_device_train_batch_size": 64, "scale_rewards": scale, "max_steps": 2}
        trainer = make(STEEP | options, kind, reward_funcs=once, **more)
        trainer.train()
        return trainer

    plain, ours = run(GRPOTrainer), run(KnapsackGRPOTrainer, allocator=None)
    assert max(plain._logs["advantages"]) > 5.0
    assert_same(weights_of(ours), weights_of(plain))


@pytest.mark.parametrize("cut", ["one batch", "everything at once"])
@pytest.mark.parametrize("loss", DIVISORS)
def test_every_loss_type_makes_the_update_of_plain_trl(make, loss, cut):
    options = {"loss_type": loss, "importance_sampling_level": "sequence" if loss == "luspo" else "token"}
    plain, ours = both(make, CUTS[cut] | options)
    assert_same(weights_of(ours), weights_of(plain))
    for mine, theirs in zip(ours.state.log_history, plain.state.log_history, strict=True):
        shared = {"loss", "grad_norm", "reward", "frac_reward_zero_std"} & theirs.keys()
        assert {name: mine[name] for name in shared} == pytest.approx(
            {name: theirs[name] for name in shared}, rel=1e-5, abs=1e-6
        )


@pytest.mark.parametrize("loss", ["dapo", "bnpo"])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_however_trl_cuts_a_batch_the_update_is_that_of_plain_trl(make, cut, loss):
    plain, ours = both(make, cut | {"loss_type": loss})
    assert_same(weights_of(ours), weights_of(plain))


@pytest.mark.parametrize(
    "option",
    [
        {"mask_truncated_completions": True},
        {"pad_to_multiple_of": 4},
        {"off_policy_mask_threshold": 0.01, "num_iterations": 2},
        {"delta": 1.05, "epsilon": 0.01, "num_iterations": 2},
        {"importance_sampling_level": "sequence", "num_iterations": 2},
        {"scale_rewards": "batch"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_that_change_the_loss_leave_the_update_that_of_plain_trl(make, option):
    plain, ours = both(make, CUTS["accumulation of 4"] | option)
    assert_same(weights_of(ours), weights_of(plain))


def cheer(completion_ids, **_):
    """Another reward for almost every completion."""
    return [(sum((k + 1) * token for k, token in enumerate(ids)) % 97) / 97 for ids in completion_ids]


@pytest.mark.parametrize("cut", ["one batch", "accumulation of 4", "everything at once"])
def test_with_nothing_to_skip_the_weights_are_those_of_plain_trl_bit_for_bit(make, cut):
    plain, ours = both(make, CUTS[cut] | {"generation_kwargs": {"min_new_tokens": 4}}, reward_funcs=cheer)
    assert all(share == 1.0 for share in logged(ours, "effective_gradient_ratio"))
    for name, weight in weights_of(plain).items():
        assert torch.equal(weight, weights_of(ours)[name]), name


def logged(trainer, name):
    return [step[name] for step in trainer.state.log_history if name in step]


def test_forward_and_backward_passes_are_over_live_rows_alone(make):
    _, ours = both(make, CUTS["everything at once"])
    live = [round(16 * share) for share in logged(ours, "effective_gradient_ratio")]
    assert 0 < sum(live) < 16 * len(live)
    trained = [int(mask[:, -kept:].any(dim=1).sum()) for mask, kept in ours.computed]
    assert sum(trained) == 2 * sum(live)  # two passes over a batch
    assert sum(len(mask) for mask, _ in ours.computed) == sum(trained)  # and nothing else
    assert sum(len(mask) for mask, _ in ours.scored) == sum(live)  # once by the policy that generated them
    assert max(len(mask) for mask, _ in ours.computed) <= 4


def test_a_micro_batch_is_as_wide_as_its_own_longest_row(make):
    _, ours = both(make, CUTS["accumulation of 4"])
    for mask, _ in ours.computed:
        assert mask.shape[1] == mask.any(dim=0).sum() or not mask[:, -1].any()  # or no token of it counts
    assert len({mask.shape[1] for mask, _ in ours.computed}) > 1


@pytest.mark.parametrize("optimiser", ["sgd", "adamw_torch"])
@pytest.mark.parametrize("cut", ["one batch", "accumulation of 4", "two updates a batch"])
def test_a_step_without_a_live_row_moves_the_weights_as_much_as_in_plain_trl(make, cut, optimiser):
    """Momentum and weight decay go on when a gradient is 0, and would not if there were none."""

    def at_first(completion_ids, ease, trainer_state, **_):
        return small.luck(completion_ids, ease) if trainer_state.global_step < 2 else [0.0] * len(ease)

    options = CUTS[cut] | {"optim": optimiser, "weight_decay": 0.1, "lr_scheduler_type": "constant"}
    plain, ours = both(make, options | {"max_steps": 6, "learning_rate": 0.01}, reward_funcs=at_first)
    assert logged(ours, "effective_gradient_ratio")[-1] == 0.0
    # A gradient's rounding may become a step of Adam's own size, in single weights whose gradient is nearly 0.
    assert_same(weights_of(ours), weights_of(plain), tolerance=1e-6 if optimiser == "sgd" else 1e-4)


def test_a_run_without_a_live_row_is_plain_trls_bit_for_bit(make):
    options = CUTS["accumulation of 4"] | {"optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 0.01}
    plain, ours = both(make, options, reward_funcs=lambda completions, **_: [1.0] * len(completions))
    for name, weight in weights_of(plain).items():
        assert torch.equal(weight, weights_of(ours)[name]), name
    assert [len(mask) for mask, _ in ours.computed] == [1] * 4  # one row, of which no token counts, in each update
    assert "live/entropy" not in ours.state.log_history[0]


def test_metrics_over_live_rows_say_so(make):
    plain, ours = both(make, CUTS["accumulation of 4"] | {"num_iterations": 2})
    kinds = ("entropy", "clip_ratio/")
    theirs = {name for step in plain.state.log_history for name in step if name.startswith(kinds)}
    mine = {name for step in ours.state.log_history for name in step}
    assert {f"live/{name}" for name in theirs} <= mine
    assert not theirs & mine


def test_evaluation_is_over_all_rows_under_the_names_of_trl(make):
    plain, ours = both(
        make,
        {"num_generations_eval": 4, "per_device_eval_batch_size": 4, "eval_strategy": "steps", "eval_steps": 4},
        eval_dataset=small.rows(4),
    )
    assert logged(ours, "eval_entropy") == pytest.approx(logged(plain, "eval_entropy"), rel=1e-5)
    assert logged(ours, "eval_loss") == pytest.approx(logged(plain, "eval_loss"), abs=1e-6)


@pytest.mark.parametrize("strategy", ["knapsack", "adaptive"])
@pytest.mark.parametrize("cut", ["one batch", "everything at once"])
def test_uneven_groups_and_waves_make_the_update_of_the_run_that_skips_nothing(make, strategy, cut):
    runs = []
    for skip in (False, True):
        allocator = BudgetAllocator(strategy, group_size=4, max_rollouts=8)
        trainer = make(STEEP | CUTS[cut] | {"max_steps": 16}, allocator=allocator, skip_idle=skip)
        assert trainer.skip_idle is skip
        trainer.train()
        runs.append(trainer)
    assert logged(runs[1], "rollouts/max") == logged(runs[0], "rollouts/max")
    assert max(logged(runs[1], "rollouts/max")) > 4
    assert_same(weights_of(runs[1]), weights_of(runs[0]))


def test_adapters_of_lora_get_the_update_of_plain_trl(make):
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    plain, ours = both(make, CUTS["everything at once"], peft_config=adapter)
    assert_same(weights_of(ours), weights_of(plain))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_(disable|enable)` is deprecated:FutureWarning")
def test_with_gradient_checkpointing_the_update_is_that_of_plain_trl(make):
    plain, ours = both(make, CUTS["everything at once"] | {"gradient_checkpointing": True})
    assert_same(weights_of(ours), weights_of(plain))


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(make, tmp_path):
    options = CUTS["everything at once"] | {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    whole, resumed = make(options), make(options)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.skip_idle
    for name, weight in weights_of(whole).items():
        assert torch.equal(weight, weights_of(resumed)[name]), name


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"beta": 0.1}, "args.beta=0.1 pulls every rollout"),
        ({"entropy_coef": 0.1}, "args.entropy_coef"),
        ({"top_entropy_quantile": 0.5}, "args.top_entropy_quantile"),
    ],
    ids=["beta", "entropy bonus", "high-entropy tokens"],
)
def test_where_idle_rollouts_have_a_gradient_they_are_trained_on_and_one_sentence_says_why(
    make, caplog, option, reason
):
    options = STEEP | CUTS["accumulation of 2"] | option
    adapter = {"peft_config": LoraConfig(r=4, target_modules="all-linear")}  # without it is the reference policy
    plain = make(options, kind=GRPOTrainer, **adapter)
    plain.train()
    with caplog.at_level(logging.WARNING, logger="knapsack_rl.trl.idle"):
        ours = make(options, allocator=uniform(), **adapter)
    assert [record.message.count(reason) for record in caplog.records] == [1]
    assert not ours.skip_idle
    ours.train()
    for name, weight in weights_of(plain).items():
        assert torch.equal(weight, weights_of(ours)[name]), name


def test_asked_to_train_on_all_rollouts_the_trainer_does_and_says_nothing(make, caplog):
    trainer = make({"entropy_coef": 0.1}, skip_idle=False)
    assert not trainer.skip_idle
    assert not caplog.records


def test_a_loss_of_ones_own_is_over_all_rollouts(make):
    class Own(KnapsackGRPOTrainer):
        def _compute_loss(self, model, inputs):
            return super()._compute_loss(model, inputs)

    class Wrapped(KnapsackGRPOTrainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs)

    assert not make(kind=Own).skip_idle
    assert not make(kind=Wrapped).skip_idle


def tiny(kind, **more):
    words = small.tokenizer()
    ids = {"vocab_size": len(words), "pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    return ids | {"bos_token_id": None} | more


def test_a_model_whose_positions_depend_on_padding_is_trained_on_all_rollouts(make):
    config = GPT2Config(**tiny(GPT2Config, n_embd=16, n_layer=1, n_head=2, n_positions=64))
    assert not make(model=GPT2LMHeadModel(config)).skip_idle
    for kind, factor in (("dynamic", {"factor": 2.0}), ("linear", {"factor": 2.0})):
        stretched = Qwen3Config(rope_parameters={"rope_type": kind, "rope_theta": 10000.0} | factor)
        assert _is_plain_rotary(stretched) == (kind == "linear")


@pytest.mark.parametrize("weight", [0.0, 0.01])
def test_a_mixture_of_experts_skips_only_without_the_loss_of_its_router(make, weight):
    shape = {"hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4}
    config = Qwen3MoeConfig(**tiny(Qwen3MoeConfig, **shape, **heads, num_experts_per_tok=2))
    model = Qwen3MoeForCausalLM(config)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    options = STEEP | {"router_aux_loss_coef": weight}
    plain = make(options, kind=GRPOTrainer, model=model)
    plain.train()
    again = Qwen3MoeForCausalLM(config)
    again.load_state_dict(start)
    ours = make(options, model=again, allocator=uniform())
    assert ours.skip_idle == (weight == 0.0)
    ours.train()
    assert_same(weights_of(ours), weights_of(plain))


@pytest.mark.parametrize("seed", range(50))
def test_packing_deals_every_live_row_once_evenly_and_into_the_last_micro_batches_of_its_span(seed):
    draw = np.random.default_rng(seed)
    processes, spans, span, size = draw.integers(1, 5, 4)
    live = draw.random((processes, spans * span, size)) < draw.choice([0.0, 0.1, 0.5, 1.0])
    lengths = draw.integers(1, 100, live.shape)
    dealt = pack(live, lengths, int(span))
    numbers = np.arange(live.size).reshape(live.shape)
    for start in range(0, spans * span, span):
        block = slice(start, start + span)
        rows = [np.concatenate(process[block]) for process in dealt]
        assert sorted(np.concatenate(rows)) == sorted(numbers[:, block][live[:, block]])
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
        for process in dealt:
            sizes = [len(rows) for rows in process[block]]
            used = -(-live[:, block].sum() // (processes * size))
            assert not any(sizes[: span - used])
            assert max(sizes) <= size
        if live[:, block].all():
            assert np.array_equal(np.stack([process[start] for process in dealt]), numbers[:, start])


def test_trimming_keeps_every_used_column_and_a_width_of_the_asked_multiple():
    batch = {
        "prompt_ids": torch.arange(8)[None],
        "prompt_mask": torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]]),
        "completion_ids": torch.arange(8)[None],
        "completion_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "importance_sampling_ratio": torch.ones(1, 1),
        "advantages": torch.ones(1),
    }
    one, four = trimmed(batch, 1), trimmed(batch, 4)
    assert one["prompt_ids"].tolist() == [[5, 6, 7]]
    assert one["completion_ids"].tolist() == [[0, 1, 2, 3, 4]]
    assert one["importance_sampling_ratio"].shape == (1, 1)
    assert four["prompt_ids"].tolist() == [[4, 5, 6, 7]]
    assert four["completion_ids"].shape == (1, 8)
    assert one["advantages"].shape == (1,)


def torchrun(folder: Path, kind: str) -> list[dict]:
    script = Path(__file__).with_name("idle_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, str(folder), kind], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_make_the_update_of_the_run_that_skips_nothing_in_step_with_each_other(tmp_path, kind):
    first, second = torchrun(tmp_path, kind)
    lonely = 0  # micro-batches with a live row in one process only, and more to come in their update
    for cut, runs in first.items():
        assert runs["difference"] <= 1e-6, cut
        assert runs["gradient"] > 0.0, cut
        assert runs["weights"] == second[cut]["weights"], cut  # both processes hold the same
        updates = [list(zip(*pair, strict=True)) for pair in zip(runs["updates"], second[cut]["updates"], strict=True)]
        assert {any(map(any, update)) for update in updates} == {False, True}, cut
        assert all(abs(mine - other) <= 1 for update in updates for mine, other in update), cut
        before_last = [pair for update in updates for pair in update[:-1]]  # of an update, which is always computed
        assert runs["computed"] == second[cut]["computed"] == len(updates) + sum(map(any, before_last)), cut
        lonely += sum(any(pair) and not all(pair) for pair in before_last)
    assert lonely
    assert first["uneven groups"]["largest group"] > 4
    assert first["waves"]["largest group"] > 4
