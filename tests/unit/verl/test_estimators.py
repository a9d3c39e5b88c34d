"""What verl's own estimators give groups of equal rewards, which decides what their rollouts are worth."""

from __future__ import annotations

import pytest

pytest.importorskip("verl.trainer.ppo.v1", reason="verl is installed in an environment of its own")

import numpy as np
import torch
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

from knapsack_rl.verl.options import ALGORITHMS

REWARDS = [0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
GROUPS = np.array(["failed"] * 4 + ["solved"] * 3 + ["mixed"] * 7)


@pytest.mark.parametrize("estimator", ALGORITHMS)
def test_equal_rewards_have_no_advantage_but_under_reinforce_plus_plus(estimator: str) -> None:
    rewards = torch.zeros(len(REWARDS), 3)
    rewards[:, -1] = torch.tensor(REWARDS, dtype=torch.float32)
    mask = torch.ones_like(rewards)
    found, _ = get_adv_estimator_fn(estimator)(
        token_level_rewards=rewards, response_mask=mask, index=GROUPS, config=AlgoConfig(gamma=1.0)
    )
    of = {name: found[torch.from_numpy(name == GROUPS)] for name in ("failed", "solved", "mixed")}
    if ALGORITHMS[estimator] == "reinforce":  # 1 - b or -b over a deviation, with b the mean of the batch
        mean = np.mean(REWARDS)
        assert of["solved"][0, 0] / of["failed"][0, 0] == pytest.approx(-(1 - mean) / mean, rel=1e-4)
        assert of["mixed"].unique().tolist() == [of["failed"][0, 0].item(), of["solved"][0, 0].item()]
    else:
        assert torch.cat([of["failed"], of["solved"]]).abs().max() < 1e-6
        assert (of["mixed"].abs() > 0.01).all()
