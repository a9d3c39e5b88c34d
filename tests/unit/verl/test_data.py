"""What the settings name in the data and in its rewards, looked up with verl's own reward loop."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl.trainer.ppo.v1", reason="verl is installed in an environment of its own")

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import knapsack_rl as kr
from knapsack_rl.verl.data import check_first_prompt
from knapsack_rl.verl.options import KnapsackOptions

ROW = {
    "raw_prompt": [{"role": "user", "content": "2+2"}],
    "data_source": "sums",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"index": 0},
    "index": 0,
    "level": "easy",
    "picture": {"bytes": b""},
    "handle": object(),
}
REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {answer}
"""


@functools.cache
def defaults() -> Any:
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer")


def config(folder: Path, answer: str) -> Any:
    """verl's defaults with a tokenizer and a reward function in this folder."""
    words = Tokenizer(models.WordLevel({"<eos>": 0, "4": 1}, unk_token="<eos>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>").save_pretrained(folder)
    (folder / "reward.py").write_text(REWARD.format(answer=answer))
    found = copy.deepcopy(defaults())
    OmegaConf.update(found, "actor_rollout_ref.model.path", str(folder))
    OmegaConf.update(found, "reward.custom_reward_function.path", str(folder / "reward.py"))
    return found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"id_field": "name"}, r"trainer\.v1\.knapsack\.id_field: expected a column .*level.*, got 'name'"),
        ({"feature_fields": ["level", "topic"]}, r"knapsack\.feature_fields: expected a column .*, got 'topic'"),
        ({"feature_fields": ["picture"]}, r"knapsack\.feature_fields: features\['picture'\]"),
        ({"id_field": "handle"}, r"knapsack\.id_field: prompt: expected text, messages or images, got object"),
    ],
)
def test_columns_that_are_not_there_or_cannot_be_used_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(kr.InvalidInputError, match=message):
        check_first_prompt(defaults(), KnapsackOptions.read(given), ROW)


def test_columns_that_are_there_pass() -> None:
    check_first_prompt(defaults(), KnapsackOptions.read({"id_field": "index", "feature_fields": ["level"]}), ROW)


def test_a_success_field_is_looked_up_in_the_reward_of_an_empty_answer(tmp_path: Path) -> None:
    scored = config(tmp_path, '{"score": 0.1, "right": float(solution_str == ground_truth)}')
    check_first_prompt(scored, KnapsackOptions.read({"success_field": "right"}), ROW)
    with pytest.raises(kr.InvalidInputError, match=r"success_field: expected an entry .*right, score .*got 'correct'"):
        check_first_prompt(scored, KnapsackOptions.read({"success_field": "correct"}), ROW)


def test_where_only_a_run_can_tell_the_entries_of_a_reward_nothing_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = KnapsackOptions.read({"success_field": "correct"})
    fails = config(tmp_path, "1 / len(solution_str)")
    check_first_prompt(fails, options, ROW)
    assert "not checked, since an empty answer has no reward" in caplog.text
    check_first_prompt(config(tmp_path, "1.0"), options, ROW | {"agent_name": "my_own_agent"})
