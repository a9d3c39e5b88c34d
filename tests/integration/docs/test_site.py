"""The built site in a real Chromium: it asks the network for nothing, fits a phone, and is searched from a file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mkdocs", reason="needs the extra 'docs'")
pytest.importorskip("material", reason="needs the extra 'docs'")
pytest.importorskip("mkdocstrings", reason="needs the extra 'docs'")
pytest.importorskip("latex2mathml", reason="needs the extra 'docs'")

import pages
from blocks import ROOT

SEEN = """(() => ({
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  overflowing: [...document.querySelectorAll(".md-content *")].filter(element => {
    const box = element.getBoundingClientRect();
    const scrolls = element.closest(".md-typeset__scrollwrap, .equation, pre, .highlight, .headerlink");
    return !scrolls && box.width > 0 && box.right > document.documentElement.clientWidth + 1;
  }).map(element => element.outerHTML.slice(0, 200)),
  brokenImages: [...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src),
  equations: document.querySelectorAll("math").length,
  nested: document.querySelectorAll("code code, code table, code h2").length,
  tex: [...document.querySelectorAll(".arithmatex")].map(element => element.textContent),
}))()"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every warning an error."""
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def browser(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[pages.OpenPage]:
    with pages.opened(site / "index.html", tmp_path_factory.mktemp("browser"), 390) as shown:
        yield shown


def visit(shown: pages.OpenPage, page: Path, width: int) -> dict[str, Any]:
    shown.do("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    shown.events.clear()
    shown.do("Page.navigate", url=page.as_uri())
    shown.evaluate("new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))")
    return shown.evaluate(SEEN)


@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_fits_and_asks_the_network_for_nothing(site: Path, browser: pages.OpenPage, width: int) -> None:
    found = sorted(page for page in site.rglob("*.html") if page.name != "404.html")
    assert len(found) > 30
    for page in found:
        seen = visit(browser, page, width)
        where = page.relative_to(site)
        assert seen["wide"] <= 0, f"{where} scrolls sideways by {seen['wide']} pixels: {seen['overflowing'][:3]}"
        assert seen["overflowing"] == [], where
        assert seen["brokenImages"] == [], where
        assert seen["tex"] == [], where
        assert not seen["nested"], f"{where}: markup inside code"
        assert [url for url in browser.requests() if not url.startswith(("file:", "data:", "blob:"))] == [], where
        assert browser.complaints() == [], where


def test_equations_are_drawn(site: Path, browser: pages.OpenPage) -> None:
    assert visit(browser, site / "concepts.html", 1280)["equations"] > 30


def test_the_search_works_where_the_site_is_opened_from_a_file(site: Path, browser: pages.OpenPage) -> None:
    visit(browser, site / "index.html", 1280)
    found = browser.evaluate(
        """(async () => {
          const field = document.querySelector("[data-md-component=search-query]");
          field.focus();
          field.value = "knapsack fallback";
          field.dispatchEvent(new Event("keyup", { bubbles: true }));
          field.dispatchEvent(new Event("input", { bubbles: true }));
          for (let tries = 0; tries < 100; tries++) {
            const results = [...document.querySelectorAll(".md-search-result__link")].map(link => link.href);
            if (results.length) return results;
            await new Promise(done => setTimeout(done, 100));
          }
          return [];
        })()"""
    )
    assert any("allocation.html" in link or "concepts.html" in link for link in found)
    assert [url for url in browser.requests() if not url.startswith(("file:", "data:", "blob:"))] == []


def test_no_file_of_the_site_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        found = [url for url in loads.findall(text) if not re.search(rf'rel="?canonical"?[^>]*{re.escape(url)}', text)]
        assert found == [], page.relative_to(site)


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for link in re.findall(r'<a\b[^>]*\bhref="([^"#?]+)', page.read_text(encoding="utf-8")):
            if not urllib.parse.urlparse(link).scheme and page.name != "404.html":
                assert (page.parent / urllib.parse.unquote(link)).exists(), f"{page.relative_to(site)}: {link}"
