"""What the verl trainer multiplies advantages by."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("verl.trainer.ppo.v1", reason="verl is installed in an environment of its own")

from knapsack_rl.verl.trainer import weights_of

KEYS = ["a_0_0", "a_1_0", "b_0_0", "b_1_0", "b_1_1", "b_2_0", "b_2_1", "c_0_0", "c_0_1"]
"""Groups of two, three and one rollouts, of which some have two outputs."""


def test_large_groups_weigh_less_and_a_rollout_counts_once_however_many_outputs_it_has() -> None:
    two, three, one = (math.sqrt(4 / size) for size in (2, 3, 1))
    assert weights_of(KEYS, 4, "sqrt") == pytest.approx([two] * 2 + [three] * 5 + [one] * 2)
    assert weights_of(KEYS, 4, "none") == [1.0] * 9
