"""benchmarks/gpu/trl.sh, in the form that needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra 'trl'")
SCRIPT = Path(__file__).parents[3] / "benchmarks/gpu/trl.sh"


def test_a_dry_run_checks_the_update_and_writes_what_it_documents(tmp_path: Path) -> None:
    output = tmp_path / "gpu-trl.json"
    done = subprocess.run(
        ["bash", SCRIPT, "--dry", "--output", output],
        env=os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text(encoding="utf-8"))
    assert set(found) == {"environment", "seconds", "checks", "skip_idle", "waves", "left_out"}
    assert found["environment"]["device"] == "cpu"
    assert found["environment"]["dry"] is True
    assert found["left_out"] == []
    assert found["checks"]["advantages"]["largest_error"] < 1e-6  # float32 against float64
    errors = {update["precision"]: update for update in found["checks"]["updates"]}
    assert set(errors) == {"float32", "bfloat16"}
    assert errors["float32"]["ours"] < 1e-5
    assert all(update["passed"] for update in errors.values())

    case = {"model", "parameters", "tokens", "rollouts", "accumulation", "pairs", "quotient"}
    (skipped,), (placed,) = found["skip_idle"], found["waves"]
    sides = {"plain_ms", "plain_mib", "ours_ms", "ours_mib"}
    assert set(skipped) == case | sides | {"wanted", "live", "training", "training_quotient"}
    assert set(placed) == case | {"one_shot_ms", "one_shot_mib", "waves_ms", "waves_mib", "waves"}
    assert skipped["live"] == 0.5  # of 4 groups, 2
    assert placed["waves"] == 3
    for spread in (skipped["quotient"], skipped["training_quotient"], skipped["plain_ms"], placed["waves_ms"]):
        assert 0.0 < spread["low"] <= spread["median"] <= spread["high"]
