"""Whether an allocation can be expected to help, and which: a pure function of what a probe measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from knapsack_rl import metrics
from knapsack_rl.experiments.pages.wording import percent, plain
from knapsack_rl.experiments.probe.numbers import Estimate, Numbers, Worth
from knapsack_rl.experiments.report import learning_progress
from knapsack_rl.experiments.report.learning_progress import CLEARLY

Kind = Literal["solved", "unsolved", "more steps", "uniform", "adaptive", "unclear"]

NEARLY_ALL = 0.9
"""Share of prompts that counts as nearly all of them: of the others a step has too few for an allocation to matter."""
_FAVOURING: dict[str, Kind] = {"hard": "adaptive", "even": "uniform", "unclear": "unclear"}
_AT_MOST = 10  # times the prompts that were visited; a probe is meant to be short


@dataclass(frozen=True)
class Verdict:
    """What follows from a probe.

    Attributes:
        kind: which rule it was.
        strategy: the strategy to begin with.
        headline: the verdict in a sentence.
        reasons: sentences on what it goes by: what limits the run, and who pulls the others up or down.
        advice: sentences on what to do, and what that may cost.
    """

    kind: Kind
    strategy: str
    headline: str
    reasons: Sequence[str]
    advice: Sequence[str]


def verdict(numbers: Numbers) -> Verdict:
    """The first rule that holds; docs/probe.md has them in a table."""
    kind = _kind(numbers)
    strategy, headline, advice = _SAID[kind]
    if kind == "unclear":
        advice = (*advice, *_longer(numbers))
    reasons = [_gradients(numbers), learning_progress.sentence(numbers.gains), _limits(numbers), *_who_pulls(numbers)]
    return Verdict(kind, strategy, headline, reasons, advice)


def _kind(numbers: Numbers) -> Kind:
    if numbers.statuses["extremely easy"].low > NEARLY_ALL:
        return "solved"
    if numbers.statuses["extremely hard"].low > NEARLY_ALL:
        return "unsolved"
    if numbers.noise_scale.high < numbers.prompts_per_step:
        return "more steps"
    return _FAVOURING[learning_progress.favoured(numbers.gains)]


def _pulls(one: Worth, way: float) -> bool:
    """Whether it clearly pulls the others up (way 1) or down (-1)."""
    return way * one.worth > CLEARLY * one.error


def _longer(numbers: Numbers) -> list[str]:
    """How many prompts it takes if what was seen is right: errors fall with the root of their number."""
    if not numbers.gains.told:
        return [
            "Too few steps had prompts that came again. It takes eight, among the first four visits of each prompt: "
            "take more prompts, and steps enough for four visits to each, or fewer prompts in a step."
        ]
    seen = max(numbers.gains.lean)
    times = (CLEARLY / seen) ** 2 if seen > CLEARLY / _AT_MOST else math.inf
    if times > _AT_MOST:
        return ["A longer probe is not expected to tell: what was seen is too close, or nobody gains."]
    prompts = times * numbers.prompts
    steps = 10 * math.ceil((metrics.EARLY + 1) * prompts / numbers.prompts_per_step / 10)
    return [
        f"If what was seen is right, {plain(math.ceil(prompts))} prompts would tell, visited four times each: "
        f"{plain(steps)} steps. The same prompts once more would not."
    ]


_SAID: dict[Kind, tuple[str, str, tuple[str, ...]]] = {
    "solved": (
        "uniform",
        "Nearly everything is solved: there is nothing for an allocation to gain.",
        ("Take other data, or harder ones.",),
    ),
    "unsolved": (
        "uniform",
        "Nearly nothing is solved: an allocation has nothing to go by.",
        ("Take easier data, a warm start on worked examples, or hints in the prompts.",),
    ),
    "more steps": (
        "uniform",
        "This run wants more steps rather than more rollouts.",
        ("Keep groups even, leave rollouts without gradient out (skip_idle), and take more and smaller steps.",),
    ),
    "uniform": (
        "uniform",
        "Keep groups even: hard prompts gain too little from visit to visit for an allocation that favours them.",
        (
            "Leave rollouts without gradient out of the update (skip_idle): that costs nothing.",
            "The strategies adaptive and knapsack can be expected to end level with uniform, or below.",
        ),
    ),
    "adaptive": (
        "adaptive",
        "An allocation can be expected to help: hard prompts gain most from visit to visit. Begin with adaptive.",
        (
            "It generates three times in a step instead of once.",
            "Compare it with uniform on several seeds before you rely on it.",
        ),
    ),
    "unclear": (
        "cautious",
        "So many steps cannot tell which allocation helps: probe longer, or begin with the strategy cautious.",
        ("Cautious keeps groups even until it is clear that hard prompts gain most, and does as adaptive does then.",),
    ),
}
"""Kind -> strategy, headline, advice."""


def _gradients(numbers: Numbers) -> str:
    right, wrong = numbers.all_right.value, numbers.all_wrong.value
    learned = numbers.learned
    rose = (
        ""
        if math.isnan(learned.low)
        else f" From a prompt's first visit to its last its success rate changed by "
        f"{100.0 * learned.low:+.1f} to {100.0 * learned.high:+.1f} points."
    )
    return (
        f"{percent(right + wrong)} of the groups had no gradient: {percent(right)} were all right and {percent(wrong)} "
        f"all wrong.{rose}"
    )


def _limits(numbers: Numbers) -> str:
    """Whether rollouts limit the run, by the noise scale; one above the step alone does not say so (docs/probe.md)."""
    scale, prompts = numbers.noise_scale, numbers.prompts_per_step
    if math.isnan(scale.low) or math.isnan(scale.high):
        return "How noisy a step is could not be measured: too few steps had two groups with a gradient."
    said = f"The noise scale is {between(scale)} prompts, and a step has {prompts:,}"
    if scale.high < prompts:
        return f"{said}: noise does not limit this run, and more rollouts in a step would do little."
    if scale.low > prompts:
        return (
            f"{said}: a step is mostly noise. More rollouts would make better steps; whether they make a better model, "
            "only a comparison with twice the group tells."
        )
    return f"{said}: whether noise limits a step is not clear."


def _who_pulls(numbers: Numbers) -> list[str]:
    """Who pulls the others up and who down."""
    if not numbers.common.low > 0.0:
        return ["Groups have no direction in common that shows: what one is worth to the others is not known."]
    columns = {"believed success rate": numbers.bands, **numbers.categories}
    return [_sorted_out(what, some) for what, some in columns.items() if some]


def _sorted_out(what: str, some: Sequence[Worth]) -> str:
    up, down = ([one.name for one in some if _pulls(one, way)] for way in (1.0, -1.0))
    said = [
        f"{', '.join(names)} {'pulls' if len(names) == 1 else 'pull'} the others {way}"
        for names, way in ((up, "up"), (down, "down"))
        if names
    ]
    unclear = len(some) - len(up) - len(down)
    rest = [f"of {unclear} it is not clear"] if unclear else []
    return f"By {what}: {'; '.join(said + rest)}."


def between(scale: Estimate) -> str:
    """The interval of a noise scale in words."""
    if math.isinf(scale.low):
        return "above any number of"
    low, high = plain(round(scale.low)), scale.high
    return f"at least {low}" if math.isinf(high) else f"{low} to {plain(round(high))}"
