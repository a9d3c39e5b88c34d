"""Prompts and categories whose failures look like the grader's rather than the model's.

None of this proves anything: a category may simply be too hard. It says where reading a handful of completions is most
likely to pay.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import betaln

from knapsack_rl.alarm import Alarm
from knapsack_rl.allocator import BudgetAllocator
from knapsack_rl.experiments.audit.accounting import Log
from knapsack_rl.experiments.audit.expectation import candidate, fit_prior

Ints = NDArray[np.int64]

_PROMPTS = 5  # a category without success is mentioned from so many prompts
_ROLLOUTS = 40  # and rollouts on
_OTHERS = 3  # fewer other categories tell nothing about what categories are like
_VISITED = 8  # rollouts from which a prompt without success is looked at
_CHANGES = ("stopped succeeding", "stopped failing", "stopped varying", "never fails")
_CHANGED = ["category", "step", "found", "what", "prompt"]
_AGREED = 0.5  # share of a prompt's rollouts with one answer


def unsolved_categories(log: Log) -> pd.DataFrame:
    """Categories with many prompts and rollouts and no success.

    `chance` is the beta-binomial probability of no success if the category's success rate came from the beta
    distribution that fits the rates of the other categories; missing with fewer than three others. Columns: category,
    prompts, rollouts, chance, same answer (prompts on which most rollouts agree), reference answer (rollouts whose
    answer reads like it and that failed).
    """
    names = np.array(log.categories, dtype=object)
    rollouts, successes = by_prompt(log)
    table = pd.DataFrame(
        {
            "category": names,
            "prompts": 1,
            "rollouts": rollouts,
            "successes": successes,
            "same answer": agreed_prompts(log),
            "reference answer": np.bincount(log.prompt, log.matched, minlength=len(log.keys)).astype(np.int64),
        }
    )
    sums = table[table["category"] != ""].groupby("category", sort=True).sum().reset_index()
    found = sums[(sums["successes"] == 0) & (sums["prompts"] >= _PROMPTS) & (sums["rollouts"] >= _ROLLOUTS)].copy()
    found.insert(3, "chance", [_chance(sums, str(name)) for name in found["category"]])
    return found.drop(columns="successes").sort_values(["chance", "rollouts"], ascending=[True, False])


def changed_categories(log: Log) -> pd.DataFrame:
    """Categories whose outcomes changed at once, or never failed while others did, in the order of the steps.

    What an `Alarm` would have said during the run, but for categories that never succeed (`unsolved_categories`).
    Columns: category, step, found (what happened), what (a sentence), prompt (position of one that shows it).
    """
    alarm, beliefs, found = Alarm(), BudgetAllocator("uniform"), []
    if not any(log.categories):
        return pd.DataFrame(columns=_CHANGED)
    names = np.array(log.categories, dtype=object)
    starts = np.flatnonzero(np.diff(log.step, prepend=log.step[:1] - 1, append=log.step[-1:] + 1))
    for start, end in itertools.pairwise(starts):
        prompts, won, tried = (array[start:end] for array in (log.prompt, log.successes, log.rollouts))
        ids = prompts.tolist()
        for one in alarm.observe(
            won,
            tried,
            {"category": names[prompts].tolist()},
            visited=beliefs.visited(ids),
            belief=beliefs.belief(ids),
            varied=~log.equal_rewards[start:end],
        ):
            if one.column and one.category and one.kind in _CHANGES:
                found.append((one.category, int(log.step[start]), one.kind, one.text, int(prompts[one.prompts[0]])))
        beliefs.tell(ids, won, tried)
    return pd.DataFrame(found, columns=_CHANGED)


def suspicious_prompts(log: Log) -> pd.DataFrame:
    """Prompts with evidence against their grader, the strongest first.

    Columns: prompt (position), rollouts, successes, reference answer (rollouts whose answer reads like the reference
    and that failed), scored both ways (rollouts whose very completion was scored right once and wrong once), same
    answer (share of rollouts with the most frequent answer, where it never succeeded), answer (that answer).
    """
    rollouts, successes = by_prompt(log)
    table = pd.DataFrame(
        {
            "prompt": np.arange(len(log.keys)),
            "rollouts": rollouts,
            "successes": successes,
            "reference answer": np.bincount(log.prompt, log.matched, minlength=len(log.keys)).astype(np.int64),
            "scored both ways": _both_ways(log),
        }
    )
    share, answer = _agreement(log)
    table["same answer"] = np.where(_agreed(log, share), share, np.nan)
    suspicious = (table["reference answer"] > 0) | (table["scored both ways"] > 0) | table["same answer"].notna()
    found = table[suspicious].copy()
    found["answer"] = log.answers.texts(answer[suspicious.to_numpy()])
    by = ["reference answer", "scored both ways", "same answer", "rollouts"]
    return found.sort_values(by, ascending=False, kind="stable", ignore_index=True)


def agreed_prompts(log: Log) -> Ints:
    """1 for each prompt without a success on which most rollouts gave one answer, otherwise 0."""
    return _agreed(log, _agreement(log)[0]).astype(np.int64)


def by_prompt(log: Log) -> tuple[Ints, Ints]:
    """Rollouts and successes of each prompt over the whole log."""
    counts = (np.bincount(log.prompt, part, minlength=len(log.keys)) for part in (log.rollouts, log.successes))
    rollouts, successes = (count.astype(np.int64) for count in counts)
    return rollouts, successes


def _agreed(log: Log, share: NDArray[np.float64]) -> NDArray[np.bool_]:
    rollouts, successes = by_prompt(log)
    return (successes == 0) & (rollouts >= _VISITED) & (share >= _AGREED)


def _agreement(log: Log) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
    """Of each prompt, the share of rollouts with its most frequent answer, and that answer's key."""
    prompt, text, rollouts, _ = log.pairs(log.answers)
    share, answer = np.zeros(len(log.keys)), np.zeros(len(log.keys), dtype=np.uint64)
    order = np.lexsort((-rollouts, prompt))
    leaders = order[np.unique(prompt[order], return_index=True)[1]]
    place = prompt[leaders]
    share[place] = rollouts[leaders] / log.seen[place]
    answer[place] = text[leaders]
    return share, answer


def _both_ways(log: Log) -> Ints:
    """Of each prompt, the rollouts whose completion was scored both right and wrong."""
    prompt, _, rollouts, successes = log.pairs(log.completions)
    mixed = (successes > 0) & (successes < rollouts)
    return np.bincount(prompt[mixed], rollouts[mixed], minlength=len(log.keys)).astype(np.int64)


def _chance(sums: pd.DataFrame, category: str) -> float:
    """How likely no success is in a category that is like the others."""
    others = sums[sums["category"] != category]
    if len(others) < _OTHERS:
        return float("nan")
    tried, won = others["rollouts"].to_numpy(dtype=np.int64), others["successes"].to_numpy(dtype=np.int64)
    a, b = candidate(int(fit_prior(won, tried, np.ones((1, len(others))))[0]))
    rollouts = int(sums.loc[sums["category"] == category, "rollouts"].iloc[0])
    return float(np.exp(betaln(a, b + rollouts) - betaln(a, b)))
