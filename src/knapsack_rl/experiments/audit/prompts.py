"""What tells prompts apart, judged by the first rows of a file: names alone are not to be trusted."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit import names
from knapsack_rl.experiments.audit.asked import Asked
from knapsack_rl.experiments.audit.names import CANDIDATES, LAST_RESORT_IDS, find, listed, plain
from knapsack_rl.experiments.audit.readers import Look
from knapsack_rl.experiments.audit.shapes import Row, value
from knapsack_rl.experiments.audit.values import as_text, is_missing, number

_TRAINING = {"train", "training", "rollout", "rl"}
_EVALUATION = {"eval", "evaluation", "val", "valid", "validation", "test", "testing", "dev", "heldout", "held_out"}
_YES, _NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
_OF_A_ROLLOUT = re.compile(r"(.+)_(\d+)_(\d+)", re.DOTALL)  # SAMPLE_ROLLOUT_OUTPUT


@dataclass(frozen=True)
class Identity:
    """Columns that tell prompts and groups apart.

    Attributes:
        ids: of the prompt, as the log has them; they count if each has one text.
        texts: what the prompt says and shows.
        beside: what belongs to the prompt beside its text: references, images, a category.
        groups: what tells groups of the same prompt in the same step apart, such as verl's `uid`.
        runs: what tells rollouts of different runs or models apart.
        fresh: whether ids are numbered anew in every step.
        numbered: those of them whose values are of rollouts, SAMPLE_ROLLOUT_OUTPUT, of which SAMPLE is the group's.
    """

    ids: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    fresh: bool = False
    numbered: tuple[str, ...] = ()

    def columns(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.ids, *self.texts, *self.beside, *self.groups, *self.runs)


def require(file: str, look: Look, text: str | None, asked: Asked) -> None:
    """Refuse a file in which nothing tells prompts apart.

    Raises:
        InvalidInputError: there is neither a prompt nor an id.
    """
    if asked.id or text or find((*CANDIDATES["id"], *LAST_RESORT_IDS), look.names):
        return
    looked_for = ", ".join((*CANDIDATES["prompt"], *CANDIDATES["id"], *LAST_RESORT_IDS))
    coded = " (not in UTF-8, in which the file should be saved)" if any("\ufffd" in name for name in look.names) else ""
    raise InvalidInputError(
        f"{file}: no column was recognised as a prompt or an id. Its columns are {listed(look.names)}{coded}. "
        f"Looked for {looked_for}. Name one with --prompt COLUMN or --id COLUMN."
    )


def identify(
    look: Look,
    text: str | None,
    asked: Asked,
    step: str | None,
    category: str | None,
    reference: str | None,
    rewards: Sequence[str],
) -> tuple[Identity, list[str]]:
    """What tells prompts apart, and sentences on what was not believed.

    One of prompt and id is there, as `require` says; there are no rewards where each row is a whole group.
    """
    said: list[str] = []
    rolled = [name for name in look.names if rewards and _numbers_rollouts(look, name, asked.id, step)]
    look = _with_samples(look, rolled)
    key = asked.id or (None if asked.prompt else find(CANDIDATES["id"], look.names))
    if key == text:
        key = None
    if key is not None and text is not None and asked.id is None and _is_row_number(look, key, text):
        said.append(f"{key} is another in every row, while prompts come again: it is the number of a row and no id.")
        key = None
    if key is None and text is None:
        key = find(LAST_RESORT_IDS, look.names)
    texts = () if text is None else (text,)
    if key is not None and text is not None and not _splits(look, (step, key), text):
        said.append(f"The text in {text} differs from rollout to rollout of one {key}, so that {key} alone was used.")
        texts = ()
    base = tuple(name for name in (step, key, *texts) if name is not None)
    beside, more = _beside(look, base, reference, category if not texts else None, rewards)
    groups = tuple(name for name in _groups(look, base, key) if name not in beside)
    runs = tuple(
        name
        for name in look.names
        if plain(name) in names.RUNS and name not in (key, step) and _splits(look, base, name)
    )
    fresh = not texts and key is not None and _within_a_step(key, asked.id)
    if fresh and step is not None:
        said.append(
            f"{key} numbers the groups of a step and does not last, so that no prompt can be followed from one step to "
            "the next. Name a column that lasts with --id COLUMN or --prompt COLUMN, if there is one."
        )
    ids = () if key is None else (key,)
    numbered = tuple(name for name in rolled if name in (*ids, *groups))
    return Identity(ids, texts, beside, groups, runs, fresh, numbered), [*said, *more]


def split_of(look: Look, rest: Sequence[str]) -> str | None:
    """A column that may tell training from evaluation, if its first values are all such words."""
    for name in rest:
        words = {as_text(one).lower() for row in look.rows if not is_missing(one := value(row, name))}
        if (
            plain(name) in {*names.SPLITS, *names.SPLIT_QUESTIONS}
            and words
            and all(is_training(name, word) or is_evaluation(name, word) for word in words)
        ):
            return name
    return None


def is_training(column: str, word: str) -> bool:
    """Whether a value of a split means training; of a column such as `is_train` that is yes, of `is_eval` no."""
    found = word.strip().lower()
    if plain(column) in names.SPLIT_QUESTIONS:
        return found in (_YES if "train" in plain(column) else _NO)
    return found in _TRAINING


def is_evaluation(column: str, word: str) -> bool:
    """Whether a value of a split means an evaluation, such as "eval/gsm8k"."""
    found = word.strip().lower().replace("-", "_").partition("/")[0]
    if plain(column) in names.SPLIT_QUESTIONS:
        return found in (_NO if "train" in plain(column) else _YES)
    return found in _EVALUATION


def grading(look: Look, rest: Sequence[str], identity: Identity, step: str | None) -> str | None:
    """A column that tells apart several gradings of one response: the same responses come with each of its values."""
    response = find((*CANDIDATES["completion"], "resps"), look.names)
    for name in rest:
        if plain(name) not in names.GRADINGS:
            continue
        by_value: dict[str, Counter[str]] = defaultdict(Counter)
        for row in look.rows:
            parts = (step, *identity.ids, *identity.texts, response)
            same = repr([value(row, part) for part in parts if part is not None])
            by_value[as_text(value(row, name))][same] += 1
        if len(by_value) > 1:
            common = set.intersection(*(set(counts) for counts in by_value.values()))
            if 2 * len(common) >= max(map(len, by_value.values())):
                return name
    return None


def _is_row_number(look: Look, key: str, text: str) -> bool:
    """Whether an id is another in every row while texts come again."""
    ids = [as_text(value(row, key)) for row in look.rows]
    texts = {as_text(value(row, text)) for row in look.rows}
    return len(ids) > 2 and len(set(ids)) == len(ids) and len(texts) < len(ids)


def _within_a_step(key: str, asked: str | None) -> bool:
    """Whether an id is called like one that numbers the groups of a step; another that the user names is believed."""
    return plain(key) in LAST_RESORT_IDS and (asked is None or plain(key).startswith("group"))


def _beside(
    look: Look, base: tuple[str, ...], reference: str | None, category: str | None, rewards: Sequence[str]
) -> tuple[tuple[str, ...], list[str]]:
    """References, images and categories that belong to a prompt, and a sentence on one that may be a response's."""
    found, said = [], []
    if reference is not None and _differ(look, base, reference):
        steady = plain(reference) in names.STEADY_REFERENCES and _splits(look, base, reference)
        if steady and plain(reference) in names.UNSURE_REFERENCES and _goes_by_reward(look, base, reference, rewards):
            said.append(
                f"{reference} parts every group into rollouts of equal rewards, as the model's own answers do: it "
                f"tells no prompts apart. If it is the reference, name it with --id {reference}."
            )
        elif steady:
            found.append(reference)
        else:
            said.append(
                f"{reference} differs within groups of one prompt, and may be a response's: it tells no prompts apart. "
                f"If it is the reference, name it with --id {reference}."
            )
    elif reference is not None and plain(reference) in names.STEADY_REFERENCES:
        found.append(reference)
    found += [name for name in look.names if plain(name) in names.IMAGES and _splits(look, base, name)]
    if category is not None and category not in base and _splits(look, base, category):
        found.append(category)
    return tuple(dict.fromkeys(found)), said


def _groups(look: Look, base: tuple[str, ...], key: str | None) -> list[str]:
    """Columns that tell groups of the same prompt in the same step apart."""
    found = []
    for name in look.names:
        if plain(name) not in names.GROUPS or name == key or name in base:
            continue
        of_group = defaultdict(set)
        for row in look.rows:
            of_group[as_text(value(row, name))].add(repr([value(row, part) for part in base]))
        several = len(of_group) < len(look.rows) and all(len(members) == 1 for members in of_group.values())
        if several and _splits(look, base, name):
            found.append(name)
    return found


def sample_of(uid: str) -> str:
    """The sample in an id of a rollout that is written SAMPLE_ROLLOUT_OUTPUT; others stay as they are."""
    match = _OF_A_ROLLOUT.fullmatch(uid)
    return uid if match is None else match[1]


def _numbers_rollouts(look: Look, name: str, asked: str | None, step: str | None) -> bool:
    """Whether a column holds ids of rollouts, as verl's `uid` does, and not ids of prompts that end in numbers.

    Each rollout has its own id, and several samples have several rollouts. Most samples of a `uid` have a rollout 0,
    since some rollouts may be gone; those of any other column have 0 to n - 1, with a single output each.
    """
    if name == asked or plain(name) not in {*names.GROUPS, *LAST_RESORT_IDS}:
        return False
    held = [(step and value(row, step), as_text(one)) for row in look.rows if not is_missing(one := value(row, name))]
    found = [(of_step, _OF_A_ROLLOUT.fullmatch(uid)) for of_step, uid in held]
    members: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for of_step, match in found:
        if match is None:
            return False
        members[repr((of_step, match[1]))].append((int(match[2]), int(match[3])))
    several = any(len({rollout for rollout, _ in of_sample}) > 1 for of_sample in members.values())
    if len(set(map(repr, held))) < len(held) or len(members) < 2 or not several:
        return False
    if plain(name) == "uid":
        return 2 * sum(any(rollout == 0 for rollout, _ in of_sample) for of_sample in members.values()) > len(members)
    return all(sorted(of_sample) == [(index, 0) for index in range(len(of_sample))] for of_sample in members.values())


def _with_samples(look: Look, numbered: Sequence[str]) -> Look:
    """The first rows with samples in place of the ids of rollouts."""
    rows = [row | {name: sample_of(as_text(value(row, name))) for name in numbered} for row in look.rows]
    return replace(look, rows=rows)


def _differ(look: Look, base: tuple[str, ...], name: str) -> bool:
    return any(len(inside) > 1 for inside in _inside(look.rows, base, name).values())


def _splits(look: Look, base: Sequence[str | None], name: str) -> bool:
    """Whether a column divides groups into groups, none of them a single rollout, or does not divide them at all.

    What differs from rollout to rollout belongs to the response and not to the prompt.
    """
    inside = _inside(look.rows, tuple(part for part in base if part is not None), name)
    divided = [sizes for sizes in inside.values() if len(sizes) > 1]
    if not divided:
        return True
    last = _last_group(look.rows, name)  # the first rows may end within a group
    singles = sum(size == 1 and held != last for sizes in divided for held, size in sizes.items())
    return singles == 0


def _goes_by_reward(look: Look, base: tuple[str, ...], name: str, rewards: Sequence[str]) -> bool:
    """Whether all rollouts with one value have one reward in every group that a column divides, and others another."""
    inside: dict[str, dict[str, set[float]]] = defaultdict(lambda: defaultdict(set))
    for row in look.rows:
        earned = [number(value(row, reward)) for reward in rewards]
        group = repr([value(row, part) for part in base])
        inside[group][as_text(value(row, name))].add(sum(one for one in earned if one == one))
    divided = [list(parts.values()) for parts in inside.values() if len(parts) > 1]
    steady = all(len(part) == 1 for parts in divided for part in parts)
    return steady and any(len(set.union(*parts)) > 1 for parts in divided)


def _inside(rows: Sequence[Row], base: tuple[str, ...], name: str) -> dict[str, Counter[str]]:
    """Of each group, how often each value of a column comes."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        found[repr([value(row, part) for part in base])][as_text(value(row, name))] += 1
    return found


def _last_group(rows: Sequence[Row], name: str) -> str | None:
    return as_text(value(rows[-1], name)) if len(rows) >= 200 else None
