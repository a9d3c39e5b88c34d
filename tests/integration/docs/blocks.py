"""The code blocks of a page of the documentation, and the comments that say how a test should run them.

<!-- setup                      Python that supplies what the reader has: a model, a data set, a reward. Runs in the
dataset = ...                   page's namespace, in its place among the blocks.
-->
<!-- run: knapsack-rl ... -->   What the next block is run as, where it would take long as written.
<!-- not run: reason -->        The next block is not run.
<!-- output -->                 The next block is what the Python blocks before it printed since the last such block.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
_PART = re.compile(
    r"^<!-- setup\n(?P<setup>.*?)^-->"
    r"|^ *<!-- (?P<word>run:|not run:|output)(?P<said>.*?)-->"
    r"|^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code, or a comment with Python that comes before one.

    Attributes:
        page: which it is on, from the root of the repository.
        line: where its code begins.
        language: as written behind the fence; `setup` for such a comment.
        code: what is in it.
        runs_as: what the page says to run in its place.
        why_not: why the page says not to run it.
        is_output: whether it is what the blocks before it printed.
    """

    page: str
    line: int
    language: str
    code: str
    runs_as: str = ""
    why_not: str = ""
    is_output: bool = False


def pages() -> list[str]:
    """The README and every page of the site, from the root of the repository."""
    found = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
    return ["README.md", "CONTRIBUTING.md", *(page for page in found if not page.endswith("summary.md"))]


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    said: dict[str, str] = {}
    for part in _PART.finditer(text):
        line = text.count("\n", 0, part.start()) + 2
        if part["setup"] is not None:
            yield Block(page, line, "setup", part["setup"])
        elif part["word"]:
            said[part["word"]] = " ".join(part["said"].split())
        else:
            yield Block(
                page,
                line,
                part["language"],
                textwrap.dedent(part["code"]),
                said.get("run:", ""),
                said.get("not run:", ""),
                "output" in said,
            )
            said = {}


def blocks_of(*languages: str) -> list[Block]:
    """All blocks in these languages, page by page."""
    return [block for page in pages() for block in blocks(page) if block.language in languages]
