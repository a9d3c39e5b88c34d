"""Reading the numbers of a saved state, which anybody may have written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.errors import StateError

MOST_ROLLOUTS = 2.0**53
"""Rollouts of a prompt that any count of a state can hold exactly."""
EXACT = 2.0**24
"""Counts up to which float32 holds every whole number, so that two columns can be checked against each other."""


def check_sizes(archive: ZipFile, bytes_stored: int) -> None:
    """Refuse an .npz file whose arrays are larger than the file, before anything is allocated for them.

    Raises:
        ValueError: its members are compressed or overlap, or an array claims more or fewer bytes than its member has.
    """
    members = archive.infolist()
    if sum(member.file_size for member in members) > bytes_stored:
        raise ValueError(f"members of {sum(member.file_size for member in members):,} bytes in {bytes_stored:,}")
    for member in members:
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            if prod(shape) * dtype.itemsize != member.file_size - file.tell():
                raise ValueError(f"{member.filename} of shape {shape} in {member.file_size:,} bytes")


def digest(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of all that a file holds, since the checksums of a zip are those of whoever wrote it last. O(bytes)."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def write(path: Path, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write JSON and arrays to an .npz file without pickle; an existing file is replaced only once all is on disk.

    Args:
        path: the file; none of the arrays may be called `header` or `file`.
        header: JSON, without the key `sha256`.
        arrays: by name, of numbers or booleans.
    """
    signed = {**header, "sha256": digest(header, arrays)}
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, header=np.array(json.dumps(signed)), **arrays)  # type: ignore[arg-type] # taken for allow_pickle
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: str | os.PathLike[str], writer: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The JSON and the arrays of a file that `write` wrote; `writer` is whose file it is, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        StateError: the file is damaged.

    Memory: that of the arrays. A file that claims to hold more than its bytes is refused before any is read.
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            check_sizes(file.zip, os.fstat(raw.fileno()).st_size)
            header = json.loads(str(file["header"]))
            arrays = {name: file[name] for name in file.files if name != "header"}
            if header.pop("sha256") != digest(header, arrays):
                raise ValueError("contents that are not those that were saved")
            return header, arrays
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, numpy and json each have their own ways to say that a file is damaged
        raise StateError(f"{os.fspath(path)}: expected a file that {writer} wrote, got {error!r}.") from error


def whole_number(state: Mapping[str, Any], name: str, least: int = 0) -> int:
    """An integer of a saved state.

    Raises:
        StateError: it is missing, something else, or below `least`.
    """
    try:
        if isinstance(state[name], (bool, str, bytes)):
            raise TypeError(f"{state[name]!r} for {name}")
        number = int(state[name])
        if number != state[name] or not least <= number < 2**63:
            raise ValueError(f"{state[name]!r} for {name}")
        return number
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StateError(f"state: expected {name} of an estimator, {least} or more, got {error!r}.") from error


def number(state: Mapping[str, Any], name: str, least: float, most: float) -> float:
    """A number of a saved state.

    Raises:
        StateError: it is missing, something else, or outside [`least`, `most`].
    """
    try:
        if isinstance(state[name], (bool, str, bytes)):
            raise TypeError(f"{state[name]!r} for {name}")
        found = float(state[name])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StateError(f"state: expected the number {name} of an estimator, got {error!r}.") from error
    if not least <= found <= most:
        raise StateError(f"state: expected {name} between {least:g} and {most:g}, got {found!r}.")
    return found


def numbers(state: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """An array of a saved state, float64.

    Raises:
        StateError: it is missing, of another shape, or holds something else than finite numbers.
    """
    try:
        given = np.asarray(state[name])
        if given.dtype.kind not in "iuf":
            raise TypeError(f"{given.dtype} for {name}")
        found = given.astype(np.float64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StateError(f"state: expected the numbers {name} of an estimator, got {error!r}.") from error
    if found.shape != shape or not np.all(np.isfinite(found)):
        raise StateError(f"state: expected finite numbers {name} of shape {shape}, got shape {found.shape}.")
    return found
