"""Agent-loop workers that run as many rollouts of a prompt as the keeper says, and report what was scored."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
from typing import Any

import numpy as np
import ray
import transfer_queue as tq
from tensordict import NonTensorData, TensorDict
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils import tensordict_utils as tu

from knapsack_rl import dispatch
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.identity import prompt_id
from knapsack_rl.rewards import ThresholdWatch
from knapsack_rl.verl.groups import Group, Outcome
from knapsack_rl.verl.keeper import Report, Reports
from knapsack_rl.verl.options import read_options

ROLLOUTS = "__rollout_n__"
"""Column with the rollouts of each prompt, which verl's own worker reads."""
MORE = "__knapsack_more__"
"""Column that says whether more may follow when some of them are scored."""

logger = logging.getLogger(__name__)


class _Worker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """verl's worker, with groups that may grow while they are generated."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._knapsack = read_options(config)
        self._keeper = ray.get_actor(config.trainer.v1.knapsack_keeper)
        name = ray.get_runtime_context().get_actor_id()
        self._reports = Reports(name, self._keeper.report.remote, self._keeper.answers.remote)
        self._groups: dict[str, Group] = {}  # that are being generated for training
        self._watch = ThresholdWatch()
        self._error: Exception | None = None

    async def alive(self) -> bool:
        """Answer, which a dead worker does not, or raise what went wrong in our own accounting."""
        if self._error is not None:
            raise self._error
        return True

    async def _run_prompt(
        self, prompt: dict[str, Any], sampling_params: dict[str, Any], trajectory: dict[str, Any], trace: bool = False
    ) -> None:
        """Verl's own, but rollouts start as the keeper places them, and are reported when they are scored."""
        if trajectory["validate"]:
            await super()._run_prompt(prompt, sampling_params, trajectory, trace)
            return
        uid, more = prompt["uid"], int(prompt.pop(ROLLOUTS))
        when = asyncio.FIRST_COMPLETED if prompt.pop(MORE) else asyncio.ALL_COMPLETED
        prompt.pop("__do_sample__", None)  # verl's, for ReMax, which is refused
        await tq.async_kv_put(key=uid, partition_id="train", tag={"status": "running"})
        self._groups[uid] = Group(self._knapsack.success_threshold, self._knapsack.graded_rewards)
        sessions, stopped = itertools.count(), False
        running: set[asyncio.Task[Any]] = set()
        try:
            complete = False
            while not complete:
                for session in itertools.islice(sessions, more):
                    rollout = self._run_agent_loop(
                        dict(sampling_params), trajectory=trajectory, trace=trace, session_id=session, **prompt
                    )
                    running.add(asyncio.create_task(rollout, name=str(session)))
                done: set[asyncio.Task[Any]] = set()
                if running:  # a prompt that sits out has none, but may yet get some
                    done, running = await asyncio.wait(running, return_when=when)
                outcome = self._outcome(uid, done)
                report = Report(
                    uid, outcome.successes, outcome.scored, outcome.failed, waiting=not running, tokens=outcome.tokens
                )
                more = await self._reports.send(report)
                complete = not (more or running)
        except Exception as error:  # not of a rollout: the keeper is gone, or at odds with this group
            logger.exception("group %s: cannot be completed", uid)
            self._error = error  # the driver asks, and stops
            await asyncio.gather(*running, return_exceptions=True)  # nobody may write after the group is cleared
            with contextlib.suppress(ray.exceptions.RayActorError):  # of which the driver hears as well
                await self._keeper.abandon.remote(uid)  # before it is settled
            stopped = True
        group = self._groups.pop(uid)
        lost = stopped or not group.survives(self._knapsack.min_returned)
        if sentence := self._watch.observe(group.judge, group.judged):
            logger.warning("trainer.v1.knapsack: %s", sentence)
        try:
            if lost and (rows := group.rows(uid)):  # which verl's synchronous mode would train on
                await tq.async_kv_clear(keys=rows, partition_id="train")
            await tq.async_kv_put(key=uid, partition_id="train", tag={"status": "failure" if lost else "finished"})
        finally:
            self._keeper.settle.remote(uid)

    def _outcome(self, uid: str, done: set[asyncio.Task[Any]]) -> Outcome:
        """Count these rollouts, and log why those failed that did."""
        ended = {}
        for task in done:
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is not None:
                logger.error("group %s, rollout %s failed", uid, task.get_name(), exc_info=error)
            ended[int(task.get_name())] = error is not None
        return self._groups[uid].outcome(ended)

    async def _compute_score(self, outputs: list[Any], kwargs: dict[str, Any]) -> None:
        training = kwargs["uid"] in self._groups
        if training:  # before a reward that fails
            written = [sum(output.response_mask) for output in outputs]  # what tools said is masked
            self._groups[kwargs["uid"]].tokens[kwargs["session_id"]] = written
        await super()._compute_score(outputs, kwargs)
        if not training:
            return
        final, name = outputs[-1], self._knapsack.success_field
        if math.isnan(final.reward_score):
            raise InvalidInputError(
                "reward: expected a number, got NaN, which would be the advantage of the whole group. This rollout "
                "counts as failed. Let the reward function return a number."
            )
        if name is None:
            reward = final.reward_score
        else:
            extra = final.extra_fields.get("reward_extra_info", {})
            if name not in extra:
                self._error = InvalidInputError(
                    f"trainer.v1.knapsack.success_field: expected an entry of reward_extra_info "
                    f"({', '.join(sorted(extra)) or 'which is empty'}), got {name!r}."
                )
                raise self._error
            reward = extra[name]
        self._groups[kwargs["uid"]].rewards[kwargs["session_id"]] = float(reward)


class KnapsackAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager, which opens a step for every training batch that it gets, refills and repetitions included.

    Attributes:
        imbalance: largest load of a worker over the mean load, in rollouts that the newest batch is expected to get: as
            verl would deal them, by prompts, and as they were dealt, by rollouts.
        planning_seconds: what opening steps and dividing batches has taken so far.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.agent_loop_workers_class = ray.remote(_Worker)
        self.imbalance = (1.0, 1.0)
        self.planning_seconds = 0.0
        self._knapsack = read_options(config)
        self._keeper = ray.get_actor(config.trainer.v1.knapsack_keeper)

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Dispatch without waiting, as verl does; every worker gets about the same number of rollouts."""
        validating = "validate" in prompts and bool(prompts["validate"])  # what a TensorDict's get() gives has no truth
        if validating:
            super().generate_sequences(prompts)
            return
        began = time.perf_counter()
        parts = self._planned(prompts)
        self.planning_seconds += time.perf_counter() - began
        ray.get(
            [
                worker.generate_sequences.remote(tu.index_select_tensor_dict(prompts, part.tolist()))
                for worker, part in zip(self.agent_loop_workers, parts, strict=True)
                if len(part)
            ]
        )

    def _planned(self, prompts: TensorDict) -> dispatch.Groups:
        """Open a step for a batch, give its prompts their first rollouts, and divide them among the workers."""
        features = {name: _column(prompts, name) for name in self._knapsack.feature_fields}
        uids, ids = _column(prompts, "uid"), self._prompt_ids(prompts)
        sources = [str(source) for source in _column(prompts, "data_source")] if "data_source" in prompts else None
        opening = ray.get(self._keeper.open.remote(uids, ids, features, sources))
        tu.assign_non_tensor_stack(prompts, ROLLOUTS, opening.first)
        tu.assign_non_tensor_stack(prompts, MORE, [opening.more] * len(opening.first))
        rollouts, workers = np.array(opening.expected), len(self.agent_loop_workers)
        parts = dispatch.balanced_groups(rollouts, workers)
        if len(rollouts) >= workers:  # a refill of one prompt says nothing
            loads = np.array([rollouts[part].sum() for part in np.array_split(np.arange(len(rollouts)), workers)])
            self.imbalance = (float(loads.max() / loads.mean()), parts.imbalance)
        return parts

    def check_alive(self) -> None:
        """Raise what makes it pointless to wait for groups.

        Raises:
            ray.exceptions.RayActorError: a worker or the keeper is gone.
            ray.exceptions.RayTaskError: a worker cannot account for its groups; it says why.
        """
        ray.get([actor.alive.remote() for actor in (self._keeper, *self.agent_loop_workers)])

    def _prompt_ids(self, prompts: TensorDict) -> list[str]:
        """Who the prompts are: their content, and their data source or the column that tells them apart."""
        name = self._knapsack.id_field or "data_source"
        told_apart = [{name: value} for value in _column(prompts, name)]
        contents = _column(prompts, "raw_prompt")
        return [prompt_id(content, extra=extra) for content, extra in zip(contents, told_apart, strict=True)]


def _column(prompts: TensorDict, name: str) -> list[Any]:
    if name not in prompts:
        raise InvalidInputError(
            f"trainer.v1.knapsack: {name!r} is not a column of the data set, "
            f"which has {', '.join(sorted(prompts.keys()))}."
        )
    return [value.data if isinstance(value, NonTensorData) else value for value in prompts[name]]
