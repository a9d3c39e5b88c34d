"""Drawing one token for each row of probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.errors import StateError
from knapsack_rl.experiments.engines.minimal.shared_prompts import drawn


def test_tokens_come_as_often_as_they_are_probable() -> None:
    chances = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.3, 0.0])
    tokens = drawn(chances.expand(20_000, -1), torch.Generator().manual_seed(1))
    counts = torch.bincount(tokens, minlength=6)
    assert (counts[chances == 0.0] == 0).all()
    # Four standard errors of a share are at most .0142 here.
    torch.testing.assert_close(counts / 20_000, chances, atol=0.0142, rtol=0.0)


@given(
    rows=st.lists(st.lists(st.sampled_from([0.0, 1e-30, 1e-7, 0.3, 1.0]), min_size=5, max_size=5).filter(any)),
    seed=st.integers(0, 2**32),
)
def test_what_is_impossible_is_never_drawn(rows: list[list[float]], seed: int) -> None:
    chances = torch.tensor(rows).reshape(-1, 5)
    tokens = drawn(chances / chances.sum(dim=1, keepdim=True), torch.Generator().manual_seed(seed))
    assert (chances.gather(1, tokens[:, None]) > 0.0).all()


def test_each_row_has_its_own_number() -> None:
    tokens = drawn(torch.full((1000, 2), 0.5), torch.Generator().manual_seed(1))
    assert 400 < int(tokens.sum()) < 600


@pytest.mark.parametrize("row", [[float("nan"), 0.5], [0.0, 0.0], [float("inf"), 0.5]])
def test_a_model_that_has_diverged_is_said_to_have(row: list[float]) -> None:
    with pytest.raises(StateError, match="Training has diverged"):
        drawn(torch.tensor([[0.5, 0.5], row]), torch.Generator())
