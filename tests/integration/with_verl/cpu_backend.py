"""What verl lacks without accelerators, for tests only: a platform, collectives, a rollout engine, a kernel.

verl imports this module in every process (VERL_USE_EXTERNAL_MODULES=cpu_backend). Processes are as verl starts them:
the FSDP engine trains over gloo, agent loops send requests to a server, weights go there after every update.
"""

from __future__ import annotations

import asyncio
import functools
import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
import torch
import torch.distributed
from safetensors.torch import load_file, save_file
from verl.plugin.platform import platform_manager
from verl.plugin.platform.platform_base import PlatformBase

_MOST_AT_ONCE = 64
_TOKENS_BETWEEN_LOOKS = 4  # how often a generation that runs looks whether it was aborted


class _Stream:
    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None: ...

    def wait_stream(self, *other: object) -> None: ...

    def synchronize(self) -> None: ...


def _nothing(*arguments: Any, **named: Any) -> None: ...


# verl calls what torch.cuda has; on a CPU there is nothing to do.
_MODULE = SimpleNamespace(
    **dict.fromkeys(
        (
            "empty_cache",
            "synchronize",
            "set_device",
            "reset_peak_memory_stats",
            "manual_seed",
            "manual_seed_all",
            "ipc_collect",
        ),
        _nothing,
    ),
    is_available=lambda: True,
    current_device=lambda: 0,
    device_count=lambda: 1,
    get_rng_state=torch.get_rng_state,
    set_rng_state=torch.set_rng_state,
    memory_allocated=lambda *device: 0,
    memory_reserved=lambda *device: 0,
    max_memory_allocated=lambda *device: 0,
    max_memory_reserved=lambda *device: 0,
    mem_get_info=lambda *device: (1 << 34, 1 << 35),
    get_device_name=lambda *device: "cpu",
    get_device_properties=lambda *device: SimpleNamespace(total_memory=1 << 35, name="cpu"),
    current_stream=lambda *device: _Stream(),
    Stream=_Stream,
    stream=lambda stream: _Stream(),
)


@platform_manager.PlatformRegistry.register("cpu")
class CPUPlatform(PlatformBase):
    """Logical GPUs of Ray, computed by the processor."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _MODULE

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Any:
        yield

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    set_device = synchronize = manual_seed = manual_seed_all = set_allocator_settings = empty_cache = _nothing
    profiler_start = profiler_stop = cudart = _nothing


_init_process_group = torch.distributed.init_process_group


def _over_gloo(backend: str | None = None, *arguments: Any, **named: Any) -> None:
    # verl asks for one backend for the processor and one for the accelerator, which are the same here.
    named.pop("device_id", None)
    _init_process_group("cpu:gloo", *arguments, **named)


torch.distributed.init_process_group = _over_gloo


@ray.remote(num_cpus=0)
class Server:
    """Generates with transformers: requests that arrive together are batched; a weight update waits for a batch."""

    def __init__(self, path: str, seed: int, longest: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.longest = longest
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for weight in self.model.parameters():  # so that a weight that never arrives shows
            weight.data.fill_(torch.nan)
        self.end = AutoTokenizer.from_pretrained(path).eos_token_id
        self.step = 0
        self.asked: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        self.open = asyncio.Event()
        self.open.set()
        self.aborted = False
        self.busy = asyncio.Lock()
        self.loop = asyncio.get_event_loop().create_task(self._serve())

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **more: Any
    ) -> Any:
        from verl.workers.rollout.replica import TokenOutput

        await self.open.wait()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        await self.asked.put((list(prompt_ids), sampling_params, answer))
        tokens, logs, reason = await answer
        return TokenOutput(
            token_ids=tokens,
            log_probs=logs if sampling_params.get("logprobs") else None,
            stop_reason=reason,
            num_preempted=0,
            extra_fields={"global_steps": self.step},
        )

    async def _serve(self) -> None:
        while True:
            batch = [await self.asked.get()]
            await asyncio.sleep(0.005)  # others are on their way
            while len(batch) < _MOST_AT_ONCE and not self.asked.empty():
                batch.append(self.asked.get_nowait())
            async with self.busy:
                try:
                    outputs = await self._batch(batch)
                except Exception as error:
                    outputs = [error] * len(batch)
            for (_, _, answer), output in zip(batch, outputs, strict=True):
                if isinstance(output, Exception):
                    answer.set_exception(output)
                else:
                    answer.set_result(output)

    @torch.no_grad()
    async def _batch(self, batch: list[tuple[Any, ...]]) -> list[tuple[list[int], list[float], str]]:
        prompts = [prompt for prompt, _, _ in batch]
        limits = [
            parameters.get("max_tokens") or parameters.get("max_new_tokens") or self.longest
            for _, parameters, _ in batch
        ]
        heat = torch.tensor([parameters.get("temperature", 1.0) for _, parameters, _ in batch])[:, None]
        longest = max(map(len, prompts))
        rows = torch.tensor([[self.end] * (longest - len(prompt)) + prompt for prompt in prompts])
        seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        tokens: list[list[int]] = [[] for _ in batch]
        logs: list[list[float]] = [[] for _ in batch]
        reasons = ["aborted"] * len(batch)
        position, cache = (seen.cumsum(1) - 1).clamp(min=0), None
        for written in range(max(limits)):
            if written % _TOKENS_BETWEEN_LOOKS == 0:
                await asyncio.sleep(0)
                if self.aborted:
                    break
            output = self.model(
                input_ids=rows, attention_mask=seen, position_ids=position, past_key_values=cache, use_cache=True
            )
            cache, logits = output.past_key_values, output.logits[:, -1]
            chances = (logits / heat.clamp(min=1e-5)).log_softmax(-1)
            chosen = torch.where(heat > 0, torch.multinomial(chances.exp(), 1), logits.argmax(-1, keepdim=True))
            picked = chances.gather(1, chosen)
            for i in range(len(batch)):
                if reasons[i] == "aborted":
                    tokens[i].append(int(chosen[i]))
                    logs[i].append(float(picked[i]))
                    if tokens[i][-1] == self.end or len(tokens[i]) == limits[i]:
                        reasons[i] = "completed"
            if "aborted" not in reasons:
                break
            rows, seen = chosen, torch.cat([seen, torch.ones_like(chosen)], dim=1)
            position = position[:, -1:] + 1
        return list(zip(tokens, logs, reasons, strict=True))

    async def update_weights(self, weights: dict[str, Any], step: int | None) -> None:
        async with self.busy:
            state = {name: torch.from_numpy(values.copy()) for name, values in weights.items()}
            missing, unknown = self.model.load_state_dict(state, strict=False)
            if unknown or set(missing) - {"lm_head.weight"}:
                raise ValueError(f"weights: {missing} are missing, {unknown} are unknown")
            self.step = self.step if step is None else step

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        self.open.clear()
        self.aborted = True
        async with self.busy:
            pass

    async def resume_generation(self) -> None:
        self.aborted = False
        self.open.set()

    async def wake_up(self, tags: list[str] | None = None) -> None: ...

    async def sleep(self) -> None: ...

    async def clear_kv_cache(self) -> None: ...

    async def release_kv_cache(self) -> None: ...

    async def resume_kv_cache(self) -> None: ...


def _weights_file(step: int | None) -> Path:
    return Path(os.environ["CPU_BACKEND_FOLDER"]) / f"weights-{step}"


def _packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    query_length: int,
    *,
    position_ids: torch.Tensor,
    softmax_scale: float,
    **more: Any,
) -> torch.Tensor:
    """Causal attention within sequences that lie behind each other, (1, tokens, heads, size); each begins at 0."""
    sequence = (position_ids == 0).cumsum(-1)
    within = (sequence[:, :, None] == sequence[:, None, :]).tril()[:, None]
    heads_first = (states.transpose(1, 2) for states in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(
        *heads_first, attn_mask=within, scale=softmax_scale, enable_gqa=True
    ).transpose(1, 2)


def _register() -> None:
    """What needs more of verl than is there while verl itself is being imported."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.flash_attention import flash_attention_forward
    from transformers.masking_utils import flash_attention_mask
    from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry
    from verl.models.transformers import monkey_patch
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
    from verl.workers.engine_workers import TrainingWorker
    from verl.workers.rollout import base
    from verl.workers.rollout.base import BaseRollout
    from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry

    global Adapter, Replica

    class Adapter(BaseRollout):
        """Sends a trainer's weights to its server."""

        def __init__(
            self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1, **more: Any
        ) -> None:
            super().__init__(config, model_config, device_mesh)
            self.replica_rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank
            self.is_leader_rank = True

        async def resume(self, tags: list[str]) -> None: ...

        async def release(self) -> None: ...

        async def update_weights(self, weights: Any, global_steps: int | None = None, **more: Any) -> None:
            from verl.workers.rollout.utils import ensure_async_iterator

            state = {name: tensor.float().cpu().numpy() async for name, tensor in ensure_async_iterator(weights)}
            await ray.get_actor(f"cpu_server_{self.replica_rank}").update_weights.remote(state, global_steps)

    class Replica(RolloutReplica):
        """One server per process of the trainer."""

        async def launch_servers(self) -> None:
            seed = self.replica_rank + int(self.config.get("seed", 0) or 0)
            name = f"cpu_server_{self.replica_rank}"
            server = Server.options(name=name, max_concurrency=10_000).remote(
                self.model_config.path, seed, self.config.response_length
            )
            self.servers, self._server_handle, self._server_address = [server], server, name

    @CheckpointEngineRegistry.register("cpu")
    class Files(CheckpointEngine):
        """Weights go to servers of their own through a file, which appears when it is complete."""

        def __init__(self, bucket_size: int, is_master: bool = False) -> None:
            self.is_master = is_master
            self.file: Path | None = None

        def prepare(self) -> dict[str, Any]:
            return {}

        @classmethod
        def build_topology(cls, *arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            return {}, {}

        def init_process_group(self) -> None: ...

        def finalize(self) -> None:
            if self.is_master and self.file is not None:
                self.file.unlink()

        async def send_weights(self, weights: Any, global_steps: int | None = None) -> None:
            from verl.workers.rollout.utils import ensure_async_iterator

            state = {name: tensor.float().cpu() async for name, tensor in ensure_async_iterator(weights)}
            if self.is_master:
                self.file = _weights_file(global_steps)
                save_file({name: tensor.contiguous() for name, tensor in state.items()}, self.file.with_suffix(".new"))
                self.file.with_suffix(".new").rename(self.file)

        async def receive_weights(self, global_steps: int | None = None) -> Any:
            file = _weights_file(global_steps)
            while not file.exists():
                await asyncio.sleep(0.05)
            for name, tensor in load_file(file).items():
                yield name, tensor

    # All of flash attention's path through transformers and verl but the kernel, by a name that asks for no package.
    AttentionInterface.register("packed", flash_attention_forward)
    AttentionMaskInterface.register("packed", flash_attention_mask)
    monkey_patch._flash_attention_forward = _packed_attention

    begin = ReplayBuffer.__init__

    def and_poll_often(self: Any, *arguments: Any, **named: Any) -> None:  # there is no key for it
        begin(self, *arguments, **named)
        self.poll_interval = 0.1

    ReplayBuffer.__init__ = and_poll_often
    train_batch = TrainingWorker.train_batch

    def on_record(self: Any, data: Any) -> Any:  # verl's metrics do not say how many optimizer steps there were
        with (Path(os.environ["CPU_BACKEND_FOLDER"]) / "optimizer-steps.jsonl").open("a") as file:
            file.write(f"{len(data)}\n")
        return train_batch(self, data)

    functools.update_wrapper(on_record, train_batch)  # verl's dispatch reads attributes of it
    TrainingWorker.train_batch = on_record
    RolloutReplicaRegistry.register("cpu", lambda: Replica)
    base._ROLLOUT_REGISTRY["cpu", "async"] = "cpu_backend.Adapter"


_register()
