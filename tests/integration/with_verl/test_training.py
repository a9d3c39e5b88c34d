"""The real verl, with Ray, FSDP2 over gloo and a transformers engine, on a CPU; CONTRIBUTING.md has its environment."""

from __future__ import annotations

import collections
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

pytest.importorskip("verl", reason="verl is installed in an environment of its own")

import runs

import knapsack_rl as kr
from knapsack_rl.identity import prompt_id

BUDGET = 32  # 8 prompts x 4


def dumped(folder: Path) -> dict[int, dict[str, list[float]]]:
    """What verl itself says it trained on: scores by prompt by step."""
    steps = {}
    for file in (folder / "rollouts").glob("*.jsonl"):
        groups = collections.defaultdict(list)
        for line in file.read_text().splitlines():
            row = json.loads(line)
            if row["input"]:  # padding has none
                groups[row["input"].strip()].append(row["score"])
        steps[int(file.stem)] = dict(groups)
    return steps


def trained(folder: Path, *overrides: str, mode: str = "knapsack", steps: int) -> runs.Run:
    """A run that came to its end."""
    run = runs.run(folder, *overrides, mode=mode, steps=steps)
    assert run.code == 0, run.output[-5000:]
    return run


def optimizer_steps(folder: Path) -> list[int]:
    """Rows of every optimizer step so far, padding included."""
    return [int(line) for line in (folder / "optimizer-steps.jsonl").read_text().split()]


def known(state: Path, strategy: str) -> kr.BudgetAllocator:
    """An allocator outside verl, with the state that verl's run saved."""
    allocator = kr.BudgetAllocator(strategy, 4)
    allocator.load(state)
    return allocator


def content_id(text: str) -> str:
    return prompt_id([{"role": "user", "content": text}], extra={"data_source": "letters"})


EVERY = [content_id(letter + "a") for letter in "abcdefghijklmnop"]
"""The prompts of a data set of 16, whose success rates go from 0 to 1."""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["uniform", "knapsack", "pilot-spread", "adaptive"])
def test_strategies_of_one_wave_of_several_and_of_single_rollouts_make_a_step(strategy: str, tmp_path: Path) -> None:
    run = trained(tmp_path, f"+trainer.v1.knapsack.strategy={strategy}", steps=1)
    assert run.of("knapsack/rollouts/sum") == [BUDGET]
    assert optimizer_steps(tmp_path) == run.of("knapsack/trained_rows/sum")


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, three epochs, on two data-parallel ranks: stopped after four, continued by a second process."""
    folder = tmp_path_factory.mktemp("adaptive")
    settings = (
        "+trainer.v1.knapsack.strategy=adaptive",
        "+trainer.v1.knapsack.feature_fields=[level]",
        f"trainer.rollout_data_dir={folder / 'rollouts'}",
        "trainer.val_before_train=True",  # verl's default, and no visit
        "trainer.save_freq=2",
        "trainer.n_gpus_per_node=2",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
    )
    trained(folder, *settings, steps=4)
    (folder / "metrics.jsonl").rename(folder / "first.jsonl")
    trained(folder, *settings, steps=6)
    return folder


def test_every_step_trains_on_exactly_its_budget_in_groups_that_outcomes_made_uneven(adaptive: Path) -> None:
    steps = dumped(adaptive)
    assert sorted(steps) == [1, 2, 3, 4, 5, 6]
    for groups in steps.values():
        sizes = [len(scores) for scores in groups.values()]
        assert sum(sizes) == BUDGET
        assert min(sizes) >= 2
        assert len(set(sizes)) > 1


def test_metrics_say_what_verl_trained_on(adaptive: Path) -> None:
    steps = dumped(adaptive)
    lines = [*runs.logged(adaptive, "first.jsonl"), *runs.logged(adaptive)]
    lines = [line for line in lines if "training/global_step" in line["data"]]  # and not of a validation
    assert [line["step"] for line in lines] == sorted(steps)
    for line in lines:
        groups = steps[line["step"]].values()
        mixed = [0 < sum(scores) < len(scores) for scores in groups]
        assert line["data"]["knapsack/effective_prompts"] == pytest.approx(np.mean(mixed))
        assert line["data"]["knapsack/rollouts/sum"] == BUDGET
        assert line["data"]["knapsack/rollouts/max"] == max(map(len, groups))


def test_only_rollouts_with_a_gradient_are_trained_on_and_verls_metrics_are_about_all(adaptive: Path) -> None:
    steps, rows = dumped(adaptive), iter(optimizer_steps(adaptive))  # of each rank
    for line in [*runs.logged(adaptive, "first.jsonl"), *runs.logged(adaptive)]:
        if "training/global_step" not in line["data"]:
            continue
        mixed = [np.array(scores) for scores in steps[line["step"]].values() if 0 < sum(scores) < len(scores)]
        of_a_rank = max(1, -(-sum(map(len, mixed)) // 2))
        assert (next(rows), next(rows)) == (of_a_rank, of_a_rank)
        assert line["data"]["knapsack/trained_rows/sum"] == 2 * of_a_rank
        largest = [(s.max() - s.mean()) / s.std(ddof=1) * np.sqrt(4 / len(s)) for s in mixed]
        assert line["data"]["critic/advantages/max"] == pytest.approx(max(largest, default=0.0), abs=1e-4)
        assert "live/actor/ppo_kl" in line["data"]
        assert "actor/ppo_kl" not in line["data"]


def agree_with_what_was_trained_on(folder: Path) -> list[int]:
    """Compare the state of every checkpoint with an allocator that was told what verl trained on; their steps."""
    taught, compared = kr.BudgetAllocator("adaptive", 4), []
    features = {"level": [f"level {number // 4}" for number in range(16)]}
    for number, groups in sorted(dumped(folder).items()):
        ids = [content_id(text) for text in groups]
        levels = {"level": [f"level {(ord(text[0]) - 97) // 4}" for text in groups]}
        taught.tell(ids, [int(sum(scores)) for scores in groups.values()], [len(s) for s in groups.values()], levels)
        saved = folder / "checkpoints" / f"global_step_{number}" / "knapsack_allocator.npz"
        if saved.exists():
            loaded = known(saved, "adaptive")
            assert loaded.visited(EVERY).tolist() == taught.visited(EVERY).tolist()
            believed = loaded.belief(EVERY, features), taught.belief(EVERY, features)
            assert believed[0].mean == pytest.approx(believed[1].mean, abs=1e-6)
            compared.append(number)
    assert taught.visited(EVERY).all()
    return compared


def test_beliefs_are_those_of_an_allocator_that_was_told_what_verl_trained_on(adaptive: Path) -> None:
    assert agree_with_what_was_trained_on(adaptive) == [2, 4, 6]


@pytest.mark.slow
def test_sixty_steps_generate_what_an_allocator_plans_that_is_told_what_they_trained_on(tmp_path: Path) -> None:
    """Which of two prompts with equal rates gets the odd rollout depends on their order, which verl's log has not."""
    run = trained(
        tmp_path,
        "+trainer.v1.knapsack.strategy=knapsack",
        f"trainer.rollout_data_dir={tmp_path / 'rollouts'}",
        steps=60,
    )
    allocator = kr.BudgetAllocator("knapsack", 4)
    steps = dumped(tmp_path)
    assert sorted(steps) == list(range(1, 61))
    for _, groups in sorted(steps.items()):
        ids, sizes = [content_id(text) for text in groups], [len(scores) for scores in groups.values()]
        rates = allocator.success_rates(ids).tolist()
        planned = allocator.ask(ids).rollouts.tolist()
        assert sorted(zip(map(str, rates), sizes, strict=True)) == sorted(zip(map(str, rates), planned, strict=True))
        allocator.tell(ids, [int(sum(scores)) for scores in groups.values()], sizes)
    assert run.of("knapsack/rollouts/sum") == [BUDGET] * 60


def test_filtered_groups_count_for_beliefs_and_a_refill_has_its_own_budget(tmp_path: Path) -> None:
    run = trained(
        tmp_path,
        "+trainer.v1.knapsack.strategy=knapsack",
        "algorithm.filter_groups.enable=True",
        "algorithm.filter_groups.metric=reward",
        "data.gen_batch_size=1",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
        "trainer.save_freq=3",
        steps=3,
    )
    rows = optimizer_steps(tmp_path)
    assert len(rows) == 3 * 2  # two mini-batches a step, however many rollouts the eight groups have
    for rollouts, first, second in zip(run.of("knapsack/rollouts/sum"), rows[::2], rows[1::2], strict=True):
        assert first == second
        assert rollouts <= first + second <= rollouts + 3  # less than a row for each micro-batch of two
    dropped = run.of("knapsack/dropped_rollouts/sum")
    assert all(some > 0 for some in dropped)
    refills = sum(dropped) + sum(run.of("knapsack/rollouts/sum")) - 3 * BUDGET
    assert refills > 0
    assert refills % 4 == 0  # each refill is one prompt and its four rollouts
    assert run.of("knapsack/effective_prompts") == [1.0] * 3
    allocator = known(tmp_path / "checkpoints" / "global_step_3" / "knapsack_allocator.npz", "knapsack")
    never, always = content_id("aa"), content_id("pa")  # such groups have one outcome, so that every one was filtered
    assert allocator.visited([never, always]).all()
    assert allocator.belief([never, always]).mean.tolist() == pytest.approx([0.0, 1.0], abs=0.2)


def test_a_session_of_several_turns_or_outputs_counts_once_and_one_that_failed_does_not(tmp_path: Path) -> None:
    run = trained(
        tmp_path,
        "+trainer.v1.knapsack.strategy=knapsack",
        "algorithm.adv_estimator=rloo",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={runs.HERE / 'agent_loops.yaml'}",
        "actor_rollout_ref.rollout.agent.default_agent_loop=two_answers",
        f"trainer.rollout_data_dir={tmp_path / 'rollouts'}",
        "trainer.save_freq=3",
        steps=3,
    )
    taught = kr.BudgetAllocator("knapsack", 4)
    failed, trained_on = run.of("knapsack/failed_rollouts/sum"), []
    for number, groups in sorted(dumped(tmp_path).items()):
        sessions = {prompt: scores for prompt, scores in groups.items() if "\n" not in prompt}
        assert sum(map(len, sessions.values())) == BUDGET - failed[number - 1]
        trained_on.append(len(sessions))
        assert len(sessions) < len(groups)  # second outputs are rows of their own, whose prompt is a conversation
        ids, counts = [content_id(prompt) for prompt in sessions], [len(scores) for scores in sessions.values()]
        taught.tell(ids, [int(sum(scores)) for scores in sessions.values()], counts)
    lost = run.of("knapsack/dropped_rollouts/sum")
    assert [sum(both) for both in zip(run.of("knapsack/rollouts/sum"), lost, strict=True)] == [BUDGET] * 3
    assert sorted(trained_on[:2]) == [7, 8]  # of the group that failed whole verl has no row
    assert lost == ([4, 0, 0] if trained_on[0] == 7 else [0, 4, 0])
    assert failed == ([4, 8, 0] if trained_on[0] == 7 else [0, 7 + 4, 0])
    saved = known(tmp_path / "checkpoints" / "global_step_3" / "knapsack_allocator.npz", "knapsack")
    assert saved.visited(EVERY).tolist() == taught.visited(EVERY).tolist()
    assert saved.success_rates(EVERY) == pytest.approx(taught.success_rates(EVERY), nan_ok=True)


ASYNCHRONOUS = {
    "knapsack_colocate_async": (),
    "knapsack_separate_async": (
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
        "trainer.v1.separate_async.parameter_sync_step=2",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=cpu",
    ),
}
MODES = pytest.mark.parametrize("mode", ASYNCHRONOUS)


def results(groups: dict[str, list[float]]) -> np.ndarray:
    """Successes and failures of each of the data set's prompts, shape (2, 16)."""
    scores = [groups.get(letter + "a", []) for letter in "abcdefghijklmnop"]
    return np.array([[scores.count(1.0), scores.count(0.0)] for scores in scores]).T


def told(folder: Path, step: int) -> np.ndarray:
    """The same, of all that `hora` was told by a checkpoint: its belief is their sum on one success and one failure."""
    belief = known(folder / "checkpoints" / f"global_step_{step}" / "knapsack_allocator.npz", "hora").belief(EVERY)
    return np.round([belief.wins - 1.0, belief.losses - 1.0])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["knapsack", *ASYNCHRONOUS])
def test_groups_are_trained_on_without_the_rollouts_that_failed(mode: str, tmp_path: Path) -> None:
    """Of 0, 1, 8 or 30 % of the rollouts, by the step."""
    runs.make_data(tmp_path / "train.parquet", prompts=128)  # none of which comes twice
    run = trained(
        tmp_path,
        "+trainer.v1.knapsack.strategy=adaptive",
        "+trainer.v1.knapsack.min_returned=3",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={runs.HERE / 'agent_loops.yaml'}",
        "actor_rollout_ref.rollout.agent.default_agent_loop=unreliable",
        f"trainer.rollout_data_dir={tmp_path / 'rollouts'}",
        *ASYNCHRONOUS.get(mode, ()),
        mode=mode,
        steps=8,
    )
    failed, prompts = collections.defaultdict(list), {}
    for line in (tmp_path / "sessions.jsonl").read_text().splitlines():
        uid, prompt, fails = json.loads(line)
        failed[uid].append(fails)
        prompts[uid] = prompt
    left = {uid: sessions.count(False) for uid, sessions in failed.items()}
    lost = {uid for uid, size in left.items() if size < min(3, len(failed[uid]))}
    expected = collections.Counter((prompts[uid], size) for uid, size in left.items() if uid not in lost)
    found = [(prompt, len(scores)) for groups in dumped(tmp_path).values() for prompt, scores in groups.items()]
    failures = sum(sum(sessions) for sessions in failed.values())
    dropped, evicted = sum(run.of("knapsack/dropped_rollouts/sum")), run.of("training/rollout_failure/evicted_samples")
    if mode == "knapsack":
        assert collections.Counter(found) == expected
        assert sum(run.of("knapsack/failed_rollouts/sum")) == failures
        assert dropped == sum(len(failed[uid]) for uid in lost)
    else:  # some groups are still being generated when the last step ends
        assert len(found) == 8 * 8
        assert not collections.Counter(found) - expected
        assert 0 < sum(evicted) <= len(lost)
    assert 0 < sum(run.of("knapsack/failed_rollouts/sum")) <= failures
    assert any(any(sessions) for uid, sessions in failed.items() if uid not in lost)
    largest = run.of("critic/advantages/max")
    for (_, groups), advantage in zip(sorted(dumped(tmp_path).items()), largest, strict=True):
        scores = [np.array(scores) for scores in groups.values() if 0 < sum(scores) < len(scores)]
        by_verl = [(s.max() - s.mean()) / s.std(ddof=1) * np.sqrt(4 / len(s)) for s in scores]
        assert advantage == pytest.approx(max(by_verl, default=0.0), abs=1e-4)


@pytest.mark.slow
@MODES
def test_asynchronous_modes_train_and_go_on_from_their_checkpoint(mode: str, tmp_path: Path) -> None:
    settings = ("+trainer.v1.knapsack.strategy=adaptive", "trainer.save_freq=2", *ASYNCHRONOUS[mode])
    trained(tmp_path, *settings, mode=mode, steps=4)
    again = trained(tmp_path, *settings, mode=mode, steps=6)
    assert [line["step"] for line in again.metrics] == [5, 6]
    assert again.of("knapsack/never_visited")[-1] == 0.0
    assert len(optimizer_steps(tmp_path)) == 6 * (2 if "separate" in mode else 1)


@pytest.mark.slow
@MODES
def test_asynchronous_modes_tell_beliefs_of_every_rollout_once_across_a_restart(mode: str, tmp_path: Path) -> None:
    """What is told by a checkpoint and not trained on is what verl trains on next, restarted or not."""
    settings = (
        "+trainer.v1.knapsack.strategy=hora",
        f"trainer.rollout_data_dir={tmp_path / 'rollouts'}",
        "trainer.save_freq=2",
        *ASYNCHRONOUS[mode],
    )
    trained(tmp_path, *settings, mode=mode, steps=4)
    trained(tmp_path, *settings, mode=mode, steps=8)
    steps = {number: results(groups) for number, groups in dumped(tmp_path).items()}
    for saved in (2, 4, 6):
        ahead = told(tmp_path, saved) - sum(steps[number] for number in range(1, saved + 1))
        assert (ahead >= 0).all()  # all that was trained on was told
        assert (ahead <= steps[saved + 1] + steps[saved + 2]).all()  # and nothing twice


@pytest.mark.slow
def test_groups_that_are_too_old_for_an_update_count_for_beliefs(tmp_path: Path) -> None:
    run = trained(
        tmp_path,
        "+trainer.v1.knapsack.strategy=hora",
        "trainer.v1.sampler.max_off_policy_threshold=1",  # of what is generated during an update verl takes nothing
        f"trainer.rollout_data_dir={tmp_path / 'rollouts'}",
        "trainer.save_freq=4",
        *ASYNCHRONOUS["knapsack_separate_async"],
        mode="knapsack_separate_async",
        steps=4,
    )
    dropped = run.of("knapsack/dropped_rollouts/sum")
    assert sum(dropped) > 0
    beyond = told(tmp_path, 4) - sum(results(groups) for groups in dumped(tmp_path).values())
    assert beyond.min() >= 0
    assert beyond.sum() >= sum(dropped)


@pytest.mark.slow
def test_a_group_that_failed_whole_is_replaced_where_verl_is_told_to(tmp_path: Path) -> None:
    run = trained(
        tmp_path,
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={runs.HERE / 'agent_loops.yaml'}",
        "actor_rollout_ref.rollout.agent.default_agent_loop=two_answers",
        "data.gen_batch_size=1",
        "trainer.v1.sampler.sync_refill_failed_groups=True",
        steps=2,
    )
    assert run.of("knapsack/rollouts/sum") == [BUDGET] * 2
    assert sum(run.of("knapsack/dropped_rollouts/sum")) == 4


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[str]:
    """The address of a cluster of Ray with two nodes of one logical GPU each, on this machine."""
    process = subprocess.Popen(
        [sys.executable, str(runs.HERE / "cluster.py"), "1"],
        env=runs.environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stdout.readline().strip()
        process.communicate(timeout=60)
    finally:
        process.kill()


@pytest.mark.slow
def test_two_nodes_train_on_one_budget_and_go_on_from_their_checkpoint(two_nodes: str, tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    settings = (
        "+trainer.v1.knapsack.strategy=adaptive",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={runs.HERE / 'agent_loops.yaml'}",
        "actor_rollout_ref.rollout.agent.default_agent_loop=on_record",
        f"trainer.rollout_data_dir={tmp_path / 'rollouts'}",
        "trainer.nnodes=2",
        "trainer.save_freq=2",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
        f"ray_kwargs.ray_init.address={two_nodes}",
        "ray_kwargs.ray_init.num_gpus=null",
        "ray_kwargs.ray_init.num_cpus=null",
    )
    trained(tmp_path, *settings, steps=2)
    run = trained(tmp_path, *settings, steps=4)
    assert len(list((tmp_path / "nodes").iterdir())) == 2  # agent loops ran on both
    assert [sum(map(len, groups.values())) for _, groups in sorted(dumped(tmp_path).items())] == [BUDGET] * 4
    assert run.of("knapsack/never_visited") == [0.0, 0.0]


@pytest.mark.slow
def test_adapters_of_low_rank_train_on_the_same_budget(tmp_path: Path) -> None:
    run = trained(
        tmp_path,
        "+trainer.v1.knapsack.strategy=adaptive",
        "algorithm.adv_estimator=reinforce_plus_plus",
        "actor_rollout_ref.model.lora_rank=4",
        "actor_rollout_ref.model.lora_alpha=8",
        "actor_rollout_ref.model.lora.merge=True",  # the engine of the tests takes whole weights
        f"trainer.rollout_data_dir={tmp_path / 'rollouts'}",
        steps=2,
    )
    assert run.of("knapsack/rollouts/sum") == [BUDGET] * 2
    assert [sum(map(len, groups.values())) for _, groups in sorted(dumped(tmp_path).items())] == [BUDGET] * 2


@pytest.mark.slow
def test_two_ranks_that_share_each_sequence_train_on_the_same_budget(tmp_path: Path) -> None:
    run = trained(
        tmp_path,
        "+trainer.v1.knapsack.strategy=adaptive",
        "trainer.n_gpus_per_node=2",
        "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2",
        "actor_rollout_ref.model.use_remove_padding=True",
        "actor_rollout_ref.model.override_config.attn_implementation=packed",
        "actor_rollout_ref.rollout.calculate_log_probs=True",
        f"trainer.rollout_data_dir={tmp_path / 'rollouts'}",
        steps=2,
    )
    assert run.of("knapsack/rollouts/sum") == [BUDGET] * 2
    assert [sum(map(len, groups.values())) for _, groups in sorted(dumped(tmp_path).items())] == [BUDGET] * 2
    assert optimizer_steps(tmp_path) == [rows for rows in run.of("knapsack/trained_rows/sum") for _ in range(2)]
    assert min(run.of("training/rollout_actor_probs_pearson_corr")) > 0.999  # the actor reads what the engine wrote


def killed(folder: Path, actor: str, *overrides: str, steps: int) -> int:
    """The exit code of a run of which an actor was killed after two steps."""
    command, variables = runs.prepared(folder, *overrides, mode="knapsack", steps=steps)
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command, env=variables, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        try:
            while len(runs.logged(folder)) < 2:
                assert process.poll() is None, (folder / "output").read_text()[-5000:]
                time.sleep(0.5)
            ours = psutil.Process(process.pid).children(True)
            next(child for child in ours if child.name().startswith(f"ray::{actor}"[:15])).kill()
            return process.wait(runs.SECONDS)
        finally:
            process.kill()


DISTURBED = ("+trainer.v1.knapsack.strategy=adaptive", "+trainer.v1.knapsack.feature_fields=[level]")


@pytest.mark.slow
def test_a_worker_that_dies_stops_the_run_and_its_checkpoint_goes_on(tmp_path: Path) -> None:
    settings = (*DISTURBED, f"trainer.rollout_data_dir={tmp_path / 'rollouts'}", "trainer.save_freq=1")
    assert killed(tmp_path, "_Worker", *settings, steps=200) != 0
    assert "ActorDiedError" in (tmp_path / "output").read_text()
    saved = int((tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").read_text())
    again = trained(tmp_path, *settings, steps=saved + 2)
    assert again.of("knapsack/rollouts/sum") == [BUDGET] * 2
    # Nothing is lost, and what the dead worker left of a step is not counted twice.
    assert agree_with_what_was_trained_on(tmp_path) == list(range(1, saved + 3))


@pytest.mark.slow
def test_a_budget_keeper_that_dies_is_started_again_and_the_run_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    settings = (*DISTURBED, f"trainer.rollout_data_dir={tmp_path / 'rollouts'}", "trainer.save_freq=1")
    assert killed(tmp_path, "BudgetKeeper", *settings, steps=8) == 0, (tmp_path / "output").read_text()[-5000:]
    assert [sum(map(len, groups.values())) for _, groups in sorted(dumped(tmp_path).items())] == [BUDGET] * 8
    assert agree_with_what_was_trained_on(tmp_path) == list(range(1, 9))


@pytest.mark.slow
def test_an_entry_that_no_reward_has_stops_the_run_and_is_named(tmp_path: Path) -> None:
    run = runs.run(tmp_path, "+trainer.v1.knapsack.success_field=solved")
    assert run.code != 0
    assert "trainer.v1.knapsack.success_field: expected an entry of reward_extra_info" in run.output
    assert not run.metrics


@pytest.mark.slow
def test_what_only_data_or_a_checkpoint_tell_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    run = runs.run(tmp_path, "+trainer.v1.knapsack.id_field=name")
    assert run.code != 0
    assert "knapsack-rl: knapsack with groups of 4 on average, KnapsackOptions(strategy='uniform'" in run.output
    assert "trainer.v1.knapsack.id_field: expected a column of the data set" in run.output
    assert "model engine initialized" not in run.output

    state = tmp_path / "checkpoints" / "global_step_2" / "knapsack_allocator.npz"
    state.parent.mkdir(parents=True)
    kr.BudgetAllocator("adaptive", 4).save(state)
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("2")
    run = runs.run(tmp_path)
    assert run.code != 0
    assert "expected the state of strategy 'uniform', got the state of 'adaptive'" in run.output
    assert "model engine initialized" not in run.output
