"""What columns of rollout logs are called, in the order in which the names are tried.

Names are compared without case, and with "-", ".", "/" and blanks read as "_".
"""

from __future__ import annotations

from collections.abc import Sequence

CANDIDATES: dict[str, tuple[str, ...]] = {
    "id": (
        "prompt_id", "problem_id", "question_id", "task_id", "example_id", "instance_id", "prompt_hash", "doc_id",
        "_ng_task_index", "query_id", "item_id", "prompt_idx", "prompt_index", "problem_idx", "problem_index",
        "question_idx", "question_index", "task_idx", "task_index", "example_idx", "example_index",
    ),
    "prompt": (
        "prompt", "prompts", "input", "question", "problem", "query", "instruction", "input_prompt", "prompt_text",
        "problem_statement", "responses_create_params_input", "messages", "doc_question", "doc_problem",
    ),
    "reward": (
        "reward", "rewards", "total_reward", "score", "scores", "episode_reward", "outcome_reward", "reward_score",
    ),
    "success": (
        "correct", "is_correct", "success", "acc", "accuracy", "passed", "exact_match", "is_success", "is_passed",
        "solved", "is_solved", "resolved", "correctness", "verified", "em",
    ),
    "advantage": ("advantage", "advantages"),
    "step": (
        "step", "global_step", "global_steps", "training_step", "train_step", "gen_step", "iteration", "update", "iter",
        "rollout_step", "rollout_id", "policy_version", "weight_version", "model_version", "epoch",
    ),
    "length": (
        "completion_length", "response_length", "output_length", "completion_tokens", "output_tokens", "num_tokens",
        "response_len", "completion_len", "response_usage_output_tokens", "usage_completion_tokens", "length",
    ),
    "category": ("category", "data_source", "ability", "domain", "subject", "topic", "dataset", "source"),
    "completion": ("completion", "completions", "output", "response", "generation", "output_response"),
    "answer": ("pred", "prediction", "extracted_answer", "model_answer", "parsed_answer"),
    "reference": (
        "reference", "ground_truth", "gts", "gt", "gold", "reference_answer", "solution", "answer", "target", "label",
    ),
}  # fmt: skip

LAST_RESORT_IDS = ("id", "uid", "index", "idx", "group", "group_id", "group_idx", "group_index")
"""Names that are often fresh in every step or every row, so that they are only better than nothing."""

GROUPS = ("uid", "group_id", "group_idx", "group_index", "group", "request_group", "sample_id")
"""What tells groups of one prompt in one step apart, where it does."""

IMAGES = ("images", "image", "image_path", "image_paths", "image_id", "image_url", "image_file", "video", "videos")
"""What a prompt shows beside its text."""

STEADY_REFERENCES = ("reference", "ground_truth", "gts", "gt", "gold", "reference_answer", "solution", "target")
"""References that are not the model's own answer, so that prompts with other ones are other prompts."""

UNSURE_REFERENCES = ("solution", "target", "gold")
"""Those of them that some logs call the model's own answer: they must not go by the reward."""

RUNS = (
    "model",
    "model_name",
    "model_id",
    "run",
    "run_id",
    "run_name",
    "experiment",
    "policy",
    "checkpoint",
    "agent",
    "seed",
)
"""What tells apart rollouts that are not of one run."""

SPLITS = (
    "split",
    "dataset_split",
    "data_split",
    "mode",
    "phase",
    "stage",
    "partition",
    "set",
    "subset",
    "type",
    "kind",
)
"""What may tell rollouts of the training from those of an evaluation, in a word such as "train"."""

SPLIT_QUESTIONS = (
    "is_eval", "is_evaluation", "is_val", "is_validation", "is_test", "is_train", "is_training",
)  # fmt: skip
"""The same, with yes or no."""

GRADINGS = ("filter", "filter_name", "metric", "metric_name", "scorer", "grader", "judge", "verifier", "extractor")
"""What may tell apart several gradings of one response, each a row."""

COMPLETION_LISTS = ("responses", "outputs", "generations", "samples", "candidates", "predictions", "texts")
"""Names for all responses to a prompt, beside those for one."""

GROUP_REWARDS = ("group_rewards", "group_scores", "all_rewards", "rewards_of_group")
"""All rewards of the group, beside the reward of one rollout."""

TOTALS = (
    "scored", "sample_count", "num_samples", "n_samples", "num_rollouts", "n_rollouts", "rollout_count",
    "num_generations", "n_generations", "num_attempts", "n_attempts", "attempts", "num_completions", "n_completions",
    "num_responses", "n_responses", "num_trials", "trials", "total_samples", "total_rollouts",
    "total", "n", "count", "k", "rollouts", "samples", "group_size",
)  # fmt: skip
WINS = (
    "successes", "num_correct", "n_correct", "correct_count", "num_passed", "n_passed", "pass_count", "passed_count",
    "num_success", "num_successes", "n_success", "n_successes", "success_count", "num_solved", "n_solved", "wins",
)  # fmt: skip
POSSIBLE_WINS = ("correct", "passed", "solved", "success", "c")
RATES = (
    "avg_at_k", "avg@k", "pass_rate", "success_rate", "solve_rate", "correct_rate", "win_rate", "mean_accuracy",
    "avg_accuracy", "mean_acc", "avg_acc", "accuracy", "acc", "pass@1", "pass_at_1", "mean_reward", "avg_reward",
    "mean_score", "avg_score", "reward_mean",
)  # fmt: skip
LOSSES = (
    "failures", "num_incorrect", "n_incorrect", "incorrect_count", "num_failed", "n_failed", "fail_count",
    "failed_count", "num_wrong", "n_wrong", "losses", "incorrect", "failed", "wrong",
)  # fmt: skip
"""Columns of tables of counts, a group a row: how many rollouts, how many of them right or wrong, or what share."""

_MEASURES = {
    "metric", "metrics", "length", "len", "turns", "tokens", "num", "n", "count", "counts", "duration", "seconds",
    "time",
}  # fmt: skip


def plain(name: str) -> str:
    """A name as it is compared."""
    return name.strip().lower().replace("-", "_").replace(".", "_").replace(" ", "_").replace("/", "_")


def find(candidates: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of the names that is among the candidates, in the order of these."""
    known = {plain(name): name for name in reversed(names)}
    return next((known[candidate] for candidate in candidates if candidate in known), None)


def is_reward(name: str) -> bool:
    """Whether a column is called like a reward or a verdict; that of a whole group is none."""
    of = plain(name)
    called = of in CANDIDATES["reward"] or of in CANDIDATES["success"] or "reward" in of or "score" in of
    return called and of not in GROUP_REWARDS


def is_measure(name: str) -> bool:
    """Whether a column is called like something that is logged beside rewards, and not trained on."""
    return not _MEASURES.isdisjoint(plain(name).split("_"))


def listed(names: Sequence[str], most: int = 30) -> str:
    """Names in a row, of many only the first."""
    shown = ", ".join(names[:most]) or "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
