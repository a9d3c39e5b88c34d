"""A policy over prompts that either succeeds or fails, and the GRPO gradient of sampled rewards.

A response to prompt i succeeds with probability

    p_i = F S_i,    F = sigmoid(f),    S_i = sigmoid(z_i),    z_i = base_i + l_i (w . x_i + theta_i)

F is the share of responses whose answer can be read at all, S_i the success rate of those. The parameters are f and w,
which all prompts share, so that learning one moves others, and theta_i, which is prompt i's own; each of the three
groups has a learning rate. x_i are the prompt's features, the first a constant, base_i is its logit before training,
and l_i is 0 for a prompt that cannot be learned and 1 otherwise. Before training w = 0 and theta = 0.

With D_i = sum_j A_ij (r_ij - p_i) of `logit_gradients`, the gradient of the GRPO objective (paper, equation 3), a mean
over all R rollouts of the step as in a token-mean loss, is

    dJ/dz_i = D_i (1 - S_i) / (1 - p_i) / R,    dJ/df = sum_i D_i (1 - F) / (1 - p_i) / R
    dJ/dw = sum_i dJ/dz_i l_i x_i,              dJ/dtheta_i = l_i dJ/dz_i

since d log Bernoulli(r; p)/dp = (r - p) / (p (1 - p)), dp/dz = p (1 - S) and dp/df = p (1 - F). Rollouts of groups
without gradient count in R: they dilute the step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.experiments.simulate.worlds import OPTIMIZERS, World
from knapsack_rl.validation import one_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ADVANTAGE_CLIP = 5.0
"""Advantages beyond it are cut (paper, appendix C)."""
_EPSILON = 1e-6  # in the denominator of an advantage (paper, equation 3)
_NEVER = -40.0  # the logit of an unsolvable prompt: less than one success in 1e17


def logit_gradients(
    successes: Ints, rollouts: Ints, success_rates: Floats, advantage_clip: float = ADVANTAGE_CLIP
) -> Floats:
    """The GRPO gradient of each group on the logit of its success rate: D = sum_j A_j (r_j - p).

    With k of n rewards 1, their mean is m = k/n and their deviation s = sqrt(m (1 - m)). All successes have the
    advantage a = (1 - m)/(s + 1e-6), all failures -b with b = m/(s + 1e-6), both cut at `advantage_clip`, so that

        D = k a (1 - p) + (n - k) b p

    Without cutting, k a = (n - k) b and D is n s, whatever p is: a mixed group always raises its own logit.

    Args:
        successes: shape (M,), k.
        rollouts: shape (M,), n, 1 or more.
        success_rates: shape (M,), p.
        advantage_clip: the largest advantage.

    Returns:
        Shape (M,), not negative, 0 where all rewards are equal.
    """
    mean = successes / rollouts
    deviation = np.sqrt(mean * (1.0 - mean)) + _EPSILON
    won = np.minimum((1.0 - mean) / deviation, advantage_clip)
    lost = np.minimum(mean / deviation, advantage_clip)
    return np.asarray(successes * won * (1.0 - success_rates) + (rollouts - successes) * lost * success_rates)


class Sgd:
    """Plain gradient ascent: a step is as long as its gradient."""

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate

    def step(self, gradient: Floats, rows: Ints | slice = slice(None)) -> Floats:
        """The change of the parameters in `rows`, which have this gradient."""
        return self.learning_rate * gradient


class Adam:
    """Adam with bias correction (Kingma and Ba, 2015, algorithm 1).

    Rows without a gradient keep their moments, and every row has its own count of steps. For parameters that get one in
    every step this is plain Adam; for the private ones, each of which gets one an epoch at most, it is the *lazy*
    variant that is used for embeddings.
    """

    def __init__(
        self, learning_rate: float, size: int, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8
    ) -> None:
        self.learning_rate, self.betas, self.epsilon = learning_rate, betas, epsilon
        self._first, self._second, self._steps = np.zeros((3, size))

    def step(self, gradient: Floats, rows: Ints | slice = slice(None)) -> Floats:
        """The change of the parameters in `rows`, which are distinct and have this gradient."""
        beta1, beta2 = self.betas
        first = beta1 * self._first[rows] + (1.0 - beta1) * gradient
        second = beta2 * self._second[rows] + (1.0 - beta2) * gradient**2
        steps = self._steps[rows] + 1.0
        self._first[rows], self._second[rows], self._steps[rows] = first, second, steps
        deviation = np.sqrt(second / (1.0 - beta2**steps)) + self.epsilon
        return np.asarray(self.learning_rate * first / (1.0 - beta1**steps) / deviation)


def optimizer_for(name: str, learning_rate: float, size: int) -> Adam | Sgd:
    """The optimiser of one parameter group; `name` is one of `OPTIMIZERS`."""
    return Adam(learning_rate, size) if name == "adam" else Sgd(learning_rate)


class SimulatedPolicy:
    """The policy of one run. Rows 0 to n - 1 are the training prompts, the rest are held out.

    Args:
        world: what there is to learn.
        seed: draws the prompts; the same seed gives the same prompts to every strategy.
        optimizer: one of `OPTIMIZERS`.
        held_out: prompts of the same kind that are never trained on.
        max_gradient_norm: longer gradients are scaled down to it, as in practice; infinite turns that off.
    """

    def __init__(
        self, world: World, seed: int, optimizer: str, held_out: int = 0, max_gradient_norm: float = 1.0
    ) -> None:
        rng = np.random.default_rng((seed, 0))
        count = world.prompts + held_out
        self.max_gradient_norm = max_gradient_norm
        rates = world.adam if one_of("optimizer", optimizer, OPTIMIZERS) == "adam" else world.sgd
        self._of_readable = optimizer_for(optimizer, rates.readable, 1)
        self._of_shared = optimizer_for(optimizer, rates.shared, world.features)
        self._of_private = optimizer_for(optimizer, rates.private, count)
        self.features = rng.standard_normal((count, world.features), dtype=np.float32)
        self.features /= np.sqrt(max(world.features - 1, 1))
        self.features[:, 0] = 1.0
        direction = rng.standard_normal(world.features - 1)
        direction *= np.sqrt(len(direction)) / np.linalg.norm(direction)
        explained, own = self.features[:, 1:] @ direction, rng.standard_normal(count)
        difficulty = np.sqrt(world.explained) * explained + np.sqrt(1.0 - world.explained) * own
        self.learnable = rng.random(count) >= world.unsolvable
        self.base = np.where(self.learnable, world.mean + world.spread * difficulty, _NEVER)
        self.readable = float(np.log(world.readable / (1.0 - world.readable))) if world.readable < 1.0 else np.inf
        self.shared = np.zeros(world.features)
        self.private = np.zeros(count)

    def success_rates(self, rows: Ints | slice = slice(None)) -> Floats:
        """The true success rates p of these rows."""
        return sigmoid(self.readable) * sigmoid(self._logits(rows))

    def update(self, rows: Ints, successes: Ints, rollouts: Ints) -> None:
        """One step of the optimiser on the sampled rewards of a step; `rows` are distinct."""
        readable, logits = self._gradients(rows, successes, rollouts)
        private = np.where(self.learnable[rows], logits, 0.0)
        shared = private @ self.features[rows].astype(np.float64)
        norm = float(np.sqrt(readable @ readable + shared @ shared + private @ private))
        shorten = min(1.0, self.max_gradient_norm / max(norm, 1e-30))
        self.readable += float(self._of_readable.step(shorten * readable)[0])
        self.shared += self._of_shared.step(shorten * shared)
        touched = private > 0.0
        self.private[rows[touched]] += self._of_private.step(shorten * private[touched], rows[touched])

    def _gradients(self, rows: Ints, successes: Ints, rollouts: Ints) -> tuple[Floats, Floats]:
        """dJ/df, shape (1,), and dJ/dz_i, shape (M,), of the equations above."""
        logits = self._logits(rows)
        solved, failed = sigmoid(logits), sigmoid(-logits)
        unreadable = sigmoid(-self.readable)
        wrong = failed + solved * unreadable  # 1 - p, without cancellation
        scaled = logit_gradients(successes, rollouts, 1.0 - wrong) / wrong / rollouts.sum()
        return np.array([scaled.sum() * unreadable]), scaled * failed

    def _logits(self, rows: Ints | slice) -> Floats:
        learned = self.features[rows] @ self.shared + self.private[rows]
        return np.asarray(self.base[rows] + self.learnable[rows] * learned)


def sigmoid(logits: Floats | float) -> Floats:
    """1 / (1 + exp(-z)), without overflow."""
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-np.asarray(logits, dtype=np.float64))))
