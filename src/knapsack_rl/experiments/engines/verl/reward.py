"""The reward of the recipes in verl: the answer, judged by math-verify."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

from knapsack_rl.tasks.math import is_right

logger = logging.getLogger(__name__)


async def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any], **_: Any
) -> float:
    """1.0 or 0.0, as `tasks.math.math_verified`; verl's reward workers call it."""
    loop, choice = asyncio.get_running_loop(), extra_info["answer_type"] == "choice"
    for _attempt in range(2):
        judges = _judges()
        try:
            return float(await loop.run_in_executor(judges, _judged, solution_str, ground_truth, choice))
        except BrokenProcessPool:  # this answer, or another that was judged beside it, was too much for the process
            if judges is _judges():
                _judges.cache_clear()
    logger.warning("the judge died of an answer twice; it counts as wrong: %.200r", solution_str)
    return 0.0


@lru_cache(maxsize=1)
def _judges() -> ProcessPoolExecutor:
    # math-verify keeps its time limit by a signal, which only the main thread of a process receives.
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _judged(completion: str, answer: str, choice: bool) -> bool:
    return is_right(completion, answer, choice=choice)
