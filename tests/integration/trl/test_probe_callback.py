"""The probe's callback in TRL's own trainer."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("matplotlib", reason="needs the extra 'report'")

import small
from transformers import TrainerCallback

from knapsack_rl import BudgetAllocator
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.probe.callback import ProbeCallback


def with_kinds():
    return small.rows().add_column("kind", ["odd" if i % 2 else "even" for i in range(12)])


class Records(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        self.found.append(self.trainer.last_step)


def test_a_training_at_even_groups_ends_with_the_page_of_its_probe(make, tmp_path) -> None:
    trainer = make(
        {"max_steps": 18},
        allocator=BudgetAllocator("uniform", group_size=4),
        measure_influence=True,
        watch_columns=["kind"],
        train_dataset=with_kinds(),
    )
    callback, records = ProbeCallback(trainer, tmp_path / "probe"), Records()
    records.trainer, records.found = trainer, []
    trainer.add_callback(callback)
    trainer.add_callback(records)
    trainer.train()
    found = json.loads((tmp_path / "probe" / "probe.json").read_text())
    numbers = found["numbers"]
    assert found["verdict"]["kind"] == callback.verdict.kind
    assert (numbers["steps"], numbers["prompts_per_step"], numbers["group_size"]) == (18, 4, 4)
    live = sum(int(((r.successes > 0) & (r.successes < r.scored)).sum()) for r in records.found)
    assert sum(kind["groups"] for kind in numbers["categories"]["kind"]) == live
    assert numbers["common"]["value"] == pytest.approx(trainer.allocator.influence.of()[0])
    assert (tmp_path / "probe" / "report.html").is_file()


def test_several_updates_on_a_generation_batch_are_one_step_of_the_probe(make, tmp_path) -> None:
    trainer = make(
        {"max_steps": 8, "per_device_train_batch_size": 4, "steps_per_generation": 4},
        allocator=BudgetAllocator("uniform", group_size=4),
        measure_influence=True,
    )
    trainer.add_callback(ProbeCallback(trainer, tmp_path / "probe"))
    trainer.train()
    assert json.loads((tmp_path / "probe" / "probe.json").read_text())["numbers"]["steps"] == 2


@pytest.mark.parametrize(("strategy", "measure"), [("adaptive", True), ("uniform", False)])
def test_a_trainer_with_uneven_groups_or_without_measuring_is_refused(make, strategy: str, measure: bool) -> None:
    trainer = make(allocator=BudgetAllocator(strategy, group_size=4), measure_influence=measure)
    with pytest.raises(InvalidInputError, match="measure_influence=True"):
        ProbeCallback(trainer)


def test_a_page_of_somebody_else_is_not_written_over_and_that_is_said_before_training(make, tmp_path) -> None:
    trainer = make(allocator=BudgetAllocator("uniform", group_size=4), measure_influence=True)
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(InvalidInputError, match=r"report\.html is of no page of this program"):
        ProbeCallback(trainer, tmp_path)
