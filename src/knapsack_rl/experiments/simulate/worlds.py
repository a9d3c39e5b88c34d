"""Worlds: sets of simulated prompts, and how fast a policy learns on them, in a few numbers each.

The equations are in `policy`. The default world was tuned until *uniform* allocation looked as in the paper's figures
2, 7 and 8 (docs/simulate.md says how); the others change a number or two of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SHOWN = {"adam": "Adam", "sgd": "SGD"}
"""Name of an optimiser -> how texts write it."""
OPTIMIZERS = tuple(SHOWN)


@dataclass(frozen=True)
class Rates:
    """Learning rates of the three parameter groups."""

    readable: float
    shared: float
    private: float


_ADAM = Rates(readable=0.3, shared=0.002, private=0.21)
_SGD = Rates(readable=9.0, shared=0.015, private=90.0)


@dataclass(frozen=True)
class World:
    """What a policy has to learn, and how it responds to gradients.

    Attributes:
        purpose: what the world is for, in a sentence.
        prompts: training prompts, n.
        readable: share of responses whose answer can be read at all before training; multiplies every success rate.
        mean: mean of the solvable prompts' first logits, given a readable answer.
        spread: standard deviation of these logits.
        unsolvable: share of prompts that no training moves, and that never succeed.
        features: shared parameters, d; the first is a constant that every prompt has.
        explained: share of the logits' variance that the features explain.
        adam: learning rates under Adam.
        sgd: learning rates under SGD.
    """

    purpose: str
    prompts: int = 17_917
    readable: float = 0.01
    mean: float = -0.1
    spread: float = 2.6
    unsolvable: float = 0.185
    features: int = 16
    explained: float = 0.3
    adam: Rates = _ADAM
    sgd: Rates = _SGD


def _paced(purpose: str, pace: float) -> World:
    """The default world with `pace` times its rates of w and theta."""
    rates = [replace(rates, shared=pace * rates.shared, private=pace * rates.private) for rates in (_ADAM, _SGD)]
    return World(purpose, adam=rates[0], sgd=rates[1])


DEFAULT_WORLD = "paper"
WORLDS = {
    DEFAULT_WORLD: World("As Qwen2.5-Math-7B on DAPO-Math-17K looks under uniform allocation (figures 2, 7 and 8)."),
    "fast": _paced("Learning is three times as fast, so that beliefs of an epoch ago are stale.", 3.0),
    "slow": _paced("Learning is a quarter as fast, so that beliefs hold and hard prompts stay hard.", 0.25),
    "unsolvable": World("Half of the prompts can never be solved: what the fallback wastes.", unsolvable=0.5),
    "solvable": World("Nearly every prompt can be solved: what perseverance earns.", unsolvable=0.02),
    "features": World(
        "Features explain nine tenths of the variance of the difficulty, and learning is shared more.",
        explained=0.9,
        adam=replace(_ADAM, shared=0.004),
        sgd=replace(_SGD, shared=0.03),
    ),
    "private": World("Features explain nothing: only a prompt's own outcomes say how hard it is.", explained=0.0),
    "small": World("2,000 prompts, each visited 140 times in 1,000 steps, until most are mastered.", prompts=2_000),
    "large": World("1,000,000 prompts, none of which comes twice in 1,000 steps.", prompts=1_000_000),
}
"""Name -> world. What is not said is as in the default world."""
