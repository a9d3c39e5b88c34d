"""Opens pages in a real, headless Chromium and says what a reader would notice.

Chromium is driven through a pipe (the DevTools protocol), so that keys are pressed as a reader presses them.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# What a reader would notice, evaluated in the page.
PROBE = """(() => {
  const box = element => {
    const { left, right, top, bottom, width, height } = element.getBoundingClientRect();
    return { left, right, top, bottom, width, height };
  };
  const ids = [...document.querySelectorAll("[id]")].map(element => element.id);
  const links = [...document.querySelectorAll("[href^='#']")].map(element => element.getAttribute("href").slice(1));
  return {
    scrollWidth: document.documentElement.scrollWidth,
    clientWidth: document.documentElement.clientWidth,
    scripts: document.scripts.length,
    repeatedIds: ids.filter((id, index) => ids.indexOf(id) !== index),
    deadLinks: links.filter(id => !document.getElementById(id)),
    files: [...document.querySelectorAll("a[href^='figures/']")].map(link => link.getAttribute("href")),
    headings: [...document.querySelectorAll("h1, h2")].map(element => element.textContent),
    figures: [...document.querySelectorAll("figure")].map(figure => {
      const svg = figure.querySelector("svg");
      return { name: figure.id, box: box(figure), svg: box(svg), spoken: svg.getAttribute("aria-label"),
               inkPaths: svg.querySelectorAll("path, use").length };
    }),
    tables: [...document.querySelectorAll(".data")].map(table => ({
      name: table.id, box: box(table), shown: box(table.querySelector(".scroll")),
      headings: [...table.querySelectorAll("thead th")].map(heading => heading.textContent),
      rows: [...table.querySelectorAll("tbody tr")].map(row => [...row.cells].map(cell => cell.textContent)),
    })),
    background: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
  };
})()"""

_KEYS = {"Tab": (9, None), "Enter": (13, "\r"), " ": (32, " ")}
_PATIENCE = 60.0  # seconds; machines that run tests in parallel can be slow

# Chromium takes its pipe at the descriptors 3 and 4, which this puts in place before it becomes Chromium.
_LAUNCHER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def browser() -> str:
    """The path of a Chromium; the test that asks is skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium is installed (looked for chromium, chromium-browser and google-chrome)")


class OpenPage:
    """A page in a browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._read = b""
        self._count = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []

    def open(self, page: Path, width: int, dark: bool) -> None:
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.media(scheme="dark" if dark else "light")
        self.do("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol, and its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        os.write(self._commands, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode())
        os.write(self._commands, b"\0")
        while (answer := self._receive()).get("id") != self._count:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release Tab, Enter or the space bar."""
        code, text = _KEYS[key]
        event = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        self.do("Input.dispatchKeyEvent", type="keyDown", **event | ({} if text is None else {"text": text}))
        self.do("Input.dispatchKeyEvent", type="keyUp", **event)

    def media(self, kind: str = "", scheme: str = "light") -> None:
        """Show the page as on `kind` ("print", or "" for a screen) to a reader who prefers a colour scheme."""
        self.do("Emulation.setEmulatedMedia", media=kind, features=[{"name": "prefers-color-scheme", "value": scheme}])

    def complaints(self) -> list[str]:
        """What the browser wrote to its console."""
        self.evaluate("0")  # what came before it has arrived with its answer
        methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in methods]

    def requests(self) -> list[str]:
        """The addresses of everything that was asked for, granted or not, besides the page itself."""
        asked = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [request["request"]["url"] for request in asked if request["type"] != "Document"]

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(self._answers, 1 << 16) if ready else b""
            if not more:
                pytest.fail("the browser closed its pipe" if ready else f"the browser was silent for {_PATIENCE} s")
            self._read += more
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)


@contextmanager
def opened(page: Path, folder: Path, width: int = 1280, *, dark: bool = False) -> Iterator[OpenPage]:
    """`page` in a window `width` CSS pixels wide; the browser's profile is in `folder`."""
    browser_reads, we_write = os.pipe()
    we_read, browser_writes = os.pipe()
    command = [
        browser(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={folder / 'profile'}",
        "--remote-debugging-pipe",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER, str(browser_reads), str(browser_writes), *command],
        pass_fds=(browser_reads, browser_writes),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(browser_reads)
    os.close(browser_writes)
    try:
        shown = OpenPage(we_write, we_read)
        shown.open(page, width, dark)
        yield shown
    finally:
        os.close(we_write)  # Chromium ends when its pipe does
        os.close(we_read)
        try:
            process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def read_in_browser(page: Path, folder: Path, width: int = 1280, *, dark: bool = False) -> dict[str, Any]:
    """What `PROBE` sees on the page, and its `requests`; fails where the browser complains."""
    with opened(page, folder, width, dark=dark) as shown:
        seen = shown.evaluate(PROBE)
        assert shown.complaints() == []
        return seen | {"requests": shown.requests()}


def overlap(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether two boxes of `PROBE` share a point."""
    apart = (
        one["right"] <= other["left"]
        or other["right"] <= one["left"]
        or one["bottom"] <= other["top"]
        or other["bottom"] <= one["top"]
    )
    return not apart


def check_layout(seen: dict[str, Any], width: int) -> None:
    """Fail unless a page fits `width` without sideways scrolling and its figures and tables are apart and drawn."""
    assert seen["scrollWidth"] <= seen["clientWidth"]
    for figure in seen["figures"]:
        assert figure["svg"]["width"] > 300
        assert figure["svg"]["height"] > 150
        assert figure["inkPaths"] > 10
        assert figure["svg"]["right"] <= figure["box"]["right"] <= width
        assert len(figure["spoken"]) > 40
    for table in seen["tables"]:
        assert table["shown"]["right"] <= width
    boxes = [part["box"] for part in (*seen["figures"], *seen["tables"])]
    assert not any(overlap(one, other) for index, one in enumerate(boxes) for other in boxes[:index])
    assert seen["repeatedIds"] == []
    assert seen["deadLinks"] == []
    assert seen["requests"] == []
