"""Strategies: the one place that knows them all, by name.

The first six are those to consider: the baseline, the paper's rule, our three, and the best of other papers. The others
are there to compare with.
"""

from __future__ import annotations

import importlib
import operator

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.strategies.base import AnyStrategy, Prompts, Settings, Strategy, View, one_wave
from knapsack_rl.strategies.ours import ADAPTIVE, CAUTIOUS, KNAPSACK, MEASURED, UNIFORM, VARIANTS
from knapsack_rl.strategies.rivals import HORA, RIVALS
from knapsack_rl.validation import nearest

__all__ = ["STRATEGIES", "Prompts", "Settings", "Strategy", "View", "named", "one_wave"]

STRATEGIES: dict[str, AnyStrategy] = {
    strategy.name: strategy for strategy in (UNIFORM, KNAPSACK, ADAPTIVE, CAUTIOUS, MEASURED, HORA, *VARIANTS, *RIVALS)
}
"""Name -> strategy, those to consider first."""


def named(strategy: object) -> AnyStrategy:
    """The strategy of this name, or `strategy` itself where it is one.

    Args:
        strategy: one of `STRATEGIES`; or `module:NAME` for a `Strategy` of your own in a module that can be imported,
            which is how a recipe, a comparison or verl's configuration names it; or the `Strategy`.

    Raises:
        InvalidInputError: there is no such strategy.
    """
    if isinstance(strategy, Strategy):
        return strategy
    if isinstance(strategy, str) and strategy in STRATEGIES:
        return STRATEGIES[strategy]
    if isinstance(strategy, str) and ":" in strategy:
        return _imported(strategy)
    close = nearest(strategy, STRATEGIES) if isinstance(strategy, str) else None
    raise InvalidInputError(
        f"strategy: expected one of {', '.join(STRATEGIES)}, or a knapsack_rl.Strategy of your own (in a file: "
        f"module:NAME), got {strategy!r}.{f' Did you mean {close}?' if close else ''}"
    )


def _imported(path: str) -> AnyStrategy:
    module, _, name = path.partition(":")
    try:
        found = operator.attrgetter(name)(importlib.import_module(module))
    except Exception as error:  # whatever a module of somebody's own does when it is imported
        raise InvalidInputError(
            f"strategy: cannot import {path!r} ({error!r}). Expected module:NAME; the module must be installed, or its "
            "folder be in PYTHONPATH."
        ) from error
    if not isinstance(found, Strategy):
        raise InvalidInputError(f"strategy: expected {path!r} to be a knapsack_rl.Strategy, got {found!r}.")
    return found
