"""What a log spent, as counts for each group (a prompt in a step), in memory that depends on groups and not on rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.experiments.audit.answers import Agreement, final_answer, same_answer
from knapsack_rl.experiments.audit.attempts import MOST, Attempts, Descent, Resumption, superseded
from knapsack_rl.experiments.audit.rows import Batch
from knapsack_rl.experiments.audit.sums import SHOWN, Labels, Sums
from knapsack_rl.experiments.audit.values import Encoded, Floats, Ints, Keys, joined, mixed

_MOST_ANSWERS = 200_000  # whose text is kept to be shown
_PREAMBLE = 40  # characters from which a common beginning is left out
_LONGEST = 8_000  # characters of a common beginning
_SETTLED = 100  # different texts from which on what they share is left out at once
_COUNT = (np.add, np.uint32)
_FEW_VALUES = 8
_KEY = (np.maximum, np.uint64)
_NO_ADVANTAGE = 1e-6  # what 32-bit floats leave of an advantage of zero that is not divided by a deviation
_NOISE = 1e-2  # the same, where the deviation is noise too and 1e-4 is added to it
_EQUALLY = 0.9  # share of the prompts that come equally often from each writer, from which each has parts of groups
_EQUAL, _EQUAL_SHARE = 1e-6, 1e-9  # rewards that differ by less, or by less than this share of them, are the same


class Shown:
    """Prompts as they are shown: without the instructions that all of them begin with, over all files."""

    def __init__(self) -> None:
        self._labels = Labels(width=_LONGEST + SHOWN)
        self._shared: str | None = None
        self._distinct: set[str] = set()
        self._settled: str | None = None

    def add(self, keys: Keys, texts: Encoded) -> None:
        """Row i of a batch has the key `keys[i]` and the text `texts`."""
        if self._settled is None:
            self._learn(texts.values)
        cut = len(self._settled or "")
        if self._settled is not None:
            whole = [text[cut:] if text.startswith(self._settled) else text for text in texts.values]
            texts = Encoded([text[:SHOWN] for text in whole], texts.codes)
        self._labels.add(keys, texts)

    def of(self, keys: Keys) -> list[str]:
        """The text of each key."""
        head = _preamble(self._shared, len(self._distinct)) if self._settled is None else self._settled
        return [text.removeprefix(head)[:SHOWN] for text in self._labels.of(keys)]

    def _learn(self, texts: Sequence[str]) -> None:
        known = [text[:_LONGEST] for text in texts]
        self._distinct.update(known[: 2 * _SETTLED])
        known += [] if self._shared is None else [self._shared]
        if not known:
            return
        first, last = min(known), max(known)  # what these share, all in between share too
        self._shared = first[: common_length(first, last)]
        if len(self._distinct) >= _SETTLED:
            self._settled = _preamble(self._shared, len(self._distinct))


def common_length(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    differs = (index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(differs, min(len(one), len(other)))


def _preamble(shared: str | None, texts: int) -> str:
    """The whole lines or sentences of what several texts begin with, if they are long enough to be in the way."""
    found = re.match(r".*(\n|[.:!?]\s)", shared or "", re.DOTALL) if texts > 1 else None
    return found[0] if found and len(found[0]) >= _PREAMBLE else ""


class Visits:
    """Steps for logs that have none: the how-manieth uninterrupted run of rows of its prompt a row belongs to."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._last: tuple[int, int] | None = None

    def steps(self, keys: Keys, holders: Keys | None = None) -> Ints:
        """Visit of each row, counted from 1; calls go on where the last one ended.

        Args:
            keys: of the prompts.
            holders: of what held each rollout and may be a whole group; another one is another visit.
        """
        if not len(keys):
            return np.empty(0, dtype=np.int64)
        holders = np.zeros_like(keys) if holders is None else holders
        changes = (keys[1:] != keys[:-1]) | (holders[1:] != holders[:-1])
        starts = np.flatnonzero(np.concatenate(([True], changes)))
        visits = []
        for index, (key, holder) in enumerate(zip(keys[starts].tolist(), holders[starts].tolist(), strict=True)):
            if index or (key, holder) != self._last:
                self._seen[key] = self._seen.get(key, 0) + 1
            visits.append(self._seen[key])
        self._last = int(keys[-1]), int(holders[-1])
        return np.repeat(np.array(visits), np.diff(np.append(starts, len(keys))))


class Places:
    """Where in its step a row stands."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._rows = 0

    def of(self, step: Ints) -> Keys:
        """Rows of the same step right before each row; calls go on where the last one ended."""
        starts = np.flatnonzero(np.concatenate(([True], step[1:] != step[:-1])))
        lengths = np.diff(np.append(starts, len(step)))
        starts[0] = -self._rows if step[0] == self._step else 0
        place = np.arange(len(step)) - np.repeat(starts, lengths)
        self._step, self._rows = int(step[-1]), int(place[-1]) + 1
        return place.astype(np.uint64)


@dataclass
class Rewards:
    """What values rewards took; of more than a few different ones only the first are kept."""

    count: int = 0
    familiar: int = 0
    values: set[float] = field(default_factory=set)
    low: float = np.inf
    high: float = -np.inf

    def add(self, reward: Floats) -> None:
        """Count some more."""
        if not len(reward):
            return
        self.count += len(reward)
        self.familiar += int(np.count_nonzero((reward == 0.0) | (np.abs(reward) == 1.0)))
        self.low, self.high = min(self.low, float(reward.min())), max(self.high, float(reward.max()))
        if len(self.values) <= _FEW_VALUES:
            self.values |= set(np.unique(reward)[: _FEW_VALUES + 1].tolist())

    @property
    def others(self) -> int:
        """How many are neither 0, 1 nor -1."""
        return self.count - self.familiar

    @property
    def tells_right(self) -> bool:
        """Whether what is above 0 is known to be right: 0 and 1, -1 and 1, or any two values around it."""
        if not self.count or self.values <= {0.0, 1.0}:
            return True
        known = self.values <= {-1.0, 0.0, 1.0} or len(self.values) == 2
        return known and self.low <= 0.0 < self.high

    def none_above(self, threshold: float) -> bool:
        """Whether no reward is above a threshold, though some should be: they differ, or are above 0."""
        return bool(self.count) and self.high <= threshold and (self.low < self.high or self.high > 0.0)


@dataclass(frozen=True)
class Told:
    """How prompts were told apart.

    Attributes:
        by: "texts" or "ids".
        texts_of_an_id: most texts that one id stood for.
        ids: different ids; 0 where there are none beside texts.
        files_in_common: prompts that came in several files.
    """

    by: str
    texts_of_an_id: int = 1
    ids: int = 0
    files_in_common: int = 0


@dataclass(frozen=True)
class Log:
    """A log as groups, sorted by step; one entry a group unless said otherwise.

    Attributes:
        step: when.
        prompt: who, as a position in what is kept by prompt.
        rollouts: how many were scored.
        successes: how many of them were right.
        without_gradient: whether all advantages were zero, or all rewards equal where there are no advantages.
        equal_rewards: whether all rewards of the group were equal.
        tokens: sum of lengths.
        measured: rollouts whose length was logged.
        matched: rollouts whose answer reads like the reference and that failed.
        keys: by prompt, its key.
        seen: by prompt, its rollouts, those of repeated steps included.
        texts: by prompt, its first characters.
        categories: by prompt; empty where none was logged.
        several_arguments: whether rows of the group came from files that different arguments named.
        several_files: whether they came from different files.
        repeated_steps: steps left out, since they hold the same rollouts as the step before them.
        with_advantages: whether advantages decided on gradients.
        resumption: what became of steps that were logged again; None where steps never go back.
        in_doubt: where all steps come again with the same groups, which count as parts of them.
        writers: that hold a part of each group, in logs without steps; 0 where that is not so.
        told: how prompts were told apart.
        fine: what answers and completions are kept by, sorted.
        prompt_of_fine: the prompt of each of these.
    """

    step: Ints
    prompt: Ints
    rollouts: Ints
    successes: Ints
    without_gradient: NDArray[np.bool_]
    equal_rewards: NDArray[np.bool_]
    tokens: Floats
    measured: Ints
    matched: Ints
    several_arguments: NDArray[np.bool_]
    several_files: NDArray[np.bool_]
    keys: Keys
    seen: Ints
    texts: list[str]
    categories: list[str]
    rewards: Rewards
    repeated_steps: list[int]
    with_advantages: bool
    resumption: Resumption | None
    in_doubt: tuple[Descent, ...]
    writers: int
    told: Told
    fine: Keys = field(repr=False)
    prompt_of_fine: Ints = field(repr=False)
    answers: Agreement = field(repr=False)
    completions: Agreement = field(repr=False)

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """Whether a group has both a success and a failure."""
        return (self.successes > 0) & (self.successes < self.rollouts)

    def last(self, groups: int) -> Log:
        """The last steps, with at most so many groups or else one step; what is kept by prompt stays as it is."""
        start = len(self.step) - groups
        if start <= 0:
            return self
        first = min(self.step[start - 1] + 1, self.step[-1])
        kept = self.step >= first
        by_group = (
            "step", "prompt", "rollouts", "successes", "without_gradient", "equal_rewards", "tokens", "measured",
            "matched", "several_arguments", "several_files",
        )  # fmt: skip
        return replace(self, **{name: getattr(self, name)[kept] for name in by_group})

    def pairs(self, agreement: Agreement) -> tuple[Ints, Keys, Ints, Ints]:
        """Prompt, key of a text, rollouts and successes of what is in `answers` or `completions`, each pair once."""
        fine, text, rollouts, successes = agreement.pairs()
        known = np.isin(fine, self.fine)  # others only came in attempts that do not count
        prompt = self.prompt_of_fine[np.searchsorted(self.fine, fine[known])]
        whole = Sums(rollouts=(np.add, np.int64), successes=(np.add, np.int64))
        whole.add(prompt, text[known], rollouts=rollouts[known], successes=successes[known])
        prompt, text, rollouts, successes = whole.columns()
        return prompt, text, rollouts, successes


class Accounts:
    """Adds up batches; `success_above` is the reward that a success exceeds."""

    def __init__(self, success_above: float) -> None:
        self._above = success_above
        self._groups = Sums(  # by step x 256 + attempt, and by group
            fine=_KEY, rollouts=_COUNT, successes=_COUNT, low=(np.minimum, np.float64), high=(np.maximum, np.float64),
            advantage=(np.fmax, np.float64), tokens=(np.add, np.float64), measured=_COUNT, matched=_COUNT,
            arguments=(np.bitwise_or, np.uint8), files=(np.bitwise_or, np.uint8),
        )  # fmt: skip
        self._prompts = Sums(
            first=np.uint64, texts=_KEY, first_file=(np.minimum, np.int32), last_file=(np.maximum, np.int32)
        )
        self._steps = Sums(rollouts=_COUNT, checksum=(np.add, np.uint64), varied=(np.maximum, np.uint8))
        self._places = Places()
        self._texts, self._categories = Shown(), Labels()
        self._rewards = Rewards()
        self._visits: dict[str, Visits] = {}  # of each writer
        self._attempts = Attempts()
        self._advantages = False
        self.answers = Agreement(Sums(first=np.uint64, rollouts=_COUNT, successes=_COUNT), Labels(_MOST_ANSWERS))
        self.completions = Agreement(Sums(first=np.uint64, rollouts=_COUNT, successes=_COUNT), Labels(_MOST_ANSWERS))

    def add(self, batch: Batch) -> None:
        """Take in a batch."""
        rows = len(batch.prompt.codes)
        if not rows:
            return
        texts = batch.prompt.row_keys() if batch.texts is None else batch.texts
        key = texts if batch.ids is None else joined([texts, batch.ids])
        group = key if batch.groups is None else joined([key, batch.groups])
        step = batch.step
        if step is None:
            step = self._visits.setdefault(batch.writer, Visits()).steps(group, _holders(batch))
        self._add_prompts(batch, key, texts)
        if batch.rollouts is not None and batch.successes is not None:
            rollouts, successes = batch.rollouts, batch.successes
            low, high = (successes == rollouts).astype(np.float64), (successes > 0).astype(np.float64)
            matched = np.zeros(rows, dtype=np.int64)
        else:
            self._rewards.add(batch.reward)
            rollouts, successes = np.ones(rows, dtype=np.int64), (batch.reward > self._above).astype(np.int64)
            low = high = batch.trained
            matched = self._compare(batch, step, key, successes)
        measured = np.zeros(rows, dtype=bool) if batch.tokens is None else np.isfinite(batch.tokens)
        tokens = np.zeros(rows) if batch.tokens is None else np.where(measured, batch.tokens, 0.0)
        self._advantages = self._advantages or batch.advantage is not None
        self._groups.add(
            self._attempt(batch, step), group, fine=key, rollouts=rollouts, successes=successes, low=low, high=high,
            advantage=np.full(rows, np.nan) if batch.advantage is None else batch.advantage, tokens=tokens,
            measured=measured, matched=matched,
            arguments=np.full(rows, 1 << batch.argument % 8),  # a bit each, shared from the ninth on
            files=np.full(rows, 1 << batch.file % 8),
        )  # fmt: skip

    def _attempt(self, batch: Batch, step: Ints) -> Ints:
        """The step of each row, and in its last 8 bits the attempt at the run that the row is of.

        Of rows without steps, these bits are the writer.
        """
        if batch.step is None:
            return (step << 8) + min(list(self._visits).index(batch.writer), MOST)
        if batch.rows is None:
            return step << 8
        return (step << 8) + self._attempts.of(step, batch.path, batch.argument, batch.rows)

    def _add_prompts(self, batch: Batch, key: Keys, texts: Keys) -> None:
        self._texts.add(key, batch.text)
        if batch.category is not None:
            self._categories.add(key, batch.category)
        if batch.ids is not None or not batch.timed:
            ids = np.zeros_like(key) if batch.ids is None else batch.ids
            place = np.unique(key, return_index=True)[1]
            file = np.full(len(place), batch.file)
            self._prompts.add(key[place], ids[place], texts=texts[place], first_file=file, last_file=file)

    def _compare(self, batch: Batch, step: Ints, key: Keys, successes: Ints) -> Ints:
        """Keep what completions and answers tell of the grader; returns which failures read like the reference."""
        answer = batch.answer
        if batch.completion is not None:
            if batch.relogged and batch.step is not None:
                self._fingerprint(batch.completion, step, key, successes)
            self.completions.add(key, batch.completion, successes)
            if answer is None:
                answer = _answers(batch.completion)
        if answer is None:
            return np.zeros_like(successes)
        self.answers.add(key, answer, successes)
        if batch.reference is None:
            return np.zeros_like(successes)
        return _matched(answer, batch.reference) & (successes == 0)

    def _fingerprint(self, completion: Encoded, step: Ints, key: Keys, successes: Ints) -> None:
        """Keep of each step what only a step with the same rollouts in the same order has."""
        hashes = np.append(completion.keys(), np.uint64(0))[completion.codes]
        with np.errstate(over="ignore"):
            content = (hashes * np.uint64(3) + key) * np.uint64(2) + successes.astype(np.uint64)
            content = mixed(content) + self._places.of(step)
        varied = np.append(False, (hashes[1:] != hashes[:-1]) & (key[1:] == key[:-1]))
        self._steps.add(step, np.zeros_like(key), rollouts=np.ones_like(key), checksum=mixed(content), varied=varied)

    def log(self) -> Log:
        """Everything so far, as groups."""
        in_parts = self._in_parts()
        groups, resumption, in_doubt = self._of_last_attempt(in_parts)
        step, _, fine, rollouts, successes, low, high, advantage, tokens, measured, matched, arguments, files = groups
        repeated = self._repeated()
        kept = ~np.isin(step, repeated)
        of_fine, fine_of_all = np.unique(fine, return_inverse=True)
        keys, prompt_of_fine, told = self._tell_apart(of_fine, step, fine_of_all)
        prompt = prompt_of_fine[fine_of_all][
            kept
        ]  # whoever came only in repeated steps came in the step before them too
        equal = _equal(low, high)
        labels = of_fine[np.unique(prompt_of_fine, return_index=True)[1]]
        return Log(
            step=step[kept],
            prompt=prompt.astype(np.int64),
            rollouts=rollouts[kept].astype(np.int64),
            successes=successes[kept].astype(np.int64),
            without_gradient=_without_gradient(equal, advantage)[kept],
            equal_rewards=equal[kept],
            tokens=tokens[kept],
            measured=measured[kept].astype(np.int64),
            matched=matched[kept].astype(np.int64),
            several_arguments=_several_bits(arguments)[kept],
            several_files=_several_bits(files)[kept],
            keys=keys,
            seen=self._seen(of_fine, prompt_of_fine, len(keys)),
            texts=self._texts.of(labels),
            categories=self._categories.of(labels),
            rewards=self._rewards,
            repeated_steps=repeated,
            with_advantages=self._advantages,
            resumption=resumption,
            in_doubt=in_doubt,
            writers=len(self._visits) if in_parts else 0,
            told=told,
            fine=of_fine,
            prompt_of_fine=prompt_of_fine,
            answers=self.answers,
            completions=self.completions,
        )

    def _of_last_attempt(self, in_parts: bool) -> tuple[list[NDArray[Any]], Resumption | None, tuple[Descent, ...]]:
        """The groups: of steps that were logged again the last ones, of steps in parts the sum."""
        first, group, *values = self._groups.columns()
        step, attempt = first >> 8, first & MOST
        if len(self._visits) > 1:
            step = step if in_parts else _later_visits(step, attempt, group)
            return self._added_up(step, group, values), None, ()
        if not self._attempts.descents:
            return [step, group, *values], None, ()
        _, rollouts, _, low, high, advantage = values[:6]
        repeats = superseded(self._attempts, step, attempt, group, rollouts.astype(np.int64))
        gone = repeats.gone
        without = _without_gradient(_equal(low, high), advantage)
        share = float(rollouts[without].sum() / rollouts.sum())
        resumption = Resumption(tuple(self._attempts.descents), int(rollouts.sum()), share) if gone.any() else None
        kept = [value[~gone] for value in values]
        return self._added_up(step[~gone], group[~gone], kept), resumption, repeats.in_doubt

    def _added_up(self, step: Ints, group: Keys, values: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Groups of which several have the same step and prompt, as one each."""
        whole = self._groups.like()
        whole.add(step, group, **dict(zip(self._groups.names, values, strict=True)))
        return whole.columns()

    def _in_parts(self) -> bool:
        """Whether logs without steps are of several writers that hold a part of each group.

        Then nearly all prompts come equally often from each of them. Where each holds whole groups, they do not.
        """
        first, group, *_ = self._groups.columns()
        if len(self._visits) < 2 or "" in self._visits or not len(first):
            return False
        of_writers = np.stack((group, (first & MOST).astype(np.uint64)))
        (owner, _), visits = np.unique(of_writers, axis=1, return_counts=True)
        starts = np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
        writers = np.diff(starts, append=len(owner))
        low, high = (ufunc.reduceat(visits, starts) for ufunc in (np.minimum, np.maximum))
        equally = (writers == min(len(self._visits), MOST + 1)) & (low == high)
        return bool(np.mean(equally) >= _EQUALLY)

    def _seen(self, fine: Keys, prompt_of_fine: Ints, prompts: int) -> Ints:
        """Rollouts of each prompt, those of repeated steps and attempts included."""
        _, _, every, rollouts, *_ = self._groups.columns()
        known = np.isin(every, fine)
        prompt = prompt_of_fine[np.searchsorted(fine, every[known])]
        return np.bincount(prompt, rollouts[known], minlength=prompts).astype(np.int64)

    def _tell_apart(self, fine: Keys, step: Ints, fine_of_all: Ints) -> tuple[Keys, Ints, Told]:
        """The keys of prompts, and which prompt is what answers are kept by.

        Ids count if each stands for one text and comes again with it; otherwise they are numbered anew somewhere, and
        texts count.
        """
        known, ids, texts, first_file, last_file = self._prompts.columns()
        several_files = int((np.isin(known, fine) & (first_file < last_file)).sum())
        if not ids.any():
            return fine, np.arange(len(fine)), Told("texts", files_in_common=several_files)
        place = np.minimum(np.searchsorted(known, fine), len(known) - 1)
        found = known[place] == fine  # files may differ in whether they have ids
        ids, texts = (np.where(found, one[place], fine) for one in (ids, texts))
        texts_of = np.unique(np.stack((ids, texts)), axis=1)
        most = int(np.unique(texts_of[0], return_counts=True)[1].max())
        by_id, by_text = (
            len(np.unique(np.stack((one[fine_of_all], step.view(np.uint64))), axis=1)[0]) / len(np.unique(one))
            for one in (ids, texts)
        )
        anew = most > 1 or (by_id == 1.0 and by_text > 1.0)
        keys, prompt_of_fine = np.unique(texts if anew else ids, return_inverse=True)
        return keys, prompt_of_fine, Told("texts" if anew else "ids", most, len(np.unique(ids)), several_files)

    def _repeated(self) -> list[int]:
        """Steps with the very rollouts of the step before, as TRL logs a generation batch at every update from it.

        Where each prompt has but one completion in a step, as models give that are sure, equal steps may be chance.
        """
        step, _, rollouts, checksum, varied = self._steps.columns()
        same = (rollouts[1:] == rollouts[:-1]) & (checksum[1:] == checksum[:-1]) & (varied[1:] > 0)
        return [int(number) for number in step[1:][same]]


def _later_visits(visit: Ints, writer: Ints, group: Keys) -> Ints:
    """The visits of each writer after those of the writers before."""
    order = np.lexsort((visit, writer, group))
    starts = np.flatnonzero(np.append(True, group[order][1:] != group[order][:-1]))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    later = np.empty_like(visit)
    later[order] = place + 1
    return later


def _holders(batch: Batch) -> Keys | None:
    """The holders of a batch, those of each file apart."""
    if batch.holders is None:
        return None
    return joined([batch.holders, np.full_like(batch.holders, batch.file)])


def _answers(completions: Encoded) -> Encoded:
    """What each completion came down to."""
    found = [final_answer(text) for text in completions.values]
    known = np.append(np.array([text is not None for text in found], dtype=bool), False)
    return Encoded([text or "" for text in found], np.where(known[completions.codes], completions.codes, -1))


def _matched(answers: Encoded, references: Encoded) -> Ints:
    """1 where answer and reference read alike, otherwise 0."""
    matched = np.zeros(len(answers.codes), dtype=np.int64)
    both = np.flatnonzero((answers.codes >= 0) & (references.codes >= 0))
    width = len(references.values)
    distinct, pair = np.unique(answers.codes[both] * width + references.codes[both], return_inverse=True)
    equal = [same_answer(answers.values[code // width], references.values[code % width]) for code in distinct.tolist()]
    matched[both] = np.array(equal, dtype=np.int64)[pair]
    return matched


def _several_bits(values: NDArray[Any]) -> NDArray[np.bool_]:
    return (values & (values - np.uint8(1))) != 0


def _equal(low: Floats, high: Floats) -> NDArray[np.bool_]:
    """Whether rewards are all the same, up to what adding them up in 32 bits leaves."""
    return high - low <= _EQUAL + _EQUAL_SHARE * np.maximum(np.abs(low), np.abs(high))


def _without_gradient(equal: NDArray[np.bool_], advantage: Floats) -> NDArray[np.bool_]:
    """Groups whose largest advantage is zero; where none is known, those whose rewards are equal."""
    zero = (advantage <= _NO_ADVANTAGE) | (equal & (advantage <= _NOISE))
    return np.where(np.isnan(advantage), equal, zero)
