"""What came of the rollouts of a group, which one worker generates."""

from __future__ import annotations

from dataclasses import dataclass

from knapsack_rl.rewards import Judge


@dataclass
class Outcome:
    """Of the rollouts of a group that ended since the last report."""

    successes: int = 0
    scored: int = 0
    failed: int = 0
    """Without a reward, for whatever reason."""
    errors: int = 0
    """Those that raised."""
    tokens: int = 0
    """What all of these wrote; 0 for one that raised before it had an answer."""


class Group:
    """A training group that is being generated.

    Args:
        threshold, graded: as `Judge`.

    Attributes:
        rewards: by session, of rollouts that have not ended yet.
        tokens: that the model wrote, by session, of the same.
        judge: of those that have.
        judged: their rewards.
    """

    def __init__(self, threshold: float, graded: bool) -> None:
        self.rewards: dict[int, float] = {}
        self.tokens: dict[int, int] = {}
        self.judge = Judge(1, threshold, graded)
        self.judged: list[float] = []

    def outcome(self, ended: dict[int, bool]) -> Outcome:
        """Count rollouts that have ended, together: what is graded is held against all that there is.

        Args:
            ended: by session, whether it raised.

        Raises:
            InvalidInputError: a reward is infinite.
        """
        tokens = sum(self.tokens.pop(session, 0) for session in ended)
        found = [(self.rewards.pop(session, None), raised) for session, raised in ended.items()]
        rewards = [reward for reward, raised in found if reward is not None and not raised]
        successes, scored = (int(count[0]) for count in self.judge.count(rewards, [0] * len(rewards)))
        self.judged += rewards
        return Outcome(successes, scored, len(ended) - scored, sum(ended.values()), tokens)
