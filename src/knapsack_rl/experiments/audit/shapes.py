"""Shapes of rows that are not one rollout each, and how each becomes rows that are.

A shape looks at the first rows of a file and either says that it is not there or binds the columns that it is about;
`unfold` then makes rows of rollouts out of a row. Rows that it does not fit pass through. How to add one:
docs/how-to/add-a-log-format.md.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from knapsack_rl.experiments.audit import names

Row = dict[str, Any]

_DEPTH = 3  # objects in objects that become columns
_PASSES = 5  # shapes in shapes
_STEP = re.compile(r"(?:(\D+?)_?)?(\d{1,15})")
_MEANS = {"mean", "avg", "average"}
_ROLLOUTS = ("rollouts", "trajectories", "episodes", "results")
_INSIDE_A_ROLLOUT = {"steps", "turns", "messages", "transitions", "trajectory", "conversation", "history", "logs"}


class Shape(Protocol):
    """How the rows of a file become rows of rollouts."""

    @property
    def said(self) -> str:
        """A sentence for the reader of an audit; empty where there is nothing to say."""
        ...

    def unfold(self, row: Row) -> list[Row]:
        """The rollouts of a row."""
        ...


def shapes_of(rows: Sequence[Row], wanted: Sequence[str]) -> tuple[tuple[Shape, ...], list[Row]]:
    """The shapes of a file, outermost first, and the rollouts of its first rows.

    Args:
        rows: the first rows of the file.
        wanted: names of columns that the user gave.
    """
    found: list[Shape] = []
    for _ in range(_PASSES):
        shape = next((shape for find in SHAPES if (shape := find(rows, wanted)) is not None), None)
        if shape is None:
            break
        found.append(shape)
        rows = unfolded(rows, (copy.deepcopy(shape),))  # shapes may remember what they saw
    return tuple(found), list(rows)


def unfolded(rows: Sequence[Row], shapes: Sequence[Shape]) -> list[Row]:
    """The rollouts of all rows."""
    for shape in shapes:
        rows = [rollout for row in rows for rollout in shape.unfold(row)]
    return list(rows)


def unfolded_by_holder(row: Row, shapes: Sequence[Shape]) -> list[list[Row]]:
    """The rollouts of a row, apart by the innermost row that held them: it may be a whole group."""
    last = max((place for place, shape in enumerate(shapes) if _holds_groups(shape)), default=0)
    return [unfolded([holder], shapes[last:]) for holder in unfolded([row], shapes[:last])]


def hold_groups(shapes: Sequence[Shape]) -> bool:
    """Whether rows hold several rollouts, and not just what is a rollout in another shape."""
    return any(map(_holds_groups, shapes))


def value(row: Row, name: str) -> Any:
    """A column of a row; `a.b` is what the object `a` holds as `b`. None where there is none."""
    if name in row:
        return row[name]
    found: Any = row
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The names of all columns, in the order of their appearance; of objects, those of their parts too."""
    found: dict[str, None] = {}

    def add(prefix: str, item: Mapping[str, Any], depth: int) -> None:
        for name, held in item.items():
            found.setdefault(f"{prefix}{name}")
            if isinstance(held, Mapping) and depth < _DEPTH:
                add(f"{prefix}{name}.", held, depth + 1)

    for row in rows:
        add("", row, 1)
    return list(found)


@dataclass(frozen=True)
class TableObject:
    """One object with the names of columns and lists of values, as wandb and pandas write tables."""

    said: str = ""

    @classmethod
    def find(cls, rows: Sequence[Row], wanted: Sequence[str]) -> Shape | None:
        """Whether rows have `columns` and `data`."""
        return cls() if rows and all(map(cls._fits, rows)) else None

    @staticmethod
    def _fits(row: Row) -> bool:
        heads, data = row.get("columns"), row.get("data")
        return isinstance(heads, list) and isinstance(data, list) and all(isinstance(part, list) for part in data)

    def unfold(self, row: Row) -> list[Row]:
        """A row for each entry of `data`."""
        if not self._fits(row):
            return [row]
        heads = [_heading(head) for head in row["columns"]]
        return [dict(zip(heads, part, strict=False)) for part in row["data"]]


@dataclass(frozen=True)
class ColumnsByRow:
    """One object with an object a column, keyed by row number, as pandas writes a frame by default."""

    said: str = ""

    @classmethod
    def find(cls, rows: Sequence[Row], wanted: Sequence[str]) -> Shape | None:
        """Whether there is one row, and all of its columns are objects with the same keys."""
        return cls() if len(rows) == 1 and cls._fits(rows[0]) else None

    @staticmethod
    def _fits(row: Row) -> bool:
        parts = list(row.values())
        if len(parts) < 2 or not all(isinstance(part, Mapping) and part for part in parts):
            return False
        return all(part.keys() == parts[0].keys() for part in parts) and all(key.isdigit() for key in parts[0])

    def unfold(self, row: Row) -> list[Row]:
        """A row for each key."""
        if not self._fits(row):
            return [row]
        return [{name: part[key] for name, part in row.items()} for key in next(iter(row.values()))]


@dataclass(frozen=True)
class BySteps:
    """An object whose names are steps, such as "12" or "step_12", and hold the rollouts of each, at any depth."""

    path: str
    example: str
    own_steps: bool

    @property
    def said(self) -> str:
        """See `Shape`."""
        return f"Names such as {self.example} were taken for steps: each holds the rollouts of one."

    @classmethod
    def find(cls, rows: Sequence[Row], wanted: Sequence[str]) -> Shape | None:
        """Whether all that holds rollouts is called like a step; bare numbers are none in a row of one prompt."""
        heads = columns_of(rows)
        if _any_scored(rows) or names.find(names.CANDIDATES["step"], heads) is not None:
            return None
        one_prompt = _of_one_prompt(heads)
        for path in ("", *(name for name in heads if any(isinstance(value(row, name), Mapping) for row in rows))):
            inside = [part for row in rows for part in cls._inside(row, path).items()]
            steps = [(name, held) for name, held in inside if _bears_rollouts(held, wanted)]
            if not steps or not all(_step_of(name) is not None for name, _ in steps):
                continue
            if not one_prompt or not (_is_part(path) or any(name.isdigit() for name, _ in steps)):
                items = [item for _, held in steps for item in _items(held)]
                return cls(path, steps[0][0], names.find(names.CANDIDATES["step"], columns_of(items)) is not None)
        return None

    @staticmethod
    def _inside(row: Row, path: str) -> Mapping[str, Any]:
        held = value(row, path) if path else row
        return held if isinstance(held, Mapping) else {}

    def unfold(self, row: Row) -> list[Row]:
        """A row for each step, the first one first, with what the row says of all."""
        of_step = {
            name: (step, held)
            for name, held in self._inside(row, self.path).items()
            if isinstance(held, (list, Mapping)) and (step := _step_of(name)) is not None
        }
        if not of_step:
            return [row]
        heads = {_head(row, self.path)} if self.path else set(of_step)
        shared = _shared(row, heads)
        return [
            shared
            | ({} if self.own_steps else {"step": step})
            | (dict(held) if isinstance(held, Mapping) else {"rollouts": held})
            for step, held in sorted(of_step.values(), key=lambda pair: pair[0])
        ]


@dataclass(frozen=True)
class Nested:
    """A row that holds its rollouts as a list of objects, or as several: right and wrong ones, or a list a prompt.

    Attributes:
        paths: where the lists are.
        related: whether it is known what several lists have to do with each other.
    """

    paths: tuple[str, ...]
    related: bool = True

    @property
    def said(self) -> str:
        """See `Shape`."""
        return f"Rollouts were read from the lists in {names.listed(self.paths, 5)}."

    @classmethod
    def find(cls, rows: Sequence[Row], wanted: Sequence[str]) -> Shape | None:
        """Whether columns hold lists of objects that have a reward, or hold lists that do."""
        heads = columns_of(rows)
        scored, one_prompt = _any_scored(rows), _of_one_prompt(heads)
        found = tuple(
            name
            for name in heads
            if not (one_prompt and _is_part(name))
            and not (scored and not _is_many(name))
            and cls._fits(rows, name, wanted)
        )
        if not found:
            return None
        if all(map(_is_outcome, found)):
            empty = (name for name in heads if _is_outcome(name) and any(value(row, name) == [] for row in rows))
            found = tuple(dict.fromkeys((*found, *empty)))
        outcomes = all(map(_is_outcome, found)) and len(set(map(_parent, found))) == 1
        return cls(found, len(found) == 1 or outcomes or cls._a_prompt_each(rows, found))

    @classmethod
    def _fits(cls, rows: Sequence[Row], name: str, wanted: Sequence[str]) -> bool:
        """Whether a column holds lists of rollouts; steps and the like must hold lists of them, as those of a run."""
        return any(
            _holds_rollouts(item, wanted) and not (_is_part(name) and _any_scored([item]))
            for row in rows
            for item in _items(value(row, name))[:3]
        )

    @staticmethod
    def _a_prompt_each(rows: Sequence[Row], paths: Sequence[str]) -> bool:
        """Whether all entries of a list are of one prompt, of another for each list."""
        prompts: list[str] = []
        for path in paths:
            items = [item for row in rows for item in _items(value(row, path))]
            key = names.find((*names.CANDIDATES["prompt"], *names.CANDIDATES["id"]), columns_of(items))
            found = {repr(value(item, key)) for item in items} if key is not None else set()
            if len(found) != 1:
                return False
            prompts += found
        return len(set(prompts)) == len(prompts)

    def unfold(self, row: Row) -> list[Row]:
        """What the row says of all, and what each object says of itself."""
        lists = [held for path in self.paths if isinstance(held := value(row, path), list)]
        if not lists:
            return [row]
        shared = _shared(row, {_head(row, path) for path in self.paths})
        return [shared | item for held in lists for item in _items(held)]


@dataclass(frozen=True)
class Lists:
    """A row that holds lists, with an entry for each rollout.

    Either all columns are lists (a row is a step, as ms-swift writes it), or a prompt stands beside the lists of its
    responses and rewards.
    """

    column: str
    together: bool
    steady: frozenset[str] = frozenset()

    @property
    def said(self) -> str:
        """See `Shape`."""
        if self.together:
            return "Each row holds lists, one for each column: every entry was read as a rollout."
        return f"Each row holds the rollouts of a prompt: {self.column} is a list of their rewards."

    @classmethod
    def find(cls, rows: Sequence[Row], wanted: Sequence[str]) -> Shape | None:
        """Whether prompts are lists, or rewards are lists of as many numbers as there are responses."""
        heads = columns_of(rows)
        prompt = names.find(names.CANDIDATES["prompt"], heads)
        if prompt is not None and _mostly(rows, lambda row: _is_several(value(row, prompt), row)):
            return cls(prompt, together=True)
        for name in (*wanted, *_reward_lists(rows, heads)):
            if _mostly(rows, lambda row, name=name: _is_numbers(value(row, name))) and cls._of_rollouts(rows, name):
                steady = frozenset(
                    found
                    for role in ("id", "prompt", "reference", "category", "step")
                    if (found := names.find(names.CANDIDATES[role], heads)) is not None
                )
                return cls(name, together=False, steady=steady | {n for n in heads if names.plain(n) in names.IMAGES})
        return None

    @staticmethod
    def _of_rollouts(rows: Sequence[Row], name: str) -> bool:
        """Whether the numbers are of rollouts, and not of the tokens or parts of one."""
        row = next(row for row in rows if _is_numbers(value(row, name)))
        completions = _completions(row)
        if any(isinstance(held, list) and len(held) == len(value(row, name)) for held in completions):
            return True
        if completions or any(_is_number(held) and names.is_reward(other) for other, held in row.items()):
            return False
        if name.rstrip("0123456789").endswith("s"):
            return True
        heads = columns_of(rows)
        key = names.find(names.CANDIDATES["prompt"], heads) or names.find(names.CANDIDATES["id"], heads)
        prompts = [repr(value(row, key)) for row in rows] if key else []
        return len(prompts) > 1 and len(set(prompts)) == len(prompts)  # a row for each prompt

    def unfold(self, row: Row) -> list[Row]:
        """An entry of each list, and everything that is no such list."""
        held = value(row, self.column)
        if not isinstance(held, list):
            return [row]
        lists = {
            name
            for name, part in row.items()
            if isinstance(part, list) and len(part) == len(held) and name not in self.steady and not _is_chat(part)
        }
        return [{n: part[i] if n in lists else part for n, part in row.items()} for i in range(len(held))]


@dataclass(frozen=True)
class TokenRewards:
    """A reward that is a list of numbers, one a token or part, beside a single response: their sum is the reward."""

    columns: tuple[str, ...]

    @property
    def said(self) -> str:
        """See `Shape`."""
        return (
            f"{names.listed(self.columns)} holds lists of numbers beside a single response, such as one a token: their "
            "sum was taken."
        )

    @classmethod
    def find(cls, rows: Sequence[Row], wanted: Sequence[str]) -> Shape | None:
        """Whether rewards are lists and responses are not."""
        lists = [
            name
            for name in dict.fromkeys((*wanted, *_reward_lists(rows, columns_of(rows))))
            if _mostly(rows, lambda row, name=name: name in row and _is_numbers(row[name]))
        ]
        responses = [held for row in rows for held in _completions(row)]
        single = bool(responses) and all(isinstance(held, str) or _is_chat(held) for held in responses)
        return cls(tuple(lists)) if lists and single else None

    def unfold(self, row: Row) -> list[Row]:
        """The row with sums."""
        sums = {
            name: float(sum(number for number in row[name] if number is not None))
            for name in self.columns
            if _is_numbers(row.get(name))
        }
        return [row | sums]


@dataclass(frozen=True)
class Selection:
    """Rows of some rollouts only, each with the rewards of its whole group: groups are read from those, once each."""

    column: str
    like: tuple[str, ...]
    seen: set[str] = field(default_factory=set, compare=False, repr=False)

    @property
    def said(self) -> str:
        """See `Shape`."""
        return (
            f"The rows are a selection of the rollouts: groups were read from {self.column}, each once, and "
            "completions were not looked at."
        )

    @classmethod
    def find(cls, rows: Sequence[Row], wanted: Sequence[str]) -> Shape | None:
        """Whether there are fewer rows of a group than it has rewards."""
        heads = columns_of(rows)
        column = names.find(names.GROUP_REWARDS, heads)
        if column is None or not _mostly(rows, lambda row: _is_numbers(row.get(column))):
            return None
        like = tuple(
            found
            for role in ("step", "id", "prompt")
            if (found := names.find(names.CANDIDATES[role], heads)) is not None
        )
        selection = cls(column, like)
        counts = Counter(selection._group(row) for row in rows)
        whole = sum(counts[selection._group(row)] == len(row[column]) for row in rows if _is_numbers(row.get(column)))
        return None if 2 * whole > len(rows) else selection

    def _group(self, row: Row) -> str:
        return repr([value(row, name) for name in (*self.like, self.column)])

    def unfold(self, row: Row) -> list[Row]:
        """All rollouts of the group of a row, or none where they came before."""
        rewards, group = row.get(self.column), self._group(row)
        if not isinstance(rewards, list) or group in self.seen:
            return [] if group in self.seen else [row]
        self.seen.add(group)
        return [{name: value(row, name) for name in self.like} | {"reward": reward} for reward in rewards]


@dataclass(frozen=True)
class Conversation:
    """NeMo-RL's training data: the column `content` holds the whole conversation as a list, the prompt first."""

    opening: int

    @property
    def said(self) -> str:
        """See `Shape`."""
        first = "first entry" if self.opening == 1 else f"first {self.opening} entries"
        return f"The prompt was read from the {first} of content."

    @classmethod
    def find(cls, rows: Sequence[Row], wanted: Sequence[str]) -> Shape | None:
        """Whether there is such a list and no prompt."""
        heads = columns_of(rows)
        known = names.find(names.CANDIDATES["prompt"], heads)
        talks = [row["content"] for row in rows if isinstance(row.get("content"), list) and len(row["content"]) > 1]
        if known is not None or 2 * len(talks) <= len(rows):
            return None
        first, second = ({repr(talk[:length]) for talk in talks} for length in (1, 2))
        shared = len(first) == 1 < len(second) < len(talks) and min(map(len, talks)) > 2
        return cls(2 if shared else 1)

    def unfold(self, row: Row) -> list[Row]:
        """The row with its prompt and the last reply."""
        talk = row.get("content")
        if not isinstance(talk, list) or len(talk) <= self.opening:
            return [row]
        texts = [str(part.get("content", part)) if isinstance(part, dict) else str(part) for part in talk]
        return [row | {"prompt": "\n".join(texts[: self.opening]), "completion": texts[-1]}]


@dataclass(frozen=True)
class Transcript:
    """A chat that holds the reply too: the prompt is what stands before it."""

    column: str
    turns: bool

    @property
    def said(self) -> str:
        """See `Shape`."""
        where = "the first reply" if self.turns else "the last reply"
        return f"{self.column} holds replies too: the prompt was read from what stands before {where}."

    @classmethod
    def find(cls, rows: Sequence[Row], wanted: Sequence[str]) -> Shape | None:
        """Whether chats end with a reply, and are the same more often without it."""
        column = names.find(names.CANDIDATES["prompt"], columns_of(rows))
        if column is None or not _mostly(rows, lambda row: _ends_with_reply(value(row, column))):
            return None
        for shape in (cls(column, turns=False), cls(column, turns=True)):
            before = [repr(value(part, column)) for row in rows for part in shape.unfold(row)]
            if len(set(before)) < len(before):
                return shape
        return None

    def unfold(self, row: Row) -> list[Row]:
        """The row with its prompt and the last reply."""
        talk = value(row, self.column)
        if not _ends_with_reply(talk):
            return [row]
        replies = [place for place, message in enumerate(talk) if message["role"] == "assistant"]
        end = replies[0] if self.turns else len(talk) - 1
        return [row | {self.column: talk[:end], "completion": talk[-1].get("content")}]


@dataclass(frozen=True)
class Harness:
    """A sample of lm-evaluation-harness: the prompt is in `arguments` or `doc`, the metrics are named in `metrics`."""

    said: str = ""

    @classmethod
    def find(cls, rows: Sequence[Row], wanted: Sequence[str]) -> Shape | None:
        """Whether rows have what the harness writes, and no prompt yet."""
        fits = _mostly(rows, lambda row: "doc_id" in row and "resps" in row and "prompt" not in row)
        return cls() if fits else None

    def unfold(self, row: Row) -> list[Row]:
        """The row with prompt, completion and reward."""
        metrics = row.get("metrics") if isinstance(row.get("metrics"), list) else []
        scored = next((name for name in cast(list[str], metrics) if _is_number(row.get(name))), None)
        more: Row = {"prompt": _first_text(row.get("arguments")), "completion": _first_text(row.get("resps"))}
        if more["prompt"] is None:
            more["prompt"] = _first_text(row.get("doc"))
        if scored is not None and names.plain(scored) not in (
            *names.CANDIDATES["reward"],
            *names.CANDIDATES["success"],
        ):
            more["reward"] = row[scored]
        return [row | more]


Find = Callable[[Sequence[Row], Sequence[str]], Shape | None]

SHAPES: tuple[Find, ...] = (
    TableObject.find, ColumnsByRow.find, BySteps.find, Harness.find, Conversation.find, Selection.find, Lists.find,
    TokenRewards.find, Nested.find, Transcript.find,
)  # fmt: skip
"""In the order in which they are looked for."""


def _holds_groups(shape: Shape) -> bool:
    return isinstance(shape, (Lists, Nested, Selection))


def _heading(head: Any) -> str:
    """The name of a column as a text: numbers as they are, several levels joined by dots."""
    return ".".join(str(level) for level in head if level != "") if isinstance(head, list) else str(head)


def _mostly(rows: Sequence[Row], fits: Callable[..., bool]) -> bool:
    return bool(rows) and 2 * sum(map(bool, map(fits, rows))) > len(rows)


def _reward_lists(rows: Sequence[Row], heads: Sequence[str]) -> list[str]:
    """Columns called like rewards that hold lists of numbers, the likeliest first."""
    lists = [name for name in heads if any(_is_numbers(value(row, name)) for row in rows)]
    order = (*names.CANDIDATES["reward"], *names.CANDIDATES["success"])
    called = [name for name in lists if names.is_reward(name)]
    return sorted(called, key=lambda name: order.index(names.plain(name)) if names.plain(name) in order else len(order))


def _completions(row: Row) -> list[Any]:
    """What stands in columns of responses."""
    called = (*names.CANDIDATES["completion"], *names.COMPLETION_LISTS)
    return [held for name, held in row.items() if names.plain(name) in called and held is not None]


def _holds_rollouts(item: Any, wanted: Sequence[str], depth: int = 1) -> bool:
    """Whether an object has a reward, or lists of objects that have one."""
    if not isinstance(item, dict):
        return False
    return _is_scored(item, wanted) or any(
        depth < _DEPTH and names.plain(name) not in _INSIDE_A_ROLLOUT and isinstance(held, list)
        and any(_holds_rollouts(part, wanted, depth + 1) for part in held[:3])
        for name, held in item.items()
    )  # fmt: skip


def _is_scored(item: Any, wanted: Sequence[str]) -> bool:
    """Whether an object has a reward of its own."""
    return isinstance(item, dict) and any(
        name in wanted or (names.is_reward(name) and not isinstance(held, (str, Mapping)))
        for name, held in item.items()
    )


def _bears_rollouts(held: Any, wanted: Sequence[str], depth: int = 1) -> bool:
    """Whether something is a list of rollouts, or an object that holds such lists."""
    if isinstance(held, Mapping):
        return depth < _DEPTH and any(_bears_rollouts(part, wanted, depth + 1) for part in held.values())
    return isinstance(held, list) and any(_holds_rollouts(item, wanted) for item in held[:3])


def _step_of(name: str) -> int | None:
    """The step in a name such as "12", "step_12" or "Iteration 12"."""
    match = _STEP.fullmatch(names.plain(name))
    if match is None or (match[1] and match[1] not in names.CANDIDATES["step"]):
        return None
    return int(match[2])


def _any_scored(rows: Sequence[Row]) -> bool:
    """Whether rows have a reward of their own, and not just the mean of some."""
    return any(
        _is_number(held) and names.is_reward(name) and not _MEANS & {*names.plain(name).split("_")}
        for row in rows
        for name, held in row.items()
    )


def _of_one_prompt(heads: Sequence[str]) -> bool:
    """Whether rows are about a prompt each."""
    known = (*names.CANDIDATES["prompt"], *names.CANDIDATES["id"], *names.LAST_RESORT_IDS)
    return names.find(known, heads) is not None


def _is_part(path: str) -> bool:
    """Whether something is called like the parts of one rollout."""
    return names.plain(path.rpartition(".")[2]) in _INSIDE_A_ROLLOUT


def _is_many(path: str) -> bool:
    """Whether something is called like several rollouts."""
    return names.plain(path.rpartition(".")[2]) in (*names.COMPLETION_LISTS, *_ROLLOUTS)


def _is_outcome(path: str) -> bool:
    """Whether a list is called after the outcome of all that it holds."""
    return names.plain(path.rpartition(".")[2]) in {*names.WINS, *names.POSSIBLE_WINS, *names.LOSSES, "right"}


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _head(row: Row, path: str) -> str:
    """The column of a row that a path leads into."""
    return path if path in row else path.partition(".")[0]


def _shared(row: Row, heads: Collection[str]) -> Row:
    """What a row says of all its rollouts."""
    return {name: part for name, part in row.items() if name not in heads and not names.is_reward(name)}


def _items(held: Any) -> list[Row]:
    """The objects in a list."""
    return [item for item in held if isinstance(item, dict)] if isinstance(held, list) else []


def _is_number(held: Any) -> bool:
    return isinstance(held, (int, float))


def _is_numbers(held: Any) -> bool:
    """A list of numbers, some of which may be missing."""
    return (
        isinstance(held, list) and any(map(_is_number, held)) and all(part is None or _is_number(part) for part in held)
    )


def _is_chat(held: Any) -> bool:
    return isinstance(held, list) and all(isinstance(part, dict) and "role" in part for part in held)


def _ends_with_reply(held: Any) -> bool:
    return _is_chat(held) and len(held) > 1 and held[-1]["role"] == "assistant" and held[0]["role"] != "assistant"


def _is_several(held: Any, row: Row) -> bool:
    """A list of prompts, and not one chat: another column has a number for each."""
    if not isinstance(held, list) or not held or not all(isinstance(part, (str, list)) for part in held):
        return False
    lists = [part for part in row.values() if isinstance(part, list) and len(part) == len(held)]
    return any(_is_numbers(part) or all(map(_is_numbers, part)) for part in lists)


def _first_text(held: Any) -> str | None:
    """The first text in objects and lists."""
    if isinstance(held, str):
        return held
    parts = held.values() if isinstance(held, Mapping) else held if isinstance(held, list) else ()
    return next((text for part in parts if (text := _first_text(part)) is not None), None)
