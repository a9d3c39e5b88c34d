from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from knapsack_rl.experiments.runs.progress import Display, sparkline, summary

STEP = {
    "rollouts": 512,
    "time": 61.0,
    "effective_gradient_ratio": 0.5,
    "zero_gradient_ratio/all_positive": 0.25,
    "zero_gradient_ratio/all_negative": 0.125,
    "prompt_reward": 0.375,
    "rollouts/min": 2.0,
    "rollouts/median": 4.0,
    "rollouts/max": 61.0,
}
RECORDS: list[dict[str, Any]] = [
    {"step": 0, "rollouts": 0, "time": 0.0, "evaluation": {"held-out": 0.25}},
    *({"step": step, **STEP} for step in range(1, 31)),
    {"step": 30, "rollouts": 512, "time": 62.0, "evaluation": {"held-out": 0.5}},
]


class Clock:
    """Stands still while nobody works."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def shown(terminal: bool, width: int = 100, kind: str = "xterm", seconds_of_a_step: float = 2.0) -> str:
    clock = Clock()
    console = Console(
        file=StringIO(), force_terminal=terminal, width=width, height=30, color_system=None, _environ={"TERM": kind}
    )
    with Display(console, "demo", 30, clock) as display:
        display.start(0, [])
        for record in RECORDS:
            clock.now += 0.0 if "evaluation" in record else seconds_of_a_step
            display.record(record)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_sparkline_runs_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([]) == ""


def test_a_long_course_is_averaged_into_the_width() -> None:
    assert sparkline([0.0, 0.0, 1.0, 1.0, 0.0, 0.0], width=3) == "▁█▁"


def test_without_a_terminal_there_is_a_plain_line_now_and_then() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines[0] == "step 0/30  held-out accuracy: 25.0 %"
    assert lines[-1] == "step 30/30  held-out accuracy: 25.0 % → 50.0 %"
    assert [line.split()[1] for line in lines[1:-1]] == [f"{step}/30" for step in range(2, 31, 2)]
    assert "EGR 50.0 %  all right 25.0 %  all wrong 12.5 %  reward 37.5 %  rollouts 2 · 4 · 61" in lines[1]


def test_the_time_left_is_that_of_the_steps_to_come_at_the_pace_so_far() -> None:
    steps = [line for line in shown(terminal=False, seconds_of_a_step=90.0).splitlines() if line.endswith(" left")]
    assert [line.rpartition("  ")[2] for line in steps[:2]] == ["0:42:00 left", "0:39:00 left"]
    assert steps[-1].endswith("  0:00:00 left")


def test_on_a_terminal_one_panel_shows_it_all() -> None:
    last = shown(terminal=True).rpartition("╭─")[2]
    for text in ("step 30/30", "100 %", "50.0 %", "25.0 % → 50.0 %", "2 · 4 · 61", "min · median · max"):
        assert text in last
    assert "…" not in last


def test_a_terminal_that_cannot_redraw_gets_plain_lines() -> None:
    assert shown(terminal=True, kind="dumb").splitlines() == shown(terminal=False).splitlines()


def test_on_a_narrow_terminal_the_numbers_stay_whole_and_the_panel_leaves_a_margin() -> None:
    last = shown(terminal=True, width=60).rpartition("╭─")[2]
    for text in ("step 30/30", "effective gradient ratio (EGR)", "25.0 % → 50.0 %", "2 · 4 · 61"):
        assert text in last
    assert "…" not in last
    assert {len(line) for line in last.splitlines() if line.endswith("│")} == {58}


def test_the_summary_shows_means_and_the_way_of_the_accuracy() -> None:
    console = Console(file=StringIO(), width=100)
    console.print(summary(30, RECORDS))
    assert isinstance(console.file, StringIO)
    rows = [line.rsplit("  ", 1) for line in map(str.strip, console.file.getvalue().splitlines())]
    assert {label.strip(): value for label, value in rows} == {
        "steps": "30 of 30",
        "rollouts": "512",
        "time": "0:01:02",
        "effective gradient ratio (EGR), mean": "50.0 %",
        "prompts all right, mean": "25.0 %",
        "prompts all wrong, mean": "12.5 %",
        "held-out accuracy": "25.0 % → 50.0 %",
    }
