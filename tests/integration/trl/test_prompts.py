"""Who a prompt is, what counts as success, and the kinds of prompts, rewards and models that TRL takes."""

from __future__ import annotations

import numpy as np
import pytest
import small
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from trl.chat_template_utils import qwen3_chat_template

import knapsack_rl as kr
from knapsack_rl import BudgetAllocator, InvalidInputError


def test_identity_is_the_content_whatever_the_order_of_the_data_set(make):
    first = make({"max_steps": 3})
    first.train()
    second = make({"max_steps": 3, "seed": 11}, train_dataset=small.rows().shuffle(seed=3))
    second.train()
    ids = [kr.prompt_id(row["prompt"]) for row in small.rows()]
    for trainer in (first, second):
        assert trainer.allocator.metrics()["known_prompts"] == len(ids)
        assert not np.isnan(trainer.allocator.success_rates(ids)).any()


def test_an_id_column_tells_equal_prompts_apart(make):
    data = Dataset.from_dict(
        {"prompt": ["w1 w2"] * 8, "ease": [i / 7 for i in range(8)], "task": [f"t{i}" for i in range(8)]}
    )
    together = make({"max_steps": 2}, train_dataset=data)
    together.train()
    assert together.allocator.metrics()["known_prompts"] == 1
    apart = make({"max_steps": 2}, train_dataset=data, id_column="task")
    apart.train()
    assert apart.allocator.metrics()["known_prompts"] == 8


def test_an_id_column_that_is_not_there_is_named_even_if_only_the_rows_of_a_stream_show_it(make):
    stream = IterableDataset.from_generator(lambda: iter(small.rows()))
    assert stream.column_names is None
    trainer = make({"max_steps": 1}, id_column="task", train_dataset=stream)
    with pytest.raises(InvalidInputError, match=r"id_column: 'task' is not a column .* ease, prompt"):
        trainer.train()


def test_success_is_a_reward_above_the_threshold(make):
    def graded(completion_ids, **_):
        return [j % 4 / 4 for j in range(len(completion_ids))]

    for threshold, successes in ((0.0, 3), (0.25, 2), (0.5, 1), (0.75, 0)):
        trainer = make({"max_steps": 1}, reward_funcs=graded, success_threshold=threshold)
        trainer.train()
        assert trainer.last_step.successes.tolist() == [successes] * 4


@pytest.mark.parametrize("reward", [0.1, 0.2, 0.3, 0.7])
def test_a_reward_equal_to_the_threshold_is_no_success_though_trl_rounds_rewards(make, reward):
    trainer = make(
        {"max_steps": 1}, reward_funcs=lambda completions, **_: [reward] * len(completions), success_threshold=reward
    )
    trainer.train()
    assert trainer.last_step.successes.tolist() == [0, 0, 0, 0]


def test_one_of_several_reward_functions_can_decide_success(make):
    def style(completion_ids, **_):
        return [1.0] * len(completion_ids)

    options = {"max_steps": 1, "reward_weights": [1.0, 0.2]}
    by_sum = make(options, reward_funcs=[small.luck, style])
    by_sum.train()
    assert by_sum.last_step.successes.tolist() == [4, 4, 4, 4]
    by_luck = make(options, reward_funcs=[small.luck, style], success_reward="luck")
    by_luck.train()
    alone = make({"max_steps": 1})
    alone.train()
    assert by_luck.last_step.successes.tolist() == alone.last_step.successes.tolist()


def test_conversational_prompts_are_known_by_their_content(make):
    chats = [[{"role": "user", "content": f"w{i} a"}] for i in range(12)]
    data = Dataset.from_dict({"prompt": chats, "ease": [i / 11 for i in range(12)]})
    trainer = make({"max_steps": 8}, train_dataset=data)
    trainer.train()
    assert not np.isnan(trainer.allocator.success_rates([kr.prompt_id(chat) for chat in chats])).any()
    assert len(set(trainer.last_step.plan.rollouts)) > 1


class Quiz:
    """An environment that remembers the row it was reset with."""

    def reset(self, **row):
        self.row = row
        return row.get("question")

    def get_reward(self):
        return 0.0


def knows_its_row(environments, ease, **_):
    assert [environment.row["ease"] for environment in environments] == ease
    assert len(set(map(id, environments))) == len(environments)
    return [float(share > 0.4 and j % 2) for j, share in enumerate(ease)]


@pytest.mark.filterwarnings("ignore:You are using 'environment_factory':UserWarning")
@pytest.mark.parametrize("column", ["prompt", "question"])
def test_every_environment_is_reset_with_the_row_it_was_dealt_and_may_own_the_prompts(make, observed, column):
    words = small.tokenizer()
    words.chat_template = qwen3_chat_template
    texts = [f"w{i} a" for i in range(12)]
    data = {
        column: [[{"role": "user", "content": text}] for text in texts] if column == "prompt" else texts,
        "ease": [i / 11 for i in range(12)],
    }
    trainer = make(
        {"max_steps": 6},
        kind=observed,
        reward_funcs=knows_its_row,
        train_dataset=Dataset.from_dict(data),
        processing_class=words,
        environment_factory=Quiz,
        id_column=None if column == "prompt" else column,
    )
    trainer.train()
    assert trainer.allocator.metrics()["known_prompts"] == 12
    assert any(len(set(batch["record"].plan.rollouts)) > 1 for batch in trainer.batches)


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning")
def test_a_rollout_function_finds_groups_of_the_size_that_the_trainer_tells(make, observed):
    def repeat(prompts, trainer):
        size = trainer.num_generations
        chosen = [prompt for prompt in prompts[::size] for _ in range(size)]
        ids = [trainer.processing_class(prompt)["input_ids"] for prompt in chosen]
        return {"prompt_ids": ids, "completion_ids": ids, "logprobs": [[-1.0] * len(row) for row in ids], "of": chosen}

    def luck(prompts, of, **_):
        assert of == prompts
        return [float(j in (0, 9, 10)) for j in range(len(prompts))]

    trainer = make({"max_steps": 8}, kind=observed, reward_funcs=luck, rollout_func=repeat)
    trainer.train()
    assert any(len(set(batch["record"].plan.rollouts)) > 1 for batch in trainer.batches)


def test_lora_adapters_train(make):
    trainer = make({"max_steps": 8}, peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if "lora_B" in n}
    trainer.train()
    assert len(set(trainer.last_step.plan.rollouts)) > 1
    assert any(not np.array_equal(before[n], p.detach()) for n, p in trainer.model.named_parameters() if n in before)


def test_the_default_allocator_leaves_groups_even(make):
    trainer = make({"max_steps": 1}, allocator=None)
    assert trainer.allocator.strategy == "uniform"
    assert trainer.allocator.settings.group_size == 4


def test_the_default_allocator_takes_groups_of_any_size(make):
    trainer = make({"num_generations": 256, "per_device_train_batch_size": 512}, allocator=None)
    assert trainer.allocator.settings.group_size == 256


def test_the_uniform_strategy_stays_uniform(make):
    trainer = make({"max_steps": 8}, allocator=BudgetAllocator("uniform", group_size=4))
    trainer.train()
    assert all(step["rollouts/max"] == 4 for step in trainer.state.log_history if "rollouts/max" in step)
