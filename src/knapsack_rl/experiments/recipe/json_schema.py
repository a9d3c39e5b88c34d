"""The JSON schema of a recipe, with which an editor completes, explains and checks the keys as they are typed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from knapsack_rl.experiments.recipe.schema import Recipe

Schema = dict[str, Any]


class _Generator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: object) -> bool:
        return False  # it would repeat the key


def schema() -> Schema:
    """What a recipe may look like, as far as JSON schema can say it: `train --dry-run` checks the rest."""
    return of(Recipe)


def of(model: type[BaseModel]) -> Schema:
    """The JSON schema of a file that holds a `model`."""
    content: Schema = _with_whole_lines(model.model_json_schema(schema_generator=_Generator))
    return {"$schema": _Generator.schema_dialect, **content}


def dotted_keys(whole: Schema) -> dict[str, Schema]:
    """The schema of each dotted key below the blocks of `whole`, and of the blocks themselves."""
    found: dict[str, list[Schema]] = {}
    for key, inner in _keys(whole, whole["$defs"]):
        alternatives = found.setdefault(key, [])
        if inner not in alternatives:
            alternatives.append(inner)
    return {key: inner[0] if len(inner) == 1 else {"anyOf": inner} for key, inner in found.items()}


def _keys(block: Schema, definitions: Schema, prefix: str = "") -> Iterator[tuple[str, Schema]]:
    for name, inner in block["properties"].items():
        yield prefix + name, inner
        for below in _blocks(inner, definitions):
            yield from _keys(below, definitions, f"{prefix}{name}.")


def _blocks(value: Schema, definitions: Schema) -> Iterator[Schema]:
    """The blocks that a value may be."""
    if "$ref" in value:
        value = definitions[value["$ref"].rpartition("/")[2]]
    if "properties" in value:
        yield value
    for alternative in (*value.get("anyOf", ()), *value.get("oneOf", ())):
        yield from _blocks(alternative, definitions)


def _with_whole_lines(value: Any) -> Any:
    """Let a paragraph of a description be one line; a docstring breaks it where the source code's line ends."""
    if isinstance(value, dict):
        return {
            key: re.sub(r"(?<!\n)\n(?!\n)", " ", inner)
            if key == "description" and isinstance(inner, str)
            else _with_whole_lines(inner)
            for key, inner in value.items()
        }
    return [_with_whole_lines(inner) for inner in value] if isinstance(value, list) else value
