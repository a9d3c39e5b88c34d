"""What `knapsack-rl probe` does: steps of the minimal trainer at even groups, measured, judged and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import transformers
from rich.console import Console

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.engines import ingredients
from knapsack_rl.experiments.engines.minimal import run as minimal
from knapsack_rl.experiments.engines.minimal.grpo import Collected, Loop
from knapsack_rl.experiments.probe.numbers import Visits, measured
from knapsack_rl.experiments.probe.report import write_report
from knapsack_rl.experiments.probe.verdict import Verdict, verdict
from knapsack_rl.experiments.recipe import recipe_file
from knapsack_rl.experiments.recipe.schema import Recipe
from knapsack_rl.experiments.runs.environment import record_end, record_start
from knapsack_rl.experiments.runs.interruption import Interruption
from knapsack_rl.experiments.runs.progress import Display
from knapsack_rl.experiments.runs.run_directory import RunDirectory
from knapsack_rl.tasks import Task

STEPS = 40
_VISITS = 4  # of a prompt: at a first one nothing is believed about it, and so it counts in no band
_SPACE = 8 * 2**20  # bytes on the disk


@dataclass(frozen=True)
class Outcome:
    """What became of a probe.

    Attributes:
        verdict: of the steps that were made.
        report: its page.
        stopped_by: the signal that ended it early, or None.
    """

    verdict: Verdict
    report: Path
    stopped_by: int | None


def planned(path: Path | None, overrides: Sequence[str], steps: int) -> Recipe:
    """The recipe as a probe runs it: with even groups, so many steps, and the minimal trainer.

    Raises:
        InvalidInputError: the recipe is not valid, or the minimal trainer cannot run it.
    """
    if steps < 1:
        raise InvalidInputError(f"--steps: expected 1 or more, got {steps}.")
    recipe_file.read(path, overrides)  # what is wrong with the recipe itself
    changes = (
        "trainer=minimal",
        f"training.steps={steps}",
        "training.dynamic_sampling=false",
        "training.measure_influence=true",
        "allocator.strategy=uniform",
    )
    try:
        return recipe_file.read(path, [*overrides, *changes])
    except InvalidInputError as error:
        raise InvalidInputError(
            f"probe trains with trainer=minimal, which cannot run this recipe. {error}\n"
            "Leave that out for the probe, or train with TRL and ProbeCallback (docs/probe.md)."
        ) from error


def probe(recipe: Recipe, output: Path, command: str, console: Console) -> Outcome:
    """Probe what `planned` made of a recipe, in `output/name`.

    Args:
        recipe: with even groups and the minimal trainer.
        output: the folder of the probes' directories.
        command: what makes the page again.
        console: where to show progress.

    Raises:
        InvalidInputError: the directory cannot take the probe, or the model or the task cannot be loaded.
        StateError: another process is at work in the directory.
        MissingExtraError: the recipe needs a package that is not installed.
        Interrupted: a signal came before the first step, or a second one after it.
    """
    directory = RunDirectory(output / recipe.name)
    directory.claim(recipe_file.render(recipe))
    try:
        if directory.finished and not directory.probe.exists():
            raise InvalidInputError(
                f"--output: {directory.path} holds a run of `knapsack-rl train`. Choose another name=..., or another "
                "place with --output."
            )
        directory.require_space(_SPACE)
        return _probe(recipe, directory, command, console)
    finally:
        directory.release()


def _probe(recipe: Recipe, directory: RunDirectory, command: str, console: Console) -> Outcome:
    title = f"[bold]probe of {recipe.name}[/] · seed {recipe.seed} · CPU"
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with Display(console, title, recipe.training.steps) as display:
        interruption = Interruption(display.stopping)
        with interruption.listening():
            task, model, tokenizer = ingredients.problems_and_model(recipe, display)
            loop = Loop(recipe, _few(task, recipe), minimal.policy(recipe, model, tokenizer))
            record_start(directory, recipe, command)
            directory.rewind(-1)
            display.start(0, [])
            interruption.can_wait = True
            visits = _steps(loop, directory, display, interruption)
            interruption.can_wait = False
            numbers = measured(visits, loop.allocator.influence, recipe.training.group_size)
            found = verdict(numbers)
            page = write_report(numbers, found, visits, directory.path, recipe.name, command)
            if interruption.number is None:
                record_end(directory)
    return Outcome(found, page, interruption.number)


def _few(task: Task, recipe: Recipe) -> Task:
    """The task with so few problems that each comes several times, drawn by the seed."""
    kept = max(1, recipe.training.steps // _VISITS) * recipe.training.prompts_per_step
    if len(task.train) <= kept:
        return task
    return replace(task, train=task.train.shuffle(seed=recipe.seed).select(range(kept)))


def _steps(loop: Loop, directory: RunDirectory, display: Display, interruption: Interruption) -> Visits:
    """Train until the steps are made, or somebody asks to stop."""
    visits = Visits()
    training = loop.recipe.training
    while len(visits) < training.steps and interruption.number is None:
        done, loss = loop.step()
        _take_in(visits, loop, done)
        seen = minimal.step_record([done], loss) | loop.allocator.influence.metrics()
        record = {"step": len(visits), "rollouts": len(visits) * training.rollouts_per_step, **seen}
        directory.append_metrics(record)
        display.record(record)
    return visits


def _take_in(visits: Visits, loop: Loop, done: Collected) -> None:
    def column(name: str) -> list[object]:
        return [loop.columns[name][row] for row in done.rows]

    successes, scored = done.rollouts.counts(len(done.rows))
    texts = {name: column(name) for name in loop.features if isinstance(loop.columns[name][0], str)}
    visits.add([str(one) for one in column("id")], successes, scored, np.asarray(done.belief.mean), texts)
