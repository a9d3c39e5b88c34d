"""The JSON schema of a comparison: its own keys, and the dotted keys of the recipe that its blocks consist of."""

from __future__ import annotations

import re
from collections.abc import Sequence

from knapsack_rl.experiments.compare.comparison import SET_BY_ITSELF, Comparison, presets
from knapsack_rl.experiments.recipe import json_schema as of_recipe
from knapsack_rl.experiments.recipe.json_schema import Schema

_CHANGES, _LISTS = {"$ref": "#/$defs/Changes"}, {"$ref": "#/$defs/Lists"}


def schema() -> Schema:
    """What a comparison may look like, as far as JSON schema can say it: `compare --dry-run` checks the rest."""
    recipe, comparison = of_recipe.schema(), of_recipe.of(Comparison)
    keys = {key: value for key, value in of_recipe.dotted_keys(recipe).items() if key not in SET_BY_ITSELF}
    free = [key for key, value in keys.items() if _has_free_keys(value)]
    comparison["$defs"] |= recipe["$defs"]
    comparison["$defs"]["Changes"] = _by_dotted_keys(keys, free, {})
    comparison["$defs"]["Lists"] = _by_dotted_keys({key: _several_of(key) for key in keys}, free, _several({}))
    comparison["$defs"]["Preset"] = {"anyOf": [_CHANGES, {"type": "null"}]}

    properties = comparison["properties"]
    properties["settings"] = _described(properties["settings"], _CHANGES)
    properties["vary"] = _described(properties["vary"], _LISTS)
    tuning = comparison["$defs"]["Tuning"]["properties"]
    tuning["grid"] = _described(tuning["grid"], _LISTS)
    ((names, _),) = properties["arms"]["patternProperties"].items()
    arms = {
        "type": "object",
        "propertyNames": {"pattern": names},
        "properties": {name: {"$ref": "#/$defs/Preset"} for name in presets()},
        "additionalProperties": _CHANGES,
    }
    listed = {"type": "array", "items": {"enum": [*presets()]}, "uniqueItems": True}
    properties["arms"] = _described(properties["arms"], {"anyOf": [arms, listed]})
    return comparison


def _by_dotted_keys(keys: dict[str, Schema], free: Sequence[str], below: Schema) -> Schema:
    """A block with these keys, and with any key below the `free` ones, such as `trl`."""
    return {
        "type": "object",
        "properties": keys,
        "patternProperties": {rf"^{re.escape(key)}\.": below for key in free},
        "additionalProperties": False,
    }


def _has_free_keys(value: Schema) -> bool:
    return any(alternative.get("additionalProperties") for alternative in (value, *value.get("anyOf", ())))


def _several_of(key: str) -> Schema:
    return _several({"$ref": f"#/$defs/Changes/properties/{key}"})


def _several(value: Schema) -> Schema:
    return {"type": "array", "items": value, "minItems": 1}


def _described(before: Schema, now: Schema) -> Schema:
    return {"description": before["description"], **now}
