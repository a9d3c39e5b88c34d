from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

import knapsack_rl as kr
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.compare import comparison
from knapsack_rl.experiments.compare.arms import _stages
from knapsack_rl.experiments.compare.comparison import ArmRun, ComparisonRuns, presets
from knapsack_rl.experiments.recipe import recipe_file

ROOT = Path(__file__).parents[4]
RECIPES = ROOT / "recipes"
COMPARISONS = sorted((RECIPES / "comparisons").glob("*.yaml"))
EVIDENCE = sorted((ROOT / "docs" / "evidence").glob("*/runs.csv"))
RECIPE = """
name: tiny
task: {kind: chain-arithmetic, train_problems: 24, eval_problems: 10, operations: 1}
model: {kind: scratch, layers: 1, width: 32, heads: 2}
training: {steps: 6, prompts_per_step: 8, group_size: 4, micro_batch_size: 8, learning_rate: 1e-3, \
max_completion_length: 4}
"""
COMPARISON = """
name: small
recipe: recipes/tiny.yaml
settings: {trainer: minimal, training.steps: 4}
arms: [uniform, knapsack]
seeds: [1, 2]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.yaml").write_text(RECIPE)
    path = tmp_path / "small.yaml"
    path.write_text(COMPARISON)
    return path


def refusal(path: Path | None, *overrides: str) -> str:
    with pytest.raises(InvalidInputError) as refused:
        comparison.read(path, overrides)
    return str(refused.value)


def arms(grid: ComparisonRuns) -> dict[str, ArmRun]:
    """The arms of the first seed by name."""
    return {arm.name: arm for arm in reversed(grid.reported({}))}


# Reading


def test_a_comparison_is_every_arm_on_every_seed_with_the_common_settings(file: Path) -> None:
    grid = comparison.read(file)
    assert [(arm.name, arm.seed) for arm in grid.reported({})] == [
        ("uniform", 1),
        ("uniform", 2),
        ("knapsack", 1),
        ("knapsack", 2),
    ]
    assert grid.tuning() == []
    for arm in grid.reported({}):
        assert arm.recipe.allocator.strategy == arm.name
        assert (arm.recipe.trainer, arm.recipe.training.steps) == ("minimal", 4)
        assert arm.recipe.training.learning_rate == 1e-3, "the recipe's"


def test_the_recipe_is_looked_for_beside_the_comparison_wherever_one_stands(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert comparison.read(Path(os.path.relpath(file))).reported({}) == comparison.read(file).reported({})


def test_a_missing_recipe_or_file_is_refused_with_the_nearest_name(file: Path, tmp_path: Path) -> None:
    said = refusal(file, "recipe=recipes/tini.yaml")
    assert said.startswith("RECIPE: no file")
    assert "Did you mean" in said
    assert "tiny.yaml" in said
    assert "Did you mean" in refusal(tmp_path / "smal.yaml")


def test_a_file_without_a_recipe_compares_on_the_demonstration(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("{name: c, arms: [uniform], seeds: [1]}")
    (arm,) = comparison.read(path).reported({})
    demonstration = recipe_file.read(None, ["allocator.strategy=uniform", "seed=1"])
    assert arm.recipe.model_copy(update={"name": "demo"}) == demonstration


def test_without_a_file_uniform_and_adaptive_are_tuned_and_compared_on_the_demonstration() -> None:
    grid = comparison.read(None)
    rate = recipe_file.read(None).training.learning_rate
    assert list(grid.comparison.arms) == ["uniform", "adaptive"]
    assert grid.comparison.tuning is not None
    assert grid.comparison.tuning.grid == {"training.learning_rate": [rate / 2, rate, 2 * rate]}
    assert {arm.recipe.trainer for arm in grid.tuning()} == {"minimal"}
    assert len(grid.tuning()) == 2 * 3 * len(grid.comparison.tuning.seeds)


def test_a_recipe_is_compared_in_the_same_way_and_a_learning_rate_given_beside_it_is_tuned_around(file: Path) -> None:
    recipe = file.parent / "recipes" / "tiny.yaml"
    grid = comparison.read(recipe, ["training.learning_rate=3e-3", "seeds=[7]", "trainer=trl"])
    assert grid.comparison.name == "tiny-comparison"
    assert {arm.recipe.training.learning_rate for arm in grid.tuning()} == {1.5e-3, 3e-3, 6e-3}
    assert {arm.recipe.trainer for arm in grid.tuning()} == {"trl"}
    untuned = comparison.read(recipe, ["training.learning_rate=3e-3", "tuning=null"])
    assert {arm.recipe.training.learning_rate for arm in untuned.reported({})} == {3e-3}


@pytest.mark.parametrize(
    "recipe", ["{task: {kind: chain-arithmetic}}", "{task: 3, model: , training: 7}", "{task: , name: }"]
)
def test_a_broken_recipe_is_refused_and_not_crashed_on(recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(recipe)
    assert "not a valid recipe" in refusal(path) or "name: " in refusal(path)


# Changes on the command line


def test_keys_of_a_comparison_change_it_and_all_others_are_settings_of_every_arm(file: Path) -> None:
    grid = comparison.read(file, ["seeds=[5]", "equal=tokens", "training.steps=9", "allocator.max_rollouts=16"])
    assert grid.comparison.equal == "tokens"
    assert grid.comparison.settings == {"trainer": "minimal", "training.steps": 9, "allocator.max_rollouts": 16}
    assert {arm.recipe.training.steps for arm in grid.reported({})} == {9}
    assert {arm.seed for arm in grid.reported({})} == {5}


@pytest.mark.parametrize(
    ("override", "block", "expected"),
    [
        ("settings.training.steps=9", "settings", {"trainer": "minimal", "training.steps": 9}),
        ("vary.training.group_size=[2, 4]", "vary", {"training.group_size": [2, 4]}),
        (
            "arms.knapsack.allocator.max_rollouts=16",
            "arms",
            {"uniform": None, "knapsack": {"allocator.max_rollouts": 16}},
        ),
        ("arms=[uniform, oracle]", "arms", {"uniform": None, "oracle": None}),
    ],
)
def test_dotted_keys_of_recipes_stay_whole_inside_a_block(
    override: str, block: str, expected: object, file: Path
) -> None:
    assert getattr(comparison.read(file, [override]).comparison, block) == expected


def test_the_grid_of_the_tuning_can_be_set_by_its_dotted_key(file: Path) -> None:
    grid = comparison.read(file, ["tuning.grid.training.learning_rate=[1e-3, 2e-3]", "tuning.seeds=[8]"])
    assert {arm.choice for arm in grid.tuning()} == {"learning_rate=0.001", "learning_rate=0.002"}


def test_settings_that_are_empty_in_the_file_can_be_given_on_the_command_line(file: Path) -> None:
    file.write_text("name: c\nrecipe: recipes/tiny.yaml\nsettings:\narms: [uniform]\nseeds: [1]\n")
    assert comparison.read(file, ["training.steps=3"]).comparison.settings == {"training.steps": 3}


@pytest.mark.parametrize("override", ["seeds", "=3", "training..steps=3"])
def test_what_is_no_key_and_value_is_refused(override: str, file: Path) -> None:
    assert "expected KEY=VALUE such as seeds=[1,2,3]" in refusal(file, override)


# Arms


def test_an_arm_without_settings_is_what_its_name_says(file: Path) -> None:
    names = "[uniform, knapsack, oracle, uniform-twice-the-group, uniform-twice-the-steps, dynamic-sampling, "
    found = arms(comparison.read(file, [f"arms={names}knapsack+dynamic-sampling]"]))
    told = {
        name: (
            arm.recipe.allocator.strategy,
            arm.recipe.training.group_size,
            arm.recipe.training.steps,
            arm.recipe.training.dynamic_sampling,
        )
        for name, arm in found.items()
    }
    assert told == {
        "uniform": ("uniform", 4, 4, False),
        "knapsack": ("knapsack", 4, 4, False),
        "oracle": ("oracle", 4, 4, False),
        "uniform-twice-the-group": ("uniform", 8, 4, False),
        "uniform-twice-the-steps": ("uniform", 4, 8, False),
        "dynamic-sampling": ("uniform", 4, 4, True),
        "knapsack+dynamic-sampling": ("knapsack", 4, 4, True),
    }


def test_every_preset_makes_a_valid_recipe_and_every_strategy_is_one(file: Path) -> None:
    grid = comparison.read(file, [f"arms=[{', '.join(presets())}]", "seeds=[1]"])
    assert len({arm.folder for arm in grid.reported({})}) == len(presets()) - 1  # dynamic sampling is uniform's
    assert set(kr.strategies()) < set(presets())


def test_twice_the_group_is_twice_that_of_the_variation(file: Path) -> None:
    grid = comparison.read(
        file, ["arms=[uniform, uniform-twice-the-group]", "vary={training.group_size: [2, 4]}", "seeds=[1]"]
    )
    assert grid.variations == ["group_size=2", "group_size=4"]
    sizes = [(arm.variation, arm.name, arm.recipe.training.group_size) for arm in grid.reported({})]
    assert sizes == [
        ("group_size=2", "uniform", 2),
        ("group_size=2", "uniform-twice-the-group", 4),
        ("group_size=4", "uniform", 4),
        ("group_size=4", "uniform-twice-the-group", 8),
    ]


def test_more_prompts_are_as_many_rollouts_as_the_variation_has_in_groups_of_half_the_size(file: Path) -> None:
    words = ["arms=[uniform, uniform+more-prompts, adaptive+more-prompts]", "vary={training.group_size: [4, 8]}"]
    for arm in comparison.read(file, [*words, "seeds=[1]"]).reported({}):
        training, size = arm.recipe.training, int(arm.variation[-1])
        assert training.prompts_per_step * training.group_size == 8 * size
        assert training.group_size == (size if arm.name == "uniform" else size // 2)
        assert arm.recipe.allocator.strategy == arm.name.partition("+")[0]


@pytest.mark.parametrize("size", [2, 5])
def test_groups_that_cannot_be_halved_are_refused_with_what_to_do(file: Path, size: int) -> None:
    words = ["arms=[uniform, uniform+more-prompts]", f"settings={{training.group_size: {size}}}"]
    with pytest.raises(
        InvalidInputError, match=rf"arms\.uniform\+more-prompts: .* even and 4 or more.* got {size}\. Give"
    ):
        list(comparison.read(file, words).reported({}))


def test_an_arm_with_settings_is_the_recipe_with_them_and_a_name_of_a_preset_keeps_its_meaning(file: Path) -> None:
    found = arms(
        comparison.read(
            file, ["arms={uniform: {allocator.max_rollouts: 16}, no fallback: {allocator.fallback: false}}"]
        )
    )
    assert found["uniform"].recipe.allocator.strategy == "uniform"
    assert found["uniform"].recipe.allocator.max_rollouts == 16
    assert found["no fallback"].recipe.allocator.strategy == "uniform"
    assert not found["no fallback"].recipe.allocator.fallback


def test_references_are_the_arms_that_cost_or_know_more_unless_the_file_says_otherwise(file: Path) -> None:
    override = "arms=[uniform, knapsack, oracle, uniform-twice-the-steps]"
    usual = comparison.read(file, [override]).comparison
    assert [arm for arm in usual.arms if usual.is_reference(arm)] == ["oracle", "uniform-twice-the-steps"]
    named = comparison.read(file, ["arms={uniform: , knows: {allocator.strategy: oracle}}"]).comparison
    assert named.is_reference("knows")
    other = comparison.read(file, [override, "references=[knapsack]"]).comparison
    assert [arm for arm in other.arms if other.is_reference(arm)] == ["knapsack"]


# Tuning


def test_every_arm_tries_every_point_on_the_tuning_seeds_and_is_reported_with_its_own_choice(file: Path) -> None:
    grid = comparison.read(
        file,
        ["tuning={grid: {training.learning_rate: [1e-3, 2e-3], allocator.confidence: [0.5, 0.9]}, seeds: [8, 9]}"],
    )
    assert len(grid.tuning()) == 2 * 4 * 2
    assert {arm.seed for arm in grid.tuning()} == {8, 9}
    chosen = {
        ("", "uniform"): "learning_rate=0.001, confidence=0.9",
        ("", "knapsack"): "learning_rate=0.002, confidence=0.5",
    }
    reported = grid.reported(chosen)
    assert [(arm.name, arm.seed, arm.recipe.training.learning_rate) for arm in reported] == [
        ("uniform", 1, 1e-3),
        ("uniform", 2, 1e-3),
        ("knapsack", 1, 2e-3),
        ("knapsack", 2, 2e-3),
    ]
    assert {arm.recipe.allocator.confidence for arm in reported if arm.name == "knapsack"} == {0.5}
    assert {arm.name for arm in grid.reported({("", "uniform"): "learning_rate=0.001, confidence=0.9"})} == {"uniform"}


# Folders


def test_the_same_recipe_has_the_same_folder_in_another_comparison_and_under_another_name(
    file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(
        COMPARISON.replace("name: small", "name: other").replace(
            "[uniform, knapsack]",
            "{default: {allocator.min_rollouts: 2}, uniform: , the paper: {allocator.strategy: knapsack}}",
        )
    )
    ours, theirs = arms(comparison.read(file)), arms(comparison.read(other))
    assert theirs["default"].folder == theirs["uniform"].folder == ours["uniform"].folder
    assert theirs["the paper"].folder == ours["knapsack"].folder


def test_anything_that_decides_on_a_run_changes_its_folder(file: Path) -> None:
    changes = ["training.steps=5", "trainer=trl", "evaluation.samples=3", "allocator.fallback=false", "seeds=[3]"]
    folders = {arms(comparison.read(file, [change]))["knapsack"].folder for change in changes}
    assert len(folders | {arms(comparison.read(file))["knapsack"].folder}) == len(changes) + 1


def test_a_folder_says_strategy_and_seed(file: Path) -> None:
    assert arms(comparison.read(file))["uniform"].folder.startswith("uniform-seed1-")


# Refusals


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["settings.training.stepz=3"], "training.stepz: unknown key. Did you mean training.steps?"),
        (["training.stepz=3"], "arms.uniform: "),
        (["tuning={grid: {}, seed: [3]}"], "tuning.seed: unknown key. Did you mean tuning.seeds?"),
        (["arms=[uniform, knapsak]"], "arms.knapsak: expected settings, or one of the names uniform, knapsack"),
        (["arms=[uniform, knapsak]"], "Did you mean knapsack?"),
        (["arms={a/b: {allocator.fallback: false}}"], "arms.a/b"),
        (["equal=token"], "equal: expected 'rollouts', 'tokens' or 'seconds', got 'token'. Did you mean tokens?"),
        (["seeds=[]"], "seeds: "),
        (["seeds=[1, 1]"], "seeds: expected each seed once, got [1, 1]."),
        (["seeds=3"], "seeds: expected a valid array, got 3."),
        (["tuning={grid: {}, seeds: [2, 3]}"], "tuning.seeds: expected seeds that the report does not use, got [2]"),
        (["baseline=knap"], "baseline: expected one of the arms uniform, knapsack, got 'knap'."),
        (["arms=[oracle]", "baseline=oracle"], "baseline: 'oracle' is a reference"),
        (["references=[uniform]"], "baseline: 'uniform' is a reference"),
        (["references=[other]"], "references: expected names of arms (uniform, knapsack), got 'other'."),
        (["vary={training.group_size: [4, 4]}"], "vary.training.group_size: expected every value once"),
        (["vary={training.steps: [5, 6]}"], "settings.training.steps: 4 would not be used, because vary has [5, 6]"),
        (["tuning={grid: {training.steps: [5, 6]}, seeds: [3]}"], "settings.training.steps: 4 would not be used"),
        (
            ["vary={seed: [5, 6]}"],
            "vary.seed: a comparison sets it by itself, the seed from `seeds`; leave it out.",
        ),
        (["seed=3"], "settings.seed: a comparison sets it by itself"),
        (["settings.name=x"], "settings.name: a comparison sets it by itself"),
        (
            ["vary={training.group_size: [2, 4]}", "tuning={grid: {training.group_size: [2, 4]}, seeds: [3]}"],
            "vary.training.group_size: tuning.grid has it too",
        ),
        (["arms=[uniform, uniform]"], "arms: expected every arm once, got ['uniform', 'uniform']."),
        (["arms={uniform: , v1.0: {allocator.fallback: false}}"], "arms.v1.0"),
        (
            ["arms={knapsack: {allocator: {max_rollouts: 16}}}", "baseline=knapsack"],
            "arms.knapsack: expected allocator.strategy to be 'knapsack', got 'uniform', because another setting",
        ),
        (
            [
                "arms={uniform: , dynamic-sampling: {training: {steps: 5, prompts_per_step: 8, group_size: 4, "
                "micro_batch_size: 8, max_completion_length: 4}}}"
            ],
            "arms.dynamic-sampling: expected training.dynamic_sampling to be True, got False",
        ),
        (
            ["arms=[uniform, uniform-twice-the-group]", "tuning={grid: {training.group_size: [4, 8]}, seeds: [3]}"],
            "arms.uniform-twice-the-group: expected training.group_size to be 8, got 4",
        ),
        (
            ["arms=[uniform, uniform+more-prompts]", "tuning={grid: {training.group_size: [4, 8]}, seeds: [3]}"],
            "arms.uniform+more-prompts: expected training.group_size to be 2, got 4",
        ),
        (
            ["tuning={grid: {allocator.strategy: [uniform, knapsack]}, seeds: [3]}"],
            "arms.uniform: expected allocator.strategy to be 'uniform', got 'knapsack'",
        ),
        (
            ["vary={training.group_size: [4, 8]}", "arms={uniform: , knapsack: {training.group_size: 4}}"],
            "arms.knapsack: expected training.group_size to be 8, got 4",
        ),
        (
            ["vary={allocator.max_rollouts: [8, 16]}", "arms={uniform: , rule: {allocator: {fallback: false}}}"],
            "arms.rule: expected allocator.max_rollouts to be 8, got 128",
        ),
        (["vary={allocator.strategy: [uniform, knapsack]}"], "arms.knapsack: expected allocator.strategy to be"),
        (
            ["arms={uniform: , knapsack: {evaluation.samples: 1}}"],
            "arms.knapsack.evaluation.samples: expected to be the same for all arms; move it to settings or vary.",
        ),
        (
            ["tuning={grid: {task.eval_problems: [5, 9]}, seeds: [3]}"],
            "tuning.grid.task.eval_problems: expected to be the same for all arms",
        ),
        (["trainer=trl", "arms=[uniform, oracle]"], "arms.oracle: "),
        (["trainer=trl", "arms=[uniform, oracle]"], "'oracle' samples before every step, which trainer=trl cannot"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_its_key(overrides: list[str], said: str, file: Path) -> None:
    assert said in refusal(file, *overrides)


def test_wrong_keys_of_the_file_are_refused_with_the_nearest_spelling_all_at_once(file: Path) -> None:
    file.write_text(COMPARISON.replace("seeds:", "seads:").replace("settings:", "setings:"))
    lines = refusal(file).splitlines()
    assert lines[0] == f"{file} is not a valid comparison:"
    assert sorted(lines[1:]) == [
        "  seads: unknown key. Did you mean seeds?",
        "  seeds: expected a value, and there is none.",
        "  setings: unknown key. Did you mean settings?",
    ]


def test_a_recipe_in_place_of_a_comparison_takes_no_other_recipe(file: Path) -> None:
    assert "recipe: " in refusal(file.parent / "recipes" / "tiny.yaml", "recipe=other.yaml")
    assert "recipe: " in refusal(None, "recipe=other.yaml")


# What comes with the project


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_every_comparison_of_the_project_is_valid_with_all_its_arms(path: Path) -> None:
    grid = comparison.read(path)
    points = {(arm.variation, arm.name): arm.choice for arm in grid.tuning()}
    reported = grid.reported(points)
    assert len(reported) == len(grid.variations) * len(grid.comparison.arms) * len(grid.comparison.seeds)
    first, others = _stages(reported)
    assert len(first) == len({arm.recipe.model_dump_json(include={"model", "task", "seed"}) for arm in reported})
    assert len(first) + len(others) == len(reported)


@pytest.mark.parametrize("runs", EVIDENCE, ids=lambda path: path.parent.name)
def test_a_comparison_trains_the_strategies_that_its_committed_runs_had(runs: Path) -> None:
    """So that no default which changes makes another experiment of it."""
    with runs.open(encoding="utf-8", newline="") as file:
        had = {(row["arm"], row["folder"].partition("-seed")[0]) for row in csv.DictReader(file)}
    grid = comparison.read(RECIPES / "comparisons" / f"{runs.parent.name}.yaml")
    points = {(arm.variation, arm.name): arm.choice for arm in grid.tuning()}
    given_up = {"adaptive with belief baseline", "belief baseline", "belief baseline and even groups"}
    assert {arm for arm in had if arm[0] not in given_up} == {
        (arm.name, arm.recipe.allocator.strategy) for arm in grid.reported(points)
    }
