"""What a run shows while it runs: a live display on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

_BLOCKS = "▁▂▃▄▅▆▇█"
_HISTORY = 24
_PLAIN_LINES = 15
_WIDTH = 78


def sparkline(values: Sequence[float], width: int = _HISTORY) -> str:
    """The course of `values` in at most `width` characters, each the mean of its share, from lowest to highest."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)


class Display:
    """Takes in what happens in a run and shows it on `console`; a context manager.

    What it says about the time left it reads from `clock`, in seconds.
    """

    def __init__(self, console: Console, title: str, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._console = console
        self._redraws = console.is_terminal and not console.is_dumb_terminal
        self._title = title
        self._steps = steps
        self._phase = "getting ready"
        self._done = 0
        self._stopping = False
        self._started: tuple[float, int] | None = None
        self._warm_start: tuple[int, int, float] | None = None
        self._records: list[Mapping[str, Any]] = []
        self._accuracies: dict[str, list[float]] = {}
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> Display:
        if self._redraws:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.stop()

    def phase(self, text: str) -> None:
        """What is going on besides training steps."""
        self._phase = text
        if not self._redraws:
            self.note(text)

    def note(self, text: str) -> None:
        """Say something that stays on the screen."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def warm_start(self, done: int, total: int, loss: float) -> None:
        """`done` of `total` supervised updates are done; `loss` is in nats per token."""
        self._warm_start = (done, total, loss)
        if not self._redraws and (done == total or done % max(1, total // 5) == 0):
            self.note(f"warm start {done}/{total}  loss {loss:.3f}")

    def stopping(self) -> None:
        """The run will stop after this step. Only notes it, because signal handlers must not print."""
        self._stopping = True

    def start(self, done: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Training starts after `done` steps, of which `records` tell."""
        self._phase = "training"
        self._warm_start = None
        self._done = done
        self._started = (self._clock(), done)
        for record in records:
            self._take_in(record)

    def record(self, record: Mapping[str, Any]) -> None:
        """A step or an evaluation is done; `record` is its line in metrics.jsonl."""
        self._take_in(record)
        if self._redraws:
            return
        if "evaluation" in record:
            self.note(f"step {record['step']}/{self._steps}  held-out accuracy: {self._accuracy_text()}")
        elif record["step"] % max(1, self._steps // _PLAIN_LINES) == 0 or record["step"] == self._steps:
            self.note(f"step {record['step']}/{self._steps}  {_numbers(record)}  {self._time_left()}")

    def _take_in(self, record: Mapping[str, Any]) -> None:
        if "evaluation" in record:
            for name, accuracy in record["evaluation"].items():
                if accuracy is not None:
                    self._accuracies.setdefault(name, []).append(accuracy)
        else:
            self._records.append(record)
            self._done = record["step"]

    def _time_left(self) -> str:
        if self._started is None or self._done <= self._started[1]:
            return ""
        since, first = self._started
        seconds = (self._clock() - since) / (self._done - first) * (self._steps - self._done)
        return f"{timedelta(seconds=round(seconds))} left"

    def _accuracy_text(self) -> str:
        several = len(self._accuracies) > 1
        return ", ".join((f"{name} " if several else "") + _course(values) for name, values in self._accuracies.items())

    def _render(self) -> RenderableType:
        if self._warm_start is not None:
            done, total, loss = self._warm_start
            body: RenderableType = Group(
                _bar("warm start", done, total, f"loss {loss:.3f}"),
                Text("supervised learning, once: the model is kept for later runs", style="dim"),
            )
        elif self._started is None:
            body = Text(self._phase, style="dim")
        else:
            remark = "stopping after this step; once more to stop at once" if self._stopping else ""
            bar = _bar("step", self._done, self._steps, self._time_left())
            body = Group(bar, Text(remark, style="bold yellow"), self._table())
        # Room beside it for the ^C that a terminal writes there: in a new line it would upset the redrawing.
        width = min(_WIDTH, self._console.width - 2)
        return Panel(body, title=self._title, title_align="left", border_style="blue", padding=(0, 1), width=width)

    def _table(self) -> Table:
        rows: list[tuple[RenderableType, RenderableType, RenderableType]] = []
        if self._records:
            last = self._records[-1]
            for label, key, style in (
                ("effective gradient ratio (EGR)", "effective_gradient_ratio", "bold green"),
                ("prompts all right", "zero_gradient_ratio/all_positive", ""),
                ("prompts all wrong", "zero_gradient_ratio/all_negative", ""),
                ("mean reward over prompts", "prompt_reward", ""),
            ):
                course = [record[key] for record in self._records if record.get(key) is not None]
                rows.append((label, Text(_percent(last.get(key)), style=style), sparkline(course)))
            rows.append(("rollouts per prompt", _spread(last), Text("min · median · max", style="dim")))
        for name, values in self._accuracies.items():
            label = "held-out accuracy" if len(self._accuracies) == 1 else f"accuracy on {name}"
            rows.append((label, Text(_course(values), style="bold green"), sparkline(values)))
        table = Table.grid(padding=(0, 2))
        for style in ("dim", "", "cyan"):
            table.add_column(style=style, no_wrap=True)
        shown = 3 if self._console.width >= _WIDTH + 2 else 2  # the courses are the first to go
        for row in rows:
            table.add_row(*row[:shown])
        return table


def summary(steps: int, records: Sequence[Mapping[str, Any]]) -> Table:
    """A short table of what a run of `steps` planned steps came to, from the records in its metrics.jsonl."""
    trained = [record for record in records if "evaluation" not in record]
    examined = [record["evaluation"] for record in records if "evaluation" in record]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(style="bold")
    if trained:
        last = trained[-1]
        table.add_row("steps", f"{last['step']} of {steps}")
        table.add_row("rollouts", f"{last['rollouts']:,}")
        table.add_row("time", str(timedelta(seconds=round(records[-1]["time"]))))
        for label, key in (
            ("effective gradient ratio (EGR), mean", "effective_gradient_ratio"),
            ("prompts all right, mean", "zero_gradient_ratio/all_positive"),
            ("prompts all wrong, mean", "zero_gradient_ratio/all_negative"),
        ):
            course = [record[key] for record in trained if record.get(key) is not None]
            table.add_row(label, _percent(sum(course) / len(course) if course else None))
    for name in examined[0] if examined else ():
        label = "held-out accuracy" if len(examined[0]) == 1 else f"accuracy on {name}"
        table.add_row(label, f"{_percent(examined[0][name])} → {_percent(examined[-1].get(name))}")
    return table


def _bar(label: str, done: int, total: int, remark: str) -> Progress:
    bar = Progress(
        TextColumn("[bold]{task.description} {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=32),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("[dim]{task.fields[remark]}"),
    )
    bar.add_task(label, total=total, completed=done, remark=remark)
    return bar


def _numbers(record: Mapping[str, Any]) -> str:
    return (
        f"EGR {_percent(record.get('effective_gradient_ratio'))}  "
        f"all right {_percent(record.get('zero_gradient_ratio/all_positive'))}  "
        f"all wrong {_percent(record.get('zero_gradient_ratio/all_negative'))}  "
        f"reward {_percent(record.get('prompt_reward'))}  rollouts {_spread(record)}"
    )


def _spread(record: Mapping[str, Any]) -> str:
    return " · ".join(f"{record.get(f'rollouts/{part}') or 0:.0f}" for part in ("min", "median", "max"))


def _course(values: Sequence[float]) -> str:
    """The first value and the last one."""
    return _percent(values[0]) + (f" → {_percent(values[-1])}" if len(values) > 1 else "")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
