"""What features are worth to the learned belief: mean log probability of the outcomes of a policy in training.

    python benchmarks/features.py [RECIPE] [KEY=VALUE ...] [--seeds SEED ...]

Trains with the minimal trainer and even groups, once for each seed. Beside the training, estimators that are told
different features predict each step before they see it: none, the category, the prompt's length in characters, and the
hidden state of the policy itself at the end of the prompt (its last layer, as it is when the step begins). The first
visit of every prompt is scored apart. Binomial coefficients are left out, so that a score does not depend on them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import live
from knapsack_rl import identity
from knapsack_rl.estimators import Regression
from knapsack_rl.estimators.features import as_features
from knapsack_rl.experiments.engines.minimal.grpo import Collected, Loop

TOLD: tuple[list[str], ...] = ([], ["category"], ["length"], ["hidden"], ["category", "length"], ["category", "hidden"])


class Watched(Loop):
    """A loop beside which estimators predict."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.estimators = [Regression() for _ in TOLD]
        self.scores: list[tuple[list[float], list[float]]] = [([], []) for _ in TOLD]

    def collect(self, rows: list[int], known: dict[str, Any] | None = None) -> Collected:
        """As in `Loop`, after everybody has predicted."""
        prompts = [self.columns["prompt"][row] for row in rows]
        all_known = {
            "category": [self.columns["category"][row] for row in rows],
            "length": [len(prompt) for prompt in prompts],
            "hidden": self.hidden(prompts),
        }
        keys = identity.keys([self.columns["id"][row] for row in rows])
        features = [as_features({name: all_known[name] for name in told}, len(rows)) for told in TOLD]
        beliefs = [estimator.belief(keys, told) for estimator, told in zip(self.estimators, features, strict=True)]
        collected = super().collect(rows, known)
        won, tried = collected.rollouts.counts(len(rows))
        for estimator, told, belief, (first, later) in zip(
            self.estimators, features, beliefs, self.scores, strict=True
        ):
            score, seen = belief.log_likelihood(won, tried), estimator.known(keys)
            first += score[~seen].tolist()
            later += score[seen].tolist()
            estimator.update(keys, won, tried, told)
        return collected

    @torch.no_grad()
    def hidden(self, prompts: list[str]) -> np.ndarray:
        """The last layer's state at the last token of each prompt, shape (M, width)."""
        inputs = self.policy.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        seen = inputs["attention_mask"]
        output = self.policy.model(
            input_ids=inputs["input_ids"],
            attention_mask=seen,
            position_ids=(seen.cumsum(1) - 1).clamp(min=0),
            output_hidden_states=True,
        )
        return np.asarray(output.hidden_states[-1][:, -1].numpy().astype(np.float64))


def main() -> None:
    parsed = live.parser(__doc__).parse_args()
    loops = [live.loop(Watched, parsed.arguments, seed) for seed in parsed.seeds]
    for loop in loops:
        for _ in range(loop.recipe.training.steps):
            loop.step()
    print("| told | first visits | later visits |\n| --- | ---: | ---: |")
    for number, told in enumerate(TOLD):
        means = [[np.mean(part) for part in loop.scores[number]] for loop in loops]
        first, later = np.mean(means, axis=0)
        print(f"| {' and '.join(told) or 'nothing'} | {first:.3f} | {later:.3f} |", flush=True)


if __name__ == "__main__":
    main()
