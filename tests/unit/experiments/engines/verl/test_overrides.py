"""Recipes in verl's words, and values in Hydra's grammar, of which Hydra itself is the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.engines.verl.overrides import arguments, flattened, overrides, written
from knapsack_rl.experiments.recipe import recipe_file

RECIPE = Path(__file__).parents[5] / "recipes" / "qwen3-4b-base.yaml"


def of_recipe(*changes: str, final: bool = False) -> dict[str, Any]:
    recipe = recipe_file.read(RECIPE, ["trainer=verl", *changes])
    return overrides(recipe, Path("/runs/qwen"), final)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**9), 10**9)
        | st.text(st.characters(codec="ascii"), max_size=12)
        | st.text("\\'\"0 a", max_size=6)
        | st.sampled_from(["null", "True", "nan", "1e-6", "a=b", "it's", "a\\", "\\0", "\\'", "[x]", "${a}"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b_c"]), inner, max_size=2),
    )
)
def test_hydra_reads_back_every_value(value: Any) -> None:
    parser = pytest.importorskip("hydra.core.override_parser.overrides_parser").OverridesParser
    override = parser.create().parse_overrides([f"key={written(value)}"])[0]
    assert override.value() == value


def test_the_recipes_own_keys_become_those_of_verl() -> None:
    chosen = of_recipe("training.group_size=4", "allocator.strategy=adaptive")
    assert chosen["actor_rollout_ref.rollout.n"] == 4
    assert chosen["data.train_batch_size"] == 256
    assert chosen["actor_rollout_ref.actor.ppo_mini_batch_size"] == 32
    assert chosen["actor_rollout_ref.actor.optim.clip_grad"] == 1.0  # its engines read no other
    assert chosen["+trainer.v1.knapsack.strategy"] == "adaptive"
    assert chosen["trainer.v1.trainer_mode"] == "knapsack"
    assert "data.train_files=/runs/qwen/data/train.parquet" in arguments(chosen)


def test_the_block_verl_changes_defaults_and_adds_keys() -> None:
    chosen = of_recipe(
        "verl.actor_rollout_ref.rollout.name=sglang", "verl.trainer.nnodes=4", "verl.+ray_kwargs.ray_init.address=auto"
    )
    assert chosen["actor_rollout_ref.rollout.name"] == "sglang"
    assert chosen["trainer.nnodes"] == 4
    assert chosen["+ray_kwargs.ray_init.address"] == "auto"


@pytest.mark.parametrize(
    "key", ["actor_rollout_ref.rollout.n", "+trainer.v1.knapsack.strategy", "trainer.v1.knapsack.strategy"]
)
def test_the_block_verl_cannot_set_what_the_recipe_sets(key: str) -> None:
    with pytest.raises(InvalidInputError, match="the recipe has keys of its own for this"):
        of_recipe(f"verl.{key}=3")


def test_the_final_evaluation_trains_nothing_and_has_its_own_sampling() -> None:
    chosen = of_recipe(final=True)
    assert chosen["trainer.val_only"] is True
    assert chosen["data.max_response_length"] == 8192
    assert all("/final/" in file for file in chosen["data.val_files"])


def test_nested_blocks_are_dotted_keys() -> None:
    assert dict(flattened({"a": {"b": 1, "c.d": {"e": []}}, "f": {}})) == {"a.b": 1, "a.c.d.e": [], "f": {}}
