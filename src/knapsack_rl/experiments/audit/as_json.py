"""All figures of an audit as JSON, for scripts."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from knapsack_rl.experiments.audit import graders, tables
from knapsack_rl.experiments.audit.advice import advice, size_table, skipped, waste
from knapsack_rl.experiments.audit.audit import Audit, sources
from knapsack_rl.experiments.audit.findings import remarks, summary
from knapsack_rl.experiments.report import learning_progress


def as_json(audit: Audit, page: Path) -> str:
    """The figures that the page shows. What is not known, or was not asked of the log, is null.

    Args:
        audit: what was found.
        page: where the page was written.
    """
    figures = {
        "logs": sources(audit.logs),
        "report": str(page),
        "read": _read(audit),
        "spent": _spent(audit),
        "right_and_wrong": _right_and_wrong(audit) if audit.knows_right else None,
        "gains": _gains(audit),
        "plans": _plans(audit),
        "tokens": tables.token_totals(audit.log, audit.plans, audit.expectation),
        "graders": _graders(audit) if audit.knows_right else None,
        "prompts": _rows(tables.hungriest_prompts(audit.log)),
        "advice": _advice(audit),
        "remarks": remarks(audit),
        "summary": summary(audit),
    }
    return json.dumps(_plain(figures), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _read(audit: Audit) -> dict[str, Any]:
    reading = audit.reading
    return {
        "files": len(reading.files.found),
        "rows": reading.rows,
        "steps_from": reading.steps_from,
        "columns": {file: columns.said(reading.asked) for columns, file in reading.columns.items()},
        "not_used": {
            kind: {"count": count, "examples": reading.problems.examples[kind]}
            for kind, count in reading.problems.counts.items()
        },
        "left_out": reading.left_out,
        "success_above": audit.options.success_above,
    }


def _spent(audit: Audit) -> dict[str, Any]:
    log = audit.log
    sizes, counts = np.unique(log.rollouts, return_counts=True)
    steps, of_group = np.unique(log.step, return_inverse=True)
    total = np.bincount(of_group, log.rollouts)
    return {
        "rollouts": int(log.rollouts.sum()),
        "prompts": len(log.keys),
        "groups": len(log.step),
        "steps": len(steps),
        "share_without_gradient": None if audit.all_single else tables.without_gradient(log),
        "decided_by": "advantages" if log.with_advantages else "rewards",
        "group_sizes": {str(size): count for size, count in zip(sizes.tolist(), counts.tolist(), strict=True)},
        "repeated_steps": log.repeated_steps,
        "all_attempts": None
        if log.resumption is None
        else {
            "rollouts": log.resumption.all_rollouts,
            "share_without_gradient": log.resumption.all_without_gradient,
            "steps_go_back": [[str(one.path), one.row, one.step] for one in log.resumption.descents],
        },
        "by_step": [
            {"step": step, "rollouts": rollouts, "share_without_gradient": share}
            for step, rollouts, share in zip(
                steps.tolist(),
                total.astype(int).tolist(),
                (np.bincount(of_group, log.rollouts * log.without_gradient) / total).tolist(),
                strict=True,
            )
        ],
    }


def _right_and_wrong(audit: Audit) -> dict[str, Any]:
    log = audit.log
    rollouts, successes = graders.by_prompt(log)
    total = float(log.rollouts.sum())
    _, correct, wrong = (float(log.rollouts[groups].sum() / total) for groups in tables.kinds(log))
    return {
        "success_rate": float(successes.sum() / total),
        "share_all_correct": correct,
        "share_all_wrong": wrong,
        "prompts_never_right": int((successes == 0).sum()),
        "prompts_never_wrong": int((successes == rollouts).sum()),
        "share_on_prompts_never_right": float(rollouts[successes == 0].sum() / total),
        "share_on_prompts_never_wrong": float(rollouts[successes == rollouts].sum() / total),
    }


def _plans(audit: Audit) -> dict[str, Any] | None:
    if audit.plans is None or audit.expectation is None:
        return None
    found = audit.expectation
    named = ("observed", "spent", "planned", "gain", "without_prior")
    return {
        "strategy": audit.options.strategy,
        "expected": tables.expected(audit.log),
        **{name: dataclasses.asdict(getattr(found, name)) for name in named},
        "covered": found.covered,
        "by_belief": _rows(tables.by_belief(audit.log, audit.plans, found)),
        "moved_by_strategy": audit.others,
    }


def _gains(audit: Audit) -> list[dict[str, Any]] | None:
    if audit.progress is None or audit.progress.found is None:
        return None
    return _rows(learning_progress.table(audit.progress.found))


def _graders(audit: Audit) -> dict[str, Any]:
    suspects = graders.suspicious_prompts(audit.log).head(30)
    suspects = suspects.assign(prompt=[audit.log.texts[index] for index in suspects["prompt"].tolist()])
    return {
        "unsolved_categories": _rows(graders.unsolved_categories(audit.log)),
        "changed_categories": _rows(audit.changed_categories.drop(columns="prompt")),
        "suspicious_prompts": _rows(suspects),
        "failures_that_read_like_the_reference": int(audit.log.matched.sum()),
    }


def _advice(audit: Audit) -> dict[str, Any]:
    saved, what = skipped(audit)
    return {
        "sentences": advice(audit),
        "waste": waste(audit) if audit.knows_right else None,
        "group_sizes": None if audit.sizes is None else _rows(size_table(audit, audit.sizes)),
        "saved_by_skipping": {"share": saved, "of": what},
    }


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False, name=None)]


def _plain(value: Any) -> Any:
    """What JSON can hold; numbers that are none are null."""
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
