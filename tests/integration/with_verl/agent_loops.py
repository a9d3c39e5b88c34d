"""Agent loops of the tests, which verl's workers find by `agent_loops.yaml`."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from verl.experimental.agent_loop import SingleTurnAgentLoop
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
from verl.workers.rollout.replica import TokenOutput

FAILS_IN_STEP = 2
NEVER_WORKS = "c"
FAILURE_RATES = (0.0, 0.01, 0.08, 0.3)


class TwoAnswers(AgentLoopBase):
    """Answers twice in a session: as turns of one sequence in sessions of even number, else as an output for each.

    The second session of a prompt fails in one step, and all sessions of one prompt in the first epoch.
    """

    async def run(
        self, sampling_params: dict[str, Any], raw_prompt: Any, session_id: int, global_steps: int, **columns: Any
    ) -> AgentLoopOutput | list[AgentLoopOutput]:
        never = raw_prompt[0]["content"].startswith(NEVER_WORKS) and global_steps <= 2
        if never or (session_id, global_steps) == (1, FAILS_IN_STEP):
            raise RuntimeError("the sandbox is gone")
        prompt = await self.ct_build_initial_tokens(list(raw_prompt))
        said = [self.tokenizer.convert_tokens_to_ids("p")]  # by the environment, between the answers
        first = await self._answer(prompt, sampling_params)
        second = await self._answer(prompt + first.token_ids + said, sampling_params)
        outputs = _output(prompt, first, turns=2), _output(prompt + first.token_ids + said, second, turns=4)
        if session_id % 2:
            return list(outputs)
        whole, last = outputs
        whole.response_ids += said + last.response_ids
        whole.response_mask += [0] * len(said) + last.response_mask
        whole.response_logprobs += [0.0] * len(said) + last.response_logprobs
        whole.num_turns = last.num_turns
        return whole

    async def _answer(self, tokens: list[int], sampling_params: dict[str, Any]) -> TokenOutput:
        return await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=tokens, sampling_params=sampling_params | {"max_tokens": 2}
        )


def _output(prompt: list[int], answer: TokenOutput, turns: int) -> AgentLoopOutput:
    return AgentLoopOutput(
        prompt_ids=prompt,
        response_ids=list(answer.token_ids),
        response_mask=[1] * len(answer.token_ids),
        response_logprobs=list(answer.log_probs),
        num_turns=turns,
        metrics=AgentLoopMetrics(),
        extra_fields=answer.extra_fields | {"turn_scores": [], "tool_rewards": []},
    )


class OnRecord(SingleTurnAgentLoop):
    """verl's own, which leaves an empty file named after its node."""

    async def run(self, sampling_params: dict[str, Any], **columns: Any) -> AgentLoopOutput:
        (Path(os.environ["CPU_BACKEND_FOLDER"]) / "nodes" / ray.get_runtime_context().get_node_id()).touch()
        return await super().run(sampling_params, **columns)


class Unreliable(SingleTurnAgentLoop):
    """verl's own, of whose sessions a share fails that depends on the step. It keeps a log of them."""

    async def run(
        self,
        sampling_params: dict[str, Any],
        raw_prompt: Any,
        uid: str,
        session_id: int,
        global_steps: int,
        **columns: Any,
    ) -> AgentLoopOutput:
        prompt = raw_prompt[0]["content"]
        draw = int.from_bytes(hashlib.sha256(f"{prompt} {session_id}".encode()).digest()[:8], "big") / 2**64
        fails = draw < FAILURE_RATES[global_steps % len(FAILURE_RATES)]
        with (Path(os.environ["CPU_BACKEND_FOLDER"]) / "sessions.jsonl").open("a") as log:
            log.write(json.dumps([uid, prompt, fails]) + "\n")
        if fails:
            raise RuntimeError("the sandbox is gone")
        return await super().run(sampling_params, raw_prompt=raw_prompt, **columns)
