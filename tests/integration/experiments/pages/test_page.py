"""The framework of all pages, seen through a small page in a real Chromium."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the report extra is not installed")

import pages
import pandas as pd
from matplotlib.figure import Figure

import knapsack_rl as kr
from knapsack_rl.experiments.pages.drawing import WIDTH, styled
from knapsack_rl.experiments.pages.page import (
    Chart,
    Command,
    DataTable,
    Facts,
    Listing,
    Note,
    Part,
    Section,
    write_page,
)

TIMES = pd.DataFrame(
    {
        "Name": ["run-10", "run-9", "<b>run</b>", "ahead"],
        "Rollouts": [12_000, 9_000, 12_000, 70],
        "Ratio": [0.25, np.nan, 1234.5, 0.1 + 0.2],
        "Kept": [True, False, True, None],
    }
)


@styled
def draw(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    figure.subplots().plot(table["x"], table["y"])
    return figure


def chart(name: str, data: pd.DataFrame | None = None) -> Chart:
    points = pd.DataFrame({"x": range(30), "y": np.sqrt(np.arange(30))}) if data is None else data
    return Chart(name, "A title", "A caption that says in a sentence what is shown.", "points.csv", draw, points)


def page_of(folder: Path, *parts: Part, command: str = "knapsack-rl audit 'my logs'") -> Path:
    return write_page(
        folder / "page.html",
        kind="audit",
        title="Logs & <more>",
        summary=["One paragraph.", "Another."],
        notes=["A note."],
        sections=[Section("Parts", parts), Section("Nothing", [])],
        command=command,
    )


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return page_of(
        tmp_path / "written",
        chart("one"),
        chart("two"),
        DataTable("times", "Times", "What took how long.", TIMES, {"Kept": lambda kept: "yes" if kept else "no"}),
        chart("three"),
        Facts("", {"Label": "text"}),
        Command("Type:", "true && false"),
        Listing("A file", "key: <value>\n"),
        Note("That is all."),
    )


@pytest.fixture
def shown(page: Path, tmp_path: Path) -> Iterator[pages.OpenPage]:
    with pages.opened(page, tmp_path) as opened:
        yield opened


def order(shown: pages.OpenPage) -> list[str]:
    return [row[0] for row in shown.evaluate(pages.PROBE)["tables"][0]["rows"]]


def sorted_by(shown: pages.OpenPage) -> dict[str, str]:
    return shown.evaluate(
        "Object.fromEntries([...document.querySelectorAll('th[aria-sort]')]"
        ".map(heading => [heading.textContent, heading.ariaSort]))"
    )


def tab_to(shown: pages.OpenPage, heading: str) -> None:
    for _ in range(40):
        shown.press("Tab")
        if (
            shown.evaluate("document.activeElement.matches('th button') && document.activeElement.textContent")
            == heading
        ):
            return
    pytest.fail(f"no button {heading} was reached with the Tab key")


@pytest.mark.parametrize("width", [390, 1280])
def test_parts_stand_apart_on_phones_and_desks(page: Path, tmp_path: Path, width: int) -> None:
    seen = pages.read_in_browser(page, tmp_path, width)

    pages.check_layout(seen, width)
    assert [figure["name"] for figure in seen["figures"]] == ["one", "two", "three"]
    assert seen["headings"] == ["Logs & <more>", "Parts", "How this page was made"]


def test_values_are_written_for_readers_and_missing_ones_as_a_dash(page: Path, tmp_path: Path) -> None:
    table = pages.read_in_browser(page, tmp_path)["tables"][0]

    assert table["headings"] == ["Name", "Rollouts", "Ratio", "Kept"]
    assert table["rows"] == [
        ["run-10", "12,000", "0.250", "yes"],
        ["run-9", "9,000", "—", "no"],
        ["<b>run</b>", "12,000", "1,234", "yes"],
        ["ahead", "70", "0.300", "—"],
    ]


def test_table_beside_the_page_has_every_digit(page: Path) -> None:
    with (page.parent / "figures" / "times.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))

    assert rows[0] == ["Name", "Rollouts", "Ratio", "Kept"]
    assert rows[4] == ["ahead", "70", "0.30000000000000004", ""]


def test_every_file_that_the_page_names_lies_beside_it(page: Path, tmp_path: Path) -> None:
    files = pages.read_in_browser(page, tmp_path)["files"]

    there = {f"figures/{path.name}" for path in (page.parent / "figures").iterdir()}
    assert set(files) == there
    assert len(there) == 3 * 3 + 1


def test_table_is_sorted_with_the_keyboard_alone(shown: pages.OpenPage) -> None:
    tab_to(shown, "Rollouts")
    outline = shown.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # the focus can be seen

    shown.press("Enter")
    assert sorted_by(shown) == {"Rollouts": "ascending"}
    assert order(shown) == ["ahead", "run-9", "run-10", "<b>run</b>"]

    shown.press(" ")
    assert sorted_by(shown) == {"Rollouts": "descending"}
    assert order(shown) == ["run-10", "<b>run</b>", "run-9", "ahead"]  # equal ones keep their order

    tab_to(shown, "Ratio")
    shown.press("Enter")
    assert sorted_by(shown) == {"Ratio": "ascending"}
    assert order(shown) == ["run-10", "ahead", "<b>run</b>", "run-9"]
    shown.press("Enter")
    assert order(shown) == ["<b>run</b>", "ahead", "run-10", "run-9"]  # what is missing stays last
    assert shown.complaints() == []


def test_text_is_sorted_as_people_count(shown: pages.OpenPage) -> None:
    tab_to(shown, "Name")
    shown.press("Enter")

    assert order(shown)[-2:] == ["run-9", "run-10"]


def test_the_one_script_is_the_only_one_that_may_run(shown: pages.OpenPage) -> None:
    assert shown.evaluate("document.scripts.length") == 1
    assert shown.complaints() == []

    shown.evaluate(
        "{ const script = document.createElement('script'); script.textContent = 'window.intruder = 1';"
        " document.body.append(script); const image = new Image(); image.src = 'http://127.0.0.1:9/'; }"
    )

    assert shown.evaluate("window.intruder") is None
    complaints = shown.complaints()
    assert any("script-src" in complaint for complaint in complaints)
    assert any("default-src" in complaint for complaint in complaints)


def test_page_without_tables_has_no_script(tmp_path: Path) -> None:
    text = page_of(tmp_path, chart("one")).read_text(encoding="utf-8")

    assert "<script" not in text
    assert "script-src" not in text


def test_rows_with_formats_of_their_own_are_not_sorted(tmp_path: Path) -> None:
    data = pd.DataFrame(
        {"Quantity": ["Share", "Count", "Word"], "a": [0.5, 1200, "x"], "b": [None, 3, "y"]}, dtype=object
    )
    table = DataTable("numbers", "Numbers", "", data, row_formats={"Share": lambda share: f"{100 * share:.0f} %"})

    seen = pages.read_in_browser(page_of(tmp_path / "written", table), tmp_path)

    assert seen["tables"][0]["rows"] == [["Share", "50 %", "—"], ["Count", "1,200", "3"], ["Word", "x", "y"]]
    assert seen["scripts"] == 0


def test_wide_table_scrolls_in_its_own_box_and_can_be_focused(tmp_path: Path) -> None:
    data = pd.DataFrame({"Prompt": ["a" * 64]} | {f"Column {index}": [index] for index in range(30)})
    page = page_of(tmp_path / "written", DataTable("wide", "Wide", "", data))

    with pages.opened(page, tmp_path, 390) as shown:
        pages.check_layout(shown.evaluate(pages.PROBE) | {"requests": shown.requests()}, 390)
        box = "document.querySelector('.scroll')"
        assert shown.evaluate(f"{box}.scrollWidth > {box}.clientWidth")
        shown.press("Tab")
        assert shown.evaluate(f"document.activeElement === {box}")
        assert shown.evaluate(f"{box}.getAttribute('role')") == "region"
        shown.evaluate(f"{box}.scrollLeft = 500")
        assert shown.evaluate(f"{box}.querySelector('tbody th').getBoundingClientRect().left") < 20  # it stays in view


def test_printed_page_shows_what_made_it_and_no_controls(shown: pages.OpenPage) -> None:
    command = "document.querySelector('#one details code')"
    assert not shown.evaluate(f"{command}.checkVisibility({{ contentVisibilityAuto: true }})")

    shown.media("print", scheme="dark")

    assert shown.evaluate(f"{command}.getBoundingClientRect().height") > 0
    assert shown.evaluate("getComputedStyle(document.querySelector('summary')).display") == "none"
    arrow = "getComputedStyle(document.querySelector('th button'), '::after').display"
    assert shown.evaluate(arrow) == "none"
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(shown.do("Page.printToPDF", printBackground=True)["data"]) > 10_000


def test_page_follows_the_readers_colour_scheme(shown: pages.OpenPage) -> None:
    def colours() -> tuple[str, ...]:
        return tuple(
            shown.evaluate(f"getComputedStyle(document.querySelector('{where}')).{what}")
            for where, what in (("body", "backgroundColor"), ("body", "color"), ("#one svg [style*=muted]", "stroke"))
        )

    shown.media(scheme="dark")
    dark = colours()
    shown.media(scheme="light")

    assert all(one != other for one, other in zip(dark, colours(), strict=True))


def test_command_stands_at_the_end_and_with_every_chart_and_table(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    assert text.count("knapsack-rl audit &#39;my logs&#39;") == 3 + 1 + 1


def test_what_a_page_shows_cannot_become_part_of_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    assert "<b>" not in text
    assert "<value>" not in text
    assert "<more>" not in text
    assert "key: &lt;value&gt;" in text


def test_same_parts_give_the_same_bytes(tmp_path: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        page_of(folder, chart("one"), DataTable("times", "Times", "", TIMES))
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}

    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("name", ["", "Big", "two words", "a--b", "../up", "section-1", "made"])
def test_names_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name: expected small letters and digits"):
        page_of(tmp_path, chart(name))


def test_a_name_used_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got \['one'\] repeatedly"):
        page_of(tmp_path, chart("one"), DataTable("one", "Times", "", TIMES))


def test_chart_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected rows to draw the chart 'one' from"):
        page_of(tmp_path, chart("one", pd.DataFrame({"x": [], "y": []})))


def test_page_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")

    with pytest.raises(kr.InvalidInputError, match="output: cannot write"):
        page_of(tmp_path / "file")


def test_numbers_that_tables_are_sorted_by_have_every_digit(page: Path) -> None:
    assert f'data-value="{json.dumps(0.1 + 0.2)}"' in page.read_text(encoding="utf-8")
