"""How well each estimator predicts the outcomes of finished runs: mean log probability of a visit's outcomes.

    python benchmarks/beliefs.py RUN_DIR ...

Replays the visits of each run in order; an estimator sees a step only after its prediction was scored. The first visit
of every prompt is scored apart. Binomial coefficients are left out, so that a score does not depend on them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from knapsack_rl import identity
from knapsack_rl.estimators import DiscountedBeta, Estimator, RecentRewards, Regression, TransitionTable
from knapsack_rl.estimators.features import NONE, as_features
from knapsack_rl.experiments.recipe import recipe_file
from knapsack_rl.experiments.recipe.schema import Recipe
from knapsack_rl.tasks import load_task

ESTIMATORS: dict[str, tuple[Callable[[], Estimator], bool]] = {
    "last visit": (lambda: RecentRewards(0), False),
    "last 16 rewards": (lambda: RecentRewards(16), False),
    "discounted Beta": (DiscountedBeta, False),
    "transition table": (TransitionTable, False),
    "regression": (Regression, False),
    "regression, told categories": (Regression, True),
}


def scores(estimator: Estimator, visits: pd.DataFrame, told: bool) -> tuple[float, float]:
    """Mean log score of first and of later visits."""
    first, later = [], []
    for _, step in visits.groupby("step", sort=True):
        keys = identity.keys(step["prompt"])
        won, tried = step["successes"].to_numpy(np.int64), step["scored"].to_numpy(np.int64)
        features = as_features({"category": step["category"].tolist()}, len(step)) if told else NONE
        known = estimator.known(keys)
        score = estimator.belief(keys, features).log_likelihood(won, tried)
        first += score[~known].tolist()
        later += score[known].tolist()
        estimator.update(keys, won, tried, features)
    return float(np.mean(first)), float(np.mean(later))


def main(folders: list[Path]) -> None:
    runs = []
    for folder in folders:
        recipe = recipe_file.read(folder / "recipe.yaml", [])
        task = load_task(recipe.task, recipe.seed)
        categories = dict(zip(task.train["id"], task.train["category"], strict=True))
        visits = pd.read_parquet(folder / "allocations.parquet")
        visits["category"] = visits["prompt"].map(categories)
        runs.append((recipe, visits[visits["scored"] > 0]))
    print("| estimator | first visits | later visits |\n| --- | ---: | ---: |")
    for name, (make, told) in ESTIMATORS.items():
        means = np.array([scores(make(), visits, told) for _, visits in runs]).mean(axis=0)
        print(f"| {name} | {means[0]:.3f} | {means[1]:.3f} |")
    print(f"\n{len(runs)} runs: {', '.join(map(described, [recipe for recipe, _ in runs]))}")


def described(recipe: Recipe) -> str:
    return f"{recipe.allocator.strategy} (seed {recipe.seed}, rate {recipe.training.learning_rate:g})"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(folder) for folder in sys.argv[1:]])
