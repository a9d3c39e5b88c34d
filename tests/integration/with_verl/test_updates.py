"""Updates that leave rows out move weights as verl's own update does: with its worker, its engine and its losses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("verl", reason="verl is installed in an environment of its own")

import runs

from knapsack_rl.verl import idle

Moved = dict[str, np.ndarray]
LOSSES = [*(f"vanilla/{mode}" for mode in idle.DIVISORS), "sapo/token-mean", "gspo/seq-mean-token-mean"]


def moved(folder: Path, ranks: int, *arms: str) -> Moved:
    """What `updates.py` finds, on so many ranks."""
    variables = runs.environment(folder) | {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(ranks)}
    variables["MASTER_PORT"] = str(runs.free_port())
    command = [
        sys.executable,
        str(runs.HERE / "updates.py"),
        str(folder / "model"),
        str(folder / f"{ranks}.npz"),
        *arms,
    ]
    logs = [folder / f"{ranks}-{rank}.log" for rank in range(ranks)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as output:
            mine = variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(command, env=mine, stdout=output, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=runs.SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for log, code in zip(logs, codes, strict=True):
        assert code == 0, log.read_text()[-5000:]
    return dict(np.load(folder / f"{ranks}.npz"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("updates")
    runs.make_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def on_one_rank(folder: Path) -> Moved:
    return moved(folder, 1, "verl", "all", "live")


@pytest.fixture(scope="module")
def on_two_ranks(folder: Path) -> Moved:
    return moved(folder, 2, "live")


def differences(found: Moved, reference: Moved, loss: str) -> dict[str, float]:
    """Of the updates by one loss from verl's own: the norm of the difference over that of the update."""
    verl = reference[f"{loss}/verl"]
    assert np.linalg.norm(verl) > 1e-3
    return {
        name: float(np.linalg.norm(found[name] - verl) / np.linalg.norm(verl))
        for name in found
        if name.startswith(f"{loss}/") and not name.endswith("/verl")
    }


@pytest.mark.parametrize("loss", LOSSES)
def test_an_update_without_idle_rows_is_verls_own(loss: str, on_one_rank: Moved) -> None:
    """7 real rows a mini-batch, padded and cut as the trainer modes do it, where verl's own has them as they are."""
    found = differences(on_one_rank, on_one_rank, loss)
    assert sorted(found) == [f"{loss}/{arm}/{micro}" for arm in ("all", "live") for micro in (2, None)]
    assert max(found.values()) < 1e-6, found


@pytest.mark.parametrize("mode", idle.DIVISORS)
def test_padding_does_not_dilute_the_terms_that_act_on_every_row(mode: str, on_one_rank: Moved) -> None:
    """The KL and the entropy: no advantage can be scaled for them. Rounding is larger where the steps are."""
    found = differences(on_one_rank, on_one_rank, f"with terms/{mode}")
    assert len(found) == 2
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("loss", LOSSES)
def test_ranks_that_share_it_make_the_same_update(loss: str, on_one_rank: Moved, on_two_ranks: Moved) -> None:
    found = differences(on_two_ranks, on_one_rank, loss)
    assert len(found) == 2
    assert max(found.values()) < 1e-6, found
