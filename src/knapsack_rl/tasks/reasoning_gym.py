"""Problems and verifiers of the `reasoning-gym` package, small enough for a model trained from scratch on a CPU.

The problems come from the package's own generators, and its own verifiers (`score_answer`) judge the answers,
each with the entry that was generated. Only the wording of the prompt is ours, for the tasks in `PAYLOADS`: the
fixed instruction ("Find the Greatest Common Divisor (GCD) of these numbers: ...") becomes a short tag before the
payload ("gcd 780 461="), because a character-level model would spend its time on reading the instruction.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from knapsack_rl.errors import InvalidInputError, MissingExtraError
from knapsack_rl.tasks.base import Task
from knapsack_rl.tasks.config import Config, TaskSettings
from knapsack_rl.validation import one_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))

_MAX_REPEATS = 10_000  # candidates in a row that were known already: the generator has no more to give

PAYLOADS: dict[str, Callable[[dict[str, Any]], str]] = {
    "base_conversion": lambda m: f"base {m['source_base']} {m['source_repr']} to {m['target_base']}=",
    "binary_alternation": lambda m: f"swaps {m['string']}=",
    "chain_sum": lambda m: f"{m['expression'].replace(' ', '')}=",
    "count_bits": lambda m: f"bits {m['number']}=",
    "gcd": lambda m: f"gcd {' '.join(map(str, m['numbers']))}=",
    "lcm": lambda m: f"lcm {' '.join(map(str, m['numbers']))}=",
    "letter_counting": lambda m: f"count {m['target_letter']} {' '.join(m['span'])}=",
    "products": lambda m: f"{m['expression'].replace(' ', '')}=",
    "spell_backward": lambda m: f"spell {m['word']}=",
}
"""Prompts cut to their payload: name of the data set -> the prompt, from the metadata of the entry."""


class GeneratorConfig(Config):
    """One data set of reasoning-gym, and how much of it the task contains."""

    name: str
    """As in `reasoning_gym.create_dataset`."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Passed on to the generator: its own notion of difficulty."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the training and held-out problems, relative to the other sources."""
    supervised_examples: int = Field(default=2_000, ge=1)
    """Distinct worked examples that a warm start sees; fewer leave the model less sure."""

    @field_validator("parameters")
    @classmethod
    def _not_ours(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        taken = sorted({"seed", "size"} & parameters.keys())
        if taken:
            raise ValueError(f"{', '.join(taken)} follow from the recipe (seed, train_problems); remove them")
        return parameters


class ReasoningGymConfig(TaskSettings):
    """A mix of reasoning-gym data sets."""

    kind: Literal["reasoning-gym"] = "reasoning-gym"
    sources: tuple[GeneratorConfig, ...] = Field(min_length=1)
    """The data sets, each once."""
    train_problems: int = Field(default=1_024, ge=1)
    """Problems to train on, over all sources."""
    eval_problems: int = Field(default=128, ge=1)
    """Held-out problems, over all sources."""

    @field_validator("sources")
    @classmethod
    def _distinct(cls, sources: tuple[GeneratorConfig, ...]) -> tuple[GeneratorConfig, ...]:
        names = [source.name for source in sources]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"each data set may appear once, but these repeat: {', '.join(repeated)}")
        return sources


def load(config: ReasoningGymConfig, seed: int) -> Task:
    """The training and held-out problems, one benchmark per data set, and the package's verifiers as the reward.

    Columns: `prompt` (a string for plain completion), `id` (data set and content hash of the prompt: the same
    problem has the same id in every run), `category` (name of the data set), `answer`, and `judged_by`, the id of the
    problem whose entry the verifier gets. All prompts are distinct.

    The reward of a completion is 1.0 if the data set's `score_answer` gives the full score for it, else 0.0: the
    partial scores of some verifiers (a right answer inside a longer text, say) count as wrong.

    Raises:
        InvalidInputError: an unknown data set, a parameter it does not know, or fewer distinct problems than asked.
        MissingExtraError: reasoning-gym is not installed.
    """
    from datasets import Dataset

    problems = _Problems(config, seed)
    rows = {name: [_row(*problem) for problem in held_out] for name, held_out in problems.evaluation.items()}
    train = [_row(*problem) for problem in problems.train]
    entries = {_identity(*problem[:2]): problem for problem in problems.train}
    for held_out in problems.evaluation.values():
        entries.update({_identity(*problem[:2]): problem for problem in held_out})

    def full_score(
        prompts: Sequence[str], completions: Sequence[str], *, judged_by: Sequence[str], **columns: Any
    ) -> list[float | None]:
        return [
            _reward(problems.generators, entries, key, text) for key, text in zip(judged_by, completions, strict=True)
        ]

    return Task(
        train=Dataset.from_list(train),
        evaluation={name: Dataset.from_list(held_out) for name, held_out in rows.items()},
        reward=full_score,
    )


def supervised_pairs(config: ReasoningGymConfig, seed: int, count: int) -> list[tuple[str, str]]:
    """`count` pairs of prompt and right answer for a warm start, none of them a training or held-out problem.

    They are drawn from `supervised_examples` distinct problems of each source, in shuffled passes: once all were
    used they come again in another order. Raises like `load`.
    """
    problems = _Problems(config, seed)
    pool = [
        (prompt, str(entry["answer"]))
        for source in config.sources
        for _, prompt, entry in problems.take(source.name, source.supervised_examples)
    ]
    shuffle = random.Random(f"supervised {seed}").shuffle
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        shuffle(pool)
        pairs += pool
    return pairs[:count]


def tokenizer(config: ReasoningGymConfig) -> PreTrainedTokenizerFast:
    """One token per character: printable ASCII and the line break, with padding on the left."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([PAD, EOS, UNKNOWN, *CHARACTERS])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


_Problem = tuple[str, str, dict[str, Any]]  # name of the data set, prompt, entry as generated


class _Problems:
    """Distinct problems per source, always drawn in the same order: held-out, training, then worked examples."""

    def __init__(self, config: ReasoningGymConfig, seed: int) -> None:
        self.generators = {source.name: _generator(source, seed) for source in config.sources}
        self._candidates = {name: _candidates(name, generator) for name, generator in self.generators.items()}
        self._known: set[str] = set()
        weights = [source.weight for source in config.sources]
        names = [source.name for source in config.sources]
        held_out = dict(zip(names, _apportion(config.eval_problems, weights), strict=True))
        train = dict(zip(names, _apportion(config.train_problems, weights), strict=True))
        self.evaluation = {name: self.take(name, held_out[name]) for name in names if held_out[name]}
        self.train = [problem for name in names for problem in self.take(name, train[name])]
        random.Random(f"order {seed}").shuffle(self.train)

    def take(self, name: str, count: int) -> list[_Problem]:
        taken: list[_Problem] = []
        repeats = 0
        while len(taken) < count:
            problem = next(self._candidates[name])
            if problem[1] not in self._known:
                self._known.add(problem[1])
                taken.append(problem)
                repeats = 0
            elif (repeats := repeats + 1) == _MAX_REPEATS:
                raise InvalidInputError(
                    f"sources: {name} with these parameters ran out of distinct problems, {count - len(taken)} short "
                    f"of {count} more; ask for fewer (train_problems, eval_problems, supervised_examples, weight) or "
                    "widen its parameters"
                )
        return taken


def _generator(source: GeneratorConfig, seed: int) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise MissingExtraError(
            'the reasoning-gym task needs the package reasoning-gym: pip install "knapsack-rl[reasoning-gym]"'
        ) from error
    one_of("task.sources", source.name, sorted(DATASETS))
    try:
        # Entry i is generated from seed + i, so the seeds of two runs must lie far apart to be different problems.
        return reasoning_gym.create_dataset(source.name, seed=seed * 1_000_003, size=1, **source.parameters)
    except (TypeError, AssertionError) as error:
        raise InvalidInputError(f"sources: parameters of {source.name} do not fit its generator: {error}") from error


def _candidates(name: str, generator: Any) -> Iterator[_Problem]:
    payload = PAYLOADS.get(name)
    index = 0
    while True:
        entry = generator[index]
        yield name, payload(entry["metadata"]) if payload else f"{entry['question']}\n", entry
        index += 1


def _apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Integers that sum to `total`, in proportion to `weights` (largest remainders; ties by position)."""
    shares = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _identity(name: str, prompt: str) -> str:
    return f"{name}-{hashlib.sha256(prompt.encode()).hexdigest()[:16]}"


def _row(name: str, prompt: str, entry: dict[str, Any]) -> dict[str, str]:
    identity = _identity(name, prompt)
    answer = str(entry["answer"])
    return {"prompt": prompt, "id": identity, "category": name, "answer": answer, "judged_by": identity}


def _reward(generators: dict[str, Any], entries: dict[str, _Problem], key: str, completion: str) -> float:
    if key not in entries:
        raise InvalidInputError(
            f"judged_by: {key!r} is not a problem of this task; score only rows that its load() made"
        )
    name, _, entry = entries[key]
    try:
        score = generators[name].score_answer(completion.strip(), entry)
    except (ValueError, TypeError, ArithmeticError, LookupError, SyntaxError):
        return 0.0  # some verifiers parse the answer without a guard: text that they cannot read is a wrong answer
    # Not >=: spell_backward's partial scores add up to 1.0000000000000002 for the right word with a letter too many.
    return 1.0 if score == 1.0 else 0.0
