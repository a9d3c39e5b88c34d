"""What verl's entry point `verl.plugins` imports, in every process, most of which never train.

So it imports nothing of verl's or ours that is not there yet, but arranges for two things: when verl's package of
trainers is imported, our modes are registered; and before verl checks a configuration, what it says of knapsack-rl is
checked. verl reports a plug-in that fails to load at debug level and goes on, so this one speaks up itself.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from types import ModuleType
from typing import Any

TRAINERS = "verl.trainer.ppo.v1"
"""The package whose import brings verl's own modes."""

logger = logging.getLogger(__name__)


class _Loader(SourceFileLoader):
    """Python's own, which registers our modes after it has executed verl's package of trainers."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        register()


class _Finder:
    """Finds that package as Python would, and everything else not."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != TRAINERS:
            return None
        found = PathFinder.find_spec(name, path, target)
        if found is None or found.origin is None:
            return found
        within = found.submodule_search_locations
        return spec_from_file_location(
            name, found.origin, loader=_Loader(name, found.origin), submodule_search_locations=within
        )


def register() -> None:
    """Register the trainer modes. If that fails, verl's own modes work all the same, and it knows none of ours."""
    try:
        importlib.import_module("knapsack_rl.verl.trainer")
    except Exception:
        logger.exception("knapsack-rl: the trainer modes could not be registered with verl")


def checking_first(validate: Callable[..., None]) -> Callable[..., None]:
    """What checks a configuration for verl, after our check: both come before Ray starts and a model is loaded."""

    @functools.wraps(validate)
    def checked(config: Any, *args: Any, **named: Any) -> None:
        from knapsack_rl.verl.checks import check

        check(config)
        validate(config, *args, **named)

    return checked


def _arrange() -> None:
    if TRAINERS in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Finder)
    settings: Any = importlib.import_module("verl.utils.config")  # which `import verl` has imported already
    settings.validate_config = checking_first(settings.validate_config)


try:
    _arrange()
except Exception:
    logger.exception("knapsack-rl: the trainer modes could not be registered with verl")
    raise
