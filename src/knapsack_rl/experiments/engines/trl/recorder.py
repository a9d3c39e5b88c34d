"""Writes a run down while TRL trains, and tells TRL when to evaluate and when to stop."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from trl import GRPOConfig

from knapsack_rl.experiments.engines.schedule import Score, is_due, recorded
from knapsack_rl.experiments.engines.trl.evaluation import EvaluatedTrainer
from knapsack_rl.experiments.pages.wording import plural
from knapsack_rl.experiments.recipe.schema import Recipe
from knapsack_rl.experiments.runs.interruption import Interruption
from knapsack_rl.experiments.runs.progress import Display
from knapsack_rl.experiments.runs.run_directory import RunDirectory


class Recorder(TrainerCallback):
    """Writes down and shows every step and evaluation, and says when to evaluate and when to stop."""

    def __init__(
        self,
        recipe: Recipe,
        directory: RunDirectory,
        display: Display,
        interruption: Interruption,
        leads: bool,
        keep: int | None,
    ) -> None:
        self._keep = keep  # complete checkpoints
        self._recipe = recipe
        self._directory = directory
        self._display = display
        self._interruption = interruption
        self._leads = leads
        self._trainer: EvaluatedTrainer
        self._origin = 0.0
        self._evaluating = 0.0  # seconds spent in evaluations so far
        self._evaluation_began = 0.0

    def start(self, trainer: EvaluatedTrainer, done: int) -> None:
        """Training is about to go on after `done` steps."""
        self._trainer = trainer
        spent = 0.0
        if self._leads:
            reached = max((record["step"] for record in self._directory.read_metrics()), default=0)
            last = self._directory.rewind(done if done else -1) or {}
            spent = last.get("time", 0.0)
            self._evaluating = spent - last.get("training_seconds", spent)
            self._display.start(done, self._directory.read_metrics())
            for remark in _going_on(done, reached, self._recipe.training.steps):
                self._display.note(remark)
        self._origin = self._evaluation_began = time.monotonic()
        self._origin -= spent

    def evaluated(self, step: int, scores: dict[str, Score]) -> None:
        """An evaluation after `step` is done."""
        self._evaluating += time.monotonic() - self._evaluation_began
        self._write(step, recorded(scores))

    def on_log(
        self, args: GRPOConfig, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Write down a step: TRL logs once per step, and besides for evaluations and at the end."""
        if "loss" not in logs:
            return
        step = self._step(state)
        self._write(step, {key: value for key, value in logs.items() if key != "step"})
        record = self._trainer.last_step
        if self._leads and record is not None:
            self._directory.append_allocations(
                step,
                [row["id"] for row in record.rows],
                record.plan.rollouts,
                record.scored,
                record.successes,
                record.belief,
            )

    def on_save(self, args: GRPOConfig, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint is written, by all processes once the last of them is here: it is complete."""
        self._trainer.accelerator.wait_for_everyone()
        if self._leads:
            self._directory.seal_checkpoint(state.global_step, self._keep, state.best_model_checkpoint)

    def on_step_end(self, args: GRPOConfig, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After the last update of a step: evaluate if it is time, stop if somebody asked."""
        if state.global_step % self._recipe.training.updates_per_step:
            return
        if is_due(self._recipe, self._step(state)):
            control.should_evaluate = True
            self._evaluation_began = time.monotonic()
        if self._asked_to_stop():
            control.should_training_stop = control.should_save = True

    def _step(self, state: TrainerState) -> int:
        return int(state.global_step) // self._recipe.training.updates_per_step

    def _asked_to_stop(self) -> bool:
        """Whether a signal has reached any process: all of them must stop after the same step."""
        accelerator = self._trainer.accelerator
        asked = torch.tensor(self._interruption.number or 0, device=accelerator.device)
        number = int(accelerator.gather(asked.view(1)).max())
        if number:
            self._interruption.number = number
        return number > 0

    def _write(self, step: int, content: dict[str, Any]) -> None:
        if not self._leads:
            return
        elapsed = time.monotonic() - self._origin
        record = {
            "step": step,
            "rollouts": step * self._recipe.training.rollouts_per_step,
            "time": round(elapsed, 3),
            "training_seconds": round(elapsed - self._evaluating, 3),
            **content,
        }
        self._directory.append_metrics(record)
        self._display.record(record)


def _going_on(done: int, reached: int, steps: int) -> list[str]:
    """A sentence on where the run goes on, and what is lost."""
    again = plural(reached - done, "step")
    if done:
        return [f"resuming after step {done} of {steps}" + (f"; {again} after it are trained again" * (reached > done))]
    return [f"no checkpoint is complete: the run begins anew, and {again} are trained again"] if reached else []
