"""What a run directory holds, as tables: what reports and comparisons are made of.

Everything is read from `recipe.yaml`, `environment.json`, `metrics.jsonl` and `allocations.parquet`, and a run
that was interrupted reads like a finished one that was shorter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow import parquet

from knapsack_rl.belief import Belief
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.recipe import yaml_text
from knapsack_rl.influence import BANDS
from knapsack_rl.metrics import STATUSES, status, transition_matrix

BINS = 10
"""Of believed success rates, equally wide."""
WORTH, WORTH_ERROR = "influence/", "influence_error/"
"""Beginnings of the metrics of `Influence`."""
NOISE = ("noise_scale", "noise_scale_low", "noise_scale_high")
_BELIEF = ["belief_wins", "belief_losses"]


@dataclass(frozen=True)
class Run:
    """What a run directory holds; each of the three tables may be empty.

    `steps` has a row for each training step, `evaluations` one for each benchmark of each evaluation, in the
    order of the run, and `allocations` one for each visit: a prompt in a step. What was believed about the prompt
    before it, in the columns belief_wins and belief_losses, is NaN where it was not recorded.
    """

    name: str
    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    steps: pd.DataFrame
    evaluations: pd.DataFrame
    allocations: pd.DataFrame

    @property
    def planned_steps(self) -> int | None:
        """Steps that the recipe asks for."""
        steps = self.setting("training", "steps")
        return None if steps is None else int(steps)

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return self.environment.get("finished") is not None

    @property
    def last_step(self) -> int:
        """Steps that were made."""
        return int(self.steps["step"].iloc[-1]) if len(self.steps) else 0

    @property
    def seconds(self) -> float:
        """Wall-clock of training and evaluations, over all sessions of the run."""
        times = [float(table["time"].max()) for table in (self.steps, self.evaluations) if len(table)]
        return max(times, default=0.0)

    @property
    def window(self) -> int:
        """Steps of a running mean: a twentieth of the run."""
        return max(1, round(len(self.steps) / 20))

    def setting(self, block: str, key: str) -> Any:
        """`block.key` of the recipe, or None."""
        found = self.recipe.get(block)
        return found.get(key) if isinstance(found, dict) else None

    def mean(self, key: str) -> float | None:
        """The mean of a metric over the steps that have it."""
        values = self.steps[key].dropna() if key in self.steps else ()
        return float(np.mean(values)) if len(values) else None


@dataclass(frozen=True)
class Visits:
    """Each prompt's first and last step with a reward: their statuses (0..4), one entry per prompt."""

    first: np.ndarray
    last: np.ndarray
    seen_once: int
    never_solved: int


def read_run(folder: Path, name: str) -> Run:
    """The run in `folder`, finished or not, to be called `name`.

    Raises:
        InvalidInputError: `folder` is not a run directory (the message names what is missing), a file in it is
            damaged, verl trained it, or it is a probe's.
    """
    needed = ("recipe.yaml", "environment.json")
    if not folder.is_dir():
        raise InvalidInputError(f"run_dirs: {folder} is not a directory. Give a run's, such as runs/demo.")
    if (folder / "probe.json").is_file():
        raise InvalidInputError(
            f"run_dirs: {folder} is a probe, which has a page of its own: {folder / 'report.html'}."
        )
    missing = [file for file in needed if not (folder / file).is_file()]
    if missing:
        raise InvalidInputError(
            f"run_dirs: {folder} is not a run directory, since it has no {' and no '.join(missing)}. "
            "Give a directory that `knapsack-rl train` wrote."
        )
    try:
        recipe_text = (folder / "recipe.yaml").read_text(encoding="utf-8")
        recipe = yaml_text.parse(recipe_text, "recipe.yaml")
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"run_dirs: recipe.yaml or environment.json in {folder} is damaged: {error}") from error
    if not isinstance(recipe, dict) or not isinstance(environment, dict):
        raise InvalidInputError(f"run_dirs: recipe.yaml and environment.json in {folder} must each hold a mapping.")
    if recipe.get("trainer") == "verl":
        raise InvalidInputError(
            f"run_dirs: {folder} was trained by verl, which logs in its own format, to {folder}/verl-*.jsonl and the "
            "trackers of trainer.logger. Look there, or keep its rollouts with verl.trainer.rollout_data_dir=FOLDER "
            "and run: knapsack-rl audit FOLDER"
        )
    if str(environment.get("command")).startswith("knapsack-rl probe"):  # and has not come to its probe.json
        raise InvalidInputError(
            f"run_dirs: {folder} is of a probe that was stopped before its page, which is another than a run's. "
            f"Run it again: {environment['command']}"
        )
    records = _read_records(folder / "metrics.jsonl")
    steps = pd.DataFrame([record for record in records if "evaluation" not in record])
    if len(steps):
        # Of a step that was logged twice, the later record counts; `knapsack-rl train` itself forgets the earlier one.
        steps = steps.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)
    evaluations = pd.DataFrame(
        [
            {
                **{key: record[key] for key in ("step", "rollouts", "time")},
                "benchmark": benchmark,
                "accuracy": accuracy,
                "solved": (record.get("solved") or {}).get(benchmark, float("nan")),
            }
            for record in records
            for benchmark, accuracy in (record.get("evaluation") or {}).items()
            if accuracy is not None
        ],
        columns=["step", "rollouts", "time", "benchmark", "accuracy", "solved"],
    )
    evaluations = evaluations.drop_duplicates(["step", "benchmark"], keep="last").sort_values(
        "step", kind="stable", ignore_index=True
    )
    return Run(name, folder, recipe, recipe_text, environment, steps, evaluations, _read_allocations(folder))


def _read_records(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():  # stopped before anything was measured
        return []
    lines = path.read_bytes().splitlines()
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            absent = [key for key in ("step", "rollouts", "time") if key not in record]
        except (ValueError, TypeError, RecursionError) as error:
            if number == len(lines):  # a killed run may leave half a line
                break
            raise InvalidInputError(f"run_dirs: line {number} of {path} is not a JSON object: {error}") from error
        if absent:
            raise InvalidInputError(f"run_dirs: line {number} of {path} has no {', '.join(absent)}.")
        records.append(record)
    return records


def _read_allocations(folder: Path) -> pd.DataFrame:
    columns = ["step", "prompt", "rollouts", "scored", "successes"]
    kinds = dict.fromkeys(columns, "int64") | dict.fromkeys(_BELIEF, "float32")
    path = folder / "allocations.parquet"
    # The trainer writes a folder with a file for each step; a single file reads the same.
    if not (path.is_file() or any(path.glob("*.parquet"))):  # stopped before the first step
        return pd.DataFrame({column: pd.Series(dtype=kind) for column, kind in kinds.items()})
    try:
        table = parquet.read_table(path, page_checksum_verification=True).to_pandas()
        return table[columns].join(table.reindex(columns=_BELIEF))  # runs of earlier versions recorded no belief
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are kinds of these
        raise InvalidInputError(
            f"run_dirs: {path} cannot be read as a parquet table with the columns {', '.join(columns)}: {error}"
        ) from error


def success_rates(run: Run) -> pd.DataFrame:
    """What was observed of each prompt in each step that scored it; columns prompt, step, scored, successes, rate.

    A prompt that came twice in a step has one row with all of its rollouts. Rows are by prompt, then by step.
    """
    scored = run.allocations[run.allocations["scored"] > 0]
    seen = scored.groupby(["prompt", "step"], as_index=False)[["scored", "successes"]].sum()
    return seen.assign(rate=seen["successes"] / seen["scored"])


def calibration(run: Run) -> pd.DataFrame:
    """Believed success rates against what came out, in `BINS` bins of the former; empty where no belief is known.

    Columns: run, believed, observed, error (standard error of observed - believed), visits.

    For a belief Beta(a, b) and s successes of n scored rollouts, believed and observed are means over the visits of a
    bin of m = a / (a + b) and of s / n with the weight w = n / (a + b + n). Then w (s / n - m) is what the visit moves
    the posterior mean, (a + s) / (a + b + n) - m. If the belief is right, that is 0 on average whatever rule stopped
    the sampling (a martingale), and the two agree, even where groups stop by their own outcomes and a plain mean of
    s / n is biased. Where n was decided beforehand these are the weights of least variance.
    """
    visited = run.allocations.reindex(columns=[*_BELIEF, "scored", "successes"]).astype(np.float64)
    visited = visited[(visited["scored"] > 0) & visited[_BELIEF].notna().all(axis=1)]
    belief = Belief(*(visited[name].to_numpy() for name in _BELIEF))
    scored, believed = visited["scored"].to_numpy(), belief.mean
    weight = scored / (belief.wins + belief.losses + scored)
    observed = visited["successes"].to_numpy() / scored
    rows = pd.DataFrame(
        {
            "weight": weight,
            "believed": weight * believed,
            "observed": weight * observed,
            "error": (weight * (observed - believed)) ** 2,
        }
    )
    bins = rows.groupby(np.minimum((BINS * believed).astype(np.int64), BINS - 1))
    total = bins.sum()
    return _labelled(
        run,
        pd.DataFrame(
            {
                "believed": total["believed"] / total["weight"],
                "observed": total["observed"] / total["weight"],
                "error": np.sqrt(total["error"]) / total["weight"],
                "visits": bins.size(),
            }
        ).reset_index(drop=True),
    )


def visits(run: Run) -> Visits | None:
    """Statuses of all prompts at their first and last visits, or None where no rollout was scored."""
    seen = success_rates(run)
    if seen.empty:
        return None
    by_prompt = seen.groupby("prompt", sort=True)
    return Visits(
        first=status(by_prompt["rate"].first().to_numpy()),
        last=status(by_prompt["rate"].last().to_numpy()),
        seen_once=int((by_prompt.size() == 1).sum()),
        never_solved=int((by_prompt["successes"].sum() == 0).sum()),
    )


def groups_per_step(run: Run) -> tuple[float | None, float | None]:
    """Prompts of a step, and those of them with both successes and failures: means over steps, or None."""
    groups = run.allocations
    if not len(groups):
        return None, None
    mixed = (groups["successes"] > 0) & (groups["successes"] < groups["scored"])
    steps = groups["step"].nunique()
    return len(groups) / steps, int(mixed.sum()) / steps


def top_prompts(run: Run, count: int) -> pd.DataFrame:
    """The `count` prompts that got most rollouts; those with equally many are in the order of their ids.

    Columns: prompt, visits (steps that had it), rollouts, share (of all rollouts of the run), successes, and first and
    last (success rates observed at the first and the last visit that was scored; NaN if none was).
    """
    by_prompt = run.allocations.groupby("prompt", sort=True)
    table = pd.DataFrame(
        {
            "visits": by_prompt["step"].nunique(),
            "rollouts": by_prompt["rollouts"].sum(),
            "successes": by_prompt["successes"].sum(),
        }
    )
    table.insert(2, "share", table["rollouts"] / table["rollouts"].sum())
    rates = success_rates(run).groupby("prompt")["rate"]
    table = table.assign(first=rates.first(), last=rates.last())
    return table.sort_values("rollouts", ascending=False, kind="stable").head(count).reset_index()


def trajectories(runs: Sequence[Run], count: int) -> pd.DataFrame:
    """What single prompts did: the success rates observed at each visit, for the same prompts in every run.

    Columns: prompt, run, step, rollouts, successes, rate; the prompts by rising success rate at the first visit. Empty
    if no prompt was visited twice in every run.

    Prompts are chosen by where they began, and not by what became of them: for each of `count` rates spaced evenly
    from 0 to 1, that whose success rate at the first visit (of all runs together) is nearest, and of several equally
    near ones that whose id has the smallest hash.
    """
    seen = [success_rates(run) for run in runs]
    twice = [set(table.loc[table["prompt"].duplicated(), "prompt"]) for table in seen]
    common = set.intersection(*twice)
    first = pd.concat([table[~table["prompt"].duplicated()] for table in seen])
    first = first[first["prompt"].isin(common)].groupby("prompt")[["scored", "successes"]].sum()
    began = {prompt: row.successes / row.scored for prompt, row in zip(first.index, first.itertuples(), strict=True)}
    chosen: list[Any] = []
    for target in np.linspace(0.0, 1.0, count).tolist():
        left = [prompt for prompt in began if prompt not in chosen]
        if left:
            # Rounded, since which of two equally near rates is nearer must not hang on the last bit.
            chosen.append(min(left, key=lambda prompt: (round(abs(began[prompt] - target), 9), _hash(prompt))))
    chosen.sort(key=lambda prompt: (began[prompt], _hash(prompt)))
    rows = [
        table[table["prompt"] == prompt].assign(run=run.name)
        for prompt in chosen
        for run, table in zip(runs, seen, strict=True)
    ]
    columns = ["prompt", "run", "step", "rollouts", "successes", "rate"]
    if not rows:
        return pd.DataFrame(columns=columns)
    return pd.concat(rows, ignore_index=True).rename(columns={"scored": "rollouts"})[columns]


def _hash(prompt: Any) -> str:
    return hashlib.sha256(str(prompt).encode("utf-8", "surrogatepass")).hexdigest()


def curve(run: Run, key: str, **labels: str) -> pd.DataFrame:
    """A metric by step and its running mean; columns run, `labels`, step, value, running_mean."""
    if key not in run.steps:
        return pd.DataFrame()
    rows = run.steps[["step", key]].dropna().rename(columns={key: "value"})
    rows["running_mean"] = rows["value"].rolling(run.window, min_periods=1).mean()
    for position, (column, text) in enumerate({"run": run.name, **labels}.items()):
        rows.insert(position, column, text)
    return rows


def worth(run: Run) -> pd.DataFrame:
    """What a group's gradient was worth after the last step, where it was measured.

    Columns run, what ("band" of believed success rates, or "category"), name, worth, error; categories are named
    `COLUMN/KIND`. Empty where nothing was measured, or where the groups pulled the others up no more than down: then
    worth has no unit.
    """
    columns = ["what", "name", "worth", "error"]
    steps = run.steps[measures(run)]
    if steps.empty:
        return _labelled(run, pd.DataFrame(columns=columns))
    last = steps.iloc[-1]
    measured = steps.filter(regex=f"^{WORTH}").columns.str.removeprefix(WORTH)
    rows = [
        ("band" if name in BANDS else "category", name, last[WORTH + name], last.get(WORTH_ERROR + name))
        for name in [*(band for band in BANDS if band in measured), *sorted(set(measured) - set(BANDS))]
    ]
    return _labelled(run, pd.DataFrame(rows, columns=columns).dropna().astype({"worth": float, "error": float}))


def measures(run: Run) -> pd.Series:
    """For each step whether anything was known then of what gradients are worth."""
    known = run.steps.filter(regex=f"^({WORTH}|{'|'.join(NOISE)}$)")
    return known.notna().any(axis=1)


def noise_scale(run: Run) -> pd.DataFrame:
    """The gradient noise scale by step, in prompts, where its interval is known; columns run, step, value, low, high.

    `value` is NaN and `high` infinite where no common direction was seen.
    """
    table = run.steps.reindex(columns=["step", *NOISE])
    table.columns = pd.Index(["step", "value", "low", "high"])
    return _labelled(run, table.dropna(subset=["low"]).fillna({"high": np.inf}))


def accuracies(run: Run) -> pd.DataFrame:
    """Held-out accuracy; columns run, benchmark, step, rollouts, accuracy."""
    return _labelled(run, run.evaluations[["benchmark", "step", "rollouts", "accuracy"]])


def mean_accuracies(run: Run) -> pd.DataFrame:
    """Mean over benchmarks at each evaluation that measured all of the run's.

    Returns:
        Columns step, rollouts, accuracy, solved (NaN where it was not recorded).
    """
    by_evaluation = run.evaluations.groupby(["step", "rollouts"], as_index=False).agg(
        accuracy=("accuracy", "mean"), solved=("solved", "mean"), benchmarks=("accuracy", "count")
    )
    whole = by_evaluation[by_evaluation.pop("benchmarks") == run.evaluations["benchmark"].nunique()]
    return whole.reset_index(drop=True)


def benchmark_accuracies(run: Run) -> pd.DataFrame:
    """`accuracies`; where there are several benchmarks, their mean follows as one called "mean of benchmarks"."""
    table = accuracies(run)
    if table["benchmark"].nunique() < 2:
        return table
    means = mean_accuracies(run).assign(run=run.name, benchmark="mean of benchmarks")
    return pd.concat([table, means[table.columns]], ignore_index=True)


def budget_counts(run: Run) -> pd.DataFrame:
    """How many visits got so many rollouts; columns run, rollouts, count."""
    counts = run.allocations["rollouts"].value_counts().sort_index()
    return _labelled(run, pd.DataFrame({"rollouts": counts.index, "count": counts.to_numpy()}))


def budget_quantiles(run: Run) -> pd.DataFrame:
    """Quantiles over all prompts of the last few steps together, since those of single steps jump about.

    Columns: run, step, min, q25, median, q75, max.
    """
    by_step = [(int(step), rows.to_numpy()) for step, rows in run.allocations.groupby("step")["rollouts"]]
    rows = []
    for end, (step, _) in enumerate(by_step, start=1):
        recent = np.concatenate([rollouts for _, rollouts in by_step[max(0, end - run.window) : end]])
        quantiles = np.quantile(recent, [0.0, 0.25, 0.5, 0.75, 1.0]).tolist()
        rows.append(dict(zip(("step", "min", "q25", "median", "q75", "max"), (step, *quantiles), strict=True)))
    return _labelled(run, pd.DataFrame(rows))


def transitions(run: Run, visits: Visits | None) -> pd.DataFrame:
    """From the status at the first visit to that at the last; columns run, first, last, prompts, share.

    Empty if no prompt was visited twice.
    """
    if visits is None or visits.seen_once == len(visits.first):
        return pd.DataFrame()
    starts = np.bincount(visits.first, minlength=len(STATUSES))
    share = transition_matrix(visits.first, visits.last)
    counts = np.rint(share * starts[:, None]).astype(np.int64)
    share[starts == 0] = np.nan  # nobody started there, so nothing is known
    rows = pd.DataFrame(
        {
            "first": np.repeat(STATUSES, 5),
            "last": np.tile(STATUSES, 5),
            "prompts": counts.ravel(),
            "share": share.ravel(),
        }
    )
    return _labelled(run, rows)


def status_counts(run: Run, visits: Visits | None) -> pd.DataFrame:
    """Prompts in each status; columns run, visit ("first" or "last"), status, prompts."""
    if visits is None:
        return pd.DataFrame()
    rows = [
        {"visit": visit, "status": name, "prompts": count}
        for visit, statuses in (("first", visits.first), ("last", visits.last))
        for name, count in zip(STATUSES, np.bincount(statuses, minlength=5).tolist(), strict=True)
    ]
    return _labelled(run, pd.DataFrame(rows))


def _labelled(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(run=run.name)[["run", *rows.columns]]
