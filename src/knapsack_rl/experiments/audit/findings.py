"""What an audit found, in sentences: for the console and for the top of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from knapsack_rl.experiments.audit import graders, tables
from knapsack_rl.experiments.audit.accounting import Log
from knapsack_rl.experiments.audit.audit import Audit
from knapsack_rl.experiments.audit.expectation import FEW_PROMPTS, Estimate, Expectation
from knapsack_rl.experiments.pages.wording import percent, plural


def summary(audit: Audit) -> list[str]:
    """The findings, a paragraph each."""
    return [
        *_outcome_sentences(audit),
        *_plan_sentences(audit),
        *_token_sentences(audit),
        *_grader_sentences(audit),
    ]


def remarks(audit: Audit) -> list[str]:
    """What a reader should know about how the log was understood."""
    log, reading = audit.log, audit.reading
    said = [remark for columns in reading.columns for remark in columns.remarks]
    bad = sum(reading.problems.counts.values())
    if bad:
        kinds = ", ".join(f"{kind} ({count:,})" for kind, count in reading.problems.counts.items())
        said.append(f"Not used: {kinds}; see “What was read”.")
    if reading.steps_from == "order":
        said.append(
            "The log has no steps: consecutive rows of one prompt were taken for a group, and its nth group for its "
            "nth visit. Plans pair visits and not times: they put the nth visits of all prompts together, however far "
            "apart these were. If rows of several prompts are interleaved, name a step with --step COLUMN."
        )
    if log.repeated_steps:
        said.append(
            f"{plural(len(log.repeated_steps), 'step')} held exactly the rollouts of the step before and counted once: "
            "TRL logs a generation batch at every update that is made from it."
        )
    said += [*_reward_remarks(audit), *_shape_remarks(audit)]
    return said


def _outcome_sentences(audit: Audit) -> list[str]:
    """What was spent, and what on right and wrong, where the threshold tells them apart."""
    log, above = audit.log, audit.options.success_above
    rewards = log.rewards
    if above < rewards.low < rewards.high:
        return [
            f"Every reward is above {above:g}, between {rewards.low:g} and {rewards.high:g}, so that all rollouts "
            "count as successes: --success-above X has to say which of them are.",
            f"{_spent(audit)}.",
        ]
    _, correct, wrong = (_part(log.rollouts, groups) for groups in tables.kinds(log))
    balanced = _part(log.rollouts, log.without_gradient & log.mixed)
    more = f", {percent(balanced)} mixed with rewards that add up to the same" if balanced else ""
    spent = f"{_spent(audit)}: {percent(correct)} all correct, {percent(wrong)} all wrong{more}."
    return [spent, _prompts_sentence(audit)]


def _spent(audit: Audit) -> str:
    log = audit.log
    total, steps = int(log.rollouts.sum()), len(np.unique(log.step))
    called = "visit" if audit.reading.steps_from == "order" else "step"
    return (
        f"{plural(total, 'rollout')} of {plural(len(log.keys), 'prompt')} in {plural(steps, called)}. "
        f"{percent(_part(log.rollouts, log.without_gradient))} of the rollouts had no gradient, since all rewards of "
        "their group were equal"
    )


def _prompts_sentence(audit: Audit) -> str:
    log = audit.log
    rollouts, successes = graders.by_prompt(log)
    wasted = np.sort(np.bincount(log.prompt, log.rollouts * log.without_gradient, minlength=len(log.keys)))[::-1]
    never, always = int((successes == 0).sum()), int((successes == rollouts).sum())
    sentence = (
        f"{plural(never, 'prompt')} never had a success and took {percent(_part(rollouts, successes == 0))} of the "
        f"rollouts; {plural(always, 'prompt')} never had a failure and took "
        f"{percent(_part(rollouts, successes == rollouts))}."
    )
    tenth = max(1, len(wasted) // 10)
    if wasted.sum() and len(wasted) >= 10:
        share = percent(float(wasted[:tenth].sum() / wasted.sum()))
        sentence += f" The tenth of the prompts that wasted most holds {share} of the rollouts without gradient."
    return sentence


def _plan_sentences(audit: Audit) -> list[str]:
    log, expectation = audit.log, audit.expectation
    if len(log.step) == len(log.keys):
        return [
            "No prompt came twice, so an allocator that learns from earlier visits would have known nothing: its plans "
            "would have been uniform throughout."
        ]
    if expectation is None:
        return ["No group had both successes and failures, so that nothing tells what other plans would have given."]
    gain = expectation.gain
    more = gain.value * float(log.rollouts.sum())
    ordered = audit.reading.steps_from == "order"
    known = "the nth visits of all prompts as one step" if ordered else "each step from earlier steps alone"
    what = "have both successes and failures" if tables.only_successes(log) else "have a gradient"
    least = expectation.without_prior.low
    floor = "" if np.isnan(least) else f" Without a prior, at least {percent(least)}: the low end of its 95 % interval."
    return [
        f"Planned with {audit.options.strategy}, {known} and with the budget that was spent in it, "
        f"{percent(expectation.planned.value)} of the rollouts would be expected to {what} "
        f"({interval(expectation.planned, expectation)}), against {percent(expectation.spent.value)} expected of what "
        f"was spent ({percent(expectation.observed.value)} observed): {_points(gain.value)} points "
        f"({interval(gain, expectation, _points)}), or {more:+,.0f} rollouts.{floor}"
    ]


def _token_sentences(audit: Audit) -> list[str]:
    totals = tables.token_totals(audit.log, audit.plans, audit.expectation)
    if not totals["spent"]:
        return []
    share = percent(totals["without gradient"] / totals["spent"])
    said = (
        f"{totals['without gradient']:,.0f} of {totals['spent']:,.0f} tokens ({share}) were in groups without gradient."
    )
    if "planned" in totals:
        said += (
            f" The plans would have taken {totals['planned']:,.0f} tokens, "
            f"{_points(totals['planned'] / totals['spent'] - 1.0)} %."
        )
    return [said]


def _grader_sentences(audit: Audit) -> list[str]:
    log = audit.log
    said = []
    rewards = log.rewards  # none where rows are groups
    alike = log.successes.sum() in (0, log.rollouts.sum()) and not rewards.low < rewards.high
    if alike and len(log.keys) > 1:
        said.append("Every rollout of the log has the same outcome: look at the grader before anything else.")
    unsolved = graders.unsolved_categories(log)
    if len(unsolved):
        names = ", ".join(unsolved["category"].head(3))
        said.append(_unsolved_sentence(len(unsolved), names))
    matched = int(log.matched.sum())
    if matched:
        said.append(
            f"{plural(matched, 'rollout')} gave an answer that reads like the reference and failed nevertheless."
        )
    return [" ".join(said)] if said else []


def _unsolved_sentence(count: int, names: str) -> str:
    if count == 1:
        return f"One category has no single success in the whole log: {names}. That may be its grader."
    return f"{count:,} categories have no single success in the whole log ({names}). That may be their graders."


def _reward_remarks(audit: Audit) -> list[str]:
    rewards = audit.log.rewards
    count = rewards.zeros + rewards.ones + rewards.minus_ones + rewards.others
    said = []
    if rewards.others or (rewards.minus_ones and rewards.zeros):
        said.append(
            f"Rewards lie between {rewards.low:g} and {rewards.high:g}; {rewards.others:,} of {count:,} are neither 0, "
            f"1 nor -1. Above {audit.options.success_above:g} counts as a success (--success-above X)."
        )
    elif count and rewards.low == rewards.high:
        said.append(f"All {count:,} rewards are {rewards.low:g}.")
    graded = int((~audit.log.without_gradient & ~audit.log.mixed).sum())
    if graded:
        said.append(
            f"{plural(graded, 'group')} had different rewards but all on one side of the threshold: they count as "
            "having a gradient above, and as having none in the expectations, which only know successes."
        )
    return said


def _shape_remarks(audit: Audit) -> list[str]:
    log = audit.log
    said = []
    single = int((log.rollouts == 1).sum())
    if single > 0.5 * len(log.rollouts):
        said.append(
            f"{single:,} of {len(log.rollouts):,} groups are of one rollout. Unless that is how the run was, the "
            "column that tells prompts apart is not the right one (--prompt COLUMN, --id COLUMN), or steps are missing."
        )
    if audit.plans is not None and audit.plans.outside:
        said.append(
            f"{plural(audit.plans.outside, 'step')} spent less or more per prompt than --min-rollouts and "
            "--max-rollouts allow; there the plan is taken as even."
        )
    said += _merged_remarks(log)
    if audit.expectation is not None and FEW_PROMPTS <= audit.expectation.clusters < 30:
        said.append(f"With {plural(audit.expectation.clusters, 'prompt')}, intervals are rough.")
    if log.answers.lossy or log.completions.lossy:
        said.append("Completions are so many that those seen once were forgotten when graders were looked at.")
    return said


def _merged_remarks(log: Log) -> list[str]:
    """Groups that may have been several."""
    shared = int(log.several_arguments.sum())
    if shared:
        return [
            f"{plural(shared, 'group')} came from several of the LOGS that were given, with the same step and prompt, "
            "and were merged. Give one run at a time."
        ]
    starts = np.flatnonzero(np.diff(log.step, prepend=log.step[0] - 1))
    fewest = np.repeat(np.minimum.reduceat(log.rollouts, starts), np.diff(starts, append=len(log.step)))
    larger = int((log.rollouts > fewest).sum())
    # Plans that differ by prompt give sizes that are no multiples, sooner or later.
    if 0 < larger < len(fewest) / 2 and fewest.min() > 1 and not (log.rollouts % fewest).any():
        return [
            f"{plural(larger, 'group')} had two or more times the rollouts of the others in their step. A prompt that "
            "came several times in a step counts as one group; --id COLUMN tells its groups apart, if a column does."
        ]
    return []


def console_lines(audit: Audit) -> Sequence[tuple[str, str]]:
    """What the console says: a label and a text each."""
    reading = audit.reading
    lines = [("read", f"{plural(reading.rows, 'row')} of {plural(len(reading.files), 'file')}")]
    for columns in reading.columns:
        lines.append(("columns", ", ".join(f"{role}: {name}" for role, name in columns.said(reading.asked).items())))
    lines += [
        ("not used", f"{kind}: {count:,}, first {reading.problems.examples[kind][0]}")
        for kind, count in reading.problems.counts.items()
    ]
    return lines


def _part(rollouts: Any, chosen: Any) -> float:
    return float(rollouts[chosen].sum() / rollouts.sum())


def interval(estimate: Estimate, of: Expectation, write: Callable[[float], str] = percent) -> str:
    """The interval of an estimate, or why there is none."""
    if of.clusters < FEW_PROMPTS:
        return "no interval: too few prompts"
    if np.isnan(estimate.low):
        return "no interval: every resample gives the same"
    return f"95 % interval {write(estimate.low)} to {write(estimate.high)}"


def _points(share: float) -> str:
    return f"{round(100.0 * share, 1) + 0.0:+.1f}"  # + 0.0 takes the sign from -0.0
