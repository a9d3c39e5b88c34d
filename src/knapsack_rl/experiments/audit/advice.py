"""What to do about it: sentences that follow from an audit's figures, and nothing that does not."""

from __future__ import annotations

import numpy as np
import pandas as pd

from knapsack_rl.experiments.audit import graders, tables
from knapsack_rl.experiments.audit.audit import Audit
from knapsack_rl.experiments.audit.group_sizes import SIZES, GroupSizes
from knapsack_rl.experiments.pages.wording import percent
from knapsack_rl.experiments.report import learning_progress

_LITTLE = 0.2  # share of the rollouts without gradient below which they are not what holds a run up
_MUCH = 0.5
_WORTH = 0.02  # difference in shares that is worth a sentence


def advice(audit: Audit) -> list[str]:
    """What follows, the bottleneck first; nothing where the figures are not to be trusted."""
    if audit.all_single:
        return ["Nothing follows from groups of one rollout. Settle what a group is first."]
    said = [_bottleneck(audit)]
    if not audit.knows_right:
        said.append(
            "What was spent on solved and on hopeless prompts, and what groups of another size would have given, "
            "cannot be told without --success-above X."
        )
    else:
        said += [_waste(audit), *_size(audit), *_gains(audit), *_plans(audit)]
    said.append(_skipping(audit))
    return said


def waste(audit: Audit) -> dict[str, float]:
    """Of the rollouts without gradient, the shares by what their prompt is; they add up to one."""
    log = audit.log
    rollouts, successes = graders.by_prompt(log)
    wasted = log.rollouts * log.without_gradient
    total = float(wasted.sum())
    if not total:
        return {}
    suspects = np.zeros(len(log.keys), dtype=bool)
    suspects[graders.suspicious_prompts(log)["prompt"].to_numpy(dtype=np.int64)] = True
    suspects |= np.isin(log.categories, graders.unsolved_categories(log)["category"].to_numpy(dtype=str))
    never, always = successes == 0, successes == rollouts
    kinds = {
        "oddly graded prompts": suspects,
        "solved prompts": always & ~suspects,
        "hopeless prompts": never & ~suspects,
        "prompts in between": ~always & ~never & ~suspects,
    }
    return {kind: float(wasted[of[log.prompt]].sum() / total) for kind, of in kinds.items()}


def size_table(audit: Audit, sizes: GroupSizes) -> pd.DataFrame:
    """Groups of other sizes; columns as the page shows them."""
    share = np.where(sizes.share > 0.0, sizes.share, np.nan)
    return pd.DataFrame(
        {
            "rollouts in a group": SIZES,
            f"groups {_what(audit)}": sizes.share,
            "from": sizes.low,
            "to": sizes.high,
            "cost": np.array(SIZES) / sizes.mean,
            f"rollouts for one {_what(audit)}": np.array(SIZES) / share,
        }
    )


def _what(audit: Audit) -> str:
    """What groups are expected to be, where gradients are more than right and wrong."""
    return "mixed" if tables.only_successes(audit.log) else "with gradient"


def _bottleneck(audit: Audit) -> str:
    share = tables.without_gradient(audit.log)
    if share < _LITTLE:
        return (
            f"Rollouts were not the bottleneck as far as a log can tell: only {percent(share)} of them had no "
            "gradient. Placing them otherwise has little to win; look at what is learned from each."
        )
    if share < _MUCH:
        return (
            f"{percent(share)} of the rollouts had no gradient. That is worth a try of other plans if generation takes "
            "most of a step, which a log does not say."
        )
    return (
        f"{percent(share)} of the rollouts had no gradient, so that a step learned from {percent(1.0 - share)} of "
        "what it generated. If generation takes most of a step, which a log does not say, rollouts are the bottleneck."
    )


def _waste(audit: Audit) -> str:
    parts = waste(audit)
    if not parts:
        return "No rollout was without gradient, so that there is nothing to save."
    shares = ", ".join(f"{percent(share)} went to {kind}" for kind, share in parts.items() if share)
    largest = max(parts, key=lambda kind: parts[kind])
    todo = {
        "solved prompts": "Leave out prompts that are always solved, or add harder ones.",
        "hopeless prompts": "Leave out prompts that are never solved, give them more rollouts now and then, or add "
        "easier ones.",
        "oddly graded prompts": "Read the completions of the prompts under “Graders to look at” before anything else.",
        "prompts in between": "These prompts are solved at times: more rollouts at the right visit would find a "
        "gradient, which is what allocation does.",
    }[largest]
    return f"Of the rollouts without gradient, {shares}. {todo}"


def _size(audit: Audit) -> list[str]:
    sizes = audit.sizes
    if sizes is None:
        return []
    mean = sizes.mean
    said = []
    for place, size in (_nearest(mean / 2), _nearest(2 * mean)):
        if size and abs(size - mean) > 0.4 * mean:
            interval = (
                "" if np.isnan(sizes.low[place])
                else f" (95 % interval {percent(sizes.low[place])} to {percent(sizes.high[place])})"
            )  # fmt: skip
            said.append(
                f"of {size}, at {size / mean:.2g} times the rollouts, {percent(sizes.share[place])} would be "
                f"expected to {'be mixed' if tables.only_successes(audit.log) else 'have a gradient'}{interval}"
            )
    mixed = float(audit.log.mixed.mean())
    if not said:
        return []
    return [f"Of the groups, {mean:.3g} rollouts each on average, {percent(mixed)} were mixed; {'; '.join(said)}."]


def _nearest(size: float) -> tuple[int, int]:
    place = int(np.argmin([abs(np.log(one / max(size, 0.1))) for one in SIZES]))
    return place, SIZES[place]


def _gains(audit: Audit) -> list[str]:
    """Whether an allocation that favours hard prompts can be expected to help, by the rule of `knapsack-rl probe`."""
    if audit.progress is None:
        return []
    if audit.progress.found is None:
        return [
            f"Whether hard prompts gain most from their visits, which says whether an allocation helps, is not told: "
            f"{audit.progress.why_not}. knapsack-rl probe measures it."
        ]
    follows = {
        "hard": "Hard prompts gain most, so that adaptive, which favours them, can be expected to help.",
        "even": "That is too little for an allocation that favours hard prompts: keep groups even.",
        "unclear": "Whether an allocation helps cannot be told from that; cautious begins even, and watches "
        "the first four visits of each prompt.",
    }[learning_progress.favoured(audit.progress.found)]
    begins = int(audit.log.step.min())
    late = (
        f" But the log begins at step {begins:,}. If the run had steps before, these are not the first visits of its "
        "prompts, and hard ones seem to gain most in every run that has gone on for long."
        if begins > 1
        else ""
    )
    return [f"{learning_progress.sentence(audit.progress.found)} {follows}{late}"]


def _plans(audit: Audit) -> list[str]:
    if not audit.others or audit.expectation is None:
        return ["Plans that learn from earlier visits could not be tried: no prompt came back, or no group was mixed."]
    name = max(audit.others, key=lambda strategy: audit.others[strategy])
    gain = audit.expectation.gain
    worth = (
        f"What {audit.options.strategy} would have gained cannot be told from nothing."
        if np.isnan(gain.low) or gain.low <= _WORTH
        else f"Those of {audit.options.strategy} are expected to gain {100 * gain.value:.1f} points of rollouts with "
        "a gradient."
    )
    listed = ", ".join(f"{one} {percent(share)}" for one, share in sorted(audit.others.items(), key=lambda x: -x[1]))
    return [
        f"The plans of {name} differ most from what was spent: they would have put {percent(audit.others[name])} of "
        f"the rollouts elsewhere ({listed}). {worth} Whether a policy learns more from it, only training tells: "
        "knapsack-rl compare."
    ]


def _skipping(audit: Audit) -> str:
    saved, what = skipped(audit)
    return (
        f"Leaving rollouts without gradient out of the update, which changes no gradient but what a penalty on the "
        f"distance from the reference adds, would have saved {percent(saved)} of the training time after generation "
        f"(their share of the {what})."
    )


def skipped(audit: Audit) -> tuple[float, str]:
    """The share of the forward and backward passes that had no gradient, and what it is a share of."""
    totals = tables.token_totals(audit.log, None, None)
    if totals["spent"]:
        return totals["without gradient"] / totals["spent"], "tokens"
    return tables.without_gradient(audit.log), "rollouts"
