"""What verl's entry point `verl.plugins` imports, in every process: it registers the trainer modes.

verl reports a plug-in that fails to load at debug level and goes on, so this one speaks up itself.
"""

from __future__ import annotations

import logging

try:
    from knapsack_rl.verl import trainer
except Exception:
    logging.getLogger(__name__).exception("knapsack-rl: the trainer modes could not be registered with verl")
    raise

__all__ = ["trainer"]
