"""Which rows of an update verl runs forward and backward, and how the update stays the same without the others.

A row is an output of a rollout, or padding. It is *live* when some token that counts in the loss has an advantage that
is not 0; all others are *idle*: their term of the loss is exactly 0, and so is its gradient. verl cuts the rows that it
is given into ranks (data parallelism), each rank's into mini-batches (optimizer steps) and each of those into
micro-batches. Which rank a row of a mini-batch is on, and in which micro-batch, does not change the update; what the
loss is divided by does. Rows it takes as many as it is told (`global_batch_size`), and is told the real ones. Tokens it
counts in the mini-batch that it is given, so advantages are scaled by the ratio of that number to the one of all real
rows: the losses in `PROPORTIONAL` are proportional to the advantage, up to its sign. So is what differs where the real
rows of an update do not go into equal mini-batches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PROPORTIONAL = ("vanilla", "dppo_tv", "dppo_kl", "gspo", "sapo", "gpg", "cispo")
"""Values of `actor.policy_loss.loss_mode` whose loss is proportional to the advantage, token by token."""

DIVISORS = {
    "token-mean": "tokens",
    "token-sum": "nothing",
    "seq-mean-token-sum": "rows",
    "seq-mean-token-mean": "rows",
    "seq-mean-token-sum-norm": "rows",
}
"""What each `actor.loss_agg_mode` divides the loss of a mini-batch by."""

OVER_ROWS = ("actor/pg_clipfrac", "actor/pg_clipfrac_lower", "actor/ppo_kl", "actor/entropy_loss")
"""Metrics of an update that verl averages over the rows that it is given."""


class Rows(NamedTuple):
    """The rows of an update in verl's order, rank by rank.

    Attributes:
        live: whether the row has a gradient, shape (rows,).
        padding: whether verl made it up to fill a batch, shape (rows,); such a row is not live.
        lengths: tokens of prompt and response, shape (rows,).
        tokens: those that count in the loss, shape (rows,).
    """

    live: Bools
    padding: Bools
    lengths: Ints
    tokens: Ints


class Layout(NamedTuple):
    """How verl cuts an update.

    Attributes:
        ranks: of data parallelism.
        batches: mini-batches of an update, each an optimizer step.
        micro: most rows of a micro-batch, None where tokens decide (`use_dynamic_bsz`).
        stages: of which the number of micro-batches must be a multiple (virtual pipeline parallelism), else 1.
    """

    ranks: int
    batches: int
    micro: int | None
    stages: int

    def split(self, least: int) -> tuple[int, int]:
        """Micro-batches of a mini-batch on one rank, and the rows of each, which are `least` rows or a few more."""
        count = _up(-(-least // (self.micro or least)), self.stages)
        return count, -(-least // count)


class Deal(NamedTuple):
    """What verl is given in place of all rows.

    Attributes:
        rows: which ones, rank by rank, and on each rank mini-batch by mini-batch.
        batch: rows of a mini-batch, over all ranks.
        real: real rows of a mini-batch in the whole update, on average, by which a mean over rows divides.
        micro: rows of a micro-batch, where tokens do not decide.
        scales: what the advantages of each of `rows` are multiplied by, in the same shape.
    """

    rows: Ints
    batch: int
    real: float
    micro: int
    scales: Floats


def padded(rows: int, layout: Layout, passes: int) -> int:
    """How many rows an update of so many real rows is padded to: enough for equal mini-batches, and for other passes.

    Args:
        rows: real rows, 1 or more.
        layout: of the update.
        passes: of which the rows of a rank must be a multiple for the passes that compute log probabilities.
    """
    layout = layout._replace(batches=min(layout.batches, rows))
    count, micro = layout.split(-(-rows // (layout.ranks * layout.batches)))
    return _up(layout.ranks * layout.batches * count * micro, layout.ranks * passes)


def deal(rows: Rows, layout: Layout, divisor: str, skip_idle: bool) -> Deal:
    """Keep the live rows (or all real ones), fill up with the shortest others, and deal them evenly over ranks.

    Real rows stay in their mini-batch, which is the one that verl would cut where nothing is padding. A mini-batch
    without a live row keeps one that is idle, since an optimizer whose gradients are 0 makes another step than none.
    An update of which every row is kept stays as it is.

    Args:
        rows: as `padded` asks for; the number of real ones is 1 or more.
        layout: of the update.
        divisor: what the loss is divided by, a value of `DIVISORS`.
        skip_idle: whether idle rows may be left out.

    Cost: O(n log n).
    """
    order = np.arange(len(rows.live)).reshape(layout.ranks, -1).T.ravel()
    real, spare = order[~rows.padding[order]], order[rows.padding[order]]
    parts = np.array_split(real, min(layout.batches, len(real)))
    kept = [_trained(rows, part) if skip_idle else part for part in parts]
    count, micro = layout.split(max(-(-len(part) // layout.ranks) for part in kept))
    batch = layout.ranks * count * micro
    if sum(map(len, kept)) == len(kept) * batch == len(rows.live):
        return Deal(np.arange(len(rows.live)), batch, batch, micro, np.ones(len(rows.live)))
    mean, scales, dealt = len(real) / len(parts), np.ones(len(rows.live)), []
    for part, live in zip(parts, kept, strict=True):
        idle = np.setdiff1d(part, live)
        idle = idle[np.argsort(rows.lengths[idle], kind="stable")][: batch - len(live)]
        missing = batch - len(live) - len(idle)
        chosen, spare = np.concatenate([live, idle, spare[:missing]]), spare[missing:]
        chosen = chosen[np.argsort(-rows.lengths[chosen], kind="stable")]  # so that micro-batches are of like lengths
        if divisor == "rows":
            scales[chosen] = mean / len(part)
        elif divisor == "tokens":
            scales[chosen] = rows.tokens[chosen].sum() / max(1, rows.tokens[part].sum())
        dealt.append(chosen)
    found = np.concatenate([chosen[rank :: layout.ranks] for rank in range(layout.ranks) for chosen in dealt])
    return Deal(found, batch, mean, micro, scales[found])


def _trained(rows: Rows, part: Ints) -> Ints:
    """The live rows of a mini-batch; if there are none, the shortest one of which a token counts in the loss."""
    live = part[rows.live[part]]
    return live if len(live) else part[np.lexsort((rows.lengths[part], rows.tokens[part] == 0))][:1]


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def divisor(config: Any) -> str:
    """What the loss of an update is divided by that changes with the rows it is given, a value of `DIVISORS`."""
    actor = config.actor_rollout_ref.actor
    if actor.policy_loss.loss_mode not in PROPORTIONAL:
        return "nothing"  # that scaled advantages could make up for
    return "rows" if actor.policy_loss.loss_mode == "sapo" else DIVISORS[actor.loss_agg_mode]


def stages(actor: Any) -> int:
    """Of which Megatron wants the number of micro-batches to be a multiple, by `actor_rollout_ref.actor`; 1 if of none.

    Source: verl 0.9.1, `MegatronEngine.forward_backward_batch`.
    """
    megatron = actor.megatron if actor.strategy == "megatron" else None
    if megatron is None or (megatron.virtual_pipeline_model_parallel_size or 1) == 1:
        return 1
    given = megatron.override_transformer_config.get("microbatch_group_size_per_vp_stage")
    return int(given or megatron.pipeline_model_parallel_size)


def obstacle(config: Any) -> str | None:
    """Why idle rows must be trained on all the same, None where leaving them out does not change the update.

    Args:
        config: verl's.
    """
    actor, distillation = config.actor_rollout_ref.actor, config.get("distillation")
    mode, model = actor.policy_loss.loss_mode, config.actor_rollout_ref.model
    obstacles = {
        "actor.use_kl_loss pulls every rollout towards the reference policy": actor.use_kl_loss,
        f"actor.entropy_coeff={actor.entropy_coeff} rewards the entropy of every rollout": actor.entropy_coeff != 0.0,
        f"actor.policy_loss.loss_mode={mode} is not known to be proportional to the advantage": (
            mode not in PROPORTIONAL
        ),
        "actor.loss_agg_mode=seq-mean-token-sum-norm divides by the longest response of a micro-batch, unless "
        "actor.loss_scale_factor is set": (
            actor.loss_agg_mode == "seq-mean-token-sum-norm" and actor.loss_scale_factor is None and mode != "sapo"
        ),
        "actor.shuffle draws mini-batches by the number of rows": actor.shuffle,
        "distillation learns from every rollout": bool(distillation and distillation.get("enabled")),
        "model.mtp learns from every rollout": bool(model.get("mtp") and model.mtp.get("enable")),
        f"actor.strategy={actor.strategy} was not tried; its engine may add losses of its own, such as that of a "
        "router": actor.strategy not in ("fsdp", "fsdp2"),
    }
    return next((reason for reason, holds in obstacles.items() if holds), None)
