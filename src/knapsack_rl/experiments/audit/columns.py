"""Which column of a rollout log is what: named by flags, otherwise guessed from names and first rows, and said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit import counts, names, prompts
from knapsack_rl.experiments.audit.asked import Asked
from knapsack_rl.experiments.audit.counts import Counts
from knapsack_rl.experiments.audit.names import CANDIDATES, find, is_measure, listed, plain
from knapsack_rl.experiments.audit.prompts import Identity
from knapsack_rl.experiments.audit.readers import Look
from knapsack_rl.experiments.audit.shapes import Nested, value
from knapsack_rl.experiments.audit.times import Epochs, Time, candidates, is_certain
from knapsack_rl.experiments.audit.values import described, is_missing, number
from knapsack_rl.validation import nearest

_TRL = ("prompt", "completion", "advantage")  # reward functions stand between the last two
_VERL = ("input", "output", "score")
_CORRECTNESS = ("accuracy", "correct", "solution", "verif", "answer", "exact", "math")
_VERDICTS = {0.0, 1.0}
_MAY_MEAN_ELSE = ("success", "passed", "verified", "em", "accuracy")  # a request that succeeded, say


@dataclass(frozen=True)
class Columns:
    """Which columns are read.

    Attributes:
        identity: what tells prompts, and groups in a step, apart.
        text: shows a prompt to people.
        success: decides on successes, their sum if there are several; empty where rows are groups.
        trained: rewards that training saw; whether their sum differs decides on gradients where no advantage does.
        advantage: decides on gradients.
        step: the time of the update.
        epochs: what the step begins anew in.
        perhaps_step: columns called like a step, where only all rows tell which one it is.
        counts: what rows are that are whole groups.
        split: tells rollouts of the training from those of an evaluation, if it has values for both.
        grading: tells apart several gradings of the same response.
        relogged: whether TRL wrote it, which logs a generation batch at every update that is made from it.
        remarks: sentences on what was chosen among several.
    """

    identity: Identity
    text: str
    success: tuple[str, ...]
    trained: tuple[str, ...]
    advantage: str | None = None
    step: str | None = None
    epochs: Epochs | None = None
    perhaps_step: tuple[str, ...] = ()
    length: str | None = None
    category: str | None = None
    completion: str | None = None
    answer: str | None = None
    reference: str | None = None
    counts: Counts | None = None
    split: str | None = None
    grading: str | None = None
    relogged: bool = False
    remarks: tuple[str, ...] = ()

    def needed(self) -> list[str]:
        """Names of all columns to read, each once."""
        single = (
            self.text, self.advantage, self.step, self.length, self.category, self.completion, self.answer,
            self.reference, self.split, self.grading, None if self.epochs is None else self.epochs.column,
        )  # fmt: skip
        several = (*self.identity.columns(), *self.success, *self.trained)
        counted = () if self.counts is None else self.counts.columns()
        return list(dict.fromkeys([*several, *(name for name in single if name is not None), *counted]))

    def at(self, time: Time) -> Columns:
        """The same with the step that was chosen."""
        remarks = (*self.remarks, *time.remarks)
        return replace(self, step=time.step, epochs=time.epochs, perhaps_step=(), remarks=remarks)

    def said(self, asked: Asked) -> dict[str, str]:
        """What each role was read from, and whether that was a guess."""
        roles = {
            "id": " + ".join(self.identity.ids) or None,
            "prompt": self.text if self.text not in self.identity.ids else None,
            "told apart by": " + ".join((*self.identity.beside, *self.identity.groups)) or None,
            "reward": " + ".join(self.trained) or None,
            "success": " + ".join(self.success) if self.success != self.trained else None,
            "advantage": self.advantage,
            "step": self.step if self.epochs is None else f"{self.epochs.column} + {self.step}",
            "length": self.length,
            "category": self.category,
            "completion": self.completion,
            "answer": self.answer,
            "reference": self.reference,
        }
        given = asked.given()
        told = {
            role: f"{name} ({'given' if all(part in given for part in name.split(' + ')) else 'guessed'})"
            for role, name in roles.items()
            if name
        }
        if self.counts is not None:
            told["reward"] = self.counts.said()
        return told


def understand(file: str, look: Look, asked: Asked) -> Columns:
    """Decide which column is what.

    Args:
        file: for messages.
        look: what the file holds.
        asked: what the user named.

    Raises:
        InvalidInputError: two columns have one name, a named column is not there, or prompt or reward cannot be found;
            the message names the columns, what was looked for and the flag to use.
    """
    _check_shapes(file, look)
    _check_asked(file, look, asked)
    text = asked.prompt or find(CANDIDATES["prompt"], look.names)
    prompts.require(file, look, text, asked)
    counted = None if asked.reward or asked.success or look.shapes else counts.find_counts(look, text)
    if counted is not None:
        success: tuple[str, ...] = ()
        trained: tuple[str, ...] = ()
        advantage = None
    else:
        advantage = asked.advantage or _advantage(look)
        trained, success = _rewards(file, look, asked)
    taken = {*trained, *success, advantage, text, *(counted.columns() if counted else ())} - {None}
    rest = [name for name in look.names if name not in taken]

    def role(kind: str, of: Sequence[str]) -> str | None:
        named: str | None = getattr(asked, kind)
        return named or find(CANDIDATES[kind], of)

    called = () if asked.step else tuple(candidates(rest))
    step = asked.step or next(iter(called), None)
    reference, category = role("reference", rest), role("category", rest)
    identity, remarks = prompts.identify(look, text, asked, step, category, reference, trained)
    found = Columns(
        identity=identity,
        text=text or identity.ids[0],
        success=success,
        trained=trained,
        advantage=advantage,
        step=step,
        perhaps_step=() if is_certain(look, called) else called,
        length=asked.length or find(CANDIDATES["length"], [name for name in rest if name in look.numeric]),
        category=category,
        completion=None if counted else role("completion", rest),
        answer=None if counted else role("answer", rest),
        reference=None if counted else reference,
        counts=counted,
        split=prompts.split_of(look, rest),
        grading=prompts.grading(look, rest, identity, step),
        relogged=_is_trl(look.names),
        remarks=(
            *(shape.said for shape in look.shapes if shape.said), *remarks,
            *_reward_remarks(success, trained, advantage), *_filtered_remark(look),
        ),
    )  # fmt: skip
    _check_names(file, look, found)
    return found


def _check_shapes(file: str, look: Look) -> None:
    for shape in look.shapes:
        if isinstance(shape, Nested) and not shape.related:
            raise InvalidInputError(
                f"{file}: {listed(shape.paths, 5)} hold lists of rollouts, and nothing says what they have to do with "
                "each other. Write them as one list, or as rows, with columns that tell steps and prompts apart."
            )


def _check_names(file: str, look: Look, columns: Columns) -> None:
    """Refuse a column that is read and has the name of another; what is not read may be called anything, or nothing."""
    count = Counter(look.names)
    twice = [name for name in columns.needed() if count[name] > 1]
    if twice:
        raise InvalidInputError(
            f"{file}: expected columns with names of their own, got {listed(twice)} more than once. "
            "Rename or remove all but one."
        )


def _check_asked(file: str, look: Look, asked: Asked) -> None:
    for field in fields(Asked):
        name = getattr(asked, field.name)
        if name is not None and name not in look.names:
            close = nearest(name, look.names)
            raise InvalidInputError(
                f"--{field.name}: {file} has no column {name!r}."
                f"{f' Did you mean {close}?' if close else ''} Its columns are {listed(look.names)}."
            )


def _rewards(file: str, look: Look, asked: Asked) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What training saw, and what says what a success is.

    `--reward` alone names either: a column of right and wrong beside the reward, and any column of a log whose writer
    is known to train on others, say what a success is.
    """
    known = _functions(look) or _total(look)
    beside = asked.reward not in known and (_writes_what_it_trains_on(look) or asked.reward == _verdict(look, known))
    if asked.reward and (asked.success or not beside):
        whole: tuple[str, ...] = known if asked.reward in _functions(look) else (asked.reward,)
        success = asked.success or asked.reward
    else:
        whole, success = known, asked.success or asked.reward or ""
    if not whole:  # a column that holds nothing in the first rows is better than none
        found = success or find((*CANDIDATES["success"], *CANDIDATES["reward"]), look.names)
        whole = () if found is None else (found,)
    if not whole:
        raise InvalidInputError(_no_reward(file, look))
    _check_values(file, look, (*whole, success) if success else whole)
    if success:
        return whole, (success,)
    verdict = _verdict(look, whole)
    return whole, (verdict,) if verdict else _correct_one(whole)


def _writes_what_it_trains_on(look: Look) -> bool:
    """Whether the writer is one whose rewards are known by their place or name: TRL and verl."""
    return bool(_functions(look)) or all(name in look.names for name in _VERL)


def _total(look: Look) -> tuple[str, ...]:
    """The column that is the reward as a whole, or those with reward in their names."""
    empty = {name for name in look.names if look.rows and all(is_missing(value(row, name)) for row in look.rows)}
    found = find(CANDIDATES["reward"], [name for name in look.names if name not in empty])
    if found is not None:
        return (found,)
    called = tuple(
        name
        for name in look.names
        if name in look.numeric and "reward" in plain(name) and plain(name) not in names.GROUP_REWARDS
    )
    total = [name for name in called if "total" in plain(name)]
    return tuple(total) if len(total) == 1 else called


def _functions(look: Look) -> tuple[str, ...]:
    """TRL's reward functions, whatever they are called; metrics may stand among them."""
    if not _is_trl(look.names):
        return ()
    end = next(look.names.index(name) for name in look.names if plain(name) in CANDIDATES["advantage"])
    between = [
        name
        for name in look.names[look.names.index("completion") + 1 : end]
        if name in look.numeric and plain(name) not in CANDIDATES["step"]
    ]
    return tuple(name for name in between if not is_measure(name)) or tuple(between)


def _is_trl(of: Sequence[str]) -> bool:
    """Whether a prompt, a completion, reward functions and an advantage stand in this order."""
    advantage = find(CANDIDATES["advantage"], of)
    if advantage is None or not all(name in of for name in _TRL[:2]):
        return False
    return of.index(advantage) > of.index("completion")


def _advantage(look: Look) -> str | None:
    return find(CANDIDATES["advantage"], [name for name in look.names if name in look.numeric])


def _verdict(look: Look, whole: tuple[str, ...]) -> str | None:
    """A column of right and wrong beside the reward."""
    for name in look.names if whole else ():
        if plain(name) not in CANDIDATES["success"] or name in whole:
            continue
        values = _numbers(look, name)
        constant = len(values) < 2 and len(_numbers(look, whole[0])) > 1 and plain(name) in _MAY_MEAN_ELSE
        if values and values <= _VERDICTS and not constant:
            return name
    return None


def _correct_one(whole: tuple[str, ...]) -> tuple[str, ...]:
    """Of several rewards the one that is about being right, or the only one that is called a reward."""
    for about in (
        [name for name in whole if any(word in plain(name) for word in _CORRECTNESS)],
        [name for name in whole if "reward" in plain(name)],
    ):
        if len(about) == 1:
            return tuple(about)
    return whole


def _numbers(look: Look, name: str) -> set[float]:
    found = (number(value(row, name)) for row in look.rows)
    return {one for one in found if one == one}


def _check_values(file: str, look: Look, columns: tuple[str, ...]) -> None:
    """Refuse rewards that are no numbers in any of the first rows."""
    for name in dict.fromkeys(columns):
        held = [one for row in look.rows if not is_missing(one := value(row, name))]
        if not held or any(number(one) == number(one) for one in held):
            continue
        raise InvalidInputError(
            f"{file}: {name} holds {described(held[0])}, and a reward is a number, or true or false. "
            f"{_advice(held[0], name)}"
        )


def _advice(held: Any, name: str) -> str:
    if isinstance(held, dict):
        part = next((part for part, inner in held.items() if isinstance(inner, (int, float))), None)
        return (
            f"Name one of its parts, say --reward {name}.{part}."
            if part
            else "Name another column with --reward COLUMN."
        )
    if isinstance(held, list):
        return (
            "Write a row for each rollout, or the table with the columns prompt, scored and successes; or name another "
            "column with --reward COLUMN."
        )
    return "Write 1 for what is right and 0 for what is wrong, or name another column with --reward COLUMN."


def _no_reward(file: str, look: Look) -> str:
    lists = [name for name in look.names if any(isinstance(value(row, name), list) for row in look.rows)]
    held = f" {listed(lists, 5)} hold lists." if lists else ""
    return (
        f"{file}: no column was recognised as a reward. Its columns are {listed(look.names)}.{held} Looked for "
        f"{', '.join((*CANDIDATES['reward'], *CANDIDATES['success']))}, names with 'reward' in them, and TRL's columns "
        "between completion and advantage. Name one with --reward COLUMN."
    )


def _reward_remarks(success: tuple[str, ...], trained: tuple[str, ...], advantage: str | None) -> tuple[str, ...]:
    said = []
    gradients = (
        f"the column {advantage}" if advantage else f"the unweighted sum of {listed(trained)}" if len(trained) > 1
        else f"the column {listed(trained)}"
    )  # fmt: skip
    if success != trained:
        said.append(
            f"Two columns, two questions: {listed(success)} decides on what is a success, and {gradients} on what "
            "had a gradient. --success, --reward and --advantage name others."
        )
    if len(success) > 1:
        said.append(
            f"The reward is the unweighted sum of {listed(success)}: a log does not hold the weights. --success COLUMN "
            "takes one of them, and --success-above X says which sums are successes."
        )
    return tuple(said)


def _filtered_remark(look: Look) -> tuple[str, ...]:
    """NeMo-RL says where dynamic sampling has thrown groups away."""
    if "filtered_rewards" not in look.names:
        return ()
    return (
        "The column filtered_rewards says that groups were filtered while training (dynamic sampling): the log holds "
        "survivors only, and rollouts of groups that were all right or all wrong are missing from every share.",
    )
