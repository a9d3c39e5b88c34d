"""Who a prompt is: a content hash that survives epochs, runs, shuffles and a change of trainer."""

from __future__ import annotations

import hashlib
import json
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.errors import InvalidInputError


def prompt_id(prompt: Any, *, extra: Any = None) -> str:
    """Content hash of a prompt.

    Args:
        prompt: a string, or a chat: a list of messages, each a dict. Missing fields and fields that are None are the
            same (data sets fill in None). Images count by their pixels.
        extra: whatever else tells two prompts apart, such as the value of an id column.

    Returns:
        32 hexadecimal digits, the same on every machine and in every run.

    Raises:
        InvalidInputError: the prompt holds something that has no stable content, such as an open file.

    Cost: O(length of the prompt).
    """
    text = json.dumps([_content(prompt), _content(extra)], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def as_ids(prompt_ids: Iterable[str | int]) -> list[str | int]:
    """The ids as a list; a single string is refused, since its characters would pass for ids, and so is a set.

    Raises:
        InvalidInputError: `prompt_ids` is not a sequence of ids.
    """
    if isinstance(prompt_ids, (set, frozenset)):
        raise InvalidInputError(
            f"prompt_ids: expected ids in order, since counts and plans go by position, got a "
            f"{type(prompt_ids).__name__}. Pass a list."
        )
    if isinstance(prompt_ids, (str, bytes)) or not isinstance(prompt_ids, Iterable):
        raise InvalidInputError(f"prompt_ids: expected a sequence of ids, got {prompt_ids!r}.")
    return list(prompt_ids)


def keys(prompt_ids: Iterable[Any]) -> NDArray[np.uint64]:
    """64-bit keys of prompt ids, which tables and state files hold instead of the ids.

    A string and an integer never share a key by design; two ids of a million do by accident with probability 3e-8.

    Raises:
        InvalidInputError: `prompt_ids` is one string or a set, or an id is neither a string nor an integer.
    """
    return np.fromiter(map(_key, as_ids(prompt_ids)), dtype=np.uint64)


def _key(identifier: Any) -> int:
    if isinstance(identifier, str):
        tagged = b"s" + identifier.encode("utf-8", "surrogatepass")
    elif isinstance(identifier, numbers.Integral):
        tagged = b"i%d" % int(identifier)
    else:
        raise InvalidInputError(
            f"prompt_ids: expected strings or integers, got {identifier!r} of type {type(identifier).__name__}. "
            "knapsack_rl.prompt_id makes an id from a prompt's content."
        )
    return int.from_bytes(hashlib.blake2b(tagged, digest_size=8).digest(), "little")


def _content(value: Any) -> Any:
    """`value` as something that JSON writes in only one way."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray) and value.dtype == object:  # its bytes are addresses; parquet chats come so
        value = value.tolist()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return {str(key): _content(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_content(item) for item in value]
    if isinstance(value, bytes):  # images that a data set has not decoded
        return ["bytes", hashlib.blake2b(value, digest_size=16).hexdigest()]
    if hasattr(value, "tobytes"):  # numpy arrays and PIL images
        form = [str(getattr(value, name, "")) for name in ("mode", "size", "dtype", "shape")]
        return [*form, hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()]
    raise InvalidInputError(
        f"prompt: expected text, messages or images, got {type(value).__name__}, which has no content to hash."
    )
