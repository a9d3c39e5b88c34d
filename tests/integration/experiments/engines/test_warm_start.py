from __future__ import annotations

from pathlib import Path

import pytest
import torch

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.engines import models, warm_start
from knapsack_rl.experiments.engines.warm_start import default_cache_dir, warm_started
from knapsack_rl.experiments.recipe.model_schema import (
    LoraAdapterConfig,
    PretrainedModelConfig,
    ScratchModelConfig,
    WarmStartConfig,
)
from knapsack_rl.tasks import load_task, tokenizer
from knapsack_rl.tasks.chain_arithmetic import ChainArithmeticConfig

TASK = ChainArithmeticConfig(train_problems=32, eval_problems=16, operations=2)
MODEL = ScratchModelConfig(
    kind="scratch",
    layers=1,
    width=16,
    heads=2,
    warm_start=WarmStartConfig(steps=30, batch_size=16, learning_rate=1e-2),
)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_loss_falls_and_every_step_is_reported(tmp_path: Path) -> None:
    seen: list[tuple[int, int, float]] = []
    warm_started(MODEL, TASK, 0, tmp_path, lambda *step: seen.append(step))
    assert [(step, steps) for step, steps, _ in seen] == [(step, 30) for step in range(1, 31)]
    assert sum(loss for *_, loss in seen[-5:]) < 0.8 * sum(loss for *_, loss in seen[:5])


def test_second_call_loads_the_same_weights_without_training(tmp_path: Path) -> None:
    first, _ = warm_started(MODEL, TASK, 0, tmp_path)
    seen: list[int] = []
    second, words = warm_started(MODEL, TASK, 0, tmp_path, lambda step, *_: seen.append(step))
    assert seen == []
    assert torch.equal(weights(first), weights(second))
    assert words.get_vocab() == tokenizer(TASK).get_vocab()
    assert (words.padding_side, words.pad_token, words.eos_token) == ("left", "<pad>", "<eos>")


def test_training_again_from_the_same_seed_gives_the_same_weights_and_another_seed_does_not(tmp_path: Path) -> None:
    first, _ = warm_started(MODEL, TASK, 0, tmp_path / "a")
    again, _ = warm_started(MODEL, TASK, 0, tmp_path / "b")
    other, _ = warm_started(MODEL, TASK, 1, tmp_path / "a")
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("harm", ["missing", "cut", "flipped", "no manifest"])
def test_a_damaged_model_in_the_cache_is_made_anew(harm: str, tmp_path: Path) -> None:
    first = weights(warm_started(MODEL, TASK, 0, tmp_path)[0]).clone()  # the model maps the file that is harmed
    (folder,) = tmp_path.iterdir()
    file = folder / ("manifest.json" if harm == "no manifest" else "model.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if harm in ("missing", "no manifest"):
        file.unlink()
    else:
        file.write_bytes(content[:-9] if harm == "cut" else content)
    seen: list[int] = []
    again, _ = warm_started(MODEL, TASK, 0, tmp_path, lambda step, *_: seen.append(step))
    assert len(seen) == 30
    assert torch.equal(first, weights(again))
    warm_started(MODEL, TASK, 0, tmp_path, lambda step, *_: seen.append(step))
    assert len(seen) == 30
    assert list(tmp_path.iterdir()) == [folder]


def test_anything_that_decides_on_the_weights_has_its_own_place_in_the_cache(tmp_path: Path) -> None:
    longer = MODEL.model_copy(update={"warm_start": WarmStartConfig(steps=31, batch_size=16, learning_rate=1e-2)})
    for model, task, seed in [
        (MODEL, TASK, 0),
        (MODEL, TASK, 1),
        (longer, TASK, 0),
        (MODEL, TASK.model_copy(update={"train_problems": 33}), 0),
    ]:
        warm_started(model, task, seed, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_an_interrupted_warm_start_leaves_nothing_that_could_be_mistaken_for_a_model(tmp_path: Path) -> None:
    def interrupt(step: int, steps: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warm_started(MODEL, TASK, 0, tmp_path, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_faster_wins_and_nothing_breaks(tmp_path: Path) -> None:
    def other_process(step: int, steps: int, loss: float) -> None:
        if step == 3:
            warm_started(MODEL, TASK, 0, tmp_path)

    slower, _ = warm_started(MODEL, TASK, 0, tmp_path, other_process)
    faster, _ = warm_started(MODEL, TASK, 0, tmp_path)
    assert torch.equal(weights(slower), weights(faster))
    assert len(list(tmp_path.iterdir())) == 1


def test_the_callers_random_state_is_the_same_with_and_without_the_cache(tmp_path: Path) -> None:
    for _ in range(2):
        torch.manual_seed(7)
        warm_started(MODEL, TASK, 0, tmp_path)
        assert torch.equal(torch.rand(4), torch.rand(4, generator=torch.Generator().manual_seed(7)))


def test_a_cache_that_cannot_be_written_to_is_refused_before_any_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="XDG_CACHE_HOME"):
        warm_started(MODEL, TASK, 0, tmp_path / "file" / "cache", lambda *_: pytest.fail("trained"))


def test_cache_follows_the_desktop_standard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "knapsack-rl" / "warm-starts"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "knapsack-rl" / "warm-starts"


def test_loss_counts_completions_and_their_end_but_not_prompts_or_padding() -> None:
    tokens, labels = warm_start._batch([[5, 6], [7]], [[8], [9, 10, 11]], eos=1, pad=0)
    assert tokens.tolist() == [[5, 6, 8, 1, 0], [7, 9, 10, 11, 1]]
    assert labels.tolist() == [[-100, -100, 8, 1, -100], [-100, 9, 10, 11, 1]]


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_both_architectures_give_the_same_logits_with_padding_on_the_left(architecture: str) -> None:
    words = tokenizer(TASK)
    torch.manual_seed(0)
    config = ScratchModelConfig(kind="scratch", architecture=architecture, layers=2, width=32, heads=4)
    model = models.from_scratch(config, words).eval()
    alone = words("3 b1 b2 =", return_tensors="pt", return_token_type_ids=False)
    beside = words(["3 b1 b2 =", "3 b1 b2 b3 b4 ="], padding=True, return_tensors="pt", return_token_type_ids=False)
    torch.testing.assert_close(model(**alone).logits[0, -1], model(**beside).logits[0, -1], rtol=0, atol=1e-5)


def test_a_pretrained_model_is_read_from_a_directory_in_the_type_asked_for(tmp_path: Path) -> None:
    warm_started(MODEL, TASK, 0, tmp_path)
    (directory,) = tmp_path.iterdir()
    config = PretrainedModelConfig(kind="pretrained", path=str(directory), dtype="bfloat16")
    model, words = models.pretrained(config)
    assert model.dtype == torch.bfloat16
    assert words.padding_side == "left"


def test_a_pretrained_model_goes_on_learning_once_wherever_its_files_lie(tmp_path: Path) -> None:
    warm_started(MODEL, TASK, 0, tmp_path / "start")
    (start,) = (tmp_path / "start").iterdir()
    config = PretrainedModelConfig(
        kind="pretrained",
        path=str(start),
        autocast=True,
        warm_start=WarmStartConfig(steps=40, batch_size=16, learning_rate=1e-2),
    )
    losses: list[float] = []
    taught, words = warm_started(config, TASK, 0, tmp_path / "cache", lambda *step: losses.append(step[2]))
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert (taught.dtype, words.padding_side) == (torch.float32, "left")

    start.rename(tmp_path / "elsewhere")
    moved = config.model_copy(update={"path": str(tmp_path / "elsewhere"), "dtype": "bfloat16"})
    again, _ = warm_started(moved, TASK, 0, tmp_path / "cache", lambda *_: pytest.fail("trained again"))
    assert again.dtype == torch.bfloat16
    assert torch.equal(weights(again), weights(taught).bfloat16())

    warm_started(MODEL, TASK, 1, tmp_path / "other")
    (other,) = (tmp_path / "other").iterdir()
    different, _ = warm_started(config.model_copy(update={"path": str(other)}), TASK, 0, tmp_path / "cache")
    assert not torch.equal(weights(different), weights(taught))


def test_a_pretrained_model_without_a_warm_start_is_as_it_came(tmp_path: Path) -> None:
    warm_started(MODEL, TASK, 0, tmp_path)
    (start,) = tmp_path.iterdir()
    came, _ = warm_started(PretrainedModelConfig(kind="pretrained", path=str(start)), TASK, 5, tmp_path)
    assert torch.equal(weights(came), weights(warm_started(MODEL, TASK, 0, tmp_path)[0]))
    assert list(tmp_path.iterdir()) == [start]


def test_a_damaged_warm_start_is_made_anew(tmp_path: Path) -> None:
    first = weights(warm_started(MODEL, TASK, 0, tmp_path)[0])  # a copy: the model itself reads from the file
    (made,) = tmp_path.iterdir()
    (made / "model.safetensors").write_bytes(b"cut off")
    assert torch.equal(first, weights(warm_started(MODEL, TASK, 0, tmp_path)[0]))


def test_adapters_reach_all_linear_layers(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, _ = warm_started(MODEL, TASK, 0, tmp_path)
    adapted = peft.get_peft_model(model, models.peft_config(LoraAdapterConfig(rank=2, alpha=4)))
    trained = {name.split(".lora_")[0].split(".")[-1] for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.slow
def test_the_demonstrations_model_starts_with_problems_of_every_difficulty(tmp_path: Path) -> None:
    task_config = ChainArithmeticConfig()
    model, words = warm_started(ScratchModelConfig(kind="scratch"), task_config, 3, tmp_path)
    task = load_task(task_config, 3)
    held_out = task.evaluation["held-out"]
    prompts, answers = 16 * list(held_out["prompt"]), 16 * list(held_out["answer"])
    inputs = words(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    torch.manual_seed(0)
    tokens = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=6)
    completions = words.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    solved = task.reward(prompts, completions, answer=answers)
    rates = torch.tensor(solved).reshape(16, -1).mean(dim=0)
    assert 0.15 < rates.mean() < 0.5
    for share in ((rates == 0), (rates > 0) & (rates < 1), (rates == 1)):
        assert share.float().mean() > 0.03
