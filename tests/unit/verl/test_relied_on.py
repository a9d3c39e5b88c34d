"""Whether verl still has what the trainer modes override, as it was when they were written for it.

If a test here fails after verl has changed: read what changed in the member that is named, in verl's repository. Does
our override still do all that verl's own does, is it still called at the same moment, with the same arguments, and do
the lines around it still read what it changes? Change the override where they do not, run tests/integration/with_verl,
and then write the new digest here, and the new line in docs/verl.md.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl.trainer.ppo.v1", reason="verl is installed in an environment of its own")

import verl

import knapsack_rl as kr
from knapsack_rl.verl import agent_loop, relied_on, trainer
from knapsack_rl.verl.relied_on import RELIED_ON, check_relied_on, find

PAGE = Path(__file__).parents[3] / "docs" / "verl.md"
MEMBERS = [(place, name) for place, names in RELIED_ON.items() for name in names]
DIGESTS = {
    "PPOTrainer.__init__": "6f938d77859b",
    "PPOTrainer._init_dataloader": "86cf3749e087",
    "PPOTrainer._build_replay_buffer": "c6c5bd078331",
    "PPOTrainer._step_once": "efdd4abe161c",
    "PPOTrainer._balance_batch": "f9b6e887d750",
    "PPOTrainer._get_required_batch_multiple": "264be80d505c",
    "PPOTrainer._compute_advantage": "2a4a2aa4a475",
    "PPOTrainer._update_actor": "d7009bd8a69d",
    "PPOTrainer._save_checkpoint": "8c2435b577e5",
    "PPOTrainer._load_checkpoint": "bb446d77c48a",
    "ReplayBuffer.sample": "cdcecebeb7f0",
    "ReplayBuffer._wait_for_next_poll": "10088bf03da6",
    "ReplayBuffer._clear_groups": "46adae90d465",
    "ReplayBuffer._select_prompt_uids": "d54921984c03",
    "ReplayBufferAsync.sample": "d31f3d3955ec",
    "ReplayBufferAsync.wait_for_sampleable": "5590a1b06f67",
    "AgentLoopWorkerTQ.__init__": "c3d28904be4f",
    "AgentLoopWorkerTQ._run_prompt": "3d9bca6b0ea5",
    "AgentLoopWorkerTQ._run_agent_loop": "32c3d607c5d4",
    "AgentLoopWorkerTQ._agent_loop_postprocess": "523edacbff73",
    "AgentLoopWorkerTQ._compute_score": "cf4b57719ad3",
    "AgentLoopManagerTQ.__init__": "9f1e99d66170",
    "AgentLoopManagerTQ.generate_sequences": "de5ab7fe3385",
    "validate_config": "ab4096deecfe",
}
"""Beginnings of the SHA-256 of their source in verl 0.9.1."""
OURS = {
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer": trainer.KnapsackTrainer,
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ": agent_loop._Worker,
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopManagerTQ": agent_loop.KnapsackAgentLoopManager,
}


def member(place: str, name: str) -> Any:
    """verl's own, without what the plug-in has put around it."""
    return inspect.unwrap(getattr(find(place), name))


def called(place: str, name: str) -> str:
    """`Class.name`, or the name of a function."""
    owner = place.partition(":")[2]
    return f"{owner}.{name}" if owner else name


@pytest.mark.parametrize(("place", "name"), MEMBERS)
def test_verl_has_not_changed_what_the_modes_override(place: str, name: str) -> None:
    found = hashlib.sha256(inspect.getsource(member(place, name)).encode()).hexdigest()[:12]
    assert found == DIGESTS[called(place, name)], f"{place} {name} has changed; the head of this file says what to do"


@pytest.mark.parametrize("place", OURS)
def test_all_that_overrides_something_of_verls_is_on_the_list(place: str) -> None:
    base = find(place)
    overriding = {name for name, ours in vars(OURS[place]).items() if inspect.isfunction(ours) and hasattr(base, name)}
    assert overriding <= set(RELIED_ON[place])


def test_the_page_names_the_file_and_the_line_of_each() -> None:
    listed = dict(re.findall(r"^\| `([\w.]+)` \| `([\w/]+\.py:\d+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    root = Path(verl.__file__).parent
    found = {}
    for place, name in MEMBERS:
        code = member(place, name)
        file = Path(inspect.getsourcefile(code) or "").relative_to(root)
        found[called(place, name)] = f"{file}:{inspect.getsourcelines(code)[1]}"
    assert listed == found


def test_a_verl_without_one_of_them_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_relied_on()
    place = "verl.trainer.ppo.v1.trainer_base:PPOTrainer"
    monkeypatch.setitem(relied_on.RELIED_ON, place, ("_update_actor", "_update_policy"))
    monkeypatch.setitem(relied_on.RELIED_ON, "verl.trainer.ppo.v2:Buffer", ("sample",))
    with pytest.raises(
        kr.InvalidInputError, match=r"PPOTrainer\._update_policy, verl\.trainer\.ppo\.v2:Buffer\.sample"
    ):
        check_relied_on()
