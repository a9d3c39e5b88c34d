"""Which column of a rollout log is what: named by flags, otherwise guessed from names, and said either way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.validation import nearest

# In the order in which they are tried; compared without case, and with "-", "." and blanks read as "_".
CANDIDATES: dict[str, tuple[str, ...]] = {
    "id": ("prompt_id", "problem_id", "question_id", "task_id", "example_id", "instance_id", "prompt_hash"),
    "prompt": ("prompt", "prompts", "input", "question", "problem", "query", "instruction", "messages"),
    "reward": ("reward", "rewards", "score", "scores", "correct", "is_correct", "success", "acc", "accuracy", "passed"),
    "step": ("step", "global_step", "global_steps", "training_step", "train_step", "iteration", "update"),
    "length": (
        "completion_length", "response_length", "output_length", "completion_tokens", "output_tokens", "num_tokens",
        "response_len", "completion_len", "length",
    ),
    "category": ("category", "data_source", "ability", "domain", "subject", "topic", "dataset", "source"),
    "completion": ("completion", "completions", "output", "response", "generation"),
    "answer": ("pred", "prediction", "extracted_answer", "model_answer", "parsed_answer"),
    "reference": (
        "reference", "ground_truth", "gts", "gt", "gold", "reference_answer", "solution", "answer", "target", "label",
    ),
}  # fmt: skip
# Names that are often fresh in every step or every row, so that they are only better than nothing.
_LAST_RESORT_IDS = ("id", "uid", "index", "idx", "group", "group_id")
_COUNTS = ("prompt", "scored", "successes")
_TRL = ("prompt", "completion", "advantage")  # reward functions stand between the last two
_CORRECTNESS = ("accuracy", "correct", "solution", "verif", "answer", "exact", "math")


@dataclass(frozen=True)
class Asked:
    """Columns that the user named; None where the audit is to guess. `answer` is what a completion came down to."""

    id: str | None = None
    prompt: str | None = None
    reward: str | None = None
    step: str | None = None
    length: str | None = None
    category: str | None = None
    completion: str | None = None
    answer: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Columns:
    """Which columns are read.

    Attributes:
        key: tells prompts apart; an id, or the prompt itself.
        text: shows a prompt to people.
        reward: summed if there are several; empty where `counted`.
        trained: all rewards that training saw, `reward` among them; whether they differ decides on gradients.
        counted: each row is a whole group, with columns `scored` and `successes`, as ``knapsack-rl train`` writes them.
        relogged: whether TRL wrote it, which logs a generation batch at every update that is made from it.
        remarks: sentences on what was chosen among several.
    """

    key: str
    text: str | None
    reward: tuple[str, ...]
    trained: tuple[str, ...]
    step: str | None
    length: str | None
    category: str | None
    completion: str | None
    answer: str | None
    reference: str | None
    counted: bool = False
    relogged: bool = False
    remarks: tuple[str, ...] = ()

    def needed(self) -> list[str]:
        """Names of all columns to read, each once."""
        single = (
            self.key, self.text, self.step, self.length, self.category, self.completion, self.answer, self.reference,
        )  # fmt: skip
        counts = ["scored", "successes"] if self.counted else []
        return list(dict.fromkeys([*(name for name in single if name is not None), *self.trained, *counts]))

    def said(self, asked: Asked) -> dict[str, str]:
        """What each role was read from, and whether that was a guess."""
        roles = {
            "id": self.key if self.key != self.text else None,
            "prompt": self.text,
            "reward": " + ".join(self.reward) or None,
            "step": self.step,
            "length": self.length,
            "category": self.category,
            "completion": self.completion,
            "answer": self.answer,
            "reference": self.reference,
        }
        told = {
            role: f"{name} ({'given' if getattr(asked, role) else 'guessed'})" for role, name in roles.items() if name
        }
        if self.counted:
            told["reward"] = "successes of scored (each row is a group)"
        return told


def understand(file: str, names: Sequence[str], numeric: Collection[str], asked: Asked) -> Columns:
    """Decide which column is what.

    Args:
        file: for messages.
        names: the columns of the file, in its order.
        numeric: those of them that hold numbers or truth values.
        asked: what the user named.

    Raises:
        InvalidInputError: two columns have one name, a named column is not there, or prompt or reward cannot be found;
            the message names the columns, what was looked for and the flag to use.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InvalidInputError(
            f"{file}: expected columns with names of their own, got {_listed(twice)} more than once. "
            "Rename or remove all but one."
        )
    for field in fields(Asked):
        name = getattr(asked, field.name)
        if name is not None and name not in names:
            close = nearest(name, names)
            raise InvalidInputError(
                f"--{field.name}: {file} has no column {name!r}."
                f"{f' Did you mean {close}?' if close else ''} Its columns are {_listed(names)}."
            )
    if not asked.reward and all(name in names for name in _COUNTS):
        return Columns(
            key=asked.id or "prompt", text=asked.prompt or "prompt", reward=(), trained=(),
            step=asked.step or _find("step", names), length=None,
            category=asked.category or _find("category", names), completion=None, answer=None, reference=None,
            counted=True,
        )  # fmt: skip
    key, text = _identity(file, names, asked)
    reward = _reward(file, names, numeric, asked)
    trained = _trained(names, numeric, reward)
    rest = [name for name in names if name not in (key, text, *trained)]

    def role(kind: str, of: Sequence[str]) -> str | None:
        named: str | None = getattr(asked, kind)
        return named or _find(kind, of)

    return Columns(
        key=key,
        text=text,
        reward=reward,
        trained=trained,
        step=role("step", rest),
        length=role("length", [name for name in rest if name in numeric]),
        category=role("category", rest),
        completion=role("completion", rest),
        answer=role("answer", rest),
        reference=role("reference", rest),
        relogged=_is_trl(names),
        remarks=_reward_remarks(reward, trained),
    )


def _identity(file: str, names: Sequence[str], asked: Asked) -> tuple[str, str | None]:
    text = asked.prompt or _find("prompt", names)
    key = (
        asked.id or (text if asked.prompt else None) or _find("id", names) or text or _find_any(_LAST_RESORT_IDS, names)
    )
    if key is None:
        looked_for = ", ".join((*CANDIDATES["prompt"], *CANDIDATES["id"], *_LAST_RESORT_IDS))
        raise InvalidInputError(
            f"{file}: no column was recognised as a prompt or an id. Its columns are {_listed(names)}. "
            f"Looked for {looked_for}. Name one with --prompt COLUMN or --id COLUMN."
        )
    return key, text if text is not None else key


def _reward(file: str, names: Sequence[str], numeric: Collection[str], asked: Asked) -> tuple[str, ...]:
    """The columns whose sum says what a success is."""
    found = asked.reward or _find("reward", names)
    if found is not None:
        return (found,)
    several = _called_rewards(names, numeric) or _between(names, numeric)
    if not several:
        raise InvalidInputError(
            f"{file}: no column was recognised as a reward. Its columns are {_listed(names)}. "
            f"Looked for {', '.join(CANDIDATES['reward'])}, names with 'reward' in them, and TRL's columns between "
            "completion and advantage. Name one with --reward COLUMN."
        )
    correct = tuple(name for name in several if any(word in _plain(name) for word in _CORRECTNESS))
    return correct if len(correct) == 1 else several


def _trained(names: Sequence[str], numeric: Collection[str], reward: tuple[str, ...]) -> tuple[str, ...]:
    """All reward functions if `reward` is among them; a column that is not is the whole reward by itself."""
    functions = _between(names, numeric)
    if not functions:  # beside functions, a column that is just called reward is their total
        functions = tuple(name for name in _called_rewards(names, numeric) if _plain(name) not in CANDIDATES["reward"])
    return functions if set(reward) <= set(functions) else reward


def _reward_remarks(reward: tuple[str, ...], trained: tuple[str, ...]) -> tuple[str, ...]:
    said = []
    if reward != trained:
        said.append(
            f"Of the reward columns {_listed(trained)}, {_listed(reward)} decides on successes (the sum of the others "
            "where it is empty), and the unweighted sum of all of them on gradients, since a log does not hold the "
            "weights. --reward COLUMN takes another for successes."
        )
    if len(reward) > 1:
        said.append(
            f"The reward is the unweighted sum of {_listed(reward)}: a log does not hold the weights. "
            "--reward COLUMN takes one of them, and --success-above X says which sums are successes."
        )
    return tuple(said)


def _called_rewards(names: Sequence[str], numeric: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in numeric and "reward" in _plain(name))


def _between(names: Sequence[str], numeric: Collection[str]) -> tuple[str, ...]:
    """TRL's reward functions, whatever they are called; users may have lengths logged beside them."""
    if not _is_trl(names):
        return ()
    between = names[names.index("completion") + 1 : names.index("advantage")]
    return tuple(name for name in between if name in numeric and _plain(name) not in CANDIDATES["length"])


def _is_trl(names: Sequence[str]) -> bool:
    return all(name in names for name in _TRL)


def _find(role: str, names: Sequence[str]) -> str | None:
    return _find_any(CANDIDATES[role], names)


def _find_any(candidates: Sequence[str], names: Sequence[str]) -> str | None:
    plain = {_plain(name): name for name in reversed(names)}
    return next((plain[candidate] for candidate in candidates if candidate in plain), None)


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(".", "_").replace(" ", "_").replace("/", "_")


def _listed(names: Sequence[str], most: int = 30) -> str:
    shown = ", ".join(names[:most]) or "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
