"""Which rows verl is given for an update. That the update stays the same is tested with verl's own engine."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.verl.idle import Deal, Layout, Rows, deal, padded


@st.composite
def updates(draw: st.DrawFn) -> tuple[Rows, Layout]:
    """Real rows, padding among them as verl has it, and how they are cut."""
    real = draw(st.integers(1, 60))
    micro = draw(st.none() | st.integers(1, 7))
    layout = Layout(draw(st.integers(1, 4)), draw(st.integers(1, 4)), micro, draw(st.integers(1, 3)))
    passes = draw(st.integers(1, 5)) * layout.stages
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    whole = padded(real, layout, passes)
    padding = np.ones(whole, dtype=bool)
    padding[random.choice(whole, real, replace=False)] = False
    live = ~padding & (random.random(whole) < draw(st.sampled_from([0.0, 0.2, 0.6, 1.0])))
    return Rows(
        live, padding, random.integers(2, 50, whole), np.where(padding, 0, random.integers(1, 30, whole))
    ), layout


def mini_batches(found: Deal, layout: Layout) -> list[list[int]]:
    """Rows of each optimizer step, as verl cuts what it is given: rank by rank, and every rank alike."""
    cut = found.rows.reshape(layout.ranks, -1, found.batch // layout.ranks)
    return [cut[:, number].ravel().tolist() for number in range(cut.shape[1])]


@given(update=updates(), skip=st.booleans())
def test_every_row_that_counts_is_trained_on_once_in_the_mini_batch_that_it_had(
    update: tuple[Rows, Layout], skip: bool
) -> None:
    rows, layout = update
    found = deal(rows, layout, "rows", skip)
    assert len(set(found.rows)) == len(found.rows)
    wanted = rows.live if skip else ~rows.padding
    assert set(np.flatnonzero(wanted)) <= set(found.rows)
    everything, kept = deal(rows, layout, "rows", False), mini_batches(found, layout)
    assert len(kept) == min(layout.batches, int((~rows.padding).sum()))
    for some, all_of_it in zip(kept, mini_batches(everything, layout), strict=True):
        real = {row for row in some if not rows.padding[row]}
        assert real <= set(all_of_it)
        assert real  # or the loss were 0 / 0
    sizes = [sum(not rows.padding[row] for row in batch) for batch in mini_batches(everything, layout)]
    assert max(sizes) - min(sizes) <= 1


@given(update=updates(), skip=st.booleans())
def test_micro_batches_are_whole_no_larger_than_configured_and_as_few_as_the_fullest_rank_needs(
    update: tuple[Rows, Layout], skip: bool
) -> None:
    rows, layout = update
    found = deal(rows, layout, "nothing", skip)
    each = found.batch // layout.ranks
    assert each % found.micro == 0
    assert (each // found.micro) % layout.stages == 0
    assert layout.micro is None or found.micro <= layout.micro
    wanted = rows.live if skip else ~rows.padding
    fullest = max(1, *(math.ceil(wanted[batch].sum() / layout.ranks) for batch in mini_batches(found, layout)))
    assert each < fullest + each // found.micro  # less than one row too many in each micro-batch
    assert each // found.micro < fullest / (layout.micro or fullest) + layout.stages


def megatron_accepts(micro_batches: int, group: int, pipeline: int) -> bool:
    """What verl and Megatron ask of the number of micro-batches of a rank with virtual pipeline parallelism.

    Sources: verl 0.9.1, workers/engine/megatron/transformer_impl.py:915, asserts
    `len(micro_batches) % num_batches_divided_by == 0`. Megatron-LM core, pipeline_parallel/schedules.py, in
    forward_backward_pipelining_with_interleaving, refuses `microbatch_group_size_per_vp_stage > num_microbatches`, the
    same `< pipeline_parallel_size`, and `0 < num_microbatches % microbatch_group_size_per_vp_stage <
    pipeline_parallel_size`. Megatron is not installed here.
    """
    rest = micro_batches % group
    return rest == 0 and pipeline <= group <= micro_batches and not 0 < rest < pipeline


@given(
    real=st.integers(1, 3000),
    ranks=st.integers(1, 8),
    batches=st.integers(1, 5),
    micro=st.integers(1, 32),
    pipeline=st.integers(2, 8),
    wider=st.integers(0, 4),
    skip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_megatron_gets_numbers_of_micro_batches_that_its_virtual_pipeline_accepts(
    real: int, ranks: int, batches: int, micro: int, pipeline: int, wider: int, skip: bool, seed: int
) -> None:
    group, random = pipeline + wider, np.random.default_rng(seed)
    layout = Layout(ranks, batches, micro, group)
    whole = padded(real, layout, micro * group)
    padding = np.arange(whole) >= real
    random.shuffle(padding)
    live = ~padding & (random.random(whole) < 0.4)
    found = deal(Rows(live, padding, np.full(whole, 9), np.where(padding, 0, 5)), layout, "rows", skip)
    assert megatron_accepts(found.batch // ranks // found.micro, group, pipeline)
    assert megatron_accepts(whole // ranks // micro, group, pipeline)  # in the passes for log probabilities


@given(update=updates(), skip=st.booleans(), by=st.sampled_from(["rows", "tokens", "nothing"]))
def test_what_verl_divides_by_is_made_up_for(update: tuple[Rows, Layout], skip: bool, by: str) -> None:
    rows, layout = update
    found = deal(rows, layout, by, skip)
    scales = dict(zip(found.rows.tolist(), found.scales.tolist(), strict=True))
    for batch, whole in zip(
        mini_batches(found, layout), mini_batches(deal(rows, layout, by, False), layout), strict=True
    ):
        real = [row for row in whole if not rows.padding[row]]
        now, then = {
            "rows": (found.real, len(real)),
            "tokens": (rows.tokens[batch].sum(), rows.tokens[real].sum()),
            "nothing": (1, 1),
        }[by]
        assert [scales[row] for row in batch] == pytest.approx([now / then] * len(batch))


@given(update=updates())
def test_padding_is_less_than_what_makes_micro_batches_whole_and_the_other_passes(update: tuple[Rows, Layout]) -> None:
    rows, layout = update
    real = int((~rows.padding).sum())
    batches = min(layout.batches, real)
    count, _ = layout.split(math.ceil(real / (batches * layout.ranks)))
    assert padded(real, layout, 1) - real < batches * layout.ranks * (count + 1)


@pytest.mark.parametrize(
    ("real", "layout", "passes", "rows"),
    [
        (2048, Layout(8, 4, 16, 1), 32, 2048),  # what verl's own modes need no padding for needs none
        (2049, Layout(8, 4, 16, 1), 32, 2304),  # 65 rows of a rank and mini-batch in 5 micro-batches of 13, for 32
        (2049, Layout(8, 4, None, 1), 1, 2080),
        (2048, Layout(8, 4, None, 1), 1, 2048),
        (100, Layout(2, 1, 8, 4), 4, 112),  # 8 micro-batches of 7 for a pipeline of 4
    ],
)
def test_padding_by_example(real: int, layout: Layout, passes: int, rows: int) -> None:
    assert padded(real, layout, passes) == rows


def test_live_rows_are_dealt_evenly_and_an_update_that_keeps_all_rows_stays_as_it_is() -> None:
    live = np.array([True, True, True, True, False, False, False, False])
    rows = Rows(live, np.zeros(8, dtype=bool), np.array([9, 7, 5, 3, 4, 4, 4, 4]), np.full(8, 2))
    found = deal(rows, Layout(2, 1, None, 1), "tokens", True)
    assert found.rows.reshape(2, -1).tolist() == [[0, 2], [1, 3]]
    assert found.scales.tolist() == [0.5] * 4
    assert found.real == 8
    found = deal(rows, Layout(2, 2, 2, 1), "tokens", False)
    assert (found.rows.tolist(), found.batch, found.micro) == (list(range(8)), 4, 2)
    assert found.scales.tolist() == [1.0] * 8
