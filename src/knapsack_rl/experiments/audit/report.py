"""The page of an audit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from knapsack_rl.experiments.audit import figures, graders, tables
from knapsack_rl.experiments.audit.advice import advice, size_table
from knapsack_rl.experiments.audit.as_json import as_json
from knapsack_rl.experiments.audit.audit import FIGURES, Audit, default_output
from knapsack_rl.experiments.audit.expectation import FEW_PROMPTS, Expectation
from knapsack_rl.experiments.audit.findings import interval, remarks, summary
from knapsack_rl.experiments.audit.replay import Replay
from knapsack_rl.experiments.disk import write_text
from knapsack_rl.experiments.pages.page import (
    Chart,
    DataTable,
    Facts,
    Note,
    Part,
    Section,
    alone,
    figures_of,
    refuse_others,
    write_page,
)
from knapsack_rl.experiments.pages.wording import percent
from knapsack_rl.experiments.report import learning_progress

_SUSPECTS = 30  # rows of the table
_PROMPT_WIDTH = 70
_STEPS_FROM = {
    "column": "the column", "file names": "the files' names (guessed)", "folder names": "the folders' names (guessed)",
    "order": "the order of rows", "one group": "nowhere: all rows of a prompt are one group",
}  # fmt: skip
_INTERVAL = (
    "The interval of 95 % comes from resampling prompts, with all their steps, and fitting the priors anew. It covers "
    "which prompts were drawn and how their rollouts fell. It does not cover that the model would have learned "
    "differently from other rollouts, which moves every later step; nor the shape of the prior, which matters where a "
    "plan gives a prompt more rollouts than the log drew."
)


def write_report(audit: Audit, output: Path | None, command: str) -> Path:
    """Write `report.html` and its folder `figures` into `output`, and return the page's path.

    Without `output` they go to `default_output`. Figures that an earlier audit wrote there, and this one has not, go.

    Raises:
        InvalidInputError: the folder cannot be written, or files of others in it would give way.
    """
    sections = [
        Section("Gradients", [*_gradients(audit), *_expected_gradients(audit)]),
        Section("What prompts gained", _gains(audit)),
        Section("What another allocation would have planned", _counterfactual(audit)),
        Section("Tokens", _tokens(audit)),
        Section("Graders to look at", _graders(audit)),
        Section("Prompts that took the budget", _concentration(audit)),
        Section("What was read", _read(audit)),
        Section("What to do about it", _advice(audit)),
    ]
    with _claimed(audit, output) as folder:
        earlier = figures_of(folder / "report.html")
        page = write_page(
            folder / "report.html",
            kind="audit of a rollout log",
            title=folder.name,
            summary=summary(audit),
            notes=remarks(audit),
            sections=sections,
            command=command,
        )
        write_text(folder / FIGURES, as_json(audit, page))
        for stale in earlier - figures_of(page):
            stale.unlink(missing_ok=True)
    return page


@contextmanager
def _claimed(audit: Audit, output: Path | None) -> Iterator[Path]:
    """The folder of the page, which no other process writes into; by default one that has no page of other logs."""
    if output is not None:
        refuse_others(output, "report.html", FIGURES)
    while True:
        folder = output or default_output(audit.logs)
        with alone(folder):
            if output or folder == default_output(audit.logs):  # not taken while we waited
                yield folder
                return


def _advice(audit: Audit) -> list[Part]:
    parts: list[Part] = [Note(sentence) for sentence in advice(audit)]
    if audit.sizes is None or audit.all_single:
        return parts
    band = not np.isnan(audit.sizes.low).any()
    table = size_table(audit, audit.sizes)
    if not band:
        table = table.drop(columns=["from", "to"])
    shares = (*(name for name in table.columns if name.startswith("groups ")), "from", "to")
    return [
        *parts,
        DataTable(
            "group-sizes",
            "Groups of other sizes",
            "Share of groups with both successes and failures, expected at other sizes from how the success rates are "
            f"spread{', with the 95 % interval' if band else ''}. “Cost” is in rollouts, against the mean of the "
            "log. Sizes beyond what was drawn rest on a fitted beta distribution of success rates.",
            table,
            formats=dict.fromkeys(shares, percent) | {"cost": lambda cost: f"{cost:.2f}x"},
        ),
    ]


def _gradients(audit: Audit) -> list[Part]:
    data = tables.gradient_shares(audit.log, audit.knows_right)
    few = len(np.unique(audit.log.step)) < 30
    smoothing = "One point per step." if few else "Light: each step; bold: mean of the last twentieth of the steps."
    return [
        Chart(
            "gradient-shares",
            "Rollouts with and without gradient",
            "Share of each step's rollouts in groups with a gradient (effective gradient ratio), and in groups without"
            f"{', since all were correct or all wrong' if audit.knows_right else ''}. {smoothing}",
            _source(audit),
            figures.gradient_shares,
            data,
        )
    ]


def _expected_gradients(audit: Audit) -> list[Part]:
    if audit.expectation is None:
        return []
    what, band = tables.expected(audit.log), audit.expectation.clusters >= FEW_PROMPTS
    return [
        Chart(
            "expected-gradients",
            f"Rollouts {what}, spent and planned",
            "Share of rollouts in groups with both successes and failures: as logged, as expected of fresh rollouts in "
            f"the same numbers, and as expected of the plans of {audit.options.strategy}"
            f"{', with their 95 % interval' if band else ''}. Where the two lines of what was spent lie together, "
            "nothing speaks against the model of success rates.",
            _source(audit),
            partial(figures.expected_shares, what=what),
            tables.expected_shares(audit.expectation),
        ),
    ]


def _gains(audit: Audit) -> list[Part]:
    if audit.progress is None:
        return []
    if audit.progress.found is None:
        return [Note(f"What prompts gain from one visit to the next is not told: {audit.progress.why_not}.")]
    return learning_progress.parts(audit.progress.found, _source(audit))


def _counterfactual(audit: Audit) -> list[Part]:
    if audit.plans is None or audit.expectation is None:
        return []
    plans, expectation = audit.plans, audit.expectation
    windows = _window_table(audit, plans, expectation)
    beliefs = tables.by_belief(audit.log, plans, expectation)
    whole = dict.fromkeys(beliefs.columns[-2:], _count)
    shares = dict.fromkeys(("spent, observed", "spent, expected", "planned, expected", "from", "to"), percent)
    return [
        *([Note(_INTERVAL)] if expectation.clusters >= FEW_PROMPTS else []),
        Note(_without_prior(expectation)),
        DataTable(
            "plans-by-belief",
            "Where the plans move rollouts",
            "Groups by the success rate at the visit before of their prompt.",
            beliefs,
            formats=whole,
        ),
        DataTable(
            "plans-by-window",
            "By part of the log",
            "Shares of rollouts in groups with both successes and failures; “from” and “to” are the 95 % interval of "
            "what is expected of the plans.",
            windows,
            formats=shares,
        ),
    ]


def _without_prior(expectation: Expectation) -> str:
    return (
        f"{percent(expectation.covered)} of the planned rollouts are on groups for which the log drew as many or more, "
        "so that no prior is needed to judge them. Counting every group as if it had got no more rollouts than the log "
        f"drew needs no prior at all: at least {percent(expectation.without_prior.value)} in expectation "
        f"({interval(expectation.without_prior, expectation)}). A first visit is planned uniformly, since nothing is "
        "known."
    )


def _window_table(audit: Audit, plans: Replay, expectation: Expectation) -> pd.DataFrame:
    first, last = expectation.window_steps.tolist()
    shown = expectation.by_window
    return pd.DataFrame(
        {
            "steps": [f"{a:,}" if a == b else f"{a:,} to {b:,}" for a, b in zip(first, last, strict=True)],
            "rollouts": np.bincount(expectation.window, audit.log.rollouts).astype(np.int64),
            "spent, observed": shown["observed"][0],
            "spent, expected": shown["spent"][0],
            "planned, expected": shown["planned"][0],
            "from": shown["planned"][1],
            "to": shown["planned"][2],
        }
    )


def _tokens(audit: Audit) -> list[Part]:
    totals = tables.token_totals(audit.log, audit.plans, audit.expectation)
    if not totals["spent"]:
        return [Note("No lengths were logged. --length COLUMN names a column with tokens per completion.")]
    guessed = totals["rollouts"] - totals["rollouts measured"]
    rows = {
        "Spent": f"{totals['spent']:,.0f} tokens, of {totals['rollouts']:,.0f} rollouts"
        f"{f', {guessed:,.0f} of them by the mean length of their group' if guessed else ''}",
        "In groups without gradient": f"{totals['without gradient']:,.0f}, "
        f"{percent(totals['without gradient'] / totals['spent'])}",
    }
    if "planned" in totals:
        spent, planned = (
            totals["effective, spent"] / totals["spent"],
            totals["effective, planned"] / totals["planned"],
        )
        rows["The plans"] = f"{totals['planned']:,.0f} tokens, by the mean length of each group in the log"
        rows[f"Expected {tables.expected(audit.log)}"] = (
            f"{percent(spent)} of the tokens spent, {percent(planned)} of those planned"
        )
    return [
        Facts("", rows),
        Note("Plans are equal to what was spent in rollouts, not in tokens: hard prompts tend to have longer answers."),
    ]


def _concentration(audit: Audit) -> list[Part]:
    table = tables.hungriest_prompts(audit.log)
    table["prompt"] = tables.apart(table["prompt"].tolist(), _PROMPT_WIDTH)
    if not audit.knows_right:
        table = table.drop(columns="successes")
    parts: list[Part] = [
        Chart(
            "concentration",
            "Who took the budget",
            "Prompts in order of what they took, and the share of rollouts that those up to there took together. A "
            "diagonal would be an even spread.",
            _source(audit),
            figures.concentration,
            tables.concentration(audit.log),
        )
    ]
    if len(table):
        parts.append(
            DataTable(
                "hungriest-prompts",
                "Most rollouts without gradient",
                f"The {len(table)} prompts at the top, by rollouts in groups whose rewards were all equal.",
                table,
                formats={"prompt": _shown, "tokens without gradient": _count},
            )
        )
    return parts


def _graders(audit: Audit) -> list[Part]:
    log = audit.log
    if not audit.knows_right:
        return [Note("Nothing could be looked for: it is not known which rollouts are right (--success-above X).")]
    parts: list[Part] = []
    unsolved = graders.unsolved_categories(log)
    if len(unsolved):
        parts.append(
            DataTable(
                "unsolved-categories",
                "Categories without a single success",
                "“Chance” is how likely that is if the category's success rate is drawn like those of the other "
                "categories (a fitted beta distribution; missing with fewer than three others). “Same answer”: prompts "
                "on which most rollouts agree, as models do where they are right. A category that is simply too hard "
                "looks alike: read a few completions.",
                unsolved,
                formats={"chance": lambda chance: f"{chance:.2g}" if chance >= 0.001 else "below 0.001"},
            )
        )
    changed = audit.changed_categories
    if len(changed):
        shown = changed.drop(columns="what")
        shown["prompt"] = tables.apart([log.texts[index] for index in changed["prompt"].tolist()], _PROMPT_WIDTH)
        parts.append(
            DataTable(
                "changed-categories",
                "Categories that changed at once",
                "From this step on no group of the category had a success (or a failure, or rewards that differ), "
                "against all that was seen before. That is what a grader looks like that broke during the run.",
                shown,
                formats={"prompt": _shown},
            )
        )
    suspects = graders.suspicious_prompts(log)
    if len(suspects):
        shown = suspects.head(_SUSPECTS).copy()
        texts = [log.texts[index] for index in shown["prompt"].tolist()]
        shown["prompt"] = tables.apart(texts, _PROMPT_WIDTH)
        if any(log.categories):
            shown.insert(
                1, "category", [log.categories[index] for index in suspects["prompt"].head(_SUSPECTS).tolist()]
            )
        shown["answer"] = [answer or None for answer in shown["answer"]]
        parts.append(
            DataTable(
                "suspicious-prompts",
                "Prompts whose grading looks odd",
                f"{_first_of(len(suspects))}“Reference answer”: rollouts whose answer reads like the reference and "
                "that failed. “Scored both ways”: rollouts with the very same completion, some right and some wrong. "
                "“Same answer”: share of rollouts that gave the most frequent answer, on prompts without any success.",
                shown,
                formats={"prompt": _shown, "answer": _shown, "same answer": percent},
            )
        )
    if not parts:
        parts.append(Note(f"Nothing stood out. {_looked_at(audit)}"))
    else:
        parts.append(Note(_looked_at(audit)))
    return parts


def _looked_at(audit: Audit) -> str:
    """Which evidence there was columns for."""
    columns = list(audit.reading.columns)

    def among(role: str) -> bool:
        return any(getattr(column, role) for column in columns)

    answers = among("completion") or among("answer")
    looked = {
        "categories without a success": among("category"),
        "completions that were scored both ways": among("completion"),
        "prompts on which wrong answers agree": answers,
        "failures whose answer reads like the reference": answers and among("reference"),
    }
    done = [what for what, possible in looked.items() if possible]
    missing = [what for what, possible in looked.items() if not possible]
    said = f"Looked for: {', '.join(done)}." if done else "Nothing could be looked for."
    if missing:
        said += (
            f" Not looked for, since columns are missing: {', '.join(missing)} "
            "(--category, --completion, --answer, --reference)."
        )
    return said


def _read(audit: Audit) -> list[Part]:
    reading = audit.reading
    files = [found.path for found in reading.files.found]
    rows = {
        "Files": f"{files[0]}" if len(files) == 1 else f"{len(files):,}, {files[0]} to {files[-1]}",
        "Rows": f"{reading.rows:,}",
        "Steps from": _STEPS_FROM[reading.steps_from],
    }
    for columns, file in reading.columns.items():
        many = len(reading.columns) > 1
        rows |= {
            f"{role.capitalize()}{f' in {Path(file).name}' if many else ''}": name
            for role, name in columns.said(reading.asked).items()
        }
    parts: list[Part] = [Facts("", rows)]
    if reading.problems.counts:
        parts.append(
            Facts(
                "What could not be used",
                {
                    f"{kind[0].upper()}{kind[1:]}": f"{count:,}, such as {'; '.join(reading.problems.examples[kind])}"
                    for kind, count in reading.problems.counts.items()
                },
            )
        )
    return parts


def _source(audit: Audit) -> str:
    """The file that was read, or how many of which folders."""
    files = [found.path for found in audit.reading.files.found]
    if len(files) == 1:
        return files[0].name
    return f"{len(files):,} files of {', '.join(dict.fromkeys(str(file.parent) for file in files))}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _first_of(count: int) -> str:
    return f"The first {_SUSPECTS} of {count:,}. " if count > _SUSPECTS else ""


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _PROMPT_WIDTH else line[: _PROMPT_WIDTH - 1] + "…"
