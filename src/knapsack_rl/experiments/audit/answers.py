"""What a completion answered, and how often the same was answered: evidence on graders, in bounded memory."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.experiments.audit.sums import Labels, Sums
from knapsack_rl.experiments.audit.values import Encoded

Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

_MOST_PAIRS = 1_000_000
_SHORT = 64  # characters up to which a completion as a whole counts as its answer
_BOXED = "\\boxed{"
_ANSWER_TAG = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL | re.IGNORECASE)
_WRAPPINGS = re.compile(r"\\(?:text|mathrm|mbox|textbf)\{([^{}]*)\}|\\left|\\right|[$]")
_BLANKS = re.compile(r"(?:\\[,;! ]|\s)+")


def final_answer(completion: str) -> str | None:
    r"""What a completion gives as its answer, or None.

    The last `\boxed{...}`, else the last `<answer>...</answer>`, else what follows the last `####`, else the
    whole text if it is one short line.
    """
    start = completion.rfind(_BOXED)
    if start >= 0:
        return _inside_braces(completion, start + len(_BOXED))
    tagged = _ANSWER_TAG.findall(completion) if "</" in completion else []
    if tagged:
        return str(tagged[-1]) or None
    _, mark, after = completion.rpartition("####")
    text = after.strip() if mark else completion.strip()
    return text if text and len(text) <= _SHORT and "\n" not in text else None


def same_answer(answer: str, reference: str) -> bool:
    r"""Whether two answers read alike: `\boxed`, `\text`, dollar signs and a final dot aside, all blanks alike."""
    wanted = final_answer(reference)
    return _plain(answer) == _plain(reference if wanted is None else wanted) != ""


class Agreement:
    """How often each prompt got each text, and how often that was a success.

    Exact up to a million different pairs of prompt and text; beyond, pairs seen only once are forgotten (`lossy`).
    """

    def __init__(self, table: Sums, labels: Labels) -> None:
        self._table = table
        self._labels = labels
        self.lossy = False

    def add(self, prompts: Keys, texts: Encoded, successes: Ints) -> None:
        """Row i is of the prompt with the key `prompts[i]`; rows without a text are left out."""
        rows = np.flatnonzero(texts.codes >= 0)
        if not rows.size:
            return
        hashes = texts.keys()[texts.codes[rows]]
        order = np.lexsort((hashes, prompts[rows]))
        rows, hashes = rows[order], hashes[order]
        self._table.add(prompts[rows], hashes, rollouts=np.ones_like(hashes), successes=successes[rows])
        repeated = np.flatnonzero((hashes[1:] == hashes[:-1]) & (prompts[rows][1:] == prompts[rows][:-1]))
        self._labels.add(hashes[repeated], texts.at(rows[repeated]))
        if self._table.rows > _MOST_PAIRS:
            self._forget()

    def pairs(self) -> tuple[Keys, Keys, Ints, Ints]:
        """Prompt key, text key, rollouts and successes, sorted by prompt, each pair once."""
        prompt, text, rollouts, successes = self._table.columns()
        return prompt, text, rollouts.astype(np.int64), successes.astype(np.int64)

    def texts(self, keys: Keys) -> list[str]:
        """Those of text keys, cut short; only texts that came twice within a batch are kept, others are empty."""
        return self._labels.of(keys)

    def _forget(self) -> None:
        rollouts: NDArray[Any] = self._table.columns()[2]
        if len(rollouts) <= _MOST_PAIRS:
            return
        self.lossy = True
        least = 2
        while np.count_nonzero(rollouts >= least) > _MOST_PAIRS // 2:
            least *= 2
        self._table.keep(rollouts >= least)


def _inside_braces(text: str, start: int) -> str | None:
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if not depth:
            return text[start:position].strip() or None
    return None


def _plain(answer: str) -> str:
    inside = _inside_braces(answer, answer.rfind(_BOXED) + len(_BOXED)) if _BOXED in answer else None
    bare = _WRAPPINGS.sub(lambda found: found[1] or "", answer if inside is None else inside)
    return _BLANKS.sub(" ", bare).strip().rstrip(".").rstrip()
