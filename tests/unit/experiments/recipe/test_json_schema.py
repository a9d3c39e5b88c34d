from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from knapsack_rl.cli import main
from knapsack_rl.experiments.compare.comparison import SET_BY_ITSELF
from knapsack_rl.experiments.recipe import json_schema, recipe_file, yaml_text
from knapsack_rl.experiments.recipe.schema import Recipe

jsonschema = pytest.importorskip("jsonschema")

RECIPES = Path(__file__).parents[4] / "recipes"
COMPARISONS = RECIPES / "comparisons"
OF_RECIPES, OF_COMPARISONS = RECIPES / "recipe.schema.json", COMPARISONS / "comparison.schema.json"
SHIPPED = [(path, OF_RECIPES) for path in sorted(RECIPES.glob("*.yaml"))]
SHIPPED += [(path, OF_COMPARISONS) for path in sorted(COMPARISONS.glob("*.yaml"))]


def complaints(content: Any, schema: Path) -> list[str]:
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))
    return [error.message for error in validator.iter_errors(content)]


def demonstration() -> dict[str, Any]:
    return recipe_file.mapping(None)


def comparison(**changes: Any) -> dict[str, Any]:
    return {"name": "mine", "arms": {"uniform": None, "knapsack": None}, "seeds": [1], **changes}


@pytest.mark.parametrize(("of", "committed"), [("recipe", OF_RECIPES), ("comparison", OF_COMPARISONS)])
def test_the_committed_schema_is_what_the_command_writes(of: str, committed: Path, tmp_path: Path) -> None:
    written = tmp_path / "schema.json"
    assert main(["schema", of, "--output", str(written)]) == 0
    assert committed.read_text(encoding="utf-8") == written.read_text(encoding="utf-8"), (
        f"run: knapsack-rl schema {of} --output {committed.relative_to(RECIPES.parent)}"
    )
    jsonschema.Draft202012Validator.check_schema(json.loads(committed.read_text(encoding="utf-8")))


def test_the_schema_is_printed_where_no_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema.schema()


def test_a_place_that_cannot_be_written_to_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["schema", "--output", str(tmp_path / "nowhere" / "schema.json")]) == 2
    assert "--output: cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(("path", "schema"), SHIPPED, ids=[path.stem for path, _ in SHIPPED])
def test_every_shipped_file_keeps_to_its_schema_and_names_it_to_editors(path: Path, schema: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={schema.name}"
    assert complaints(yaml_text.parse(text, path.name), schema) == []


def test_the_demonstration_keeps_to_the_schema_with_and_without_its_defaults() -> None:
    packed = resources.files("knapsack_rl.experiments.recipe") / recipe_file.DEMONSTRATION
    assert complaints(yaml_text.parse(packed.read_text(encoding="utf-8"), "demo"), OF_RECIPES) == []
    assert complaints(recipe_file.read(None).model_dump(mode="json"), OF_RECIPES) == []


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ("training", "stepz", 3),
        ("training", "steps", 0),
        ("training", "steps", "many"),
        ("allocator", "strategy", "knapsak"),
        ("model", "kind", "huge"),
        ("engine", "mode", "server"),
    ],
)
def test_an_editor_marks_a_mistake_in_a_recipe(block: str, key: str, value: Any) -> None:
    content = demonstration()
    content[block][key] = value
    assert complaints(content, OF_RECIPES)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"training.steps": 3, "trl.loss_type": "grpo", "task.sources.mine.path": "here.jsonl"}},
        {"settings": {"evaluation": {"every": 5, "final": None}}},
        {"arms": ["uniform", "hora", "uniform-twice-the-group"]},
        {"arms": {"uniform": None, "of my own": {"allocator.strategy": "hora"}}},
        {"vary": {"training.group_size": [4, 8]}, "tuning": {"grid": {"trl.beta": [0.0, 0.1]}, "seeds": [2]}},
    ],
)
def test_a_comparison_may_set_what_a_recipe_has(changes: dict[str, Any]) -> None:
    assert complaints(comparison(**changes), OF_COMPARISONS) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"training.stepz": 3}},
        {"settings": {"training.steps": "many"}},
        {"settings": {"seed": 3}},
        {"arms": ["uniform", "knapsak"]},
        {"arms": {"of my own": None}},
        {"arms": {"knapsack": {"allocator.fallbak": True}}},
        {"vary": {"training.group_size": 4}},
        {"vary": {"training.group_size": ["four"]}},
        {"tuning": {"grid": {"training.learning_rat": [1e-3]}, "seeds": [2]}},
        {"equal": "prompts"},
    ],
)
def test_an_editor_marks_a_mistake_in_a_comparison(changes: dict[str, Any]) -> None:
    assert complaints(comparison(**changes), OF_COMPARISONS)


def described(schema: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    for block in (schema, *schema["$defs"].values()):
        for key, value in block.get("properties", {}).items():
            yield f"{block.get('title')}.{key}", "description" in value


def test_every_key_but_kind_is_explained() -> None:
    missing = {key for key, explained in described(json_schema.schema()) if not explained}
    assert {key for key in missing if not key.endswith(".kind")} == set()


def test_the_keys_of_a_comparisons_blocks_are_those_of_the_recipe() -> None:
    known = set(json.loads(OF_COMPARISONS.read_text(encoding="utf-8"))["$defs"]["Changes"]["properties"])
    in_lists = {key for key in recipe_file.dotted_keys(Recipe) if key.startswith("task.sources.")}
    assert known == set(recipe_file.dotted_keys(Recipe)) - in_lists - set(SET_BY_ITSELF)
