"""What prompts gained from visit to visit, told from a log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("scipy", reason="the report extra is not installed")
pytest.importorskip("pyarrow", reason="the report extra is not installed")

from knapsack_rl.estimators import Gaining
from knapsack_rl.experiments.audit.accounting import Accounts, Log
from knapsack_rl.experiments.audit.advice import advice
from knapsack_rl.experiments.audit.audit import Options, audit
from knapsack_rl.experiments.audit.progress import progress
from knapsack_rl.experiments.audit.rows import Batch
from knapsack_rl.experiments.audit.values import Encoded
from knapsack_rl.experiments.probe.numbers import Visits, measured
from knapsack_rl.influence import Influence
from knapsack_rl.metrics import EARLY, learning_progress


def visits(steps: int = 24, size: int = 8, hard: float = 0.3, easy: float = 0.02) -> np.ndarray:
    """Rows of step, prompt, rollouts and successes: 1,200 prompts of which a sixth come at each step.

    A visit takes the rates of hard prompts so far towards 1, and those of easy ones.
    """
    random = np.random.default_rng(3)
    rates, rows = random.beta(1.0, 1.0, 1200), []
    for step in range(steps):
        seen = np.arange(step % 6, 1200, 6)
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


def test_the_pairs_are_the_first_visits_of_a_prompt_in_a_row() -> None:
    rows = visits(steps=40)
    last, pairs = {}, []
    for step, prompt, n, right in rows.tolist():
        seen, before = last.get(prompt, (0, ()))
        if 0 < seen <= EARLY:
            pairs.append((*before[1:], right, n, before[0]))
        last[prompt] = (seen + 1, (step, right, n))
    *counts, steps = np.transpose(pairs)
    assert len(pairs) == EARLY * 1200
    expected, found = learning_progress(*counts, steps=steps), progress(log_of(rows))
    assert found.why_not == ""
    assert found.found is not None
    for one, other in zip(found.found, expected, strict=True):
        np.testing.assert_allclose(one, other)


@pytest.mark.parametrize("seed", range(4))
def test_audit_probe_and_cautious_see_the_same_pairs_however_prompts_come(seed: int) -> None:
    """Some prompts come at every step, some seldom, and new ones all the time."""
    random = np.random.default_rng(seed)
    weight, rates, rows = 1.0 / np.arange(1, 401), random.beta(0.5, 0.5, 400), []
    visits, estimator = Visits(), Gaining()
    for step in range(40):
        known = 40 + 9 * step
        here = random.choice(known, 32, replace=False, p=weight[:known] / weight[:known].sum())
        won, tried = random.binomial(8, rates[here]), np.full(32, 8)
        rows += [(step, prompt, 8, right) for prompt, right in zip(here.tolist(), won.tolist(), strict=True)]
        visits.add([f"p{prompt}" for prompt in here], won, tried, rates[here], {})
        estimator.update(here.astype(np.uint64), won, tried)
    audited, probed = progress(log_of(np.array(rows))).found, measured(visits, Influence(), group_size=8).gains
    assert audited is not None
    seen = np.unique(np.array(rows)[:, 1], return_counts=True)[1]
    assert seen.max() > 20
    assert audited.pairs.sum() == pytest.approx(np.minimum(seen - 1, EARLY).sum())
    for one in (probed, estimator.progress):
        np.testing.assert_allclose(one.pairs, audited.pairs)
        np.testing.assert_allclose(one.rise, audited.rise)
    np.testing.assert_allclose(probed.error, audited.error)


def test_a_log_that_begins_late_is_said_to_be_of_later_visits(tmp_path: Path) -> None:
    rows = visits(hard=0.4, easy=0.02)
    rows[:, 0] += 100
    late = [
        sentence for sentence in advice(audit([written(rows, tmp_path)], Options())) if "begins at step 100" in sentence
    ]
    assert len(late) == 1
    assert "adaptive, which favours them" in late[0]


def standing_still(chosen: Callable[[np.ndarray], np.ndarray] | None = None, seed: int = 0) -> np.ndarray:
    """Visits of 1,000 prompts of which nobody learns, of those groups whose successes are chosen."""
    random = np.random.default_rng(seed)
    rates = random.beta(0.5, 0.5, 1000)
    rows = [
        (step, prompt, 8, random.binomial(8, rates[prompt]))
        for step in range(40)
        for prompt in random.permutation(1000)[:200].tolist()
    ]
    table = np.array(rows)
    return table if chosen is None else table[chosen(table[:, 3])]


def coming_again(keep: Callable[[int], bool], seed: int) -> np.ndarray:
    """Visits of prompts of which nobody learns, and that come again ten times less often unless they are kept."""
    random = np.random.default_rng(seed)
    rates, weight, rows = random.beta(0.5, 0.5, 1000), np.ones(1000), []
    for step in range(40):
        for prompt in random.choice(1000, 200, replace=False, p=weight / weight.sum()).tolist():
            won = random.binomial(8, rates[prompt])
            weight[prompt] = 1.0 if keep(won) else 0.1
            rows.append((step, prompt, 8, won))
    return np.array(rows)


def mixed_and_a_few(won: np.ndarray) -> np.ndarray:
    return ((won > 0) & (won < 8)) | (np.random.default_rng(1).random(len(won)) < 0.005)


def uneven() -> np.ndarray:
    rows = visits()
    rows[:, 2] *= 1 + rows[:, 1] % 2
    return rows


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (visits(size=3), "groups of 3 rollouts are too small"),
        (visits(steps=6), "no prompt comes again"),
        (visits(steps=9), "too few steps"),
        (visits(steps=13), "too few steps"),
        (standing_still(lambda won: (won > 0) & (won < 8)), "nearly all groups are mixed"),
        (standing_still(mixed_and_a_few), "nearly all groups are mixed"),
        (standing_still(lambda won: won > 0), "no group is all wrong"),
        (standing_still(lambda won: won < 8), "no group is all right"),
        (coming_again(lambda won: 2 <= won <= 6, 0), "who comes again goes by how well"),
        (coming_again(lambda won: won < 7, 0), "who comes again goes by how well"),
        (uneven(), "different sizes"),
    ],
    ids=[
        "small groups",
        "nothing comes again",
        "few steps",
        "a few more steps",
        "mixed groups",
        "mixed groups and a few others",
        "all wrong left out",
        "all right left out",
        "the middle comes again",
        "the solved retire",
        "uneven groups",
    ],
)
def test_what_would_mislead_is_not_told(rows: np.ndarray, why: str) -> None:
    found = progress(log_of(rows))
    assert found.found is None
    assert why in found.why_not


def test_several_runs_are_not_told_as_one() -> None:
    assert progress(log_of(visits()), runs=2).why_not == "the log holds 2 runs"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "rows",
    [lambda seed: standing_still(seed=seed), lambda seed: coming_again(lambda won: 0 < won < 8, seed)],
    ids=["everybody comes again", "the mixed come again more often"],
)
def test_where_nobody_learns_nobody_is_said_to_gain(rows: Callable[[int], np.ndarray], seed: int) -> None:
    found = progress(log_of(rows(seed))).found
    assert found is not None
    assert np.all(np.abs(found.rise[[1, 3]]) < 4.0 * found.error[[1, 3]])
    assert max(found.lean) < 2.0


def test_one_group_in_twenty_may_be_of_another_size() -> None:
    rows = visits()
    rows[np.random.default_rng(0).choice(len(rows), len(rows) // 20 - 1, replace=False), 2] = 16
    assert progress(log_of(rows)).found is not None
    rows[::10, 2] = 16
    assert "different sizes" in progress(log_of(rows)).why_not


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
    assert not any("gain most" in sentence for sentence in advice(replace(found, progress=None)))


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(0, 4)), min_size=1, unique_by=lambda row: row[:2]
    ),
    outcomes=st.sets(st.integers(0, 4), min_size=1),
)
def test_any_log_of_even_groups_is_judged_or_said_to_tell_nothing(
    rows: list[tuple[int, int, int]], outcomes: set[int]
) -> None:
    """Few groups, few kinds of outcome, prompts that never come again: without a warning."""
    kinds = sorted(outcomes)
    table = np.array([(step, prompt, 4, kinds[right % len(kinds)]) for step, prompt, right in rows])
    found = progress(log_of(table))
    assert (found.found is None) == bool(found.why_not)
