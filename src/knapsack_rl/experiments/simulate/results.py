"""Simulations of several worlds, optimisers, strategies and seeds: as tables, and as the files that hold these."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knapsack_rl.errors import InvalidInputError, MissingExtraError
from knapsack_rl.experiments import disk
from knapsack_rl.experiments.simulate import simulation
from knapsack_rl.experiments.simulate.simulation import GROUP_SIZE, ORACLE, STEPS, Arm, Simulation, arm_named
from knapsack_rl.experiments.simulate.worlds import DEFAULT_WORLD, OPTIMIZERS, WORLDS
from knapsack_rl.metrics import STATUSES
from knapsack_rl.validation import as_integer, one_of

try:
    import pandas as pd
except ImportError as error:
    raise MissingExtraError(
        f"A simulation's tables need {error.name}, which is not installed. Run: pip install 'knapsack-rl[report]'"
    ) from error

UNIFORM, CONTROL = "uniform", "uniform, group 16"
_FILES = {"results": "results.csv", "steps": "steps.parquet", "budgets": "budgets.csv", "statuses": "statuses.csv"}
_SETTINGS = "settings.json"
_WHO = ["world", "optimizer", "run", "seed"]


@dataclass(frozen=True)
class Grid:
    """What to simulate: every combination.

    Attributes:
        worlds: names in `WORLDS`.
        strategies: compared with uniform, the oracle and the control, which always run; names that
            `simulation.arm_named` knows.
        optimizers: names in `OPTIMIZERS`.
        seeds: each 0 or more.
        steps: updates of a run.

    Raises:
        InvalidInputError: a name is unknown, something is named twice, or a number is out of range.
    """

    worlds: tuple[str, ...] = (DEFAULT_WORLD,)
    strategies: tuple[str, ...] = ("knapsack",)
    optimizers: tuple[str, ...] = ("adam",)
    seeds: tuple[int, ...] = (0,)
    steps: int = STEPS

    def __post_init__(self) -> None:
        for name, given, choices in (
            ("world", self.worlds, tuple(WORLDS)),
            ("optimizer", self.optimizers, OPTIMIZERS),
        ):
            for word in given:
                one_of(name, word, choices)
        for strategy in self.strategies:
            arm_named(strategy)
        for name, values in (("world", self.worlds), ("optimizer", self.optimizers), ("seed", self.seeds)):
            if len(set(values)) < len(values) or not values:
                raise InvalidInputError(f"{name}: expected each once, got {', '.join(map(str, values))}.")
        for seed in self.seeds:
            as_integer("seed", seed, at_least=0)
        as_integer("steps", self.steps, at_least=1)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Uniform, the strategies, the oracle, and uniform at twice the rollouts.

        The last is the control: where it is no better than uniform, rollouts are not what limits learning, and no
        allocation of them helps.
        """
        names = dict.fromkeys((UNIFORM, *self.strategies, ORACLE))
        return (*map(arm_named, names), Arm(CONTROL, UNIFORM, 2 * GROUP_SIZE))

    def runs(self) -> Iterator[tuple[str, str, int, Arm]]:
        """World, optimiser, seed and arm of every run."""
        for world in self.worlds:
            for optimizer in self.optimizers:
                for seed in self.seeds:
                    for arm in self.arms:
                        yield world, optimizer, seed, arm


@dataclass(frozen=True)
class SimulationTables:
    """Everything that a report is made of. All have the columns world, optimizer, run and seed.

    Attributes:
        results: a row for each run; the columns of `_result` and the shares of `_gap_shares`.
        steps: a row for each step of each run.
        budgets: rollouts, count of visits that got so many.
        statuses: prompts by their status at the first visit, the last visit, and in fresh rollouts before and after
            training (columns first, last, before, after, prompts).
        settings: what was simulated, in numbers.
    """

    results: pd.DataFrame
    steps: pd.DataFrame
    budgets: pd.DataFrame
    statuses: pd.DataFrame
    settings: dict[str, Any]


def run(grid: Grid, progress: Callable[[str], Callable[[], object]] = lambda _: lambda: None) -> SimulationTables:
    """Simulate the grid; `progress` is called with the name of each run and returns what is called after each step."""
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in _FILES}
    for world, optimizer, seed, arm in grid.runs():
        advance = progress(f"{world}, {optimizer}, seed {seed}: {arm.name}")
        done = simulation.simulate(WORLDS[world], arm, optimizer, seed=seed, steps=grid.steps, progress=advance)
        who = dict(zip(_WHO, (world, optimizer, arm.name, seed), strict=True))
        made = {"results": _result(done), "steps": _steps(done), "budgets": _budgets(done), "statuses": _statuses(done)}
        for name, rows in made.items():
            parts[name].append(rows.assign(**who)[[*_WHO, *rows.columns]])
    tables = {name: pd.concat(some, ignore_index=True) for name, some in parts.items()}
    tables["results"] = _gap_shares(tables["results"])
    return SimulationTables(**tables, settings=_settings(grid))


def files() -> list[str]:
    """The names of what `write` writes."""
    return [*_FILES.values(), _SETTINGS]


def write(tables: SimulationTables, folder: Path) -> None:
    """Write the tables and settings.json into `folder`.

    Raises:
        InvalidInputError: `folder` cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, file in _FILES.items():
            table: pd.DataFrame = getattr(tables, name)
            if file.endswith(".parquet"):
                with disk.replacing(folder / file) as unfinished:
                    table.to_parquet(unfinished, index=False)
            else:
                disk.write_csv(table, folder / file)
        disk.write_text(folder / _SETTINGS, json.dumps(tables.settings, indent=1) + "\n")
    except OSError as error:
        raise InvalidInputError(f"--output: cannot write to {folder}: {error}. Choose another place.") from error


def read(folder: Path) -> SimulationTables:
    """What `write` wrote.

    Raises:
        InvalidInputError: a file is missing or damaged.
    """
    try:
        tables = {
            name: pd.read_parquet(folder / file) if file.endswith(".parquet") else pd.read_csv(folder / file)
            for name, file in _FILES.items()
        }
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{folder}: expected what `knapsack-rl simulate` wrote ({', '.join(_FILES.values())}), got {error!r}."
        ) from error
    return SimulationTables(**tables, settings=settings)


def _settings(grid: Grid) -> dict[str, Any]:
    return {
        **dataclasses.asdict(grid),
        "worlds": {name: dataclasses.asdict(WORLDS[name]) for name in grid.worlds},
        "batch": simulation.BATCH,
        "group_size": GROUP_SIZE,
        "bounds": [simulation.MIN_ROLLOUTS, simulation.MAX_ROLLOUTS],
        "held_out_prompts": simulation.HELD_OUT,
    }


def _steps(done: Simulation) -> pd.DataFrame:
    table = pd.DataFrame(done.steps)
    table.insert(0, "step", np.arange(1, len(table) + 1))
    return table


def _budgets(done: Simulation) -> pd.DataFrame:
    sizes = np.flatnonzero(done.budgets)
    return pd.DataFrame({"rollouts": sizes, "count": done.budgets[sizes]})


def _statuses(done: Simulation) -> pd.DataFrame:
    names = np.array([*STATUSES, None], dtype=object)  # -1, never visited, is the last
    found = {"first": done.first, "last": done.last, "before": done.start, "after": done.final}
    table = pd.DataFrame({when: names[statuses] for when, statuses in found.items()})
    return table.value_counts(dropna=False, sort=False).rename("prompts").reset_index()


def _result(done: Simulation) -> pd.DataFrame:
    steps = _steps(done)
    gains = {}
    for name, key in (("value", "value"), ("egr", "expected_egr")):
        best = float((steps[f"oracle_{key}"] - steps[f"uniform_{key}"]).sum())
        gains[f"{name}_gap_closed"] = float((steps[key] - steps[f"uniform_{key}"]).sum()) / best if best else np.nan
    row = {
        "rollouts": int(steps["rollouts"].sum()),
        "success_rate": float(steps["mean_success_rate"].iloc[-1]),
        "held_out_success_rate": float(steps["held_out"].iloc[-1]),
        "effective_gradient_ratio": float(steps["effective_gradient_ratio"].mean()),
        "effective_prompts": float(steps["effective_prompts"].mean()),
        "largest_budget": int(steps["max"].max()),
        "unsolved": done.unsolved,
        **gains,
        "log_score": float(steps["log_score"].mean()),
        "belief_rmse": float(steps["belief_rmse"].mean()),
        "seconds": done.seconds,
    }
    return pd.DataFrame([row])


def _gap_shares(results: pd.DataFrame) -> pd.DataFrame:
    """Add the share of the way from uniform to the oracle that a run's final success rates made.

    The shares of value and expected EGR compare plans of one budget, so the control has none.
    """
    results.loc[results["run"] == CONTROL, ["value_gap_closed", "egr_gap_closed"]] = np.nan
    for name in ("success_rate", "held_out_success_rate"):
        shares = []
        for _, rows in results.groupby(["world", "optimizer", "seed"], sort=False):
            final = rows.set_index("run")[name]
            gap = final[ORACLE] - final[UNIFORM]
            shares.append((rows[name] - final[UNIFORM]) / (gap if gap else np.nan))
        results[f"{name}_gap_closed"] = pd.concat(shares)
    return results
