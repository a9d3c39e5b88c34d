"""What the start of a command costs in processor time: medians over processes, beside what Python and numpy take alone.

    python benchmarks/startup.py [--processes 15]

`numpy` is what the core stands on, so a command cannot start faster; `torch` and `matplotlib` are what it would cost to
import them at the start, where they are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import subprocess
import sys

COMMANDS = {
    "knapsack-rl --help": ["--help"],
    "knapsack-rl audit --help": ["audit", "--help"],
    "knapsack-rl train --help": ["train", "--help"],
    "knapsack-rl simulate --help": ["simulate", "--help"],
}


def processor_time(arguments: list[str]) -> float:
    """User and system seconds of one fresh interpreter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=15)
    processes = parser.parse_args().processes
    alone = ["knapsack_rl", "numpy", *(name for name in ("matplotlib.pyplot", "torch") if available(name))]
    measured = {"python": ["-c", "pass"], **{f"import {name}": ["-c", f"import {name}"] for name in alone}}
    measured |= {label: ["-m", "knapsack_rl.cli", *words] for label, words in COMMANDS.items()}
    print(f"{'':28}  median  quartiles (ms of processor time, {processes} processes)")
    for label, arguments in measured.items():
        processor_time(arguments)  # the first one reads the files from the disk
        low, median, high = statistics.quantiles((processor_time(arguments) for _ in range(processes)), n=4)
        print(f"{label:28}  {1000 * median:6.0f}  {1000 * low:.0f} to {1000 * high:.0f}")


def available(name: str) -> bool:
    return importlib.util.find_spec(name.partition(".")[0]) is not None


if __name__ == "__main__":
    main()
