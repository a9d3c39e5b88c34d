"""The probe for TRL: a callback that writes the page of `knapsack-rl probe` at the end of a training."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.pages.page import refuse_others
from knapsack_rl.experiments.probe.numbers import Visits, measured
from knapsack_rl.experiments.probe.report import write_report
from knapsack_rl.experiments.probe.verdict import Verdict, verdict
from knapsack_rl.trl.trainer import KnapsackTrainer, StepRecord

logger = logging.getLogger(__name__)


class ProbeCallback(TrainerCallback):
    """Watches a training at even groups, and judges it at its end.

        trainer = KnapsackGRPOTrainer(..., allocator=BudgetAllocator("uniform"), measure_influence=True)
        trainer.add_callback(ProbeCallback(trainer))
        trainer.train()  # of a few dozen steps, in which prompts come several times

    Args:
        trainer: that is going to train.
        folder: where `probe.json` and `report.html` go; its name is the page's title.

    Attributes:
        verdict: None before the end, and on processes that write nothing.

    Raises:
        InvalidInputError: the trainer's groups are not even, it does not measure, or the folder has files of others
            that would give way.
    """

    def __init__(self, trainer: KnapsackTrainer, folder: str | Path = "runs/probe/trl") -> None:
        if trainer.allocator.strategy != "uniform" or not trainer.measures_influence:
            raise InvalidInputError(
                "trainer: expected one with allocator=BudgetAllocator('uniform', ...) and measure_influence=True, got "
                f"the strategy {trainer.allocator.strategy!r}, measuring {trainer.measures_influence}."
            )
        self._folder = Path(folder)
        refuse_others(self._folder, "probe.json", "report.html")
        self._trainer = trainer
        self._visits = Visits()
        self._last: StepRecord | None = None
        self.verdict: Verdict | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After an update: take the generation batch in, if it is a new one."""
        record = self._trainer.last_step
        if record is None or record is self._last:
            return
        self._last = record
        columns = (*self._trainer.feature_columns, *self._trainer.watch_columns)
        texts = {name: [row[name] for row in record.rows] for name in columns if isinstance(record.rows[0][name], str)}
        ids = [self._trainer._prompt_id(row) for row in record.rows]
        self._visits.add(ids, record.successes, record.scored, record.belief.mean, texts)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the page, on the first process."""
        if not state.is_world_process_zero or not len(self._visits):
            return
        numbers = measured(self._visits, self._trainer.allocator.influence, self._trainer.num_generations)
        self.verdict = verdict(numbers)
        command = shlex.join(sys.orig_argv)
        page = write_report(numbers, self.verdict, self._visits, self._folder, self._folder.name, command)
        logger.warning("%s Report: %s", self.verdict.headline, page)
