"""YAML as people mean it: 1e-6 is a number, `no` is a word, and a key stands once."""

from __future__ import annotations

import re
from typing import Any

import yaml

from knapsack_rl.errors import InvalidInputError

_LARGEST = 100_000  # values, with each alias counted as what it stands for
LONGEST = 1 << 20
"""Characters that a text may have: reading takes microseconds for each of them, and hundreds of bytes."""


class _Loader(yaml.SafeLoader):
    """The scalars of YAML 1.2's core schema instead of YAML 1.1's."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _size(node, {}) > _LARGEST:
            raise InvalidInputError(f"expected at most {_LARGEST:,} values, got more, by aliases of aliases.")
        return node

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # PyYAML's hook

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if key in seen:
                raise InvalidInputError(f"{key}: expected once, got again on line {line} (first on line {seen[key]}).")
            seen[key] = line
        return super().construct_mapping(node, deep)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in a node; `known` has those of nodes that were counted, 0 of those that contain this one."""
    if id(node) not in known:
        known[id(node)] = 0
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = (part for one in inner for part in (one if isinstance(one, tuple) else (one,)))
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _integer(loader: yaml.Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_SCALARS = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
)
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first])
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def parse(text: str, source: str) -> Any:
    """The value that `text` stands for.

    Raises:
        InvalidInputError: `text` is not YAML, repeats a key, or is too long or too deeply nested to be read; the
            message begins with `source`.
    """
    if len(text) > LONGEST:
        raise InvalidInputError(f"{source}: expected at most {LONGEST:,} characters, got {len(text):,}.")
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except InvalidInputError as error:
        raise InvalidInputError(f"{source}: {error}") from None
    except RecursionError:
        raise InvalidInputError(f"{source}: expected YAML with a few levels, got hundreds.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a tag such as !!int before something else
        raise InvalidInputError(f"{source}: expected YAML, got this:\n{error}") from None


def render(value: Any) -> str:
    """`value` as YAML in block style, keys in their own order."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
