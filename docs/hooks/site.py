"""What the site needs beside mkdocs: equations as MathML, and links to files of the repository outside docs/."""

from __future__ import annotations

import html
import logging
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

log = logging.getLogger("mkdocs.hooks.site")
_DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_TAG = re.compile(r"\\tag\{(.*?)\}")
_LONG_CODE = re.compile(r"(?<!<pre>)<code>([^<\s]{12,})</code>")
_BREAK = re.compile(r"(?<=[/_=:])(?=[\w*])|(?=\.\w)")
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Keep the words of a link to a file that the site does not have; link to it where `repo_url` is set.

    A folder, or a file that is no page and lies outside docs/, is named and not linked. One that does not exist is a
    warning, which stops a strict build.
    """
    here, docs = Path(page.file.abs_src_path).parent, Path(config.docs_dir)

    def replaced(link: re.Match[str]) -> str:
        text, target, anchor = link.group(1), link.group(2), link.group(3) or ""
        path = (here / target).resolve()
        if path.is_relative_to(docs) and not path.is_dir():
            return link.group(0)
        if not path.exists():
            log.warning(f"{page.file.src_uri}: the link to '{target}' leads nowhere.")
        if not config.repo_url:
            return text
        return f"[{text}]({config.repo_url}/blob/main/{path.relative_to(docs.parent).as_posix()}{anchor})"

    return _outside_code(markdown, lambda part: _LINK.sub(replaced, part))


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Put MathML where arithmatex left TeX, a tag's number beside its equation, and breaks into long names in code."""

    def display(found: re.Match[str]) -> str:
        tag = _TAG.search(found.group(1))
        number = f'<span class="number">({tag.group(1)})</span>' if tag else ""
        return f'<div class="equation">{_mathml(_TAG.sub("", found.group(1)), "block", page)}{number}</div>'

    html = _INLINE.sub(lambda found: _mathml(found.group(1), "inline", page), _DISPLAY.sub(display, html))
    return _LONG_CODE.sub(lambda code: f"<code>{_BREAK.sub('<wbr>', code.group(1))}</code>", html)


def _mathml(tex: str, display: str, page: Any) -> str:
    mathml = convert(html.unescape(tex).strip(), display=display)
    if "\\" in html.unescape(re.sub(r"<[^>]*>", "", mathml)):
        log.warning(f"{page.file.src_uri}: a command of this equation is not known: {tex.strip()}")
    return mathml


def _outside_code(markdown: str, change: Any) -> str:
    """Apply a change to everything but fenced blocks."""
    parts = re.split(r"(^ *```.*?^ *```\s*?$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.lstrip().startswith("```") else change(part) for part in parts)
