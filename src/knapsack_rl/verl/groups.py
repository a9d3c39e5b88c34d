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
    tokens: int = 0
    """What all of these wrote; 0 for one that raised before it had an answer."""


class Group:
    """A training group that is being generated.

    Args:
        threshold, graded: as `Judge`.

    Attributes:
        rewards: by session, of rollouts that have not ended yet.
        tokens: that the model wrote, by session and output, of the same.
        judge: of those that have.
        judged: their rewards.
        ended: how many have.
        returned: outputs of those that have without failing, by session; verl has a row of each.
    """

    def __init__(self, threshold: float, graded: bool) -> None:
        self.rewards: dict[int, float] = {}
        self.tokens: dict[int, list[int]] = {}
        self.judge = Judge(1, threshold, graded)
        self.judged: list[float] = []
        self.ended = 0
        self.returned: dict[int, int] = {}

    def outcome(self, ended: dict[int, bool]) -> Outcome:
        """Count rollouts that have ended, together: what is graded is held against all that there is.

        Args:
            ended: by session, whether it raised.

        Raises:
            InvalidInputError: a reward is infinite.
        """
        self.ended += len(ended)
        written = {session: self.tokens.pop(session, []) for session in ended}
        self.returned |= {session: len(written[session]) for session, raised in ended.items() if not raised}
        tokens = sum(map(sum, written.values()))
        found = [(self.rewards.pop(session, None), raised) for session, raised in ended.items()]
        rewards = [reward for reward, raised in found if reward is not None and not raised]
        successes, scored = (int(count[0]) for count in self.judge.count(rewards, [0] * len(rewards)))
        self.judged += rewards
        return Outcome(successes, scored, len(ended) - scored, tokens)

    def survives(self, minimum: int) -> bool:
        """Whether, once all have ended, so many rollouts have returned that it can be trained on.

        Args:
            minimum: how many must have; all of them in a group that is smaller.
        """
        return sum(count > 0 for count in self.returned.values()) >= min(minimum, self.ended)

    def rows(self, uid: str) -> list[str]:
        """What verl calls the rows of those that have returned."""
        return [f"{uid}_{session}_{output}" for session, count in self.returned.items() for output in range(count)]
