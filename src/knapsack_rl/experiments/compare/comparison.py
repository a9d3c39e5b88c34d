"""What is compared: arms, seeds, and the tuning that every arm gets alike."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

import knapsack_rl as kr
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.recipe import recipe_file, yaml_text
from knapsack_rl.experiments.recipe.schema import ORACLE, Recipe, Training
from knapsack_rl.tasks.config import Config
from knapsack_rl.validation import nearest

Changes = dict[str, Any]
"""Dotted keys of a recipe and their values."""

DYNAMIC, MORE_PROMPTS = "dynamic-sampling", "more-prompts"
TWICE_THE_GROUP, TWICE_THE_STEPS = "uniform-twice-the-group", "uniform-twice-the-steps"
_LEAST_TO_HALVE = 4  # rollouts of a group: two are the least that have a gradient
_KEY_OF_RECIPE = re.compile(r"(?P<block>settings|vary|tuning\.grid|arms\.[^.]+)\.(?P<key>.+)")
REFERENCES = (ORACLE, TWICE_THE_GROUP, TWICE_THE_STEPS)
SET_BY_ITSELF = ("name", "seed")
"""Keys of a recipe that a comparison sets for each of its runs."""
_COMMON = ("task", "model", "evaluation")
"""Blocks of a recipe that all arms have alike: problems, warm start, and what is measured."""


Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Tuning(Config):
    """Every arm tries every combination of `grid` on `seeds`, which the report does not use, and keeps the best."""

    grid: dict[str, Annotated[list[Any], Field(min_length=1)]]
    """Dotted keys of the recipe and the values to try."""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    """Seeds of the tuning, others than those of the report."""


class Comparison(Config):
    """One comparison. `docs/compare.md` explains every key."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the comparison and of its folder."""
    recipe: str | None = None
    """The recipe that all arms begin with, a path from where this file is; `null`: the demonstration."""
    settings: Changes = Field(default_factory=dict)
    """Changes to the recipe for all arms, by dotted keys."""
    arms: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _+-]*$")], Changes | None]
    """Names and what each changes, by dotted keys; or a list of names that need no settings."""
    baseline: str = "uniform"
    """The arm that all others are compared with."""
    references: list[str] | None = None
    """Arms that are no competitors, since they cost more than the others or know what nobody can know."""
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Dotted keys and their values: the whole comparison once for every combination."""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    """Seeds of the reported runs."""
    tuning: Tuning | None = None
    """What every arm tries before the report, on seeds of its own."""
    equal: Literal["rollouts", "tokens", "seconds"] = "rollouts"
    """The cost at which arms are compared."""

    @model_validator(mode="after")
    def _fits_together(self) -> Comparison:
        problems = list(_contradictions(self))
        if problems:
            raise InvalidInputError("\n".join(problems))
        return self

    def is_reference(self, arm: str) -> bool:
        """Whether an arm is no competitor, since it costs more than the others or knows what nobody can know."""
        if self.references is not None:
            return arm in self.references
        return arm in REFERENCES or (self.arms.get(arm) or {}).get("allocator.strategy") == ORACLE


def _contradictions(comparison: Comparison) -> Iterator[str]:
    arms, tuning = comparison.arms, comparison.tuning
    if comparison.baseline not in arms:
        yield f"baseline: expected one of the arms {', '.join(arms)}, got {comparison.baseline!r}."
    for name in comparison.references or ():
        if name not in arms:
            yield f"references: expected names of arms ({', '.join(arms)}), got {name!r}."
    if comparison.is_reference(comparison.baseline):
        yield f"baseline: {comparison.baseline!r} is a reference; expected an arm at the common cost."
    for name, settings in arms.items():
        if settings is None and name not in presets():
            close = nearest(name, presets())
            hint = f" Did you mean {close}?" if close else ""
            yield f"arms.{name}: expected settings, or one of the names {', '.join(presets())}.{hint}"
    for key, seeds in (("seeds", comparison.seeds), ("tuning.seeds", tuning.seeds if tuning else [])):
        if len(set(seeds)) < len(seeds):
            yield f"{key}: expected each seed once, got {seeds}."
    both = sorted(set(comparison.seeds) & set(tuning.seeds if tuning else ()))
    if both:
        yield f"tuning.seeds: expected seeds that the report does not use, got {both} in both."
    yield from _useless_values(comparison)
    yield from _unequal_arms(comparison)


def _useless_values(comparison: Comparison) -> Iterator[str]:
    """Values that other blocks replace in every run, and those that are there twice."""
    grid = comparison.tuning.grid if comparison.tuning else {}
    arms = {f"arms.{name}": settings or {} for name, settings in comparison.arms.items()}
    for block, settings in {"settings": comparison.settings, **arms}.items():
        replacing = {"tuning.grid": grid} if block in arms else {"tuning.grid": grid, "vary": comparison.vary}
        for key, value in settings.items():
            if key in SET_BY_ITSELF:
                yield f"{block}.{key}: a comparison sets it by itself, the seed from `seeds`; leave it out."
            for other, lists in replacing.items():
                if key in lists and value not in lists[key]:
                    yield f"{block}.{key}: {value!r} would not be used, because {other} has {lists[key]}; remove one."
    for block, lists in (("vary", comparison.vary), ("tuning.grid", grid)):
        for key, values in lists.items():
            if key in SET_BY_ITSELF:
                yield f"{block}.{key}: a comparison sets it by itself, the seed from `seeds`; leave it out."
            if any(value in values[:position] for position, value in enumerate(values)):
                yield f"{block}.{key}: expected every value once, got {values}."
    for key in comparison.vary.keys() & grid.keys():
        yield f"vary.{key}: tuning.grid has it too, and one key cannot be both varied and tuned; remove one."


def _unequal_arms(comparison: Comparison) -> Iterator[str]:
    """Changes of single arms by which they would not be comparable."""
    blocks = {f"arms.{name}": settings or {} for name, settings in comparison.arms.items()}
    blocks["tuning.grid"] = comparison.tuning.grid if comparison.tuning else {}
    for block, settings in blocks.items():
        for key in settings:
            if key.partition(".")[0] in _COMMON:
                yield f"{block}.{key}: expected to be the same for all arms; move it to settings or vary."


def presets() -> tuple[str, ...]:
    """Names of arms that need no settings."""
    combined = (f"{name}+{what}" for what in (MORE_PROMPTS, DYNAMIC) for name in kr.strategies())
    return (*kr.strategies(), DYNAMIC, *combined, *REFERENCES)


def _preset(name: str, recipe: Recipe) -> Changes:
    strategy, _, what = name.partition("+")
    if name == DYNAMIC:
        strategy, what = "uniform", DYNAMIC
    if what == DYNAMIC:
        return {"allocator.strategy": strategy, "training.dynamic_sampling": True}
    if what == MORE_PROMPTS:
        prompts, size = recipe.training.prompts_per_step, recipe.training.group_size
        if size % 2 or size < _LEAST_TO_HALVE:
            raise InvalidInputError(
                f"arms.{name}: expected a training.group_size that is even and {_LEAST_TO_HALVE} or more, got {size}. "
                "Give an arm of your own training.prompts_per_step and training.group_size."
            )
        return {
            "allocator.strategy": strategy,
            "training.prompts_per_step": 2 * prompts,
            "training.group_size": size // 2,
        }
    if name == TWICE_THE_GROUP:
        return {"allocator.strategy": "uniform", "training.group_size": 2 * recipe.training.group_size}
    if name == TWICE_THE_STEPS:
        return {"allocator.strategy": "uniform", "training.steps": 2 * recipe.training.steps}
    return {"allocator.strategy": name}


@dataclass(frozen=True)
class ArmRun:
    """One arm under one variation of the comparison, with one point of the tuning grid and one seed: one run."""

    variation: str
    name: str
    choice: str
    """The point of the grid, such as `training.learning_rate=0.0005`; empty without tuning."""
    recipe: Recipe

    @property
    def seed(self) -> int:
        """The seed of its run."""
        return self.recipe.seed

    @property
    def folder(self) -> str:
        """Its run directory's name: the same for the same recipe, in whichever comparison and under whatever name."""
        return self.recipe.name


@dataclass(frozen=True)
class ComparisonRuns:
    """All runs that a comparison may need, in the order of its file."""

    comparison: Comparison
    recipe_path: Path | None

    @property
    def variations(self) -> list[str]:
        """Labels of the combinations of `vary`; one that is empty where nothing varies."""
        return [_label(settings) for settings in _combinations(self.comparison.vary)]

    def tuning(self) -> list[ArmRun]:
        """Every arm at every point of the grid, on the tuning seeds."""
        tuning = self.comparison.tuning
        if tuning is None:
            return []
        return [
            self._arm(settings, name, point, seed)
            for settings in _combinations(self.comparison.vary)
            for name in self.comparison.arms
            for point in _combinations(tuning.grid)
            for seed in tuning.seeds
        ]

    def reported(self, chosen: Mapping[tuple[str, str], str]) -> list[ArmRun]:
        """Every arm with its chosen point of the grid, on the seeds of the report.

        Args:
            chosen: the point for each (variation, arm); those that are missing are left out. Ignored without tuning.
        """
        tuning = self.comparison.tuning
        points = {_label(point): point for point in _combinations(tuning.grid if tuning else {})}
        return [
            self._arm(settings, name, points[point], seed)
            for settings in _combinations(self.comparison.vary)
            for name in self.comparison.arms
            if (point := chosen.get((_label(settings), name)) if tuning else "") is not None
            for seed in self.comparison.seeds
        ]

    def _arm(self, variation: Changes, name: str, point: Changes, seed: int) -> ArmRun:
        common = {**self.comparison.settings, **variation}
        own = self.comparison.arms[name] or {}
        preset = _preset(name, self._recipe({**common, "seed": seed}, name)) if name in presets() else {}
        recipe = self._recipe({**common, **preset, **own, **point, "seed": seed}, name)
        scales = name in (TWICE_THE_GROUP, TWICE_THE_STEPS) or name.endswith(f"+{MORE_PROMPTS}")
        scaled = preset if scales else {}  # from what the variation says
        varied = {key: value for key, value in variation.items() if key not in scaled}
        _refuse_lost(name, [*preset.items(), *varied.items(), *point.items()], recipe.model_dump(mode="json"))
        return ArmRun(_label(variation), name, _label(point), recipe.model_copy(update={"name": _run_name(recipe)}))

    @cached_property
    def _unchanged(self) -> dict[str, Any]:
        """What the file of the recipe says."""
        return recipe_file.mapping(self.recipe_path)

    def _recipe(self, settings: Changes, arm: str) -> Recipe:
        content = copy.deepcopy(self._unchanged)
        try:
            for key, value in settings.items():
                recipe_file.put(content, key.split("."), value)
            complaint = f"{recipe_file.source_of(self.recipe_path)} is not a valid recipe"
            return recipe_file.validated(Recipe, content, complaint)
        except InvalidInputError as error:
            raise InvalidInputError(f"arms.{arm}: {error}") from None


def _refuse_lost(arm: str, wanted: Sequence[tuple[str, Any]], recipe: Mapping[str, Any]) -> None:
    """Refuse an arm in whose recipe a variation, a point of the grid or the arm's own name has lost its effect."""
    for key, value in wanted:
        found: Any = recipe
        for name in key.split("."):
            found = found[name]
        if not _agree(value, found):
            raise InvalidInputError(
                f"arms.{arm}: expected {key} to be {value!r}, got {found!r}, because another setting replaces it. "
                "Write an arm's settings by whole dotted keys, without those that its name, vary or the grid decide."
            )


def _agree(value: Any, found: Any) -> bool:
    """Whether `found`, with its defaults, is what `value` asks for."""
    if isinstance(value, Mapping) and isinstance(found, Mapping):
        return all(key in found and _agree(inner, found[key]) for key, inner in value.items())
    return bool(value == found)


def read(path: Path | None, overrides: Sequence[str] = ()) -> ComparisonRuns:
    """The comparison in the file `path`, or the default one on the recipe in it (None: the embedded demonstration).

    Args:
        path: YAML with the keys of `Comparison`, or a recipe.
        overrides: `KEY=VALUE`: a key of the comparison, or of the recipe of all arms.

    Raises:
        InvalidInputError: the file cannot be read, or is neither; the message lists every problem.
    """
    content = recipe_file.mapping(path)
    given = [_key_and_value(override) for override in overrides]
    is_recipe = "task" in content
    if is_recipe:
        content = _default(content, dict(given).get("training.learning_rate"))
    _name_arms(content)
    for key, value in given:
        recipe_file.put(content, _place(key), value)
        _name_arms(content)
    comparison = recipe_file.validated(Comparison, content, f"{recipe_file.source_of(path)} is not a valid comparison")
    recipe_path = path if is_recipe else None
    if comparison.recipe is not None:
        if is_recipe or path is None:
            raise InvalidInputError("recipe: expected in the file of a comparison only; give the recipe as FILE.")
        recipe_path = path.parent / comparison.recipe
    planned = ComparisonRuns(comparison, recipe_path)
    planned.tuning() or planned.reported({})  # every recipe is checked before anything runs
    return planned


def _default(recipe: Mapping[str, Any], rate: Any) -> dict[str, Any]:
    """Uniform against adaptive on three seeds, at half, the same and twice a learning rate: `rate` or the recipe's."""
    if rate is None:
        rate = _block(recipe, "training").get("learning_rate", Training.model_fields["learning_rate"].default)
    rates = [rate / 2, rate, 2 * rate] if isinstance(rate, int | float) else [rate]
    small = _block(recipe, "model").get("kind") == "scratch"
    return {
        "name": f"{recipe.get('name', 'recipe')}-comparison",
        "settings": {"trainer": "minimal"} if small and "trainer" not in recipe else {},
        "arms": {"uniform": None, "adaptive": None},
        "seeds": [1, 2, 3],
        "tuning": {"grid": {"training.learning_rate": rates}, "seeds": [101, 102]},
    }


def _block(recipe: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    block = recipe.get(key)
    return block if isinstance(block, Mapping) else {}


def _key_and_value(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise InvalidInputError(f"expected KEY=VALUE such as seeds=[1,2,3] after the file, got {override!r}.")
    return key.strip(), yaml_text.parse(text, key)


def _place(key: str) -> list[str]:
    """The way to a dotted key through the blocks of a comparison; keys of recipes stay whole there."""
    if key.partition(".")[0] not in Comparison.model_fields:
        return ["settings", key]
    inside = _KEY_OF_RECIPE.fullmatch(key)
    return key.split(".") if inside is None else [*inside["block"].split("."), inside["key"]]


def _name_arms(content: dict[str, Any]) -> None:
    """Let a list of arms be a mapping, in which none has settings."""
    names = content.get("arms")
    if isinstance(names, list):
        content["arms"] = dict.fromkeys(map(str, names))
        if len(content["arms"]) < len(names):
            raise InvalidInputError(f"arms: expected every arm once, got {names}.")


def _combinations(values: Mapping[str, Sequence[Any]]) -> list[Changes]:
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def _label(settings: Changes) -> str:
    """Such as `learning_rate=0.0005, group_size=8`, with the last parts of the keys."""
    return ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())


def _run_name(recipe: Recipe) -> str:
    """The strategy, the seed, and a hash of all that decides on the run."""
    content = recipe.model_dump(mode="json", exclude={"name"})
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return f"{recipe.allocator.strategy}-seed{recipe.seed}-{digest}"
