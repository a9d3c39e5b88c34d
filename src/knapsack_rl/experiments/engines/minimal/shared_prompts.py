"""The policy for pretrained models: what a group has in common is computed once, when sampling and in the update.

Sampling reads each prompt once, as `grpo.Policy` does, and goes on with up to eight of its rollouts in one row over
one copy of its cache. Finished rollouts are no longer computed, and rows without a rollout to finish are dropped from
the cache. The update packs a group behind its prompt (packing.py). Both give the numbers of the plain policy, but for
rounding. benchmarks/pretrained_step.py says what it saves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from knapsack_rl.errors import StateError
from knapsack_rl.experiments.engines.minimal import attention
from knapsack_rl.experiments.engines.minimal.grpo import Ints, Policy, Rollouts
from knapsack_rl.experiments.engines.minimal.packing import packed
from knapsack_rl.experiments.recipe.schema import Training

_TOGETHER = 8  # rollouts in a row: wider rows copy less of the cache, and wait longer for the last of them
_ALL, _NOBODY = -1, -2  # who may see a token of the cache: everybody (a prompt's), nobody (padding), or one rollout


class SharedPromptPolicy(Policy):
    """A `Policy` whose model is large enough that every token counts; the model gets another attention for it."""

    def __init__(self, model: Any, tokenizer: Any, training: Training, autocast: bool = False) -> None:
        model.set_attn_implementation(attention.NAME)
        super().__init__(model, tokenizer, training, autocast)

    @torch.no_grad()
    def sample(
        self, prompts: list[str], counts: Ints, length: int, temperature: float, top_p: float, random: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """As `Policy.sample`, from the same distribution but for rounding (`drawn`)."""
        warpers = self.warpers(temperature, top_p)
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        output = self.read(inputs)
        cache = output.past_key_values
        counts_ = torch.from_numpy(counts)
        rollouts = int(counts_.sum())
        number = torch.arange(rollouts)
        owner = torch.repeat_interleave(torch.arange(len(prompts)), counts_)  # prompt of each rollout
        within = number - (counts_.cumsum(0) - counts_)[owner]
        rows_before = -(-counts_ // _TOGETHER)  # rows of each prompt
        row = (rows_before.cumsum(0) - rows_before)[owner] + within // _TOGETHER
        cache.batch_select_indices(torch.repeat_interleave(torch.arange(len(prompts)), rows_before))
        seen = torch.repeat_interleave(inputs["attention_mask"], rows_before, dim=0)
        readers = torch.where(seen.bool(), _ALL, _NOBODY)  # (rows, cached tokens)
        start = inputs["attention_mask"].sum(1)[owner]  # the position of a rollout's first token
        logits = output.logits[owner, -1]
        tokens = torch.full((rollouts, length), self.tokenizer.pad_token_id)
        lengths = torch.zeros(rollouts, dtype=torch.int64)
        active = number
        for step in range(length):
            token = drawn(warpers(inputs["input_ids"], logits).float().softmax(dim=-1), random)
            tokens[active, step] = token
            lengths[active] += 1
            goes_on = ~torch.isin(token, self.ends)
            active, token = active[goes_on], token[goes_on]
            if step + 1 == length or not len(active):
                break
            kept, at = torch.unique_consecutive(row[active], return_inverse=True)
            if len(kept) < len(readers):
                cache.batch_select_indices(kept)
                readers = readers[kept]
                row[active] = at
            first = torch.searchsorted(at, torch.arange(len(kept)))
            slot = torch.arange(len(active)) - first[at]
            shape = len(kept), int(slot.max()) + 1
            ids = torch.full(shape, self.tokenizer.pad_token_id).index_put((at, slot), token)
            writers = torch.full(shape, _NOBODY).index_put((at, slot), active)
            positions = torch.zeros(shape, dtype=torch.int64).index_put((at, slot), start[active] + step)
            readers = torch.cat([readers, writers], dim=1)
            mask = (readers[:, None] == _ALL) | (readers[:, None] == writers[:, :, None])
            logits = self.forward(
                self.sampler,
                input_ids=ids,
                attention_mask=mask[:, None],
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).logits[at, slot]
        return tokens[:, : int(lengths.max())], lengths

    def log_probabilities(self, prompts: list[str], rollouts: Rollouts) -> Tensor:
        """As `Policy.log_probabilities`; beyond a rollout's end they are 0."""
        groups = rollouts.groups.tolist() if self.watch is not None else [0] * len(prompts)
        named = list(
            zip(prompts, groups, strict=True)
        )  # the same text may be two groups, whose gradients are told apart
        distinct = list(dict.fromkeys(named))
        owners = [distinct.index(name) for name in named]
        written = [
            row[:length] for row, length in zip(rollouts.tokens.tolist(), rollouts.lengths.tolist(), strict=True)
        ]
        sequence = packed(self.tokenizer([prompt for prompt, _ in distinct])["input_ids"], owners, written)
        if self.watch is not None:
            self.watch.owners = torch.tensor([group for _, group in distinct])[sequence.groups]
        logits = self.forward(
            self.model,
            input_ids=sequence.tokens,
            attention_mask=sequence.mask,
            position_ids=sequence.positions,
            logits_to_keep=sequence.sources,
            spans=sequence.spans,
            use_cache=False,
        ).logits[0]
        targets = torch.tensor([token for row in written for token in row])
        logs = _LogProbabilities.apply(logits, targets, self.training.temperature, self.precision)  # type: ignore[no-untyped-call]
        ours = torch.arange(rollouts.tokens.shape[1]) < rollouts.lengths[:, None]
        return torch.zeros(ours.shape, dtype=logs.dtype).masked_scatter(ours, logs)

    def passes(self, prompts: list[str], chosen: Ints) -> Iterator[Ints]:
        """As `Policy.passes`, rollouts of the same prompt next to each other."""
        first = {prompt: number for number, prompt in reversed(list(enumerate(prompts)))}
        return super().passes(prompts, chosen[np.argsort([first[prompts[row]] for row in chosen], kind="stable")])


def drawn(chances: Tensor, random: torch.Generator) -> Tensor:
    """One token for each row of probabilities: where their running sum passes a uniform number.

    `torch.multinomial` draws as many random numbers as there are tokens, which takes longer than a small model does.
    Chances below the resolution of float32 (6e-8) go to their neighbours.

    Raises:
        StateError: a row has no finite sum above 0.
    """
    total = chances.cumsum(dim=-1)
    end = total[:, -1:]
    if not ((end > 0.0) & end.isfinite()).all():
        raise StateError(
            "model: its probabilities are not finite, so that nothing can be sampled. Training has diverged, or the "
            "weights were damaged before: lower training.learning_rate, or load the model anew."
        )
    mark = torch.minimum(torch.rand(end.shape, generator=random) * end, end.nextafter(torch.zeros(())))
    return torch.searchsorted(total, mark, right=True)[:, 0]


class _LogProbabilities(torch.autograd.Function):
    """log softmax(logits / temperature) at the target of each row, and its gradient: (target - softmax) / temperature.

    The logits of a pass are its largest arrays; autograd would hold and fill several more of their size.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float, precision: torch.dtype) -> Tensor:
        scaled = logits.to(precision)
        logs = (scaled if temperature == 1.0 else scaled / temperature).log_softmax(dim=-1)
        ctx.save_for_backward(logs, targets)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return logs.gather(1, targets[:, None])[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        logs, targets = ctx.saved_tensors
        scale = upstream[:, None] / ctx.temperature
        gradient = logs.exp().mul_(-scale).scatter_add_(1, targets[:, None], scale)
        return gradient.to(ctx.dtype), None, None, None
