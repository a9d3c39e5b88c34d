"""Reading recipes, and saying what is wrong with one: the key, what was expected, what came, the nearest spelling."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.recipe import yaml_text
from knapsack_rl.experiments.recipe.schema import Recipe
from knapsack_rl.validation import nearest

# pydantic's words and ours, in this order.
_OUR_WORDS = {
    "Input should be a finite number": "expected a finite number",
    "Input should be greater": "expected a number greater",
    "Input should be less": "expected a number less",
    "Input should be": "expected",
    "String should": "expected text that should",
    "List should": "expected a list that should",
}

Model = TypeVar("Model", bound=BaseModel)

DEMONSTRATION = "demo.yaml"


def read(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in the file `path` (None: the embedded demonstration), changed by dotted `KEY=VALUE` overrides.

    Raises:
        InvalidInputError: the file cannot be read or is not a valid recipe; the message lists every problem.
    """
    content = mapping(path)
    for override in overrides:
        apply(content, override)
    return validated(Recipe, content, f"{source_of(path)} is not a valid recipe")


def mapping(path: Path | None) -> dict[str, Any]:
    """What the YAML file `path` (None: the embedded demonstration) says, unchecked.

    Raises:
        InvalidInputError: the file cannot be read, is not YAML, or holds something else than keys and values.
    """
    content = yaml_text.parse(_text(path), source_of(path))
    if not isinstance(content, dict):
        raise InvalidInputError(f"{source_of(path)}: expected a mapping of keys to values, got {content!r}.")
    return content


def source_of(path: Path | None) -> str:
    """What to call the file in a message."""
    return "the embedded demonstration" if path is None else str(path)


def validated(model: type[Model], content: dict[str, Any], complaint: str) -> Model:
    """`content` as a `model`.

    Raises:
        InvalidInputError: with `complaint` and a line for every problem.
    """
    try:
        as_json = json.dumps(content, default=str)
    except (ValueError, RecursionError):
        raise InvalidInputError(f"{complaint}:\n  expected plain values, got a block that contains itself.") from None
    try:
        # By way of JSON: strict about types, and yet a list of numbers will do for a tuple.
        return model.model_validate_json(as_json, strict=True)
    except ValidationError as invalid:
        problems = "\n".join(f"  {_explanation(error, model)}" for error in invalid.errors())
        raise InvalidInputError(f"{complaint}:\n{problems}") from None


def render(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML that `read` takes."""
    return yaml_text.render(recipe.model_dump(mode="json"))


def differences(before: str, after: str, source: str = "before") -> list[str]:
    """One line per dotted key in which two rendered recipes differ; the first is from the file `source`.

    Raises:
        InvalidInputError: one of them is no YAML.
    """
    old, new = dict(_leaves(yaml_text.parse(before, source))), dict(_leaves(yaml_text.parse(after, "after")))
    absent = object()
    return [
        f"{key}: {_shown(old.get(key, absent), absent)} there, {_shown(new.get(key, absent), absent)} here"
        for key in [*old, *(key for key in new if key not in old)]
        if old.get(key, absent) != new.get(key, absent)
    ]


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All keys below `model`, blocks included, with every alternative of a block."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _models_in(field.annotation):
            yield from dotted_keys(inner, f"{prefix}{name}.")


def _text(path: Path | None) -> str:
    if path is None:
        return (resources.files(__package__) / DEMONSTRATION).read_text(encoding="utf-8")
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(yaml_text.LONGEST + 1)  # one more is refused
    except FileNotFoundError:
        close = nearest(path.name, (file.name for file in path.parent.glob("*.y*ml")))
        hint = f" Did you mean {path.parent / close}?" if close else ""
        raise InvalidInputError(f"RECIPE: no file {path}.{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"RECIPE: cannot read {path}: {error}.") from None


def apply(content: dict[str, Any], override: str) -> None:
    """Change `content` by one dotted `KEY=VALUE`.

    Raises:
        InvalidInputError: the override has no such form, or leads through a value that is no block.
    """
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise InvalidInputError(f"expected KEY=VALUE such as training.steps=20 after the recipe, got {override!r}.")
    put(content, names, yaml_text.parse(text, key))


def put(content: dict[str, Any], names: Sequence[str], value: Any) -> None:
    """Put `value` into `content`, in the blocks that all but the last of `names` lead through.

    Raises:
        InvalidInputError: one of them is a value that is no block.
    """
    block = content
    for depth, name in enumerate(names[:-1], start=1):
        if block.get(name) is None:
            block[name] = {}
        block = block[name]
        if not isinstance(block, dict):
            raise InvalidInputError(
                f"{'.'.join(names)}: {'.'.join(names[:depth])} is the value {block!r}, which has no keys of its own."
            )
    block[names[-1]] = value


def _explanation(error: ErrorDetails, root: type[BaseModel]) -> str:
    key, name, owners = _place(error["loc"], root)
    kind, came, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "value_error":
        message = str(context["error"])
        if isinstance(came, dict):  # of a whole block; it names its keys itself
            return f"{key}: {message}" if key else message.replace("\n", "\n  ")
        return f"{key}: {message}{_came(came, message.partition('one of ')[2].split(', '))}"
    if kind == "extra_forbidden":
        return f"{key}: unknown key.{_right_key(key, name, owners, root)}"
    if kind == "missing":
        return f"{key}: expected a value, and there is none."
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        choices = [choice.strip("'") for choice in context.get("expected_tags", "").split(", ") if choice]
        tags = choices or [tag for owner in _models_of(owners, name) for tag in _tags(owner)]
        tag = came.get("kind") if isinstance(came, dict) else came
        return f"{key}.kind: expected one of {', '.join(tags)}{_came(tag, tags)}"
    expected = error["msg"]
    for theirs, ours in _OUR_WORDS.items():
        expected = expected.replace(theirs, ours)
    choices = [choice.strip("'") for choice in context.get("expected", "").replace(" or ", ", ").split(", ")]
    return f"{key}: {expected}{_came(came, choices)}"


def _came(came: Any, choices: Iterable[str]) -> str:
    close = nearest(came, choices) if isinstance(came, str) else None
    return f", got {_short(came)}." + (f" Did you mean {close}?" if close else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _right_key(key: str, name: str, owners: Sequence[type[BaseModel]], root: type[BaseModel]) -> str:
    siblings = [field for owner in owners for field in owner.model_fields]
    known = list(dotted_keys(root))
    if key in known:  # with another kind
        block = key.removesuffix(f".{name}")
        kind = ", ".join(tag for owner in owners for tag in _tags(owner))
        return f" {block}.kind={kind} has no such key; to change the kind, set all of {block}={{kind: ..., ...}}."
    close = nearest(name, siblings)
    if close:
        return f" Did you mean {key.removesuffix(name)}{close}?"
    elsewhere = {path.rpartition(".")[2]: path for path in known}
    close = nearest(name, elsewhere, cutoff=0.8)
    if close:
        return f" Did you mean {elsewhere[close]}?"
    return f" Known here: {', '.join(siblings)}."


def _place(location: Sequence[str | int], root: type[BaseModel]) -> tuple[str, str, list[type[BaseModel]]]:
    """The dotted key, its last part, and the models that part could have been a field of."""
    keys: list[str] = []
    owners: list[type[BaseModel]] = []
    current: list[type[BaseModel]] = [root]
    for part in map(str, location):
        tagged = [model for model in current if part in _tags(model)]
        if tagged and keys and not any(part in model.model_fields for model in current):
            current = tagged  # pydantic names the chosen member of a union; people do not write it
            continue
        keys.append(part)
        owners = current
        current = _models_of(current, part) or current
    return ".".join(keys), keys[-1] if keys else "", owners


def _models_of(owners: Sequence[type[BaseModel]], name: str) -> list[type[BaseModel]]:
    return [
        model
        for owner in owners
        if name in owner.model_fields
        for model in _models_in(owner.model_fields[name].annotation)
    ]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field else ()


def _leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, content


def _shown(value: Any, absent: object) -> str:
    return "absent" if value is absent else json.dumps(value)
