"""What an audit found, in sentences: for the console and for the top of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from knapsack_rl.experiments.audit import graders, tables
from knapsack_rl.experiments.audit.audit import Audit
from knapsack_rl.experiments.audit.expectation import FEW_PROMPTS, Estimate, Expectation
from knapsack_rl.experiments.audit.files import are_shards, in_one_place
from knapsack_rl.experiments.audit.names import listed
from knapsack_rl.experiments.pages.wording import percent, plural

_LARGE = 512  # rollouts of a group beyond which it is doubtful
_ODD = 0.2  # share of the groups that are not of the usual size, from which that is doubtful
_ENOUGH = 3  # groups from which sizes mean something


def summary(audit: Audit) -> list[str]:
    """The findings, a paragraph each; what speaks against the grouping comes first."""
    if audit.all_single:
        return [*_grouping_sentences(audit), *_grader_sentences(audit)]
    return [
        *_grouping_sentences(audit),
        *_outcome_sentences(audit),
        *_plan_sentences(audit),
        *_token_sentences(audit),
        *_grader_sentences(audit),
    ]


def remarks(audit: Audit) -> list[str]:
    """What a reader should know about how the log was understood."""
    log, reading = audit.log, audit.reading
    said = [*reading.files.remarks, *dict.fromkeys(remark for columns in reading.columns for remark in columns.remarks)]
    said += _value_remarks(audit)
    bad = sum(reading.problems.counts.values())
    if bad:
        kinds = "; ".join(
            f"{kind} ({count:,}; {reading.problems.examples[kind][0]})"
            for kind, count in reading.problems.counts.items()
        )
        said.append(f"Not used: {kinds}. See “What was read”.")
    said += [*_time_remarks(audit), *_identity_remarks(audit)]
    if log.repeated_steps:
        said.append(
            f"{plural(len(log.repeated_steps), 'step')} held exactly the rollouts of the step before and counted once: "
            "TRL logs a generation batch at every update that is made from it."
        )
    said += [*_reward_remarks(audit), *_survivor_remarks(audit), *_shape_remarks(audit)]
    return said


def _grouping_sentences(audit: Audit) -> list[str]:
    """Group sizes that no trainer would make: a sign that groups are not what was taken for them."""
    log = audit.log
    sizes, counts = np.unique(log.rollouts, return_counts=True)
    usual = int(sizes[np.argmax(counts)])
    if audit.all_single:
        total = int(log.rollouts.sum())
        come_back = len(log.step) > len(log.keys) and audit.reading.steps_from == "order"
        more = (
            " If all rows of a prompt are one group, as in files of pass@k, say so with --pass-at-k."
            if come_back
            else ""
        )
        return [
            f"{plural(total, 'rollout')} of {plural(len(log.keys), 'prompt')}, and every group is of one rollout. "
            "Whether a rollout had a gradient is a matter of others in its group, so that no share is given. Unless "
            "that is how the run was, the column that tells prompts apart is not the right one (--prompt COLUMN, "
            f"--id COLUMN), or that of steps is not (--step COLUMN).{more}"
        ]
    if any(columns.counts for columns in audit.reading.columns):
        return []
    if usual > _LARGE:
        return [
            f"Look at the grouping first: groups of {usual:,} rollouts are larger than trainers make them. The "
            "column that tells prompts apart may stand for many of them (--prompt COLUMN, --id COLUMN)."
        ]
    odd = float(1.0 - counts.max() / counts.sum())
    merged = _merged_sentences(audit)
    if not merged and odd > _ODD and counts.sum() >= _ENOUGH:
        return [
            f"Look at the grouping first: groups have {len(sizes):,} different sizes, {sizes[0]:,} to "
            f"{sizes[-1]:,}, and {percent(odd)} of them are not of the usual {usual:,}. A trainer makes groups of "
            "one size, unless it allocates rollouts. If this one did not, prompts or steps are not told apart "
            "rightly (--prompt COLUMN, --id COLUMN, --step COLUMN), and the shares below are wrong."
        ]
    if usual == 1 or (sizes[0] == 1 and counts[0] > 0.5 * counts.sum()):
        return [
            f"Look at the grouping first: {counts[0]:,} of {counts.sum():,} groups are of one rollout, which no "
            "trainer that compares rollouts makes. The column that tells prompts apart is not the right one "
            "(--prompt COLUMN, --id COLUMN), or steps are missing."
        ]
    return merged


def _outcome_sentences(audit: Audit) -> list[str]:
    """What was spent, and what on right and wrong, where they are told apart."""
    log = audit.log
    rewards = log.rewards
    if not audit.knows_right:
        return [f"{_spent(audit)}.", _unknown_right(audit)]
    _, correct, wrong = (_part(log.rollouts, groups) for groups in tables.kinds(log))
    balanced = _part(log.rollouts, log.without_gradient & log.mixed)
    more = f", {percent(balanced)} mixed with rewards that add up to the same" if balanced else ""
    if log.with_advantages:
        more = f", {percent(balanced)} with both right and wrong ones but no advantage" if balanced else ""
    spent = f"{_spent(audit)}: {percent(correct)} all correct, {percent(wrong)} all wrong{more}."
    assumed = _assumed(audit) if rewards.count else ""
    return [f"{spent}{assumed}", _prompts_sentence(audit)]


def _unknown_right(audit: Audit) -> str:
    rewards = audit.log.rewards
    above = audit.options.success_above or 0.0
    values = sorted(rewards.values)
    if above < rewards.low < rewards.high:
        said = (
            f"Every reward is above {above:g}, between {rewards.low:g} and {rewards.high:g}, so that all rollouts "
            "count as successes: --success-above X has to say which of them are."
        )
    elif audit.options.success_above is not None and rewards.none_above(above):
        tried = f"--success-above {sum([0.0, *values][-2:]) / 2.0:g}" if len(values) <= 4 else "a smaller one"
        said = f"No reward is above {above:g}; the largest is {rewards.high:g}: try {tried}."
    elif rewards.low == rewards.high:
        said = f"All rewards are {rewards.low:g}: nothing says whether that is right or wrong (--success-above X)."
    else:
        few = len(values) <= 4
        took = f"the values {', '.join(f'{one:g}' for one in values)}" if few else "many values"
        example = f", say --success-above {(values[-2] + values[-1]) / 2.0:g}" if few else ""
        said = (
            f"Rewards take {took} between {rewards.low:g} and {rewards.high:g}, and nothing says from where on a "
            f"rollout is right: --success-above X does{example}."
        )
    return f"{said} Until then nothing is said of right and wrong, nor of what other plans would have given."


def _assumed(audit: Audit) -> str:
    """What was taken for right, where the user did not say so and it is not simply 1."""
    rewards = audit.log.rewards
    if audit.options.success_above is not None or rewards.values <= {0.0, 1.0}:
        return ""
    values = " and ".join(f"{one:g}" for one in sorted(rewards.values))
    return f" Assumed: a reward above 0 is right, since rewards are {values} (--success-above X says otherwise)."


def _spent(audit: Audit) -> str:
    log = audit.log
    total, steps = int(log.rollouts.sum()), len(np.unique(log.step))
    called = "visit" if audit.reading.steps_from == "order" else "step"
    in_steps = "" if audit.reading.pooled else f" in {plural(steps, called)}"
    why = (
        "since all advantages of their group were zero" if log.with_advantages
        else "since all rewards of their group were equal"
    )  # fmt: skip
    return (
        f"{plural(total, 'rollout')} of {plural(len(log.keys), 'prompt')}{in_steps}. "
        f"{percent(tables.without_gradient(log))} of the rollouts had no gradient, {why}"
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
    if not audit.knows_right:
        return []
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
    if not audit.knows_right:
        return said
    unsolved = graders.unsolved_categories(log)
    if len(unsolved):
        names = ", ".join(unsolved["category"].head(3))
        said.append(_unsolved_sentence(len(unsolved), names))
    changed = audit.changed_categories
    said += [f"At step {row.step:,}: {row.what}" for row in changed.head(3).itertuples()]
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


def _value_remarks(audit: Audit) -> list[str]:
    """Columns of which only some values count, and columns with values of several runs."""
    reading = audit.reading
    said = []
    gradings = {columns.grading for columns in reading.columns}
    for name, out in reading.left_out.items():
        if not out:
            continue
        kept = reading.kept[name]
        values = f"{name} has {plural(len(out) + len(kept), 'value')}, {listed([*kept, *out], 5)}"
        if name in gradings:
            said.append(f"{values}: each response stands in the log once for each. Only rows of {listed(kept)} count.")
        else:
            said.append(f"{values}: rows of an evaluation were left out, and only {listed(kept)} counts.")
    for name, found in reading.runs.items():
        if len(found) > 1:
            said.append(
                f"{name} has {plural(len(found), 'value')}, {listed(found, 5)}: their groups were kept apart, but "
                "all count as one run here. Audit them apart."
            )
    return said


def _time_remarks(audit: Audit) -> list[str]:
    """Where steps come from, and what happened where they go back."""
    log, reading = audit.log, audit.reading
    said = []
    if reading.steps_from in ("file names", "folder names"):
        said.append(f"No column is a step: steps were guessed from {reading.steps_from}.")
    if reading.alike:
        one, other = reading.alike
        said.append(
            f"{one} and {other} hold the same rows. They were taken for parts of the same groups, since rollouts of "
            "groups that did alike look the same. If every rank wrote the whole batch, audit the files of one of them."
        )
    if reading.steps_from == "file names" and _a_prompt_a_file(audit):
        said.append(
            "Each file holds a prompt of its own, so that the numbers in their names may be the prompts' and no steps."
        )
    if reading.steps_from == "order":
        said.append(
            "The log has no steps: consecutive rows of one prompt were taken for a group, and its nth group for its "
            "nth visit. Plans pair visits and not times: they put the nth visits of all prompts together, however far "
            "apart these were. If rows of several prompts are interleaved, name a step with --step COLUMN; if all "
            "rows of a prompt are one group, say so with --pass-at-k."
        )
    if reading.pooled and log.told.files_in_common:
        said.append(
            f"{plural(log.told.files_in_common, 'prompt')} came in several of the {len(reading.files.found):,} files "
            "and are one group each. If the files are of several models or runs, audit them apart."
        )
    if log.writers:
        said.append(
            f"Prompts come equally often in the files of each of {log.writers:,} writers, as names call them: the nth "
            "group of a prompt is the sum of its nth groups in all of them. If these are several runs, audit each."
        )
    elif reading.steps_from == "order" and log.told.files_in_common:
        said.append(
            f"{plural(log.told.files_in_common, 'prompt')} came in several of the {len(reading.files.found):,} "
            "files: without steps these were joined, and those of a later file are later visits of the same run. If "
            "the files are of several models or runs, audit them apart."
        )
    if log.resumption is not None:
        first, *others = log.resumption.descents
        more = f" and {plural(len(others), 'other row')}" if others else ""
        said.append(
            f"Steps go back at row {first.row:,} of {first.path.name}, to step {first.step:,}{more}: the run was "
            "resumed. Of steps that were logged again the last attempt counts: "
            f"{percent(tables.without_gradient(log))} of its {plural(int(log.rollouts.sum()), 'rollout')} had no "
            f"gradient. With all attempts it is {percent(log.resumption.all_without_gradient)} of "
            f"{plural(log.resumption.all_rollouts, 'rollout')}."
        )
    said += [
        f"Steps go back at row {one.row:,} of {one.path.name}, to step {one.step:,}, and all steps come again with the "
        "same groups. They were taken for parts of the same groups, as where the logs of several ranks were put "
        "together. If the run was started a second time instead, audit the rows of one start alone."
        for one in log.in_doubt[:1]
    ]
    return said


def _a_prompt_a_file(audit: Audit) -> bool:
    """Whether every step is one group, and no prompt comes back."""
    log = audit.log
    return 1 < len(log.step) == len(np.unique(log.step)) == len(log.keys)


def _identity_remarks(audit: Audit) -> list[str]:
    """Ids that are none."""
    told = audit.log.told
    names = dict.fromkeys(name for columns in audit.reading.columns for name in columns.identity.ids)
    texts = dict.fromkeys(name for columns in audit.reading.columns for name in columns.identity.texts)
    if not told.ids or told.by == "ids":
        return []
    if told.texts_of_an_id > 1:
        return [
            f"{listed(list(names))} is no id of prompts: one of its values stands for {told.texts_of_an_id:,} "
            f"different prompts. It may be numbered anew in each step, file or data set. Prompts were told apart by "
            f"{listed(list(texts))}, and groups in a step by both."
        ]
    return [
        f"{listed(list(names))} is new in every step, while prompts come back: prompts were told apart by "
        f"{listed(list(texts))}."
    ]


def _survivor_remarks(audit: Audit) -> list[str]:
    """Logs of which somebody has left out the groups without gradient."""
    log = audit.log
    if len(log.step) < 2 or (log.without_gradient | log.equal_rewards).any() or (log.rollouts == 1).any():
        return []
    return [
        f"Not one of {len(log.step):,} groups is without gradient. Trainers that filter groups, such as verl with "
        "algorithm.filter_groups (DAPO's dynamic sampling), log only those that survived: rollouts of groups that "
        "were all right or all wrong were generated and thrown away, and are not in the log. If this run did so, it "
        "wasted more than any share here says, and prompts that are always or never solved are missing."
    ]


def _reward_remarks(audit: Audit) -> list[str]:
    log, rewards = audit.log, audit.log.rewards
    above = 0.0 if audit.options.success_above is None else audit.options.success_above
    said = []
    if rewards.count and audit.knows_right and (rewards.others or rewards.values >= {-1.0, 0.0}):
        said.append(
            f"Rewards lie between {rewards.low:g} and {rewards.high:g}; {rewards.others:,} of {rewards.count:,} are "
            f"neither 0, 1 nor -1. Above {above:g} counts as a success (--success-above X)."
        )
    elif rewards.count and rewards.low == rewards.high:
        said.append(f"All {rewards.count:,} rewards are {rewards.low:g}.")
    if log.with_advantages:
        zero = int((log.without_gradient & ~log.equal_rewards).sum())
        if zero:
            by_rewards = _part(log.rollouts, log.equal_rewards)
            said.append(
                f"{plural(zero, 'group')} had different rewards and yet no advantage: their columns are metrics or "
                "have no weight, or the log does not hold the advantages that were used. By the rewards "
                f"{percent(by_rewards)} of the rollouts had no gradient."
            )
        beyond = int((~log.without_gradient & log.equal_rewards).sum())
        if beyond:
            said.append(
                f"{plural(beyond, 'group')} had equal rewards and yet an advantage, as where the baseline is not the "
                "group's mean: they count as having a gradient."
            )
    graded = int((~log.without_gradient & ~log.mixed & ~log.equal_rewards).sum())
    if graded and audit.knows_right:
        said.append(
            f"{plural(graded, 'group')} had different rewards but all on one side of the threshold: they count as "
            "having a gradient above, and as having none in the expectations, which only know successes."
        )
    return said


def _shape_remarks(audit: Audit) -> list[str]:
    log = audit.log
    said = []
    if audit.plans is not None and audit.plans.outside:
        said.append(
            f"{plural(audit.plans.outside, 'step')} spent less or more per prompt than --min-rollouts and "
            "--max-rollouts allow; there the plan is taken as even."
        )
    if audit.expectation is not None and FEW_PROMPTS <= audit.expectation.clusters < 30:
        said.append(f"With {plural(audit.expectation.clusters, 'prompt')}, intervals are rough.")
    if log.answers.lossy or log.completions.lossy:
        said.append("Completions are so many that those seen once were forgotten when graders were looked at.")
    return said


def _merged_sentences(audit: Audit) -> list[str]:
    """Groups that may have been several."""
    log = audit.log
    shared = int(log.several_arguments.sum())
    paths = audit.reading.files.paths
    if shared and not (are_shards(paths) and (in_one_place(paths) or audit.reading.steps_from == "folder names")):
        return [
            f"Look at the grouping first: {plural(shared, 'group')} came from several of the LOGS that were given, "
            "with the same step and prompt, and were merged. Give one run at a time."
        ]
    parts = int(log.several_files.sum())
    if parts > 0.5 * len(log.step) and not audit.reading.pooled and not are_shards(paths):
        return [
            f"Look at the grouping first: {plural(parts, 'group')} came from several files, with the same step and "
            "prompt, and were merged. That is right for shards of one run, which the files' names do not say. If "
            "they are several runs or models, audit them apart."
        ]
    starts = np.flatnonzero(np.diff(log.step, prepend=log.step[0] - 1))
    fewest = np.repeat(np.minimum.reduceat(log.rollouts, starts), np.diff(starts, append=len(log.step)))
    larger = int((log.rollouts > fewest).sum())
    # Plans that differ by prompt give sizes that are no multiples, sooner or later.
    if 0 < larger < len(fewest) / 2 and fewest.min() > 1 and not (log.rollouts % fewest).any():
        return [
            f"Look at the grouping first: {plural(larger, 'group')} had two or more times the rollouts of the "
            "others in their step. A prompt that came several times in a step counts as one group; --id COLUMN "
            "tells its groups apart, if a column does."
        ]
    sizes, counts = np.unique(log.rollouts, return_counts=True)
    usual = int(sizes[np.argmax(counts)])
    doubled = [int(log.step[start]) for start in starts if fewest[start] > usual and not fewest[start] % usual]
    if doubled and len(doubled) < len(starts) / 2 and usual > 1:
        return [
            f"Look at the grouping first: all groups of {plural(len(doubled), 'step')}, step {doubled[0]:,} the first, "
            f"had two or more times the usual {usual:,} rollouts, as where a resumed run logs a step once more."
        ]
    return []


def console_lines(audit: Audit) -> Sequence[tuple[str, str]]:
    """What the console says: a label and a text each."""
    reading = audit.reading
    lines = [("read", f"{plural(reading.rows, 'row')} of {plural(len(reading.files.found), 'file')}")]
    for columns in reading.columns:
        told = columns.said(reading.asked)
        if "step" not in told and reading.steps_from in ("file names", "folder names"):
            told["step"] = f"{reading.steps_from} (guessed)"
        lines.append(("columns", ", ".join(f"{role}: {name}" for role, name in told.items())))
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
