"""Wrong answer keys on purpose, to see what an allocation makes of problems that cannot be solved rightly."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.tasks.base import Task

if TYPE_CHECKING:
    from datasets import Dataset

_KEY = ("answer", "answer_type", "judged_by")  # the columns of the tasks that say what is right
_TRIES = 100


def with_wrong_answers(task: Task, share: float, seed: int) -> Task:
    """The task with the key of another problem in place of a share of the training problems' own.

    A problem has a wrong key with probability `share`, by its id and `seed` alone. The key comes from a problem of the
    same category with another answer, or of any category where there is none. Held-out problems keep theirs.

    Raises:
        InvalidInputError: all problems have the same answer.
    """
    columns = {name: list(task.train[name]) for name in task.train.column_names}
    keys = [name for name in _KEY if name in columns]
    changed: dict[str, list[Any]] = {name: list(columns[name]) for name in keys}
    everyone = range(len(task.train))
    alike: dict[str, list[int]] = {}
    for row, category in enumerate(columns["category"]):
        alike.setdefault(category, []).append(row)
    for row, name in enumerate(columns["id"]):
        luck = random.Random(f"wrong answer {seed} {name}")
        if luck.random() < share:
            answer = columns["answer"][row]
            tried = [luck.choice(alike[columns["category"][row]]) for _ in range(_TRIES)]
            tried += luck.sample(everyone, len(everyone))
            other = next((one for one in tried if columns["answer"][one] != answer), None)
            if other is None:
                raise InvalidInputError(
                    f"task.wrong_answers: all problems have the answer {answer!r}, so none is wrong."
                )
            for key in keys:
                changed[key][row] = columns[key][other]
    return replace(task, train=_replaced(task.train, changed))


def _replaced(data: Dataset, columns: dict[str, list[Any]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict({name: columns.get(name, list(data[name])) for name in data.column_names})
