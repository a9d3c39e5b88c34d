"""A recipe: everything that decides what a run computes, checked before anything heavy starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

import knapsack_rl as kr
from knapsack_rl.allocator import REVISIT
from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.recipe.model_schema import ModelConfig
from knapsack_rl.tasks import TaskConfig
from knapsack_rl.tasks.config import Config

ORACLE = "oracle"


def _known_strategy(name: str) -> str:
    if name != ORACLE and ":" not in name and name not in kr.strategies():
        raise ValueError(f"expected one of {', '.join((*kr.strategies(), ORACLE))}, or module:NAME for one of your own")
    return name


# For editors, which offer the names; with a colon it is the module and the name of a strategy of one's own.
_OFFERED = Field(json_schema_extra={"anyOf": [{"enum": [*kr.strategies(), ORACLE]}, {"pattern": ":"}]})


Fraction = Annotated[float, Field(gt=0.0, le=1.0)]


class Allocator(Config):
    """What `knapsack_rl.BudgetAllocator` is made of; `training.group_size` sets the budget.

    The strategy `oracle` is a reference and no competitor: before every step it draws `oracle_samples` more rollouts of
    each prompt, which are not charged, and plans with what they say. Without `waves` every step is planned in one shot.
    `features` are columns of the problems that a strategy may learn from; by default `category`, where there is one.
    """

    strategy: Annotated[str, AfterValidator(_known_strategy), _OFFERED] = "uniform"
    """Who decides: any of `kr.strategies()`, `module:NAME` for one of your own, or `oracle`, a reference that needs
    `trainer: minimal`."""
    waves: bool = True
    """Whether a step may generate several times before its update, for strategies that look at the first rollouts
    before they place the rest. `false` plans every step in one shot."""
    features: list[str] | None = None
    """Columns of the problems that strategies may learn from, such as `[category]`. `null` is `category` where the
    task has it, `[]` is none."""
    min_rollouts: NonNegativeInt = 2
    """Fewest rollouts of a prompt; at most `training.group_size`. With 0 a prompt may sit out a step."""
    revisit: Annotated[int, Field(ge=0, le=255)] | None = REVISIT
    """With `min_rollouts: 0`: visits in a row that a prompt may sit out; `null` for no such guarantee."""
    max_rollouts: PositiveInt = 128
    """Most rollouts of a prompt; at least `training.group_size`."""
    fallback: bool = True
    """Whether surplus goes to prompts that were never solved."""
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    """Chance of a gradient that a prompt's cost aims at."""
    cost_limit: Annotated[float, Field(ge=1.0)] | None = None
    """How many times what even groups would be expected to cost a step may be expected to cost, in generated tokens;
    `null` for no limit."""
    oracle_samples: PositiveInt = 64
    """Rollouts per prompt from which the strategy `oracle` knows its success rate. They are not charged: neither
    the budget nor any metric counts them."""


class Training(Config):
    """The reinforcement learning; one step is one batch of generations and its updates.

    With `dynamic_sampling` a step draws prompts until it has `prompts_per_step` groups with a gradient and drops the
    others (DAPO), and training ends when the rollouts of `steps` ordinary steps are spent, dropped ones included.
    """

    steps: PositiveInt
    """Steps of the run."""
    prompts_per_step: PositiveInt
    """Prompts of a step, M."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Mean rollouts per prompt, N. A step has M x N rollouts, whatever the strategy."""
    dynamic_sampling: bool = False
    """Whether a step draws prompts until `prompts_per_step` of their groups have mixed rewards, and drops the
    others (DAPO). All rollouts are charged. Needs `trainer: minimal`."""
    updates_per_step: PositiveInt = 1
    """Optimiser updates per step; divides the rollouts of a step."""
    micro_batch_size: PositiveInt
    """Rollouts per device, forward and backward; times the devices it divides the rollouts of an update."""
    learning_rate: PositiveFloat = 1e-6
    """Constant, without warm-up, unless the block `trl` says otherwise."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's weight decay."""
    adam_beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """AdamW's decay of the mean gradient."""
    adam_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """AdamW's decay of the mean squared gradient."""
    max_grad_norm: PositiveFloat = 1.0
    """Longer gradients are scaled down to this norm."""
    clip_low: PositiveFloat = 0.2
    """The probability ratio is clipped below 1 minus this."""
    clip_high: PositiveFloat = 0.28
    """The probability ratio is clipped above 1 plus this."""
    advantage_clip: PositiveFloat | None = 5.0
    """Bound of the absolute advantage; `null` for none."""
    rollout_weights: Literal["none", "sqrt"] | None = None
    """`sqrt` multiplies the advantages of a group of N rollouts by sqrt(group_size / N), so that large groups
    weigh less; `none` does not. `null` takes what suits the strategy: `sqrt` for `adaptive`, `cautious`, `measured`
    and `adaptive-learnability`, `none` for all others."""
    measure_influence: bool = False
    """Whether to measure what gradients are worth (docs/influence.md), for strategies that do not need it."""
    temperature: PositiveFloat = 1.0
    """Of the sampling."""
    top_p: Fraction = 1.0
    """Of the sampling: the share of probability that is sampled from."""
    max_completion_length: PositiveInt
    """Tokens of a completion."""
    skip_idle: bool = True
    """Whether rollouts without gradient are left out of the update, which is the same but for rounding. The
    minimal trainer always leaves them out."""
    stop_strings: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Texts that end a completion: the first token that contains one is its last. Each must fit into one token of the
    model, such as `=`."""
    checkpoint_every: PositiveInt = 50
    """Steps between checkpoints. The two newest are kept (`trl: {save_total_limit: ...}`)."""

    @property
    def rollouts_per_step(self) -> int:
        """The budget of a step."""
        return self.prompts_per_step * self.group_size

    @property
    def budget(self) -> int:
        """Rollouts of the whole run."""
        return self.steps * self.rollouts_per_step


class FinalEvaluation(Config):
    """What the evaluation after the last step does differently.

    Without `max_problems` it takes all problems; every other absent key is as in `evaluation`.
    """

    samples: PositiveInt | None = None
    """Completions per problem."""
    temperature: PositiveFloat | None = None
    """Of the sampling."""
    top_p: Fraction | None = None
    """Of the sampling."""
    max_completion_length: PositiveInt | None = None
    """Tokens of a completion."""
    max_problems: PositiveInt | None = None
    """Problems per benchmark; absent: all."""


class Evaluation(Config):
    """Held-out accuracy: mean over problems of the mean over `samples` completions.

    Taken before the first step, every `every` steps, and after the last one. `max_problems` keeps a fixed part of
    every benchmark (None: all); `max_completion_length` is the training's if it is None.
    """

    every: PositiveInt = 15
    """Steps between evaluations."""
    samples: PositiveInt = 16
    """Completions per problem; at most the rollouts of a step."""
    temperature: PositiveFloat = 1.0
    """Of the sampling of evaluations alone."""
    top_p: Fraction = 1.0
    """Of the sampling of evaluations alone."""
    max_completion_length: PositiveInt | None = None
    """Tokens of a completion; `null`: as in training."""
    max_problems: PositiveInt | None = None
    """Problems per benchmark, a fixed part that does not depend on the seed; `null` for all."""
    final: FinalEvaluation | None = None
    """What the evaluation after the last step does differently."""


class TransformersEngine(Config):
    """Generate with the training model itself."""

    kind: Literal["transformers"]


class VLLMEngine(Config):
    """Generate with vLLM: in the training processes (colocate), or in a server started with `trl vllm-serve`."""

    kind: Literal["vllm"]
    mode: Literal["colocate", "server"] = "colocate"
    """In the training processes (`colocate`), or in a `server` started with `trl vllm-serve`."""
    gpu_memory_utilization: Fraction = 0.3
    """Colocated: the share of GPU memory that vLLM takes."""
    tensor_parallel_size: PositiveInt = 1
    """Colocated: GPUs that share one copy of the model."""
    max_model_length: PositiveInt | None = None
    """Colocated: tokens of prompt and completion together; `null` is the model's own."""
    enable_sleep_mode: bool = False
    """Colocated: whether vLLM frees its memory while the model trains."""
    server_base_url: str | None = None
    """Server: its address; `null` puts it together from host and port."""
    server_host: str = "0.0.0.0"
    """Server: its host."""
    server_port: PositiveInt = 8000
    """Server: its port."""
    server_timeout: PositiveFloat = 240.0
    """Server: seconds to wait until it is up."""


Engine = Annotated[TransformersEngine | VLLMEngine, Field(discriminator="kind")]


class Recipe(Config):
    """One run. `docs/train.md` explains every key.

    `trainer` is TRL's GRPOTrainer; `minimal`: the loop in `engines/minimal/grpo.py`, for small models on a CPU; or
    `verl`. The blocks `trl` and `verl` are for the trainer of that name.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run and of its directory."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the problems, the model's first weights, the order of prompts and the sampling."""
    trainer: Literal["trl", "minimal", "verl"] = "trl"
    """Who trains: TRL; `minimal`, the loop in one file for small models on a CPU; or `verl`."""
    task: TaskConfig
    """What to train on, by its `kind`."""
    model: ModelConfig
    """What to train: made from scratch, or pretrained."""
    allocator: Allocator = Allocator()
    """How many rollouts each prompt gets."""
    training: Training
    """The reinforcement learning."""
    evaluation: Evaluation = Evaluation()
    """Accuracy on held-out problems."""
    engine: Engine = TransformersEngine(kind="transformers")
    """What generates."""
    trl: dict[str, Any] = Field(default_factory=dict)
    """Any further field of TRL's `GRPOConfig`, such as `report_to: wandb`. Fields that a recipe key sets are
    refused."""
    verl: dict[str, Any] = Field(default_factory=dict)
    """With `trainer: verl`: any further key of verl's configuration, as nested blocks or with dots. Those that a
    recipe key sets are refused."""

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
    if allocator.min_rollouts > 0 and allocator.revisit not in (REVISIT, None):
        yield (
            f"allocator.revisit: nobody sits out with allocator.min_rollouts={allocator.min_rollouts}; leave it out, "
            "or use allocator.min_rollouts=0."
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
    if recipe.model.kind == "pretrained" and recipe.model.warm_start is not None and recipe.task.kind == "math":
        yield "model.warm_start: this task has no worked examples; leave it out."
    if recipe.model.kind == "scratch" and recipe.task.kind in ("math", "word-problems"):
        yield "model.kind: a model made from scratch cannot read this task; use model.kind=pretrained and model.path."
    if recipe.engine.kind == "vllm" and recipe.model.kind == "scratch":
        yield "engine.kind: vLLM loads pretrained models only; with model.kind=scratch use engine.kind=transformers."
    yield from _limits_of_stop_strings(recipe)
    yield from _limits_of_trainer(recipe)


def _limits_of_stop_strings(recipe: Recipe) -> Iterator[str]:
    if recipe.training.stop_strings and (recipe.trainer == "verl" or recipe.engine.kind == "vllm"):
        yield "training.stop_strings: vLLM does not read them here; leave them out, or use engine.kind=transformers."


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
    if recipe.training.measure_influence:
        yield "training.measure_influence: nothing measures influence in verl yet; leave it out or use another trainer."
    if recipe.task.kind != "math" or recipe.task.template is not None:
        yield "task: trainer=verl takes chat prompts of the math task, without a template; use another trainer."
    if recipe.model.kind == "pretrained" and recipe.model.revision is not None:
        yield "model.revision: verl has no such setting; download that revision and name its folder in model.path."
    if recipe.model.kind == "pretrained" and recipe.model.path.lower().endswith(".gguf"):
        yield "model.path: trainer=verl cannot read a GGUF file; name a directory or a model on the hub."
    for name, value in _beyond_verl(recipe):
        yield f"{name}: trainer=verl has no use for {value!r}; leave it out or use another trainer."
    if recipe.engine.kind != "vllm" or recipe.engine.mode != "colocate":
        yield "engine: trainer=verl starts vllm itself; use engine={kind: vllm, mode: colocate}."
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


def _beyond_verl(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    if recipe.model.kind == "pretrained":
        for name in ("autocast", "attn_implementation", "warm_start"):
            if getattr(recipe.model, name):
                yield f"model.{name}", getattr(recipe.model, name)
