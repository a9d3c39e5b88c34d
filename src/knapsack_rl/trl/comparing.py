"""Reward functions that compare the rollouts of a prompt with each other: rankings, tournaments, diversity.

TRL gives a reward function the rollouts of one process. With groups of one size a prompt's stand side by side among
them; groups of many sizes are dealt to all processes. A function that says `function.compares_rollouts = True` is
called on one process instead, once, with the rollouts of all of them, those of a prompt side by side.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray

from knapsack_rl.errors import InvalidInputError

Ints = NDArray[np.int64]


def compares(function: Any) -> bool:
    """Whether a reward function asks for whole groups."""
    return bool(getattr(function, "compares_rollouts", False))


class WholeGroups:
    """What TRL calls in place of such a function; the rewards go back to the processes whose rollouts they are for.

    Args:
        function: the reward function, which may be asynchronous.
        name: by which TRL logs it.
        accelerator: of the trainer.
        groups: tells which prompt each rollout of all processes belongs to; None where they stand as TRL has them.
    """

    def __init__(self, function: Any, name: str, accelerator: Any, groups: Callable[[], Ints | None]) -> None:
        self._function, self._name, self._accelerator, self._groups = function, name, accelerator, groups

    def __call__(self, *, trainer_state: Any, log_extra: Any, log_metric: Any, **columns: list[Any]) -> list[Any]:
        """The rewards of this process's rollouts; every process must call."""
        parts = gather_object([columns])
        sizes = [len(part["prompts"]) for part in parts]
        rewards: list[Any] = []
        extras: dict[str, list[Any]] = {}
        if self._accelerator.is_main_process:
            whole = {name: [value for part in parts for value in part[name]] for name in columns}
            rewards, extras = self._ranked(whole, sum(sizes), trainer_state=trainer_state, log_metric=log_metric)
        rewards, extras = broadcast_object_list([rewards, extras])
        start = sum(sizes[: self._accelerator.process_index])
        mine = slice(start, start + len(columns["prompts"]))
        for column, values in extras.items():
            log_extra(column, values[mine])
        return rewards[mine]

    def _ranked(self, columns: dict[str, list[Any]], count: int, **more: Any) -> tuple[list[Any], dict[str, list[Any]]]:
        """Rewards of all rollouts and the columns that the function logged, in the order of the given ones."""
        groups = self._groups()
        order = np.arange(count) if groups is None else np.argsort(groups, kind="stable")
        back = np.argsort(order)
        logged: defaultdict[str, list[Any]] = defaultdict(list)
        ordered = {name: [values[i] for i in order] for name, values in columns.items()}
        found = self._function(**ordered, log_extra=lambda column, values: logged[column].extend(values), **more)
        rewards = list(asyncio.run(found) if inspect.iscoroutine(found) else found)
        named = [("rewards", rewards), *((f"values of {column!r}", values) for column, values in logged.items())]
        for what, values in named:
            if len(values) != count:
                raise InvalidInputError(
                    f"{self._name}: expected {count} {what}, one for each rollout of the step, got {len(values)}. "
                    "It has compares_rollouts=True and sees the rollouts of all processes at once."
                )
        return [rewards[i] for i in back], {column: [values[i] for i in back] for column, values in logged.items()}
