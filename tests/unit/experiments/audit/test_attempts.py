from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="the report extra is not installed")

from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.experiments.audit.attempts import Attempts, superseded

Row = tuple[int, int]  # step and prompt


def lost(rows: Sequence[Row]) -> int:
    """Rollouts that do not count, since a later attempt made them again."""
    attempts = Attempts()
    step = np.array([step for step, _ in rows])
    number = attempts.of(step, Path("log.jsonl"), 0, np.arange(len(rows)) + 1)
    groups = Counter((step, one, prompt) for (step, prompt), one in zip(rows, number.tolist(), strict=True))
    keys = sorted(groups)
    steps, ones, prompts = (np.array(column) for column in zip(*keys, strict=True))
    rollouts = np.array([groups[key] for key in keys])
    return int(rollouts[superseded(attempts, steps, ones, prompts.astype(np.uint64), rollouts).gone].sum())


def run(steps: Sequence[int], group_size: int = 4) -> list[Row]:
    """Two groups a step; a prompt comes again every third step."""
    return [(step, 2 * (step % 3) + prompt) for step in steps for prompt in range(2) for _ in range(group_size)]


@given(order=st.permutations(run(range(1, 7))))
def test_a_log_that_was_written_once_keeps_all_its_rollouts_in_any_order_of_rows(order: list[Row]) -> None:
    assert lost(order) == 0


@given(keys=st.lists(st.integers(0, 3), min_size=24, max_size=24), by_step=st.booleans())
def test_a_log_that_was_written_once_keeps_all_its_rollouts_sorted_by_anything(keys: list[int], by_step: bool) -> None:
    rows = run(range(1, 13), group_size=1)
    order = sorted(range(len(rows)), key=lambda place: (keys[place], rows[place] if by_step else place))
    assert lost([rows[place] for place in order for _ in range(4)]) == 0


@st.composite
def attempts_at_a_run(draw: st.DrawFn) -> list[range]:
    """Each begins after the first step and before the last one of the attempt before, and gets further."""
    found = [range(1, draw(st.integers(4, 6)))]
    for _ in range(draw(st.integers(1, 3))):
        end = found[-1][-1]
        found.append(range(draw(st.integers(2, end - 1)), end + draw(st.integers(3, 5))))
    return found


@given(made=attempts_at_a_run())
def test_of_a_run_that_was_resumed_each_step_counts_once(made: list[range]) -> None:
    rows = [row for steps in made for row in run(steps)]
    assert len(rows) - lost(rows) == len(run(range(1, made[-1][-1] + 1)))
