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

import pytest

pytest.importorskip("verl.trainer.ppo.v1", reason="verl is installed in an environment of its own")

import verl

import knapsack_rl as kr
from knapsack_rl.verl import agent_loop, relied_on, trainer
from knapsack_rl.verl.relied_on import RELIED_ON, check_relied_on, find

PAGE = Path(__file__).parents[3] / "docs" / "verl.md"
MEMBERS = [(place, name) for place, names in RELIED_ON.items() for name in names]
DIGESTS = {}
OURS = {
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer": trainer.KnapsackTrainer,
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ": agent_loop._Worker,
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopManagerTQ": agent_loop.KnapsackAgentLoopManager,
}


def member(place: str, name: str) -> object:
    """verl's own, without what the plug-in has put around it."""
    return inspect.unwrap(getattr(find(place), name))


def digest(place: str, name: str) -> str:
    return hashlib.sha256(inspect.getsource(member(place, name)).encode()).hexdigest()[:12]


@pytest.mark.parametrize(("place", "name"), MEMBERS)
def test_verl_has_not_changed_what_the_modes_override(place: str, name: str) -> None:
    assert digest(place, name) == DIGESTS[place, name], f"read the head of this file: {place}.{name} has changed"


@pytest.mark.parametrize("place", OURS)
def test_all_that_overrides_something_of_verls_is_on_the_list(place: str) -> None:
    base = find(place)
    made_by_python = {*vars(object), "__module__", "__abstractmethods__", "_abc_impl"}
    assert {name for name in vars(OURS[place]) if hasattr(base, name)} - made_by_python <= set(RELIED_ON[place])


def test_the_page_names_the_file_and_the_line_of_each() -> None:
    listed = dict(re.findall(r"^\| `([\w.]+)` \| `([\w/]+\.py:\d+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    root = Path(verl.__file__).parent
    found = {}
    for place, name in MEMBERS:
        code, owner = member(place, name), place.partition(":")[2]
        file = Path(inspect.getsourcefile(code)).relative_to(root)
        found[f"{owner}.{name}" if owner else name] = f"{file}:{inspect.getsourcelines(code)[1]}"
    assert listed == found


def test_a_verl_without_one_of_them_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_relied_on()
    place = "verl.trainer.ppo.v1.trainer_base:PPOTrainer"
    monkeypatch.setitem(relied_on.RELIED_ON, place, ("_update_actor", "_update_policy"))
    monkeypatch.setitem(relied_on.RELIED_ON, "verl.trainer.ppo.v2:Buffer", ("sample",))
    with pytest.raises(kr.InvalidInputError, match=r"PPOTrainer\._update_policy, verl\.trainer\.ppo\.v2:Buffer\.sample"):
        check_relied_on()
