"""Folders that are complete or not: a list of all files with sizes and checksums, written after them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from knapsack_rl.experiments.disk import write_text

MANIFEST = "manifest.json"
_CHUNK = 1 << 20


def seal(folder: Path, **facts: str | int) -> None:
    """Declare that `folder` is complete, once all of it is on the disk; `facts` say what it is.

    Cost: every byte is read once, a file in a thread each, 1 MiB at a time.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    listed = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, _checksums(files, to_disk=True), strict=True)
    }
    write_text(folder / MANIFEST, json.dumps({**facts, "files": listed}, indent=1) + "\n")


def damage(folder: Path, **facts: str | int) -> str | None:
    """Why `folder` is not what was sealed with these `facts`, in a few words; None where it is. Cost: as `seal`."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
        files = {folder / name: (int(entry["bytes"]), entry["sha256"]) for name, entry in found["files"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return f"it has no {MANIFEST}, so it was not finished"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"its {MANIFEST} is damaged"
    for name, value in facts.items():
        if found.get(name) != value:
            return f"it is of another {name}"
    for path, (size, _) in files.items():
        name = path.relative_to(folder)
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    for path, digest in zip(files, _checksums(files), strict=True):
        if digest != files[path][1]:
            return f"{path.relative_to(folder)} holds other bytes than were written"
    return None


def fact(folder: Path, name: str) -> Any:
    """What `seal` was told, of a folder without damage."""
    return json.loads((folder / MANIFEST).read_bytes())[name]


def checksum(path: Path, to_disk: bool = False) -> str:
    """SHA-256 of a file in hexadecimal digits, about a second a gigabyte; with `to_disk` once it is there."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        if to_disk:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _checksums(files: Iterable[Path], to_disk: bool = False) -> list[str]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(partial(checksum, to_disk=to_disk), files))
