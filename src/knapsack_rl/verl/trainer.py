"""verl's trainers with a group size per prompt, decided step by step by the budget keeper."""

from __future__ import annotations

import logging
import math
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
from packaging.specifiers import SpecifierSet
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync, PPOTrainerSync
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer

from knapsack_rl import advantages
from knapsack_rl.allocator import STATE_FILE
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.verl import idle
from knapsack_rl.verl.keeper import BudgetKeeper
from knapsack_rl.verl.options import read_options

SUPPORTED = SpecifierSet(">=0.9.1,<0.10")  # tried with 0.9.1
MANAGER = "knapsack_rl.verl.agent_loop.KnapsackAgentLoopManager"
JOURNAL = "knapsack_keeper"
"""The folder of the keeper's journal, beside the checkpoints."""
KEEPER_MEMORY = 1 << 30
"""Bytes that Ray sets aside for the keeper: more than what a million known prompts take (docs/scale.md)."""

logger = logging.getLogger(__name__)


class KnapsackTrainer(PPOTrainer):
    """What the trainers share: settings from `trainer.v1.knapsack` (`settings.KnapsackOptions`), and one keeper.

    Raises:
        InvalidInputError: verl's version or an option cannot work with variable group sizes.
    """

    _verl_mode: ClassVar[str]
    """The name by which verl knows the mode that this one is based on."""

    def __init__(self, config: Any) -> None:
        check_verl_version()
        check_options(config)
        self.knapsack = read_options(config)
        estimator, size = str(config.algorithm.adv_estimator), int(config.actor_rollout_ref.rollout.n)
        allocator = self.knapsack.allocator(size, estimator)  # here too, so that what it refuses is said by the driver
        if even := allocator.explain_even(int(config.data.train_batch_size), "Raise data.train_batch_size."):
            logger.warning("trainer.v1.knapsack: no plan can be uneven. %s", even)
        reason = idle.obstacle(config) if self.knapsack.skip_idle else None
        if reason is not None:
            logger.warning("trainer.v1.knapsack.skip_idle is off, and every rollout is trained on: %s.", reason)
        self.advantage_clip = self.knapsack.bound(
            estimator, bool(config.algorithm.get("norm_adv_by_std_in_grpo", True))
        )
        self._clip_watch = advantages.ClipWatch(self.advantage_clip)
        self._skip_idle = self.knapsack.skip_idle and reason is None
        self.rollout_weights = self.knapsack.rollout_weights or allocator.rollout_weights
        self.algorithm = allocator.settings.algorithm
        name = f"knapsack-keeper-{uuid.uuid4().hex}"
        self._keeper = (
            ray.remote(BudgetKeeper)
            .options(
                name=name,
                num_cpus=0,
                memory=KEEPER_MEMORY,
                max_restarts=-1,
                max_task_retries=-1,
                max_concurrency=100_000,  # every worker waits in a call
                scheduling_strategy=NodeAffinitySchedulingStrategy(  # beside the driver, whose disk has the checkpoints
                    ray.get_runtime_context().get_node_id(), soft=False
                ),
            )
            .remote(self.knapsack, size, estimator, str(folder_of(config) / JOURNAL), name)
        )
        self._updates = 0  # whose groups were counted
        with open_dict(config):
            config.trainer.v1.trainer_mode = self._verl_mode  # verl compares it with its own names
            config.trainer.v1.knapsack_keeper = name
            config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = MANAGER
        super().__init__(config)

    # Watch and account

    def _build_replay_buffer(self) -> Any:
        buffer = super()._build_replay_buffer()
        wait, clear, sample = buffer._wait_for_next_poll, buffer._clear_groups, buffer.sample
        select = buffer._select_prompt_uids
        self._sampled: list[str] = []  # groups of the next update, of which those that failed whole have no row there

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
                self._sampled += selected[0]
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
        """verl's, then clipped (paper, appendix C) and weighed."""
        batch = super()._compute_advantage(batch, metrics)
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

    def _bound_advantages(self, batch: KVBatchMeta) -> float:
        """Clip and weigh them where they are stored, and return the share of rows that the bound changes.

        A row that stays as it is is not written.
        """
        weights = weights_of(batch.keys, self.config.actor_rollout_ref.rollout.n, self.rollout_weights, self.algorithm)
        clip = self.advantage_clip
        bound = math.inf if clip is None else clip
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["advantages"])
        before = data["advantages"].unbind()
        after = [row.clamp(-bound, bound) * weight for row, weight in zip(before, weights, strict=True)]
        changed = [number for number, row in enumerate(after) if not torch.equal(row, before[number])]
        self._put_advantages(batch, changed, [after[number] for number in changed])
        largest = np.array([float(row.abs().max()) if row.numel() else 0.0 for row in before])
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
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        if self.config.trainer.resume_mode == "resume_path":
            folder = Path(self.config.trainer.resume_from_path)
        state = folder / STATE_FILE
        if state.exists():
            ray.get(self._keeper.load.remote(str(state.absolute())))
        else:
            logger.warning(
                "%s has no %s: another trainer mode wrote it. Every prompt counts as never visited.", folder, STATE_FILE
            )


@register_trainer("knapsack")
class KnapsackTrainerSync(KnapsackTrainer, PPOTrainerSync):
    """verl's `sync` with a group size per prompt."""

    _verl_mode = "sync"


@register_trainer("knapsack_colocate_async")
class KnapsackTrainerColocateAsync(KnapsackTrainer, PPOTrainerColocateAsync):
    """verl's `colocate_async` with a group size per prompt."""

    _verl_mode = "colocate_async"


@register_trainer("knapsack_separate_async")
class KnapsackTrainerSeparateAsync(KnapsackTrainer, PPOTrainerSeparateAsync):
    """verl's `separate_async` with a group size per prompt."""

    _verl_mode = "separate_async"


def weights_of(keys: list[str], size: int, rollout_weights: str, algorithm: str) -> list[float]:
    """What the advantage of each row is multiplied by.

    Args:
        keys: verl's names of the rows, `{uid}_{session}_{output}`. A session is a rollout, however many outputs it has.
        size: mean group size.
        rollout_weights: `sqrt` for sqrt(size / N_i), or `none` for 1.
        algorithm: under all but `reinforce` a group of which one rollout is left has no mean to compare with: 0.
    """
    names, groups = np.unique([key.split("_")[0] for key in keys], return_inverse=True)
    sessions = {key.rsplit("_", 1)[0] for key in keys}
    of_session = np.searchsorted(names, [session.split("_")[0] for session in sessions])
    sizes = np.bincount(of_session, minlength=len(names))
    weights = advantages.rollout_weights(of_session, rollout_weights, size)
    by_group = np.zeros(len(names))
    by_group[of_session] = weights
    if algorithm != "reinforce":
        by_group[sizes == 1] = 0.0
    return by_group[groups].tolist()


def folder_of(config: Any) -> Path:
    """Where checkpoints go."""
    return Path(config.trainer.default_local_dir).absolute()


def check_verl_version() -> None:
    """Refuse versions of verl whose private methods may be others.

    Raises:
        InvalidInputError: the installed verl is outside the supported range.
    """
    if verl.__version__ not in SUPPORTED:
        raise InvalidInputError(
            f"verl: the trainer modes of knapsack-rl override private methods of verl and are made for {SUPPORTED}, "
            f"not for the installed {verl.__version__}. Run: pip install 'verl{SUPPORTED}'"
        )


def check_options(config: Any) -> None:
    """Refuse what cannot work with groups that are planned and scored as they are generated.

    Raises:
        InvalidInputError: such an option.
    """
    reward_model = config.reward.reward_model
    if reward_model.enable and not reward_model.enable_resource_pool:
        raise InvalidInputError(
            "reward.reward_model: a colocated reward model scores after generation, when nothing can be placed any "
            "more. Set reward.reward_model.enable_resource_pool=True, or use rule-based rewards."
        )
    sampler = config.trainer.v1.sampler.get("custom_sampler")
    if sampler is not None and sampler.get("path"):
        raise InvalidInputError(
            f"trainer.v1.sampler.custom_sampler: expected none, since groups that it drops or waits for could not be "
            f"accounted for, got {sampler.path!r}. Leave it out."
        )
    filtering = config.algorithm.get("filter_groups") or {}
    if filtering.get("enable") and read_options(config).min_rollouts == 0:
        raise InvalidInputError(
            "trainer.v1.knapsack.min_rollouts: with 0 some groups have no rollouts, and verl's "
            "algorithm.filter_groups stops at a group without a reward. Use 2, or leave the filter out."
        )
    if config.critic.enable:
        raise InvalidInputError(
            "critic.enable: the estimators that these trainer modes take have no critic. Leave it out."
        )
    manager = config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class")
    if manager not in (None, MANAGER):
        raise InvalidInputError(
            f"actor_rollout_ref.rollout.agent.agent_loop_manager_class: expected none, since the trainer modes of "
            f"knapsack-rl bring their own ({MANAGER}), got {manager!r}. Derive yours from it and use its trainer."
        )
