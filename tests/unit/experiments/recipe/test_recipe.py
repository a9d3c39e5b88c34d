from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from knapsack_rl import BudgetAllocator
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.recipe import recipe_file, yaml_text
from knapsack_rl.experiments.recipe.model_schema import PretrainedModelConfig, ScratchModelConfig
from knapsack_rl.experiments.recipe.schema import (
    Allocator,
    Evaluation,
    Recipe,
    Training,
    TransformersEngine,
    VLLMEngine,
)


def read(*overrides: str) -> Recipe:
    return recipe_file.read(None, overrides)


def refusal(*overrides: str) -> str:
    with pytest.raises(InvalidInputError) as refused:
        read(*overrides)
    return str(refused.value)


def test_the_embedded_recipe_is_valid_and_scaled_like_the_paper() -> None:
    recipe = read()
    assert (recipe.allocator.min_rollouts, recipe.allocator.max_rollouts) == (2, 128)
    assert (recipe.training.clip_low, recipe.training.clip_high, recipe.training.advantage_clip) == (0.2, 0.28, 5.0)


def test_overrides_reach_every_depth_and_are_read_as_yaml() -> None:
    recipe = read(
        "name=other",
        "training.learning_rate=1e-6",
        "training.advantage_clip=null",
        "model.warm_start.steps=7",
        "task.operations=2",
        "evaluation.final.samples=2",
        "trl={loss_type: grpo}",
        "trl.report_to=[tensorboard]",
    )
    assert recipe.name == "other"
    assert recipe.training.learning_rate == 1e-6
    assert recipe.training.advantage_clip is None
    assert recipe.model.kind == "scratch"
    assert recipe.model.warm_start.steps == 7
    assert recipe.task.kind == "chain-arithmetic"
    assert recipe.task.operations == 2
    assert recipe.evaluation.final is not None
    assert recipe.evaluation.final.samples == 2
    assert recipe.trl == {"loss_type": "grpo", "report_to": ["tensorboard"]}


def test_a_rendered_recipe_reads_as_the_same_recipe(tmp_path: Path) -> None:
    recipe = read("training.learning_rate=1e-6", "evaluation.final={samples: 2}", "trl.loss_type=grpo")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_file.render(recipe))
    assert recipe_file.read(path) == recipe


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.stepz=3", "training.stepz: unknown key. Did you mean training.steps?"),
        ("trainning.steps=3", "trainning: unknown key. Did you mean training?"),
        ("learning_rate=1e-3", "learning_rate: unknown key. Did you mean training.learning_rate?"),
        ("task.train_problem=3", "task.train_problem: unknown key. Did you mean task.train_problems?"),
        ("model.warm_start.stpes=3", "model.warm_start.stpes: unknown key. Did you mean model.warm_start.steps?"),
        ("evaluation.final.sample=3", "evaluation.final.sample: unknown key. Did you mean evaluation.final.samples?"),
        ("colour=red", "colour: unknown key. Known here: name, seed, trainer, task,"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_spelling(override: str, said: str) -> None:
    assert said in refusal(override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.steps=many", "training.steps: expected a valid integer, got 'many'."),
        ("training.steps=true", "training.steps: expected a valid integer, got True."),
        ("training.steps=0", "training.steps: expected a number greater than 0, got 0."),
        ("training.learning_rate=fast", "training.learning_rate: expected a valid number, got 'fast'."),
        ("evaluation.top_p=1.5", "evaluation.top_p: expected a number less than or equal to 1, got 1.5."),
        ("allocator.fallback=no", "allocator.fallback: expected a valid boolean, got 'no'."),
        ("model.layers='2'", "model.layers: expected a valid integer, got '2'."),
        ("name=a/b", "name: expected text that should match pattern"),
        ("training=3", "training: "),
        ("training.learning_rate=.inf", "training.learning_rate: expected a finite number, got inf."),
    ],
)
def test_a_wrong_type_or_range_is_refused_with_what_was_expected_and_what_came(override: str, said: str) -> None:
    assert said in refusal(override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("allocator.strategy=knapsak", "got 'knapsak'. Did you mean knapsack?"),
        (
            "task.kind=reasoning_gym",
            "task.kind: expected one of chain-arithmetic, string-operations, sorting, multiple-choice, reasoning-gym, "
            "word-problems, math",
        ),
        ("task.kind=reasoning_gym", "Did you mean reasoning-gym?"),
        ("model.architecture=qwen", "got 'qwen'. Did you mean qwen3?"),
        ("engine.kind=vlm", "Did you mean vllm?"),
    ],
)
def test_a_misspelt_choice_is_refused_with_the_nearest_one(override: str, said: str) -> None:
    assert said in refusal(override)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["allocator.min_rollouts=9"], "allocator.min_rollouts: expected at most training.group_size (8)"),
        (["allocator.max_rollouts=7"], "allocator.max_rollouts: expected at least training.group_size (8)"),
        (["training.updates_per_step=3"], "training.updates_per_step: expected a divisor of the 512 rollouts"),
        (["training.micro_batch_size=100"], "training.micro_batch_size: expected a divisor of the 512 rollouts"),
        (["evaluation.samples=513"], "evaluation.samples: expected at most the 512 rollouts of a step"),
        (["engine={kind: vllm}"], "engine.kind: vLLM loads pretrained models only"),
        (["model.width=65"], "model: width: expected a multiple"),
    ],
)
def test_an_impossible_combination_is_refused_with_its_key(overrides: list[str], said: str) -> None:
    assert said in refusal(*overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["allocator.strategy=oracle"],
            "allocator.strategy: 'oracle' samples before every step, which trainer=trl cannot",
        ),
        (
            ["training.dynamic_sampling=true"],
            "training.dynamic_sampling: trainer=trl does not support it; use trainer=minimal.",
        ),
        (
            ["trainer=minimal", "trl.loss_type=grpo"],
            "trl: trainer=minimal has no use for loss_type; leave the block out",
        ),
        (
            ["trainer=minimal", "model={kind: pretrained, path: a, lora: {rank: 2}}"],
            "model.lora: trainer=minimal trains all weights; leave it out or use trainer=trl.",
        ),
        (
            ["trainer=minimal", "model={kind: pretrained, path: a}", "engine={kind: vllm}"],
            "engine.kind: trainer=minimal generates with transformers; use engine.kind=transformers or trainer=trl.",
        ),
        (
            ["trainer=minimal", "model={kind: pretrained, path: a}", "task={kind: math}"],
            "task.template: trainer=minimal takes prompts as plain text; give a template, or use trainer=trl.",
        ),
        (["trainer=minimum"], "trainer: expected 'trl', 'minimal' or 'verl', got 'minimum'. Did you mean minimal?"),
        (
            ["trainer=minimal", "verl.trainer.nnodes=2"],
            "verl: trainer=minimal has no use for trainer; leave the block out",
        ),
        (["trainer=verl"], "task: trainer=verl takes chat prompts of the math task"),
        (["trainer=verl", "training.measure_influence=true"], "training.measure_influence: nothing measures influence"),
        (["trainer=verl"], "engine: trainer=verl starts vllm itself; use engine={kind: vllm, mode: colocate}."),
        (
            ["trainer=verl", "model={kind: pretrained, path: m.GGUF}"],
            "model.path: trainer=verl cannot read a GGUF file",
        ),
        (
            ["trainer=verl", "model={kind: pretrained, path: m, autocast: true}"],
            "model.autocast: trainer=verl has no use for True",
        ),
        (["trainer=verl", "training.stop_strings=['=']"], "training.stop_strings: vLLM does not read them here"),
        (["task={kind: word-problems}"], "model.kind: a model made from scratch cannot read this task"),
        (
            ["task={kind: math}", "model={kind: pretrained, path: m, warm_start: {}}"],
            "model.warm_start: this task has no worked examples",
        ),
        (["trainer=verl", "allocator.strategy=oracle"], "which trainer=verl cannot; use trainer=minimal"),
        (["trainer=verl", "training.dynamic_sampling=true"], "trainer=verl does not support it"),
        (
            ["trainer=verl", "training.updates_per_step=128", "training.micro_batch_size=4"],
            "expected a divisor of the 64 prompts of a step, got 128.",
        ),
        (
            ["trainer=verl", "evaluation.max_completion_length=9"],
            "evaluation.max_completion_length: trainer=verl evaluates with the training's",
        ),
        (
            ["trainer=verl", "model={kind: pretrained, path: a, revision: b}"],
            "model.revision: verl has no such setting; download that revision",
        ),
    ],
)
def test_what_the_chosen_trainer_cannot_do_is_refused_with_the_key_and_what_to_do(
    overrides: list[str], said: str
) -> None:
    assert said in refusal(*overrides)


def test_the_minimal_trainer_takes_an_oracle_and_dynamic_sampling() -> None:
    recipe = read("trainer=minimal", "allocator.strategy=oracle", "training.dynamic_sampling=true")
    assert (recipe.allocator.strategy, recipe.training.dynamic_sampling) == ("oracle", True)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "model.kind=pretrained",
            "model.layers: unknown key. model.kind=pretrained has no such key; to change the kind",
        ),
        ("model.lora.rank=4", "model.lora: unknown key. model.kind=scratch has no such key; to change the kind"),
        ("engine.server_port=80", "engine.server_port: unknown key. engine.kind=transformers has no such key"),
    ],
)
def test_a_key_of_another_kind_is_refused_with_how_to_change_the_kind(override: str, said: str) -> None:
    assert said in refusal(override)


def test_all_problems_are_listed_at_once() -> None:
    said = refusal("training.stepz=3", "seed=-1", "task.kind=chain")
    assert {line.split(":")[0].strip() for line in said.splitlines()[1:]} == {"training.stepz", "seed", "task.kind"}


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: a\ntask: {kind: chain-arithmetic}\nmodel: {kind: scratch}\ntraining: {steps: 1}\n")
    with pytest.raises(InvalidInputError, match=r"training\.prompts_per_step: expected a value"):
        recipe_file.read(path)


def test_an_override_that_is_no_key_and_value_is_refused() -> None:
    assert "expected KEY=VALUE" in refusal("training.steps")
    assert "expected KEY=VALUE" in refusal("training..steps=3")
    assert "training.steps is the value" in refusal("training.steps.more=3")


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "reasoning-gym.yaml").touch()
    with pytest.raises(InvalidInputError, match=r"Did you mean .*reasoning-gym\.yaml\?"):
        recipe_file.read(tmp_path / "reasoninggym.yaml")


@pytest.mark.parametrize("text", ["- a\n- b", "", "3"])
def test_a_file_that_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match="expected a mapping"):
        recipe_file.read(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1.0e-6", 1e-6),
        (".5", 0.5),
        ("010", 10),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("2020-01-01", "2020-01-01"),
        ("null", None),
        ("", None),
        ("'1'", "1"),
        ("[1, 2.0]", [1, 2.0]),
    ],
)
def test_yaml_scalars_mean_what_people_write(text: str, value: Any) -> None:
    parsed = yaml_text.parse(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


def test_a_repeated_key_is_refused_with_both_lines() -> None:
    with pytest.raises(InvalidInputError, match=r"r\.yaml: b: expected once, got again on line 4 \(first on line 2\)"):
        yaml_text.parse("a:\n  b: 1\n  c: 2\n  b: 3\n", "r.yaml")


def test_broken_yaml_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidInputError, match="line 1"):
        yaml_text.parse("a: [1", "r.yaml")


def test_a_tag_that_does_not_fit_its_value_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"r\.yaml: expected YAML.*\n.*'many'"):
        yaml_text.parse("steps: !!int many", "r.yaml")


def test_a_block_that_contains_itself_is_refused() -> None:
    assert "contains itself" in refusal("trl=&block {again: *block}")


def test_differences_between_recipes_name_dotted_keys_and_both_values() -> None:
    before, after = read("trl.loss_type=grpo"), read("seed=1", "training.steps=3")
    assert recipe_file.differences(recipe_file.render(before), recipe_file.render(after)) == [
        "seed: 0 there, 1 here",
        f"training.steps: {before.training.steps} there, 3 here",
        'trl.loss_type: "grpo" there, absent here',
    ]


def test_a_recipe_that_names_no_strategy_has_that_of_an_allocator() -> None:
    assert Allocator().strategy == BudgetAllocator().strategy


def test_the_documentation_has_the_right_defaults() -> None:
    documentation = (Path(__file__).parents[4] / "docs" / "train.md").read_text()
    blocks: dict[str, list[type[BaseModel]]] = {
        "Top level": [Recipe],
        "`model`, `kind: scratch`": [ScratchModelConfig],
        "`model`, `kind: pretrained`": [PretrainedModelConfig],
        "`allocator`": [Allocator],
        "`training`": [Training],
        "`evaluation`": [Evaluation],
        "`engine`": [TransformersEngine, VLLMEngine],
    }
    checked = 0
    for section in re.split(r"\n(?=\*\*)", documentation.partition("## The run directory")[0]):
        title = section.partition("\n\n")[0].replace("**", "")
        models = next((models for start, models in blocks.items() if title.startswith(start)), [])
        rows = re.findall(r"^\| (`.*?`) \| (.*?) \|", section, re.MULTILINE) if models else []
        for keys, defaults in rows:
            names = re.findall(r"`([\w.]+)`", keys)
            prefix = names[0].rpartition(".")[0]
            for name, default in zip(names, defaults.replace("`", "").split(", "), strict=True):
                if default not in ("required", "transformers", "as in training"):
                    path = (prefix + name if name.startswith(".") else name).split(".")
                    assert default_of(models, path) == yaml_text.parse(default, name), name
                    checked += 1
    assert checked > 40, "the tables were not found"


def default_of(models: Sequence[type[BaseModel]], path: Sequence[str]) -> Any:
    (field,) = [model.model_fields[path[0]] for model in models if path[0] in model.model_fields]
    value = field.get_default(call_default_factory=True)
    for name in path[1:]:
        value = getattr(value, name)
    return value


def test_the_documentation_names_every_key() -> None:
    documentation = (Path(__file__).parents[4] / "docs" / "train.md").read_text()
    keys = {key.rpartition(".")[2] for key in recipe_file.dotted_keys(Recipe) if not key.startswith("task.")}
    assert {key for key in keys if not re.search(rf"[`.{{ ]{key}[`:.]", documentation)} == set()
