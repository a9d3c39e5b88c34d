from __future__ import annotations

import os
import signal

import pytest

from knapsack_rl.experiments.runs.interruption import Interrupted, Interruption


def test_the_first_signal_is_a_request_and_the_second_stops_at_once() -> None:
    requests: list[str] = []
    interruption = Interruption(lambda: requests.append("stop"))
    interruption.can_wait = True
    with interruption.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.number == signal.SIGTERM
        assert requests == ["stop"]
        with pytest.raises(Interrupted) as stop:
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.value.number == signal.SIGINT
    assert requests == ["stop"]


def test_where_nobody_can_wait_the_first_signal_stops_at_once() -> None:
    with Interruption(lambda: None).listening(), pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGINT)


def test_the_usual_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption(lambda: None).listening():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
