"""What prompts gained from visit to visit, told from a log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the report extra is not installed")
pytest.importorskip("pyarrow", reason="the report extra is not installed")

from knapsack_rl.experiments.audit.accounting import Accounts, Log
from knapsack_rl.experiments.audit.advice import advice
from knapsack_rl.experiments.audit.audit import Options, audit
from knapsack_rl.experiments.audit.progress import progress
from knapsack_rl.experiments.audit.rows import Batch
from knapsack_rl.experiments.audit.values import Encoded
from knapsack_rl.metrics import learning_progress


def visits(steps: int = 24, size: int = 8, hard: float = 0.3, easy: float = 0.02) -> np.ndarray:
    """Rows of step, prompt, rollouts and successes: 600 prompts of which half come at each step.

    A visit takes the rates of hard prompts so far towards 1, and those of easy ones.
    """
    random = np.random.default_rng(3)
    rates, rows = random.beta(1.0, 1.0, 600), []
    for step in range(steps):
        seen = np.arange(step % 2, 600, 2)
        rows += [(step, prompt, size, random.binomial(size, rates[prompt])) for prompt in seen.tolist()]
        rates[seen] += np.where(rates[seen] < 0.5, hard, easy) * rates[seen] * (1 - rates[seen])
    return np.array(rows)


def log_of(rows: np.ndarray) -> Log:
    step, prompt, rollouts, successes = rows.T
    names = Encoded([f"p{index}" for index in range(prompt.max() + 1)], prompt)
    accounts = Accounts(0.0)
    unknown = np.full(len(step), np.nan)
    accounts.add(Batch(step, names, names, unknown, unknown, rollouts=rollouts, successes=successes))
    return accounts.log()


def written(rows: np.ndarray, folder: Path) -> Path:
    path = folder / "log.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("step,prompt,n_samples,n_correct\n")
        file.writelines(f"{step},p{prompt},{n},{right}\n" for step, prompt, n, right in rows.tolist())
    return path


def test_the_pairs_are_the_visits_of_a_prompt_in_a_row() -> None:
    rows = visits()
    last, pairs = {}, []
    for step, prompt, n, right in rows.tolist():
        if prompt in last:
            pairs.append((*last[prompt][1:], right, n, last[prompt][0]))
        last[prompt] = (step, right, n)
    *counts, steps = np.transpose(pairs)
    expected, found = learning_progress(*counts, steps=steps), progress(log_of(rows))
    assert found.why_not == ""
    assert found.found is not None
    for one, other in zip(found.found, expected, strict=True):
        np.testing.assert_allclose(one, other)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (visits(size=3), "groups of 3 rollouts are too small"),
        (visits(steps=6), "after fewer than 8 steps"),
        (visits(steps=2), "after fewer than 8 steps"),
        (np.array([row for row in visits() if 0 < row[3] < row[2]]), "groups without gradient are not in the log"),
        (visits() * np.array([1, 1, 2, 1])[None] - np.array([0, 0, 1, 0])[None] * (visits()[:, [1]] % 3), "different"),
    ],
    ids=["small groups", "few steps", "nothing comes again", "survivors", "uneven groups"],
)
def test_what_would_mislead_is_not_told(rows: np.ndarray, why: str) -> None:
    found = progress(log_of(rows))
    assert found.found is None
    assert why in found.why_not


def test_a_group_that_lost_a_rollout_is_no_first_visit_and_tells_of_the_one_before() -> None:
    rows = visits()
    whole = progress(log_of(rows)).found
    rows[1200] = [*rows[1200, :2], 7, min(rows[1200, 3], 7)]
    found = progress(log_of(rows)).found
    assert whole is not None
    assert found is not None
    assert found.pairs.sum() == pytest.approx(whole.pairs.sum() - 1)


@pytest.mark.parametrize(
    ("gains", "said"),
    [((0.4, 0.02), "adaptive, which favours them"), ((0.0, 0.2), "keep groups even"), ((0.3, 0.2), "cannot be told")],
)
def test_the_advice_follows_who_gains(tmp_path: Path, gains: tuple[float, float], said: str) -> None:
    found = audit([written(visits(hard=gains[0], easy=gains[1]), tmp_path)], Options())
    assert sum(said in sentence for sentence in advice(found)) == 1


def test_the_advice_says_why_nothing_is_told_of_gains(tmp_path: Path) -> None:
    found = audit([written(visits(size=3), tmp_path)], Options())
    assert any("too small to be parted" in sentence for sentence in advice(found))
    assert not any("From one visit" in sentence for sentence in advice(replace(found, progress=None)))
