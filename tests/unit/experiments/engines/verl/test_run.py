"""What `train --engine verl` runs besides verl: the process it starts, and the reward."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("math_verify")

from knapsack_rl.experiments.engines.verl import reward as verl_reward

CHILD = """
import signal, sys
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as Ray does
print("ready", flush=True)
signal.pause()
"""
PARENT = """
import os, sys
from knapsack_rl.experiments.engines.verl.run import _run
sys.exit(_run([sys.executable, "-c", sys.argv[1]], os.open(os.devnull, os.O_RDONLY)))
"""


def judged(answer: str) -> float:
    return asyncio.run(verl_reward.compute_score("sums", answer, "4", {"answer_type": "expression"}))


def test_a_signal_goes_to_verl_and_is_the_exit_code_of_the_command() -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    process.stdout.close()


@pytest.mark.parametrize(("code", "command"), [(0, "pass"), (3, "raise SystemExit(3)")])
def test_the_exit_code_is_that_of_verl(code: int, command: str) -> None:
    finished = subprocess.run([sys.executable, "-c", PARENT, command], check=False, timeout=60)
    assert finished.returncode == code


def test_the_lock_of_a_run_lives_as_long_as_verl(tmp_path: Path) -> None:
    holds = "import fcntl, os, sys; fcntl.flock(int(sys.argv[1]), fcntl.LOCK_EX)"
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    parent = PARENT.replace("os.open(os.devnull, os.O_RDONLY)", str(lock)).replace('"-c", sys.argv[1]', "*sys.argv[1:]")
    command = [sys.executable, "-c", parent, "-c", holds, str(lock)]
    assert subprocess.run(command, pass_fds=(lock,), check=False, timeout=60).returncode == 0
    os.close(lock)


def test_a_judge_that_dies_is_replaced() -> None:
    assert judged("the answer is 4") == 1.0
    for process in list(verl_reward._judges()._processes.values()):
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
    assert judged("the answer is 4") == 1.0
    assert judged("the answer is 5") == 0.0
