"""What the figures of every page share: colours, type, axes, labels, and how a figure is saved.

Only matplotlib's object interface is used, never pyplot, so drawing leaves no global state behind, and the
same table gives the same bytes.
"""

from __future__ import annotations

import functools
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from knapsack_rl.experiments import disk
from knapsack_rl.experiments.cleaning import cleaned

Arguments = ParamSpec("Arguments")
Dashes = Literal["-", "--"]
Style = tuple[str, Dashes]
"""Colour and dashes of a line."""

# name -> (light, dark). Files are drawn in the light colours; a page turns them into CSS variables, so the
# same drawing follows the reader's colour scheme. The series are Okabe and Ito's colour-blind-safe hues,
# darkened (or lightened) until text set in them has a contrast of 4.5 with the background.
PALETTE = {
    "ink": ("#1b1f24", "#e6e8eb"),
    "muted": ("#59626d", "#9fa9b4"),
    "grid": ("#dde1e6", "#333a42"),
    "paper": ("#ffffff", "#171a1f"),
    "blue": ("#0072b2", "#5ab6ea"),
    "vermillion": ("#c24e00", "#ff9c5b"),
    "green": ("#007f5f", "#3fd6ac"),
    "purple": ("#a03d79", "#e79ccb"),
    "amber": ("#8a6100", "#eebb44"),
    "heat": ("#1878b8", "#2577b0"),
}
INK, MUTED, GRID, PAPER = (PALETTE[name][0] for name in ("ink", "muted", "grid", "paper"))
BLUE, VERMILLION, GREEN = (PALETTE[name][0] for name in ("blue", "vermillion", "green"))
RUN_COLOURS = tuple(PALETTE[name][0] for name in ("blue", "vermillion", "green", "purple", "amber"))

# A column of a paper and the width of a phone: 4.4 inches (317 points) with type of 9 and 10 points stays readable
# when it is shown 340 CSS pixels wide.
WIDTH = 4.4
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 10.0,
    "text.color": INK,
    "text.parse_math": False,  # names of runs and benchmarks may hold a dollar sign
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "path",
    "svg.hashsalt": "knapsack-rl",
    "path.simplify": False,
}


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Let `draw` make its figure in `STYLE`, and leave matplotlib's own settings alone."""

    @functools.wraps(draw)
    def in_style(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


def save(figure: Figure, table: pd.DataFrame, folder: Path, name: str) -> str:
    """Write `name`.svg, `name`.png (200 dots an inch) and `name`.csv into `folder`; return the SVG's text."""
    svg = StringIO()
    for text in figure.findobj(Text):
        text.set_text(cleaned(text.get_text()))
    with matplotlib.rc_context(STYLE):
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.set_layout_engine("none")  # keep the layout just found: both files look alike, in half the time
        with disk.replacing(folder / f"{name}.png") as unfinished:
            figure.savefig(unfinished, format="png", dpi=200, metadata={"Software": None})
    disk.write_text(folder / f"{name}.svg", svg.getvalue())
    disk.write_csv(table, folder / f"{name}.csv")
    return svg.getvalue()


def inline_svg(svg: str, name: str, description: str) -> str:
    """A saved figure as an `<svg>` element for an HTML page whose CSS defines `--<name>` for `PALETTE`.

    Ids are made unique by `name`, so that several figures share a page; colours become CSS variables;
    metadata and fixed sizes are dropped, so that the page sets the width. `description` is what a screen
    reader says.
    """
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            plain_key = key.rpartition("}")[2]  # xlink:href is plain href in HTML
            element.set(plain_key, _page_attribute(plain_key, value, name))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", description)
    return ElementTree.tostring(root, encoding="unicode")


def _page_attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    value = value.replace("url(#", f"url(#{name}-")
    for colour, (light, _) in PALETTE.items():
        value = value.replace(light, f"var(--{colour})")
    return value


def names(table: pd.DataFrame, column: str) -> list[str]:
    """The values of `column`, in the order of first appearance."""
    return [str(name) for name in table[column].unique()]


def groups(table: pd.DataFrame, column: str) -> list[tuple[str, pd.DataFrame]]:
    """Rows of each value of `column`, in the order of first appearance."""
    return [(str(name), rows) for name, rows in table.groupby(column, sort=False)]


def run_styles(runs: Sequence[str]) -> dict[str, Style]:
    """Colour and dashes of each run's line: the first five solid, the next five in the same colours dashed."""
    count = len(RUN_COLOURS)
    return {run: (RUN_COLOURS[index % count], "-" if index < count else "--") for index, run in enumerate(runs)}


def legend_height(styles: Mapping[str, Style]) -> float:
    """Inches that `name_lines` needs above the panels; 0 where lines are named at their ends."""
    return 0.19 * len(styles) if len(styles) > len(RUN_COLOURS) else 0.0


def name_lines(
    figure: Figure,
    ends: Mapping[Axes, Sequence[tuple[tuple[float, float], str, str]]],
    styles: Mapping[str, Style],
) -> None:
    """Name runs at the ends of their lines (`label_ends`, by panel), or above the panels where they are too many."""
    if len(styles) <= len(RUN_COLOURS):
        for axes, labels in ends.items():
            label_ends(axes, labels)
        return
    legend_above(
        figure,
        [Line2D([], [], color=colour, linestyle=dash, label=run) for run, (colour, dash) in styles.items()],
        length=2.1,  # of two dashes
    )


def smoothed_line(
    axes: Axes, rows: pd.DataFrame, colour: str, scale: float, dashes: Dashes = "-"
) -> tuple[float, float]:
    """Draw the raw curve lightly and its running mean on it; return where the running mean ends.

    `rows` has the columns step, value and running_mean, by rising step; both are multiplied by `scale`.
    """
    step = rows["step"].to_numpy()
    smooth = scale * rows["running_mean"].to_numpy()
    marker = "o" if len(step) == 1 else ""
    axes.plot(step, scale * rows["value"].to_numpy(), color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(step, smooth, color=colour, marker=marker, linestyle=dashes)
    return float(step[-1]), float(smooth[-1])


def label_ends(axes: Axes, ends: Sequence[tuple[tuple[float, float], str, str]]) -> None:
    """Write each line's name to the right of its end, moved up or down just enough not to overlap.

    `ends` holds ((x, y), text, colour). The axes' limits must be final.
    """
    axes.get_ylim()  # has matplotlib work out limits that it has put off
    place = axes.get_subplotspec()
    panels = place.get_gridspec().nrows if place else 1
    height = 72.0 * axes.figure.figure.get_figheight() / panels * 0.75  # points; about the part inside the axes
    to_fraction = (axes.transData + axes.transAxes.inverted()).transform
    labels = sorted(
        ((float(np.clip(to_fraction(end)[1], 0.0, 1.0)), wrapped(text), colour) for end, text, colour in ends),
        key=lambda label: label[0],
    )
    sizes = [13.0 * (1 + text.count("\n")) / height for _, text, _ in labels]
    centres = [fraction for fraction, _, _ in labels]
    for index in range(1, len(labels)):
        room = (sizes[index - 1] + sizes[index]) / 2
        centres[index] = max(centres[index], centres[index - 1] + room)
    if centres and centres[-1] > 1.0:  # slide back down from the top
        centres[-1] = 1.0
        for index in range(len(labels) - 2, -1, -1):
            room = (sizes[index + 1] + sizes[index]) / 2
            centres[index] = min(centres[index], centres[index + 1] - room)
    for centre, (_, text, colour) in zip(centres, labels, strict=True):
        axes.text(1.02, centre, text, transform=axes.transAxes, ha="left", va="center", color=colour, fontsize=9)


def grid(count: int, columns: int, panel_height: float, margin: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, `columns` in a row, that share the horizontal axis.

    `panel_height` is in inches, and `margin` what labels and legend around the panels take. Call it in a `styled`
    function.
    """
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, margin + panel_height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for axes in panels[count:]:
        figure.delaxes(axes)
    for axes in panels[max(0, count - columns) : count]:  # also where the row below is not full
        axes.tick_params(labelbottom=True)
    return figure, panels[:count]


def legend_above(figure: Figure, handles: Sequence[Artist], length: float = 1.3) -> None:
    """Name the lines and markers in `handles`, by their labels and in their colours, above all panels."""
    texts = [wrapped(str(handle.get_label()), 44) for handle in handles]
    longest = max(len(line) for text in texts for line in text.splitlines())
    legend = figure.legend(
        handles=handles,
        labels=texts,
        loc="outside upper left",
        ncols=max(1, min(len(texts), 52 // (longest + 5))),
        frameon=False,
        fontsize=9,
        handlelength=length,
        columnspacing=1.4,
        borderpad=0.1,
    )
    for text, handle in zip(legend.get_texts(), handles, strict=True):
        if isinstance(handle, Line2D):
            text.set_color(handle.get_color())


def shortened(text: str, width: int = 13) -> str:
    """`text` with its middle left out where it has more than `width` characters."""
    return text if len(text) <= width else f"{text[: width // 2]}…{text[len(text) - (width - 1) // 2 :]}"


def step_axis(axes: Axes) -> None:
    """Number the horizontal axis by whole steps; a single step gets room on both sides."""
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    low, high = axes.get_xlim()
    if high - low < 1.0:  # a single step
        axes.set_xlim(low - 1.0, high + 1.0)


def percent_axis(axes: Axes, label: str) -> None:
    """Let the vertical axis go from 0 to 100, called `label`."""
    axes.set_ylim(0.0, 100.0)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylabel(label)


def wrapped(text: str, width: int = 14) -> str:
    """`text` in lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(text, width)) or text


def whole(value: float, _position: int | None = None) -> str:
    """Formatter of ticks: 12,000 for whole numbers, and as few digits as possible below 1."""
    return f"{value:,.0f}" if value >= 1 or value == 0 else f"{value:g}"
