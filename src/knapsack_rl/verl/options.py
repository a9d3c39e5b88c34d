"""`trainer.v1.knapsack` of verl's configuration, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from knapsack_rl.allocator import REVISIT, BudgetAllocator
from knapsack_rl.errors import InvalidInputError, KnapsackError
from knapsack_rl.validation import one_of

SETTINGS, SIZE = "trainer.v1.knapsack", "actor_rollout_ref.rollout.n"
"""Where verl's configuration has these settings, and the mean group size."""

ALGORITHMS = {
    "grpo": "grpo",
    "grpo_vectorized": "grpo",
    "opo": "grpo",
    "gpg": "grpo",
    "reinforce_plus_plus_baseline": "grpo",
    "rloo": "rloo",
    "rloo_vectorized": "rloo",
    "reinforce_plus_plus": "reinforce",
}
"""verl's advantage estimators, and whose non-zero gradient they share (paper, appendix B). Those that subtract a mean
over the group have no gradient where all rewards are equal (reinforce_plus_plus_baseline, which whitens afterwards,
hardly any); REINFORCE++ subtracts none."""
UNSCALED = ("opo", "gpg", "rloo", "rloo_vectorized")
"""Those of them whose advantages are in the unit of the rewards, which no bound must bend."""


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not _is_bool(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not _is_bool(value) and math.isfinite(value)


def _is_text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(name, str) for name in value)


_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "strategy": ("a name", lambda value: isinstance(value, str)),
    "min_rollouts": ("an integer", _is_integer),
    "max_rollouts": ("an integer", _is_integer),
    "min_returned": ("an integer of 1 or more", lambda value: _is_integer(value) and value >= 1),
    "revisit": ("an integer or null", lambda value: value is None or _is_integer(value)),
    "fallback": ("true or false", _is_bool),
    "confidence": ("a number", _is_finite),
    "cost_limit": ("a number or null", lambda value: value is None or _is_finite(value)),
    "seed": ("an integer", _is_integer),
    "id_field": ("a column or null", _is_text_or_null),
    "feature_fields": ("a list of columns, [NAME, ...]", _is_list_of_text),
    "success_threshold": ("a finite number", _is_finite),
    "success_field": ("an entry of reward_extra_info or null", _is_text_or_null),
    "graded_rewards": ("true or false", _is_bool),
    "waves": ("true or false", _is_bool),
    "advantage_clip": (
        "a positive number, auto or null",
        lambda value: value in (None, "auto") or (_is_finite(value) and value > 0),
    ),
    "rollout_weights": ("none, sqrt or null", lambda value: value in (None, "none", "sqrt")),
    "skip_idle": ("true or false", _is_bool),
}
"""What each key may hold, in words and as a check; `BudgetAllocator` checks ranges. On a command line quoted numbers
and misspelt booleans arrive as text."""


@dataclass(frozen=True)
class KnapsackOptions:
    """What `trainer.v1.knapsack` may hold.

    Attributes:
        strategy, min_rollouts, max_rollouts, revisit, fallback, confidence, cost_limit, seed: those of
            `BudgetAllocator`; costs are tokens.
        min_returned: of how many rollouts a group needs the rewards, so that it is trained on although others failed;
            all of them where it has fewer.
        id_field: a column of the data set that tells prompts with the same text apart; by default their data source.
        feature_fields: columns that tell the allocator more about a prompt: text (a category) or numbers.
        success_threshold: a rollout is a success when its reward is above this.
        success_field: the entry of `reward_extra_info` that decides success; by default the reward itself.
        graded_rewards: whether that has no line between right and wrong; a success is then a rollout above the mean of
            its group so far.
        waves: whether a strategy that looks at the first rollouts may place the rest afterwards.
        advantage_clip: bound on the absolute advantage (paper, appendix C); None for none; `auto` as in `bound`.
        rollout_weights: `sqrt` multiplies advantages by sqrt(rollout.n / N_i), `none` does not; by default what suits
            the strategy.
        skip_idle: whether rollouts without gradient may be left out of updates, where the update stays the same.
    """

    strategy: str = "uniform"
    min_rollouts: int = 2
    max_rollouts: int = 128
    min_returned: int = 2
    revisit: int | None = REVISIT
    fallback: bool = True
    confidence: float = 0.9
    cost_limit: float | None = None
    seed: int = 0
    id_field: str | None = None
    feature_fields: tuple[str, ...] = ()
    success_threshold: float = 0.0
    success_field: str | None = None
    graded_rewards: bool = False
    waves: bool = True
    advantage_clip: float | Literal["auto"] | None = "auto"
    rollout_weights: str | None = None
    skip_idle: bool = True

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> KnapsackOptions:
        """Check what the configuration says.

        Raises:
            InvalidInputError: an unknown key, or a value out of range.
        """
        values = dict(given)
        for name, value in values.items():
            expected, fits = _EXPECTED[one_of(SETTINGS, name, list(_EXPECTED))]
            if not fits(value):
                raise InvalidInputError(f"{SETTINGS}.{name}: expected {expected}, got {value!r}.")
        if "feature_fields" in values:
            values["feature_fields"] = tuple(values["feature_fields"])
        return cls(**values)

    def written(self) -> dict[str, Any]:
        """Every setting, as `read` takes it and a tracker shows it."""
        return asdict(self) | {"feature_fields": list(self.feature_fields)}

    def bound(self, estimator: str, by_deviation: bool = True) -> float | None:
        """The `advantage_clip`; of `auto` 5 where a deviation divides advantages, so that they have no unit, else none.

        It is none under the strategy `uniform` too, which leaves verl's updates as they are.

        Args:
            estimator: verl's `algorithm.adv_estimator`.
            by_deviation: its `algorithm.norm_adv_by_std_in_grpo`.
        """
        if self.advantage_clip != "auto":
            return self.advantage_clip
        unscaled = estimator in UNSCALED or (estimator.startswith("grpo") and not by_deviation)
        return None if unscaled or self.strategy == "uniform" else 5.0

    def allocator(self, group_size: int, estimator: str) -> BudgetAllocator:
        """The allocator of a run with this mean group size and this `algorithm.adv_estimator`.

        Raises:
            InvalidInputError, InfeasibleBudgetError: as `BudgetAllocator`, or an estimator that no allocation suits.
        """
        if estimator not in ALGORITHMS:
            raise InvalidInputError(
                f"algorithm.adv_estimator: expected one whose gradient depends on a group's rewards "
                f"({', '.join(ALGORITHMS)}), got {estimator!r}. Use one of these, or verl's own trainer_mode."
            )
        if ALGORITHMS[estimator] != "reinforce" and self.min_rollouts == 1:
            raise InvalidInputError(
                f"{SETTINGS}.min_rollouts: expected 0, or 2 or more, got 1. verl gives the only "
                f"rollout of a group its bare reward as advantage under algorithm.adv_estimator={estimator}."
            )
        if ALGORITHMS[estimator] != "reinforce" and self.min_returned == 1:
            raise InvalidInputError(
                f"{SETTINGS}.min_returned: expected 2 or more, got 1. Under "
                f"algorithm.adv_estimator={estimator} a rollout alone has nothing to be compared with."
            )
        try:
            return BudgetAllocator(
                self.strategy,
                group_size,
                self.min_rollouts,
                self.max_rollouts,
                self.seed,
                algorithm=ALGORITHMS[estimator],
                revisit=self.revisit,
                fallback=self.fallback,
                confidence=self.confidence,
                cost_limit=self.cost_limit,
            )
        except KnapsackError as error:
            raise type(error)(_in_verls_words(str(error))) from error


def _in_verls_words(message: str) -> str:
    """What an allocator says of its arguments, with their names in verl's configuration."""
    message = message.replace("group_size", SIZE)
    return message if message.startswith(SIZE) else f"{SETTINGS}.{message}"


def read_options(config: Any) -> KnapsackOptions:
    """`trainer.v1.knapsack`, checked.

    Raises:
        InvalidInputError: an unknown key or a value out of range.
    """
    given = config.trainer.v1.get("knapsack") or {}
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"{SETTINGS}: expected settings, {SETTINGS}.KEY=VALUE, got {given!r}.")
    return KnapsackOptions.read(given)
