"""A recipe: everything that decides what a run computes, checked before anything heavy starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

import knapsack_rl as kr
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.recipe.model_schema import ModelConfig
from knapsack_rl.tasks import TaskConfig


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


ORACLE = "oracle"


def _known_strategy(name: str) -> str:
    known = (*kr.strategies(), ORACLE)
    if name not in known:
        raise ValueError(f"expected one of {', '.join(known)}")
    return name


Fraction = Annotated[float, Field(gt=0.0, le=1.0)]


class Allocator(_Block):
    """What `knapsack_rl.BudgetAllocator` is made of; `training.group_size` sets the budget.

    The strategy `oracle` is a reference and no competitor: before every step it draws `oracle_samples` more rollouts of
    each prompt, which are not charged, and plans with what they say. Without `waves` every step is planned in one shot.
    `features` are columns of the problems that a strategy may learn from; by default `category`, where there is one.
    """

    strategy: Annotated[str, AfterValidator(_known_strategy)] = "knapsack"
    waves: bool = True
    features: list[str] | None = None
    min_rollouts: PositiveInt = 2
    max_rollouts: PositiveInt = 128
    fallback: bool = True
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    oracle_samples: PositiveInt = 64


class Training(_Block):
    """The reinforcement learning; one step is one batch of generations and its updates.

    With `dynamic_sampling` a step draws prompts until it has `prompts_per_step` groups with a gradient and drops the
    others (DAPO), and training ends when the rollouts of `steps` ordinary steps are spent, dropped ones included.
    """

    steps: PositiveInt
    prompts_per_step: PositiveInt
    group_size: Annotated[int, Field(ge=2)] = 8
    dynamic_sampling: bool = False
    updates_per_step: PositiveInt = 1
    micro_batch_size: PositiveInt
    learning_rate: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.0
    adam_beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    max_grad_norm: PositiveFloat = 1.0
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.28
    advantage_clip: PositiveFloat | None = 5.0
    baseline: Literal["group", "belief"] = "group"
    rollout_weights: Literal["none", "sqrt"] | None = None
    temperature: PositiveFloat = 1.0
    top_p: Fraction = 1.0
    max_completion_length: PositiveInt
    checkpoint_every: PositiveInt = 50

    @property
    def rollouts_per_step(self) -> int:
        """The budget of a step."""
        return self.prompts_per_step * self.group_size

    @property
    def budget(self) -> int:
        """Rollouts of the whole run."""
        return self.steps * self.rollouts_per_step


class FinalEvaluation(_Block):
    """What the evaluation after the last step does differently.

    Without `max_problems` it takes all problems; every other absent key is as in `evaluation`.
    """

    samples: PositiveInt | None = None
    temperature: PositiveFloat | None = None
    top_p: Fraction | None = None
    max_completion_length: PositiveInt | None = None
    max_problems: PositiveInt | None = None


class Evaluation(_Block):
    """Held-out accuracy: mean over problems of the mean over `samples` completions.

    Taken before the first step, every `every` steps, and after the last one. `max_problems` keeps a fixed part of
    every benchmark (None: all); `max_completion_length` is the training's if it is None.
    """

    every: PositiveInt = 15
    samples: PositiveInt = 16
    temperature: PositiveFloat = 1.0
    top_p: Fraction = 1.0
    max_completion_length: PositiveInt | None = None
    max_problems: PositiveInt | None = None
    final: FinalEvaluation | None = None


class TransformersEngine(_Block):
    """Generate with the training model itself."""

    kind: Literal["transformers"]


class VLLMEngine(_Block):
    """Generate with vLLM: in the training processes (colocate), or in a server started with `trl vllm-serve`."""

    kind: Literal["vllm"]
    mode: Literal["colocate", "server"] = "colocate"
    gpu_memory_utilization: Fraction = 0.3
    tensor_parallel_size: PositiveInt = 1
    max_model_length: PositiveInt | None = None
    enable_sleep_mode: bool = False
    server_base_url: str | None = None
    server_host: str = "0.0.0.0"
    server_port: PositiveInt = 8000
    server_timeout: PositiveFloat = 240.0


Engine = Annotated[TransformersEngine | VLLMEngine, Field(discriminator="kind")]


class Recipe(_Block):
    """One run. `docs/train.md` explains every key.

    `trainer` is TRL's GRPOTrainer; `minimal`: the loop in `minimal_grpo.py`, for small models on a CPU; or `verl`. The
    blocks `trl` and `verl` are for the trainer of that name.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    trainer: Literal["trl", "minimal", "verl"] = "trl"
    task: TaskConfig
    model: ModelConfig
    allocator: Allocator = Allocator()
    training: Training
    evaluation: Evaluation = Evaluation()
    engine: Engine = TransformersEngine(kind="transformers")
    trl: dict[str, Any] = {}
    verl: dict[str, Any] = {}

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        problems = list(_contradictions(self))
        if problems:
            raise InvalidInputError("\n".join(problems))
        return self


def _contradictions(recipe: Recipe) -> Iterator[str]:
    training, allocator, evaluation = recipe.training, recipe.allocator, recipe.evaluation
    if allocator.min_rollouts > training.group_size:
        yield (
            f"allocator.min_rollouts: expected at most training.group_size ({training.group_size}), the mean "
            f"per prompt, got {allocator.min_rollouts}."
        )
    if allocator.max_rollouts < training.group_size:
        yield (
            f"allocator.max_rollouts: expected at least training.group_size ({training.group_size}), the mean "
            f"per prompt, got {allocator.max_rollouts}."
        )
    rollouts, updates = training.rollouts_per_step, training.updates_per_step
    if rollouts % updates:
        yield (
            f"training.updates_per_step: expected a divisor of the {rollouts} rollouts of a step "
            f"(prompts_per_step x group_size), got {updates}."
        )
    elif (rollouts // updates) % training.micro_batch_size:
        yield (
            f"training.micro_batch_size: expected a divisor of the {rollouts // updates} rollouts of an update "
            f"(prompts_per_step x group_size / updates_per_step), got {training.micro_batch_size}."
        )
    for key, samples in (
        ("evaluation.samples", evaluation.samples),
        ("evaluation.final.samples", evaluation.final.samples if evaluation.final else None),
    ):
        if samples is not None and samples > rollouts:
            yield f"{key}: expected at most the {rollouts} rollouts of a step, got {samples}."
    if recipe.model.kind == "scratch" and recipe.task.kind == "math":
        yield "model.kind: a model made from scratch cannot read this task; use model.kind=pretrained and model.path."
    if recipe.engine.kind == "vllm" and recipe.model.kind == "scratch":
        yield "engine.kind: vLLM loads pretrained models only; with model.kind=scratch use engine.kind=transformers."
    yield from _limits_of_trainer(recipe)


def _limits_of_trainer(recipe: Recipe) -> Iterator[str]:
    """What not all trainers can do."""
    if recipe.trainer != "minimal":
        if recipe.allocator.strategy == ORACLE:
            yield (
                f"allocator.strategy: 'oracle' samples before every step, which trainer={recipe.trainer} cannot; "
                "use trainer=minimal."
            )
        if recipe.training.dynamic_sampling:
            yield f"training.dynamic_sampling: trainer={recipe.trainer} does not support it; use trainer=minimal."
    yield from {"trl": lambda _: (), "minimal": _limits_of_minimal, "verl": _limits_of_verl}[recipe.trainer](recipe)


def _limits_of_minimal(recipe: Recipe) -> Iterator[str]:
    if recipe.engine.kind != "transformers":
        yield "engine.kind: trainer=minimal generates with transformers; use engine.kind=transformers or trainer=trl."
    if recipe.task.kind == "math" and recipe.task.template is None:
        yield "task.template: trainer=minimal takes prompts as plain text; give a template, or use trainer=trl."
    if recipe.model.kind == "pretrained" and recipe.model.lora is not None:
        yield "model.lora: trainer=minimal trains all weights; leave it out or use trainer=trl."
    for name, block in (("trl", recipe.trl), ("verl", recipe.verl)):
        if block:
            yield (
                f"{name}: trainer=minimal has no use for {', '.join(block)}; leave the block out or use trainer={name}."
            )


def _limits_of_verl(recipe: Recipe) -> Iterator[str]:
    if recipe.task.kind != "math" or recipe.task.template is not None:
        yield "task: trainer=verl takes chat prompts of the math task, without a template; use another trainer."
    if recipe.model.kind == "pretrained" and recipe.model.revision is not None:
        yield "model.revision: verl has no such setting; download that revision and name its folder in model.path."
    if recipe.engine.kind != "vllm" or recipe.engine.mode != "colocate":
        yield "engine: trainer=verl starts vllm itself; use engine={kind: vllm, mode: colocate}."
    if recipe.training.baseline != "group":
        yield "training.baseline: trainer=verl subtracts what algorithm.adv_estimator says; use baseline=group."
    if recipe.training.prompts_per_step % recipe.training.updates_per_step:
        yield (
            f"training.updates_per_step: trainer=verl counts mini-batches in prompts; expected a divisor of the "
            f"{recipe.training.prompts_per_step} prompts of a step, got {recipe.training.updates_per_step}."
        )
    evaluated = recipe.evaluation.max_completion_length
    if evaluated not in (None, recipe.training.max_completion_length):
        yield (
            f"evaluation.max_completion_length: trainer=verl evaluates with the training's "
            f"{recipe.training.max_completion_length} tokens, got {evaluated}; evaluation.final may have others."
        )
