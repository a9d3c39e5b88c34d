"""verl's trainers with a group size per prompt, decided step by step by the budget keeper."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
import uuid
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import ray
import torch
import transfer_queue as tq
import verl
from omegaconf import open_dict
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync, PPOTrainerSync
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from knapsack_rl import advantages
from knapsack_rl.allocator import STATE_FILE, BudgetAllocator
from knapsack_rl.errors import StateError
from knapsack_rl.verl import idle
from knapsack_rl.verl.checks import MANAGER, MODES, check, check_verl_version
from knapsack_rl.verl.data import check_first_prompt
from knapsack_rl.verl.keeper import BudgetKeeper
from knapsack_rl.verl.options import read_options
from knapsack_rl.verl.relied_on import check_relied_on

JOURNAL = "knapsack_keeper"
"""The folder of the keeper's journal, beside the checkpoints."""
KEEPER_MEMORY = 1 << 30
"""Bytes that Ray sets aside for the keeper: more than what a million known prompts take (docs/scale.md)."""
MAX_RESTARTS = 20
"""Of the keeper, after which the run ends: a node without memory would kill it again and again."""
START_SECONDS = 120
"""After which a keeper that does not answer is one that cannot start."""
PER_TOKEN = ("advantages", "returns", "token_level_rewards", "rollout_is_weights")
"""What `PPOTrainer._compute_advantage` may store of each token; a row of padding has a single one."""

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))  # as verl's own modules do


class KnapsackTrainer(PPOTrainer):
    """What the trainers share: settings from `trainer.v1.knapsack` (`options.KnapsackOptions`), and one keeper.

    Raises:
        InvalidInputError, InfeasibleBudgetError: verl's version or an option cannot work with variable group sizes.
        StateError: the checkpoint that the run would go on from has beliefs of another strategy.
    """

    _knapsack_mode: ClassVar[str]
    """The name of the mode, a key of `checks.MODES`."""

    def __init__(self, config: Any) -> None:
        check(config)  # in the driver's main process too, but that is verl's command only
        if newer := check_verl_version(verl.__version__):
            logger.warning("%s", newer)
        check_relied_on()
        options, size = read_options(config), int(config.actor_rollout_ref.rollout.n)
        estimator = str(config.algorithm.adv_estimator)
        allocator = options.allocator(size, estimator)
        check_resumed(allocator, config)
        if even := allocator.explain_even(int(config.data.train_batch_size), "Raise data.train_batch_size."):
            logger.warning("trainer.v1.knapsack: no plan can be uneven. %s", even)
        reason = idle.obstacle(config) if options.skip_idle else None
        if reason is not None:
            logger.warning("trainer.v1.knapsack.skip_idle is off, and every rollout is trained on: %s.", reason)
        by_deviation = bool(config.algorithm.get("norm_adv_by_std_in_grpo", True))
        self.advantage_clip = options.bound(estimator, by_deviation)
        self._clip_watch = advantages.ClipWatch(self.advantage_clip)
        self._skip_idle = options.skip_idle and reason is None
        self.rollout_weights = options.rollout_weights or allocator.rollout_weights
        self.knapsack = dataclasses.replace(
            options,
            advantage_clip=self.advantage_clip,
            rollout_weights=self.rollout_weights,
            skip_idle=self._skip_idle,
        )
        logger.info("knapsack-rl: %s with groups of %d on average, %s", self._knapsack_mode, size, self.knapsack)
        name = f"knapsack-keeper-{uuid.uuid4().hex}"
        self._keeper = self._started_keeper(name, size, estimator, folder_of(config) / JOURNAL)
        self._updates = 0  # whose groups were counted
        with open_dict(config):
            config.trainer.v1.trainer_mode = MODES[self._knapsack_mode]  # verl compares it with its own names
            config.trainer.v1.knapsack = self.knapsack.written()  # of which verl's trackers get a copy
            config.trainer.v1.knapsack_keeper = name
            config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = MANAGER
        super().__init__(config)

    def _started_keeper(self, name: str, size: int, estimator: str, folder: Path) -> Any:
        """The keeper, which runs before a model is loaded.

        Raises:
            StateError: it does not.
        """
        keeper = (
            ray.remote(BudgetKeeper)
            .options(
                name=name,
                num_cpus=0,
                memory=KEEPER_MEMORY,
                max_restarts=MAX_RESTARTS,
                max_task_retries=-1,
                max_concurrency=100_000,  # every worker waits in a call
                scheduling_strategy=NodeAffinitySchedulingStrategy(  # beside the driver, whose disk has the checkpoints
                    ray.get_runtime_context().get_node_id(), soft=False
                ),
            )
            .remote(
                self.knapsack,
                size,
                estimator,
                early=MODES[self._knapsack_mode] != "sync",
                folder=str(folder),
                run=name,
            )
        )
        try:
            ray.get(keeper.alive.remote(), timeout=START_SECONDS)
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError) as error:
            raise StateError(
                f"trainer.v1.knapsack: the budget keeper does not run after {START_SECONDS} s. It needs "
                f"{KEEPER_MEMORY >> 20} MiB of Ray's resource `memory` on the driver's node (ray start --memory), and "
                f"{folder} must be a place where it can write. {error}"
            ) from error
        return keeper

    def _init_dataloader(self) -> None:
        super()._init_dataloader()  # nothing has been started yet
        check_first_prompt(self.config, self.knapsack, self.train_dataset[0])

    # Watch and account

    def _build_replay_buffer(self) -> Any:
        buffer = super()._build_replay_buffer()
        wait, clear, sample = buffer._wait_for_next_poll, buffer._clear_groups, buffer.sample
        select = buffer._select_prompt_uids
        self._sampled: list[str] = []  # groups of the next update

        def checked_sample(*args: Any, **named: Any) -> Any:
            try:
                return sample(*args, **named)
            finally:  # what a worker says is closer to the cause than what verl makes of the groups that it left
                self.agent_loop_manager.check_alive()

        def wait_for_next_poll(*args: Any) -> Any:
            self.agent_loop_manager.check_alive()
            return wait(*args)

        def clear_groups(partition_id: str, uids: set[str]) -> None:
            self._keeper.drop.remote(list(uids))
            clear(partition_id, uids)

        def select_prompt_uids(partition_id: str, *args: Any) -> Any:
            selected = select(partition_id, *args)
            if partition_id == "train":
                lost = buffer.failure_keys["train"].intersection(selected[0])  # without a row: `sync` goes on without
                if lost:
                    self._keeper.drop.remote(list(lost))
                self._sampled += [uid for uid in selected[0] if uid not in lost]
            return selected

        buffer._wait_for_next_poll, buffer._clear_groups = wait_for_next_poll, clear_groups
        buffer.sample, buffer._select_prompt_uids = checked_sample, select_prompt_uids
        return buffer

    # Update

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict[str, Any], **named: Any) -> KVBatchMeta:
        self._rows = len(batch)
        return super()._balance_batch(batch, metrics, **named)

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        """What the rows of an update are padded to, of which verl asks a multiple; see `idle.padded`.

        A synchronous step needs no padding where verl's own modes need none. Where groups of several steps meet (DAPO
        filtering, the asynchronous modes) the update has the usual number of mini-batches all the same.
        """
        rollout, ref = self.config.actor_rollout_ref.rollout, self.config.actor_rollout_ref.ref
        log_prob = 1 if rollout.log_prob_use_dynamic_bsz else rollout.log_prob_micro_batch_size_per_gpu
        ref_free = ref.log_prob_use_dynamic_bsz or not self.use_reference_policy
        layout = self._layout(dp_size)
        passes = math.lcm(log_prob or 1, 1 if ref_free else ref.log_prob_micro_batch_size_per_gpu or 1) * layout.stages
        return idle.padded(self._rows, layout, passes)

    def _layout(self, ranks: int) -> idle.Layout:
        actor = self.config.actor_rollout_ref.actor
        prompts = self.config.data.train_batch_size // self.parameter_sync_step
        batches = math.ceil(prompts / int(actor.ppo_mini_batch_size))
        micro = None if actor.use_dynamic_bsz else actor.ppo_micro_batch_size_per_gpu
        return idle.Layout(ranks, batches, micro, idle.stages(actor))

    def _update_actor(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """verl's, of the rows that change it; verl counts mini-batches in prompts, and takes all its rows for real."""
        began = time.perf_counter()
        fields = ["advantages", "response_mask", "loss_mask"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        advantages, masks, counted = (data[name].unbind() for name in fields)
        rows = idle.Rows(
            live=np.array([bool((row * mask).any()) for row, mask in zip(advantages, masks, strict=True)]),
            padding=np.array([bool(tag.get("is_padding")) for tag in batch.tags]),
            lengths=np.array([tag["seq_len"] for tag in batch.tags]),
            tokens=np.array([int(mask.sum()) for mask in counted]),
        )
        layout = self._layout(max(self.actor_rollout_wg._dispatch_info["actor"]) + 1)
        deal = idle.deal(rows, layout, idle.divisor(self.config), self._skip_idle)
        scaled = [
            (int(row), float(scale))
            for row, scale in zip(deal.rows, deal.scales, strict=True)
            if scale != 1.0 and rows.live[row]
        ]
        put = [row for row, _ in scaled]
        self._put_advantages(batch, put, [advantages[row] * scale for row, scale in scaled])
        part = batch.select_keys([batch.keys[row] for row in deal.rows])
        if layout.micro is not None:
            part.extra_info["micro_batch_size_per_gpu"] = deal.micro
        ours = time.perf_counter() - began
        found: dict[str, Any] = {}
        actor, rollout = self.config.actor_rollout_ref.actor, self.config.actor_rollout_ref.rollout
        configured, workers = (actor.ppo_mini_batch_size, rollout.n), self.actor_rollout_wg
        update = workers.update_actor

        def update_by_real_rows(rows: KVBatchMeta) -> Any:
            rows.extra_info["global_batch_size"] = deal.real
            return update(rows)

        try:
            actor.ppo_mini_batch_size, rollout.n, workers.update_actor = deal.batch, 1, update_by_real_rows
            super()._update_actor(part, found)
        finally:
            (actor.ppo_mini_batch_size, rollout.n), workers.update_actor = configured, update
        began = time.perf_counter()
        self._put_advantages(batch, put, [advantages[row] for row in put])  # verl's metrics are about these
        if self._skip_idle:
            found = {f"live/{name}" if name in idle.OVER_ROWS else name: value for name, value in found.items()}
        metrics.update(found)
        metrics["knapsack/trained_rows/sum"] = len(deal.rows)
        metrics["knapsack/driver_seconds/sum"] += ours + time.perf_counter() - began
        return batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Verl's of the real rows, then clipped (paper, appendix C) and weighed."""
        batch = self._advantages_of_real_rows(batch, metrics)
        began = time.perf_counter()
        clipped = self._bound_advantages(batch)
        sampled, self._sampled = self._sampled, []
        self._updates += 1
        found = ray.get(self._keeper.visits.remote(sampled, self._updates))
        before, after = self.agent_loop_manager.imbalance
        found |= {"dispatch_imbalance/by_prompts": before, "dispatch_imbalance/by_rollouts": after}
        if self.advantage_clip is not None:
            found["advantage_clipped"] = clipped
        planning, self.agent_loop_manager.planning_seconds = self.agent_loop_manager.planning_seconds, 0.0
        found["driver_seconds/sum"] = time.perf_counter() - began + planning
        metrics.update({f"knapsack/{name}": number for name, number in found.items()})
        return batch

    def _advantages_of_real_rows(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """verl's, which takes all rows that it gets for real ones in its metrics; padding gets zeros."""
        padding = {key for key, tag in zip(batch.keys, batch.tags, strict=True) if tag.get("is_padding")}
        if not padding:
            return super()._compute_advantage(batch, metrics)
        real = super()._compute_advantage(batch.select_keys([k for k in batch.keys if k not in padding]), metrics)
        token = torch.nested.as_nested_tensor([torch.zeros(1)] * len(padding), layout=torch.jagged)
        fields = {name: token.clone() for name in PER_TOKEN if name in real.fields}
        tq.kv_batch_put(
            keys=[*padding], partition_id=batch.partition_id, fields=TensorDict(fields, batch_size=len(padding))
        )
        return dataclasses.replace(batch, fields=real.fields, extra_info=real.extra_info)

    def _bound_advantages(self, batch: KVBatchMeta) -> float:
        """Clip and weigh them where they are stored, and return the share of real rows that the bound changes.

        A row that stays as it is is not written.
        """
        weights = weights_of(batch.keys, self.config.actor_rollout_ref.rollout.n, self.rollout_weights)
        clip = self.advantage_clip
        bound = math.inf if clip is None else clip
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["advantages"])
        before = data["advantages"].unbind()
        after = [row.clamp(-bound, bound) * weight for row, weight in zip(before, weights, strict=True)]
        changed = [number for number, row in enumerate(after) if not torch.equal(row, before[number])]
        self._put_advantages(batch, changed, [after[number] for number in changed])
        real = [row for row, tag in zip(before, batch.tags, strict=True) if not tag.get("is_padding")]
        largest = np.array([float(row.abs().max()) if row.numel() else 0.0 for row in real])
        share, sentence = self._clip_watch.observe(largest)
        if sentence is not None:
            logger.warning("trainer.v1.knapsack: %s", sentence)
        return share

    def _put_advantages(self, batch: KVBatchMeta, rows: list[int], advantages: list[torch.Tensor]) -> None:
        """Write those of these rows where they are stored."""
        if rows:
            nested = torch.nested.as_nested_tensor(advantages, layout=torch.jagged)
            tq.kv_batch_put(
                keys=[batch.keys[number] for number in rows],
                partition_id=batch.partition_id,
                fields=TensorDict({"advantages": nested}, batch_size=len(rows)),
            )

    # Resume

    def _save_checkpoint(self) -> None:
        """verl's, with the keeper's state, from the moment at which verl lists the groups that are finished.

        It does so in the asynchronous modes, last of all but for the file that publishes the checkpoint. In the
        synchronous one no group is in flight then.
        """
        folder = folder_of(self.config) / f"global_step_{self.global_steps}"
        folder.mkdir(parents=True, exist_ok=True)
        listed = tq.save_checkpoint

        def save_with_the_list(*args: Any, **named: Any) -> Any:
            held = self._keeper.hold.remote()
            while not ray.wait([held], timeout=1.0)[0]:
                self.agent_loop_manager.check_alive()  # a dead worker settles nothing
            try:
                ray.get(held)
                ray.get(self._keeper.save.remote(str(folder / STATE_FILE)))
                return listed(*args, **named)
            finally:
                ray.get(self._keeper.release.remote())

        if self.trainer_mode == "sync":
            ray.get(self._keeper.save.remote(str(folder / STATE_FILE)))
        tq.save_checkpoint = save_with_the_list
        try:
            super()._save_checkpoint()
        finally:
            tq.save_checkpoint = listed

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps == 0:
            return
        state = saved_state(self.config)
        if state is not None and state.exists():
            ray.get(self._keeper.load.remote(str(state)))
        else:
            logger.warning(
                "%s is not there: another trainer mode wrote it. Every prompt counts as never visited.", state
            )


@register_trainer("knapsack")
class KnapsackTrainerSync(KnapsackTrainer, PPOTrainerSync):
    """verl's `sync` with a group size per prompt."""

    _knapsack_mode = "knapsack"


@register_trainer("knapsack_colocate_async")
class KnapsackTrainerColocateAsync(KnapsackTrainer, PPOTrainerColocateAsync):
    """verl's `colocate_async` with a group size per prompt."""

    _knapsack_mode = "knapsack_colocate_async"


@register_trainer("knapsack_separate_async")
class KnapsackTrainerSeparateAsync(KnapsackTrainer, PPOTrainerSeparateAsync):
    """verl's `separate_async` with a group size per prompt."""

    _knapsack_mode = "knapsack_separate_async"


def weights_of(keys: list[str], size: int, rollout_weights: str) -> list[float]:
    """What the advantage of each row is multiplied by.

    Args:
        keys: verl's names of the rows, `{uid}_{session}_{output}`. A session is a rollout, however many outputs it has.
        size: mean group size.
        rollout_weights: `sqrt` for sqrt(size / N_i) with the N_i rollouts that are left of a group, or `none` for 1.
    """
    names, groups = np.unique([key.split("_")[0] for key in keys], return_inverse=True)
    sessions = {key.rsplit("_", 1)[0] for key in keys}
    of_session = np.searchsorted(names, [session.split("_")[0] for session in sessions])
    weights = advantages.rollout_weights(of_session, rollout_weights, size)
    by_group = np.zeros(len(names))
    by_group[of_session] = weights
    return by_group[groups].tolist()


def folder_of(config: Any) -> Path:
    """Where checkpoints go."""
    return Path(config.trainer.default_local_dir).absolute()


def saved_state(config: Any) -> Path | None:
    """The allocator's state in the checkpoint that verl goes on from, which may have none; None without a checkpoint.

    Source: verl 0.9.1, `PPOTrainer._load_checkpoint`.
    """
    trainer, folder = config.trainer, None
    if trainer.resume_mode == "resume_path":
        folder = trainer.resume_from_path
    elif trainer.resume_mode == "auto":
        folder = find_latest_ckpt_path(str(folder_of(config)))
    return None if folder is None else Path(folder).absolute() / STATE_FILE


def check_resumed(allocator: BudgetAllocator, config: Any) -> None:
    """Load the state that the run goes on from, before a model is.

    Raises:
        StateError: it is damaged, or belongs to another strategy.
    """
    state = saved_state(config)
    if state is None or not state.exists():
        return
    try:
        allocator.load(state)
    except StateError as error:
        raise StateError(
            f"trainer.resume_mode: the run would go on from {state.parent}, whose beliefs do not fit. {error} Set "
            "trainer.v1.knapsack.strategy as that run had it, or another trainer.default_local_dir."
        ) from error
