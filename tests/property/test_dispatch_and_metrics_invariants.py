"""Nothing is lost on the way to the workers, and shares are shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import knapsack_rl as kr

groups = st.lists(st.integers(0, 30).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), max_size=20)


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), max_size=20), st.integers(1, 12), st.integers(0, 2**64))
def test_shuffling_keeps_every_job(rollouts: list[int], workers: int, seed: int) -> None:
    jobs = kr.dispatch.shuffled_jobs(rollouts, workers, seed)
    everything = np.concatenate(jobs)
    assert np.bincount(everything, minlength=len(rollouts)).tolist() == rollouts
    sizes = [part.size for part in jobs]
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6) | st.integers(0, 128), max_size=20), st.integers(1, 12))
def test_balancing_keeps_every_group_and_bounds_the_largest_load(costs: list[float], workers: int) -> None:
    parts = kr.dispatch.balanced_groups(costs, workers)
    assert len(parts) == workers
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(costs)))
    loads = np.array([sum(costs[i] for i in part) for part in parts])
    if loads.any():
        assert parts.imbalance == pytest.approx(loads.max() * workers / loads.sum())
        assert loads.max() <= sum(costs) / workers + max(costs) + 1e-6
    assert parts.imbalance >= 1.0 - 1e-12


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 128)), max_size=20), st.integers(1, 12))
def test_longest_first_deals_every_rollout_once_and_no_worker_starts_a_longer_one_later(
    prompts: list[tuple[float, int]], workers: int
) -> None:
    costs, rollouts = np.array([c for c, _ in prompts]), np.array([n for _, n in prompts], dtype=np.int64)
    parts = kr.dispatch.longest_first(costs, rollouts, workers)
    assert len(parts) == workers
    jobs = np.concatenate([np.repeat(part, rollouts[part]) for part in parts])
    assert np.bincount(jobs, minlength=len(prompts)).tolist() == rollouts.tolist()
    assert all((np.diff(costs[part]) <= 0.0).all() for part in parts)
    loads = np.array([(costs * rollouts)[part].sum() for part in parts])
    assert loads.max() <= loads.sum() / workers + max(costs * rollouts, default=0.0) * (1 + 1e-9)


@settings(deadline=None)
@given(groups.filter(lambda rows: any(n for _, n in rows)))
def test_shares_of_a_step_add_up(rows: list[tuple[int, int]]) -> None:
    successes, rollouts = [s for s, _ in rows], [n for _, n in rows]
    positive, negative = kr.metrics.zero_gradient_ratios(successes, rollouts)
    assert kr.metrics.effective_prompts(successes, rollouts) + positive + negative == pytest.approx(1.0)
    assert 0.0 <= kr.metrics.effective_gradient_ratio(successes, rollouts) <= 1.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=40))
def test_transition_rows_sum_to_1(pairs: list[tuple[float, float]]) -> None:
    matrix = kr.metrics.transition_matrix([b for b, _ in pairs], [a for _, a in pairs])
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0)
    assert matrix.min() >= 0.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(json_values)
def test_prompt_ids_depend_neither_on_key_order_nor_on_missing_fields(prompt: object) -> None:
    def reordered(value: object) -> object:
        if isinstance(value, dict):
            mixed = {key: reordered(item) for key, item in reversed(value.items())}
            return mixed | {"absent " + key: None for key in value}
        return [reordered(item) for item in value] if isinstance(value, list) else value

    assert kr.prompt_id(reordered(prompt)) == kr.prompt_id(prompt)


@settings(deadline=None)
@given(st.text(), st.text())
def test_different_texts_have_different_ids(first: str, second: str) -> None:
    assert (kr.prompt_id(first) == kr.prompt_id(second)) == (first == second)
