from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the report extra is not installed")

import matplotlib
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from knapsack_rl.experiments.pages import drawing
from knapsack_rl.experiments.report import run_figures as figures
from knapsack_rl.experiments.simulate import figures as simulated
from knapsack_rl.metrics import STATUSES

LONG = "knapsack-without-fallback-64"


def curves(runs: tuple[str, ...], steps: int, level: float = 0.5) -> pd.DataFrame:
    value = level + 0.1 * np.sin(np.arange(steps))
    rows = [
        {"run": run, "step": step + 1, "value": value[step], "running_mean": level}
        for run in runs
        for step in range(steps)
    ]
    return pd.DataFrame(rows)


def ratios(runs: tuple[str, ...], steps: int, level: float = 0.5) -> pd.DataFrame:
    return pd.concat(
        [
            curves((run,), steps, level).assign(quantity=quantity)
            for run in runs
            for quantity in ("effective gradients", "all correct", "all wrong")
        ],
        ignore_index=True,
    )


def histogram(runs: tuple[str, ...], steps: int) -> pd.DataFrame:
    return pd.DataFrame(
        [{"run": run, "rollouts": n, "count": 1 + 10_000 // n**2} for run in runs for n in range(2, 3 + steps)]
    )


def quantiles(runs: tuple[str, ...], steps: int) -> pd.DataFrame:
    columns = {"min": 2, "q25": 2, "median": 2, "q75": 9, "max": 93}
    return pd.DataFrame([{"run": run, "step": step + 1} | columns for run in runs for step in range(steps)])


def moves(runs: tuple[str, ...], steps: int) -> pd.DataFrame:
    """Every status but "easy" has prompts that began in it."""
    return pd.DataFrame(
        [
            {"run": run, "first": first, "last": last}
            | ({"prompts": 0, "share": np.nan} if first == "easy" else {"prompts": steps, "share": 0.2})
            for run in runs
            for first, last in product(STATUSES, STATUSES)
        ]
    )


def counts(runs: tuple[str, ...], steps: int) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"run": run, "visit": visit, "status": status, "prompts": steps * (9274 if index == 0 else index)}
            for run in runs
            for visit in ("first", "last")
            for index, status in enumerate(STATUSES)
        ]
    )


def accuracies(runs: tuple[str, ...], steps: int) -> pd.DataFrame:
    """Benchmarks whose accuracies end at almost the same place, which crowds their labels."""
    names = ("AIME 2024", "AIME 2025", "AMC", "MATH", "Minerva", "OlympiadBench", "GPQA $100$")
    return pd.DataFrame(
        [
            {"run": run, "benchmark": name, "rollouts": 2048 * step, "step": step, "accuracy": 0.3 + 0.001 * index}
            for run in runs
            for index, name in enumerate(names)
            for step in range(steps)
        ]
    )


def prompts(runs: tuple[str, ...], steps: int) -> pd.DataFrame:
    """Ids like those of `knapsack_rl.identity`, and one that is short."""
    ids = [f"{index:x}" * 32 for index in range(8)] + ["a"]
    return pd.DataFrame(
        [
            {"prompt": prompt, "run": run, "step": 1000 * step, "rollouts": 2 + 60 * (step % 2), "rate": step / steps}
            for prompt in ids
            for run in runs
            for step in range(steps)
        ]
    )


def calibrations(runs: tuple[str, ...], steps: int) -> pd.DataFrame:
    rates = np.linspace(0.05, 0.95, 10)[: max(1, steps // 2)]
    return pd.DataFrame(
        [{"run": run, "believed": rate, "observed": rate**1.2, "error": 0.02} for run in runs for rate in rates]
    )


def worths(runs: tuple[str, ...], steps: int) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"run": run, "name": name, "worth": 1.5 - 0.3 * index, "error": 0.2 * index}
            for run in runs
            for index, name in enumerate(("0-0.1", "0.1-0.25", "a category with a name that is long"))
        ]
    )


def noise(runs: tuple[str, ...], steps: int) -> pd.DataFrame:
    """From the third step on with an upper limit, and from the second with a value."""
    return pd.DataFrame(
        [
            {"run": run, "step": step + 3, "low": 100.0, "high": 900.0 if step > 1 else np.inf}
            | {"value": 300.0 + step if step else np.nan}
            for run in runs
            for step in range(steps)
        ]
    )


def spent(runs: tuple[str, ...], steps: int) -> pd.DataFrame:
    """Success rates that end at the same place."""
    return pd.concat(
        [
            curves(runs, steps).assign(prompts=kind, rollouts=lambda rows: 2048 * rows["step"])
            for kind in ("training", "held-out")
        ]
    )


DRAWINGS: list[tuple[Callable[[pd.DataFrame], Figure], Callable[[tuple[str, ...], int], pd.DataFrame]]] = [
    (figures.gradient_ratios, ratios),
    (figures.prompt_reward, curves),
    (figures.budget_histogram, histogram),
    (figures.budget_quantiles, quantiles),
    (figures.transitions, moves),
    (figures.status_counts, counts),
    (figures.held_out_accuracy, accuracies),
    (figures.benchmark_accuracy, accuracies),
    (figures.single_prompts, prompts),
    (figures.calibration, calibrations),
    (figures.log_score, curves),
    (figures.worth, worths),
    (figures.noise_scale, noise),
    (simulated.success_rates, spent),
    (simulated.belief_errors, curves),
]
every_drawing = pytest.mark.parametrize(("draw", "table"), DRAWINGS, ids=[draw.__name__ for draw, _ in DRAWINGS])
any_size = pytest.mark.parametrize("steps", [1, 120])
any_runs = pytest.mark.parametrize("runs", [("demo",), ("uniform", LONG), ("a", "b", "c", "d", LONG)], ids=len)


@every_drawing
@any_size
@any_runs
def test_no_two_texts_of_a_figure_overlap_or_leave_it(draw, table, runs, steps) -> None:
    check_texts(draw(table(runs, steps)))


MANY = tuple(f"knapsack-variant-{letter}" for letter in "abcdefghi")
TWICE_THE_COLOURS: list[tuple[Callable[[pd.DataFrame], Figure], Callable[[tuple[str, ...], int], pd.DataFrame]]] = [
    (figures.gradient_ratios, ratios),
    (figures.budget_histogram, histogram),
    (figures.budget_quantiles, quantiles),
    (figures.status_counts, counts),
    (simulated.success_rates, spent),
    (simulated.belief_errors, curves),
]


@pytest.mark.parametrize(("draw", "table"), TWICE_THE_COLOURS, ids=[draw.__name__ for draw, _ in TWICE_THE_COLOURS])
def test_more_runs_than_colours_are_all_drawn_and_named_below_the_mark_of_a_simulation(draw, table) -> None:
    figure = simulated.marked(draw, "simulated: world paper, Adam, seed 0")(table(MANY, 120))

    texts = check_texts(figure)

    assert "simulated: world paper, Adam, seed 0" in texts
    assert set(MANY) <= set(texts)


def test_runs_beyond_the_colours_have_lines_that_are_dashed() -> None:
    styles = drawing.run_styles(MANY)

    assert len(set(styles.values())) == len(MANY)
    assert [dashes for _, dashes in styles.values()] == ["-"] * 5 + ["--"] * 4


def check_texts(figure: Figure) -> list[str]:
    """All texts of a figure; fails where two of them overlap or one leaves the figure."""
    boxes = drawn_texts(figure)
    edges = figure.bbox.padded(1.0)
    assert [text for text, box in boxes if not (edges.contains(*box.min) and edges.contains(*box.max))] == []
    assert [
        (text, other)
        for index, (text, box) in enumerate(boxes)
        for other, other_box in boxes[:index]
        if box.padded(-0.5).overlaps(other_box.padded(-0.5))
    ] == []
    return [text for text, _ in boxes]


class TextRecorder(RendererAgg):
    """Notes which texts are drawn; matplotlib also keeps tick labels that it never draws."""

    def __init__(self, figure: Figure) -> None:
        super().__init__(int(figure.bbox.width), int(figure.bbox.height), figure.dpi)
        self.drawn: list[str] = []

    def open_group(self, s: str, gid: str | None = None) -> None:
        if s == "text" and gid is not None:
            self.drawn.append(gid)


def drawn_texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """(text, rectangle in pixels) of every text that is really drawn."""
    FigureCanvasAgg(figure).draw()  # makes the ticks and finds the layout
    figure.set_layout_engine("none")
    texts = {str(index): text for index, text in enumerate(figure.findobj(Text))}
    for gid, text in texts.items():
        text.set_gid(gid)
    recorder = TextRecorder(figure)
    figure.draw(recorder)
    return [(texts[gid].get_text(), texts[gid].get_window_extent(recorder)) for gid in recorder.drawn]


@every_drawing
@any_runs
def test_every_axis_says_what_it_shows(draw, table, runs) -> None:
    figure = draw(table(runs, 30))

    assert figure.get_supxlabel() or figure.axes[-1].get_xlabel()
    if draw not in (figures.status_counts, figures.worth):  # whose vertical axes list statuses or kinds by name
        assert figure.get_supylabel() or all(axes.get_ylabel() for axes in figure.axes)


@every_drawing
def test_same_table_gives_the_same_files(draw, table, tmp_path: Path) -> None:
    data = table(("uniform", "knapsack"), 12)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        drawing.save(draw(data), data, tmp_path / name, "figure")

    for kind in ("svg", "png", "csv"):
        assert (tmp_path / "one" / f"figure.{kind}").read_bytes() == (tmp_path / "two" / f"figure.{kind}").read_bytes()


@every_drawing
def test_drawing_leaves_matplotlibs_settings_alone(draw, table, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)

    data = table(("demo",), 5)
    drawing.save(draw(data), data, tmp_path, "figure")

    assert dict(matplotlib.rcParams) == before


@every_drawing
def test_inline_drawing_takes_size_and_colours_from_the_page(draw, table, tmp_path: Path) -> None:
    data = table(("uniform", "knapsack"), 12)
    saved = drawing.save(draw(data), data, tmp_path, "figure")

    svg = drawing.inline_svg(saved, "budgets", 'A "quoted" <description>')

    opening = svg[: svg.index(">") + 1]
    assert opening.startswith("<svg ")
    assert 'role="img"' in opening
    assert "&lt;description&gt;" in opening
    assert " width=" not in opening
    assert "viewBox=" in opening
    assert re.findall(r"#[0-9a-fA-F]{6}\b", svg) == []
    assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(drawing.PALETTE)
    assert all(found.startswith("budgets-") for found in re.findall(r'id="([^"]*)"', svg))
    assert all(found.startswith("budgets-") for found in re.findall(r'(?:href="|url\()#([^")]*)', svg))


def test_status_without_prompts_is_left_blank() -> None:
    axes = draw_and_get_axes(figures.transitions, moves(("demo",), 10))

    written = {(round(text.get_position()[0]), round(text.get_position()[1])) for text in axes.texts}
    easy = STATUSES.index("easy")
    assert written == {(column, row) for row in range(5) for column in range(5) if row != easy}
    assert len(axes.patches) == 20


def test_area_of_a_point_is_in_proportion_to_its_rollouts() -> None:
    axes = draw_and_get_axes(figures.single_prompts, prompts(("demo",), 2))

    small, large = axes.collections[0].get_sizes()
    assert large / small == pytest.approx(62 / 2)


def test_panels_of_a_grid_have_the_numbers_of_their_steps_below() -> None:
    figure, panels = drawing.grid(5, columns=2, panel_height=1.0, margin=0.5)

    assert len(figure.axes) == 5
    numbered = [bool(axes.xaxis.get_tick_params()["labelbottom"]) for axes in panels]
    assert numbered == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("text", "short"), [("prompt-012", "prompt-012"), ("0123456789abcdef" * 2, "012345…abcdef"), ("", "")]
)
def test_long_names_lose_their_middle(text: str, short: str) -> None:
    assert drawing.shortened(text) == short


def test_lines_that_end_together_are_named_in_the_order_of_their_ends() -> None:
    table = pd.concat(
        [curves((run,), 20, level) for run, level in (("low", 0.500), ("middle", 0.501), ("high", 0.502))]
    )
    axes = draw_and_get_axes(figures.prompt_reward, table)

    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert heights["low"] < heights["middle"] < heights["high"]
    assert all(upper - lower > 0.03 for lower, upper in pairwise(sorted(heights.values())))


def test_dollar_signs_in_names_are_not_mathematics() -> None:
    axes = draw_and_get_axes(figures.held_out_accuracy, accuracies(("demo",), 3))

    label = next(text for text in axes.texts if "$100$" in text.get_text())
    assert not label.get_parse_math()


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_colour_that_text_is_set_in_can_be_read(scheme: int) -> None:
    paper = drawing.PALETTE["paper"][scheme]
    for name in ("ink", "muted", "blue", "vermillion", "green", "purple", "amber"):
        assert contrast(drawing.PALETTE[name][scheme], paper) >= 4.5, name


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_numbers_can_be_read_on_the_darkest_cell_of_the_heat_map(scheme: int) -> None:
    heat, paper, ink = (rgb(drawing.PALETTE[name][scheme]) for name in ("heat", "paper", "ink"))

    assert contrast_of(0.75 * heat + 0.25 * paper, ink) >= 4.5


def draw_and_get_axes(draw: Callable[[pd.DataFrame], Figure], table: pd.DataFrame) -> matplotlib.axes.Axes:
    return draw(table).axes[0]


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])


def contrast(one: str, other: str) -> float:
    return contrast_of(rgb(one), rgb(other))


def contrast_of(one: np.ndarray, other: np.ndarray) -> float:
    """WCAG 2.2's contrast ratio of two sRGB colours."""

    def luminance(colour: np.ndarray) -> float:
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
