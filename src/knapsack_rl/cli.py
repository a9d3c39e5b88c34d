"""The command line: `knapsack-rl train` and its sisters."""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.util
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from knapsack_rl import __version__
from knapsack_rl.errors import InvalidInputError, KnapsackError, MissingExtraError
from knapsack_rl.experiments.cleaning import cleaned
from knapsack_rl.experiments.disk import write_text
from knapsack_rl.experiments.simulate.worlds import WORLDS

if TYPE_CHECKING:
    from rich.console import Console

    from knapsack_rl.experiments.audit.audit import Audit
    from knapsack_rl.experiments.recipe.schema import Recipe

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_REFUSED = 2
_LONGEST_NAME = 160
_FREE_SPACE = "Free some space, or choose another place."
_NO_RIGHT = "Change its permissions, or choose another place."
_WRONG_PLACE = "Check the path, or choose another place."
# What a user's files, folders and disks do, whichever command meets it; anything else is a mistake of ours.
_ADVICE = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), or choose another place.",
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: _NO_RIGHT,
    errno.ENOENT: _WRONG_PLACE,
    errno.ENOTDIR: _WRONG_PLACE,
    errno.EISDIR: _WRONG_PLACE,
    errno.EEXIST: _WRONG_PLACE,
    errno.ELOOP: _WRONG_PLACE,
    errno.EXDEV: _WRONG_PLACE,
    errno.ESTALE: _WRONG_PLACE,
    errno.ENAMETOOLONG: "Give it a shorter name.",
    errno.EIO: "The disk, or the network to it, fails.",
    errno.EMFILE: "Raise the limit on open files (ulimit -n).",
    errno.ENFILE: "Raise the limit on open files of the system.",
    errno.ENOLCK: "Its file system has no locks: choose another place.",
}
_SHELLS = "bash", "zsh", "tcsh"
# What shtab calls them; it is imported only where a script is asked for.
_FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
_FOLDERS = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}
_TRAIN_HELP = """\
Train a language model by reinforcement learning, with a rollout budget per prompt.

Without RECIPE: a demonstration that needs a CPU and a few minutes, and downloads nothing.
Every key of a recipe can be set by its dotted name:

  knapsack-rl train
  knapsack-rl train allocator.strategy=uniform name=demo-uniform
  knapsack-rl train recipes/reasoning-gym.yaml training.steps=20
  knapsack-rl train --engine verl recipes/qwen3-4b-base.yaml verl.trainer.nnodes=4

Ctrl-C or SIGTERM saves a checkpoint (not with --engine verl, which saves every training.checkpoint_every steps); the
same command again goes on from there.
"""

_COMPARE_HELP = """\
Compare strategies at equal cost: every arm with the same tuning, on several seeds, with intervals.

FILE is a comparison (recipes/comparisons has some) or a recipe, on which uniform and adaptive are compared.
Without FILE: the demonstration, on the CPU, in a few minutes. KEY=VALUE sets a key of the comparison, or one of the
recipe for all arms:

  knapsack-rl compare
  knapsack-rl compare recipes/reasoning-gym.yaml seeds=[1,2,3,4,5] training.steps=40
  knapsack-rl compare 'arms=[uniform, knapsack, oracle, dynamic-sampling]' equal=tokens

Finished runs are kept in DIR/arms and never run again; after an interruption the same command goes on.
"""

_SIMULATE_HELP = """\
Simulate training at the paper's scale: 256 x 8 rollouts a step, 1,000 steps, in seconds, without a language model.

Beside the strategies always run: uniform, an oracle that is told the true success rates, and uniform at twice the
rollouts, which says whether rollouts are the bottleneck. Everything is seeded.

  knapsack-rl simulate
  knapsack-rl simulate --world fast slow --optimizer adam sgd --seed 0 1 2
  knapsack-rl simulate --world all --optimizer adam sgd --output runs/worlds
  knapsack-rl simulate --theory

Worlds (docs/simulate.md has the equations):

"""

_SCHEMA_HELP = """\
Write the JSON schema of a recipe, or of a comparison: an editor that knows it completes, explains and checks the keys.

recipes/recipe.schema.json is what this command writes. For a recipe of your own, anywhere:

  knapsack-rl schema --output recipe.schema.json

and this as the first line of the recipe beside it, for editors with the YAML language server:

  # yaml-language-server: $schema=recipe.schema.json
"""

_PROBE_HELP = """\
Probe a recipe before you spend on it: can an allocation help here, and which?

A few dozen steps at even groups, with the minimal trainer on the CPU, and a page that says how success rates lie,
whether rollouts limit the run, and which prompts pull the others up or down. Without RECIPE: the demonstration.

  knapsack-rl probe
  knapsack-rl probe recipes/string-operations.yaml --steps 60
  knapsack-rl probe recipes/reasoning-gym.yaml training.learning_rate=3e-4

Ctrl-C or SIGTERM ends it after the step, and the page is of the steps until then; a second one ends it at once.
"""

_AUDIT_COLUMNS = {
    "prompt": "the prompt",
    "id": "what tells prompts apart (default: the prompt itself)",
    "reward": "the reward of a rollout, as training saw it",
    "success": "what says that a rollout is right (default: the reward, or a column of right and wrong beside it)",
    "advantage": "what decides whether a rollout had a gradient (default: a column advantage, else the rewards)",
    "step": "the training step",
    "length": "tokens of the completion",
    "category": "a kind of prompts, such as verl's data_source",
    "completion": "the completion",
    "answer": "what the completion came down to (default: looked for in it)",
    "reference": "the right answer",
}
_AUDIT_HELP = """\
Audit rollout logs: what had no gradient, who took the budget, what an allocation would have planned, odd graders.

LOGS are files, folders or patterns: TRL's OUTPUT_DIR/completions, verl's trainer.rollout_data_dir, a run directory of
this program, or any JSONL, CSV or parquet with a prompt (or id) and a reward for each rollout:

  knapsack-rl audit outputs/completions
  knapsack-rl audit rollouts/ --category data_source --length response_length
  knapsack-rl audit log.csv --id problem --reward passed --step iteration
  knapsack-rl audit samples.jsonl --pass-at-k

Columns that are not named are guessed, and the guesses are said. Rows that cannot be used are counted and shown.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 for a refused request, 128 + the signal's number for an interruption."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if os.getcwd() not in sys.path:  # where a strategy of the user's own may be; last, so that it hides nothing
            sys.path.append(os.getcwd())
        parsed = _parse(given)
        code: int = parsed.run(parsed, _command(given))
        sys.stdout.flush()
    except KnapsackError as error:
        return _refused(str(error))
    except BrokenPipeError:  # whoever read along has enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for what is flushed at the exit
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        return _refused(f"{_place(error)}{error.strerror}. {_ADVICE[error.errno]}")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return code


def _refused(why: str) -> int:
    if os.environ.get("RANK", "0") == "0":  # under torchrun every process finds the same mistake
        sys.stderr.write(f"knapsack-rl: {cleaned(why)}\n")
    return _REFUSED


def _place(error: OSError) -> str:
    """The file that an error names; of a long name both ends."""
    name = "" if error.filename is None else os.fsdecode(error.filename)
    shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME // 2]}...{name[-_LONGEST_NAME // 2 :]}"
    return f"{shown}: " if shown else ""


def _parse(given: list[str]) -> argparse.Namespace:
    parser = _parser()
    parsed, rest = parser.parse_known_args(given)
    if rest:  # argparse stops taking words at the first option
        if "words" not in parsed or any(word.startswith("-") for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        parsed.words += rest
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="knapsack-rl",
        description="Rollout budgets for reinforcement learning of language models.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"knapsack-rl {__version__}")
    parser.add_argument(
        "--print-completion", action=_PrintCompletion, choices=_SHELLS, help="print what completes commands in a shell"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for add in (_add_train, _add_compare, _add_probe, _add_audit, _add_simulate, _add_report, _add_schema):
        add(commands)
    return parser


class _PrintCompletion(argparse.Action):
    """Prints the script of a shell and leaves, as `--version` does."""

    def __call__(self, parser: argparse.ArgumentParser, parsed: object, shell: object, option: object = None) -> None:
        try:
            import shtab
        except ModuleNotFoundError:
            raise MissingExtraError(
                "shtab is not installed, and --print-completion needs it. Run: pip install 'knapsack-rl[report]'"
            ) from None
        sys.stdout.write(shtab.complete(parser, str(shell)) + "\n")
        parser.exit()


def _completed_by(action: argparse.Action, with_what: dict[str, str]) -> None:
    setattr(action, "complete", with_what)  # noqa: B010  # shtab looks for it


def _add(commands: Commands, name: str, purpose: str, description: str | None) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        allow_abbrev=False,
        help=purpose,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_train(commands: Commands) -> None:
    train = _add(commands, "train", "train one run", _TRAIN_HELP)
    words = train.add_argument(
        "words", nargs="*", metavar="[RECIPE] [KEY=VALUE ...]", help="a YAML file, and changes to it"
    )
    _completed_by(words, _FILES)
    _add_run_directories(train)
    train.add_argument(
        "--engine", choices=("trl", "minimal", "verl"), default=None, help="who trains; the same as trainer=NAME"
    )
    train.add_argument("--dry-run", action="store_true", help="check the recipe, build what it takes, train nothing")
    train.set_defaults(run=_train)


def _add_run_directories(command: argparse.ArgumentParser) -> None:
    output = command.add_argument(
        "--output", type=Path, default=Path("runs"), metavar="DIR", help="where run directories are"
    )
    _completed_by(output, _FOLDERS)


def _add_compare(commands: Commands) -> None:
    compare = _add(commands, "compare", "compare strategies over several seeds, at equal cost", _COMPARE_HELP)
    words = compare.add_argument(
        "words", nargs="*", metavar="[FILE] [KEY=VALUE ...]", help="a comparison or a recipe, and changes to it"
    )
    _completed_by(words, _FILES)
    _add_run_directories(compare)
    compare.add_argument("--jobs", type=int, default=None, metavar="N", help="runs at the same time (default: cores)")
    compare.add_argument("--dry-run", action="store_true", help="check everything, say what would run, run nothing")
    compare.set_defaults(run=_compare)


def _add_probe(commands: Commands) -> None:
    probe = _add(commands, "probe", "a few dozen even steps: can an allocation help here, and which?", _PROBE_HELP)
    words = probe.add_argument(
        "words", nargs="*", metavar="[RECIPE] [KEY=VALUE ...]", help="a YAML file, and changes to it"
    )
    _completed_by(words, _FILES)
    probe.add_argument("--steps", type=int, default=40, metavar="N", help="steps to make (default: 40)")
    output = probe.add_argument(
        "--output",
        type=Path,
        default=Path("runs/probe"),
        metavar="DIR",
        help="where directories of probes are (default: runs/probe)",
    )
    _completed_by(output, _FOLDERS)
    probe.set_defaults(run=_probe)


def _add_audit(commands: Commands) -> None:
    audit = _add(
        commands, "audit", "what existing rollout logs wasted, and what an allocation would have planned", _AUDIT_HELP
    )
    _completed_by(audit.add_argument("logs", nargs="+", metavar="LOGS", help="files, folders or patterns"), _FILES)
    for name, meaning in _AUDIT_COLUMNS.items():
        audit.add_argument(f"--{name}", default=None, metavar="COLUMN", help=meaning)
    audit.add_argument(
        "--success-above",
        type=float,
        default=None,
        metavar="X",
        help="a success has a larger reward (default: 0, where the values of the rewards leave no doubt)",
    )
    audit.add_argument(
        "--pass-at-k", action="store_true", help="all rows of a prompt are one group, whatever their order and steps"
    )
    audit.add_argument("--json", action="store_true", help="print all figures as JSON, and nothing else")
    audit.add_argument("--strategy", default="knapsack", metavar="NAME", help="what plans (default: knapsack)")
    audit.add_argument("--min-rollouts", type=int, default=2, metavar="N", help="fewest of a prompt (default: 2)")
    audit.add_argument("--max-rollouts", type=int, default=128, metavar="N", help="most of a prompt (default: 128)")
    output = audit.add_argument(
        "--output", type=Path, default=None, metavar="DIR", help="where report.html goes (default: runs/audit/NAME)"
    )
    _completed_by(output, _FOLDERS)
    audit.set_defaults(run=_audit)


def _add_simulate(commands: Commands) -> None:
    worlds = "".join(f"  {name:11} {world.purpose}\n" for name, world in WORLDS.items())
    simulate = _add(
        commands, "simulate", "the paper's scale in seconds, without a language model", _SIMULATE_HELP + worlds
    )
    for option, default, meaning in (
        ("--world", "paper", "worlds, or all"),
        ("--strategy", "knapsack", "strategies to compare with uniform and the oracle"),
        ("--optimizer", "adam", "adam, sgd or both"),
    ):
        text = f"{meaning} (default: {default})"
        simulate.add_argument(option, nargs="+", default=[default], metavar="NAME", help=text)
    simulate.add_argument("--seed", nargs="+", type=int, default=[0], metavar="N", help="seeds (default: 0)")
    simulate.add_argument("--steps", type=int, default=1000, metavar="N", help="steps of a run (default: 1000)")
    simulate.add_argument("--theory", action="store_true", help="only figures 3, 4 and 10 and table 3 of the paper")
    output = simulate.add_argument(
        "--output", type=Path, default=Path("runs/simulate"), metavar="DIR", help="where report.html and its data go"
    )
    _completed_by(output, _FOLDERS)
    simulate.set_defaults(run=_simulate)


def _add_report(commands: Commands) -> None:
    report = _add(commands, "report", "write report.html from run directories", None)
    _completed_by(report.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR"), _FOLDERS)
    output = report.add_argument("--output", type=Path, default=None, metavar="FILE", help="the page to write")
    _completed_by(output, _FILES)
    report.set_defaults(run=_report)


def _add_schema(commands: Commands) -> None:
    schema = _add(commands, "schema", "the JSON schema of a recipe, for editors", _SCHEMA_HELP)
    schema.add_argument("of", nargs="?", choices=("recipe", "comparison"), default="recipe", help="(default: recipe)")
    output = schema.add_argument(
        "--output", type=Path, default=None, metavar="FILE", help="where it goes (default: print it)"
    )
    _completed_by(output, _FILES)
    schema.set_defaults(run=_schema)


def _train(parsed: argparse.Namespace, command: str) -> int:
    recipe_file = _module("recipe.recipe_file")
    path, overrides = _recipe_and_overrides(parsed.words)
    if parsed.engine is not None:
        overrides.append(f"trainer={parsed.engine}")
    recipe: Recipe = recipe_file.read(path, overrides)
    console = _console()
    if parsed.dry_run:
        for label, text in _module("engines.verl.run" if recipe.trainer == "verl" else "engines.trl.run").dry_run(
            recipe, parsed.output
        ):
            _say(console, f"{label:>14}  {text}")
        return 0
    if recipe.trainer == "verl":
        return int(_module("engines.verl.run").train(recipe, parsed.output, command, partial(_say, console)))
    with console.status("loading PyTorch"):
        train = _module("engines.trl.run" if recipe.trainer == "trl" else "engines.minimal.run")
    interrupted = _module("runs.interruption").Interrupted
    try:
        outcome = train.train(recipe, parsed.output, command, console)
    except interrupted as stop:
        _say(console, f"stopped at once by {stop}. To go on:\n  {command}")
        return 128 + int(stop.number)
    if outcome.report is None:
        return 0 if outcome.stopped_by is None else 128 + int(outcome.stopped_by)
    if outcome.already_finished:
        _say(console, f"{outcome.directory.path} is finished already; choose another name=... for another run")
    console.print(_module("runs.progress").summary(recipe.training.steps, outcome.directory.read_metrics()))
    _say(console, f"report  {outcome.report}")
    if outcome.stopped_by is None:
        return 0
    _say(console, f"stopped early; a checkpoint is saved. To go on:\n  {command}")
    return 128 + int(outcome.stopped_by)


def _compare(parsed: argparse.Namespace, command: str) -> int:
    comparison = _module("compare.comparison")
    path, overrides = _recipe_and_overrides(parsed.words)
    planned = comparison.read(path, overrides)
    jobs = _jobs(parsed.jobs)
    console = _console()
    compare = _module("compare.compare")
    for label, text in compare.plan(planned, parsed.output):
        _say(console, f"{label:>14}  {text}")
    if parsed.dry_run:
        return 0
    interrupted = _module("runs.interruption").Interrupted
    try:
        outcome = compare.compare(planned, parsed.output, jobs, command, console)
    except interrupted as stop:
        _say(console, f"stopped by {stop}. To go on:\n  {command}")
        return 128 + int(stop.number)
    console.print(_module("compare.summary_table").table(outcome.summary))
    _say(console, f"report  {outcome.report}")
    lost = sum(failure.lost for failure in outcome.failures)
    if again := len(outcome.failures) - lost:
        _say(console, f"{again} run(s) failed; the same command tries them again")
    if lost:
        _say(console, f"{lost} run(s) lost what they measured; the reasons above say what to do")
    return 1 if outcome.failures else 0


def _jobs(asked: int | None) -> int:
    if asked is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if asked < 1:
        raise InvalidInputError(f"--jobs: expected 1 or more, got {asked}.")
    return asked


def _probe(parsed: argparse.Namespace, command: str) -> int:
    console = _console()
    with console.status("loading PyTorch"):
        probe = _module("probe.probe")
    recipe: Recipe = probe.planned(*_recipe_and_overrides(parsed.words), parsed.steps)
    interrupted = _module("runs.interruption").Interrupted
    try:
        outcome = probe.probe(recipe, parsed.output, command, console)
    except interrupted as stop:
        _say(console, f"stopped at once by {stop}. To begin anew:\n  {command}")
        return 128 + int(stop.number)
    for sentence in (outcome.verdict.headline, *outcome.verdict.advice):
        _say(console, sentence)
    for sentence in outcome.verdict.reasons:
        _say(console, f"- {sentence}")
    _say(console, f"report  {outcome.report}")
    if outcome.stopped_by is None:
        return 0
    _say(console, f"stopped early. To begin anew:\n  {command}")
    return 128 + int(outcome.stopped_by)


def _audit(parsed: argparse.Namespace, command: str) -> int:
    console, audit, asked = _console(), _module("audit.audit"), _module("audit.asked").Asked
    options = audit.Options(
        columns=asked(**{name: getattr(parsed, name) for name in _AUDIT_COLUMNS}),
        success_above=parsed.success_above,
        pooled=parsed.pass_at_k,
        strategy=parsed.strategy,
        min_rollouts=parsed.min_rollouts,
        max_rollouts=parsed.max_rollouts,
    )
    if parsed.json:
        found = audit.audit(parsed.logs, options)
        page = _module("audit.report").write_report(found, parsed.output, command)
        # A lone surrogate of a file's name as its escape, which in JSON stands for it.
        text = _module("audit.as_json").as_json(found, page)
        sys.stdout.write(text.encode("utf-8", "backslashreplace").decode())
        return 0
    with console.status("reading") as status:
        found = audit.audit(parsed.logs, options, lambda rows: status.update(f"reading: {rows:,} rows"))
    _say_audit(console, found)
    with console.status("drawing"):
        page = _module("audit.report").write_report(found, parsed.output, command)
    _say(console, f"\nreport  {page}")
    return 0


def _say_audit(console: Console, found: Audit) -> None:
    """What an audit found, on the console: how the log was understood, the findings, and what follows."""
    findings = _module("audit.findings")
    for label, text in findings.console_lines(found):
        _say(console, f"{label:>9}  {text}")
    for text in (*findings.remarks(found), *findings.summary(found)):
        _say(console, f"\n{text}")
    _say(console, "\nWhat to do about it")
    for text in _module("audit.advice").advice(found):
        _say(console, f"- {text}")


def _simulate(parsed: argparse.Namespace, command: str) -> int:
    console, simulate = _console(), _module("simulate.command")
    if parsed.theory:
        page = simulate.theory(parsed.output, command)
    else:
        grid = simulate.Grid(
            worlds=tuple(WORLDS if parsed.world == ["all"] else parsed.world),
            strategies=tuple(parsed.strategy),
            optimizers=tuple(parsed.optimizer),
            seeds=tuple(parsed.seed),
            steps=parsed.steps,
        )
        page = simulate.simulate(grid, parsed.output, command, console)
    _say(console, f"report  {page}")
    return 0


def _report(parsed: argparse.Namespace, command: str) -> int:
    page = _module("report.run_report").write_report(parsed.runs, parsed.output)
    _say(_console(), f"report  {page}")
    return 0


def _schema(parsed: argparse.Namespace, command: str) -> int:
    module = _module("recipe.json_schema" if parsed.of == "recipe" else "compare.json_schema")
    text = json.dumps(module.schema(), indent=2, ensure_ascii=False) + "\n"
    if parsed.output is None:
        sys.stdout.write(text)
        return 0
    try:
        write_text(parsed.output, text)
    except OSError as error:
        raise InvalidInputError(f"--output: cannot write {parsed.output}: {error.strerror}.") from error
    return 0


def _command(given: Sequence[str]) -> str:
    """What to type to run this again."""
    if "TORCHELASTIC_RUN_ID" in os.environ and importlib.util.find_spec("psutil") is not None:
        # torchrun or accelerate launch, with all its options
        launcher = importlib.import_module("psutil").Process().parent()
        if launcher is not None:
            return shlex.join(launcher.cmdline())
    return shlex.join(["knapsack-rl", *given])


def _recipe_and_overrides(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """A first word without `=` is the recipe; so is the path of an existing file."""
    if words and ("=" not in words[0] or Path(words[0]).is_file()):
        return Path(words[0]), list(words[1:])
    return None, list(words)


def _module(name: str) -> ModuleType:
    """A module of `knapsack_rl.experiments`, imported only now because the ones behind it are heavy."""
    try:
        return importlib.import_module(f"knapsack_rl.experiments.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("knapsack_rl"):
            raise
        raise MissingExtraError(
            f"{error.name} is not installed, and this command needs it. Run: pip install 'knapsack-rl[train]'"
        ) from error


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _console() -> Console:
    if importlib.util.find_spec("rich") is None:
        raise MissingExtraError("rich is not installed. Run: pip install 'knapsack-rl[train]'")
    from rich.console import Console

    class CleanConsole(Console):
        """Shows what a text from a file would make the terminal do."""

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(cleaned(one) if isinstance(one, str) else one for one in objects), **options)

    return CleanConsole()


if __name__ == "__main__":
    sys.exit(main())
