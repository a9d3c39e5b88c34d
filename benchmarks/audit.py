"""Time and memory of `knapsack-rl audit` on ten million rollouts, as JSONL, CSV and parquet.

python benchmarks/audit.py [--rows 10000000] [--formats jsonl csv parquet] [--folder DIR]

The log is of 20,000 prompts, 256 of them a step with eight rollouts each, and has a step, a prompt of about 75
characters, a short completion, a reward and a length. Each audit runs in a process of its own, whose peak memory is
what the operating system says; numerical libraries are held to one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

PROMPTS, PER_STEP, SIZE = 20_000, 256, 8
STEPS_AT_ONCE = 32
_CHILD = """
import resource, sys
from knapsack_rl.cli import main
code = main(sys.argv[1:])
sys.stderr.write(f"PEAK {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}")
sys.exit(code)
"""


def chunks(rows: int, seed: int = 0) -> Iterator[pa.Table]:
    """The log, a few steps at a time."""
    rng = np.random.default_rng(seed)
    texts = np.array(
        [f"What is {p:,} plus {p * 7 % 1000} times {p % 13}? Think first, then give a number." for p in range(PROMPTS)]
    )
    logit = rng.normal(-1.0, 2.5, PROMPTS)
    steps = rows // (PER_STEP * SIZE)
    for first in range(0, steps, STEPS_AT_ONCE):
        count = min(STEPS_AT_ONCE, steps - first)
        prompt = np.concatenate([rng.choice(PROMPTS, PER_STEP, replace=False) for _ in range(count)])
        logit[prompt] += 0.01
        prompt = prompt.repeat(SIZE)
        right = rng.random(len(prompt)) < 1.0 / (1.0 + np.exp(-logit[prompt]))
        answer = np.where(right, prompt, rng.integers(0, 50, len(prompt)))
        yield pa.table(
            {
                "step": np.arange(first, first + count).repeat(PER_STEP * SIZE),
                "prompt": texts[prompt],
                "completion": np.char.add(np.char.add("so it is \\boxed{", answer.astype(str)), "}"),
                "reward": right.astype(np.float64),
                "length": rng.integers(20, 900, len(prompt)),
            }
        )


def write(path: Path, rows: int) -> None:
    if path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            for table in chunks(rows):
                file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())
        return
    parts = chunks(rows)
    first = next(parts)
    kind = pa.csv.CSVWriter if path.suffix == ".csv" else pa.parquet.ParquetWriter
    with kind(path, first.schema) as writer:
        writer.write_table(first)
        for table in parts:
            writer.write_table(table)


def measure(path: Path, folder: Path) -> tuple[float, float, float]:
    """Seconds of wall clock and of processor, and MB of memory at the peak, of one audit."""
    program = [sys.executable, "-c", _CHILD, "audit", str(path), "--output", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = int(done.stderr.rpartition("PEAK ")[2])
    return wall, processor, peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument(
        "--formats", nargs="+", default=["jsonl", "csv", "parquet"], choices=["jsonl", "csv", "parquet"]
    )
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the logs are written (default: a temporary one)"
    )
    parsed = parser.parse_args()
    rows = parsed.rows // (PER_STEP * SIZE) * PER_STEP * SIZE
    sys.stdout.write(f"{rows:,} rows\nformat   bytes/row   wall s   processor s   peak MB\n")
    with tempfile.TemporaryDirectory(dir=parsed.folder) as temporary:
        for name in parsed.formats:
            path = Path(temporary) / f"log.{name}"
            write(path, rows)
            wall, processor, peak = measure(path, Path(temporary) / "page")
            size = path.stat().st_size / rows
            path.unlink()
            sys.stdout.write(f"{name:8} {size:9.0f} {wall:8.1f} {processor:13.1f} {peak:9.0f}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
