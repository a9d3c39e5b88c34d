"""The pages that commands write: one self-contained HTML file, and a folder with what its figures and tables show.

A command says what is on its page as sections of parts, and `write_page` lays them out. A page needs no network; its
only script, which sorts tables, is written into it and allowed by its hash alone. The same parts give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

from knapsack_rl.errors import InvalidInputError, MissingExtraError
from knapsack_rl.experiments import disk
from knapsack_rl.experiments.cleaning import cleaned

try:
    import jinja2
    import pandas as pd
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from knapsack_rl.experiments.pages.drawing import PALETTE, inline_svg, save
    from knapsack_rl.experiments.pages.wording import plain
except ImportError as error:
    raise MissingExtraError(
        f"A report needs {error.name}, which is not installed. Run: pip install 'knapsack-rl[report]'", name=error.name
    ) from error

_MISSING = "—"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_FIGURE = re.compile(r'href="(figures/[a-z0-9-]+\.(?:svg|png|csv))"')


def refuse_others(folder: Path, *names: str) -> None:
    """Refuse to write files of these names and figures into `folder` where others, of no page of ours, would give way.

    Raises:
        InvalidInputError: with the first of them.
    """
    figures = folder / "figures"
    if (figures / ".lock").exists():  # see `alone`
        return
    there = [*(folder / name for name in names), *sorted(figures.glob("[!.]*"))]
    if foreign := next((path for path in there if path.exists()), None):
        raise InvalidInputError(
            f"--output: {foreign} is of no page of this program. Choose another place with --output."
        )


def figures_of(page: Path) -> set[Path]:
    """The files of figures and tables that a page of ours links to; none where there is no page.

    What an earlier page had and a newer one has not is stale, and whoever wrote both removes it.
    """
    if not page.is_file():
        return set()
    links = _FIGURE.findall(page.read_text(encoding="utf-8", errors="replace"))
    return {file for link in links if (file := page.parent / link).is_file()}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from writing their page, with what belongs to it, into `folder`; wait for one that does.

    Raises:
        InvalidInputError: the folder cannot be written to.
    """
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        held = disk.lock(folder / "figures" / ".lock", wait=True)
    except OSError as error:
        raise InvalidInputError(f"output: cannot write to {folder}: {error}. Choose another place.") from error
    with held:
        yield


@dataclass(frozen=True)
class Chart:
    """A figure, and the table it is drawn from.

    Attributes:
        name: name of its files and its HTML id, unique on the page: small letters and digits with single hyphens.
        title: heading.
        caption: what is shown, in sentences.
        source: data files that the numbers come from, such as `metrics.jsonl`.
        draw: makes the figure from `data`.
        data: the table; not empty.
    """

    name: str
    title: str
    caption: str
    source: str
    draw: Callable[[pd.DataFrame], Figure]
    data: pd.DataFrame


@dataclass(frozen=True)
class DataTable:
    """A table that can be sorted; its CSV with all digits lies beside the page.

    Attributes:
        name: name of its file and its HTML id, like that of a chart.
        title: heading.
        caption: what is shown, in sentences; may be empty.
        data: raw values; the columns' names are the headings, and the first column names the rows.
        formats: how to write the values of a column, by its name. By default text as it is, whole numbers with
            thousands separators, other numbers with three significant digits; missing values are always a dash.
        source: data files that the numbers come from; may be empty.
        row_formats: how to write the values of a row, by what stands in its first column, for a table in which every
            row is a quantity of its own. Such a table cannot be sorted.
    """

    name: str
    title: str
    caption: str
    data: pd.DataFrame
    formats: Mapping[str, Callable[[Any], str]] = field(default_factory=dict)
    source: str = ""
    row_formats: Mapping[str, Callable[[Any], str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """Labels and texts, a row each; `title` may be empty."""

    title: str
    rows: Mapping[str, str]


@dataclass(frozen=True)
class Command:
    """Something to type, and what it is for."""

    label: str
    text: str


@dataclass(frozen=True)
class Listing:
    """The text of a file, such as a recipe."""

    title: str
    text: str


@dataclass(frozen=True)
class Note:
    """A quiet sentence."""

    text: str


Part = Chart | DataTable | Facts | Command | Listing | Note


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; charts in a row flow in columns."""

    title: str
    parts: Sequence[Part]


def write_page(
    output: Path,
    *,
    kind: str,
    title: str,
    summary: Sequence[str],
    notes: Sequence[str] = (),
    sections: Sequence[Section],
    command: str,
) -> Path:
    """Write a page and return its path.

    A folder `figures` beside it gets every chart as SVG and PNG with the CSV it was drawn from, and every table as
    CSV. Those of an earlier page stay: see `figures_of`.

    Args:
        output: the HTML file to write; folders that it needs are made.
        kind: what the page is, in lower case, such as "training report".
        title: heading of the page.
        summary: paragraphs that say what happened.
        notes: quiet sentences below the summary.
        sections: everything else. Sections without parts are left out.
        command: what makes the page again; shown at the end, and with every chart and table.

    Raises:
        InvalidInputError: `output` cannot be written.
        ValueError: the name of a chart or table is malformed or not unique, or a chart has no data.
    """
    shown = [section for section in sections if section.parts]
    _check([part for section in shown for part in section.parts])
    text = resources.files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8")
    script = resources.files(__package__).joinpath("sort_tables.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_clean
    )
    try:
        folder = output.parent / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        views = [(section.title, _blocks(section.parts, folder)) for section in shown]
        sortable = any(view.get("sortable") for _, blocks in views for block in blocks for view in block["views"])
        page = environment.from_string(text).render(
            kind=kind,
            title=title,
            summary=summary,
            notes=notes,
            sections=views,
            command=command,
            palette=PALETTE,
            script=Markup(script) if sortable else None,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
        disk.write_text(output, page)
    except OSError as error:
        raise InvalidInputError(f"output: cannot write {output}: {error}. Name another file to write.") from error
    return output


def _clean(value: Any) -> Any:
    """What the template writes of a value; Markup is ours, and prompts may hold anything."""
    return cleaned(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _check(parts: Sequence[Part]) -> None:
    named = [part for part in parts if isinstance(part, (Chart, DataTable))]
    repeated = [name for name, count in Counter(part.name for part in named).items() if count > 1]
    if repeated:
        raise ValueError(f"name: expected each chart and table of a page to have its own, got {repeated} repeatedly.")
    for part in named:
        if not _NAME.fullmatch(part.name) or part.name == "made" or part.name.startswith("section-"):
            raise ValueError(
                "name: expected small letters and digits with single hyphens, and neither 'made' nor 'section-...', "
                f"which are the page's own, got {part.name!r}."
            )
        if isinstance(part, Chart) and part.data.empty:
            raise ValueError(f"data: expected rows to draw the chart {part.name!r} from, got an empty table.")


def _blocks(parts: Sequence[Part], folder: Path) -> list[dict[str, Any]]:
    """Parts of the same kind in a row, as the template takes them: a kind and its views."""
    return [
        {"kind": kind.__name__, "views": [_view(part, folder) for part in some]} for kind, some in groupby(parts, type)
    ]


def _view(part: Part, folder: Path) -> dict[str, Any]:
    """What the template shows of a part; the files of charts and tables are written into `folder`."""
    if isinstance(part, Chart):
        saved = save(part.draw(part.data), part.data, folder, part.name)
        # Markup, since the drawing is ours and its text is escaped by the XML writer.
        return vars(part) | {"svg": Markup(inline_svg(saved, part.name, f"{part.title}. {part.caption}"))}
    if isinstance(part, DataTable):
        disk.write_csv(part.data, folder / f"{part.name}.csv")
        return vars(part) | _table_view(part)
    return dict(vars(part))


def _table_view(table: DataTable) -> dict[str, Any]:
    headings = [str(heading) for heading in table.data.columns]
    columns = [table.data.iloc[:, index].tolist() for index in range(len(headings))]
    default: dict[str, Callable[[Any], str]] = {heading: table.formats.get(heading, plain) for heading in headings}
    rows = []
    for name, *values in zip(*columns, strict=True):
        of_row = table.row_formats.get(str(name))
        cells = [_cell(value, of_row or default[heading]) for value, heading in zip(values, headings[1:], strict=True)]
        rows.append([_cell(name, default[headings[0]]), *cells])
    return {
        "headings": [
            # A row's own format may write a text as well, so the columns of such a table count as numbers.
            {"text": heading, "numeric": _is_numeric(values) or bool(table.row_formats and index)}
            for index, (heading, values) in enumerate(zip(headings, columns, strict=True))
        ],
        "rows": rows,
        "sortable": not table.row_formats,
    }


def _cell(value: Any, write: Callable[[Any], str]) -> dict[str, str | None]:
    """The text of a cell, and what it is sorted by: None where nothing is known."""
    if _is_missing(value):
        return {"text": _MISSING, "value": None}
    return {"text": write(value), "value": repr(value) if isinstance(value, (int, float)) else str(value)}


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _is_numeric(values: Sequence[Any]) -> bool:
    known = [value for value in values if not _is_missing(value)]
    return bool(known) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known)
