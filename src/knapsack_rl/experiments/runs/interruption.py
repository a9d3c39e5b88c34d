"""Ctrl-C and SIGTERM: once means finish the step and save, twice means stop at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """Stopped at once by a signal.

    Like KeyboardInterrupt no Exception, so that nothing in between takes it for a failure of its own.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interruption:
    """What signals have asked for so far.

    Args:
        on_request: called in the signal handler, where little is allowed: it must not print.

    Attributes:
        number: the signal that asked to stop, or None.
        can_wait: whether somebody looks at `number` soon; if not, the first signal already stops at once.
    """

    def __init__(self, on_request: Callable[[], None]) -> None:
        self.number: int | None = None
        self.can_wait = False
        self._on_request = on_request

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive signals instead of the usual handlers (in the main thread; elsewhere Python allows no handlers)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        usual = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in usual.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None or not self.can_wait:
            raise Interrupted(number)
        self.number = number
        self._on_request()
